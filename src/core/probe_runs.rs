//! The runs of probes: which machine does one, what goes into its order, what its result means, and that there was none.

use super::machine::Machine;
use super::probe_data::{LastRun, ONE_MACHINE, ProbeKey, Summary};
use super::probe_place::{Effect, Out, Pace, Phase, ProbePlace};
use super::task::Execution;
use super::{Core, MachineKey, Refusal, TaskKey, Time, data_mut};
use crate::wire::agent::{Feature, Orders};
use crate::wire::probe::{MAX_MSG_BYTES, MAX_OUTPUT_BYTES, ProbeOrder, ProbeResult, RunId};
use crate::wire::task::Detail;
use std::collections::HashSet;
use std::sync::Arc;

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

/// A run that has ended.
struct Ended<'a> {
    passed: bool,
    machine: Arc<str>,
    msg: &'a str,
    output: &'a str,
    /// How long it took, if it gave a result.
    took_ms: Option<u64>,
}

impl Core {
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
                format!("its machine is {}", machine.state.word())
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
                    false => format!("its machine is {}", machine.state.word()),
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
        let place = self.place_of(key)?;
        let last = place.machine.as_ref();
        let last = last.and_then(|instance| self.instances.get(instance));
        if let Some(last) = last.filter(|_| !place.is_doubted) {
            let machine = self.machine(*last);
            let entry = self.match_index.entry(selector);
            let is_target = |e: &Execution| {
                let target = e.target.as_ref();
                target.is_some_and(|target| target.instance == machine.instance)
            };
            let stays = machine.can_probe()
                && !machine.has_hung_up
                && entry.means(machine.traits_key, &machine.instance)
                && !task.executions.iter().any(is_target);
            if stays {
                return Some(*last);
            }
        }
        let targets = task.executions.iter().filter_map(|e| e.target.as_ref());
        let targets: HashSet<&str> = targets.map(|target| &*target.instance).collect();
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
        if let Some(data) = self.task_mut(key.task).probe_mut(key.probe) {
            change(&mut data.summary, keeps_output);
        }
        self.recount_probes(key.task, before);
    }

    /// Counts the output of a task's probes, which was so much before.
    pub(super) fn recount_probes(&mut self, key: TaskKey, before: usize) {
        let task = data_mut(&mut self.tasks, key);
        let after = task.kept_by_probes();
        task.output_bytes = task.output_bytes + after - before;
        self.ledger.resize_output(before, after);
        self.list_finished_again(key);
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
}

impl Machine {
    /// Whether probes can be done there that are done on one machine.
    pub(super) fn can_probe(&self) -> bool {
        self.is_live() && self.abilities.has(Feature::Probes)
    }

    /// The same on a target, which may be draining.
    pub(super) fn can_probe_as_target(&self) -> bool {
        self.silent_at().is_some() && self.abilities.has(Feature::Probes)
    }
}
