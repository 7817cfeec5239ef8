//! The output of one command, until the server has taken it.
//!
//! Two buffers keep the bytes, a list of runs keeps the order in which the bytes of the two streams came.
//! Only [`OutputLog::taken`] frees memory, so a lost request is repeated by asking for the pieces again.

use crate::head_tail_buffer::HeadTailBuffer;
use crate::wire::agent::Stream;
use std::collections::VecDeque;

/// Runs remembered, in number. Beyond it the exact order of the streams is given up: a command that
/// switches streams with every byte must not cost more memory than its bytes.
const MAX_RUNS: usize = 1_000;
/// The size of a piece in a request without its data, in bytes: names, ids, offsets.
pub const PIECE_OVERHEAD: usize = 256;

/// The output of one command. Arrays are indexed by stream, standard output first.
#[derive(Debug, Default)]
pub struct OutputLog {
    buffers: [HeadTailBuffer; 2],
    taken: [u64; 2],
    /// Each entry is a stream and the offset up to which it had been written, in order of arrival.
    runs: VecDeque<(Stream, u64)>,
    dropped: bool,
}

/// The offsets up to which a request carries output, per stream.
pub type Cursor = [u64; 2];

/// Pieces for one request.
#[derive(Debug)]
pub struct Pieces {
    /// Stream, offset, bytes.
    pub pieces: Vec<(Stream, u64, Vec<u8>)>,
    /// The argument of [`OutputLog::taken`] once the server has the pieces.
    pub cursor: Cursor,
    /// Whether they are all that is left.
    pub complete: bool,
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

impl OutputLog {
    /// Adds what the command wrote next.
    pub fn append(&mut self, stream: Stream, data: &[u8]) {
        if self.dropped || data.is_empty() {
            return;
        }
        let buffer = &mut self.buffers[index(stream)];
        buffer.append(data);
        let end = buffer.end();
        let last = if self.runs.len() >= MAX_RUNS {
            self.runs.iter_mut().rev().find(|run| run.0 == stream)
        } else {
            self.runs.back_mut().filter(|run| run.0 == stream)
        };
        match last {
            Some(run) => run.1 = end,
            None => self.runs.push_back((stream, end)),
        }
    }

    /// How many bytes the command wrote, per stream.
    pub fn totals(&self) -> Cursor {
        [self.buffers[0].end(), self.buffers[1].end()]
    }

    /// How many bytes are in memory.
    pub fn kept_bytes(&self) -> usize {
        self.buffers[0].kept() + self.buffers[1].kept()
    }

    /// Whether the server has all the output.
    pub fn is_taken(&self) -> bool {
        self.runs.is_empty()
    }

    /// The next pieces, for about `room` bytes of a request.
    pub fn next(&self, mut room: usize) -> Pieces {
        let mut cursor = self.taken;
        let mut pieces = Vec::new();
        for &(stream, upto) in &self.runs {
            let at = &mut cursor[index(stream)];
            while *at < upto {
                if room <= PIECE_OVERHEAD {
                    return Pieces {
                        pieces,
                        cursor,
                        complete: false,
                    };
                }
                let max = (upto - *at).min((room - PIECE_OVERHEAD) as u64) as usize;
                match self.buffers[index(stream)].read(*at, max) {
                    Some((offset, mut data)) if offset < upto => {
                        data.truncate((upto - offset).min(max as u64) as usize);
                        *at = offset + data.len() as u64;
                        room = room.saturating_sub(PIECE_OVERHEAD + data.len());
                        pieces.push((stream, offset, data));
                    }
                    // The buffer has dropped the rest of this run.
                    _ => *at = upto,
                }
            }
        }
        Pieces {
            pieces,
            cursor,
            complete: true,
        }
    }

    /// Frees what the server has: everything up to `cursor`.
    pub fn taken(&mut self, cursor: Cursor) {
        for (stream, upto) in cursor.into_iter().enumerate() {
            self.taken[stream] = self.taken[stream].max(upto);
            self.buffers[stream].forget_before(upto);
        }
        while let Some(&(stream, upto)) = self.runs.front() {
            if upto > self.taken[index(stream)] {
                break;
            }
            self.runs.pop_front();
        }
    }

    /// Frees everything and keeps nothing from now on.
    pub fn drop_all(&mut self) {
        *self = OutputLog {
            dropped: true,
            ..OutputLog::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head_tail_buffer::{HEAD_BYTES, TAIL_BYTES};

    #[test]
    fn the_order_of_the_streams_is_kept() {
        let mut log = OutputLog::default();
        log.append(Stream::Stdout, b"one ");
        log.append(Stream::Stdout, b"two ");
        log.append(Stream::Stderr, b"oops ");
        log.append(Stream::Stdout, b"three");
        let next = log.next(10_000);
        assert!(next.complete);
        assert_eq!(
            next.pieces,
            vec![
                (Stream::Stdout, 0, b"one two ".to_vec()),
                (Stream::Stderr, 0, b"oops ".to_vec()),
                (Stream::Stdout, 8, b"three".to_vec()),
            ]
        );
        log.taken(next.cursor);
        assert!(log.is_taken() && log.next(10_000).pieces.is_empty());
        assert_eq!(log.totals(), [13, 5]);
    }

    #[test]
    fn pieces_that_were_not_taken_are_given_again() {
        let mut log = OutputLog::default();
        log.append(Stream::Stdout, &[7; 1_000]);
        let first = log.next(PIECE_OVERHEAD + 600);
        assert!(!first.complete);
        assert_eq!(first.pieces[0].2.len(), 600);
        assert_eq!(log.next(PIECE_OVERHEAD + 600).pieces, first.pieces);
        log.taken(first.cursor);
        let second = log.next(10_000);
        assert_eq!((second.pieces[0].1, second.pieces[0].2.len()), (600, 400));
        assert!(second.complete);
    }

    #[test]
    fn a_flood_keeps_head_and_tail_and_its_runs_are_bounded() {
        let mut log = OutputLog::default();
        for _ in 0..100 {
            for _ in 0..50 {
                log.append(Stream::Stdout, &[b'x'; 1_000]);
                log.append(Stream::Stderr, &[b'y'; 1]);
            }
        }
        assert!(log.runs.len() <= MAX_RUNS);
        let next = log.next(usize::MAX / 2);
        assert!(next.complete);
        let size = |stream| -> usize {
            let of = next.pieces.iter().filter(|piece| piece.0 == stream);
            of.map(|piece| piece.2.len()).sum()
        };
        assert_eq!(size(Stream::Stdout), HEAD_BYTES + TAIL_BYTES);
        assert_eq!(size(Stream::Stderr), 5_000);
        assert_eq!(next.cursor, log.totals());
        log.taken(next.cursor);
        assert!(log.is_taken());
        assert!(log.kept_bytes() <= HEAD_BYTES);
    }

    #[test]
    fn dropped_output_keeps_nothing() {
        let mut log = OutputLog::default();
        log.append(Stream::Stdout, b"one");
        log.drop_all();
        log.append(Stream::Stdout, b"two");
        assert_eq!((log.kept_bytes(), log.is_taken()), (0, true));
    }
}
