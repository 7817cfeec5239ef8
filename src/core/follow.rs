//! Following a task: which events have happened since a follower last asked.
//!
//! A [`Follower`] keeps its own position and calls [`Core::next_events`] as often as it likes. The core
//! keeps only the order in which the executions of followed tasks last changed. A change therefore costs
//! the same with one follower or hundreds, and nothing if there is none; a call costs time in proportion to
//! what has changed, not to the size of the task.
//!
//! To add an event: a variant of [`EventKind`], emitted in `add_attempt_events`.

use super::output::ReadOptions;
use super::task::{Attempt, Execution, Target};
use super::{Core, ExecutionKey, Notice, TaskKey};
use crate::wire::agent::Stream;
use crate::wire::task::ExecutionState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The most executions visited in one call of [`Core::next_events`]: it runs under the lock.
const MAX_VISITED: usize = 500;
/// The most output returned by one call of [`Core::next_events`], in bytes: it is copied under the lock.
const MAX_EVENT_BYTES: usize = 128 * 1024;

/// The followers of a task, and the order in which its executions changed.
#[derive(Debug, Default)]
pub(super) struct ChangeLog {
    followers: usize,
    /// Counts the changes.
    revision: u64,
    /// The execution that changed, by revision; only the last change of each execution is kept.
    changes: BTreeMap<u64, u32>,
    /// The revision of the last change of each execution.
    last: HashMap<u32, u64>,
}

/// Which part of a task's output is wanted.
#[derive(Debug, Clone, Default)]
pub struct OutputFilter {
    /// Only of the machine with this instance, or of the machines with this label.
    pub machine: Option<String>,
    /// Only one stream.
    pub stream: Option<Stream>,
    /// Only of the current attempt, from this byte of its streams on. By default everything kept.
    pub offset: Option<u64>,
    /// Only whole lines: the output of several machines is interleaved by line.
    pub whole_lines: bool,
}

/// A reader of a task's events, and how far it has read.
#[derive(Debug)]
pub struct Follower {
    task: TaskKey,
    filter: OutputFilter,
    revision: u64,
    /// One for each execution.
    positions: Vec<Position>,
    /// Executions that may have events this follower has not read.
    pending: BTreeSet<u32>,
}

/// How far an execution's events have been read.
#[derive(Debug, Clone, Default)]
struct Position {
    attempt: u32,
    offsets: [u64; 2],
    state: Option<ExecutionState>,
}

/// Something that happened to an execution.
#[derive(Debug)]
pub struct TaskEvent {
    /// The number of the execution in its task.
    pub n: u32,
    /// The label of its machine; empty while it has none.
    pub label: Arc<str>,
    /// The instance of its machine; empty while it has none.
    pub instance: Arc<str>,
    /// The number of the attempt.
    pub attempt: u32,
    /// What happened.
    pub kind: EventKind,
}

/// What can happen to an execution.
#[derive(Debug)]
pub enum EventKind {
    /// Its state changed to this.
    State(ExecutionState),
    /// A further attempt began.
    Retried,
    /// Its command wrote these bytes to a stream, at this offset.
    Output(Stream, u64, Vec<u8>),
    /// These bytes of a stream, from the first offset to before the second, are not kept.
    Gap(Stream, u64, u64),
}

/// The result of [`Core::next_events`].
#[derive(Debug, Default)]
pub struct EventBatch {
    /// The events; those of one execution are in order.
    pub events: Vec<TaskEvent>,
    /// There are more: call again at once.
    pub more: bool,
    /// The task has ended or was forgotten: there will be no further event.
    pub ended: bool,
}

impl EventBatch {
    /// Whether it says that an execution or the task has ended.
    pub fn has_end(&self) -> bool {
        let is_end = |event: &TaskEvent| match event.kind {
            EventKind::State(state) => state.is_terminal(),
            EventKind::Retried => true,
            EventKind::Output(..) | EventKind::Gap(..) => false,
        };
        self.ended || self.events.iter().any(is_end)
    }
}

