//! Protection of users' browsers: a page of another site must not submit tasks (CSRF), nor read answers by a DNS name
//! that it points at this server (DNS rebinding).
//!
//! A browser says where a request comes from (`Origin`, `Sec-Fetch-Site`) and which name it looked up (`Host`). curl and
//! other programs send no `Origin` and are not restricted.

use crate::server::http::Request;
use std::net::IpAddr;

/// The names under which this server may be addressed.
#[derive(Debug, Default)]
pub struct OwnNames {
    /// It listens on loopback only, so only loopback names are its own.
    pub loopback_only: bool,
    /// Host (and port) of the address under which a proxy shows it.
    pub public: Option<Authority>,
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    host: String,
    port: Option<u16>,
}

impl Authority {
    /// Reads `host`, `host:port`, `[v6]:port`.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port))
                if !port.ends_with(']') && port.bytes().all(|b| b.is_ascii_digit()) =>
            {
                (
                    host,
                    if port.is_empty() {
                        None
                    } else {
                        Some(port.parse().ok()?)
                    },
                )
            }
            _ => (text, None),
        };
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        (!host.is_empty()).then_some(Authority { host, port })
    }

    /// The host, and the port if it is known.
    pub fn host_and_port(&self) -> (&str, Option<u16>) {
        (&self.host, self.port)
    }

    /// Reads the authority of a URL, with the port that its scheme implies.
    pub fn of_url(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let default = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let authority = Authority::parse(rest.split('/').next()?)?;
        Some(Authority {
            port: authority.port.or(Some(default)),
            ..authority
        })
    }

    fn is_loopback(&self) -> bool {
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost"
            || host.ends_with(".localhost")
            || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

/// The reason to refuse a request, if there is one. A request that only reads may come from any page: the browser does
/// not let the page see the answer.
pub fn refusal(request: &Request, looks_only: bool, own: &OwnNames) -> Option<&'static str> {
    let host = request.headers.host.as_deref().map(Authority::parse);
    if own.loopback_only {
        let is_own = |host: &Authority| {
            host.is_loopback()
                || own
                    .public
                    .as_ref()
                    .is_some_and(|public| public.host == host.host)
        };
        match &host {
            Some(Some(host)) if is_own(host) => {}
            None => {}
            _ => return Some("Host: names none of this server's addresses; see --public-url"),
        }
    }
    if looks_only {
        return None;
    }
    if let Some(site) = &request.headers.fetch_site
        && !matches!(site.as_str(), "same-origin" | "none")
    {
        return Some("Sec-Fetch-Site: a page of another site must not make this call");
    }
    let origin = request.headers.origin.as_ref()?;
    let same = Authority::of_url(origin).is_some_and(|origin| {
        let is_host = host.flatten().is_some_and(|host| {
            host.host == origin.host && host.port.is_none_or(|port| Some(port) == origin.port)
        });
        is_host || own.public.as_ref() == Some(&origin)
    });
    (!same).then_some("Origin: a page of another site must not make this call; see --public-url")
}
