//! Files that a task brings, from outside: the real agent against a small server that has the bytes, and troubles.
#![cfg(feature = "agent")]

mod common;
mod fake;

use common::Folder;
use fake::blobs::{Trouble, sha256};
use fake::{Agent, Server, eventually, helpers, pair, unshare};
use serde_json::{Value, json};
use sidebike::wire::agent::{Ended, Stream};
use sidebike::wire::files::{File, Phase};
use sidebike::wire::task::ExecutionState;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::{Duration, Instant};

/// Bytes that differ from piece to piece.
fn bytes(size: usize) -> Vec<u8> {
    let words = (0u64..).flat_map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    words.take(size).collect()
}

/// Has the server know the bytes, and says how a task names them.
fn blob(server: &Server, bytes: &[u8], more: Value) -> File {
    let sha256 = sha256(bytes);
    server.change(|seen| drop(seen.blobs.insert(sha256.clone(), bytes.to_vec())));
    let mut file = json!({"sha256": sha256, "size": bytes.len()});
    for (name, value) in more.as_object().unwrap() {
        file[name] = value.clone();
    }
    serde_json::from_value(file).unwrap()
}

/// Has one file laid down before a command.
fn push(server: &Server, name: &str, detail: Value, files: Vec<File>) -> Ended {
    // An answer to a poll that another one has overtaken does not count: a real server hands it out again.
    for _ in 0..3 {
        let files = files.clone();
        server.start_with(name, detail.clone(), |start| start.files = files);
        let until = Instant::now() + Duration::from_secs(8);
        while Instant::now() < until {
            if let Some(ended) = server.wait(|_| true).results(name).pop() {
                return ended;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    server.result(name)
}

/// The names in a folder.
fn names(path: &str) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn files_are_there_before_the_command_starts() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    let (script, data) = (b"#!/bin/sh\necho \"$1 runs\"\n", bytes(5 << 20));
    let files = vec![
        blob(&server, script, json!({"path": "a/b/tool", "mode": "0750"})),
        blob(&server, &data, json!({"path": folder.file("data")})),
        blob(&server, b"", json!({"path": "empty"})),
        blob(&server, script, json!({"name": "named", "mode": "755"})),
    ];
    let line = "./a/b/tool it && \"$SIDEBIKE_FILES/named\" too && cat empty";
    let detail = json!({"command": line, "workspace": folder.path()});
    let ended = push(&server, "x.1", detail, files.clone());
    assert_eq!(ended.state, ExecutionState::Succeeded, "{}", ended.msg);
    assert_eq!(server.text("x.1", Stream::Stdout), "it runs\ntoo runs\n");
    assert_eq!(fs::read(folder.file("data")).unwrap(), data);
    let mode = |name: &str| {
        fs::metadata(folder.file(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    let modes = ["a", "a/b", "a/b/tool", "data"].map(mode);
    assert_eq!(modes, [0o755, 0o755, 0o750, 0o644]);
    // While they came, polls said so, and no longer afterwards.
    let seen = server.wait(|_| true);
    let holds = seen.polls.iter().flat_map(|poll| &poll.holds);
    assert!(holds.clone().any(|hold| hold.phase == Some(Phase::Files)));
    assert!(seen.polls[0].features.contains(&"files".to_owned()));
    let gets = seen.gets;
    drop(seen);

    // The same once more: nothing is asked for, and nothing is written.
    let inode = fs::metadata(folder.file("data")).unwrap().ino();
    let ended = push(&server, "x.2", json!({"workspace": folder.path()}), files);
    assert_eq!(
        (ended.state, ended.exit_code),
        (ExecutionState::Succeeded, Some(0))
    );
    let text = server.text("x.2", Stream::Stdout);
    assert_eq!(text.matches(": unchanged\n").count(), 4, "{text}");
    assert_eq!(server.wait(|_| true).gets, gets);
    assert_eq!(fs::metadata(folder.file("data")).unwrap().ino(), inode);
}

#[test]
fn what_is_there_is_replaced_kept_or_a_failure() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    let put = |name: &str| fs::write(folder.file(name), "old").unwrap();
    ["replace", "keep", "fail", "place"]
        .into_iter()
        .for_each(put);
    fs::create_dir(folder.file("folder")).unwrap();
    symlink("/etc/passwd", folder.file("link")).unwrap();
    let inode = |name: &str| fs::metadata(folder.file(name)).unwrap().ino();
    let before = inode("place");
    for (name, more, state, word, text) in [
        (
            "replace",
            json!({}),
            ExecutionState::Succeeded,
            "",
            Some("new"),
        ),
        (
            "keep",
            json!({"ifExists": "keep"}),
            ExecutionState::Succeeded,
            "",
            Some("old"),
        ),
        (
            "fail",
            json!({"ifExists": "fail"}),
            ExecutionState::Failed,
            "ifExists is fail",
            Some("old"),
        ),
        (
            "none",
            json!({"ifExists": "fail"}),
            ExecutionState::Succeeded,
            "",
            Some("new"),
        ),
        (
            "place",
            json!({"inPlace": true}),
            ExecutionState::Succeeded,
            "",
            Some("new"),
        ),
        (
            "folder",
            json!({}),
            ExecutionState::Failed,
            "a folder",
            None,
        ),
        (
            "link",
            json!({}),
            ExecutionState::Failed,
            "a symbolic link",
            None,
        ),
        (
            "../out",
            json!({}),
            ExecutionState::Failed,
            "must not contain ..",
            None,
        ),
        (
            "replace/x",
            json!({}),
            ExecutionState::Failed,
            "not a folder",
            None,
        ),
        ("x/", json!({}), ExecutionState::Failed, "end with /", None),
        (
            "mode",
            json!({"mode": "4755"}),
            ExecutionState::Failed,
            "mode",
            None,
        ),
    ] {
        let mut more = more;
        more["path"] = json!(name);
        let file = blob(&server, b"new", more);
        let line = "touch started";
        let detail = json!({"command": line, "workspace": folder.path()});
        let ended = push(
            &server,
            &format!("{}.1", name.replace('/', "-")),
            detail,
            vec![file],
        );
        assert_eq!(ended.state, state, "{name}: {}", ended.msg);
        assert!(ended.msg.contains(word), "{name}: {}", ended.msg);
        if state == ExecutionState::Failed {
            assert!(ended.msg.starts_with("file "), "{}", ended.msg);
            assert!(!fs::exists(folder.file("started")).unwrap(), "{name}");
        }
        let _ = fs::remove_file(folder.file("started"));
        if let Some(text) = text {
            assert_eq!(
                fs::read_to_string(folder.file(name)).unwrap(),
                text,
                "{name}"
            );
        }
    }
    assert_eq!(inode("place"), before, "in place");
    assert!(fs::read_to_string("/etc/passwd").unwrap() != "new");
    assert!(
        !names(folder.path())
            .iter()
            .any(|name| name.contains("sidebike"))
    );
}

#[test]
fn broken_connections_a_wrong_byte_and_a_busy_server_change_nothing() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    let data = bytes(64 << 20);
    let file = blob(&server, &data, json!({"path": folder.file("data")}));
    server.change(|seen| {
        for n in 0..20 {
            seen.troubles.push_back(Trouble::Cut(400_000 * n + 1));
        }
        for trouble in [
            Trouble::Busy,
            Trouble::Whole,
            Trouble::Refused(502),
            Trouble::Stall(Duration::from_millis(1)),
            Trouble::Wrong,
        ] {
            seen.troubles.push_back(trouble);
        }
    });
    let ended = push(&server, "x.1", json!({}), vec![file]);
    assert_eq!(ended.state, ExecutionState::Succeeded, "{}", ended.msg);
    assert!(fs::read(folder.file("data")).unwrap() == data);
    assert_eq!(names(folder.path()), ["data"]);

    // A proxy that always changes a byte, and a blob that is gone.
    let small = &data[..1000];
    let file = blob(&server, small, json!({"path": folder.file("wrong")}));
    server.change(|seen| seen.troubles = [Trouble::Wrong; 3].into());
    let ended = push(
        &server,
        "x.2",
        json!({"command": "true"}),
        vec![file.clone()],
    );
    assert!(ended.msg.contains("another hash"), "{}", ended.msg);
    server.change(|seen| drop(seen.blobs.remove(&file.sha256)));
    let ended = push(&server, "x.3", json!({"command": "true"}), vec![file]);
    assert!(ended.msg.contains("no such blob"), "{}", ended.msg);
    assert_eq!(
        (ended.state, ended.duration_ms),
        (ExecutionState::Failed, None)
    );
    assert_eq!(names(folder.path()), ["data"]);
}

#[test]
fn a_cancel_the_time_and_the_end_of_the_agent_leave_nothing() {
    let (server, agent) = pair(&[]);
    let folder = Folder::new();
    let data = bytes(1 << 20);
    let file = blob(&server, &data, json!({"path": folder.file("data")}));
    let stall = || {
        server.change(|seen| {
            seen.gets = 0;
            seen.troubles = [Trouble::Cut(1000), Trouble::Stall(Duration::from_secs(30))].into();
        });
    };
    stall();
    server.start_with("x.1", json!({"command": "true"}), |start| {
        start.files = vec![file.clone()]
    });
    server.until(|seen| seen.gets == 2);
    assert_eq!(names(folder.path()).len(), 1);
    server.cancel("x.1");
    let ended = server.result("x.1");
    assert_eq!(
        (ended.state, &*ended.msg),
        (ExecutionState::Canceled, "canceled")
    );
    eventually("the helper has cleaned up", || {
        names(folder.path()).is_empty()
    });

    stall();
    server.start_with("x.2", json!({"command": "true"}), |start| {
        start.files = vec![file.clone()];
        start.files_timeout = Some("500ms".parse().unwrap());
    });
    let ended = server.result("x.2");
    assert_eq!(ended.state, ExecutionState::Failed);
    assert!(
        ended
            .msg
            .contains("1000 of 1048576 bytes within filesTimeout, 500ms"),
        "{}",
        ended.msg
    );
    eventually("the helper has cleaned up", || {
        names(folder.path()).is_empty()
    });

    stall();
    server.start_with("x.3", json!({"command": "true"}), |start| {
        start.files = vec![file.clone()]
    });
    server.until(|seen| seen.gets == 2);
    eventually("it is begun", || names(folder.path()).len() == 1);
    let id = agent.id() as i32;
    assert_eq!(helpers("agent-files", id).len(), 1);
    agent.signal("KILL");
    eventually("the helper has cleaned up", || {
        names(folder.path()).is_empty()
    });
}

#[test]
fn what_was_made_is_removed_in_the_end() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    fs::write(folder.file("old"), "old").unwrap();
    let with = |path: &str| blob(&server, b"new", json!({"path": path, "remove": true}));
    let files = vec![with("a/b/new"), with("a/second"), with("old")];
    let undo = json!({"command": "cat a/b/new >> undone"});
    let detail = json!({"command": "cat a/b/new a/second old; exit 3", "workspace": folder.path(), "undo": undo});
    let ended = push(&server, "x.1", detail, files.clone());
    assert_eq!(
        (ended.exit_code, &*server.text("x.1", Stream::Stdout)),
        (Some(3), "newnewnew")
    );
    assert_eq!(names(folder.path()), ["old", "undone"]);
    assert_eq!(folder.lines("undone"), ["new"]);

    let ended = push(
        &server,
        "x.2",
        json!({"command": "touch a/mine", "workspace": folder.path()}),
        files,
    );
    assert_eq!(ended.state, ExecutionState::Succeeded, "{}", ended.msg);
    // What the command has put there stays, and with it its folder.
    assert_eq!(names(&folder.file("a")), ["mine"]);
}

#[test]
fn what_lies_where_a_folder_was_is_not_removed() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    let file = |path: &str| blob(&server, b"new", json!({"path": path, "remove": true}));
    // The command puts a link to somebody else's folder in the place of the one that its file was made in.
    let line = "mkdir other; echo mine > other/new; rm -r made; ln -s other made; mv kept moved; mkdir kept; echo mine > kept/new";
    let detail = json!({"command": line, "workspace": folder.path()});
    let files = vec![file("made/new"), file("kept/new"), file("here/new")];
    let ended = push(&server, "x.1", detail, files);
    assert_eq!(ended.state, ExecutionState::Succeeded, "{}", ended.msg);
    assert_eq!(folder.lines("other/new"), ["mine"]);
    assert_eq!(folder.lines("kept/new"), ["mine"]);
    assert!(!fs::exists(folder.file("here")).unwrap());
}

#[test]
fn a_program_that_runs_is_replaced_and_two_pushers_get_along() {
    let (server, _agent) = pair(&["--jobs", "8"]);
    let folder = Folder::new();
    fs::copy("/bin/sleep", folder.file("tool")).unwrap();
    server.start(
        "running",
        json!({"command": "exec ./tool 60", "workspace": folder.path()}),
    );
    eventually("it runs", || {
        server.cancel("none");
        let seen = server.wait(|_| true);
        let holds = seen.polls.last().unwrap().holds.clone();
        holds
            .iter()
            .any(|hold| hold.id.execution == "running" && hold.started_ago_ms > 200)
    });
    let script = b"#!/bin/sh\necho new\n";
    let tool = |more: Value| {
        let mut more = more;
        more["path"] = json!("tool");
        more["mode"] = json!("0755");
        blob(&server, script, more)
    };
    let detail = json!({"command": "./tool", "workspace": folder.path()});
    let ended = push(
        &server,
        "place",
        detail.clone(),
        vec![tool(json!({"inPlace": true}))],
    );
    assert!(ended.msg.contains("being executed"), "{}", ended.msg);
    let ended = push(&server, "new", detail, vec![tool(json!({}))]);
    assert_eq!(ended.state, ExecutionState::Succeeded, "{}", ended.msg);
    assert_eq!(server.text("new", Stream::Stdout), "new\n");
    server.cancel("running");

    let (first, second) = (bytes(3 << 20), vec![7; 3 << 20]);
    let files =
        [&first, &second].map(|data| blob(&server, data, json!({"path": folder.file("both")})));
    for (name, file) in ["one", "two"].into_iter().zip(files) {
        server.start_with(name, json!({}), |start| start.files = vec![file]);
    }
    for name in ["one", "two"] {
        assert_eq!(server.result(name).state, ExecutionState::Succeeded);
    }
    let found = fs::read(folder.file("both")).unwrap();
    assert!(found == first || found == second);
    assert_eq!(names(folder.path()), ["both", "tool"]);
}

#[test]
fn the_owner_decides() {
    let folder = Folder::new();
    fs::create_dir(folder.file("root")).unwrap();
    let root = folder.file("root");
    symlink("/tmp", folder.file("root/way")).unwrap();
    for (flags, path, word) in [
        (vec!["--file-transfer", "off"], "x", "--file-transfer off"),
        (vec!["--file-transfer", "pull"], "x", "--file-transfer pull"),
        (vec!["--allow", "true"], "x", "with --allow"),
        (vec!["--wrapper", "/bin/env"], "x", "with --wrapper"),
        (vec!["--files-root", &root], "/tmp/x", "--files-root"),
        (vec!["--files-root", &root], "way/x", "--files-root"),
        (vec!["--files-root", &root], "inside/x", ""),
        (vec!["--allow", "true", "--file-transfer", "push"], "x", ""),
    ] {
        let (server, _agent) = pair(&flags);
        let file = blob(&server, b"new", json!({"path": path}));
        let ended = push(
            &server,
            "x.1",
            json!({"command": "true", "workspace": root}),
            vec![file],
        );
        assert_eq!(
            ended.state == ExecutionState::Succeeded,
            word.is_empty(),
            "{flags:?}: {}",
            ended.msg
        );
        assert!(ended.msg.contains(word), "{flags:?}: {}", ended.msg);
    }
    assert_eq!(names(&root), ["inside", "way", "x"]);
    assert!(!fs::exists("/tmp/x").unwrap_or(false));
}

/// An agent in a mount namespace of its own, which a script has prepared.
fn mounted(script: &str) -> Option<(Server, Agent)> {
    let starter = unshare(&["--mount"], script)?;
    let server = Server::new();
    let agent = Agent::start_by(starter, &server);
    server.until(|seen| !seen.polls.is_empty());
    Some((server, agent))
}

#[test]
fn a_full_a_read_only_and_a_mounted_place_are_clear_failures() {
    let folder = Folder::new();
    for name in ["full", "noexec", "read-only", "beside"] {
        fs::create_dir(folder.file(name)).unwrap();
    }
    fs::write(folder.file("target"), "old").unwrap();
    fs::write(folder.file("source"), "old").unwrap();
    let script = format!(
        "cd {} && mount -t tmpfs -o size=1m tmpfs full && mount -t tmpfs -o noexec tmpfs noexec && \
         mount --bind source target && mount -t tmpfs -o ro tmpfs read-only && cp /bin/true beside/ && \
         export TMPDIR=$PWD/noexec &&",
        folder.path()
    );
    let Some((server, _agent)) = mounted(&script) else {
        return;
    };
    let data = bytes(2 << 20);
    for (path, more, word) in [
        ("full/x", json!({}), "no room: it needs 2097152 bytes"),
        ("read-only/x", json!({}), "read-only"),
        ("target", json!({}), "inPlace"),
        ("target", json!({"inPlace": true}), ""),
    ] {
        let mut more = more;
        more["path"] = json!(path);
        let file = blob(&server, &data, more);
        let name = format!("{}-{}", path.replace('/', "-"), word.len());
        let detail =
            json!({"command": "find . -name '.sidebike*'; ls full", "workspace": folder.path()});
        let ended = push(&server, &name, detail, vec![file]);
        assert!(ended.msg.contains(word), "{path}: {}", ended.msg);
        assert_eq!(
            ended.state == ExecutionState::Succeeded,
            word.is_empty(),
            "{path}: {}",
            ended.msg
        );
        assert_eq!(server.text(&name, Stream::Stdout), "");
    }
    assert!(fs::read(folder.file("source")).unwrap() == data);
    // $TMPDIR is noexec: another folder is taken.
    let file = blob(
        &server,
        b"#!/bin/sh\necho it runs\n",
        json!({"name": "tool", "mode": "0755"}),
    );
    let ended = push(
        &server,
        "tool",
        json!({"command": "\"$SIDEBIKE_FILES/tool\"; echo $SIDEBIKE_FILES"}),
        vec![file],
    );
    assert_eq!(ended.state, ExecutionState::Succeeded, "{}", ended.msg);
    let text = server.text("tool", Stream::Stdout);
    assert!(
        text.starts_with("it runs\n/") && !text.contains("noexec"),
        "{text}"
    );
}
