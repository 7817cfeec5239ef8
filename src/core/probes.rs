//! Probes: checks that run beside a task, and stop it by themselves.
//!
//! The server schedules every run. `probe_place.rs` says when one is due at one place and what its end means, and
//! `probe_runs.rs` does it. Here it is decided when probes begin, end, let a task begin, and stop it. What has no result
//! in time has failed, so a machine or a network that is gone stops the task, too. On the last allowed failure the task
//! is stopped within the same operation: nothing of it is handed out from then on, and what runs is canceled.
//!
//! Each place of a probe has one timer at most, and a task without probes has nothing. [`Core::change_place`]
//! changes a place, and keeps timers, the lists of machines and the records to be saved in step. Only that an order was
//! handed out is noted without it, as nothing else changes then.

use super::pace::Stopped;
use super::probe_data::{ONE_MACHINE, ProbeData, ProbeKey};
use super::probe_place::{Phase, ProbePlace};
use super::spec::Spec;
use super::timers::Timer;
use super::{Core, ExecutionKey, MachineKey, Refusal, TaskKey, Time, data_mut};
use crate::wire::probe::{Probe, ProbeOn};
use crate::wire::rollout::StopKind;
use std::collections::HashSet;
use std::sync::Arc;

impl Core {
    /// Refuses a task if no machine could run one of its probes. `targets` are the machines that will run the task.
    pub(super) fn check_probe_machines(
        &self,
        spec: &Spec,
        targets: &[MachineKey],
    ) -> Result<(), Refusal> {
        if spec.probes.iter().all(|probe| probe.on.is_none()) {
            return Ok(());
        }
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

    /// A place of a probe.
    pub(super) fn place_of(&self, key: ProbeKey) -> Option<&ProbePlace> {
        self.probe_data(key)?.places.get(&key.place)
    }

    fn probe_data(&self, key: ProbeKey) -> Option<&ProbeData> {
        let probes = self.tasks.get(&key.task)?.probes.as_ref()?;
        probes.get(key.probe as usize)
    }

    /// The probe of a key. The task is known.
    pub(super) fn probe_of(&self, key: ProbeKey) -> &Probe {
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
    pub(super) fn change_place<R>(
        &mut self,
        key: ProbeKey,
        change: impl FnOnce(&mut ProbePlace) -> R,
    ) -> Option<R> {
        let data = data_mut(&mut self.tasks, key.task).probe_mut(key.probe)?;
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
    pub(super) fn note_handed_out(&mut self, key: ProbeKey) {
        let data = data_mut(&mut self.tasks, key.task).probe_mut(key.probe);
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

    /// Stops a task because a probe failed, or keeps it from beginning.
    pub(super) fn stop_by_probe(&mut self, now: Time, key: ProbeKey, why: &str, output: &str) {
        let task = self.task(key.task);
        if task.finished_at.is_some() || task.canceled {
            return;
        }
        let has_stopped = self
            .probe_data(key)
            .is_some_and(|data| data.summary.has_stopped);
        if has_stopped {
            // Everything was canceled then, and nothing is handed out any more.
            return;
        }
        let before_start = task.is_gated();
        if let Some(data) = self.task_mut(key.task).probe_mut(key.probe) {
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
        let output = self
            .task(key)
            .stopped()
            .and_then(|stopped| stopped.output.as_ref());
        if let Some(bytes) = output.map(|output| output.len()) {
            let before = self.task(key).kept_by_probes() - bytes;
            self.recount_probes(key, before);
        }
    }

    /// Has a task begin once every probe has passed that has to before.
    pub(super) fn open_gate(&mut self, now: Time, key: TaskKey) {
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
