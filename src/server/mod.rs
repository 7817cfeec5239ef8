//! The server: sockets around the core.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `listen` | the accept loop, socket options, the guard |
//! | `threads` | the threads of connections, used again |
//! | `means` | what the system lets us have |
//! | `open` | the connections there are |
//! | `peer` | accepted sockets, found and cut from outside |
//! | `head` | a look at a request's head before tiny_http reads it |
//! | `http` | bytes ↔ requests and answers; the only place that names tiny_http |
//! | `room` | large bodies and answers on their way, bounded |
//! | `routes` | the table of routes and their handlers |
//! | `original` | the calls of the original's agents |
//! | `access`, `browser` | who may: tokens, and pages of other sites |
//! | `audit` | who changed what |
//! | `answer` | the envelope, and which status goes with which refusal |
//! | `held`, `hangups` | polls and waits that are being held; who of them has hung up |
//! | `store` | the one lock, and the threads that answer what was held |
//! | `durable`, `db` | what has to be on the disk before it is acknowledged; the optional database |
//! | `text`, `metrics` | output as text; figures |
//! | `follow` | output as it comes |
//! | `page` | the dashboard |

mod access;
mod answer;
mod audit;
pub(crate) mod browser;
#[cfg(feature = "db")]
pub mod db;
mod durable;
mod follow;
mod hangups;
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
mod room;
mod routes;
mod store;
mod text;
mod threads;

