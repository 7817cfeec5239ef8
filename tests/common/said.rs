//! A person's command, and what it says.

use super::{SIDEBIKE, Server};
use serde_json::Value;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub out: String,
    pub err: String,
    pub code: i32,
}

impl Said {
    pub fn of(output: Output) -> Said {
        Said {
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            code: output.status.code().expect("it was not killed"),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e} in {:?}", self.out))
    }

    pub fn sorted(&self) -> Vec<&str> {
        let mut lines: Vec<&str> = self.out.lines().collect();
        lines.sort_unstable();
        lines
    }
}

pub fn command(server: &Server, words: &[&str]) -> Command {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(words)
        .env("SIDEBIKE_REGISTRY_ADDRESS", server.address.to_string())
        .stdin(Stdio::null());
    command
}

pub fn sidebike(server: &Server, words: &[&str]) -> Said {
    Said::of(command(server, words).output().unwrap())
}

/// The same for a command that reads `input`.
pub fn with_input(server: &Server, words: &[&str], input: &str) -> Said {
    let mut command = command(server, words);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    Said::of(child.wait_with_output().unwrap())
}

/// The lines of a text with this word.
pub fn lines_with<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.contains(word)).collect()
}
