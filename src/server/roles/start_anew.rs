//! A process that has lost the lead executes itself: nothing that it has in memory is true any more, and every connection
//! has to be closed. What is loaded later cannot get mixed up with it, as it could in a process that goes on.

use crate::server::log_queue;
use log::error;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// This program, even if its file was replaced since.
const PROGRAM: &str = "/proc/self/exe";
/// The exit code where that does not work: try again (EX_TEMPFAIL), which a supervisor of processes does.
const TRY_AGAIN: i32 = 75;

/// Starts this process anew, with its arguments and its environment. All its sockets and files are closed by that.
pub fn start_anew() -> ! {
    log_queue::flush();
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| PROGRAM.into());
    let why = Command::new(PROGRAM).arg0(name).args(arguments).exec();
    error!("{PROGRAM} cannot be executed ({why}): ends with {TRY_AGAIN}, start this server again");
    log_queue::flush();
    std::process::exit(TRY_AGAIN)
}
