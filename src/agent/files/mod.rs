//! Files that a task lays down before its command, and those that it hands back after it.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `mod` | what the thread of an attempt does: laying down before the start, handing back and removing after the end |
//! | `job` | what the agent asks its helper, and what that says |
//! | `supervise` | starting the helper, waiting for it, leaving it when its time is up or the attempt is to stop |
//! | `helper` | the helper's program |
//! | `lay` | laying one file down |
//! | `archive` | what may be in an archive, and unpacking it |
//! | `download` | the bytes of a blob, in pieces that are repeated and resumed |
//! | `upload` | handing a file back |
//! | `place` | paths that come from outside, resolved beneath a root |
//! | `temporary` | files that are being written, and those that a killed helper left |
//! | `folder` | the folder for files without a path |
//! | `removal` | removing what an execution made |
//!
//! The helper is this program, started once more for each attempt with files. The agent itself must not write a file
//! that is executed later: another of its threads may start a command meanwhile, whose process then has the file open
//! for writing until it executes its program, and the kernel refuses to execute a file that is open for writing
//! (ETXTBSY). A helper can also be left alone: a file system that does not answer, or a server that is slow, holds up
//! no thread of the agent, and a cancel ends it at once.
//!
//! To add a field of a file: `wire/files`, [`job::FileJob`], and `lay`, which must never ignore it.

#[cfg(any(test, fuzzing))]
pub mod archive;
#[cfg(not(any(test, fuzzing)))]
mod archive;
pub mod download;
pub mod folder;
pub mod helper;
pub mod job;
pub mod lay;
mod place;
mod removal;
pub mod supervise;
pub mod temporary;
mod upload;

use super::attempt::{Attempt, Outcome, StopReason, Waker};
use super::command::start_watch::stopped;
use super::processes::guard::report::Destination;
use super::shared::Agent;
use super::state::Job;
use crate::config::FilePolicy;
use crate::wire::agent::Stream;
use crate::wire::duration::TimeSpan;
use crate::wire::files::{Fetch, FetchedFile, File, Phase};
use crate::wire::task::{Detail, ExecutionState};
use job::{FetchJob, FileJob, HelperJob, LaidDown, Said, ToRemove, Work};
use log::{info, warn};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use supervise::{NotDone, supervise};

/// How long all files of a task may take, before and again after the command, unless it says otherwise.
const DEFAULT_TIMEOUT: TimeSpan = TimeSpan::from_secs(600);
/// How long handing back may take after a cancel.
const CANCELED_TIMEOUT: Duration = Duration::from_secs(60);
/// How long removing may take. It is local.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(60);

/// What an attempt has to do with files, from the order to start it until its result.
#[derive(Debug, Default)]
pub struct AttemptFiles {
    /// What it is doing with them now.
    pub phase: Option<Phase>,
    /// The folder of files without a path.
    pub folder: Option<PathBuf>,
    /// What was made and is to be removed in the end.
    made: Vec<ToRemove>,
    /// What is to be handed back in the end.
    fetch: Vec<Fetch>,
    /// Where relative paths begin.
    workspace: PathBuf,
    timeout: Duration,
    /// What was handed back.
    pub fetched: Vec<FetchedFile>,
}

impl AttemptFiles {
    /// What an order asks for; none if it has nothing to do with files.
    pub fn of(job: &Job) -> Option<Box<Self>> {
        if job.files.is_empty() && job.fetch.is_empty() && job.update.is_none() {
            return None;
        }
        let timeout = job.files_timeout.unwrap_or(DEFAULT_TIMEOUT);
        Some(Box::new(AttemptFiles {
            phase: (!job.files.is_empty() || job.update.is_some()).then_some(Phase::Files),
            fetch: job.fetch.clone(),
            timeout: timeout.into(),
            ..AttemptFiles::default()
        }))
    }
}

/// What is to be done after the files are laid down.
#[derive(Debug)]
pub enum Laid {
    /// The command is started.
    Start,
    /// There is none: this is the outcome.
    Over(Outcome),
}

