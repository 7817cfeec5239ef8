//! A way to the database that a test cuts, or on which it holds one commit: as a slow network does, only at the moment
//! that the test wants.

use crate::common::wait_for;
use crate::postgresql::PostgreSql;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;

/// What is held of the next message that has a mark in it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its answer: the database has done what it says.
    Answer,
    /// What follows the first half of the mark: the database cannot begin.
    SecondHalf,
}

/// A TCP connection of the test between a server and the database.
pub struct Way {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Default)]
struct Now {
    /// Nothing comes through, and no connection ends, as with a network that loses every packet.
    is_cut: bool,
    is_over: bool,
    /// The next message with this mark is held.
    mark: Option<(Vec<u8>, Part)>,
    held: Option<Held>,
}

/// A message that is held.
struct Held {
    /// The number of the connection.
    on: usize,
    part: Part,
    /// The part is here, and the rest has gone on.
    is_here: bool,
    fate: Fate,
    /// It was let go on, and the answer has been passed on, or is about to be.
    is_answered: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Waits,
    GoesOn,
    IsLost,
}

impl Way {
    /// A way to the server of the database at this port.
    pub fn to(port: u16) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::spawn(move || {
            for (n, client) in listener.incoming().flatten().enumerate() {
                if shared.now().is_over {
                    return;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
                    continue;
                };
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let state = shared.clone();
                thread::spawn(move || carry(client, server, |bytes| state.to_database(n, bytes)));
                let state = shared.clone();
                thread::spawn(move || carry(back.0, back.1, |bytes| state.to_server(n, bytes)));
            }
        });
        Way { address, state }
    }

    /// The URL of a database by this way.
    pub fn url(&self, postgres: &PostgreSql, database: &str) -> String {
        let (_, name) = database.rsplit_once('/').unwrap();
        let port = postgres.port();
        assert!(database.contains(&format!(":{port}/")), "{database}");
        format!("postgres://postgres@{}/{name}", self.address)
    }

    /// Lets nothing through any more, or everything again.
    pub fn cut(&self, is_cut: bool) {
        self.state.change(|now| now.is_cut = is_cut);
    }

    /// Holds a part of the next message to the database that has this mark in it.
    pub fn hold(&self, part: Part, mark: &str) {
        let mark = Some((mark.as_bytes().to_vec(), part));
        self.state.change(|now| {
            now.mark = mark;
            now.held = None;
        });
    }

    /// Waits until that part is held, and everything before it has gone on.
    pub fn wait_until_held(&self) {
        wait_for("a commit is held", || {
            self.state.now().held.as_ref().is_some_and(|it| it.is_here)
        });
    }

    /// Lets go on what is held.
    pub fn release(&self) {
        self.decide(Fate::GoesOn);
    }

    /// Closes the connection on which something is held.
    pub fn lose(&self) {
        self.decide(Fate::IsLost);
    }

    fn decide(&self, fate: Fate) {
        self.state.change(|now| {
            let held = now.held.as_mut().expect("something is held");
            held.fate = fate;
        });
    }

    /// Waits until the database has answered what was held; if that was the answer, until it is where the server finds it.
    pub fn wait_until_answered(&self) {
        wait_for("the database answers what was held", || {
            self.state
                .now()
                .held
                .as_ref()
                .is_some_and(|it| it.is_answered)
        });
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.state.change(|now| {
            now.is_over = true;
            now.is_cut = false;
            now.held = None;
        });
        let _ = TcpStream::connect(self.address);
    }
}

impl State {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Now)) {
        change(&mut self.now());
        self.changed.notify_all();
    }

    /// Waits as long as this is so.
    fn wait_while(&self, mut is: impl FnMut(&mut Now) -> bool) -> MutexGuard<'_, Now> {
        self.changed.wait_while(self.now(), |now| is(now)).unwrap()
    }

    /// How many of these bytes of a server go on now; the others are asked for again. `None`: the connection is to be
    /// closed.
    fn to_database(&self, n: usize, bytes: &[u8]) -> Option<usize> {
        let mut now = self.wait_while(|now| now.is_cut);
        if now.waits(n, Part::SecondHalf) {
            drop(now);
            // The first half has been sent before this was asked.
            self.change(|now| now.held.iter_mut().for_each(|held| held.is_here = true));
            now = self.wait_while(|now| now.is_cut || now.waits(n, Part::SecondHalf));
        }
        if now.is_lost(n) {
            return None;
        }
        let Some((mark, part)) = now.mark.clone() else {
            return Some(bytes.len());
        };
        let Some(at) = bytes.windows(mark.len()).position(|some| some == mark) else {
            // Perhaps a mark begins at their end.
            let begun = (1..mark.len()).rev().find(|n| bytes.ends_with(&mark[..*n]));
            return Some(bytes.len() - begun.unwrap_or_default());
        };
        now.mark = None;
        now.held = Some(Held {
            on: n,
            part,
            is_here: false,
            fate: Fate::Waits,
            is_answered: false,
        });
        match part {
            Part::Answer => Some(bytes.len()),
            Part::SecondHalf => Some(at + mark.len() / 2),
        }
    }

    /// The same for bytes of the database.
    fn to_server(&self, n: usize, bytes: &[u8]) -> Option<usize> {
        drop(self.wait_while(|now| now.is_cut));
        self.change(|now| {
            for held in now.held.iter_mut().filter(|held| held.on == n) {
                match held.fate {
                    Fate::Waits => held.is_here = true,
                    _ => held.is_answered = true,
                }
            }
        });
        let now = self.wait_while(|now| now.is_cut || now.waits(n, Part::Answer));
        (!now.is_lost(n)).then_some(bytes.len())
    }
}

impl Now {
    /// Whether this part of a message is held on a connection.
    fn waits(&self, n: usize, part: Part) -> bool {
        let held = self.held.as_ref();
        held.is_some_and(|held| (held.on, held.part, held.fate) == (n, part, Fate::Waits))
    }

    fn is_lost(&self, n: usize) -> bool {
        let held = self.held.as_ref();
        held.is_some_and(|held| (held.on, held.fate) == (n, Fate::IsLost))
    }
}

/// Carries bytes as long as both sides are there, as far as `goes_on` says.
fn carry(
    mut from: TcpStream,
    mut to: TcpStream,
    goes_on: impl Fn(&[u8]) -> Option<usize>,
) -> Option<()> {
    let _both_end = BothEnd(from.try_clone().ok()?, to.try_clone().ok()?);
    let (mut waiting, mut buffer) = (Vec::new(), [0; 64 * 1024]);
    loop {
        let read = from.read(&mut buffer);
        waiting.extend_from_slice(&buffer[..*read.as_ref().unwrap_or(&0)]);
        loop {
            // An end of the connection is held, too. Asked once more after the last ones have been sent.
            let count = goes_on(&waiting)?;
            if count == 0 {
                break;
            }
            to.write_all(&waiting[..count]).ok()?;
            waiting.drain(..count);
        }
        if read.ok()? == 0 {
            return None;
        }
    }
}

/// Ends both sides of a connection.
struct BothEnd(TcpStream, TcpStream);

impl Drop for BothEnd {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
        let _ = self.1.shutdown(Shutdown::Both);
    }
}
