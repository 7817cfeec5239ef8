//! `sidebike schedule`: tasks again and again.

use super::command::{CommandResult, ConnectionArgs, Failure, duration, print_json};
use super::follow::print_message;
use super::messages::with_flags;
use super::new_task::NewTaskArgs;
use super::table::{Cell, Table};
use super::terminal::sanitize;
use crate::client::Client;
use crate::wire::schedule::{Firing, Outcome, Schedule, ScheduleState};
use clap::ArgGroup;
use serde_json::{Map, Value};
use std::io::{self, Write};

/// How many firings of the past `show` prints, unless all are asked for.
const SHOWN_HISTORY: usize = 10;

const EXAMPLES: &str = "\
Examples:
  sidebike schedule add backup --cron '30 2 * * *' --zone Europe/Berlin -m '^db-' -- ./backup.sh
  sidebike schedule add probe --every 5m --any -- ./probe.sh
  sidebike schedule add nightly --cron @daily --overlap queueOne --task task.json
  sidebike schedule add x --cron '0 9 * * MON-FRI' --dry-run -- true    only show when
  sidebike schedule ls
  sidebike schedule show backup
  sidebike schedule run backup                                          now, beside the plan
  sidebike schedule pause backup
  sidebike schedule rm backup

sidebike docs schedules says what overlap, outages and changes of the clock do.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

/// What is done.
#[derive(Debug, clap::Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
enum What {
    /// Make a schedule, or change it
    Add(Add),
    /// List schedules
    Ls(Ls),
    /// Show a schedule: its plan, the next firings, what became of the last
    Show(Show),
    /// Fire no more until it is resumed
    Pause(One),
    /// Fire again, from now on
    Resume(One),
    /// Fire now, beside the plan
    Run(One),
    /// Delete a schedule; what it has fired goes on
    Rm(One),
}

