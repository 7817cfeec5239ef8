//! Access control: tokens, and what each kind of token allows.
//!
//! Tokens are stored as hashes. Every request is compared with all of them in constant time, so that response times
//! reveal nothing. To add a right: a variant of [`Right`], and its lines in `allows`; routes name the right they need.

use crate::secret;
use log::{info, warn};
use regex::Regex;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError, RwLock};
use subtle::ConstantTimeEq;

/// The right that a route requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// None: everybody may.
    Open,
    /// To read.
    Look,
    /// To read the bytes of files.
    Read,
    /// To change tasks or machines.
    Change,
    /// To get the program: with any token, or without one where `--hand-out open` says so.
    HandOut,
    /// To make an agent's calls.
    Agent,
    /// To make the calls of the original's agents, which cannot send a token: the handler decides by the label.
    Original,
}

/// Agents named in warnings, for each reason. More would fill the log and memory without telling anything new.
const MAX_WARNED_OF: usize = 1_000;

/// The kinds of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    People,
    Agent,
    Read,
}

const KINDS: [(Kind, &str); 3] = [
    (Kind::People, "SIDEBIKE_TOKEN"),
    (Kind::Agent, "SIDEBIKE_AGENT_TOKEN"),
    (Kind::Read, "SIDEBIKE_READ_TOKEN"),
];

impl Kind {
    fn allows(self, right: Right) -> bool {
        match (self, right) {
            (_, Right::Open | Right::Original | Right::HandOut) | (Kind::People, _) => true,
            (Kind::Agent, Right::Agent) => true,
            (Kind::Agent, Right::Look | Right::Read | Right::Change) => false,
            (Kind::Read, Right::Look) => true,
            (Kind::Read, Right::Read | Right::Change | Right::Agent) => false,
        }
    }
}

type Hash = [u8; 32];

/// The tokens, and the labels that need none.
#[derive(Debug)]
pub struct Access {
    tokens: RwLock<Vec<(Kind, Hash)>>,
    allow_legacy: Option<Regex>,
    hands_out_openly: bool,
    /// Labels of agents that used a token of people and were warned about.
    warned_of: Mutex<BTreeSet<String>>,
    /// Addresses of agents that were refused and warned about, since the tokens were read.
    refused: Mutex<BTreeSet<Option<IpAddr>>>,
    /// The labels of the original's agents that were refused, or their addresses, since the tokens were read.
    refused_originals: Mutex<BTreeSet<String>>,
}

/// A request that is not allowed.
#[derive(Debug)]
pub struct Denied {
    /// 401 or 403.
    pub status: u16,
    /// The reason.
    pub msg: &'static str,
    /// The caller, for the audit.
    pub caller: Caller,
}

/// The caller of a request.
#[derive(Debug, Default)]
pub struct Caller {
    /// The name in the audit: the first digits of the token's hash, or a word. `None` without tokens.
    pub name: Option<String>,
    /// The token is one for people.
    is_people: bool,
}

impl Caller {
    /// Who it is, in words for people.
    pub fn who(&self) -> &str {
        self.name.as_deref().unwrap_or("somebody without a token")
    }

    /// From where and with which token it comes. Of an IPv6 address the network counts: one host has all of it.
    pub fn origin(&self, peer: Option<IpAddr>) -> String {
        let address = match peer {
            Some(IpAddr::V6(v6)) if v6.to_ipv4_mapped().is_none() => {
                let [a, b, c, d, ..] = v6.segments();
                format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            Some(address) => address.to_string(),
            None => "an unknown address".into(),
        };
        match &self.name {
            Some(token) => format!("{address} with token {token}"),
            None => address,
        }
    }

    fn named(name: impl Into<String>) -> Self {
        Caller {
            name: Some(name.into()),
            is_people: false,
        }
    }
}

impl Access {
    /// Reads the tokens. The error is one line for the user.
    pub fn from_environment(
        allow_legacy: Option<Regex>,
        hands_out_openly: bool,
    ) -> Result<Self, String> {
        Ok(Access {
            tokens: RwLock::new(read_tokens()?),
            allow_legacy,
            hands_out_openly,
            warned_of: Mutex::default(),
            refused: Mutex::default(),
            refused_originals: Mutex::default(),
        })
    }

    /// Logs a warning if everything is open, or if nobody can make some calls.
    pub fn explain(&self) {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let has = |kind| tokens.iter().any(|(k, _)| *k == kind);
        if tokens.is_empty() {
            warn!(
                "NO TOKEN IS SET: whoever reaches this port can run commands on every machine; set SIDEBIKE_TOKEN and SIDEBIKE_AGENT_TOKEN"
            );
        } else {
            for (kind, variable) in KINDS.into_iter().filter(|(kind, _)| *kind != Kind::Read) {
                if !has(kind) {
                    warn!(
                        "{variable} is not set, though other tokens are: nobody can make those calls"
                    );
                }
            }
        }
    }

    /// Reads the tokens again. If that fails, the present ones stay in use.
    pub fn reload(&self) {
        match read_tokens() {
            Ok(tokens) => {
                let mut known = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
                // Removing the last token by mistake must not open the server.
                if tokens.is_empty() && !known.is_empty() {
                    return warn!("no token was found; those in use stay in use");
                }
                info!("{} tokens are in use", tokens.len());
                *known = tokens;
                let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                refused.clear();
                let originals = &self.refused_originals;
                originals
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .clear();
            }
            Err(why) => warn!("{why}; the tokens in use stay in use"),
        }
    }

    /// What the tokens are compared by with those of another server. It must not leave this one as it is.
    #[cfg(feature = "db")]
    pub fn digest(&self) -> Vec<u8> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let hash = |(kind, hash): &(Kind, Hash)| [&[*kind as u8][..], hash].concat();
        let mut all: Vec<Vec<u8>> = tokens.iter().map(hash).collect();
        all.sort();
        all.concat()
    }

