//! Model agents: they do what the real agent does on the wire, without a process, socket or thread.

use crate::experiment::{AgentExperiments, Moment, Plan, Stop};
use crate::files;
use crate::guard::Answer;
use crate::laws::RealEnd;
use crate::targets::{HOSTS, ROLES, ZONES};
use crate::world::{AttemptKey, Event, Lawful, Ms, Request, Response, Told, World};
use sidebike::agent::undo::deadman::MAX_PAUSE;
use sidebike::core::Link;
use sidebike::head_tail_buffer::{HEAD_BYTES, TAIL_BYTES};
use sidebike::wire::agent::{
    AttemptId, Done, Ended, Feature, Goodbye, Hold, HoldState, Orders, Output, Piece, Poll, Stream,
};
use sidebike::wire::duration::{TimeSpan, Timeout};
use sidebike::wire::task::{Detail, ExecutionState};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// The first number of the original's agents in the records of the laws.
pub const ORIGINALS: usize = 1_000_000;
/// How long a poll may be held: without and with running commands.
const WAITS: [Ms; 2] = [25_000, 20_000];
/// How long after that the agent abandons the poll.
const SLACK: Ms = 4_000;
/// Consecutive refusals after which an agent without work takes a new instance.
const MAX_CONFLICTS: u32 = 3;
/// More than so many answers in a row that come this soon and without orders are followed by a pause.
const QUICK: Ms = 500;
const MAX_QUICK: u32 = 5;
const QUICK_PAUSE: Ms = 200;
/// What a command writes at once where it writes more than is kept, at most.
const LOUD_BYTES: u64 = 600_000;
/// What an agent sends of a stream at once. It drops the middle of what it could not send.
const SENT_AT_ONCE: u64 = 700_000;
/// At a shutdown: how long commands may go on, and how long they may take to end after TERM.
const GRACE: Ms = 10_000;
const END_PATIENCE: Ms = 17_000;
/// How long an agent that ends keeps trying to report its last results.
const REPORT_PATIENCE: Ms = 22_000;
/// How often it looks whether undos have ended, then.
const UNDO_LOOK: Ms = 2_000;

/// What is kept of a stream.
pub const KEPT_BYTES: u64 = (HEAD_BYTES + TAIL_BYTES) as u64;

/// The timers of an agent.
#[derive(Debug, Clone)]
pub enum Alarm {
    PollAgain(u64),
    GiveUp(u64),
    Ends(AttemptKey, ExecutionState),
    Writes(AttemptKey),
    Report,
    GraceOver,
    SayGoodbye,
    Resume,
    Ping,
    Mischief,
    Trial(AttemptKey, Moment),
    GuardSays(usize, Box<Answer>),
}

/// An attempt that an agent holds.
#[derive(Debug, Clone)]
pub struct Held {
    pub id: AttemptId,
    state: HoldState,
    started_at: Ms,
    grace: Ms,
    cannot_start: bool,
    end: Option<(ExecutionState, Ms)>,
    /// Of each stream.
    written: [u64; 2],
    acked: [u64; 2],
}

#[derive(Debug)]
pub struct Agent {
    pub instance: String,
    pub label: String,
    pub host: String,
    pub tags: BTreeMap<String, String>,
    pub original: bool,
    /// It says what it likes.
    pub hostile: bool,
    /// Another process has, or had, the same instance.
    pub twin: bool,
    pub alive: bool,
    pub paused: bool,
    pub cut_until: Ms,
    pub holds: BTreeMap<AttemptKey, Held>,
    /// It runs on and is not reported.
    pub forgotten: usize,
    gone: HashSet<AttemptId>,
    jobs: u32,
    /// What it can do beyond the first version.
    features: Vec<Feature>,
    /// The number of its latest poll.
    pub latest_seq: u64,
    pending: Option<u64>,
    conflicts: u32,
    failures: u32,
    /// Answers in a row that came at once and without orders.
    quick: u32,
    polled_at: Ms,
    report_failures: u32,
    reporting: bool,
    draining: bool,
    /// The server wants it to take no more work.
    pub drained: bool,
    /// The calls it has made, if it is of the original.
    calls: u64,
    /// Messages that arrived while it was paused.
    missed: Vec<Event>,
    pub experiments: AgentExperiments,
}

