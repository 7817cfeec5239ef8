//! `sidebike schedule`: what is typed, and what it says.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use common::said::{lines_with, sidebike};
use common::{Server, wait_for};

#[test]
fn a_schedule_is_made_shown_fired_paused_and_deleted() {
    let server = Server::start();
    let _agent = server.agent("m");
    let dry = [
        "schedule",
        "add",
        "x",
        "--cron",
        "30 2 28 3 *",
        "--zone",
        "Asia/Shanghai",
        "--dry-run",
        "--",
        "true",
    ];
    let dry = sidebike(&server, &dry);
    assert_eq!(dry.code, 0, "{dry:?}");
    assert_eq!(
        lines_with(&dry.out, "-03-28T02:30:00+08:00").len(),
        5,
        "{dry:?}"
    );
    assert_eq!(
        lines_with(&sidebike(&server, &["schedule", "ls"]).out, "x ").len(),
        0
    );

    let add = [
        "schedule",
        "add",
        "job",
        "--every",
        "2d",
        "--any",
        "-m",
        "^m$",
        "--overlap",
        "queueOne",
        "--",
        "echo hello",
    ];
    let made = sidebike(&server, &add);
    assert!(
        made.code == 0 && made.out.starts_with("schedule job: next at "),
        "{made:?}"
    );
    assert!(made.err.contains("--db"), "{made:?}");
    let ran = sidebike(&server, &["schedule", "run", "job"]);
    let task = ran
        .out
        .trim()
        .strip_prefix("schedule job: task ")
        .expect(&ran.out);
    assert_eq!(server.finished(task)["state"], "succeeded");
    let shown = sidebike(&server, &["schedule", "show", "job"]);
    assert_eq!(lines_with(&shown.out, task).len(), 1, "{shown:?}");
    assert_eq!(lines_with(&shown.out, "next ").len(), 5, "{shown:?}");
    assert!(shown.out.contains("succeeded by hand"), "{shown:?}");
    let json = sidebike(&server, &["schedule", "show", "job", "--json"]).json();
    assert_eq!(json["task"]["detail"]["command"], "echo hello");
    assert_eq!(json["overlap"], "queueOne");

    let list = sidebike(&server, &["schedule", "ls"]);
    let line = lines_with(&list.out, "job")[0].to_owned();
    assert!(
        line.contains("active") && line.contains("every 2days") && line.contains("succeeded"),
        "{line}"
    );
    assert_eq!(
        sidebike(&server, &["schedule", "pause", "job"]).out,
        "schedule job: paused\n"
    );
    let list = sidebike(&server, &["schedule", "ls"]);
    assert!(
        lines_with(&list.out, "job")[0].contains("paused"),
        "{list:?}"
    );
    let resumed = sidebike(&server, &["schedule", "resume", "job"]);
    assert!(
        resumed.out.starts_with("schedule job: next at "),
        "{resumed:?}"
    );
    assert_eq!(
        sidebike(&server, &["schedule", "rm", "job"]).out,
        "schedule job: deleted\n"
    );
    let gone = sidebike(&server, &["schedule", "show", "job"]);
    assert!(
        gone.code == 1 && gone.err.contains("no schedule \"job\""),
        "{gone:?}"
    );
    wait_for("its task is a task like others", || {
        server.get(&format!("/api/v1/task/{task}")).status == 200
    });
}

#[test]
fn what_is_wrong_is_said_with_the_flag() {
    let server = Server::start();
    let add = |flags: &[&str]| {
        let words = [&["schedule", "add", "x"], flags, &["--", "true"]].concat();
        sidebike(&server, &words)
    };
    for (flags, words) in [
        (&["--cron", "61 * * * *"][..], "--cron: "),
        (&["--every", "0.1s"], "--every: must be 1s"),
        (&["--cron", "@daily", "--zone", "Mars/Base"], "--zone: "),
        (&["--cron", "@daily", "--from", "2026-12-01"], "--from: "),
        (&["--cron", "@daily", "--overlap", "both"], "--overlap: "),
        (
            &["--cron", "@daily", "--timeout", "0"],
            "--timeout: must be above 0",
        ),
        (&["--cron", "@daily", "-m", "("], "-m: "),
        (&[], "--cron"),
        (&["--cron", "@daily", "--every", "1h"], "--every"),
    ] {
        let said = add(flags);
        assert!(
            said.code != 0 && said.err.contains(words),
            "{flags:?}: {said:?}"
        );
    }
}
