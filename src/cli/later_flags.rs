//! The flags of `run` that say what a task waits for before it begins.

use super::command::{Failure, duration};
use crate::wire::after::{After, Outcome};
use crate::wire::moment::Moment;
use crate::wire::task::{Detail, NewChild, NewTask};
use serde_json::{Map, Value};

/// The heading of these flags in the help.
const LATER: &str = "When it begins";
/// The fields by which a task waits. A task of a file may have them, too.
const FIELDS: [&str; 3] = ["startAt", "delay", "after"];

/// The arguments about the beginning of a task.
#[derive(Debug, clap::Args)]
pub struct LaterArgs {
    /// Begin at this time, such as 2026-12-24T18:00:00+01:00; who matches is settled then
    #[arg(help_heading = LATER, long, value_name = "TIME", conflicts_with = "delay")]
    at: Option<String>,
    /// Begin after this time, such as 90s or 1h30m
    #[arg(help_heading = LATER, long, value_name = "DURATION", allow_hyphen_values = true)]
    delay: Option<String>,
    /// Begin when this task has succeeded; with :failed or :ended behind its id or name when it has failed, or
    /// ended in any way. Can be given several times: all of them
    #[arg(help_heading = LATER, long, value_name = "TASK[:ended]")]
    after: Vec<String>,
    /// The same for all tasks that this group has now, as one task
    #[arg(help_heading = LATER, long, value_name = "GROUP[:ended]")]
    after_group: Vec<String>,
    /// Machine by machine: on each machine as soon as the task of --after has ended there. Without -m on its machines
    #[arg(help_heading = LATER, long, requires = "after")]
    per_machine: bool,
    /// How long the others may take to end, such as 2d [default: 7d]
    #[arg(help_heading = LATER, long, value_name = "DURATION", allow_hyphen_values = true)]
    blocked_ttl: Option<String>,
    /// Run this shell line on one of the machines when the task has succeeded
    #[arg(help_heading = LATER, long, value_name = "LINE")]
    on_success: Option<String>,
    /// The same when it has failed, in part or altogether, or was not started in time
    #[arg(help_heading = LATER, long, value_name = "LINE")]
    on_failure: Option<String>,
    /// The same when it has ended in any way
    #[arg(help_heading = LATER, long, value_name = "LINE")]
    on_end: Option<String>,
}

impl LaterArgs {
    /// Sets what they say.
    pub fn apply(&self, task: &mut NewTask) -> Result<(), Failure> {
        if let Some(at) = &self.at {
            let wrong = |why| Failure::Usage(format!("--at: {why}"));
            at.parse::<Moment>().map_err(wrong)?;
            task.start_at = Some(at.clone());
        }
        task.delay = duration("--delay", &self.delay)?;
        let tasks = self.after.iter().map(|text| parent(text, false));
        let groups = self.after_group.iter().map(|text| parent(text, true));
        task.after = tasks.chain(groups).collect();
        if self.per_machine {
            if self.after.len() > 1 {
                return Err(Failure::Usage(
                    "--per-machine: goes with one --after; with several give --task FILE, which says which one is meant"
                        .into(),
                ));
            }
            task.after[0].per_machine = true;
        }
        task.blocked_ttl = duration("--blocked-ttl", &self.blocked_ttl)?;
        task.on_success = child(&self.on_success);
        task.on_failure = child(&self.on_failure);
        task.on_end = child(&self.on_end);
        Ok(())
    }

    /// Whether the task is for the machines of another one, unless it says itself which it means.
    pub fn has_machines_of_parent(&self) -> bool {
        self.per_machine
    }

    /// Removes from the task of a file what the flags replace.
    pub fn replace(&self, task: &mut Map<String, Value>) {
        if self.at.is_some() || self.delay.is_some() {
            task.remove("startAt");
            task.remove("delay");
        }
    }
}

fn child(line: &Option<String>) -> Option<NewChild> {
    let detail = Detail {
        command: Some(line.clone()?),
        ..Detail::default()
    };
    Some(NewChild { detail })
}

/// The task of `build-1` or `build-1:ended`.
fn parent(text: &str, is_group: bool) -> After {
    let parts = text.rsplit_once(':');
    let parts = parts.and_then(|(name, word)| Some((name, Outcome::of_word(word)?)));
    let (name, on) = parts.unwrap_or((text, Outcome::default()));
    let name = Some(name.to_owned());
    let (task, group) = match is_group {
        true => (None, name),
        false => (name, None),
    };
    After {
        task,
        group,
        members: None,
        on,
        min_succeeded: None,
        per_machine: false,
        met: None,
    }
}

/// Whether a task waits for something before it begins. Who matches is settled only then.
pub fn waits(task: &Map<String, Value>) -> bool {
    FIELDS.iter().any(|field| task.contains_key(*field))
}
