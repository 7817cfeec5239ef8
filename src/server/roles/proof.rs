//! How a standby proves to the leader for whom it asks.
//!
//! A request that a standby passes on comes from the standby's address. Who really made it stands in a header, with an
//! HMAC by the secret that only the servers of the registry know. It covers the method and the target, so that it is of
//! no use for another call.

use crate::server::http::Request;
use crate::server::state::db::Secret;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::net::IpAddr;

/// The value of `Sidebike-Forwarded` for a request of `caller`.
pub fn value(secret: &Secret, caller: IpAddr, request: &Request) -> Option<String> {
    let mac = mac(secret, caller, request)?.finalize().into_bytes();
    Some(format!("{caller} {}", STANDARD_NO_PAD.encode(mac)))
}

/// The caller, if the value was made by a server of the same registry for the same request.
pub fn caller(secret: &Secret, value: &str, request: &Request) -> Option<IpAddr> {
    let (caller, proof) = value.split_once(' ')?;
    let caller = caller.parse().ok()?;
    let proof = STANDARD_NO_PAD.decode(proof).ok()?;
    // Compares in constant time.
    let verified = mac(secret, caller, request)?.verify_slice(&proof);
    verified.is_ok().then_some(caller)
}

/// An HMAC by the secret, of nothing yet. `None` never happens: a key may have any length.
pub fn keyed(secret: &Secret) -> Option<Hmac<Sha256>> {
    Hmac::new_from_slice(&secret.0).ok()
}

fn mac(secret: &Secret, caller: IpAddr, request: &Request) -> Option<Hmac<Sha256>> {
    let mut mac = keyed(secret)?;
    let (method, target) = (&request.method, request.target_as_read());
    mac.update(format!("{caller}\n{method}\n{target}").as_bytes());
    Some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::http::Headers;

    fn request(method: &str, target: &str) -> Request {
        Request::parsed(method, target, Headers::default(), None).unwrap()
    }

    #[test]
    fn only_the_same_secret_and_the_same_request_prove_a_caller() {
        let (secret, other) = (Secret([1; Secret::BYTES]), Secret([2; Secret::BYTES]));
        let ip: IpAddr = "10.0.0.7".parse().unwrap();
        let post = request("POST", "/api/v1/task");
        let value = value(&secret, ip, &post).unwrap();
        assert_eq!(caller(&secret, &value, &post), Some(ip));
        assert_eq!(caller(&other, &value, &post), None);
        for (method, target) in [
            ("GET", "/api/v1/task"),
            ("POST", "/api/v1/task?wait=1s"),
            ("POST", "/api/v1%2Ftask"),
        ] {
            assert_eq!(caller(&secret, &value, &request(method, target)), None);
        }
        let forged = value.replacen("10.0.0.7", "10.0.0.8", 1);
        assert_eq!(caller(&secret, &forged, &post), None);
        for bad in ["", "10.0.0.7", "10.0.0.7 ", "x y", "10.0.0.7 AAAA"] {
            assert_eq!(caller(&secret, bad, &post), None, "{bad}");
        }
    }
}
