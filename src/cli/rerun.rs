//! `sidebike rerun`.

use super::command::{CommandResult, ConnectionArgs};
use super::follow::{self, FollowOptions, print_message};
use super::sweep::{self, FILTERS, FilterArgs};
use super::task_reference::find;

const EXAMPLES: &str = "\
Examples:
  sidebike rerun 018f6a2b         on the machines where it did not succeed
  sidebike rerun --all 018f6a2b   on all of its machines
  sidebike rerun --group nightly  all of a group that did not succeed; shows them, and asks above 20

The rerun is a new task with the same name, on the machines it runs on only. From then on the name
means the rerun; to run the first task again, give its id.
The new task is followed as by run, with the same exit codes. Several are not followed.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    override_usage = "sidebike rerun [OPTIONS] ID\n       sidebike rerun [OPTIONS] --state STATE | --name PREFIX | --group NAME | --tag NAME=VALUE | -m LABEL"
)]
pub struct Args {
    /// Id or name of the task: a name means the newest task of that name; the first 6 characters of an id
    /// are enough
    #[arg(
        value_name = "ID",
        value_parser = clap::builder::NonEmptyStringValueParser::new(),
        required_unless_present_any = [&FILTERS[..], &["machine"]].concat(),
        conflicts_with_all = [&FILTERS[..], &["machine"]].concat()
    )]
    id: Option<String>,
    /// All tasks with a target of exactly this label
    #[arg(short, long, value_name = "LABEL")]
    machine: Option<String>,
    #[command(flatten)]
    filter: FilterArgs,
    /// On all of its machines
    #[arg(long)]
    all: bool,
    /// At the end, show machines with the same output together
    #[arg(long, conflicts_with = "json")]
    fold: bool,
    /// At the end, print the new task as JSON
    #[arg(long)]
    json: bool,
    /// Let the task go on when this command is interrupted or the reader of its output goes away
    #[arg(long)]
    detach_on_exit: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Runs a task again.
pub fn run(args: Args) -> CommandResult {
    let client = args.server.client()?;
    let Some(id) = &args.id else {
        let mut parameters = args.filter.parameters(args.machine.as_deref());
        if args.all {
            parameters.push(("all", "1".into()));
        }
        let question = args.filter.question();
        return sweep::run(&client, "rerun", &parameters, question, args.json);
    };
    let old = find(&client, id)?;
    let control = follow::controls()?;
    let task = client.rerun(&old.id, args.all)?;
    let count = task.result.len();
    print_message(&format!(
        "task {}, a rerun of {}, on {count} of its {} machines\n",
        task.id,
        old.id,
        old.result.len()
    ));
    let options = FollowOptions {
        fold: args.fold,
        json: args.json,
        detach_on_exit: args.detach_on_exit,
    };
    follow::follow_to_end(&client, &task, options, control)
}