impl Follower {
    /// A follower that has read nothing.
    pub fn new(task: TaskKey, filter: OutputFilter) -> Follower {
        Follower {
            task,
            filter,
            revision: 0,
            positions: Vec::new(),
            pending: BTreeSet::new(),
        }
    }

    fn wants(&self, target: Option<&Target>) -> bool {
        match (&self.filter.machine, target) {
            (None, _) => true,
            (Some(name), Some(t)) => t.is_named(name),
            (Some(_), None) => false,
        }
    }
}

impl Core {
    /// Adds a follower to a task. From now on its changes are recorded, and [`Notice::Changed`] is given.
    pub fn follow(&mut self, task: TaskKey) {
        self.change_logs.entry(task).or_default().followers += 1;
    }

    /// Removes a follower from a task.
    pub fn unfollow(&mut self, task: TaskKey) {
        if let Some(log) = self.change_logs.get_mut(&task) {
            log.followers -= 1;
            if log.followers == 0 {
                self.change_logs.remove(&task);
            }
        }
    }

    /// Records that an execution has changed, if its task is followed.
    pub(super) fn record_change(&mut self, key: ExecutionKey) {
        let Some(log) = self.change_logs.get_mut(&key.task) else {
            return;
        };
        log.revision += 1;
        if let Some(before) = log.last.insert(key.n, log.revision) {
            log.changes.remove(&before);
        }
        log.changes.insert(log.revision, key.n);
        let notice = Notice::Changed(key.task);
        if self.notices.last() != Some(&notice) {
            self.notices.push(notice);
        }
    }

    /// The events since the last call with this follower.
    pub fn next_events(&self, follower: &mut Follower) -> EventBatch {
        let mut batch = EventBatch::default();
        let Some(task) = self.tasks.get(&follower.task) else {
            batch.ended = true;
            return batch;
        };
        if let Some(log) = self.change_logs.get(&follower.task) {
            let changes = log.changes.range(follower.revision + 1..);
            follower.pending.extend(changes.map(|(_, n)| *n));
            follower.revision = log.revision;
        }
        let known = follower.positions.len();
        follower
            .pending
            .extend(known as u32..task.executions.len() as u32);
        follower
            .positions
            .resize(task.executions.len(), Position::default());
        let mut room = MAX_EVENT_BYTES;
        for _ in 0..MAX_VISITED {
            let Some(n) = follower.pending.first().copied() else {
                break;
            };
            let execution = &task.executions[n as usize];
            if !add_events(execution, n, follower, &mut room, &mut batch.events) {
                break;
            }
            follower.pending.remove(&n);
        }
        batch.more = !follower.pending.is_empty();
        batch.ended = !batch.more && task.finished_at.is_some();
        batch
    }
}

/// Adds the new events of an execution. False if `room` (in bytes) was not enough for all of them.
fn add_events(
    execution: &Execution,
    n: u32,
    follower: &mut Follower,
    room: &mut usize,
    events: &mut Vec<TaskEvent>,
) -> bool {
    let mut position = std::mem::take(&mut follower.positions[n as usize]);
    let past = execution
        .past
        .iter()
        .map(|p| (&p.attempt, p.target.as_deref(), p.state));
    let current = (
        &*execution.current,
        execution.target.as_deref(),
        execution.state,
    );
    let from = match follower.filter.offset {
        Some(_) if position.attempt == 0 => execution.current.number,
        _ => position.attempt,
    };
    let mut all = true;
    for (attempt, target, state) in past.chain([current]) {
        if attempt.number < from || !follower.wants(target) {
            continue;
        }
        let mut add = |kind| events.push(event(n, target, attempt.number, kind));
        let filter = &follower.filter;
        all = add_attempt_events(attempt, state, filter, &mut position, room, &mut add);
        if !all {
            break;
        }
    }
    follower.positions[n as usize] = position;
    all
}

