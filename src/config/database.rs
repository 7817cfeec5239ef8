//! Where a server keeps its records: `--db` and what belongs to it.

use crate::server::api::browser::Authority;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

/// What a URL of PostgreSQL begins with.
const SCHEMES: [&str; 2] = ["postgres://", "postgresql://"];

/// Where the records are.
#[derive(Debug, Clone)]
pub enum Database {
    /// In a file of this server.
    File(PathBuf),
    /// In a database that several servers share.
    Shared(SharedDatabase),
}

/// A database that several servers share.
#[derive(Debug, Clone)]
pub struct SharedDatabase {
    /// Where it is.
    pub url: DatabaseUrl,
    /// PEM file of the authorities of its certificate, in place of the system's.
    pub ca: Option<PathBuf>,
    /// PEM file of the authorities of the other servers' certificates, in place of the system's.
    pub advertise_ca: Option<PathBuf>,
    /// Where agents, people and the other servers reach this one.
    pub advertise: String,
}

/// The URL of a database. It may contain a password, so it is never shown.
#[derive(Clone)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    /// The URL if it is one of PostgreSQL.
    pub fn of(text: &str) -> Option<DatabaseUrl> {
        let is_one = SCHEMES.iter().any(|scheme| text.starts_with(scheme));
        is_one.then(|| DatabaseUrl(text.to_owned()))
    }

    /// The URL itself, for whoever connects.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl(…)")
    }
}

/// The flags.
pub(super) struct Flags {
    pub db: Option<PathBuf>,
    pub ca: Option<PathBuf>,
    pub advertise_ca: Option<PathBuf>,
    pub advertise: Option<String>,
}

impl Flags {
    /// Checks them. `public` is the server's URL if it has one for browsers.
    pub fn checked(
        self,
        listen: SocketAddr,
        has_tls: bool,
        public: Option<&str>,
    ) -> Result<Option<Database>, String> {
        let url = self.db.as_ref().and_then(|db| db.to_str());
        let Some(url) = url.and_then(DatabaseUrl::of) else {
            for (flag, is_given) in [
                ("--advertise", self.advertise.is_some()),
                ("--advertise-ca", self.advertise_ca.is_some()),
                ("--db-ca", self.ca.is_some()),
            ] {
                if is_given {
                    return Err(format!("{flag}: is for --db postgres://… only"));
                }
            }
            return Ok(self.db.map(Database::File));
        };
        let has_address = !listen.ip().is_unspecified() && listen.port() != 0;
        let scheme = if has_tls { "https" } else { "http" };
        let advertise = match (self.advertise, public) {
            (Some(url), _) => url,
            (None, Some(public)) => public.to_owned(),
            (None, None) if has_address => format!("{scheme}://{listen}"),
            (None, None) => {
                return Err(
                    "--advertise: needed with --db postgres://…: the URL under which agents and the other servers reach this one, such as http://10.0.0.1:9410"
                        .into(),
                );
            }
        };
        let advertise = advertise.trim_end_matches('/').to_owned();
        let is_plain = advertise.matches('/').count() == 2
            && advertise.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_plain || Authority::of_url(&advertise).is_none() {
            return Err(format!(
                "--advertise: expected a URL without a path such as http://10.0.0.1:9410, got {advertise:?}"
            ));
        }
        Ok(Some(Database::Shared(SharedDatabase {
            url,
            ca: self.ca,
            advertise_ca: self.advertise_ca,
            advertise,
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(
        db: &str,
        advertise: Option<&str>,
        listen: &str,
    ) -> Result<Option<Database>, String> {
        let flags = Flags {
            db: Some(db.into()),
            ca: None,
            advertise_ca: None,
            advertise: advertise.map(str::to_owned),
        };
        flags.checked(listen.parse().unwrap(), false, None)
    }

    #[test]
    fn a_path_is_a_file() {
        let is_file = |found| matches!(found, Ok(Some(Database::File(_))));
        assert!(is_file(checked("/a/postgres:/b", None, "0.0.0.0:9410")));
        let refused = checked("a.db", Some("http://a:1"), "0.0.0.0:9410").unwrap_err();
        assert!(refused.starts_with("--advertise: is for"), "{refused}");
    }

    #[test]
    fn a_shared_database_needs_an_address_of_the_server() {
        let advertised = |advertise, listen| match checked("postgres://u:pw@h/d", advertise, listen)
        {
            Ok(Some(Database::Shared(shared))) => {
                assert!(!format!("{shared:?}").contains("pw"), "never shown");
                Ok(shared.advertise)
            }
            Ok(other) => panic!("{other:?}"),
            Err(why) => Err(why),
        };
        let any = "0.0.0.0:9410";
        assert_eq!(
            advertised(Some("http://a:1/"), any),
            Ok("http://a:1".into())
        );
        let own = advertised(None, "10.0.0.1:9410");
        assert_eq!(own, Ok("http://10.0.0.1:9410".into()));
        for (advertise, listen) in [
            (None, any),
            (None, "10.0.0.1:0"),
            (Some("a:1"), any),
            (Some("http://a:1/path"), any),
            (Some("http://a:1\r\nX: y"), any),
        ] {
            let why = advertised(advertise, listen).unwrap_err();
            assert!(why.starts_with("--advertise: "), "{why}");
        }
    }
}
