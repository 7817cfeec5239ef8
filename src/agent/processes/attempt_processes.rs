//! The processes of one attempt: finding them all, and sending them signals.
//!
//! A process belongs to an attempt if it is in the command's process group, if [`KEY_VARIABLE`] in its
//! environment is the key of the attempt, or if its parent belongs to it; and if it was found to belong to
//! it before. So a command that starts process groups or sessions of its own (`timeout`, `setsid`,
//! `set -m`, a double fork) is ended whole. Only a process that has left the group, has cleared its
//! environment, and has lost its parent before anybody looked is not found.
//!
//! [`KEY_VARIABLE`]: super::process_table::KEY_VARIABLE

use super::process_table::{Process, ProcessId, ProcessTable, now_in_ticks};
use super::termination::ProcessTree;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use std::cell::RefCell;
use std::collections::HashSet;

/// Processes named in a message, in number.
const MAX_NAMED: usize = 5;

/// The processes of one attempt.
#[derive(Debug)]
pub struct AttemptProcesses {
    /// Empty when the group alone counts.
    key: String,
    group: Option<Group>,
    /// The processes that the latest look found. All have got a signal.
    signaled: HashSet<ProcessId>,
    /// Processes that do not have the key: their environments are not read again.
    strangers: RefCell<HashSet<ProcessId>>,
    looked: bool,
}

/// The process group of the command.
#[derive(Debug, Clone, Copy)]
enum Group {
    /// Its leader is a child of this process and not reaped: the number cannot belong to another group.
    Own(Pid),
    /// Its leader may be gone. At this time, in clock ticks, the number was still its own.
    Foreign(Pid, u64),
}

impl AttemptProcesses {
    /// The processes of a command of this agent. The leader of its group must not be reaped before the
    /// last use, unless [`ProcessTable::read`] returns none.
    pub fn new(key: String, group: Pid) -> Self {
        Self::with_group(key, Some(Group::Own(group)))
    }

    /// The processes of a command of an agent that has just died. The group is not known when the agent
    /// died before it could tell.
    pub fn of_dead_agent(key: String, group: Option<Pid>) -> Self {
        let now = now_in_ticks();
        Self::with_group(key, group.map(|group| Group::Foreign(group, now)))
    }

    /// The processes of one group and their descendants, whatever key they have. The same holds for the leader as in
    /// [`AttemptProcesses::new`].
    pub fn of_group(group: Pid) -> Self {
        Self::with_group(String::new(), Some(Group::Own(group)))
    }

    fn with_group(key: String, group: Option<Group>) -> Self {
        AttemptProcesses {
            key,
            group,
            signaled: HashSet::new(),
            strangers: RefCell::default(),
            looked: false,
        }
    }

    /// Finds the live processes in a table, and sends `signal` to them: TERM once to each, with CONT,
    /// because a stopped process would not see it; other signals every time. A process that is stopped
    /// later, and may not have seen TERM, gets CONT again. Whether there are any.
    pub fn sweep_in(&mut self, table: &ProcessTable, signal: Signal) -> bool {
        let strangers = self.strangers.get_mut();
        if strangers.len() > 2 * table.processes.len() {
            // Most of them have ended.
            strangers.clear();
        }
        let members = self.members(table);
        let is_first = !std::mem::replace(&mut self.looked, true);
        let mut signaled_group = None;
        // One call reaches all members of the group, also those that are just being forked.
        if let Some(Group::Own(group)) = self.group
            && (is_first || signal != Signal::TERM || members.is_empty())
        {
            // With no member in sight, a process that hid from the look is what is left.
            let signal = if members.is_empty() {
                Signal::KILL
            } else {
                signal
            };
            send_to_group(group, signal);
            signaled_group = Some(group.as_raw_nonzero().get());
        }
        for process in &members {
            let is_done = signal == Signal::TERM && self.signaled.contains(&process.id());
            if !is_done && signaled_group != Some(process.group) {
                process.send(signal);
                if signal == Signal::TERM {
                    process.send(Signal::CONT);
                }
            } else if is_done && process.is_stopped {
                process.send(Signal::CONT);
            }
        }
        self.signaled = members.iter().map(|process| process.id()).collect();
        !members.is_empty()
    }

