//! The laws about tasks: what has been said so far, and whether it still holds. Each is a function named after it, or is
//! named where it is checked.

use super::Lawful;
use sidebike::core::{Core, Saved};
use sidebike::wire::agent::{Assignment, AttemptId, Stream, Verdict};
use sidebike::wire::task::{Detail, ExecutionState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An attempt: the id of its execution, and its number.
pub type Attempt = (String, u32);

pub fn attempt(id: &AttemptId) -> Attempt {
    (id.execution.clone(), id.attempt)
}

/// What a command writes from an offset on.
pub fn text(of: &Attempt, from: u64, to: u64) -> Vec<u8> {
    let shift = of.0.bytes().map(u64::from).sum::<u64>() + u64::from(of.1) * 3;
    { from..to }
        .map(|at| b'a' + ((at + shift) % 26) as u8)
        .collect()
}

/// A command's end, as its agent saw it.
#[derive(Debug, Clone)]
pub struct RealEnd {
    pub state: ExecutionState,
    pub written: u64,
}

/// What is known of a task, and must not be forgotten any more.
#[derive(Debug, Clone, Default, PartialEq)]
struct Fact {
    is_canceled: bool,
    /// The executions that have ended: the number of the last attempt, and how.
    ended: BTreeMap<u32, (u32, ExecutionState)>,
    /// Those that have not ended: the number of the attempt.
    open: BTreeMap<u32, u32>,
}

impl Fact {
    fn add(&mut self, n: u32, attempt: u32, state: ExecutionState) {
        match state.is_terminal() {
            true => drop(self.ended.insert(n, (attempt, state))),
            false => drop(self.open.insert(n, attempt)),
        }
    }
}

/// What is known of all tasks, by id.
#[derive(Debug, Clone, Default)]
pub struct Facts(BTreeMap<String, Fact>);

impl Facts {
    pub fn of_core(core: &Core) -> Facts {
        let facts = core.tasks_by_key().map(|(_, task)| {
            let mut fact = Fact {
                is_canceled: task.is_canceled(),
                ..Fact::default()
            };
            let views = task.execution_views();
            views.for_each(|e| fact.add(e.n, e.attempt, e.state));
            (task.id.to_string(), fact)
        });
        Facts(facts.collect())
    }

    pub fn of_saved(saved: &Saved) -> Facts {
        let facts = saved.tasks.iter().map(|(key, task)| {
            let mut fact = Fact {
                is_canceled: task.canceled,
                ..Fact::default()
            };
            for ((_, n), e) in saved.executions.range((*key, 0)..=(*key, u32::MAX)) {
                fact.add(*n, e.current.number, e.state);
            }
            (task.id.to_string(), fact)
        });
        Facts(facts.collect())
    }
}

/// What servers have said, and have to keep to.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// To users.
    users: BTreeMap<String, Fact>,
    /// Results that agents were told are taken.
    taken: BTreeSet<Attempt>,
    /// Executions that were canceled before they were handed out, and the attempt.
    never_to_start: BTreeMap<String, u32>,
}

#[derive(Debug, Default)]
pub struct Laws {
    /// Every task that a server has accepted; whether it may start once only.
    tasks: BTreeMap<String, bool>,
    /// Those that could not be saved, as far as their server knew, or that the database has lost: they may be forgotten.
    withdrawn: BTreeSet<String>,
    said: Said,
    /// The database has lost what was said, and a leader may not know it yet.
    is_lost: bool,
    /// What may start again: its traces are lost, or it was handed out again before the loss was found.
    untraced: BTreeSet<Attempt>,
    /// What agents held when the database lost something. Until its agent is heard of, it may be canceled or expire like
    /// what has not started.
    held_at_loss: BTreeSet<Attempt>,
    starts: BTreeMap<Attempt, usize>,
    starts_of_task: BTreeMap<String, u32>,
    ends: BTreeMap<Attempt, RealEnd>,
}

fn task_of(execution: &str) -> &str {
    execution.rsplit_once('.').map_or("", |(task, _)| task)
}

impl Laws {
    /// A server has accepted a task, and not acknowledged it yet.
    pub fn submitted(&mut self, id: &str, is_once: bool) {
        self.tasks.insert(id.to_owned(), is_once);
    }

