//! Several servers over one PostgreSQL, and agents and people who know all their addresses.

#![allow(dead_code, reason = "each file of tests uses its part")]

pub mod way;

use crate::common::http::{Connection, Reply, request};
use crate::common::{Agent, Folder, SIDEBIKE, Server, wait_until, wait_within};
use crate::postgresql::PostgreSql;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use way::Way;

/// The longest time until somebody leads again after the leader was killed: 10 s of silence, and the load.
pub const TAKEOVER: Duration = Duration::from_secs(30);
/// Somebody who has no answer after this time asks another server.
const NO_ANSWER: Duration = Duration::from_secs(3);
/// Between two tries of somebody who wants an answer.
const PAUSE: Duration = Duration::from_millis(50);

/// The servers of one registry.
pub struct Servers {
    pub addresses: Vec<SocketAddr>,
    pub servers: Vec<Server>,
    urls: Vec<String>,
    /// What they have in their environment beside that.
    environment: Vec<(&'static str, &'static str)>,
    /// More flags of each.
    flags: Vec<Vec<String>>,
}

impl Servers {
    /// Starts so many over the same database, and waits until one leads.
    pub fn start(count: usize, url: &str) -> Servers {
        Servers::with_urls(vec![url.to_owned(); count])
    }

    /// The same, each with its own way to the database.
    pub fn with_urls(urls: Vec<String>) -> Servers {
        Servers::with_environment(urls, &[])
    }

    /// The same, with more in their environment.
    pub fn with_environment(
        urls: Vec<String>,
        environment: &[(&'static str, &'static str)],
    ) -> Servers {
        let flags = vec![Vec::new(); urls.len()];
        Servers::with_settings(urls, environment, flags)
    }

    /// The same, each with more flags.
    pub fn with_flags(urls: Vec<String>, flags: Vec<Vec<String>>) -> Servers {
        Servers::with_settings(urls, &[], flags)
    }

    fn with_settings(
        urls: Vec<String>,
        environment: &[(&'static str, &'static str)],
        flags: Vec<Vec<String>>,
    ) -> Servers {
        let mut servers = Servers {
            servers: Vec::new(),
            addresses: free_addresses(urls.len()),
            urls,
            environment: environment.to_vec(),
            flags,
        };
        let started = (0..servers.urls.len()).map(|n| servers.start_one(n, &[]));
        servers.servers = started.collect();
        servers.leader();
        servers
    }

    fn start_one(&self, n: usize, more: &[(&str, &str)]) -> Server {
        let mut command = Command::new(SIDEBIKE);
        command
            .args(["server", "--listen", &self.addresses[n].to_string()])
            .args(&self.flags[n])
            .env("SIDEBIKE_DB", &self.urls[n])
            .envs(self.environment.iter().copied())
            .envs(more.iter().copied());
        Server::from_command(command)
    }

    /// So many, each with a way to the same new database that the test can disturb.
    pub fn by_ways(count: usize, postgres: &PostgreSql) -> (Servers, Vec<Way>) {
        let database = postgres.database();
        let ways: Vec<Way> = (0..count).map(|_| Way::to(postgres.port())).collect();
        let urls = ways.iter().map(|way| way.url(postgres, &database));
        (Servers::with_urls(urls.collect()), ways)
    }

    /// Starts a server again that was killed.
    pub fn restart(&mut self, n: usize) {
        self.restart_with(n, &[]);
    }

    /// The same, with more in its environment.
    pub fn restart_with(&mut self, n: usize, more: &[(&str, &str)]) {
        self.servers[n] = self.start_one(n, more);
    }

    /// The way of a server to the database.
    pub fn url(&self, n: usize) -> &str {
        &self.urls[n]
    }

    /// Which one leads, as soon as one does.
    pub fn leader(&self) -> usize {
        wait_within(TAKEOVER, "a server leads", || self.leader_now())
    }

    /// Which one leads now.
    pub fn leader_now(&self) -> Option<usize> {
        let mut all = self.addresses.iter();
        all.position(|address| status(*address, "GET", "/leader") == Some(200))
    }

    /// The term of the server that leads, as its answers say.
    pub fn term(&self) -> u64 {
        wait_within(TAKEOVER, "a leader says its term", || {
            let leader = self.addresses[self.leader_now()?];
            let reply = try_ask(leader, "GET", "/api/v1/machine", b"")?;
            let (_, term) = reply.header("Sidebike-Term")?.split_once(':')?;
            term.parse().ok()
        })
    }

    /// The list of addresses, for agents and the command line.
    pub fn list(&self) -> String {
        let all: Vec<String> = self.addresses.iter().map(SocketAddr::to_string).collect();
        all.join(",")
    }

    /// Starts agents that know all servers, and waits until they are online.
    pub fn agents(&self, count: usize, label: &str) -> Vec<Agent> {
        let start = |_| {
            let mut command = Command::new(SIDEBIKE);
            command
                .arg("agent")
                .env("SIDEBIKE_MACHINE_LABEL", label)
                .env("SIDEBIKE_REGISTRY_ADDRESS", self.list());
            Agent(crate::common::Process::start(command))
        };
        let agents: Vec<Agent> = (0..count).map(start).collect();
        self.servers[self.leader()].expect(&agents.iter().collect::<Vec<_>>());
        agents
    }

    /// Asks the servers in turn until one answers something else than 503.
    pub fn ask(&self, method: &str, target: &str, body: &[u8]) -> Reply {
        let mut n = 0;
        wait_until(&format!("an answer to {method} {target}"), || {
            n += 1;
            let reply = try_ask(
                self.addresses[n % self.addresses.len()],
                method,
                target,
                body,
            );
            let reply = reply.filter(|reply| reply.status != 503);
            if reply.is_none() {
                thread::sleep(PAUSE);
            }
            reply
        })
    }
}

