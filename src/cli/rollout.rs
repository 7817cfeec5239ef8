//! The progress of a rollout in words: how far it has come, what it waits for, what stopped it. While a task is followed
//! a thread polls for that and for its undos, as the events of a task do not contain them.

use super::terminal::sanitize;
use crate::client::Client;
use crate::wire::duration::TimeSpan;
use crate::wire::event::{EventKind, TaskEvent};
use crate::wire::rollout::{RolloutPhase, RolloutState, StopKind};
use crate::wire::task::{ExecutionState, Task};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How often the state of a rollout is polled.
pub const POLL_INTERVAL: TimeSpan = TimeSpan::from_secs(1);
/// The pause between two polls is at least this many times as long as a poll took: the answer may be large.
const PAUSE_PER_POLL: u32 = 5;
/// The end of a pause is shown with its date if it is further away than this.
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// `step 2 of 3, 11 of 100 started, 1 failed`.
pub fn standing(task: &Task, state: &RolloutState) -> String {
    let step = match state.of {
        1 => String::new(),
        of => format!("step {} of {of}, ", state.step),
    };
    let (started, all) = (state.started, task.counts.total());
    let joined = match state.late_joined {
        0 => String::new(),
        joined => format!(", {joined} joined later"),
    };
    format!(
        "{step}{started} of {all} started, {} failed{joined}",
        state.failures
    )
}

/// The state of a task's rollout, if it has one or was paused.
pub fn state_of(task: &Task) -> Option<&RolloutState> {
    task.rollout_state.as_ref()
}

/// Whether a task starts nothing until a user resumes it, or until its pause is over.
pub fn is_paused(task: &Task) -> bool {
    state_of(task).is_some_and(|state| state.state == RolloutPhase::Paused)
}

/// What a paused task waits for.
pub fn waits_for(task: &Task) -> Option<String> {
    let state = state_of(task).filter(|_| is_paused(task))?;
    Some(match &state.resumes_at {
        Some(at) => format!("resumes at {}", short_time(&sanitize(at))),
        None => format!("waits for: sidebike resume {}", sanitize(&task.id)),
    })
}

/// Whether a task is paused until a user resumes it.
pub fn waits_for_user(task: &Task) -> bool {
    is_paused(task) && state_of(task).is_some_and(|state| state.resumes_at.is_none())
}

/// A time of the API without its date, if it is within a day.
fn short_time(time: &str) -> String {
    let parsed = humantime::parse_rfc3339(time).ok();
    let ahead = parsed.and_then(|at| at.duration_since(SystemTime::now()).ok());
    let is_soon = ahead.is_none_or(|ahead| ahead < DAY);
    match time.get(11..19).filter(|_| is_soon) {
        Some(of_day) => format!("{of_day} UTC"),
        None => time.to_owned(),
    }
}

/// Why a task was stopped.
pub fn stopped(task: &Task) -> Option<String> {
    let by = task.stopped_by.as_ref()?;
    Some(match by.kind {
        StopKind::Failures | StopKind::Probe | StopKind::KeepAlive => sanitize(&by.msg),
        StopKind::User => format!("{} by a user", sanitize(&by.msg)),
    })
}

/// Polls a task in a thread, if it has an undo, or while it has a rollout or is paused.
pub struct TaskWatch {
    client: Client,
    id: String,
    polled: Option<Receiver<Task>>,
}

impl TaskWatch {
    /// The watch of a task that was just submitted.
    pub fn of(client: &Client, task: &Task) -> TaskWatch {
        let mut watch = TaskWatch {
            client: client.clone(),
            id: task.id.clone(),
            polled: None,
        };
        let has_undo = task.detail.detail.undo.is_some();
        if has_undo || task.rollout.is_some() || task.rollout_state.is_some() {
            watch.start();
        }
        watch
    }

    /// Starts to poll when an event shows that a task without a rollout was paused.
    pub fn note(&mut self, event: &TaskEvent) {
        let is_held = matches!(
            event.kind,
            EventKind::State {
                state: ExecutionState::Held
            }
        );
        if is_held && self.polled.is_none() {
            self.start();
        }
    }

    /// The task as it was polled last, if it was since the call before.
    pub fn newest(&self) -> Option<Task> {
        self.polled.as_ref()?.try_iter().last()
    }

    fn start(&mut self) {
        let (sender, polled) = sync_channel(1);
        let (client, id) = (self.client.clone(), self.id.clone());
        let thread = thread::Builder::new().name("rollout".into());
        // Without the thread the progress only shows less.
        let started = thread.spawn(move || poll(&client, &id, &sender));
        self.polled = started.is_ok().then_some(polled);
    }
}

/// Polls until the task has ended, or its receiver is dropped.
fn poll(client: &Client, id: &str, sender: &SyncSender<Task>) {
    loop {
        let began = Instant::now();
        let answered = client.task(id, TimeSpan::default());
        // Without the time that the task waits in the channel: it is not read while a line of output is incomplete.
        let took = began.elapsed();
        match answered {
            Ok(task) => {
                let has_ended = task.state.is_terminal();
                if sender.send(task).is_err() || has_ended {
                    return;
                }
            }
            // The server has forgotten it.
            Err(why) if why.status() == Some(404) => return,
            Err(_) => {}
        }
        thread::sleep(Duration::from(POLL_INTERVAL).max(took * PAUSE_PER_POLL));
    }
}
