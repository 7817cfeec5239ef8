//! What tells whether two servers have the same settings, and tells nobody what they are: an HMAC of each by the secret
//! that only the servers of the registry know.

use crate::server::setup::Setup;
use crate::server::state::db::{Secret, SettingsProof};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Of this server. The version is a part of the limits: another one may have other limits.
pub fn settings_proof(setup: &Setup, secret: &Secret) -> Result<SettingsProof, String> {
    let config = &setup.config;
    let version = env!("CARGO_PKG_VERSION");
    let limits = format!("{version} {:?} {:?}", setup.limits(), config.blob_limits);
    Ok(SettingsProof {
        tokens: proof(secret, "tokens", &setup.access.digest())?,
        limits: proof(secret, "limits", limits.as_bytes())?,
        binaries: proof(secret, "binaries", setup.images.digest().as_bytes())?,
    })
}

fn proof(secret: &Secret, what: &str, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mac = Hmac::<Sha256>::new_from_slice(&secret.0);
    let mut mac = mac.map_err(|why| why.to_string())?;
    // The name keeps a proof from being one of something else with the same bytes.
    mac.update(format!("{what}\n").as_bytes());
    mac.update(bytes);
    Ok(mac.finalize().into_bytes().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_hangs_on_the_secret_on_the_name_and_on_what_is_proved() {
        let (secret, other) = (Secret([1; Secret::BYTES]), Secret([2; Secret::BYTES]));
        let one = proof(&secret, "tokens", b"abc").unwrap();
        assert_eq!(one, proof(&secret, "tokens", b"abc").unwrap());
        for different in [
            proof(&other, "tokens", b"abc"),
            proof(&secret, "limits", b"abc"),
            proof(&secret, "tokens", b"abd"),
        ] {
            assert_ne!(one, different.unwrap());
        }
    }
}