impl Agent {
    /// Whether it says what is, and nobody else says something in its name.
    pub fn is_plain(&self) -> bool {
        !self.hostile && !self.twin
    }

    /// Whether it was told to end.
    pub fn has_to_end(&self) -> bool {
        self.draining
    }

    /// Whether it can do this.
    pub fn can(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }

    /// Whether its last poll has failed.
    pub fn is_down(&self) -> bool {
        self.failures > 0
    }

    /// The number of the poll that is under way.
    pub fn pending_poll(&self) -> Option<u64> {
        self.pending
    }

    /// Whether it has something to report.
    pub fn is_busy(&self) -> bool {
        self.alive && !self.holds.is_empty()
    }
}

/// The streams, in the order of the pairs of numbers here.
pub const STREAMS: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

/// What a command writes to a stream from an offset on.
pub fn text(key: AttemptKey, stream: Stream, from: u64, to: u64) -> Vec<u8> {
    let shift = u64::from(key.n) * 7 + u64::from(key.attempt) * 3 + 11 * (stream as u64);
    (from..to)
        .map(|at| b'a' + ((at + shift) % 26) as u8)
        .collect()
}

impl World {
    pub fn start_agent(&mut self, label: &str) -> usize {
        let who = self.add_agent(label);
        self.poll(who);
        who
    }

    pub fn add_agent(&mut self, label: &str) -> usize {
        let who = self.agents.len();
        let instance = self.rng.id();
        let jobs = self.rng.pick(&[1, 2, 4]);
        // Some are older than others.
        let known = self
            .rng
            .pick(&[0, 1, Feature::ALL.len(), Feature::ALL.len()]);
        let known = match self.experiments.share > 0 && self.rng.chance(700) {
            true => Feature::ALL.len(),
            false => known,
        };
        let features = Feature::ALL[..known].to_vec();
        let host = self.rng.pick(&HOSTS);
        let tags = [
            ("zone", self.rng.pick(&ZONES)),
            ("role", self.rng.pick(&ROLES)),
        ];
        let tags = tags
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        let tags = tags.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let tags: BTreeMap<String, String> = tags.collect();
        self.note(|| format!("agent {who} starts as {label}, {instance} {host} {tags:?}"));
        self.agents.push(Agent {
            instance,
            label: label.into(),
            host: host.into(),
            tags,
            original: false,
            hostile: false,
            twin: false,
            alive: true,
            paused: false,
            cut_until: 0,
            holds: BTreeMap::new(),
            forgotten: 0,
            gone: HashSet::new(),
            jobs,
            features,
            latest_seq: 0,
            pending: None,
            conflicts: 0,
            failures: 0,
            quick: 0,
            polled_at: 0,
            report_failures: 0,
            reporting: false,
            draining: false,
            drained: false,
            calls: 0,
            missed: Vec::new(),
            experiments: AgentExperiments::new(self.now),
        });
        who
    }

    /// An agent of the original: it pings, fetches one task, runs it, reports once.
    pub fn start_original(&mut self) {
        self.count("agent of the original started");
        let who = self.add_agent("old-0");
        self.agents[who].original = true;
        self.after(1, Event::Alarm(who, Alarm::Ping));
    }

    pub fn kill(&mut self, who: usize) {
        if std::mem::take(&mut self.agents[who].alive) {
            self.count("agent killed");
            self.note(|| format!("agent {who} is killed"));
            self.agent_is_gone(who);
        }
    }

    pub fn pause(&mut self, who: usize, long: bool) {
        if self.agents[who].paused || !self.agents[who].alive {
            return;
        }
        self.count(if long {
            "agent paused > 45 s"
        } else {
            "agent paused < 45 s"
        });
        self.agents[who].paused = true;
        self.agents[who].experiments.worked_until = self.now;
        let pause = if long {
            self.rng.between(45_000, 150_000)
        } else {
            self.rng.between(100, 44_000)
        };
        self.note(|| format!("agent {who} pauses for {pause}"));
        self.after(pause, Event::Alarm(who, Alarm::Resume));
    }

