//! The commands for people: `sidebike run`, `ps`, `show`, ….
//!
//! Each command has a file with its flags, their help, its examples and its work; `pause`, `resume` and `stop` are
//! in `pacing`. Shared:
//!
//! | file | content |
//! | --- | --- |
//! | `mod` | the list of commands and their exit codes |
//! | `command` | what every command has: its result, its errors, the connection to the server |
//! | `task_reference` | the task that an id, the beginning of an id, or a name stands for |
//! | `new_task` | what `run` submits: its flags, on top of the task of a file |
//! | `delivery` | a task that runs no command: the flags of `push` and `update`, and its way to the end |
//! | `file_flags` | the files of a task: the flags of `run` and `push` |
//! | `transfer` | sending files and getting them, with progress |
//! | `later_flags` | what a task waits for before it begins: flags of `run` |
//! | `order_flags` | in which order a task gets its turn: flags of `run` |
//! | `undo_flags` | what takes the effect of a command back: the flags of `run` |
//! | `undos` | the undos of a task in words: what is not undone, and what to do about it |
//! | `selection` | which machines a task means: flags, instances by their beginning, words |
//! | `rollout` | how far a rollout has come, and what it waits for, in words |
//! | `messages` | the server's messages in the words of the command line |
//! | `follow` | follows a task until it ends: output, Ctrl-C, summary |
//! | `event_stream` | the events of a task, over connections that may break |
//! | `outcome` | how a task ended: exit codes, colours, texts |
//! | `printer` | prints output with the names of machines, and says what is missing |
//! | `progress` | the progress line at the bottom of the terminal |
//! | `fold` | groups machines with the same output |
//! | `docs`, `shell` | what needs no server: the documentation; completions and manual pages |
//! | `sweep` | cancel and rerun of many tasks: which, the question, what was done |
//! | `unified_diff` | how two texts differ |
//! | `terminal`, `table`, `watch` | width, colours and tables; showing them again and again |
//!
//! To add a command: a file with `Args` and `run`, a variant of [`Command`], and a line in [`run`]. To add a flag:
//! a field of the command's `Args`, whose comment is the help text. If a field of the API is set by a flag, add the
//! pair to `messages.rs`, so that errors name the flag.

mod cancel;
mod command;
mod delivery;
mod diff;
mod docs;
mod drain;
mod event_stream;
mod file_flags;
mod fold;
mod follow;
mod group;
mod halt;
mod info;
mod later_flags;
mod limit;
mod logs;
mod machines;
mod messages;
mod new_task;
mod order_flags;
mod outcome;
mod pacing;
mod printer;
mod progress;
mod ps;
mod pull;
mod push;
mod report;
mod rerun;
mod rollout;
mod run;
mod schedule;
mod selection;
mod shell;
mod show;
mod submit;
mod suspend;
mod sweep;
mod table;
mod task_reference;
mod terminal;
mod transfer;
mod undo;
mod undo_flags;
mod undos;
mod unified_diff;
mod update;
mod wait;
mod watch;

use self::command::Failure;
use self::outcome::NO_MACHINE;
use clap::Subcommand;
use std::io::{self, Write};
use std::process::ExitCode;

/// Exit code of the commands that follow no task when they failed.
const FAILED: u8 = 1;
/// Exit code for wrong usage, the same as clap's.
const USAGE: u8 = 2;
/// Exit code of the commands that follow a task when they failed themselves, as with ssh: smaller ones are
/// those of the commands they ran.
const CANNOT_FOLLOW: u8 = 255;
/// Exit code when the reader of our output is gone, as if ended by SIGPIPE.
const NO_READER: u8 = 128 + 13;

