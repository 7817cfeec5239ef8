//! Probes: checks that run beside a task, and stop it by themselves.
//!
//! The server schedules every run. `probe_place.rs` says when one is due and what its end means; here it is done: a
//! machine is chosen, the order waits in the machine's list until its next answer, the result is taken in. What has no
//! result in time has failed, so a machine or a network that is gone stops the task, too. On the last allowed failure
//! the task is stopped within the same operation: nothing of it is handed out from then on, and what runs is canceled.
//!
//! Each place of a probe has one timer at most, and a task without probes has nothing. [`Core::change_place`] is the
//! only way to change a place: it keeps timers, the lists of machines and the records to be saved in step.

use super::machine::Machine;
use super::pace::Stopped;
use super::probe_place::{Effect, Out, Pace, Phase, ProbePlace};
use super::selector::Selector;
use super::spec::Spec;
use super::task::{TaskData, timestamp};
use super::timers::Timer;
use super::{Core, ExecutionKey, MachineKey, Refusal, TaskKey, Time, data_mut};
use crate::wire::agent::{Feature, Orders};
use crate::wire::probe::{
    AnsweredProbe, MAX_MSG_BYTES, MAX_OUTPUT_BYTES, Probe, ProbeOn, ProbeOrder, ProbeResult,
    ProbeState, RunId,
};
use crate::wire::rollout::StopKind;
use crate::wire::task::Detail;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// The place of a probe that is done on one machine.
pub(super) const ONE_MACHINE: u32 = u32::MAX;
/// The most results of probes in a report: several times what an agent sends.
const MAX_RESULTS: usize = 256;
/// How much of orders to run probes goes into one answer, in bytes of their texts: it is beside everything that an agent
/// reads of an answer for its jobs. What does not fit goes with the next answer.
const MAX_ORDERED_BYTES: usize = 32 << 10;
/// How much earlier than the server an agent gives a run up, in milliseconds, so that its own words arrive in time; and
/// the part of the time-out that this is at most.
const EARLIER_MS: u64 = 250;
const EARLIER_PART: u64 = 10;

/// Refuses a report with more results of probes than any agent's: it is worked off under the lock.
pub fn check_probe_results(results: &[ProbeResult]) -> Result<(), Refusal> {
    match results.len() {
        0..=MAX_RESULTS => Ok(()),
        many => Err(Refusal::Impossible(format!(
            "probes: must have {MAX_RESULTS} entries at most, got {many}"
        ))),
    }
}

/// A checked probe.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedProbe {
    /// As it was posted.
    pub posted: Probe,
    /// The machines that it may be done on, unless it is done on the targets.
    pub on: Option<Selector>,
}

/// A probe of a task at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ProbeKey {
    pub task: TaskKey,
    /// Its number in the task.
    pub probe: u8,
    /// The number of the execution whose target it is done on, or [`ONE_MACHINE`].
    pub place: u32,
}

/// What is known of a probe of a task.
#[derive(Debug, Clone, Default)]
pub(super) struct ProbeData {
    pub summary: Summary,
    pub places: BTreeMap<u32, ProbePlace>,
}

/// How the runs of a probe went, at all of its places.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Summary {
    runs: u32,
    failed: u32,
    /// It has stopped the task, or kept it from beginning.
    has_stopped: bool,
    last: Option<LastRun>,
    last_ms: Option<u64>,
    max_ms: Option<u64>,
}

/// The run that ended last.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct LastRun {
    machine: Arc<str>,
    at: Time,
    msg: Box<str>,
    output: Box<str>,
}

impl Summary {
    /// What is kept of output, in bytes.
    fn kept(&self) -> usize {
        self.last.as_ref().map_or(0, |last| last.output.len())
    }
}

/// A run that has ended.
struct Ended<'a> {
    passed: bool,
    machine: Arc<str>,
    msg: &'a str,
    output: &'a str,
    /// How long it took, if it gave a result.
    took_ms: Option<u64>,
}

