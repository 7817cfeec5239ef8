//! The calls of agents: poll, collect orders, say goodbye. Their reports are in `report.rs`.
//!
//! Three rules make sure that an attempt starts at most once:
//!
//! - Only `deliver` hands an attempt out, in the answer to a machine's latest poll or to a later report.
//! - It is handed out again only after a later poll of that machine has shown that it did not arrive: to the same
//!   machine, or to another one if its task allows that.
//! - An attempt that may have started on a machine that went offline is `lost`, and never handed to another.

use super::abilities::Abilities;
use super::crew::Wish;
use super::detail_spec::MAX_SENT_BYTES;
use super::invariants::Rule;
use super::lifecycle::Event;
use super::machine::{Kind, Machine};
use super::match_index::MatchingSelectors;
use super::original::is_of_original;
use super::selector::{Tags, Traits, no_tags};
use super::task::{Place, Target};
use super::tick::{ORIGINAL_AT_MOST, OVERDUE_AFTER};
use super::user::JOIN_ALL;
use super::{Core, ExecutionKey, MachineKey, Notice, Refusal, TaskKey, Time};
use crate::rules::{MAX_JOBS, check_label, check_tags};
use crate::wire::agent::{Assignment, AttemptId, Feature, Goodbye, Hold, HoldState, Orders, Poll};
use crate::wire::files::Phase;
use crate::wire::machine::MachineState;
use crate::wire::notify::NotifyEvent;
use crate::wire::task::{Detail, ExecutionState};
use std::collections::HashSet;
use std::sync::Arc;

/// The size of the details in one answer in JSON, in bytes. An agent reads 1 MiB for each of its jobs, for four of them at
/// least, and 64 KiB beside that. What does not fit goes with the next answer.
pub(super) const MAX_HANDED_OUT_BYTES: usize = MAX_SENT_BYTES;
/// The longest instance id, in bytes.
const MAX_INSTANCE_BYTES: usize = 64;
/// The longest host name and version kept, in bytes.
const MAX_WORD_BYTES: usize = 255;

/// The most attempts that an agent may list as held: it has 1,000 jobs at most, and stops at 1,000 unreported results.
const MAX_HOLDS: usize = 4_096;

/// Refuses a list of held attempts that is longer than any agent's: it is worked off under the lock.
pub fn check_holds(holds: &[Hold]) -> Result<(), Refusal> {
    match holds.len() {
        0..=MAX_HOLDS => Ok(()),
        many => Err(Refusal::Impossible(format!(
            "holds: must have {MAX_HOLDS} entries at most, got {many}"
        ))),
    }
}

/// How an agent describes its machine.
struct Caller<'a> {
    instance: &'a str,
    label: &'a str,
    host: &'a str,
    version: &'a str,
    arch: &'a str,
    jobs: u32,
    kind: Kind,
    tags: Tags,
}

