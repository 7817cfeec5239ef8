//! `make soak`: mixed load on the release binary, with agents that come and go. What the server
//! takes at the end must be what it took after the first minute.

use crate::api::Api;
use crate::http::{Connection, request};
use crate::process::{Process, Server, agent};
use crate::setting::Setting;
use crate::table::{mb, median};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Limits that the load reaches within the first minute: until then memory has to grow.
const FLAGS: [&str; 4] = ["--max-tasks", "1000", "--max-output", "16"];
/// After this long the load is as it will stay; of a shorter run a third.
const WARM_UP: Duration = Duration::from_secs(60);
/// How many looks, a second apart, each of the two figures is the median of.
const LOOKS: usize = 10;
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How much more memory there may be at the end, in KiB: agents that have gone are known for ten
/// minutes more, which the first one has not seen, and freed memory has gaps.
const MORE_KIB: u64 = 8 * 1_024;
/// How many more descriptors: a held request has two, and how many are held changes.
const MORE_DESCRIPTORS: u64 = 30;
/// How many more threads: one for each connection at work.
const MORE_THREADS: u64 = 15;
/// Agents at any time, and users of each kind.
const AGENTS: usize = 5;
const SUBMITTERS: usize = 3;
const FOLLOWERS: usize = 2;
/// How long an agent lives, in milliseconds: from and to.
const LIFE_MS: (u64, u64) = (500, 12_000);
/// Pauses of those who submit, in milliseconds, and of those who look.
const SUBMIT_EVERY_MS: (u64, u64) = (2, 60);
const LOOK_EVERY_MS: (u64, u64) = (20, 400);
/// What the agents run: quick and slow things, things that fail, and more output than is kept.
const COMMANDS: [&str; 6] = [
    "echo hello",
    "sleep 0.3",
    "exit 3",
    "seq 20000",
    "sleep 30",
    "head -c 3000000 /dev/zero",
];

/// What the server takes.
struct Taken {
    kib: u64,
    descriptors: u64,
    threads: u64,
}

/// What happened, by what it was.
#[derive(Default)]
struct Events(Mutex<BTreeMap<String, u64>>);

impl Events {
    fn count(&self, what: &str) {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *events.entry(what.to_owned()).or_default() += 1;
    }

    /// Counts an answer by its status; gives its JSON.
    fn answer(&self, what: &str, api: &mut Api, bytes: &[u8]) -> Value {
        match api.raw(bytes) {
            Ok(reply) => {
                self.count(&format!("{what} {}", reply.status));
                serde_json::from_slice(&reply.body).unwrap_or_default()
            }
            Err(why) => {
                self.count(&format!("{what}: {why}"));
                Value::Null
            }
        }
    }
}

/// Numbers that look random; the same ones in each run.
struct Dice(u64);

impl Dice {
    fn new(seed: usize) -> Dice {
        Dice(0x9e37_79b9_7f4a_7c15 ^ (seed as u64 + 1))
    }

    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % most
    }

    fn pause(&mut self, (least, most): (u64, u64)) -> Duration {
        Duration::from_millis(least + self.below(most - least))
    }
}

/// What those who make the load share.
struct Load<'a> {
    setting: &'a Setting,
    server: SocketAddr,
    over: AtomicBool,
    events: Events,
    newest: Mutex<String>,
    submitted: AtomicU64,
}

/// Runs it. The error says what has grown.
pub fn soak(setting: &Setting) -> Result<(), String> {
    let server = Server::start(setting, &FLAGS)?;
    let load = Load {
        setting,
        server: server.address,
        over: AtomicBool::new(false),
        events: Events::default(),
        newest: Mutex::default(),
        submitted: AtomicU64::new(0),
    };
    let begin = Instant::now();
    let looked = thread::scope(|scope| {
        let load = &load;
        for n in 0..AGENTS {
            scope.spawn(move || load.churn(n));
        }
        for n in 0..SUBMITTERS {
            scope.spawn(move || load.submit(n));
        }
        for n in 0..FOLLOWERS {
            scope.spawn(move || load.follow(n));
        }
        scope.spawn(|| load.look());
        let looked = watch(&server, setting.soak, begin);
        load.over.store(true, Ordering::Relaxed);
        looked
    });
    let (early, late) = looked?;
    let events = load.events.0.into_inner();
    for (what, count) in events.unwrap_or_else(PoisonError::into_inner) {
        println!("{count:>9} {what}");
    }
    judge(&early, &late, load.submitted.into_inner())
}

/// Looks twice: after the first minute, and at the end.
fn watch(server: &Server, span: Duration, begin: Instant) -> Result<(Taken, Taken), String> {
    let warm = WARM_UP.min(span / 3);
    thread::sleep(warm.saturating_sub(begin.elapsed()));
    let early = taken(&server.process)?;
    println!("after {} s: {early}", begin.elapsed().as_secs());
    let looks = LOOK_EVERY * LOOKS as u32;
    thread::sleep(span.saturating_sub(begin.elapsed() + looks));
    let late = taken(&server.process)?;
    println!("after {} s: {late}", begin.elapsed().as_secs());
    Ok((early, late))
}

