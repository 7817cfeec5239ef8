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
use crate::server::http::{Part, Responder, Source};
use crate::server::state::{Store, Ticket, Watcher};
use crate::wire;
use std::collections::VecDeque;
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

/// What is sent at once, in bytes, and a line or an event more.
const PART_BYTES: usize = 64 * 1024;
/// The most text in one event as JSON, in bytes: escaped it may be six times as long.
const MAX_TEXT_BYTES: usize = 16 * 1024;

/// How events are written.
pub trait Form: Send {
    /// The type of the body.
    fn content_type(&self) -> &'static str;
    /// Adds one to what is to be written; of its output what comes after the first `from` bytes, until there is a part
    /// ([`PART_BYTES`]). Returns how much of its output is done: a label before each line may make it much longer.
    fn add(&mut self, event: &TaskEvent, from: usize, to: &mut Vec<u8>) -> usize;
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

    fn add(&mut self, event: &TaskEvent, from: usize, to: &mut Vec<u8>) -> usize {
        let remark = match &event.kind {
            EventKind::State(_) => return 0,
            EventKind::Output(_, _, bytes) if self.several => {
                let mut at = from;
                for line in bytes[from..].split_inclusive(|b| *b == b'\n') {
                    add_line(&event.label, line.strip_suffix(b"\n").unwrap_or(line), to);
                    at += line.len();
                    if to.len() >= PART_BYTES {
                        break;
                    }
                }
                return at;
            }
            EventKind::Output(_, _, bytes) => {
                to.extend_from_slice(bytes);
                self.within_line = bytes.last() != Some(&b'\n');
                return bytes.len();
            }
            EventKind::Gap(_, from, end) => gap_line(end - from),
            EventKind::Retried => format!("… attempt {} begins …", event.attempt),
        };
        if self.several {
            add_line(&event.label, remark.trim().as_bytes(), to);
            return 0;
        }
        if std::mem::take(&mut self.within_line) {
            to.push(b'\n');
        }
        to.extend_from_slice(remark.trim().as_bytes());
        to.push(b'\n');
        0
    }

    fn sign_of_life(&self) -> &'static [u8] {
        b""
    }
}

/// The last place up to `at` where a character begins: one that is cut would be replaced twice.
fn char_boundary(bytes: &[u8], at: usize) -> usize {
    /// A character has so many bytes at most behind its first one.
    const CONTINUATIONS: usize = 3;
    let is_continuation = |at: usize| bytes.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let at = at.min(bytes.len());
    let back = (0..=CONTINUATIONS.min(at)).find(|back| !is_continuation(at - back));
    at - back.unwrap_or(0)
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

    fn add(&mut self, event: &TaskEvent, from: usize, to: &mut Vec<u8>) -> usize {
        let mut end = 0;
        let kind = match &event.kind {
            EventKind::State(state) => wire::event::EventKind::State { state: *state },
            EventKind::Retried => wire::event::EventKind::Attempt,
            EventKind::Output(stream, offset, bytes) => {
                end = char_boundary(bytes, from + MAX_TEXT_BYTES);
                wire::event::EventKind::Output {
                    stream: *stream,
                    offset: offset + from as u64,
                    end: offset + end as u64,
                    text: String::from_utf8_lossy(&bytes[from..end]).into_owned(),
                }
            }
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
        end
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
    let responder = call.responder.take();
    let waker = responder.as_ref().and_then(Responder::waker);
    let (Some(responder), Some(waker)) = (responder, waker) else {
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
        events: VecDeque::new(),
        done: 0,
        is_over: false,
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
    /// What is to be sent, and how much of the first one's output was.
    events: VecDeque<TaskEvent>,
    done: usize,
    /// Nothing comes after them.
    is_over: bool,
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

impl Following {
    /// The next part of what was seen; empty when everything is sent.
    fn part(&mut self) -> Vec<u8> {
        let mut part = Vec::new();
        while let Some(event) = self.events.front()
            && part.len() < PART_BYTES
        {
            let length = match &event.kind {
                EventKind::Output(_, _, bytes) => bytes.len(),
                EventKind::State(_) | EventKind::Retried | EventKind::Gap(..) => 0,
            };
            self.done = self.form.add(event, self.done, &mut part);
            if self.done >= length {
                self.events.pop_front();
                self.done = 0;
            }
        }
        part
    }
}

impl Source for Following {
    fn next(&mut self) -> Part {
        if self.events.is_empty() && !self.is_over {
            let pause = self
                .looked
                .map(|looked| PACE.saturating_sub(looked.elapsed()));
            if let Some(pause) = pause.filter(|pause| !pause.is_zero()) {
                return Part::Wait(pause);
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
            self.events.extend(batch.events);
            self.is_over = !batch.more && (batch.ended || !self.live);
            self.looked = (!batch.more).then(Instant::now);
        }
        let part = self.part();
        if !part.is_empty() {
            self.written = Instant::now();
            return Part::Bytes(part);
        }
        let silence = self.written.elapsed();
        match self.looked {
            _ if self.is_over => Part::End,
            // There is more to look at.
            None => Part::Wait(Duration::ZERO),
            Some(_) if silence < SIGN_OF_LIFE => Part::Wait((SIGN_OF_LIFE - silence).max(PACE)),
            Some(_) => {
                self.written = Instant::now();
                match self.form.sign_of_life() {
                    b"" => Part::Wait(SIGN_OF_LIFE),
                    sign => Part::Bytes(sign.to_vec()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::agent::Stream;

    /// A form gives everything, whatever the parts, and no part is much larger than it may be.
    #[test]
    fn parts_are_bounded_and_nothing_is_lost() {
        let output = |bytes: Vec<u8>| TaskEvent {
            n: 0,
            label: "l".repeat(255).into(),
            instance: "i".into(),
            attempt: 1,
            kind: EventKind::Output(Stream::Stdout, 100, bytes),
        };
        let lines = output(b"\n".repeat(5_000));
        let text = output("é\0".repeat(40_000).into_bytes());
        let several = Text {
            several: true,
            within_line: false,
        };
        let json = Json { prefix: "t".into() };
        let forms: [(Box<dyn Form>, &TaskEvent, usize); 2] = [
            (Box::new(several), &lines, 5_000),
            (Box::new(json), &text, 120_000),
        ];
        for (mut form, event, length) in forms {
            let (mut done, mut all) = (0, Vec::new());
            while done < length {
                let mut part = Vec::new();
                done = form.add(event, done, &mut part);
                assert!(part.len() < 2 * PART_BYTES, "{}", part.len());
                all.extend_from_slice(&part);
            }
            let all = String::from_utf8(all).unwrap();
            match all.starts_with('{') {
                false => assert_eq!(all.lines().count(), 5_000),
                true => {
                    let events = all.lines().map(|line| {
                        serde_json::from_str::<wire::event::TaskEvent>(line)
                            .unwrap()
                            .kind
                    });
                    let mut at = 100;
                    for kind in events {
                        let wire::event::EventKind::Output {
                            offset, end, text, ..
                        } = kind
                        else {
                            panic!("not output");
                        };
                        assert_eq!((offset, end - offset), (at, text.len() as u64));
                        assert!(!text.contains('\u{fffd}'), "a character was cut");
                        at = end;
                    }
                    assert_eq!(at, 120_100);
                }
            }
        }
    }
}
