//! The output of one attempt: a buffer for each stream, and the order in which the two were written to.

use super::follow::EventKind;
use super::saved::SavedPiece;
use crate::head_tail_buffer::HeadTailBuffer;
use crate::wire::agent::Stream;

/// The most changes from one stream to the other that are recorded. Later bytes count as if they had been
/// written together with the last recorded ones of their stream.
const MAX_RUNS: usize = 4_096;

/// The longest line that is delivered whole, in bytes; a longer one is delivered in pieces.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// The kept output of one attempt.
#[derive(Debug, Clone, Default)]
pub struct Output {
    stdout: HeadTailBuffer,
    stderr: HeadTailBuffer,
    /// In the order of arrival: which stream was written to, and up to which offset.
    runs: Vec<(Stream, u64)>,
}

impl Output {
    /// The buffer of a stream.
    pub fn stream(&self, stream: Stream) -> &HeadTailBuffer {
        match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        }
    }

    fn stream_mut(&mut self, stream: Stream) -> &mut HeadTailBuffer {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    /// How many bytes are kept.
    pub fn kept(&self) -> usize {
        self.stdout.kept() + self.stderr.kept()
    }

    /// How many bytes are not kept.
    pub fn truncated(&self) -> u64 {
        self.stdout.truncated() + self.stderr.truncated()
    }

    /// Adds a piece; bytes that are known already are skipped.
    pub fn write(&mut self, stream: Stream, offset: u64, data: &[u8]) {
        self.stream_mut(stream).write(offset, data);
        self.note_order(stream);
    }

    /// Records how far the command wrote although the bytes did not arrive.
    pub fn skip_to(&mut self, stream: Stream, end: u64) {
        self.stream_mut(stream).skip_to(end);
        self.note_order(stream);
    }

    /// The kept output as pieces in order of arrival, from which the same output can be rebuilt.
    pub fn pieces(&self) -> Vec<SavedPiece> {
        let mut pieces = Vec::new();
        let mut at = [0u64; 2];
        for (stream, upto) in &self.runs {
            let at = &mut at[*stream as usize];
            while *at < *upto {
                let most = usize::try_from(*upto - *at).unwrap_or(usize::MAX);
                let read = self
                    .stream(*stream)
                    .read(*at, most)
                    .filter(|(offset, _)| offset < upto);
                let (offset, mut data) = read.unwrap_or((*upto, Vec::new()));
                data.truncate(usize::try_from(*upto - offset).unwrap_or(usize::MAX));
                *at = offset + data.len() as u64;
                pieces.push(SavedPiece {
                    stream: *stream,
                    offset,
                    data,
                });
            }
        }
        pieces
    }

    fn note_order(&mut self, stream: Stream) {
        let end = self.stream(stream).end();
        let full = self.runs.len() >= MAX_RUNS;
        let known = self.runs.iter().rposition(|(s, _)| *s == stream);
        match known {
            Some(n) if self.runs[n].1 >= end => {}
            Some(n) if full || n + 1 == self.runs.len() => self.runs[n].1 = end,
            _ if end > 0 => self.runs.push((stream, end)),
            _ => {}
        }
    }

    /// A stream as text of about `limit` bytes, and how many bytes were left out. A line marks each place
    /// where bytes are missing.
    pub fn text(&self, stream: Stream, limit: usize) -> (String, u64) {
        let mut text = String::new();
        let missing = self.walk_stream(stream, limit, &mut |bytes| {
            text.push_str(&String::from_utf8_lossy(bytes))
        });
        (text, missing)
    }

    fn walk_stream(&self, stream: Stream, limit: usize, take: &mut dyn FnMut(&[u8])) -> u64 {
        let mut missing = 0;
        for part in self.excerpt(stream, limit) {
            match part {
                Part::Bytes(_, bytes) => take(&bytes),
                Part::Gap(n) => {
                    missing += n;
                    take(gap_line(n).as_bytes());
                }
            }
        }
        missing
    }

    /// The lines of both streams, from about `limit` bytes of each, in the order in which their ends arrived.
    pub fn lines(&self, limit: usize) -> Vec<String> {
        let mut lines = Vec::new();
        let mut streams = [Stream::Stdout, Stream::Stderr].map(|stream| LineSplitter {
            parts: self.excerpt(stream, limit),
            next: 0,
            partial: Vec::new(),
        });
        for (stream, end) in &self.runs {
            streams[*stream as usize].advance(*end, &mut lines);
        }
        for mut stream in streams {
            stream.advance(u64::MAX, &mut lines);
            if !stream.partial.is_empty() {
                lines.push(line(&stream.partial));
            }
        }
        lines
    }

    /// Passes the output after the offsets `at` (of standard output and standard error) to `give`, in order of
    /// arrival, and advances `at`. False if `room` (in bytes) was not enough for all of it.
    pub(super) fn read_from(
        &self,
        how: &ReadOptions,
        at: &mut [u64; 2],
        room: &mut usize,
        give: &mut dyn FnMut(EventKind),
    ) -> bool {
        let wanted = |stream| how.stream.is_none_or(|only| only == stream);
        for (stream, end) in self.runs.iter().filter(|(stream, _)| wanted(*stream)) {
            let (buffer, at) = (self.stream(*stream), &mut at[*stream as usize]);
            while *at < *end {
                let most = usize::try_from(*end - *at).unwrap_or(usize::MAX);
                let wanted = most.min(*room).min(MAX_LINE_BYTES);
                let (from, mut bytes) = read_across(buffer, *at, wanted);
                if from > *at {
                    give(EventKind::Gap(*stream, *at, from));
                    *at = from;
                    continue;
                }
                let is_last = how.ended && from + bytes.len() as u64 == buffer.end();
                let before_gap = bytes.len() < wanted;
                bytes.truncate(how.complete(&bytes, is_last || before_gap));
                if bytes.is_empty() {
                    if *room < MAX_LINE_BYTES && most > *room {
                        return false;
                    }
                    break;
                }
                *room = room.saturating_sub(bytes.len());
                *at += bytes.len() as u64;
                give(EventKind::Output(*stream, from, bytes));
            }
        }
        true
    }

    /// The next lines of complete output after the offsets `at`, of one stream or of both in order of arrival, and
    /// whether that is all. About `room` bytes, which must be more than the longest line that is delivered whole.
    pub fn next_lines(
        &self,
        only: Option<Stream>,
        at: &mut [u64; 2],
        mut room: usize,
    ) -> (Vec<EventKind>, bool) {
        let how = ReadOptions {
            stream: only,
            whole_lines: true,
            ended: true,
        };
        let mut events = Vec::new();
        let is_all = self.read_from(&how, at, &mut room, &mut |event| events.push(event));
        (events, is_all)
    }

    /// The kept bytes and the gaps of a stream, cut to about `limit` bytes by leaving out more of the middle.
    fn excerpt(&self, stream: Stream, limit: usize) -> Vec<Part> {
        let buffer = self.stream(stream);
        let (front, back) = if buffer.kept() <= limit {
            (u64::MAX, 0)
        } else {
            (limit as u64 / 2, limit as u64 / 2)
        };
        let mut parts: Vec<Part> = Vec::new();
        let mut at = 0;
        while at < buffer.end() {
            let from = if at >= front {
                at.max(buffer.end() - back)
            } else {
                at
            };
            let most = usize::try_from(front.saturating_sub(from)).unwrap_or(usize::MAX);
            let most = if from >= front { usize::MAX } else { most };
            let (offset, bytes) = buffer
                .read(from, most)
                .unwrap_or((buffer.end(), Vec::new()));
            if offset > at {
                parts.push(Part::Gap(offset - at));
            }
            at = offset + bytes.len() as u64;
            if !bytes.is_empty() {
                parts.push(Part::Bytes(offset, bytes));
            }
        }
        parts
    }
}

