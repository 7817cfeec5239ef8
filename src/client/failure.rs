//! Why a call failed, and what that means: whether it may succeed later, and whether another server may be asked.

use super::{MAX_REASON, quoted};
use std::fmt;

/// Why a call failed.
#[derive(Debug)]
pub struct CallError {
    /// The call: the name of an agent's call, or text for people that follows "cannot".
    pub call: &'static str,
    url: String,
    /// The kind of failure.
    pub kind: Kind,
    /// The other servers that were asked, and why each of them did not help.
    others: Vec<(String, Kind)>,
    /// A server is left that was not asked: it must not get the same call again.
    is_one_left: bool,
}

/// The kinds of failure.
#[derive(Debug)]
pub enum Kind {
    /// There is no connection: the server has not read anything of the request.
    NotConnected(String),
    /// No answer came. Whether the server has read the request is not known.
    Unreachable(String),
    /// The same, after the call had begun: the time was over, or the connection was cut. A shorter request
    /// may succeed.
    Interrupted(String),
    /// The server refused.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The reason it gave.
        msg: String,
        /// Whether the answer has the form of a sidebike server; otherwise a proxy may have answered.
        ours: bool,
    },
    /// The server refused with 503 because it does not lead.
    Standby {
        /// It led when the call came, and may have executed it; otherwise nothing was done.
        may_be_done: bool,
        /// The address of the one that leads, as it says; empty if it does not know.
        leader: Box<str>,
        /// The reason it gave.
        msg: String,
    },
    /// The answer is of a server that was replaced: its term is lower than one that was seen. It is not obeyed.
    Outdated(String),
    /// An answer came that is not of the expected form.
    NotUnderstood(String),
}

/// What may have become of a call that has failed and that another server may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing of it was sent.
    Unsent,
    /// It was refused before anything was done.
    NotBegun,
    /// It may have been executed.
    Unknown,
}

/// The status of a server that does not lead.
const UNAVAILABLE: u16 = 503;
/// In the errors of libraries: the server's certificate is not accepted.
const UNTRUSTED: &str = "invalid peer certificate";

impl Kind {
    fn is_untrusted(&self) -> bool {
        match self {
            Kind::NotConnected(why) | Kind::Unreachable(why) => why.contains(UNTRUSTED),
            _ => false,
        }
    }

    /// What may have become of the call; none if no other server need be asked.
    pub fn fate(&self) -> Option<Fate> {
        match self {
            Kind::NotConnected(_) => Some(Fate::Unsent),
            Kind::Standby {
                may_be_done: false, ..
            } => Some(Fate::NotBegun),
            Kind::Standby { .. } => Some(Fate::Unknown),
            Kind::Unreachable(_) | Kind::Interrupted(_) | Kind::Outdated(_) => Some(Fate::Unknown),
            Kind::Refused { status, .. } => matches!(status, 502 | 504).then_some(Fate::Unknown),
            Kind::NotUnderstood(_) => None,
        }
    }

    /// Of the failures of several servers the one with the highest number is that of the call.
    fn weight(&self) -> u8 {
        match self {
            _ if self.is_untrusted() => 0,
            Kind::NotConnected(_) | Kind::Unreachable(_) => 1,
            Kind::Interrupted(_) => 2,
            Kind::Outdated(_) => 3,
            Kind::Standby { .. } => 4,
            Kind::Refused { .. } | Kind::NotUnderstood(_) => 5,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::NotConnected(why)
            | Kind::Unreachable(why)
            | Kind::Interrupted(why)
            | Kind::Outdated(why) => f.write_str(why),
            Kind::Refused { status, msg, .. } => write!(f, "refused with {status}: {msg}"),
            Kind::Standby { msg, .. } => write!(f, "refused with {UNAVAILABLE}: {msg}"),
            Kind::NotUnderstood(why) => write!(f, "the answer is not understood: {why}"),
        }
    }
}

impl CallError {
    /// The failure of the only server that was asked, or of the one whose answer counts.
    pub fn new(call: &'static str, url: String, kind: Kind) -> Self {
        CallError {
            call,
            url,
            kind,
            others: Vec::new(),
            is_one_left: false,
        }
    }

    /// The failures of several servers; of the first one at least.
    pub fn of_round(
        call: &'static str,
        first: (String, Kind),
        others: Vec<(String, Kind)>,
        is_one_left: bool,
    ) -> Self {
        let mut error = CallError {
            is_one_left,
            ..CallError::new(call, first.0, first.1)
        };
        for (url, kind) in others {
            let mut other = (url, kind);
            if other.1.weight() > error.kind.weight() {
                std::mem::swap(&mut error.url, &mut other.0);
                std::mem::swap(&mut error.kind, &mut other.1);
            }
            error.others.push(other);
        }
        error
    }

    fn all(&self) -> impl Iterator<Item = &Kind> {
        [&self.kind]
            .into_iter()
            .chain(self.others.iter().map(|(_, kind)| kind))
    }

    /// The server that was called.
    pub fn server(&self) -> &str {
        server_of(&self.url)
    }

