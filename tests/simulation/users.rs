//! Users that submit, cancel, rerun, delete and query at random.

use crate::files;
use crate::pace::PaceModel;
use crate::server::TEXTS;
use crate::world::{Event, Lawful, Ms, World};
use serde_json::{Map, Value, json};
use sidebike::core::{
    Refusal, Selection, Selector, SelectorText, Spec, TaskKey, TaskQuery, TraitsSnapshot,
};
use sidebike::wire::duration::{TimeSpan, Timeout};
use sidebike::wire::task::{ExecutionState, Mode, PostedTask, Retry, RetryOn};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

const PATTERNS: [&str; 8] = [
    ".*",
    "web",
    "db",
    "^web-0$",
    "^db-0$",
    "1$",
    "nobody",
    "old|web-1",
];
/// Those of them that match the label of an agent of the original.
const FOR_ORIGINALS: [&str; 2] = [".*", "old|web-1"];
/// The longest run of a simulated command without a time-out.
const LONGEST_RUN: Ms = 200_000;
/// How long an attempt with an undo may take beyond its longest run: until an agent that was stopped goes on, until its
/// guard acts, and until whoever undoes it does not wait for others any more.
const UNDO_PATIENCE: Ms = 300_000;
/// How long the server may take beyond time-outs: for overdue reports (again after a pause), to notice a lost
/// machine, and for a late tick.
const PATIENCE: Ms = 2 * 60_000 + 50_000 + 10_000;

/// What users know of a task.
#[derive(Debug, Clone)]
pub struct TaskModel {
    pub key: TaskKey,
    pub epoch: u32,
    pub created: Ms,
    pub ttl: Ms,
    pub mode: Mode,
    pub retries: u32,
    longest_interval: Ms,
    longest_run: Ms,
    pub pace: PaceModel,
}

impl TaskModel {
    /// Promise 2: when it must have ended, if the faults stop at `calm`.
    fn end(&self, calm: Ms) -> Ms {
        let attempt = self.ttl + self.longest_run + PATIENCE + self.longest_interval;
        let paused = self
            .pace
            .paused_since
            .map_or(0, |since| calm.saturating_sub(since));
        let waited = (self.created + self.ttl + paused + PATIENCE).max(calm);
        let first = waited + self.longest_run + PATIENCE;
        let all_attempts = attempt * (1 + u64::from(self.retries));
        first + u64::from(self.retries) * attempt + self.pace.longest(all_attempts)
    }

    /// Whether it says how many machines have to be left alone.
    pub fn keeps_alive(&self) -> bool {
        self.pace.keeps_alive
    }
}

#[derive(Debug, Default)]
pub struct Users {
    tasks: BTreeMap<TaskKey, TaskModel>,
    submitted: u64,
    /// How many of their tasks choose among the machines or go step by step, of a thousand.
    pub targeted: u64,
    /// The labels of an earlier moment, and of which core.
    snapshot: Option<(u64, TraitsSnapshot)>,
}

impl Users {
    pub fn task_mut(&mut self, key: TaskKey) -> Option<&mut TaskModel> {
        self.tasks.get_mut(&key)
    }

    pub fn task(&self, key: TaskKey) -> Option<&TaskModel> {
        self.tasks.get(&key)
    }

    /// The server has lost all tasks.
    pub fn wipe(&mut self) {
        self.tasks.clear();
    }

    /// All known tasks.
    pub fn tasks(&self) -> BTreeMap<TaskKey, TaskModel> {
        self.tasks.clone()
    }

    /// The server knows only these tasks now; the time of its absence does not count for them.
    pub fn roll_back(&mut self, tasks: BTreeMap<TaskKey, TaskModel>, away: Ms) {
        self.tasks = tasks;
        for task in self.tasks.values_mut() {
            task.ttl += away;
            task.pace.later(away);
        }
    }

    /// Time passed that is no part of any `ttl`.
    pub fn extend(&mut self, by: Ms) {
        for task in self.tasks.values_mut() {
            task.ttl += by;
        }
    }

