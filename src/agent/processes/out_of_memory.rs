//! Memory that runs out: commands are killed before the agent, and a kill by the system is recognized.

use log::debug;
use rustix::process::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// How much more likely than the agent a command is to be killed, in units of `oom_score_adj`: thousandths of the
/// machine's memory. The agent needs less than a hundredth.
const RAISED_BY: i32 = 100;
/// The highest `oom_score_adj`.
const MAX_SCORE: i32 = 1_000;
/// Where Linux mounts control groups: of version 2, beside version 1, and of version 1.
const ROOTS: [(&str, &str, &str); 3] = [
    ("", "/sys/fs/cgroup", "memory.events"),
    ("", "/sys/fs/cgroup/unified", "memory.events"),
    ("memory", "/sys/fs/cgroup/memory", "memory.oom_control"),
];
/// The counter of the whole machine, where there are no control groups.
const WHOLE_MACHINE: &str = "/proc/vmstat";

/// The score of commands. One that protects the agent (below 0) is not inherited.
static COMMAND_SCORE: LazyLock<i32> = LazyLock::new(|| {
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let own: i32 = own.trim().parse().unwrap_or(0);
    (own.max(0) + RAISED_BY).min(MAX_SCORE)
});

/// The file with the counter of processes killed for lack of memory; none where the system has none.
static COUNTER: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mut files = candidates(&groups).into_iter();
    files.find(|file| read_counter(file).is_some())
});

/// Has the system kill a command before the agent. Without the permission it stays as likely.
pub fn prefer_as_victim(command: Pid) {
    let file = format!("/proc/{}/oom_score_adj", command.as_raw_nonzero());
    if let Err(why) = fs::write(file, COMMAND_SCORE.to_string()) {
        debug!("a command is as likely to be killed for lack of memory as the agent: {why}");
    }
}

/// How many processes the system has killed for lack of memory in the agent's control group, or on the machine.
pub fn kills() -> Option<u64> {
    read_counter(COUNTER.as_deref()?)
}

fn read_counter(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let number = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    number?.trim().parse().ok()
}

/// The files that may have the counter, for the content of `/proc/self/cgroup`. In a container its path may be that
/// outside, so the root is looked at too.
fn candidates(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for (controller, root, name) in ROOTS {
        let path = groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let is_it = controllers.split(',').any(|word| word == controller);
            is_it.then_some(path)
        });
        let folders = path.into_iter().chain(path.map(|_| ""));
        files.extend(folders.map(|folder| Path::new(&format!("{root}{folder}")).join(name)));
    }
    files.push(WHOLE_MACHINE.into());
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_looked_for_in_the_own_group_first() {
        let files = |groups: &str| {
            let files = candidates(groups).into_iter();
            files
                .map(|file| file.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            files("0::/system.slice/sidebike.service\n")[..2],
            [
                "/sys/fs/cgroup/system.slice/sidebike.service/memory.events",
                "/sys/fs/cgroup/memory.events"
            ]
        );
        assert_eq!(
            files("5:cpu,cpuacct:/x\n4:memory:/y/z\n"),
            [
                "/sys/fs/cgroup/memory/y/z/memory.oom_control",
                "/sys/fs/cgroup/memory/memory.oom_control",
                "/proc/vmstat"
            ]
        );
    }
}
