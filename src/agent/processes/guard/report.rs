//! Telling the server what a guard did: the guard starts this program once more for that.
//!
//! The guard itself stays small, and has no HTTP client: it starts [`PROGRAM`] and gives it the server, the token and
//! the reports over a pipe. A token in arguments or environment could be read by others.

use crate::agent::attempt::lock;
use crate::agent::backoff::Backoff;
use crate::agent::command::launch;
use crate::agent::processes::process_table::now_in_ms;
use crate::agent::seen_term::SharedTerm;
use crate::client::Client;
use crate::config::Registry;
use crate::secret::Secret;
use crate::wire::agent::{Done, Taken};
use crate::wire::term::Position;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// The hidden program of the command line.
pub const PROGRAM: &str = "agent-settle";
/// How long it is tried to tell the server.
const PATIENCE: Duration = Duration::from_secs(600);
/// The most reports that one process delivers, in number. Each has up to 64 KiB of output.
const MAX_BATCH: usize = 16;
/// The longest input of the program, in bytes: its reports with all output escaped as six bytes, and as much again.
const MAX_INPUT_BYTES: u64 = 16 << 20;
/// The longest line in the log, in bytes: a pipe takes so much in one piece or not at all (`PIPE_BUF`).
const MAX_LINE_BYTES: usize = 4 << 10;
/// The pause before it is tried again to start the program: there may be no process left.
const START_PAUSE: Duration = Duration::from_secs(1);

/// The servers, and the token for them. A guard may be of another version than its agent.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Destination {
    /// The base URL of the one that answered last.
    url: String,
    /// Those of the others.
    #[serde(default)]
    others: Vec<String>,
    /// The file of authorities to trust.
    ca: Option<PathBuf>,
    /// The agent's token.
    token: Option<String>,
    /// The highest term that the agent has seen, as in the header.
    #[serde(default)]
    term: Option<String>,
    /// The last commit that it has seen in that term, in the same way.
    #[serde(default)]
    commit: Option<String>,
}

impl std::fmt::Debug for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Destination({})", self.url)
    }
}

impl Destination {
    /// Where an agent's own calls go to. The path of the file of authorities may be one from another folder.
    pub fn of(client: &Client, ca: Option<PathBuf>) -> Self {
        let mut urls = client.urls().into_iter();
        let seen = client.highest_term();
        Destination {
            url: urls.next().unwrap_or_default(),
            others: urls.collect(),
            ca,
            token: client.token().map(|token| token.expose().to_owned()),
            term: seen.map(|seen| seen.term.to_string()),
            commit: seen.and_then(|seen| Some(seen.commit?.to_string())),
        }
    }

    /// A client that calls the same servers in the same way.
    pub fn client(self, make: fn(&Registry) -> Result<Client, String>) -> Result<Client, String> {
        let urls = [self.url].into_iter().chain(self.others).collect();
        let commit = self.commit.and_then(|commit| commit.parse().ok());
        let term = self.term.and_then(|term| term.parse().ok());
        let seen = term.map(|term| Position { term, commit });
        let client = make(&Registry::new(urls, self.ca))?;
        let client = client.with_terms(Arc::new(SharedTerm::new(seen)));
        let token = self.token.map(|token| Secret::new(&token));
        client.set_token(token.transpose()?);
        Ok(client)
    }
}

/// What a guard has settled.
#[derive(Debug, Serialize, Deserialize)]
pub struct Finished {
    /// As it is reported.
    pub done: Done,
    /// When it was made, in milliseconds since the machine was started.
    pub at: u64,
}

/// The input of the program.
#[derive(Debug, Serialize, Deserialize)]
struct Input {
    destination: Destination,
    finished: Vec<Finished>,
}

/// Reports that wait for the server.
#[derive(Debug, Default)]
pub struct Reports {
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    destination: Option<Destination>,
    finished: VecDeque<Finished>,
    /// A thread delivers them.
    is_sending: bool,
}

impl Reports {
    /// Sets where reports go to.
    pub fn set_destination(&self, destination: Destination) {
        lock(&self.waiting).destination = Some(destination);
    }

