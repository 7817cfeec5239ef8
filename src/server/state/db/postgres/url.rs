//! `postgres://USER[:PASSWORD]@HOST[:PORT],…/DATABASE[?sslmode=…]`, and how it is shown: without the password.

use percent_encoding::percent_decode_str;
use std::fmt;
use std::net::IpAddr;

/// PostgreSQL's port.
const DEFAULT_PORT: u16 = 5432;

/// What a URL says.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    /// Who connects.
    pub user: String,
    /// The password, if the URL has one.
    pub password: Option<String>,
    /// The servers of the database, to be tried in order.
    pub hosts: Vec<Host>,
    /// The name of the database.
    pub database: String,
    /// How connections are encrypted.
    pub tls: TlsMode,
    /// `options`: settings of the session, as PostgreSQL reads them.
    pub options: Option<String>,
}

/// A server of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its name or address.
    pub name: String,
    /// Its port.
    pub port: u16,
}

/// How connections are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// With a verified certificate, except to this machine.
    Usual,
    /// With a verified certificate, even to this machine.
    Always,
    /// Not at all.
    Never,
}

impl Host {
    /// Whether it is this machine.
    pub fn is_loopback(&self) -> bool {
        let name = self.name.as_str();
        name.parse::<IpAddr>().map_or_else(
            |_| name.eq_ignore_ascii_case("localhost"),
            |ip| ip.is_loopback(),
        )
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]:{}", self.name, self.port),
            false => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

/// Without the password.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres://{}@", self.user)?;
        for (i, host) in self.hosts.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{host}")?;
        }
        write!(f, "/{}", self.database)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Url({self})")
    }
}

impl Url {
    /// Whether data crosses a network without TLS.
    pub fn is_insecure(&self) -> bool {
        self.tls == TlsMode::Never && !self.hosts.iter().all(Host::is_loopback)
    }

    /// Reads one. The error never contains any of it that could be a password.
    pub fn read(text: &str) -> Result<Url, String> {
        let rest = { text.strip_prefix("postgres://") }
            .or_else(|| text.strip_prefix("postgresql://"))
            .ok_or("expected postgres://USER@HOST/DATABASE")?;
        if rest.contains('#') {
            return Err("write # as %23".into());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A password may contain anything but @ and /, even unescaped.
        let (authority, database) = rest
            .rsplit_once('/')
            .ok_or("the name of the database is missing: postgres://USER@HOST/DATABASE")?;
        if authority.contains('/') {
            return Err(
                "there is more than one / behind the hosts; in a password write / as %2F".into(),
            );
        }
        let (login, hosts) = authority
            .rsplit_once('@')
            .ok_or("the user is missing: postgres://USER@HOST/DATABASE")?;
        if login.contains('@') {
            return Err("in a user or password write @ as %40".into());
        }
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (login, None),
        };
        let user = decoded("user", user)?;
        if user.is_empty() {
            return Err("the user is missing: postgres://USER@HOST/DATABASE".into());
        }
        let password = { password.filter(|password| !password.is_empty()) }
            .map(|password| decoded("password", password));
        let database = decoded("database", database)?;
        if database.is_empty() {
            return Err(
                "the name of the database is missing: postgres://USER@HOST/DATABASE".into(),
            );
        }
        let hosts = hosts.split(',').map(host).collect::<Result<Vec<_>, _>>()?;
        let mut url = Url {
            user,
            password: password.transpose()?,
            hosts,
            database,
            tls: TlsMode::Usual,
            options: None,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            url.set(pair)?;
        }
        Ok(url)
    }

    fn set(&mut self, pair: &str) -> Result<(), String> {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "sslmode" => {
                self.tls = match value {
                    "disable" => TlsMode::Never,
                    "require" | "verify-ca" | "verify-full" => TlsMode::Always,
                    _ => return Err("sslmode must be verify-full or disable; without it TLS is used and verified, except to this machine".into()),
                }
            }
            "options" => self.options = Some(decoded("options", value)?),
            "sslrootcert" => return Err("in place of sslrootcert use --db-ca FILE".into()),
            // The password may stand here, too; its name is all that is shown.
            _ => {
                let known = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
                let name = if known { name } else { "something" };
                return Err(format!("behind the ? there may be sslmode and options, not {name}"));
            }
        }
        Ok(())
    }
}

