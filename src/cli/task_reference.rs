//! Finds the task that an id, the beginning of an id, or a name stands for.

use super::command::Failure;
use super::follow::print_message;
use super::messages::describe;
use super::ps;
use crate::client::{CallError, Client, Kind, TaskFilter};
use crate::wire::duration::TimeSpan;
use crate::wire::task::Task;
use std::io;

/// How many tasks are searched for candidates: as many as a list may have.
const MAX_SEARCHED: usize = 1_000;
/// How many candidates are shown.
const MAX_SHOWN: usize = 10;

/// The argument that names a task.
#[derive(Debug, clap::Args)]
pub struct TaskArg {
    /// The task: its id, the beginning of its id (6 characters or more), or a name. A name means the
    /// newest task of that name, which after a rerun is the rerun
    #[arg(value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,
}

impl TaskArg {
    /// Finds the task, see [`find`].
    pub fn find(&self, client: &Client) -> Result<Task, Failure> {
        find(client, &self.id)
    }
}

/// Finds the task that an argument stands for. Prints which one it is if a name stands for a rerun.
pub fn find(client: &Client, id: &str) -> Result<Task, Failure> {
    let found = client.task(id, TimeSpan::default());
    let task = found.map_err(|error| explained(client, id, error))?;
    if let Some(of) = &task.rerun_of
        && !task.id.starts_with(id)
    {
        print_message(&format!(
            "sidebike: the newest task with the name {id:?} is {}, a rerun of {of}\n",
            task.id
        ));
    }
    Ok(task)
}

fn explained(client: &Client, id: &str, error: CallError) -> Failure {
    let why = describe(&error);
    Failure::Because(match error.kind {
        Kind::Refused {
            status: 404,
            ours: true,
            ..
        } => format!("{why}; sidebike ps -n {MAX_SEARCHED} lists the known tasks"),
        Kind::Refused {
            status: 422,
            ours: true,
            ..
        } => match candidates(client, id) {
            Some(table) => format!("{why}:\n{table}"),
            None => why,
        },
        _ => return error.into(),
    })
}

/// A table of the tasks whose ids begin with the argument, newest first.
fn candidates(client: &Client, id: &str) -> Option<String> {
    let filter = TaskFilter {
        limit: MAX_SEARCHED,
        ..TaskFilter::default()
    };
    let mut tasks = client.tasks(&filter).ok()?;
    tasks.retain(|task| task.id.starts_with(id));
    let more = tasks.len().saturating_sub(MAX_SHOWN);
    tasks.truncate(MAX_SHOWN);
    let mut table = Vec::new();
    ps::table_of(&tasks).print(&mut table, &io::stderr()).ok()?;
    let mut table = String::from_utf8(table).ok()?;
    if more > 0 {
        table.push_str(&format!("… and {more} older ones"));
    }
    (!tasks.is_empty()).then(|| table.trim_end().to_owned())
}
