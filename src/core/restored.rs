//! Rebuilds a core from saved records.
//!
//! The records come from a file and are not trusted: a contradiction is an error that names the record. To
//! restore a new field, set it where the other fields of its record are set.

use super::abilities::Abilities;
use super::after::Edge;
use super::children::Child;
use super::counting::{Counts, KeepAlive, Recount};
use super::lazy_box::LazyBox;
use super::machine::{Kind, Machine};
use super::named_limits::SetKey;
use super::notify::CheckedNotify;
use super::original::OriginalAgent;
use super::plan::Plan;
use super::probe_data::{CheckedProbe, ONE_MACHINE, ProbeData};
use super::rollout::Rollout;
use super::saved::{
    OutputKey, Saved, SavedExecution, SavedMachine, SavedPiece, SavedPlace, SavedProbe, SavedTask,
};
use super::saving::Changes;
use super::schedule::Progress;
use super::selector::{Selector, SelectorText, Tags, Traits, no_tags};
use super::spec::Spec;
use super::task::{Execution, Place, Target, Task, TaskData};
use super::user::JOIN_ALL;
use super::{Core, ExecutionKey, MachineKey, ScheduleKey, TaskKey, Time, data_mut};
use crate::recurrence::Zone;
use crate::wire::agent::Feature;
use crate::wire::machine::MachineState;
use crate::wire::probe::ProbeOn;
use crate::wire::schedule::PostedSchedule;
use crate::wire::task::ExecutionState;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

impl Core {
    /// A core as it was saved; it records changes. The time since then does not count: everything that an
    /// unfinished task waits for is later by it, and every machine gets its usual time to report in. The error
    /// names the record that is wrong.
    pub fn restored(limits: super::Limits, now: Time, saved: Saved) -> Result<Core, String> {
        let mut core = Core::new(limits, now);
        let mut changes = Changes::default();
        core.away_ms = saved.away_ms;
        let away = now.millis_since(saved.last_alive);
        if away > 0 && saved.waits() {
            core.away_ms = core.away_ms.saturating_add(away);
            // Saved together with the next sign of life, or the next start would not know of this time.
            changes.away_ms = Some(core.away_ms);
        }
        core.resumed_at = now;
        core.next_task = core.next_task.max(saved.next_task);
        core.halt = saved.halt;
        core.restore_limits(now, saved.limits);
        let mut interner = Interner::default();
        for (instance, mut machine) in saved.machines {
            interner.share(&mut machine.label);
            interner.share(&mut machine.host);
            interner.share(&mut machine.version);
            interner.share(&mut machine.arch);
            let away = core.away_since(machine.away_ms);
            let canceled = std::mem::take(&mut machine.canceled).into_iter();
            machine.canceled = canceled.map(|attempt| attempt.later(away)).collect();
            machine.suspended_since = machine.suspended_since.map(|since| since.later_by(away));
            let instance = interner.shared(instance);
            core.restore_machine(now, instance, machine);
        }
        let machines = core.machines.values();
        let online = machines.filter(|machine| machine.is_restored).count();
        core.recount = Recount::of(now, online);
        let mut executions = saved.executions.into_iter().peekable();
        for (key, mut task) in saved.tasks {
            let mut of_task = Vec::new();
            while let Some(((_, n), execution)) = executions.next_if(|((of, _), _)| *of == key) {
                if of_task.len() != n as usize {
                    return Err(format!(
                        "execution {n} of task number {} does not follow another",
                        key.0
                    ));
                }
                of_task.push(execution);
            }
            // In the order of the tasks: one of an earlier task is left over.
            if let Some(((of, _), _)) = executions.peek().filter(|((of, _), _)| *of < key) {
                return Err(without_task(*of));
            }
            interner.share_all(&mut task, &mut of_task);
            core.restore_task(now, key, task, of_task)?;
        }
        if let Some(((of, _), _)) = executions.next() {
            return Err(without_task(of));
        }
        core.restore_suspensions(now, saved.suspensions);
        for (key, piece) in saved.output {
            core.restore_output(key, &piece, &mut changes);
        }
        core.restore_notifications(saved.notifications, &mut changes);
        core.restore_dependents(now);
        core.schedules.next_key = core.schedules.next_key.max(saved.next_schedule);
        core.restore_schedules(now, saved.schedules, saved.progress, &saved.zones)?;
        core.notices.clear();
        core.changes = Some(changes);
        // The limits may be lower than before.
        core.keep_within_limits();
        core.make_room_for_output(0);
        core.restored = core.sums_beyond_limits();
        Ok(core)
    }