impl Agent {
    /// Lays down the files of an attempt, before its command. The error is its outcome if that fails: nothing is started.
    pub fn lay_files(
        self: &std::sync::Arc<Self>,
        attempt: &Attempt,
        job: &Job,
        waker: Option<&Waker>,
    ) -> Result<Laid, Outcome> {
        if !attempt.has_files() {
            return Ok(Laid::Start);
        }
        let begun = Instant::now();
        let detail = self.runner.check(&job.detail).map_err(failed)?;
        let own = std::env::current_dir().unwrap_or_default();
        let workspace = own.join(detail.workspace.as_deref().unwrap_or_default());
        attempt.with_files(|files| files.workspace = workspace.clone());
        let policy = &self.config.policy.files;
        if !job.fetch.is_empty() && !policy.pull {
            return Err(failed(refused(policy, "hand files back")));
        }
        if job.files.is_empty() && has_command(&detail) {
            return Ok(Laid::Start);
        }
        let over = || {
            Laid::Over(Outcome {
                duration: Some(begun.elapsed()),
                exit_code: Some(0),
                ..Outcome::not_started(ExecutionState::Succeeded, "")
            })
        };
        if job.files.is_empty() {
            // It only hands files back.
            return Ok(over());
        }
        if !policy.push {
            return Err(failed(refused(policy, "lay files down")));
        }
        let waker = waker.ok_or_else(|| failed("this machine has no file descriptors left"))?;
        // Set the waker before looking for an order to stop: an order after the look wakes.
        attempt.set_waker(waker.clone());
        let (execution, number) = (&job.id.execution, job.id.attempt);
        info!("{execution} (attempt {number}): laying down its files");
        let files = job.files.iter().map(file_job);
        let work = Work::Lay(files.collect::<Result<_, _>>().map_err(failed)?);
        let timeout = attempt
            .with_files(|files| files.timeout)
            .unwrap_or_default();
        let laid = self.help(attempt, Some(attempt), waker, work, workspace, timeout);
        // The server is told at once that the command runs now.
        attempt.with_files(|files| files.phase = None);
        let laid = laid?;
        if has_command(&detail) {
            self.poll_soon();
            return Ok(Laid::Start);
        }
        for file in laid {
            let line = format!("{}: {}\n", file.path.display(), file.how.text());
            attempt.append(Stream::Stdout, line.as_bytes());
        }
        Ok(over())
    }

    /// Hands back what an attempt is to hand back, and removes what it made, after command and undo. The outcome that it
    /// has then.
    pub fn settle_files(
        self: &std::sync::Arc<Self>,
        attempt: &Attempt,
        waker: Option<&Waker>,
        outcome: Outcome,
    ) -> Outcome {
        let Some((fetch, made, workspace, timeout)) = attempt.with_files(|files| {
            (
                std::mem::take(&mut files.fetch),
                std::mem::take(&mut files.made),
                files.workspace.clone(),
                files.timeout,
            )
        }) else {
            return outcome;
        };
        let mut outcome = outcome;
        let own_waker;
        let waker = match waker {
            Some(waker) => waker,
            None => match Waker::new() {
                Some(waker) => {
                    own_waker = waker;
                    &own_waker
                }
                None => return with_failure(outcome, "this machine has no file descriptors left"),
            },
        };
        let stop = attempt.stop_reason();
        // The agent is about to end: what it does now must not take long.
        let is_ending = !matches!(
            stop,
            None | Some(StopReason::Canceled | StopReason::Stopped)
        );
        if is_ending && !fetch.is_empty() {
            outcome = with_failure(outcome, "its files were not handed back");
        }
        // What was never started has left nothing to hand back.
        else if !fetch.is_empty() && outcome.duration.is_some() {
            attempt.with_files(|files| files.phase = Some(Phase::Fetch));
            attempt.set_waker(waker.clone());
            self.poll_soon();
            let fetch = fetch.iter().map(|fetch| FetchJob {
                path: fetch.path.clone(),
                max: fetch.max(),
                is_missing_ok: fetch.missing_ok,
            });
            let work = Work::Fetch {
                execution: attempt.id.execution.clone(),
                attempt: attempt.id.attempt,
                files: fetch.collect(),
            };
            // What was canceled hands back what it can soon: a second cancel cannot be told from the first.
            let (watched, timeout) = match stop {
                None => (Some(attempt), timeout),
                Some(_) => (None, timeout.min(CANCELED_TIMEOUT)),
            };
            let workspace = workspace.clone();
            if let Err(why) = self.help(attempt, watched, waker, work, workspace, timeout) {
                outcome = match why.state {
                    ExecutionState::Canceled => Outcome {
                        state: why.state,
                        ..with_failure(outcome, &why.msg)
                    },
                    _ => with_failure(outcome, &why.msg),
                };
            }
            attempt.with_files(|files| files.phase = None);
        }
        if !made.is_empty() {
            let job = self.helper_job(Work::Remove(made), workspace);
            let deadline = Instant::now() + REMOVE_TIMEOUT;
            if let Err(why) = supervise(&job, None, waker, Some(deadline), |_| {}) {
                let (execution, number) = (&attempt.id.execution, attempt.id.attempt);
                warn!("{execution} (attempt {number}): its files are not removed: {why}");
            }
        }
        outcome
    }

