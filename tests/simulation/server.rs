//! The server around the real core: which polls are held, what ends them, and what their answers contain. A model of
//! `server/state`.

use crate::crash::Disk;
use crate::laws::HandOut;
use crate::world::{AttemptKey, Event, Lawful, Ms, Request, Response, World};
use sidebike::core::{
    Core, Limits, MachineKey, MatchingSelectors, Notice, Refusal, Saved, SelectorSnapshot,
    TextLimits, Time,
};
use sidebike::wire::agent::{Assignment, AttemptId, Orders, Poll, Verdict};
use sidebike::wire::task::Detail;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Limits that the simulated users and agents never reach.
pub const TEXTS: TextLimits = TextLimits {
    pattern: 100,
    compiled: 128 << 10,
    label: 20,
    name: 20,
};

/// How long a poll is still held after its machine was given work in the answer to a report.
const HELD_ON: Ms = 1_000;

/// A held poll.
struct Held {
    hold: u64,
    who: usize,
    seq: u64,
    draining: bool,
    instance: String,
}

pub struct Server {
    pub core: Core,
    pub limits: Limits,
    pub epoch: u32,
    /// How many cores there have been.
    pub lives: u64,
    /// With a database.
    pub disk: Option<Disk>,
    held: HashMap<MachineKey, Held>,
    next_hold: u64,
    broken: Option<sidebike::core::Rule>,
    /// The selectors of an earlier moment, and of which core.
    selectors: Option<(u64, SelectorSnapshot)>,
}

impl Server {
    pub fn new(limits: Limits, broken: Option<sidebike::core::Rule>) -> Self {
        let mut server = Server {
            core: Core::new(limits.clone(), World::BEGINNING),
            limits,
            epoch: 0,
            lives: 0,
            disk: None,
            held: HashMap::new(),
            next_hold: 0,
            broken,
            selectors: None,
        };
        server.break_rule();
        server
    }

    fn break_rule(&mut self) {
        if let Some(rule) = self.broken {
            self.core.break_rule_for_tests(rule);
        }
    }

    /// The server crashes and starts again, empty.
    pub fn wipe(&mut self, now: Time) {
        self.core = Core::new(self.limits.clone(), now);
        self.epoch += 1;
        self.lives += 1;
        self.held.clear();
        self.break_rule();
    }

    /// The instances whose polls are held.
    pub fn held_instances(&self) -> BTreeSet<String> {
        self.held
            .values()
            .map(|held| held.instance.clone())
            .collect()
    }

    fn knows(&self, instance: &str) -> bool {
        self.core
            .machine_states()
            .any(|(known, _)| known == instance)
    }

    /// A new server, rebuilt from what the one before had saved.
    pub fn restore(&mut self, now: Time, saved: Saved) -> Lawful {
        self.core = Core::restored(self.limits.clone(), now, saved)?;
        self.lives += 1;
        self.held.clear();
        self.break_rule();
        Ok(())
    }

    /// The attempt with this id.
    pub fn key_of(&self, id: &AttemptId) -> Option<AttemptKey> {
        Some(AttemptKey {
            epoch: self.epoch,
            task: self.core.task_of_execution(&id.execution)?,
            n: id.execution.rsplit_once('.')?.1.parse().ok()?,
            attempt: id.attempt,
        })
    }
}