    /// The other servers that were asked, each with the reason why it did not help.
    #[cfg(feature = "cli")]
    pub fn others(&self) -> impl Iterator<Item = (&str, &Kind)> {
        let others = self.others.iter();
        others.map(|(url, kind)| (server_of(url), kind))
    }

    /// The HTTP status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self.kind {
            Kind::Refused { status, .. } => Some(status),
            Kind::Standby { .. } => Some(UNAVAILABLE),
            _ => None,
        }
    }

    /// Whether the server refuses the token, or wants one.
    pub fn is_denied(&self) -> bool {
        matches!(self.status(), Some(401 | 403))
    }

    /// Whether a server's certificate was not accepted.
    pub fn is_untrusted(&self) -> bool {
        self.all().any(Kind::is_untrusted)
    }

    /// Whether a server did not answer to the end.
    #[cfg(feature = "agent")]
    pub fn is_interrupted(&self) -> bool {
        self.all().any(|kind| matches!(kind, Kind::Interrupted(_)))
    }

    /// Whether there is another server that may be asked at once, with a call of its own.
    #[cfg(feature = "agent")]
    pub fn is_one_left(&self) -> bool {
        self.is_one_left
    }

    /// Whether no server has answered at all, but perhaps a proxy that has found none, or one that does not lead.
    #[cfg(feature = "agent")]
    pub fn is_silence(&self) -> bool {
        match self.kind {
            Kind::Refused { status, ours, .. } => !ours && matches!(status, 502..=504),
            Kind::NotConnected(_) | Kind::Unreachable(_) | Kind::Interrupted(_) => {
                !self.is_untrusted()
            }
            Kind::Standby { .. } | Kind::Outdated(_) => true,
            Kind::NotUnderstood(_) => false,
        }
    }

    /// Whether the same request may succeed in a moment: nobody answered, or nobody who knows better.
    pub fn is_temporary(&self) -> bool {
        match self.kind {
            Kind::Refused { status, ours, .. } => {
                !ours || matches!(status, 408 | 425 | 429 | 500 | 502..=504)
            }
            Kind::NotConnected(_) | Kind::Unreachable(_) => !self.kind.is_untrusted(),
            Kind::Interrupted(_)
            | Kind::Standby { .. }
            | Kind::Outdated(_)
            | Kind::NotUnderstood(_) => true,
        }
    }

    /// Whether the same request can never succeed. A 404 that does not come from a sidebike server (but
    /// from a proxy, or while a server is being replaced) may be temporary.
    pub fn is_final(&self) -> bool {
        match self.kind {
            Kind::Refused { status, ours, .. } => match status {
                400 | 404 | 422 => ours,
                413 => true,
                _ => false,
            },
            _ => false,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}: {}", self.call, self.url, self.kind)?;
        for (url, kind) in &self.others {
            write!(f, "; {}: {kind}", server_of(url))?;
        }
        Ok(())
    }
}

impl std::error::Error for CallError {}

/// The base URL in the URL of a call.
pub fn server_of(url: &str) -> &str {
    let server = url.split_once("/api/v1/");
    server.map_or(url, |(server, _)| server)
}

/// What these words in errors of libraries usually mean.
const HINTS: [(&str, &str); 4] = [
    (
        "CaUsedAsEndEntity",
        "a server needs a certificate of its own, with CA:FALSE, not that of an authority",
    ),
    (
        "UnknownIssuer",
        "this machine trusts no authority that has signed it; name a file with the certificate of the authority with --ca or SIDEBIKE_CA",
    ),
    ("InvalidContentType", "maybe it speaks http, not https"),
    ("invalid HTTP version", "maybe it speaks https, not http"),
];

/// The kind of failure when no answer came, for a reason that `text` says.
pub fn without_answer(why: &ureq::Error, text: String) -> Kind {
    match why {
        _ if is_unsent(why) || text.contains(UNTRUSTED) => Kind::NotConnected(text),
        _ if is_interrupted(why) => Kind::Interrupted(text),
        _ => Kind::Unreachable(text),
    }
}

/// Whether no connection was made. A connection that exists ends with other errors.
fn is_unsent(why: &ureq::Error) -> bool {
    use std::io::ErrorKind::{
        AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable,
    };
    match why {
        ureq::Error::Timeout(reason) => {
            matches!(reason, ureq::Timeout::Resolve | ureq::Timeout::Connect)
        }
        ureq::Error::Io(why) => matches!(
            why.kind(),
            AddrNotAvailable
                | ConnectionRefused
                | HostUnreachable
                | NetworkDown
                | NetworkUnreachable
        ),
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::ConnectProxyFailed(_) => true,
        _ => false,
    }
}

