//! The server: sockets around the core.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `listen` | the accept loop, socket options, the guard |
//! | `peer` | accepted sockets, found and cut from outside |
//! | `http` | bytes ↔ requests and answers; the only place that names tiny_http |
//! | `routes` | the table of routes and their handlers |
//! | `original` | the calls of the original's agents |
//! | `answer` | the envelope, and which status goes with which refusal |
//! | `held` | polls and waits that are being held |
//! | `store` | the one lock, and the threads that answer what was held |
//! | `text`, `metrics` | output as text; figures |

mod answer;
mod held;
mod http;
mod listen;
mod metrics;
mod original;
mod peer;
mod routes;
mod store;
mod text;

use self::http::{Connection, Incoming, Phase};
use self::listen::Connections;
use self::routes::Call;
use self::store::Store;
use crate::config::ServerConfig;
use crate::core::Limits;
use log::{debug, info};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

/// Every so many ticks, held polls are checked for agents that have gone away.
const TICKS_PER_CHECK: u32 = 5;

/// What handlers work with.
pub struct Server {
    store: Arc<Store>,
    connections: Arc<Connections>,
    requests: metrics::Requests,
    max_body_bytes: usize,
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
    fn serve(&self, mut incoming: Incoming, connection: &Arc<Connection>) {
        loop {
            connection.enter(Phase::Reading);
            let raw = match incoming.next() {
                Some(Ok(raw)) => raw,
                Some(Err(error)) => return debug!("a connection ended: {error}"),
                None => return,
            };
            let explain = |refused| {
                let answer = answer::not_taken_in(refused);
                self.requests.count(answer.status);
                answer
            };
            let Some((request, responder)) =
                http::take_in(raw, connection, self.max_body_bytes, explain)
            else {
                return;
            };
            let mut responder = Some(responder);
            let answer = routes::dispatch(Call {
                server: self,
                request: &request,
                responder: &mut responder,
            });
            self.requests
                .count(answer.as_ref().map_or(200, |answer| answer.status));
            let stays = match (answer, responder) {
                (Some(answer), Some(responder)) => responder.send(&answer),
                _ => false,
            };
            if !stays {
                return;
            }
        }
    }
}

/// Runs the server until TERM or INT. The error is one line for a person.
pub fn run(config: ServerConfig) -> Result<(), String> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT]).map_err(|e| format!("cannot catch signals: {e}"))?;
    let limits = Limits {
        tasks: config.max_tasks,
        executions: config.max_executions,
        machines: config.max_machines,
        output_bytes: config.max_output_bytes,
    };
    let (listener, address) = listen::bind(config.listen)?;
    info!(
        "sidebike {} listens on {address}",
        env!("CARGO_PKG_VERSION")
    );
    let store = Store::start(limits, config.max_held)?;
    let connections = Connections::new(config.max_connections, config.max_body_bytes);
    let server = Arc::new(Server {
        store: store.clone(),
        connections: connections.clone(),
        requests: metrics::Requests::default(),
        max_body_bytes: config.max_body_bytes,
    });
    info!("without a database: tasks are kept in memory only, this server starts empty");
    let watched = connections.clone();
    start_thread("clock", move || keep_time(&store, &watched))?;
    start_thread("accept", move || {
        let serve =
            move |incoming, connection: Arc<Connection>| server.serve(incoming, &connection);
        listen::accept_forever(&listener, &connections, serve)
    })?;
    if let Some(signal) = signals.forever().next() {
        info!("ends on signal {signal}");
    }
    Ok(())
}

fn keep_time(store: &Store, connections: &Connections) -> ! {
    let mut ticks = 0u32;
    loop {
        thread::sleep(store::TICK);
        store.tick();
        connections.guard();
        ticks = ticks.wrapping_add(1);
        if ticks.is_multiple_of(TICKS_PER_CHECK) {
            store.drop_abandoned();
        }
    }
}

fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let started = thread::Builder::new().name(name.into()).spawn(work);
    started
        .map(drop)
        .map_err(|error| format!("cannot start a thread: {error}"))
}
