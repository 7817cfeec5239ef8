//! How much may be kept, and how large the texts may be that come in.
//!
//! All of it is set by whoever runs the server. What was accepted under larger limits stays: they
//! hold for what comes in.

/// How much may be kept.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Finished tasks; the oldest go first.
    pub tasks: usize,
    /// Executions that have not ended; also unfinished tasks, and executions of finished tasks.
    pub executions: usize,
    /// Machines.
    pub machines: usize,
    /// Bytes of output in all.
    pub output_bytes: usize,
    /// Patterns known at once. Those that nothing waits for make room for new ones.
    pub patterns: usize,
    /// What comes in.
    pub texts: TextLimits,
}

/// How large the texts may be that users and agents send, in bytes.
#[derive(Debug, Clone)]
pub struct TextLimits {
    /// A pattern.
    pub pattern: usize,
    /// A pattern when it is compiled.
    pub compiled: usize,
    /// A label.
    pub label: usize,
    /// A task's name.
    pub name: usize,
}

impl Limits {
    /// Nothing is too much.
    pub const NONE: Limits = Limits {
        tasks: usize::MAX,
        executions: usize::MAX,
        machines: usize::MAX,
        output_bytes: usize::MAX,
        patterns: usize::MAX,
        texts: TextLimits {
            pattern: usize::MAX,
            compiled: usize::MAX,
            label: usize::MAX,
            name: usize::MAX,
        },
    };
}