use self::access::{Access, Caller, Denied, Right};
use self::audit::{Audit, Change};
use self::browser::OwnNames;
use self::head::{Eavesdropper, Lookout, Sight};
use self::http::{
    Answer, Arrived, Authorization, Connection, Incoming, Listener, Phase, Refused, Request,
    RequestLimits,
};
use self::listen::Connections;
use self::routes::{Call, Route};
use self::store::Store;
use crate::config::ServerConfig;
use crate::core::{Limits, TextLimits};
use crate::tls::PairFiles;
use log::{debug, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

/// What handlers work with.
pub struct Server {
    store: Arc<Store>,
    connections: Arc<Connections>,
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
        let mut random = [0; 5];
        // Without randomness the time alone has to do; a clash is answered with 409.
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let random = random
            .iter()
            .fold(0u64, |n, byte| n << 8 | u64::from(*byte));
        format!("{ms:012x}-{random:010x}")
    }

    /// Serves one connection until it is over or its last request is held.
    fn serve(&self, incoming: Incoming, connection: &Arc<Connection>) {
        match self.is_https {
            true => self.serve_encrypted(incoming, connection),
            false => self.serve_plain(incoming, connection),
        }
        if connection.doing().0 == Phase::Held {
            self.store.hangups.watch(&connection.peer);
            connection.peer.release();
        }
    }

    fn serve_plain(&self, mut incoming: Incoming, connection: &Arc<Connection>) {
        let Some(socket) = connection.peer.socket() else {
            return;
        };
        let mut lookout = Lookout::on(&socket);
        let mut last = false;
        while !last {
            connection.enter(Phase::Reading);
            last = match lookout.next(&self.limits) {
                Sight::Request { last } => last,
                Sight::Refused(refused) => {
                    connection.enter(Phase::Draining);
                    return lookout.refuse(&http::in_bytes(&self.explain(refused)));
                }
                Sight::Over => return,
            };
            let Some(raw) = next_of(&mut incoming, connection) else {
                return;
            };
            let explain = |refused| self.explain(refused);
            let arrived = http::arrived(raw, connection, last, &self.limits, explain);
            if !arrived.is_some_and(|arrived| self.serve_one(arrived)) {
                return;
            }
        }
    }

    /// As [`Server::serve_plain`], when nothing can be seen of a head before it is decrypted.
    fn serve_encrypted(&self, mut incoming: Incoming, connection: &Arc<Connection>) {
        let mut listener = Eavesdropper::on_this_thread(&self.limits);
        let mut last = false;
        while !last && listener.expects_a_head() {
            connection.enter(Phase::Reading);
            let Some(raw) = next_of(&mut incoming, connection) else {
                return;
            };
            last = match listener.judge(&self.limits) {
                Sight::Request { last } => last,
                Sight::Refused(refused) => {
                    return http::refuse(raw, connection, &self.explain(refused));
                }
                Sight::Over => return,
            };
            let explain = |refused| self.explain(refused);
            let arrived = http::arrived(raw, connection, last, &self.limits, explain);
            if !arrived.is_some_and(|arrived| self.serve_one(arrived)) {
                return;
            }
        }
    }

    /// Serves one request. Whether its connection can take another.
    fn serve_one(&self, arrived: Arrived) -> bool {
        let found = routes::find(&arrived.request).and_then(|route| {
            let caller = self.admit(&arrived.request, route)?;
            Ok((route, caller))
        });
        let (route, caller) = match found {
            Ok(found) => found,
            Err(answer) => {
                self.requests.count(answer.status);
                return arrived.refuse(&answer);
            }
        };
        let read = arrived.read(&self.limits, |refused, request| {
            if route.right == Right::Change {
                self.audit.write(
                    caller.name.as_deref(),
                    request,
                    refused.status,
                    &Change::default(),
                );
            }
            self.explain(refused)
        });
        let Some((request, responder)) = read else {
            return false;
        };
        let (mut responder, mut change) = (Some(responder), Change::default());
        let call = Call {
            server: self,
            request: &request,
            caller: &caller,
            responder: &mut responder,
            change: &mut change,
        };
        let answer = (route.handler)(call).unwrap_or_else(Some);
        let status = answer.as_ref().map_or(200, |answer| answer.status);
        self.requests.count(status);
        if route.right == Right::Change {
            self.audit
                .write(caller.name.as_deref(), &request, status, &change);
        }
        match (answer, responder) {
            (Some(answer), Some(responder)) => responder.send(&answer),
            _ => false,
        }
    }

    /// Whether a request may be served, and whose it is.
    fn admit(&self, request: &Request, route: &Route) -> Result<Caller, Answer> {
        let looks_only = matches!(route.right, Right::Open | Right::Look);
        let checked = match browser::refusal(request, looks_only, &self.own_names) {
            Some(msg) => Err(Denied {
                status: 403,
                msg,
                caller: Caller::default(),
            }),
            None => {
                let authorization = request.headers.authorization.as_ref();
                self.access
                    .check(authorization.map(Authorization::expose), route.right)
            }
        };
        checked.map_err(|denied| {
            match route.right {
                Right::Change => {
                    let caller = denied.caller.name.as_deref();
                    self.audit
                        .write(caller, request, denied.status, &Change::default());
                }
                Right::Agent => self.access.note_refused(request.peer, denied.msg),
                Right::Open | Right::Look | Right::Original => {}
            }
            answer::error(denied.status, denied.msg)
        })
    }

    fn explain(&self, refused: Refused) -> Answer {
        self.requests.count(refused.status);
        answer::error(refused.status, &refused.msg)
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
    let connections = Connections::new(&config);
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
    let server = Arc::new(Server {
        store: store.clone(),
        connections: connections.clone(),
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
    let (serving, accepting) = (server.clone(), listener.clone());
    start_thread("accept", move || {
        let serve =
            move |incoming, connection: Arc<Connection>| serving.serve(incoming, &connection);
        listen::accept_forever(&accepting, &connections, serve)
    })?;
    for signal in signals.forever() {
        if signal != SIGHUP {
            info!("ends on signal {signal}");
            break;
        }
        server.access.reload();
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

/// The next request of a connection.
fn next_of(incoming: &mut Incoming, connection: &Connection) -> Option<http::Raw> {
    match incoming.next()? {
        Ok(raw) => Some(raw),
        Err(error) => {
            // tiny_http has an answer to that, sent when `incoming` is dropped; after half a
            // handshake it would wait for the other half first.
            connection.enter(Phase::Draining);
            debug!("a connection ended: {error}");
            None
        }
    }
}

fn keep_time(store: &Store, connections: &Connections) -> ! {
    loop {
        thread::sleep(store::TICK);
        store.tick();
        connections.guard();
        store.drop_abandoned();
    }
}

fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let started = thread::Builder::new().name(name.into()).spawn(work);
    started
        .map(drop)
        .map_err(|error| format!("cannot start a thread: {error}"))
}
