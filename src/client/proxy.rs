//! The proxy between a client and its server, as the environment names it.
//!
//! `NO_PROXY` is read as curl reads it; a proxy of a kind that is not spoken here is an error, not ignored: to go
//! direct instead would send the token by a way that nobody chose.

use std::net::IpAddr;
use std::str::FromStr;
use ureq::Proxy;

/// The variables that name a proxy; the first that is set counts.
const VARIABLES: [&str; 6] = [
    "ALL_PROXY",
    "all_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
];
/// The variables that say for which servers there is none.
const EXEMPTIONS: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// A proxy and its name in messages.
#[derive(Debug, Clone)]
pub struct NamedProxy {
    /// The proxy.
    pub proxy: Proxy,
    /// Its address and the variable that names it, without a password.
    name: String,
}

/// The proxy for the server with this base URL. The error is one line for people.
pub fn from_environment(url: &str) -> Result<Option<NamedProxy>, String> {
    let Some((variable, value)) = first_set(&VARIABLES) else {
        return Ok(None);
    };
    let (host, port) = host_and_port(url);
    if first_set(&EXEMPTIONS).is_some_and(|(_, list)| is_exempt(&list, host, port)) {
        return Ok(None);
    }
    named(variable, &value).map(Some)
}

impl NamedProxy {
    /// Why no answer came by this proxy.
    pub fn explain(&self, why: &ureq::Error, text: &str) -> String {
        let name = &self.name;
        match why {
            ureq::Error::ConnectProxyFailed(said) => {
                let said = said.strip_prefix("proxy server ").unwrap_or(said);
                let said = said.split('/').next().unwrap_or_default();
                format!(
                    "the proxy {name} opens no tunnel (CONNECT) to the server: it {said}; allow that there, or name the server in NO_PROXY"
                )
            }
            _ => format!("{text} (by the proxy {name})"),
        }
    }

    /// Whether the proxy itself speaks https.
    pub fn is_https(&self) -> bool {
        self.proxy.uri().scheme_str() == Some("https")
    }
}

fn first_set(variables: &[&'static str]) -> Option<(&'static str, String)> {
    let set = variables.iter().filter_map(|name| {
        let value = std::env::var(name).ok()?.trim().to_owned();
        (!value.is_empty()).then_some((*name, value))
    });
    set.into_iter().next()
}

fn named(variable: &str, value: &str) -> Result<NamedProxy, String> {
    let scheme = value.split_once("://").map_or("http", |(scheme, _)| scheme);
    let scheme = scheme.to_ascii_lowercase();
    let is_known = scheme == "http" || (scheme == "https" && cfg!(feature = "tls"));
    if !is_known {
        return Err(format!(
            "{variable}: a proxy of the kind {scheme:?} is not supported; give http://HOST:PORT or https://HOST:PORT, or name the server in NO_PROXY"
        ));
    }
    // What was given may hold a password: not shown.
    let proxy = Proxy::new(value).ok().filter(has_good_port);
    let proxy = proxy.ok_or_else(|| {
        format!("{variable}: is not the URL of a proxy, such as http://proxy.example:3128")
    })?;
    let name = format!("{scheme}://{}:{} ({variable})", proxy.host(), proxy.port());
    Ok(NamedProxy { proxy, name })
}

/// Whether what follows the host is a port.
fn has_good_port(proxy: &Proxy) -> bool {
    let uri = proxy.uri();
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let place = authority.rsplit('@').next().unwrap_or_default();
    uri.port_u16().is_some() || uri.host() == Some(place)
}

/// The host of a base URL without brackets, and its port.
fn host_and_port(url: &str) -> (&str, u16) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
    (host, port.parse().unwrap_or_default())
}

/// Whether a list of hosts, domains, addresses and networks names this server.
fn is_exempt(list: &str, host: &str, port: u16) -> bool {
    let host = without_brackets(host).trim_end_matches('.');
    let host = host.to_ascii_lowercase();
    let address = host.parse::<IpAddr>().ok();
    let names_it = |entry: &str| {
        if entry == "*" {
            return true;
        }
        if let (Some(address), Some((network, bits))) = (address, entry.split_once('/')) {
            return is_in_network(address, network, bits);
        }
        let (name, wanted_port) = with_port(entry);
        if wanted_port.is_some_and(|wanted| wanted != port) {
            return false;
        }
        match address {
            Some(address) => without_brackets(name).parse() == Ok(address),
            None => is_in_domain(&host, name),
        }
    };
    let mut entries = list.split(|c: char| c == ',' || c.is_whitespace());
    entries.any(|entry| !entry.is_empty() && names_it(entry))
}

