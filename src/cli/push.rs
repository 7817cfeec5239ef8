//! `sidebike push`.

use super::command::{CommandResult, ConnectionArgs, Failure, print_json};
use super::file_flags::HowArgs;
use super::follow::{self, FollowOptions, print_message};
use super::new_task::PaceArgs;
use super::outcome::CANCELED;
use super::run::{confirm, nowhere, show_matching, targets_in_words};
use super::selection::{Selection, SelectionArgs};
use super::terminal;
use super::transfer::LocalFile;
use crate::wire::task::NewTask;
use serde_json::Value;
use std::io::{self, Write};

/// The name of a task that has none.
const DEFAULT_NAME: &str = "push";

const EXAMPLES: &str = "\
Examples:
  sidebike push ./pkg.tgz -m '^web-' --to /opt/x/       as /opt/x/pkg.tgz; without the last / as /opt/x
  sidebike push ./blade.tgz --unpack --to /tmp/blade    unpacked into that folder
  sidebike push ./probe -m web-1                        into the folder that the agent chooses: the output says which

What a machine has already, with the same bytes and mode, stays as it is; what the server has already is not
sent again. A file gets its name when all of it is there: a program that runs goes on with the old one.
The exit codes are those of run.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The files of this machine
    #[arg(value_name = "FILE", required = true)]
    files: Vec<String>,
    /// Where the file goes; with a / at its end, or for several files, that is a folder
    /// [default: a folder that the agent chooses]
    #[arg(long, value_name = "PATH")]
    to: Option<String>,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    pace: PaceArgs,
    /// The name of the task in lists [default: push]
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
    /// Ask before pushing to more machines than this
    #[arg(long, value_name = "N", default_value_t = 20)]
    yes_above: u32,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// At the end, print the task as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Lays files down on machines.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client_for_files()?;
    let mut task = NewTask {
        name: Some(args.name.clone().unwrap_or_else(|| DEFAULT_NAME.into())),
        ..NewTask::default()
    };
    if let Some(ttl) = &args.ttl {
        task.ttl = Some(super::command::duration("--ttl", ttl)?);
    }
    args.selection.apply(&mut task, true)?;
    args.pace.apply(&mut task);
    args.how.apply(&mut task)?;
    let mut local = Vec::new();
    for path in &args.files {
        let file = LocalFile::read(path)?;
        let to = args
            .to
            .as_deref()
            .map(|to| match args.files.len() > 1 && !to.ends_with('/') {
                true => format!("{to}/"),
                false => to.to_owned(),
            });
        task.files.push(args.how.file(&file, to.as_deref())?);
        local.push(file);
    }
    let Ok(Value::Object(mut task)) = serde_json::to_value(task) else {
        return Err(Failure::Because(
            "the task cannot be written as JSON".into(),
        ));
    };
    // Nothing is run.
    task.remove("detail");
    let instances = args.selection.instances(&client)?;
    if !instances.is_empty() {
        task.insert("instances".into(), instances.into());
    }
    let matching = client.dry_run(&task)?;
    if args.dry_run {
        show_matching(&matching, false, args.json)?;
        let is_refused = matching.matched == 0 || !matching.ok;
        return Ok(if is_refused {
            super::outcome::NO_MACHINE
        } else {
            0
        });
    }
    if !matching.ok || matching.matched == 0 {
        return Err(nowhere(&Selection::posted(&task), &matching));
    }
    if !args.yes && matching.machines.len() > args.yes_above as usize && !confirm(&matching)? {
        print_message("sidebike: not pushed\n");
        return Ok(CANCELED);
    }
    for file in &local {
        file.send(&client, true)?;
    }
    if args.detach {
        let task = client.submit(&task)?;
        match args.json {
            true => print_json(&task)?,
            false => writeln!(io::stdout(), "{}", task.id)?,
        }
        return Ok(0);
    }
    let control = follow::controls()?;
    let task = client.submit(&task)?;
    if terminal::width(&io::stderr()).is_some() || task.result.len() > 1 {
        let on = targets_in_words(&task);
        print_message(&format!("task {} on {on}\n", task.id));
    }
    let options = FollowOptions {
        json: args.json,
        ..FollowOptions::default()
    };
    follow::follow_to_end(&client, &task, options, control)
}
