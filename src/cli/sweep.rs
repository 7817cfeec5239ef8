//! Cancel and rerun of many tasks: the flags that say which, the question, what was done. Used by `cancel`, `rerun` and
//! `group`.

use super::command::{CommandResult, Failure, print_json};
use super::follow::print_message;
use super::new_task::task_tag;
use super::outcome::{CANCELED, task_state_colour};
use super::ps::state;
use super::table::{Cell, Table};
use super::terminal::{Prompt, sanitize};
use crate::client::Client;
use crate::wire::sweep::Swept;
use crate::wire::task::TaskState;
use std::io::{self, Write};

/// The most tasks that are listed.
const MAX_LISTED: usize = 20;
/// The heading of these flags in the help.
const HEADING: &str = "Many tasks, in place of ID";
/// The flags of which one has to be given in place of an id.
pub const FILTERS: [&str; 4] = ["state", "name", "group", "tags"];

/// The arguments that say which tasks are meant.
#[derive(Debug, clap::Args)]
pub struct FilterArgs {
    /// All in this state: scheduled, waiting, running, succeeded, partial, failed, canceled, …
    #[arg(help_heading = HEADING, long, value_parser = state)]
    state: Option<TaskState>,
    /// All whose name begins with this
    #[arg(help_heading = HEADING, long, value_name = "PREFIX")]
    name: Option<String>,
    /// All of this group
    #[arg(help_heading = HEADING, long, value_name = "NAME")]
    group: Option<String>,
    /// All with this tag; can be given several times
    #[arg(help_heading = HEADING, long = "tag", value_name = "NAME=VALUE", value_parser = task_tag)]
    tags: Vec<(String, String)>,
    #[command(flatten)]
    question: QuestionArgs,
}

/// The arguments about the question.
#[derive(Debug, clap::Args)]
pub struct QuestionArgs {
    /// Only show what is meant
    #[arg(help_heading = HEADING, long)]
    dry_run: bool,
    /// Ask before changing more tasks than this
    #[arg(help_heading = HEADING, long, value_name = "N", default_value_t = 20)]
    yes_above: u32,
    /// Do not ask
    #[arg(help_heading = HEADING, short, long)]
    yes: bool,
}

impl FilterArgs {
    /// The parameters of the call.
    pub fn parameters(&self, label: Option<&str>) -> Vec<(&'static str, String)> {
        let tags = self.tags.iter();
        let tags = tags.map(|(name, value)| ("tag", format!("{name}={value}")));
        let others = [
            ("state", self.state.map(|state| state.word().to_owned())),
            ("taskPrefix", self.name.clone()),
            ("group", self.group.clone()),
            ("label", label.map(str::to_owned)),
        ];
        let others = { others.into_iter() }.filter_map(|(name, value)| Some((name, value?)));
        others.chain(tags).collect()
    }

    /// The flags about the question.
    pub fn question(&self) -> &QuestionArgs {
        &self.question
    }
}

/// Shows what a call means, asks if that is much, makes the call, and says what it has done.
pub fn run(
    client: &Client,
    path: &str,
    parameters: &[(&'static str, String)],
    question: &QuestionArgs,
    json: bool,
) -> CommandResult {
    let meant = client.sweep(path, parameters, true)?;
    if question.dry_run && json {
        print_json(&meant)?;
        return Ok(0);
    }
    if !json {
        show(&meant)?;
    }
    if question.dry_run {
        print_message(&skipped(&meant));
        return Ok(0);
    }
    if meant.tasks > question.yes_above && !question.yes {
        let number = meant.tasks;
        let answer = Prompt::open().map(|mut person| {
            let verb = verb(path);
            person.ask(&format!("{verb} {number} tasks? [y/N] "))
        });
        let is_meant = matches!(answer.as_deref(), Some("y" | "yes"));
        if !is_meant {
            let hint = match answer {
                Some(_) => String::new(),
                None => format!("; without a terminal say --yes, or --yes-above {number}"),
            };
            print_message(&format!("sidebike: nothing was changed{hint}\n"));
            return Ok(CANCELED);
        }
    }
    let done = client.sweep(path, parameters, false)?;
    if json {
        print_json(&done)?;
        return Ok(0);
    }
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{} tasks {}, {} executions",
        done.tasks,
        past(path),
        done.executions
    )?;
    for task in &done.shown {
        if let Some(rerun) = &task.rerun {
            writeln!(out, "{} reruns {}", sanitize(rerun), sanitize(&task.id))?;
        }
    }
    drop(out);
    print_message(&skipped(&done));
    Ok(0)
}

fn is_rerun(path: &str) -> bool {
    path == "rerun"
}

fn verb(path: &str) -> &'static str {
    if is_rerun(path) { "Rerun" } else { "Cancel" }
}

fn past(path: &str) -> &'static str {
    if is_rerun(path) {
        "run again"
    } else {
        "canceled"
    }
}

/// A table of the tasks that are meant.
fn show(meant: &Swept) -> Result<(), Failure> {
    if meant.tasks == 0 {
        return Ok(());
    }
    let mut table = Table::new(&["ID", "STATE", "MACHINES", "NAME"]);
    for task in meant.shown.iter().take(MAX_LISTED) {
        table.add(vec![
            Cell::of(&task.id),
            Cell::painted(task.state.word(), task_state_colour(task.state)),
            Cell::of(task.executions.to_string()),
            Cell::of(&task.name),
        ]);
    }
    let mut out = io::stdout().lock();
    table.print(&mut out, &io::stdout())?;
    let listed = meant.shown.len().min(MAX_LISTED) as u32;
    if meant.tasks > listed {
        writeln!(out, "… and {} more", meant.tasks - listed)?;
    }
    Ok(())
}

/// What was skipped, and why.
fn skipped(done: &Swept) -> String {
    let lines = done.skipped.iter().map(|skipped| {
        format!(
            "sidebike: skipped {}: {}\n",
            skipped.count,
            sanitize(&skipped.reason)
        )
    });
    lines.collect()
}