impl Spec {
    /// Whether a probe has to pass before anything is handed out.
    pub(super) fn has_probe_before(&self) -> bool {
        self.probes.iter().any(|probe| probe.posted.is_before())
    }

    /// Whether its targets have to run probes.
    pub(super) fn probes_targets(&self) -> bool {
        self.probes.iter().any(|probe| probe.on.is_none())
    }
}

impl TaskData {
    /// What is kept of the output of its probes, in bytes.
    pub(super) fn kept_by_probes(&self) -> usize {
        let probes = self.probes.iter().flat_map(|probes| &**probes);
        let stopped = self.pacing.as_ref().and_then(|it| it.stopped.as_ref());
        let stopped = stopped.and_then(|stopped| stopped.output.as_ref());
        probes.map(|probe| probe.summary.kept()).sum::<usize>()
            + stopped.map_or(0, |output| output.len())
    }

    /// Whether it waits for probes before anything of it is handed out.
    pub(super) fn is_gated(&self) -> bool {
        { self.pacing.as_ref() }.is_some_and(|pacing| pacing.is_gated && !pacing.is_stopped())
    }

    /// Whether a probe kept it from beginning.
    pub(super) fn failed_before(&self) -> bool {
        let stopped = self.pacing.as_ref().and_then(|it| it.stopped.as_ref());
        stopped.is_some_and(|stopped| stopped.before_start)
    }

    /// Whether an execution has not ended, or its undo has not.
    fn is_under_way(&self, n: u32) -> bool {
        self.executions.get(n as usize).is_some_and(|e| {
            let undo = e.current.undo.as_ref();
            let undo = undo.is_some_and(|undo| undo.state.is_none_or(|state| !state.is_settled()));
            !e.state.is_terminal() || undo
        })
    }

    /// Its probes as the API answers them; a list leaves their output out.
    pub(super) fn answered_probes(&self, with_output: bool) -> Vec<AnsweredProbe<Cow<'_, str>>> {
        let data = self.probes.iter().flat_map(|probes| &**probes);
        let probes = self.spec.probes.iter().zip(data);
        let probes = probes.map(|(probe, data)| {
            let summary = &data.summary;
            let last = summary.last.as_ref();
            let output = last.map_or("", |last| &last.output);
            AnsweredProbe {
                posted: probe.posted.clone(),
                state: data.state(),
                runs: summary.runs,
                failed: summary.failed,
                in_a_row: { data.places.values() }
                    .map(|place| place.in_a_row())
                    .max()
                    .unwrap_or(0),
                machine: last.map(|last| Cow::from(&*last.machine)),
                last_at: last.map(|last| timestamp(last.at)),
                msg: last.map_or("", |last| &last.msg).into(),
                output: if with_output { output } else { "" }.into(),
                last_ms: summary.last_ms,
                max_ms: summary.max_ms,
            }
        });
        probes.collect()
    }
}

impl ProbeData {
    fn state(&self) -> ProbeState {
        let has = |is: fn(Phase) -> bool| self.places.values().any(|place| is(place.phase));
        match () {
            () if has(|phase| phase == Phase::NotRecovered) => ProbeState::NotRecovered,
            () if has(|phase| matches!(phase, Phase::After(_))) => ProbeState::Recovering,
            () if has(|phase| phase == Phase::Recovered) => ProbeState::Recovered,
            () if self.summary.has_stopped => ProbeState::Failed,
            () if has(|phase| phase == Phase::Before) => ProbeState::Before,
            () if has(|phase| phase == Phase::Watching) => ProbeState::Running,
            () if has(|phase| phase == Phase::Over) => ProbeState::Ended,
            () => ProbeState::Waiting,
        }
    }
}

