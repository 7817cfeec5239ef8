//! A buffer that keeps the first [`HEAD_BYTES`] and the last [`TAIL_BYTES`] of a stream of a command's output.
//!
//! The agent has one until the server has taken the output, the server has one per stream. Every byte has
//! the offset at which the command wrote it. So pieces can be sent twice, and each side can drop the
//! middle, without the two disagreeing about the position of any byte.

use std::collections::VecDeque;

/// Bytes kept from the beginning of a stream: the first output explains most failures.
pub const HEAD_BYTES: usize = 256 * 1024;
/// Bytes kept from the end of a stream: the last output explains the rest.
pub const TAIL_BYTES: usize = 768 * 1024;
/// The highest offset of a byte: 8 PiB, exact in every JSON reader. What is said to lie beyond it is a mistake or an
/// attack, and sums of it must not overflow.
pub const MAX_OFFSET: u64 = 1 << 53;

/// The first and the last bytes of one stream.
#[derive(Debug, Clone, Default)]
pub struct HeadTailBuffer {
    /// The bytes from `head_start` on, which is 0 until something is freed.
    head: Vec<u8>,
    head_start: u64,
    /// The bytes from `tail_start` to `end`.
    tail: VecDeque<u8>,
    tail_start: u64,
    end: u64,
}

