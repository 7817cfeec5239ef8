//! TLS on the server's side, without waiting: bytes from a socket → decrypted bytes, and back.

use super::Got;
use rustls::{ServerConfig, ServerConnection};
use std::fmt;
use std::io::{self, Read, Write};
use std::sync::Arc;

/// The certificate of a server with its key, ready to be used.
#[derive(Clone)]
pub struct ServerTls(pub(super) Arc<ServerConfig>);

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls(…)")
    }
}

/// One connection's session.
pub struct Session(Box<ServerConnection>);

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(…)")
    }
}

impl Session {
    /// A session that has not begun.
    pub fn new(tls: &ServerTls) -> io::Result<Self> {
        let connection = ServerConnection::new(tls.0.clone()).map_err(io::Error::other)?;
        Ok(Session(Box::new(connection)))
    }

    /// Whether the handshake is not over.
    pub fn is_handshaking(&self) -> bool {
        self.0.is_handshaking()
    }

    /// Reads from the socket once, and adds all that could be decrypted to `to`.
    pub fn read(&mut self, socket: &mut impl Socket, to: &mut Vec<u8>) -> io::Result<Got> {
        match self.0.read_tls(socket) {
            Ok(0) => return Ok(Got::End),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Got::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Got::Some),
            Err(error) => return Err(error),
        }
        let state = self.0.process_new_packets().map_err(|error| {
            // The peer is told why, if the socket takes that now.
            let _ = self.0.write_tls(socket);
            io::Error::new(io::ErrorKind::InvalidData, error)
        })?;
        let bytes = state.plaintext_bytes_to_read() as u64;
        if bytes > 0 {
            self.0.reader().take(bytes).read_to_end(to)?;
        }
        match state.peer_has_closed() {
            true => Ok(Got::End),
            false => Ok(Got::Some),
        }
    }

    /// Encrypts some of `bytes`, and says how many; none while too much waits to be written.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.writer().write(bytes)
    }

    /// Writes what is encrypted to the socket. Whether that was all.
    pub fn flush(&mut self, socket: &mut impl Socket) -> io::Result<bool> {
        while self.0.wants_write() {
            match self.0.write_tls(socket) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether something encrypted waits to be written.
    pub fn wants_write(&self) -> bool {
        self.0.wants_write()
    }

    /// Has `close_notify` written next: the end is no cut.
    pub fn close(&mut self) {
        self.0.send_close_notify();
    }
}

/// What a session reads from and writes to.
pub trait Socket: Read + Write {}

impl<T: Read + Write> Socket for T {}
