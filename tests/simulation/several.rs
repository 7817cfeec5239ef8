//! Several tasks at once: groups. Members are found and counted here once more, without the core's own index.

use crate::world::{Lawful, World};
use sidebike::core::{About, Core, GroupSummary, Spec, Task, TaskKey};
use sidebike::wire::task::{Counts, TaskState};
use std::collections::{BTreeMap, BTreeSet};

/// The groups that tasks are in.
const GROUPS: [&str; 2] = ["g1", "g2"];

/// What is known of the groups.
#[derive(Debug, Default)]
pub struct Several {
    /// The groups that had an unfinished member after the last step, and of which start of the server.
    unfinished: (u64, BTreeSet<String>),
    /// The groups whose end was told in this step.
    told: BTreeSet<String>,
}

/// The members of a group.
fn members<'a>(core: &'a Core, group: &str) -> BTreeMap<TaskKey, &'a Task> {
    let tasks = core.tasks_by_key();
    tasks
        .filter(|(_, task)| task.group().is_some_and(|of| **of == *group))
        .collect()
}

impl World {
    /// Puts some tasks into a group.
    pub fn fill_in_group(&mut self, spec: &mut Spec) {
        if self.rng.chance(300) {
            spec.about = Some(Box::new(About {
                group: Some(self.rng.pick(&GROUPS).into()),
                ..About::default()
            }));
        }
    }

    /// The end of a group was told.
    pub fn group_finished(&mut self, group: &str) {
        self.count("group ended");
        self.several.told.insert(group.to_owned());
    }

    /// The laws of groups, after every step.
    pub fn look_at_groups(&mut self) -> Lawful {
        let life = self.server.lives;
        let core = &self.server.core;
        let mut unfinished = BTreeSet::new();
        for group in GROUPS {
            let members = members(core, group);
            the_summary_is_of_all_members(core, group, &members)?;
            let has_ended = members.keys().all(|key| core.is_finished(*key));
            if has_ended != core.is_group_finished(group) {
                return Err(format!(
                    "a_group_has_ended_when_its_members_have: {group} {has_ended}"
                ));
            }
            if !has_ended {
                unfinished.insert(group.to_owned());
            }
        }
        let (before_life, before) = &self.several.unfinished;
        if *before_life == life
            && let Some(group) =
                { before.difference(&unfinished) }.find(|group| !self.several.told.contains(*group))
        {
            return Err(format!("the_end_of_a_group_is_told: {group}"));
        }
        self.several.told.clear();
        self.several.unfinished = (life, unfinished);
        Ok(())
    }
}

/// The sum over the states is the number of members, and that of the executions the number of theirs.
fn the_summary_is_of_all_members(
    core: &Core,
    group: &str,
    members: &BTreeMap<TaskKey, &Task>,
) -> Lawful {
    let (mut summary, mut found, mut at) = (GroupSummary::default(), BTreeSet::new(), None);
    while let Ok((tasks, next)) = core.members_after(group, at) {
        for (key, task) in tasks {
            summary.add(&task);
            found.insert(key);
        }
        match next {
            None => break,
            next => at = next,
        }
    }
    let mut states: BTreeMap<&str, u32> = BTreeMap::new();
    let mut executions = Counts::default();
    for task in members.values() {
        *states.entry(task.state().word()).or_default() += 1;
        let views = task.execution_views();
        views.for_each(|e| *executions.of(e.state) += 1);
    }
    let is_right = found.iter().eq(members.keys())
        && summary.tasks().values().sum::<u32>() as usize == members.len()
        && *summary.tasks() == states
        && summary.executions() == executions;
    let has = |state: TaskState| states.contains_key(state.word());
    let is_good = members.is_empty()
        || (summary.state() == TaskState::Succeeded)
            == (states.len() == 1 && has(TaskState::Succeeded));
    match is_right && is_good {
        true => Ok(()),
        false => Err(format!(
            "the_summary_of_a_group_is_of_all_members: {group} {summary:?}, members {states:?} {executions:?}"
        )),
    }
}