    /// For how long servers were away since a record was saved, in ms. The record says for how long they had been until
    /// then.
    pub(super) fn away_since(&self, away_ms: u64) -> u64 {
        self.away_ms.saturating_sub(away_ms)
    }

    /// The zones are read before: what is not among them is unknown.
    fn restore_schedules(
        &mut self,
        now: Time,
        schedules: BTreeMap<ScheduleKey, Arc<PostedSchedule>>,
        mut progress: BTreeMap<ScheduleKey, Progress>,
        zones: &BTreeMap<String, Zone>,
    ) -> Result<(), String> {
        for (key, posted) in schedules {
            let Some(mut progress) = progress.remove(&key) else {
                return Err(format!("schedule number {} has no progress", key.0));
            };
            let wrong = |why: String| format!("schedule {}: {why}", progress.id);
            let zone = match zones.get(Plan::zone_name(&posted)) {
                Some(zone) => zone.clone(),
                None => {
                    let why = "there are no data for its time zone any more; give it another";
                    progress.stopped = Some(why.into());
                    Zone::utc()
                }
            };
            let mut task = posted.task.read().map_err(wrong)?;
            task.name.get_or_insert_with(|| progress.id.to_string());
            let known = |text: &SelectorText| Some(Selector::accepted(text.clone()));
            let mut spec = Spec::checked(task, &super::Limits::NONE.texts, known).map_err(wrong)?;
            spec.selectors_mut().for_each(Selector::drop_compiled);
            let posted = Arc::unwrap_or_clone(posted);
            let plan = Plan::checked(posted, spec, zone, progress.first).map_err(wrong)?;
            self.restore_schedule(now, key, plan, progress)?;
        }
        match progress.first_key_value() {
            None => Ok(()),
            Some((key, _)) => Err(format!("schedule number {} is not there", key.0)),
        }
    }

    fn restore_machine(
        &mut self,
        now: Time,
        instance: Arc<str>,
        saved: SavedMachine,
    ) -> MachineKey {
        let key = MachineKey(self.next_machine);
        self.next_machine += 1;
        let traits = Traits {
            label: saved.label.clone(),
            host: saved.host.clone(),
            tags: match saved.tags.is_empty() {
                true => no_tags(),
                false => Tags::new(saved.tags),
            },
        };
        let tags = traits.tags.clone();
        let traits_key = self.match_index.add_machine(traits, key, None);
        self.instances.insert(instance.clone(), key);
        let target = Target {
            label: saved.label.clone(),
            instance: instance.clone(),
            host: saved.host.clone(),
        };
        let kind = match saved.original {
            true => Kind::Original,
            false => Kind::Agent,
        };
        let machine = Machine {
            target: Arc::new(target),
            instance,
            label: saved.label,
            host: saved.host,
            version: saved.version,
            arch: saved.arch,
            tags,
            traits_key,
            kind,
            state: match (saved.offline, saved.draining) {
                (true, _) => MachineState::Offline,
                (false, true) => MachineState::Draining,
                (false, false) => MachineState::Online,
            },
            jobs: saved.jobs,
            // Until its next poll says what it can; an agent refuses what it does not understand.
            abilities: Abilities::of_agent(kind, Feature::ALL),
            since: saved.since,
            last_seen: now,
            is_restored: !saved.offline,
            offline_since: now,
            left: saved.left,
            suspended_since: saved.suspended_since,
            wish: saved.wish,
            is_drained: false,
            is_ending: false,
            asks_standing: false,
            says_draining: saved.draining,
            watched_at: None,
            // It does not join a task twice.
            joins_pending: Some(JOIN_ALL),
            seq: saved.seq,
            poll_held: false,
            has_hung_up: false,
            waking: false,
            ready: None,
            inbox: Default::default(),
            offers: BTreeSet::new(),
            active: BTreeSet::new(),
            probes: BTreeSet::new(),
            cancels: Vec::new(),
            original: OriginalAgent::with(saved.canceled),
        };
        self.add_machine(key, machine);
        self.refresh_ready(key);
        if saved.offline {
            self.forget_later(now, key);
        } else {
            self.watch_silence(key, now.plus(super::OFFLINE_AFTER));
        }
        key
    }