impl World {
    pub fn server_hears(&mut self, who: usize, request: Request) -> Lawful {
        let now = self.time();
        match request {
            Request::Poll(poll) => self.server_polled(who, poll)?,
            Request::Output(output) => {
                self.heard_of(&output.instance);
                let orders = self
                    .server
                    .core
                    .output(now, &output.instance, &output.pieces);
                self.only_what_nobody_knows_is_forgotten(&orders)?;
                self.send(who, Event::ToAgent(who, Response::Kept(output, orders)));
            }
            Request::Done(done) => {
                self.heard_of(&done.instance);
                let taken = self.server.core.done_and_next(now, &done);
                self.verdicts(&taken.results)?;
                if !taken.start.is_empty() {
                    self.count("handed out with a report");
                }
                let keys = self.handed_out(who, false, &taken.start)?;
                self.answer(who, Response::Taken(taken, done.seq, keys));
            }
            Request::Goodbye(goodbye) => {
                // A goodbye that arrives before every poll is from an unknown machine.
                if self.server.knows(&goodbye.instance) {
                    self.laws.left(&goodbye.instance);
                    self.fleet.heard(self.now, &goodbye.instance);
                }
                self.server.core.leave(now, &goodbye);
            }
            Request::Ping(label, link) => {
                let instance = format!("original:{label}");
                let was_known = self.server.knows(&instance);
                let pinged = self.server.core.ping_of_original(now, &label, Some(link));
                if let Ok(work) = pinged {
                    self.laws.heard_of(self.now, &instance);
                    let (now, tags) = (self.now, Default::default());
                    self.fleet
                        .polled(now, &instance, (&label, ""), &tags, was_known);
                    self.send(who, Event::ToAgent(who, Response::Pong(work)));
                }
            }
            Request::Fetch(label, link) => {
                let fetched = self.server.core.fetch_of_original(now, &label, Some(link));
                if let Some(orders) = fetched {
                    let keys = self.handed_out(who, false, &orders.start)?;
                    self.answer(who, Response::Fetched(orders, keys));
                }
            }
            Request::OriginalDone(label, link, mut done) => {
                let instance = format!("original:{label}");
                self.heard_of(&instance);
                if let (Some(piece), Some(ended)) = (done.pieces.pop(), done.results.pop()) {
                    let core = &mut self.server.core;
                    core.done_of_original(now, &label, Some(link), piece, &ended);
                }
            }
        }
        self.see_to_notices()
    }

    fn heard_of(&mut self, instance: &str) {
        self.laws.heard_of(self.now, instance);
        self.fleet.heard(self.now, instance);
    }

    /// Matches a new machine with the selectors of an earlier moment, as the server does outside its lock.
    fn match_selectors(&mut self, poll: &Poll) -> Option<MatchingSelectors> {
        let server = &mut self.server;
        let life = server.lives;
        let (fresh, traits) = server.core.selectors_to_match(poll)?;
        let earlier = server.selectors.replace((life, fresh));
        let (_, earlier) = earlier.filter(|(of, _)| *of == life)?;
        Some(earlier.match_with(&traits))
    }

    fn verdicts(&mut self, verdicts: &[Verdict]) -> Lawful {
        // A server that crashes may take back what it has not acknowledged.
        if self.server.disk.is_some() {
            return Ok(());
        }
        for Verdict { id, taken, .. } in verdicts {
            if let Some(key) = self.server.key_of(id) {
                self.laws.verdict(&self.server.core, key, *taken)?;
            }
        }
        Ok(())
    }

    fn server_polled(&mut self, who: usize, poll: Poll) -> Lawful {
        let now = self.time();
        let seq = poll.seq;
        let was_known = self.server.knows(&poll.instance);
        let matches = self.match_selectors(&poll);
        match self.server.core.poll(now, &poll, matches.as_ref()) {
            Err(refusal) => {
                self.count(match refusal {
                    Refusal::Conflict(_) => "poll refused: conflict",
                    Refusal::Full(_) => "poll refused: full",
                    _ => return Err(format!("a good poll is refused: {refusal:?}")),
                });
                let conflict = matches!(refusal, Refusal::Conflict(_));
                self.send(who, Event::ToAgent(who, Response::Refused(seq, conflict)));
            }
            Ok((machine, orders)) => {
                self.laws.heard_of(self.now, &poll.instance);
                let who_is_it = (&*poll.label, &*poll.host);
                self.fleet
                    .polled(self.now, &poll.instance, who_is_it, &poll.tags, was_known);
                if let Some(old) = self.server.held.remove(&machine) {
                    self.count("held poll superseded");
                    let nothing = Response::Orders(old.seq, Orders::none(), Vec::new());
                    self.send(old.who, Event::ToAgent(old.who, nothing));
                }
                if orders.is_empty() && poll.wait.as_millis() > 0 {
                    self.server.core.hold_poll(machine);
                    let hold = self.server.next_hold;
                    self.server.next_hold += 1;
                    let held = Held {
                        hold,
                        who,
                        seq,
                        draining: poll.draining,
                        instance: poll.instance.clone(),
                    };
                    self.server.held.insert(machine, held);
                    let epoch = self.server.epoch;
                    self.after(poll.wait.as_millis(), Event::HoldOver(epoch, machine, hold));
                } else {
                    self.answer_poll(who, seq, poll.draining, orders)?;
                }
            }
        }
        Ok(())
    }

    pub fn hold_is_over(&mut self, epoch: u32, machine: MachineKey, hold: u64) -> Lawful {
        let current = epoch == self.server.epoch
            && self
                .server
                .held
                .get(&machine)
                .is_some_and(|held| held.hold == hold);
        if current {
            self.collect_for(machine)?;
        }
        self.see_to_notices()
    }

