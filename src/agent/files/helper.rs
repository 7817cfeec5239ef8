//! The helper's program: reads one job from standard input, does it, and says on standard output how it goes.
//!
//! The pipe to its standard input stays open as long as the agent wants the work done.

use super::job::{HelperJob, Said, Work};
use super::{lay, removal, temporary, upload};
use crate::agent::update::image;
use crate::client::Client;
use std::io::{BufRead, BufReader, Read, Write};

/// The hidden program of the command line.
pub const PROGRAM: &str = "agent-files";
/// The longest job, in bytes: one that names each of the 100,000 entries of an archive that are to be removed.
const MAX_JOB_BYTES: u64 = 256 << 20;

/// Does what standard input says. Whether it succeeded.
pub fn run() -> bool {
    let done = read_job().and_then(|job| {
        std::thread::Builder::new()
            .name("agent".into())
            .spawn(watch_agent)
            .map_err(|why| format!("files: no thread is left: {why}"))?;
        work(job)
    });
    let succeeded = done.is_ok();
    say(&match done {
        Ok(()) => Said::Done,
        Err(why) => Said::Failed { why },
    });
    succeeded
}

fn read_job() -> Result<HelperJob, String> {
    let mut line = Vec::new();
    let mut stdin = BufReader::new(std::io::stdin().lock()).take(MAX_JOB_BYTES);
    let read = stdin.read_until(b'\n', &mut line);
    read.map_err(|why| format!("files: the job cannot be read: {why}"))?;
    serde_json::from_slice(&line).map_err(|why| format!("files: the job is not understood: {why}"))
}

/// Ends this process when the agent closes the pipe, or is gone.
fn watch_agent() {
    // Nothing more comes.
    let _ = std::io::stdin().lock().read(&mut [0]);
    temporary::remove_all_and_exit();
}

fn work(job: HelperJob) -> Result<(), String> {
    let client = || {
        let client = job.destination.clone().client(Client::for_files);
        client.map_err(|why| format!("files: {why}"))
    };
    match &job.work {
        Work::Lay(files) => lay::lay(&job, files, &client()?, &say),
        Work::Fetch {
            execution,
            attempt,
            files,
        } => upload::hand_back(&job, execution, *attempt, files, &client()?, &say),
        Work::Remove(made) => removal::remove(&job, made),
        Work::Image(wanted) => image::lay(&job, wanted, &client()?, &say),
    }
}

fn say(said: &Said) {
    let Ok(mut line) = serde_json::to_vec(said) else {
        return;
    };
    line.push(b'\n');
    // Where nobody hears it, the pipe to standard input is closed, too.
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
}
