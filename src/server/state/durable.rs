//! The queue of changes to be saved, and the wait until they are on the disk.
//!
//! Every change gets a ticket, in the order of the changes. One thread saves all changes that have accumulated, in
//! one commit. A request that must not be answered before its change is saved waits for its ticket. So durability
//! costs a wait, but not a commit for each request. Without a database nothing ever waits.

#[cfg(feature = "db")]
use super::db::{Committed, Leadership, NOT_ALIVE, Trust};
use crate::core::{Batch, OutputKey, Time};
#[cfg(feature = "db")]
use crate::core::{OutputChange, Saved};
#[cfg(feature = "db")]
use crate::wire::term::Term;
#[cfg(feature = "db")]
use log::{error, info, warn};
use std::collections::BTreeSet;
#[cfg(feature = "db")]
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
#[cfg(feature = "db")]
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
#[cfg(feature = "db")]
use std::time::{Duration, Instant};

/// The delay before changes are saved that no request waits for (output, started commands).
#[cfg(feature = "db")]
const IDLE_DELAY: Duration = Duration::from_millis(500);
/// The pause after an error of the disk.
#[cfg(feature = "db")]
const ERROR_PAUSE: Duration = Duration::from_secs(1);
/// Clients that were just answered often send their next request at once. So where a commit takes long, the next one
/// waits until as many requests wait as the last one answered and as came meanwhile, but no longer than the last commit
/// took, and no longer than this.
#[cfg(feature = "db")]
const MAX_GATHERING: Duration = Duration::from_millis(5);
/// A commit takes long from here on. Dozens of clients need about so long to send their next requests, so with a faster
/// disk it takes less time to save at once what waits.
#[cfg(feature = "db")]
const LONG_COMMIT: Duration = Duration::from_millis(3);
/// How often the present time is saved while a task is unfinished. The time during which a server was stopped does
/// not count for tasks; this is how exactly it is known.
#[cfg(feature = "db")]
const ALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// The most queued output, in bytes. Beyond it only the ids of its attempts are queued, and their output is read
/// from the core when it is saved.
const MAX_QUEUED_OUTPUT: usize = 32 << 20;
/// How often a request that waits for a commit looks whether this server may still answer it.
#[cfg(feature = "db")]
const TRUST_CHECK: Duration = Duration::from_millis(250);
/// The error of a server that may have been replaced.
#[cfg(feature = "db")]
const MUTE: &str = "the database has not acknowledged anything for too long: another server may lead; what was asked may be saved all the same";
/// The error of a server whose commit was fenced.
#[cfg(feature = "db")]
const FENCED: &str = "database: another server has opened it since; nothing is saved here any more: start this server again";

/// The error of a server whose database has lost what it had saved.
#[cfg(feature = "db")]
const WENT_BACK: &str = "database: it has lost what it had saved: an older copy may have been put in its place; start this server again";

/// A change's place in the order of changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Ticket(u64);

/// The changes to be saved.
#[derive(Default)]
struct Queue {
    batch: Batch,
    /// The size of the output in `batch`, in bytes.
    output_bytes: usize,
    /// Attempts whose output is to be saved as a whole: their changes were too large for the queue, or it is not
    /// known whether the disk has them.
    whole: BTreeSet<OutputKey>,
    /// The ticket of the last change.
    last: Ticket,
    /// The time of the last change.
    now: Time,
    /// Whether a task was unfinished at that time.
    unfinished: bool,
    /// How many requests wait; if there are any, the changes are saved at once.
    waiters: usize,
    /// The saving thread sleeps until so many wait; 0 while it is at work. Waking it for each of them would cost more than
    /// the rest of their wait.
    #[cfg(feature = "db")]
    wakes_at: usize,
    /// A term higher than that of this server, which somebody has seen.
    #[cfg(feature = "db")]
    higher_term: Option<Term>,
    /// The server is shutting down.
    closing: bool,
}

impl Queue {
    fn add(&mut self, batch: Batch) {
        let output = batch.output.iter();
        self.output_bytes += output.map(|(_, change)| change.cost()).sum::<usize>();
        self.batch.add(batch);
        if self.output_bytes > MAX_QUEUED_OUTPUT {
            self.whole
                .extend(self.batch.output.drain(..).map(|(key, _)| key));
            self.output_bytes = 0;
        }
    }