/// The commands.
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum Command {
    /// Run a command on machines and show its output
    Run(run::Args),
    /// Lay files of this machine down on machines
    Push(push::Args),
    /// Get the files that a task has handed back
    Pull(pull::Args),
    /// List tasks, newest first
    Ps(ps::Args),
    /// Show one task: what it runs and how it went on each machine
    Show(show::Args),
    /// Print the output of a task
    Logs(logs::Args),
    /// Submit the tasks of a file, all or none
    Submit(submit::Args),
    /// Cancel a task, or many: waiting commands never start, running ones are killed
    Cancel(cancel::Args),
    /// Start nothing more of a task until it is resumed; what runs goes on
    Pause(pacing::Pause),
    /// Go on with a task that is paused or waits for an approval
    Resume(pacing::Resume),
    /// Stop a task: start nothing more of it; what runs ends by itself, or is canceled
    Stop(pacing::Stop),
    /// Run a task, or many, again on the machines where it did not succeed
    Rerun(rerun::Args),
    /// Show how a group of tasks goes, or wait for its end
    Group(group::Args),
    /// Run the undo of a task again, by default where it failed or is owed
    Undo(undo::Undo),
    /// Settle by hand what a task has not undone: its effect is gone, or does not matter
    Forgive(undo::Forgive),
    /// Run tasks again and again: at times of a calendar, or every so often
    Schedule(schedule::Args),
    /// End every experiment and let none begin until the halt is lifted
    Halt(halt::Args),
    /// Limits with a name: how many of the tasks that name one run at once, or a minute
    Limit(limit::Args),
    /// Print the report of a task: who was hit, what happened when, what is left
    Report(report::Args),
    /// Compare two tasks machine by machine
    Diff(diff::Args),
    /// List machines
    Machines(machines::Args),
    /// Hand out nothing new on some machines until that is lifted; what runs goes on
    Suspend(suspend::Args),
    /// Have agents take no more commands, take commands again, or end
    Drain(drain::Args),
    /// Replace the program of agents by the server's, if their owners allow it
    Update(update::Args),
    /// Show the state of the server: machines, tasks, what is not undone, a halt
    Info(info::Args),
    /// Wait until a task has ended; the exit code says how it went
    Wait(wait::Args),
    /// Print a page of the documentation
    Docs(docs::Args),
    /// Print a script that completes sidebike's commands in a shell
    Completions(shell::Completions),
    /// Print the manual page
    Man(shell::Man),
}

/// Runs a command.
pub fn run(command: Command) -> ExitCode {
    let (ended, failed) = match command {
        Command::Run(args) => (run::run(args), CANNOT_FOLLOW),
        Command::Pull(args) => (pull::run(args), FAILED),
        Command::Push(args) => (push::run(args), CANNOT_FOLLOW),
        Command::Update(args) => (update::run(args), CANNOT_FOLLOW),
        Command::Rerun(args) => (rerun::run(args), CANNOT_FOLLOW),
        Command::Wait(args) => (wait::run(args), CANNOT_FOLLOW),
        Command::Ps(args) => (ps::run(args), FAILED),
        Command::Show(args) => (show::run(args), FAILED),
        Command::Logs(args) => (logs::run(args), FAILED),
        Command::Submit(args) => (submit::run(args), FAILED),
        Command::Cancel(args) => (cancel::run(args), FAILED),
        Command::Group(args) => (group::run(args), CANNOT_FOLLOW),
        Command::Pause(args) => (pacing::pause(args), FAILED),
        Command::Resume(args) => (pacing::resume(args), FAILED),
        Command::Stop(args) => (pacing::stop(args), FAILED),
        Command::Undo(args) => (undo::undo(args), CANNOT_FOLLOW),
        Command::Forgive(args) => (undo::forgive(args), FAILED),
        Command::Schedule(args) => (schedule::run(args), FAILED),
        Command::Halt(args) => (halt::run(args), FAILED),
        Command::Limit(args) => (limit::run(args), FAILED),
        Command::Report(args) => (report::run(args), FAILED),
        Command::Diff(args) => (diff::run(args), diff::TROUBLE),
        Command::Machines(args) => (machines::run(args), FAILED),
        Command::Suspend(args) => (suspend::run(args), FAILED),
        Command::Drain(args) => (drain::run(args), FAILED),
        Command::Info(args) => (info::run(args), FAILED),
        Command::Docs(args) => (docs::run(args), FAILED),
        Command::Completions(args) => (shell::completions(args), FAILED),
        Command::Man(args) => (shell::man(args), FAILED),
    };
    ExitCode::from(match ended {
        Ok(code) => code,
        Err(Failure::NoReader) => NO_READER,
        Err(Failure::Because(why)) => print_error(&why, failed),
        Err(Failure::Usage(why)) => print_error(&why, USAGE),
        Err(Failure::NoMachine(why)) => print_error(&why, NO_MACHINE),
    })
}

fn print_error(why: &str, code: u8) -> u8 {
    // Ignore a closed stderr: the exit code still reports the failure.
    let _ = writeln!(io::stderr(), "sidebike: {why}");
    code
}
