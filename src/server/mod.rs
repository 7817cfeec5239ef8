//! The server: sockets around the core.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `listen` | the accept loop, socket options, the guard |
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

use self::access::{Access, Caller, Denied, Right};
use self::audit::{Audit, Change};
use self::browser::OwnNames;
use self::connection::{Found, Phase, Turn};
use self::head::{Eavesdropper, Lookout, Sight};
use self::http::{
    Arrived, Authorization, Listener, Raw, Refused, Request, RequestLimits, Unserved,
};
use self::listen::Connections;
use self::respond::{Answer, Responder, Rest, Sent};
use self::routes::{Call, Make, Route};
use self::store::Store;
use self::threads::{ENOUGH, ENOUGH_FOR_A_DISK, STACK_BYTES, Threads};
use crate::config::ServerConfig;
use crate::core::{Limits, TextLimits};
use crate::tls::PairFiles;
use log::{debug, info, warn};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Threads that do what can be done without waiting: as many as there are processors, but so many at
/// least, since one may be at something large, and so many at most.
const MIN_WORKERS: usize = 2;
const MAX_WORKERS: usize = 8;

/// How often each of them gives back the memory that others have freed.
const TIDY_PERIOD: Duration = Duration::from_secs(1);

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

/// What has to wait for something: a connection, and what is to be done there.
struct Work {
    turn: Turn,
    what: What,
}

/// What is to be done where one may wait.
enum What {
    /// Serve all of what comes encrypted.
    Encrypted,
    /// Serve the next request, which is not all there.
    Request,
    /// Answer a head that was refused.
    Refuse(Refused),
    /// Serve a request that may have to wait for something.
    Arrived(Box<Arrived>),
    /// Make an answer that may be large.
    Make(Box<Made>),
    /// Send one that is.
    Answer(Responder, Answer),
    /// Send the rest of an answer whose peer takes its time.
    Rest(Rest),
    /// Answer a request that is not served.
    Unserved(Unserved, Answer),
}

/// An answer that is yet to be made, and what there is to do about it then.
struct Made {
    make: Make,
    responder: Responder,
    route: &'static Route,
    caller: Caller,
    request: Request,
    change: Change,
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

    /// Does for ever what there is to do and needs no waiting.
    fn work_forever(&self) -> ! {
        let mut lookout = Lookout::new();
        let mut events = Vec::new();
        // When this thread last gave memory back, and whether it has done something since.
        let (mut tidied, mut has_worked) = (Instant::now(), false);
        loop {
            if has_worked && tidied.elapsed() >= TIDY_PERIOD {
                means::give_memory_back();
                (tidied, has_worked) = (Instant::now(), false);
            }
            let patience = has_worked.then_some(TIDY_PERIOD);
            for (connection, found) in self.connections.ready(&mut events, patience) {
                has_worked = true;
                // A bug must cost one connection, not a worker; the turn that it had ends that.
                let done = catch_unwind(AssertUnwindSafe(|| match found {
                    Found::Turn(turn) => self.attend(turn, &mut lookout),
                    Found::Held => self.store.drop_abandoned(&connection),
                    Found::Busy => {}
                }));
                if done.is_err() {
                    warn!("a request failed (a bug); its connection was closed");
                }
            }
        }
    }

    /// Leaves to a thread what has to wait for something.
    fn leave(&self, turn: Turn, what: What) {
        // Nobody reads from it until the thread is there: that is not the peer's fault.
        turn.connection().enter(Phase::Serving);
        self.threads.give(Work { turn, what });
        self.connections.call_in_passing(&self.threads);
    }

    /// Does what there is to do on a connection, as far as that needs no waiting.
    fn attend(&self, mut turn: Turn, lookout: &mut Lookout) {
        loop {
            match lookout.look(&turn, &self.limits) {
                Sight::Nothing => {}
                Sight::Over => return,
                Sight::Refused(refused) => return self.leave(turn, What::Refuse(refused)),
                Sight::Part => return self.leave(turn, What::Request),
                Sight::Request {
                    is_there: false, ..
                } => return self.leave(turn, What::Request),
                Sight::Request { last, bytes, .. } => {
                    // The guard sees to it that it is what it seems.
                    turn.begin_request(Phase::Reading);
                    turn.hand_on(bytes);
                    match self.serve_next(turn, last, false) {
                        Some(back) => turn = back,
                        None => return,
                    }
                }
            }
            match turn.put_back() {
                Some(again) => turn = again,
                None => return,
            }
        }
    }