/// The arguments of `add`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("when").args(["cron", "every"]).required(true))]
struct Add {
    /// Its id: letters, digits, - and _
    id: String,
    /// When: five fields (minute, hour, day, month, day of the week), or @hourly, @daily, @weekly, @monthly, @yearly
    #[arg(long, value_name = "EXPRESSION")]
    cron: Option<String>,
    /// Or the time between two firings, such as 15m
    #[arg(long, value_name = "DURATION")]
    every: Option<String>,
    /// The time zone that --cron means, such as Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// When the firing before has not ended: skip, queueOne, replace or allow [default: skip]
    #[arg(long, value_name = "WORD")]
    overlap: Option<String>,
    /// What is made up for after the server was away: none, latest or all [default: latest]
    #[arg(long, value_name = "WORD")]
    catch_up: Option<String>,
    /// How late a firing may start [default: until the next one, 24h at most]
    #[arg(long, value_name = "DURATION")]
    start_deadline: Option<String>,
    /// Not before this time, such as 2026-12-01T08:00:00+01:00
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Not after this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// End after so many tasks
    #[arg(long, value_name = "N")]
    times: Option<u64>,
    /// Make it paused; without, a change leaves a pause as it is
    #[arg(long)]
    paused: bool,
    /// Pause it when so many firings in a row have failed
    #[arg(long, value_name = "N")]
    pause_after_failures: Option<u32>,
    /// How many ended firings to keep [default: 20]
    #[arg(long, value_name = "N")]
    keep: Option<u32>,
    /// Only show the next firings
    #[arg(long)]
    dry_run: bool,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    task: NewTaskArgs,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// The arguments of `ls`.
#[derive(Debug, clap::Args)]
struct Ls {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// The arguments of `show`.
#[derive(Debug, clap::Args)]
struct Show {
    /// The id of the schedule
    id: String,
    /// Show everything that is known of the past
    #[arg(long)]
    all: bool,
    /// Print the schedule as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// The arguments of what is done with one schedule.
#[derive(Debug, clap::Args)]
struct One {
    /// The id of the schedule
    id: String,
    #[command(flatten)]
    server: ConnectionArgs,
}

/// Does what is asked with schedules.
pub fn run(args: Args) -> CommandResult {
    match args.what {
        What::Add(args) => add(args),
        What::Ls(args) => list(&args),
        What::Show(args) => show(&args),
        What::Pause(args) => {
            let schedule = args.server.client()?.change_schedule(&args.id, "pause")?;
            say(&format!("schedule {}: paused", schedule.id))
        }
        What::Resume(args) => {
            let schedule = args.server.client()?.change_schedule(&args.id, "resume")?;
            say(&format!(
                "schedule {}: {}",
                schedule.id,
                next_in_words(&schedule)
            ))
        }
        What::Run(args) => run_now(&args),
        What::Rm(args) => {
            args.server.client()?.delete_schedule(&args.id)?;
            say(&format!("schedule {}: deleted", sanitize(&args.id)))
        }
    }
}

fn say(line: &str) -> CommandResult {
    writeln!(io::stdout(), "{line}")?;
    Ok(0)
}

fn add(args: Add) -> CommandResult {
    let client = args.server.client()?;
    let mut task = args.task.read()?;
    args.task.set_instances(&mut task, &client)?;
    let mut schedule = Map::new();
    let span = |flag: &str, text: &Option<String>| -> Result<Option<Value>, Failure> {
        let span = duration(flag, text)?;
        Ok(span.and_then(|span| serde_json::to_value(span).ok()))
    };
    let text = |text: &Option<String>| text.clone().map(Value::from);
    for (field, value) in [
        ("cron", text(&args.cron)),
        ("every", span("--every", &args.every)?),
        ("timeZone", text(&args.zone)),
        ("overlap", text(&args.overlap)),
        ("catchUp", text(&args.catch_up)),
        (
            "startDeadline",
            span("--start-deadline", &args.start_deadline)?,
        ),
        ("from", text(&args.from)),
        ("until", text(&args.until)),
        ("times", args.times.map(Value::from)),
        ("paused", args.paused.then_some(Value::Bool(true))),
        (
            "pauseAfterFailures",
            args.pause_after_failures.map(Value::from),
        ),
        ("keep", args.keep.map(Value::from)),
        ("task", Some(Value::Object(task))),
    ] {
        schedule.extend(value.map(|value| (field.to_owned(), value)));
    }
    if args.dry_run {
        let preview = client.preview_schedule(&args.id, &schedule)?;
        if args.json {
            print_json(&preview)?;
            return Ok(0);
        }
        let mut out = io::stdout().lock();
        for next in &preview.next {
            writeln!(out, "{}  {}", sanitize(&next.local), sanitize(&next.utc))?;
        }
        return Ok(0);
    }
    let made = client.put_schedule(&args.id, &schedule)?;
    if args.json {
        print_json(&made)?;
    } else {
        say(&format!("schedule {}: {}", made.id, next_in_words(&made)))?;
    }
    if made.state == ScheduleState::Active && !made.msg.is_empty() {
        print_message(&format!("sidebike: {}\n", sanitize(&with_flags(&made.msg))));
    }
    Ok(0)
}

/// `paused (…)`, or when it fires next.
fn next_in_words(schedule: &Schedule) -> String {
    let why = match schedule.msg.as_str() {
        "" => String::new(),
        msg => format!(": {}", sanitize(msg)),
    };
    match (schedule.state, schedule.next.first()) {
        (ScheduleState::Active, Some(next)) => format!("next at {}", sanitize(&next.local)),
        (state, _) => format!("{}{why}", state.word()),
    }
}

fn plan_in_words(schedule: &Schedule) -> String {
    match (&schedule.cron, schedule.every) {
        (Some(cron), _) => format!("{cron} {}", schedule.time_zone),
        (None, Some(every)) => format!("every {every}"),
        (None, None) => String::new(),
    }
}

/// What became of a firing, in a word or two.
fn outcome_in_words(firing: &Firing) -> String {
    match (firing.outcome, firing.state) {
        (Outcome::Fired, Some(state)) => state.word().to_owned(),
        (Outcome::Fired, None) => "running".into(),
        (outcome, _) => outcome.word().to_owned(),
    }
}

fn list(args: &Ls) -> CommandResult {
    let schedules = args.server.client()?.schedules()?;
    if args.json {
        print_json(&schedules)?;
        return Ok(0);
    }
    let mut table = Table::new(&["ID", "STATE", "PLAN", "NEXT", "LAST"]);
    for schedule in &schedules {
        let next = schedule.next.first().map(|next| next.local.as_str());
        let last = schedule.history.last().map(outcome_in_words);
        table.add(vec![
            Cell::of(&schedule.id),
            Cell::of(schedule.state.word()),
            Cell::of(plan_in_words(schedule)),
            Cell::of(next.unwrap_or("-")),
            Cell::of(last.as_deref().unwrap_or("-")),
        ]);
    }
    let out = io::stdout();
    table.print(&mut out.lock(), &out)?;
    Ok(0)
}

fn show(args: &Show) -> CommandResult {
    let schedule = args.server.client()?.schedule(&args.id)?;
    if args.json {
        print_json(&schedule)?;
        return Ok(0);
    }
    let mut out = io::stdout().lock();
    let made_by = schedule.made_by.as_deref().map(sanitize);
    let by = made_by.map_or_else(String::new, |by| format!(", made by {by}"));
    writeln!(
        out,
        "schedule {} ({}{by})",
        schedule.id,
        schedule.state.word()
    )?;
    if !schedule.msg.is_empty() {
        writeln!(out, "  {}", sanitize(&with_flags(&schedule.msg)))?;
    }
    writeln!(out, "  plan  {}", sanitize(&plan_in_words(&schedule)))?;
    if let Some(waits) = &schedule.waits {
        writeln!(
            out,
            "  waits {}: {}",
            sanitize(&waits.at.local),
            sanitize(&waits.reason)
        )?;
    }
    for next in &schedule.next {
        writeln!(out, "  next  {}", sanitize(&next.local))?;
    }
    let shown = if args.all { usize::MAX } else { SHOWN_HISTORY };
    let skipped = schedule.history.len().saturating_sub(shown);
    for firing in schedule.history.iter().skip(skipped) {
        let task = firing.task.as_deref().map(sanitize).unwrap_or_default();
        let through = firing.through.as_deref().map(sanitize);
        let through = through.map_or_else(String::new, |at| format!("until {at} "));
        let by_hand = if firing.by_hand { " by hand" } else { "" };
        let line = format!(
            "  past  {} {}{by_hand} {task}{through}{}",
            sanitize(&firing.at.local),
            outcome_in_words(firing),
            sanitize(&with_flags(&firing.reason))
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(0)
}

fn run_now(args: &One) -> CommandResult {
    let client: Client = args.server.client()?;
    let schedule = client.change_schedule(&args.id, "run")?;
    if let Some(waits) = schedule.waits {
        return say(&format!(
            "schedule {}: waits: {}",
            schedule.id,
            sanitize(&waits.reason)
        ));
    }
    let fired = { schedule.history.iter().rev() }.find(|firing| firing.by_hand);
    let task = fired
        .and_then(|firing| firing.task.as_deref())
        .unwrap_or("-");
    say(&format!(
        "schedule {}: task {}",
        schedule.id,
        sanitize(task)
    ))
}