impl Core {
    /// Refuses a task if no machine could run one of its probes. `targets` are the machines that will run the task.
    pub(super) fn check_probe_machines(
        &self,
        spec: &Spec,
        targets: &[MachineKey],
    ) -> Result<(), Refusal> {
        let targets: HashSet<&MachineKey> = targets.iter().collect();
        for (n, probe) in spec.probes.iter().enumerate() {
            let Some(selector) = &probe.on else { continue };
            let mut machines = self.meant_by(selector).into_iter();
            let can = |key: &MachineKey| self.machine(*key).can_probe() && !targets.contains(key);
            if !machines.any(|key| can(&key)) {
                return Err(Refusal::Conflict(format!(
                    "probes[{n}].on: no online machine matches {:?} that is no target and whose agent can run probes",
                    selector.text().pattern
                )));
            }
        }
        Ok(())
    }

    fn place_of(&self, key: ProbeKey) -> Option<&ProbePlace> {
        let probes = self.tasks.get(&key.task)?.probes.as_ref()?;
        probes.get(key.probe as usize)?.places.get(&key.place)
    }

    /// The probe of a key. The task is known.
    fn probe_of(&self, key: ProbeKey) -> &Probe {
        &self.task(key.task).spec.probes[key.probe as usize].posted
    }

    /// The keys of all places of a task's probes.
    fn places_of(&self, task: TaskKey) -> Vec<ProbeKey> {
        let probes = self.task(task).probes.iter().flat_map(|probes| &**probes);
        let keys = probes.zip(0..).flat_map(|(data, probe)| {
            let places = data.places.keys();
            places.map(move |place| ProbeKey {
                task,
                probe,
                place: *place,
            })
        });
        keys.collect()
    }

    /// Changes a place of a probe, which need not have been there.
    fn change_place<R>(
        &mut self,
        key: ProbeKey,
        change: impl FnOnce(&mut ProbePlace) -> R,
    ) -> Option<R> {
        let probes = data_mut(&mut self.tasks, key.task).probes.as_mut()?;
        let data = probes.get_mut(key.probe as usize)?;
        let place = data.places.entry(key.place).or_default();
        let was = (place.next(), waiting_order(place));
        let result = change(place);
        let is = (place.next(), waiting_order(place));
        // Also where the time is the same: its timer may just have gone off.
        let timer = Timer::Probe(key);
        if let Some(time) = was.0 {
            self.timers.cancel(time, timer);
        }
        if let Some(time) = is.0 {
            self.timers.set(time, timer);
        }
        if was.1 != is.1 {
            if let Some(machine) = was.1.and_then(|instance| self.instances.get(&instance)) {
                let machine = *machine;
                self.machine_mut(machine).probes.remove(&key);
            }
            if let Some(machine) = is.1.and_then(|instance| self.instances.get(&instance)) {
                let machine = *machine;
                self.machine_mut(machine).probes.insert(key);
                self.wake(machine);
            }
        }
        if let Some(changes) = &mut self.changes {
            match key.place {
                ONE_MACHINE => changes.task(key.task),
                n => changes.execution(ExecutionKey { task: key.task, n }),
            }
        }
        Some(result)
    }

    /// A machine is about to be forgotten: what it was to run is counted when its time is over.
    pub(super) fn drop_orders(&mut self, key: MachineKey) {
        for probe in std::mem::take(&mut self.machine_mut(key).probes) {
            self.note_handed_out(probe);
        }
    }

    /// The order of a run is in no list any more. Nothing else changes with it, and nothing has to be saved.
    fn note_handed_out(&mut self, key: ProbeKey) {
        let probes = data_mut(&mut self.tasks, key.task).probes.iter_mut();
        let mut probes = probes.flat_map(|probes| probes.iter_mut());
        let data = probes.nth(key.probe as usize);
        if let Some(place) = data.and_then(|data| data.places.get_mut(&key.place)) {
            place.handed_out();
        }
    }

