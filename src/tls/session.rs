//! TLS without waiting, of a server, and of a client of another one: bytes from a socket → decrypted bytes, and back.

use super::{Got, Roots};
use rustls::crypto::ring;
use rustls::pki_types::ServerName;
use rustls::{
    ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};
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

/// How TLS is spoken with one server: whom to trust, and the name that the server must prove.
#[derive(Clone)]
pub struct ClientTls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) name: ServerName<'static>,
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientTls({})", self.name.to_str())
    }
}

impl ClientTls {
    /// With the server of this name, or address, if one of these authorities vouches for it. The error is one line for
    /// a person.
    pub fn new(roots: &Roots, name: &str) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        // The system's may have some that cannot be used; without one that can, no server proves its name.
        store.add_parsable_certificates(roots.iter().map(|der| der.as_slice().into()));
        let config = ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|why| why.to_string())?
            .with_root_certificates(store)
            .with_no_client_auth();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned());
        Ok(ClientTls {
            config: config.into(),
            name: name.map_err(|why| format!("{bare:?} is no name of a server: {why}"))?,
        })
    }
}

/// One connection's session.
pub struct Session {
    connection: Box<Connection>,
    has_ended: bool,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(…)")
    }
}

impl Session {
    /// A session that has not begun.
    pub fn new(tls: &ServerTls) -> io::Result<Self> {
        let connection = ServerConnection::new(tls.0.clone()).map_err(io::Error::other)?;
        Ok(Session::of(connection.into()))
    }

    /// The same with a server.
    pub fn to_server(tls: &ClientTls) -> io::Result<Self> {
        let connection = ClientConnection::new(tls.config.clone(), tls.name.clone());
        Ok(Session::of(connection.map_err(io::Error::other)?.into()))
    }

    fn of(connection: Connection) -> Self {
        Session {
            connection: Box::new(connection),
            has_ended: false,
        }
    }

    /// Whether the peer has said that nothing will follow: its end is no cut.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether the handshake is not over.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Reads from the socket once, and adds all that could be decrypted to `to`.
    pub fn read(&mut self, socket: &mut impl Socket, to: &mut Vec<u8>) -> io::Result<Got> {
        match self.connection.read_tls(socket) {
            Ok(0) => return Ok(Got::End),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Got::Nothing),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Got::Some),
            Err(error) => return Err(error),
        }
        let state = self.connection.process_new_packets().map_err(|error| {
            // The peer is told why, if the socket takes that now.
            let _ = self.connection.write_tls(socket);
            io::Error::new(io::ErrorKind::InvalidData, error)
        })?;
        let bytes = state.plaintext_bytes_to_read() as u64;
        if bytes > 0 {
            self.connection.reader().take(bytes).read_to_end(to)?;
        }
        self.has_ended = state.peer_has_closed();
        match self.has_ended {
            true => Ok(Got::End),
            false => Ok(Got::Some),
        }
    }

    /// Encrypts some of `bytes`, and says how many; none while too much waits to be written.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.connection.writer().write(bytes)
    }

    /// Writes what is encrypted to the socket. Whether that was all.
    pub fn flush(&mut self, socket: &mut impl Socket) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(socket) {
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
        self.connection.wants_write()
    }

    /// Has `close_notify` written next: the end is no cut.
    pub fn close(&mut self) {
        self.connection.send_close_notify();
    }
}

/// What a session reads from and writes to.
pub trait Socket: Read + Write {}

impl<T: Read + Write> Socket for T {}