/// `host:port`, `[v6]:port`, `host`, `v6` → the name and the port.
fn with_port(entry: &str) -> (&str, Option<u16>) {
    if IpAddr::from_str(entry).is_ok() {
        return (entry, None);
    }
    let split = entry.rsplit_once(':');
    match split.and_then(|(name, port)| Some((name, port.parse().ok()?))) {
        Some((name, port)) => (name, Some(port)),
        None => (entry, None),
    }
}

fn without_brackets(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Whether a host is this one, or one below it.
fn is_in_domain(host: &str, name: &str) -> bool {
    let name = name.strip_prefix("*.").unwrap_or(name);
    let name = name.trim_matches('.').to_ascii_lowercase();
    let above = host.strip_suffix(&name);
    !name.is_empty() && above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
}

/// Whether an address begins with the same bits as a network.
fn is_in_network(address: IpAddr, network: &str, bits: &str) -> bool {
    let (Ok(network), Ok(bits)) = (without_brackets(network).parse(), bits.parse::<u32>()) else {
        return false;
    };
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) if bits <= 32 => {
            let differ = address.to_bits() ^ network.to_bits();
            differ.checked_shr(32 - bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(network)) if bits <= 128 => {
            let differ = address.to_bits() ^ network.to_bits();
            differ.checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exemptions_are_read_as_curl_reads_them() {
        for (list, host, expected) in [
            ("", "a", false),
            ("*", "a", true),
            ("localhost, 127.0.0.1", "127.0.0.1", true),
            ("localhost 127.0.0.1", "localhost", true),
            ("localhost,,", "LOCALHOST.", true),
            ("127.0.0.0/8", "127.0.0.1", true),
            ("127.0.0.0/8", "128.0.0.1", false),
            ("10.1.2.3/32", "10.1.2.3", true),
            ("0.0.0.0/0", "10.1.2.3", true),
            ("10.0.0.0/33", "10.0.0.0", false),
            ("10.0.0.0/x", "10.0.0.0", false),
            ("fd00::/8", "[fd12::1]", true),
            ("fd00::/8", "[fe80::1]", false),
            ("::1", "[::1]", true),
            ("[::1]", "[::1]", true),
            ("[::1]:9410", "[::1]", true),
            ("[::1]:1", "[::1]", false),
            ("a.example:9410", "a.example", true),
            ("a.example:80", "a.example", false),
            ("127.0.0.1:9410", "127.0.0.1", true),
            ("example", "a.example", true),
            (".example", "a.example", true),
            (".example", "example", true),
            ("*.example", "a.example", true),
            ("example", "notexample", false),
            ("a.example", "example", false),
            ("27.0.0.1", "127.0.0.1", false),
            (".", "a", false),
        ] {
            assert_eq!(is_exempt(list, host, 9410), expected, "{list:?} {host:?}");
        }
    }

    #[test]
    fn urls_have_a_host_and_a_port() {
        for (url, expected) in [
            ("http://a:9410", ("a", 9410)),
            ("https://[::1]:1/path", ("[::1]", 1)),
        ] {
            assert_eq!(host_and_port(url), expected);
        }
    }

    #[test]
    fn only_proxies_that_are_spoken_to_are_taken() {
        assert_eq!(
            named("ALL_PROXY", "http://user:secret@p:3128")
                .unwrap()
                .name,
            "http://p:3128 (ALL_PROXY)"
        );
        assert!(named("HTTP_PROXY", "p:3128").is_ok());
        for value in ["socks5://p:1080", "socks5h://u:secret@p", "ftp://p"] {
            let why = named("ALL_PROXY", value).unwrap_err();
            assert!(
                why.starts_with("ALL_PROXY: a proxy of the kind \""),
                "{why}"
            );
            assert!(!why.contains("secret"), "{why}");
        }
        let why = named("ALL_PROXY", "http://u:secret@p:x").unwrap_err();
        assert!(
            why.contains("is not the URL") && !why.contains("secret"),
            "{why}"
        );
    }
}
