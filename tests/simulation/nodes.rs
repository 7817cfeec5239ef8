//! Several servers over one database: who leads. Each drives the rules of the crate (`server::db::election`) with a
//! clock of its own, over the database of `database.rs`. What servers save are numbers; tasks and agents have no part.
//!
//! A seed is a few phases of faults, each followed by a calm. The laws:
//!
//! | law | |
//! | --- | --- |
//! | terms_only_rise, no_commit_of_an_old_term | checked where the database writes |
//! | two_never_trust_themselves | at any real time, those that are stopped included |
//! | what_was_said_is_there | what was acknowledged or read is loaded by each new leader, and there in the end |
//! | reads_never_go_back | a trusted leader has everything that anybody has acknowledged or read before |
//! | somebody_leads | within 12 s of calm, on the slowest clock |
//! | a_clean_end_takes_2_s | if the leader alone gets TERM, on the slowest clock |
//! | an_outage_is_no_failover | if the database alone is away, waits for its standby or fails over; other servers may be stopped meanwhile |
//!
//! `SEED=7 cargo test --test simulation nodes` runs one seed and prints what happened in it. Each [`Broken`] rule is
//! found. One may be broken alone: `RULE=TrustCountsFromTheSending`. The following were broken by hand, and each was
//! found within 50 seeds:
//!
//! | broken | found by |
//! | --- | --- |
//! | `TRUST` is 9 s | two_never_trust_themselves |
//! | `MOST_COUNTED` is 2,000 s; a take compares term and holder, not the beat | an_outage_is_no_failover |
//! | a dead connection is noticed after 8 to 10 s | an_outage_is_no_failover |
//! | a commit after an unknown one has the same number | what_was_said_is_there |

use crate::database::{Answer, Call, Database, LOCK_TIMEOUT, What};
use crate::rng::Rng;
use crate::{caught, number, seeds};
use sidebike::server::db::election::{Action, Elector, Role, TRUST};
use sidebike::server::db::{Committed, Holder, LeaderRecord};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::time::Duration;

/// Milliseconds of real time.
pub type Ms = u64;
type Lawful = Result<(), String>;

const SEEDS: u64 = 200;
const BROKEN_SEEDS: u64 = 2_000;
const NODES: u64 = 3;
const PHASES: u64 = 5;
/// When a server notices that a connection is dead. More would make an outage a failover: 2 s since the last sign of
/// life, these, and the pause of 1 s must be less than 10 s on a standby's fastest clock.
const DEAD_CONNECTION: (Ms, Ms) = (2_000, 4_500);
/// What is under way when the calm begins arrives within this time, or never.
const SETTLED: Ms = 1_000;
/// 12 s on the slowest clock.
const LEADS_WITHIN: Ms = 12_000 * 10 / 9;
/// 2 s on the slowest clock.
const HANDED_OVER_WITHIN: Ms = 2_000 * 10 / 9;
/// So many seeds reach every scenario.
const ENOUGH_SEEDS: u64 = 200;
const SCENARIOS: [&str; 21] = [
    "a call arrived that was given up",
    "a leader resigned",
    "a leader was fenced",
    "a leader was mute",
    "a number was read",
    "a number was saved",
    "a paused leader was replaced",
    "a seen write was lost",
    "a take was too late",
    "a wait for the standby was canceled",
    "an outage > 60 s",
    "answer late > 7 s",
    "clean end alone",
    "cut off",
    "killed",
    "leader told to end",
    "outage alone",
    "own take seen, answer lost",
    "paused > 10 s",
    "standby of the database stalled",
    "standby stopped during an outage",
];

/// The rules that can be broken: of the servers, as the scene drives them, and of the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// A commit changes something only if its term leads.
    CommitsAreFenced,
    /// An empty commit is fenced like any other.
    RenewalNamesItsHolder,
    /// Trust counts from before a commit was sent, not from its answer.
    TrustCountsFromTheSending,
    /// A look that fails says nothing, not that nothing has moved.
    FailedLooksDoNotCount,
    /// What a server leads with was read after its take.
    LoadComesAfterTheTake,
    /// A commit whose fate is unknown is written again, not looked for.
    UnknownIsWrittenAgain,
    /// A leader does not answer any more once it resigns.
    WhoResignsIsMute,
    /// What is acknowledged is on the standby.
    StandbyIsSynchronous,
}