impl Core {
    /// Processes a poll: registers the machine or updates it, compares the attempts that it holds with those
    /// it was handed, and answers with its orders. If there are none the caller may hold the poll, see
    /// [`Core::hold_poll`]. `matches` is what was found of its traits before, see [`Core::selectors_to_match`].
    ///
    /// Refused with [`Refusal::Conflict`] if the poll is late or repeated, or if another machine uses the
    /// same instance; with [`Refusal::Full`] if there are too many machines.
    pub fn poll(
        &mut self,
        now: Time,
        poll: &Poll,
        matches: Option<&MatchingSelectors>,
    ) -> Result<(MachineKey, Orders<Arc<Detail>>), Refusal> {
        let caller = Caller {
            instance: &poll.instance,
            label: &poll.label,
            host: &poll.host,
            version: &poll.version,
            arch: &poll.arch,
            jobs: poll.jobs.clamp(1, MAX_JOBS),
            kind: Kind::Agent,
            tags: match poll.tags.is_empty() {
                true => no_tags(),
                false => Tags::new(poll.tags.clone()),
            },
        };
        check_instance(&poll.instance)?;
        let known = self
            .instances
            .get(&*poll.instance)
            .map(|key| self.machine(*key));
        if let Some(machine) = known {
            if poll.seq <= machine.seq && self.keeps(Rule::LatePollRefused) {
                return Err(Refusal::Conflict(format!(
                    "seq: must be above {}, the highest of this instance so far; a late or repeated poll, or another agent with its instance",
                    machine.seq
                )));
            }
            if machine.left {
                return Err(Refusal::Conflict(
                    "instance: has said goodbye; an agent takes a new one at each start".into(),
                ));
            }
            if *machine.label != *poll.label || machine.is_original() {
                return Err(Refusal::Conflict(format!(
                    "instance: belongs to a machine with the label {:?}; an agent takes a new one at each start",
                    machine.label
                )));
            }
        }
        let was_live = known.is_some_and(Machine::is_live);
        let is_new = known.is_none();
        if is_new {
            self.replace_original(now, &poll.label);
        }
        let key = self.register(now, &caller, matches)?;
        let machine = self.machine_mut(key);
        machine.seq = poll.seq;
        let can = |feature: &Feature| poll.features.iter().any(|word| word == feature.word());
        let features = Feature::ALL.into_iter().filter(can);
        machine.abilities = Abilities::of_agent(Kind::Agent, features);
        (machine.poll_held, machine.waking) = (false, false);
        machine.has_hung_up = false;
        machine.cancels.clear();
        if machine.state == MachineState::Draining {
            machine.joins_pending = Some(JOIN_ALL);
        }
        let draining = self.take_crew(key, poll);
        let state = match draining {
            true => MachineState::Draining,
            false => MachineState::Online,
        };
        if self.set_machine_state(key, state) {
            self.machine_changed(key);
        }
        self.refresh_ready(key);
        for hold in &poll.holds {
            self.adopt(now, &poll.instance, &hold.id, hold.started_ago_ms);
        }
        self.report_undos(now, &poll.instance, &poll.undos);
        let mut orders = self.reconcile_holds(now, key, &poll.holds);
        if is_new {
            self.replace_hung_up(now, key);
        }
        self.order_probes(now, key, &mut orders);
        let mut used = 0;
        if self.machine(key).takes_undos() {
            used = self.order_undos(now, key, Some(&poll.undos), &mut orders);
        }
        if !draining {
            self.machine_is_back(now, key);
            self.join_open_tasks(now, key);
            self.deliver(now, key, used, &mut orders);
        }
        self.revoke_offers(key);
        if !was_live {
            self.explain_waiting_for(key);
        }
        self.name_stopped(&mut orders);
        orders.crew = self.machine(key).wish_to_tell();
        orders.standing = self.standing(key);
        Ok((key, orders))
    }

    /// Says which of the attempts to kill belong to tasks that were stopped.
    pub(super) fn name_stopped(&self, orders: &mut Orders<Arc<Detail>>) {
        let is_stopped = |id: &&AttemptId| {
            let key = self.find(&id.execution);
            key.is_some_and(|key| self.task(key.task).is_stopped())
        };
        orders.stopped = orders.cancel.iter().filter(is_stopped).cloned().collect();
    }

