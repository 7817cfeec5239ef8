//! Answers whose body is read from a file while it is sent.
//!
//! Parts that the kernel has in memory go to the connection as parts of the file, without a copy. The others are read by
//! a thread for transfers, so that a slow disk delays no other connection; one part is all the memory that this takes.

use super::call::{Call, Handled};
use crate::server::answers;
use crate::server::blobs::range::{self, Wanted};
use crate::server::http::{
    Answer, Edge, FilePart, PART_BYTES, Part, Responder, Source, TURN_BYTES, Waker,
};
use rustix::io::{ReadWriteFlags, preadv2};
use std::any::Any;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A stream that waits for its file is woken; this is for nothing else.
const UNTIL_WOKEN: Duration = Duration::from_secs(3_600);

/// What is to be sent.
pub struct Content {
    /// Where its bytes are.
    pub file: Arc<File>,
    /// Where they begin in the file.
    pub base: u64,
    /// How many they are.
    pub bytes: u64,
    /// Their SHA-256 in hexadecimal digits: the `ETag`.
    pub sha256: String,
    /// The name under which a browser keeps them.
    pub name: String,
    /// Counts the bytes that were given to connections.
    pub sent: Arc<AtomicU64>,
    /// Kept until everything is sent.
    pub kept: Box<dyn Any + Send>,
}

/// Answers with a file, or the part of it that is wanted.
pub fn answer(call: Call<'_>, content: Content) -> Handled {
    let headers = &call.request.headers;
    let size = content.bytes;
    let etag = format!("\"{}\"", content.sha256);
    let name = &content.name;
    let lines = format!(
        "ETag: {etag}\r\nAccept-Ranges: bytes\r\nCache-Control: no-cache\r\n\
         Content-Disposition: attachment; filename=\"{name}\"\r\n"
    );
    let has_it = |list: &String| {
        let tags = list
            .split(',')
            .map(|tag| tag.trim().trim_start_matches("W/"));
        tags.clone().any(|tag| tag == etag || tag == "*")
    };
    if headers.if_none_match.as_ref().is_some_and(has_it) {
        return Ok(Some(Answer {
            headers: lines.into(),
            ..Answer::new(304, "application/octet-stream", &b""[..])
        }));
    }
    // Of another version a part would not fit: all of this one is sent.
    let range = match &headers.if_range {
        Some(tag) if *tag != etag => None,
        _ => headers.range.as_deref(),
    };
    let (status, part, more) = match range::wanted(range, size).map_err(answers::bad)? {
        Wanted::All => (200, 0..size, String::new()),
        Wanted::Part(part) => {
            let line = format!(
                "Content-Range: bytes {}-{}/{size}\r\n",
                part.start,
                part.end - 1
            );
            (206, part, line)
        }
        Wanted::Beyond => {
            return Err(Answer {
                headers: format!("{lines}Content-Range: bytes */{size}\r\n").into(),
                ..answers::error(
                    416,
                    &format!("Range: begins behind the end, there are {size} bytes"),
                )
            });
        }
    };
    let head = Answer {
        headers: (lines + &more).into(),
        ..Answer::new(status, "application/octet-stream", &b""[..])
    };
    let Some(responder) = call.responder.take() else {
        return Ok(None);
    };
    let bytes = part.end - part.start;
    let Some(waker) = responder.waker() else {
        return Ok(None);
    };
    let source = FileSource::new(call.server.edge.clone(), waker, content, part);
    Responder::stream_sized(responder, head, bytes, Box::new(source));
    Ok(None)
}

/// Gives a part of a file.
struct FileSource {
    edge: Arc<Edge>,
    reading: Arc<Reading>,
    /// What is still to be given, counted from the beginning of the file.
    rest: Range<u64>,
    _kept: Box<dyn Any + Send>,
}

/// What the source and the thread that reads for it share.
struct Reading {
    file: Arc<File>,
    waker: Waker,
    next: Mutex<Next>,
    sent: Arc<AtomicU64>,
}

/// The next part.
enum Next {
    /// No thread reads it.
    None,
    /// A thread reads it.
    Reading,
    /// It was read.
    Read(io::Result<Vec<u8>>),
}

impl FileSource {
    fn new(edge: Arc<Edge>, waker: Waker, content: Content, part: Range<u64>) -> Self {
        let reading = Reading {
            file: content.file,
            waker,
            next: Mutex::new(Next::None),
            sent: content.sent,
        };
        FileSource {
            edge,
            reading: Arc::new(reading),
            rest: content.base + part.start..content.base + part.end,
            _kept: content.kept,
        }
    }

    /// The next part, of `most` bytes at most.
    fn next_part(&self, most: usize) -> FilePart {
        let left = self.rest.end - self.rest.start;
        FilePart {
            file: self.reading.file.clone(),
            at: self.rest.start,
            bytes: left.min(most as u64) as usize,
        }
    }

    /// Has a thread read the next part.
    fn read(&self) {
        let part = self.next_part(PART_BYTES);
        let reading = self.reading.clone();
        self.edge.run_transfer(move || {
            let read = part.read(part.bytes);
            *reading.next.lock().unwrap_or_else(PoisonError::into_inner) = Next::Read(read);
            reading.waker.wake();
        });
    }

    /// Notes that the next bytes were given.
    fn give(&mut self, bytes: usize) {
        self.rest.start += bytes as u64;
        let sent = &self.reading.sent;
        sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Whether the kernel has the first and the last byte of a part in memory. It reads ahead in order, so what is between
/// them is there, too, as a rule. Where the file system cannot tell, a thread reads each part.
fn is_cached(part: &FilePart) -> bool {
    let has = |at: u64| {
        let mut byte = [0];
        let to = &mut [IoSliceMut::new(&mut byte)];
        preadv2(&*part.file, to, at, ReadWriteFlags::NOWAIT) == Ok(1)
    };
    has(part.at) && has(part.at + part.bytes as u64 - 1)
}

impl Source for FileSource {
    fn next(&mut self) -> Part {
        let reading = self.reading.clone();
        let mut next = reading.next.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *next, Next::None) {
            Next::None if self.rest.is_empty() => Part::End,
            Next::None => {
                let part = self.next_part(TURN_BYTES);
                if is_cached(&part) {
                    self.give(part.bytes);
                    return Part::File(part);
                }
                *next = Next::Reading;
                self.read();
                Part::Wait(UNTIL_WOKEN)
            }
            Next::Reading => {
                *next = Next::Reading;
                Part::Wait(UNTIL_WOKEN)
            }
            Next::Read(Ok(part)) => {
                self.give(part.len());
                Part::Bytes(part)
            }
            Next::Read(Err(why)) => {
                log::warn!(
                    "a file that is being sent cannot be read: {why}; its connection is closed"
                );
                Part::End
            }
        }
    }
}
