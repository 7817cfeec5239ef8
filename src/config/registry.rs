//! The address of the server and the authorities to trust: settings of the agent and of the commands for people.

use super::DEFAULT_PORT;
use clap::Args;
use std::net::IpAddr;
use std::path::PathBuf;

/// The most addresses of servers, in number. A call that nobody answers takes seconds for each.
const MAX_ADDRESSES: usize = 16;

/// The arguments that name the server.
#[derive(Debug, Clone, Args)]
pub struct RegistryArgs {
    /// The server: HOST, HOST:PORT or a URL; port 9410 when none is given. Several servers of one registry, separated
    /// by commas, are asked in turn until one answers
    #[arg(
        long,
        env = "SIDEBIKE_REGISTRY_ADDRESS",
        value_name = "ADDRESS",
        default_value = "127.0.0.1"
    )]
    registry_address: String,
    /// PEM file of the authorities to trust for an https server [default: the system's]
    #[arg(long, env = "SIDEBIKE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// The servers, and the authorities to trust.
#[derive(Debug, Clone)]
pub struct Registry {
    urls: Vec<String>,
    /// The file of authorities; without one the system's are trusted.
    pub ca: Option<PathBuf>,
}

impl Registry {
    /// Servers by their base URLs, of which there is one at least.
    pub fn new(urls: Vec<String>, ca: Option<PathBuf>) -> Self {
        Registry { urls, ca }
    }

    /// Their base URLs, without a trailing slash, in the order in which they are asked.
    pub fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Whether one of them is called by https.
    pub fn is_https(&self) -> bool {
        self.urls.iter().any(|url| is_https(url))
    }

    /// Those to which requests leave this machine unencrypted, for people; none if there are none.
    pub fn insecure(&self) -> Option<String> {
        let urls = self.urls.iter().map(String::as_str);
        let insecure: Vec<&str> = urls
            .filter(|url| !is_https(url) && !is_loopback(url))
            .collect();
        (!insecure.is_empty()).then(|| insecure.join(", "))
    }

    /// The server of the list that an address means, however it is written; none if it means none of them.
    pub fn find(&self, address: &str) -> Option<usize> {
        let wanted = comparable(&registry_url(address.trim())?);
        self.urls.iter().position(|url| comparable(url) == wanted)
    }
}

impl std::fmt::Display for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.urls.join(", "))
    }
}

impl RegistryArgs {
    /// Checks the arguments. The error is one line for the user.
    pub fn checked(&self) -> Result<Registry, String> {
        let ca = self.ca.clone().filter(|file| !file.as_os_str().is_empty());
        let mut registry = Registry::new(Vec::new(), ca);
        for address in self.registry_address.split(',').map(str::trim) {
            let url = registry_url(address).ok_or_else(|| {
                format!(
                    "--registry-address: expected HOST, HOST:PORT or a URL such as http://10.23.45.67:9410, got {address:?}"
                )
            })?;
            if registry.find(&url).is_none() {
                registry.urls.push(url);
            }
        }
        let count = registry.urls.len();
        if count > MAX_ADDRESSES {
            return Err(format!(
                "--registry-address: names {MAX_ADDRESSES} servers at most, got {count}"
            ));
        }
        Ok(registry)
    }
}

fn is_https(url: &str) -> bool {
    url.starts_with("https://")
}

/// A base URL in the form in which two that mean the same are equal.
fn comparable(url: &str) -> String {
    let begin = url.find("://").map_or(0, |at| at + 3);
    let end = url[begin..].find('/').map_or(url.len(), |at| begin + at);
    let (authority, path) = url.split_at(end);
    let authority = authority.to_ascii_lowercase();
    // Of an address of IPv6 there are many spellings.
    let v6 = authority.split_once('[').and_then(|(scheme, rest)| {
        let (host, port) = rest.split_once(']')?;
        let host: std::net::Ipv6Addr = host.parse().ok()?;
        Some(format!("{scheme}[{host}]{port}"))
    });
    v6.unwrap_or(authority) + path
}

/// Whether a base URL names this machine.
fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or_default();
    let host = authority
        .rsplit_once(':')
        .map_or(authority, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.parse::<IpAddr>().map_or_else(
        |_| host.eq_ignore_ascii_case("localhost"),
        |ip| ip.is_loopback(),
    )
}

