//! What a standby answers.

use crate::server::answers;
use crate::server::api::metrics;
use crate::server::http::{Answer, Request};
use crate::server::state::db::Seen;
use crate::wire::term::LEADER_HEADER;
use std::sync::{Mutex, PoisonError};

/// A server that waits for the lead.
pub struct Standby {
    /// Where others reach it.
    pub address: String,
    /// Who leads, as far as is known.
    seen: Mutex<Option<Seen>>,
}

impl Standby {
    /// One that has seen nothing yet, with its own address.
    pub fn new(address: String) -> Standby {
        Standby {
            address,
            seen: Mutex::default(),
        }
    }

    /// Notes what a look has shown.
    pub fn note(&self, seen: &Seen) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen.clone());
    }

    /// The address of the server that leads, if that is another one and known.
    pub fn leader(&self) -> Option<String> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.as_ref().filter(|seen| seen.record.holder.is_some())?;
        seen.address
            .clone()
            .filter(|leader| *leader != self.address)
    }

    /// The answer to a request.
    pub fn answer(&self, request: &Request) -> Answer {
        let path: Vec<&str> = request.path.iter().map(|part| &**part).collect();
        match (request.method.as_str(), path.as_slice()) {
            ("GET" | "HEAD", ["healthz"]) => answers::ok("stands by"),
            ("GET" | "HEAD", ["metrics"]) => metrics::of_standby(),
            _ => self.hint(),
        }
    }

    /// That another server is to be asked.
    fn hint(&self) -> Answer {
        let leader = self.leader();
        let msg = match &leader {
            Some(leader) => format!("this server stands by; {leader} leads"),
            None => "this server stands by, and nobody leads at the moment; try again soon".into(),
        };
        let leader = leader.unwrap_or_default();
        answers::error(503, &msg).with_headers(&format!("{LEADER_HEADER}: {leader}\r\n"))
    }
}
