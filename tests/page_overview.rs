//! The page's overview with its limits, and what it can ask of machines, in a real browser; see page.rs.

mod browser;
mod common;

use browser::{assert_quiet, url, with_browser};
use common::{Server, id, task};
use serde_json::{Value, json};

#[test]
fn limits_are_shown_with_their_use_and_who_waits_and_are_set_and_removed() {
    with_browser(|browser| {
        let server = Server::start();
        let _agent = server.agent("m");
        browser.open(&url(&server, ""));
        browser.press("o");
        browser.sees("#limits-empty", "No limit yet");
        browser.sees("#overview-facts", "Machines\n1 online");
        browser.type_into("#limit-form [name=limit]", "db");
        browser.type_into("#limit-form [name=running]", "1");
        browser.click("#limit-form button");
        browser.sees("#limits", "db\n0 of 1 running");
        let limit = || server.get("/api/v1/limit/db").data();
        assert_eq!(
            (&limit()["running"], &limit()["perMinute"]),
            (&json!(1), &Value::Null)
        );
        let limited = |name: &str| {
            let mut limited = task("sleep 600");
            limited["name"] = json!(name);
            limited["limits"] = json!(["db"]);
            server.submit(limited)
        };
        let first = limited("first <b>");
        server.when(id(&first), "running", 1);
        let second = limited("second <b>");
        browser.sees("#limits", "1 of 1 running");
        browser.wait("document.querySelector('#limits .s-running').style.width === '100%'");
        browser.sees("#limits", "1 queued second <b>");
        browser.sees("#overview-facts", "Tasks\n2 running");
        browser.sees("#overview-facts", "Executions\n1 running, 1 queued");
        browser.sees("#overview-oldest", "second <b>");
        browser.sees("#overview-oldest", "waits for the limit \"db\": 1 of 1 run");
        browser.pictures("overview");
        browser.fits_a_phone();
        // What is used cannot be removed; the server says why.
        browser.click("#limits .danger");
        browser.sees("#confirm-dialog", "Remove the limit db?");
        browser.click("#confirm-yes");
        browser.sees("#toast", "db");
        assert_eq!(limit()["running"], 1);
        // Changed in place: the one that waited goes.
        browser.click("#limits button");
        browser.wait("document.querySelector('#limit-form [name=running]').value === '1'");
        browser.type_into("#limit-form [name=running]", "3");
        browser.type_into("#limit-form [name=perMinute]", "x");
        browser.click("#limit-form button");
        browser.sees("#toast", "perMinute");
        browser.type_into("#limit-form [name=perMinute]", "60");
        browser.click("#limit-form button");
        browser.sees("#limits", "2 of 3 running");
        browser.sees("#limits", "60 a minute");
        assert_eq!(
            (&limit()["running"], &limit()["perMinute"]),
            (&json!(3), &json!(60))
        );
        server.when(id(&second), "running", 1);
        browser.wait("!document.getElementById('overview-oldest').checkVisibility()");
        // From a task to its limits.
        browser.open(&url(&server, &format!("#/task/{}", id(&second))));
        browser.sees("#task-marks", "limit db");
        browser.click("#task-marks a");
        browser.sees("#limits", "db");
        for task in [&first, &second] {
            let path = format!("/api/v1/task/{}/cancel", id(task));
            server.post(&path, &json!({})).data();
            server.finished(id(task));
        }
        browser.sees("#limits", "0 of 3 running");
        browser.click("#limits .danger");
        browser.click("#confirm-dialog [value=no]");
        assert_eq!(limit()["running"], 3);
        browser.click("#limits .danger");
        browser.click("#confirm-yes");
        browser.sees("#limits-empty", "No limit yet");
        assert_eq!(server.get("/api/v1/limit/db").status, 404);
        assert_quiet(browser, &["status of 409", "status of 400"]);
    });
}

#[test]
fn machines_are_drained_taken_back_and_shut_down_and_who_is_behind_is_said() {
    with_browser(|browser| {
        let server = Server::start();
        let mut agents = server.agents(2, "m");
        agents.push(server.agent("other"));
        let old = json!({"instance": "aaaaaaaaaaaaaaaa", "seq": 1, "label": "old", "host": "h", "version": "0.0.9",
            "arch": "riscv64", "jobs": 1, "wait": 0, "holds": []});
        server.post("/api/v1/agent/poll", &old).data();
        let state = |instance: &str| {
            let machines = server.machines();
            let mut all = machines.iter();
            let machine = all.find(|machine| machine["instance"] == instance);
            machine.map_or(Value::Null, |machine| machine["state"].clone())
        };
        browser.open(&url(&server, ""));
        browser.sees("#fleet-summary", "1 behind");
        browser.press("m");
        browser.sees("#machines", "0.0.9 behind");
        browser.sees("#machines", "h · riscv64");
        browser.sees("#machines", &format!(" · {}", std::env::consts::ARCH));
        browser.click("#machines-chips .s-behind");
        browser.wait("document.querySelectorAll('#machines li').length === 1");
        browser.sees("#machines", "old");
        browser.pictures("behind");
        browser.click("#machines a");
        browser.sees("#machine-facts", "Version\n0.0.9, behind the server's ");
        browser.sees("#machine-facts", "Architecture\nriscv64");
        browser.press("m");
        browser.click("#machines-chips .s-behind");
        // Two of one label, from their rows.
        browser.type_into("#machines-search", "m");
        browser.run("for (const box of document.querySelectorAll('#machines input')) if (box.getAttribute('aria-label').includes('Choose m,')) box.click()");
        browser.sees("#machines-chosen-count", "2 machines chosen");
        browser.wait("!document.getElementById('chosen-undrain').checkVisibility()");
        browser.click("#chosen-drain");
        browser.sees("#confirm-dialog", "Drain: 2 machines?");
        browser.click("#confirm-dialog [value=no]");
        let [one, two] = [agents[0].instance(), agents[1].instance()];
        assert_eq!(
            (state(&one), state(&two)),
            (json!("online"), json!("online"))
        );
        browser.click("#chosen-drain");
        browser.click("#confirm-yes");
        browser.sees("#machines-chips .s-draining", "2");
        assert_eq!(
            (state(&one), state(&two)),
            (json!("draining"), json!("draining"))
        );
        browser.wait("!document.getElementById('chosen-drain').checkVisibility()");
        browser.click("#chosen-undrain");
        browser.click("#confirm-yes");
        browser.wait("!document.querySelector('#machines-chips .s-draining')");
        assert_eq!(
            (state(&one), state(&two)),
            (json!("online"), json!("online"))
        );
        // One of them, from its own view.
        browser.open(&url(&server, &format!("#/machine/{one}")));
        browser.sees("#machine-name", "m");
        browser.click("#machine-shutdown");
        browser.sees("#confirm-dialog", "Shut down: 1 machine?");
        browser.click("#confirm-yes");
        assert!(agents[0].0.ended().success());
        browser.sees("#machine-list", "offline");
        browser.wait("!document.getElementById('machine-drain').checkVisibility()");
        assert_eq!(state(&two), "online");
        assert_quiet(browser, &[]);
    });
}
