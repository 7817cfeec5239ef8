//! Several tasks at once: groups, lists, sweeps. Members are found and counted here once more, without the core's own index.

use crate::users::base_spec;
use crate::world::{Event, Lawful, World};
use serde_json::{Map, json};
use sidebike::core::{
    About, Core, GroupSummary, Meant, Selection, Spec, Sweep, Task, TaskKey, TaskQuery,
};
use sidebike::wire::task::{Counts, ExecutionState, TaskState};
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
    /// The lists that were accepted and of which every task is known.
    lists: Vec<Vec<TaskKey>>,
    /// The cancel of a group that is under way.
    sweep: Option<Sweep>,
}

impl Several {
    /// Leaves out the lists of which something is forgotten.
    fn forget_lists(&mut self, core: &Core) {
        let is_known = |key: &TaskKey| core.show(*key).is_ok();
        self.lists.retain(|list| list.iter().all(is_known));
    }
}

/// The members of a group.
fn members<'a>(core: &'a Core, group: &str) -> BTreeMap<TaskKey, &'a Task> {
    let tasks = core.tasks_by_key();
    tasks
        .filter(|(_, task)| task.group().is_some_and(|of| **of == *group))
        .collect()
}

/// An execution of a task.
type ExecutionId = (TaskKey, u32);

/// The executions of some tasks that wait, and those that are being canceled.
fn waiting_and_canceling(
    core: &Core,
    keys: &[TaskKey],
) -> (BTreeSet<ExecutionId>, BTreeSet<ExecutionId>) {
    let (mut waiting, mut canceling) = (BTreeSet::new(), BTreeSet::new());
    for key in keys {
        let Ok(task) = core.show(*key) else { continue };
        for e in task.execution_views() {
            match e.state {
                ExecutionState::Held | ExecutionState::Queued => waiting.insert((*key, e.n)),
                _ if e.msg == "cancel requested" => canceling.insert((*key, e.n)),
                _ => false,
            };
        }
    }
    (waiting, canceling)
}

impl World {
    /// Submits a list, which may have one that is refused.
    pub fn user_submits_list(&mut self) -> Lawful {
        let mut list: Vec<(String, Spec)> = Vec::new();
        for _ in 0..self.rng.between(2, 4) {
            let pattern = self.rng.pick(&[".*", "web", "^db-0$", "nobody"]);
            let mut spec = self.new_spec(pattern);
            let is_taken = |(_, other): &(String, Spec)| other.id == spec.id;
            if list.iter().any(is_taken) {
                spec.id = None;
            }
            list.push((self.fresh_id(), spec));
        }
        let is_spoiled = self.rng.chance(500);
        if is_spoiled {
            let mut posted = Map::new();
            posted.insert("expect".into(), json!({"min": 1_000}));
            let at = self.rng.between(1, list.len() as u64) as usize;
            list.insert(at, (self.fresh_id(), base_spec(".*", posted)));
        }
        let specs: Vec<Spec> = list.iter().map(|(_, spec)| spec.clone()).collect();
        let known = |core: &Core| {
            let keys: Vec<TaskKey> = core.tasks_by_key().map(|(key, _)| key).collect();
            (keys, core.stats().submitted, core.executions_by_state())
        };
        let before = known(&self.server.core);
        let now = self.time();
        // Some are only tried first.
        let tried = (list.len() % 2 == 1)
            .then(|| self.server.core.submit_all(now, list.clone(), true).is_ok());
        if known(&self.server.core) != before {
            return Err("a_dry_run_of_a_list_leaves_no_trace".into());
        }
        let submitted = self.server.core.submit_all(now, list, false);
        if tried.is_some_and(|went| went != submitted.is_ok()) {
            return Err(format!("a_dry_run_of_a_list_is_right: {tried:?}"));
        }
        match submitted.map(|(keys, _)| keys) {
            Ok(_) if is_spoiled => Err("a_list_is_accepted_as_a_whole: one was refused".into()),
            Ok(keys) => {
                self.count("list accepted");
                if keys.len() != specs.len() {
                    return Err(format!("a_list_is_accepted_as_a_whole: {keys:?}"));
                }
                for (key, spec) in keys.iter().zip(&specs) {
                    self.was_right_to_accept_in_a_halt(spec.detail.undo.is_some())?;
                    self.accepted(*key, spec);
                    self.answer_submit(*key);
                }
                self.several.lists.push(keys);
                Ok(())
            }
            Err(_) => {
                self.count("list refused");
                match known(&self.server.core) == before {
                    true => Ok(()),
                    false => Err("what_is_refused_of_a_list_leaves_no_trace".into()),
                }
            }
        }
    }