    /// It continues with its old state; messages that arrived meanwhile are delivered now, in any order.
    pub fn resume(&mut self, who: usize) {
        self.agents[who].paused = false;
        self.agents[who].experiments.works_since = self.now;
        self.note(|| format!("agent {who} resumes"));
        let missed = std::mem::take(&mut self.agents[who].missed);
        for event in missed {
            let late = self.rng.between(0, 5);
            self.after(late, event);
        }
    }

    /// TERM: it takes no more work, waits for its commands, and says goodbye.
    pub fn term(&mut self, who: usize) {
        let agent = &mut self.agents[who];
        if !agent.alive || agent.draining || agent.original || agent.hostile {
            return;
        }
        agent.draining = true;
        agent.pending = None;
        self.count("agent told to end");
        self.note(|| format!("agent {who} is told to end"));
        let trials = self.agents[who].experiments.trials.keys();
        for key in trials.copied().collect::<Vec<_>>() {
            self.trial_stops(who, key, Stop::Shutdown);
        }
        let agent = &self.agents[who];
        let idle = agent.holds.is_empty() && agent.experiments.ledger.is_empty();
        if !idle {
            self.poll(who);
        }
        self.after(
            if idle { 0 } else { GRACE },
            Event::Alarm(who, Alarm::GraceOver),
        );
        self.after(
            if idle { 1 } else { REPORT_PATIENCE },
            Event::Alarm(who, Alarm::SayGoodbye),
        );
    }

    pub fn agent_wakes(&mut self, who: usize, alarm: Alarm) -> Lawful {
        if let Alarm::Resume = alarm {
            if self.agents[who].paused {
                self.resume(who);
            }
            return Ok(());
        }
        if self.is_away(who, || Event::Alarm(who, alarm.clone())) {
            return Ok(());
        }
        match alarm {
            Alarm::Resume => {}
            Alarm::PollAgain(seq) => {
                if self.agents[who].pending.is_none() && self.agents[who].latest_seq == seq {
                    self.poll(who);
                }
            }
            Alarm::GiveUp(seq) => {
                if self.agents[who].pending == Some(seq) {
                    self.count("poll given up");
                    self.poll_failed(who);
                }
            }
            Alarm::Ends(key, state) => self.command_ends(who, key, state),
            Alarm::Writes(key) => self.command_writes(who, key),
            Alarm::Report => {
                self.agents[who].reporting = false;
                self.report(who);
            }
            Alarm::GraceOver => self.end_all(who),
            // Undos are waited for.
            Alarm::SayGoodbye if self.agents[who].experiments.is_open() => {
                self.after(UNDO_LOOK, Event::Alarm(who, Alarm::SayGoodbye));
            }
            Alarm::SayGoodbye => self.say_goodbye(who),
            Alarm::Ping => self.ping(who),
            Alarm::Mischief => self.makes_mischief(who),
            Alarm::Trial(key, moment) => self.trial_goes_on(who, key, moment)?,
            Alarm::GuardSays(guard, answer) => self.guard_says(who, guard, *answer),
        }
        Ok(())
    }

    /// Whether it can act: not if it has crashed; if it is paused it acts later.
    pub fn is_away(&mut self, who: usize, event: impl FnOnce() -> Event) -> bool {
        let agent = &mut self.agents[who];
        if agent.alive && agent.paused {
            agent.missed.push(event());
        }
        !agent.alive || agent.paused
    }

