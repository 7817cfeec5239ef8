//! The guard: a small process that ends the commands of an agent that was killed, and undoes what they did.
//!
//! `kill -9` gives an agent no chance to end its commands. So the agent starts a guard, and tells it over a pipe which
//! attempts there are. When the pipe ends, the agent is gone, and the guard ends the processes of the attempts that are
//! still listed. After a clean end none is listed.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `record` | what agent and guard tell each other, as records with a length |
//! | `client` | the agent's end: what it tells the guard. A guard that does not answer must not block it |
//! | `connection` | what the agent knows of its guard, and what another guard has to be told |
//! | `unsent` | orders that the pipe did not take |
//! | `watcher` | the agent's thread that reads answers, and has a guard that is gone replaced |
//! | `process` | the guard itself: reads orders, answers, watches |
//! | `watch` | when the guard acts although the agent lives. No process, no clock |
//! | `ending` | ending the processes of attempts |
//! | `settle` | ending and undoing one attempt in place of the agent |
//! | `report` | telling the server: the program that the guard starts for that |
//!
//! Orders come on the guard's standard input. Its standard output is a socket: answers go there, and the agent hands
//! over the pipes of background processes by it, see [`super::pipe_drain`]. The guard drains them as long as there are
//! any, whether the agent lives or not.
//!
//! | order | what it means | answer |
//! | --- | --- | --- |
//! | `Add` | an attempt with this key is about to be started; is to end with the agent | |
//! | `SetGroup` | its command runs in this process group | |
//! | `Remove` | it is over. What it left in the background is to live on | |
//! | `ReportTo` | the server, and the token | |
//! | `Arm` | what this attempt does is to be undone, here is how | `Armed` or `Refused` |
//! | `Output` | the beginning of its command's standard output | |
//! | `Undoing` | its processes have ended, the agent itself undoes it; repeated every second | |
//! | `Ended` | why, and the exit code of the command | |
//! | `Contact` | the server was heard of; while something is armed, once a second at most | |
//! | `Disarm` | it is settled | |
//!
//! The guard keeps a copy of everything that an undo needs, and asks nobody. It acts on an armed attempt when the agent
//! is gone, when its deadline is over, when the server was not heard of for too long, or when the agent began to undo
//! and fell silent (`watch`). If the agent lives it is told by `TakenOver`, and by `Undone` at the end.
//!
//! While nothing is armed it reads what has come every 100 ms at most, and sleeps if nothing comes. The agent wakes it
//! with a signal when an undo is to be armed.

mod client;
mod connection;
mod ending;
mod process;
pub mod record;
pub mod report;
mod settle;
mod unsent;
mod watch;
mod watcher;

pub use client::{Guard, Loss};
pub use ending::end_present;
pub use process::run;

use rustix::process::Signal;

/// The hidden program of the command line.
pub const PROGRAM: &str = "agent-guard";
/// Interrupts the guard's pause between two reads. A guard that does not handle it yet ignores it.
const WAKE_SIGNAL: Signal = Signal::URG;
