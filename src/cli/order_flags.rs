//! The flags of `run` that say in which order a task gets its turn.

use super::command::{Failure, duration};
use crate::wire::order::OnDuplicate;
use crate::wire::task::NewTask;

/// The heading of these flags in the help.
const ORDER: &str = "In which order";

/// The arguments about the order.
#[derive(Debug, clap::Args)]
pub struct OrderArgs {
    /// From -10 to 10: what has a higher one is handed out first [default: 0]
    #[arg(help_heading = ORDER, long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i64>,
    /// Of the tasks with the same key one runs at a time: what becomes of a further one, says --on-duplicate
    #[arg(help_heading = ORDER, long, value_name = "KEY")]
    unique: Option<String>,
    /// When another task has the key: reject, join (follow that one) or replace (cancel it, if nothing of it has
    /// started) [default: reject]
    #[arg(help_heading = ORDER, long, value_name = "WHAT")]
    on_duplicate: Option<OnDuplicate>,
    /// With --on-duplicate replace: cancel it whatever it does, and begin when it has ended
    #[arg(help_heading = ORDER, long)]
    replace_running: bool,
    /// It counts for this limit, see sidebike limit; can be given several times
    #[arg(help_heading = ORDER, long, value_name = "NAME")]
    limit: Vec<String>,
    /// On each machine it begins some time within this, such as 10m: always the same for a name and a machine
    #[arg(help_heading = ORDER, long, value_name = "DURATION", allow_hyphen_values = true)]
    spread: Option<String>,
}

impl OrderArgs {
    /// Sets what the flags say.
    pub fn apply(&self, task: &mut NewTask) -> Result<(), Failure> {
        task.priority = self.priority;
        task.unique_key = self.unique.clone();
        task.on_duplicate = self.on_duplicate;
        task.replace_running = self.replace_running.then_some(true);
        task.limits = self.limit.clone();
        task.spread = duration("--spread", &self.spread)?;
        Ok(())
    }
}