    pub fn agent_hears(&mut self, who: usize, response: Response) -> Lawful {
        if let Response::Settled(number, taken) = &response {
            self.settled_is_taken(*number, taken);
            return Ok(());
        }
        if self.is_away(who, || Event::ToAgent(who, response.clone())) {
            return Ok(());
        }
        if self.agents[who].hostile {
            self.hostile_hears(who, response);
            return Ok(());
        }
        match response {
            Response::Orders(seq, mut orders, mut keys)
                if self.agents[who].experiments.older_polls.contains(&seq) =>
            {
                // A later poll does not list what this answer hands out.
                orders.start.clear();
                keys.clear();
                let agent = &mut self.agents[who].experiments;
                agent.older_polls.retain(|older| *older != seq);
                agent.contact = self.now;
                self.count("answer to an older poll");
                self.obey(who, orders, keys)?;
            }
            Response::Orders(seq, orders, keys) => {
                // The answer to an abandoned poll is not received.
                if self.agents[who].pending == Some(seq) {
                    let agent = &mut self.agents[who];
                    agent.pending = None;
                    agent.experiments.contact = self.now;
                    (agent.failures, agent.conflicts) = (0, 0);
                    let is_quick = orders.is_empty() && self.now < agent.polled_at + QUICK;
                    agent.quick = if is_quick { agent.quick + 1 } else { 0 };
                    let pause = agent.quick > MAX_QUICK;
                    self.obey(who, orders, keys)?;
                    if pause {
                        self.count("pause after quick answers");
                        self.after(QUICK_PAUSE, Event::Alarm(who, Alarm::PollAgain(seq)));
                    } else if self.agents[who].alive {
                        self.poll(who);
                    }
                }
            }
            Response::Refused(seq, conflict) => {
                if self.agents[who].pending == Some(seq) {
                    let agent = &mut self.agents[who];
                    agent.conflicts = if conflict { agent.conflicts + 1 } else { 0 };
                    let is_idle = agent.holds.is_empty() && agent.experiments.ledger.is_empty();
                    if agent.conflicts >= MAX_CONFLICTS && is_idle {
                        agent.conflicts = 0;
                        self.agents[who].instance = self.rng.id();
                        self.count("agent took a new instance");
                    }
                    self.poll_failed(who);
                }
            }
            Response::Kept(output, orders) => {
                self.agents[who].experiments.contact = self.now;
                for piece in &output.pieces {
                    let end = piece.offset + piece.data.len() as u64;
                    let held = self.agents[who]
                        .holds
                        .values_mut()
                        .find(|held| held.id == piece.id);
                    if let Some(held) = held {
                        let acked = &mut held.acked[piece.stream as usize];
                        *acked = end.max(*acked);
                    }
                }
                self.obey(who, orders, Vec::new())?;
            }
            Response::Taken(taken, latest, keys, told) => {
                self.agents[who].report_failures = 0;
                let agent = &mut self.agents[who].experiments;
                agent.contact = self.now;
                for (id, change) in told.iter().filter(|(id, _)| taken.undos.contains(id)) {
                    agent.ledger.taken(id, *change);
                }
                if latest == Some(self.agents[who].latest_seq) {
                    let start = taken.start;
                    let orders = Orders {
                        start,
                        ..Orders::none()
                    };
                    self.obey(who, orders, keys)?;
                    self.shorten_poll(who);
                } else if !taken.start.is_empty() {
                    self.count("handed out with a report, but polled since");
                }
                for verdict in taken.results {
                    if !verdict.taken {
                        self.count("result not taken");
                    }
                    self.let_go(who, &verdict.id);
                }
            }
            Response::Settled(..) => {}
            Response::Pong(work) => self.ponged(who, work),
            Response::Fetched(orders, keys) => self.fetched(who, orders, keys)?,
        }
        Ok(())
    }

    fn let_go(&mut self, who: usize, id: &AttemptId) -> bool {
        let agent = &mut self.agents[who];
        let Some(key) = agent
            .holds
            .iter()
            .find(|(_, held)| held.id == *id)
            .map(|(key, _)| *key)
        else {
            return false;
        };
        agent.holds.remove(&key);
        agent.gone.insert(id.clone());
        true
    }

    pub fn poll(&mut self, who: usize) {
        let now = self.now;
        let agent = &mut self.agents[who];
        if agent.original {
            return;
        }
        agent.latest_seq += 1;
        agent.polled_at = now;
        agent.pending = Some(agent.latest_seq);
        let seq = agent.latest_seq;
        let wait = WAITS[usize::from(!agent.holds.is_empty())];
        let (wait, slack) = self.poll_for_switch(who, wait, SLACK);
        let instant = self.instant();
        let agent = &self.agents[who];
        let poll = Poll {
            undos: agent.experiments.ledger.states(instant),
            tags: agent.tags.clone(),
            instance: agent.instance.clone(),
            seq,
            label: agent.label.clone(),
            host: agent.host.clone(),
            version: "simulated".into(),
            arch: String::new(),
            jobs: agent.jobs,
            draining: agent.draining || agent.drained || agent.forgotten >= agent.jobs as usize,
            drained: agent.drained,
            ending: agent.draining,
            standing: true,
            wait: TimeSpan::from_millis(wait),
            holds: agent.list_holds(now),
            features: { agent.features.iter() }
                .map(|feature| feature.word().into())
                .collect(),
        };
        self.send(who, Event::ToServer(who, Request::Poll(poll)));
        self.after(wait + slack, Event::Alarm(who, Alarm::GiveUp(seq)));
    }

