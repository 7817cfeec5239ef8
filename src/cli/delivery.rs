//! A task that runs no command: what `push` and `update` share, their flags and the way from the dry run to the end.

use super::command::{CommandResult, ConnectionArgs, Failure, duration};
use super::follow::{self, FollowOptions, print_message};
use super::new_task::PaceArgs;
use super::outcome::{CANCELED, NO_MACHINE};
use super::run::{confirm, nowhere, show_matching, submit_detached, targets_in_words};
use super::selection::{Selection, SelectionArgs};
use super::terminal;
use crate::client::Client;
use crate::wire::task::NewTask;
use serde_json::Value;
use std::io;

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct DeliveryArgs {
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    pace: PaceArgs,
    // Each command replaces this help with one that says its default.
    /// The name of the task in lists
    #[arg(long)]
    name: Option<String>,
    /// How long it may wait to be started, such as 30s [default: 10m]
    #[arg(long, value_name = "DURATION")]
    ttl: Option<String>,
    /// Do not wait for the end; print the task's id
    #[arg(long)]
    detach: bool,
    /// Only show which machines would get it
    #[arg(long)]
    dry_run: bool,
    /// Ask if more machines than this would get it
    #[arg(long, value_name = "N", default_value_t = 20)]
    yes_above: u32,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// At the end, print the task as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub server: ConnectionArgs,
}

/// The help of `--machine` where a task is not read from a file.
pub const MACHINE_HELP: &str = "Machines whose label matches this regular expression [default: all; with --instance only those]";

/// How a delivery differs from the others.
pub struct Kind {
    /// The name of a task that has none.
    pub name: &'static str,
    /// What is done with a machine, such as `pushed`.
    pub done: &'static str,
    /// Whether the task's id is also said of a single machine, and where there is no terminal.
    pub is_announced: bool,
}

impl DeliveryArgs {
    /// The task that the flags describe.
    pub fn new_task(&self, kind: &Kind) -> Result<NewTask, Failure> {
        let mut task = NewTask {
            name: Some(self.name.clone().unwrap_or_else(|| kind.name.into())),
            ttl: duration("--ttl", &self.ttl)?,
            ..NewTask::default()
        };
        self.selection.apply(&mut task, true)?;
        self.pace.apply(&mut task);
        Ok(task)
    }

    /// Submits the task and follows it to its end. What it needs is sent to the server once it is sure to be submitted.
    pub fn deliver(
        &self,
        client: &Client,
        task: NewTask,
        kind: &Kind,
        send: impl FnOnce() -> Result<(), Failure>,
    ) -> CommandResult {
        let Ok(Value::Object(mut task)) = serde_json::to_value(task) else {
            return Err(Failure::Because(
                "the task cannot be written as JSON".into(),
            ));
        };
        // Nothing is run.
        task.remove("detail");
        let instances = self.selection.instances(client)?;
        if !instances.is_empty() {
            task.insert("instances".into(), instances.into());
        }
        let matching = client.dry_run(&task)?;
        let is_refused = matching.matched == 0 || !matching.ok;
        if self.dry_run {
            show_matching(&matching, false, self.json)?;
            return Ok(if is_refused { NO_MACHINE } else { 0 });
        }
        if is_refused {
            return Err(nowhere(&Selection::posted(&task), &matching));
        }
        let is_asked = !self.yes && matching.machines.len() > self.yes_above as usize;
        if is_asked && !confirm(&matching)? {
            print_message(&format!("sidebike: not {}\n", kind.done));
            return Ok(CANCELED);
        }
        send()?;
        if self.detach {
            return submit_detached(client, &task, self.json);
        }
        let control = follow::controls()?;
        let task = client.submit(&task)?;
        let is_announced = kind.is_announced || task.result.len() > 1;
        if is_announced || terminal::width(&io::stderr()).is_some() {
            let on = targets_in_words(&task);
            print_message(&format!("task {} on {on}\n", task.id));
        }
        let options = FollowOptions {
            json: self.json,
            ..FollowOptions::default()
        };
        follow::follow_to_end(client, &task, options, control)
    }
}
