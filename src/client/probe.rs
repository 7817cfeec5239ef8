//! The requests of probes. They are apart from the calls to the server: another agent of ureq each time, so that no
//! connection is kept, no proxy of the environment, no token.

use super::connections::{self, Connections};
use super::failure::unreachable;
use super::resolver::TimedResolver;
use super::{Client, MAX_HEAD, tls};
use std::io::Read;
use std::time::Duration;
use ureq::config::Config;

/// An answer to a probe.
#[derive(Debug)]
pub struct ProbeAnswer {
    /// Its status.
    pub status: u16,
    /// The beginning of its body.
    pub body: Vec<u8>,
}

impl Client {
    /// Asks for a URL by GET, and reads so many bytes of the answer at most. Follows no redirect. A server with https
    /// needs a certificate that this machine, or the authorities of `--ca`, vouch for. The error is the reason why no
    /// answer came.
    pub fn probe(
        &self,
        url: &str,
        timeout: Duration,
        max_body: u64,
    ) -> Result<ProbeAnswer, String> {
        let roots = match url.starts_with("https://") {
            true => {
                crate::tls::install();
                Some(crate::tls::load_roots(
                    self.addresses.registry().ca.as_deref(),
                )?)
            }
            false => None,
        };
        let config = tls::settings(Config::builder(), roots.as_ref())
            .proxy(None)
            .http_status_as_error(false)
            .user_agent(concat!("sidebike/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(timeout))
            .max_response_header_size(MAX_HEAD)
            .input_buffer_size(connections::MAX_INPUT_BYTES)
            .output_buffer_size(connections::BUFFER_BYTES)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .build();
        let http = ureq::Agent::with_parts(config, Connections::default(), TimedResolver);
        let mut answer = http.get(url).call().map_err(|why| unreachable(&why))?;
        let status = answer.status().as_u16();
        let mut body = Vec::new();
        let mut beginning = answer.body_mut().as_reader().take(max_body);
        { beginning.read_to_end(&mut body) }.map_err(|why| unreachable(&why.into()))?;
        Ok(ProbeAnswer { status, body })
    }
}