    fn poll_failed(&mut self, who: usize) {
        let agent = &mut self.agents[who];
        agent.pending = None;
        let ceiling = 200 << agent.failures.min(5);
        agent.failures += 1;
        let seq = agent.latest_seq;
        let mut pause = self.rng.between(10, ceiling);
        if self.agents[who].experiments.deadman().is_some() {
            pause = pause.min(MAX_PAUSE.as_millis() as Ms);
        }
        self.after(pause, Event::Alarm(who, Alarm::PollAgain(seq)));
    }

    /// The connection of its poll breaks.
    pub fn connection_breaks(&mut self, who: usize) {
        let agent = &self.agents[who];
        if agent.alive && !agent.paused && agent.pending.is_some() {
            self.poll_failed(who);
        }
    }

    fn obey(&mut self, who: usize, orders: Orders<Arc<Detail>>, keys: Vec<AttemptKey>) -> Lawful {
        self.obey_wish(who, orders.crew);
        self.obey_undos(who, orders.undo);
        for (job, key) in orders.start.into_iter().zip(keys) {
            let agent = &self.agents[who];
            if agent.holds.contains_key(&key) || agent.gone.contains(&job.id) {
                self.count("start order repeated");
            } else if !agent.draining {
                self.laws
                    .an_agent_can_do_what_it_is_handed(&job, &agent.features)?;
                self.start(who, key, job.id, &job.detail)?;
            }
        }
        for id in orders.cancel {
            if let Some(key) = self.trial_with(who, &id) {
                if self.trial_stops(who, key, Stop::Canceled) {
                    self.count("experiment canceled");
                }
                continue;
            }
            let agent = &mut self.agents[who];
            let held = agent.holds.iter_mut().find(|(_, held)| held.id == id);
            if let Some((key, held)) = held.filter(|(_, held)| held.state == HoldState::Running) {
                held.state = HoldState::Ending;
                let (key, grace) = (*key, held.grace);
                let takes = self.rng.between(1, grace.max(1));
                self.count("command canceled");
                self.after(
                    takes,
                    Event::Alarm(who, Alarm::Ends(key, ExecutionState::Canceled)),
                );
            }
        }
        for id in orders.forget {
            let held = self.agents[who].holds.values().find(|held| held.id == id);
            let runs = held.is_some_and(|held| held.end.is_none());
            if let Some(key) = self.trial_with(who, &id) {
                if self.let_go(who, &id) {
                    self.count("experiment forgotten");
                    self.trial_stops(who, key, Stop::Forgotten);
                }
                continue;
            }
            if self.let_go(who, &id) {
                self.count("command forgotten");
                // A real agent still waits for its pipes; that does not matter here.
                self.agents[who].forgotten += usize::from(runs && self.rng.chance(200));
            }
        }
        Ok(())
    }

    /// The attempt with an undo that has this id and has not ended.
    fn trial_with(&self, who: usize, id: &AttemptId) -> Option<AttemptKey> {
        let key = self.experiments.ids.get(id).copied()?;
        let trials = &self.agents[who].experiments.trials;
        trials.contains_key(&key).then_some(key)
    }

