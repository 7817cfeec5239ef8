//! One call, made to one server after the other until one of them answers.
//!
//! A call that may have arrived is made to another server only if it may be executed twice. With one server nothing of
//! this happens.

use super::addresses::Addresses;
use super::failure::{self, CallError, Fate, Kind};
use super::{Client, MAX_ANSWER};
use crate::wire::term::{BEGUN_HEADER, COMMIT_HEADER, LEADER_HEADER, Position, TERM_HEADER};
use log::info;
use std::fmt::Debug;
use std::io::Read;
use std::time::{Duration, Instant};
use ureq::http::{HeaderValue, Response};
use ureq::typestate::{WithBody, WithoutBody};
use ureq::{Body, RequestBuilder};

/// After which failures a call is made to another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// It may be executed twice.
    Safe,
    /// The same, but no server is asked after this time.
    SafeWithin(Duration),
    /// It must be executed once at most.
    NotTwice,
    /// Its body is gone once something of it was sent.
    NotSent,
}

impl Repeat {
    fn allows(self, fate: Fate, since: Duration) -> bool {
        match self {
            Repeat::Safe => true,
            Repeat::SafeWithin(time) => since < time,
            Repeat::NotTwice => fate != Fate::Unknown,
            Repeat::NotSent => fate == Fate::Unsent,
        }
    }
}

/// What an agent remembers of the terms that servers say.
pub trait TermMemory: Debug + Send + Sync {
    /// The highest one it has seen, and the last commit in it.
    fn highest(&self) -> Option<Position>;
    /// Whether an answer that says this may be obeyed; remembers it.
    fn accepts(&self, answered: Option<Position>) -> bool;
}

/// A call to one server.
pub struct Ask<'a> {
    client: &'a Client,
    http: ureq::Agent,
    server: usize,
    /// The URL of the call.
    pub url: String,
    /// An earlier server may have executed it.
    pub may_be_done: bool,
}

impl Client {
    /// Makes a call to one server after the other. `path` begins with a slash.
    pub(super) fn in_turn<T>(
        &self,
        call: &'static str,
        path: &str,
        repeat: Repeat,
        mut ask: impl FnMut(&Ask<'_>) -> Result<T, Kind>,
    ) -> Result<T, CallError> {
        let addresses = &*self.addresses;
        let begun = Instant::now();
        let mut round = addresses.round();
        let mut failures: Vec<(String, Kind)> = Vec::new();
        let mut may_be_done = false;
        let mut is_one_left = false;
        while let Some(server) = round.next() {
            let one = Ask {
                client: self,
                http: self.agent(server),
                server,
                url: format!("{}{path}", addresses.url(server)),
                may_be_done,
            };
            let kind = match ask(&one) {
                Ok(answer) => {
                    note_answer(addresses, server, &failures);
                    return Ok(answer);
                }
                Err(kind) => kind,
            };
            let Some(fate) = kind.fate() else {
                if let Kind::Refused { .. } = kind {
                    note_answer(addresses, server, &failures);
                }
                return Err(CallError::new(call, one.url, kind));
            };
            if let Kind::Standby { leader, .. } = &kind
                && let Some(hinted) = addresses.find(leader)
            {
                round.prefer(hinted);
            }
            may_be_done |= fate == Fate::Unknown;
            failures.push((one.url, kind));
            if !repeat.allows(fate, begun.elapsed()) {
                is_one_left = addresses.begin_with_next(&round);
                break;
            }
        }
        let mut failures = failures.into_iter();
        match failures.next() {
            Some(first) => Err(CallError::of_round(
                call,
                first,
                failures.collect(),
                is_one_left,
            )),
            // There is one server at least.
            None => Err(CallError::new(
                call,
                path.to_owned(),
                Kind::NotConnected("there is no server".into()),
            )),
        }
    }
}

/// Notes which server is asked first from now on.
fn note_answer(addresses: &Addresses, server: usize, failures: &[(String, Kind)]) {
    if addresses.has_answered(server) {
        let reasons = failures.iter();
        let reasons = reasons.map(|(url, kind)| format!("; {}: {kind}", failure::server_of(url)));
        let reasons: String = reasons.collect();
        info!("{} answers now{reasons}", addresses.url(server));
    }
}

impl Ask<'_> {
    pub fn get(&self) -> RequestBuilder<WithoutBody> {
        self.prepared(self.http.get(&self.url))
    }

    pub fn head(&self) -> RequestBuilder<WithoutBody> {
        self.prepared(self.http.head(&self.url))
    }

    pub fn delete(&self) -> RequestBuilder<WithoutBody> {
        self.prepared(self.http.delete(&self.url))
    }

