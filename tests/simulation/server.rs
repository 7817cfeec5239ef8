//! The server around the real core: which polls are held, what ends them, and what their answers contain. A model of
//! `server/state`.

use crate::crash::Disk;
use crate::laws::HandOut;
use crate::world::{AttemptKey, Event, Lawful, Ms, Request, Response, World};
use sidebike::core::{
    Core, Limits, MachineKey, MatchingSelectors, Notice, Refusal, Saved, SelectorSnapshot,
    TextLimits, Time, check_holds, check_report, is_of_original,
};
use sidebike::wire::agent::{Assignment, AttemptId, Done, Goodbye, Orders, Output, Poll, Verdict};
use sidebike::wire::duration::TimeSpan;
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
/// Those of a scene that has no others.
pub const LIMITS: Limits = Limits {
    texts: TEXTS,
    ..Limits::NONE
};

/// How long a poll is still held after its machine was given work in the answer to a report.
const HELD_ON: Ms = 1_000;

/// The longest that a poll is held.
const MAX_POLL_WAIT: TimeSpan = TimeSpan::from_secs(25);

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
    /// It once had others.
    pub had_other_limits: bool,
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
            had_other_limits: false,
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
        self.core.set_notify_policy(crate::notify::policy());
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
        if let Request::Output(Output { instance, .. })
        | Request::Done(Done { instance, .. }, _)
        | Request::Goodbye(Goodbye { instance, .. }) = &request
            && is_of_original(instance)
        {
            self.count("report refused: not an agent's own instance");
            return Ok(());
        }
        match request {
            Request::Poll(poll) => self.server_polled(who, poll)?,
            Request::Output(output) => {
                if check_report(&output.pieces, &[], &[]).is_err() {
                    self.count("report refused: too long");
                    return Ok(());
                }
                self.heard_of(&output.instance);
                let orders = self
                    .server
                    .core
                    .output(now, &output.instance, &output.pieces);
                self.only_what_nobody_knows_is_forgotten(who, &orders)?;
                self.send(who, Event::ToAgent(who, Response::Kept(output, orders)));
            }
            Request::Done(done, told) => {
                if check_report(&done.pieces, &done.results, &done.undos).is_err() {
                    self.count("report refused: too long");
                    return Ok(());
                }
                self.heard_of(&done.instance);
                let taken = self.server.core.done_and_next(now, &done);
                if self.agents[who].is_plain() {
                    self.verdicts(&taken.results)?;
                }
                if !taken.start.is_empty() {
                    self.count("handed out with a report");
                }
                self.hand_out_undos(who, &[], taken.start.len())?;
                let keys = self.handed_out(who, false, &taken.start)?;
                self.answer(who, Response::Taken(taken, done.seq, keys, told));
            }
            Request::Settled(number, done) => {
                self.heard_of(&done.instance);
                let taken = self.server.core.done_and_next(now, &done);
                self.answer(who, Response::Settled(number, taken));
            }
            Request::Goodbye(goodbye) => {
                if check_holds(&goodbye.holds).is_err() {
                    return Ok(());
                }
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
        let is_long = check_report(&[], &[], &poll.undos).is_err();
        if check_holds(&poll.holds).is_err() || is_long {
            self.count("poll refused: too long");
            return Ok(());
        }
        let origin = if self.agents[who].hostile {
            "hostile"
        } else {
            "plain"
        };
        let admitted = self.server.core.admit(now, origin, &poll.instance);
        if admitted.is_err() {
            self.count("poll refused: too many new machines from one address");
        }
        let was_known = self.server.knows(&poll.instance);
        let matches = self.match_selectors(&poll);
        let core = &mut self.server.core;
        match admitted.and_then(|()| core.poll(now, &poll, matches.as_ref())) {
            Err(refusal) => {
                self.count(match refusal {
                    Refusal::Conflict(_) => "poll refused: conflict",
                    Refusal::Full(_) => "poll refused: full",
                    _ if self.agents[who].hostile => "poll refused: impossible",
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
                let has_room = self.server.held.len() < self.setting.max_held;
                if orders.is_empty() && !has_room {
                    self.count("poll answered at once: too many are held");
                }
                if orders.is_empty() && poll.wait.as_millis() > 0 && has_room {
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
                    self.after(
                        poll.wait.min(MAX_POLL_WAIT).as_millis(),
                        Event::HoldOver(epoch, machine, hold),
                    );
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

    /// HUP: every held poll is answered, as its token may be one no longer.
    pub fn server_is_sent_hup(&mut self) -> Lawful {
        self.count("server sent HUP");
        let mut machines: Vec<MachineKey> = self.server.held.keys().copied().collect();
        machines.sort();
        for machine in machines {
            self.count("held poll ended by HUP");
            self.collect_for(machine)?;
        }
        self.see_to_notices()
    }

    /// A server that starts may have other limits than the one before.
    pub fn limits_may_change(&mut self) {
        if self.rng.chance(self.weather.other_limits) {
            self.server.had_other_limits = true;
            self.count("server started with other limits");
            self.server.limits = Limits {
                tasks: self.rng.pick(&[1, 3, 50]),
                executions: self.rng.pick(&[12, 500]),
                machines: self.rng.pick(&[4, 100]),
                output_bytes: self.rng.pick(&[100, 1_500, 1 << 20]),
                schedules: 1_000,
                patterns: self.rng.pick(&[1, 2, 1_000]),
                ..self.server.limits.clone()
            };
            let limits = format!("{:?}", self.server.limits);
            self.note(|| format!("new limits: {limits}"));
        }
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
        let instance = self.agents[who].instance.clone();
        self.laws.hung_up(&instance);
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
        let orders = self.server.core.collect(self.clock.read(self.now), machine);
        self.answer_poll(held.who, held.seq, held.draining, orders)
    }

    fn answer_poll(
        &mut self,
        who: usize,
        seq: u64,
        draining: bool,
        orders: Orders<Arc<Detail>>,
    ) -> Lawful {
        self.only_what_nobody_knows_is_forgotten(who, &orders)?;
        self.hand_out_undos(who, &orders.undo, orders.start.len())?;
        let keys = self.handed_out(who, draining, &orders.start)?;
        self.answer(who, Response::Orders(seq, orders, keys));
        Ok(())
    }

    /// A command whose attempt has ended here is killed, not forgotten.
    fn only_what_nobody_knows_is_forgotten(
        &self,
        who: usize,
        orders: &Orders<Arc<Detail>>,
    ) -> Lawful {
        // A made-up id may be that of an execution that the same poll has made.
        if self.agents[who].hostile {
            return Ok(());
        }
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
        for job in start {
            let Assignment { id, .. } = job;
            let key = self
                .server
                .key_of(id)
                .ok_or_else(|| format!("{id:?} leads nowhere"))?;
            self.note(|| format!("agent {who} is handed {id:?}"));
            self.nothing_is_handed_out_there(who, key)?;
            if !self.agents[who].is_plain() {
                self.laws.nobody_knows_what_becomes_of(key);
            }
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
            self.hand_out_with_undo(who, key, job)?;
            keys.push(key);
        }
        Ok(keys)
    }

    /// Processes the notices of the core.
    pub fn see_to_notices(&mut self) -> Lawful {
        let now = self.time();
        loop {
            self.server.core.settle_dependents(now);
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
                    Notice::Finished(task) => {
                        self.laws.finished(task)?;
                        self.an_end_waits_for_its_undos(task)?;
                    }
                    Notice::GroupFinished(group) => self.group_finished(&group),
                    Notice::NotificationDead(_) => self.count("notification given up"),
                    Notice::Changed(_)
                    | Notice::Fired(_)
                    | Notice::NewcomersRefused(_)
                    | Notice::NotificationsWait => {}
                    Notice::MachineOffline(..) => self.count("machine went offline"),
                    Notice::MachineOnline(..) => self.count("machine appeared"),
                }
            }
        }
    }
}
