//! The start of a command on a machine that is in a bad state.
#![cfg(feature = "agent")]

mod fake;

use fake::shim::Shim;
use fake::{Agent, Server, alive, eventually};
use serde_json::json;
use sidebike::wire::task::ExecutionState;
use sidebike::wire::undo::{UndoReason, UndoState};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A folder on a file system that does not answer: looks at it hang as long as a file is there.
const HANGING_FOLDER: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
int statx(int folder, const char *path, int flags, unsigned mask, struct statx *found) {
    static int (*real)(int, const char *, int, unsigned, struct statx *);
    const char *shim = getenv("SHIM");
    char mark[4096];
    if (path && shim && strstr(path, "/hangs")) {
        snprintf(mark, sizeof mark, "%s/looked", shim);
        fclose(fopen(mark, "w"));
        snprintf(mark, sizeof mark, "%s/hangs-now", shim);
        while (access(mark, F_OK) == 0) usleep(5000);
    }
    real = dlsym(RTLD_NEXT, "statx");
    return real(folder, path, flags, mask, found);
}
"#;

fn agent(server: &Server, shim: &Shim, args: &[&str]) -> Agent {
    let env = shim.env();
    let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, &**value)).collect();
    let agent = Agent::start(server, args, &env);
    server.until(|seen| !seen.polls.is_empty());
    agent
}

