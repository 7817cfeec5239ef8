//! The thread of one of several servers that stands by, takes the lead, loads the records, and then saves what changes.
//!
//! What is to be done when is decided by [`Elector`]; here is the I/O around it.

use super::front::Front;
use super::start_anew::start_anew;
use crate::core::Batch;
use crate::server::api::server::Shared;
use crate::server::blobs::vault::OpenVault;
use crate::server::http::start_thread;
use crate::server::setup::{Running, Setup};
use crate::server::state::db::election::{Action, Elector, Role};
use crate::server::state::db::{
    Committed, Connect, Holder, LeaderRecord, Leadership, NOT_ALIVE, Progress, RegistryId,
    StorageEngine, Term, Trust, boot_time,
};
use crate::server::state::{OwnTerm, Store};
use crate::wire::term::RegistryTerm;
use log::{info, warn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// Something that the thread waits for.
enum Event {
    /// A load has ended.
    Loaded(Result<Running, LoadError>),
    /// The server is to end.
    Close,
}

/// Why nothing could be loaded.
enum LoadError {
    /// The database did not give it: it is tried again.
    Unreachable(String),
    /// Trying again would not help.
    Fatal(String),
}

/// One of several servers, and its thread.
pub struct Candidate {
    front: Arc<Front>,
    closing: Arc<AtomicBool>,
    events: Sender<Event>,
    thread: JoinHandle<Result<(), String>>,
}

impl Candidate {
    /// Starts to stand by. `on_end` is called when the thread has ended by itself, which is an error.
    pub fn start(
        setup: Arc<Setup>,
        front: Arc<Front>,
        connect: Arc<dyn Connect>,
        on_end: impl FnOnce() + Send + 'static,
    ) -> Result<Candidate, String> {
        let (sender, events) = channel();
        let closing = Arc::new(AtomicBool::new(false));
        let holder = Holder::fresh();
        // It differs between the servers.
        let jitter = holder.0.get() as f64 / u64::MAX as f64;
        if let Some(standby) = front.standby() {
            let (presence, setup) = (&standby.presence, setup.clone());
            presence.announce_forever(setup, &*connect, holder)?;
        }
        let worker = Worker {
            setup,
            front: front.clone(),
            engine: connect.connect(holder),
            connect,
            holder,
            elector: Elector::new(holder, jitter, boot_time()),
            registry: None,
            trust: Arc::new(Trust::none()),
            sender: sender.clone(),
            events,
            closing: closing.clone(),
            is_cut_off: false,
        };
        let thread = std::thread::Builder::new()
            .name("candidate".into())
            .spawn(move || {
                let front = worker.front.clone();
                let ended = catch_unwind(AssertUnwindSafe(|| worker.run()));
                let ended = ended.unwrap_or_else(|_| {
                    if let Some(running) = front.leader() {
                        running.server.store.saving_failed();
                    }
                    Err("the candidate thread has failed (a bug): start the server again".into())
                });
                if ended.is_err() {
                    on_end();
                }
                ended
            })
            .map_err(|why| format!("cannot start a thread: {why}"))?;
        Ok(Candidate {
            front,
            closing,
            events: sender,
            thread,
        })
    }

    /// Ends: saves the rest, and lets another server lead. The error says why it has ended by itself before.
    pub fn close(self) -> Result<(), String> {
        self.closing.store(true, Ordering::SeqCst);
        // An error says that the thread has ended.
        let _ = self.events.send(Event::Close);
        if let Some(running) = self.front.leader() {
            running.server.store.begin_to_close();
        }
        // A panic was caught in it.
        self.thread.join().unwrap_or(Ok(()))
    }
}

struct Worker {
    setup: Arc<Setup>,
    front: Arc<Front>,
    connect: Arc<dyn Connect>,
    holder: Holder,
    engine: Box<dyn StorageEngine>,
    elector: Elector,
    /// As the last look has shown it.
    registry: Option<RegistryId>,
    trust: Arc<Trust>,
    sender: Sender<Event>,
    events: Receiver<Event>,
    closing: Arc<AtomicBool>,
    /// The last call of the database has failed.
    is_cut_off: bool,
}

impl Worker {
    /// Stands by, then leads. The error says why it cannot go on.
    fn run(mut self) -> Result<(), String> {
        let Some(running) = self.stand_by()? else {
            return Ok(());
        };
        let term = self.elector.term().unwrap_or_default().0;
        let shared = running.server.shared.clone();
        let shared = shared.ok_or("a leader shares nothing (a bug)")?;
        let store = running.server.store.clone();
        let of_loss = store.clone();
        let progress = move |progress| match progress {
            Progress::Committed(n) => shared.term.committed(n),
            Progress::Rose { seen, to } => {
                shared.term.rose(to);
                let what = format!("somebody has seen term {}, which it does not know", seen.0);
                shared.note_loss(&of_loss, &what);
            }
        };
        let leadership =
            Leadership::elected(self.engine, self.elector, self.trust, Box::new(progress));
        let started = running.start();
        if let Err(why) = started {
            leadership.resign();
            return Err(why);
        }
        running.explain();
        let tasks = store.ask(|core| core.tasks_by_state());
        let tasks: usize = tasks.iter().map(|(_, count)| count).sum();
        info!("leads in term {term}, with {tasks} tasks");
        self.front.lead(running);
        if self.closing.load(Ordering::SeqCst) {
            store.begin_to_close();
        }
        if let Err(why) = store.save_forever(leadership) {
            warn!("{why}: starts anew, as a standby");
            self.setup.audit.settle();
            start_anew();
        }
        Ok(())
    }

    /// Stands by until it leads and everything is loaded; `None` when it is to end before.
    fn stand_by(&mut self) -> Result<Option<Running>, String> {
        let mut loaded = None;
        loop {
            match self.elector.act(boot_time(), false) {
                Some(Action::Look) => self.look(),
                Some(Action::Take(seen)) => self.take(&seen),
                Some(Action::Load) => self.load()?,
                Some(Action::Commit(number)) => {
                    let committed = self.engine.commit(number, NOT_ALIVE, &Batch::default());
                    self.note_commit(&committed);
                }
                Some(Action::Resign(term)) => {
                    let _ = self.engine.resign(term);
                }
                Some(Action::StartAnew) => {
                    warn!("another server has taken the lead meanwhile: starts anew");
                    start_anew();
                }
                None => match self.elector.role() {
                    Role::Resigned => return Ok(None),
                    Role::Leader => return Ok(loaded.take()),
                    _ => match self.next_event() {
                        None => {}
                        Some(Event::Close) => self.elector.resign(),
                        Some(Event::Loaded(Ok(running))) => {
                            loaded = Some(running);
                            self.elector.loaded(boot_time(), true);
                        }
                        Some(Event::Loaded(Err(LoadError::Unreachable(why)))) => {
                            warn!("database: {why}; loads again");
                            self.elector.loaded(boot_time(), false);
                        }
                        Some(Event::Loaded(Err(LoadError::Fatal(why)))) => {
                            if let Some(term) = self.elector.term() {
                                let _ = self.engine.resign(term);
                            }
                            return Err(why);
                        }
                    },
                },
            }
        }
    }

    /// Waits for an event until the elector has something to do.
    fn next_event(&self) -> Option<Event> {
        let wait = self.elector.wakes_at(false);
        let wait = wait.map(|at| at.saturating_sub(boot_time()));
        match wait {
            Some(wait) => match self.events.recv_timeout(wait) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Event::Close),
            },
            None => Some(self.events.recv().unwrap_or(Event::Close)),
        }
    }

    fn look(&mut self) {
        let seen = self.engine.look();
        match &seen {
            Ok(seen) => {
                self.note_reached();
                self.registry = Some(seen.registry);
                if let Some(standby) = self.front.standby() {
                    standby.note(seen);
                }
            }
            Err(why) => self.note_cut_off(why),
        }
        let record = seen.map(|seen| seen.record);
        self.elector.looked(boot_time(), &record);
    }

    fn take(&mut self, seen: &LeaderRecord) {
        let taken = self.engine.take(seen);
        if let Err(why) = &taken {
            self.note_cut_off(why);
        }
        self.elector.took(boot_time(), &taken);
        if let Some(Term(term)) = self.elector.term() {
            if let Some(standby) = self.front.standby() {
                standby.note_own_lead();
            }
            info!("has taken the lead in term {term}, and loads");
        }
    }

    fn note_commit(&mut self, committed: &Committed) {
        if let Committed::Unknown(why) = committed {
            self.note_cut_off(why);
        }
        self.elector.committed(boot_time(), committed);
    }

    /// Loads on a connection and a thread of its own: signs of life have to go on meanwhile.
    fn load(&self) -> Result<(), String> {
        let mut engine = self.connect.connect(self.holder);
        let (setup, trust, sender) = (self.setup.clone(), self.trust.clone(), self.sender.clone());
        let term = self.elector.term().zip(self.registry);
        let (term, registry) = term.ok_or("it loads without a term (a bug)")?;
        let connect = self.connect.clone();
        let standby = self.front.standby().cloned();
        let servers = move || match &standby {
            Some(standby) => standby.presence.servers(),
            None => Vec::new(),
        };
        let before = self.elector.taken_from();
        let before = before.ok_or("it loads without a take (a bug)")?;
        let me = self.holder.0.get();
        let shared = Arc::new(Shared {
            term: OwnTerm::new(RegistryTerm { registry, term }, me, before.origin()),
            is_synchronous: Box::new(move || connect.is_synchronous()),
            servers: Box::new(servers),
        });
        let terms = shared.clone();
        let vault = { &self.connect }.vault(self.holder, Arc::new(move || terms.term.term()));
        start_thread("load", move || {
            let started = Instant::now();
            let load = || {
                let saved = engine.load().map_err(LoadError::Unreachable)?;
                let found = |open: Box<OpenVault>| {
                    let contents = open().list().map_err(LoadError::Unreachable)?;
                    Ok((open, contents))
                };
                let vault = vault.map(found).transpose()?;
                let store = Store::restored(setup.limits(), setup.max_held, saved, trust);
                let damaged =
                    |why| LoadError::Fatal(format!("--db: the database is damaged: {why}"));
                let running = setup.open(store.map_err(damaged)?, Some(shared), vault);
                running.map_err(LoadError::Fatal)
            };
            let loaded = load();
            if loaded.is_ok() {
                let ms = started.elapsed().as_millis();
                info!("has loaded everything in {ms} ms");
            }
            // Nobody waits for it if the server ends.
            let _ = sender.send(Event::Loaded(loaded));
        })
    }

    fn note_reached(&mut self) {
        if std::mem::take(&mut self.is_cut_off) {
            info!("the database answers again");
        }
    }

    /// Logged once, not at every try.
    fn note_cut_off(&mut self, why: &str) {
        if !std::mem::replace(&mut self.is_cut_off, true) {
            warn!("database: {why}; tries again every second");
        }
    }
}
