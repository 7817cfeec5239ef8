//! The events of a task, over connections that may break and servers that may be restarted, each event once.
//!
//! A thread reads, as a blocking read cannot be limited in time. It sends the number of its connection with each
//! item, so that the items of an abandoned connection can be ignored. A new connection delivers the events from
//! the beginning; those already delivered are recognized by their offset in their stream.

use super::messages::describe;
use crate::client::{CallError, Client, Kind};
use crate::wire::event::{EventKind, TaskEvent};
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Items read ahead. When the terminal is slower than that, the server has to wait.
const READ_AHEAD: usize = 256;
/// The shortest and the longest pause before connecting again; it doubles after each failure.
const RECONNECT_PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A connection that is silent for this long counts as dead. The server sends an empty line every 15 s.
const DEAD_AFTER: Duration = Duration::from_secs(45);

/// What a stream delivers.
pub enum StreamItem {
    /// An event.
    Event(TaskEvent),
    /// The connection broke, for this reason. It is made again.
    Broken(String),
    /// The end: there will be no further event.
    Ended,
    /// The server refused, for this reason: there will be no further event.
    Refused(String),
}

/// The events of a task.
pub struct EventStream {
    source: Source,
    sender: SyncSender<(u32, Option<StreamItem>)>,
    items: Receiver<(u32, Option<StreamItem>)>,
    connection: u32,
    heard_at: Instant,
    positions: ReadPositions,
}

/// How far each execution has been read.
#[derive(Default)]
struct ReadPositions(HashMap<String, Position>);

/// How far an execution has been read.
#[derive(Default)]
struct Position {
    attempt: u32,
    offsets: [u64; 2],
}

/// What to read: which task, and which of its machines.
#[derive(Clone)]
struct Source {
    client: Client,
    task: String,
    machine: Option<String>,
    live: bool,
}

impl EventStream {
    /// Opens the stream of a task: until the task ends if `live`, otherwise only what has happened so far.
    pub fn open(client: &Client, task: &str, machine: Option<&str>, live: bool) -> EventStream {
        let (sender, items) = sync_channel(READ_AHEAD);
        let mut stream = EventStream {
            source: Source {
                client: client.clone(),
                task: task.into(),
                machine: machine.map(str::to_owned),
                live,
            },
            sender,
            items,
            connection: 0,
            heard_at: Instant::now(),
            positions: ReadPositions::default(),
        };
        stream.reopen();
        stream
    }

    /// Opens a new connection. Events that were delivered are not delivered again.
    pub fn reopen(&mut self) {
        self.connection += 1;
        self.heard_at = Instant::now();
        let (source, sender) = (self.source.clone(), self.sender.clone());
        let connection = self.connection;
        let reader = thread::Builder::new().name("stream".into());
        let started =
            reader.spawn(move || source.read(&|item| sender.send((connection, item)).is_ok()));
        if let Err(error) = started {
            let why = StreamItem::Refused(format!("cannot start a thread: {error}"));
            // The channel has room: there is no other sender yet.
            let _ = self.sender.try_send((connection, Some(why)));
        }
    }

    /// The next item; `None` if there is none within `patience`.
    pub fn next(&mut self, patience: Duration) -> Option<StreamItem> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let Ok((connection, item)) = self.items.recv_timeout(left) else {
                if self.heard_at.elapsed() < DEAD_AFTER {
                    return None;
                }
                self.reopen();
                let why = format!("nothing heard for {} s", DEAD_AFTER.as_secs());
                return Some(StreamItem::Broken(why));
            };
            if connection != self.connection {
                continue;
            }
            self.heard_at = Instant::now();
            match item {
                Some(StreamItem::Event(event)) => {
                    if let Some(event) = self.positions.new_part(event) {
                        return Some(StreamItem::Event(event));
                    }
                }
                Some(item) => return Some(item),
                None => {}
            }
        }
    }
}

impl ReadPositions {
    /// The part of an event that is new; `None` if nothing of it is.
    fn new_part(&mut self, mut event: TaskEvent) -> Option<TaskEvent> {
        let seen = self.0.entry(event.execution.clone()).or_default();
        if event.attempt < seen.attempt {
            return None;
        }
        if event.attempt > seen.attempt {
            let attempt = event.attempt;
            *seen = Position {
                attempt,
                ..Position::default()
            };
        } else if matches!(event.kind, EventKind::Attempt) {
            return None;
        }
        let (stream, offset, end) = match &event.kind {
            EventKind::Output {
                stream,
                offset,
                end,
                ..
            }
            | EventKind::Missing {
                stream,
                offset,
                end,
            } => (*stream, *offset, *end),
            EventKind::State { .. } | EventKind::Attempt => return Some(event),
        };
        let at = &mut seen.offsets[stream as usize];
        let known = at.saturating_sub(offset);
        if end <= *at {
            return None;
        }
        *at = end;
        if let EventKind::Output { text, .. } = &mut event.kind
            && known > 0
            && let Some(rest) = usize::try_from(known)
                .ok()
                .and_then(|known| text.get(known..))
        {
            *text = rest.to_owned();
        }
        Some(event)
    }
}

impl Source {
    /// Reads until the end, over as many connections as it takes; `send` is false once nobody receives.
    fn read(&self, send: &dyn Fn(Option<StreamItem>) -> bool) {
        let mut pause = RECONNECT_PAUSES.0;
        loop {
            let broken = match self.read_one(send, &mut pause) {
                Ok(()) => return,
                Err(error) => error,
            };
            let is_no = matches!(
                broken.kind,
                Kind::Refused {
                    status: 400..=499,
                    ours: true,
                    ..
                }
            );
            if is_no || !self.live {
                send(Some(StreamItem::Refused(describe(&broken))));
                return;
            }
            if !send(Some(StreamItem::Broken(describe(&broken)))) {
                return;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(RECONNECT_PAUSES.1);
        }
    }

    fn read_one(
        &self,
        send: &dyn Fn(Option<StreamItem>) -> bool,
        pause: &mut Duration,
    ) -> Result<(), CallError> {
        let machine = self.machine.as_deref();
        let mut reader = self.client.events(&self.task, machine, self.live)?;
        while let Some(event) = reader.next_event()? {
            *pause = RECONNECT_PAUSES.0;
            if !send(event.map(StreamItem::Event)) {
                return Ok(());
            }
        }
        send(Some(StreamItem::Ended));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::agent::Stream;

    fn output(attempt: u32, offset: u64, text: &str) -> TaskEvent {
        TaskEvent {
            execution: "t.0".into(),
            machine_label: "m".into(),
            instance: "i".into(),
            host: "h".into(),
            attempt,
            kind: EventKind::Output {
                stream: Stream::Stdout,
                offset,
                end: offset + text.len() as u64,
                text: text.into(),
            },
        }
    }

    #[test]
    fn nothing_is_shown_twice() {
        let mut positions = ReadPositions::default();
        let mut text = |event| match positions.new_part(event)?.kind {
            EventKind::Output { text, .. } => Some(text),
            other => panic!("{other:?}"),
        };
        assert_eq!(text(output(1, 0, "abc")).as_deref(), Some("abc"));
        assert_eq!(text(output(1, 0, "abc")), None);
        assert_eq!(text(output(1, 0, "abcde")).as_deref(), Some("de"));
        assert_eq!(text(output(2, 0, "x")).as_deref(), Some("x"));
        assert_eq!(text(output(1, 5, "late")), None);
    }
}
