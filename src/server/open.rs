//! The connections that are open: counted, told apart by their cookies, and at hand for the guard and
//! for whoever hears that one of them has something to be read.
//!
//! Whoever lets go of one takes it off this list last, when tiny_http has closed it: a socket that can
//! still be found must be known.
//!
//! Those that are held are only counted: there may be thousands, and nobody has to look at them. Where
//! descriptors are short they are thin: what tiny_http has to read from them is closed.

use super::connection::Connection;
use super::peer::NUMBERS_EACH;
use super::ready::Ready;
use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The connections.
#[derive(Debug)]
pub struct Open {
    list: Mutex<List>,
    /// Tells which of them have something to be read.
    pub ready: Ready,
    /// Beyond so many descriptors they are short.
    plenty: usize,
}

/// Connections must not be dropped while it is locked, as they lock it then.
#[derive(Debug, Default)]
struct List {
    all: HashMap<u64, Entry>,
    thin: usize,
    per_address: HashMap<IpAddr, usize>,
    /// How many have gone by themselves, in all.
    gone: u64,
    /// How many were found by the descriptor with this number.
    found_by: Vec<u16>,
}

#[derive(Debug)]
struct Entry {
    connection: Arc<Connection>,
    is_held: bool,
    is_thin: bool,
}

impl List {
    /// How many descriptors they have.
    fn descriptors(&self) -> usize {
        NUMBERS_EACH * self.all.len() - self.thin
    }
}

impl Open {
    /// None yet. They may have so many descriptors before those are short.
    pub fn new(plenty: usize) -> Result<Arc<Self>, String> {
        Ok(Arc::new(Open {
            list: Mutex::default(),
            ready: Ready::new()?,
            plenty,
        }))
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are, and how many descriptors they have.
    pub fn counts(&self) -> (usize, usize) {
        let list = self.list();
        (list.all.len(), list.descriptors())
    }

    /// How many have gone by themselves so far.
    pub fn gone(&self) -> u64 {
        self.list().gone
    }

    /// Whether descriptors are short.
    pub fn is_short(&self) -> bool {
        self.list().descriptors() > self.plenty
    }

    /// How many there are from an address.
    pub fn count_of(&self, address: &IpAddr) -> usize {
        self.list().per_address.get(address).copied().unwrap_or(0)
    }

    /// Whether the socket with this cookie belongs to one of them.
    pub fn knows(&self, cookie: u64) -> bool {
        self.list().all.contains_key(&cookie)
    }

    /// The one with this cookie.
    pub fn get(&self, cookie: u64) -> Option<Arc<Connection>> {
        let list = self.list();
        list.all.get(&cookie).map(|entry| entry.connection.clone())
    }

    /// Whether one of them was found by the descriptor with this number.
    pub fn is_taken(&self, number: RawFd) -> bool {
        let list = self.list();
        let count = usize::try_from(number).map(|n| list.found_by.get(n).copied());
        count.is_ok_and(|count| count.is_some_and(|count| count > 0))
    }

    /// Those that are not held.
    pub fn at_work(&self) -> Vec<Arc<Connection>> {
        let list = self.list();
        let at_work = list.all.values().filter(|entry| !entry.is_held);
        at_work.map(|entry| entry.connection.clone()).collect()
    }

    /// Adds one that was accepted.
    pub fn add(&self, connection: &Arc<Connection>) {
        let mut list = self.list();
        let entry = Entry {
            connection: connection.clone(),
            is_held: false,
            is_thin: false,
        };
        list.all.insert(connection.peer.cookie(), entry);
        let number = number(connection);
        if number >= list.found_by.len() {
            list.found_by.resize(number + 1, 0);
        }
        list.found_by[number] += 1;
        if let Some(address) = connection.peer.address() {
            *list.per_address.entry(address).or_default() += 1;
        }
    }

    /// Notes that one is held from now on, or is not any more.
    pub fn note_held(&self, connection: &Connection, is_held: bool) {
        let mut list = self.list();
        if let Some(entry) = list.all.get_mut(&connection.peer.cookie()) {
            entry.is_held = is_held;
        }
    }

    /// Notes that one has only the descriptor to write to from now on.
    pub fn note_thin(&self, connection: &Connection) {
        let mut list = self.list();
        if let Some(entry) = list.all.get_mut(&connection.peer.cookie())
            && !std::mem::replace(&mut entry.is_thin, true)
        {
            list.thin += 1;
        }
    }

    /// Takes one off.
    pub fn remove(&self, connection: &Connection) {
        let mut list = self.list();
        let Some(entry) = list.all.remove(&connection.peer.cookie()) else {
            return;
        };
        list.thin -= usize::from(entry.is_thin);
        list.gone += u64::from(!connection.was_cut());
        list.found_by[number(connection)] -= 1;
        if let Some(address) = connection.peer.address()
            && let Some(count) = list.per_address.get_mut(&address)
        {
            *count -= 1;
            if *count == 0 {
                list.per_address.remove(&address);
            }
        }
        // It locks nothing when it goes, but what it has may take its time.
        drop(list);
        drop(entry);
    }
}

fn number(connection: &Connection) -> usize {
    // A descriptor that exists has a number.
    usize::try_from(connection.peer.found_by()).unwrap_or(0)
}
