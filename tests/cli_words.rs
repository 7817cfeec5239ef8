//! What the commands for people say where a newcomer stumbles: names, short ids, quotes, tokens,
//! time-outs, a server that is not there.

mod common;

use common::said::{Said, command, lines_with, sidebike};
use common::{Folder, SIDEBIKE, Server, task, wait_for};
use rustix::process::Signal;
use std::process::Command;

#[test]
fn a_rerun_says_of_what_and_that_the_name_is_its_own_now() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    let line = "test $SIDEBIKE_MACHINE_LABEL = m1";
    let first = sidebike(&server, &["run", "--json", "--name", "try", "--", line]).json();
    let first = first["id"].as_str().unwrap();
    let again = sidebike(&server, &["rerun", "try"]);
    let words = format!(", a rerun of {first}, on 1 of its 2 machines\n");
    assert!(again.err.contains(&words), "{}", again.err);
    assert!(!again.err.contains("newest"), "no surprise: {}", again.err);

    let shown = sidebike(&server, &["show", "try"]);
    let rerun = lines_with(&shown.out, "task ")[0].split_whitespace().nth(1);
    let rerun = rerun.unwrap();
    assert_ne!(rerun, first);
    let note = format!("\"try\" is {rerun}, a rerun of {first}\n");
    assert!(shown.err.contains(&note), "{}", shown.err);
    assert_eq!(
        lines_with(&shown.out, "rerun of ").len(),
        1,
        "{}",
        shown.out
    );
    for id in [first, rerun, &rerun[..rerun.len() - 1]] {
        assert_eq!(sidebike(&server, &["show", id]).err, "", "an id is no name");
    }
    let list = sidebike(&server, &["ps"]).out;
    let mark = format!("try (rerun of {})", &first[..12]);
    assert_eq!(lines_with(&list, &mark).len(), 1, "{list}");

    let all = sidebike(&server, &["rerun", "--all", "try"]);
    assert!(all.err.contains(&note), "{}", all.err);
    assert!(all.err.contains("on 1 of its 1 machines"), "{}", all.err);
    let all = sidebike(&server, &["rerun", "--all", first]);
    assert!(all.err.contains("on 2 of its 2 machines"), "{}", all.err);
    let good = sidebike(&server, &["run", "--json", "--", "true"]).json();
    let none = sidebike(&server, &["rerun", good["id"].as_str().unwrap()]);
    assert!(none.err.contains("; --all runs"), "{}", none.err);
}

#[test]
fn a_cancel_says_which_machines() {
    let server = Server::start();
    let _agents = (
        server.agents(2, "m1"),
        server.agent("m2"),
        server.agent("m3"),
    );
    let line = "test $SIDEBIKE_MACHINE_LABEL = m3 || sleep 300";
    let id = sidebike(&server, &["run", "--detach", "--", line]).out;
    let id = id.trim();
    server.when(id, "succeeded", 1);
    server.when(id, "running", 3);
    let cancel = |machine: &str| sidebike(&server, &["cancel", id, "-m", machine]);
    assert_eq!(
        cancel("m1").out,
        format!("task {id}: being canceled on 2 of 4 machines: m1 ×2; others that go on: 1\n")
    );
    server.when(id, "canceled", 2);
    assert_eq!(
        cancel("m3").out,
        format!("task {id}: had ended on m3; others that go on: 1\n")
    );
    let nobody = cancel("m4");
    assert!(
        nobody.code == 1 && nobody.err.contains("\"m4\""),
        "{}",
        nobody.err
    );
    assert_eq!(
        cancel("m2").out,
        format!("task {id}: being canceled on 1 of 4 machines: m2\n")
    );

    let line = "test $SIDEBIKE_MACHINE_LABEL = m3 || sleep 300";
    let id = sidebike(&server, &["run", "--detach", "--", line]).out;
    let id = id.trim();
    server.when(id, "running", 3);
    server.when(id, "succeeded", 1);
    sidebike(&server, &["cancel", id, "-m", "m2"]);
    server.when(id, "canceled", 1);
    assert_eq!(
        sidebike(&server, &["cancel", id]).out,
        format!("task {id}: being canceled on 2 of 4 machines: m1 ×2; had ended on m2, m3\n")
    );
}