/// The offset of the first kept byte at or after `offset`, and up to `max` bytes from there. Reads across the
/// boundary of the buffer's head and tail if nothing is missing between them.
fn read_across(buffer: &HeadTailBuffer, offset: u64, max: usize) -> (u64, Vec<u8>) {
    let (from, mut bytes) = buffer
        .read(offset, max)
        .unwrap_or((buffer.end(), Vec::new()));
    let end = from + bytes.len() as u64;
    if bytes.len() < max
        && let Some((next, more)) = buffer.read(end, max - bytes.len())
        && next == end
    {
        bytes.extend(more);
    }
    (from, bytes)
}

/// How output is read.
#[derive(Debug, Default)]
pub(super) struct ReadOptions {
    /// Only this stream.
    pub stream: Option<Stream>,
    /// Only whole lines; an unfinished one is read later.
    pub whole_lines: bool,
    /// The output is complete.
    pub ended: bool,
}

impl ReadOptions {
    /// How many of these bytes can be delivered: no part of an unfinished line or of a character.
    fn complete(&self, bytes: &[u8], is_last: bool) -> usize {
        if is_last || (self.whole_lines && bytes.len() >= MAX_LINE_BYTES) {
            return bytes.len();
        }
        if self.whole_lines {
            let end = bytes.iter().rposition(|b| *b == b'\n');
            return end.map_or(0, |at| at + 1);
        }
        // An incomplete character is one to three bytes at the end. The upper bits of its first byte give
        // its length.
        let begins = |back: &usize| bytes.len() >= *back && bytes[bytes.len() - back] >= 0xC0;
        match (1..=3).find(begins) {
            Some(back) if (bytes[bytes.len() - back].leading_ones() as usize) > back => {
                bytes.len() - back
            }
            _ => bytes.len(),
        }
    }
}

