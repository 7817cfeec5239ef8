//! The event of a task, kept coming: over connections that break, servers that are replaced, and
//! without showing anything twice.
//!
//! A thread reads, as a read knows no time-out; it says which connection an item came by, so that a
//! dead connection can be given up. The event of a new connection begin at the beginning again;
//! what has been seen is known by its place in its stream.

use super::messages::describe;
use crate::client::{CallError, Client, Kind};
use crate::wire::event::{EventKind, TaskEvent};
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Items read ahead; when we do not keep up the server has to wait.
const READ_AHEAD: usize = 256;
/// The pauses between attempts to reach the server: doubled from the first up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Silence after which a connection counts as dead: three of the server's signs of life.
const DEAD_AFTER: Duration = Duration::from_secs(45);

/// What comes of a stream.
pub enum StreamItem {
    /// Something happened.
    Event(TaskEvent),
    /// The server cannot be reached; in words, why. It is tried on.
    Broken(String),
    /// Nothing more will come.
    Ended,
    /// Nothing more will come, and this is why.
    Refused(String),
}

/// A stream.
pub struct EventStream {
    source: Source,
    sender: SyncSender<(u32, Option<StreamItem>)>,
    items: Receiver<(u32, Option<StreamItem>)>,
    connection: u32,
    heard_at: Instant,
    memory: Memory,
}

/// What has been seen of which execution.
#[derive(Default)]
struct Memory(HashMap<String, Seen>);

/// How far an execution has been seen.
#[derive(Default)]
struct Seen {
    attempt: u32,
    at: [u64; 2],
}

/// Of which task, and of which of its machines.
#[derive(Clone)]
struct Source {
    client: Client,
    task: String,
    machine: Option<String>,
    live: bool,
}

impl EventStream {
    /// Opens the stream of a task: until it ends when `live`, else of what there is.
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
            memory: Memory::default(),
        };
        stream.reopen();
        stream
    }

    /// Begins again, on a new connection. What has been seen does not come again.
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
            // There is room: nobody else sends.
            let _ = self.sender.try_send((connection, Some(why)));
        }
    }

    /// The next item; none when `patience` is over.
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
                    if let Some(event) = self.memory.unseen(event) {
                        return Some(StreamItem::Event(event));
                    }
                }
                Some(item) => return Some(item),
                None => {}
            }
        }
    }
}

impl Memory {
    /// What of event has not been seen yet.
    fn unseen(&mut self, mut event: TaskEvent) -> Option<TaskEvent> {
        let seen = self.0.entry(event.execution.clone()).or_default();
        if event.attempt < seen.attempt {
            return None;
        }
        if event.attempt > seen.attempt {
            let attempt = event.attempt;
            *seen = Seen {
                attempt,
                ..Seen::default()
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
        let at = &mut seen.at[stream as usize];
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
    /// Reads until the end; `send` says whether anybody still listens.
    fn read(&self, send: &dyn Fn(Option<StreamItem>) -> bool) {
        let mut pause = PAUSES.0;
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
            pause = (pause * 2).min(PAUSES.1);
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
            *pause = PAUSES.0;
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
        let mut memory = Memory::default();
        let mut text = |event| match memory.unseen(event)?.kind {
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