    /// Its submit was refused in the end.
    pub fn withdrawn(&mut self, id: String) {
        self.withdrawn.insert(id);
    }

    pub fn is_withdrawn(&self, key: &Attempt) -> bool {
        self.withdrawn.contains(task_of(&key.0))
    }

    /// All that was said so far.
    pub fn said_so_far(&self) -> Said {
        self.said.clone()
    }

    /// The database has lost what was said after that; `saved` is left, and agents hold these attempts.
    pub fn lose(&mut self, said: Said, saved: &Saved, held: &BTreeSet<Attempt>) {
        self.said = said;
        self.is_lost = true;
        let left = Facts::of_saved(saved).0;
        let tasks = self.tasks.keys().filter(|id| !left.contains_key(*id));
        self.withdrawn.extend(tasks.cloned());
        let has_ended = |key: &Attempt| {
            let (task, n) = key.0.rsplit_once('.').unwrap_or_default();
            let fact = left.get(task).zip(n.parse().ok());
            fact.is_some_and(|(fact, n)| fact.ended.contains_key(&n))
        };
        let started = self.starts.keys();
        let untraced = started.filter(|key| !held.contains(*key) && !has_ended(key));
        self.untraced.extend(untraced.cloned());
        self.held_at_loss.extend(held.iter().cloned());
    }

    /// A server that has not found a loss hands these out.
    pub fn handed_out_unaware(&mut self, attempts: impl Iterator<Item = Attempt>) {
        if self.is_lost {
            self.untraced.extend(attempts);
        }
    }

    pub fn said_submitted(&mut self, id: String) {
        self.said.users.entry(id).or_default();
    }

    pub fn said_canceled(&mut self, id: String, is_whole: bool, never: &[(u32, u32)]) {
        for (n, attempt) in never {
            let execution = format!("{id}.{n}");
            self.said.never_to_start.insert(execution, *attempt);
        }
        let fact = self.said.users.entry(id).or_default();
        fact.is_canceled |= is_whole;
        let never = never.iter().map(|(n, attempt)| (*n, *attempt));
        for (n, attempt) in never {
            fact.ended.insert(n, (attempt, ExecutionState::Canceled));
        }
    }

    pub fn said_taken(&mut self, results: &[Verdict]) {
        let taken = results.iter().filter(|verdict| verdict.taken);
        let said = &mut self.said.taken;
        said.extend(taken.map(|verdict| attempt(&verdict.id)));
    }

    /// A user has read all of it.
    pub fn said(&mut self, read: Facts) {
        for (id, read) in read.0 {
            let fact = self.said.users.entry(id).or_default();
            fact.is_canceled |= read.is_canceled;
            fact.ended.extend(read.ended);
        }
    }

    /// What of all that was said is not so.
    fn missing_in(&self, facts: &Facts) -> Option<String> {
        let is_kept = |id: &str| !self.withdrawn.contains(id);
        for (id, said) in self.said.users.iter().filter(|(id, _)| is_kept(id)) {
            let Some(is) = facts.0.get(id) else {
                return Some(format!("task {id} is not there"));
            };
            if said.is_canceled && !is.is_canceled {
                return Some(format!("task {id} is not canceled"));
            }
            let mut ended = said.ended.iter();
            if let Some((n, end)) = ended.find(|(n, end)| is.ended.get(n) != Some(*end)) {
                return Some(format!("{id}.{n} has not ended {end:?}: {is:?}"));
            }
        }
        for (execution, attempt) in &self.said.taken {
            let Some((task, n)) = execution.rsplit_once('.') else {
                continue;
            };
            if !is_kept(task) {
                continue;
            }
            let n: u32 = n.parse().unwrap_or(0);
            let Some(is) = facts.0.get(task) else {
                return Some(format!("task {task}, whose result was taken, is not there"));
            };
            if !is.ended.contains_key(&n) && is.open.get(&n).is_none_or(|open| open <= attempt) {
                return Some(format!(
                    "the result of {execution} #{attempt} was taken: {is:?}"
                ));
            }
        }
        None
    }

