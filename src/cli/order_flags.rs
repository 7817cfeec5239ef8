//! The flags of `run` that say in which order a task gets its turn.

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
}

impl OrderArgs {
    /// Sets what the flags say.
    pub fn apply(&self, task: &mut NewTask) {
        task.priority = self.priority;
        task.unique_key = self.unique.clone();
        task.on_duplicate = self.on_duplicate;
        task.replace_running = self.replace_running.then_some(true);
    }
}
