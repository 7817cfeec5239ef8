//! The requests of notifications. They are apart from all other calls: another agent of ureq each time, so that no
//! connection is kept, no proxy of the environment, no token, no redirect. Each address that the host leads to is judged
//! before anything is sent to it: the name is looked up once, and what was judged is connected to.

use super::connections::{self, Connections};
use super::failure::unreachable;
use super::resolver::TimedResolver;
use super::{MAX_HEAD, tls};
use crate::tls::Roots;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

/// Whether an address may be connected to; the error says why not.
pub type Judge = Arc<dyn Fn(IpAddr) -> Result<(), String> + Send + Sync>;

/// A request.
pub struct Webhook<'a> {
    /// Where to.
    pub url: &'a str,
    /// The headers beside those of every request; their names in small letters.
    pub headers: &'a [(&'static str, String)],
    /// The body, JSON.
    pub body: &'a [u8],
    /// The longest time from the look-up of the name to the head of the answer.
    pub timeout: Duration,
}

/// The authorities of the file that `flag` names, or those that the system trusts. The error is one line for people.
pub fn authorities(flag: &str, file: Option<&Path>) -> Result<Roots, String> {
    crate::tls::install();
    crate::tls::load_roots_of(flag, file)
}

/// Sends a request, and gives the status of the answer, of which nothing else is read. The error is the reason why no
/// answer came.
pub fn post(webhook: &Webhook<'_>, roots: Option<&Roots>, judge: Judge) -> Result<u16, String> {
    let config = tls::settings(Config::builder(), roots)
        .proxy(None)
        .http_status_as_error(false)
        .user_agent(concat!("sidebike/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(webhook.timeout))
        .max_response_header_size(MAX_HEAD)
        .input_buffer_size(connections::MAX_INPUT_BYTES)
        .output_buffer_size(connections::BUFFER_BYTES)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .max_idle_connections(0)
        .build();
    let http = ureq::Agent::with_parts(config, Connections::default(), JudgingResolver(judge));
    let mut request = { http.post(webhook.url) }.header("content-type", "application/json");
    for (name, value) in webhook.headers {
        request = request.header(*name, value);
    }
    let answer = request.send(webhook.body);
    answer
        .map(|answer| answer.status().as_u16())
        .map_err(|why| {
            match &why {
                // Not "unreachable": nothing was tried.
                ureq::Error::Other(refused) => refused.to_string(),
                _ => unreachable(&why),
            }
        })
}

/// Looks names up, and leaves out the addresses that are not allowed.
struct JudgingResolver(Judge);

impl fmt::Debug for JudgingResolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JudgingResolver")
    }
}

impl Resolver for JudgingResolver {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let found = TimedResolver.resolve(uri, config, timeout)?;
        let mut allowed = self.empty();
        let mut refusal = None;
        for address in &found {
            match (self.0)(address.ip()) {
                Ok(()) => allowed.push(*address),
                Err(why) => refusal = Some(why),
            }
        }
        match refusal.filter(|_| allowed.is_empty()) {
            Some(why) => Err(ureq::Error::Other(why.into())),
            None => Ok(allowed),
        }
    }
}