    /// Takes out what is to be saved.
    #[cfg(feature = "db")]
    fn take_work(&mut self) -> Work {
        self.output_bytes = 0;
        Work {
            batch: std::mem::take(&mut self.batch),
            whole: std::mem::take(&mut self.whole),
            last: self.last,
            now: self.now,
            unfinished: self.unfinished,
            higher_term: self.higher_term.take(),
            closing: self.closing,
        }
    }

    /// Puts back what could not be saved.
    #[cfg(feature = "db")]
    fn put_back(&mut self, work: Work) {
        let mut batch = work.batch;
        let output = batch.output.drain(..).map(|(key, _)| key);
        self.whole.extend(work.whole.into_iter().chain(output));
        let later = std::mem::replace(&mut self.batch, batch);
        self.batch.add(later);
        self.higher_term = self.higher_term.max(work.higher_term);
    }
}

/// What was taken out of the queue, to be saved in one commit. The fields are those of [`Queue`].
#[cfg(feature = "db")]
struct Work {
    batch: Batch,
    whole: BTreeSet<OutputKey>,
    last: Ticket,
    now: Time,
    unfinished: bool,
    higher_term: Option<Term>,
    closing: bool,
}

/// What the saving thread remembers of the last commit.
#[cfg(feature = "db")]
struct Pace {
    /// When it was sent.
    last_commit: Instant,
    /// How long it took.
    took: Duration,
    /// How many requests waited for it.
    waiters: usize,
}

/// What the disk has.
#[derive(Default)]
struct Disk {
    /// The last change that was saved.
    saved: Ticket,
    /// The last change that could not be saved, and why, until changes can be saved again.
    failed: Option<(Ticket, String)>,
    /// Everything has been saved, and the file is closed.
    closed: bool,
}

