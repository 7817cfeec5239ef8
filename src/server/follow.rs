//! Following a task's output while it comes.
//!
//! A follower has its connection's thread, which is there already. It sleeps on the bell of its task
//! until something happens, takes what is new under the lock (a bounded copy), and writes it with
//! the lock released; so one that reads slowly delays nobody, and the guard cuts one that does not
//! read at all. To add a form of the stream: implement [`Form`] and let `text` choose it.

use super::answer;
use super::connection::Phase;
use super::respond::Streaming;
use super::routes::{Call, Handled};
use super::store::Store;
use crate::core::{EventKind, Follower, OutputFilter, TaskEvent, TaskKey, execution_id, gap_line};
use crate::wire;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The pause between two looks: output comes in pieces twice a second from each machine, and a
/// reader cannot tell. It bounds what hundreds of followers of a busy task cost.
const PACE: Duration = Duration::from_millis(100);
/// How often a follower without news looks whether its reader is still there.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// How often a stream of JSON without news gets an empty line, so that its reader can tell a quiet
/// task from a dead connection.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// The bells of all followed tasks.
#[derive(Default)]
pub struct Bells(Mutex<HashMap<TaskKey, Arc<Bell>>>);

/// Rings when something has happened to a task.
#[derive(Default)]
pub struct Bell {
    rung: Mutex<u64>,
    ringing: Condvar,
}

impl Bells {
    /// Something has happened to a task.
    pub fn ring(&self, task: TaskKey) {
        let bell = {
            let bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            bells.get(&task).cloned()
        };
        if let Some(bell) = bell {
            *bell.rung.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            bell.ringing.notify_all();
        }
    }

    fn listen(&self, task: TaskKey) -> Arc<Bell> {
        let mut bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bells.entry(task).or_default().clone()
    }

    fn leave(&self, task: TaskKey, bell: Arc<Bell>) {
        let mut bells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(bell);
        if bells
            .get(&task)
            .is_some_and(|bell| Arc::strong_count(bell) == 1)
        {
            bells.remove(&task);
        }
    }
}

impl Bell {
    fn count(&self) -> u64 {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it has rung more often than `heard`, or for a while.
    fn wait(&self, heard: u64) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.ringing
                .wait_timeout_while(rung, LOOK_PERIOD, |rung| *rung <= heard),
        );
    }
}

/// How events are written.
pub trait Form {
    /// The type of the body.
    fn content_type(&self) -> &'static str;
    /// Adds one to what is to be written.
    fn add(&mut self, event: &TaskEvent, to: &mut Vec<u8>);
    /// What is written when there has been nothing to write for a while.
    fn sign_of_life(&self) -> &'static [u8];
}

/// As text: one machine's bytes as they come, several machines' lines with the label in front.
pub struct Text {
    /// The machines are several.
    pub several: bool,
    /// What was written last has no end of line.
    pub within_line: bool,
}

impl Form for Text {
    fn content_type(&self) -> &'static str {
        "text/plain; charset=utf-8"
    }

    fn add(&mut self, event: &TaskEvent, to: &mut Vec<u8>) {
        let remark = match &event.kind {
            EventKind::State(_) => return,
            EventKind::Output(_, _, bytes) if self.several => {
                for line in bytes.split_inclusive(|b| *b == b'\n') {
                    add_line(&event.label, line.strip_suffix(b"\n").unwrap_or(line), to);
                }
                return;
            }
            EventKind::Output(_, _, bytes) => {
                to.extend_from_slice(bytes);
                self.within_line = bytes.last() != Some(&b'\n');
                return;
            }
            EventKind::Gap(_, from, end) => gap_line(end - from),
            EventKind::Retried => format!("… attempt {} begins …", event.attempt),
        };
        if self.several {
            return add_line(&event.label, remark.trim().as_bytes(), to);
        }
        if std::mem::take(&mut self.within_line) {
            to.push(b'\n');
        }
        to.extend_from_slice(remark.trim().as_bytes());
        to.push(b'\n');
    }

    fn sign_of_life(&self) -> &'static [u8] {
        b""
    }
}

