//! The server: HTTP around the core.
//!
//! | room | what it is for |
//! | --- | --- |
//! | `http` | bytes ↔ requests and answers; knows no route and no task |
//! | `api` | the table of routes and the handlers: parse, call the core, answer |
//! | `state` | the one lock around the core, what is held, what is durable, the database |
//! | `blobs` | files on their way from people to machines, and back |
//! | `images` | the binaries that the server hands out |
//! | `notify` | sends notifications; alone in the server it uses `client` |
//! | `log_queue` | the log on its way to standard error |
//! | `answers` | the envelope, and which status goes with which refusal; used by `api` and `state` |

mod answers;
pub(crate) mod api;
#[doc(hidden)]
pub mod blobs;
pub mod http;
mod images;
pub mod log_queue;
mod notify;
mod state;

#[cfg(feature = "db")]
pub use self::state::db;

use self::api::access::{Access, Right};
use self::api::audit::Audit;
use self::api::browser::{self, OwnNames};
use self::api::counters::{Requests, Transfers};
use self::api::routes;
use self::api::server::Server;
use self::blobs::{BlobLimits, Blobs, Need};
use self::http::{Edge, EdgeLimits, Engine, Request};
use self::images::Images;
use self::notify::Notifier;
#[cfg(feature = "db")]
use self::state::supervise_once;
use self::state::{Store, supervise};
use crate::config::ServerConfig;
use crate::core::{Core, Limits};
use crate::tls::CertificateFiles;
use crate::wire::files::BlobId;
use log::{info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::Path;
use std::sync::Arc;
use std::thread;

/// Threads of the edge for what may wait: large answers are made by a few.
const THREADS: usize = 16;
/// The same with a database: as many as can share one commit.
const THREADS_FOR_A_DISK: usize = 256;

/// Runs the server until TERM or INT. The error is one line for a person.
pub fn run(config: ServerConfig) -> Result<(), String> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|e| format!("cannot catch signals: {e}"))?;
    let limits = Limits {
        tasks: config.max_tasks,
        executions: config.max_executions,
        machines: config.max_machines,
        new_machines: config.max_new_machines,
        output_bytes: config.max_output_bytes,
        detail_bytes: config.max_detail_bytes,
        schedules: config.max_schedules,
        patterns: config.max_patterns,
        texts: config.texts.clone(),
    };
    let tls = config.tls.as_ref().map(crate::tls::load_certificate);
    let tls = tls.transpose()?;
    let (listener, address) = http::bind(config.listen)?;
    let edge_limits = EdgeLimits {
        request: config.request,
        max_connections: config.max_connections,
        max_connections_per_address: config.max_connections_per_address,
        max_in_flight_bytes: config.max_in_flight_bytes,
        max_request_ms: config.max_request_time.as_millis(),
        max_threads: match config.db {
            Some(_) => THREADS_FOR_A_DISK,
            None => THREADS,
        },
    };
    let edge = Edge::new(edge_limits, tls)?;
    let max_held = config.max_held.min(edge.most_held());
    let access = Access::from_environment(config.allow_legacy, config.hands_out_openly)?;
    let images = Images::open(config.binaries)?;
    let audit = Audit::open(config.audit)?;
    let (store, tasks) = open_store(config.db.as_deref(), limits, max_held)?;
    let blobs = open_blobs(config.blobs.as_deref(), config.blob_limits, &store)?;
    let secrets = notify::Secrets::from_environment(&config.notify)?;
    // All is well: said first, and what there is to say about it after it.
    info!(
        "sidebike {} listens on {address}{}",
        env!("CARGO_PKG_VERSION"),
        config.tls.as_ref().map_or("", |_| ", https only")
    );
    info!("{tasks}");
    match config.engine {
        Engine::Edge => edge.explain(),
        #[cfg(feature = "tiny_http")]
        Engine::TinyHttp => warn!(
            "the engine tiny_http has no defence against slow or hostile peers: for closed networks"
        ),
    }
    access.explain();
    if let Some(why) = blobs.trouble() {
        warn!("files cannot be kept: {why}");
    }
    let notifier = Notifier::new(
        store.clone(),
        config.notify,
        secrets,
        config.public_address,
        config.webhook_ca,
    )?;
    notifier.explain();
    let server = Arc::new(Server {
        store: store.clone(),
        edge: edge.clone(),
        requests: Requests::default(),
        transfers: Transfers::default(),
        blobs,
        images,
        texts: config.texts,
        max_json_depth: config.max_json_depth,
        access,
        own_names: OwnNames {
            loopback_only: address.ip().is_loopback(),
            public: config.public_url,
        },
        audit,
    });
    if let Some(path) = &config.schedules {
        let read = server.read_schedules(path);
        info!("{}", read.map_err(|why| format!("--schedules: {why}"))?);
    }
    let health = store.health.clone();
    let clock = server.clone();
    supervise(&health, "clock", move || keep_time(&clock))?;
    notifier.start(&health)?;
    edge.serve(config.engine, listener, &server)?;
    for signal in signals.forever() {
        if signal != SIGHUP {
            info!("ends on signal {signal}");
            break;
        }
        server.access.reload();
        // A poll that is held has the right it came with.
        server.store.end_polls();
        server.audit.reopen();
        notifier.reload();
        if let Some(path) = &config.schedules {
            server.reread_schedules(path);
        }
        if let Some(files) = &config.tls {
            renew_certificate(&edge, files);
        }
    }
    server.store.close();
    server.audit.settle();
    Ok(())
}