/// The line that marks a place where bytes are missing.
pub fn gap_line(bytes: u64) -> String {
    format!("\n… {bytes} bytes left out …\n")
}

enum Part {
    Bytes(u64, Vec<u8>),
    Gap(u64),
}

/// Splits a stream into lines.
struct LineSplitter {
    parts: Vec<Part>,
    next: usize,
    partial: Vec<u8>,
}

impl LineSplitter {
    /// Emits the lines that end before this offset.
    fn advance(&mut self, end: u64, lines: &mut Vec<String>) {
        while let Some(part) = self.parts.get_mut(self.next) {
            let taken = match part {
                Part::Gap(n) => gap_line(*n).into_bytes(),
                Part::Bytes(offset, _) if *offset >= end => return,
                Part::Bytes(offset, bytes) => {
                    let known = usize::try_from(end - *offset)
                        .unwrap_or(usize::MAX)
                        .min(bytes.len());
                    if known < bytes.len() {
                        let rest = bytes.split_off(known);
                        *offset += known as u64;
                        let front = std::mem::replace(bytes, rest);
                        self.split(&front, lines);
                        return;
                    }
                    std::mem::take(bytes)
                }
            };
            self.next += 1;
            self.split(&taken, lines);
        }
    }

    fn split(&mut self, bytes: &[u8], lines: &mut Vec<String>) {
        let mut pieces = bytes.split(|b| *b == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            self.partial.extend_from_slice(piece);
            if pieces.peek().is_some() {
                lines.push(line(&self.partial));
                self.partial.clear();
            }
        }
    }
}

fn line(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(b"\r").unwrap_or(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use Stream::{Stderr, Stdout};

    #[test]
    fn lines_come_in_the_order_of_their_ends() {
        let mut output = Output::default();
        output.write(Stdout, 0, b"one\ntw");
        output.write(Stderr, 0, b"oops\n");
        output.write(Stdout, 6, b"o\n");
        output.write(Stdout, 6, b"o\n");
        assert_eq!(output.lines(1000), ["one", "oops", "two"]);
        assert_eq!(output.text(Stdout, 1000), ("one\ntwo\n".into(), 0));
    }

    #[test]
    fn a_cut_leaves_out_the_middle_and_says_so() {
        let mut output = Output::default();
        output.write(Stdout, 0, &[b'x'; 1000]);
        let (text, missing) = output.text(Stdout, 100);
        assert_eq!(missing, 900);
        assert_eq!(
            text,
            format!(
                "{}\n… 900 bytes left out …\n{}",
                "x".repeat(50),
                "x".repeat(50)
            )
        );
        output.skip_to(Stdout, 5000);
        assert_eq!(output.text(Stdout, 10_000).1, 4000);
        assert_eq!(output.lines(100).len(), 2);
    }

    #[test]
    fn alternating_streams_stay_bounded() {
        let mut output = Output::default();
        for n in 0..20_000u64 {
            output.write(Stdout, n, b"a");
            output.write(Stderr, n, b"b");
        }
        assert!(output.runs.len() <= MAX_RUNS);
        assert_eq!(output.lines(100_000).concat().len(), 40_000);
    }
}
