//! The limits on what the registry keeps and on the texts it accepts; set by the server's flags.
//!
//! A lower limit after a restart applies to new tasks and machines; accepted ones stay.

/// Limits on what is kept.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Finished tasks; the oldest are forgotten first.
    pub tasks: usize,
    /// Unfinished executions. The same limit holds for unfinished tasks, for executions of finished tasks, and for ended
    /// executions of unfinished tasks.
    pub executions: usize,
    /// Machines.
    pub machines: usize,
    /// New machines from one origin within the time after which an offline machine is forgotten.
    pub new_machines: usize,
    /// Bytes of output, all executions together.
    pub output_bytes: usize,
    /// Bytes of details, all tasks together.
    pub detail_bytes: usize,
    /// Schedules.
    pub schedules: usize,
    /// Known patterns. One without waiting tasks makes room for a new one.
    pub patterns: usize,
    /// Limits on texts.
    pub texts: TextLimits,
}

/// Limits on the texts that users and agents send, in bytes.
#[derive(Debug, Clone)]
pub struct TextLimits {
    /// A pattern.
    pub pattern: usize,
    /// A compiled pattern.
    pub compiled: usize,
    /// A machine's label.
    pub label: usize,
    /// A task's name.
    pub name: usize,
}

impl Limits {
    /// No limits, to read a database whatever its server's limits were.
    pub const NONE: Limits = Limits {
        tasks: usize::MAX,
        executions: usize::MAX,
        machines: usize::MAX,
        new_machines: usize::MAX,
        output_bytes: usize::MAX,
        detail_bytes: usize::MAX,
        schedules: usize::MAX,
        patterns: usize::MAX,
        texts: TextLimits {
            pattern: usize::MAX,
            compiled: usize::MAX,
            label: usize::MAX,
            name: usize::MAX,
        },
    };
}
