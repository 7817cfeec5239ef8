//! `sidebike update`.

use super::command::{CommandResult, ConnectionArgs, Failure, print_json};
use super::follow::{self, FollowOptions, print_message};
use super::new_task::PaceArgs;
use super::outcome::CANCELED;
use super::run::{confirm, nowhere, show_matching, targets_in_words};
use super::selection::{Selection, SelectionArgs};
use crate::client::{Client, MachineFilter};
use crate::wire::task::NewTask;
use crate::wire::update::Update;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

/// The name of a task that has none.
const DEFAULT_NAME: &str = "update";

const EXAMPLES: &str = "\
Examples:
  sidebike update -m '^web-' --dry-run                  which agents would get it
  sidebike update -m '^web-' --steps 1,10%,100%         one first, then a tenth, then the others
  sidebike update --canary '^web-1$' --pause approve    the others after sidebike resume

The agents get the program that the server runs; other architectures that of its --binaries. Agents take part that
were started with --self-update. Each waits for what it runs, and has the new program take its place. If that does
not reach the server, the old one comes back and says why. The exit codes are those of run.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    pace: PaceArgs,
    /// How long each agent may take to fetch the program and to end what it runs [default: 10m]
    #[arg(long, value_name = "DURATION")]
    files_timeout: Option<String>,
    /// How long the new program has until the server has answered it, 60s at most [default: 30s]
    #[arg(long, value_name = "DURATION")]
    probation: Option<String>,
    /// The name of the task in lists [default: update]
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
    /// Ask before updating more machines than this
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

/// Replaces the program of agents by the server's.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    let span = |flag: &str, text: &Option<String>| {
        let text = text.as_deref();
        text.map(|text| super::command::duration(flag, text))
            .transpose()
    };
    let mut update = servers_own(&client)?;
    update.probation = span("--probation", &args.probation)?;
    let mut task = NewTask {
        name: Some(args.name.clone().unwrap_or_else(|| DEFAULT_NAME.into())),
        ttl: span("--ttl", &args.ttl)?,
        files_timeout: span("--files-timeout", &args.files_timeout)?,
        update: Some(update),
        ..NewTask::default()
    };
    args.selection.apply(&mut task, true)?;
    args.pace.apply(&mut task);
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
        print_message("sidebike: not updated\n");
        return Ok(CANCELED);
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
    print_message(&format!(
        "task {} on {}\n",
        task.id,
        targets_in_words(&task)
    ));
    let options = FollowOptions {
        json: args.json,
        ..FollowOptions::default()
    };
    follow::follow_to_end(&client, &task, options, control)
}

/// The programs that the server hands out, for the architectures of its machines.
fn servers_own(client: &Client) -> Result<Update, Failure> {
    let machines = client.machines(&MachineFilter::default())?;
    let archs = machines.into_iter().map(|machine| machine.arch);
    let archs: BTreeSet<String> = archs.filter(|arch| !arch.is_empty()).collect();
    let mut images = BTreeMap::new();
    let mut version = None;
    for arch in archs {
        if let Some(image) = client.image(&arch)? {
            version = image.version.or(version);
            images.insert(arch, image.sha256);
        }
    }
    match version {
        Some(version) => Ok(Update {
            version,
            images,
            probation: None,
        }),
        None if images.is_empty() => Err(Failure::Because(
            "the server has no program for any of its machines, or they do not say their architecture; put one into the folder of its --binaries".into(),
        )),
        None => Err(Failure::Because(
            "the server does not say its version: it is older than this command".into(),
        )),
    }
}