    /// Delivers a report, and those that come meanwhile from other threads. Returns at once if another thread is at it.
    pub fn send(&self, finished: Finished) {
        let mut waiting = lock(&self.waiting);
        waiting.finished.push_back(finished);
        if std::mem::replace(&mut waiting.is_sending, true) {
            return;
        }
        loop {
            let count = waiting.finished.len().min(MAX_BATCH);
            let batch: Vec<Finished> = waiting.finished.drain(..count).collect();
            // Without a destination the agent was never connected to a server.
            let destination = waiting.destination.clone().filter(|_| count > 0);
            let Some(destination) = destination else {
                waiting.is_sending = false;
                return;
            };
            drop(waiting);
            deliver(&Input {
                destination,
                finished: batch,
            });
            waiting = lock(&self.waiting);
        }
    }
}

/// Has the program deliver reports.
fn deliver(input: &Input) {
    let deadline = now_in_ms().saturating_add(PATIENCE.as_millis() as u64);
    // It cannot fail: keys of maps are texts.
    let json = serde_json::to_vec(input).unwrap_or_default();
    loop {
        match launch::spawn_helper(PROGRAM, Stdio::piped()) {
            Ok(mut child) => {
                drop(child.stdout.take());
                if let Some(mut stdin) = child.stdin.take() {
                    // A program that has ended meanwhile does not read; that is seen next.
                    let _ = stdin.write_all(&json);
                }
                // An exit code says that it has tried for long enough; without one it was killed.
                let has_tried = child.wait().is_ok_and(|status| status.code().is_some());
                if has_tried || now_in_ms() >= deadline {
                    return;
                }
            }
            Err(_) if now_in_ms() < deadline => {}
            Err(why) => return say(&format!("cannot start {PROGRAM}: {why}")),
        }
        std::thread::sleep(START_PAUSE);
    }
}

/// The program: delivers the reports that it reads from standard input. Whether the server has taken all of them.
pub fn run() -> bool {
    let delivered = read_input().and_then(|input| {
        let client = input.destination.client(Client::new)?;
        deliver_all(&client, &input.finished)
    });
    if let Err(why) = &delivered {
        say(&format!("the server was not told of an undo: {why}"));
    }
    delivered.is_ok()
}

fn read_input() -> Result<Input, String> {
    let mut json = Vec::new();
    let mut stdin = std::io::stdin().lock().take(MAX_INPUT_BYTES);
    stdin.read_to_end(&mut json).map_err(|e| e.to_string())?;
    serde_json::from_slice(&json).map_err(|why| why.to_string())
}

fn deliver_all(client: &Client, all: &[Finished]) -> Result<(), String> {
    let deadline = now_in_ms().saturating_add(PATIENCE.as_millis() as u64);
    let mut backoff = Backoff::new();
    let mut refused = Ok(());
    for finished in all {
        loop {
            let done = finished.done_at(now_in_ms());
            let why = match client.done(&done) {
                Ok(taken) if is_complete(&done, &taken) => break,
                Ok(_) => "it does not answer for all of it".into(),
                Err(why) if why.is_final() => {
                    refused = Err(why.to_string());
                    break;
                }
                Err(why) => why.to_string(),
            };
            if now_in_ms() >= deadline {
                return Err(why);
            }
            std::thread::sleep(backoff.next());
        }
        backoff.reset();
    }
    refused
}

/// Whether the server need not be told again.
fn is_complete(done: &Done, taken: &Taken<Box<RawValue>>) -> bool {
    let mut results = done.results.iter();
    let mut undos = done.undos.iter();
    results.all(|ended| taken.results.iter().any(|verdict| verdict.id == ended.id))
        && undos.all(|undo| taken.undos.contains(&undo.id))
}

impl Finished {
    /// The report as it is sent at this time.
    fn done_at(&self, now: u64) -> Done {
        let age = now.saturating_sub(self.at);
        let mut done = self.done.clone();
        for ended in &mut done.results {
            ended.ended_ago_ms = ended.ended_ago_ms.saturating_add(age);
        }
        for undo in &mut done.undos {
            for ago in [&mut undo.began_ago_ms, &mut undo.ended_ago_ms] {
                *ago = ago.map(|ago| ago.saturating_add(age));
            }
        }
        done
    }
}