#[test]
fn a_workspace_that_hangs_is_left_alone() {
    let Some(shim) = Shim::new("workspace", HANGING_FOLDER) else {
        return;
    };
    let server = Server::new();
    let mut agent = agent(&server, &shim, &["--grace", "0.1"]);
    std::fs::create_dir(shim.path("hangs")).unwrap();
    std::fs::write(shim.path("hangs-now"), "").unwrap();
    let detail = |name: &str, timeout: f64| {
        let file = shim.path(name);
        json!({"command": format!("touch {file}"), "workspace": shim.path("hangs"), "timeout": timeout})
    };
    server.start("canceled", detail("canceled", 300.0));
    eventually("it hangs", || Path::new(&shim.path("looked")).exists());
    server.cancel("canceled");
    let result = server.result("canceled");
    assert_eq!(result.state, ExecutionState::Canceled, "{result:?}");
    server.start("timed-out", detail("timed-out", 0.3));
    let result = server.result("timed-out");
    assert_eq!(result.state, ExecutionState::TimedOut, "{result:?}");
    assert!(result.msg.contains("does not answer"), "{result:?}");
    // What was left alone is not started when the folder answers again.
    server.start("other", detail("other", 300.0));
    server.until(|seen| seen.polls.last().is_some_and(|poll| !poll.holds.is_empty()));
    std::fs::remove_file(shim.path("hangs-now")).unwrap();
    assert_eq!(server.result("other").state, ExecutionState::Succeeded);
    assert!(Path::new(&shim.path("other")).exists());
    for name in ["canceled", "timed-out"] {
        assert!(!Path::new(&shim.path(name)).exists(), "{name} was started");
    }
    // Nor does it keep the agent from ending.
    std::fs::write(shim.path("hangs-now"), "").unwrap();
    std::fs::remove_file(shim.path("looked")).unwrap();
    server.start("shut-down", detail("shut-down", 300.0));
    eventually("it hangs", || Path::new(&shim.path("looked")).exists());
    let begun = Instant::now();
    agent.signal("TERM");
    assert_eq!(agent.wait(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(server.result("shut-down").state, ExecutionState::Canceled);
}

#[test]
fn an_undo_whose_workspace_hangs_is_tried_again() {
    let Some(shim) = Shim::new("undo-workspace", HANGING_FOLDER) else {
        return;
    };
    let server = Server::new();
    let _agent = agent(&server, &shim, &[]);
    std::fs::create_dir(shim.path("hangs")).unwrap();
    let (looked, hangs) = (shim.path("looked"), shim.path("hangs-now"));
    server.start(
        "x.1",
        json!({
            "command": format!("rm {looked}; touch {hangs}"),
            "workspace": shim.path("hangs"),
            // It is looked why that cannot be started.
            "undo": {"argv": ["./undo"], "timeout": 0.3},
        }),
    );
    eventually("it hangs", || Path::new(&looked).exists());
    server.until(|seen| seen.undos("x.1").len() >= 2);
    // The agent does not hang: it runs others meanwhile.
    server.start("x.2", json!({"command": "true"}));
    assert_eq!(server.result("x.2").state, ExecutionState::Succeeded);
    std::thread::sleep(Duration::from_millis(400));
    let undo = shim.path("hangs/undo");
    std::fs::write(&undo, "#!/bin/sh\necho undone\n").unwrap();
    std::fs::set_permissions(&undo, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::remove_file(&hangs).unwrap();
    let undo = server.undone("x.1");
    assert_eq!((undo.state, &*undo.output), (UndoState::Done, "undone\n"));
    assert!(undo.tries >= 2, "{undo:?}");
}

/// Executing a program takes a second: until then its process has not got the key of the attempt. The agent
/// waits for it for longer than that.
const SLOW_EXEC: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
                 const posix_spawnattr_t *attributes, char *const argv[], char *const envp[]) {
    int (*real)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
                char *const[], char *const[]) = dlsym(RTLD_NEXT, "posix_spawnp");
    const char *variable = "SIDEBIKE_KEY=", *line = "sleep 1; export SIDEBIKE_KEY=$0; exec \"$@\"";
    char *env[4096], *args[64] = {"sh", "-c", (char *)line}, path[4096], begun[4096], *key = NULL;
    int n = 0, m = 5;
    for (int i = 0; envp[i] && n < 4095; i++)
        if (strncmp(envp[i], variable, strlen(variable)) == 0) key = envp[i] + strlen(variable);
        else env[n++] = envp[i];
    env[n] = NULL;
    if (!key) return real(pid, file, actions, attributes, argv, envp);
    args[3] = key;
    args[4] = (char *)file;
    for (int i = 1; argv[i] && m < 63; i++) args[m++] = argv[i];
    args[m] = NULL;
    int failed = real(pid, "/bin/sh", actions, attributes, args, env);
    snprintf(path, sizeof path, "%s/begun", getenv("SHIM"));
    snprintf(begun, sizeof begun, "%s/begun.new", getenv("SHIM"));
    FILE *mark = fopen(begun, "w");
    fprintf(mark, "%d", *pid);
    fclose(mark);
    rename(begun, path);
    sleep(30);
    return failed;
}
"#;

#[test]
fn a_command_that_is_being_started_ends_with_its_agent() {
    let Some(shim) = Shim::new("slow-exec", SLOW_EXEC) else {
        return;
    };
    for signals in [&["KILL"][..], &["TERM", "TERM"]] {
        let server = Server::new();
        let mut agent = agent(&server, &shim, &[]);
        server.start("x", json!({"argv": ["sleep", "300"]}));
        let mark = shim.path("begun");
        eventually("the start has begun", || Path::new(&mark).exists());
        let pid: i32 = std::fs::read_to_string(&mark).unwrap().parse().unwrap();
        std::fs::remove_file(&mark).unwrap();
        for (n, signal) in signals.iter().enumerate() {
            if n > 0 {
                server.until(|seen| seen.polls.last().is_some_and(|poll| poll.draining));
                std::thread::sleep(Duration::from_millis(150)); // two signals at once are one
            }
            agent.signal(signal);
        }
        agent.wait();
        assert!(alive(pid), "the agent ended while it was being started");
        eventually("it is dead", || !alive(pid));
    }
}

/// A program on a file system that does not answer: as long as a file is there, neither does it run nor does the call
/// return that starts it.
const HANGING_START: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
                 const posix_spawnattr_t *attributes, char *const argv[], char *const envp[]) {
    int (*real)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
                char *const[], char *const[]) = dlsym(RTLD_NEXT, "posix_spawnp");
    const char *variable = "SIDEBIKE_KEY=", *line = "while [ -e $0 ]; do sleep 0.02; done; exec \"$@\"";
    char *env[4096], *args[64] = {"sh", "-c", (char *)line}, mark[4096], path[4096], begun[4096];
    int n = 0, m = 5;
    if (!strstr(file, "/hanging")) return real(pid, file, actions, attributes, argv, envp);
    for (int i = 0; envp[i] && n < 4095; i++)
        if (strncmp(envp[i], variable, strlen(variable)) != 0) env[n++] = envp[i];
    env[n] = NULL;
    snprintf(mark, sizeof mark, "%s/hangs-now", getenv("SHIM"));
    args[3] = mark;
    args[4] = (char *)file;
    for (int i = 1; argv[i] && m < 63; i++) args[m++] = argv[i];
    args[m] = NULL;
    int failed = real(pid, "/bin/sh", actions, attributes, args, env);
    snprintf(path, sizeof path, "%s/begun", getenv("SHIM"));
    snprintf(begun, sizeof begun, "%s/begun.new", getenv("SHIM"));
    FILE *file_of_pid = fopen(begun, "w");
    fprintf(file_of_pid, "%d", *pid);
    fclose(file_of_pid);
    rename(begun, path);
    while (access(mark, F_OK) == 0) usleep(5000);
    return failed;
}
"#;

