//! TLS: which cryptography, whose certificates. The only place that names rustls.
//!
//! The cryptography is ring's, whatever else is in the tree. Nothing here, and nothing elsewhere,
//! turns verification off. A build without the feature `tls` has the same functions: they say that
//! it has no TLS.

#[cfg(all(feature = "tls", feature = "server"))]
mod overheard;

use std::path::Path;

#[cfg(all(feature = "tls", feature = "server"))]
pub use overheard::{Overheard, install_overheard};

/// Certificates of authorities, each in DER.
pub type Roots = Vec<Vec<u8>>;

/// A certificate (with those that vouch for it) and its key, as PEM; checked that they fit.
pub struct Pair {
    /// The certificates, the server's own first.
    pub certificates: Vec<u8>,
    /// The key.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pair(…)")
    }
}

/// The files of a [`Pair`].
#[derive(Debug, Clone)]
pub struct PairFiles {
    /// `--tls-cert`.
    pub certificates: std::path::PathBuf,
    /// `--tls-key`.
    pub key: std::path::PathBuf,
}

#[cfg(feature = "tls")]
pub use real::{install, load_pair, load_roots};

#[cfg(not(feature = "tls"))]
pub use none::{install, load_pair, load_roots};

#[cfg(all(not(feature = "tls"), feature = "server"))]
pub use none::{Overheard, install_overheard};

#[cfg(feature = "tls")]
mod real {
    use super::{Pair, PairFiles, Path, Roots};
    use rustls::crypto::ring;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::{RootCertStore, ServerConfig};

    /// Settles which cryptography is used; before anything else of TLS, as often as one likes.
    pub fn install() {
        // An error says that it has been done.
        let _ = ring::default_provider().install_default();
    }

    /// The authorities in this file, and only they; without a file those the system trusts. The
    /// error is one line for a person.
    pub fn load_roots(ca: Option<&Path>) -> Result<Roots, String> {
        let Some(file) = ca else {
            return system_roots();
        };
        let wrong = |why: String| format!("--ca: {}: {why}", file.display());
        let certificates = certificates(&read(file).map_err(&wrong)?).map_err(&wrong)?;
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store
                .add(certificate.clone())
                .map_err(|why| wrong(format!("one of its certificates cannot be used: {why}")))?;
        }
        Ok(certificates.iter().map(|der| der.to_vec()).collect())
    }

    fn system_roots() -> Result<Roots, String> {
        let found = rustls_native_certs::load_native_certs();
        if !found.certs.is_empty() {
            return Ok(found.certs.iter().map(|der| der.to_vec()).collect());
        }
        let why = found.errors.first().map(|why| format!(" ({why})"));
        let why = why.unwrap_or_default();
        Err(format!(
            "this machine has no certificates of authorities{why}; name a file of them with --ca"
        ))
    }

    /// Reads a certificate and its key, and sees that they fit. The error is one line for a person.
    pub fn load_pair(files: &PairFiles) -> Result<Pair, String> {
        let of = |flag, file: &Path| {
            let file = file.display().to_string();
            move |why: String| format!("{flag}: {file}: {why}")
        };
        let wrong_cert = of("--tls-cert", &files.certificates);
        let wrong_key = of("--tls-key", &files.key);
        let pair = Pair {
            certificates: read(&files.certificates).map_err(&wrong_cert)?,
            key: read(&files.key).map_err(&wrong_key)?,
        };
        let certificates = certificates(&pair.certificates).map_err(&wrong_cert)?;
        let key = PrivateKeyDer::from_pem_slice(&pair.key)
            .map_err(|_| wrong_key("there is no private key in it, as PEM".into()))?;
        ServerConfig::builder_with_provider(ring::default_provider().into())
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
        Ok(pair)
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
    use super::{Pair, PairFiles, Path, Roots};

    const NO_TLS: &str = "this build has no TLS (it was made without the feature `tls`)";

    /// Nothing to settle.
    pub fn install() {}

    /// Nothing to settle.
    #[cfg(feature = "server")]
    pub fn install_overheard() {}

    /// Nothing is decrypted here.
    #[cfg(feature = "server")]
    pub struct Overheard;

    #[cfg(feature = "server")]
    impl Overheard {
        /// There will be nothing to hear.
        pub fn by(_hear: impl FnMut(&[u8]) -> bool + 'static) -> Overheard {
            Overheard
        }
    }

    /// Says that there is no TLS.
    pub fn load_roots(_ca: Option<&Path>) -> Result<Roots, String> {
        Err(format!("--registry-address: https: {NO_TLS}"))
    }

    /// Says that there is no TLS.
    pub fn load_pair(_files: &PairFiles) -> Result<Pair, String> {
        Err(format!("--tls-cert: {NO_TLS}"))
    }
}
