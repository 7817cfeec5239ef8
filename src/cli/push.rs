//! `sidebike push`.

use super::command::CommandResult;
use super::delivery::{DeliveryArgs, Kind, MACHINE_HELP};
use super::file_flags::HowArgs;
use super::transfer::LocalFile;
use clap::builder::NonEmptyStringValueParser;

const KIND: Kind = Kind {
    name: "push",
    done: "pushed",
    is_announced: false,
};

const EXAMPLES: &str = "\
Examples:
  sidebike push ./pkg.tgz -m '^web-' --to /opt/x/      as /opt/x/pkg.tgz
  sidebike push ./pkg.tgz -m '^web-' --to /opt/x       without the last /: as /opt/x
  sidebike push ./blade.tgz --unpack --to /tmp/blade   unpacked into that folder
  sidebike push ./probe -m web-1                       where the agent chooses: see the output

What a machine has already, with the same bytes and mode, stays as it is; what the server has
already is not sent again. A file gets its name when all of it is there: a program that runs goes on
with the old one. The exit codes are those of run.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    mut_arg("machine", |machine| machine.help(MACHINE_HELP)),
    mut_arg("name", |name| name.help("The name of the task in lists [default: push]"))
)]
pub struct Args {
    /// The files of this machine
    #[arg(value_name = "FILE", required = true)]
    files: Vec<String>,
    /// Where the file goes; with a / at its end, or for several files, that is a folder
    /// [default: a folder that the agent chooses]
    #[arg(long, value_name = "PATH", value_parser = NonEmptyStringValueParser::new())]
    to: Option<String>,
    #[command(flatten)]
    how: HowArgs,
    #[command(flatten)]
    delivery: DeliveryArgs,
}

/// Lays files down on machines.
pub fn run(args: Args) -> CommandResult {
    let client = args.delivery.server.client_for_files()?;
    let mut task = args.delivery.new_task(&KIND)?;
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
    args.delivery.deliver(&client, task, &KIND, || {
        local.iter().try_for_each(|file| file.send(&client, true))
    })
}
