//! The data of a task's probes, and the API's answer made of it. What changes it is in `probes.rs` and `probe_runs.rs`.

use super::probe_place::{Phase, ProbePlace};
use super::selector::Selector;
use super::spec::Spec;
use super::task::{TaskData, timestamp};
use super::{TaskKey, Time};
use crate::wire::probe::{AnsweredProbe, Probe, ProbeState};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The place of a probe that is done on one machine.
pub(super) const ONE_MACHINE: u32 = u32::MAX;

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
    pub runs: u32,
    pub failed: u32,
    /// It has stopped the task, or kept it from beginning.
    pub has_stopped: bool,
    pub last: Option<LastRun>,
    pub last_ms: Option<u64>,
    pub max_ms: Option<u64>,
}

/// The run that ended last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LastRun {
    pub machine: Arc<str>,
    pub at: Time,
    pub msg: Box<str>,
    pub output: Box<str>,
}

impl Summary {
    /// What is kept of output, in bytes.
    fn kept(&self) -> usize {
        self.last.as_ref().map_or(0, |last| last.output.len())
    }
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
        let stopped = self.stopped().and_then(|stopped| stopped.output.as_ref());
        probes.map(|probe| probe.summary.kept()).sum::<usize>()
            + stopped.map_or(0, |output| output.len())
    }

    /// What is known of a probe of it, to be changed.
    pub(super) fn probe_mut(&mut self, probe: u8) -> Option<&mut ProbeData> {
        self.probes.as_mut()?.get_mut(probe as usize)
    }

    /// Whether it waits for probes before anything of it is handed out.
    pub(super) fn is_gated(&self) -> bool {
        { self.pacing.as_ref() }.is_some_and(|pacing| pacing.is_gated && !pacing.is_stopped())
    }

    /// Whether a probe kept it from beginning.
    pub fn failed_before(&self) -> bool {
        self.stopped().is_some_and(|stopped| stopped.before_start)
    }

    /// Whether an execution has not ended, or its undo has not.
    pub(super) fn is_under_way(&self, n: u32) -> bool {
        self.executions.get(n as usize).is_some_and(|e| {
            let undo = e.current.undo.as_ref();
            !e.state.is_terminal() || undo.is_some_and(|undo| undo.is_unsettled())
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
