//! The server: sockets around the core.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `listen` | the accept loop, socket options, the guard |
//! | `work` | what there is to do on connections: without waiting, or left to threads |
//! | `ready` | which connections have something to be read |
//! | `connection` | one connection: what it is doing, and whose turn it is |
//! | `threads` | threads for what has to wait, used again |
//! | `means` | what the system lets us have |
//! | `open` | the connections there are |
//! | `peer` | accepted sockets, found and cut from outside |
//! | `head` | a look at a request's head before tiny_http reads it |
//! | `http` | bytes → requests; the only place that names tiny_http |
//! | `respond` | answers → bytes |
//! | `room` | large bodies and answers on their way, bounded |
//! | `routes` | the table of routes and their handlers |
//! | `original` | the calls of the original's agents |
//! | `access`, `browser` | who may: tokens, and pages of other sites |
//! | `audit` | who changed what |
//! | `answer` | the envelope, and which status goes with which refusal |
//! | `held` | polls and waits that are being held |
//! | `store` | the one lock, and the threads that answer what was held |
//! | `durable`, `db` | what has to be on the disk before it is acknowledged; the optional database |
//! | `text`, `metrics` | output as text; figures |
//! | `follow` | output as it comes |
//! | `page` | the dashboard |

mod access;
mod answer;
mod audit;
pub(crate) mod browser;
mod connection;
#[cfg(feature = "db")]
pub mod db;
mod durable;
mod follow;
mod head;
mod held;
pub(crate) mod http;
mod listen;
mod means;
mod metrics;
mod open;
mod original;
mod page;
mod peer;
mod ready;
mod respond;
mod room;
mod routes;
mod store;
mod text;
mod threads;
mod work;

