//! Ending the processes of attempts in place of the agent.

use crate::agent::command::script;
use crate::agent::processes::attempt_processes::AttemptProcesses;
use crate::agent::processes::process_table::ProcessTable;
use crate::agent::processes::termination::{KILL_TIMEOUT, ProcessTree, Progress, Termination};
use rustix::process::{Pid, Signal};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The time from TERM to KILL.
const GRACE: Duration = Duration::from_secs(5);
/// How long a command whose start was announced may take to show its key. When the agent was killed, the new
/// process may have had the agent's environment still: a program on a slow disk takes a while to be executed.
const START_TIME: Duration = Duration::from_secs(10);
/// The longest time in which processes are ended. One that is found at the end of [`START_TIME`] has its whole grace.
pub const LONGEST: Duration = START_TIME
    .saturating_add(GRACE)
    .saturating_add(KILL_TIMEOUT);
/// The pause between looks for such a command.
const START_LOOK_PERIOD: Duration = Duration::from_millis(100);

/// Attempts by their keys, with the process group of those whose command is known to have been started.
pub type Listed = HashMap<String, Option<Pid>>;

/// Ends the processes of all these attempts. A command whose group is not known may be about to be started: it is
/// waited for.
pub fn end(listed: Listed) {
    let begun = Instant::now();
    let mut ending: Vec<Ending> = listed
        .into_iter()
        .map(|(key, group)| Ending::new(key, group, begun))
        .collect();
    while !ending.is_empty() {
        let now = Instant::now();
        let mut table = SharedTable::default();
        ending.retain_mut(|one| {
            let mut tree = WithTable {
                processes: &mut one.processes,
                table: &mut table,
                found: &mut one.found,
            };
            if one.termination.step(now, &mut tree) == Progress::Pending {
                return true;
            }
            // A command that was found has been started, and there is no other.
            let may_start = one.group.is_none() && !one.found && now < begun + START_TIME;
            if may_start {
                // From the beginning: a process that was looked at may have the key by then.
                *one = Ending::new(std::mem::take(&mut one.key), None, now + START_LOOK_PERIOD);
            } else {
                script::remove_file_of(&one.key);
            }
            may_start
        });
        let steps = ending.iter().map(|one| one.termination.next_step());
        if let Some(next) = steps.min() {
            std::thread::sleep(next.saturating_duration_since(now));
        }
    }
}

/// Ends the processes that have this key now.
pub fn end_present(key: &str) {
    let mut one = Ending::new(key.to_owned(), None, Instant::now());
    while one.termination.step(Instant::now(), &mut one.processes) == Progress::Pending {
        let next = one.termination.next_step();
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    script::remove_file_of(key);
}

/// An attempt whose processes are being ended.
struct Ending {
    key: String,
    group: Option<Pid>,
    processes: AttemptProcesses,
    termination: Termination,
    /// A process of it was seen.
    found: bool,
}

impl Ending {
    /// Begins at a point in time.
    fn new(key: String, group: Option<Pid>, at: Instant) -> Self {
        Ending {
            processes: AttemptProcesses::of_dead_agent(key.clone(), group),
            termination: Termination::new(at, GRACE),
            key,
            group,
            found: false,
        }
    }
}

/// The table of processes of one round, read once for all attempts.
#[derive(Default)]
struct SharedTable(Option<Option<ProcessTable>>);

/// The processes of an attempt, looked for in the table of the round.
struct WithTable<'a> {
    processes: &'a mut AttemptProcesses,
    table: &'a mut SharedTable,
    found: &'a mut bool,
}

impl ProcessTree for WithTable<'_> {
    fn sweep(&mut self, signal: Signal) -> bool {
        let lives = match self.table.0.get_or_insert_with(ProcessTable::read) {
            Some(table) => self.processes.sweep_in(table, signal),
            None => self.processes.sweep_group(signal),
        };
        *self.found |= lives;
        lives
    }
}