    fn start(&mut self, who: usize, key: AttemptKey, id: AttemptId, detail: &Detail) -> Lawful {
        self.note(|| format!("agent {who} starts {id:?}"));
        self.count("command started");
        let remembered = if self.agents[who].original {
            ORIGINALS + who
        } else {
            who
        };
        if self.agents[who].twin {
            self.laws.nobody_knows_what_becomes_of(key);
        }
        let task = self.users.task(key.task);
        self.laws.started(key, remembered, task)?;
        let plan = Plan::of(detail);
        let cannot_start = self.rng.chance(30) && plan.is_none();
        let grace = detail.kill_grace.map_or(5_000, TimeSpan::as_millis);
        let held = Held {
            id,
            state: HoldState::Running,
            started_at: self.now,
            grace,
            cannot_start,
            end: None,
            written: [0; 2],
            acked: [0; 2],
        };
        self.agents[who].holds.insert(key, held);
        if let Some(plan) = plan {
            self.trial_begins(who, key, plan);
            return Ok(());
        }
        let runs = match self.rng.between(0, 9) {
            0..4 => self.rng.between(1, 1_000),
            4..7 => self.rng.between(1_000, 30_000),
            _ => self.rng.between(10_000, 200_000),
        };
        let well = self.rng.chance(650);
        let (ends, state) = match detail.timeout {
            _ if cannot_start => (0, ExecutionState::Failed),
            Some(Timeout::After(limit)) if runs >= limit.as_millis() => {
                let killed = self.rng.between(0, grace);
                (limit.as_millis() + killed, ExecutionState::TimedOut)
            }
            _ if well => (runs, ExecutionState::Succeeded),
            _ => (runs, ExecutionState::Failed),
        };
        self.after(ends, Event::Alarm(who, Alarm::Ends(key, state)));
        if self.rng.chance(500) {
            self.after(300, Event::Alarm(who, Alarm::Writes(key)));
        }
        Ok(())
    }

    fn command_writes(&mut self, who: usize, key: AttemptKey) {
        let bytes = self.bytes_written(who, 400);
        if !self.agents[who].experiments.may_write(key) {
            return;
        }
        let Some(held) = self.agents[who]
            .holds
            .get_mut(&key)
            .filter(|held| held.end.is_none())
        else {
            return;
        };
        held.write(bytes);
        if held.written.iter().all(|written| *written > KEPT_BYTES) {
            self.count("both streams are longer than what is kept");
        }
        if !self.agents[who].original {
            let instance = self.agents[who].instance.clone();
            let pieces = self.pieces(who, key);
            let output = Request::Output(Output { instance, pieces });
            self.send(who, Event::ToServer(who, output));
        }
        let longest = if self.setting.is_loud { 2_000 } else { 15_000 };
        let pause = self.rng.between(500, longest);
        self.after(pause, Event::Alarm(who, Alarm::Writes(key)));
    }

    /// How much a command writes to each stream now.
    fn bytes_written(&mut self, who: usize, most: u64) -> [u64; 2] {
        if self.agents[who].original {
            return [self.rng.between(0, most), 0];
        }
        let most = match self.setting.is_loud && self.rng.chance(700) {
            true => LOUD_BYTES,
            false => most,
        };
        [most, most / 2].map(|most| self.rng.between(0, most))
    }

    /// The output that the server has not confirmed, sometimes more of it, in one or two pieces of each stream.
    fn pieces(&mut self, who: usize, key: AttemptKey) -> Vec<Piece> {
        let again = self.rng.between(0, 10);
        let Some(held) = self.agents[who].holds.get(&key) else {
            return Vec::new();
        };
        let piece = |stream, from, to| Piece {
            id: held.id.clone(),
            stream,
            offset: from,
            data: text(key, stream, from, to),
        };
        let mut pieces = Vec::new();
        let mut dropped = false;
        for stream in STREAMS {
            let to = held.written[stream as usize];
            let from = held.acked[stream as usize].saturating_sub(again);
            if to == from {
                continue;
            }
            let (mut middle, mut rest) = (from + (to - from) / 2, from + (to - from) / 2);
            if to - from > SENT_AT_ONCE {
                dropped = true;
                (middle, rest) = (from + SENT_AT_ONCE / 2, to - SENT_AT_ONCE / 2);
            }
            pieces.push(piece(stream, from, middle));
            pieces.push(piece(stream, rest, to));
        }
        if dropped {
            self.count("agent dropped the middle of a stream");
        }
        pieces
    }