    /// The processes that live, for a message; none when there are none.
    pub fn describe_living(&self) -> Option<String> {
        let table = ProcessTable::read()?;
        let living = self.members(&table);
        let mut text: Vec<String> = living
            .iter()
            .take(MAX_NAMED)
            .map(|process| process.describe())
            .collect();
        if living.len() > MAX_NAMED {
            text.push(format!("{} more", living.len() - MAX_NAMED));
        }
        (!text.is_empty()).then(|| text.join(", "))
    }

    /// The live processes of the attempt in a table.
    fn members<'t>(&self, table: &'t ProcessTable) -> Vec<&'t Process> {
        let leader = self.group.map(|group| match group {
            Group::Own(pid) | Group::Foreign(pid, _) => pid.as_raw_nonzero().get(),
        });
        // No process of the attempt is older than the leader.
        let oldest = match self.group {
            Some(Group::Own(_)) => table
                .processes
                .iter()
                .find(|process| Some(process.pid) == leader)
                .map_or(0, |leader| leader.start),
            _ => 0,
        };
        let own = std::process::id() as i32;
        let mut others: Vec<&Process> = table
            .processes
            .iter()
            .filter(|process| !process.is_zombie && process.start >= oldest)
            .filter(|process| process.pid > 1 && process.pid != own)
            .collect();
        // A group's number cannot be given to another group while a process is in it.
        let is_known = |process: &&Process| self.signaled.contains(&process.id());
        let group_has_known = others
            .iter()
            .any(|process| is_known(process) && Some(process.group) == leader);
        let is_in_group = |process: &Process| {
            Some(process.group) == leader
                && match self.group {
                    Some(Group::Own(_)) => true,
                    Some(Group::Foreign(_, since)) if !self.looked => process.start <= since,
                    Some(Group::Foreign(..)) => group_has_known,
                    None => false,
                }
        };
        let mut members: Vec<&Process> = Vec::new();
        others.retain(|process| {
            let belongs = is_known(process) || is_in_group(process) || self.has_key(process);
            if belongs {
                members.push(process);
            }
            !belongs
        });
        // Children of members, and theirs. A parent whose number was given to another process while the
        // table was read must not count: it is looked at again.
        let mut at = 0;
        while at < members.len() {
            let parent = members[at];
            at += 1;
            let is_child = |it: &&Process| it.parent == parent.pid && it.start >= parent.start;
            if !others.iter().any(is_child) || !parent.lives() {
                continue;
            }
            others.retain(|process| {
                let is_child = is_child(process);
                if is_child {
                    members.push(process);
                }
                !is_child
            });
        }
        members
    }

    /// Whether a process has the key. A process that did not have it can only get it from a process that
    /// has it, and then it is a child of that one.
    fn has_key(&self, process: &Process) -> bool {
        if self.key.is_empty() {
            return false;
        }
        let mut strangers = self.strangers.borrow_mut();
        if strangers.contains(&process.id()) {
            return false;
        }
        let has_key = process.has_key(&self.key);
        if !has_key {
            strangers.insert(process.id());
        }
        has_key
    }

    /// Does what [`AttemptProcesses::sweep_in`] does without a table: only the process group is known, and
    /// a zombie counts as alive.
    pub fn sweep_group(&mut self, signal: Signal) -> bool {
        let is_first = !std::mem::replace(&mut self.looked, true);
        let (Some(Group::Own(group)) | Some(Group::Foreign(group, _))) = self.group else {
            return false;
        };
        if is_first || signal != Signal::TERM {
            send_to_group(group, signal);
        }
        test_kill_process_group(group) != Err(Errno::SRCH)
    }
}

