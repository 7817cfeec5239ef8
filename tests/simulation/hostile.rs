//! Agents that do not keep to the rules. Hostile ones have an agent's token and say what they like: of attempts that
//! they were handed, that others have, or that do not exist. Of two agents with one instance each says what is, but in
//! the name of the other as well. The laws hold for everybody else.

use crate::agent::{Alarm, STREAMS};
use crate::messages;
use crate::world::{Event, LABELS, Request, Response, World};
use sidebike::agent::undo::ledger::new_report;
use sidebike::core::execution_id;
use sidebike::wire::agent::{
    AttemptId, Done, Ended, Goodbye, Hold, HoldState, Output, Piece, Poll,
};
use sidebike::wire::duration::TimeSpan;
use sidebike::wire::task::ExecutionState;
use sidebike::wire::undo::{UndoReport, UndoState};

/// The most ids that hostile agents remember.
const REMEMBERED: usize = 50;
/// More entries than a request may have.
const TOO_MANY: u64 = 5_000;
/// The host of every hostile agent.
const HOSTILE_HOST: &str = "\u{1b}[31m";
/// Of a thousand lists, how many are that long.
const TOO_LONG: u64 = 5;
/// Numbers at which a sum may overflow, or a check be wrong by one.
const EDGES: [u64; 8] = [
    0,
    1,
    (256 << 10) - 1,
    1 << 20,
    (1 << 53) - 1,
    1 << 53,
    u64::MAX - 1,
    u64::MAX,
];

impl World {
    pub fn start_hostile(&mut self) {
        self.count("hostile agent started");
        let label = self.rng.pick(&LABELS);
        let who = self.add_agent(label);
        self.agents[who].hostile = true;
        self.agents[who].host = HOSTILE_HOST.into();
        self.after(10, Event::Alarm(who, Alarm::Mischief));
    }

    /// It remembers what it was handed.
    pub fn hostile_hears(&mut self, who: usize, response: Response) {
        let start = match response {
            Response::Orders(_, orders, _) => orders.start,
            Response::Taken(taken, ..) => taken.start,
            _ => Vec::new(),
        };
        for job in start {
            self.note(|| format!("hostile agent {who} got {:?}", job.id));
            self.count("hostile agent got work");
            self.overheard.push(job.id);
        }
        let beyond = self.overheard.len().saturating_sub(REMEMBERED);
        self.overheard.drain(..beyond);
    }

    pub fn makes_mischief(&mut self, who: usize) {
        let pause = self.rng.between(20, 2_000);
        self.after(pause, Event::Alarm(who, Alarm::Mischief));
        let instance = self.hostile_instance(who);
        let request = match self.rng.between(0, 19) {
            0..8 => Request::Poll(self.hostile_poll(who, instance)),
            8..12 => Request::Output(Output {
                instance,
                pieces: self.hostile_pieces(),
            }),
            12..18 => self.hostile_done(who, instance),
            18 => {
                let holds = self.hostile_holds();
                Request::Goodbye(Goodbye { instance, holds })
            }
            _ => {
                self.count("hostile agent took a new instance");
                self.agents[who].instance = self.rng.id();
                return;
            }
        };
        self.count(match &request {
            Request::Poll(_) => "hostile poll",
            Request::Output(_) => "hostile output",
            Request::Done(..) => "hostile results",
            _ => "hostile goodbye",
        });
        self.note(|| format!("hostile agent {who}: {request:?}"));
        self.send(who, Event::ToServer(who, request));
    }

    /// Its own. Those of other agents are random and nobody's to know, those of the original's agents are not.
    fn hostile_instance(&mut self, who: usize) -> String {
        match self.rng.chance(50) {
            true => "original:old-0".into(),
            false => self.agents[who].instance.clone(),
        }
    }

    fn hostile_poll(&mut self, who: usize, instance: String) -> Poll {
        let undos = self.hostile_undos();
        let has_experiments = self.experiments.share > 0;
        let feature = match has_experiments && self.rng.chance(500) {
            true => "undo",
            false => "teleport",
        };
        let steps = self.rng.pick(&[0, 1, 1, 1, 5]);
        let agent = &mut self.agents[who];
        agent.latest_seq += steps;
        let seq = agent
            .latest_seq
            .saturating_sub(self.rng.pick(&[0, 0, 0, 2]));
        let label = match self.rng.chance(50) {
            true => "a label that is longer than one may be".into(),
            false => self.agents[who].label.clone(),
        };
        Poll {
            undos,
            host: HOSTILE_HOST.into(),
            jobs: self.rng.pick(&[0, 1, 4, 1_000, u32::MAX]),
            draining: self.rng.chance(100),
            standing: true,
            wait: TimeSpan::from_millis(self.rng.pick(&[0, 500, 25_000, 1 << 50])),
            holds: self.hostile_holds(),
            features: vec![feature.into()],
            ..messages::poll(&instance, seq, &label, &[])
        }
    }

    fn hostile_length(&mut self) -> u64 {
        match self.rng.chance(TOO_LONG) {
            true => TOO_MANY,
            false => self.rng.between(0, 4),
        }
    }

    fn hostile_holds(&mut self) -> Vec<Hold> {
        let length = self.hostile_length();
        let states = [HoldState::Running, HoldState::Ending, HoldState::Ended];
        let holds = (0..length).map(|_| Hold {
            id: self.hostile_id(),
            state: self.rng.pick(&states),
            started_ago_ms: self.rng.pick(&EDGES),
            phase: None,
        });
        holds.collect()
    }

