//! The helper's process, as the agent sees it: its start, what it says, its end.

use super::helper::PROGRAM;
use super::job::{HelperJob, Said};
use crate::agent::attempt::{Attempt, StopReason, Waker};
use crate::agent::command::launch;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::fmt;
use std::io::Write;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// The longest line that a helper says, in bytes: two paths and a reason.
const MAX_LINE_BYTES: usize = 256 << 10;
/// How long a helper may take to remove its temporary file when it is to end. One that a file system holds is left alone.
const END_GRACE: Duration = Duration::from_secs(2);
/// The stack of the thread that reaps a helper that was left alone, in bytes.
const STACK_BYTES: usize = 128 << 10;
/// How long poll(2) is not called again after it failed for lack of memory.
const POLL_FAILED_PAUSE: Duration = Duration::from_millis(10);

/// Why the work is not done.
#[derive(Debug)]
pub enum NotDone {
    /// The attempt is to stop.
    Stopped(StopReason),
    /// Its time is up.
    TimedOut,
    /// It failed.
    Failed(String),
}

impl fmt::Display for NotDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotDone::Stopped(reason) => f.write_str(reason.text()),
            NotDone::TimedOut => f.write_str("it took too long"),
            NotDone::Failed(why) => f.write_str(why),
        }
    }
}

/// Has a helper do a job, and passes on what it says. Ends it when the attempt is to stop, and at the deadline. The
/// `waker` has to be that of the attempt.
pub fn supervise(
    job: &HelperJob,
    attempt: Option<&Attempt>,
    waker: &Waker,
    deadline: Option<Instant>,
    mut hear: impl FnMut(Said),
) -> Result<(), NotDone> {
    let failed = |why: String| NotDone::Failed(format!("files: {why}"));
    let child = launch::spawn_helper(PROGRAM, Stdio::piped()).map_err(|why| {
        failed(format!(
            "the helper that writes them cannot be started: {why}"
        ))
    })?;
    let mut helper = Helper {
        child: Some(child),
        lines: Lines::default(),
    };
    helper.ask(job).map_err(failed)?;
    loop {
        while let Some(line) = helper.lines.next() {
            let said = serde_json::from_slice(&line)
                .map_err(|why| failed(format!("the helper is not understood: {why}")))?;
            match said {
                Said::Failed { why } => return Err(NotDone::Failed(why)),
                Said::Done => return Ok(()),
                said => hear(said),
            }
        }
        if let Some(reason) = attempt.and_then(Attempt::stop_reason) {
            return Err(NotDone::Stopped(reason));
        }
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(NotDone::TimedOut);
        }
        let is_open = helper.wait(Some(waker), left).map_err(failed)?;
        waker.clear();
        if !is_open && !helper.lines.has_line() {
            return Err(failed(
                "the helper that writes them was killed, or failed (a bug)".into(),
            ));
        }
    }
}

/// A helper; when dropped it is ended, and removes what it has not finished.
struct Helper {
    child: Option<Child>,
    lines: Lines,
}

impl Helper {
    /// Writes the job. The pipe stays open: when it is closed, the helper ends.
    fn ask(&mut self, job: &HelperJob) -> Result<(), String> {
        // It cannot fail: keys of maps are texts, and paths that are no text were refused.
        let mut json = serde_json::to_vec(job).map_err(|why| why.to_string())?;
        json.push(b'\n');
        let child = self.child.as_mut();
        let stdin = child.and_then(|child| child.stdin.as_mut());
        let stdin = stdin.ok_or("the helper has no standard input")?;
        (stdin.write_all(&json)).map_err(|why| format!("the helper does not read: {why}"))?;
        let stdout = self.child.as_ref().and_then(|child| child.stdout.as_ref());
        let stdout = stdout.ok_or("the helper has no standard output")?;
        rustix::io::ioctl_fionbio(stdout, true).map_err(|why| why.to_string())
    }

    /// Waits until it says something, or the waker wakes, for so long at most. False when it has closed its output.
    fn wait(&mut self, waker: Option<&Waker>, most: Option<Duration>) -> Result<bool, String> {
        let stdout = self.child.as_ref().and_then(|child| child.stdout.as_ref());
        let Some(stdout) = stdout else {
            return Ok(false);
        };
        let mut fds = vec![PollFd::new(stdout, PollFlags::IN)];
        fds.extend(waker.map(|waker| PollFd::new(waker.fd(), PollFlags::IN)));
        let timeout = most.and_then(|most| Timespec::try_from(most).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => std::thread::sleep(POLL_FAILED_PAUSE),
        }
        drop(fds);
        let mut bytes = [0; 16 << 10];
        loop {
            match rustix::io::read(stdout, &mut bytes[..]) {
                Ok(0) => return Ok(false),
                Ok(read) => {
                    self.lines.0.extend(&bytes[..read]);
                    break;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(true),
                Err(why) => return Err(format!("the helper cannot be heard: {why}")),
            }
        }
        match self.lines.has_line() || self.lines.0.len() <= MAX_LINE_BYTES {
            true => Ok(true),
            false => Err("the helper says too much".into()),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        drop(child.stdin.take());
        let until = Instant::now() + END_GRACE;
        loop {
            self.lines.0.clear();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.wait(None, Some(left)).unwrap_or(false) {
                break;
            }
        }
        let Some(mut child) = self.child.take() else {
            return;
        };
        let _ = child.kill();
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        // It may hang in the kernel. Where no thread can be started, it stays a zombie.
        let _ = std::thread::Builder::new()
            .name("reap-helper".into())
            .stack_size(STACK_BYTES)
            .spawn(move || child.wait());
    }
}

/// Bytes that are cut into lines.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn has_line(&self) -> bool {
        self.0.contains(&b'\n')
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        let at = self.0.iter().position(|byte| *byte == b'\n')?;
        let rest = self.0.split_off(at + 1);
        let mut line = std::mem::replace(&mut self.0, rest);
        line.pop();
        Some(line)
    }
}
