//! The pipes that a command writes its output to, and which of them got output first.

use crate::wire::agent::Stream;
use log::warn;
use rustix::event::{Timespec, epoll};
use rustix::fd::OwnedFd;
use rustix::pipe::{PipeFlags, pipe_with};
use std::io;
use std::process::{Command, Stdio};

/// The agent's ends of the pipes.
#[derive(Debug)]
pub struct OutputPipes {
    /// Standard output, and standard error too where both are one.
    pub stdout: OwnedFd,
    /// Standard error; none where both streams are one.
    pub stderr: Option<OwnedFd>,
    /// Which of the two became readable first.
    pub order: Option<OutputOrder>,
}

impl OutputPipes {
    /// Gives a command its output: two pipes, or one for both streams, which keeps their order.
    pub fn open(command: &mut Command, merge: bool) -> io::Result<OutputPipes> {
        let (stdout, out) = pipe_with(PipeFlags::CLOEXEC)?;
        let stdout = nonblocking(stdout);
        if merge {
            command.stderr(Stdio::from(out.try_clone()?)).stdout(out);
            return Ok(OutputPipes {
                stdout,
                stderr: None,
                order: None,
            });
        }
        let (stderr, err) = pipe_with(PipeFlags::CLOEXEC)?;
        let stderr = nonblocking(stderr);
        command.stdout(out).stderr(err);
        // Before the start: of output that is there already the order is not known.
        let order = OutputOrder::of(&stdout, &stderr);
        Ok(OutputPipes {
            stdout,
            stderr: Some(stderr),
            order,
        })
    }
}

/// Makes the agent's end of a pipe non-blocking. The command's end is not affected.
pub fn nonblocking(pipe: OwnedFd) -> OwnedFd {
    if let Err(why) = rustix::io::ioctl_fionbio(&pipe, true) {
        warn!("a pipe cannot be made non-blocking: {why}");
    }
    pipe
}

/// Tells which of two pipes became readable first: epoll lists descriptors in that order.
#[derive(Debug)]
pub struct OutputOrder(OwnedFd);

impl OutputOrder {
    /// None when the system has no descriptor left: the order is not known then.
    fn of(stdout: &OwnedFd, stderr: &OwnedFd) -> Option<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).ok()?;
        for (stream, pipe) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
            let data = epoll::EventData::new_u64(stream as u64);
            // Edge-triggered: each change is listed once, until the next look.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, pipe, data, flags).ok()?;
        }
        Some(OutputOrder(epoll))
    }

    /// The stream that got output first since the last look; none if none did.
    pub fn first(&self) -> Option<Stream> {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; 2];
        let count = epoll::wait(&self.0, &mut events, Some(&Timespec::default())).ok()?;
        let first = events.get(..count)?.first()?;
        // A copy, because the fields of an event need not be aligned.
        let data = first.data;
        Some(match data.u64() {
            data if data == Stream::Stderr as u64 => Stream::Stderr,
            _ => Stream::Stdout,
        })
    }
}
