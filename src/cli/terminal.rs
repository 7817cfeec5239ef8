//! The terminal: its width, colours, the width of texts on it, texts without control characters, questions.

use rustix::termios::tcgetwinsize;
use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::os::fd::AsFd;

/// The width of a terminal that does not report one, in columns.
const DEFAULT_WIDTH: usize = 80;
/// The smallest width that is used, in columns. A narrower terminal wraps the lines.
const MIN_WIDTH: usize = 20;

/// Colours, as the numbers of their escape sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colour {
    /// For what failed.
    Red = 31,
    /// For what succeeded.
    Green = 32,
    /// For what needs attention.
    Yellow = 33,
    /// For what runs.
    Blue = 34,
    /// To tell labels apart.
    Magenta = 35,
    /// To tell labels apart.
    Cyan = 36,
    /// For what is less important.
    Faint = 2,
}

/// How to write to an output stream.
#[derive(Debug, Clone, Copy)]
pub struct OutputStyle {
    /// It is a terminal.
    pub is_terminal: bool,
    /// Colours are wanted.
    pub has_colour: bool,
}

impl OutputStyle {
    /// The style for an output stream. Colours are used on a terminal only, and not with `NO_COLOR`.
    pub fn of(output: &impl IsTerminal) -> OutputStyle {
        let is_terminal = output.is_terminal();
        let unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        OutputStyle {
            is_terminal,
            has_colour: is_terminal && !unwanted && !is_dumb(),
        }
    }

    /// A text in a colour, if colours are wanted.
    pub fn paint(&self, colour: Colour, text: &str) -> String {
        if self.has_colour {
            format!("\x1b[{}m{text}\x1b[0m", colour as u8)
        } else {
            text.to_owned()
        }
    }
}

/// Whether the terminal cannot move the cursor.
pub fn is_dumb() -> bool {
    env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// The width of a terminal in columns; `None` if this is not a terminal.
pub fn width(output: &(impl IsTerminal + AsFd)) -> Option<usize> {
    let known = output.is_terminal().then(|| tcgetwinsize(output).ok());
    let columns = known?.map_or(0, |size| usize::from(size.ws_col));
    Some(match columns {
        0 => DEFAULT_WIDTH,
        columns => columns.max(MIN_WIDTH),
    })
}

/// How many columns a character takes. East Asian characters and emoji take two, combining ones none. These
/// are the blocks that matter, not all of Unicode's table.
fn char_width(c: char) -> usize {
    match c as u32 {
        0x0300..=0x036F | 0x200B..=0x200F | 0x20D0..=0x20FF | 0xFE00..=0xFE0F => 0,
        0x1100..=0x115F
        | 0x2E80..=0xA4CF
        | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F
        | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6
        | 0x1F300..=0x1F64F
        | 0x1F680..=0x1F6FF
        | 0x1F900..=0x1F9FF
        | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

/// How many columns a text takes.
pub fn display_width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

/// A text cut to `width` columns, with `…` at its end if it was too long.
pub fn truncate(text: &str, width: usize) -> String {
    if display_width(text) <= width {
        return text.to_owned();
    }
    let mut taken = 0;
    let mut short: String = text
        .chars()
        .take_while(|c| {
            taken += char_width(*c);
            taken < width
        })
        .collect();
    short.push('…');
    short
}

/// A text as one line without control characters. Names and labels come from the network, and a terminal
/// would execute control sequences in them.
pub fn sanitize(text: &str) -> String {
    let plain = |c: char| if is_control(c) { '\u{FFFD}' } else { c };
    text.chars().map(plain).collect()
}

/// A line of output to be printed after its machine's label. Tabs and colours are kept. Other control
/// characters, which could change the lines of other machines, are replaced.
pub fn sanitize_output(line: &str) -> String {
    let line = line.strip_suffix('\r').unwrap_or(line);
    let mut tamed = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let colour = colour_sequence(rest);
        if colour > 0 {
            tamed.push_str(&rest[..colour]);
            rest = &rest[colour..];
            continue;
        }
        match c {
            '\t' => tamed.push(c),
            c if is_control(c) => tamed.push('\u{FFFD}'),
            c => tamed.push(c),
        }
        rest = &rest[c.len_utf8()..];
    }
    tamed
}

/// The length of the colour sequence at the beginning of a text, in bytes.
fn colour_sequence(text: &str) -> usize {
    let Some(numbers) = text.strip_prefix("\x1b[") else {
        return 0;
    };
    let end = numbers.find(|c: char| !c.is_ascii_digit() && c != ';');
    match end {
        Some(end) if numbers[end..].starts_with('m') => end + 3,
        _ => 0,
    }
}

fn is_control(c: char) -> bool {
    // A change of the writing direction can make one text look like another.
    c.is_control() || matches!(c as u32, 0x200E..=0x200F | 0x202A..=0x202E | 0x2066..=0x2069)
}

/// A question to the user, on the terminal, wherever stdin and stdout lead to.
pub struct Prompt(File);

impl Prompt {
    /// Opens the terminal; `None` if there is none, or if stderr is not a terminal.
    pub fn open() -> Option<Prompt> {
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty");
        terminal
            .ok()
            .filter(|_| io::stderr().is_terminal())
            .map(Prompt)
    }

    /// Asks, and waits for a line. Returns an empty answer if there is none.
    pub fn ask(&mut self, question: &str) -> String {
        let asked = self.0.write_all(question.as_bytes());
        let mut line = String::new();
        if asked.is_ok() {
            // An unreadable line counts as an empty answer.
            let _ = BufReader::new(&self.0).read_line(&mut line);
        }
        line.trim().to_lowercase()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_and_cuts() {
        assert_eq!(display_width("abc"), 3);
        assert_eq!(display_width("故障"), 4);
        assert_eq!(display_width("e\u{301}"), 1);
        assert_eq!(truncate("abcdef", 6), "abcdef");
        assert_eq!(truncate("abcdefg", 6), "abcde…");
        assert_eq!(truncate("故障注入", 6), "故障…");
    }

    #[test]
    fn what_a_terminal_would_obey_shows() {
        assert_eq!(sanitize("a\x1b[2Jb\n"), "a\u{FFFD}[2Jb\u{FFFD}");
        assert_eq!(
            sanitize_output("\x1b[31mred\x1b[0m\tx\r"),
            "\x1b[31mred\x1b[0m\tx"
        );
        assert_eq!(sanitize_output("a\x1b[1Ab\rc"), "a\u{FFFD}[1Ab\u{FFFD}c");
        assert_eq!(sanitize_output("\x1b["), "\u{FFFD}[");
    }
}