    /// Registers a machine, or updates a known one.
    fn register(
        &mut self,
        now: Time,
        caller: &Caller<'_>,
        matches: Option<&MatchingSelectors>,
    ) -> Result<MachineKey, Refusal> {
        if let Some(key) = self.instances.get(caller.instance).copied() {
            let machine = self.machine_mut(key);
            machine.last_seen = now;
            machine.jobs = caller.jobs;
            // An agent that was updated keeps its instance.
            if *machine.version != *truncated(caller.version) {
                machine.version = truncated(caller.version).into();
                self.machine_changed(key);
            }
            let machine = self.machine_mut(key);
            if std::mem::take(&mut machine.is_restored) {
                self.recount.came();
                self.take_tags(now, key, &caller.tags);
            }
            let machine = self.machine(key);
            if machine.state == MachineState::Offline {
                self.bring_online(now, key);
            }
            return Ok(key);
        }
        check_label(
            caller.label,
            self.limits.texts.label,
            " (the server's --max-label)",
        )
        .map_err(|why| Refusal::Impossible(format!("label: {why}")))?;
        check_tags(&caller.tags).map_err(|why| Refusal::Impossible(format!("tags: {why}")))?;
        if self.machines.len() >= self.limits.machines && !self.forget_an_offline_machine(now) {
            return Err(Refusal::Full(format!(
                "{} machines are known, the limit (--max-machines)",
                self.machines.len()
            )));
        }
        let key = MachineKey(self.next_machine);
        self.next_machine += 1;
        let instance: Arc<str> = caller.instance.into();
        let label: Arc<str> = caller.label.into();
        let host: Arc<str> = truncated(caller.host).into();
        let traits = Traits {
            label: label.clone(),
            host: host.clone(),
            tags: caller.tags.clone(),
        };
        let traits_key = self.match_index.add_machine(traits, key, matches);
        self.instances.insert(instance.clone(), key);
        self.recount.came();
        let target = Target {
            label: label.clone(),
            instance: instance.clone(),
            host: host.clone(),
        };
        let machine = Machine {
            target: Arc::new(target),
            instance,
            label,
            host,
            version: truncated(caller.version).into(),
            arch: truncated(caller.arch).into(),
            tags: caller.tags.clone(),
            traits_key,
            kind: caller.kind,
            state: MachineState::Offline,
            jobs: caller.jobs,
            abilities: Abilities::of_agent(caller.kind, []),
            since: now,
            last_seen: now,
            is_restored: false,
            offline_since: now,
            watched_at: None,
            left: false,
            suspended_since: None,
            wish: None,
            is_drained: false,
            is_ending: false,
            asks_standing: false,
            says_draining: false,
            joins_pending: Some(JOIN_ALL),
            seq: 0,
            poll_held: false,
            has_hung_up: false,
            waking: false,
            ready: None,
            inbox: Default::default(),
            offers: Default::default(),
            active: Default::default(),
            probes: Default::default(),
            cancels: Vec::new(),
            original: Default::default(),
        };
        self.add_machine(key, machine);
        self.suspend_newcomer(now, key);
        self.bring_online(now, key);
        Ok(key)
    }

    /// Takes the tags of a machine that was restored: a server that does not know tags may have saved it without them.
    fn take_tags(&mut self, now: Time, key: MachineKey, tags: &Tags) {
        let machine = self.machine(key);
        if machine.tags == *tags || check_tags(tags).is_err() {
            return;
        }
        let traits = Traits {
            label: machine.label.clone(),
            host: machine.host.clone(),
            tags: tags.clone(),
        };
        self.match_index.remove_machine(machine.traits_key, key);
        let traits_key = self.match_index.add_machine(traits, key, None);
        let machine = self.machine_mut(key);
        (machine.tags, machine.traits_key) = (tags.clone(), traits_key);
        machine.joins_pending = Some(JOIN_ALL);
        self.machine_changed(key);
        self.sweep_again(now);
    }

    fn bring_online(&mut self, now: Time, key: MachineKey) {
        self.cancel_machine_timers(key);
        let state = match self.machine(key).wish.is_some_and(Wish::is_drain) {
            true => MachineState::Draining,
            false => MachineState::Online,
        };
        self.set_machine_state(key, state);
        let machine = self.machine_mut(key);
        machine.joins_pending = Some(JOIN_ALL);
        let notice = Notice::MachineOnline(machine.label.clone(), machine.instance.clone());
        self.notices.push(notice);
        self.refresh_ready(key);
        self.watch_silence(key, now.plus(super::OFFLINE_AFTER));
        self.machine_changed(key);
    }

    /// Registers the machine of an original's agent, or updates a known one.
    pub(super) fn register_original(
        &mut self,
        now: Time,
        instance: &str,
        label: &str,
    ) -> Result<MachineKey, Refusal> {
        let caller = Caller {
            instance,
            label,
            host: "",
            version: "original",
            arch: "",
            jobs: 1,
            kind: Kind::Original,
            tags: no_tags(),
        };
        let was_live = self
            .original(label)
            .is_some_and(|key| self.machine(key).is_live());
        let key = self.register(now, &caller, None)?;
        if !was_live {
            self.explain_waiting_for(key);
        }
        if self.machine(key).is_live() {
            self.machine_is_back(now, key);
            self.join_open_tasks(now, key);
        }
        Ok(key)
    }

