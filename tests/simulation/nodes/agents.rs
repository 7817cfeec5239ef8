//! Model agents with a list of servers: the one that worked last, then the others in order. They do what the real agent
//! does on the wire.

use super::laws::{Attempt, RealEnd, attempt, text};
use super::serving::{Call, Request, Response, Told};
use super::{Broken, Event, Lawful, Ms, NODES, Scene};
use crate::messages::{done, poll};
use sidebike::agent::seen_term::SeenTerm;
use sidebike::wire::agent::{
    AttemptId, Ended, Feature, Hold, HoldState, Orders, Output, Piece, Poll, Stream,
};
use sidebike::wire::duration::{TimeSpan, Timeout};
use sidebike::wire::task::{Detail, ExecutionState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// How long a poll may be held: without and with running commands.
const WAITS: [Ms; 2] = [25_000, 20_000];
/// How long after that the agent abandons the poll.
const SLACK: Ms = 4_000;
/// How long it waits for the answer to another call.
const CALL_TIMEOUT: Ms = 10_000;
/// The pause after an answer that does not say of everything whether it is taken.
const UNJUDGED_PAUSE: Ms = 500;
/// Consecutive refusals after which an agent without work takes a new instance.
const MAX_CONFLICTS: u32 = 3;

/// The timers of an agent.
#[derive(Debug, Clone)]
pub enum Alarm {
    /// The connection of this call is broken, or it has waited for long enough.
    Failed(u64),
    Poll,
    Report,
    Writes(Attempt),
    Ends(Attempt, ExecutionState),
}

/// A call that is under way.
#[derive(Debug, Clone)]
enum Pending {
    Poll,
    /// With the ends of the pieces.
    Output(Vec<(Attempt, u64)>),
    /// With so many results.
    Done(usize),
}

/// An attempt that an agent holds.
#[derive(Debug)]
struct Held {
    id: AttemptId,
    state: HoldState,
    started_at: Ms,
    grace: Ms,
    end: Option<(ExecutionState, Ms)>,
    written: u64,
    acked: u64,
}

#[derive(Debug)]
pub struct Agent {
    pub label: &'static str,
    instance: String,
    jobs: u32,
    pub is_alive: bool,
    pub is_paused: bool,
    pub is_cut: bool,
    /// Whom it asks, and how many have failed in a row.
    at: usize,
    tried: u64,
    seen: SeenTerm,
    seq: u64,
    polls: bool,
    reports: bool,
    failures: u32,
    conflicts: u32,
    calls: BTreeMap<u64, (usize, Pending)>,
    holds: BTreeMap<Attempt, Held>,
    gone: BTreeSet<Attempt>,
    /// What came while it was paused.
    missed: Vec<Event>,
}

impl Agent {
    /// The calls to a node that are under way.
    pub fn calls_to(&self, node: usize) -> Vec<u64> {
        let calls = self.calls.iter().filter(|(_, (at, _))| *at == node);
        calls.map(|(id, _)| *id).collect()
    }

    pub fn is_busy(&self) -> bool {
        self.is_alive && !self.holds.is_empty()
    }

    /// What runs there.
    pub fn running(&self) -> impl Iterator<Item = &Attempt> {
        self.holds.keys().filter(|_| self.is_alive)
    }

    fn runs(&self) -> bool {
        self.is_alive && !self.is_paused
    }
}

impl Scene {
    pub fn start_agent(&mut self, label: &'static str) {
        let who = self.agents.len();
        self.note(|| format!("agent {who} starts as {label}"));
        let agent = Agent {
            label,
            instance: self.rng.id(),
            jobs: self.rng.pick(&[1, 2, 4]),
            is_alive: true,
            is_paused: false,
            is_cut: false,
            at: self.rng.between(0, NODES - 1) as usize,
            tried: 0,
            seen: SeenTerm::default(),
            seq: 0,
            polls: false,
            reports: false,
            failures: 0,
            conflicts: 0,
            calls: BTreeMap::new(),
            holds: BTreeMap::new(),
            gone: BTreeSet::new(),
            missed: Vec::new(),
        };
        self.agents.push(agent);
        self.after(1, Event::Alarm(who, Alarm::Poll));
    }

    pub fn kill_agent(&mut self, who: usize) {
        self.agents[who].is_alive = false;
        self.agents[who].calls.clear();
    }

    /// It continues with its old state; what arrived meanwhile is read now, in any order.
    pub fn resume_agent(&mut self, who: usize) {
        self.agents[who].is_paused = false;
        for event in std::mem::take(&mut self.agents[who].missed) {
            let late = self.rng.between(0, 5);
            self.after(late, event);
        }
    }

    pub fn hear_or_miss(&mut self, who: usize, response: Response) -> Lawful {
        if self.agents[who].runs() {
            return self.hear(who, response);
        }
        let event = Event::Response(who, Box::new(response));
        self.agents[who].missed.push(event);
        Ok(())
    }

    pub fn wake_or_miss(&mut self, who: usize, alarm: Alarm) -> Lawful {
        if !self.agents[who].runs() {
            self.agents[who].missed.push(Event::Alarm(who, alarm));
            return Ok(());
        }
        match alarm {
            Alarm::Failed(id) => {
                if let Some((at, call)) = self.agents[who].calls.remove(&id) {
                    self.call_failed(who, at, call);
                }
            }
            Alarm::Poll => self.poll(who),
            Alarm::Report => self.report(who),
            Alarm::Writes(key) => self.writes(who, key),
            Alarm::Ends(key, state) => self.ends(who, &key, state),
        }
        Ok(())
    }

    fn call(&mut self, who: usize, call: Call, pending: Pending, timeout: Ms) {
        let id = self.number();
        let agent = &mut self.agents[who];
        agent.calls.insert(id, (agent.at, pending));
        let request = Request {
            who,
            at: agent.at,
            id,
            seen: agent.seen.highest(),
            what: call,
        };
        self.after(timeout, Event::Alarm(who, Alarm::Failed(id)));
        self.send_request(request);
    }

    /// A call to a server has failed: the next one is for the next server. After a round without luck there is a pause.
    fn call_failed(&mut self, who: usize, at: usize, call: Pending) {
        let agent = &mut self.agents[who];
        if agent.at == at {
            agent.at = (at + 1) % NODES as usize;
            agent.tried += 1;
        }
        let mut pause = 1;
        if agent.tried >= NODES {
            agent.tried = 0;
            agent.failures += 1;
            let ceiling = 200 << agent.failures.min(5);
            pause = self.rng.between(10, ceiling);
        }
        match call {
            Pending::Poll => {
                self.agents[who].polls = false;
                self.after(pause, Event::Alarm(who, Alarm::Poll));
            }
            Pending::Output(_) => {}
            Pending::Done(_) => {
                self.agents[who].reports = false;
                self.after(pause, Event::Alarm(who, Alarm::Report));
            }
        }
    }

    fn poll(&mut self, who: usize) {
        let now = self.now;
        let agent = &mut self.agents[who];
        if std::mem::replace(&mut agent.polls, true) {
            return;
        }
        agent.seq += 1;
        let is_down = agent.failures > 0 || agent.tried > 0;
        let wait = match is_down {
            true => 0,
            false => WAITS[usize::from(!agent.holds.is_empty())],
        };
        let hold = |held: &Held| Hold {
            id: held.id.clone(),
            state: held.state,
            started_ago_ms: now - held.started_at,
            phase: None,
        };
        let poll = Poll {
            jobs: agent.jobs,
            wait: TimeSpan::from_millis(wait),
            holds: agent.holds.values().map(hold).collect(),
            features: Feature::ALL.map(|feature| feature.word().into()).into(),
            ..poll(&agent.instance, agent.seq, agent.label, &[])
        };
        self.call(who, Call::Poll(Box::new(poll)), Pending::Poll, wait + SLACK);
    }

    fn hear(&mut self, who: usize, response: Response) -> Lawful {
        // The answer to a call that was given up is not received.
        let Some((at, pending)) = self.agents[who].calls.remove(&response.id) else {
            return Ok(());
        };
        if matches!(response.what, Told::Busy) {
            self.call_failed(who, at, pending);
            return Ok(());
        }
        let keeps_term = !self.breaks(Broken::AgentsKeepTheTerm);
        let agent = &mut self.agents[who];
        if keeps_term && !agent.seen.accepts(response.position) {
            self.count("an answer of a lower term was ignored");
            self.call_failed(who, at, pending);
            return Ok(());
        }
        let is_of_the_leader = response.is_of_the_leader;
        match (response.what, pending) {
            (Told::Conflict, pending) => {
                agent.conflicts += 1;
                if agent.conflicts >= MAX_CONFLICTS && agent.holds.is_empty() {
                    agent.conflicts = 0;
                    agent.instance = self.rng.id();
                    self.count("an agent took a new instance");
                }
                self.call_failed(who, at, pending);
            }
            (Told::Orders(seq, orders), _) => {
                (agent.failures, agent.conflicts, agent.tried) = (0, 0, 0);
                agent.polls = false;
                if seq != agent.seq {
                    return Err(format!("an agent has one poll at a time: {seq}"));
                }
                self.obey(who, orders, is_of_the_leader)?;
                self.poll(who);
            }
            (Told::Kept(orders), Pending::Output(ends)) => {
                for (key, end) in ends {
                    if let Some(held) = agent.holds.get_mut(&key) {
                        held.acked = held.acked.max(end);
                    }
                }
                self.obey(who, orders, is_of_the_leader)?;
            }
            (Told::Taken(taken, latest), pending) => {
                agent.reports = false;
                if latest == Some(agent.seq) {
                    let orders = Orders {
                        start: taken.start,
                        ..Orders::none()
                    };
                    self.obey(who, orders, is_of_the_leader)?;
                }
                let judged = taken.results.len();
                for verdict in taken.results {
                    if !verdict.taken {
                        self.count("result not taken");
                    }
                    self.let_go(who, &verdict.id);
                }
                match pending {
                    // A server that does not answer for everything is asked again after a pause.
                    Pending::Done(reported) if judged < reported => {
                        self.count("a result waited for its machine");
                        self.after(UNJUDGED_PAUSE, Event::Alarm(who, Alarm::Report));
                    }
                    _ => self.report(who),
                }
            }
            (what, pending) => return Err(format!("{what:?} is no answer to {pending:?}")),
        }
        Ok(())
    }

    fn let_go(&mut self, who: usize, id: &AttemptId) {
        let key = attempt(id);
        self.agents[who].holds.remove(&key);
        self.agents[who].gone.insert(key);
    }

    fn obey(&mut self, who: usize, orders: Orders<Arc<Detail>>, is_of_the_leader: bool) -> Lawful {
        let only_the_leader_is_obeyed = |what: &str, key: &Attempt| match is_of_the_leader {
            true => Ok(()),
            false => Err(format!(
                "only_the_leader_is_obeyed: agent {who} {what} {key:?}"
            )),
        };
        for job in orders.start {
            let key = attempt(&job.id);
            let agent = &self.agents[who];
            if agent.holds.contains_key(&key) || agent.gone.contains(&key) {
                self.count("start order repeated");
                continue;
            }
            only_the_leader_is_obeyed("starts", &key)?;
            self.start_command(who, key, job.id, &job.detail)?;
        }
        for id in orders.cancel {
            let key = attempt(&id);
            let held = self.agents[who].holds.get_mut(&key);
            if let Some(held) = held.filter(|held| held.state == HoldState::Running) {
                only_the_leader_is_obeyed("kills", &key)?;
                held.state = HoldState::Ending;
                let grace = held.grace;
                let takes = self.rng.between(1, grace.max(1));
                self.count("command canceled");
                let ends = Alarm::Ends(key, ExecutionState::Canceled);
                self.after(takes, Event::Alarm(who, ends));
            }
        }
        for id in orders.forget {
            let key = attempt(&id);
            let is_held = self.agents[who].holds.contains_key(&key);
            if is_held && !self.laws.is_withdrawn(&key) {
                only_the_leader_is_obeyed("forgets", &key)?;
                return Err(format!(
                    "what_ran_is_reported: agent {who} is to forget {key:?}, and nobody deletes tasks"
                ));
            }
            self.let_go(who, &id);
        }
        Ok(())
    }

    fn start_command(
        &mut self,
        who: usize,
        key: Attempt,
        id: AttemptId,
        detail: &Detail,
    ) -> Lawful {
        self.note(|| format!("agent {who} starts {key:?}"));
        self.count("command started");
        if self.laws.started(&key, who)? {
            self.count("what had left no trace started again");
        }
        let grace = detail.kill_grace.map_or(0, TimeSpan::as_millis);
        let held = Held {
            id,
            state: HoldState::Running,
            started_at: self.now,
            grace,
            end: None,
            written: 0,
            acked: 0,
        };
        self.agents[who].holds.insert(key.clone(), held);
        let runs = match self.rng.between(0, 9) {
            _ if self.runs_long => self.rng.between(15_000, 80_000),
            0..4 => self.rng.between(1, 1_000),
            4..8 => self.rng.between(1_000, 20_000),
            _ => self.rng.between(10_000, 60_000),
        };
        let is_well = self.rng.chance(650);
        let (ends, state) = match detail.timeout {
            Some(Timeout::After(limit)) if runs >= limit.as_millis() => {
                (limit.as_millis(), ExecutionState::TimedOut)
            }
            _ if is_well => (runs, ExecutionState::Succeeded),
            _ => (runs, ExecutionState::Failed),
        };
        self.after(ends, Event::Alarm(who, Alarm::Ends(key.clone(), state)));
        if self.rng.chance(500) {
            self.after(300, Event::Alarm(who, Alarm::Writes(key)));
        }
        Ok(())
    }

    fn writes(&mut self, who: usize, key: Attempt) {
        let bytes = self.rng.between(0, 200);
        let Some(held) = self.agents[who].holds.get_mut(&key) else {
            return;
        };
        if held.end.is_some() {
            return;
        }
        held.written += bytes;
        let ends = vec![(key.clone(), held.written)];
        let pieces = piece(&key, held).into_iter().collect();
        let instance = self.agents[who].instance.clone();
        let output = Call::Output(Output { instance, pieces });
        self.call(who, output, Pending::Output(ends), CALL_TIMEOUT);
        let pause = self.rng.between(500, 10_000);
        self.after(pause, Event::Alarm(who, Alarm::Writes(key)));
    }

    fn ends(&mut self, who: usize, key: &Attempt, state: ExecutionState) {
        let (now, bytes) = (self.now, self.rng.between(0, 100));
        let Some(held) = self.agents[who].holds.get_mut(key) else {
            return;
        };
        let is_canceled = held.state == HoldState::Ending && state != ExecutionState::Canceled;
        if held.end.is_some() || is_canceled {
            return;
        }
        held.state = HoldState::Ended;
        held.end = Some((state, now));
        held.written += bytes;
        let written = held.written;
        self.note(|| format!("agent {who}: {key:?} ends {state:?}"));
        self.laws.ended(key, RealEnd { state, written });
        self.report(who);
    }

    /// Reports every result that the server has not taken, again and again.
    fn report(&mut self, who: usize) {
        let now = self.now;
        let agent = &mut self.agents[who];
        let ended = { agent.holds.iter() }.filter_map(|(key, held)| {
            let (state, at) = held.end?;
            let ended = Ended {
                id: held.id.clone(),
                state,
                exit_code: (state == ExecutionState::Succeeded).then_some(0),
                signal: None,
                msg: String::new(),
                ended_ago_ms: now - at,
                duration_ms: Some(at - held.started_at),
                stdout_bytes: held.written,
                stderr_bytes: 0,
                files: Vec::new(),
            };
            Some((ended, piece(key, held)))
        });
        let (results, pieces): (Vec<Ended>, Vec<Option<Piece>>) = ended.unzip();
        if results.is_empty() || std::mem::replace(&mut agent.reports, true) {
            return;
        }
        let count = results.len();
        let mut done = done(&agent.instance, results);
        done.pieces = pieces.into_iter().flatten().collect();
        done.seq = Some(agent.seq);
        self.call(who, Call::Done(done), Pending::Done(count), CALL_TIMEOUT);
    }
}

/// The output that the server has not confirmed.
fn piece(key: &Attempt, held: &Held) -> Option<Piece> {
    (held.written > held.acked).then(|| Piece {
        id: held.id.clone(),
        stream: Stream::Stdout,
        offset: held.acked,
        data: text(key, held.acked, held.written),
    })
}
