//! The commands for people in a pseudo-terminal, as somebody who sits there sees them.

mod common;

use common::http::{Connection, request};
use common::{Folder, SIDEBIKE, Server, id, wait_until};
use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What clears the line of the progress.
const CLEAR: &str = "\r\x1b[K";

/// How long a command may take to end when its terminal is closed.
const CLOSING: Duration = Duration::from_secs(10);
/// How long the last of its output may take where something else keeps the terminal open.
const LAST_OUTPUT: Duration = Duration::from_secs(5);

/// A terminal with a command in it. The command is ended when the test is done with it.
struct Terminal {
    keyboard: File,
    seen: Arc<Mutex<Vec<u8>>>,
    child: Child,
    /// Ends when no process has the terminal open any more.
    reader: JoinHandle<()>,
}

impl Terminal {
    fn start(server: &Server, columns: u16, env: &[(&str, &str)], words: &[&str]) -> Terminal {
        let mut command = vec![SIDEBIKE];
        command.extend(words);
        let address = server.address.to_string();
        let env = [&[("SIDEBIKE_REGISTRY_ADDRESS", &*address)], env].concat();
        Terminal::of(columns, &env, &command)
    }

    fn of(columns: u16, env: &[(&str, &str)], words: &[&str]) -> Terminal {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&keyboard).unwrap();
        unlockpt(&keyboard).unwrap();
        let size = Winsize {
            ws_row: 24,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&keyboard, size).unwrap();
        let name = ptsname(&keyboard, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let screen = rustix::fs::open(&*name, flags, rustix::fs::Mode::empty()).unwrap();
        // Ctrl-C reaches the session whose terminal it is.
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).args(words);
        command
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .envs(env.iter().copied());
        command.stdin(screen.try_clone().unwrap());
        command.stdout(screen.try_clone().unwrap()).stderr(screen);
        let child = command.spawn().expect("setsid of util-linux");
        drop(command);
        let keyboard = File::from(keyboard);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (eyes, mut screen) = (seen.clone(), keyboard.try_clone().unwrap());
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = screen.read(&mut buffer) {
                eyes.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Terminal {
            keyboard,
            seen,
            child,
            reader,
        }
    }

    fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// Waits until something is on the screen.
    fn until(&self, what: &str) -> String {
        wait_until(&format!("{what:?} on the screen"), || {
            let seen = self.seen();
            seen.contains(what).then_some(seen)
        })
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for the end; gives the exit code and all that was on the screen.
    fn ended(&mut self) -> (i32, String) {
        let status = wait_until("the command ends", || self.child.try_wait().unwrap());
        // What it has left in the background may keep the terminal open; then what came so far is all.
        let until = Instant::now() + LAST_OUTPUT;
        while !self.reader.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(5));
        }
        let seen = self.seen();
        (status.code().expect("it was not killed"), seen)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- screen:\n{}", self.seen().escape_debug());
        }
        // As when a window is closed: the demo has to end what it started.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process(Pid::from_child(&self.child), Signal::HUP);
        }
        let until = Instant::now() + CLOSING;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > until {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn two_machines() -> (Server, [common::Agent; 2]) {
    let server = Server::start();
    let agents = [server.agent("m1"), server.agent("m2")];
    (server, agents)
}

#[test]
fn progress_is_shown_and_ctrl_c_can_cancel() {
    let (server, _agents) = two_machines();
    let line = "echo begun; test $SIDEBIKE_MACHINE_LABEL = m1 || sleep 60";
    let mut terminal = Terminal::start(&server, 100, &[], &["run", "--", line]);
    terminal.until("on 2 machines: m1, m2");
    terminal.until("1/2 done, 1 running, 0 failed");
    terminal.press("\x03");
    terminal.until("c: cancel the task");
    let asked = terminal.until("Type one of them and Enter: ").len();
    terminal.press("x\n");
    wait_until("it asks again", || {
        let again = terminal.seen()[asked..].contains("c: cancel the task");
        again.then_some(())
    });
    terminal.press("c\n");
    let (code, seen) = terminal.ended();
    assert_eq!(code, 130);
    let done = "being canceled on 1 of 2 machines: m2; had ended on m1";
    assert!(seen.contains(done), "{seen:?}");
    assert!(seen.contains("1 succeeded, 1 canceled"), "{seen:?}");
    assert!(seen.contains("m1\x1b[0m | begun"), "{seen:?}");
    assert_eq!(server.newest()["state"], "partial");
}

#[test]
fn the_progress_shows_the_step_of_a_rollout_and_what_it_waits_for() {
    let (server, _agents) = two_machines();
    let line = "test $SIDEBIKE_MACHINE_LABEL = m2";
    let words = ["run", "--steps", "1,2", "--max-failures", "1", "--pause"];
    let run = |pause: &str| {
        let words = [&words[..], &[pause, "--", line]].concat();
        Terminal::start(&server, 120, &[], &words)
    };
    let mut terminal = run("approve");
    let seen = terminal.until("waits for: sidebike resume ");
    let task = server.newest();
    let id = id(&task);
    let standing = "(step 2 of 2, 1 of 2 started, 1 failed), 0 running, ";
    let waits = format!("{CLEAR}waits for: sidebike resume {id} {standing}");
    assert!(seen.contains(&waits) || terminal.until(&waits).contains(&waits));
    let mut follower = Terminal::start(&server, 120, &[], &["wait", id]);
    follower.until(&waits);
    assert_eq!(
        server
            .post(&format!("/api/v1/task/{id}/resume"), &Value::Null)
            .status,
        200
    );
    for terminal in [&mut terminal, &mut follower] {
        let (code, seen) = terminal.ended();
        assert_eq!(code, 1, "{seen:?}");
        assert!(seen.contains("1 succeeded, 1 failed"), "{seen:?}");
        assert!(
            !seen.contains("sidebike: step"),
            "the line is enough: {seen:?}"
        );
    }

    let terminal = run("1h");
    let seen = terminal.until(" UTC (step 2 of 2, 1 of 2 started, 1 failed)");
    assert!(
        seen.contains(&format!("{CLEAR}paused, resumes at ")),
        "{seen:?}"
    );
    let task = server.newest();
    let stop = format!("/api/v1/task/{}/stop", common::id(&task));
    assert_eq!(server.post(&stop, &Value::Null).status, 200);
    let mut terminal = terminal;
    let (code, seen) = terminal.ended();
    assert_eq!(code, 125);
    assert!(seen.contains("stopped by a user"), "{seen:?}");
}

#[test]
fn ctrl_c_can_detach_go_on_or_be_pressed_again() {
    let (server, _agents) = two_machines();
    let words = ["run", "-m", "m1", "--", "sleep 60"];
    let mut terminal = Terminal::start(&server, 100, &[], &words);
    terminal.until("0/1 done, 1 running");
    terminal.press("\x03");
    terminal.until("d: detach");
    let shown = terminal.seen().len();
    terminal.press("\n");
    wait_until("it goes on", || {
        terminal.seen()[shown..].contains("0/1 done").then_some(())
    });
    terminal.press("\x03");
    wait_until("it asks again", || {
        terminal.seen()[shown..].contains("d: detach").then_some(())
    });
    terminal.press("d\n");
    let (code, seen) = terminal.ended();
    assert!(
        code == 130 && seen.contains("detached; it runs on"),
        "{seen:?}"
    );
    let first = server.newest();
    assert_eq!(first["state"], "running");

    let mut terminal = Terminal::start(&server, 100, &[], &words);
    terminal.until("0/1 done, 1 running");
    terminal.press("\x03");
    terminal.until("c: cancel the task");
    terminal.press("\x03");
    let (code, seen) = terminal.ended();
    assert!(
        code == 130 && seen.contains("detached; it runs on"),
        "{seen:?}"
    );
    assert_eq!(server.newest()["state"], "running");
    for task in [first, server.newest()] {
        let cancel = format!("/api/v1/task/{}/cancel", id(&task));
        assert_eq!(server.post(&cancel, &Value::Null).status, 200);
    }
}

#[test]
fn what_ended_while_it_was_asked_is_not_said_to_be_canceled() {
    let (server, _agents) = two_machines();
    let folder = common::Folder::new();
    let line = "while [ ! -e gate ]; do sleep 0.02; done; exit 4";
    let words = ["run", "-m", "m1", "--workspace", folder.path(), "--", line];
    let mut terminal = Terminal::start(&server, 100, &[], &words);
    terminal.until("0/1 done, 1 running");
    terminal.press("\x03");
    terminal.until("and Enter: ");
    std::fs::write(folder.file("gate"), "").unwrap();
    let task = server.newest();
    server.finished(id(&task));
    terminal.press("c\n");
    let (code, seen) = terminal.ended();
    assert_eq!(code, 4, "{seen:?}");
    assert!(seen.contains("had ended: failed"), "{seen:?}");
    assert!(!seen.contains("canceled"), "{seen:?}");
}

#[test]
fn a_narrow_window_is_enough() {
    let (server, _agents) = two_machines();
    let words = [
        "run",
        "--",
        "sleep 1; echo a rather long line of output that is not cut",
    ];
    let mut terminal = Terminal::start(&server, 40, &[], &words);
    let (code, seen) = terminal.ended();
    assert_eq!(code, 0);
    assert_eq!(
        seen.matches("long line of output that is not cut").count(),
        2
    );
    let drawn = seen
        .split(CLEAR)
        .skip(1)
        .map(|rest| rest.split(['\r', '\n', '\x1b']).next());
    let drawn: Vec<&str> = drawn
        .flatten()
        .filter(|line| line.contains("done"))
        .collect();
    assert!(
        !drawn.is_empty() && drawn.iter().all(|line| line.chars().count() <= 39),
        "{drawn:?}"
    );
    for words in [
        &["ps"][..],
        &["machines"],
        &["show", "run"],
        &["run", "--dry-run", "--", "x"],
    ] {
        let (_, seen) = Terminal::start(&server, 60, &[("NO_COLOR", "1")], words).ended();
        let table = seen.lines().filter(|line| line.contains("  "));
        let mut fields = table.filter(|line| !line.starts_with(|c: char| c.is_lowercase()));
        assert!(fields.all(|line| line.chars().count() <= 60), "{seen}");
    }
}

#[test]
fn colours_only_where_they_are_wanted() {
    let (server, _agents) = two_machines();
    let words = ["run", "--", "echo hi"];
    let (_, seen) = Terminal::start(&server, 80, &[], &words).ended();
    assert!(seen.contains("\x1b[32m2 succeeded\x1b[0m"), "{seen:?}");
    for env in [[("NO_COLOR", "1")], [("TERM", "dumb")]] {
        let (_, seen) = Terminal::start(&server, 80, &env, &words).ended();
        assert!(
            seen.contains("m1 | hi") && seen.contains("2 succeeded in"),
            "{seen:?}"
        );
        assert!(!seen.contains("\x1b[3"), "{seen:?}");
    }
}

#[test]
fn what_machines_write_cannot_change_other_lines() {
    let (server, _agents) = two_machines();
    let line = r"printf 'over\r\033[2J\033[1Awritten\n\033[31mred\033[0m\n'";
    let (code, seen) = Terminal::start(&server, 80, &[], &["run", "--", line]).ended();
    assert_eq!(code, 0);
    assert!(
        !seen.contains("\x1b[2J") && !seen.contains("\x1b[1A"),
        "{seen:?}"
    );
    // A carriage return begins the line anew.
    assert!(seen.contains("| \u{FFFD}[2J\u{FFFD}[1Awritten"), "{seen:?}");
    assert!(seen.contains("\x1b[31mred\x1b[0m"), "{seen:?}");
}

#[test]
fn many_machines_are_asked_about() {
    let (server, _agents) = two_machines();
    let words = ["run", "--yes-above", "1", "--", "echo ran"];
    for (answer, expected) in [("n\n", 130), ("\n", 130), ("y\n", 0)] {
        let mut terminal = Terminal::start(&server, 80, &[], &words);
        terminal.until("Run on 2 machines: m1, m2? [y/N]");
        terminal.press(answer);
        let (code, seen) = terminal.ended();
        assert_eq!(code, expected, "{seen:?}");
        assert_eq!(seen.contains("| ran"), expected == 0, "{seen:?}");
    }
    assert_eq!(
        server.get("/api/v1/task").data().as_array().map(Vec::len),
        Some(1)
    );
}

#[test]
fn a_list_is_kept_up_to_date() {
    let (server, _agents) = two_machines();
    let mut terminal = Terminal::start(&server, 80, &[], &["machines", "-w"]);
    terminal.until("m2");
    assert!(!terminal.seen().contains("m3"));
    let _late = server.agent("m3");
    terminal.until("m3");
    terminal.press("\x03");
    wait_until("it ends", || terminal.child.try_wait().unwrap());
}

#[test]
fn one_machines_output_is_shown_as_it_comes() {
    let (server, _agents) = two_machines();
    let folder = common::Folder::new();
    let line = "printf a; while [ ! -e gate ]; do sleep 0.02; done; echo b";
    let words = ["run", "-m", "m1", "--workspace", folder.path(), "--", line];
    let mut terminal = Terminal::start(&server, 80, &[], &words);
    wait_until("the first letter", || {
        terminal.seen().ends_with('a').then_some(())
    });
    std::fs::write(folder.file("gate"), "").unwrap();
    terminal.until("ab\r\n");
    assert_eq!(terminal.ended().0, 0);
}

#[test]
fn the_documentation_is_shown_by_the_pager() {
    let server = Server::start();
    let page = |pager: &str| {
        let env = [("PAGER", pager), ("LESS", "")];
        Terminal::start(&server, 80, &env, &["docs", "migrating"]).ended()
    };
    let (code, seen) = page("sed -n 's/^# /first: /p'");
    assert_eq!(
        (code, seen.trim()),
        (0, "first: Moving over from the original")
    );
    // One that reads only the beginning has read enough; an empty one is none.
    let (code, seen) = page("head -n 1");
    assert_eq!((code, seen.trim()), (0, "# Moving over from the original"));
    let (code, seen) = page("");
    assert!(code == 0 && seen.starts_with("# Moving over"), "{seen}");
    assert!(seen.contains("## Tokens and TLS"), "{seen}");
}

/// `make demo` without the build.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/demo.sh");
/// The lines of the demo: a screen has 24, of which make and the shell take two or three.
const DEMO_LINES: usize = 21;

#[test]
fn the_demo_fits_on_a_screen_stays_until_ctrl_c_and_ends_what_it_started() {
    let mut terminal = Terminal::of(80, &[("NO_COLOR", "1")], &["sh", DEMO, SIDEBIKE]);
    let seen = terminal.until("Ctrl-C ends the server and the agents.\r\n");
    for part in [
        "web-1  online",
        "web-2 | I am web-2, on ",
        "3 succeeded in ",
    ] {
        assert!(seen.contains(part), "{part}");
    }
    assert!(seen.lines().count() <= DEMO_LINES, "{seen}");
    // The folder of the program may be long.
    let lines = seen.lines().filter(|line| !line.contains(SIDEBIKE));
    let shown = lines.map(|line| line.rsplit(['\r', '\x1b']).next().unwrap_or(line));
    let long: Vec<&str> = shown.filter(|line| line.chars().count() > 80).collect();
    assert!(long.is_empty(), "{long:?}");
    let (_, page) = seen.split_once("The page: http://").expect("its address");
    let address = page.split('/').next().unwrap().parse().unwrap();
    let mut connection = Connection::open(address);
    connection.send(&request("GET", "/", "Connection: close\r\n", b""));
    assert_eq!(connection.read().status, 200);
    terminal.press("\x03");
    let (code, seen) = terminal.ended();
    assert_eq!(code, 0, "{seen}");
    assert!(Connection::try_open(address).is_none());
}

#[test]
fn the_demo_ends_by_itself_where_there_is_no_terminal() {
    let mut command = Command::new("sh");
    command
        .args([DEMO, SIDEBIKE])
        .stdin(std::process::Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let (_, answer) = text.split_once("wait=30s'\n").expect(&text);
    let (answer, last) = answer.trim_end().rsplit_once('\n').expect(&text);
    let answer: Value = serde_json::from_str(answer).expect(answer);
    assert_eq!(answer["data"]["counts"]["succeeded"], 3);
    assert_eq!(last, "demo: three machines ran it, all is well");
}

#[test]
fn an_undo_is_seen_and_a_debt_is_red_until_it_is_forgiven() {
    let server = Server::start();
    let folder = Folder::new();
    let _agent = server.agent("m1");
    let undo = "while test ! -e go; do sleep 0.02; done; exit 1";
    let words = [
        "run",
        "--workspace",
        folder.path(),
        "--undo",
        undo,
        "--undo-patience",
        "0.1s",
        "--",
        "exit 3",
    ];
    let mut terminal = Terminal::start(&server, 100, &[], &words);
    terminal.until("0/1 done, 1 running (1 being undone), 0 failed");
    std::fs::write(folder.file("go"), "").unwrap();
    let (code, seen) = terminal.ended();
    let last = seen.lines().last().unwrap();
    assert_eq!(code, 123, "{seen:?}");
    let red = "\x1b[31mm1: NOT UNDONE:\x1b[0m the undo failed after ";
    assert!(last.starts_with(red), "{seen:?}");
    for (words, expected) in [
        (&["ps"][..], "\x1b[31mfailed, 1 NOT UNDONE\x1b[0m"),
        (&["ps", "--unclean"], "\x1b[31mfailed, 1 NOT UNDONE\x1b[0m"),
        (&["show", "run"], "\x1b[31m1 failed (NOT UNDONE)\x1b[0m"),
        (
            &["info"],
            "\x1b[31m1 NOT UNDONE; see sidebike ps --unclean\x1b[0m",
        ),
    ] {
        let (_, seen) = Terminal::start(&server, 100, &[], words).ended();
        assert!(seen.contains(expected), "{words:?}: {seen:?}");
    }
    for (answer, expected) in [("\n", 1), ("n\n", 1), ("y\n", 0)] {
        let mut terminal = Terminal::start(&server, 100, &[], &["forgive", "run"]);
        terminal.until("Is its effect gone on m1, or does it not matter?");
        terminal.press(answer);
        let (code, seen) = terminal.ended();
        assert_eq!(code, expected, "{seen:?}");
        assert!(seen.contains(red), "{seen:?}");
        assert_eq!(seen.contains(": forgiven on m1"), expected == 0, "{seen:?}");
    }
    assert_eq!(server.newest()["clean"], true);
}