fn add_line(label: &str, line: &[u8], to: &mut Vec<u8>) {
    for part in [label.as_bytes(), b" | ", line, b"\n"] {
        to.extend_from_slice(part);
    }
}

/// As JSON, one object a line.
pub struct Json {
    /// What the ids of the task's executions begin with.
    pub prefix: Arc<str>,
}

impl Form for Json {
    fn content_type(&self) -> &'static str {
        "application/x-ndjson"
    }

    fn add(&mut self, event: &TaskEvent, to: &mut Vec<u8>) {
        let kind = match &event.kind {
            EventKind::State(state) => wire::event::EventKind::State { state: *state },
            EventKind::Retried => wire::event::EventKind::Attempt,
            EventKind::Output(stream, offset, bytes) => wire::event::EventKind::Output {
                stream: *stream,
                offset: *offset,
                end: offset + bytes.len() as u64,
                text: String::from_utf8_lossy(bytes).into_owned(),
            },
            EventKind::Gap(stream, offset, end) => wire::event::EventKind::Missing {
                stream: *stream,
                offset: *offset,
                end: *end,
            },
        };
        let event = wire::event::TaskEvent {
            execution: execution_id(&self.prefix, event.n),
            machine_label: event.label.to_string(),
            instance: event.instance.to_string(),
            attempt: event.attempt,
            kind,
        };
        // Our own types have only string keys and finite numbers: serializing them cannot fail.
        let _ = serde_json::to_writer(&mut *to, &event);
        to.push(b'\n');
    }

    fn sign_of_life(&self) -> &'static [u8] {
        b"\n"
    }
}

/// Answers with a task's output: until the task ends when `live`, else what there is.
pub fn answer(
    call: Call<'_>,
    task: TaskKey,
    wanted: OutputFilter,
    live: bool,
    form: &mut dyn Form,
) -> Handled {
    let store = &call.server.store;
    let Some(following) = Following::begin(store, task) else {
        let msg = "as many requests are held as allowed (--max-held)";
        return Err(answer::error(503, msg));
    };
    let Some(responder) = call.responder.take() else {
        return Ok(None);
    };
    if let Some(stream) = responder.stream(form.content_type()) {
        pump(&following, stream, Follower::new(task, wanted), live, form);
    }
    Ok(None)
}

/// Somebody who follows, counted until it is dropped.
struct Following<'a> {
    store: &'a Store,
    task: TaskKey,
    bell: Option<Arc<Bell>>,
}

impl<'a> Following<'a> {
    fn begin(store: &'a Store, task: TaskKey) -> Option<Self> {
        store.follow(task).then(|| Following {
            store,
            task,
            bell: Some(store.bells.listen(task)),
        })
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.store.unfollow(self.task);
        if let Some(bell) = self.bell.take() {
            self.store.bells.leave(self.task, bell);
        }
    }
}

/// Writes what is new, again and again, until the task has ended or the reader is gone.
fn pump(
    following: &Following<'_>,
    mut stream: Streaming,
    mut follower: Follower,
    live: bool,
    form: &mut dyn Form,
) {
    let Some(bell) = &following.bell else { return };
    let mut written_at = Instant::now();
    loop {
        let heard = bell.count();
        let batch = following.store.ask(|core| core.next_events(&mut follower));
        let mut bytes = Vec::new();
        for event in &batch.events {
            form.add(event, &mut bytes);
        }
        if bytes.is_empty() && written_at.elapsed() >= SIGN_OF_LIFE {
            bytes.extend_from_slice(form.sign_of_life());
        }
        if !bytes.is_empty() {
            written_at = Instant::now();
            if !stream.write(&bytes) {
                return;
            }
        }
        if batch.more {
            continue;
        }
        if batch.ended || !live {
            return stream.finish();
        }
        stream.connection().enter(Phase::Held);
        thread::sleep(PACE);
        bell.wait(heard);
        if stream.connection().peer.has_closed() {
            return;
        }
    }
}