    fn restore_task(
        &mut self,
        now: Time,
        key: TaskKey,
        mut saved: SavedTask,
        executions: Vec<SavedExecution>,
    ) -> Result<(), String> {
        let finished = saved.finished_at.is_some();
        let away = self.away_since(saved.away_ms);
        let later = |time: Time, away: u64| match finished {
            true => time,
            false => time.later_by(away),
        };
        let (probes, mut data) = restored_probes(now, away, std::mem::take(&mut saved.probes));
        let spec = Arc::new(Spec {
            probes,
            ..restored_spec(&mut saved)
        });
        let mut task = TaskData {
            probes: None,
            id: saved.id,
            prefix: saved.prefix,
            created_at: saved.created_at,
            order: saved.order,
            limit_set: SetKey::NONE,
            expires_at: later(saved.expires_at, away),
            finished_at: saved.finished_at,
            matched: saved.matched,
            spared: saved.spared,
            pacing: match finished {
                true => saved.pacing,
                false => saved.pacing.map(|pacing| Box::new(pacing.later(away))),
            },
            open: saved.open,
            late_join_full: saved.late_join_full,
            canceled: saved.canceled,
            withdrawn: saved.withdrawn,
            waiting: saved.waiting.map(|mut waiting| {
                waiting.blocked_until = waiting.blocked_until.map(|until| later(until, away));
                let edges = std::mem::take(&mut waiting.after).into_iter();
                waiting.after = edges.map(Edge::restored).collect();
                waiting
            }),
            needed: false,
            cancels_dependents: saved.cancels_dependents,
            rerun_of: saved.rerun_of,
            counts: Default::default(),
            undos: Default::default(),
            notifications: Vec::new(),
            output_bytes: 0,
            is_last_firing: false,
            executions: Vec::new(),
            spec,
        };
        let mut places = Vec::new();
        for (n, saved) in (0..).zip(executions) {
            let key = ExecutionKey { task: key, n };
            if !saved.has_valid_place() || (finished && !saved.state.is_terminal()) {
                return Err(format!(
                    "execution {n} of task {} is {}, which does not fit its place {:?}",
                    task.id,
                    saved.state.word(),
                    saved.place
                ));
            }
            let away = self.away_since(saved.away_ms);
            *task.counts.of(saved.state) += 1;
            self.ledger.add_execution(saved.state);
            places.push((key, saved.place));
            for (probe, place) in saved.probes {
                if let Some(data) = data.get_mut(probe as usize) {
                    data.places.insert(key.n, place.restored(now, away));
                }
            }
            let mut current = saved.current;
            if let Some(undo) = &current.undo {
                let state = undo.state;
                state
                    .into_iter()
                    .for_each(|state| *task.undos.of(state) += 1);
            }
            // Other output is restored later.
            task.output_bytes += current.kept_output();
            let past = saved.past.iter().map(|past| past.attempt.kept_output());
            task.output_bytes += past.sum::<usize>();
            for time in [
                &mut current.due_at,
                &mut current.expires_at,
                &mut current.overdue_at,
            ] {
                *time = time.map(|time| later(time, away));
            }
            task.executions.push(Execution {
                state: saved.state,
                place: Place::Nowhere,
                target: saved.target,
                canceling: saved.canceling,
                current: match (saved.state, current.number) {
                    // In a rollout it has its own ttl.
                    (ExecutionState::Queued, 1)
                        if current.msg.is_empty()
                            && current.expires_at.is_none()
                            && current.due_at.is_none() =>
                    {
                        LazyBox::unallocated()
                    }
                    _ => LazyBox::new(current),
                },
                past: match saved.past.is_empty() {
                    true => LazyBox::unallocated(),
                    false => LazyBox::new(saved.past),
                },
            });
        }
        task.probes = (!data.is_empty()).then(|| data.into());
        task.output_bytes += task.kept_by_probes();
        self.index_restored(now, key, Task::new(task))?;
        for (execution, place) in places {
            self.restore_place(now, execution, place);
            self.guard(execution);
            self.list_off_queue(execution);
            self.restore_undo(execution);
        }
        self.restore_probes(key);
        self.watch_pool(now, key);
        self.restore_pacing(now, key);
        Ok(())
    }