    /// Does what had to be left to a thread, which may wait.
    fn do_work(&self, work: Work) {
        let Work { turn, what } = work;
        let turn = match what {
            What::Encrypted => return self.serve_encrypted(turn),
            What::Request => self.serve_patiently(turn),
            What::Refuse(refused) => return self.refuse(&turn, refused),
            What::Arrived(arrived) => self.serve(turn, *arrived, true),
            What::Make(made) => self.make(turn, *made),
            What::Answer(responder, answer) => responder.send(&answer).then_some(turn),
            What::Rest(rest) => rest.send().then_some(turn),
            What::Unserved(unserved, answer) => {
                return unserved.refuse(turn.connection(), &answer);
            }
        };
        if let Some(turn) = turn {
            turn.leave();
        }
    }

    /// Serves the next request of a connection, however slowly it comes. The turn, if another one may.
    fn serve_patiently(&self, mut turn: Turn) -> Option<Turn> {
        turn.begin_request(Phase::Reading);
        match Lookout::new().wait(&turn, &self.limits) {
            Sight::Request { last, bytes, .. } => {
                turn.hand_on(bytes);
                self.serve_next(turn, last, true)
            }
            Sight::Refused(refused) => {
                self.refuse(&turn, refused);
                None
            }
            Sight::Nothing | Sight::Part | Sight::Over => None,
        }
    }

    /// Answers a head that is not to be read.
    fn refuse(&self, turn: &Turn, refused: Refused) {
        turn.connection().enter(Phase::Draining);
        head::refuse(turn, &respond::in_bytes(&self.explain(refused)));
    }

    /// Serves a connection until it is over or its request is held. Nothing can be seen of a head before
    /// it is decrypted, and nobody can tell whether there is something to be read without reading it.
    fn serve_encrypted(&self, mut turn: Turn) {
        let mut listener = Eavesdropper::on_this_thread(&self.limits);
        let mut last = false;
        while !last && listener.expects_a_head() {
            turn.begin_request(Phase::Reading);
            let Some(raw) = self.read_next(&mut turn) else {
                return;
            };
            last = match listener.judge(&self.limits) {
                Sight::Request { last, .. } => last,
                Sight::Refused(refused) => {
                    let answer = self.explain(refused);
                    return Unserved::new(raw).refuse(turn.connection(), &answer);
                }
                Sight::Nothing | Sight::Part | Sight::Over => return,
            };
            match self.serve_raw(turn, raw, last, true) {
                Some(back) => turn = back,
                None => return,
            }
        }
    }

    /// The next request of a connection, as tiny_http reads it.
    fn read_next(&self, turn: &mut Turn) -> Option<Raw> {
        match turn.incoming()?.next()? {
            Ok(raw) => Some(raw),
            Err(error) => {
                // tiny_http has an answer to that, sent when `incoming` is dropped; after half a
                // handshake it would wait for the other half first.
                turn.connection().enter(Phase::Draining);
                debug!("a connection ended: {error}");
                None
            }
        }
    }

    /// Serves the next request, as tiny_http reads it. The turn, if its connection can take another.
    fn serve_next(&self, mut turn: Turn, last: bool, may_wait: bool) -> Option<Turn> {
        let raw = self.read_next(&mut turn)?;
        self.serve_raw(turn, raw, last, may_wait)
    }

    fn serve_raw(&self, turn: Turn, raw: Raw, last: bool, may_wait: bool) -> Option<Turn> {
        match http::arrived(&turn, raw, last, &self.limits) {
            Ok(arrived) => self.serve(turn, arrived, may_wait),
            Err((unserved, refused)) => {
                self.leave_unserved(turn, unserved, self.explain(refused), may_wait);
                None
            }
        }
    }

    /// Answers a request that is not served, its connection's last.
    fn leave_unserved(&self, turn: Turn, unserved: Unserved, answer: Answer, may_wait: bool) {
        match may_wait {
            true => unserved.refuse(turn.connection(), &answer),
            false => self.leave(turn, What::Unserved(unserved, answer)),
        }
    }