/// `host`, `host:port`, `[v6]`, `v6` or a URL → base URL with a port.
fn registry_url(address: &str) -> Option<String> {
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme, rest),
        Some(_) => return None,
        None => ("http", address),
    };
    let rest = rest.trim_end_matches('/');
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (host, port) = if let Ok(v6) = authority.parse::<std::net::Ipv6Addr>() {
        (format!("[{v6}]"), None)
    } else if authority.ends_with(']') {
        (authority.to_owned(), None)
    } else {
        match authority.rsplit_once(':') {
            Some((host, port)) => (
                host.to_owned(),
                Some(port.parse::<u16>().ok().filter(|p| *p != 0)?),
            ),
            None => (authority.to_owned(), None),
        }
    };
    let good_host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        }
    };
    let good_path = path
        .chars()
        .all(|c| c.is_ascii_graphic() && !"?#".contains(c));
    (good_host && good_path)
        .then(|| format!("{scheme}://{host}:{}{path}", port.unwrap_or(DEFAULT_PORT)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_people_type() {
        for (typed, url) in [
            ("10.23.45.67", "http://10.23.45.67:9410"),
            ("registry", "http://registry:9410"),
            ("registry:80", "http://registry:80"),
            ("http://registry/", "http://registry:9410"),
            (
                "https://registry:443/sidebike/",
                "https://registry:443/sidebike",
            ),
            ("::1", "http://[::1]:9410"),
            ("[::1]:99", "http://[::1]:99"),
        ] {
            assert_eq!(registry_url(typed).as_deref(), Some(url), "{typed}");
        }
        for typed in [
            "",
            "a b",
            "ftp://x",
            "host:port",
            "host:0",
            "host:70000",
            "http://",
            "a?b",
            "::g",
            "http://u@h",
        ] {
            assert_eq!(registry_url(typed), None, "{typed}");
        }
    }

    fn given(addresses: &str) -> RegistryArgs {
        RegistryArgs {
            registry_address: addresses.into(),
            ca: None,
        }
    }

    #[test]
    fn unencrypted_addresses_of_other_machines_are_insecure() {
        for (url, is_insecure) in [
            ("http://10.23.45.67:9410", true),
            ("http://localhost.example:9410/x", true),
            ("http://[2001:db8::1]:9410", true),
            ("http://127.0.0.1:9410", false),
            ("http://localhost:9410", false),
            ("http://[::1]:9410/x", false),
            ("https://10.23.45.67:9410", false),
        ] {
            let registry = Registry::new(vec![url.to_owned()], None);
            let insecure = registry.insecure();
            assert_eq!(insecure.as_deref(), is_insecure.then_some(url));
        }
        let several = given("a,https://b,c:1,localhost").checked().unwrap();
        let insecure = several.insecure();
        assert_eq!(insecure.as_deref(), Some("http://a:9410, http://c:1"));
        assert!(several.is_https());
    }

    #[test]
    fn several_addresses_are_separated_by_commas() {
        let several = given("a, b:9411,https://c,A:9410").checked().unwrap();
        let urls = ["http://a:9410", "http://b:9411", "https://c:9410"];
        assert_eq!(several.urls(), urls);
        for (addresses, wrong) in [("", "got \"\""), ("a,", "got \"\""), ("a,b c", "\"b c\"")] {
            let why = given(addresses).checked().unwrap_err();
            assert!(why.contains(wrong), "{addresses}: {why}");
        }
        let many = |count| {
            let hosts = (0..count).map(|n| format!("h{n}"));
            given(&hosts.collect::<Vec<_>>().join(",")).checked()
        };
        assert!(many(MAX_ADDRESSES).is_ok());
        let why = many(MAX_ADDRESSES + 1).unwrap_err();
        assert!(why.contains("16 servers at most, got 17"), "{why}");
    }

    #[test]
    fn an_address_is_found_however_it_is_written() {
        let registry = given("Registry,[::1]:99,https://c/Path").checked();
        let registry = registry.unwrap();
        for (address, found) in [
            ("registry", Some(0)),
            (" http://REGISTRY:9410/ ", Some(0)),
            ("https://registry", None),
            ("registry:9411", None),
            ("registry/x", None),
            ("[0:0:0:0:0:0:0:1]:99", Some(1)),
            ("http://[::0001]:99", Some(1)),
            ("::1", None),
            ("https://C:9410/Path", Some(2)),
            ("https://c/path", None),
            ("http://registry@evil:9410", None),
            ("", None),
        ] {
            assert_eq!(registry.find(address), found, "{address}");
        }
    }
}