impl HeadTailBuffer {
    /// How many bytes the command is known to have written.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many bytes are kept.
    pub fn kept(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// How many bytes between head and tail are not kept.
    pub fn truncated(&self) -> u64 {
        self.end - self.kept() as u64
    }

    /// Adds the next bytes of the stream.
    pub fn append(&mut self, data: &[u8]) {
        self.write(self.end, data);
    }

    /// Adds a piece that begins at `offset`. Bytes that are known already are skipped; a gap before the
    /// piece counts as truncated.
    pub fn write(&mut self, offset: u64, mut data: &[u8]) {
        if offset.saturating_add(data.len() as u64) > MAX_OFFSET {
            return;
        }
        if offset < self.end {
            let known = (self.end - offset).min(data.len() as u64) as usize;
            data = &data[known..];
        } else if offset > self.end {
            self.skip_to(offset);
        }
        let head_end = self.head_end();
        if head_end == self.end {
            let room = HEAD_BYTES.saturating_sub(head_end as usize);
            let taken = data.len().min(room);
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
        let needed = self.tail.len() + data.len();
        if needed > self.tail.capacity() {
            // Not more than ever is needed: doubled once more it would take a third more for nothing.
            let wanted = needed.max(2 * self.tail.capacity()).min(TAIL_BYTES);
            self.tail.reserve_exact(wanted - self.tail.len());
        }
        self.tail.extend(data);
        self.tail_start = self.end - self.tail.len() as u64;
    }

    /// Records that the command has written up to `end` although the bytes did not arrive. This drops the
    /// tail: it would no longer be the last bytes.
    pub fn skip_to(&mut self, end: u64) {
        let end = end.min(MAX_OFFSET);
        if end > self.end {
            self.tail = VecDeque::new();
            self.end = end;
            self.tail_start = end;
        }
    }

    /// The offset of the first kept byte at or after `offset`, and up to `max` contiguous bytes from there.
    /// `None` if nothing is kept from there on.
    pub fn read(&self, offset: u64, max: usize) -> Option<(u64, Vec<u8>)> {
        if !self.head.is_empty() && offset < self.head_end() {
            let offset = offset.max(self.head_start);
            let from = (offset - self.head_start) as usize;
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

    /// Frees the bytes before `offset`. They still count as written.
    pub fn forget_before(&mut self, offset: u64) {
        if offset > self.head_start {
            let gone = ((offset - self.head_start) as usize).min(self.head.len());
            self.head.drain(..gone);
            self.head_start += gone as u64;
        }
        if self.head.is_empty() {
            self.head = Vec::new();
        }
        if offset > self.tail_start {
            let gone = ((offset - self.tail_start) as usize).min(self.tail.len());
            self.tail.drain(..gone);
            self.tail_start += gone as u64;
        }
        if self.tail.is_empty() {
            self.tail = VecDeque::new();
        }
    }

    /// The offset after the last byte that went into the head.
    fn head_end(&self) -> u64 {
        self.head_start + self.head.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(buffer: &HeadTailBuffer) -> Vec<(u64, Vec<u8>)> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while let Some((offset, data)) = buffer.read(at, usize::MAX) {
            at = offset + data.len() as u64;
            pieces.push((offset, data));
        }
        pieces
    }

    #[test]
    fn keeps_head_and_tail() {
        let mut buffer = HeadTailBuffer::default();
        let whole: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        for piece in whole.chunks(70_001) {
            buffer.append(piece);
        }
        assert_eq!(buffer.end(), 3_000_000);
        assert_eq!(
            buffer.truncated(),
            3_000_000 - (HEAD_BYTES + TAIL_BYTES) as u64
        );
        for (offset, data) in all(&buffer) {
            assert_eq!(data, whole[offset as usize..offset as usize + data.len()]);
        }
    }

    #[test]
    fn an_offset_that_no_command_can_reach_does_no_harm() {
        let mut buffer = HeadTailBuffer::default();
        buffer.append(b"abc");
        buffer.write(u64::MAX - 1, b"xyz");
        assert_eq!(buffer.end(), 3);
        buffer.skip_to(u64::MAX);
        buffer.append(b"d");
        assert_eq!((buffer.end(), buffer.kept()), (MAX_OFFSET, 3));
    }

    #[test]
    fn repeated_and_overlapping_pieces_do_no_harm() {
        let mut buffer = HeadTailBuffer::default();
        buffer.write(0, b"hello ");
        buffer.write(0, b"hello ");
        buffer.write(3, b"lo world");
        buffer.write(2, b"llo");
        assert_eq!(all(&buffer), vec![(0, b"hello world".to_vec())]);
        assert_eq!(buffer.truncated(), 0);
    }

    #[test]
    fn a_gap_is_counted_as_missing() {
        let mut buffer = HeadTailBuffer::default();
        buffer.write(0, b"ab");
        buffer.write(10, b"cd");
        assert_eq!(
            all(&buffer),
            vec![(0, b"ab".to_vec()), (10, b"cd".to_vec())]
        );
        assert_eq!((buffer.end(), buffer.truncated()), (12, 8));
        buffer.skip_to(20);
        assert_eq!(buffer.truncated(), 18);
    }

    #[test]
    fn freed_bytes_take_no_memory_and_still_count() {
        let whole: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        for step in [1_000, 100_000, HEAD_BYTES, 2_000_000] {
            let mut buffer = HeadTailBuffer::default();
            for (n, piece) in whole.chunks(70_001).enumerate() {
                buffer.append(piece);
                let upto = buffer.end() - buffer.end() % step as u64;
                buffer.forget_before(upto);
                for (offset, data) in all(&buffer) {
                    assert!(offset >= upto, "{step}: {n}");
                    assert_eq!(data, whole[offset as usize..offset as usize + data.len()]);
                }
            }
            assert_eq!(buffer.end(), 3_000_000);
            buffer.forget_before(buffer.end());
            assert_eq!((buffer.kept(), buffer.head.capacity()), (0, 0));
            assert_eq!(buffer.tail.capacity(), 0);
        }
    }

    #[test]
    fn a_command_that_prints_little_at_a_time_keeps_nothing_that_was_freed() {
        let mut buffer = HeadTailBuffer::default();
        for n in 1..=1_000 {
            buffer.append(&[7; 1_000]);
            assert_eq!(buffer.kept(), 1_000, "{n}");
            buffer.forget_before(buffer.end());
            assert_eq!((buffer.kept(), buffer.end()), (0, n * 1_000));
        }
    }
}
