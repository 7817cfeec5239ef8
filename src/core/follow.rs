//! Following a task: what has changed since somebody last looked.
//!
//! A follower keeps its own place ([`Follower`]) and asks with [`Core::news`], as often as it likes;
//! nothing is kept for it here but the order in which executions of followed tasks last changed. So
//! a change costs the same with one follower or with hundreds, nothing when a task has none, and
//! looking costs what has changed, not what there is. To show something new: add it to [`What`].

use super::output::Reading;
use super::task::{Attempt, Execution, Target};
use super::{Core, ExecutionKey, Notice, TaskKey};
use crate::wire::agent::Stream;
use crate::wire::task::ExecutionState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The most executions looked at in one call of [`Core::news`], which holds the lock.
const MAX_LOOKED_AT: usize = 500;
/// The most output given in one call of [`Core::news`], in bytes: copied under the lock.
const MAX_NEWS_BYTES: usize = 128 * 1024;

/// What has changed in a task that somebody follows.
#[derive(Debug, Default)]
pub(super) struct Followed {
    followers: usize,
    /// Counts changes.
    revision: u64,
    /// The last change of each execution that has changed.
    changes: BTreeMap<u64, u32>,
    last: HashMap<u32, u64>,
}

/// Which of a task's output is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Of the machine with this instance, or of the machines with this label.
    pub machine: Option<String>,
    /// Of one stream.
    pub stream: Option<Stream>,
    /// Of the current attempt, from this byte of that stream on. Otherwise all that is kept.
    pub offset: Option<u64>,
    /// In whole lines, as several machines' must be that are shown together.
    pub whole_lines: bool,
}

/// Somebody who follows a task, and how far they have seen.
#[derive(Debug)]
pub struct Follower {
    task: TaskKey,
    wanted: Wanted,
    revision: u64,
    places: Vec<Seen>,
    /// Executions that may have more than was given.
    pending: BTreeSet<u32>,
}

/// How far an execution has been seen.
#[derive(Debug, Clone, Default)]
struct Seen {
    attempt: u32,
    at: [u64; 2],
    state: Option<ExecutionState>,
}

/// Something that happened to an execution.
#[derive(Debug)]
pub struct News {
    /// The number of the execution in its task.
    pub n: u32,
    /// The label of its machine; empty while it has none.
    pub label: Arc<str>,
    /// The instance of its machine; empty while it has none.
    pub instance: Arc<str>,
    /// The number of the attempt.
    pub attempt: u32,
    /// What happened.
    pub what: What,
}

/// The things that happen to an execution.
#[derive(Debug)]
pub enum What {
    /// It is in another state.
    State(ExecutionState),
    /// A further attempt begins.
    Retried,
    /// It wrote this to a stream, from this byte on.
    Output(Stream, u64, Vec<u8>),
    /// What it wrote to a stream from one byte to before another is not kept.
    Gap(Stream, u64, u64),
}

/// What [`Core::news`] gives.
#[derive(Debug, Default)]
pub struct Look {
    /// What happened, oldest first for each execution.
    pub news: Vec<News>,
    /// There is more: ask again at once.
    pub more: bool,
    /// The task has ended (or was forgotten): nothing will come after this.
    pub ended: bool,
}

impl Follower {
    /// Has seen nothing yet.
    pub fn new(task: TaskKey, wanted: Wanted) -> Follower {
        Follower {
            task,
            wanted,
            revision: 0,
            places: Vec::new(),
            pending: BTreeSet::new(),
        }
    }

    fn wants(&self, target: Option<&Target>) -> bool {
        match (&self.wanted.machine, target) {
            (None, _) => true,
            (Some(name), Some(t)) => *t.instance == **name || *t.label == **name,
            (Some(_), None) => false,
        }
    }
}

impl Core {
    /// Somebody follows a task from now on: its changes are noted, and [`Notice::News`] says so.
    pub fn follow(&mut self, task: TaskKey) {
        self.followed.entry(task).or_default().followers += 1;
    }

    /// Somebody who followed a task does so no more.
    pub fn unfollow(&mut self, task: TaskKey) {
        if let Some(followed) = self.followed.get_mut(&task) {
            followed.followers -= 1;
            if followed.followers == 0 {
                self.followed.remove(&task);
            }
        }
    }

    /// Notes that an execution has changed, if anybody follows its task.
    pub(super) fn note_news(&mut self, key: ExecutionKey) {
        let Some(followed) = self.followed.get_mut(&key.task) else {
            return;
        };
        followed.revision += 1;
        if let Some(before) = followed.last.insert(key.n, followed.revision) {
            followed.changes.remove(&before);
        }
        followed.changes.insert(followed.revision, key.n);
        let notice = Notice::News(key.task);
        if self.notices.last() != Some(&notice) {
            self.notices.push(notice);
        }
    }

