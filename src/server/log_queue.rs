//! Where the server's log goes: to standard error, by a thread of its own.
//!
//! A pipe that nobody reads is full after 64 KiB, a terminal can be stopped, and a file can be on a disk that hangs. A
//! thread that waited for them while it logs would hold the log's lock, and soon all others would wait for it. So a
//! line is only put into a queue. What does not fit is dropped and counted, and the log says so at that place.

use super::http::start_thread;
use log::{Level, error};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, ErrorKind, Write};
use std::panic::PanicHookInfo;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// What the queue takes, in bytes: some 10,000 lines. As much again is being written.
const MAX_QUEUED_BYTES: usize = 1 << 20;
/// How long the server waits at its end for the last lines to be written.
const FLUSH: Duration = Duration::from_secs(2);
/// The pause before standard error is tried again, where somebody made it non-blocking.
const RETRY: Duration = Duration::from_millis(20);

/// Lines that are not written yet.
static QUEUE: LogQueue = LogQueue {
    waiting: Mutex::new(Waiting {
        text: Vec::new(),
        dropped: 0,
        dropped_in_all: 0,
        is_writing: false,
    }),
    comes: Condvar::new(),
    written: Condvar::new(),
};

#[derive(Debug)]
struct LogQueue {
    waiting: Mutex<Waiting>,
    /// There is something to write.
    comes: Condvar,
    /// Everything was written.
    written: Condvar,
}

#[derive(Debug)]
struct Waiting {
    /// Whole lines.
    text: Vec<u8>,
    /// Lines that were dropped after those of `text`.
    dropped: u64,
    dropped_in_all: u64,
    /// The thread writes what it took.
    is_writing: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.dropped == 0
    }
}

/// Puts lines into the queue; for the log, which hands over a whole line at a time.
#[derive(Debug)]
pub struct LogLines(());

/// Starts the thread that writes, and has panics logged like anything else: what a panic writes by itself would wait.
pub fn start() -> Result<LogLines, String> {
    start_thread("log", || QUEUE.write_forever(&mut io::stderr()))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(LogLines(()))
}

/// Waits until the log is written, but not for long: nobody may be reading it.
pub fn flush() {
    let is_unwritten = |waiting: &mut Waiting| waiting.is_writing || !waiting.is_empty();
    let waiting = QUEUE.waiting();
    drop((QUEUE.written).wait_timeout_while(waiting, FLUSH, is_unwritten));
}

/// How many lines were dropped.
pub fn dropped() -> u64 {
    QUEUE.waiting().dropped_in_all
}

impl Write for LogLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        QUEUE.put(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl LogQueue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, line: &[u8]) {
        let mut waiting = self.waiting();
        // What follows a line that was dropped is dropped too, until the log has said so.
        if waiting.dropped > 0 || waiting.text.len() + line.len() > MAX_QUEUED_BYTES {
            waiting.dropped += 1;
            waiting.dropped_in_all += 1;
        } else {
            waiting.text.extend_from_slice(line);
        }
        drop(waiting);
        self.comes.notify_one();
    }

    fn write_forever(&self, to: &mut impl Write) {
        loop {
            let (mut text, dropped) = {
                let is_empty = |waiting: &mut Waiting| waiting.is_empty();
                let waited = self.comes.wait_while(self.waiting(), is_empty);
                let mut waiting = waited.unwrap_or_else(PoisonError::into_inner);
                waiting.is_writing = true;
                let dropped = std::mem::take(&mut waiting.dropped);
                (std::mem::take(&mut waiting.text), dropped)
            };
            if dropped > 0 {
                let time = humantime::format_rfc3339_millis(SystemTime::now());
                let (level, module) = (Level::Warn, module_path!());
                text.extend_from_slice(
                    format!("{time} {level:5} {module}: {dropped} lines of the log are missing here: standard error was not read\n")
                        .as_bytes(),
                );
            }
            write_all(to, &text);
            let mut waiting = self.waiting();
            waiting.is_writing = false;
            if waiting.is_empty() {
                self.written.notify_all();
            }
        }
    }
}

/// Writes all of it, unless it fails: there is nobody who could be told of an error.
fn write_all(to: &mut impl Write, mut text: &[u8]) {
    while !text.is_empty() {
        match to.write(text) {
            Ok(0) => return,
            Ok(written) => text = &text[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(RETRY),
            Err(_) => return,
        }
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let text = panic.payload_as_str().unwrap_or("no text");
    match panic.location() {
        Some(location) => error!("thread {name} panicked at {location}: {text}"),
        None => error!("thread {name} panicked: {text}"),
    }
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        trace.to_string().lines().for_each(|line| error!("{line}"));
    }
    if cfg!(panic = "abort") {
        flush();
    }
}
