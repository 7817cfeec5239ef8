//! A server between its database and its rules.

use super::database::{Answer, Call, Database, What, Written};
use super::registry::{Registry, Sent};
use super::serving::Asked;
use super::{Broken, Event, Fault, Lawful, Ms, Scene};
use sidebike::core::{Origin, Saved, Time};
use sidebike::server::db::election::{Action, Elector, Role, TRUST};
use sidebike::server::db::{Committed, Holder, LeaderRecord, Term};
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

/// What the wall clocks show at the start: late enough that no computed time is before 1970.
const BEGINNING: Ms = 1_700_000_000_000;

/// A server. Its process may be stopped or killed; a new one knows nothing.
pub struct Node {
    pub is_up: bool,
    pub is_paused: bool,
    /// From the database.
    pub is_cut: bool,
    /// From agents.
    pub is_isolated: bool,
    /// It is or was frozen together with its clock, and has not found out since whether it still leads.
    pub was_frozen: bool,
    /// Since when it is frozen, and for how long it was so before.
    frozen_since: Option<Ms>,
    frozen: Ms,
    /// The number of its first call after that, at least.
    thawed: u64,
    pub holder: Holder,
    pub elector: Elector,
    /// The number of its last commit that was done.
    pub committed: u64,
    /// How many milliseconds its clock shows after a second.
    rate: u64,
    /// How far its wall clock is ahead, in milliseconds.
    pub ahead: Ms,
    /// While it leads.
    pub registry: Option<Registry>,
    /// What the commit on its way contains, if it is one that saves something.
    pub sent: Option<Sent>,
    /// When it is to be driven next, if it hears nothing before.
    pub wake: Option<Ms>,
    /// Its calls without an answer.
    calls: BTreeMap<u64, What>,
    /// Answers that came while it was paused, and what was asked of it meanwhile.
    unread: Vec<(u64, Answer)>,
    unserved: Vec<Asked>,
    /// The commit that a look is to settle, by the number of the look. For [`Broken::UnknownIsWrittenAgain`].
    settling: Option<(u64, What)>,
    /// When its last commit was answered. For [`Broken::TrustCountsFromTheSending`].
    answered: Option<Duration>,
    /// Until when it trusted itself when it resigned. For [`Broken::WhoResignsIsMute`].
    resigned: Option<Duration>,
    /// The record of its last look that succeeded. For [`Broken::FailedLooksDoNotCount`].
    last_look: Option<LeaderRecord>,
    /// What it read when it started. For [`Broken::LoadComesAfterTheTake`].
    read_early: Option<Box<Saved>>,
}

impl Node {
    /// One that has not started yet.
    pub fn down(rate: u64, ahead: Ms) -> Node {
        let holder = Holder(NonZeroU64::MIN);
        Node {
            is_up: false,
            is_paused: false,
            is_cut: false,
            is_isolated: false,
            was_frozen: false,
            frozen_since: None,
            frozen: 0,
            thawed: 0,
            holder,
            elector: Elector::new(holder, 0.0, Duration::ZERO),
            committed: 0,
            rate,
            ahead,
            registry: None,
            sent: None,
            calls: BTreeMap::new(),
            unread: Vec::new(),
            unserved: Vec::new(),
            settling: None,
            answered: None,
            resigned: None,
            last_look: None,
            read_early: None,
            wake: None,
        }
    }

    pub fn clock(&self, now: Ms) -> Duration {
        let until = self.frozen_since.unwrap_or(now);
        Duration::from_micros((until - self.frozen) * self.rate)
    }

    /// When its clock will have reached this, if it is not frozen.
    pub fn real_time(&self, clock: Duration) -> Ms {
        (clock.as_micros() as u64).div_ceil(self.rate) + self.frozen
    }

    /// Its wall clock.
    pub fn wall(&self, clock: Duration) -> Time {
        Time(BEGINNING + self.ahead + clock.as_millis() as Ms)
    }

    /// Tells its lives apart.
    pub fn life(&self) -> u64 {
        self.holder.0.get()
    }

    /// With what it began to lead, and its term.
    pub fn origin(&self) -> Option<(Origin, Term)> {
        let before = self.elector.taken_from()?;
        Some((before.origin(), self.elector.term()?))
    }

    pub fn is_waiting_for(&self, call: u64) -> bool {
        self.calls.contains_key(&call)
    }

    /// The answer of a call that gets none.
    pub fn failed_call(&self, call: u64) -> Option<Answer> {
        self.calls.get(&call).map(What::failed)
    }

    pub fn trusts_itself(&self, now: Ms, broken: Option<Broken>) -> bool {
        let clock = self.clock(now);
        let until = match (broken, self.elector.role()) {
            (Some(Broken::TrustCountsFromTheSending), Role::Leader) => {
                self.answered.map(|at| at + TRUST)
            }
            (Some(Broken::WhoResignsIsMute), Role::Resigned) => self.resigned,
            _ => self.elector.trusted_until(),
        };
        self.is_up && until.is_some_and(|until| clock < until)
    }

