//! The address of the server and the authorities to trust: settings of the agent and of the commands for people.

use super::DEFAULT_PORT;
use clap::Args;
use std::net::IpAddr;
use std::path::PathBuf;

/// The arguments that name the server.
#[derive(Debug, Clone, Args)]
pub struct RegistryArgs {
    /// The server: HOST, HOST:PORT or a URL; port 9410 when none is given
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

/// A server and the authorities to trust.
#[derive(Debug, Clone)]
pub struct Registry {
    /// Its base URL, without a trailing slash.
    pub url: String,
    /// The file of authorities; without one the system's are trusted.
    pub ca: Option<PathBuf>,
}

impl Registry {
    /// Whether it is called by https.
    pub fn is_https(&self) -> bool {
        self.url.starts_with("https://")
    }

    /// Whether requests leave this machine unencrypted.
    pub fn is_insecure(&self) -> bool {
        !self.is_https() && !is_loopback(&self.url)
    }
}

impl RegistryArgs {
    /// Checks the arguments. The error is one line for the user.
    pub fn checked(&self) -> Result<Registry, String> {
        let address = self.registry_address.trim();
        let url = registry_url(address).ok_or_else(|| {
            format!(
                "--registry-address: expected HOST, HOST:PORT or a URL such as http://10.23.45.67:9410, got {address:?}"
            )
        })?;
        let ca = self.ca.clone().filter(|file| !file.as_os_str().is_empty());
        Ok(Registry { url, ca })
    }
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

    #[test]
    fn unencrypted_addresses_of_other_machines_are_insecure() {
        for (url, can) in [
            ("http://10.23.45.67:9410", true),
            ("http://localhost.example:9410/x", true),
            ("http://[2001:db8::1]:9410", true),
            ("http://127.0.0.1:9410", false),
            ("http://localhost:9410", false),
            ("http://[::1]:9410/x", false),
            ("https://10.23.45.67:9410", false),
        ] {
            let url = url.to_owned();
            let registry = Registry { url, ca: None };
            assert_eq!(registry.is_insecure(), can, "{registry:?}");
        }
    }
}