impl ProcessTree for AttemptProcesses {
    fn sweep(&mut self, signal: Signal) -> bool {
        match ProcessTable::read() {
            Some(table) => self.sweep_in(&table, signal),
            None => self.sweep_group(signal),
        }
    }
}

fn send_to_group(group: Pid, signal: Signal) {
    // An error means that the group is empty, or that this process may not send it signals.
    let _ = kill_process_group(group, signal);
    if signal == Signal::TERM {
        let _ = kill_process_group(group, Signal::CONT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn group() -> Pid {
        Pid::from_raw(100).unwrap()
    }

    /// The numbers of the members in a table.
    fn members(processes: &AttemptProcesses, table: Vec<Process>) -> Vec<i32> {
        let table = ProcessTable { processes: table };
        let mut found: Vec<i32> = processes
            .members(&table)
            .iter()
            .map(|process| process.pid)
            .collect();
        found.sort();
        found
    }

    fn of_group(pid: i32, group: i32, start: u64) -> Process {
        Process::for_test(pid, 1, group, start, None)
    }

    #[test]
    fn the_group_and_the_key_make_a_member() {
        let processes = AttemptProcesses::new(KEY.into(), group());
        let table = vec![
            of_group(100, 100, 50),
            of_group(101, 100, 51),
            of_group(102, 102, 51),
            Process::for_test(103, 1, 103, 52, Some(KEY)),
            Process::for_test(104, 1, 104, 52, Some("another")),
        ];
        assert_eq!(members(&processes, table), [100, 101, 103]);
    }

    #[test]
    fn zombies_process_1_and_older_processes_are_no_members() {
        let processes = AttemptProcesses::new(KEY.into(), group());
        let mut leader = of_group(100, 100, 50);
        leader.is_zombie = true;
        let table = vec![
            leader,
            Process::for_test(1, 0, 1, 50, Some(KEY)),
            Process::for_test(99, 1, 99, 49, Some(KEY)),
            of_group(101, 100, 50),
        ];
        assert_eq!(members(&processes, table), [101]);
    }

    #[test]
    fn descendants_of_a_live_member_are_members() {
        let own = std::process::id() as i32;
        let table = ProcessTable::read().unwrap();
        let this = table.processes.iter().find(|it| it.pid == own).unwrap();
        // The parent of this process stands for a member: it lives, and it has a child.
        let parent = table.processes.iter().find(|it| it.pid == this.parent);
        let parent = parent.unwrap();
        let mut processes = AttemptProcesses::of_dead_agent(KEY.into(), None);
        processes.signaled.insert((parent.pid, parent.start));
        let as_found = |it: &Process| Process::for_test(it.pid, 1, it.group, it.start, None);
        let child = Process::for_test(9_999_999, parent.pid, 9, parent.start + 1, None);
        let grandchild = Process::for_test(9_999_998, 9_999_999, 9, parent.start + 2, None);
        let found = members(&processes, vec![as_found(parent), child, grandchild]);
        // The grandchild's parent cannot be looked at again: there is no such process.
        assert_eq!(found, [parent.pid, 9_999_999]);
    }

    #[test]
    fn a_number_that_was_given_to_another_process_is_no_member() {
        let mut processes = AttemptProcesses::of_dead_agent(KEY.into(), Some(group()));
        let now = now_in_ticks();
        let later = now + 1_000;
        let table = || vec![of_group(100, 100, later), of_group(101, 101, now)];
        assert_eq!(members(&processes, table()), [0; 0]);
        processes.looked = true;
        processes.signaled = HashSet::from([(100, now), (101, now)]);
        assert_eq!(members(&processes, table()), [101]);
    }

    #[test]
    fn a_group_with_a_known_member_is_still_the_same() {
        let mut processes = AttemptProcesses::of_dead_agent(KEY.into(), Some(group()));
        processes.looked = true;
        processes.signaled = HashSet::from([(101, 51)]);
        let table = vec![of_group(101, 100, 51), of_group(105, 100, u64::MAX)];
        assert_eq!(members(&processes, table), [101, 105]);
    }
}