#[test]
fn a_start_that_does_not_return_is_left_alone() {
    let Some(shim) = Shim::new("hanging-start", HANGING_START) else {
        return;
    };
    let server = Server::new();
    let mut agent = agent(&server, &shim, &["--grace", "0.1", "--jobs", "2"]);
    let program = shim.path("hanging");
    std::fs::write(&program, "#!/bin/sh\ntouch $1\n").unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(shim.path("hangs-now"), "").unwrap();
    let detail =
        |name: &str, timeout: f64| json!({"argv": [&program, shim.path(name)], "timeout": timeout});
    let begun = || {
        let mark = shim.path("begun");
        eventually("the start has begun", || Path::new(&mark).exists());
        let pid: i32 = std::fs::read_to_string(&mark).unwrap().parse().unwrap();
        std::fs::remove_file(&mark).unwrap();
        pid
    };
    server.start("canceled", detail("canceled", 300.0));
    let canceled = begun();
    server.start("timed-out", detail("timed-out", 1.5));
    let timed_out = begun();
    server.cancel("canceled");
    let result = server.result("canceled");
    assert_eq!(result.state, ExecutionState::Canceled, "{result:?}");
    let result = server.result("timed-out");
    assert_eq!(result.state, ExecutionState::TimedOut, "{result:?}");
    assert!(result.msg.contains("does not answer"), "{result:?}");
    for process in [canceled, timed_out] {
        eventually("its process is dead", || !alive(process));
    }
    // Both slots are free, though both threads still hang.
    for n in 0..2 {
        server.start(&format!("other.{n}"), json!({"command": "sleep 0.2"}));
    }
    for n in 0..2 {
        let result = server.result(&format!("other.{n}"));
        assert_eq!(result.state, ExecutionState::Succeeded, "{result:?}");
    }
    // The file system answers again: what was left alone is not run.
    std::fs::remove_file(shim.path("hangs-now")).unwrap();
    server.start("again", detail("again", 300.0));
    let result = server.result("again");
    assert_eq!(result.state, ExecutionState::Succeeded, "{result:?}");
    assert!(Path::new(&shim.path("again")).exists());
    for name in ["canceled", "timed-out"] {
        assert!(!Path::new(&shim.path(name)).exists(), "{name} was run");
    }
    std::fs::remove_file(shim.path("begun")).unwrap();
    // Nor does it keep the agent from ending.
    std::fs::write(shim.path("hangs-now"), "").unwrap();
    server.start("shut-down", detail("shut-down", 300.0));
    begun();
    let since = Instant::now();
    agent.signal("TERM");
    assert_eq!(agent.wait(), Some(0));
    assert!(since.elapsed() < Duration::from_secs(8));
    assert_eq!(server.result("shut-down").state, ExecutionState::Canceled);
}

