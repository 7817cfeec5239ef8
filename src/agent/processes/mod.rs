//! Processes beside the commands' own: what ends them, and the helpers of the agent.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `termination` | the steps of ending a process tree, without processes |
//! | `attempt_processes` | finding all processes of an attempt, and sending them signals |
//! | `process_table` | the processes of this machine, from /proc |
//! | `guard/` | the process that ends and undoes the commands of an agent that was killed |
//! | `pipe_drain` | the pipes of background processes that outlive their command, in the guard |
//! | `inheritance` | what commands must not inherit from the agent's own parent |
//! | `out_of_memory` | which processes the system kills when memory runs out |
//! | `init` | the duties of process 1 |

pub(super) mod attempt_processes;
pub mod guard;
pub(super) mod inheritance;
pub(super) mod init;
pub(super) mod out_of_memory;
mod pipe_drain;
pub(super) mod process_table;
pub(super) mod termination;
