//! https for tests: certificates made for the test, servers that show them, and clients that trust
//! one authority only.

#![allow(dead_code, reason = "each file of tests uses its part")]

use crate::common::http::Connection;
use crate::common::{Folder, Server};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// A certificate's owner is known by these.
pub const OWN_NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// Longer than a request may be held.
const PATIENCE: Duration = Duration::from_secs(90);

/// Who vouches for servers.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub fn new() -> Authority {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut params = CertificateParams::default();
        // Of two with the same name the wrong one would be asked, and said to lie.
        let name = format!("authority {n}");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Authority(CertifiedIssuer::self_signed(params, key).unwrap())
    }

    /// Writes a certificate and its key into `cert` and `key`.
    pub fn vouch(&self, folder: &Folder, names: &[&str]) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(names).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        std::fs::write(folder.file("cert"), certificate.pem()).unwrap();
        std::fs::write(folder.file("key"), key.serialize_pem()).unwrap();
    }

    /// Writes its own certificate into a file.
    pub fn file(&self, folder: &Folder, name: &str) -> String {
        std::fs::write(folder.file(name), self.0.pem()).unwrap();
        folder.file(name)
    }
}

pub fn server(folder: &Folder, flags: &[&str]) -> Server {
    let (cert, key) = (folder.file("cert"), folder.file("key"));
    let own = ["--tls-cert", &cert, "--tls-key", &key];
    Server::with(&[&own[..], flags].concat())
}

pub type Stream = StreamOwned<ClientConnection, TcpStream>;
pub type Secure = Connection<Stream>;

/// A client that trusts this authority only.
pub fn secure(address: SocketAddr, authority: &Authority) -> Secure {
    Connection::over(stream(address, authority))
}

pub fn stream(address: SocketAddr, authority: &Authority) -> Stream {
    stream_of(address, authority, rustls::DEFAULT_VERSIONS)
}

pub fn stream_of(
    address: SocketAddr,
    authority: &Authority,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Stream {
    let mut roots = RootCertStore::empty();
    let der = CertificateDer::from_pem_slice(authority.0.pem().as_bytes()).unwrap();
    roots.add(der).unwrap();
    let provider = rustls::crypto::ring::default_provider();
    let config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(3)))
        .unwrap();
    StreamOwned::new(connection, stream)
}