    /// Adds a restored task to the indexes and sets its timers.
    fn index_restored(&mut self, now: Time, key: TaskKey, task: Task) -> Result<(), String> {
        self.next_task = self.next_task.max(key.0 + 1);
        if self.task_ids.insert(task.id.clone(), key).is_some() {
            return Err(format!("two tasks have the id {}", task.id));
        }
        if task.prefix != task.id {
            self.task_prefixes.insert(task.prefix.clone(), key);
        }
        self.task_names
            .entry(task.spec.name.clone())
            .or_default()
            .insert(key);
        if let Some(group) = task.group() {
            self.groups.add(group, key, task.finished_at.is_some());
        }
        let open = task.open;
        match task.finished_at {
            Some(at) => {
                self.ledger.finish_task(at, key, &task);
                self.stats.finished(task.state());
                self.set_forget_task(key, &task);
            }
            None if task.is_unbegun() => {}
            None => self.set_task_ttl(key, &task),
        }
        let is_finished = task.finished_at.is_some();
        self.ledger.add_task(task.spec.kept_bytes());
        self.tasks.insert(key, task);
        self.add_blobs(key);
        self.list_queued(key);
        if !is_finished {
            self.take_key(key);
            self.take_limits(now, key);
            self.count_restored(key);
        }
        self.index_firing(key);
        if open {
            let selector = self.selector_key_of(key);
            self.open(key, selector);
        }
        let waiting = self.task(key).waiting.clone();
        if let Some(waiting) = waiting.filter(|waiting| waiting.holds) {
            self.keep_parents(key, &waiting);
        }
        self.list_waiting(key);
        Ok(())
    }

    fn restore_place(&mut self, now: Time, key: ExecutionKey, mut place: SavedPlace) {
        if place == SavedPlace::Inbox && self.task(key.task).is_any() {
            // It was only offered to that machine, whose poll is not held any more.
            place = SavedPlace::Selector;
            let offered = &mut data_mut(&mut self.tasks, key.task).executions[key.n as usize];
            offered.target = None;
        }
        // Only work that its machine has, or that is queued for it, needs the machine.
        let wanted = matches!(place, SavedPlace::Inbox | SavedPlace::Active);
        let target = self.execution(key).target.clone().filter(|_| wanted);
        let machine = target.map(|target| match self.instances.get(&target.instance) {
            Some(machine) => *machine,
            None => {
                let saved = SavedMachine {
                    label: target.label.clone(),
                    host: target.host.clone(),
                    version: "".into(),
                    arch: "".into(),
                    original: false,
                    jobs: 1,
                    since: now,
                    left: false,
                    offline: false,
                    draining: false,
                    suspended_since: None,
                    wish: None,
                    tags: BTreeMap::new(),
                    seq: 0,
                    canceled: Vec::new(),
                    away_ms: self.away_ms,
                };
                self.restore_machine(now, target.instance.clone(), saved)
            }
        });
        match (place, machine) {
            (SavedPlace::Active, Some(machine)) => self.place(key, Place::Active(machine)),
            (SavedPlace::Inbox, Some(machine)) => self.place(key, Place::Inbox(machine)),
            (SavedPlace::Selector, _) => {
                let selector = self.selector_key_of(key.task);
                self.place(key, Place::Selector(selector));
            }
            // Without a target only `Nowhere` is possible, see `has_valid_place`.
            (SavedPlace::Active | SavedPlace::Inbox, None) | (SavedPlace::Nowhere, _) => {}
        }
        self.set_attempt_timers(key);
    }

