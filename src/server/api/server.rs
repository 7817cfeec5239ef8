//! The server as handlers see it.

use super::access::Access;
use super::audit::Audit;
use super::browser::OwnNames;
use super::counters::{Requests, Transfers};
use crate::core::TextLimits;
use crate::server::blobs::Blobs;
use crate::server::http::Edge;
use crate::server::images::Images;
use crate::server::state::{OwnTerm, Store};
use crate::wire::crew::ServerSummary;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// What one of several servers knows of its registry, which they share.
pub struct Shared {
    /// In which term it leads, and from where on.
    pub term: OwnTerm,
    /// Says whether acknowledged commits survive a failover of the database; `None` while that is not known.
    pub is_synchronous: Box<dyn Fn() -> Option<bool> + Send + Sync>,
    /// Which servers there are.
    pub servers: Box<dyn Fn() -> Vec<ServerSummary> + Send + Sync>,
}

impl Shared {
    /// The database has lost acknowledged commits, as this says.
    pub fn note_loss(&self, store: &Store, what: &str) {
        store.note_loss(what);
        // Only now: whoever compares meanwhile has to wait for it as well.
        self.term.loss_is_known();
    }
}

/// Everything that handlers use.
pub struct Server {
    /// The one lock, around the core and the held requests.
    pub store: Arc<Store>,
    /// `None` for a single server.
    pub shared: Option<Arc<Shared>>,
    /// The HTTP edge.
    pub edge: Arc<Edge>,
    /// How many requests were answered.
    pub requests: Requests,
    /// What was transferred.
    pub transfers: Transfers,
    /// The files of tasks.
    pub blobs: Arc<Blobs>,
    /// The binaries that it hands out.
    pub images: Arc<Images>,
    /// Limits of texts in tasks.
    pub texts: TextLimits,
    /// How deep a body's JSON may be nested.
    pub max_json_depth: usize,
    /// The tokens.
    pub access: Arc<Access>,
    /// The names of this server.
    pub own_names: OwnNames,
    /// The audit.
    pub audit: Arc<Audit>,
}

impl Server {
    /// A new id for a task: sortable by time, then random.
    pub fn fresh_id(&self) -> String {
        let ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis() as u64;
        // Seeded by the system once for each thread. An id has to be new, not secret; a clash would be
        // answered with 409.
        let random = RandomState::new().build_hasher().finish() >> 24;
        format!("{ms:012x}-{random:010x}")
    }
}
