//! The bytes of a connection: from and to its socket, through TLS where that is spoken. Nothing here waits.

use super::output::Output;
use crate::tls::{ClientTls, Got, ServerTls, Session};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::sockopt;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// The most that is read at once, in bytes.
const READ_BYTES: usize = 16 * 1024;

/// A socket, and the TLS session over it.
#[derive(Debug)]
pub struct Transport {
    /// The socket. It is closed with the connection, and nobody else has it.
    pub socket: TcpStream,
    session: Option<Session>,
}

impl Transport {
    /// Over a socket that does not block; `tls` says that TLS is spoken.
    pub fn new(socket: TcpStream, tls: Option<&ServerTls>) -> io::Result<Self> {
        Ok(Transport {
            session: tls.map(Session::new).transpose()?,
            socket,
        })
    }

    /// The same for a socket that we connect; `tls` says that TLS is spoken.
    pub fn to_server(socket: TcpStream, tls: Option<&ClientTls>) -> io::Result<Self> {
        Ok(Transport {
            session: tls.map(Session::to_server).transpose()?,
            socket,
        })
    }

    /// Whether the next bytes are those of a handshake, which is work.
    pub fn is_handshaking(&self) -> bool {
        self.session.as_ref().is_some_and(Session::is_handshaking)
    }

    /// Reads what is there, some of it, and adds it to `input`. Decrypted bytes are all added: none stay behind
    /// where the poller cannot see them.
    pub fn read(&mut self, input: &mut Vec<u8>) -> io::Result<Got> {
        if let Some(session) = &mut self.session {
            return session.read(&mut self.socket, input);
        }
        input.reserve(READ_BYTES);
        let room = input.capacity() - input.len();
        loop {
            return match rustix::io::read(&self.socket, spare_capacity(input)) {
                Ok(0) => Ok(Got::End),
                // A short read has emptied the socket; what comes after it the poller tells.
                Ok(bytes) if bytes < room => Ok(Got::Nothing),
                Ok(_) => Ok(Got::Some),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Ok(Got::Nothing),
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Writes as much as the socket takes, `most` bytes or a little more. Returns how many bytes of `output` went.
    pub fn write(&mut self, output: &mut Output, most: usize) -> io::Result<usize> {
        let mut written = 0;
        while !output.is_empty() && written < most {
            written += match &mut self.session {
                Some(session) => match output.give(|bytes| session.write(bytes))? {
                    0 if !session.flush(&mut self.socket)? => break,
                    now => now,
                },
                None => match output.send(&self.socket, most - written) {
                    Ok(now) => now,
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                },
            };
        }
        if let Some(session) = &mut self.session {
            session.flush(&mut self.socket)?;
        }
        Ok(written)
    }

    /// Whether TLS has something to write, of its own or encrypted, that the socket did not take.
    pub fn wants_write(&self) -> bool {
        self.session.as_ref().is_some_and(Session::wants_write)
    }

    /// Whether the peer's end, which was read, can be told from a cut: TLS says so, a socket always.
    pub fn has_ended_cleanly(&self) -> bool {
        self.session.as_ref().is_none_or(Session::has_ended)
    }

    /// Says within TLS that nothing will follow, if the socket takes that now: the end is no cut.
    pub fn close_session(&mut self) {
        if let Some(session) = &mut self.session {
            session.close();
            let _ = session.flush(&mut self.socket);
        }
    }

    /// Closes the sending side.
    pub fn close_sending(&mut self) {
        self.close_session();
        // The peer may have gone already.
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// Whether something has come that was not read.
    pub fn has_unread(&self) -> bool {
        rustix::io::ioctl_fionread(&self.socket).is_ok_and(|bytes| bytes > 0)
    }

    /// Has the kernel throw away what is not sent yet when the socket is closed: for a peer that does not read it
    /// would be kept for minutes.
    pub fn discard_unsent(&self) {
        let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
    }
}