fn add_attempt_events(
    attempt: &Attempt,
    state: ExecutionState,
    filter: &OutputFilter,
    position: &mut Position,
    room: &mut usize,
    add: &mut dyn FnMut(EventKind),
) -> bool {
    if position.attempt != attempt.number {
        let is_first = position.attempt == 0;
        if !is_first {
            add(EventKind::Retried);
        }
        *position = Position {
            attempt: attempt.number,
            offsets: [filter.offset.filter(|_| is_first).unwrap_or(0); 2],
            state: None,
        };
    }
    let ended = state.is_terminal();
    let is_new = position.state != Some(state);
    if is_new && !ended {
        add(EventKind::State(state));
        position.state = Some(state);
    }
    if let Some(output) = &attempt.output {
        let how = ReadOptions {
            stream: filter.stream,
            whole_lines: filter.whole_lines,
            ended,
        };
        if !output.read_from(&how, &mut position.offsets, room, add) {
            return false;
        }
    }
    if is_new && ended {
        add(EventKind::State(state));
        position.state = Some(state);
    }
    true
}

fn event(n: u32, target: Option<&Target>, attempt: u32, kind: EventKind) -> TaskEvent {
    let (label, instance) = match target {
        Some(target) => (target.label.clone(), target.instance.clone()),
        None => ("".into(), "".into()),
    };
    TaskEvent {
        n,
        label,
        instance,
        attempt,
        kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::output::Output;
    use Stream::{Stderr, Stdout};

    fn text(output: &Output, how: &ReadOptions, at: &mut [u64; 2], room: usize) -> Vec<String> {
        let (mut texts, mut room) = (Vec::new(), room);
        output.read_from(how, at, &mut room, &mut |what| {
            texts.push(match what {
                EventKind::Output(stream, at, bytes) => {
                    format!("{stream:?} {at} {:?}", String::from_utf8_lossy(&bytes))
                }
                EventKind::Gap(stream, at, end) => format!("{stream:?} {at} gap {end}"),
                other => format!("{other:?}"),
            })
        });
        texts
    }

    #[test]
    fn output_comes_once_and_in_order() {
        let (mut output, mut at) = (Output::default(), [0; 2]);
        let mut how = ReadOptions::default();
        output.write(Stdout, 0, b"a");
        assert_eq!(text(&output, &how, &mut at, 99), ["Stdout 0 \"a\""]);
        assert!(text(&output, &how, &mut at, 99).is_empty());
        output.write(Stderr, 0, b"e\n");
        output.write(Stdout, 1, "bü".as_bytes().split_last().unwrap().1);
        assert_eq!(
            text(&output, &how, &mut at, 99),
            ["Stderr 0 \"e\\n\"", "Stdout 1 \"b\""],
            "half a character has to wait"
        );
        how.ended = true;
        assert_eq!(text(&output, &how, &mut at, 99).len(), 1);
        output.skip_to(Stdout, 100);
        assert_eq!(text(&output, &how, &mut at, 99), ["Stdout 3 gap 100"]);
    }

    #[test]
    fn whole_lines_wait_for_their_end() {
        let (mut output, mut at) = (Output::default(), [0; 2]);
        let mut how = ReadOptions {
            whole_lines: true,
            ..ReadOptions::default()
        };
        output.write(Stdout, 0, b"one\ntw");
        output.write(Stderr, 0, b"oops\n");
        let lines = text(&output, &how, &mut at, 99);
        assert_eq!(lines, ["Stdout 0 \"one\\n\"", "Stderr 0 \"oops\\n\""]);
        output.write(Stdout, 6, b"o\nrest");
        assert_eq!(text(&output, &how, &mut at, 99), ["Stdout 4 \"two\\n\""]);
        how.ended = true;
        assert_eq!(text(&output, &how, &mut at, 99), ["Stdout 8 \"rest\""]);
    }

    #[test]
    fn a_little_at_a_time_is_all() {
        let (mut output, mut at) = (Output::default(), [0; 2]);
        output.write(Stdout, 0, &[b'x'; 1000]);
        output.write(Stderr, 0, &[b'y'; 10]);
        let how = ReadOptions::default();
        let mut seen = 0;
        while seen < 1010 {
            let mut room = 300;
            let all = output.read_from(&how, &mut at, &mut room, &mut |what| {
                if let EventKind::Output(_, _, bytes) = what {
                    seen += bytes.len();
                }
            });
            assert_eq!(all, seen == 1010);
        }
    }
}
