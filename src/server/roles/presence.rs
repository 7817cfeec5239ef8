//! Says to the other servers of the registry that this one is there, and finds out who else is, and whose settings differ.
//!
//! Nothing that is decided hangs on it: it is for people. So it has a connection and a thread of its own, and whatever
//! fails there delays neither the election nor a commit.

use super::settings_proof::settings_proof;
use crate::server::http::start_thread;
use crate::server::setup::Setup;
use crate::server::state::db::{Announced, Connect, Holder, SettingsProof};
use crate::wire::crew::ServerSummary;
use log::{info, warn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often it says so: a small write for each server.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);

/// What is known of the servers of the registry.
pub struct Presence {
    address: String,
    started: SystemTime,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    own: SettingsProof,
    others: Vec<Announced>,
    /// Which settings differ from those of the server that leads.
    differing: Vec<&'static str>,
    /// The last announcement has failed.
    has_failed: bool,
}

impl Presence {
    /// Of a server with this address, which has announced nothing yet.
    pub fn new(address: String) -> Arc<Presence> {
        Arc::new(Presence {
            address,
            started: SystemTime::now(),
            known: Mutex::default(),
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces it as long as the process lives.
    pub fn announce_forever(
        self: &Arc<Self>,
        setup: Arc<Setup>,
        connect: &dyn Connect,
        holder: Holder,
    ) -> Result<(), String> {
        let (presence, mut engine) = (self.clone(), connect.connect(holder));
        start_thread("presence", move || {
            loop {
                let announced = engine.look().and_then(|seen| {
                    let own = settings_proof(&setup, &seen.secret)?;
                    let others = engine.announce(&presence.address, &own)?;
                    Ok((own, others))
                });
                presence.note(announced);
                thread::sleep(ANNOUNCE_INTERVAL);
            }
        })
    }

    fn note(&self, announced: Result<(SettingsProof, Vec<Announced>), String>) {
        let mut known = self.known();
        let (own, others) = match announced {
            Ok(announced) => announced,
            Err(why) => {
                if !std::mem::replace(&mut known.has_failed, true) {
                    warn!("the other servers do not hear of this one: {why}");
                }
                return;
            }
        };
        known.has_failed = false;
        let leader = others.iter().find(|other| other.leads);
        if let Some(leader) = leader {
            let differing = own.differing(&leader.settings);
            if differing != known.differing {
                let address = &leader.address;
                match differing.join(" and ").as_str() {
                    "" => info!("the settings are those of {address} again, which leads"),
                    what => warn!(
                        "OTHER {} THAN THOSE OF {address}, WHICH LEADS: give all servers of a registry the same",
                        what.to_uppercase()
                    ),
                }
            }
            known.differing = differing;
        }
        (known.own, known.others) = (own, others);
    }

    /// How many settings of a standby differ from those of the server that leads.
    pub fn differences(&self) -> u64 {
        self.known().differing.len() as u64
    }

    /// All servers, for the one that leads: first itself.
    pub fn servers(&self) -> Vec<ServerSummary> {
        let known = self.known();
        let time = |time: SystemTime| humantime::format_rfc3339_millis(time).to_string();
        let own = ServerSummary {
            address: self.address.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            leads: true,
            since: time(self.started),
            differing: Vec::new(),
        };
        let others = known.others.iter().map(|other| ServerSummary {
            address: other.address.clone(),
            version: other.version.clone(),
            leads: false,
            since: time(UNIX_EPOCH + Duration::from_millis(other.since_ms)),
            differing: { other.settings.differing(&known.own) }
                .into_iter()
                .map(str::to_owned)
                .collect(),
        });
        [own].into_iter().chain(others).collect()
    }
}
