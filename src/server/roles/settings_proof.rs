//! What tells whether two servers have the same settings, and tells nobody what they are: an HMAC of each by the secret
//! that only the servers of the registry know.

use super::proof;
use crate::server::setup::Setup;
use crate::server::state::db::{Secret, SettingsProof};
use hmac::Mac;

/// Of this server. The version is a part of the limits: another one may have other limits.
pub fn settings_proof(setup: &Setup, secret: &Secret) -> Result<SettingsProof, String> {
    let config = &setup.config;
    let version = env!("CARGO_PKG_VERSION");
    let limits = format!("{version} {:?} {:?}", setup.limits(), config.blob_limits);
    Ok(SettingsProof {
        tokens: prove(secret, "tokens", &setup.access.digest())?,
        limits: prove(secret, "limits", limits.as_bytes())?,
        binaries: prove(secret, "binaries", setup.images.digest().as_bytes())?,
    })
}

fn prove(secret: &Secret, what: &str, bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut mac = proof::keyed(secret).ok_or("the secret is no key (a bug)")?;
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
        let one = prove(&secret, "tokens", b"abc").unwrap();
        assert_eq!(one, prove(&secret, "tokens", b"abc").unwrap());
        for different in [
            prove(&other, "tokens", b"abc"),
            prove(&secret, "limits", b"abc"),
            prove(&secret, "tokens", b"abd"),
        ] {
            assert_ne!(one, different.unwrap());
        }
    }
}
