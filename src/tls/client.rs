//! TLS on the client's side of a blocking connection that is no HTTP: to a database.

use super::ClientTls;
use rustls::{ClientConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::TcpStream;

/// An encrypted connection.
pub struct TlsStream(StreamOwned<ClientConnection, TcpStream>);

impl TlsStream {
    /// Shakes hands with the server.
    pub fn connect(mut socket: TcpStream, tls: &ClientTls) -> io::Result<Self> {
        let session = ClientConnection::new(tls.config.clone(), tls.name.clone());
        let mut session = session.map_err(io::Error::other)?;
        while session.is_handshaking() {
            session.complete_io(&mut socket)?;
        }
        Ok(TlsStream(StreamOwned::new(session, socket)))
    }

    /// What is below it.
    pub fn socket(&self) -> &TcpStream {
        self.0.get_ref()
    }
}

impl Read for TlsStream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        self.0.read(to)
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