    /// Prepares the probes of a new task, and begins those that have to pass before anything is handed out.
    pub(super) fn add_probes(&mut self, now: Time, key: TaskKey) {
        let probes = self.task(key).spec.probes.len();
        if probes == 0 {
            return;
        }
        self.task_mut(key).probes = Some(vec![ProbeData::default(); probes].into());
        if !self.task(key).is_gated() {
            return;
        }
        for probe in 0..probes as u8 {
            let place = ONE_MACHINE;
            let one = ProbeKey {
                task: key,
                probe,
                place,
            };
            if self.probe_of(one).is_before() && *self.probe_of(one).on() != ProbeOn::Targets {
                self.change_place(one, |place| place.begin_before(now));
            }
        }
        for n in 0..self.task(key).executions.len() as u32 {
            self.probe_before_start(now, ExecutionKey { task: key, n });
        }
    }

    /// Begins the probes that have to pass on a target before anything is handed out.
    pub(super) fn probe_before_start(&mut self, now: Time, execution: ExecutionKey) {
        if !self.task(execution.task).is_gated() {
            return;
        }
        for key in self.probes_at(execution) {
            if key.place != ONE_MACHINE && self.probe_of(key).is_before() {
                self.change_place(key, |place| place.begin_before(now));
            }
        }
    }

    /// The places that concern an execution: those on its target, and those on one machine.
    fn probes_at(&self, execution: ExecutionKey) -> Vec<ProbeKey> {
        let probes = self.task(execution.task).spec.probes.iter().zip(0..);
        let keys = probes.map(|(probe, number)| ProbeKey {
            task: execution.task,
            probe: number,
            place: match probe.on {
                Some(_) => ONE_MACHINE,
                None => execution.n,
            },
        });
        keys.collect()
    }

    /// Something is being handed out: its probes begin, if they have not.
    pub(super) fn begin_probes(&mut self, now: Time, execution: ExecutionKey) {
        if self.task(execution.task).probes.is_none() {
            return;
        }
        for key in self.probes_at(execution) {
            let at = now.plus(self.probe_of(key).delay.unwrap_or_default());
            let place = self.place_of(key);
            if place.is_none_or(|place| matches!(place.phase, Phase::Idle | Phase::Before)) {
                self.change_place(key, |place| place.begin(at));
            }
        }
    }

    /// A task has ended: its probes have to pass again, or are over.
    pub(super) fn probes_after(&mut self, now: Time, key: TaskKey) {
        if self.task(key).probes.is_none() {
            return;
        }
        let has_undo = self.task(key).has_undo();
        for place in self.places_of(key) {
            let after = self.probe_of(place).after(has_undo);
            let until = (after.as_millis() > 0).then(|| now.plus(after));
            self.change_place(place, |place| place.task_ended(now, until));
        }
    }

    /// A task is about to be forgotten.
    pub(super) fn forget_probes(&mut self, key: TaskKey) {
        if self.task(key).probes.is_some() {
            for place in self.places_of(key) {
                self.change_place(place, ProbePlace::end);
            }
        }
    }

    /// The time of a place has come.
    pub(super) fn probe_is_due(&mut self, now: Time, key: ProbeKey) {
        let Some(place) = self.place_of(key).filter(|it| it.next() <= Some(now)) else {
            return;
        };
        if place.is_too_late(now) {
            self.change_place(key, ProbePlace::give_up);
            return;
        }
        match place.out().cloned() {
            // The server did not run meanwhile, so no result could arrive.
            Some(out) if out.since < self.resumed_at => {
                self.change_place(key, |place| place.run_again(now));
                self.begin_run(now, key);
            }
            Some(out) => self.no_result(now, key, &out),
            None => self.begin_run(now, key),
        }
    }

    fn no_result(&mut self, now: Time, key: ProbeKey, out: &Out) {
        let timeout = self.probe_of(key).timeout();
        let machine = { self.instances.get(&out.instance) }.map(|key| self.machine(*key));
        let msg = match machine {
            None => "its machine is gone".into(),
            Some(machine) if !machine.is_live() => {
                format!("its machine is {}", machine.state_word())
            }
            Some(_) if !out.is_handed_out => {
                format!("its machine did not ask for orders within {timeout}")
            }
            Some(_) => format!("no result within {timeout}"),
        };
        let label = machine.map_or_else(|| "".into(), |machine| machine.label.clone());
        self.change_place(key, |place| place.is_doubted = true);
        self.run_ended(
            now,
            key,
            Ended {
                passed: false,
                machine: label,
                msg: &msg,
                output: "",
                took_ms: None,
            },
        );
    }

