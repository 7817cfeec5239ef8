//! The command line: settings that cannot work are said in one line, and signals end the server.

mod common;

use common::http::request;
use common::{SIDEBIKE, Server, id, task, wait_for};
use rustix::process::Signal;
use std::net::TcpListener;
use std::process::Command;

/// Starts what cannot work; gives the exit code and stderr.
fn failing(args: &[&str]) -> (Option<i32>, String) {
    let mut process = Command::new(SIDEBIKE);
    let output = process.args(args).env("RUST_LOG", "warn").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{args:?}");
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn settings_that_cannot_work_are_one_line_and_an_exit_code() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    // A wrong value is wrong usage; what turns out to be impossible is not.
    for (args, words) in [
        (
            &["server", "--listen", &taken][..],
            &[&*taken, "in use"][..],
        ),
        (&["server", "--db", "/"], &["--db"]),
        (&["server", "--audit", "/no/such/file"], &["--audit"]),
        (
            &["server", "--allow-legacy", "("],
            &["--allow-legacy", "unclosed group"],
        ),
        (
            &["agent", "--allow", "*"],
            &["--allow", "write .* in place of *"],
        ),
        (
            &["server", "--listen", "nonsense"],
            &["--listen", "0.0.0.0:9410"],
        ),
        (
            &["server", "--listen", "127.0.0.1:99999"],
            &["--listen", "ADDRESS:PORT"],
        ),
        (
            &["server", "--listen", "127.0.0.1"],
            &["--listen", "ADDRESS:PORT"],
        ),
        (
            &["server", "--listen", "192.0.2.1:9410"],
            &["--listen", "192.0.2.1"],
        ),
        (&["server", "--max-tasks", "0"], &["--max-tasks", "from 1"]),
        (
            &["agent", "--registry-address", "http://"],
            &["--registry-address", "HOST:PORT"],
        ),
        (
            &["agent", "--registry-address", "h:0"],
            &["--registry-address", "HOST:PORT"],
        ),
        (&["agent", "--jobs", "0"], &["--jobs", "from 1"]),
        (&["agent", "--grace", "long"], &["--grace", "seconds"]),
        (
            &["agent", "--machine-label", "a\nb"],
            &["--machine-label", "control"],
        ),
    ] {
        let (code, stderr) = failing(args);
        let possible = [&taken, "192.0.2.1:9410", "/", "/no/such/file"];
        let expected = if possible.contains(&args[2]) { 1 } else { 2 };
        assert_eq!(code, Some(expected), "{args:?}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "{args:?}: {stderr}");
        }
    }
}

#[test]
fn a_wrong_command_line_is_named_in_the_first_line() {
    for (args, word) in [
        (&["server", "--lisen", "127.0.0.1:0"][..], "--lisen"),
        (&["server", "--max-tasks", "many"], "--max-tasks"),
        (&["agent", "extra"], "extra"),
        (&["serve"], "serve"),
    ] {
        let (code, stderr) = failing(args);
        assert_eq!(code, Some(2), "{args:?}");
        assert!(stderr.lines().next().unwrap().contains(word), "{stderr}");
    }
}

#[test]
fn a_server_says_that_it_listens_first_and_when_all_is_well() {
    let server = Server::start();
    let first = &server.process.log()[0];
    assert!(first.contains(" listens on 127.0.0.1:"), "{first}");
    for (name, value) in [("SIDEBIKE_TOKEN_FILE", "/no/such"), ("SIDEBIKE_DB", "/")] {
        let mut process = Command::new(SIDEBIKE);
        process.args(["server", "--listen", "127.0.0.1:0"]);
        let output = process.env(name, value).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[cfg(feature = "cli")]
#[test]
fn a_mistyped_flag_gets_no_advice_that_would_run_something_else() {
    let advice = |args: &[&str]| failing(&[&["run"], args].concat()).1;
    for (args, has, lacks) in [
        (
            &["--timout", "10m", "--", "uptime"][..],
            "'--timeout'",
            "'-- ",
        ),
        (&["-x", "--", "uptime"], "'-x'", "'-- "),
        (&["uptime", "-s"], "put -- before the command: ", "'-- "),
        (&["--timout", "10m"], "'--timeout'", "put -- before"),
    ] {
        let said = advice(args);
        assert!(
            said.contains(has) && !said.contains(lacks),
            "{args:?}: {said}"
        );
    }
}

#[test]
fn settings_come_from_the_environment_too_and_a_flag_goes_first() {
    let mut command = Command::new(SIDEBIKE);
    command.args(["server", "--listen", "127.0.0.1:0"]);
    command
        .env("SIDEBIKE_LISTEN", "nonsense")
        .env("SIDEBIKE_MAX_EXECUTIONS", "1");
    let server = Server::from_command(command);
    server.submit(task("true"));
    assert_eq!(server.post("/api/v1/task", &task("true")).status, 503);
}

#[test]
fn term_and_int_end_the_server_with_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Server::start();
        let waiting = server.submit(task("true"));
        let mut held = server.connect();
        let wait = format!("/api/v1/task/{}?wait=60s", id(&waiting));
        held.send(&request("GET", &wait, "", b""));
        wait_for("a request is held", || {
            server.metric("sidebike_held_requests") == 1
        });
        server.process.signal(signal);
        assert_eq!(server.process.ended().code(), Some(0), "{signal:?}");
    }
}
