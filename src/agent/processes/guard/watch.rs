//! When the guard acts although the agent lives. No process and no clock: times come in, in milliseconds of a clock
//! that goes on while the machine is suspended and that nobody can set.

use crate::agent::undo::plan::{MAX_STDOUT_BYTES, UndoPlan};
use crate::wire::duration::TimeSpan;
use crate::wire::undo::UndoReason;
use rustix::process::Pid;

/// How long after its time-out and the time from TERM to KILL the agent may still be busy with the end of a command.
const DEADLINE_SLACK: TimeSpan = TimeSpan::from_secs(10);
/// How long after its dead man's switch and the time from TERM to KILL the agent may still be busy with the end of a
/// command. With the usual time to KILL the guard acts 10 s after the switch.
const CONTACT_SLACK: TimeSpan = TimeSpan::from_secs(5);
/// How long an agent that undoes may be silent. It speaks up every second.
const UNDOING_SILENCE: TimeSpan = TimeSpan::from_secs(20);

/// Why the guard acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The agent is gone.
    AgentGone,
    /// The command should have ended by now.
    Deadline,
    /// The server was not heard of for too long.
    NoContact(TimeSpan),
    /// The agent began to undo, and fell silent.
    UndoStalled,
}

impl Cause {
    /// Why the undo runs.
    pub fn reason(self) -> UndoReason {
        match self {
            Cause::AgentGone | Cause::UndoStalled => UndoReason::AgentLost,
            Cause::Deadline => UndoReason::TimedOut,
            Cause::NoContact(_) => UndoReason::Deadman,
        }
    }

    /// The message of the result of the attempt.
    pub fn msg(self) -> String {
        match self {
            Cause::AgentGone => "its agent was killed".into(),
            Cause::Deadline => "its agent does not work: it did not end the command in time".into(),
            Cause::NoContact(limit) => {
                format!("the server could not be reached for {limit}, and its agent did not act")
            }
            Cause::UndoStalled => "its agent does not work: it began to undo and stopped".into(),
        }
    }
}

/// An attempt with an armed undo.
#[derive(Debug)]
pub struct Watched {
    /// How it is undone.
    pub plan: UndoPlan,
    /// Its process group, while the command runs: after that the number may belong to another one.
    pub group: Option<Pid>,
    armed_at: u64,
    started_at: Option<u64>,
    /// When the agent last said that it undoes the attempt itself; none while it does not.
    undoing_at: Option<u64>,
    exit_code: Option<i32>,
    /// The beginning of the command's standard output.
    stdout: Vec<u8>,
}

impl Watched {
    /// One that was armed at this time.
    pub fn new(plan: UndoPlan, armed_at: u64) -> Self {
        Watched {
            // Without a command there is only the undo.
            undoing_at: plan.command_timeout.is_none().then_some(armed_at),
            plan,
            group: None,
            armed_at,
            started_at: None,
            exit_code: None,
            stdout: Vec::new(),
        }
    }

    /// Its command was started.
    pub fn started(&mut self, group: Pid, at: u64) {
        self.group = Some(group);
        self.started_at = Some(at);
    }

    /// When its command was started; none if that is not known.
    pub fn started_at(&self) -> Option<u64> {
        self.started_at
    }

    /// Whether there is no command: only the undo is to run.
    pub fn has_no_command(&self) -> bool {
        self.plan.command_timeout.is_none()
    }

    /// Whether the agent has ended its command, or there is none.
    pub fn is_ended(&self) -> bool {
        self.undoing_at.is_some()
    }

    /// Whether its command is known to have been started, or there is none.
    pub fn was_started(&self) -> bool {
        self.group.is_some() || self.is_ended()
    }

    /// The command has written this to standard output.
    pub fn wrote(&mut self, bytes: &[u8]) {
        let room = MAX_STDOUT_BYTES.saturating_sub(self.stdout.len());
        self.stdout.extend(&bytes[..bytes.len().min(room)]);
    }

    /// The processes of the command have ended, and the agent undoes it itself.
    pub fn undoing(&mut self, at: u64) {
        self.group = None;
        self.undoing_at = self.undoing_at.max(Some(at));
    }

    /// Why it is undone, and the exit code of the command.
    pub fn ended(&mut self, reason: UndoReason, exit_code: Option<i32>) {
        self.plan.because(reason);
        self.exit_code = exit_code;
    }

