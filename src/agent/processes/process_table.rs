//! The processes of this machine, read from /proc.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use std::cell::OnceCell;
use std::fs::File;
use std::io::Read;

/// The variable that marks the processes of an attempt.
pub const KEY_VARIABLE: &str = "SIDEBIKE_KEY";
/// The longest environment that is read, in bytes: the most that Linux lets a program start with.
const MAX_ENVIRONMENT_BYTES: u64 = 6 << 20;
/// Bytes read of a line of /proc: its fields up to the start time, with the longest name.
const MAX_STAT_BYTES: usize = 1024;
/// Clock ticks per second in /proc: the same on every architecture of Linux.
const TICKS_PER_SECOND: i64 = 100;

/// The number and the start time of a process, which together belong to it alone.
pub type ProcessId = (i32, u64);

/// One process.
#[derive(Debug)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its parent's number.
    pub parent: i32,
    /// Its process group.
    pub group: i32,
    /// When it was started, in clock ticks since the machine's.
    pub start: u64,
    /// Whether it has ended and only waits to be reaped.
    pub is_zombie: bool,
    /// Whether it is stopped: it sees a signal such as TERM only after CONT.
    pub is_stopped: bool,
    /// The value of [`KEY_VARIABLE`], read when it is first asked for.
    key: OnceCell<Option<Vec<u8>>>,
}

/// All processes that this one can see.
#[derive(Debug, Default)]
pub struct ProcessTable {
    /// The processes, in no order.
    pub processes: Vec<Process>,
}

impl ProcessTable {
    /// Reads /proc. None where it is not available.
    pub fn read() -> Option<Self> {
        if !Self::is_available() {
            return None;
        }
        let mut processes = Vec::new();
        for entry in std::fs::read_dir("/proc").ok()? {
            let name = entry.ok()?.file_name();
            let pid = name.to_str().and_then(|name| name.parse().ok());
            // A process that has ended meanwhile is left out.
            processes.extend(pid.and_then(Process::read));
        }
        Some(ProcessTable { processes })
    }

    /// Whether there is a /proc, and with the numbers that this process knows.
    pub fn is_available() -> bool {
        let own = std::process::id().to_string();
        std::fs::read_link("/proc/self").is_ok_and(|linked| linked.as_os_str() == &*own)
    }
}

impl Process {
    /// Reads one.
    pub fn read(pid: i32) -> Option<Self> {
        let mut line = [0; MAX_STAT_BYTES];
        let read = read_start(&format!("/proc/{pid}/stat"), &mut line)?;
        Self::parse(pid, &String::from_utf8_lossy(&line[..read]))
    }

    /// Parses `123 (a name) S parent group …`. The name may contain anything.
    fn parse(pid: i32, stat: &str) -> Option<Self> {
        let (_, rest) = stat.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        let state = fields.next()?;
        Some(Process {
            pid,
            is_zombie: matches!(state, "Z" | "X"),
            is_stopped: state == "T",
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
            start: fields.nth(16)?.parse().ok()?,
            key: OnceCell::new(),
        })
    }

    /// Its number and its start time.
    pub fn id(&self) -> ProcessId {
        (self.pid, self.start)
    }

    /// Whether it lives: its number may have been given to another process since the table was read.
    pub fn lives(&self) -> bool {
        Process::read(self.pid).is_some_and(|now| now.start == self.start)
    }

    /// Whether its environment has this key. That cannot be read of processes of other users, and is not
    /// there in those that have overwritten their environment.
    pub fn has_key(&self, key: &str) -> bool {
        let found = self.key.get_or_init(|| {
            let file = File::open(format!("/proc/{}/environ", self.pid)).ok()?;
            let mut environment = Vec::new();
            let mut file = file.take(MAX_ENVIRONMENT_BYTES);
            file.read_to_end(&mut environment).ok()?;
            let mut variables = environment.split(|byte| *byte == 0);
            let value = variables.find_map(|variable| {
                let rest = variable.strip_prefix(KEY_VARIABLE.as_bytes())?;
                rest.strip_prefix(b"=")
            })?;
            Some(value.to_vec())
        });
        found.as_deref() == Some(key.as_bytes())
    }

