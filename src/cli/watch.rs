//! `-w`: shows something again and again, until Ctrl-C.

use super::Failure;
use super::terminal::{OutputStyle, is_dumb};
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

/// How often it is shown; nobody reads faster.
const PERIOD: Duration = Duration::from_secs(2);
/// Moves to the top left corner; clears everything below the cursor; clears the rest of a line.
const HOME: &str = "\x1b[H";
const CLEAR_BELOW: &str = "\x1b[J";
const CLEAR_LINE_END: &str = "\x1b[K\n";

/// Shows what `render` writes: once, or with `again` until the process is ended.
pub fn show(
    again: bool,
    mut render: impl FnMut(&mut Vec<u8>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let style = OutputStyle::of(&io::stdout());
    let in_place = again && style.is_terminal && !is_dumb();
    let mut is_first = true;
    loop {
        let mut bytes = Vec::new();
        render(&mut bytes)?;
        let mut out = io::stdout().lock();
        if in_place {
            // Overwrite the old text. Clearing the screen first would flicker.
            let text = String::from_utf8_lossy(&bytes).replace('\n', CLEAR_LINE_END);
            write!(out, "{HOME}{text}{CLEAR_BELOW}")?;
        } else {
            if !is_first {
                writeln!(out)?;
            }
            out.write_all(&bytes)?;
        }
        out.flush()?;
        drop(out);
        if !again {
            return Ok(());
        }
        is_first = false;
        thread::sleep(PERIOD);
    }
}