fn taken(process: &Process) -> Result<Taken, String> {
    let (mut kib, mut descriptors, mut threads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..LOOKS {
        kib.push(process.kib("VmRSS")? as f64);
        descriptors.push(process.descriptors()? as f64);
        threads.push(process.threads()? as f64);
        thread::sleep(LOOK_EVERY);
    }
    Ok(Taken {
        kib: median(&kib) as u64,
        descriptors: median(&descriptors) as u64,
        threads: median(&threads) as u64,
    })
}

impl std::fmt::Display for Taken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Taken {
            kib,
            descriptors,
            threads,
        } = self;
        write!(
            f,
            "{}, {descriptors} descriptors, {threads} threads",
            mb(*kib)
        )
    }
}

fn judge(early: &Taken, late: &Taken, submitted: u64) -> Result<(), String> {
    let grown = [
        ("memory (KiB)", early.kib, late.kib, MORE_KIB),
        (
            "descriptors",
            early.descriptors,
            late.descriptors,
            MORE_DESCRIPTORS,
        ),
        ("threads", early.threads, late.threads, MORE_THREADS),
    ]
    .map(|(what, early, late, more)| {
        let has_grown = late > early + more;
        has_grown.then(|| format!("{what}: {early}, then {late}, allowed are {more} more"))
    });
    let mut wrong: Vec<String> = grown.into_iter().flatten().collect();
    if submitted == 0 {
        wrong.push("nothing was submitted".into());
    }
    match wrong.is_empty() {
        true => {
            println!("nothing has grown");
            Ok(())
        }
        false => Err(wrong.join("; ")),
    }
}

impl Load<'_> {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// An agent after the other, each under the same label; some are told to end, some are killed.
    fn churn(&self, n: usize) {
        let mut dice = Dice::new(n);
        let label = format!("soak-{n}");
        while self.goes_on() {
            match agent(self.setting, self.server, &label, &["--grace", "1s"]) {
                Ok(mut agent) => {
                    thread::sleep(dice.pause(LIFE_MS));
                    if dice.below(2) == 0 {
                        self.events.count("agents killed");
                        continue;
                    }
                    self.events.count("agents ended");
                    agent.signal(Signal::TERM);
                    let patience = Instant::now() + Duration::from_secs(10);
                    while !agent.has_ended() && Instant::now() < patience {
                        thread::sleep(Duration::from_millis(20));
                    }
                }
                Err(why) => {
                    self.events.count(&why);
                    thread::sleep(LOOK_EVERY);
                }
            }
        }
    }

    /// Tasks of all kinds, some of which are canceled, waited for, or run again.
    fn submit(&self, n: usize) {
        let (mut dice, mut api) = (Dice::new(100 + n), Api::new(self.server));
        while self.goes_on() {
            let command = COMMANDS[dice.below(COMMANDS.len() as u64) as usize];
            let mode = ["all", "any"][dice.below(2) as usize];
            let pattern = format!("^soak-[0-{}]", dice.below(AGENTS as u64));
            let task = json!({
                "machinePattern": pattern, "mode": mode, "ttl": 20,
                "detail": {"command": command, "timeout": 2, "killGrace": 1}
            });
            let wait = ["", "?wait=500ms"][usize::from(dice.below(10) == 0)];
            let body = task.to_string();
            let submit = request("POST", &format!("/api/v1/task{wait}"), "", body.as_bytes());
            let answer = self.events.answer("submit", &mut api, &submit);
            if let Some(id) = answer["data"]["id"].as_str() {
                self.submitted.fetch_add(1, Ordering::Relaxed);
                let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
                id.clone_into(&mut newest);
                drop(newest);
                let call = match dice.below(10) {
                    0 | 1 => Some("cancel"),
                    2 => Some("rerun"),
                    _ => None,
                };
                if let Some(call) = call {
                    let path = format!("/api/v1/task/{id}/{call}");
                    let bytes = request("POST", &path, "", b"");
                    self.events.answer(call, &mut api, &bytes);
                }
            }
            thread::sleep(dice.pause(SUBMIT_EVERY_MS));
        }
    }

    /// The output of the newest task as it comes; some stop reading before its end.
    fn follow(&self, n: usize) {
        let mut dice = Dice::new(200 + n);
        while self.goes_on() {
            thread::sleep(dice.pause(LOOK_EVERY_MS));
            let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
            let path = format!("/api/v1/task/{newest}/output?follow=1");
            drop(newest);
            let Some(mut connection) = Connection::try_open(self.server) else {
                self.events.count("follow: no connection");
                continue;
            };
            connection.send(&request("GET", &path, "Connection: close\r\n", b""));
            if dice.below(3) == 0 {
                thread::sleep(dice.pause(LOOK_EVERY_MS));
                self.events.count("follow, given up");
            } else {
                connection.rest();
                self.events.count("follow, to its end");
            }
        }
    }

    /// What a page and a Prometheus ask for.
    fn look(&self) {
        let (mut dice, mut api) = (Dice::new(300), Api::new(self.server));
        let paths = [
            "/api/v1/task",
            "/api/v1/machine",
            "/metrics",
            "/api/v1/task?state=failed",
            "/",
        ];
        while self.goes_on() {
            let path = paths[dice.below(paths.len() as u64) as usize];
            self.events
                .answer(path, &mut api, &request("GET", path, "", b""));
            thread::sleep(dice.pause(LOOK_EVERY_MS));
        }
    }
}
