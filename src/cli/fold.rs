//! `--fold`: groups machines with the same output and the same result, so that the one machine of a hundred
//! that differs is easy to see.

use super::outcome::{name_list, reason, state_colour};
use super::terminal::{OutputStyle, sanitize_output};
use crate::wire::output_line::last_state;
use crate::wire::task::{Execution, ExecutionState, Task};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Prints each output once with its machines; the output of most machines comes first.
pub fn print(task: &Task, out: &mut dyn Write, style: &OutputStyle) -> io::Result<()> {
    let mut groups: BTreeMap<(String, Vec<&str>), Vec<&Execution>> = BTreeMap::new();
    for execution in &task.result {
        let output = execution.attempt.output.iter();
        let output = output.map(|line| last_state(line)).collect();
        groups
            .entry((reason(execution), output))
            .or_default()
            .push(execution);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, executions)| std::cmp::Reverse(executions.len()));
    for ((reason, output), executions) in groups {
        let state = executions
            .first()
            .map_or(ExecutionState::Queued, |e| e.state);
        let count = match executions.len() {
            1 => "1 machine".into(),
            n => format!("{n} machines"),
        };
        let reason = match state_colour(state) {
            Some(colour) => style.paint(colour, &reason),
            None => reason,
        };
        let names = name_list(task, executions.iter().copied());
        writeln!(out, "── {names} ({count}) {reason}")?;
        for line in output {
            if style.is_terminal {
                writeln!(out, "{}", sanitize_output(line))?;
            } else {
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(())
}