    /// Whether a machine would be given work now.
    pub fn has_work_for(&self, key: MachineKey) -> bool {
        self.machines.get(&key).is_some_and(|m| {
            let has_work = || self.next_for(m).is_some();
            let takes_work = m.is_live() && m.free() > 0 && !self.is_handed_nothing(key);
            (takes_work && has_work())
                || (m.takes_undos() && self.has_undo_for(key))
                || !m.probes.is_empty()
                || m.wish_to_tell().is_some()
        })
    }

    /// Records that the machine's poll is held, so that it is answered as soon as there is work.
    pub fn hold_poll(&mut self, key: MachineKey) {
        self.machine_mut(key).poll_held = true;
        self.refresh_ready(key);
    }

    /// Records that the machine's poll is no longer held, because its connection was closed.
    pub fn release_poll(&mut self, key: MachineKey) {
        if let Some(machine) = self.machines.get_mut(&key) {
            (machine.poll_held, machine.waking) = (false, false);
            machine.has_hung_up = true;
            self.refresh_ready(key);
            self.revoke_offers(key);
        }
    }

    /// Ends the machine's held poll, and returns the orders to answer it with.
    pub fn collect(&mut self, now: Time, key: MachineKey) -> Orders<Arc<Detail>> {
        let mut orders = Orders::none();
        let Some(machine) = self.machines.get_mut(&key) else {
            return orders;
        };
        (machine.poll_held, machine.waking) = (false, false);
        orders.cancel = std::mem::take(&mut machine.cancels);
        let (live, takes_undos) = (machine.is_live(), machine.takes_undos());
        orders.crew = machine.wish_to_tell();
        self.refresh_ready(key);
        self.order_probes(now, key, &mut orders);
        let mut used = 0;
        if takes_undos {
            used = self.order_undos(now, key, None, &mut orders);
        }
        if live {
            self.deliver(now, key, used, &mut orders);
        }
        self.revoke_offers(key);
        self.name_stopped(&mut orders);
        orders.standing = self.standing(key);
        orders
    }

    /// Hands a machine what is queued for it, then what any matching machine may run, up to the number of
    /// its free jobs. So many bytes of the answer are taken.
    pub(super) fn deliver(
        &mut self,
        now: Time,
        key: MachineKey,
        taken: usize,
        orders: &mut Orders<Arc<Detail>>,
    ) {
        let mut bytes = taken;
        if self.is_handed_nothing(key) {
            return;
        }
        while self.machine(key).free() > 0 {
            let Some(execution) = self.next_for(self.machine(key)) else {
                return;
            };
            if self.is_held_back(now, execution) {
                continue;
            }
            if self.has_expired(now, execution) {
                // Its timer has not fired yet.
                self.end_attempt(now, execution, ExecutionState::Expired, super::EXPIRED);
                continue;
            }
            let waits = self.holds_back_any() && self.task(execution.task).is_any();
            if waits {
                // It was offered to the machine before a loss was found.
                let selector = self.selector_key_of(execution.task);
                self.queue_for_any(execution, selector);
                continue;
            }
            if self.moves_on(execution, key) || self.fail_if_unknown_to(now, execution, key) {
                continue;
            }
            let refusal = self.cannot_run(key, execution);
            if let Some(why) = refusal.or_else(|| self.locked_by(execution, key)) {
                self.end_attempt(now, execution, ExecutionState::Failed, &why);
                continue;
            }
            let sent = self.task(execution.task).spec.sent_bytes;
            if bytes > 0 && bytes + sent > MAX_HANDED_OUT_BYTES {
                return;
            }
            if !self.apply(execution, Event::Deliver) {
                // Only queued executions are in a queue. Should that ever be wrong, do not hand it out.
                self.place(execution, Place::Nowhere);
                continue;
            }
            self.thaw(now, execution);
            let begins_by = self.begins_by(now, self.machine(key));
            self.hand_to(now, execution, key);
            self.take_tokens(now, execution.task);
            let is_original = self.machine(key).is_original();
            let detail = self.detail_with_ids(execution.task, is_original);
            let task = self.task(execution.task);
            let id = task.attempt_id(execution);
            bytes += sent;
            let files = task.spec.files.as_deref();
            orders.start.push(Assignment {
                id,
                task_id: task.id.to_string(),
                task_name: task.spec.name.to_string(),
                key: Some(task.attempt_key(execution)),
                detail,
                files: files.map_or_else(Vec::new, |files| files.files.clone()),
                files_timeout: files.map(|files| files.timeout),
                fetch: files.map_or_else(Vec::new, |files| files.fetch.clone()),
                update: { files.and_then(|files| files.update.clone()) }.map(Box::new),
            });
            self.expect_end(begins_by, execution, key);
        }
    }