    /// Its process is gone.
    pub fn dies(&mut self) {
        self.is_up = false;
        self.calls.clear();
        self.registry = None;
        self.sent = None;
    }

    pub fn is_frozen(&mut self, since: Ms) {
        self.is_paused = true;
        self.frozen_since = Some(since);
        self.was_frozen = true;
    }

    /// It goes on. Returns what came meanwhile.
    pub fn goes_on(&mut self, now: Ms, call: u64) -> (Vec<(u64, Answer)>, Vec<Asked>) {
        self.is_paused = false;
        if let Some(since) = self.frozen_since.take() {
            self.frozen += now - since;
            self.thawed = call;
        }
        let unread = std::mem::take(&mut self.unread);
        (unread, std::mem::take(&mut self.unserved))
    }
}

impl Scene {
    /// A new process, which knows nothing.
    pub fn start(&mut self, at: usize) {
        let holder = Holder(NonZeroU64::new(self.number()).unwrap());
        let jitter = self.rng.between(0, 1_000) as f64 / 1_000.0;
        let read_early =
            { self.breaks(Broken::LoadComesAfterTheTake) }.then(|| Box::new(self.database.kept()));
        let now = self.now;
        let node = &mut self.nodes[at];
        *node = Node {
            is_up: true,
            is_cut: node.is_cut,
            is_isolated: node.is_isolated,
            frozen: node.frozen,
            holder,
            elector: Elector::new(holder, jitter, node.clock(now)),
            read_early,
            wake: Some(now),
            ..Node::down(node.rate, node.ahead)
        };
        self.note(|| format!("node {at} starts as {holder:?}"));
        self.after(0, Event::Wake(at));
    }

    /// The loop of a server: does what there is to do, then waits.
    pub fn drive(&mut self, at: usize) {
        loop {
            let now = self.now;
            let node = &mut self.nodes[at];
            if !node.is_up || node.is_paused {
                return;
            }
            let clock = node.clock(now);
            let registry = node.registry.as_ref();
            let due = registry.and_then(|registry| registry.commit_due());
            let has_changes = due.is_some_and(|due| due <= clock);
            let trusted_until = node.elector.trusted_until();
            let Some(action) = node.elector.act(clock, has_changes) else {
                if node.elector.role() == Role::Resigned && node.resigned.is_none() {
                    node.dies();
                    self.close_connections(at);
                    let pause = self.rng.between(100, 5_000);
                    self.after(pause, Event::End(Fault::Terminate(at)));
                    return;
                }
                let wake = node.elector.wakes_at(has_changes);
                // Only if no commit is on its way: afterwards it is driven anyway.
                let due = due.filter(|due| *due > clock && wake.is_some());
                let wake = wake.into_iter().chain(due).min();
                let wake = wake.map(|wake| node.real_time(wake).max(now + 1));
                if wake != node.wake
                    && let Some(wake) = wake
                {
                    node.wake = Some(wake);
                    self.after(wake - now, Event::Wake(at));
                }
                return;
            };
            match action {
                Action::Look => self.send(at, What::Look),
                Action::Take(seen) => {
                    if seen.holder == Some(node.holder) {
                        self.count("own take seen, answer lost");
                    }
                    self.send(at, What::Take(seen));
                }
                Action::Load => match node.read_early.take() {
                    Some(early) => self.loaded(at, Some(early)),
                    None => self.send(at, What::Load),
                },
                Action::Commit(number) => {
                    let mut written = Written::empty(node.wall(clock));
                    if node.elector.has_loaded()
                        && let Some(registry) = &mut node.registry
                    {
                        let sent = registry.next_commit();
                        written = Written {
                            now: registry.time(clock),
                            batch: sent.batch.clone(),
                        };
                        node.sent = Some(sent);
                    }
                    let mut number = number;
                    if self.broken == Some(Broken::LeaderHealsTheDatabase) {
                        number.after = 0;
                    }
                    self.send(at, What::Commit(number, Arc::new(written)));
                }
                Action::Resign(term) => {
                    if self.broken == Some(Broken::WhoResignsIsMute) {
                        node.resigned = trusted_until;
                    }
                    self.count("a leader resigned");
                    self.send(at, What::Resign(term));
                }
                Action::StartAnew => {
                    self.count("a leader was fenced");
                    self.start(at);
                    self.close_connections(at);
                }
            }
        }
    }

    /// A call leaves a node.
    fn send(&mut self, at: usize, what: What) {
        let id = self.number();
        let node = &mut self.nodes[at];
        node.calls.insert(id, what.clone());
        let (is_cut, holder) = (node.is_cut, node.holder);
        let call = Call { id, holder, what };
        self.note(|| format!("node {at}: {call:?}"));
        if is_cut || self.rng.chance(self.weather.loss) {
            return self.lose(at, id);
        }
        let mut latency = self.latency();
        if self.rng.chance(self.weather.late) {
            self.lose(at, id);
            latency = self.rng.between(1_000, 40_000);
        }
        self.after(latency, Event::Arrive(at, call));
    }