    fn restore_output(&mut self, key: OutputKey, piece: &SavedPiece, changes: &mut Changes) {
        let Some(task) = self.tasks.get_mut(&key.task).map(Task::data_mut) else {
            return;
        };
        let Some(execution) = task.executions.get_mut(key.n as usize) else {
            return;
        };
        if !execution.state.is_terminal() && execution.current.number == key.attempt {
            *changes.saved_bytes.entry(key).or_default() += piece.cost();
        }
        let past = execution
            .past
            .allocated_mut()
            .into_iter()
            .flatten()
            .map(|past| &mut past.attempt);
        let attempt = past
            .chain([&mut *execution.current])
            .find(|attempt| attempt.number == key.attempt);
        let Some(attempt) = attempt else { return };
        let output = Arc::make_mut(attempt.output.get_or_insert_default());
        let before = output.kept();
        output.write(piece.stream, piece.offset, &piece.data);
        let after = output.kept();
        task.output_bytes = task.output_bytes + after - before;
        self.ledger.resize_output(before, after);
        self.list_finished_again(key.task);
    }
}

fn without_task(key: TaskKey) -> String {
    format!("the executions of task number {} have no task", key.0)
}

/// What was posted of a restored task, but for its probes.
fn restored_spec(saved: &mut SavedTask) -> Spec {
    let children = std::mem::take(&mut saved.children).into_iter();
    let keep_alive = saved.keep_alive.take();
    Spec {
        id: None,
        name: saved.name.clone(),
        priority: saved.priority,
        limits: saved.limits.clone(),
        spread: saved.spread,
        unique: saved.unique.clone(),
        selector: Selector::accepted(SelectorText {
            pattern: saved.pattern.clone(),
            narrowing: saved.narrowing.clone(),
        }),
        counts: Counts {
            expect: saved.expect,
            max_targets: saved.max_targets,
            keep_alive: keep_alive.map(|keep_alive| KeepAlive {
                keep: keep_alive.keep,
                pool: keep_alive.pool.map(|pool| Selector::of_pattern(&pool)),
            }),
        },
        probes: Box::default(),
        rollout: saved.rollout.take().map(|posted| {
            Box::new(Rollout {
                order: posted.order.unwrap_or_default(),
                canary: posted.canary.as_deref().map(Selector::of_pattern),
                posted,
            })
        }),
        mode: saved.mode,
        ttl: saved.ttl,
        late_join: saved.late_join,
        retry: saved.retry.take().map(Box::new),
        result_ttl: saved.result_ttl,
        failure_ttl: saved.failure_ttl,
        sent_bytes: saved.detail.json_bytes()
            + saved.files.as_ref().map_or(0, |files| files.text_bytes()),
        files: saved.files.take(),
        detail: saved.detail.clone(),
        notify: saved.notify.iter().map(CheckedNotify::accepted).collect(),
        scheduled: saved.scheduled.clone(),
        about: saved.about.take(),
        children: children
            .map(|mut child| {
                let probes = std::mem::take(&mut child.task.probes);
                let spec = Spec {
                    id: child.id,
                    probes: restored_probes(Time::default(), 0, probes).0,
                    ..restored_spec(&mut child.task)
                };
                Child {
                    on: child.on,
                    spec: Arc::new(spec),
                }
            })
            .collect(),
        wait: None,
    }
}

