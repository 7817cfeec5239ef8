//! Makes a server of its settings, in two steps: what it needs to answer anything at all ([`Setup`]), then what it
//! needs to answer for a registry ([`Running`]). A server that stands by has only the first.

use super::api::access::Access;
use super::api::audit::Audit;
use super::api::browser::OwnNames;
use super::api::counters::{Requests, Transfers};
use super::api::server::{Server, Shared};
use super::blobs::vault::FoundVault;
use super::blobs::{BlobLimits, Blobs, Need};
use super::http::{self, Edge, EdgeLimits, Engine};
use super::images::Images;
use super::notify::{self, Notifier};
use super::state::{self, Store, supervise};
use crate::config::ServerConfig;
use crate::core::{Core, Limits};
use crate::tls::CertificateFiles;
use crate::wire::files::BlobId;
use log::{info, warn};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread;

/// Threads of the edge for what may wait: large answers are made by a few.
const THREADS: usize = 16;
/// The same with a database: as many as can share one commit.
const THREADS_FOR_A_DISK: usize = 256;
/// How long a large transfer may move next to nothing, in milliseconds: a link may be away for half a minute while a
/// container moves.
const STALL_MS: u64 = 30_000;

/// A server without a registry.
pub struct Setup {
    /// Its settings.
    pub config: ServerConfig,
    /// Where it listens.
    pub address: SocketAddr,
    /// The HTTP edge.
    pub edge: Arc<Edge>,
    /// The tokens.
    pub access: Arc<Access>,
    /// The audit.
    pub audit: Arc<Audit>,
    /// How many requests may be held.
    pub max_held: usize,
    /// The binaries that it hands out.
    pub images: Arc<Images>,
    secrets: notify::Secrets,
}

/// A server that answers for a registry.
pub struct Running {
    /// What handlers use.
    pub server: Arc<Server>,
    notifier: Arc<Notifier>,
    setup: Arc<Setup>,
}

impl Setup {
    /// Reads what the settings name, and binds the socket. The error is one line for a person.
    pub fn new(config: ServerConfig) -> Result<(Setup, TcpListener), String> {
        let tls = config.tls.as_ref().map(crate::tls::load_certificate);
        let tls = tls.transpose()?;
        let (listener, address) = http::bind(config.listen)?;
        let edge_limits = EdgeLimits {
            request: config.request.clone(),
            max_connections: config.max_connections,
            max_connections_per_address: config.max_connections_per_address,
            max_in_flight_bytes: config.max_in_flight_bytes,
            max_request_ms: config.max_request_time.as_millis(),
            stall_ms: STALL_MS,
            max_threads: match config.db {
                Some(_) => THREADS_FOR_A_DISK,
                None => THREADS,
            },
            max_forwarded: config.max_held,
        };
        let edge = Edge::new(edge_limits, tls)?;
        let access =
            Access::from_environment(config.allow_legacy.clone(), config.hands_out_openly)?;
        let setup = Setup {
            address,
            max_held: config.max_held.min(edge.most_held()),
            edge,
            access: Arc::new(access),
            images: Arc::new(Images::open(config.binaries.clone())?),
            audit: Arc::new(Audit::open(config.audit.clone())?),
            secrets: notify::Secrets::from_environment(&config.notify)?,
            config,
        };
        Ok((setup, listener))
    }

    /// The limits of its registry.
    pub fn limits(&self) -> Limits {
        let config = &self.config;
        Limits {
            tasks: config.max_tasks,
            executions: config.max_executions,
            machines: config.max_machines,
            new_machines: config.max_new_machines,
            output_bytes: config.max_output_bytes,
            detail_bytes: config.max_detail_bytes,
            schedules: config.max_schedules,
            patterns: config.max_patterns,
            texts: config.texts.clone(),
        }
    }

    /// Says that it listens, and what there is to say about that.
    pub fn explain(&self) {
        let https = self.config.tls.as_ref().map_or("", |_| ", https only");
        let (version, address) = (env!("CARGO_PKG_VERSION"), self.address);
        info!("sidebike {version} listens on {address}{https}");
        match self.config.engine {
            Engine::Edge => self.edge.explain(),
            #[cfg(feature = "tiny_http")]
            Engine::TinyHttp => warn!(
                "the engine tiny_http has no defence against slow or hostile peers: for closed networks"
            ),
        }
        self.access.explain();
    }

