//! Processes beside the commands' own: what ends them, and the helpers of the agent.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `termination` | the steps of ending a process tree, without processes |
//! | `process_group` | the process group of a command: signals, and whether it is dead |
//! | `guard` | the process that ends the commands of an agent that was killed |
//! | `init` | the duties of process 1 |

pub mod guard;
pub(super) mod init;
pub(super) mod process_group;
pub(super) mod termination;
