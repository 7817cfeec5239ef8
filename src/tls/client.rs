//! TLS on the client's side of a connection that is no HTTP: to a database.

use super::Roots;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

/// Whose certificates are accepted.
#[derive(Clone)]
pub struct ClientTls(Arc<ClientConfig>);

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientTls(…)")
    }
}

impl ClientTls {
    /// Those that one of these authorities has signed.
    pub fn new(roots: &Roots) -> Result<Self, String> {
        let mut store = RootCertStore::empty();
        // The system may have some that cannot be used.
        store.add_parsable_certificates(roots.iter().map(|der| CertificateDer::from(&**der)));
        let config = ClientConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|why| why.to_string())?;
        let config = config.with_root_certificates(store).with_no_client_auth();
        Ok(ClientTls(config.into()))
    }
}

/// An encrypted connection.
pub struct TlsStream(StreamOwned<ClientConnection, TcpStream>);

impl TlsStream {
    /// Shakes hands with the server of this name.
    pub fn connect(mut socket: TcpStream, name: &str, tls: &ClientTls) -> io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let mut session = ClientConnection::new(tls.0.clone(), name).map_err(io::Error::other)?;
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