    /// A node reads an answer.
    pub fn read(&mut self, at: usize, id: u64, answer: Answer) -> Lawful {
        let now = self.now;
        let node = &mut self.nodes[at];
        if node.is_paused {
            node.unread.push((id, answer));
            return Ok(());
        }
        let Some(what) = node.calls.remove(&id) else {
            return Ok(());
        };
        let clock = node.clock(now);
        let mut note = None;
        match answer {
            Answer::Looked(result) => match node.settling.take() {
                Some((look, commit)) if look == id => {
                    let What::Commit(number, _) = commit else {
                        unreachable!("only commits are settled");
                    };
                    let is_there = result.is_ok_and(|record| {
                        (record.term, record.holder) == (number.term, Some(node.holder))
                            && record.beat >= number.n
                    });
                    let committed = match is_there {
                        true => Committed::Done,
                        false => Committed::Unknown("it is not there".into()),
                    };
                    self.committed(at, committed)?;
                }
                settling => {
                    node.settling = settling;
                    if node.elector.role() == Role::Leader {
                        note = Some("a leader looked because of a higher term");
                    }
                    let is_broken = self.broken == Some(Broken::FailedLooksDoNotCount);
                    match node.last_look.filter(|_| result.is_err() && is_broken) {
                        Some(last) => node.elector.looked(clock, &Ok(last)),
                        None => node.elector.looked(clock, &result),
                    }
                    node.last_look = result.ok().or(node.last_look);
                }
            },
            Answer::Took(result) => {
                if result == Ok(None) {
                    note = Some("a take was too late");
                }
                node.elector.took(clock, &result);
                node.answered = matches!(result, Ok(Some(_))).then_some(clock);
            }
            Answer::Loaded(loaded) => {
                if let Some(loaded) = loaded.as_deref()
                    && self.nodes[at].registry.is_none()
                {
                    self.laws.what_was_said_is_there(loaded)?;
                }
                self.loaded(at, loaded);
            }
            Answer::Committed(Committed::Unknown(_))
                if self.broken == Some(Broken::UnknownIsWrittenAgain) =>
            {
                node.settling = Some((self.last + 1, what));
                self.send(at, What::Look);
            }
            Answer::Committed(committed) => {
                if let (What::Commit(number, _), Committed::Done) = (&what, &committed) {
                    node.committed = number.n;
                }
                node.was_frozen &= committed != Committed::Done || id < node.thawed;
                self.committed(at, committed)?;
            }
            Answer::Resigned => {
                node.dies();
                self.close_connections(at);
            }
        }
        if let Some(note) = note {
            self.count(note);
        }
        self.drive(at);
        Ok(())
    }

    /// A load has ended. The first one begins the registry; a later one shows what a database has left that went back.
    fn loaded(&mut self, at: usize, loaded: Option<Box<Saved>>) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let clock = node.clock(now);
        node.elector.loaded(clock, loaded.is_some());
        let Some(loaded) = loaded.filter(|_| node.elector.has_loaded()) else {
            return;
        };
        match &mut node.registry {
            Some(registry) => {
                registry.heal(&loaded);
                self.count("a database was healed");
            }
            None => {
                let mut registry = Registry::restored(clock, node.wall(clock), *loaded);
                if let Some(rule) = self.broken.and_then(Broken::of_core) {
                    registry.core.break_rule_for_tests(rule);
                }
                node.registry = Some(registry);
                let life = node.life();
                self.after(0, Event::Tick(at, life));
            }
        }
    }

    fn committed(&mut self, at: usize, committed: Committed) -> Lawful {
        let now = self.now;
        let node = &mut self.nodes[at];
        let clock = node.clock(now);
        let sent = node.sent.take();
        if committed == Committed::Done {
            node.answered = Some(clock);
        }
        node.elector.committed(clock, &committed);
        self.note(|| format!("node {at}: {committed:?}"));
        match (sent, committed) {
            (Some(sent), Committed::Done) => {
                for reply in sent.replies {
                    self.reply(at, reply)?;
                }
                Ok(())
            }
            (Some(sent), Committed::Unknown(_) | Committed::WentBack(_)) => {
                if let Some(registry) = &mut self.nodes[at].registry {
                    registry.put_back(sent.batch);
                }
                for reply in sent.replies {
                    self.refuse(at, reply)?;
                }
                Ok(())
            }
            (None, _) | (_, Committed::Fenced) => Ok(()),
        }
    }

    /// Something is asked of a node; if it is paused, it lies in the buffers of its sockets.
    pub fn serve_later_or_now(&mut self, at: usize, asked: Asked) -> Lawful {
        if self.nodes[at].is_paused {
            self.nodes[at].unserved.push(asked);
            return Ok(());
        }
        self.serve(at, asked)
    }
}

impl Database {
    /// Whether a node has the lead.
    pub fn is_led_by(&self, node: &Node) -> bool {
        let record = self.written_record();
        record.holder == Some(node.holder) && node.elector.term() == Some(record.term)
    }
}