/// Saves changes in order.
pub struct Durable {
    /// `None` without a database.
    queue: Option<Mutex<Queue>>,
    /// Signals the saving thread: a request waits, or the server is shutting down.
    work: Condvar,
    disk: Mutex<Disk>,
    /// Signals waiting requests: `disk` has changed.
    progress: Condvar,
    /// How often everything was written anew, because the database had lost it.
    pub heals: AtomicU64,
    /// Until when this server may answer.
    #[cfg(feature = "db")]
    trust: Arc<Trust>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Durable {
    /// An empty queue, of a server without a database.
    pub fn without_database() -> Self {
        Durable {
            queue: None,
            work: Condvar::new(),
            disk: Mutex::default(),
            progress: Condvar::new(),
            heals: AtomicU64::new(0),
            #[cfg(feature = "db")]
            trust: Arc::new(Trust::for_ever()),
        }
    }

    /// An empty queue, of a server that may answer while it has the trust.
    #[cfg(feature = "db")]
    pub fn trusted(trust: Arc<Trust>) -> Self {
        Durable {
            queue: Some(Mutex::default()),
            trust,
            ..Durable::without_database()
        }
    }

    /// Whether another server may lead by now, or may soon without what was changed here last: a commit of one of several
    /// servers has failed.
    pub fn is_mute(&self) -> bool {
        #[cfg(feature = "db")]
        return !self.trust.is_there()
            || self.trust.is_of_several() && lock(&self.disk).failed.is_some();
        #[cfg(not(feature = "db"))]
        false
    }

    /// Whether there is a database to wait for.
    pub fn may_wait(&self) -> bool {
        self.queue.is_some()
    }

    /// Queues a change. `unfinished` says whether there is an unfinished task. Must be called in the order of the
    /// changes.
    pub fn take_in(&self, now: Time, batch: Batch, unfinished: bool) -> Ticket {
        let Some(queue) = &self.queue else {
            return Ticket::default();
        };
        let mut queue = lock(queue);
        queue.now = now;
        queue.unfinished = unfinished;
        if !batch.is_empty() {
            queue.add(batch);
            queue.last.0 += 1;
        }
        queue.last
    }

    /// The ticket of the last change.
    pub fn so_far(&self) -> Ticket {
        let queue = self.queue.as_ref();
        queue.map_or(Ticket::default(), |queue| lock(queue).last)
    }

    /// Somebody has seen a higher term than that of this server: nothing is answered until it is known whether another
    /// one leads.
    #[cfg(feature = "db")]
    pub fn note_higher_term(&self, seen: Term) {
        if let Some(queue) = &self.queue
            && self.trust.doubt()
        {
            let mut queue = lock(queue);
            queue.higher_term = queue.higher_term.max(Some(seen));
            self.work.notify_one();
        }
    }

    /// Waits until everything up to `ticket` is saved. The error says why it cannot be saved.
    pub fn wait(&self, ticket: Ticket) -> Result<(), String> {
        let Some(queue) = &self.queue else {
            return Ok(());
        };
        if lock(&self.disk).saved >= ticket {
            return Ok(());
        }
        self.count_waiter(queue);
        let mut disk = lock(&self.disk);
        loop {
            match &disk.failed {
                _ if disk.saved >= ticket => return Ok(()),
                Some((failed, why)) if *failed >= ticket => return Err(why.clone()),
                _ if disk.closed => return Err("the server is shutting down".into()),
                _ => disk = self.next_progress(disk)?,
            }
        }
    }

    /// Counts a request that waits, and wakes the saving thread where it sleeps until there are so many.
    fn count_waiter(&self, queue: &Mutex<Queue>) {
        let mut queue = lock(queue);
        queue.waiters += 1;
        #[cfg(feature = "db")]
        if queue.waiters == queue.wakes_at {
            drop(queue);
            self.work.notify_one();
        }
    }

    /// Waits for news of the disk. The error says that this server may not answer any more.
    fn next_progress<'a>(
        &self,
        disk: MutexGuard<'a, Disk>,
    ) -> Result<MutexGuard<'a, Disk>, String> {
        #[cfg(feature = "db")]
        {
            if !self.trust.is_there() {
                return Err(MUTE.into());
            }
            let waited = self.progress.wait_timeout(disk, TRUST_CHECK);
            Ok(waited.unwrap_or_else(PoisonError::into_inner).0)
        }
        #[cfg(not(feature = "db"))]
        Ok(self
            .progress
            .wait(disk)
            .unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether everything up to `ticket` is saved, or cannot be saved at present. Does not wait.
    pub fn is_settled(&self, ticket: Ticket) -> bool {
        if self.queue.is_none() {
            return true;
        }
        let disk = lock(&self.disk);
        disk.saved >= ticket || disk.failed.is_some() || disk.closed
    }

    /// Why nothing can be saved at present, if that is so.
    pub fn trouble(&self) -> Option<String> {
        self.queue.as_ref()?;
        lock(&self.disk).failed.as_ref().map(|(_, why)| why.clone())
    }

    /// Saves changes until the server shuts down. `output_of` gives the whole present output of attempts; `write_anew`
    /// has everything saved again, in place of what is left in a database that went back. The error
    /// says why this server must not go on: another one leads.
    #[cfg(feature = "db")]
    pub fn save_forever(
        &self,
        mut leadership: Leadership,
        output_of: impl Fn(&BTreeSet<OutputKey>) -> Vec<(OutputKey, OutputChange)>,
        write_anew: impl Fn(&Saved) -> BTreeSet<OutputKey>,
    ) -> Result<(), String> {
        let Some(queue) = &self.queue else {
            return Ok(());
        };
        let mut pace = Pace {
            last_commit: Instant::now(),
            took: Duration::ZERO,
            waiters: 0,
        };
        loop {
            let mut work = self.next_work(queue, &mut pace);
            let is_last = work.closing;
            match self.save(&mut leadership, &mut work, &mut pace, &output_of) {
                Committed::Done => self.note_saved(work.last),
                Committed::Unknown(why) => {
                    let last = work.last;
                    lock(queue).put_back(work);
                    self.note_failed(last, why, is_last);
                }
                Committed::WentBack(_) => {
                    let Some(left) = leadership.take_left() else {
                        // One file does not go back while it is open.
                        self.give_up(WENT_BACK);
                        return Err(WENT_BACK.into());
                    };
                    error!(
                        "the database has lost what it had saved: everything is written anew from memory"
                    );
                    self.heals.fetch_add(1, Ordering::Relaxed);
                    lock(queue).put_back(work);
                    let outputs = write_anew(&left);
                    lock(queue).whole.extend(outputs);
                    continue;
                }
                Committed::Fenced => {
                    self.give_up(FENCED);
                    return Err(FENCED.into());
                }
            }
            if is_last {
                leadership.resign();
                lock(&self.disk).closed = true;
                self.progress.notify_all();
                return Ok(());
            }
            if self.trouble().is_some() {
                let guard = lock(queue);
                let open = |w: &mut Queue| !w.closing;
                drop(self.work.wait_timeout_while(guard, ERROR_PAUSE, open));
            }
        }
    }

    /// Waits until there is something to save, or may be, and takes it out of the queue.
    #[cfg(feature = "db")]
    fn next_work(&self, queue: &Mutex<Queue>, pace: &mut Pace) -> Work {
        let mut guard = lock(queue);
        let expected = pace.waiters + guard.waiters;
        guard.wakes_at = 1;
        let idle = |w: &mut Queue| w.waiters == 0 && !w.closing && w.higher_term.is_none();
        let (mut guard, _) = self
            .work
            .wait_timeout_while(guard, IDLE_DELAY, idle)
            .unwrap_or_else(PoisonError::into_inner);
        let fewer = |w: &mut Queue| w.waiters < expected && !w.closing;
        if guard.waiters > 0 && pace.took >= LONG_COMMIT {
            guard.wakes_at = expected;
            guard = self
                .work
                .wait_timeout_while(guard, pace.took.min(MAX_GATHERING), fewer)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        guard.wakes_at = 0;
        pace.waiters = std::mem::take(&mut guard.waiters);
        guard.take_work()
    }

    /// Saves what was taken out of the queue, if there is any.
    #[cfg(feature = "db")]
    fn save(
        &self,
        leadership: &mut Leadership,
        work: &mut Work,
        pace: &mut Pace,
        output_of: impl Fn(&BTreeSet<OutputKey>) -> Vec<(OutputKey, OutputChange)>,
    ) -> Committed {
        let is_silent = work.unfinished && pace.last_commit.elapsed() >= ALIVE_INTERVAL
            || leadership.must_show_life();
        if let Some(seen) = work.higher_term {
            match leadership.rise_above(seen) {
                Committed::Done => work.higher_term = None,
                // It is put back, and tried again.
                unknown_or_fenced => return unknown_or_fenced,
            }
        }
        if work.batch.is_empty() && work.whole.is_empty() && !is_silent {
            return Committed::Done;
        }
        // After an error try an empty commit first: the batch may be large. It says nothing of the time: the batch may say
        // for how long servers were away, and both are saved together.
        if self.trouble().is_some() {
            match leadership.commit(NOT_ALIVE, &Batch::default()) {
                Committed::Done => {}
                not_done => return not_done,
            }
        }
        if !work.whole.is_empty() {
            // It also contains output that is still queued and will be saved again; repeating it has no effect.
            work.batch.output.extend(output_of(&work.whole));
        }
        pace.last_commit = Instant::now();
        let committed = leadership.commit(work.now, &work.batch);
        pace.took = pace.last_commit.elapsed();
        committed
    }

    /// Refuses everything that has to be saved from now on: the saving thread has ended, and what it had taken of the
    /// queue is lost.
    #[cfg(feature = "db")]
    pub fn give_up(&self, why: &str) {
        let mut disk = lock(&self.disk);
        disk.failed = Some((Ticket(u64::MAX), why.into()));
        disk.closed = true;
        self.progress.notify_all();
    }

    #[cfg(feature = "db")]
    fn note_saved(&self, last: Ticket) {
        let mut disk = lock(&self.disk);
        disk.saved = disk.saved.max(last);
        if disk.failed.take().is_some() {
            info!("the database takes changes again");
        }
        // Unlock before notifying, or each woken thread blocks on the lock at once.
        drop(disk);
        self.progress.notify_all();
    }

    #[cfg(feature = "db")]
    fn note_failed(&self, last: Ticket, why: String, closing: bool) {
        let mut disk = lock(&self.disk);
        if closing {
            error!("the last changes are not saved: {why}");
        } else if disk.failed.is_none() {
            warn!("database: {why}; nothing new is accepted until it takes changes again");
        }
        disk.failed = Some((
            last,
            format!("database: {why}; nothing is accepted until it takes changes again"),
        ));
        self.progress.notify_all();
    }

    /// Has the rest saved, and the file closed.
    pub fn begin_to_close(&self) {
        if let Some(queue) = &self.queue {
            lock(queue).closing = true;
            self.work.notify_one();
        }
    }

    /// The same; returns when that is done.
    pub fn close(&self) {
        if self.queue.is_none() {
            return;
        }
        self.begin_to_close();
        let disk = lock(&self.disk);
        drop(self.progress.wait_while(disk, |disk| !disk.closed));
    }
}

#[cfg(all(test, feature = "db"))]
mod tests {
    use super::*;
    use crate::core::{SavedPiece, TaskKey};
    use crate::server::state::db::{Fate, Model, StorageEngine, Term};
    use crate::wire::agent::Stream;
    use std::thread::{self, JoinHandle};

    const KEY: OutputKey = OutputKey {
        task: TaskKey(1),
        n: 0,
        attempt: 1,
    };

    fn piece(text: &str) -> SavedPiece {
        SavedPiece {
            stream: Stream::Stdout,
            offset: 0,
            data: text.into(),
        }
    }

    /// A change: a piece of output.
    fn change(text: &str) -> Batch {
        Batch {
            output: vec![(KEY, OutputChange::Appended(piece(text)))],
            ..Batch::default()
        }
    }

    /// The queue and its saving thread, which takes `output` for the whole output of an attempt in the core.
    fn saving(model: &Model, output: &str) -> (Arc<Durable>, JoinHandle<Result<(), String>>) {
        let (leadership, _) = Leadership::take(Box::new(model.connect())).unwrap();
        let durable = Arc::new(Durable::trusted(Arc::new(Trust::for_ever())));
        let (saver, whole) = (durable.clone(), piece(output));
        let output_of = move |keys: &BTreeSet<OutputKey>| {
            let replaced = |key: &OutputKey| (*key, OutputChange::Replaced(vec![whole.clone()]));
            keys.iter().map(replaced).collect()
        };
        let nothing = |_: &Saved| BTreeSet::new();
        let thread = thread::spawn(move || saver.save_forever(leadership, output_of, nothing));
        (durable, thread)
    }

    fn saved_output(model: &Model) -> Vec<SavedPiece> {
        let saved = model.connect().load().unwrap();
        saved.output.into_iter().map(|(_, piece)| piece).collect()
    }

    #[test]
    fn what_may_be_saved_or_not_is_written_again_and_then_there_once() {
        for fate in [Fate::Lost, Fate::AnswerLost, Fate::Late] {
            let model = Model::default();
            model.fates(&[fate]);
            let (durable, thread) = saving(&model, "a");
            let first = durable.take_in(Time(1), change("a"), false);
            let why = durable.wait(first).unwrap_err();
            assert!(why.contains("no answer"), "{why}");
            assert!(durable.trouble().is_some());
            let second = durable.take_in(Time(2), Batch::default(), false);
            while durable.trouble().is_some() {
                thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(durable.wait(second), Ok(()));
            assert_eq!(saved_output(&model), [piece("a")], "{fate:?}");
            // The first attempt arrives after all.
            let late = model.deliver();
            assert!(late.iter().all(|it| *it == Committed::Done), "{late:?}");
            assert_eq!(saved_output(&model), [piece("a")], "{fate:?}");
            let log = model.log();
            assert!(log.windows(2).all(|pair| pair[0] < pair[1]), "{log:?}");
            durable.close();
            assert_eq!(thread.join().unwrap(), Ok(()));
            assert_eq!(
                model.connect().look().unwrap().record.holder,
                None,
                "it has resigned"
            );
        }
    }

    #[test]
    fn a_fenced_server_saves_nothing_more_and_says_so() {
        let model = Model::default();
        let (durable, thread) = saving(&model, "a");
        let ticket = durable.take_in(Time(1), change("a"), false);
        assert_eq!(durable.wait(ticket), Ok(()));
        let mut other = model.connect();
        let seen = other.look().unwrap().record;
        assert_eq!(other.take(&seen), Ok(Some(Term(2))));
        let ticket = durable.take_in(Time(2), change("b"), false);
        assert_eq!(durable.wait(ticket), Err(FENCED.into()));
        assert_eq!(thread.join().unwrap(), Err(FENCED.into()));
        let ticket = durable.take_in(Time(3), change("c"), false);
        assert_eq!(durable.wait(ticket), Err(FENCED.into()));
        assert_eq!(durable.trouble(), Some(FENCED.into()));
        durable.close();
        assert_eq!(saved_output(&model), [piece("a")]);
        let leader = other.look().unwrap().record;
        assert_eq!(leader.term, Term(2));
        assert!(leader.holder.is_some(), "it did not resign for the other");
    }
}
