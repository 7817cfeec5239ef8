//! The server: HTTP around the core.
//!
//! | room | what it is for |
//! | --- | --- |
//! | `http` | bytes ↔ requests and answers; knows no route and no task |
//! | `api` | the table of routes and the handlers: parse, call the core, answer |
//! | `setup` | makes a server of its settings |
//! | `roles` | what the edge calls: the only server, or one of several, of which one leads |
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
mod roles;
mod setup;
mod state;

#[cfg(feature = "db")]
pub use self::state::db;

use self::api::access::Right;
use self::api::browser::{self, OwnNames};
use self::api::routes;
use self::http::Request;
#[cfg(feature = "db")]
use self::roles::Candidate;
use self::roles::Front;
use self::setup::Setup;
use self::state::Store;
#[cfg(feature = "db")]
use self::state::supervise_once;
#[cfg(feature = "db")]
use crate::config::Database;
use crate::config::ServerConfig;
#[cfg(feature = "db")]
use crate::config::SharedDatabase;
use log::info;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;

/// Runs the server until TERM or INT. The error is one line for a person.
pub fn run(config: ServerConfig) -> Result<(), String> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|e| format!("cannot catch signals: {e}"))?;
    let (setup, listener) = Setup::new(config)?;
    let setup = Arc::new(setup);
    let engine = setup.config.engine;
    #[cfg(feature = "db")]
    if let Some(Database::Shared(shared)) = &setup.config.db {
        let roots = match shared.advertise.starts_with("https://") {
            true => crate::tls::load_roots_of("--advertise-ca", shared.advertise_ca.as_deref())?,
            false => Vec::new(),
        };
        let standby = roles::Standby::new(shared.advertise.clone(), roots, setup.edge.clone());
        let front = Arc::new(Front::standing_by(standby));
        let connect = connection(shared)?;
        setup.explain();
        info!("stands by as {}", shared.advertise);
        setup.edge.serve(engine, listener, &front)?;
        let end = signals.handle();
        let candidate =
            Candidate::start(setup.clone(), front.clone(), connect, move || end.close())?;
        handle_signals(&mut signals, &setup, &front);
        let closed = candidate.close();
        finish(&setup, &front);
        return closed;
    }
    let (store, words) = open_store(&setup)?;
    let running = setup.open(store, None, None)?;
    // All is well: said first, and what there is to say about it after it.
    setup.explain();
    info!("{words}");
    running.explain();
    running.start()?;
    let front = Arc::new(Front::leading(running));
    setup.edge.serve(engine, listener, &front)?;
    handle_signals(&mut signals, &setup, &front);
    finish(&setup, &front);
    Ok(())
}

/// Returns when the server is to end.
fn handle_signals(signals: &mut Signals, setup: &Setup, front: &Front) {
    for signal in signals.forever() {
        if signal != SIGHUP {
            info!("ends on signal {signal}");
            break;
        }
        setup.reload();
        if let Some(running) = front.leader() {
            running.reload();
        }
    }
}

/// Saves the rest, and writes the last of the audit.
fn finish(setup: &Setup, front: &Front) {
    if let Some(running) = front.leader() {
        running.server.store.close();
    }
    setup.audit.settle();
}

/// What connects to a database that several servers share.
#[cfg(feature = "pg")]
fn connection(shared: &SharedDatabase) -> Result<Arc<dyn db::Connect>, String> {
    let password = crate::secret::load_one(db::postgres::PASSWORD)?;
    let (url, ca) = (shared.url.expose(), shared.ca.as_deref());
    let postgres = db::Postgres::connector(url, ca, password, Some(shared.advertise.clone()));
    let postgres = postgres.map_err(|why| format!("--db: {why}"))?;
    postgres.explain();
    Ok(Arc::new(postgres))
}

#[cfg(all(feature = "db", not(feature = "pg")))]
fn connection(_: &SharedDatabase) -> Result<Arc<dyn db::Connect>, String> {
    Err("--db: this build has no PostgreSQL (it was made without the feature `pg`)".into())
}

/// The registry: as it was saved where there is a database, else empty; and which of them, in words.
fn open_store(setup: &Setup) -> Result<(Arc<Store>, String), String> {
    let limits = setup.limits();
    #[cfg(feature = "db")]
    if let Some(Database::File(path)) = &setup.config.db {
        let flag = |why: String| format!("--db: {why}");
        let file = db::RedbFile::open(path).map_err(flag)?;
        let (leadership, saved) = db::Leadership::take(Box::new(file)).map_err(flag)?;
        let words = format!("database {}: {} tasks", path.display(), saved.tasks.len());
        let trust = Arc::new(db::Trust::for_ever());
        let store = Store::restored(limits, setup.max_held, saved, trust);
        let store = store.map_err(|why| flag(db::damaged(path, &why)))?;
        let (saving, failing) = (store.clone(), store.clone());
        let work = move || {
            if let Err(why) = saving.save_forever(leadership) {
                saving.cannot_go_on(why);
            }
        };
        supervise_once(&store.health, "save", work, move || failing.saving_failed())?;
        return Ok((store, words));
    }
    if setup.config.db.is_some() {
        return Err("--db: this build has no database (the feature db)".into());
    }
    let words = "without a database: tasks are kept in memory only, this server starts empty";
    Ok((Store::empty(limits, setup.max_held)?, words.into()))
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
