//! Names → addresses, by ureq's own resolver.
//!
//! That starts a thread for each look-up, even of an IP address, and panics when the system has no thread
//! left. Here an address needs no thread, and a missing thread is an error like any other.

use std::net::IpAddr;
use std::sync::mpsc;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{NextTimeout, time};

/// The stack of a thread that looks up a name, in bytes.
const STACK_BYTES: usize = 512 * 1024;

/// A resolver that honours time-outs.
#[derive(Debug)]
pub struct TimedResolver;

impl Resolver for TimedResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        // Without a time-out ureq's resolver starts no thread.
        let blocking = NextTimeout {
            after: time::Duration::NotHappening,
            ..timeout
        };
        if is_address(uri) {
            return DefaultResolver::default().resolve(uri, config, blocking);
        }
        let (sender, answer) = mpsc::sync_channel(1);
        let (uri, config) = (uri.clone(), config.clone());
        std::thread::Builder::new()
            .name("resolver".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let found = DefaultResolver::default().resolve(&uri, &config, blocking);
                // After a time-out the receiver is gone.
                let _ = sender.send(found);
            })?;
        answer
            .recv_timeout(*timeout.after)
            .unwrap_or(Err(ureq::Error::Timeout(timeout.reason)))
    }
}

/// Whether the host is an IP address, which needs no look-up.
fn is_address(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default();
    host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_recognized() {
        for (uri, expected) in [
            ("http://127.0.0.1:9410/", true),
            ("http://[::1]:9410/", true),
            ("http://localhost:9410/", false),
            ("http://1.2.3.4.example/", false),
        ] {
            assert_eq!(is_address(&uri.parse().unwrap()), expected, "{uri}");
        }
    }
}