    fn begin_run(&mut self, now: Time, key: ProbeKey) {
        let pace = Pace::of(self.probe_of(key));
        let Some(phase) = self.place_of(key).map(|place| place.phase) else {
            return;
        };
        let task = self.task(key.task);
        let is_at_target = key.place != ONE_MACHINE;
        let ends = match phase {
            // Nothing begins any more; the end of the task may take several calls.
            Phase::Before => task.is_stopped() || task.canceled,
            _ => false,
        };
        let is_over = is_at_target && !task.is_under_way(key.place);
        if ends || (is_over && matches!(phase, Phase::Before | Phase::Watching)) {
            self.change_place(key, ProbePlace::end);
            self.open_gate(now, key.task);
            return;
        }
        let machine = match is_at_target {
            true => self.target_of(key),
            false => self.machine_for(key),
        };
        match machine {
            Some(machine) if self.machine(machine).can_probe_as_target() => {
                let instance = self.machine(machine).instance.clone();
                self.change_place(key, |place| place.begin_run(now, pace, instance));
            }
            Some(machine) => {
                let machine = self.machine(machine);
                let msg = match machine.is_live() {
                    true => "its agent cannot run probes; one of the server's version can".into(),
                    false => format!("its machine is {}", machine.state_word()),
                };
                let label = machine.label.clone();
                self.run_failed(now, key, label, &msg);
            }
            // Between two attempts, or after a machine that is not known any more.
            None if is_at_target && phase == Phase::Watching => {
                self.change_place(key, |place| place.skip_run(now, pace));
            }
            None if is_at_target => self.run_failed(now, key, "".into(), "its machine is gone"),
            None => {
                let on = self.task(key.task).spec.probes[key.probe as usize]
                    .on
                    .as_ref();
                let pattern = on.map_or_else(|| "".into(), |on| on.text().pattern.clone());
                let msg = format!("no online machine matches {pattern:?} that is no target");
                self.run_failed(now, key, "".into(), &msg);
                if phase == Phase::Watching {
                    self.stop_by_probe(now, key, &format!("cannot run: {msg}"), "");
                }
            }
        }
    }

    /// A run has failed that was not begun.
    fn run_failed(&mut self, now: Time, key: ProbeKey, machine: Arc<str>, msg: &str) {
        self.run_ended(
            now,
            key,
            Ended {
                passed: false,
                machine,
                msg,
                output: "",
                took_ms: None,
            },
        );
    }

    /// The machine of the target that a probe is done on.
    fn target_of(&self, key: ProbeKey) -> Option<MachineKey> {
        let execution = self.task(key.task).executions.get(key.place as usize)?;
        let target = execution.target.as_ref()?;
        self.instances.get(&target.instance).copied()
    }

    /// The machine that a probe is done on which is done on one machine: the one of the last run, unless there was no
    /// result and there is another one.
    fn machine_for(&mut self, key: ProbeKey) -> Option<MachineKey> {
        let selector = self.task(key.task).spec.probes[key.probe as usize]
            .on
            .clone()?;
        // From now on it is known which machines match, also of those that appear.
        let selector = self.match_index.key_of(&selector);
        let task = self.task(key.task);
        let targets = task.executions.iter().filter_map(|e| e.target.as_ref());
        let targets: HashSet<&str> = targets.map(|target| &*target.instance).collect();
        let place = self.place_of(key)?;
        let candidates = self.machines_of(selector).filter(|key| {
            let machine = self.machine(*key);
            machine.can_probe() && !targets.contains(&*machine.instance)
        });
        candidates.min_by_key(|key| {
            let machine = self.machine(*key);
            let was_last = place.machine.as_ref() == Some(&machine.instance);
            let is_doubted = was_last && place.is_doubted;
            (machine.has_hung_up || is_doubted, !was_last, *key)
        })
    }

