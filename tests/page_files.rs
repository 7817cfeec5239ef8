//! The page's views of files, in a real browser; see page.rs.

mod browser;
mod common;

use browser::{assert_quiet, url, with_browser};
use common::{Agent, Folder, SIDEBIKE, Server, id, task, wait_until};
use serde_json::{Value, json};
use std::process::Command;

/// A blob on the server, as a task names it.
fn upload(server: &Server, name: &str, bytes: &[u8]) -> Value {
    let path = format!("/api/v1/file/{name}");
    let done = server.request("PUT", &path, bytes).data();
    json!({"sha256": done["sha256"], "size": done["size"]})
}

/// Waits until the browser has saved this file, and reads it.
fn saved(folder: &Folder, name: &str) -> Vec<u8> {
    wait_until(name, || std::fs::read(folder.file(name)).ok())
}

#[test]
fn a_task_shows_its_files_and_what_was_handed_back_with_links_to_the_bytes() {
    with_browser(|browser| {
        let server = Server::start();
        let _agents = [server.agent("m-1"), server.agent("m-2")];
        let (folder, downloads) = (Folder::new(), Folder::new());
        browser.saves_to(downloads.path());
        let mut pushed = upload(&server, "tool.sh", b"echo tool\n");
        pushed["path"] = json!(folder.file("tool.sh"));
        pushed["mode"] = json!("0755");
        let mut with_files = task("echo $SIDEBIKE_MACHINE_LABEL > $SIDEBIKE_MACHINE_LABEL.out");
        with_files["detail"]["workspace"] = json!(folder.path());
        with_files["files"] = json!([pushed]);
        with_files["fetch"] = json!([
            {"path": "m-1.out", "missingOk": true},
            {"path": "m-2.out", "missingOk": true, "max": "2B"},
        ]);
        let done = server.run(with_files);
        assert_eq!(done["state"], "succeeded", "{done}");
        browser.open(&url(&server, &format!("#/task/{}", id(&done))));
        browser.sees("#task-files", "To be handed back: m-1.out, m-2.out");
        browser.sees(
            "#task-files",
            &format!(
                "Laid down\n{}\n10 bytes · mode 0755",
                folder.file("tool.sh")
            ),
        );
        browser.sees("#task-files", "m-1\nm-1.out\n4 bytes\n");
        browser.sees("#task-files", "m-2\nm-2.out\n2 bytes · only the beginning");
        browser.pictures("task-files");
        browser.fits_a_phone();
        let before = browser.run("return location.href");
        browser.click("#task-files li:nth-child(2) a");
        assert_eq!(saved(&downloads, "m-1.out"), b"m-1\n");
        browser.click("#task-files li:nth-child(1) a");
        assert_eq!(saved(&downloads, "tool.sh"), b"echo tool\n");
        assert_eq!(browser.run("return location.href"), before);
        // All of them in a list.
        browser.press("o");
        browser.click("#view-overview [href='#/files']");
        browser.sees("#files-summary", "3 files · 16 bytes");
        browser.sees("#files", "tool.sh");
        browser.sees("#files", id(&done));
        browser.pictures("files");
        browser.fits_a_phone();
        browser.type_into("#files-search", "tool");
        browser.wait("document.querySelectorAll('#files li').length === 1");
        browser.click("#files .danger");
        browser.sees("#confirm-dialog", "Delete tool.sh?");
        browser.click("#confirm-dialog [value=no]");
        let blob = format!("/api/v1/blob/{}", pushed["sha256"].as_str().unwrap());
        assert_eq!(server.get(&blob).status, 200);
        browser.click("#files .danger");
        browser.click("#confirm-yes");
        browser.sees("#files-empty", "No file matches.");
        assert_eq!(server.get(&blob).status, 404);
        // What runs with it is needed.
        let mut needed = upload(&server, "needed%E2%80%AE%3Cb%3E", b"needed");
        needed["path"] = json!(folder.file("needed"));
        let mut running = task("sleep 600");
        running["files"] = json!([needed]);
        let running = server.submit(running);
        browser.type_into("#files-search", "needed");
        browser.sees("#files", "needed\\u{202e}<b>");
        browser.sees("#files", id(&running));
        browser.click("#files .danger");
        browser.click("#confirm-yes");
        browser.sees("#toast", "a task that has not ended needs it");
        assert_quiet(browser, &["status of 409"]);
    });
}

