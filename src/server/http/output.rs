//! What a connection still has to write: bytes in memory, and parts of files, which the kernel copies to the socket.

use rustix::fs::sendfile;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// How much of a file is read at once where the kernel cannot send it, for instance because of TLS; in bytes.
const COPIED_BYTES: usize = 16 * 1024;

/// A part of a file, which the kernel should have in memory: nothing here should wait for a disk.
#[derive(Debug)]
pub struct FilePart {
    /// The file.
    pub file: Arc<File>,
    /// Where the part begins.
    pub at: u64,
    /// How many bytes it has. If the file ends before, the connection is broken off.
    pub bytes: usize,
}

impl FilePart {
    /// Its first bytes, `most` at most.
    pub fn read(&self, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.bytes.min(most)];
        self.file.read_exact_at(&mut bytes, self.at)?;
        Ok(bytes)
    }
}

/// One of the things to be written.
#[derive(Debug)]
pub enum Piece {
    /// Bytes in memory.
    Memory(Cow<'static, [u8]>),
    /// A part of a file.
    File(FilePart),
}

impl<T: Into<Cow<'static, [u8]>>> From<T> for Piece {
    fn from(bytes: T) -> Self {
        Piece::Memory(bytes.into())
    }
}

impl Piece {
    /// Takes away what is behind the first `most` bytes. Returns how many bytes are left.
    pub fn truncate(&mut self, most: u64) -> u64 {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        match self {
            Piece::Memory(bytes) => {
                if bytes.len() > most {
                    bytes.to_mut().truncate(most);
                }
                bytes.len() as u64
            }
            Piece::File(part) => {
                part.bytes = part.bytes.min(most);
                part.bytes as u64
            }
        }
    }
}

/// What is to be written, in order.
#[derive(Debug, Default)]
pub struct Output {
    pieces: VecDeque<Piece>,
    /// How much of the first piece is written, if that is in memory. A part of a file begins with what is not.
    written: usize,
}

impl Output {
    /// Adds a piece.
    pub fn push(&mut self, piece: impl Into<Piece>) {
        let piece = piece.into();
        let is_empty = match &piece {
            Piece::Memory(bytes) => bytes.is_empty(),
            Piece::File(part) => part.bytes == 0,
        };
        if !is_empty {
            self.pieces.push_back(piece);
        }
    }

    /// Whether everything is written.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Writes some of the first piece to a socket, of a file `most` bytes at most. Returns how many bytes went.
    pub fn send(&mut self, socket: &TcpStream, most: usize) -> rustix::io::Result<usize> {
        let sent = match self.pieces.front() {
            None => 0,
            Some(Piece::Memory(bytes)) => {
                send(socket, &bytes[self.written..], SendFlags::NOSIGNAL)?
            }
            Some(Piece::File(part)) => {
                let mut at = part.at;
                match sendfile(socket, &*part.file, Some(&mut at), part.bytes.min(most)) {
                    Ok(0) => return Err(Errno::IO),
                    // Some file systems and sandboxes do not have this call.
                    Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
                        let read = part.read(COPIED_BYTES.min(most));
                        let bytes =
                            read.map_err(|why| Errno::from_io_error(&why).unwrap_or(Errno::IO))?;
                        send(socket, &bytes, SendFlags::NOSIGNAL)?
                    }
                    sent => sent?,
                }
            }
        };
        self.advance(sent);
        Ok(sent)
    }

    /// Gives some of the first piece to `take`, which says how many bytes it took. Returns how many these were.
    pub fn give(&mut self, take: impl FnOnce(&[u8]) -> io::Result<usize>) -> io::Result<usize> {
        let taken = match self.pieces.front() {
            None => 0,
            Some(Piece::Memory(bytes)) => take(&bytes[self.written..])?,
            Some(Piece::File(part)) => take(&part.read(COPIED_BYTES)?)?,
        };
        self.advance(taken);
        Ok(taken)
    }

    fn advance(&mut self, bytes: usize) {
        let is_done = match self.pieces.front_mut() {
            None => false,
            Some(Piece::Memory(piece)) => {
                self.written += bytes;
                self.written == piece.len()
            }
            Some(Piece::File(part)) => {
                part.at += bytes as u64;
                part.bytes -= bytes;
                part.bytes == 0
            }
        };
        if is_done {
            self.pieces.pop_front();
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    #[test]
    fn a_file_that_the_kernel_does_not_send_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut theirs = listener.accept().unwrap().0;
        let file = File::open("/proc/self/cmdline").unwrap();
        let whole = std::fs::read("/proc/self/cmdline").unwrap();
        let refused = sendfile(&ours, &file, Some(&mut 0), 1);
        assert_eq!(refused, Err(Errno::INVAL));
        let mut output = Output::default();
        output.push(Piece::File(FilePart {
            file: Arc::new(file),
            at: 1,
            bytes: whole.len() - 1,
        }));
        // As much as is allowed at once, then the rest.
        assert_eq!(output.send(&ours, 2), Ok(2));
        assert_eq!(output.send(&ours, usize::MAX), Ok(whole.len() - 3));
        assert!(output.is_empty());
        drop(ours);
        let mut got = Vec::new();
        theirs.read_to_end(&mut got).unwrap();
        assert_eq!(got, whole[1..]);
    }

    #[test]
    fn a_file_that_is_shorter_than_it_was_ends_with_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        for path in ["/proc/self/cmdline", "/proc/self/exe"] {
            let mut output = Output::default();
            output.push(Piece::File(FilePart {
                file: Arc::new(File::open(path).unwrap()),
                at: 1 << 30,
                bytes: 10,
            }));
            assert_eq!(output.send(&ours, 10), Err(Errno::IO), "{path}");
        }
    }
}