    /// What is needed to answer for a registry, which may be `shared` with other servers, and its files in a `vault`.
    /// Nothing is answered yet.
    pub fn open(
        self: &Arc<Self>,
        store: Arc<Store>,
        shared: Option<Arc<Shared>>,
        vault: Option<FoundVault>,
    ) -> Result<Running, String> {
        let config = &self.config;
        let blobs = open_blobs(config.blobs.as_deref(), config.blob_limits, &store, vault)?;
        let notifier = Notifier::new(
            store.clone(),
            config.notify.clone(),
            self.secrets.clone(),
            config.public_address.clone(),
            config.webhook_ca.clone(),
        )?;
        let server = Arc::new(Server {
            store,
            shared,
            edge: self.edge.clone(),
            requests: Requests::default(),
            transfers: Transfers::default(),
            blobs,
            images: self.images.clone(),
            texts: config.texts.clone(),
            max_json_depth: config.max_json_depth,
            access: self.access.clone(),
            own_names: OwnNames {
                loopback_only: self.address.ip().is_loopback(),
                public: config.public_url.clone(),
            },
            audit: self.audit.clone(),
        });
        Ok(Running {
            server,
            notifier,
            setup: self.clone(),
        })
    }

    /// Reads again what can change while it runs.
    pub fn reload(&self) {
        self.access.reload();
        self.audit.reopen();
        if let Some(files) = &self.config.tls {
            renew_certificate(&self.edge, files);
        }
    }
}

impl Running {
    /// Says what there is to say about it.
    pub fn explain(&self) {
        if let Some(why) = self.server.blobs.trouble() {
            warn!("files cannot be kept: {why}");
        }
        self.notifier.explain();
    }

    /// Begins with everything that happens by itself.
    pub fn start(&self) -> Result<(), String> {
        if let Some(path) = &self.setup.config.schedules {
            let read = self.server.read_schedules(path);
            info!("{}", read.map_err(|why| format!("--schedules: {why}"))?);
        }
        let health = self.server.store.health.clone();
        let server = self.server.clone();
        supervise(&health, "clock", move || keep_time(&server))?;
        if self.server.blobs.moved().is_some() {
            let (changed, fetched) = (self.server.blobs.clone(), self.server.blobs.clone());
            supervise(&health, "files", move || changed.change_forever())?;
            supervise(&health, "fetch", move || fetched.fetch_forever())?;
        }
        self.notifier.start(&health)
    }

    /// Reads again what can change while it runs, after [`Setup::reload`].
    pub fn reload(&self) {
        // A poll that is held has the right it came with.
        self.server.store.end_polls();
        self.notifier.reload();
        if let Some(path) = &self.setup.config.schedules {
            self.server.reread_schedules(path);
        }
    }
}

/// The files of tasks. Which of them are needed the tasks say.
fn open_blobs(
    folder: Option<&Path>,
    limits: BlobLimits,
    store: &Arc<Store>,
    vault: Option<FoundVault>,
) -> Result<Arc<Blobs>, String> {
    let store = store.clone();
    let needs = move |ids: &[BlobId]| {
        let need = |core: &Core, id: &BlobId| match core.blob_needed_until(*id) {
            None => Need::Nobody,
            Some(Some(end)) => Need::Ended(end.0),
            Some(None) => Need::Now,
        };
        store.ask(|core| ids.iter().map(|id| need(core, id)).collect())
    };
    Blobs::open(folder, limits, Box::new(needs), vault)
}

/// Reads the certificate and its key again; those in use stay when that fails.
fn renew_certificate(edge: &Edge, files: &CertificateFiles) {
    match crate::tls::load_certificate(files) {
        Ok(tls) => {
            edge.renew_certificate(tls);
            info!("the certificate was read again, new connections get it");
        }
        Err(why) => warn!("{why}; the certificate in use stays in use"),
    }
}

fn keep_time(server: &Arc<Server>) {
    let mut heals = server.store.heals();
    loop {
        thread::sleep(state::TICK);
        server.store.tick();
        if std::mem::replace(&mut heals, server.store.heals()) != heals {
            server.blobs.mend();
        }
        server.note_firings();
    }
}
