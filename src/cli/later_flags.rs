//! The flags of `run` that say what a task waits for before it begins.

use super::command::{Failure, duration};
use crate::wire::moment::Moment;
use crate::wire::task::NewTask;
use serde_json::{Map, Value};

/// The heading of these flags in the help.
const LATER: &str = "When it begins";
/// The fields by which a task waits. A task of a file may have them, too.
const FIELDS: [&str; 2] = ["startAt", "delay"];

/// The arguments about the beginning of a task.
#[derive(Debug, clap::Args)]
pub struct LaterArgs {
    /// Begin at this time, such as 2026-12-24T18:00:00+01:00; who matches is settled then
    #[arg(help_heading = LATER, long, value_name = "TIME", conflicts_with = "delay")]
    at: Option<String>,
    /// Begin after this time, such as 90s or 1h30m
    #[arg(help_heading = LATER, long, value_name = "DURATION", allow_hyphen_values = true)]
    delay: Option<String>,
}

impl LaterArgs {
    /// Sets what they say.
    pub fn apply(&self, task: &mut NewTask) -> Result<(), Failure> {
        if let Some(at) = &self.at {
            let wrong = |why| Failure::Usage(format!("--at: {why}"));
            at.parse::<Moment>().map_err(wrong)?;
            task.start_at = Some(at.clone());
        }
        let delay = self.delay.as_deref();
        task.delay = { delay.map(|text| duration("--delay", text)) }.transpose()?;
        Ok(())
    }

    /// Removes from the task of a file what the flags replace.
    pub fn replace(&self, task: &mut Map<String, Value>) {
        if self.at.is_some() || self.delay.is_some() {
            task.remove("startAt");
            task.remove("delay");
        }
    }
}

/// Whether a task waits for something before it begins. Who matches is settled only then.
pub fn waits(task: &Map<String, Value>) -> bool {
    FIELDS.iter().any(|field| task.contains_key(*field))
}
