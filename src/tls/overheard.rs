//! A look at what comes encrypted, before anybody else reads it.
//!
//! tiny_http keeps its side of TLS to itself, and what it reads from it cannot be looked at before.
//! But it decrypts by the cryptography that this process has installed. So that is ring's, each
//! cipher of it with an ear: what a thread decrypts is first shown to whoever listens on this
//! thread, who may refuse it. Nothing else changes: keys, ciphers and encrypting are ring's.

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, InboundPlainMessage, Iv, KeyBlockShape, MessageDecrypter,
    MessageEncrypter, Tls12AeadAlgorithm, Tls13AeadAlgorithm, UnsupportedOperationError,
};
use rustls::crypto::ring;
use rustls::{
    ConnectionTrafficSecrets, ContentType, Error, SupportedCipherSuite, Tls12CipherSuite,
    Tls13CipherSuite,
};
use std::cell::RefCell;

/// Hears what was decrypted; says whether it may be read.
type Ear = Box<dyn FnMut(&[u8]) -> bool>;

thread_local! {
    /// Who listens on this thread. A connection is read by one thread only, its own.
    static EAR: RefCell<Option<Ear>> = const { RefCell::new(None) };
}

/// Somebody listens on this thread, until this is dropped.
pub struct Overheard(());

impl Overheard {
    /// From now on `hear` gets what this thread decrypts for applications, in order. When it says
    /// false, the read fails, and so does every later one.
    pub fn by(hear: impl FnMut(&[u8]) -> bool + 'static) -> Overheard {
        EAR.set(Some(Box::new(hear)));
        Overheard(())
    }
}

impl Drop for Overheard {
    fn drop(&mut self) {
        EAR.set(None);
    }
}

/// As [`super::install`], for a server: what is decrypted can be overheard.
pub fn install_overheard() {
    let mut provider = ring::default_provider();
    for suite in &mut provider.cipher_suites {
        // Nine of them, once in the life of a process.
        *suite = match *suite {
            SupportedCipherSuite::Tls12(of_ring) => {
                SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
                    common: common(&of_ring.common),
                    aead_alg: Box::leak(Box::new(Eared(of_ring.aead_alg))),
                    ..*of_ring
                })))
            }
            SupportedCipherSuite::Tls13(of_ring) => {
                SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
                    common: common(&of_ring.common),
                    aead_alg: Box::leak(Box::new(Eared(of_ring.aead_alg))),
                    ..*of_ring
                })))
            }
        };
    }
    // An error says that it has been done.
    let _ = provider.install_default();
}

fn common(of_ring: &rustls::CipherSuiteCommon) -> rustls::CipherSuiteCommon {
    rustls::CipherSuiteCommon { ..*of_ring }
}

/// A cipher with an ear.
struct Eared<T: ?Sized + 'static>(&'static T);

/// One direction of a connection, with an ear.
struct Decrypter(Box<dyn MessageDecrypter>);

impl MessageDecrypter for Decrypter {
    fn decrypt<'a>(
        &mut self,
        message: InboundOpaqueMessage<'a>,
        seq: u64,
    ) -> Result<InboundPlainMessage<'a>, Error> {
        let plain = self.0.decrypt(message, seq)?;
        let is_good = plain.typ != ContentType::ApplicationData
            || EAR.with_borrow_mut(|ear| ear.as_mut().is_none_or(|hear| hear(plain.payload)));
        is_good
            .then_some(plain)
            .ok_or_else(|| Error::General("refused when it was decrypted".into()))
    }
}

impl Tls12AeadAlgorithm for Eared<dyn Tls12AeadAlgorithm> {
    fn encrypter(&self, key: AeadKey, iv: &[u8], extra: &[u8]) -> Box<dyn MessageEncrypter> {
        self.0.encrypter(key, iv, extra)
    }

    fn decrypter(&self, key: AeadKey, iv: &[u8]) -> Box<dyn MessageDecrypter> {
        Box::new(Decrypter(self.0.decrypter(key, iv)))
    }

    fn key_block_shape(&self) -> KeyBlockShape {
        self.0.key_block_shape()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: &[u8],
        explicit: &[u8],
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.0.extract_keys(key, iv, explicit)
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

impl Tls13AeadAlgorithm for Eared<dyn Tls13AeadAlgorithm> {
    fn encrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageEncrypter> {
        self.0.encrypter(key, iv)
    }

    fn decrypter(&self, key: AeadKey, iv: Iv) -> Box<dyn MessageDecrypter> {
        Box::new(Decrypter(self.0.decrypter(key, iv)))
    }

    fn key_len(&self) -> usize {
        self.0.key_len()
    }

    fn extract_keys(
        &self,
        key: AeadKey,
        iv: Iv,
    ) -> Result<ConnectionTrafficSecrets, UnsupportedOperationError> {
        self.0.extract_keys(key, iv)
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}