impl Broken {
    const ALL: [Broken; 8] = [
        Broken::CommitsAreFenced,
        Broken::RenewalNamesItsHolder,
        Broken::TrustCountsFromTheSending,
        Broken::FailedLooksDoNotCount,
        Broken::LoadComesAfterTheTake,
        Broken::UnknownIsWrittenAgain,
        Broken::WhoResignsIsMute,
        Broken::StandbyIsSynchronous,
    ];
}

/// A server. Its process may be stopped or killed; a new one knows nothing.
struct Node {
    is_up: bool,
    is_paused: bool,
    is_cut: bool,
    holder: Holder,
    elector: Elector,
    /// How many milliseconds its clock shows after a second.
    rate: u64,
    /// What it answers from: loaded, or saved by itself.
    saved: BTreeSet<u64>,
    /// What it has not sent yet, and what is in the commit on its way.
    changes: BTreeSet<u64>,
    sent: BTreeSet<u64>,
    /// When it is to be driven next, if it hears nothing before.
    wake: Option<Ms>,
    /// Its calls without an answer.
    calls: BTreeMap<u64, What>,
    /// Answers that came while it was paused.
    unread: Vec<(u64, Answer)>,
    /// The commit that a look is to settle, by the number of the look. For [`Broken::UnknownIsWrittenAgain`].
    settling: Option<(u64, What)>,
    /// When its last commit was answered. For [`Broken::TrustCountsFromTheSending`].
    answered: Option<Duration>,
    /// Until when it trusted itself when it resigned. For [`Broken::WhoResignsIsMute`].
    resigned: Option<Duration>,
    /// The record of its last look that succeeded. For [`Broken::FailedLooksDoNotCount`].
    last_look: Option<LeaderRecord>,
    /// What it read when it started. For [`Broken::LoadComesAfterTheTake`].
    read_early: BTreeSet<u64>,
}

impl Node {
    /// One that has not started yet.
    fn down(rate: u64) -> Node {
        let holder = Holder(NonZeroU64::MIN);
        Node {
            is_up: false,
            is_paused: false,
            is_cut: false,
            holder,
            elector: Elector::new(holder, 0.0, Duration::ZERO),
            rate,
            saved: BTreeSet::new(),
            changes: BTreeSet::new(),
            sent: BTreeSet::new(),
            calls: BTreeMap::new(),
            unread: Vec::new(),
            settling: None,
            answered: None,
            resigned: None,
            last_look: None,
            read_early: BTreeSet::new(),
            wake: None,
        }
    }

    fn clock(&self, now: Ms) -> Duration {
        Duration::from_micros(now * self.rate)
    }

    /// When its clock will have reached this.
    fn real_time(&self, clock: Duration) -> Ms {
        (clock.as_micros() as u64).div_ceil(self.rate)
    }

