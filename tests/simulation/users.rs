//! Users that submit, cancel, rerun, delete and query at random.

use crate::server::TEXTS;
use crate::world::{Event, Lawful, Ms, World};
use sidebike::core::{Refusal, Selection, Spec, TaskKey, TaskQuery, TraitsSnapshot};
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
}

impl TaskModel {
    /// Promise 2: when it must have ended, if the faults stop at `calm`.
    fn end(&self, calm: Ms) -> Ms {
        let attempt = self.ttl + self.longest_run + PATIENCE + self.longest_interval;
        let first = (self.created + self.ttl).max(calm) + self.longest_run + PATIENCE;
        first + u64::from(self.retries) * attempt
    }
}

#[derive(Debug, Default)]
pub struct Users {
    tasks: BTreeMap<TaskKey, TaskModel>,
    submitted: u64,
    /// The labels of an earlier moment, and of which core.
    snapshot: Option<(u64, TraitsSnapshot)>,
}

impl Users {
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
            return Ok(());
        }
        let pause = self.rng.between(10, 6_000);
        self.after(pause, Event::User);
        match self.rng.between(0, 99) {
            0..55 => self.user_submits(),
            55..75 => self.user_cancels(),
            75..85 => self.user_reruns(),
            85..93 => self.user_deletes()?,
            _ => self.user_looks()?,
        }
        self.see_to_notices()
    }

    pub fn new_spec(&mut self, pattern: &'static str) -> Spec {
        let rng = &mut self.rng;
        let mut spec = spec_with(pattern);
        spec.mode = rng.pick(&[Mode::All, Mode::All, Mode::Any, Mode::Any]);
        spec.late_join = spec.mode == Mode::All && rng.chance(300);
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
        let longest = match FOR_ORIGINALS.contains(&pattern) {
            true => long,
            false => Timeout::Never,
        };
        detail.timeout = Some(rng.pick(&[short, short, long, longest]));
        detail.kill_grace = Some(TimeSpan::from_millis(rng.pick(&[0, 500, 5_000])));
        if rng.chance(200) {
            // The original's agents cannot do that.
            detail.env = Some([("A".to_owned(), "b".to_owned())].into());
        }
        // Older agents cannot do that.
        if rng.chance(150) {
            detail.user = Some("nobody".into());
        }
        if rng.chance(150) {
            detail.merge_output = Some(true);
        }
        spec.detail = Arc::new(detail);
        spec
    }

    fn user_submits(&mut self) {
        let pattern = self.rng.pick(&PATTERNS);
        let mut spec = self.new_spec(pattern);
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
            snapshot.match_with(&mut spec.selector);
        }
        self.users.snapshot = fresh;
        self.submit(spec);
    }

    pub fn submit(&mut self, spec: Spec) -> Option<TaskKey> {
        let fresh = self.fresh_id();
        let known = spec
            .id
            .as_ref()
            .and_then(|id| self.server.core.find_task(id).ok());
        let kept = spec.clone();
        match self
            .server
            .core
            .submit(self.clock.read(self.now), &fresh, spec)
        {
            Ok(key) => {
                self.accepted(key, &kept);
                self.answer_submit(key);
                return Some(key);
            }
            Err(Refusal::Taken(key)) if known == Some(key) => self.count("submit: id taken"),
            Err(Refusal::Full(_)) => self.count("submit: full"),
            Err(other) => panic!("a good task is refused: {other:?}"),
        }
        None
    }

    fn fresh_id(&mut self) -> String {
        self.users.submitted += 1;
        format!("t{}-{}", self.server.epoch, self.users.submitted)
    }

    fn accepted(&mut self, key: TaskKey, spec: &Spec) {
        self.count("task accepted");
        self.note(|| {
            format!(
                "{key:?}: {:?} {:?} ttl {} {:?}",
                spec.mode,
                spec.selector.text(),
                spec.ttl,
                spec.retry
            )
        });
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
            longest_run: spec.longest_run().map_or(LONGEST_RUN, TimeSpan::as_millis),
        };
        self.users.tasks.insert(key, model);
    }

    /// One of the known tasks, most likely a new one.
    fn some_task(&mut self) -> Option<TaskKey> {
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

    fn user_reruns(&mut self) {
        let Some(key) = self.some_task() else { return };
        let all = self.rng.chance(300);
        let fresh = self.fresh_id();
        match self
            .server
            .core
            .rerun(self.clock.read(self.now), &fresh, key, all)
        {
            Ok(new) => {
                self.count("task rerun");
                let spec = self.server.core.show(new).map(|task| task.spec.clone());
                if let Ok(spec) = spec {
                    self.accepted(new, &spec);
                    self.answer_submit(new);
                }
            }
            Err(_) => self.count("rerun refused"),
        }
    }

    fn user_deletes(&mut self) -> Lawful {
        let Some(key) = self.some_task() else {
            return Ok(());
        };
        let ended = self.server.core.is_finished(key);
        let deleted = self.server.core.delete(key);
        if deleted.is_ok() != ended {
            return Err(format!(
                "only_what_has_ended_is_deleted: {key:?} {deleted:?}"
            ));
        }
        self.count(if ended {
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
        let machines = self.server.core.list_machines(None, None).len();
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