#[test]
fn a_label_is_no_pattern_where_none_is_taken() {
    let server = Server::start();
    let _agent = server.agent("web-1");
    for command in ["machines", "ps"] {
        for more in [&[][..], &["--json"]] {
            let said = sidebike(&server, &[&[command, "-m", "^web-"], more].concat());
            assert_eq!(said.code, 0, "{said:?}");
            for words in ["label \"^web-\"", "-m takes a whole label"] {
                assert!(said.err.contains(words), "{said:?}");
            }
        }
    }
    for words in [&["machines", "-m", "web-1"][..], &["machines"], &["ps"]] {
        assert_eq!(sidebike(&server, words).err, "", "{words:?}");
    }
    let said = sidebike(&server, &["run", "-m", "*", "--", "true"]);
    assert!(
        said.code == 2 && said.err.contains("write .* in place of *"),
        "{said:?}"
    );
}

#[test]
fn machines_that_match_but_are_away_are_counted() {
    let server = Server::start();
    let (gone, busy) = (server.agent("web-1"), server.agent("web-2"));
    gone.0.signal(Signal::TERM);
    let id = sidebike(
        &server,
        &["run", "-m", "web-2", "--detach", "--", "sleep 60"],
    )
    .out;
    server.when(id.trim(), "running", 1);
    busy.0.signal(Signal::TERM);
    wait_for("it is draining", || {
        sidebike(&server, &["machines", "--state", "draining"])
            .out
            .contains("web-2")
    });
    wait_for("it is offline", || {
        let offline = sidebike(&server, &["machines", "--state", "offline"]);
        offline.out.contains("web-1")
    });
    for (pattern, away) in [
        ("web-1", "1 matches but is offline"),
        ("web-2", "1 matches but is draining"),
        ("web", "1 matches but is offline, 1 matches but is draining"),
    ] {
        let said = sidebike(&server, &["run", "-m", pattern, "--", "true"]);
        assert_eq!(said.code, 3);
        let words = format!("no machine matches {pattern:?} ({away}); see");
        assert!(said.err.contains(&words), "{said:?}");
    }
    let none = sidebike(&server, &["run", "-m", "db", "--", "true"]);
    assert!(none.err.contains("matches \"db\"; see"), "{none:?}");
}

#[test]
fn a_machine_that_is_there_again_is_a_new_one() {
    let server = Server::start();
    let first = server.agent("web-1");
    let id =
        sidebike(&server, &["run", "--name", "x", "--json", "--", "false"]).json()["id"].take();
    let id = id.as_str().unwrap();
    first.0.signal(Signal::TERM);
    wait_for("it is gone", || {
        sidebike(&server, &["machines", "--state", "offline"])
            .out
            .contains("web-1")
    });
    let rerun = || sidebike(&server, &["rerun", id]).err;
    assert!(rerun().contains("to reach those that are"), "{}", rerun());
    let _second = server.agent("web-1");
    let words = "there again, but as a new machine: web-1; submit the task again";
    assert!(rerun().contains(words), "{}", rerun());
}

#[test]
fn what_was_set_is_shown() {
    let server = Server::start();
    let _agent = server.agent("m");
    let words = [
        "run",
        "--detach",
        "--workspace",
        "/",
        "--timeout",
        "5m",
        "--env",
        "LANG=C",
    ];
    let set = sidebike(&server, &[&words[..], &["--", "true"]].concat()).out;
    let plain = sidebike(&server, &["run", "--detach", "--", "true\ntrue"]).out;
    let shown = sidebike(&server, &["show", set.trim()]).out;
    for line in ["workspace  /\n", "time-out   5m\n", "env        LANG\n"] {
        assert!(shown.contains(line), "{shown}");
    }
    let shown = sidebike(&server, &["show", plain.trim()]).out;
    for name in ["workspace", "time-out", "env "] {
        assert!(!shown.contains(name), "{shown}");
    }
    let list = sidebike(&server, &["ps", "-n", "1"]).out;
    assert!(list.ends_with("run   true true\n"), "{list}");
}