/// The probes of a restored task, and what is known of them but on its targets.
fn restored_probes(
    now: Time,
    away: u64,
    saved: Vec<SavedProbe>,
) -> (Box<[CheckedProbe]>, Vec<ProbeData>) {
    let both = saved.into_iter().map(|saved| {
        let on = match saved.posted.on() {
            ProbeOn::Targets => None,
            ProbeOn::Machine(pattern) => Some(Selector::of_pattern(pattern)),
        };
        let place = saved.place.map(|place| place.restored(now, away));
        let data = ProbeData {
            summary: saved.summary,
            places: { place.into_iter() }
                .map(|place| (ONE_MACHINE, place))
                .collect(),
        };
        let posted = saved.posted;
        (CheckedProbe { posted, on }, data)
    });
    let (probes, data): (Vec<_>, _) = both.unzip();
    (probes.into(), data)
}

/// Stores equal texts of different records once, as they were before they were saved.
#[derive(Default)]
struct Interner(HashSet<Arc<str>>);

impl Interner {
    fn shared(&mut self, text: Arc<str>) -> Arc<str> {
        match self.0.get(&text) {
            Some(known) => known.clone(),
            None => {
                self.0.insert(text.clone());
                text
            }
        }
    }

    fn share(&mut self, text: &mut Arc<str>) {
        *text = self.shared(text.clone());
    }

    fn share_all(&mut self, task: &mut SavedTask, executions: &mut [SavedExecution]) {
        self.share(&mut task.name);
        self.share(&mut task.pattern);
        if task.prefix == task.id {
            task.prefix = task.id.clone();
        }
        let targets = executions.iter_mut().flat_map(|e| {
            let past = e.past.iter_mut().filter_map(|past| past.target.as_mut());
            past.chain(e.target.as_mut())
        });
        for target in targets.map(Arc::make_mut) {
            self.share(&mut target.label);
            self.share(&mut target.instance);
            self.share(&mut target.host);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Limits, Selection};
    use crate::wire::task::PostedTask;

    fn submit(core: &mut Core, now: Time, id: &str) -> TaskKey {
        let json = r#"{"machinePattern": "m", "ttl": "1m", "detail": {"command": "true"}}"#;
        let posted: PostedTask = serde_json::from_str(json).unwrap();
        let spec = Spec::checked(posted, &Limits::NONE.texts, |_| None).unwrap();
        core.submit(now, id, spec).unwrap()
    }

    #[test]
    fn a_start_changes_no_record_and_the_time_of_each_absence_counts_once() {
        let mut core = Core::new(Limits::NONE, Time(0));
        core.record_changes();
        let mut saved = Saved::default();
        let first = submit(&mut core, Time(0), "first");
        saved.apply(Time(0), &core.take_batch());
        let mut core = Core::restored(Limits::NONE, Time(10_000), saved.clone()).unwrap();
        let batch = core.take_batch();
        assert!(batch.tasks.is_empty() && batch.executions.is_empty());
        assert_eq!((batch.away_ms, batch.reader_version()), (Some(10_000), 7));
        saved.apply(Time(10_000), &batch);
        let second = submit(&mut core, Time(10_000), "second");
        saved.apply(Time(10_000), &core.take_batch());
        // It is away for five seconds, and ends again before it has saved anything.
        Core::restored(Limits::NONE, Time(15_000), saved.clone()).unwrap();
        let mut core = Core::restored(Limits::NONE, Time(30_000), saved.clone()).unwrap();
        assert_eq!(core.task(first).expires_at, Time(60_000 + 10_000 + 20_000));
        assert_eq!(core.task(second).expires_at, Time(10_000 + 60_000 + 20_000));
        saved.apply(Time(30_000), &core.take_batch());
        // With nothing that waits, a file of an older version keeps its version.
        core.cancel(Time(30_000), first, &Selection::All).unwrap();
        core.cancel(Time(30_000), second, &Selection::All).unwrap();
        saved.apply(Time(30_000), &core.take_batch());
        let mut core = Core::restored(Limits::NONE, Time(40_000), saved).unwrap();
        assert_eq!(core.take_batch().away_ms, None);
    }
}
