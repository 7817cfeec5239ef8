//! One command: whether it is allowed, how it is started, and how it is watched until it has ended.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `runner` | starting a command: which program, where, with which environment |
//! | `launch` | starting programs; the only file that calls `process::Command::new` |
//! | `program` | a program that only has to be started, as data |
//! | `lookup` | looking at files where that can be left alone |
//! | `path_lookup` | finding a program on a PATH |
//! | `start_failure` | why a program could not be started |
//! | `start_watch` | starts that do not return |
//! | `script` | the script that a task brings along |
//! | `undo_plan` | what belongs to an undo, as data |
//! | `user` | the user that a command runs as |
//! | `output_pipes` | the pipes of its output |
//! | `policy` | what the owner of this machine allows |
//! | `supervisor` | output, input, time-out and end of a command that runs |
//! | `orphaned_pipes` | handing the pipes of background processes that outlive their command to the guard |
//! | `survivors` | reaping commands that survived KILL |

pub(super) mod launch;
mod lookup;
pub(super) mod orphaned_pipes;
mod output_pipes;
pub(crate) mod path_lookup;
pub(super) mod policy;
pub(super) mod program;
pub(super) mod runner;
pub(super) mod script;
mod start_failure;
pub(super) mod start_watch;
pub(super) mod supervisor;
mod survivors;
mod undo_plan;
mod user;
