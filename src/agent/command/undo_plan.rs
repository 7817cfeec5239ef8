//! The plan of an undo: what belongs to it, which programs that is, and all that they need.

use super::program::{Program, Surroundings};
use super::runner::{Order, command_line};
use crate::agent::undo::plan::UndoPlan;
use crate::wire::duration::{TimeSpan, Timeout};
use crate::wire::task::{DEFAULT_KILL_GRACE, DEFAULT_TIMEOUT, Detail};
use std::path::Path;

/// What an undo consists of, each part as the detail of a command; nothing without an undo.
pub fn parts(detail: &Detail) -> Result<Vec<(&'static str, Detail)>, String> {
    let Some(undo) = &detail.undo else {
        return Ok(Vec::new());
    };
    if undo.check.is_some() && undo.check_argv.is_some() {
        return Err("detail.undo: must have one of check and checkArgv".into());
    }
    let part = |command: &Option<String>, argv: &Option<Vec<String>>| Detail {
        command: command.clone(),
        argv: argv.clone(),
        env: detail.env.clone(),
        ..Detail::default()
    };
    let mut parts = vec![("detail.undo", part(&undo.command, &undo.argv))];
    if undo.check.is_some() || undo.check_argv.is_some() {
        parts.push(("detail.undo.check", part(&undo.check, &undo.check_argv)));
    }
    Ok(parts)
}

/// The programs of undo and check; none without an undo. A program that is not there yet is looked for at each try: the
/// command may bring it.
pub fn programs(
    detail: &Detail,
    wrapper: Option<&Path>,
    base: &Path,
) -> Result<Vec<Program>, String> {
    let program = |(what, part): (&str, Detail)| {
        let found = command_line(&part, wrapper, base);
        found.or_else(|why| match part.argv.as_deref() {
            Some([name, args @ ..]) if part.command.is_none() && !name.is_empty() => Ok(Program {
                file: name.into(),
                name: None,
                args: args.into(),
            }),
            _ => Err(format!("{what}: {why}")),
        })
    };
    parts(detail)?.into_iter().map(program).collect()
}

/// After how long a command is ended; none for never.
pub fn command_timeout(detail: &Detail) -> Option<TimeSpan> {
    match detail.timeout {
        None => Some(DEFAULT_TIMEOUT),
        Some(Timeout::After(timeout)) => Some(timeout),
        Some(Timeout::Never) => None,
    }
}

/// How an attempt is undone, by these programs; none without an undo.
pub fn plan(
    order: &Order<'_>,
    detail: &Detail,
    programs: Vec<Program>,
    directory: &Path,
    mut surroundings: Surroundings,
) -> Option<UndoPlan> {
    let undo = detail.undo.as_ref()?;
    let mut programs = programs.into_iter();
    // The guard is elsewhere: it is told also where the agent itself is.
    surroundings.directory = Some(directory.to_owned()).filter(|it| it.is_absolute());
    Some(UndoPlan {
        id: order.id.clone(),
        key: order.key.to_owned(),
        instance: order.instance.to_owned(),
        undo: programs.next()?,
        check: programs.next(),
        surroundings,
        timeout: undo.timeout(),
        patience: undo.patience(),
        deadman: undo.deadman(),
        command_timeout: command_timeout(detail),
        kill_grace: detail.kill_grace.unwrap_or(DEFAULT_KILL_GRACE),
        reason: None,
        exit_code: None,
        stdout: String::new(),
    })
}