    fn hostile_pieces(&mut self) -> Vec<Piece> {
        let length = self.hostile_length();
        let pieces = (0..length).map(|_| Piece {
            id: self.hostile_id(),
            stream: self.rng.pick(&STREAMS),
            offset: self.rng.pick(&EDGES),
            data: vec![b'!'; self.rng.pick(&[0, 1, 100, 5_000])],
        });
        pieces.collect()
    }

    /// What it says of undos: its own and those of others.
    fn hostile_undos(&mut self) -> Vec<UndoReport> {
        if self.experiments.share == 0 {
            return Vec::new();
        }
        let length = self.hostile_length();
        let undos = (0..length).map(|_| UndoReport {
            tries: u32::MAX,
            exit_code: Some(i32::MIN),
            msg: "undone".into(),
            output: "!".repeat(self.rng.pick(&[0, 1, 100, 5_000])),
            began_ago_ms: Some(self.rng.pick(&EDGES)),
            ended_ago_ms: Some(self.rng.pick(&EDGES)),
            ..new_report(self.hostile_id(), self.rng.pick(&UndoState::ALL))
        });
        undos.collect()
    }

    fn hostile_done(&mut self, who: usize, instance: String) -> Request {
        let length = self.hostile_length();
        let results = (0..length).map(|_| Ended {
            id: self.hostile_id(),
            state: self.rng.pick(&ExecutionState::ALL),
            exit_code: Some(self.rng.pick(&[0, 1, i32::MIN])),
            signal: Some("SIGNONE".into()),
            msg: "its machine went away".into(),
            ended_ago_ms: self.rng.pick(&EDGES),
            duration_ms: Some(self.rng.pick(&EDGES)),
            stdout_bytes: self.rng.pick(&EDGES),
            stderr_bytes: self.rng.pick(&EDGES),
            files: Vec::new(),
        });
        let results = results.collect();
        let seq = self.agents[who].latest_seq;
        let done = Done {
            undos: self.hostile_undos(),
            seq: self
                .rng
                .pick(&[None, Some(seq), Some(seq + 1), Some(u64::MAX)]),
            pieces: self.hostile_pieces(),
            ..messages::done(&instance, results)
        };
        Request::Done(done, Vec::new())
    }

    /// One that a hostile agent was handed, one of any execution that there is, or a made-up one.
    fn hostile_id(&mut self) -> AttemptId {
        let overheard = self.overheard.len() as u64;
        match self.rng.between(0, 9) {
            0..5 if overheard > 0 => {
                let at = self.rng.between(0, overheard - 1);
                let mut id = self.overheard[at as usize].clone();
                id.attempt = id
                    .attempt
                    .saturating_add(self.rng.pick(&[0, 0, 0, 1, u32::MAX]));
                id
            }
            0..8 => {
                let tasks = self.server.core.tasks_by_key();
                let prefixes: Vec<_> = tasks.map(|(_, task)| task.prefix.clone()).collect();
                let Some(last) = prefixes.len().checked_sub(1) else {
                    return made_up("t0.0");
                };
                let prefix = &prefixes[self.rng.between(0, last as u64) as usize];
                AttemptId {
                    execution: execution_id(prefix, self.rng.pick(&[0, 0, 1, 2, 1_000])),
                    attempt: self.rng.pick(&[0, 1, 1, 2, 3]),
                }
            }
            _ => made_up(
                self.rng
                    .pick(&["", ".", "t0", "t0.", ".0", "t0.99999999999", "\u{0}.0"]),
            ),
        }
    }

    /// Another process with the instance of an agent: it was started from a copy of its memory.
    pub fn start_twin(&mut self, who: usize) {
        let agent = &self.agents[who];
        let is_ordinary = agent.alive && !agent.paused && !agent.original && agent.is_plain();
        if !is_ordinary || agent.has_to_end() {
            return;
        }
        let label = agent.label.clone();
        self.count("two agents with one instance");
        let twin = self.add_agent(&label);
        self.note(|| format!("agent {twin} has the instance of {who}"));
        let (host, tags) = (self.agents[who].host.clone(), self.agents[who].tags.clone());
        (self.agents[twin].host, self.agents[twin].tags) = (host, tags);
        self.agents[twin].instance = self.agents[who].instance.clone();
        self.agents[twin].latest_seq = self.agents[who].latest_seq + self.rng.between(0, 2);
        for one in [who, twin] {
            self.agents[one].twin = true;
        }
        for key in self.agents[who].holds.keys() {
            self.laws.nobody_knows_what_becomes_of(*key);
        }
        for truth in self.experiments.truths.values_mut() {
            truth.is_untrusted |= truth.who == who;
        }
        self.poll(twin);
    }

    /// Nothing comes to rest as long as they are there.
    pub fn end_the_hostile_and_the_twins(&mut self) {
        for who in 0..self.agents.len() {
            let agent = &self.agents[who];
            let is_doubled = |other: &crate::agent::Agent| {
                other.alive && other.twin && other.instance == agent.instance
            };
            if agent.hostile || (agent.twin && self.agents[..who].iter().any(is_doubled)) {
                self.kill(who);
            }
        }
    }
}

fn made_up(execution: &str) -> AttemptId {
    AttemptId {
        execution: execution.into(),
        attempt: 1,
    }
}