    /// The server was started from what it had saved: of each list it has all, or nothing.
    pub fn lists_are_restored_as_a_whole(&mut self) -> Lawful {
        let core = &self.server.core;
        let is_known = |key: &&TaskKey| core.show(**key).is_ok();
        for list in &self.several.lists {
            let known = list.iter().filter(is_known).count();
            if known != 0 && known != list.len() && !self.server.had_other_limits {
                return Err(format!("a_list_is_saved_as_a_whole: {known} of {list:?}"));
            }
        }
        self.several.sweep = None;
        self.several.forget_lists(core);
        Ok(())
    }

    /// Begins to cancel a group, slice by slice.
    pub fn user_cancels_group(&mut self) {
        if self.several.sweep.is_some() {
            return;
        }
        let query = TaskQuery {
            group: Some(self.rng.pick(&GROUPS).into()),
            ..TaskQuery::default()
        };
        let mut meant = Meant::default();
        while !meant.is_complete() {
            self.server.core.find_meant(&query, &mut meant);
        }
        self.count("group canceled");
        let only_unstarted = self.rng.chance(200);
        let sweep = Sweep::new(meant, Selection::All, only_unstarted, false);
        self.several.sweep = Some(sweep);
        self.after(1, Event::Sweep(self.server.lives));
    }

    /// The next slice of a cancel.
    pub fn sweep_goes_on(&mut self, life: u64) -> Lawful {
        let Some(mut sweep) = self.several.sweep.take() else {
            return Ok(());
        };
        if life != self.server.lives {
            return Ok(());
        }
        let now = self.time();
        let meant = sweep.tasks().to_vec();
        let views = meant.iter().filter_map(|key| {
            let task = self.server.core.show(*key).ok()?;
            let views = task.execution_views().map(|e| (e.n, e.state));
            Some((*key, views.collect::<Vec<_>>()))
        });
        let views: Vec<_> = views.collect();
        let (_, before) = waiting_and_canceling(&self.server.core, &meant);
        let budget = self.rng.between(1, 3) as usize;
        let is_done = self.server.core.cancel_slice(now, &mut sweep, budget);
        let (waiting, canceling) = waiting_and_canceling(&self.server.core, &meant);
        if let (Some(running), Some(waits)) =
            (canceling.difference(&before).next(), waiting.first())
        {
            return Err(format!(
                "nothing_of_a_group_starts_by_its_cancel: {running:?} is canceled, {waits:?} waits"
            ));
        }
        for (key, before) in views {
            // Until then the cancel has not come to all of it.
            let is_swept = waiting.range((key, 0)..=(key, u32::MAX)).next().is_none();
            let is_whole = self.is_marked_canceled(key) && is_swept;
            self.laws
                .canceled(&self.server.core, key, &before, is_whole);
        }
        if !is_done {
            self.several.sweep = Some(sweep);
            let pause = self.rng.between(0, 300);
            self.after(pause, Event::Sweep(life));
        }
        self.see_to_notices()
    }

    /// Whether the server says that all of a task was canceled.
    pub fn is_marked_canceled(&self, key: TaskKey) -> bool {
        let task = self.server.core.show(key);
        task.is_ok_and(|task| task.is_canceled())
    }

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
        self.several.forget_lists(&self.server.core);
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
