//! `sidebike update`.

use super::command::{CommandResult, Failure, duration};
use super::delivery::{DeliveryArgs, Kind, MACHINE_HELP};
use crate::client::{Client, MachineFilter};
use crate::wire::update::Update;
use std::collections::{BTreeMap, BTreeSet};

const KIND: Kind = Kind {
    name: "update",
    done: "updated",
    is_announced: true,
};

const EXAMPLES: &str = "\
Examples:
  sidebike update -m '^web-' --dry-run                  which agents would get it
  sidebike update -m '^web-' --steps 1,10%,100%         one first, then a tenth, then the others
  sidebike update --canary '^web-1$' --pause approve    the others after sidebike resume

Agents that were started with --self-update take part. They get the program that the server runs;
for other architectures that of its --binaries. Each waits for what it runs, and has the new program
take its place. If that does not reach the server, the old one comes back and says why. The exit
codes are those of run.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("machine", |machine| machine.help(MACHINE_HELP)),
    mut_arg("name", |name| name.help("The name of the task in lists [default: update]"))
)]
pub struct Args {
    /// How long each agent may take to fetch the program and to end what it runs [default: 10m]
    #[arg(long, value_name = "DURATION")]
    files_timeout: Option<String>,
    /// How long the new program has until the server has answered it, 5s to 60s [default: 30s]
    #[arg(long, value_name = "DURATION")]
    probation: Option<String>,
    #[command(flatten)]
    delivery: DeliveryArgs,
}

/// Replaces the program of agents by the server's.
pub fn run(args: Args) -> CommandResult {
    let client = args.delivery.server.client()?;
    let mut task = args.delivery.new_task(&KIND)?;
    task.files_timeout = duration("--files-timeout", &args.files_timeout)?;
    task.update = Some(Update {
        probation: duration("--probation", &args.probation)?,
        ..servers_own(&client)?
    });
    args.delivery.deliver(&client, task, &KIND, || Ok(()))
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