    /// Whether this is the first argument it was started with.
    pub fn has_first_argument(&self, argument: &str) -> bool {
        let mut start = [0; MAX_STAT_BYTES];
        let read = read_start(&format!("/proc/{}/cmdline", self.pid), &mut start);
        let mut words = start[..read.unwrap_or(0)].split(|byte| *byte == 0);
        words.nth(1) == Some(argument.as_bytes())
    }

    /// Sends it a signal, and never to another process that got its number.
    pub fn send(&self, signal: Signal) {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return;
        };
        // The descriptor refers to whatever process has the number now. Looking at the start time after
        // that tells whether it is this one.
        // An error means that it has ended, or that this process may not send it signals.
        let _ = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) if self.lives() => pidfd_send_signal(&pidfd, signal),
            // Linux before 5.3, or no descriptor left.
            Err(Errno::NOSYS | Errno::MFILE | Errno::NFILE | Errno::NOMEM) if self.lives() => {
                kill_process(pid, signal)
            }
            Ok(_) => Err(Errno::SRCH),
            Err(why) => Err(why),
        };
    }

    /// Its name and number, for messages.
    pub fn describe(&self) -> String {
        let mut name = [0; MAX_STAT_BYTES];
        let read = read_start(&format!("/proc/{}/comm", self.pid), &mut name);
        let name = String::from_utf8_lossy(&name[..read.unwrap_or(0)]);
        format!("{} (process {})", name.trim_end().escape_debug(), self.pid)
    }
}

/// The time of the clock that start times are measured with, in clock ticks.
pub fn now_in_ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let ticks = now.tv_sec * TICKS_PER_SECOND + now.tv_nsec * TICKS_PER_SECOND / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(0)
}

/// The time of the same clock in milliseconds. It goes on while the machine is suspended, and cannot be set.
pub fn now_in_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let ms = now.tv_sec.saturating_mul(1_000) + now.tv_nsec / 1_000_000;
    u64::try_from(ms).unwrap_or(0)
}

/// Reads the start of a small file, in as few system calls as possible. How many bytes there are.
fn read_start(path: &str, bytes: &mut [u8]) -> Option<usize> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    rustix::io::read(file, bytes).ok()
}

#[cfg(test)]
impl Process {
    /// A process for tests.
    pub fn for_test(pid: i32, parent: i32, group: i32, start: u64, key: Option<&str>) -> Self {
        Process {
            pid,
            parent,
            group,
            start,
            is_zombie: false,
            is_stopped: false,
            key: OnceCell::from(key.map(|key| key.as_bytes().to_vec())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_is_parsed() {
        let line = "7 (a) b) (c) Z 1 77 5 0 -1 64 0 0 0 0 0 0 0 0 20 0 1 0 4711 8192 0";
        let process = Process::parse(7, line).unwrap();
        let fields = (process.parent, process.group, process.start);
        assert_eq!(fields, (1, 77, 4711));
        assert!(process.is_zombie && !process.is_stopped);
        assert!(
            Process::parse(7, &line.replace(" Z ", " T "))
                .unwrap()
                .is_stopped
        );
        for broken in ["", "7 (sh) S 1", "7 (sh) S 1 x"] {
            assert!(Process::parse(7, broken).is_none(), "{broken:?}");
        }
    }

    #[test]
    #[allow(unsafe_code, reason = "a group of another container has no `Pid`")]
    fn this_process_is_found() {
        let table = ProcessTable::read().unwrap();
        let own = std::process::id() as i32;
        let found = table.processes.iter().find(|it| it.pid == own).unwrap();
        assert!(found.lives() && !found.is_zombie);
        assert!(!found.has_key("no such key"));
        // SAFETY: it takes nothing and gives a number.
        assert_eq!(found.group, unsafe { libc::getpgrp() });
        let ago = now_in_ticks() - found.start;
        assert!(ago < 24 * 3600 * TICKS_PER_SECOND as u64, "{ago}");
        assert!(found.describe().ends_with(&format!("(process {own})")));
        let mut reused = Process::for_test(own, 1, 1, found.start + 1, None);
        assert!(!reused.lives());
        reused.start = found.start;
        assert!(reused.lives());
    }
}
