//! The one lock, around the core and the held requests, and the threads that answer held requests.
//!
//! Under the lock there is only computation. What follows from a change (answers, log lines, wake-ups) is taken out and
//! done after the lock is released.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `mod` | the lock, the clock, the tick |
//! | `held`, `group_waits` | which requests are held, and until when |
//! | `answering` | the threads that answer held requests |
//! | `watchers` | who follows which task |
//! | `durable` | the queue of changes to be saved, and the wait for it |
//! | `db` | the database |
//! | `own_term` | in which term this server leads; whether others have seen more than it has loaded |
//! | `bell` | wakes one thread that waits for work |
//! | `supervisor` | threads that must not end |

mod answering;
mod bell;
#[cfg(feature = "db")]
pub mod db;
mod durable;
mod group_waits;
mod held;
#[cfg_attr(
    not(feature = "db"),
    allow(dead_code, reason = "only one of several servers has a term")
)]
mod own_term;
mod supervisor;
mod watchers;

pub use self::group_waits::GroupWait;
pub use self::held::{HeldWait, OnAnswer};
#[cfg(feature = "db")]
pub use self::supervisor::supervise_once;
pub use self::supervisor::{Health, supervise};
pub use self::watchers::Watcher;

pub use self::durable::Ticket;
pub use self::own_term::{Compared, OwnTerm};

use self::answering::{Job, has_news};
use self::bell::Bell;
#[cfg(feature = "db")]
use self::db::Trust;
use self::durable::Durable;
use self::held::{Abandoned, Held};
use self::watchers::Watchers;
use super::answers;
use super::http::{ConnectionId, Responder};
use crate::core::{
    CAUTION, Core, EventBatch, FiredTask, Follower, GroupSummary, Limits, MachineSnapshot,
    MachineSummary, MatchingSelectors, Notice, Refusal, Selector, Task, TaskKey, TaskPage,
    TaskQuery, Time,
};
#[cfg(feature = "db")]
use crate::core::{Plan, Saved};
#[cfg(feature = "db")]
use crate::recurrence::Zone;
use crate::wire::agent::{Assignment, Orders, Poll};
use crate::wire::crew::{LabelSummary, OldestWaiting};
use crate::wire::machine::MachineState;
use crate::wire::task::Detail;
use crate::wire::term::Term;
use log::error;
use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Threads that answer held requests. With a database they wait for commits; without one a single thread would do.
const ANSWERING_THREADS: usize = 4;
/// What ended longer ago than this is on the disk, unless the disk has errors.
const RECENTLY_MS: u64 = 5_000;

/// The lock, and what belongs to it.
pub struct Store {
    state: Mutex<State>,
    /// How long it was locked.
    pub holds: Holds,
    /// How the threads are that must not end.
    pub health: Arc<Health>,
    clock: Clock,
    durable: Durable,
    jobs: Mutex<VecDeque<(Ticket, Job)>>,
    job_waits: Condvar,
    /// The followers of each task.
    pub watchers: Watchers,
    /// Rings when there are notifications to be sent.
    pub outbox_bell: Bell,
    /// What schedules have fired, for the audit.
    fired: Mutex<Vec<FiredTask>>,
}

/// What is to be done after a change, once the lock is released.
struct After {
    notices: Vec<Notice>,
    ticket: Ticket,
}

struct State {
    core: Core,
    held: Held,
}

/// How long the lock was held, for `/metrics`. The aim is microseconds.
#[derive(Debug, Default)]
pub struct Holds {
    /// How often it was locked.
    pub count: AtomicU64,
    /// The sum, in nanoseconds.
    pub total_ns: AtomicU64,
    /// The longest time, in nanoseconds.
    pub longest_ns: AtomicU64,
}

/// The state, while this thread has the lock.
struct Locked<'a> {
    state: MutexGuard<'a, State>,
    since: Instant,
    holds: &'a Holds,
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let ns = self.since.elapsed().as_nanos() as u64;
        self.holds.count.fetch_add(1, Ordering::Relaxed);
        self.holds.total_ns.fetch_add(ns, Ordering::Relaxed);
        self.holds.longest_ns.fetch_max(ns, Ordering::Relaxed);
    }
}

