//! The page for who comes from rq, celery or cron: what it says to write here works, and the tests that it names are
//! there.
//!
//! The second column of its first tables has, between backticks, command lines of sidebike, fields of a task, and
//! words. Command lines are run by a shell, fields are submitted, and those of programs that do not end by themselves
//! (`sidebike agent`) are only parsed.
#![cfg(all(feature = "server", feature = "agent", feature = "cli"))]

mod common;

use clap::Parser;
use common::{Folder, Process, SIDEBIKE, Server, wait_for};
use serde_json::{Value, json};
use sidebike::command_line::CommandLine;
use sidebike::docs;
use std::path::Path;
use std::process::Command;

/// A receiver of notifications that the page names.
const ALLOW: [&str; 2] = ["--webhook-allow", r"^https://hooks\.example:443$"];

/// The rows of all tables under headings that `wanted` says, without their heads: the cells of each.
fn rows(wanted: impl Fn(&str) -> bool) -> Vec<Vec<String>> {
    let page = docs::find("coming-from").expect("the page").markdown.text();
    let (mut heading, mut rows) = ("", Vec::new());
    for line in page.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title;
        }
        if !line.starts_with("| ") || line.starts_with("| ---") || !wanted(heading) {
            continue;
        }
        let line = line.replace("\\|", "\u{1}");
        let cells = line.trim_matches('|').split(" | ");
        let cells = cells.map(|cell| cell.trim().replace('\u{1}', "|"));
        rows.push(cells.collect());
    }
    // The head of each table has no backticks.
    rows.retain(|row: &Vec<String>| row.iter().any(|cell| cell.contains('`')));
    rows
}

/// What stands between backticks.
fn spans(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// A server with the machines, the files and the tasks that the page speaks of.
struct World {
    server: Server,
    folder: Folder,
    _agents: Vec<Process>,
}

impl World {
    fn new() -> World {
        let (server, folder) = (Server::with(&ALLOW), Folder::new());
        for script in ["f.sh", "b.sh", "callback.sh", "tell.sh", "backup.sh"] {
            let file = folder.file(script);
            std::fs::write(&file, "#!/bin/sh\necho done\n").unwrap();
            let made = Command::new("chmod").args(["+x", &file]).status();
            assert!(made.unwrap().success());
        }
        std::os::unix::fs::symlink(SIDEBIKE, folder.file("sidebike")).unwrap();
        let agent = |label: &str| {
            let mut command = Command::new(SIDEBIKE);
            command
                .args(["agent", "--machine-label", label, "--tag", "role=video"])
                .args(["--jobs", "50"])
                .current_dir(folder.path())
                .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string());
            Process::start(command)
        };
        let agents = vec![agent("web-1"), agent("web-2"), agent("db-1")];
        wait_for("the agents are online", || server.machines().len() == 3);
        World {
            server,
            folder,
            _agents: agents,
        }
    }

    /// Makes the tasks that a line names: a new one each time.
    fn set_the_scene(&self, line: &str) {
        let any = |name: &str, command: &str| json!({"name": name, "machinePattern": "^db-", "mode": "any", "detail": {"command": command}});
        if line.contains("long") {
            let task = self
                .server
                .submit(any("long", "echo begun; exec sleep 600"));
            self.server.when(common::id(&task), "running", 1);
        }
        if line.contains("bad") {
            self.server.run(any("bad", "echo oops; exit 1"));
        }
    }

    /// Runs a command line; the error is what it said.
    fn run(&self, line: &str) -> Result<(), String> {
        let path = std::env::var("PATH").unwrap_or_default();
        let output = Command::new("timeout")
            .args(["60", "sh", "-ec", line])
            .current_dir(self.folder.path())
            .env("PATH", format!("{}:{path}", self.folder.path()))
            .env("SIDEBIKE_REGISTRY_ADDRESS", self.server.address.to_string())
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(()),
            false => Err(format!(
                "{:?}: {}{}",
                output.status.code(),
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    }

    /// Submits a task with these fields; the error is the refusal.
    fn submit(&self, fields: &str) -> Result<(), String> {
        let mut task: Value =
            serde_json::from_str(&format!("{{{fields}}}")).map_err(|why| why.to_string())?;
        task["machinePattern"] = "^db-".into();
        if task["detail"].is_null() {
            task["detail"] = json!({"command": "true"});
        }
        let answer = self.server.post("/api/v1/task", &task);
        match answer.status {
            200 => Ok(()),
            status => Err(format!("{status}: {}", answer.msg())),
        }
    }
}

/// Whether a line is one of a program that does not end by itself.
fn stays(line: &str) -> bool {
    line.starts_with("sidebike agent") && !line.contains("--until-idle")
}

#[test]
fn every_line_on_our_side_works() {
    let world = World::new();
    let mut wrong = Vec::new();
    let mut count = 0;
    for row in rows(|heading| ["rq", "celery", "cron"].contains(&heading)) {
        let [there, here] = &row[..] else {
            panic!("two columns: {row:?}");
        };
        world.set_the_scene(here);
        for line in spans(here) {
            let tried = if stays(line) {
                let words = shlex::split(line).unwrap_or_default();
                { CommandLine::try_parse_from(&words) }
                    .map(drop)
                    .map_err(|why| why.to_string())
            } else if line.starts_with("sidebike ") {
                world.run(line)
            } else if line.starts_with('"') {
                world.submit(line)
            } else {
                continue;
            };
            count += 1;
            if let Err(why) = tried {
                wrong.push(format!("{there} → {line}\n    {}", why.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 40, "only {count} lines were found");
}

/// The text of every source file and test.
fn sources(folder: &Path, all: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_test_that_the_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = String::new();
    sources(&root.join("src"), &mut all);
    sources(&root.join("tests"), &mut all);
    let named = rows(|heading| heading == "What cannot happen here");
    assert!(named.len() >= 10, "only {} rows were found", named.len());
    let missing: Vec<&str> = { named.iter() }
        .flat_map(|row| spans(row.last().unwrap()))
        .filter(|test| !all.contains(&format!("#[test]\nfn {test}(")))
        .filter(|test| !all.contains(&format!("#[test]\n    fn {test}(")))
        .collect();
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