#[test]
fn the_form_takes_files_shows_how_far_they_are_and_hands_files_back() {
    with_browser(|browser| {
        let server = Server::start();
        let _agent = server.agent("m");
        let folder = Folder::new();
        let size = 600_000;
        std::fs::write(folder.file("big one.bin"), vec![b'x'; size]).unwrap();
        std::fs::write(folder.file("tool.sh"), b"echo tool\n").unwrap();
        browser.open(&url(&server, "#/submit"));
        browser.sees("#preview-title", "1 machine");
        browser.click("#submit-files summary");
        browser.throttle_uploads(Some(150_000));
        browser.type_into("#choose-files", &folder.file("big one.bin"));
        browser.sees("#form-files", "of 585.9 KiB");
        browser
            .wait("parseFloat(document.querySelector('#form-files .bar span').style.width) > 10");
        browser.type_into(
            "[name=command]",
            "wc -c < big; sh $SIDEBIKE_FILES/tool.sh | tee back",
        );
        browser.click("#submit-button");
        browser.sees(
            "#submit-error",
            "File big one.bin: is not on the server yet",
        );
        browser.pictures("uploading");
        browser.wait("!document.querySelector('#form-files .bar').checkVisibility()");
        browser.throttle_uploads(None);
        browser.sees("#form-files", "585.9 KiB\n");
        browser.type_into("#form-files [aria-label=Path]", &folder.file("big"));
        browser.type_into("#form-files [aria-label=Mode]", "0600");
        browser.type_into("#choose-files", &folder.file("tool.sh"));
        browser.sees("#form-files li:nth-child(2)", "10 bytes");
        browser.type_into("[name=fetch]", "back");
        browser.run("for (const fold of document.querySelectorAll('#submit-form details')) fold.open = true");
        browser.type_into("[name=workspace]", folder.path());
        browser.click("#submit-button");
        let done = server.finished(&browser.made_task(""));
        assert_eq!(
            done["result"][0]["stdout"],
            format!("{size}\ntool\n"),
            "{done}"
        );
        assert_eq!(
            (&done["files"][0]["mode"], &done["files"][0]["name"]),
            (&json!("0600"), &Value::Null)
        );
        assert_eq!(
            (&done["files"][1]["name"], &done["files"][1]["path"]),
            (&json!("tool.sh"), &Value::Null)
        );
        browser.sees("#task-files", "back");
        browser.sees("#task-files", "5 bytes");
        // Once more, with everything but one file; it only lays them down.
        browser.click("#task-edit");
        browser.wait("document.querySelectorAll('#form-files li').length === 2");
        browser.wait("document.getElementById('submit-files').open");
        browser.wait("document.querySelector('[name=fetch]').value === 'back'");
        browser.click("#form-files li:nth-child(2) button");
        browser.wait("document.querySelectorAll('#form-files li').length === 1");
        browser.type_into("[name=fetch]", "");
        browser.type_into("[name=command]", "");
        browser.run("for (const name of ['timeout', 'workspace']) document.querySelector(`[name=${name}]`).value = ''");
        std::fs::remove_file(folder.file("big")).unwrap();
        browser.click("#submit-button");
        let again = server.finished(&browser.made_task(id(&done)));
        assert_eq!(again["files"], json!([done["files"][0]]), "{again}");
        assert_eq!(again["state"], "succeeded", "{again}");
        assert_eq!(std::fs::read(folder.file("big")).unwrap().len(), size);
        assert_quiet(browser, &[]);
    });
}

#[test]
fn files_are_brought_and_saved_with_a_token_and_refusals_are_said() {
    with_browser(|browser| {
        let mut command = Command::new(SIDEBIKE);
        command
            .args(["server", "--listen", "127.0.0.1:0", "--max-blob", "1"])
            .env("SIDEBIKE_TOKEN", "the-token-of-people")
            .env("SIDEBIKE_AGENT_TOKEN", "the-token-of-agents");
        let server = Server::from_command(command);
        let _agent = Agent::start(
            server.address,
            "m",
            &[("SIDEBIKE_AGENT_TOKEN", "the-token-of-agents")],
        );
        let (folder, downloads) = (Folder::new(), Folder::new());
        browser.saves_to(downloads.path());
        std::fs::write(folder.file("large"), vec![b'x'; 2 << 20]).unwrap();
        std::fs::write(folder.file("small.txt"), b"small\n").unwrap();
        browser.open(&url(&server, "#/submit"));
        browser.wait("document.getElementById('token-dialog').open");
        browser.type_into("#token-input", "the-token-of-people");
        browser.click("#token-dialog .primary");
        browser.sees("#preview-title", "1 machine");
        browser.click("#submit-files summary");
        browser.type_into("#choose-files", &folder.file("large"));
        browser.sees("#form-files .error", "--max-blob");
        browser.click("#form-files button");
        browser.wait("!document.querySelector('#form-files li')");
        browser.type_into("#choose-files", &folder.file("small.txt"));
        browser.sees("#form-files", "6 bytes");
        browser.type_into("[name=command]", "cat $SIDEBIKE_FILES/small.txt");
        browser.click("#submit-button");
        browser.sees("#execution-output", "small");
        browser.sees(
            "#task-files",
            "Laid down\n$SIDEBIKE_FILES/small.txt\n6 bytes",
        );
        browser.click("#task-files a");
        assert_eq!(saved(&downloads, "small.txt"), b"small\n");
        assert_quiet(browser, &["status of 401", "status of 413"]);
    });
}