    fn command_ends(&mut self, who: usize, key: AttemptKey, state: ExecutionState) {
        let written = self.bytes_written(who, 300);
        let now = self.now;
        let Some(held) = self.agents[who].holds.get_mut(&key) else {
            return;
        };
        let canceled = held.state == HoldState::Ending && state != ExecutionState::Canceled;
        if held.end.is_some() || canceled {
            return;
        }
        held.state = HoldState::Ended;
        held.end = Some((state, now));
        if !held.cannot_start {
            held.write(written);
        }
        let end = RealEnd {
            state,
            written: held.written,
        };
        self.note(|| format!("agent {who}: {key:?} ends {state:?}"));
        self.laws.ended(key, end);
        if !self.agents[who].original {
            self.report(who);
        } else {
            self.report_of_original(who, key);
        }
    }

    /// Reports every result that the server has not taken, again and again.
    pub fn report(&mut self, who: usize) {
        let (now, agent) = (self.now, &self.agents[who]);
        if agent.reporting {
            return;
        }
        let ended: Vec<AttemptKey> = agent
            .holds
            .iter()
            .filter(|(_, held)| held.end.is_some())
            .map(|(key, _)| *key)
            .collect();
        // The end of an undo goes with the result of its attempt.
        let instant = self.instant();
        let is_held = |id: &AttemptId| agent.holds.values().any(|held| held.id == *id);
        let ledger = &agent.experiments.ledger;
        let mut undos = match ledger.is_empty() {
            true => Vec::new(),
            false => ledger.due(is_held, instant),
        };
        for key in &ended {
            undos.extend(ledger.end_of(&agent.holds[key].id, instant));
        }
        if ended.is_empty() && undos.is_empty() {
            return;
        }
        let told = undos.iter().map(|due| (due.report.id.clone(), due.change));
        let told: Told = told.collect();
        let asks = !agent.draining && !agent.drained && !ended.is_empty();
        let mut done = Done {
            undos: undos.into_iter().map(|due| due.report).collect(),
            probes: Vec::new(),
            instance: agent.instance.clone(),
            seq: asks.then_some(agent.latest_seq),
            pieces: Vec::new(),
            results: Vec::new(),
        };
        for key in ended {
            done.pieces.extend(self.pieces(who, key));
            done.results
                .extend(self.agents[who].holds[&key].result(now));
        }
        self.send(who, Event::ToServer(who, Request::Done(done, told)));
        let agent = &mut self.agents[who];
        let ceiling = 200 << agent.report_failures.min(5);
        agent.report_failures += 1;
        agent.reporting = true;
        let pause = self.rng.between(100, ceiling);
        self.after(pause, Event::Alarm(who, Alarm::Report));
    }

    /// The undo of an attempt has ended, or is not needed: both results are reported.
    pub fn result_of_trial(
        &mut self,
        who: usize,
        key: AttemptKey,
        state: ExecutionState,
        was_started: bool,
    ) {
        let now = self.now;
        if let Some(held) = self.agents[who].holds.get_mut(&key) {
            held.state = HoldState::Ended;
            held.end = Some((state, now));
            held.cannot_start = !was_started;
        }
        self.report(who);
    }

    /// The grace is over: commands that still run are killed, and reported as canceled by no user.
    fn end_all(&mut self, who: usize) {
        let running: Vec<AttemptKey> = self.agents[who]
            .holds
            .iter_mut()
            .filter_map(|(key, held)| {
                (held.state == HoldState::Running)
                    .then(|| held.state = HoldState::Ending)
                    .map(|()| *key)
            })
            .collect();
        for key in running {
            let takes = self.rng.between(1, END_PATIENCE - GRACE);
            self.after(
                takes,
                Event::Alarm(who, Alarm::Ends(key, ExecutionState::Canceled)),
            );
        }
    }

    fn say_goodbye(&mut self, who: usize) {
        self.count("goodbye said");
        self.note(|| format!("agent {who} says goodbye"));
        let agent = &self.agents[who];
        let goodbye = Goodbye {
            instance: agent.instance.clone(),
            holds: agent.list_holds(self.now),
        };
        self.send(who, Event::ToServer(who, Request::Goodbye(goodbye)));
        self.agents[who].alive = false;
        self.agent_is_gone(who);
    }
}

