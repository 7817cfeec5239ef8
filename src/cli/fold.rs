//! Machines with the same output and the same end together: of a hundred machines that say the same,
//! the one that says something else is what people look for.

use super::outcome::{colour_of, names, reason};
use super::screen::{Screen, tame};
use crate::wire::task::{Execution, ExecutionState, Task};
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Prints a task's outputs, those of most machines first.
pub fn print(task: &Task, out: &mut dyn Write, screen: &Screen) -> io::Result<()> {
    let mut groups: BTreeMap<(String, &[String]), Vec<&Execution>> = BTreeMap::new();
    for execution in &task.result {
        let output = &*execution.attempt.output;
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
        let reason = match colour_of(state) {
            Some(colour) => screen.paint(colour, &reason),
            None => reason,
        };
        let names = names(executions.iter().map(|e| &*e.machine_label));
        writeln!(out, "── {names} ({count}) {reason}")?;
        for line in output {
            if screen.is_terminal {
                writeln!(out, "{}", tame(line))?;
            } else {
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(())
}