    /// What has happened since the last call with this follower.
    pub fn news(&self, follower: &mut Follower) -> Look {
        let mut look = Look::default();
        let Some(task) = self.tasks.get(&follower.task) else {
            look.ended = true;
            return look;
        };
        if let Some(followed) = self.followed.get(&follower.task) {
            let changes = followed.changes.range(follower.revision + 1..);
            follower.pending.extend(changes.map(|(_, n)| *n));
            follower.revision = followed.revision;
        }
        let known = follower.places.len();
        follower
            .pending
            .extend(known as u32..task.executions.len() as u32);
        follower
            .places
            .resize(task.executions.len(), Seen::default());
        let mut room = MAX_NEWS_BYTES;
        for _ in 0..MAX_LOOKED_AT {
            let Some(n) = follower.pending.first().copied() else {
                break;
            };
            let execution = &task.executions[n as usize];
            if !look_at(execution, n, follower, &mut room, &mut look.news) {
                break;
            }
            follower.pending.remove(&n);
        }
        look.more = !follower.pending.is_empty();
        look.ended = !look.more && task.finished_at.is_some();
        look
    }
}

/// Adds an execution's news. False when there was no room for all of them.
fn look_at(
    execution: &Execution,
    n: u32,
    follower: &mut Follower,
    room: &mut usize,
    news: &mut Vec<News>,
) -> bool {
    let mut seen = std::mem::take(&mut follower.places[n as usize]);
    let past = { execution.past.iter() }.map(|p| (&p.attempt, p.target.as_deref(), p.state));
    let now = (
        &*execution.now,
        execution.target.as_deref(),
        execution.state,
    );
    let from = match follower.wanted.offset {
        Some(_) if seen.attempt == 0 => execution.now.number,
        _ => seen.attempt,
    };
    let mut all = true;
    for (attempt, target, state) in past.chain([now]) {
        if attempt.number < from || !follower.wants(target) {
            continue;
        }
        let mut add = |what| news.push(note(n, target, attempt.number, what));
        all = look_at_attempt(attempt, state, &follower.wanted, &mut seen, room, &mut add);
        if !all {
            break;
        }
    }
    follower.places[n as usize] = seen;
    all
}

fn look_at_attempt(
    attempt: &Attempt,
    state: ExecutionState,
    wanted: &Wanted,
    seen: &mut Seen,
    room: &mut usize,
    add: &mut dyn FnMut(What),
) -> bool {
    if seen.attempt != attempt.number {
        let is_first = seen.attempt == 0;
        if !is_first {
            add(What::Retried);
        }
        *seen = Seen {
            attempt: attempt.number,
            at: [wanted.offset.filter(|_| is_first).unwrap_or(0); 2],
            state: None,
        };
    }
    let ended = state.is_terminal();
    let is_news = seen.state != Some(state);
    if is_news && !ended {
        add(What::State(state));
        seen.state = Some(state);
    }
    if let Some(output) = &attempt.output {
        let how = Reading {
            stream: wanted.stream,
            whole_lines: wanted.whole_lines,
            ended,
        };
        if !output.read_on(&how, &mut seen.at, room, add) {
            return false;
        }
    }
    if is_news && ended {
        add(What::State(state));
        seen.state = Some(state);
    }
    true
}

fn note(n: u32, target: Option<&Target>, attempt: u32, what: What) -> News {
    let (label, instance) = match target {
        Some(target) => (target.label.clone(), target.instance.clone()),
        None => ("".into(), "".into()),
    };
    News {
        n,
        label,
        instance,
        attempt,
        what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::output::Output;
    use Stream::{Stderr, Stdout};

    fn text(output: &Output, how: &Reading, at: &mut [u64; 2], room: usize) -> Vec<String> {
        let (mut texts, mut room) = (Vec::new(), room);
        output.read_on(how, at, &mut room, &mut |what| {
            texts.push(match what {
                What::Output(stream, at, bytes) => {
                    format!("{stream:?} {at} {:?}", String::from_utf8_lossy(&bytes))
                }
                What::Gap(stream, at, end) => format!("{stream:?} {at} gap {end}"),
                other => format!("{other:?}"),
            })
        });
        texts
    }

    #[test]
    fn output_comes_once_and_in_order() {
        let (mut output, mut at) = (Output::default(), [0; 2]);
        let mut how = Reading::default();
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
        let mut how = Reading {
            whole_lines: true,
            ..Reading::default()
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
        let how = Reading::default();
        let mut seen = 0;
        while seen < 1010 {
            let mut room = 300;
            let all = output.read_on(&how, &mut at, &mut room, &mut |what| {
                if let What::Output(_, _, bytes) = what {
                    seen += bytes.len();
                }
            });
            assert_eq!(all, seen == 1010);
        }
    }
}
