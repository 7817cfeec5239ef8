//! A request as handlers see it: its method, its target taken apart, the headers that matter, its body.

use super::ConnectionId;
use super::memory_budget::Reservation;
use crate::wire::term::{LeaderCommit, RegistryTerm};
use percent_encoding::percent_decode_str;
use std::net::IpAddr;

/// A request as far as handlers need it.
#[derive(Debug)]
pub struct Request {
    /// `GET`, `POST`, …
    pub method: String,
    /// The parts of the path between slashes, decoded, without a trailing empty one.
    pub path: Vec<String>,
    query: Vec<(String, String)>,
    /// The headers that matter.
    pub headers: Headers,
    /// Where it came from.
    pub peer: Option<IpAddr>,
    /// The connection it came by; `None` where connections have no number.
    pub connection: Option<ConnectionId>,
    /// It is the first one of its connection.
    pub is_first: bool,
    /// The body; empty until it has been read, and of one that a sink takes.
    pub body: Vec<u8>,
    /// The length of the body that its head names; `None` for one in chunks.
    pub body_bytes: Option<u64>,
    /// How many bytes of the body were left out at its end, see [`BodyLimit::Cut`](super::BodyLimit::Cut).
    pub body_left_out: u64,
    /// What a large body takes of the memory budget, given back with the request.
    pub(super) reservation: Option<Reservation>,
}

/// The headers that say who is asking, and for what.
#[derive(Debug, Default)]
pub struct Headers {
    /// `Host`.
    pub host: Option<String>,
    /// `Origin`.
    pub origin: Option<String>,
    /// `Sec-Fetch-Site`.
    pub fetch_site: Option<String>,
    /// `Accept`.
    pub accept: Option<String>,
    /// `Range`.
    pub range: Option<String>,
    /// `If-Range`.
    pub if_range: Option<String>,
    /// `If-None-Match`.
    pub if_none_match: Option<String>,
    /// `Content-Range`.
    pub content_range: Option<String>,
    /// `Sidebike-Instance`: which agent asks. A secret as well.
    pub instance: Option<Authorization>,
    /// `Sidebike-Term`: how far an agent has seen a registry come. A value that is none is ignored.
    pub term: Option<RegistryTerm>,
    /// `Sidebike-Commit`: the last commit that it has seen in that term.
    pub commit: Option<LeaderCommit>,
    /// `User-Agent` is that of sidebike's own agent or command line.
    pub is_of_sidebike: bool,
    /// `Sidebike-Forwarded`: for whom another server asks.
    pub forwarded: Option<String>,
    /// `Authorization`: a secret, see the `Debug` of its type.
    pub authorization: Option<Authorization>,
}

/// The value of a header that must never show.
pub struct Authorization(pub(super) String);

impl Authorization {
    /// The value itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Authorization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authorization(…)")
    }
}

/// A request that could not be taken in.
#[derive(Debug)]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// Which part was wrong, and what would be right.
    pub msg: String,
}

impl Refused {
    /// A refusal with this status and reason.
    pub fn new(status: u16, msg: impl Into<String>) -> Self {
        Refused {
            status,
            msg: msg.into(),
        }
    }
}

impl Request {
    /// A request line, its target taken apart; without a body.
    pub fn parsed(
        method: &str,
        target: &str,
        headers: Headers,
        peer: Option<IpAddr>,
    ) -> Result<Self, Refused> {
        let (path, query) = split_target(target)?;
        Ok(Request {
            method: method.to_owned(),
            path,
            query,
            headers,
            peer,
            connection: None,
            is_first: false,
            body: Vec::new(),
            body_bytes: Some(0),
            body_left_out: 0,
            reservation: None,
        })
    }

    /// The target as it was read, in a form in which no two different ones are the same.
    pub fn target_as_read(&self) -> String {
        format!("{:?}{:?}", self.path, self.query)
    }

    /// Every value of a parameter of the query.
    pub fn query_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let same = self.query.iter().filter(move |(n, _)| n == name);
        same.map(|(_, value)| value.as_str())
    }

    /// A parameter of the query; the last one when it was given several times.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .rev()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// The names of all parameters of the query.
    pub fn query_names(&self) -> impl Iterator<Item = &str> {
        self.query.iter().map(|(name, _)| name.as_str())
    }
}

/// The parts of a path, and the parameters of a query.
type Target = (Vec<String>, Vec<(String, String)>);

/// `/a/b%20c/?x=1&y` → path and query, decoded.
fn split_target(target: &str) -> Result<Target, Refused> {
    let target = target.split('#').next().unwrap_or_default();
    // The absolute form, as a proxy gets it: its host says no more than `Host` does.
    let target = match target.split_once("://") {
        Some(("http" | "https", rest)) => &rest[rest.find(['/', '?']).unwrap_or(rest.len())..],
        _ => target,
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let decoded = |text: &str, what: &str| {
        // As most are: nothing to decode.
        if !text.contains('%') {
            return Ok(text.to_owned());
        }
        percent_decode_str(text)
            .decode_utf8()
            .map(|text| text.into_owned())
            .map_err(|_| Refused::new(400, format!("the {what} must be UTF-8")))
    };
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let parts = path.split('/').filter(|_| !path.is_empty());
    let path = parts
        .map(|part| decoded(part, "path"))
        .collect::<Result<_, _>>()?;
    let pairs = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text = |text: &str| match text.contains('+') {
                true => decoded(&text.replace('+', " "), "query"),
                false => decoded(text, "query"),
            };
            Ok((text(name)?, text(value)?))
        });
    Ok((path, pairs.collect::<Result<_, Refused>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_with_and_without_a_slash_are_the_same() {
        let (with, query) = split_target("/api/v1/task/?taskPrefix=a%20b&limit=5&x").unwrap();
        let (without, _) = split_target("http://host:9410/api/v1/task").unwrap();
        assert_eq!(with, ["api", "v1", "task"]);
        assert_eq!(with, without);
        assert_eq!(query[0], ("taskPrefix".into(), "a b".into()));
        assert_eq!(query[2], ("x".into(), String::new()));
        assert!(split_target("/").unwrap().0.is_empty());
        assert!(split_target("/%ff").is_err());
        let (path, query) = split_target("http://host?a=b").unwrap();
        assert!(path.is_empty() && query[0] == ("a".into(), "b".into()));
    }
}