/// The result of a poll.
pub enum Polled {
    /// Answer it now, with these orders.
    Answer(Responder, Orders<Arc<Detail>>),
    /// It is held.
    Held,
    /// It was refused.
    Refused(Responder, Refusal),
    /// Its orders could not be saved, for this reason.
    Unsafe(Responder, String),
}

/// Wall-clock time that never goes back: read once, then counted by the monotonic clock.
struct Clock {
    started_ms: u64,
    started: Instant,
}

impl Clock {
    /// The wall clock, or this time if that is later.
    fn not_before(time: Time) -> Clock {
        Clock {
            started_ms: wall().0.max(time.0),
            started: Instant::now(),
        }
    }

    fn now(&self) -> Time {
        Time(self.started_ms + self.started.elapsed().as_millis() as u64)
    }
}

impl Store {
    /// An empty registry in memory, with its answering threads.
    pub fn empty(limits: Limits, max_held: usize) -> Result<Arc<Store>, String> {
        let clock = Clock::not_before(Time(0));
        let core = Core::new(limits, clock.now());
        Store::start(core, clock, Durable::without_database(), max_held)
    }

    /// A registry as a database has saved it, with its answering threads. It may answer while it has the trust.
    #[cfg(feature = "db")]
    pub fn restored(
        limits: Limits,
        max_held: usize,
        mut saved: Saved,
        trust: Arc<Trust>,
    ) -> Result<Arc<Store>, String> {
        let clock = Clock::not_before(saved.last_alive);
        let durable = Durable::trusted(trust);
        read_zones(&mut saved);
        let mut core = Core::restored(limits, clock.now(), saved)?;
        durable.take_in(clock.now(), core.take_batch(), core.has_unfinished());
        Store::start(core, clock, durable, max_held)
    }

    fn start(
        mut core: Core,
        clock: Clock,
        durable: Durable,
        max_held: usize,
    ) -> Result<Arc<Store>, String> {
        core.set_wall_clock(clock.now(), wall());
        let store = Arc::new(Store {
            state: Mutex::new(State {
                core,
                held: Held::new(max_held),
            }),
            holds: Holds::default(),
            health: Arc::default(),
            clock,
            durable,
            jobs: Mutex::default(),
            job_waits: Condvar::new(),
            watchers: Watchers::default(),
            outbox_bell: Bell::default(),
            fired: Mutex::default(),
        });
        for _ in 0..ANSWERING_THREADS {
            let answering = store.clone();
            supervise(&store.health, "answer", move || answering.answer_forever())?;
        }
        Ok(store)
    }

