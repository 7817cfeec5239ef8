//! Everything that is needed to run an undo without looking at the order again.
//!
//! It is made, and its programs are allowed by the owner's rules, before the command starts. The guard gets a copy as
//! one record. To add a field: set it in `undo_plan::plan`; with a default, if an agent may be replaced under its guard.

use crate::agent::command::program::{Program, Surroundings};
use crate::wire::agent::AttemptId;
use crate::wire::duration::TimeSpan;
use crate::wire::undo::UndoReason;
use serde::{Deserialize, Serialize};

/// The longest plan as JSON, in bytes: the longest undo that a server takes (128 KiB), with as much of other variables.
/// Agent and guard both keep it in memory.
pub const MAX_PLAN_BYTES: usize = 256 << 10;
/// How much of the command's standard output an undo gets in its environment, in bytes.
pub const MAX_STDOUT_BYTES: usize = 4 << 10;

/// How to undo one attempt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UndoPlan {
    /// The attempt.
    pub id: AttemptId,
    /// Its key: 32 hexadecimal digits, in the environment of all its processes.
    pub key: String,
    /// The instance of the agent that was handed the attempt.
    pub instance: String,
    /// What takes the effect back.
    pub undo: Program,
    /// What tells whether it is gone; without it the exit code of the undo does.
    pub check: Option<Program>,
    /// What undo and check start with.
    pub surroundings: Surroundings,
    /// How long each try, and each check, may run.
    pub timeout: TimeSpan,
    /// How long it is tried.
    pub patience: TimeSpan,
    /// After how long without contact to the server the command is ended; never when absent.
    pub deadman: Option<TimeSpan>,
    /// After how long the command is ended. None when there is no command, as when an old debt is settled.
    pub command_timeout: Option<TimeSpan>,
    /// The time from TERM to KILL for the command.
    pub kill_grace: TimeSpan,
    /// Why it runs; none as long as it does not.
    pub reason: Option<UndoReason>,
    /// The exit code of the command, if it is known.
    pub exit_code: Option<i32>,
    /// The first [`MAX_STDOUT_BYTES`] of the command's standard output.
    pub stdout: String,
}

impl UndoPlan {
    /// The record for the guard. The error is the reason why the attempt cannot be started.
    pub fn to_record(&self) -> Result<Vec<u8>, String> {
        let record =
            serde_json::to_vec(self).map_err(|why| format!("the undo cannot be kept: {why}"))?;
        if record.len() > MAX_PLAN_BYTES {
            return Err(format!(
                "undo, check and variables together must have {MAX_PLAN_BYTES} bytes at most, got {}",
                record.len()
            ));
        }
        Ok(record)
    }

    /// The plan in a record.
    pub fn from_record(record: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(record).map_err(|why| why.to_string())
    }

    /// Sets why it runs, unless that is known: the first reason wins.
    pub fn because(&mut self, reason: UndoReason) {
        self.reason.get_or_insert(reason);
    }

    /// Sets what is known of the command's end.
    pub fn command_ended(&mut self, exit_code: Option<i32>, stdout: &[u8]) {
        self.exit_code = exit_code;
        let stdout = &stdout[..stdout.len().min(MAX_STDOUT_BYTES)];
        self.stdout = String::from_utf8_lossy(stdout).into_owned();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A plan that runs these shell lines.
    pub fn plan(undo: &str, check: Option<&str>) -> UndoPlan {
        let shell = |line: &str| Program {
            file: "/bin/sh".into(),
            name: Some("sh".into()),
            args: vec!["-c".into(), line.into()],
        };
        UndoPlan {
            id: AttemptId {
                execution: "x.1".into(),
                attempt: 1,
            },
            key: crate::agent::backoff::random_id().unwrap(),
            instance: "i".into(),
            undo: shell(undo),
            check: check.map(shell),
            surroundings: Surroundings::default(),
            timeout: TimeSpan::from_secs(10),
            patience: TimeSpan::from_secs(60),
            deadman: None,
            command_timeout: Some(TimeSpan::from_secs(60)),
            kill_grace: TimeSpan::from_secs(5),
            reason: Some(UndoReason::Ended),
            exit_code: None,
            stdout: String::new(),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_bounded() {
        let mut plan = plan("undo", Some("check"));
        plan.command_ended(Some(3), b"out\xff\0");
        let record = plan.to_record().unwrap();
        assert_eq!(UndoPlan::from_record(&record).unwrap(), plan);
        assert!(UndoPlan::from_record(&record[1..]).is_err());
        plan.undo.args = vec!["x".repeat(MAX_PLAN_BYTES)];
        assert!(plan.to_record().unwrap_err().contains("at most"));
    }

    #[test]
    fn the_first_reason_wins_and_the_beginning_of_the_output_is_kept() {
        let mut plan = plan("undo", None);
        plan.because(UndoReason::Deadman);
        assert_eq!(plan.reason, Some(UndoReason::Ended));
        plan.command_ended(None, &[b'x'; 2 * MAX_STDOUT_BYTES]);
        assert_eq!(plan.stdout.len(), MAX_STDOUT_BYTES);
    }
}