    /// Takes in what an agent says about runs of probes. What is not under way there does not count.
    pub(super) fn report_probes(&mut self, now: Time, instance: &str, results: &[ProbeResult]) {
        for result in results {
            let Some(task) = self.task_with_prefix(&result.id.task) else {
                continue;
            };
            let key = ProbeKey {
                task,
                probe: result.id.probe,
                place: result.id.place,
            };
            let is_awaited = self.place_of(key).is_some_and(|place| {
                let out = place.out().filter(|out| *out.instance == *instance);
                out.is_some() && place.number() == result.id.run
            });
            let machine = self.instances.get(instance).copied();
            let Some(machine) = machine.filter(|_| is_awaited) else {
                continue;
            };
            let longest = self.probe_of(key).timeout().as_millis();
            let ended = Ended {
                passed: result.ok,
                machine: self.machine(machine).label.clone(),
                msg: &result.msg,
                output: &result.output,
                took_ms: Some(result.duration_ms.min(longest)),
            };
            self.change_place(key, |place| place.is_doubted = false);
            self.run_ended(now, key, ended);
        }
    }

    fn run_ended(&mut self, now: Time, key: ProbeKey, ended: Ended<'_>) {
        let msg = &ended.msg[..ended.msg.floor_char_boundary(MAX_MSG_BYTES)];
        let from = ended.output.len().saturating_sub(MAX_OUTPUT_BYTES);
        let output = &ended.output[ended.output.ceil_char_boundary(from)..];
        let machine = ended.machine.clone();
        self.change_summary(key, output.len(), |summary, keeps_output| {
            summary.runs = summary.runs.saturating_add(1);
            summary.failed = summary.failed.saturating_add(u32::from(!ended.passed));
            if let Some(ms) = ended.took_ms {
                summary.last_ms = Some(ms);
                summary.max_ms = summary.max_ms.max(Some(ms));
            }
            summary.last = Some(LastRun {
                machine: ended.machine,
                at: now,
                msg: if ended.passed { "" } else { msg }.into(),
                output: if keeps_output { output } else { "" }.into(),
            });
        });
        if !self.tasks.contains_key(&key.task) {
            // It was the oldest, and had to make room.
            return;
        }
        let pace = Pace::of(self.probe_of(key));
        let had_failed = { self.place_of(key) }.is_some_and(|place| place.in_a_row() > 0);
        let effect = self.change_place(key, |place| place.ended(now, pace, ended.passed));
        let number = self.place_of(key).map_or(0, |place| place.in_a_row());
        let at = match &*machine {
            "" => String::new(),
            label => format!(" on {label}"),
        };
        match effect.unwrap_or(Effect::None) {
            // The next step of a rollout may have waited for that.
            Effect::None if had_failed && ended.passed => self.pace(now, key.task),
            Effect::None | Effect::Settled => {}
            Effect::MayBegin => self.open_gate(now, key.task),
            Effect::MustNotBegin => {
                let why = format!("did not pass before the start{at}: {msg}");
                self.stop_by_probe(now, key, &why, output);
            }
            Effect::Stop => {
                let is_over = key.place != ONE_MACHINE && {
                    // The result came after the end of its target, which is no failure of the task.
                    !self.task(key.task).is_under_way(key.place)
                };
                if !is_over {
                    let why = match number {
                        1 => format!("failed{at}: {msg}"),
                        _ => format!("failed {number} times in a row{at}: {msg}"),
                    };
                    self.stop_by_probe(now, key, &why, output);
                }
            }
        }
    }

