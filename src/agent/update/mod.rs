//! Replacing the agent's own program, because a task asks for it and the owner allows it (`--self-update`).
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | the course of an update, up to the start of the new program |
//! | `image` | getting the new program, and asking it who it is |
//! | `marker` | the file beside the program: what is under way, and which programs have failed here |
//! | `begin` | what an agent finds at its start; putting the old program back |
//! | `probation` | how long a new program has until its first complete poll |
//!
//! The new program gets the process: its number, its environment, its arguments, and the instance under which the server
//! knows the machine. So the execution goes on in it, and only the new program, once the server has answered it, says
//! that the update has succeeded. Until then the marker says what to do: whoever starts and finds it unfinished, or
//! whose probation ends, puts the old program back and executes it, and that one reports why.
//!
//! To add a reason for a refusal: [`Agent::check_update`] if it is known before anything is fetched, else
//! [`image::ask`].

pub mod begin;
pub mod image;
pub mod marker;
pub mod probation;

use super::attempt::{Attempt, Outcome, StopReason, Waker};
use super::command::launch;
use super::command::start_watch::stopped;
use super::files::{download, supervise::NotDone};
use super::processes::process_table::now_in_ms;
use super::shared::Agent;
use super::state::Job;
use crate::wire::agent::Stream;
use crate::wire::duration::TimeSpan;
use crate::wire::task::ExecutionState;
use crate::wire::update::{Update, Version};
use log::{info, warn};
use marker::{Busy, Files, Marker, Pending, Step};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long fetching the program, and the end of what runs, may take unless the task says otherwise.
const DEFAULT_TIMEOUT: TimeSpan = TimeSpan::from_secs(600);
/// How often it is looked whether an update may go on that waits for something that cannot wake it.
const LOOK_PERIOD: Duration = Duration::from_millis(500);
/// The version of this program.
const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Set while an update runs.
#[derive(Debug, Default)]
pub struct Updating(AtomicBool);

impl Updating {
    /// None if one runs already.
    fn begin(&self) -> Option<UpdatingGuard<'_>> {
        let is_first = !self.0.swap(true, Ordering::AcqRel);
        is_first.then_some(UpdatingGuard(self))
    }
}

struct UpdatingGuard<'a>(&'a Updating);

impl Drop for UpdatingGuard<'_> {
    fn drop(&mut self) {
        self.0.0.store(false, Ordering::Release);
    }
}

/// Why an update has not come to its end here.
enum NotUpdated {
    /// The attempt is to stop.
    Stopped(StopReason),
    Failed(String),
}

impl From<String> for NotUpdated {
    fn from(why: String) -> Self {
        NotUpdated::Failed(why)
    }
}

impl From<NotDone> for NotUpdated {
    fn from(why: NotDone) -> Self {
        match why {
            NotDone::Stopped(reason) => NotUpdated::Stopped(reason),
            NotDone::TimedOut => {
                NotUpdated::Failed("the new program was not here within filesTimeout".into())
            }
            NotDone::Failed(why) => NotUpdated::Failed(why),
        }
    }
}

impl Agent {
    /// Replaces the program of this process by that of an order. Returns only if that is not done: the outcome.
    pub fn update(
        self: &Arc<Self>,
        attempt: &Attempt,
        job: &Job,
        update: &Update,
        waker: Option<&Waker>,
    ) -> Outcome {
        let begun = Instant::now();
        let (execution, number) = (&job.id.execution, job.id.attempt);
        info!(
            "{execution} (attempt {number}): updating this agent, {OWN_VERSION} to {}",
            update.version
        );
        let failed = |why: String| {
            let msg = format!("update: {why}; this agent goes on as before");
            Outcome::not_started(ExecutionState::Failed, msg)
        };
        match self.try_update(attempt, job, update, waker) {
            Ok(line) => {
                attempt.append(Stream::Stdout, format!("{line}\n").as_bytes());
                Outcome {
                    duration: Some(begun.elapsed()),
                    exit_code: Some(0),
                    ..Outcome::not_started(ExecutionState::Succeeded, "")
                }
            }
            Err(NotUpdated::Stopped(reason)) => stopped(reason),
            Err(NotUpdated::Failed(why)) => failed(why),
        }
    }

    /// Returns what there is to say if nothing has to be done.
    fn try_update(
        self: &Arc<Self>,
        attempt: &Attempt,
        job: &Job,
        update: &Update,
        waker: Option<&Waker>,
    ) -> Result<String, NotUpdated> {
        let timeout = Duration::from(job.files_timeout.unwrap_or(DEFAULT_TIMEOUT));
        let deadline = Instant::now() + timeout;
        let files = Files::of_this_process()
            .ok_or_else(|| "the file of this program is not known, or gone".to_owned())?;
        let sha256 = self.check_update(update, files)?;
        let mut own = File::open(marker::OWN_IMAGE)
            .map_err(|why| format!("this program cannot be read: {why}"))?;
        if download::hash_of(&mut own)? == sha256 {
            return Ok(format!(
                "{OWN_VERSION}: unchanged, this agent runs it already"
            ));
        }
        let _updating = { self.updating.begin() }
            .ok_or_else(|| "another update of this agent is under way".to_owned())?;
        let waker = waker.ok_or_else(|| "this machine has no file descriptors left".to_owned())?;
        // Set the waker before looking for an order to stop: an order after the look wakes.
        attempt.set_waker(waker.clone());
        let new = files.new_program();
        let _removed = Removed(&new);
        self.fetch_image(attempt, sha256, &new, waker, deadline)?;
        image::ask(&new, &update.version)?;
        let _drain = Drain::begin(self);
        loop {
            let (pending, closed) =
                self.wait_until_alone(attempt, job, update, sha256, deadline)?;
            match marker::install(files, &new, pending) {
                Ok(()) => return Err(self.execute(files).into()),
                Err(Busy::Failed(why)) => return Err(why.into()),
                // It was quicker.
                Err(Busy::Other) => drop(closed),
            }
        }
    }

