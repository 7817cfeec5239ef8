//! What is kept of one stream of a command: the first [`HEAD_BYTES`] and the last [`TAIL_BYTES`].
//!
//! The agent keeps a tape until the server has taken it, the server keeps one per stream. Every
//! byte has an offset, counted as the command wrote it, so pieces can be repeated and the middle
//! dropped on either side without the two disagreeing about what stands where.

use std::collections::VecDeque;

/// Kept from the beginning of a stream, in bytes: how a command started explains most failures.
pub const HEAD_BYTES: usize = 256 * 1024;
/// Kept from the end of a stream, in bytes: how it ended explains the rest.
pub const TAIL_BYTES: usize = 768 * 1024;

/// The kept bytes of one stream.
#[derive(Debug, Clone, Default)]
pub struct Tape {
    /// Bytes from offset 0 on.
    head: Vec<u8>,
    /// Bytes from `tail_start` on, up to `end`.
    tail: VecDeque<u8>,
    tail_start: u64,
    end: u64,
}

impl Tape {
    /// How many bytes the command has written, as far as is known.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many bytes are kept.
    pub fn kept(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// How many bytes are missing.
    pub fn truncated(&self) -> u64 {
        self.end - self.kept() as u64
    }

    /// Adds what the command wrote next.
    pub fn append(&mut self, data: &[u8]) {
        self.write(self.end, data);
    }

    /// Adds a piece that begins at `offset`. What is known already is skipped; a gap before it is
    /// counted as missing.
    pub fn write(&mut self, offset: u64, mut data: &[u8]) {
        if offset < self.end {
            let known = (self.end - offset).min(data.len() as u64) as usize;
            data = &data[known..];
        } else if offset > self.end {
            self.skip_to(offset);
        }
        if self.head.len() as u64 == self.end {
            let taken = data.len().min(HEAD_BYTES - self.head.len());
            self.head.extend_from_slice(&data[..taken]);
            self.end += taken as u64;
            data = &data[taken..];
        }
        if data.is_empty() {
            return;
        }
        if self.tail.is_empty() {
            self.tail_start = self.end;
        }
        self.end += data.len() as u64;
        let data = &data[data.len().saturating_sub(TAIL_BYTES)..];
        let excess = (self.tail.len() + data.len()).saturating_sub(TAIL_BYTES);
        self.tail.drain(..excess);
        self.tail.extend(data);
        self.tail_start = self.end - self.tail.len() as u64;
    }

    /// Notes that the command has written up to `end`, though the bytes did not come. The tail is
    /// the *last* bytes, so one that is no longer last is dropped.
    pub fn skip_to(&mut self, end: u64) {
        if end > self.end {
            self.tail = VecDeque::new();
            self.end = end;
            self.tail_start = end;
        }
    }

    /// The first kept byte at or after `offset`, and up to `max` bytes from there without a gap.
    /// `None` when nothing is kept there.
    pub fn read(&self, offset: u64, max: usize) -> Option<(u64, Vec<u8>)> {
        if offset < self.head.len() as u64 {
            let from = offset as usize;
            let to = self.head.len().min(from.saturating_add(max));
            return Some((offset, self.head[from..to].to_vec()));
        }
        let offset = offset.max(self.tail_start);
        if self.tail.is_empty() || offset >= self.end {
            return None;
        }
        let from = (offset - self.tail_start) as usize;
        let to = self.tail.len().min(from.saturating_add(max));
        Some((offset, self.tail.range(from..to).copied().collect()))
    }

    /// Drops everything before `offset` from memory; its place stays counted.
    pub fn forget_before(&mut self, offset: u64) {
        if offset >= self.head.len() as u64
            && !self.head.is_empty()
            && self.head.len() as u64 != self.end
        {
            self.head = Vec::new();
        }
        if offset > self.tail_start {
            let gone = ((offset - self.tail_start) as usize).min(self.tail.len());
            self.tail.drain(..gone);
            self.tail_start += gone as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(tape: &Tape) -> Vec<(u64, Vec<u8>)> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some((offset, data)) = tape.read(at, usize::MAX) {
            at = offset + data.len() as u64;
            pieces.push((offset, data));
        }
        pieces
    }

    #[test]
    fn keeps_head_and_tail() {
        let mut tape = Tape::default();
        let whole: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        for piece in whole.chunks(70_001) {
            tape.append(piece);
        }
        assert_eq!(tape.end(), 3_000_000);
        assert_eq!(
            tape.truncated(),
            3_000_000 - (HEAD_BYTES + TAIL_BYTES) as u64
        );
        for (offset, data) in all(&tape) {
            assert_eq!(data, whole[offset as usize..offset as usize + data.len()]);
        }
    }

    #[test]
    fn repeated_and_overlapping_pieces_do_no_harm() {
        let mut tape = Tape::default();
        tape.write(0, b"hello ");
        tape.write(0, b"hello ");
        tape.write(3, b"lo world");
        tape.write(2, b"llo");
        assert_eq!(all(&tape), vec![(0, b"hello world".to_vec())]);
        assert_eq!(tape.truncated(), 0);
    }

    #[test]
    fn a_gap_is_counted_as_missing() {
        let mut tape = Tape::default();
        tape.write(0, b"ab");
        tape.write(10, b"cd");
        assert_eq!(all(&tape), vec![(0, b"ab".to_vec()), (10, b"cd".to_vec())]);
        assert_eq!((tape.end(), tape.truncated()), (12, 8));
        tape.skip_to(20);
        assert_eq!(tape.truncated(), 18);
    }
}
