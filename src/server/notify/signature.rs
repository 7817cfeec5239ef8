//! The secrets, and the signature of a request by them, as Standard Webhooks has it: `v1,` and the base64 of
//! HMAC-SHA256 over `id.timestamp.body`. While one secret replaces another there are two signatures; who knows either
//! secret finds one that fits.

use crate::core::NotifyPolicy;
use crate::secret::{self, Secret};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Where the secrets come from; with `_FILE` appended, a file of them.
const VARIABLE: &str = "SIDEBIKE_WEBHOOK_SECRET";
/// How each begins.
const MARK: &str = "whsec_";
/// The most secrets: the old one and the new one, and two to spare.
const MAX_SECRETS: usize = 4;
/// The least bytes of a secret that is no weak one.
pub const STRONG_BYTES: usize = 24;

/// The secrets, decoded. They are never shown.
#[derive(Clone, Default)]
pub struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    /// Reads the secrets, if notifications are on. The error names their source, never their content.
    pub fn from_environment(policy: &NotifyPolicy) -> Result<Secrets, String> {
        match policy.allow {
            Some(_) => Secrets::of(&secret::load(VARIABLE)?),
            None => Ok(Secrets::default()),
        }
    }

    fn of(words: &[Secret]) -> Result<Secrets, String> {
        if words.len() > MAX_SECRETS {
            return Err(format!(
                "{VARIABLE}: has {} secrets, {MAX_SECRETS} are the most",
                words.len()
            ));
        }
        let decoded = words.iter().map(|word| {
            let bytes = { word.expose().strip_prefix(MARK) }
                .and_then(|base64| STANDARD.decode(base64).ok())
                .filter(|bytes| !bytes.is_empty());
            bytes.ok_or_else(|| {
                format!(
                    "{VARIABLE}: expected {MARK} and base64, such as \"{MARK}$(head -c 32 /dev/urandom | base64)\""
                )
            })
        });
        Ok(Secrets(decoded.collect::<Result<_, _>>()?))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether one of them is short enough to be guessed.
    pub fn has_weak(&self) -> bool {
        self.0.iter().any(|secret| secret.len() < STRONG_BYTES)
    }

    /// The value of `webhook-signature`; `None` without secrets.
    pub fn signatures(&self, id: &str, timestamp: u64, body: &[u8]) -> Option<String> {
        let signatures: Vec<String> = { self.0.iter() }
            .filter_map(|secret| {
                // A key may have any length.
                let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
                mac.update(format!("{id}.{timestamp}.").as_bytes());
                mac.update(body);
                Some(format!(
                    "v1,{}",
                    STANDARD.encode(mac.finalize().into_bytes())
                ))
            })
            .collect();
        (!signatures.is_empty()).then(|| signatures.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(words: &[&str]) -> Result<Secrets, String> {
        let words: Vec<Secret> = words.iter().map(|word| Secret::for_test(word)).collect();
        Secrets::of(&words)
    }

    #[test]
    fn the_example_of_standard_webhooks_is_signed_as_it_says() {
        let secrets = secrets(&["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]).unwrap();
        let signed = secrets.signatures(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signed.as_deref(), Some(expected));
        assert!(!secrets.has_weak());
    }

    #[test]
    fn each_secret_signs_and_none_is_shown() {
        let two = ["whsec_AAAA", "whsec_AAAB"];
        let both = secrets(&two).unwrap().signatures("i", 1, b"b").unwrap();
        let each = two.map(|one| secrets(&[one]).unwrap().signatures("i", 1, b"b").unwrap());
        assert_eq!(both, each.join(" "));
        assert_eq!(Secrets::default().signatures("i", 1, b"b"), None);
        for wrong in ["AAAA", "whsec_", "whsec_s3cret!", "whsec_=s3cret"] {
            let why = secrets(&[wrong]).err().unwrap();
            assert!(
                why.starts_with(VARIABLE) && !why.contains("s3cret"),
                "{why}"
            );
        }
        assert!(secrets(&["whsec_AAAA"; 5]).is_err());
    }
}