    /// What can be said before anything is fetched: which image it is, or why there is none.
    fn check_update<'a>(&self, update: &'a Update, files: &Files) -> Result<&'a str, String> {
        if !self.config.self_update {
            return Err("this agent was not started with --self-update".into());
        }
        let arch = std::env::consts::ARCH;
        let sha256 = update.images.get(arch).ok_or_else(|| {
            let have: Vec<&str> = update.images.keys().map(String::as_str).collect();
            format!(
                "there is no image for this machine's architecture, {arch}, only for {}",
                have.join(", ")
            )
        })?;
        let wanted: Version =
            { update.version.parse() }.map_err(|why| format!("version: {why}"))?;
        if OWN_VERSION.parse().is_ok_and(|own: Version| wanted < own) {
            return Err(format!(
                "{} is older than this agent, {OWN_VERSION}",
                update.version
            ));
        }
        if let Some(why) = Marker::read(files).refused(sha256) {
            return Err(format!("this image has failed here before: {why}"));
        }
        match self.state.has_open_undo() {
            true => Err("an undo is not done yet".into()),
            false => Ok(sha256),
        }
    }

    /// Waits until nothing else runs and everything is reported, and ends the polls. What the next program needs to know
    /// then.
    fn wait_until_alone<'a>(
        self: &'a Arc<Self>,
        attempt: &Attempt,
        job: &Job,
        update: &Update,
        sha256: &str,
        deadline: Instant,
    ) -> Result<(Pending, Closed<'a>), NotUpdated> {
        loop {
            if let Some(reason) = attempt.stop_reason() {
                return Err(NotUpdated::Stopped(reason));
            }
            if self.state.has_open_undo() {
                return Err("an undo is not done yet".to_owned().into());
            }
            let is_busy = marker::is_busy();
            if Instant::now() >= deadline {
                let what = match is_busy {
                    true => "the update of another agent with the same program",
                    false => "what runs here",
                };
                return Err(format!("{what} did not end within filesTimeout").into());
            }
            if is_busy {
                std::thread::sleep(LOOK_PERIOD);
                continue;
            }
            let until = deadline.min(Instant::now() + LOOK_PERIOD);
            if !self.state.close_if_alone(&job.id, until) {
                continue;
            }

            // It is taken up again unless the program is replaced.
            let closed = Closed(self);
            if !self.probes.is_idle() {
                drop(closed);
                std::thread::sleep(LOOK_PERIOD);
                continue;
            }
            if self.ending.has_begun() {
                return Err(NotUpdated::Stopped(StopReason::Shutdown));
            }
            let continuation = self.state.continuation();
            let pending = Pending {
                step: Step::Starting,
                sha256: sha256.to_owned(),
                version: update.version.clone(),
                from: OWN_VERSION.into(),
                probation: update.probation(),
                process: marker::ProcessName::own(),
                starts: 0,
                instance: continuation.instance,
                seq: continuation.seq,
                accepted: continuation.accepted,
                attempt: job.id.clone(),
                began_ms: now_in_ms(),
                why: String::new(),
            };
            return Ok((pending, closed));
        }
    }

    /// Gives the process to the new program, which has its name. Returns why that is not possible; then everything is as
    /// before.
    fn execute(&self, files: &Files) -> String {
        info!("executing the new program");
        let why = launch::execute(&files.program);
        let why = format!("the new program cannot be executed: {why}");
        match marker::put_back(files, &why) {
            Ok(()) => why,
            Err(worse) => format!("{why}; and the old one is not put back: {worse}"),
        }
    }
}

/// An agent that takes no more work because it is to be updated. It takes work again when this is dropped.
struct Drain<'a>(&'a Arc<Agent>);

impl<'a> Drain<'a> {
    fn begin(agent: &'a Arc<Agent>) -> Self {
        agent.state.set_updating(true);
        // The poll that is under way may be held for long.
        agent.poll_soon();
        Drain(agent)
    }
}

impl Drop for Drain<'_> {
    fn drop(&mut self) {
        self.0.state.set_updating(false);
        self.0.poll_soon();
    }
}

/// An agent that has ended its polls. It polls again when this is dropped.
struct Closed<'a>(&'a Arc<Agent>);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        if let Some(epoch) = self.0.state.reopen()
            && let Err(why) = self.0.start_polls(epoch)
        {
            warn!("cannot poll any more: {why}");
        }
    }
}

/// A file that is removed in the end, if it is still there.
struct Removed<'a>(&'a Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        // It may never have been there.
        let _ = std::fs::remove_file(self.0);
    }
}