impl Agent {
    fn list_holds(&self, now: Ms) -> Vec<Hold> {
        let holds = self.holds.values().map(|held| Hold {
            id: held.id.clone(),
            state: held.state,
            started_ago_ms: now - held.started_at,
            phase: None,
        });
        holds.collect()
    }
}

impl Held {
    /// What it has written to each stream.
    pub fn written(&self) -> [u64; 2] {
        self.written
    }

    /// Its command was started.
    pub fn has_started(&mut self, now: Ms) {
        self.started_at = now;
    }

    /// Its command is being ended.
    pub fn is_ending(&mut self) {
        if self.state == HoldState::Running {
            self.state = HoldState::Ending;
        }
    }

    fn write(&mut self, bytes: [u64; 2]) {
        self.written[0] += bytes[0];
        self.written[1] += bytes[1];
    }

    fn result(&self, now: Ms) -> Option<Ended> {
        let (state, at) = self.end?;
        Some(Ended {
            id: self.id.clone(),
            state,
            exit_code: (state == ExecutionState::Succeeded).then_some(0),
            signal: None,
            msg: String::new(),
            ended_ago_ms: now - at,
            duration_ms: (!self.cannot_start).then_some(at - self.started_at),
            stdout_bytes: self.written[0],
            stderr_bytes: self.written[1],
            files: files::handed_back(at),
        })
    }
}

/// The original's agent.
impl World {
    fn ping(&mut self, who: usize) {
        self.after(10_000, Event::Alarm(who, Alarm::Ping));
        let (label, link) = self.call_of_original(who);
        self.send(who, Event::ToServer(who, Request::Ping(label, link)));
    }

    /// Its label and its connection: it keeps one as long as it lives.
    fn call_of_original(&mut self, who: usize) -> (String, Link) {
        let agent = &mut self.agents[who];
        agent.calls += 1;
        let link = Link {
            connection: who as u64,
            is_new: agent.calls == 1,
        };
        (agent.label.clone(), link)
    }

    /// The original's agent is killed, and another process takes its label: one of its own kind, or one of ours.
    pub fn replace_original(&mut self) {
        let alive = |agent: &Agent| agent.alive && agent.original;
        let Some(who) = self.agents.iter().position(alive) else {
            return;
        };
        self.kill(who);
        if self.rng.chance(600) {
            self.count("agent of the original started again");
            self.start_original();
        } else {
            self.count("agent of the original replaced by one of ours");
            self.start_agent("old-0");
        }
    }

    fn ponged(&mut self, who: usize, work: bool) {
        if work && self.agents[who].holds.is_empty() {
            let (label, link) = self.call_of_original(who);
            self.send(who, Event::ToServer(who, Request::Fetch(label, link)));
        }
    }

    fn fetched(
        &mut self,
        who: usize,
        orders: Orders<Arc<Detail>>,
        keys: Vec<AttemptKey>,
    ) -> Lawful {
        for (job, key) in orders.start.into_iter().zip(keys) {
            // It has one request at a time and knows no attempts.
            if self.agents[who].holds.is_empty() && self.agents[who].gone.insert(job.id.clone()) {
                self.laws
                    .an_original_can_do_what_it_is_handed(&job.detail)?;
                self.start(who, key, job.id, &job.detail)?;
            }
        }
        Ok(())
    }

    fn report_of_original(&mut self, who: usize, key: AttemptKey) {
        let (label, link) = self.call_of_original(who);
        let results = self.agents[who]
            .holds
            .remove(&key)
            .and_then(|held| held.result(self.now));
        let done = Done {
            undos: Vec::new(),
            probes: Vec::new(),
            instance: String::new(),
            seq: None,
            pieces: vec![Piece {
                id: results
                    .as_ref()
                    .map(|ended| ended.id.clone())
                    .unwrap_or(AttemptId {
                        execution: String::new(),
                        attempt: 0,
                    }),
                stream: Stream::Stdout,
                offset: 0,
                data: text(
                    key,
                    Stream::Stdout,
                    0,
                    results.as_ref().map_or(0, |ended| ended.stdout_bytes),
                ),
            }],
            results: results.into_iter().collect(),
        };
        self.send(
            who,
            Event::ToServer(who, Request::OriginalDone(label, link, done)),
        );
    }
}
