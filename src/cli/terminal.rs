//! What the terminal can show: how wide it is, whether colours are wanted, how wide a text is on it,
//! and how to make a text sanitize.

use rustix::termios::tcgetwinsize;
use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::os::fd::AsFd;

/// The width when a terminal does not tell, in columns.
const DEFAULT_WIDTH: usize = 80;
/// Narrower than this nothing can be shown; then lines are wrapped by the terminal.
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
    /// The others tell labels apart.
    Magenta = 35,
    /// See above.
    Cyan = 36,
    /// For what is less important.
    Faint = 2,
}

/// Where something is written to.
#[derive(Debug, Clone, Copy)]
pub struct OutputStyle {
    /// Somebody looks at it.
    pub is_terminal: bool,
    /// Colours are wanted.
    pub has_colour: bool,
}

impl OutputStyle {
    /// Finds out about an output. Colours only on a terminal, and not with `NO_COLOR`.
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

/// Whether the terminal cannot go back in a line.
pub fn is_dumb() -> bool {
    env::var_os("TERM").is_some_and(|term| term == "dumb")
}

/// The width of a terminal in columns; none of what is not one.
pub fn width(output: &(impl IsTerminal + AsFd)) -> Option<usize> {
    let known = output.is_terminal().then(|| tcgetwinsize(output).ok());
    let columns = known?.map_or(0, |size| usize::from(size.ws_col));
    Some(match columns {
        0 => DEFAULT_WIDTH,
        columns => columns.max(MIN_WIDTH),
    })
}

/// How many columns a character takes. The wide ones of East Asia and emoji take two, those that go
/// on top of another take none: the blocks that matter, not all of Unicode's table.
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

/// A text truncate to so many display_width, with `…` at its end when something was truncate off.
pub fn truncate(text: &str, width: usize) -> String {
    if display_width(text) <= width {
        return text.to_owned();
    }
    let mut taken = 0;
    let mut short: String = { text.chars() }
        .take_while(|c| {
            taken += char_width(*c);
            taken < width
        })
        .collect();
    short.push('…');
    short
}

/// A text in one line, without anything that a terminal would obey: names and labels come from the
/// network.
pub fn sanitize(text: &str) -> String {
    let plain = |c: char| if is_obeyed(c) { '\u{FFFD}' } else { c };
    text.chars().map(plain).collect()
}

/// A line of output of one of several machines, fit to stand behind its label: tabs and colours
/// stay, all else that a terminal would obey (and could change other machines' lines with) shows.
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
            c if is_obeyed(c) => tamed.push('\u{FFFD}'),
            c => tamed.push(c),
        }
        rest = &rest[c.len_utf8()..];
    }
    tamed
}

/// How many bytes at the beginning of a text choose a colour.
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

fn is_obeyed(c: char) -> bool {
    // Directions of writing can make a text look like another.
    c.is_control() || matches!(c as u32, 0x200E..=0x200F | 0x202A..=0x202E | 0x2066..=0x2069)
}

/// Somebody who can be asked: the terminal, whatever standard input and output are.
pub struct Prompt(File);

impl Prompt {
    /// Finds somebody; nobody when errors do not go to a terminal.
    pub fn open() -> Option<Prompt> {
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty");
        terminal
            .ok()
            .filter(|_| io::stderr().is_terminal())
            .map(Prompt)
    }

    /// Asks, and waits for a line. Nothing when there is none.
    pub fn ask(&mut self, question: &str) -> String {
        let asked = self.0.write_all(question.as_bytes());
        let mut line = String::new();
        if asked.is_ok() {
            // A line that cannot be read is no answer.
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