    /// Records that an execution, which is delivered, was handed to a machine at this time.
    pub(super) fn hand_to(&mut self, at: Time, execution: ExecutionKey, key: MachineKey) {
        let target = self.target(key);
        let handed_out = self.execution_mut(execution);
        handed_out.target = Some(target);
        handed_out.current.delivered_at = Some(at);
        handed_out.current.msg = "".into();
        self.place(execution, Place::Active(key));
        self.begin_undo(execution);
        self.begin_probes(at, execution);
        self.machine_changed(key);
    }

    /// Sets when a machine should have reported an execution that begins at this time.
    pub(super) fn expect_end(&mut self, begins: Time, execution: ExecutionKey, key: MachineKey) {
        let endless = self.machine(key).is_original().then_some(ORIGINAL_AT_MOST);
        if let Some(longest) = self.task(execution.task).spec.longest_run().or(endless) {
            self.set_overdue(execution, begins.plus(longest).plus(OVERDUE_AFTER));
        }
    }

    /// Has what any machine may run and this one's agent cannot go to another one. It was offered to the machine
    /// before the agent said that it can do less.
    fn moves_on(&mut self, execution: ExecutionKey, key: MachineKey) -> bool {
        let stays = !self.task(execution.task).is_any()
            || self.may_run(self.machine(key), self.needs_of(execution.task));
        if !stays {
            let selector = self.selector_key_of(execution.task);
            self.queue_for_any(execution, selector);
        }
        !stays
    }

    /// Whether what needs these abilities, and any machine may run, may be handed to a machine.
    pub(super) fn may_run(&self, machine: &Machine, needed: Abilities) -> bool {
        machine.abilities.cover(needed) || !self.keeps(Rule::AnyGoesWhereItCanRun)
    }

    /// Why a machine's agent cannot run what an execution asks for; none if it can.
    fn cannot_run(&self, key: MachineKey, execution: ExecutionKey) -> Option<String> {
        let machine = self.machine(key);
        let spec = &self.task(execution.task).spec;
        let mut needs = spec.files.iter().flat_map(|files| files.needs());
        let is_open = |need| need == Feature::Update && !self.keeps(Rule::UpdateNeedsConsent);
        let missing = needs.find(|need| !machine.abilities.has(*need) && !is_open(*need));
        if let Some(missing) = missing {
            let what = match missing {
                Feature::Update => {
                    return Some(format!(
                        "update: the agent on this machine (version {}) was not started with --self-update",
                        machine.version
                    ));
                }
                Feature::Unpack => "unpack files",
                Feature::Fetch => "hand files back",
                _ => "take files",
            };
            return Some(format!("agent {} cannot {what}", machine.version));
        }
        let missing = { spec.detail.needs() }.find(|need| !machine.abilities.has(*need));
        let field = match missing {
            Some(missing) => format!("detail.{}", missing.word()),
            None if spec.probes_targets() && !machine.abilities.has(Feature::Probes) => {
                "probes".into()
            }
            None => return None,
        };
        Some(format!(
            "{field}: the agent on this machine (version {}) cannot do it; one of the server's version ({}) can",
            machine.version,
            env!("CARGO_PKG_VERSION")
        ))
    }