#[test]
fn a_line_that_looks_like_options_is_a_line() {
    let server = Server::start();
    let _agent = server.agent("m");
    for line in ["-x", "+x", "--", "-c"] {
        let said = sidebike(&server, &["run", "--", line]);
        assert_eq!(said.code, 127, "{said:?}");
        assert!(said.err.contains("not found"), "{said:?}");
    }
}

#[test]
fn quotes_that_are_lost_are_hinted_at() {
    let server = Server::start();
    let _agent = server.agent("m");
    let hint = |words: &[&str]| {
        let words = [&["run", "--dry-run"], words].concat();
        let hints = sidebike(&server, &words).err;
        hints.contains("hint: ").then_some(hints)
    };
    for words in [
        &["--", "bash", "-c", "a && b"][..],
        &["--", "sh", "-ec", "a;b"],
        &["--", "/bin/sh", "-c", "echo", "b"],
        &["--", "python3", "-c", "print(1, 2)"],
    ] {
        let hint = hint(words).unwrap_or_else(|| panic!("{words:?}"));
        let joined = words[1..].join(" ");
        assert!(hint.contains(&joined) && hint.contains("--exec"), "{hint}");
    }
    for words in [
        &["--", "bash -c 'a && b'"][..],
        &["--", "bash", "-c", "'a && b'"],
        &["--", "bash", "-c", "uptime"],
        &["--", "wc", "-c", "/var/log/*.log"],
        &["--", "printf a;", "echo b c"],
        &["--exec", "--", "bash", "-c", "a && b"],
    ] {
        assert_eq!(hint(words), None, "{words:?}");
    }
}

#[test]
fn a_wrong_token_says_what_to_set() {
    let folder = Folder::new();
    let mut start = Command::new(SIDEBIKE);
    start
        .args(["server", "--listen", "127.0.0.1:0"])
        .env("SIDEBIKE_TOKEN", "people-secret")
        .env("SIDEBIKE_AGENT_TOKEN", "agent-secret")
        .env("SIDEBIKE_READ_TOKEN", "read-secret");
    let server = Server::from_command(start);
    std::fs::write(folder.file("token"), "read-secret\n").unwrap();
    let say = |variable: &str, value: &str, words: &[&str]| {
        let mut command = command(&server, words);
        Said::of(command.env(variable, value).output().unwrap())
    };
    let run = &["run", "--", "true"];
    for (variable, value, words, reason) in [
        ("SIDEBIKE_TOKEN", "", &["ps"][..], "wants a token"),
        ("SIDEBIKE_TOKEN", "wrong", &["ps"], "not known"),
        (
            "SIDEBIKE_TOKEN",
            "agent-secret",
            &["ps"],
            "an agent's token",
        ),
        ("SIDEBIKE_TOKEN", "read-secret", run, "a read token"),
        (
            "SIDEBIKE_TOKEN_FILE",
            &folder.file("token"),
            run,
            "a read token",
        ),
        ("SIDEBIKE_AGENT_TOKEN", "agent-secret", run, "wants a token"),
    ] {
        let said = say(variable, value, words);
        assert_ne!(said.code, 0, "{said:?}");
        for word in [
            reason,
            "set SIDEBIKE_TOKEN, or SIDEBIKE_TOKEN_FILE",
            "a token of people",
        ] {
            assert!(said.err.contains(word), "{said:?} lacks {word}");
        }
        assert!(!said.err.contains("Bearer"), "{said:?}");
    }
    let token = folder.file("token");
    assert_eq!(say("SIDEBIKE_TOKEN_FILE", &token, &["ps"]).code, 0);
}