    fn trusts_itself(&self, now: Ms, broken: Option<Broken>) -> bool {
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
}

#[derive(Debug)]
enum Event {
    /// A node has something to do.
    Wake(usize),
    /// A call reaches the database, an answer its node.
    Arrive(usize, Call),
    Answer(usize, u64, Answer),
    /// A node gives a call up: its connection is dead.
    GiveUp(usize, u64),
    /// A take has waited for the row.
    EndOfLockWait(u64),
    /// The standby of the database gets what there is.
    Replicate,
    /// A user asks somebody.
    User,
    Begin(Fault),
    End(Fault),
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill(usize),
    Pause(usize),
    Cut(usize),
    /// It gets TERM.
    Terminate(usize),
    /// The database does not answer.
    Away,
    /// Its standby does not follow.
    Stall,
    /// The waits for it are canceled.
    CancelWaits,
    /// The primary crashes, and is away until it has started.
    Crash,
    /// The same, and the standby takes its place.
    FailOver,
}

/// What the network does, per mille.
#[derive(Default)]
struct Weather {
    loss: u64,
    /// Calls that arrive after they were given up.
    late: u64,
    slow: u64,
}

struct Scene {
    rng: Rng,
    now: Ms,
    broken: Option<Broken>,
    database: Database,
    nodes: Vec<Node>,
    queue: BTreeMap<(Ms, u64), Event>,
    /// Numbers events, calls and holders.
    last: u64,
    weather: Weather,
    /// The last number a user brought.
    last_number: u64,
    /// The numbers that were acknowledged or read.
    said: BTreeSet<u64>,
    replicates: bool,
    tally: BTreeMap<&'static str, u64>,
    log: Option<Vec<String>>,
}

impl Scene {
    fn new(seed: u64, broken: Option<Broken>) -> Scene {
        let mut rng = Rng::new(seed);
        let nodes = (0..NODES).map(|_| {
            let between = rng.between(900, 1_100);
            Node::down(rng.pick(&[900, 1_000, 1_100, between]))
        });
        let nodes = nodes.collect();
        Scene {
            rng,
            now: 0,
            broken,
            database: Database::new(broken),
            nodes,
            queue: BTreeMap::new(),
            last: 0,
            weather: Weather::default(),
            last_number: 0,
            said: BTreeSet::new(),
            replicates: false,
            tally: BTreeMap::new(),
            log: None,
        }
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(format!("{:>7} {}", self.now, what()));
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn after(&mut self, pause: Ms, event: Event) {
        let key = (self.now + pause, self.number());
        self.queue.insert(key, event);
    }

    fn latency(&mut self) -> Ms {
        match self.rng.chance(self.weather.slow) {
            true => self.rng.between(100, 20_000),
            false => self.rng.between(1, 20),
        }
    }

    fn trusted(&self) -> Vec<usize> {
        let nodes = self.nodes.iter().enumerate();
        let trusted = nodes.filter(|(_, node)| node.trusts_itself(self.now, self.broken));
        trusted.map(|(at, _)| at).collect()
    }

    /// A new process, which knows nothing.
    fn start(&mut self, at: usize) {
        let holder = Holder(NonZeroU64::new(self.number()).unwrap());
        let jitter = self.rng.between(0, 1_000) as f64 / 1_000.0;
        let read_early = match self.broken {
            Some(Broken::LoadComesAfterTheTake) => self.database.kept(),
            _ => BTreeSet::new(),
        };
        let now = self.now;
        let node = &mut self.nodes[at];
        *node = Node {
            is_up: true,
            is_cut: node.is_cut,
            holder,
            elector: Elector::new(holder, jitter, node.clock(now)),
            read_early,
            wake: Some(now),
            ..Node::down(node.rate)
        };
        self.note(|| format!("node {at} starts as {holder:?}"));
        self.after(0, Event::Wake(at));
    }

    /// The loop of a server: does what there is to do, then waits.
    fn drive(&mut self, at: usize) {
        loop {
            let now = self.now;
            let node = &mut self.nodes[at];
            if !node.is_up || node.is_paused {
                return;
            }
            let clock = node.clock(now);
            let has_changes = !node.changes.is_empty();
            let trusted_until = node.elector.trusted_until();
            let Some(action) = node.elector.act(clock, has_changes) else {
                if node.elector.role() == Role::Resigned && node.resigned.is_none() {
                    node.is_up = false;
                    let pause = self.rng.between(100, 5_000);
                    self.after(pause, Event::End(Fault::Terminate(at)));
                    return;
                }
                let wake = node.elector.wakes_at(has_changes);
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
                Action::Load if self.broken == Some(Broken::LoadComesAfterTheTake) => {
                    node.saved = node.read_early.clone();
                    node.elector.loaded(clock, true);
                }
                Action::Load => self.send(at, What::Load),
                Action::Commit(number) => {
                    node.sent = std::mem::take(&mut node.changes);
                    let what = What::Commit(number, node.sent.clone());
                    self.send(at, what);
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

    /// A node will hear nothing of this call.
    fn lose(&mut self, at: usize, id: u64) {
        let (least, most) = DEAD_CONNECTION;
        let pause = self.rng.between(least, most);
        self.after(pause, Event::GiveUp(at, id));
    }

    fn arrive(&mut self, at: usize, call: Call) -> Lawful {
        let id = call.id;
        if !self.nodes[at].calls.contains_key(&id) && self.nodes[at].is_up {
            self.count("a call arrived that was given up");
        }
        if self.database.is_away {
            match self.rng.chance(500) {
                true => self.after(1, Event::Answer(at, id, call.what.failed())),
                false => self.lose(at, id),
            }
            return Ok(());
        }
        if matches!(call.what, What::Take(_)) {
            self.after(LOCK_TIMEOUT, Event::EndOfLockWait(id));
        }
        self.database.arrive(call)
    }

    /// Sends what the database answers, and lets its standby follow.
    fn after_the_database(&mut self) {
        for (id, answer) in std::mem::take(&mut self.database.answers) {
            let Some(at) = { self.nodes.iter() }.position(|node| node.calls.contains_key(&id))
            else {
                continue;
            };
            if self.nodes[at].is_cut || self.rng.chance(self.weather.loss) {
                self.lose(at, id);
                continue;
            }
            let latency = self.latency();
            if latency > 7_000 {
                self.count("answer late > 7 s");
            }
            self.after(latency, Event::Answer(at, id, answer));
        }
        let may = !self.database.is_stalled && !self.database.is_away;
        if may && self.database.is_behind() && !self.replicates {
            self.replicates = true;
            let pause = self.rng.between(1, 5);
            self.after(pause, Event::Replicate);
        }
    }

    /// A node reads an answer.
    fn read(&mut self, at: usize, id: u64, answer: Answer) -> Lawful {
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
                    self.committed(at, committed);
                }
                settling => {
                    node.settling = settling;
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
                let is_complete = loaded.is_some();
                if let Some(loaded) = loaded {
                    if let Some(lost) = self.said.difference(&loaded).next() {
                        return Err(format!("what_was_said_is_there: {lost} is not loaded"));
                    }
                    node.saved = loaded;
                }
                node.elector.loaded(clock, is_complete);
            }
            Answer::Committed(Committed::Unknown(_))
                if self.broken == Some(Broken::UnknownIsWrittenAgain) =>
            {
                node.settling = Some((self.last + 1, what));
                self.send(at, What::Look);
            }
            Answer::Committed(committed) => self.committed(at, committed),
            Answer::Resigned => node.is_up = false,
        }
        if let Some(note) = note {
            self.count(note);
        }
        self.drive(at);
        Ok(())
    }

    fn committed(&mut self, at: usize, committed: Committed) {
        let now = self.now;
        let node = &mut self.nodes[at];
        let clock = node.clock(now);
        let sent = std::mem::take(&mut node.sent);
        if committed == Committed::Done {
            node.answered = Some(clock);
            node.saved.extend(&sent);
            self.said.extend(&sent);
            let saved = sent.len() as u64;
            *self.tally.entry("a number was saved").or_default() += saved;
        } else {
            node.changes.extend(sent);
        }
        self.nodes[at].elector.committed(clock, &committed);
        self.note(|| format!("node {at}: {committed:?}"));
    }

    /// A user asks a node to save or to show something.
    fn user(&mut self) -> Lawful {
        let pause = self.rng.between(200, 2_000);
        self.after(pause, Event::User);
        let at = self.rng.between(0, NODES - 1) as usize;
        let node = &self.nodes[at];
        if !node.is_up || node.is_paused {
            return Ok(());
        }
        if !node.trusts_itself(self.now, self.broken) {
            if node.elector.role() == Role::Leader {
                self.count("a leader was mute");
            }
            return Ok(());
        }
        if self.rng.chance(500) {
            self.last_number += 1;
            self.nodes[at].changes.insert(self.last_number);
            self.drive(at);
            return Ok(());
        }
        if let Some(lost) = self.said.difference(&node.saved).next() {
            return Err(format!(
                "reads_never_go_back: node {at} does not know {lost}"
            ));
        }
        let read = node.saved.clone();
        self.said.extend(read);
        self.count("a number was read");
        Ok(())
    }

    fn begin(&mut self, fault: Fault) -> Lawful {
        self.note(|| format!("begins: {fault:?}"));
        match fault {
            Fault::Kill(at) => {
                self.nodes[at].is_up = false;
                self.nodes[at].calls.clear();
                self.count("killed");
            }
            Fault::Pause(at) => self.nodes[at].is_paused = true,
            Fault::Cut(at) => {
                self.nodes[at].is_cut = true;
                self.count("cut off");
            }
            Fault::Terminate(at) => {
                if self.nodes[at].elector.role() == Role::Leader {
                    self.count("leader told to end");
                }
                self.nodes[at].elector.resign();
                self.drive(at);
            }
            Fault::Away => self.database.is_away = true,
            Fault::Stall => {
                self.database.is_stalled = true;
                self.count("standby of the database stalled");
            }
            Fault::CancelWaits => {
                self.count("a wait for the standby was canceled");
                self.database.cancel_waits()?;
            }
            Fault::Crash => {
                self.database.is_away = true;
                self.database.crash();
            }
            Fault::FailOver => {
                self.database.is_away = true;
                if self.database.fail_over(&mut self.rng) {
                    self.count("a seen write was lost");
                }
            }
        }
        Ok(())
    }

    fn end(&mut self, fault: Fault) -> Lawful {
        self.note(|| format!("ends: {fault:?}"));
        match fault {
            Fault::Kill(at) | Fault::Terminate(at) => {
                if !self.nodes[at].is_up {
                    self.start(at);
                }
            }
            Fault::Pause(at) => {
                let node = &mut self.nodes[at];
                node.is_paused = false;
                let was_leader = node.elector.role() == Role::Leader;
                if was_leader && node.elector.term() != Some(self.database.record().term) {
                    self.count("a paused leader was replaced");
                }
                for (id, answer) in std::mem::take(&mut self.nodes[at].unread) {
                    self.read(at, id, answer)?;
                }
                self.drive(at);
            }
            Fault::Cut(at) => self.nodes[at].is_cut = false,
            Fault::Stall => self.database.is_stalled = false,
            Fault::Away | Fault::Crash | Fault::FailOver => self.database.is_away = false,
            Fault::CancelWaits => {}
        }
        Ok(())
    }

    /// Lets everything happen until then.
    fn run_until(&mut self, end: Ms) -> Lawful {
        while let Some(entry) = self.queue.first_entry()
            && entry.key().0 <= end
        {
            let ((now, _), event) = entry.remove_entry();
            self.now = now;
            match event {
                Event::Wake(at) if self.nodes[at].wake == Some(now) => {
                    self.nodes[at].wake = None;
                    self.drive(at);
                }
                Event::Wake(_) => {}
                Event::Arrive(at, call) => self.arrive(at, call)?,
                Event::Answer(at, id, answer) => self.read(at, id, answer)?,
                Event::GiveUp(at, id) => {
                    if let Some(what) = self.nodes[at].calls.get(&id) {
                        let failed = what.failed();
                        self.read(at, id, failed)?;
                    }
                }
                Event::EndOfLockWait(id) => self.database.end_of_lock_wait(id),
                Event::Replicate => {
                    self.replicates = false;
                    if !self.database.is_stalled && !self.database.is_away {
                        self.database.replicate()?;
                    }
                }
                Event::User => self.user()?,
                Event::Begin(fault) => self.begin(fault)?,
                Event::End(fault) => self.end(fault)?,
            }
            self.after_the_database();
            let trusted = self.trusted();
            if trusted.len() > 1 {
                return Err(format!("two_never_trust_themselves: {trusted:?}"));
            }
        }
        self.now = end;
        Ok(())
    }

    /// A random fault, and how long it lasts.
    fn fault(&mut self) -> (Fault, Ms) {
        let leader = self.trusted().first().copied();
        let any = self.rng.between(0, NODES - 1) as usize;
        let at = match self.rng.chance(700) {
            true => leader.unwrap_or(any),
            false => any,
        };
        match self.rng.between(0, 8) {
            0 => (Fault::Kill(at), self.rng.between(1, 30_000)),
            1 => {
                let lasts = self.rng.between(1_000, 30_000);
                if lasts > 10_000 {
                    self.count("paused > 10 s");
                }
                (Fault::Pause(at), lasts)
            }
            2 => (Fault::Cut(at), self.rng.between(1_000, 40_000)),
            3 => (Fault::Terminate(at), self.rng.between(100, 5_000)),
            4 => (Fault::CancelWaits, 1),
            5 => (Fault::Crash, self.rng.between(100, 5_000)),
            _ => self.outage(),
        }
    }

    /// A fault of the database that is no reason for a failover.
    fn outage(&mut self) -> (Fault, Ms) {
        let lasts = match self.rng.chance(150) {
            true => self.rng.between(40_000, 200_000),
            false => self.rng.between(100, 40_000),
        };
        if lasts > 60_000 {
            self.count("an outage > 60 s");
        }
        match self.rng.between(0, 2) {
            0 => (Fault::Away, lasts),
            1 => (Fault::Stall, lasts.min(60_000)),
            _ => (Fault::FailOver, lasts),
        }
    }

    /// A write waits for the standby of the database, is seen, and may then be gone. Returns when it is over.
    fn lose_what_was_seen(&mut self) -> Ms {
        let stalls = self.rng.between(0, 10_000);
        let shows = stalls + self.rng.between(500, 5_000);
        let fails = shows + self.rng.between(100, 8_000);
        let ends = fails + self.rng.between(100, 20_000);
        let (shown, until) = match self.rng.chance(500) {
            true => (Fault::CancelWaits, shows),
            false => (Fault::Crash, shows + self.rng.between(50, 1_000)),
        };
        for (fault, begin, end) in [
            (Fault::Stall, stalls, ends),
            (shown, shows, until),
            (Fault::FailOver, fails, ends),
        ] {
            self.after(begin, Event::Begin(fault));
            self.after(end, Event::End(fault));
        }
        self.now + ends
    }

    /// Some faults at once, until the last is over.
    fn phase(&mut self) -> Lawful {
        self.weather = Weather {
            loss: self.rng.pick(&[0, 0, 50, 200]),
            late: self.rng.pick(&[0, 0, 50]),
            slow: self.rng.pick(&[0, 0, 20, 100]),
        };
        let mut end = self.now;
        for _ in 0..self.rng.between(1, 4) {
            let begin = self.rng.between(0, 15_000);
            let (fault, lasts) = self.fault();
            self.after(begin, Event::Begin(fault));
            self.after(begin + lasts, Event::End(fault));
            end = end.max(self.now + begin + lasts);
        }
        if self.rng.chance(300) {
            end = end.max(self.lose_what_was_seen());
        }
        let rest = self.rng.between(0, 5_000);
        self.run_until(end + rest)
    }

    /// Everybody is up and reaches the database: soon somebody leads.
    fn calm(&mut self) -> Lawful {
        self.note(|| "calm".into());
        self.weather = Weather::default();
        let settled = self.now + SETTLED;
        for (key, event) in std::mem::take(&mut self.queue) {
            match event {
                Event::Arrive(at, Call { id, .. }) | Event::Answer(at, id, _)
                    if key.0 > settled =>
                {
                    self.after(0, Event::GiveUp(at, id));
                }
                Event::GiveUp(at, id) => self.after(0, Event::GiveUp(at, id)),
                event => drop(self.queue.insert(key, event)),
            }
        }
        for at in 0..self.nodes.len() {
            if !self.nodes[at].is_up {
                self.start(at);
            }
        }
        self.run_until(settled + LEADS_WITHIN)?;
        if self.trusted().is_empty() {
            let roles: Vec<_> = self.nodes.iter().map(|node| node.elector.role()).collect();
            return Err(format!("somebody_leads: {roles:?}"));
        }
        Ok(())
    }

    /// The leader gets TERM, and nothing else happens. It begins in the calm.
    fn clean_end_alone(&mut self) -> Lawful {
        let Some(leader) = self.trusted().first().copied() else {
            return Ok(());
        };
        self.count("clean end alone");
        let before = self.database.record();
        self.begin(Fault::Terminate(leader))?;
        self.run_until(self.now + HANDED_OVER_WITHIN)?;
        let after = self.database.record();
        if after.term == before.term || self.trusted().is_empty() {
            return Err(format!("a_clean_end_takes_2_s: {before:?}, {after:?}"));
        }
        Ok(())
    }

    /// Something is wrong with the database, and with nothing else but a standby. It begins in the calm.
    fn outage_alone(&mut self) -> Lawful {
        let before = self.database.record();
        let (fault, lasts) = self.outage();
        self.count("outage alone");
        let other = (0..self.nodes.len()).find(|at| !self.trusted().contains(at));
        if let Some(at) = other
            && self.rng.chance(300)
        {
            self.count("standby stopped during an outage");
            self.begin(Fault::Pause(at))?;
            let wakes = lasts + self.rng.between(0, 2_000);
            self.after(wakes, Event::End(Fault::Pause(at)));
            self.run_until(self.now + 500)?;
        }
        self.begin(fault)?;
        self.after_the_database();
        self.run_until(self.now + lasts)?;
        self.end(fault)?;
        self.after_the_database();
        self.run_until(self.now + SETTLED + LEADS_WITHIN)?;
        let after = self.database.record();
        if !after.is_same_leader(&before) || self.trusted().is_empty() {
            return Err(format!(
                "an_outage_is_no_failover: {fault:?} of {lasts} ms, {before:?}, {after:?}"
            ));
        }
        Ok(())
    }

    fn run(&mut self) -> Lawful {
        self.after(0, Event::User);
        self.calm()?;
        for _ in 0..PHASES {
            self.phase()?;
            self.calm()?;
            if self.rng.chance(500) {
                self.outage_alone()?;
            }
            if self.rng.chance(300) {
                self.clean_end_alone()?;
            }
        }
        let kept = self.database.kept();
        match self.said.difference(&kept).next() {
            Some(lost) => Err(format!("what_was_said_is_there: {lost} is lost")),
            None => Ok(()),
        }
    }
}

#[test]
fn the_laws_hold_over_all_nodes() {
    let seeds = seeds(SEEDS);
    let count = seeds.end - seeds.start;
    let mut tally = BTreeMap::new();
    for seed in seeds {
        let mut scene = Scene::new(seed, None);
        scene.log = (count == 1).then(Vec::new);
        let result = caught(|| scene.run());
        for line in scene.log.iter().flatten() {
            println!("{line}");
        }
        if let Err(law) = result {
            panic!("seed {seed}: {law}; alone: SEED={seed} cargo test --test simulation nodes");
        }
        for (what, n) in scene.tally {
            *tally.entry(what).or_default() += n;
        }
    }
    for (what, n) in &tally {
        let n: &u64 = n;
        println!("{n:>10} {what}");
    }
    for scenario in SCENARIOS.iter().filter(|_| count >= ENOUGH_SEEDS) {
        assert!(tally.contains_key(scenario), "never: {scenario}");
    }
}

#[test]
fn it_finds_a_broken_rule_of_nodes() {
    let only = std::env::var("RULE").ok();
    let is_wanted = |rule: &Broken| {
        let name = format!("{rule:?}");
        only.as_ref().is_none_or(|only| *only == name)
    };
    for rule in Broken::ALL.into_iter().filter(is_wanted) {
        let first = number("SIM_FIRST_SEED").unwrap_or(0);
        let mut seeds = first..first + BROKEN_SEEDS;
        let found = seeds.find_map(|seed| {
            let result = caught(|| Scene::new(seed, Some(rule)).run());
            Some((seed, result.err()?))
        });
        let Some((seed, law)) = found else {
            panic!("{rule:?} is broken, and nobody noticed");
        };
        println!("{rule:?}: after {} seeds: {law}", seed - first + 1);
    }
}

#[test]
fn a_seed_gives_the_same_run_of_nodes_each_time() {
    let once = || {
        let mut scene = Scene::new(3, None);
        scene.log = Some(Vec::new());
        let result = scene.run();
        (result, scene.log, scene.tally)
    };
    assert_eq!(once(), once());
}