    fn state(&self) -> Locked<'_> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Locked {
            state,
            since: Instant::now(),
            holds: &self.holds,
        }
    }

    /// What the wall clock shows.
    pub fn wall(&self) -> Time {
        wall()
    }

    /// What schedules have fired since the last call.
    pub fn take_fired(&self) -> Vec<FiredTask> {
        std::mem::take(&mut *self.fired.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks the core something about this moment.
    pub fn look<R>(&self, question: impl FnOnce(&Core, Time) -> R) -> R {
        let state = self.state();
        question(&state.core, self.clock.now())
    }

    /// Asks the core something.
    pub fn ask<R>(&self, question: impl FnOnce(&Core) -> R) -> R {
        question(&self.state().core)
    }

    /// Changes the core, and does what follows from the change.
    pub fn change<R>(&self, operation: impl FnOnce(&mut Core, Time) -> R) -> R {
        self.change_with_ticket(operation).0
    }

    /// The same, and returns when the change is on the disk. The error says why it is not yet: the change has happened,
    /// and is saved as soon as that works.
    pub fn change_safely<R>(
        &self,
        operation: impl FnOnce(&mut Core, Time) -> R,
    ) -> Result<R, (R, String)> {
        let (result, ticket) = self.change_with_ticket(operation);
        match self.durable.wait(ticket) {
            Ok(()) => Ok(result),
            Err(why) => Err((result, why)),
        }
    }

    /// Somebody has seen a higher term than that of this server: whether it still leads is looked up in the database.
    pub fn note_higher_term(&self, seen: Term) {
        #[cfg(feature = "db")]
        self.durable.note_higher_term(seen);
        #[cfg(not(feature = "db"))]
        let _ = seen;
    }

    /// The database has lost acknowledged commits before everything was loaded, as this says. One loss is believed.
    pub fn note_loss(&self, what: &str) {
        if self.change(|core, now| core.note_loss(now)) {
            error!(
                "the database has lost commits that it had acknowledged: {what}. An older backup was put back, or it has failed over to a standby that was behind. What users were told since is lost. For {} s no `any` task is handed out, and what agents run is adopted",
                CAUTION.as_millis() / 1_000
            );
        }
    }

    /// How often everything was written anew, because the database had lost it.
    pub fn heals(&self) -> u64 {
        self.durable.heals.load(Ordering::Relaxed)
    }

    /// Whether another server may lead by now: then nothing of this registry is to be told.
    pub fn is_mute(&self) -> bool {
        self.durable.is_mute()
    }

    /// Why nothing can be saved at the moment, if so.
    pub fn trouble(&self) -> Option<String> {
        self.durable.trouble()
    }

    fn change_with_ticket<R>(&self, operation: impl FnOnce(&mut Core, Time) -> R) -> (R, Ticket) {
        let (result, after) = {
            let mut state = self.state();
            let now = self.clock.now();
            let result = operation(&mut state.core, now);
            (result, self.after(&mut state.core, now))
        };
        let ticket = after.ticket;
        let mut jobs = self.jobs_of(after);
        match (jobs.pop(), jobs.is_empty()) {
            // Another thread would take longer to wake than this one to answer.
            (Some(job @ Job::Wake(_)), true) => self.do_jobs(vec![(ticket, job)]),
            (job, _) => {
                jobs.extend(job);
                self.enqueue(ticket, jobs);
            }
        }
        (result, ticket)
    }

    /// What is to be done after a change, once the lock is released.
    fn after(&self, core: &mut Core, now: Time) -> After {
        core.settle_dependents(now);
        After {
            notices: core.take_notices(),
            ticket: self
                .durable
                .take_in(now, core.take_batch(), core.has_unfinished()),
        }
    }

    /// Handles a poll; holds it if there is nothing to do yet.
    pub fn poll(&self, origin: &str, poll: &Poll, responder: Responder) -> Polled {
        let mut superseded = None;
        let matches = self.match_selectors(poll);
        let (polled, after) = {
            let mut state = self.state();
            let now = self.clock.now();
            let State { core, held } = &mut *state;
            let admitted = core.admit(now, origin, &poll.instance);
            let polled = admitted.and_then(|()| core.poll(now, poll, matches.as_ref()));
            let polled = match polled {
                Err(refusal) => Polled::Refused(responder, refusal),
                Ok((machine, orders)) => {
                    superseded = held.take_poll(machine);
                    let until = now.plus(poll.wait.min(answers::MAX_POLL_WAIT));
                    if orders.is_empty() && until > now && held.has_room() {
                        core.hold_poll(machine);
                        held.add_poll(machine, responder, until);
                        Polled::Held
                    } else {
                        Polled::Answer(responder, orders)
                    }
                }
            };
            (polled, self.after(core, now))
        };
        let ticket = after.ticket;
        self.finish(after);
        if let Some(responder) = superseded {
            responder.answer(answers::orders(&Orders::none()));
        }
        match polled {
            Polled::Answer(responder, orders) => match self.only_what_is_safe(orders, ticket) {
                Ok(orders) => Polled::Answer(responder, orders),
                Err(why) => Polled::Unsafe(responder, why),
            },
            held_or_refused => held_or_refused,
        }
    }

    /// What may be answered of orders: nothing is to be started or killed before it is safe that it
    /// was handed out or canceled. While the disk takes nothing, commands are killed and undone all the same;
    /// what was to be started is handed out again, as the next poll shows that it did not arrive.
    fn only_what_is_safe(
        &self,
        orders: Orders<Arc<Detail>>,
        ticket: Ticket,
    ) -> Result<Orders<Arc<Detail>>, String> {
        if !has_news(&orders) {
            return Ok(orders);
        }
        match self.durable.wait(ticket) {
            Ok(()) => Ok(Orders {
                start: self.still_to_start(orders.start),
                ..orders
            }),
            Err(why) => {
                let rest = Orders {
                    start: Vec::new(),
                    ..orders
                };
                if rest.is_empty() { Err(why) } else { Ok(rest) }
            }
        }
    }

    /// Matches a new selector with the machines there are, before a task is submitted with it: a large pattern takes a
    /// second for 10,000 labels. What appears meanwhile is matched under the lock.
    pub fn match_machines(&self, selector: &mut Selector) {
        let snapshot = self.state().core.traits_to_match(selector.text());
        if let Some(snapshot) = snapshot {
            snapshot.match_with(selector);
        }
    }

    /// Matches a new machine with the selectors there are, in the same way.
    fn match_selectors(&self, poll: &Poll) -> Option<MatchingSelectors> {
        let (snapshot, traits) = self.state().core.selectors_to_match(poll)?;
        Some(snapshot.match_with(&traits))
    }

    /// What is still to be started of what was handed out, after the wait for the disk: what was canceled meanwhile is
    /// not sent. The next poll shows that it did not arrive.
    pub fn still_to_start(
        &self,
        mut start: Vec<Assignment<Arc<Detail>>>,
    ) -> Vec<Assignment<Arc<Detail>>> {
        if self.durable.may_wait() && !start.is_empty() {
            self.ask(|core| start.retain(|job| core.is_to_start(&job.id)));
        }
        start
    }

    /// What has happened since a follower last asked, and the ticket of the last change that may be in it.
    pub fn next_events(&self, follower: &mut Follower) -> (EventBatch, Ticket) {
        let state = self.state();
        (state.core.next_events(follower), self.durable.so_far())
    }

    /// Whether everything up to a ticket may be told: it is safe, or the disk takes nothing for now.
    pub fn is_settled(&self, ticket: Ticket) -> bool {
        self.durable.is_settled(ticket)
    }

    /// The machines with this label and state, in order of registration. The lock is released in between: each is shown
    /// as it was at some moment of the call.
    pub fn machines(
        &self,
        label: Option<&str>,
        state: Option<MachineState>,
    ) -> Vec<MachineSnapshot> {
        let (mut found, mut last) = (Vec::new(), None);
        loop {
            let (machines, next) = self.ask(|core| core.list_machines(label, state, last));
            found.extend(machines);
            match next {
                None => return found,
                next => last = next,
            }
        }
    }

    /// The machines by label, and what has waited for longest. The lock is released in between.
    pub fn summary(&self) -> (Vec<LabelSummary>, Option<OldestWaiting>) {
        let mut summary = MachineSummary::default();
        while self.ask(|core| core.summarize_machines(&mut summary)) {}
        let labels = std::mem::take(&mut summary.labels);
        let oldest = self.ask(|core| core.oldest_waiting(summary));
        (labels.into_values().collect(), oldest)
    }

    /// A page of a list, see [`Core::list`]. That a task has ended is said when it is safe, or when the disk takes
    /// nothing for now.
    pub fn list(&self, query: &TaskQuery, before: Option<TaskKey>, limit: usize) -> TaskPage {
        let (page, news) = {
            let state = self.state();
            let recently = Time(self.clock.now().0.saturating_sub(RECENTLY_MS));
            let page = state.core.list(query, before, limit);
            let news = page.tasks.iter().any(|task| task.has_ended_since(recently));
            (page, news)
        };
        if news {
            let _ = self.durable.wait(self.durable.so_far());
        }
        page
    }

    /// A task. That it has ended is said when it is safe, or when the disk takes nothing for now.
    pub fn show(&self, key: TaskKey) -> Result<Task, Refusal> {
        let (shown, news) = {
            let state = self.state();
            let recently = Time(self.clock.now().0.saturating_sub(RECENTLY_MS));
            (
                state.core.show(key),
                state.core.has_ended_since(key, recently),
            )
        };
        if news {
            // The change is noted within the lock in which it happened, so before this.
            let _ = self.durable.wait(self.durable.so_far());
        }
        shown
    }

    /// Holds a request until a task has ended or its time is up. Gives it back when the task has
    /// ended already, or nothing more can be held.
    pub fn wait(&self, task: TaskKey, wait_ms: u64, wait: HeldWait) -> Result<(), HeldWait> {
        let mut state = self.state();
        let State { core, held } = &mut *state;
        if wait_ms == 0 || core.is_finished(task) || !held.has_room() {
            return Err(wait);
        }
        held.add_wait(task, wait, Time(self.clock.now().0 + wait_ms));
        Ok(())
    }

    /// Holds a request until the last member of a group has ended or its time is up. Gives it back when all have ended
    /// already, or nothing more can be held.
    pub fn wait_for_group(
        &self,
        group: &str,
        wait_ms: u64,
        wait: GroupWait,
    ) -> Result<(), GroupWait> {
        let mut state = self.state();
        let State { core, held } = &mut *state;
        if wait_ms == 0 || core.is_group_finished(group) || !held.has_room() {
            return Err(wait);
        }
        let until = Time(self.clock.now().0 + wait_ms);
        held.add_group_wait(group.into(), wait, until);
        Ok(())
    }

    /// How a group goes, and some of its members: those after `last`, in order of submission, `limit` at most. The lock
    /// is released in between: each member is counted as it was at some moment of the call. Also says where the members
    /// continue. That a member has ended is said when it is safe, or when the disk takes nothing for now.
    pub fn group(
        &self,
        group: &str,
        last: Option<TaskKey>,
        limit: usize,
    ) -> Result<(GroupSummary, Vec<Task>, Option<TaskKey>), Refusal> {
        let (mut summary, mut members, mut shown_last) =
            (GroupSummary::default(), Vec::new(), None);
        let (mut at, mut is_more) = (None, false);
        loop {
            let (tasks, next) = match self.ask(|core| core.members_after(group, at)) {
                Ok(found) => found,
                // The last of them was forgotten meanwhile: the rest is all there was.
                Err(_) if at.is_some() => break,
                Err(refusal) => return Err(refusal),
            };
            for (key, task) in tasks {
                summary.add(&task);
                if last.is_some_and(|last| key <= last) {
                    continue;
                }
                match members.len() < limit {
                    true => {
                        shown_last = Some(key);
                        members.push(task);
                    }
                    false => is_more = true,
                }
            }
            match next {
                None => break,
                next => at = next,
            }
        }
        let _ = self.durable.wait(self.durable.so_far());
        Ok((summary, members, shown_last.filter(|_| is_more)))
    }

    /// Notes that somebody follows a task. False when nothing more can be held.
    pub fn follow(&self, task: TaskKey) -> bool {
        let mut state = self.state();
        let has_room = state.held.has_room();
        if has_room {
            state.held.followers += 1;
            state.core.follow(task);
        }
        has_room
    }

    /// Notes that somebody follows a task no more.
    pub fn unfollow(&self, task: TaskKey) {
        let mut state = self.state();
        state.held.followers -= 1;
        state.core.unfollow(task);
    }

    /// Notes that somebody reads output in parts. False when nothing more can be held.
    pub fn start_reading(&self) -> bool {
        let mut state = self.state();
        let has_room = state.held.has_room();
        state.held.readers += usize::from(has_room);
        has_room
    }

    /// Notes that somebody has read it, or reads no more.
    pub fn stop_reading(&self) {
        self.state().held.readers -= 1;
    }

    /// Matches the selectors of schedules that are about to fire with the machines there are, unless the core knows them.
    fn match_due_selectors(&self) {
        let due = self.look(|core, now| core.selectors_of_due(now));
        for (key, mut selector) in due {
            selector.compile();
            self.match_machines(&mut selector);
            self.change(|core, _| core.set_selector_of_schedule(key, selector));
        }
    }

    /// Does what is due.
    pub fn tick(&self) {
        self.match_due_selectors();
        loop {
            let (after, jobs, again, groups) = {
                let mut state = self.state();
                let now = self.clock.now();
                let State { core, held } = &mut *state;
                core.set_wall_clock(now, self.wall());
                // What agents say is refused while this server is mute, so their silence must not count, however long the
                // database is away. The core takes that time for a pause of the server.
                let next = match self.is_mute() {
                    true => None,
                    false => core.tick(now),
                };
                let polls = held.due_polls(now).into_iter();
                let mut jobs: Vec<Job> = polls
                    .map(|(machine, responder)| Job::EndPoll(responder, core.collect(now, machine)))
                    .collect();
                let waits = held.due_waits(now).into_iter();
                jobs.extend(waits.map(|(task, wait)| Job::EndWait(wait, core.show(task))));
                let again = next.is_some_and(|next| next <= now);
                let groups = held.due_group_waits(now);
                (self.after(core, now), jobs, again, groups)
            };
            self.enqueue(after.ticket, jobs);
            self.finish(after);
            groups.into_iter().for_each(GroupWait::answer);
            if !again {
                return;
            }
        }
    }

    /// Answers all held polls: after a change of tokens each agent has to authenticate again.
    pub fn end_polls(&self) {
        self.state().held.shorten_polls(self.clock.now());
        self.tick();
    }

    /// Drops the held request of a connection whose client is gone, so that no work is handed out to it.
    pub fn drop_abandoned(&self, connection: ConnectionId) {
        let dropped = {
            let mut state = self.state();
            let State { core, held } = &mut *state;
            let dropped = held.take_of(connection);
            if let Some(Abandoned::Poll(machine, _)) = &dropped {
                core.release_poll(*machine);
            }
            dropped
        };
        drop(dropped);
    }

    /// Whether changes wait for a disk.
    pub fn may_wait(&self) -> bool {
        self.durable.may_wait()
    }

    /// How many requests are being held.
    pub fn held(&self) -> usize {
        self.state().held.count()
    }

    /// Saves changes for as long as the server lives and leads. The error says that another one leads.
    #[cfg(feature = "db")]
    pub fn save_forever(&self, leadership: self::db::Leadership) -> Result<(), String> {
        let output_of = |of: &_| self.ask(|core| core.output_snapshot(of));
        let write_anew = |left: &Saved| self.change(|core, _| core.record_everything(left));
        self.durable.save_forever(leadership, output_of, write_anew)
    }

    /// This server cannot go on, for this reason: whoever watches it has to start it again.
    #[cfg(feature = "db")]
    pub fn cannot_go_on(&self, why: String) {
        self.health.set_trouble(why);
    }

    /// Nothing can be saved any more: the saving thread has failed.
    #[cfg(feature = "db")]
    pub fn saving_failed(&self) {
        self.durable
            .give_up("database: saving has failed (a bug); start the server again");
    }

    /// Has the last of it saved; [`Store::close`] waits for that.
    #[cfg(feature = "db")]
    pub fn begin_to_close(&self) {
        self.durable.begin_to_close();
    }

    /// Saves the last of it, before the server ends, and drops the requests that wait for a task.
    pub fn close(&self) {
        self.durable.close();
        let (waits, groups) = {
            let held = &mut self.state().held;
            (held.take_all_waits(), held.take_all_group_waits())
        };
        drop((waits, groups));
    }
}

/// What the wall clock shows.
fn wall() -> Time {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    Time(since_1970.unwrap_or_default().as_millis() as u64)
}

/// Reads the time zones that saved schedules name. One that is not there any more is left out.
#[cfg(feature = "db")]
pub(super) fn read_zones(saved: &mut Saved) {
    for posted in saved.schedules.values() {
        let name = Plan::zone_name(posted);
        if let Ok(zone) = Zone::named(name) {
            saved.zones.insert(name.to_owned(), zone);
        }
    }
}

/// The period of the clock's thread: timers fire at most this late.
pub const TICK: Duration = Duration::from_millis(100);

#[cfg(all(test, feature = "db"))]
mod tests {
    use super::*;
    use crate::core::Spec;
    use crate::wire::duration::TimeSpan;

    #[test]
    fn nothing_is_late_while_nothing_is_heard() {
        let trust = Arc::new(Trust::none());
        let saved = Saved::default();
        let store = Store::restored(Limits::NONE, 1, saved, trust.clone()).expect("it starts");
        let posted = r#"{"machinePattern": "m", "detail": {"command": "true"}}"#;
        let posted = serde_json::from_str(posted).expect("a task");
        let mut spec = Spec::checked(posted, &Limits::NONE.texts, |_| None).expect("a task");
        spec.ttl = TimeSpan::from_millis(1);
        let key = store.change(|core, now| core.submit(now, "id", spec));
        let key = key.expect("there is room");
        std::thread::sleep(Duration::from_millis(5));
        store.tick();
        assert!(!store.ask(|core| core.is_finished(key)));
        trust.set(Some(db::boot_time() + Duration::from_secs(60)));
        store.tick();
        assert!(store.ask(|core| core.is_finished(key)));
    }
}