#[test]
fn short_ids_that_are_not_unique_list_what_they_can_mean() {
    let server = Server::start();
    let _agent = server.agent("m");
    for (id, name) in [
        ("deploy-1", "one"),
        ("deploy-2", "two"),
        ("other-1", "three"),
    ] {
        let mut posted = task("true");
        posted["id"] = id.into();
        posted["name"] = name.into();
        server.run(posted);
    }
    for command in ["show", "cancel", "logs", "rerun", "wait"] {
        let said = sidebike(&server, &[command, "deploy-"]);
        assert_ne!(said.code, 0);
        for row in [["deploy-1", "one"], ["deploy-2", "two"]] {
            let line = lines_with(&said.err, row[0]);
            assert!(line.len() == 1 && line[0].contains(row[1]), "{said:?}");
            assert!(line[0].contains("succeeded"), "{said:?}");
        }
        assert!(!said.err.contains("other-1"), "{said:?}");
    }
    let made = sidebike(&server, &["run", "--json", "--", "true"]).json();
    let shown = sidebike(&server, &["ps", "-n", "1"]).out;
    let shown = shown.lines().nth(1).unwrap().split(' ').next().unwrap();
    assert_eq!(shown, &made["id"].as_str().unwrap()[..12]);
}

#[test]
fn what_is_not_there_says_what_could_be_meant() {
    let server = Server::start();
    for command in ["show", "cancel", "logs", "rerun", "wait"] {
        let said = sidebike(&server, &[command, "gone"]);
        for word in ["\"gone\"", "forgotten", "6 characters", "sidebike ps -n"] {
            assert!(said.err.contains(word), "{said:?} lacks {word}");
        }
        assert!(!said.err.contains("Ttl"), "{said:?}");
    }
    for (words, doing) in [
        (&["run", "--", "true"][..], "find out which machines match"),
        (&["ps"], "list tasks"),
        (&["machines"], "list machines"),
        (&["show", "x"], "look at the task"),
    ] {
        let mut command = command(&server, words);
        let said = command.env("SIDEBIKE_REGISTRY_ADDRESS", "127.0.0.1:1");
        let said = Said::of(said.output().unwrap());
        let begins = format!("sidebike: cannot {doing}: http://127.0.0.1:1: ");
        assert!(said.err.starts_with(&begins), "{said:?}");
        for word in ["--registry-address", "SIDEBIKE_REGISTRY_ADDRESS"] {
            assert!(said.err.contains(word), "{said:?}");
        }
        assert!(!said.err.contains("/api/"), "{said:?}");
    }
    let below = format!("{}/foo", server.address);
    let said = sidebike(&server, &["ps", "--registry-address", &below]);
    assert!(said.err.contains("--registry-address or"), "{said:?}");
}