    /// When everything must have ended, if the faults stop now.
    pub fn latest_end(&self, calm: Ms) -> Ms {
        self.tasks
            .values()
            .map(|task| task.end(calm))
            .max()
            .unwrap_or(calm)
    }
}

thread_local! {
    /// Each pattern is compiled once: that takes longer than a step.
    static SPECS: RefCell<HashMap<&'static str, Spec>> = RefCell::default();
    static SELECTORS: RefCell<HashMap<SelectorText, Selector>> = RefCell::default();
}

/// A task with these fields, as the server checks it.
pub fn base_spec(pattern: &'static str, mut posted: Map<String, Value>) -> Spec {
    posted.insert("machinePattern".into(), pattern.into());
    posted.insert("detail".into(), json!({"command": "true"}));
    let posted: PostedTask = serde_json::from_value(posted.into()).expect("a good task");
    let known = |text: &SelectorText| SELECTORS.with_borrow(|known| known.get(text).cloned());
    let spec = Spec::checked(posted, &TEXTS, known).expect("a good task");
    if spec.selector.text().instances().is_none() {
        SELECTORS.with_borrow_mut(|known| {
            known.insert(spec.selector.text().clone(), spec.selector.clone())
        });
    }
    spec
}

fn spec_with(pattern: &'static str) -> Spec {
    let compile = || {
        let json = format!(r#"{{"machinePattern": {pattern:?}, "detail": {{"command": "true"}}}}"#);
        let posted: PostedTask = serde_json::from_str(&json).expect("a good task");
        Spec::checked(posted, &TEXTS, |_| None).expect("a good task")
    };
    SPECS.with_borrow_mut(|specs| specs.entry(pattern).or_insert_with(compile).clone())
}

impl World {
    pub fn user_acts(&mut self) -> Lawful {
        if self.calm {
            return self.users_approve();
        }
        let watches_rollouts = self.users.targeted > 500;
        let longest = if watches_rollouts { 2_500 } else { 6_000 };
        let pause = self.rng.between(10, longest);
        self.after(pause, Event::User);
        let paces = if watches_rollouts { 350 } else { 0 };
        if self.rng.chance(paces) {
            self.user_paces()?;
            return self.see_to_notices();
        }
        if self.experiments.share > 0 && self.rng.chance(200) {
            self.user_sees_to_undos()?;
            return self.see_to_notices();
        }
        if self.crew.share > 0 && self.rng.chance(self.crew.share) {
            self.user_sees_to_the_crew()?;
            return self.see_to_notices();
        }
        match self.rng.between(0, 99) {
            0..47 => self.user_submits()?,
            47..52 => self.user_submits_list()?,
            52..63 => self.user_cancels(),
            63..66 => self.user_cancels_group(),
            66..76 => self.user_reruns()?,
            76..82 => self.user_deletes()?,
            82..93 if self.users.targeted > 0 => self.user_paces()?,
            82..93 => self.user_submits()?,
            _ => self.user_looks()?,
        }
        self.see_to_notices()
    }

    pub fn new_spec(&mut self, pattern: &'static str) -> Spec {
        let rng = &mut self.rng;
        let mut spec = spec_with(pattern);
        spec.mode = rng.pick(&[Mode::All, Mode::All, Mode::Any, Mode::Any]);
        spec.late_join = spec.mode == Mode::All && rng.chance(300);
        self.fill_in(&mut spec, FOR_ORIGINALS.contains(&pattern));
        spec
    }

    /// Everything but who is meant and at what pace.
    fn fill_in(&mut self, spec: &mut Spec, for_originals: bool) {
        let rng = &mut self.rng;
        let ttl = rng.pick(&[100, 3_000, 20_000, 60_000, 120_000]);
        spec.ttl = TimeSpan::from_millis(ttl);
        spec.name = rng.pick(&["a", "b", "ab"]).into();
        if rng.chance(200) {
            spec.id = Some(format!("job-{}", rng.between(0, 9)).into());
        }
        if rng.chance(300) {
            spec.result_ttl = TimeSpan::from_millis(rng.between(1, 60_000));
            spec.failure_ttl = TimeSpan::from_millis(rng.between(1, 60_000));
        }
        if rng.chance(400) {
            let on = [RetryOn::Failed, RetryOn::TimedOut, RetryOn::Lost];
            let mut on: Vec<RetryOn> = on.into_iter().filter(|_| rng.chance(600)).collect();
            if on.is_empty() {
                on.push(RetryOn::Lost);
            }
            let interval =
                (0..rng.between(0, 3)).map(|_| TimeSpan::from_millis(rng.between(0, 20_000)));
            let interval = interval.collect();
            spec.retry = Some(Box::new(Retry {
                max: rng.pick(&[1, 2, 12]),
                interval,
                on,
            }));
        }
        let mut detail = (*spec.detail).clone();
        let short = Timeout::After(TimeSpan::from_millis(rng.between(500, 30_000)));
        let long = Timeout::After(TimeSpan::from_secs(180));
        // An agent of the original does not say that an answer was lost on its way to it. Without a time-out it then
        // takes a day to find that out.
        let longest = match for_originals {
            true => long,
            false => Timeout::Never,
        };
        detail.timeout = Some(rng.pick(&[short, short, long, longest]));
        detail.kill_grace = Some(TimeSpan::from_millis(rng.pick(&[0, 500, 5_000])));
        if rng.chance(200) {
            // The original's agents cannot do that.
            detail.env = Some([("A".to_owned(), "b".to_owned())].into());
            // The same draw, as others would change what every seed does.
            let n = ttl + spec.result_ttl.as_millis();
            spec.files = Some(match spec.mode == Mode::All && n.is_multiple_of(3) {
                true => files::update(n),
                false => files::files(n),
            });
        }
        // Older agents cannot do that.
        if rng.chance(150) {
            detail.user = Some("nobody".into());
        }
        if rng.chance(150) {
            detail.merge_output = Some(true);
        }
        if spec.rollout.is_some() {
            // One after the other takes long enough.
            detail.timeout = Some(short);
        }
        spec.detail = Arc::new(detail);
        self.fill_in_group(spec);
        self.fill_in_undo(spec);
    }

    fn user_submits(&mut self) -> Lawful {
        let mut spec = match self.rng.chance(self.users.targeted) {
            true => {
                let mut spec = self.targeted_spec();
                self.fill_in(&mut spec, true);
                spec
            }
            false => {
                let pattern = self.rng.pick(&PATTERNS);
                self.new_spec(pattern)
            }
        };
        // Matched with the labels of an earlier moment.
        let life = self.server.lives;
        let snapshot = self.users.snapshot.take();
        let snapshot = snapshot.filter(|(epoch, _)| *epoch == life);
        let fresh = self
            .server
            .core
            .traits_to_match(spec.selector.text())
            .map(|now| (life, now));
        if let Some((_, snapshot)) = &snapshot {
            spec.selectors_mut()
                .for_each(|selector| snapshot.match_with(selector));
        }
        self.users.snapshot = fresh;
        self.submit(spec)?;
        Ok(())
    }

    pub fn submit(&mut self, mut spec: Spec) -> Lawful<Option<TaskKey>> {
        // With small limits such a task would never be accepted.
        if !self.calm && self.server.limits.detail_bytes > 10_000 {
            self.receivers.are_told_by(&mut spec);
        }
        let fresh = self.fresh_id();
        let known = spec
            .id
            .as_ref()
            .and_then(|id| self.server.core.find_task(id).ok());
        let kept = spec.clone();
        let census = self.census(&spec);
        let id = spec.id.as_deref().unwrap_or(&fresh).to_owned();
        let preview = match known.is_none() && self.rng.chance(300) {
            true => Some(self.preview_of(&id, &spec)),
            false => None,
        };
        let tasks = self.server.core.tasks_by_key().count();
        let now = self.clock.read(self.now);
        match self.server.core.submit(now, &fresh, spec) {
            Ok(key) => {
                self.was_right_to_accept(key, &census)?;
                self.was_right_to_accept_in_a_halt(kept.detail.undo.is_some())?;
                self.accepted(key, &kept);
                self.answer_submit(key);
                if let Some((is_refused, mut machines)) = preview {
                    let task = self.server.core.show(key);
                    let mut targets = task.map(|task| crate::targets::targets(&task));
                    if kept.rollout.is_none() {
                        // Without a rollout there is no order.
                        machines.sort();
                        targets.iter_mut().for_each(|targets| targets.sort());
                    }
                    let is_same = kept.mode == Mode::Any || targets.as_ref() == Ok(&machines);
                    if is_refused || !is_same {
                        return Err(format!(
                            "a_dry_run_tells_the_truth: {key:?}, {machines:?} for {targets:?}"
                        ));
                    }
                }
                return Ok(Some(key));
            }
            Err(Refusal::Taken(key)) if known == Some(key) => self.count("submit: id taken"),
            Err(refusal) => {
                let is_counted = match &refusal {
                    Refusal::Full(why) => why.starts_with("still counting"),
                    Refusal::Conflict(_) => true,
                    other => return Err(format!("a good task is refused: {other:?}")),
                };
                if is_counted {
                    self.note(|| format!("refused: {refusal}"));
                    self.count("submit refused: counts");
                    self.was_right_to_refuse(&kept, &census, &refusal)?;
                    if preview.is_some_and(|(is_refused, _)| !is_refused) {
                        return Err(format!("a_dry_run_tells_the_truth: {refusal}"));
                    }
                } else {
                    self.count("submit: full");
                }
                if self.server.core.tasks_by_key().count() != tasks {
                    return Err("what_is_refused_changes_nothing".into());
                }
            }
        }
        Ok(None)
    }

    pub fn fresh_id(&mut self) -> String {
        self.users.submitted += 1;
        format!("t{}-{}", self.server.epoch, self.users.submitted)
    }

    pub fn accepted(&mut self, key: TaskKey, spec: &Spec) {
        self.count("task accepted");
        self.note(|| {
            format!(
                "{key:?}: {:?} {:?} ttl {} {:?} {:?} {:?}",
                spec.mode,
                spec.selector.text(),
                spec.ttl,
                spec.retry,
                spec.counts,
                spec.rollout.as_ref().map(|rollout| &rollout.posted)
            )
        });
        let Ok(task) = self.server.core.show(key) else {
            return;
        };
        let retry = spec.retry.as_ref();
        let intervals = retry.iter().flat_map(|retry| &retry.interval);
        let model = TaskModel {
            key,
            epoch: self.server.epoch,
            created: self.now,
            ttl: spec.ttl.as_millis(),
            mode: spec.mode,
            retries: retry.map_or(0, |retry| retry.max),
            longest_interval: intervals.map(|span| span.as_millis()).max().unwrap_or(0),
            longest_run: spec.longest_run().map_or(LONGEST_RUN, TimeSpan::as_millis)
                + if spec.detail.undo.is_some() {
                    UNDO_PATIENCE
                } else {
                    0
                },
            pace: PaceModel::new(self.now, spec, &task),
        };
        if spec.rollout.is_some() {
            self.count("rollout accepted");
        }
        self.users.tasks.insert(key, model);
    }

    /// One of the known tasks, most likely a new one.
    pub fn some_task(&mut self) -> Option<TaskKey> {
        let keys: Vec<TaskKey> = self
            .server
            .core
            .tasks_by_key()
            .map(|(key, _)| key)
            .collect();
        let last = keys.len().checked_sub(1)?;
        let back = self
            .rng
            .between(0, last as u64)
            .min(self.rng.between(0, 12));
        Some(keys[last - back as usize])
    }

    fn user_cancels(&mut self) {
        let Some(key) = self.some_task() else { return };
        let Ok(task) = self.server.core.show(key) else {
            return;
        };
        let before: Vec<(u32, ExecutionState)> =
            task.execution_views().map(|e| (e.n, e.state)).collect();
        let instance = task
            .execution_views()
            .find_map(|e| e.instance.map(str::to_owned));
        let selection = match (self.rng.between(0, 3), instance) {
            (0, Some(instance)) => Selection::Machine(instance),
            (1, _) => Selection::Machine("db-0".into()),
            _ => Selection::All,
        };
        let all = matches!(selection, Selection::All);
        self.note(|| format!("cancel {key:?} {selection:?}"));
        match self
            .server
            .core
            .cancel(self.clock.read(self.now), key, &selection)
        {
            Ok(()) => {
                self.count("task canceled");
                let ended = task.state().is_terminal();
                self.laws
                    .canceled(&self.server.core, key, &before, all && !ended);
            }
            Err(_) => self.count("cancel refused"),
        }
    }

    fn user_reruns(&mut self) -> Lawful {
        let Some(key) = self.some_task() else {
            return Ok(());
        };
        let all = self.rng.chance(300);
        let fresh = self.fresh_id();
        let Ok(old) = self.server.core.show(key) else {
            return Ok(());
        };
        let census = self.census(&old.spec);
        let now = self.clock.read(self.now);
        match self.server.core.rerun(now, &fresh, key, all) {
            Ok(new) => {
                self.count("task rerun");
                let spec = self.server.core.show(new).map(|task| task.spec.clone());
                self.was_right_to_rerun(new, &census)?;
                if let Some(spec) = &spec.as_ref().ok() {
                    self.was_right_to_accept_in_a_halt(spec.detail.undo.is_some())?;
                }
                if let Ok(spec) = spec {
                    self.accepted(new, &spec);
                    self.answer_submit(new);
                }
            }
            Err(_) => self.count("rerun refused"),
        }
        Ok(())
    }

    fn user_deletes(&mut self) -> Lawful {
        let Some(key) = self.some_task() else {
            return Ok(());
        };
        let ended = self.server.core.is_finished(key);
        let is_dirty = self.is_in_debt(key);
        let deleted = self.server.core.delete(key);
        if deleted.is_ok() != (ended && !is_dirty) {
            return Err(format!(
                "only_what_has_ended_is_deleted: {key:?} {deleted:?}"
            ));
        }
        self.count(if deleted.is_ok() {
            "task deleted"
        } else {
            "delete refused"
        });
        Ok(())
    }

    fn user_looks(&mut self) -> Lawful {
        let page = self.server.core.list(&TaskQuery::default(), None, 1_000);
        let by_state: usize = self
            .server
            .core
            .tasks_by_state()
            .iter()
            .map(|(_, n)| n)
            .sum();
        if page.next.is_some() || page.tasks.len() != by_state {
            return Err(format!(
                "lists_are_complete: {} of {by_state}",
                page.tasks.len()
            ));
        }
        for (state, n) in self.server.core.tasks_by_state() {
            let found = page
                .tasks
                .iter()
                .filter(|task| task.state() == state)
                .count();
            if found != n {
                return Err(format!(
                    "figures_are_right: {n} tasks {state:?}, found {found}"
                ));
            }
        }
        if let Some(task) = page.tasks.first() {
            let answer = task.answer(16 * 1024);
            if answer.counts.total() as usize != answer.result.len() {
                return Err("answers_are_complete".into());
            }
        }
        self.server.core.check_matches()?;
        let machines = self.server.core.list_machines(None, None, None).0.len();
        let by_state: usize = self
            .server
            .core
            .machines_by_state()
            .iter()
            .map(|(_, n)| n)
            .sum();
        if machines != by_state {
            return Err(format!("machines_are_complete: {machines} of {by_state}"));
        }
        Ok(())
    }
}