    /// Changes what is known of a probe's runs, and counts its output. The change is told whether so much new output
    /// may be kept.
    fn change_summary(
        &mut self,
        key: ProbeKey,
        output: usize,
        change: impl FnOnce(&mut Summary, bool),
    ) {
        let before = self.task(key.task).kept_by_probes();
        let keeps_output = self.make_room_for_output(output);
        if !self.tasks.contains_key(&key.task) {
            return;
        }
        let task = self.task_mut(key.task);
        let probes = task.probes.iter_mut().flat_map(|probes| probes.iter_mut());
        if let Some(data) = probes.into_iter().nth(key.probe as usize) {
            change(&mut data.summary, keeps_output);
        }
        self.recount_probes(key.task, before);
    }

    /// Counts the output of a task's probes, which was so much before.
    fn recount_probes(&mut self, key: TaskKey, before: usize) {
        let task = data_mut(&mut self.tasks, key);
        let after = task.kept_by_probes();
        task.output_bytes = task.output_bytes + after - before;
        self.ledger.resize_output(before, after);
        if let Some(at) = task.finished_at {
            let task = task.clone();
            self.ledger.list_finished(at, key, &task);
        }
    }

    /// Stops a task because a probe failed, or keeps it from beginning.
    fn stop_by_probe(&mut self, now: Time, key: ProbeKey, why: &str, output: &str) {
        let task = self.task(key.task);
        if task.finished_at.is_some() || task.canceled {
            return;
        }
        let before_start = task.is_gated();
        let probes = self.task_mut(key.task).probes.iter_mut();
        let mut probes = probes.flat_map(|probes| probes.iter_mut());
        if let Some(data) = probes.nth(key.probe as usize) {
            data.summary.has_stopped = true;
        }
        let name = self.probe_of(key).name.clone();
        let msg = format!("probe {name} {why}");
        let is_news = !self.task(key.task).is_stopped();
        let keeps_output = is_news && self.make_room_for_output(output.len());
        let stopped = Stopped {
            name: Some(name.into()),
            output: (keeps_output && !output.is_empty()).then(|| output.into()),
            before_start,
            ..Stopped::new(StopKind::Probe, now, &msg)
        };
        self.stop_by(now, key.task, stopped, true);
    }

    /// Counts the output that is kept of the probe that stopped a task.
    pub(super) fn count_stop_output(&mut self, key: TaskKey) {
        let stopped = self
            .task(key)
            .pacing
            .as_ref()
            .and_then(|it| it.stopped.as_ref());
        let output = stopped.and_then(|stopped| stopped.output.as_ref());
        if let Some(bytes) = output.map(|output| output.len()) {
            let before = self.task(key).kept_by_probes() - bytes;
            self.recount_probes(key, before);
        }
    }

    /// Has a task begin once every probe has passed that has to before.
    fn open_gate(&mut self, now: Time, key: TaskKey) {
        let task = self.task(key);
        if !task.is_gated() || task.finished_at.is_some() || task.canceled {
            return;
        }
        let data = task.probes.iter().flat_map(|probes| &**probes);
        let is_open = task.spec.probes.iter().zip(data).all(|(probe, data)| {
            // What has ended meanwhile is not waited for. A task for machines that have not appeared is.
            let has_begun = !data.places.is_empty();
            let mut places = data.places.values();
            let all = places.all(|place| place.has_passed || place.phase == Phase::Over);
            !probe.posted.is_before() || (has_begun && all)
        });
        if is_open {
            if let Some(pacing) = &mut self.task_mut(key).pacing {
                pacing.is_gated = false;
            }
            self.pace(now, key);
        }
    }

    /// Whether no probe of a task has failed last: the next step of a rollout waits for that.
    pub(super) fn probes_pass(&self, key: TaskKey) -> bool {
        let task = self.task(key);
        let probes = task.probes.iter().flat_map(|probes| &**probes);
        let mut places = probes.flat_map(|data| &data.places);
        places.all(|(n, place)| {
            let is_asked =
                place.phase == Phase::Watching && (*n == ONE_MACHINE || task.is_under_way(*n));
            !is_asked || place.in_a_row() == 0
        })
    }