    /// Serves one request. The turn, if its connection can take another.
    fn serve(&self, turn: Turn, arrived: Arrived, may_wait: bool) -> Option<Turn> {
        let found = routes::find(&arrived.request).and_then(|route| {
            if !may_wait && self.may_have_to_wait(route) {
                return Ok(None);
            }
            let caller = self.admit(&arrived.request, route)?;
            Ok(Some((route, caller)))
        });
        let (route, caller) = match found {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.leave(turn, What::Arrived(Box::new(arrived)));
                return None;
            }
            Err(answer) => {
                self.requests.count(answer.status);
                return match arrived.without_body() {
                    Ok(responder) => self.send(turn, responder, answer, may_wait),
                    Err(unserved) => {
                        self.leave_unserved(turn, unserved, answer, may_wait);
                        None
                    }
                };
            }
        };
        let (request, responder) = match arrived.read(&self.limits) {
            Ok(read) => read,
            Err(unread) => {
                let (unserved, refused, request) = *unread;
                self.note(route, &caller, &request, &Change::default(), refused.status);
                self.leave_unserved(turn, unserved, self.explain(refused), may_wait);
                return None;
            }
        };
        let (mut responder, mut change) = (Some(responder), Change::default());
        let mut later = None;
        let call = Call {
            server: self,
            request: &request,
            caller: &caller,
            responder: &mut responder,
            change: &mut change,
            later: &mut later,
        };
        let answer = (route.handler)(call).unwrap_or_else(Some);
        match (answer, responder, later) {
            (None, Some(responder), Some(make)) => {
                let made = Made {
                    make,
                    responder,
                    route,
                    caller,
                    request,
                    change,
                };
                if may_wait {
                    return self.make(turn, made);
                }
                self.leave(turn, What::Make(Box::new(made)));
                None
            }
            (answer, responder, _) => {
                let status = answer.as_ref().map_or(200, |answer| answer.status);
                self.requests.count(status);
                self.note(route, &caller, &request, &change, status);
                match (answer, responder) {
                    (Some(answer), Some(responder)) => self.send(turn, responder, answer, may_wait),
                    _ => self.after_taken(turn),
                }
            }
        }
    }

    /// Whether a call may have to wait for the disk, or takes its time.
    fn may_have_to_wait(&self, route: &Route) -> bool {
        let saves = self.store.may_wait() && route.right != Right::Open;
        let notes = self.audit.has_file() && route.right == Right::Change;
        route.waits || saves || notes
    }

    /// The handler has the responder: the request is held, or it was answered and that was the last.
    fn after_taken(&self, turn: Turn) -> Option<Turn> {
        if self.is_https {
            self.connections.watch_hangup(turn.connection());
        }
        turn.after_taken()
    }

    /// Makes an answer that may be large: few at once, and each finds its room before the next one is
    /// made.
    fn make(&self, turn: Turn, made: Made) -> Option<Turn> {
        let Made {
            make,
            mut responder,
            route,
            caller,
            request,
            change,
        } = made;
        let answer = {
            let _maker = self.connections.room.make();
            let answer = make();
            responder.make_room(&answer);
            answer
        };
        self.requests.count(answer.status);
        self.note(route, &caller, &request, &change, answer.status);
        self.send(turn, responder, answer, true)
    }

    /// Sends an answer. The turn, if the connection can take another request.
    fn send(
        &self,
        turn: Turn,
        responder: Responder,
        answer: Answer,
        may_wait: bool,
    ) -> Option<Turn> {
        if may_wait {
            return responder.send(&answer).then_some(turn);
        }
        if answer.is_large() {
            self.leave(turn, What::Answer(responder, answer));
            return None;
        }
        match responder.send_now(&answer) {
            Sent::Whole(stays) => stays.then_some(turn),
            Sent::Part(rest) => {
                self.leave(turn, What::Rest(rest));
                None
            }
        }
    }

    /// Writes down who changed what.
    fn note(
        &self,
        route: &Route,
        caller: &Caller,
        request: &Request,
        change: &Change,
        status: u16,
    ) {
        if route.right == Right::Change {
            self.audit
                .write(caller.name.as_deref(), request, status, change);
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