/// Writes a line to standard error as the agent's log does, unless that would block: whoever read it may be gone.
pub fn say(text: &str) {
    let stderr = std::io::stderr();
    let time = humantime::format_rfc3339_millis(SystemTime::now());
    let mut line = format!("{time} WARN  sidebike::agent::guard: {text}");
    line.truncate(line.floor_char_boundary(MAX_LINE_BYTES - 1));
    let line = line.replace(char::is_control, " ") + "\n";
    let mut writable = [PollFd::new(&stderr, PollFlags::OUT)];
    if poll(&mut writable, Some(&Timespec::default())).is_ok()
        && writable[0].revents().contains(PollFlags::OUT)
    {
        // A pipe that takes anything takes this much.
        let _ = rustix::io::write(&stderr, line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::agent::{AttemptId, Ended, Verdict};
    use crate::wire::task::ExecutionState;
    use crate::wire::undo::{UndoBy, UndoReport, UndoState};

    fn id() -> AttemptId {
        AttemptId {
            execution: "x.1".into(),
            attempt: 1,
        }
    }

    fn done() -> Done {
        Done {
            instance: "i".into(),
            seq: None,
            pieces: Vec::new(),
            results: vec![Ended {
                id: id(),
                state: ExecutionState::Failed,
                exit_code: None,
                signal: None,
                msg: String::new(),
                ended_ago_ms: 3,
                duration_ms: None,
                stdout_bytes: 0,
                stderr_bytes: 0,
                files: Vec::new(),
            }],
            undos: vec![UndoReport {
                id: id(),
                state: UndoState::Done,
                reason: None,
                by: UndoBy::Guard,
                tries: 1,
                exit_code: Some(0),
                check_exit_code: None,
                msg: String::new(),
                output: String::new(),
                began_ago_ms: Some(2),
                ended_ago_ms: None,
            }],
            probes: Vec::new(),
        }
    }

    #[test]
    fn a_report_that_is_late_says_so() {
        let finished = Finished {
            done: done(),
            at: 1_000,
        };
        let sent = finished.done_at(1_500);
        assert_eq!(sent.results[0].ended_ago_ms, 503);
        assert_eq!(sent.undos[0].began_ago_ms, Some(502));
        assert_eq!(sent.undos[0].ended_ago_ms, None);
    }

    #[test]
    fn a_report_is_repeated_until_all_of_it_is_answered() {
        let verdict = Verdict {
            id: id(),
            taken: false,
            msg: "it is over".into(),
        };
        let mut taken = Taken {
            results: Vec::new(),
            undos: vec![id()],
            start: Vec::new(),
        };
        assert!(!is_complete(&done(), &taken));
        taken.results.push(verdict);
        assert!(is_complete(&done(), &taken));
        taken.undos.clear();
        assert!(!is_complete(&done(), &taken));
    }

    #[test]
    fn a_destination_is_where_the_agent_calls() {
        let urls = ["http://a:1", "http://b:1"].map(str::to_owned).to_vec();
        let client = Client::new(&Registry::new(urls.clone(), None)).unwrap();
        let seen = Position {
            term: "00000000000000ab:7".parse().unwrap(),
            commit: "00000000000000cd:8".parse().ok(),
        };
        let client = client.with_terms(Arc::new(SharedTerm::new(Some(seen))));
        client.set_token(Some(Secret::for_test("s3cret-token")));
        let json = serde_json::to_vec(&Destination::of(&client, None)).unwrap();
        let destination: Destination = serde_json::from_slice(&json).unwrap();
        let copy = destination.client(Client::new).unwrap();
        assert_eq!((copy.urls(), copy.highest_term()), (urls, Some(seen)));
        assert_eq!(copy.token(), client.token());
        // As an older agent says it.
        let older: Destination = serde_json::from_str(r#"{"url": "http://a:1"}"#).unwrap();
        assert_eq!(older.client(Client::new).unwrap().urls(), ["http://a:1"]);
    }

    #[test]
    fn a_destination_does_not_show_its_token() {
        let destination = Destination {
            url: "http://registry:9410".into(),
            others: Vec::new(),
            ca: None,
            token: Some("a secret".into()),
            term: None,
            commit: None,
        };
        assert!(!format!("{destination:?}").contains("secret"));
    }
}