/// Whether the call had begun.
fn is_interrupted(why: &ureq::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    match why {
        ureq::Error::Timeout(reason) => {
            !matches!(reason, ureq::Timeout::Resolve | ureq::Timeout::Connect)
        }
        ureq::Error::Io(why) => {
            matches!(why.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
        }
        _ => false,
    }
}

/// Why no answer came.
pub fn unreachable(why: &ureq::Error) -> String {
    let mut text = match why {
        ureq::Error::Timeout(reason) => format!("no answer in time ({reason})"),
        ureq::Error::Io(why) => format!("unreachable: {why}"),
        ureq::Error::HostNotFound => "unreachable: no such host".into(),
        ureq::Error::ConnectionFailed => "unreachable: cannot connect".into(),
        why => format!("unreachable: {why}"),
    };
    if let Some((_, hint)) = HINTS.iter().find(|(words, _)| text.contains(words)) {
        text.push_str(&format!(" ({hint})"));
    }
    text
}

/// The part of an [`Envelope`](crate::wire::Envelope) that matters in a refusal.
#[derive(serde::Deserialize)]
struct Refusal {
    signal: i32,
    #[serde(default)]
    msg: String,
}

/// The failure in an answer: a refusal, or an answer that is not understood because of `why`.
pub fn refused(status: u16, body: &[u8], why: Option<serde_json::Error>) -> Kind {
    let refusal = serde_json::from_slice::<Refusal>(body);
    if let Some(why) = why
        && !(refusal.as_ref()).is_ok_and(|refusal| refusal.signal == crate::wire::ERROR)
    {
        let why = cut(why.to_string());
        return Kind::NotUnderstood(format!("{why}: {}", quoted(body)));
    }
    match refusal {
        Ok(refusal) => Kind::Refused {
            status,
            msg: cut(refusal.msg),
            ours: true,
        },
        Err(_) => Kind::Refused {
            status,
            msg: quoted(body),
            ours: false,
        },
    }
}

/// The refusal of a server that does not lead.
pub fn standby(may_be_done: bool, leader: String, body: &[u8]) -> Kind {
    let msg = match refused(UNAVAILABLE, body, None) {
        Kind::Refused {
            msg, ours: true, ..
        } if !msg.is_empty() => msg,
        _ => "this server does not lead".into(),
    };
    Kind::Standby {
        may_be_done,
        leader: leader.into(),
        msg,
    }
}

/// The beginning of a reason: it is kept and logged.
fn cut(mut reason: String) -> String {
    reason.truncate(reason.floor_char_boundary(MAX_REASON));
    reason.shrink_to_fit();
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(url: &str, kind: Kind) -> (String, Kind) {
        (format!("http://{url}/api/v1/agent/poll"), kind)
    }

    fn standby() -> Kind {
        super::standby(false, "http://c:1".into(), b"")
    }

    #[test]
    fn the_failure_of_a_round_is_the_one_that_says_most() {
        let refused = || Kind::NotConnected("unreachable: refused".into());
        let of = |others: Vec<(String, Kind)>| {
            CallError::of_round("poll", failed("a:1", refused()), others, false)
        };
        let alone = of(Vec::new());
        assert_eq!(
            alone.to_string(),
            "poll to http://a:1/api/v1/agent/poll: unreachable: refused"
        );
        let both = of(vec![failed("b:1", standby()), failed("c:1", refused())]);
        assert_eq!(
            both.to_string(),
            "poll to http://b:1/api/v1/agent/poll: refused with 503: this server does not lead; \
             http://a:1: unreachable: refused; http://c:1: unreachable: refused"
        );
        assert_eq!((both.status(), both.server()), (Some(503), "http://b:1"));
    }

    #[test]
    fn what_one_server_has_shown_is_not_hidden_by_another_one() {
        let untrusted = || Kind::NotConnected(format!("unreachable: {UNTRUSTED}: Expired"));
        let late = || Kind::Interrupted("no answer in time (global)".into());
        let alone = CallError::new("poll", "http://a:1".into(), untrusted());
        assert!(alone.is_untrusted() && !alone.is_temporary());
        let others = vec![failed("b:1", late()), failed("c:1", standby())];
        let error = CallError::of_round("poll", failed("a:1", untrusted()), others, false);
        assert!(error.is_untrusted() && error.is_interrupted() && error.is_temporary());
    }

    #[test]
    fn another_server_is_asked_where_it_may_know_better() {
        let of = |status| Kind::Refused {
            status,
            msg: String::new(),
            ours: true,
        };
        for (kind, fate) in [
            (Kind::NotConnected(String::new()), Some(Fate::Unsent)),
            (standby(), Some(Fate::NotBegun)),
            (
                super::standby(true, String::new(), b""),
                Some(Fate::Unknown),
            ),
            (Kind::Unreachable(String::new()), Some(Fate::Unknown)),
            (Kind::Interrupted(String::new()), Some(Fate::Unknown)),
            (Kind::Outdated(String::new()), Some(Fate::Unknown)),
            (of(502), Some(Fate::Unknown)),
            (of(504), Some(Fate::Unknown)),
            (of(503), None),
            (of(500), None),
            (of(404), None),
            (Kind::NotUnderstood(String::new()), None),
        ] {
            assert_eq!(kind.fate(), fate, "{kind:?}");
        }
    }
}