/// Nobody knows whether such a command was started, so it is undone; and once more if it was.
#[test]
fn a_start_that_does_not_return_is_undone() {
    let Some(shim) = Shim::new("undo-start", HANGING_START) else {
        return;
    };
    let server = Server::new();
    let _agent = agent(&server, &shim, &["--jobs", "1"]);
    let (program, log, hangs) = (
        shim.path("hanging"),
        shim.path("log"),
        shim.path("hangs-now"),
    );
    std::fs::write(&program, format!("#!/bin/sh\necho ran >> {log}\n")).unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let lines = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let undo = json!({"command": format!("echo $SIDEBIKE_UNDO_REASON >> {log}")});
    for (name, reason, state) in [
        ("timed-out", UndoReason::TimedOut, ExecutionState::TimedOut),
        ("canceled", UndoReason::Canceled, ExecutionState::Canceled),
    ] {
        std::fs::write(&hangs, "").unwrap();
        let timeout = if name == "timed-out" { 1.5 } else { 300.0 };
        server.start(
            name,
            json!({"argv": [&program], "timeout": timeout, "undo": undo}),
        );
        let mark = shim.path("begun");
        eventually("the start has begun", || Path::new(&mark).exists());
        let pid: i32 = std::fs::read_to_string(&mark).unwrap().parse().unwrap();
        std::fs::remove_file(&mark).unwrap();
        if name == "canceled" {
            server.cancel(name);
        }
        let report = server.undone(name);
        assert_eq!(
            (report.state, report.reason),
            (UndoState::Done, Some(reason))
        );
        assert_eq!(server.result(name).state, state);
        assert!(!alive(pid), "it may still be run");
        assert_eq!(lines(), [reason.word()]);
        // Its slot is free, though the thread still hangs.
        let other = format!("after-{name}");
        server.start(&other, json!({"command": "true"}));
        assert_eq!(server.result(&other).state, ExecutionState::Succeeded);
        std::fs::remove_file(&hangs).unwrap();
        eventually("it is undone once more", || {
            lines() == [reason.word(), reason.word()]
        });
        std::fs::remove_file(&log).unwrap();
    }
}

#[test]
fn so_many_starts_that_hang_are_the_most() {
    const MOST: usize = 32;
    let Some(shim) = Shim::new("many-hanging", HANGING_START) else {
        return;
    };
    let server = Server::new();
    let _agent = agent(&server, &shim, &["--jobs", "50"]);
    std::fs::write(shim.path("hangs-now"), "").unwrap();
    for n in 0..MOST {
        let detail = json!({"argv": [shim.path("hanging")], "timeout": 1});
        server.start(&format!("hangs.{n}"), detail);
    }
    for n in 0..MOST {
        let result = server.result(&format!("hangs.{n}"));
        assert_eq!(result.state, ExecutionState::TimedOut, "{result:?}");
    }
    server.start("other", json!({"argv": ["true"]}));
    let result = server.result("other");
    assert_eq!(result.state, ExecutionState::Failed, "{result:?}");
    assert!(result.msg.contains("hang on this machine"), "{result:?}");
    std::fs::remove_file(shim.path("hangs-now")).unwrap();
    let mut tries = 0;
    eventually("the threads come back", || {
        tries += 1;
        let id = format!("after.{tries}");
        server.start(&id, json!({"argv": ["true"]}));
        server.result(&id).state == ExecutionState::Succeeded
    });
}