    pub fn machine_wakes(&mut self, epoch: u32, machine: MachineKey) -> Lawful {
        if epoch == self.server.epoch {
            self.collect_for(machine)?;
        }
        self.see_to_notices()
    }

    /// The connection of an agent's held poll breaks, and both sides see that.
    pub fn poll_is_dropped(&mut self, who: usize) {
        let held = self.server.held.iter().find(|(_, held)| held.who == who);
        let Some(machine) = held.map(|(machine, _)| *machine) else {
            return;
        };
        self.count("held poll dropped");
        self.note(|| format!("the held poll of agent {who} is dropped"));
        self.server.held.remove(&machine);
        self.server.core.release_poll(machine);
        self.connection_breaks(who);
    }

    fn shorten_hold(&mut self, machine: MachineKey) {
        let hold = self.server.held.get(&machine).map(|held| held.hold);
        if let Some(hold) = hold {
            let epoch = self.server.epoch;
            self.after(HELD_ON, Event::HoldOver(epoch, machine, hold));
        }
    }

    fn collect_for(&mut self, machine: MachineKey) -> Lawful {
        let Some(held) = self.server.held.remove(&machine) else {
            return Ok(());
        };
        let orders = self.server.core.collect(Time(self.now), machine);
        self.answer_poll(held.who, held.seq, held.draining, orders)
    }

    fn answer_poll(
        &mut self,
        who: usize,
        seq: u64,
        draining: bool,
        orders: Orders<Arc<Detail>>,
    ) -> Lawful {
        self.only_what_nobody_knows_is_forgotten(&orders)?;
        let keys = self.handed_out(who, draining, &orders.start)?;
        self.answer(who, Response::Orders(seq, orders, keys));
        Ok(())
    }

    /// A command whose attempt has ended here is killed, not forgotten.
    fn only_what_nobody_knows_is_forgotten(&self, orders: &Orders<Arc<Detail>>) -> Lawful {
        let known = |id: &&AttemptId| self.server.core.task_of_execution(&id.execution).is_some();
        match orders.forget.iter().find(known) {
            Some(id) => Err(format!("only_what_nobody_knows_is_forgotten: {id:?}")),
            None => Ok(()),
        }
    }

    fn handed_out(
        &mut self,
        who: usize,
        draining: bool,
        start: &[Assignment<Arc<Detail>>],
    ) -> Lawful<Vec<AttemptKey>> {
        let mut keys = Vec::new();
        for Assignment { id, .. } in start {
            let key = self
                .server
                .key_of(id)
                .ok_or_else(|| format!("{id:?} leads nowhere"))?;
            self.note(|| format!("agent {who} is handed {id:?}"));
            let task = self.users.task(key.task);
            if let (Some(model), Ok(shown)) = (task, self.server.core.show(key.task)) {
                let attempt = (key.n, key.attempt);
                let pace = &model.pace;
                pace.may_be_handed_out(self.now, &shown, attempt, model.ttl)?;
            }
            self.laws.handed_out(HandOut {
                now: self.now,
                key,
                draining,
                task,
            })?;
            keys.push(key);
        }
        Ok(keys)
    }

    /// Processes the notices of the core.
    pub fn see_to_notices(&mut self) -> Lawful {
        loop {
            let notices = self.server.core.take_notices();
            if notices.is_empty() {
                return Ok(());
            }
            for notice in notices {
                match notice {
                    Notice::Wake(machine) if self.rng.chance(self.weather.late_wake) => {
                        self.count("held poll answered late");
                        let late = self.rng.between(0, 40);
                        self.after(late, Event::Wake(self.server.epoch, machine));
                        // What it was to be answered with is then in nobody's hands.
                        let held = self.server.held.get(&machine).map(|held| held.who);
                        if let Some(who) = held.filter(|_| self.rng.chance(self.weather.drop)) {
                            self.poll_is_dropped(who);
                        }
                    }
                    Notice::Wake(machine) => self.collect_for(machine)?,
                    Notice::HandedOut(machine) => self.shorten_hold(machine),
                    Notice::Finished(task) => self.laws.finished(task)?,
                    Notice::Changed(_) | Notice::NewcomersRefused(_) => {}
                    Notice::MachineOffline(..) => self.count("machine went offline"),
                    Notice::MachineOnline(..) => self.count("machine appeared"),
                }
            }
        }
    }
}
