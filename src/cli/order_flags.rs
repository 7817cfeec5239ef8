//! The flags of `run` that say in which order a task gets its turn.

use crate::wire::task::NewTask;

/// The heading of these flags in the help.
const ORDER: &str = "In which order";

/// The arguments about the order.
#[derive(Debug, clap::Args)]
pub struct OrderArgs {
    /// From -10 to 10: what has a higher one is handed out first [default: 0]
    #[arg(help_heading = ORDER, long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i64>,
}

impl OrderArgs {
    /// Sets what the flags say.
    pub fn apply(&self, task: &mut NewTask) {
        task.priority = self.priority;
    }
}