    /// Has a helper do a part of the work, until `watched` is to stop. The error is the outcome of the attempt if it fails.
    fn help(
        &self,
        attempt: &Attempt,
        watched: Option<&Attempt>,
        waker: &Waker,
        work: Work,
        workspace: PathBuf,
        timeout: Duration,
    ) -> Result<Vec<LaidDown>, Outcome> {
        let job = self.helper_job(work, workspace);
        let deadline = Instant::now().checked_add(timeout);
        let mut laid = Vec::new();
        let mut latest = None;
        let done = supervise(&job, watched, waker, deadline, |said| match said {
            Said::Folder(folder) => {
                folder::remember(&folder);
                attempt.with_files(|files| files.folder = Some(folder));
            }
            Said::Laid(down) => laid.push(down),
            Said::Made(made) => {
                attempt.with_files(|files| files.made.push(made));
            }
            Said::Fetched(file) => {
                attempt.with_files(|files| files.fetched.push(file));
            }
            Said::At {
                path,
                bytes,
                size,
                trouble,
            } => latest = Some((path, bytes, size, trouble)),
            Said::Failed { .. } | Said::Done => {}
        });
        match done {
            Ok(()) => Ok(laid),
            Err(NotDone::Stopped(reason)) => Err(stopped(reason)),
            Err(NotDone::TimedOut) => {
                let after =
                    TimeSpan::from_millis(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
                let msg = match latest {
                    Some((path, bytes, size, trouble)) => {
                        let trouble = trouble.map(|why| format!("; {why}")).unwrap_or_default();
                        format!(
                            "file {path}: {bytes} of {size} bytes within filesTimeout, {after}{trouble}"
                        )
                    }
                    None => format!("files: not done within filesTimeout, {after}"),
                };
                Err(failed(msg))
            }
            Err(NotDone::Failed(why)) => Err(failed(why)),
        }
    }

    /// A job for a helper.
    pub fn helper_job(&self, work: Work, workspace: PathBuf) -> HelperJob {
        let policy = &self.config.policy.files;
        HelperJob {
            destination: Destination::of(&self.client, self.config.registry.ca.clone()),
            instance: self.state.instance(),
            root: policy.root.clone(),
            folder: policy.folder.clone(),
            workspace,
            work,
        }
    }
}

impl Attempt {
    /// Whether it has to do with files.
    pub fn has_files(&self) -> bool {
        self.with_files(|_| ()).is_some()
    }
}

fn file_job(file: &File) -> Result<FileJob, String> {
    let mode = file.mode.as_deref().unwrap_or("0644");
    let name = { file.name.as_deref() }.unwrap_or(&file.sha256).to_owned();
    Ok(FileJob {
        sha256: file.sha256.clone(),
        size: file.size,
        mode: parse_mode(mode).map_err(|why| format!("file {name}: mode: {why}"))?,
        name,
        path: file.path.clone(),
        unpack: file.unpack,
        strip: file.strip.unwrap_or(0),
        if_exists: file.if_exists.unwrap_or_default(),
        in_place: file.in_place,
        remove: file.remove,
    })
}

/// A mode in octal digits. The server has checked it; an agent does not set the bits that give rights away whatever
/// the server says.
fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("must be octal, 0777 at most, got {text:?}")),
    }
}

fn has_command(detail: &Detail) -> bool {
    detail.command.is_some() || detail.argv.is_some() || detail.script.is_some()
}

fn refused(policy: &FilePolicy, what: &str) -> String {
    let setting = policy.setting;
    format!("refused by this machine's owner: with {setting} a task cannot {what}")
}

/// An outcome that counts as failed because of its files; if it has failed already, that stays its reason.
fn with_failure(mut outcome: Outcome, why: &str) -> Outcome {
    if outcome.state == ExecutionState::Succeeded {
        outcome.state = ExecutionState::Failed;
    }
    outcome.msg = match outcome.msg.is_empty() {
        true => why.to_owned(),
        false => format!("{}; {why}", outcome.msg),
    };
    outcome
}

fn failed(why: impl Into<String>) -> Outcome {
    Outcome::not_started(ExecutionState::Failed, why)
}
