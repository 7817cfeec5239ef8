//! Several servers over PostgreSQL whose ways to the database break, and whose database fails over.
#![cfg(all(feature = "pg", feature = "agent", feature = "cli"))]

mod common;
mod postgresql;
mod several;

use common::{wait_for, wait_within};
use postgresql::PostgreSql;
use several::{Servers, status, under_load};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// A way to the database that can be cut: then nothing comes through, and no connection ends, as with a network that
/// loses every packet.
struct Way {
    address: SocketAddr,
    is_cut: Arc<(Mutex<bool>, Condvar)>,
    ended: Arc<AtomicBool>,
}

impl Way {
    fn to(port: u16) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let is_cut = Arc::new((Mutex::new(false), Condvar::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let (cut, over) = (is_cut.clone(), ended.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
                    continue;
                };
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                for (from, to) in [(client, server), back] {
                    let cut = cut.clone();
                    thread::spawn(move || carry(from, to, &cut));
                }
            }
        });
        Way {
            address,
            is_cut,
            ended,
        }
    }

    fn cut(&self, is_cut: bool) {
        *self.is_cut.0.lock().unwrap() = is_cut;
        self.is_cut.1.notify_all();
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        self.cut(false);
        let _ = TcpStream::connect(self.address);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, cut: &(Mutex<bool>, Condvar)) {
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer);
        let is_cut = cut.0.lock().unwrap();
        drop(cut.1.wait_while(is_cut, |is_cut| *is_cut).unwrap());
        match read {
            Ok(bytes) if bytes > 0 && to.write_all(&buffer[..bytes]).is_ok() => {}
            _ => {
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
        }
    }
}

#[test]
fn a_leader_that_is_cut_off_from_the_database_is_mute_before_another_one_leads() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let direct = postgres.database();
    let (_, name) = direct.rsplit_once('/').unwrap();
    let ways = [Way::to(postgres.port()), Way::to(postgres.port())];
    let url = |way: &Way| format!("postgres://postgres@{}/{name}", way.address);
    let mut servers = Servers::with_urls(ways.iter().map(url).collect());
    under_load(&mut servers, |servers, load| {
        let leader = servers.leader();
        let (old, new) = (servers.addresses[leader], servers.addresses[1 - leader]);
        ways[leader].cut(true);
        wait_within(Duration::from_secs(40), "the other one leads", || {
            let leads = status(new, "GET", "/leader") == Some(200);
            let is_told = leads.then(|| status(old, "GET", "/leader"));
            is_told.inspect(|told| assert_eq!(*told, Some(503), "two lead"))
        });
        load.wait_for_more(20);
        ways[leader].cut(false);
        servers.servers[leader]
            .process
            .logged("starts anew, as a standby");
        wait_for("it stands by", || {
            status(old, "GET", "/healthz") == Some(200)
        });
    });
    assert_eq!(servers.term(), 2);
}

#[test]
fn a_failover_of_the_database_to_its_synchronous_standby_loses_nothing() {
    let Some(primary) = PostgreSql::start(&[]) else {
        return;
    };
    let url = primary.database();
    let standby = primary.standby();
    let (_, name) = url.rsplit_once('/').unwrap();
    let (one, two) = (primary.port(), standby.port());
    let url = format!("postgres://postgres@127.0.0.1:{one},127.0.0.1:{two}/{name}");
    let mut servers = Servers::start(2, &url);
    under_load(&mut servers, |servers, load| {
        let leader = &servers.servers[servers.leader()];
        assert_eq!(leader.metric("sidebike_db_synchronous"), 1);
        primary.kill();
        standby.promote();
        load.wait_for_more(20);
    });
}