    /// Compares the attempts that a machine holds with those it was handed.
    fn reconcile_holds(
        &mut self,
        now: Time,
        key: MachineKey,
        holds: &[Hold],
    ) -> Orders<Arc<Detail>> {
        let mut orders = Orders::none();
        let mut held = HashSet::new();
        for hold in holds {
            let Some(execution) = self.find(&hold.id.execution) else {
                if !self.is_left_alone(&hold.id) {
                    orders.forget.push(hold.id.clone());
                }
                continue;
            };
            let e = self.execution(execution);
            if e.place != Place::Active(key) || e.current.number != hold.id.attempt {
                // Its outcome is already decided: kill the command if it still runs.
                if hold.state == HoldState::Running {
                    orders.cancel.push(hold.id.clone());
                }
                continue;
            }
            held.insert(execution);
            if e.canceling && hold.state == HoldState::Running {
                orders.cancel.push(hold.id.clone());
            }
            match hold.phase {
                // Its command is still to be started.
                Some(Phase::Files) => drop(self.apply(execution, Event::Start)),
                _ => self.record_start(now, execution, hold.started_ago_ms),
            }
            self.record_phase(execution, hold.phase);
        }
        let missing: Vec<ExecutionKey> = self.machine(key).active.difference_of(&held);
        for execution in missing {
            match self.execution(execution).state {
                ExecutionState::Delivered => self.did_not_arrive(now, execution, key),
                _ => {
                    let why = "its agent no longer knows it";
                    let why = self.end_of_loaded(execution).unwrap_or(why);
                    self.end_attempt(now, execution, ExecutionState::Lost, why);
                }
            }
        }
        orders
    }

    /// A machine does not hold what it was handed: the answer that handed it out did not arrive.
    fn did_not_arrive(&mut self, now: Time, execution: ExecutionKey, key: MachineKey) {
        let end = self.end_of_loaded(execution);
        if let Some(why) = end.or_else(|| self.end_of_returned(execution)) {
            self.end_attempt(now, execution, ExecutionState::Lost, why);
        } else if self.take_back(now, execution) {
            self.place(execution, Place::Inbox(key));
        }
    }

    fn record_phase(&mut self, key: ExecutionKey, phase: Option<Phase>) {
        if self.execution(key).current.phase != phase {
            self.execution_mut(key).current.phase = phase;
            self.record_change(key);
        }
    }

    pub(super) fn record_start(&mut self, now: Time, key: ExecutionKey, ago_ms: u64) {
        // It is `running` already if it laid files down first.
        let has_begun = self.apply(key, Event::Start);
        let e = self.execution(key);
        let starts = e.state == ExecutionState::Running && e.current.started_at.is_none();
        if !has_begun && !starts {
            return;
        }
        let submitted = self.task(key.task).created_at;
        let is_rolled_out = self.task(key.task).spec.rollout.is_some();
        let attempt = &mut self.execution_mut(key).current;
        let delivered = attempt.delivered_at.unwrap_or(now);
        let started = Time(now.0.saturating_sub(ago_ms)).max(delivered);
        attempt.started_at = Some(started);
        if attempt.number == 1 && !is_rolled_out {
            self.stats
                .submit_to_start
                .add(started.millis_since(submitted));
        }
        self.notify(now, key.task, NotifyEvent::Started);
    }

    /// Takes back a hand-out that provably did not arrive. False if a user had canceled the execution or its
    /// ttl is over: then it has ended.
    pub(super) fn take_back(&mut self, now: Time, key: ExecutionKey) -> bool {
        self.drop_undo(key);
        // Of many tasks that are canceled, what runs is canceled last, and may come back before that.
        let is_canceled = self.execution(key).canceling || self.task(key.task).canceled;
        if is_canceled && self.keeps(Rule::CanceledIsNotRepeated) {
            if self.apply(key, Event::Cancel) {
                self.place(key, Place::Nowhere);
                self.record_end(now, key, "canceled before it started");
                self.pace_after_end(now, key.task);
                self.finish_if_done(now, key.task);
            }
            return false;
        }
        self.apply(key, Event::GiveBack);
        self.cancel_overdue(key);
        self.execution_mut(key).current.delivered_at = None;
        if self.is_held_back(now, key) {
            return false;
        }
        if self.has_expired(now, key) {
            return !self.end_attempt(now, key, ExecutionState::Expired, super::EXPIRED);
        }
        true
    }

