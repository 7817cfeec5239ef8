//! What a standby answers, and what it passes on to the leader.
//!
//! Agents and the command line know all addresses, so they are told to ask the leader. Everybody else (curl, scripts, the page,
//! the original's agents) may know only this one: the edge passes their requests on. A request is passed on once: one
//! that comes from another standby is not.

use super::presence::Presence;
use super::proof;
use crate::server::answers;
use crate::server::api::browser::Authority;
use crate::server::api::{Admission, metrics};
use crate::server::http::{Answer, Decision, Edge, Forward, ForwardTarget, Request, start_thread};
use crate::server::state::db::{Holder, Secret, Seen};
use crate::tls::{ClientTls, Roots};
use crate::wire::term::FORWARDED_HEADER;
use log::warn;
use std::net::ToSocketAddrs;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A name is resolved again after this time: it may point elsewhere.
const RESOLVES_AGAIN: Duration = Duration::from_secs(10);

/// A server that waits for the lead.
pub struct Standby {
    /// Where others reach it.
    address: String,
    /// The authorities that vouch for the other servers' certificates.
    roots: Roots,
    /// What passes requests on.
    edge: Arc<Edge>,
    /// Who else is there.
    pub presence: Arc<Presence>,
    known: Mutex<Known>,
}

/// What is known of the leader.
#[derive(Default)]
struct Known {
    /// What the last look has shown that succeeded.
    seen: Option<Seen>,
    /// Where requests are passed on to, and of which leader and address that was found.
    target: Option<(Leader, ForwardTarget)>,
    /// When it was looked for last.
    resolved: Option<Instant>,
}

/// Another server, which leads.
#[derive(Clone, PartialEq, Eq)]
struct Leader {
    holder: Holder,
    address: String,
}

impl Standby {
    /// One that has seen nothing yet, with its own address.
    pub fn new(address: String, roots: Roots, edge: Arc<Edge>) -> Arc<Standby> {
        Arc::new(Standby {
            presence: Presence::new(address.clone()),
            address,
            roots,
            edge,
            known: Mutex::default(),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what a look has shown. Names are resolved by a thread of their own, which may take its time.
    pub fn note(self: &Arc<Self>, seen: &Seen) {
        let mut known = self.known();
        let before = self.leader_of(&known);
        known.seen = Some(seen.clone());
        let Some(leader) = self.leader_of(&known) else {
            return;
        };
        if before.is_none_or(|before| before.holder != leader.holder) {
            // From here on nothing is passed on to an earlier one.
            self.edge.cut_forwarded(Some(leader.holder.0.get()));
        }
        let is_same = known.target.as_ref().is_some_and(|(of, _)| *of == leader);
        let is_fresh = { known.resolved }.is_some_and(|at| at.elapsed() < RESOLVES_AGAIN);
        if is_fresh && (is_same || known.target.is_none()) {
            return;
        }
        known.resolved = Some(Instant::now());
        drop(known);
        let standby = self.clone();
        let resolved = start_thread("resolve", move || {
            let target = target_of(&leader, &standby.roots);
            let target = target.map_err(|why| warn!("{} leads, but {why}", leader.address));
            standby.known().target = target.ok().map(|target| (leader, target));
        });
        if let Err(why) = resolved {
            warn!("{why}");
        }
    }

    /// This server has taken the lead: whoever led before it will not answer.
    pub fn note_own_lead(&self) {
        if let Some(seen) = &mut self.known().seen {
            seen.record.holder = None;
        }
        self.edge.cut_forwarded(None);
    }

    /// The server that leads, if that is another one and known.
    fn leader_of(&self, known: &Known) -> Option<Leader> {
        let seen = known.seen.as_ref()?;
        let (holder, address) = seen.record.holder.zip(seen.address.clone())?;
        (address != self.address).then_some(Leader { holder, address })
    }

    /// What becomes of a request.
    pub fn decide(&self, request: &Request) -> Result<Decision<Admission>, Answer> {
        let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
        match (request.method.as_str(), path.as_slice()) {
            ("GET" | "HEAD", ["healthz"]) => return Err(answers::ok("stands by")),
            ("GET" | "HEAD", ["metrics"]) => {
                return Err(metrics::of_standby(&self.edge, self.presence.differences()));
            }
            ("GET" | "HEAD", ["leader"]) => return Err(self.hint()),
            _ => {}
        }
        // Who was told by another standby to ask this one would go round in circles.
        let was_passed_on = request.headers.forwarded.is_some();
        let forward = match was_passed_on || request.headers.is_of_sidebike {
            true => None,
            false => self.forward(request),
        };
        forward.map(Decision::Forward).ok_or_else(|| self.hint())
    }

    /// How a request is passed on, if it is known where to.
    fn forward(&self, request: &Request) -> Option<Forward> {
        let known = self.known();
        let leader = self.leader_of(&known)?;
        let (of, target) = known.target.as_ref()?;
        let secret = &known.seen.as_ref()?.secret;
        let caller = proof::value(secret, request.peer?, request)?;
        (*of == leader).then(|| Forward {
            target: target.clone(),
            headers: vec![(FORWARDED_HEADER, caller)],
            withheld: &[],
        })
    }

    /// That another server is to be asked.
    pub fn hint(&self) -> Answer {
        let leader = self.leader_of(&self.known()).map(|leader| leader.address);
        let msg = match &leader {
            Some(leader) => format!("this server stands by; {leader} leads"),
            None => "this server stands by, and nobody leads at the moment; try again soon".into(),
        };
        answers::ask_another(&msg, leader.as_deref())
    }

    /// On the leader: a request that a standby has passed on comes from whoever made it.
    pub fn find_caller(&self, request: &mut Request) {
        let Some(value) = request.headers.forwarded.take() else {
            return;
        };
        let secret: Option<Secret> = self.known().seen.as_ref().map(|seen| seen.secret.clone());
        let caller = secret.and_then(|secret| proof::caller(&secret, &value, request));
        if caller.is_some() {
            request.peer = caller;
        }
    }
}

/// Where the server listens, and how to speak with it.
fn target_of(leader: &Leader, roots: &Roots) -> Result<ForwardTarget, String> {
    let url = leader.address.as_str();
    let authority = Authority::of_url(url).ok_or("its address is no URL")?;
    let (host, port) = authority.host_and_port();
    let port = port.ok_or("its address has no port")?;
    let addresses = (host.trim_matches(['[', ']']), port).to_socket_addrs();
    let address = addresses
        .map_err(|why| format!("its name cannot be resolved: {why}"))?
        .next();
    Ok(ForwardTarget {
        address: address.ok_or("its name has no address")?,
        tls: match url.starts_with("https://") {
            true => Some(ClientTls::new(roots, host)?),
            false => None,
        },
        name: "the server that leads",
        id: leader.holder.0.get(),
    })
}
