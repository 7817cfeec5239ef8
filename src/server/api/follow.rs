//! Following a task's output while it comes.
//!
//! A follower is a [`Source`] of the edge: it has no thread. When something happens to its task it is woken, takes what
//! is new under the lock (a bounded copy) and gives it to its connection, which asks again when that has been sent; so
//! one that reads slowly delays nobody. To add a form of the stream: implement [`Form`] and let `output` choose it.

use super::call::{Call, Handled};
use crate::core::{
    EventBatch, EventKind, Follower, OutputFilter, TaskEvent, TaskKey, execution_id, gap_line,
};
use crate::server::answers;
use crate::server::http::{Part, Source};
use crate::server::state::{Store, Ticket, Watcher};
use crate::wire;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The pause between two looks: output comes in pieces twice a second from each machine, and a reader cannot tell. It
/// bounds what hundreds of followers of a busy task cost.
const PACE: Duration = Duration::from_millis(100);
/// The pause before it is looked again whether an end is on the disk: commits take milliseconds.
const UNSETTLED: Duration = Duration::from_millis(10);
/// How often a stream of JSON without news gets an empty line, so that its reader can tell a quiet task from a dead
/// connection.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// How events are written.
pub trait Form: Send {
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
    form: Box<dyn Form>,
) -> Handled {
    let store = &call.server.store;
    if !store.follow(task) {
        let msg = "as many requests are held as allowed (--max-held)";
        return Err(answers::error(503, msg));
    }
    let way = call.responder.take();
    let Some((waker, responder)) = way.and_then(|way| Some((way.waker()?, way))) else {
        store.unfollow(task);
        return Ok(None);
    };
    let content_type = form.content_type();
    let following = Following {
        store: store.clone(),
        task,
        watcher: store.watchers.add(task, waker),
        follower: Follower::new(task, wanted),
        live,
        form,
        unsettled: None,
        looked: None,
        written: Instant::now(),
    };
    responder.stream(content_type, Box::new(following));
    Ok(None)
}

/// A follower, counted until it is dropped.
struct Following {
    store: Arc<Store>,
    task: TaskKey,
    watcher: Arc<Watcher>,
    follower: Follower,
    live: bool,
    form: Box<dyn Form>,
    /// Events with an end that is not yet on the disk.
    unsettled: Option<(EventBatch, Ticket)>,
    /// When it last saw everything that there was.
    looked: Option<Instant>,
    written: Instant,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.store.unfollow(self.task);
        self.store.watchers.remove(self.task, &self.watcher);
    }
}

impl Source for Following {
    fn next(&mut self) -> Part {
        if let Some(looked) = self.looked {
            let pause = PACE.saturating_sub(looked.elapsed());
            if !pause.is_zero() {
                return Part::Wait(pause);
            }
        }
        let (batch, ticket) = match self.unsettled.take() {
            Some(seen) => seen,
            None => {
                // What happens from now on wakes it again.
                self.watcher.looks();
                self.store.next_events(&mut self.follower)
            }
        };
        // An end is told when it is safe.
        if batch.has_end() && !self.store.is_settled(ticket) {
            self.unsettled = Some((batch, ticket));
            return Part::Wait(UNSETTLED);
        }
        let mut bytes = Vec::new();
        for event in &batch.events {
            self.form.add(event, &mut bytes);
        }
        let is_over = !batch.more && (batch.ended || !self.live);
        self.looked = (!batch.more && !is_over).then(Instant::now);
        let silence = self.written.elapsed();
        if bytes.is_empty() && !is_over && silence >= SIGN_OF_LIFE {
            bytes.extend_from_slice(self.form.sign_of_life());
            self.written = Instant::now();
        }
        if !bytes.is_empty() {
            self.written = Instant::now();
            return Part::Bytes(bytes);
        }
        match (batch.more, is_over) {
            (true, _) => Part::Wait(Duration::ZERO),
            (_, true) => Part::End,
            _ => Part::Wait(SIGN_OF_LIFE.saturating_sub(silence).max(PACE)),
        }
    }
}
