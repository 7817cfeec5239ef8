//! The README's examples, run as a reader would type them, top to bottom, in one folder.
//!
//! - Every block marked `sh` is run. The program is there as `./sidebike`, as a reader has it.
//! - `10.23.45.67`, with or without `:9410`, is the server that the last block of that kind started.
//! - A block that is one call of `./sidebike server` or `./sidebike agent` is left running (the
//!   server on a free port, by `SIDEBIKE_LISTEN`). A new server ends everything before it.
//! - A block marked `json` is what the `sh` block before it answers last: at least these members.
//!   `"..."` fits anything, `["..."]` any list that is not empty. A block that only reads is run
//!   again until it fits, for ten seconds: a reader is slower than a test.
//! - A block marked `text` is all that the `sh` block before it prints.
//!
//! Blocks of other kinds (`console`) are for reading only.
#![cfg(all(feature = "server", feature = "agent"))]

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Deserializer, Value};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// A fenced block and the line it begins at.
struct Block {
    line: usize,
    kind: String,
    text: String,
}

fn blocks(readme: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (line, text) in (1..).zip(readme.lines()) {
        match (text.strip_prefix("```"), &mut open) {
            (Some(kind), None) => {
                open = Some(Block {
                    line,
                    kind: kind.into(),
                    text: String::new(),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => {
                block.text.push_str(text);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block of the README is not closed");
    blocks
}

/// A program that ends, politely, with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// Somebody who reads the README and does what it says.
struct Reader {
    folder: PathBuf,
    address: String,
    running: Vec<Running>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end_all();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Reader {
    fn new() -> Self {
        let name = format!("sidebike-readme-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        let program = env!("CARGO_BIN_EXE_sidebike");
        std::os::unix::fs::symlink(program, folder.join("sidebike")).unwrap();
        Reader {
            folder,
            address: String::new(),
            running: Vec::new(),
        }
    }

    /// Agents before their server: they have to say goodbye.
    fn end_all(&mut self) {
        while self.running.pop().is_some() {}
    }

    /// A command in the folder, without what the environment of this test may say (proxies, …).
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var_os("PATH").unwrap_or_default();
        command
            .current_dir(&self.folder)
            .env_clear()
            .env("PATH", path);
        command
    }

    fn addressed(&self, text: &str) -> String {
        text.replace(":9410", "")
            .replace("10.23.45.67", &self.address)
    }

    /// Leaves `VARIABLE=value … ./sidebike …` running.
    fn start(&mut self, line: &str) {
        if line.contains("sidebike server") {
            self.end_all();
        }
        let line = self.addressed(line);
        let words = line.split_whitespace();
        let (variables, words): (Vec<_>, Vec<_>) = words.partition(|word| word.contains('='));
        let log = self.folder.join(format!("log{}", self.running.len()));
        let mut command = self.command(env!("CARGO_BIN_EXE_sidebike"));
        command
            .args(&words[1..])
            .envs(variables.iter().filter_map(|v| v.split_once('=')))
            .env("SIDEBIKE_LISTEN", "127.0.0.1:0")
            .stderr(File::create(&log).unwrap());
        self.running.push(Running(command.spawn().unwrap()));
        if self.running.len() == 1 {
            self.address = wait_for("the server's address", || {
                let log = fs::read_to_string(&log).unwrap();
                let (_, rest) = log.split_once(" listens on ")?;
                Some(rest.lines().next()?.to_owned())
            });
        } else {
            let agents = self.running.len() - 1;
            let list = self.addressed("curl -sS http://10.23.45.67/api/v1/machine?state=online");
            wait_for("the agent to be online", || {
                let known = self.run(&list).matches("\"instance\"").count();
                (known >= agents).then_some(())
            });
        }
    }

    /// Runs a block; what it printed.
    fn run(&self, text: &str) -> String {
        let script = self.addressed(text);
        let output = self
            .command("sh")
            .args(["-ec", &script])
            .output()
            .expect("a shell");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{stderr}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain for {what}");
        sleep(PAUSE);
    }
}

/// Whether `real` has at least what is `shown`.
fn fits(shown: &Value, real: &Value) -> bool {
    match (shown, real) {
        (Value::String(any), _) if any == "..." => true,
        (Value::Array(shown), Value::Array(real)) if *shown == ["..."] => !real.is_empty(),
        (Value::Array(shown), Value::Array(real)) => {
            shown.len() == real.len() && shown.iter().zip(real).all(|(s, r)| fits(s, r))
        }
        (Value::Object(shown), Value::Object(real)) => shown
            .iter()
            .all(|(name, value)| real.get(name).is_some_and(|real| fits(value, real))),
        _ => shown == real,
    }
}

fn last_json(printed: &str) -> Value {
    let values = Deserializer::from_str(printed).into_iter::<Value>();
    let last = values.map(|value| value.expect(printed)).last();
    last.unwrap_or_default()
}

#[test]
fn every_example_does_what_it_says() {
    let blocks = blocks(include_str!("../README.md"));
    let mut reader = Reader::new();
    let mut checked = 0;
    for (n, block) in blocks.iter().enumerate() {
        if block.kind != "sh" {
            continue;
        }
        let at = format!("README.md:{}: {}", block.line, block.text);
        let first = block.text.lines().next().unwrap_or_default();
        if first.contains("./sidebike server") || first.contains("./sidebike agent") {
            reader.start(first);
            continue;
        }
        let only_reads = ![" -X", " -d", " --data"]
            .iter()
            .any(|w| block.text.contains(w));
        let shown = blocks.get(n + 1).filter(|shown| shown.kind != "sh");
        let until = Instant::now() + PATIENCE;
        loop {
            let printed = reader.run(&block.text);
            let fits = match shown {
                Some(shown) if shown.kind == "json" => {
                    fits(&last_json(&shown.text), &last_json(&printed))
                }
                Some(shown) if shown.kind == "text" => shown.text.trim() == printed.trim(),
                _ => !printed.contains("\"signal\":-1"),
            };
            if fits {
                break;
            }
            let again = only_reads && Instant::now() < until;
            assert!(again, "{at}\ndoes not answer what is shown, but\n{printed}");
            sleep(PAUSE);
        }
        checked += 1;
    }
    assert!(checked >= 10, "only {checked} examples were found");
}