fn host(text: &str) -> Result<Host, String> {
    let wrong = |why: &str| format!("host {text:?}: {why}");
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, rest) = rest
                .split_once(']')
                .ok_or_else(|| wrong("the ] is missing"))?;
            match rest.strip_prefix(':') {
                Some(port) => (name, Some(port)),
                None if rest.is_empty() => (name, None),
                None => return Err(wrong("expected [ADDRESS] or [ADDRESS]:PORT")),
            }
        }
        None => match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') => {
                return Err(wrong("an IPv6 address is written in brackets"));
            }
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    if name.is_empty() {
        return Err("a host is missing: postgres://USER@HOST1,HOST2/DATABASE".into());
    }
    if name.starts_with('%') {
        return Err(wrong("sockets of Unix are not supported, name a host"));
    }
    let port = match port {
        None => DEFAULT_PORT,
        Some(port) => { port.parse().ok() }
            .filter(|port| *port != 0)
            .ok_or_else(|| wrong("its port must be a number from 1 to 65535"))?,
    };
    let name = name.to_owned();
    Ok(Host { name, port })
}

/// Without percent signs. A NUL ends a text in PostgreSQL's protocol.
fn decoded(what: &str, text: &str) -> Result<String, String> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| format!("{what}: is not UTF-8 behind its % signs"))?;
    match decoded.contains('\0') {
        true => Err(format!("{what}: must not contain %00")),
        false => Ok(decoded.into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_user_hosts_and_database() {
        let url = Url::read("postgres://u:p%40ss:w@a,b:6432,[::1]:7/side?sslmode=disable").unwrap();
        assert_eq!(url.user, "u");
        assert_eq!(url.password.as_deref(), Some("p@ss:w"));
        assert_eq!(url.database, "side");
        assert_eq!(url.tls, TlsMode::Never);
        assert_eq!(url.to_string(), "postgres://u@a:5432,b:6432,[::1]:7/side");
        assert!(url.is_insecure());
        let url = Url::read("postgresql://u@127.0.0.1/d?options=-c%20search_path%3Dx").unwrap();
        assert_eq!(url.options.as_deref(), Some("-c search_path=x"));
        assert_eq!((url.password, url.tls), (None, TlsMode::Usual));
    }

    #[test]
    fn a_wrong_one_is_explained_and_its_password_is_not_shown() {
        let wrong = [
            ("postgres://h/d", "the user is missing"),
            (
                "postgres://u:S3CRET@h",
                "the name of the database is missing",
            ),
            (
                "postgres://u:S3CRET@h/",
                "the name of the database is missing",
            ),
            ("postgres://u:S3/CRET@h/d", "write / as %2F"),
            ("postgres://u:S3@CRET@h/d", "write @ as %40"),
            ("postgres://u:S3#CRET@h/d", "write # as %23"),
            ("postgres://u:S3CRET@h:0/d", "its port must be a number"),
            ("postgres://u:S3CRET@h:x/d", "its port must be a number"),
            ("postgres://u:S3CRET@/d", "a host is missing"),
            ("postgres://u:S3CRET@a,,b/d", "a host is missing"),
            ("postgres://u:S3CRET@::1/d", "written in brackets"),
            ("postgres://u:S3CRET@[::1/d", "the ] is missing"),
            ("postgres://u:S3CRET@%2Frun/d", "sockets of Unix"),
            ("postgres://u:S3CRET%00@h/d", "%00"),
            ("postgres://u:S3CRET%ff@h/d", "UTF-8"),
            ("postgres://u@h/d?sslmode=prefer", "verify-full or disable"),
            ("postgres://u@h/d?sslrootcert=f", "--db-ca"),
            ("postgres://u@h/d?password=S3CRET", "not password"),
            ("postgres://u@h/d?S3CRET", "not something"),
            ("http://u@h/d", "expected postgres://"),
        ];
        for (url, words) in wrong {
            let why = Url::read(url).unwrap_err();
            assert!(why.contains(words), "{url}: {why}");
            assert!(!why.contains("S3") && !why.contains("CRET"), "{url}: {why}");
        }
        let url = Url::read("postgres://u:S3CRET@h/d").unwrap();
        assert!(!format!("{url} {url:?}").contains("S3CRET"));
    }
}