/// The registry: as it was saved where there is a database, else empty; and which of them, in words.
fn open_store(
    path: Option<&Path>,
    limits: Limits,
    max_held: usize,
) -> Result<(Arc<Store>, String), String> {
    #[cfg(feature = "db")]
    if let Some(path) = path {
        let flag = |why: String| format!("--db: {why}");
        let file = db::RedbFile::open(path).map_err(flag)?;
        let (leadership, saved) = db::Leadership::take(Box::new(file)).map_err(flag)?;
        let words = format!("database {}: {} tasks", path.display(), saved.tasks.len());
        let store = Store::start(limits, max_held, Some(saved));
        let store = store.map_err(|why| flag(db::damaged(path, &why)))?;
        let saving = store.clone();
        let failing = store.clone();
        let work = move || saving.save_forever(leadership);
        supervise_once(&store.health, "save", work, move || failing.saving_failed())?;
        return Ok((store, words));
    }
    if path.is_some() {
        return Err("--db: this build has no database (the feature db)".into());
    }
    let words = "without a database: tasks are kept in memory only, this server starts empty";
    Ok((Store::start(limits, max_held, None)?, words.into()))
}

/// The files of tasks. Which of them are needed the tasks say.
fn open_blobs(
    folder: Option<&Path>,
    limits: BlobLimits,
    store: &Arc<Store>,
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
    Blobs::open(folder, limits, Box::new(needs))
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

/// A call, for the tests that must know all of them.
#[doc(hidden)]
#[derive(Debug)]
pub struct CallSummary {
    /// `METHOD /path` with `*` for any one part.
    pub call: String,
    /// The parameters of its query.
    pub query: &'static [&'static str],
    /// People make it, not agents.
    pub is_for_people: bool,
}

/// Every call there is.
#[doc(hidden)]
pub fn calls() -> Vec<CallSummary> {
    let routes = routes::all();
    routes
        .map(|route| CallSummary {
            call: format!("{} /{}", route.method, route.path.join("/")),
            query: route.query,
            is_for_people: !matches!(route.right, Right::Agent | Right::Original),
        })
        .collect()
}

/// What the router makes of a method and a target: the status of its refusal, or 200. For
/// `tests/fuzz`, which sees the crate from outside.
#[doc(hidden)]
pub fn routed(method: &str, target: &str) -> u16 {
    let request = match Request::parsed(method, target, http::Headers::default(), None) {
        Ok(request) => request,
        Err(refused) => return refused.status,
    };
    browser::refusal(&request, false, &OwnNames::default());
    routes::find(&request).map_or_else(|answer| answer.status, |_| 200)
}

fn keep_time(server: &Arc<Server>) {
    loop {
        thread::sleep(state::TICK);
        server.store.tick();
        server.note_firings();
    }
}