    /// How it is undone for this cause.
    pub fn plan_because(&self, cause: Cause) -> UndoPlan {
        let mut plan = self.plan.clone();
        plan.because(cause.reason());
        if !self.has_no_command() {
            plan.command_ended(self.exit_code, &self.stdout);
        }
        plan
    }

    /// When the guard has to act, and why, if nothing is heard until then. `contact` is when the server was last
    /// heard of.
    pub fn due(&self, contact: u64) -> Option<(u64, Cause)> {
        let after = |at: u64, spans: &[TimeSpan]| {
            let spans = spans.iter().map(|span| span.as_millis());
            spans.fold(at, u64::saturating_add)
        };
        if let Some(at) = self.undoing_at {
            return Some((after(at, &[UNDOING_SILENCE]), Cause::UndoStalled));
        }
        let grace = self.plan.kill_grace;
        let started = self.started_at.unwrap_or(self.armed_at);
        let deadline = self.plan.command_timeout.map(|timeout| {
            let at = after(started, &[timeout, grace, DEADLINE_SLACK]);
            (at, Cause::Deadline)
        });
        let contact = contact.max(self.armed_at);
        let no_contact = self.plan.deadman.map(|limit| {
            let at = after(contact, &[limit, grace, CONTACT_SLACK]);
            (at, Cause::NoContact(limit))
        });
        { deadline.into_iter().chain(no_contact) }.min_by_key(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::undo::plan::tests::plan;

    fn watched(deadman: Option<u64>) -> Watched {
        let mut plan = plan("undo", None);
        plan.deadman = deadman.map(TimeSpan::from_secs);
        Watched::new(plan, 1_000)
    }

    #[test]
    fn the_deadline_counts_from_the_start_of_the_command() {
        let mut watched = watched(None);
        assert_eq!(watched.due(0), Some((76_000, Cause::Deadline)));
        watched.started(Pid::INIT, 5_000);
        assert_eq!(watched.due(1 << 30), Some((80_000, Cause::Deadline)));
    }

    #[test]
    fn contact_to_the_server_puts_it_off() {
        let limit = TimeSpan::from_secs(20);
        let watched = watched(Some(20));
        let no_contact = |at| Some((at, Cause::NoContact(limit)));
        // Not before it was armed: the order was contact.
        assert_eq!(watched.due(0), no_contact(31_000));
        assert_eq!(watched.due(4_000), no_contact(34_000));
        assert_eq!(watched.due(60_000), Some((76_000, Cause::Deadline)));
    }

    #[test]
    fn an_agent_that_undoes_has_to_speak_up() {
        let mut watched = watched(Some(20));
        watched.undoing(10_000);
        assert_eq!(watched.due(0), Some((30_000, Cause::UndoStalled)));
        watched.undoing(200_000);
        watched.undoing(9_000);
        assert_eq!(watched.due(0), Some((220_000, Cause::UndoStalled)));
    }

    #[test]
    fn the_undo_gets_what_is_known_of_the_command() {
        let mut watched = watched(None);
        watched.plan.reason = None;
        assert!(!watched.was_started());
        watched.started(Pid::INIT, 0);
        watched.wrote(b"uid ");
        watched.wrote(&[b'x'; MAX_STDOUT_BYTES]);
        let plan = watched.plan_because(Cause::AgentGone);
        assert_eq!(
            (plan.reason, plan.exit_code),
            (Some(UndoReason::AgentLost), None)
        );
        assert!(plan.stdout.starts_with("uid x") && plan.stdout.len() == MAX_STDOUT_BYTES);
        // The group may be another one by now.
        watched.undoing(1);
        assert_eq!((watched.group, watched.was_started()), (None, true));
        watched.ended(UndoReason::Canceled, Some(3));
        let plan = watched.plan_because(Cause::UndoStalled);
        assert_eq!(
            (plan.reason, plan.exit_code),
            (Some(UndoReason::Canceled), Some(3))
        );
    }

    #[test]
    fn without_a_command_the_agent_undoes_from_the_beginning() {
        let mut plan = plan("undo", None);
        plan.command_timeout = None;
        let watched = Watched::new(plan, 1_000);
        assert!(watched.has_no_command());
        assert_eq!(watched.due(0), Some((21_000, Cause::UndoStalled)));
    }
}
