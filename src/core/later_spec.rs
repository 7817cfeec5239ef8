//! Checks what a posted task says about its beginning, and the tasks that begin with its end: part of `spec.rs`, whose head
//! says how.

use super::after::Parent;
use super::children::Child;
use super::refusals::within;
use super::selector::Selector;
use super::spec::{Spec, check_above_zero, check_count};
use super::{TextLimits, Time};
use crate::wire::after::{Outcome, PostedAfter};
use crate::wire::duration::TimeSpan;
use crate::wire::strict_object::Posted;
use crate::wire::task::{Mode, PostedTask};
use std::sync::Arc;

/// The most tasks that one begins after; each is kept for it.
pub const MAX_PARENTS: usize = 100;
const DEFAULT_BLOCKED_TTL: TimeSpan = TimeSpan::from_secs(7 * 24 * 3_600);
const DEFAULT_TTL_CHILD: TimeSpan = TimeSpan::from_secs(600);

/// What a posted task has to wait for before it begins.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Wait {
    /// A time.
    pub start: Option<Start>,
    /// The end of others.
    pub after: Vec<Parent>,
    /// How long that may take.
    pub blocked_ttl: TimeSpan,
    /// It says nothing about machines itself: it is for those of the task that it goes with machine by machine.
    pub has_machines_of_parent: bool,
}

/// A time before which a task does not begin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    /// This one.
    At(Time),
    /// So long after the submit.
    After(TimeSpan),
}

/// Checks what a posted task has to wait for.
pub(super) fn checked_wait(
    posted: &PostedTask,
    has_machines_of_parent: bool,
) -> Result<Wait, String> {
    let start = match (posted.start_at, posted.delay) {
        (Some(_), Some(_)) => {
            return Err("startAt: has both startAt and delay, give one of them".into());
        }
        (Some(at), None) => Some(Start::At(Time(at.0))),
        (None, Some(delay)) => Some(Start::After(delay)),
        (None, None) => None,
    };
    let after = checked_after(posted.after.as_deref().unwrap_or_default())?;
    if after.is_empty() && posted.blocked_ttl.is_some() {
        return Err("blockedTtl: goes with after only".into());
    }
    let blocked_ttl = match after.is_empty() {
        true => TimeSpan::default(),
        false => check_above_zero(
            "blockedTtl",
            posted.blocked_ttl.unwrap_or(DEFAULT_BLOCKED_TTL),
        )?,
    };
    Ok(Wait {
        start,
        after,
        blocked_ttl,
        has_machines_of_parent,
    })
}

/// Checks the tasks that begin with the end of another one. Where they run is that one's, unless they say otherwise.
pub(super) fn checked_children(
    posted: &mut PostedTask,
    parent: &Selector,
    has_machines_of_parent: bool,
    limits: &TextLimits,
) -> Result<Vec<Child>, String> {
    let given = [
        (Outcome::Succeeded, posted.on_success.take()),
        (Outcome::Failed, posted.on_failure.take()),
        (Outcome::Ended, posted.on_end.take()),
    ];
    let given = given
        .into_iter()
        .filter_map(|(on, child)| Some((on, child?)));
    let checked = given.map(|(on, child)| {
        let field = Child::field(on);
        let has_own = child.0.machine_pattern.is_some() || child.0.instances.is_some();
        if has_machines_of_parent && !has_own {
            return Err(format!(
                "{field}.machinePattern: is required where the task has none itself (perMachine)"
            ));
        }
        let spec = checked_child(child.0, parent, limits).map_err(|why| within(field, &why))?;
        Ok(Child {
            on,
            spec: Arc::new(spec),
        })
    });
    checked.collect()
}

