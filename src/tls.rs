//! TLS: which cryptography, whose certificates. The only place that names rustls.
//!
//! The cryptography is ring's, whatever else is in the tree. Nothing here, and nothing elsewhere,
//! turns verification off. A build without the feature `tls` has the same functions: they say that
//! it has no TLS.

#[cfg(feature = "pg")]
mod client;
#[cfg(all(feature = "tls", feature = "server"))]
mod session;

use std::path::Path;

#[cfg(feature = "pg")]
pub use client::TlsStream;
#[cfg(all(feature = "tls", feature = "server"))]
pub use session::{ClientTls, ServerTls, Session};

/// Certificates of authorities, each in DER.
pub type Roots = Vec<Vec<u8>>;

/// What a read gave.
#[cfg(feature = "server")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Got {
    /// Bytes; there may be more.
    Some,
    /// Nothing now, or bytes and certainly nothing behind them now.
    Nothing,
    /// The peer has closed its sending side.
    End,
}

/// The files of a server's certificate and of its key, as PEM.
#[derive(Debug, Clone)]
pub struct CertificateFiles {
    /// `--tls-cert`.
    pub certificates: std::path::PathBuf,
    /// `--tls-key`.
    pub key: std::path::PathBuf,
}

#[cfg(feature = "tls")]
pub use real::*;

#[cfg(not(feature = "tls"))]
pub use none::*;

#[cfg(feature = "tls")]
mod real {
    #[cfg(feature = "server")]
    use super::{CertificateFiles, ServerTls};
    use super::{Path, Roots};
    use rustls::RootCertStore;
    #[cfg(feature = "server")]
    use rustls::ServerConfig;
    use rustls::crypto::ring;
    use rustls::pki_types::CertificateDer;
    #[cfg(feature = "server")]
    use rustls::pki_types::PrivateKeyDer;
    use rustls::pki_types::pem::PemObject;

    /// Settles which cryptography is used; before anything else of TLS, as often as one likes.
    pub fn install() {
        // An error says that it has been done.
        let _ = ring::default_provider().install_default();
    }

    /// The authorities in this file, and only they; without a file those the system trusts. The
    /// error is one line for a person.
    pub fn load_roots(ca: Option<&Path>) -> Result<Roots, String> {
        load_roots_of("--ca", ca)
    }

    /// The same for another flag than `--ca`.
    pub fn load_roots_of(flag: &str, ca: Option<&Path>) -> Result<Roots, String> {
        let Some(file) = ca else {
            return system_roots(flag);
        };
        let wrong = |why: String| format!("{flag}: {}: {why}", file.display());
        let certificates = certificates(&read(file).map_err(&wrong)?).map_err(&wrong)?;
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store
                .add(certificate.clone())
                .map_err(|why| wrong(format!("one of its certificates cannot be used: {why}")))?;
        }
        Ok(certificates.iter().map(|der| der.to_vec()).collect())
    }

    fn system_roots(flag: &str) -> Result<Roots, String> {
        let found = rustls_native_certs::load_native_certs();
        if !found.certs.is_empty() {
            return Ok(found.certs.iter().map(|der| der.to_vec()).collect());
        }
        let why = found.errors.first().map(|why| format!(" ({why})"));
        let why = why.unwrap_or_default();
        Err(format!(
            "this machine has no certificates of authorities{why}; name a file of them with {flag}"
        ))
    }

    /// Reads a certificate and its key, and sees that they fit. The error is one line for a person.
    #[cfg(feature = "server")]
    pub fn load_certificate(files: &CertificateFiles) -> Result<ServerTls, String> {
        let of = |flag, file: &Path| {
            let file = file.display().to_string();
            move |why: String| format!("{flag}: {file}: {why}")
        };
        let wrong_cert = of("--tls-cert", &files.certificates);
        let wrong_key = of("--tls-key", &files.key);
        let pem = read(&files.certificates).map_err(&wrong_cert)?;
        let certificates = certificates(&pem).map_err(&wrong_cert)?;
        let key = PrivateKeyDer::from_pem_slice(&read(&files.key).map_err(&wrong_key)?)
            .map_err(|_| wrong_key("there is no private key in it, as PEM".into()))?;
        let config = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|why| why.to_string())?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(|why| match why {
                rustls::Error::InconsistentKeys(_) => wrong_key(format!(
                    "this key does not belong to the certificate in {}",
                    files.certificates.display()
                )),
                rustls::Error::InvalidCertificate(why) => {
                    wrong_cert(format!("its first certificate cannot be used: {why}"))
                }
                why => wrong_key(format!("this key cannot be used: {why}")),
            })?;
        Ok(ServerTls(config.into()))
    }

    fn read(file: &Path) -> Result<Vec<u8>, String> {
        std::fs::read(file).map_err(|why| format!("cannot be read: {why}"))
    }

    fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let found = found.map_err(|why| format!("it is damaged: {why}"))?;
        if found.is_empty() {
            return Err("there is no certificate in it, as PEM".into());
        }
        Ok(found)
    }
}

#[cfg(not(feature = "tls"))]
mod none {
    #[cfg(feature = "server")]
    use super::{CertificateFiles, Got};
    use super::{Path, Roots};
    #[cfg(feature = "server")]
    use std::io;

    const NO_TLS: &str = "this build has no TLS (it was made without the feature `tls`)";

    /// Nothing to settle.
    pub fn install() {}

    /// Says that there is no TLS.
    pub fn load_roots(_ca: Option<&Path>) -> Result<Roots, String> {
        Err(format!("--registry-address: https: {NO_TLS}"))
    }

    /// The same for another flag than `--ca`.
    pub fn load_roots_of(flag: &str, _ca: Option<&Path>) -> Result<Roots, String> {
        Err(format!("{flag}: https: {NO_TLS}"))
    }

    /// There is none.
    #[cfg(feature = "server")]
    #[derive(Debug, Clone)]
    pub enum ServerTls {}

    /// There is none.
    #[cfg(feature = "server")]
    #[derive(Debug, Clone)]
    pub enum ClientTls {}

    #[cfg(feature = "server")]
    impl ClientTls {
        /// Says that there is no TLS.
        pub fn new(_: &Roots, _: &str) -> Result<Self, String> {
            Err(NO_TLS.into())
        }
    }

    /// There is none.
    #[cfg(feature = "server")]
    #[derive(Debug)]
    pub enum Session {}

    #[cfg(feature = "server")]
    #[allow(missing_docs, reason = "none of them can be called")]
    impl Session {
        pub fn new(tls: &ServerTls) -> io::Result<Self> {
            match *tls {}
        }
        pub fn to_server(tls: &ClientTls) -> io::Result<Self> {
            match *tls {}
        }
        pub fn is_handshaking(&self) -> bool {
            match *self {}
        }
        pub fn has_ended(&self) -> bool {
            match *self {}
        }
        pub fn read<S>(&mut self, _: &mut S, _: &mut Vec<u8>) -> io::Result<Got> {
            match *self {}
        }
        pub fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            match *self {}
        }
        pub fn flush<S>(&mut self, _: &mut S) -> io::Result<bool> {
            match *self {}
        }
        pub fn wants_write(&self) -> bool {
            match *self {}
        }
        pub fn close(&mut self) {
            match *self {}
        }
    }

    /// Says that there is no TLS.
    #[cfg(feature = "server")]
    pub fn load_certificate(_files: &CertificateFiles) -> Result<ServerTls, String> {
        Err(format!("--tls-cert: {NO_TLS}"))
    }
}