    pub fn post(&self) -> RequestBuilder<WithBody> {
        self.prepared(self.http.post(&self.url))
    }

    pub fn put(&self) -> RequestBuilder<WithBody> {
        self.prepared(self.http.put(&self.url))
    }

    pub fn patch(&self) -> RequestBuilder<WithBody> {
        self.prepared(self.http.patch(&self.url))
    }

    /// Adds what every request carries: the token, the term that was seen, and the last commit in it.
    fn prepared<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        let request = self.client.with_token(request);
        let Some(seen) = self.client.highest_term() else {
            return request;
        };
        let request = request.header(TERM_HEADER, seen.term.to_string());
        match seen.commit {
            Some(commit) => request.header(COMMIT_HEADER, commit.to_string()),
            None => request,
        }
    }

    /// Why no answer came.
    pub fn unreachable(&self, why: ureq::Error) -> Kind {
        if let ureq::Error::LargeResponseHeader(_, max) = why {
            return Kind::NotUnderstood(format!("its head is longer than {max} bytes"));
        }
        let text = failure::unreachable(&why);
        let text = match self.client.addresses.proxy(self.server) {
            Some(proxy) => proxy.explain(&why, &text),
            None => text,
        };
        failure::without_answer(&why, text)
    }

    /// The answer of a server that may be listened to: it leads, and was not replaced.
    pub fn answered(
        &self,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, Kind> {
        let mut answer = answer.map_err(|why| self.unreachable(why))?;
        let header = |name: &str| answer.headers().get(name).map(HeaderValue::to_str);
        match answer.status().as_u16() {
            503 => {
                let Some(leader) = header(LEADER_HEADER) else {
                    return Ok(answer);
                };
                let leader = leader.unwrap_or_default().to_owned();
                let may_be_done = header(BEGUN_HEADER).is_some();
                let mut body = Vec::new();
                // An incomplete reason is better than none.
                let _ = (answer.body_mut().as_reader().take(MAX_ANSWER)).read_to_end(&mut body);
                let body = self.client.without_token(body);
                Err(failure::standby(may_be_done, leader, &body))
            }
            200..=299 => {
                let Some(terms) = &self.client.terms else {
                    return Ok(answer);
                };
                let term = header(TERM_HEADER).and_then(|term| term.ok()?.parse().ok());
                let answered = term.map(|term| Position {
                    term,
                    commit: header(COMMIT_HEADER).and_then(|commit| commit.ok()?.parse().ok()),
                });
                match terms.accepts(answered) {
                    true => Ok(answer),
                    false => Err(Kind::Outdated(outdated(answered, terms.highest()))),
                }
            }
            _ => Ok(answer),
        }
    }

    /// The status of an answer, and its body of so many bytes at most.
    pub fn read(
        &self,
        answer: Result<Response<Body>, ureq::Error>,
        max_answer: u64,
    ) -> Result<(u16, Vec<u8>), Kind> {
        let mut answer = self.answered(answer)?;
        let status = answer.status().as_u16();
        let body = answer.body_mut();
        // With the length known it is allocated once, and not moved while it grows.
        let expected = body.content_length().unwrap_or(0).min(max_answer);
        let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        let mut rest = body.as_reader().take(max_answer + 1);
        rest.read_to_end(&mut bytes)
            .map_err(|why| self.unreachable(why.into()))?;
        if bytes.len() as u64 > max_answer {
            let why = format!("it is longer than {max_answer} bytes");
            return Err(Kind::NotUnderstood(why));
        }
        Ok((status, bytes))
    }
}

/// Why an answer is not obeyed.
fn outdated(answered: Option<Position>, highest: Option<Position>) -> String {
    let number = |seen: Option<Position>| seen.map_or(0, |seen| seen.term.term.0);
    format!(
        "the answer is of a server that was replaced: term {}, and {} was seen",
        number(answered),
        number(highest)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_done_is_repeated_only_where_that_is_safe() {
        use Fate::{NotBegun, Unknown, Unsent};
        for (repeat, allowed) in [
            (Repeat::Safe, [true, true, true]),
            (Repeat::NotTwice, [true, true, false]),
            (Repeat::NotSent, [true, false, false]),
        ] {
            let of = |fate| repeat.allows(fate, Duration::from_secs(60));
            assert_eq!([Unsent, NotBegun, Unknown].map(of), allowed, "{repeat:?}");
        }
        let within = Repeat::SafeWithin(Duration::from_secs(2));
        assert!(within.allows(Unknown, Duration::from_secs(1)));
        assert!(!within.allows(Unsent, Duration::from_secs(2)));
    }
}