    /// Processes the goodbye of a machine. What it was handed and does not hold never started, so another
    /// machine can run it. What it holds and could not report is lost. What is queued for it goes to another
    /// machine if its task allows that, and is lost otherwise.
    pub fn leave(&mut self, now: Time, goodbye: &Goodbye) {
        let Some(key) = self.instances.get(&*goodbye.instance).copied() else {
            return;
        };
        let held: HashSet<ExecutionKey> = goodbye
            .holds
            .iter()
            .filter_map(|hold| {
                let execution = self.find(&hold.id.execution)?;
                (self.execution(execution).current.number == hold.id.attempt).then_some(execution)
            })
            .collect();
        let machine = self.machine_mut(key);
        machine.last_seen = now;
        machine.left = true;
        machine.wish = None;
        self.machine_changed(key);
        let machine = self.machine(key);
        // An offline machine has no active executions.
        for execution in machine.active.difference_of(&held) {
            if self.execution(execution).state == ExecutionState::Delivered {
                self.did_not_arrive(now, execution, key);
            }
        }
        if self.machine(key).state != MachineState::Offline {
            self.take_offline(now, key, "said goodbye");
        }
        for execution in self.machine(key).inbox.executions() {
            self.end_attempt(
                now,
                execution,
                ExecutionState::Lost,
                "its machine said goodbye before it started",
            );
        }
        self.machine_is_back(now, key);
    }

    /// Whether an attempt that was handed out is still to be started. It may have been canceled while the hand-out was
    /// being saved.
    pub fn is_to_start(&self, id: &AttemptId) -> bool {
        let wanted = self.find(&id.execution).is_some_and(|key| {
            let e = self.execution(key);
            let same = e.current.number == id.attempt && matches!(e.place, Place::Active(_));
            same && !e.canceling && !self.task(key.task).canceled
        });
        wanted || !self.keeps(Rule::CanceledIsNotSent)
    }

    /// The execution with this id.
    pub(super) fn find(&self, id: &str) -> Option<ExecutionKey> {
        let (prefix, n) = id.rsplit_once('.')?;
        let key = ExecutionKey {
            task: self.task_with_prefix(prefix)?,
            n: n.parse().ok()?,
        };
        (self.task(key.task).executions.len() > key.n as usize).then_some(key)
    }

    /// The task of the execution with this id.
    pub fn task_of_execution(&self, id: &str) -> Option<TaskKey> {
        self.find(id).map(|key| key.task)
    }
}

fn is_own_instance(instance: &str) -> bool {
    (8..=MAX_INSTANCE_BYTES).contains(&instance.len())
        && instance.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether a machine can have this instance.
pub(super) fn is_instance(instance: &str) -> bool {
    is_own_instance(instance) || is_of_original(instance)
}

fn check_instance(instance: &str) -> Result<(), Refusal> {
    is_own_instance(instance).then_some(()).ok_or_else(|| {
        Refusal::Impossible(format!(
            "instance: must be 8 to {MAX_INSTANCE_BYTES} hexadecimal digits, new at each start"
        ))
    })
}

/// A text from an agent, cut to the length that is kept.
pub(super) fn truncated(word: &str) -> &str {
    &word[..word.floor_char_boundary(MAX_WORD_BYTES)]
}

/// The elements of a set that are not in another, copied, so that the set can be changed meanwhile.
trait DifferenceOf {
    fn difference_of(&self, other: &HashSet<ExecutionKey>) -> Vec<ExecutionKey>;
}

impl DifferenceOf for std::collections::BTreeSet<ExecutionKey> {
    fn difference_of(&self, other: &HashSet<ExecutionKey>) -> Vec<ExecutionKey> {
        self.iter()
            .filter(|key| !other.contains(key))
            .copied()
            .collect()
    }
}
