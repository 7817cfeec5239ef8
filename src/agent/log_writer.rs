//! Where the agent's log goes: standard error, as long as somebody reads it.
//!
//! A pipe that nobody reads is full after 64 KiB, and a terminal can be stopped. An agent that waited for
//! them would start nothing, end nothing and be canceled by nobody. So lines that would have to wait are
//! dropped, and the next line that does not is preceded by their number.

use log::Level;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Write};
use std::time::SystemTime;

/// The longest line, in bytes: as much as a pipe that is ready takes without waiting (PIPE_BUF).
const MAX_LINE_BYTES: usize = 4_096;
/// The end of a line that was too long.
const CUT: &[u8] = b"...\n";

/// Writes whole lines to standard error.
#[derive(Debug, Default)]
pub struct LogWriter {
    /// Lines that were dropped since the last one that was written.
    dropped: u64,
}

impl Write for LogWriter {
    /// Takes one line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.dropped > 0 && is_ready() {
            let time = humantime::format_rfc3339_millis(SystemTime::now());
            let (level, count) = (Level::Warn, self.dropped);
            let missing = format!(
                "{time} {level:5} {}: {count} lines of the log are missing here: standard error was not read\n",
                module_path!()
            );
            self.dropped = 0;
            write(missing.as_bytes());
        }
        if self.dropped == 0 && is_ready() {
            write(line);
        } else {
            self.dropped += 1;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether a line can be written without waiting, or cannot be written at all.
fn is_ready() -> bool {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
    let now = Timespec::default();
    matches!(poll(&mut fds, Some(&now)), Ok(1..))
}

fn write(line: &[u8]) {
    let mut cut = Vec::new();
    let line = match line.len() > MAX_LINE_BYTES {
        false => line,
        true => {
            let text = String::from_utf8_lossy(&line[..MAX_LINE_BYTES]);
            let end = text.floor_char_boundary(MAX_LINE_BYTES - 2 * CUT.len());
            cut.extend_from_slice(&text.as_bytes()[..end]);
            cut.extend_from_slice(CUT);
            &cut
        }
    };
    // There is nobody who could be told of an error.
    let _ = rustix::io::retry_on_intr(|| rustix::io::write(io::stderr(), line));
}