use self::access::Access;
use self::audit::Audit;
use self::browser::OwnNames;
use self::connection::Turn;
use self::http::{Listener, Request, RequestLimits};
use self::listen::Connections;
use self::store::Store;
use self::threads::{ENOUGH, ENOUGH_FOR_A_DISK, STACK_BYTES, Threads};
use self::work::{What, Work};
use crate::config::ServerConfig;
use crate::core::{Limits, TextLimits};
use crate::tls::PairFiles;
use log::{info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

/// Threads that do what can be done without waiting: as many as there are processors, but so many at
/// least, since one may be at something large, and so many at most.
const MIN_WORKERS: usize = 2;
const MAX_WORKERS: usize = 8;

/// What handlers work with.
pub struct Server {
    store: Arc<Store>,
    connections: Arc<Connections>,
    threads: Arc<Threads<Work>>,
    requests: metrics::Requests,
    limits: RequestLimits,
    texts: TextLimits,
    is_https: bool,
    max_json_depth: usize,
    access: Access,
    own_names: OwnNames,
    audit: Audit,
}

impl Server {
    /// A new id for a task: sortable by time, then random.
    fn fresh_id(&self) -> String {
        let ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_millis();
        // Seeded by the system once for each thread. An id has to be new, not secret; a clash would be
        // answered with 409.
        let random = RandomState::new().build_hasher().finish() >> 24;
        format!("{ms:012x}-{random:010x}")
    }
}

/// Runs the server until TERM or INT. The error is one line for a person.
pub fn run(config: ServerConfig) -> Result<(), String> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|e| format!("cannot catch signals: {e}"))?;
    let limits = Limits {
        tasks: config.max_tasks,
        executions: config.max_executions,
        machines: config.max_machines,
        output_bytes: config.max_output_bytes,
        patterns: config.max_patterns,
        texts: config.texts.clone(),
    };
    crate::tls::install_overheard();
    let pair = config.tls.as_ref().map(crate::tls::load_pair).transpose()?;
    let (listener, address) = listen::bind(config.listen, pair)?;
    let listener = Arc::new(listener);
    let connections = Connections::new(&config)?;
    let max_held = config.max_held.min(connections.most_held());
    let access = Access::from_environment(config.allow_legacy)?;
    let audit = Audit::open(config.audit)?;
    let (store, tasks) = open_store(config.db.as_deref(), limits, max_held)?;
    // All is well: said first, and what there is to say about it after it.
    info!(
        "sidebike {} listens on {address}{}",
        env!("CARGO_PKG_VERSION"),
        config.tls.as_ref().map_or("", |_| ", https only")
    );
    info!("{tasks}");
    connections.explain();
    access.explain();
    let server = Arc::new_cyclic(|server: &std::sync::Weak<Server>| Server {
        store: store.clone(),
        connections: connections.clone(),
        threads: {
            let server = server.clone();
            let enough = match store.may_wait() {
                true => ENOUGH_FOR_A_DISK,
                false => ENOUGH,
            };
            Threads::new(enough, move |work| {
                if let Some(server) = server.upgrade() {
                    server.do_work(work);
                }
            })
        },
        requests: metrics::Requests::default(),
        limits: config.request,
        texts: config.texts,
        is_https: config.tls.is_some(),
        max_json_depth: config.max_json_depth,
        access,
        own_names: OwnNames {
            loopback_only: address.ip().is_loopback(),
            public: config.public_url,
        },
        audit,
    });
    let watched = connections.clone();
    start_thread("clock", move || keep_time(&store, &watched))?;
    let workers = thread::available_parallelism().map_or(MIN_WORKERS, |n| n.get());
    for _ in 0..workers.clamp(MIN_WORKERS, MAX_WORKERS) {
        let server = server.clone();
        start_thread("worker", move || server.work_forever())?;
    }
    let (accepting, threads) = (listener.clone(), server.threads.clone());
    let encrypted: Option<fn(Turn) -> Work> = server.is_https.then_some(|turn| Work {
        turn,
        what: What::Encrypted,
    });
    start_thread("accept", move || {
        listen::accept_forever(&accepting, &connections, &threads, encrypted)
    })?;
    for signal in signals.forever() {
        if signal != SIGHUP {
            info!("ends on signal {signal}");
            break;
        }
        server.access.reload();
        // A poll that is held has the right it came with.
        server.store.end_polls();
        server.audit.reopen();
        if let Some(files) = &config.tls {
            renew_certificate(&listener, files);
        }
    }
    server.store.close();
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
        let (db, saved) = db::Db::open(path).map_err(flag)?;
        let words = format!("database {}: {} tasks", path.display(), saved.tasks.len());
        let store = Store::start(limits, max_held, Some(saved));
        let store = store.map_err(|why| flag(db::damaged(path, &why)))?;
        let saving = store.clone();
        start_thread("save", move || saving.save_forever(db))?;
        return Ok((store, words));
    }
    if path.is_some() {
        return Err("--db: this build has no database (the feature db)".into());
    }
    let words = "without a database: tasks are kept in memory only, this server starts empty";
    Ok((Store::start(limits, max_held, None)?, words.into()))
}

/// Reads the certificate and its key again; those in use stay when that fails.
fn renew_certificate(listener: &Listener, files: &PairFiles) {
    match crate::tls::load_pair(files).and_then(|pair| listener.renew(pair)) {
        Ok(()) => info!("the certificate was read again, new connections get it"),
        Err(why) => warn!("{why}; the certificate in use stays in use"),
    }
}

/// Every call there is, as `METHOD /path` with `*` for any one part. For the tests that must know all.
#[doc(hidden)]
pub fn calls() -> Vec<String> {
    let routes = routes::all();
    routes
        .map(|route| format!("{} /{}", route.method, route.path.join("/")))
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

fn keep_time(store: &Store, connections: &Connections) -> ! {
    loop {
        thread::sleep(store::TICK);
        store.tick();
        connections.guard();
    }
}

fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = thread::Builder::new().name(name.into());
    let started = thread.stack_size(STACK_BYTES).spawn(work);
    started
        .map(drop)
        .map_err(|error| format!("cannot start a thread: {error}"))
}