fn checked_child(
    mut posted: PostedTask,
    parent: &Selector,
    limits: &TextLimits,
) -> Result<Spec, String> {
    for (field, is_given) in [
        ("after", posted.after.is_some()),
        ("blockedTtl", posted.blocked_ttl.is_some()),
        ("startAt", posted.start_at.is_some()),
        ("delay", posted.delay.is_some()),
        ("onSuccess", posted.on_success.is_some()),
        ("onFailure", posted.on_failure.is_some()),
        ("onEnd", posted.on_end.is_some()),
    ] {
        if is_given {
            return Err(format!(
                "{field}: is not for a task that begins with the end of its parent"
            ));
        }
    }
    posted.mode = Some(posted.mode.unwrap_or(Mode::Any));
    posted.ttl = Some(posted.ttl.unwrap_or(DEFAULT_TTL_CHILD));
    let has_own = posted.machine_pattern.is_some() || posted.instances.is_some();
    if !has_own {
        posted.machine_pattern = Some(parent.text().pattern.to_string());
    }
    let is_narrowed =
        posted.exclude.is_some() || posted.machine_tags.is_some() || posted.hosts.is_some();
    let mut spec = Spec::checked(posted, limits, |text| {
        (text == parent.text()).then(|| parent.clone())
    })?;
    if !has_own && !is_narrowed {
        spec.selector = parent.clone();
    }
    Ok(spec)
}

/// Whether a posted task begins after another one machine by machine.
pub(super) fn is_per_machine(posted: &PostedTask) -> bool {
    let mut entries = posted.after.iter().flatten();
    entries.any(|Posted(entry)| entry.per_machine == Some(true))
}

/// Checks which entries are meant machine by machine.
fn check_per_machine(posted: &[Posted<PostedAfter>]) -> Result<(), String> {
    let meant = posted.iter().enumerate();
    let meant = meant.filter(|(_, Posted(entry))| entry.per_machine == Some(true));
    let mut first = None;
    for (n, Posted(entry)) in meant {
        if let Some(first) = first {
            return Err(format!(
                "after[{n}].perMachine: stands in one entry at most, after[{first}] has it, too"
            ));
        }
        first = Some(n);
        if entry.group.is_some() {
            return Err(format!(
                "after[{n}].perMachine: goes with task only, not with group"
            ));
        }
        if entry.min_succeeded.is_some() {
            return Err(format!(
                "after[{n}].minSucceeded: does not go with perMachine, by which each machine counts for itself"
            ));
        }
    }
    Ok(())
}

/// Checks that a task which begins after another one machine by machine has nothing that settles otherwise where and when
/// it runs.
pub(super) fn check_goes_per_machine(spec: &Spec) -> Result<(), String> {
    let entries = { spec.wait.iter() }.flat_map(|wait| &wait.after).zip(0..);
    let mut entries = entries.filter(|(parent, _)| parent.per_machine);
    let Some((_, n)) = entries.next() else {
        return Ok(());
    };
    if spec.mode == Mode::Any {
        return Err(format!(
            "after[{n}].perMachine: goes with mode \"all\" only, an \"any\" task runs once"
        ));
    }
    let others = [
        ("lateJoin", spec.late_join),
        ("rollout", spec.rollout.is_some()),
        ("spread", spec.spread.is_some()),
        ("expect", spec.counts.expect.is_some()),
        ("maxTargets", spec.counts.max_targets.is_some()),
    ];
    match others.into_iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((field, _)) => Err(format!(
            "{field}: does not go with perMachine (after[{n}]), by which the machines are those of the other task and each has its own time"
        )),
    }
}

fn checked_after(posted: &[Posted<PostedAfter>]) -> Result<Vec<Parent>, String> {
    check_count("after", posted.len(), MAX_PARENTS)?;
    check_per_machine(posted)?;
    let checked = posted.iter().enumerate().map(|(n, Posted(entry))| {
        let (name, is_group) = match (entry.task.as_deref(), entry.group.as_deref()) {
            (Some(task), None) => (task, false),
            (None, Some(group)) => (group, true),
            _ => ("", false),
        };
        if name.is_empty() {
            return Err(format!(
                "after[{n}]: needs task (the id or the name of a task) or group (the name of a group), one of them"
            ));
        }
        let on = entry.on.unwrap_or_default();
        if let Some(min) = entry.min_succeeded {
            if on != Outcome::Succeeded {
                return Err(format!(
                    "after[{n}].minSucceeded: goes with \"on\": \"succeeded\" only"
                ));
            }
            if min.is_zero() {
                return Err(format!("after[{n}].minSucceeded: must be above 0"));
            }
        }
        Ok(Parent {
            name: name.into(),
            is_group,
            on,
            min_succeeded: entry.min_succeeded,
            per_machine: entry.per_machine == Some(true),
        })
    });
    checked.collect()
}