/// Different addresses at which nobody listens.
fn free_addresses(count: usize) -> Vec<SocketAddr> {
    let bind = |_| TcpListener::bind("127.0.0.1:0").expect("a free port");
    // Held until all are found, or the same one could be found twice.
    let listeners: Vec<TcpListener> = (0..count).map(bind).collect();
    let address = |listener: &TcpListener| listener.local_addr().expect("an address");
    listeners.iter().map(address).collect()
}

/// An answer, if the server gives one.
pub fn try_ask(address: SocketAddr, method: &str, target: &str, body: &[u8]) -> Option<Reply> {
    let stream = TcpStream::connect(address).ok()?;
    // Who is stopped, or asks one who is, does not answer.
    stream.set_read_timeout(Some(NO_ANSWER)).ok()?;
    let mut connection = Connection::over(stream);
    connection.send(&request(method, target, "Connection: close\r\n", body));
    connection.try_read(method != "HEAD")
}

/// Its status.
pub fn status(address: SocketAddr, method: &str, target: &str) -> Option<u16> {
    try_ask(address, method, target, b"").map(|reply| reply.status)
}

/// People who submit tasks all the time, each of which appends its id to a file, and note what was acknowledged.
pub struct Load {
    folder: Folder,
    ends: AtomicBool,
    acknowledged: Mutex<Vec<String>>,
    /// Statuses that nobody should see.
    wrong: Mutex<Vec<String>>,
}

impl Load {
    pub fn new() -> Load {
        Load {
            folder: Folder::new(),
            ends: AtomicBool::new(false),
            acknowledged: Mutex::default(),
            wrong: Mutex::default(),
        }
    }

    /// How many were acknowledged.
    pub fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// No more tasks.
    pub fn end(&self) {
        self.ends.store(true, Ordering::Relaxed);
    }

    /// Waits until so many more were acknowledged.
    pub fn wait_for_more(&self, more: usize) {
        let before = self.count();
        wait_within(TAKEOVER * 2, "tasks are acknowledged", || {
            (self.count() >= before + more).then_some(())
        });
    }

    /// Submits one task after the other, as somebody who repeats a submit under the same id until it is acknowledged.
    pub fn submit_forever(&self, who: usize, addresses: &[SocketAddr], label: &str) {
        let mut at = who;
        for n in 0.. {
            if self.ends.load(Ordering::Relaxed) {
                return;
            }
            let id = format!("task-{who}-{n}");
            let task = self.task(&id, label);
            loop {
                let address = addresses[at % addresses.len()];
                let reply = try_ask(address, "POST", "/api/v1/task", task.to_string().as_bytes());
                match reply.as_ref().map(|reply| reply.status) {
                    // 409: it was accepted before, and the answer was lost.
                    Some(200 | 409) => break,
                    Some(503) | None => {
                        at += 1;
                        thread::sleep(PAUSE);
                    }
                    Some(_) => {
                        let reply = reply.map(|reply| format!("{} {}", reply.status, reply.text()));
                        self.wrong.lock().unwrap().extend(reply);
                        break;
                    }
                }
                if self.ends.load(Ordering::Relaxed) {
                    return;
                }
            }
            self.acknowledged(&id);
        }
    }

    /// A task that notes in the file that it has started.
    pub fn task(&self, id: &str, label: &str) -> Value {
        let file = self.folder.file("started");
        json!({"id": id, "machinePattern": label, "mode": "any", "ttl": "10m",
            "detail": {"command": format!("echo {id} >> {file}")}})
    }

    /// A task has been accepted: it is checked with the others.
    pub fn acknowledged(&self, id: &str) {
        self.acknowledged.lock().unwrap().push(id.to_owned());
    }

    /// Everything that was acknowledged is there and ends well, and nothing has started twice.
    pub fn check(&self, servers: &Servers) {
        assert_eq!(*self.wrong.lock().unwrap(), [""; 0], "wrong answers");
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        assert!(!acknowledged.is_empty());
        let since = Instant::now();
        for id in &acknowledged {
            let ended = wait_within(TAKEOVER * 4, id, || {
                let reply = servers.ask("GET", &format!("/api/v1/task/{id}"), b"");
                assert_eq!(reply.status, 200, "{id} was acknowledged: {}", reply.text());
                let task = reply.data();
                task["finishedAt"].is_string().then_some(task)
            });
            assert_eq!(ended["state"], "succeeded", "{ended}");
        }
        println!(
            "{} tasks have ended after {:?}",
            acknowledged.len(),
            since.elapsed()
        );
        let started = self.folder.lines("started");
        let different: BTreeSet<&String> = started.iter().collect();
        assert_eq!(started.len(), different.len(), "something started twice");
        for id in &acknowledged {
            assert!(different.contains(id), "{id} has ended and never started");
        }
    }
}

/// Where the agents of [`under_load`] are.
pub const LOADED: &str = "loaded";

/// Does something while two people submit tasks for two agents; then everything has to be there.
pub fn under_load(servers: &mut Servers, faults: impl FnOnce(&mut Servers, &Load)) {
    let agents = servers.agents(2, LOADED);
    let load = Load::new();
    let addresses = servers.addresses.clone();
    thread::scope(|scope| {
        for who in 0..2 {
            let (load, addresses) = (&load, &addresses);
            scope.spawn(move || load.submit_forever(who, addresses, LOADED));
        }
        let _ends = EndsLoad(&load);
        load.wait_for_more(20);
        faults(servers, &load);
        load.wait_for_more(20);
    });
    load.check(servers);
    drop(agents);
}

/// Ends the load also when an assertion fails: the scope waits for its threads.
struct EndsLoad<'a>(&'a Load);

impl Drop for EndsLoad<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