    /// Checks what a new leader loads, and what is saved in the end.
    pub fn what_was_said_is_there(&self, saved: &Saved) -> Lawful {
        match self.missing_in(&Facts::of_saved(saved)) {
            Some(lost) => Err(format!("what_was_said_is_there: {lost}")),
            None => Ok(()),
        }
    }

    pub fn reads_never_go_back(&self, at: usize, read: &Facts) -> Lawful {
        match self.missing_in(read) {
            Some(lost) => Err(format!("reads_never_go_back: at node {at} {lost}")),
            None => Ok(()),
        }
    }

    /// A server sends an order to start something.
    pub fn sent(&self, job: &Assignment<Arc<Detail>>) -> Lawful {
        let said = self.said.users.get(task_of(&job.id.execution));
        match said.is_some_and(|said| said.is_canceled) {
            true => Err(format!("nothing_canceled_starts: {:?} is sent", job.id)),
            false => Ok(()),
        }
    }

    /// An agent starts a command. True: it is a second start that nobody could avoid.
    pub fn started(&mut self, key: &Attempt, who: usize) -> Lawful<bool> {
        let first = self.starts.insert(key.clone(), who);
        if first.is_some() && self.untraced.contains(key) {
            return Ok(true);
        }
        if let Some(first) = first {
            return Err(format!(
                "an_attempt_starts_once: {key:?}, by agents {first} and {who}"
            ));
        }
        let task = task_of(&key.0);
        let starts = self.starts_of_task.entry(task.to_owned()).or_default();
        *starts += 1;
        if *starts > 1 && self.tasks.get(task) == Some(&true) {
            return Err(format!("any_starts_once: {task}"));
        }
        let never = self.said.never_to_start.get(&key.0);
        match never.is_some_and(|attempt| key.1 >= *attempt) {
            true => Err(format!("nothing_canceled_starts: {key:?}")),
            false => Ok(false),
        }
    }

    /// A command ended.
    pub fn ended(&mut self, key: &Attempt, end: RealEnd) {
        self.ends.insert(key.clone(), end);
    }

    /// Everything has ended as the agents saw it.
    pub fn what_ran_is_reported(&self, core: &Core) -> Lawful {
        for (_, task) in core.tasks_by_key() {
            let outputs = task.outputs(None);
            for (e, (_, output)) in task.execution_views().zip(outputs) {
                let key = (format!("{}.{}", task.id, e.n), e.attempt);
                if self.untraced.contains(&key) {
                    continue;
                }
                let is_started = self.starts.contains_key(&key);
                let is_uncertain = self.held_at_loss.contains(&key);
                let end = self.ends.get(&key);
                // A retry that was not started any more leaves the execution as the attempt before ended.
                let before = (key.0.clone(), key.1.saturating_sub(1));
                let before = self.ends.get(&before).filter(|_| !is_started);
                let end = end.or(before);
                let is_right = match e.state {
                    ExecutionState::Succeeded
                    | ExecutionState::Failed
                    | ExecutionState::TimedOut => end.is_some_and(|end| end.state == e.state),
                    ExecutionState::Canceled => {
                        let was_killed = end.is_some_and(|end| end.state == e.state);
                        !is_started || was_killed || is_uncertain
                    }
                    ExecutionState::Expired => !is_started || is_uncertain,
                    ExecutionState::Lost => true,
                    _ => false,
                };
                if !is_right {
                    return Err(format!(
                        "what_ran_is_reported: {key:?} is {:?} {:?}, it ended {end:?}",
                        e.state, e.msg
                    ));
                }
                let (Some(output), Some(end)) = (output, end) else {
                    continue;
                };
                let buffer = output.stream(Stream::Stdout);
                let mut at = 0;
                while let Some((offset, bytes)) = buffer.read(at, usize::MAX) {
                    at = offset + bytes.len() as u64;
                    if bytes != text(&key, offset, at) {
                        return Err(format!("what_ran_is_reported: the output of {key:?}"));
                    }
                }
                if e.state == ExecutionState::Succeeded && buffer.end() != end.written {
                    return Err(format!(
                        "what_ran_is_reported: {key:?} wrote {}, {} are known",
                        end.written,
                        buffer.end()
                    ));
                }
            }
        }
        Ok(())
    }
}