    /// Adds the probes that a machine is to run now.
    pub(super) fn order_probes(
        &mut self,
        now: Time,
        key: MachineKey,
        orders: &mut Orders<Arc<Detail>>,
    ) {
        let mut bytes = 0;
        while let Some(due) = self.machine(key).probes.first().copied() {
            let probe = self.probe_of(due);
            let size = probe.json_bytes();
            if bytes > 0 && bytes + size > MAX_ORDERED_BYTES {
                return;
            }
            bytes += size;
            self.machine_mut(key).probes.remove(&due);
            let order = self.probe_order(now, due);
            orders.probe.extend(order);
            self.note_handed_out(due);
        }
    }

    fn probe_order(&self, now: Time, key: ProbeKey) -> Option<ProbeOrder> {
        let place = self.place_of(key)?;
        let (task, probe) = (self.task(key.task), self.probe_of(key));
        let left = place.out()?.until.millis_since(now);
        let earlier = EARLIER_MS.min(probe.timeout().as_millis() / EARLIER_PART);
        Some(ProbeOrder {
            id: RunId {
                task: task.prefix.to_string(),
                probe: key.probe,
                place: key.place,
                run: place.number(),
            },
            name: probe.name.clone(),
            task_id: task.id.to_string(),
            task_name: task.spec.name.to_string(),
            timeout: probe.timeout(),
            within_ms: left.saturating_sub(earlier),
            command: probe.command.clone(),
            argv: probe.argv.clone(),
            http: probe.http.clone(),
        })
    }

    /// Sets the timers of a restored task's probes, and counts what is kept of them.
    pub(super) fn restore_probes(&mut self, key: TaskKey) {
        let kept = self.task(key).kept_by_probes();
        self.ledger.resize_output(0, kept);
        for place in self.places_of(key) {
            if let Some(time) = self.place_of(place).and_then(ProbePlace::next) {
                self.timers.set(time, Timer::Probe(place));
            }
        }
    }

    /// Whether a timer of a probe is the one of its place.
    pub(super) fn is_timer_of(&self, key: ProbeKey, time: Time) -> bool {
        self.place_of(key).and_then(ProbePlace::next) == Some(time)
    }

    /// Checks that each place that waits for its time has its timer, and each order its machine.
    pub(super) fn check_probes(&self, timers: usize) -> Result<(), String> {
        let (mut with_timer, mut listed) = (0, 0);
        for task in self.tasks.keys() {
            for key in self.places_of(*task) {
                let Some(place) = self.place_of(key) else {
                    continue;
                };
                with_timer += usize::from(place.next().is_some());
                let instance = waiting_order(place);
                let machine = instance.and_then(|instance| self.instances.get(&instance));
                if let Some(machine) = machine {
                    listed += 1;
                    if !self.machine(*machine).probes.contains(&key) {
                        return Err(format!("{key:?}: its order is not listed"));
                    }
                }
            }
        }
        let all: usize = self.machines.values().map(|it| it.probes.len()).sum();
        match (with_timer, listed) == (timers, all) {
            true => Ok(()),
            false => Err(format!(
                "probes: {timers} timers for {with_timer}, {all} orders for {listed}"
            )),
        }
    }
}

/// The instance that an order waits for to be put into an answer.
fn waiting_order(place: &ProbePlace) -> Option<Arc<str>> {
    let out = place.out().filter(|out| !out.is_handed_out);
    out.map(|out| out.instance.clone())
}

impl Machine {
    /// Whether probes can be done there that are done on one machine.
    fn can_probe(&self) -> bool {
        self.is_live() && self.abilities.has(Feature::Probes)
    }

    /// The same on a target, which may be draining.
    fn can_probe_as_target(&self) -> bool {
        self.silent_at().is_some() && self.abilities.has(Feature::Probes)
    }

    fn state_word(&self) -> &'static str {
        self.state.word()
    }
}