    /// Whether a request with this `Authorization` header has a right.
    pub fn check(&self, authorization: Option<&str>, right: Right) -> Result<Caller, Denied> {
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        let is_open = match right {
            Right::Open | Right::Original => true,
            Right::HandOut => self.hands_out_openly,
            Right::Look | Right::Read | Right::Change | Right::Agent => false,
        };
        if tokens.is_empty() || is_open {
            return Ok(Caller::default());
        }
        let presented = authorization.and_then(bearer);
        let Some(presented) = presented else {
            return Err(Denied {
                status: 401,
                msg: "needs a token: Authorization: Bearer TOKEN",
                caller: Caller::default(),
            });
        };
        let hash = hash_of(presented);
        let mut found = None;
        for (kind, known) in tokens.iter() {
            if bool::from(known.ct_eq(&hash)) {
                found = Some(*kind);
            }
        }
        match found {
            None => Err(Denied {
                status: 401,
                msg: "the token is not known",
                caller: Caller::named("unknown"),
            }),
            Some(kind) if kind.allows(right) => Ok(Caller {
                is_people: kind == Kind::People,
                ..Caller::named(short(&hash))
            }),
            Some(Kind::Agent) => Err(Denied {
                status: 403,
                msg: "an agent's token is for polls and reports only",
                caller: Caller::named(short(&hash)),
            }),
            Some(_) => Err(Denied {
                status: 403,
                msg: match right {
                    Right::Read => {
                        "a read token is for looking only; the bytes of files are for people"
                    }
                    _ => "a read token is for looking only",
                },
                caller: Caller::named(short(&hash)),
            }),
        }
    }

    /// Logs a warning, once for each label, about an agent that uses a token of people.
    pub fn note_agent(&self, caller: &Caller, label: &str) {
        if !caller.is_people {
            return;
        }
        let mut warned = self
            .warned_of
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if warned.len() < MAX_WARNED_OF && warned.insert(label.to_owned()) {
            warn!(
                "the agent of {label} uses a token of people: who takes over its machine can command all the others; give it one of SIDEBIKE_AGENT_TOKEN"
            );
        }
    }

    /// Logs a warning about a refused agent, once for each address until the tokens are read again. Its label is in the
    /// body, which is not read of refused requests.
    pub fn note_refused(&self, peer: Option<IpAddr>, why: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() < MAX_WARNED_OF && refused.insert(peer) {
            let from = peer.map_or("an unknown address".into(), |peer| peer.to_string());
            warn!("an agent at {from} is refused: {why}");
        }
    }

    /// Logs a warning about a refused agent of the original, once for each label until the tokens are read again. Where
    /// the label is not known, `who` is where it came from.
    pub fn note_refused_original(&self, who: &str, why: &str) {
        let originals = &self.refused_originals;
        let mut refused = originals.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() < MAX_WARNED_OF && refused.insert(who.to_owned()) {
            warn!("an agent of the original, {who}, is refused: {why}");
        }
    }

    /// Whether the original's agent with this label is allowed.
    pub fn allows_original(&self, label: &str) -> bool {
        let open = self
            .tokens
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty();
        open || self
            .allow_legacy
            .as_ref()
            .is_some_and(|pattern| pattern.is_match(label))
    }
}

fn read_tokens() -> Result<Vec<(Kind, Hash)>, String> {
    let mut all: Vec<(Kind, Hash)> = Vec::new();
    for (kind, variable) in KINDS {
        for token in secret::load(variable)? {
            let hash = hash_of(token.expose());
            if all.iter().any(|(k, known)| *known == hash && *k != kind) {
                return Err(format!(
                    "{variable}: one of its tokens is of another kind, too; each kind needs its own"
                ));
            }
            all.push((kind, hash));
        }
    }
    Ok(all)
}

fn hash_of(token: &str) -> Hash {
    Sha256::digest(token.as_bytes()).into()
}

fn short(hash: &Hash) -> String {
    hash[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(tokens: &[(Kind, &str)]) -> Access {
        let tokens = tokens
            .iter()
            .map(|(kind, token)| (*kind, hash_of(token)))
            .collect();
        Access {
            tokens: RwLock::new(tokens),
            allow_legacy: Some(Regex::new("^old").unwrap()),
            hands_out_openly: false,
            warned_of: Mutex::default(),
            refused: Mutex::default(),
            refused_originals: Mutex::default(),
        }
    }

    #[test]
    fn without_tokens_everything_is_open() {
        assert!(access(&[]).check(None, Right::Change).is_ok());
        assert!(access(&[]).allows_original("x"));
    }

    #[test]
    fn each_kind_has_its_rights() {
        let access = access(&[
            (Kind::People, "p"),
            (Kind::People, "p2"),
            (Kind::Agent, "a"),
            (Kind::Read, "r"),
        ]);
        let status = |token: &str, right| {
            access
                .check(Some(&format!("Bearer {token}")), right)
                .map_or_else(|denied| denied.status, |_| 200)
        };
        for (right, people, agent, read) in [
            (Right::Look, 200, 403, 200),
            (Right::Read, 200, 403, 403),
            (Right::Change, 200, 403, 403),
            (Right::Agent, 200, 200, 403),
            (Right::HandOut, 200, 200, 200),
        ] {
            assert_eq!([status("p", right), status("p2", right)], [people, people]);
            assert_eq!([status("a", right), status("r", right)], [agent, read]);
            assert_eq!([status("x", right), status("", right)], [401, 401]);
            assert_eq!(access.check(None, right).unwrap_err().status, 401);
        }
        assert!(access.allows_original("old-1") && !access.allows_original("new"));
    }
}