#[test]
fn refusals_name_flags() {
    let server = Server::start();
    let long = "x".repeat(2_000_000);
    for (words, begin) in [
        (&["run", "-m", "(", "--", "true"][..], "sidebike: -m: "),
        (
            &["run", "--name", "a\nb", "--", "true"],
            "sidebike: --name: ",
        ),
        (
            &["run", "--workspace", "", "--", "true"],
            "sidebike: --workspace: ",
        ),
        (
            &["run", "--timeout", "0", "--", "true"],
            "sidebike: --timeout: ",
        ),
        (&["run", "--", " "], "sidebike: COMMAND: "),
        (&["run", "--exec", "--", ""], "sidebike: COMMAND: "),
        (
            &["run", "--after", "none", "--", "true"],
            "sidebike: --after: no task has",
        ),
        (
            &["run", "--fetch", "", "--", "true"],
            "sidebike: --fetch: must be",
        ),
    ] {
        let said = sidebike(&server, words);
        assert!(said.err.starts_with(begin), "{words:?}: {said:?}");
    }
    let said = sidebike(&server, &["run", "--limit", "none", "--", "true"]);
    assert_eq!(
        (said.code, &*said.err),
        (
            255,
            "sidebike: --limit: there is no limit \"none\"; sidebike limit set none, or PUT /api/v1/limit/none, makes it\n"
        )
    );
    let overlap = [
        "schedule",
        "add",
        "x",
        "--every",
        "5m",
        "--overlap",
        "no",
        "--",
        "true",
    ];
    assert_eq!(
        sidebike(&server, &overlap).err,
        "sidebike: --overlap: invalid value: string \"no\", expected \"skip\", \"queueOne\", \"replace\" or \"allow\"\n"
    );
    for (words, either) in [
        (&["limit", "set", "x"][..], "--running <N>|--per-minute <N>"),
        (
            &["push", "--unpack", "--strip", "x", "y"],
            "invalid value 'x' for '--strip <N>': expected a whole number\n",
        ),
        (
            &["schedule", "add", "x", "--", "true"],
            "--cron <EXPRESSION>|--every <DURATION>",
        ),
    ] {
        let said = sidebike(&server, words);
        assert!(said.code == 2 && said.err.contains(either), "{said:?}");
    }
    let mut script = command(&server, &["run", "--script", "script"]);
    let folder = Folder::new();
    std::fs::write(folder.file("script"), long).unwrap();
    let said = Said::of(script.current_dir(folder.path()).output().unwrap());
    assert!(said.err.contains("as --stdin FILE"), "{said:?}");
}

#[test]
fn a_time_out_says_after_how_long_and_how_to_allow_more() {
    let server = Server::start();
    let _agent = server.agent("m");
    let said = sidebike(&server, &["run", "--timeout", "200ms", "--", "sleep 60"]);
    let shown = sidebike(&server, &["show", "run"]);
    for text in [&said.err, &shown.out] {
        for words in ["timed out after 200ms, and was killed", "--timeout 1h"] {
            assert!(text.contains(words), "{text} lacks {words}");
        }
    }
    let good = sidebike(&server, &["run", "--", "exit 1"]);
    assert!(!good.err.contains("--timeout"), "{good:?}");
}

#[test]
fn errors_of_several_machines_are_told_apart_too() {
    let server = Server::start();
    let _agents = (server.agent("m1"), server.agent("m2"));
    let words = ["run", "--name", "both", "--", "echo out; echo err >&2"];
    for said in [
        sidebike(&server, &words),
        sidebike(&server, &["logs", "both"]),
    ] {
        assert_eq!(said.sorted(), ["m1 | out", "m2 | out"]);
        assert_eq!(lines_with(&said.err, "| err").len(), 2, "{said:?}");
    }
}

#[test]
fn help_can_be_asked_for_in_every_way() {
    let say = |words: &[&str]| Said::of(Command::new(SIDEBIKE).args(words).output().unwrap());
    for (words, usage) in [
        (&["help"][..], "Usage: sidebike <COMMAND>"),
        (&["help", "--help"], "Usage: sidebike help [COMMAND]..."),
        (&["help", "help"], "Usage: sidebike help [COMMAND]..."),
        (
            &["help", "run"],
            "Usage: sidebike run [OPTIONS] -- COMMAND...\n",
        ),
        (
            &["run", "--help"],
            "       sidebike run [OPTIONS] --script FILE\n",
        ),
    ] {
        let said = say(words);
        assert_eq!(said.code, 0, "{said:?}");
        assert!(said.out.contains(usage), "{words:?}: {said:?}");
    }
    let wrong = say(&["help", "nothing"]);
    assert!(
        wrong.code == 2 && wrong.err.contains("'nothing'"),
        "{wrong:?}"
    );
    let run = say(&["run", "--help"]).out;
    for words in [
        "single quotes",
        "SIDEBIKE_MACHINE_LABEL",
        "standard error",
        "--timeout 2h",
    ] {
        assert!(run.contains(words), "{run} lacks {words}");
    }
    for command in ["show", "rerun", "cancel", "logs", "wait"] {
        assert!(
            say(&[command, "--help"]).out.contains("the newest task"),
            "{command}"
        );
    }
}
