//! The notifications that wait to be sent, and those of known tasks that were sent or given up.
//!
//! An entry is made in the change that caused it, so it is on the disk together with the end that it tells of, and it
//! holds all that is sent: its task may be forgotten meanwhile. It stays until it is delivered or dead, and as long as its
//! task is known. That there is an entry is what says that an event was told: there is none beside it, so no event is
//! told twice, also after a crash. Only final ends are events; an attempt that will be retried is none.
//!
//! Whoever sends asks for what is due ([`Core::take_notifications`]), sends it, and says what came of it
//! ([`Core::notification_tried`]). What is being sent is not saved: after a restart it is due again. To add an event: a
//! variant of [`NotifyEvent`], and a call of [`Core::notify`] where it happens.

use super::invariants::Rule;
use super::notify::{MAX_TRIES, NotifyPolicy, without_query};
use super::saving::Changes;
use super::task::{Task, rfc3339};
use super::{Core, Notice, TaskKey, Time, counting, data_mut};
use crate::wire::notify::{
    AnsweredNotification, MissedFiring, Notification, NotificationState, NotifiedTask, NotifyEvent,
    Subject,
};
use crate::wire::rollout::StoppedBy;
use crate::wire::task::TaskState;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// The most notifications that wait. Beyond it the oldest is given up: a receiver that is away must not fill the memory.
pub const MAX_PENDING: usize = 10_000;
/// The most requests at once to one place: a slow receiver must not take all senders.
pub const MAX_AT_ONE_PLACE: usize = 2;
/// The longest reason of a failed try that is kept, in bytes.
const MAX_ERROR_BYTES: usize = 300;

/// A notification.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Identifies it as long as it is kept.
    #[serde(skip)]
    pub(super) number: u64,
    /// The task that it tells of; none if it tells of a schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) task: Option<TaskKey>,
    /// Which entry of `notify` asked for it.
    pub(super) nth: u8,
    pub(super) event: NotifyEvent,
    /// Its `webhook-id`. Never used for another one, not even by a server that starts empty.
    pub(super) id: Arc<str>,
    pub(super) url: Arc<str>,
    /// `scheme://host:port`.
    pub(super) place: Arc<str>,
    pub(super) state: NotificationState,
    pub(super) tries: u32,
    pub(super) next_try: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_error: Option<Box<str>>,
    /// What is sent; as long as it is pending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) body: Option<Arc<Notification>>,
}

impl Entry {
    fn is_pending(&self) -> bool {
        self.state == NotificationState::Pending
    }

    /// What it tells, and where to, as it may be logged.
    fn in_words(&self) -> String {
        let url = without_query(&self.url);
        format!("notification {} ({}) to {url}", self.id, self.event.word())
    }

    pub(super) fn answer(&self) -> AnsweredNotification<Cow<'_, str>> {
        AnsweredNotification {
            id: Cow::from(&*self.id),
            url: Cow::from(&*self.url),
            event: self.event,
            state: self.state,
            tries: self.tries,
            last_error: self.last_error.as_deref().map(Cow::from),
            next_try: { self.is_pending() }.then(|| rfc3339(self.next_try).into()),
        }
    }
}

/// The notifications to one place that wait.
#[derive(Debug, Default)]
struct Place {
    /// Those that are not being sent, in the order of their next try.
    due: BTreeSet<(Time, u64)>,
    /// Those that are being sent.
    in_flight: BTreeSet<u64>,
    /// The time under which it stands in the list of places.
    listed: Option<Time>,
}

/// All notifications.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub policy: NotifyPolicy,
    entries: BTreeMap<u64, Arc<Entry>>,
    /// Those that are pending, oldest first.
    pending: BTreeSet<u64>,
    places: HashMap<Arc<str>, Place>,
    /// The places to which one more may be sent, by the time of the next try there.
    open_places: BTreeSet<(Time, Arc<str>)>,
    next: u64,
    stats: NotifyStats,
}

/// Counters since the start of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NotifyStats {
    /// Notifications that were taken.
    pub delivered: u64,
    /// Notifications that were given up.
    pub dead: u64,
    /// Tries that failed.
    pub failed_tries: u64,
}

/// A notification to be sent now.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Identifies it.
    pub number: u64,
    /// Its `webhook-id`.
    pub id: Arc<str>,
    /// Where to.
    pub url: Arc<str>,
    /// `scheme://host:port` of that.
    pub place: Arc<str>,
    /// What is sent.
    pub body: Arc<Notification>,
}

/// A firing that became no task.
#[derive(Debug, Clone)]
pub struct Missed<'a> {
    /// The id of its schedule.
    pub schedule: &'a str,
    /// The incarnation of the schedule: no other firing has this id, incarnation and time.
    pub incarnation: u64,
    /// The nominal time.
    pub nominal: Time,
    /// Why.
    pub reason: &'a str,
}

impl Outbox {
    /// Updates the list of places after one of them has changed.
    fn refresh_place(&mut self, name: &Arc<str>) {
        let Some(place) = self.places.get_mut(name) else {
            return;
        };
        let has_slot = place.in_flight.len() < MAX_AT_ONE_PLACE;
        let first = place.due.first().map(|(time, _)| *time);
        let now = first.filter(|_| has_slot);
        if place.listed != now {
            if let Some(listed) = place.listed {
                self.open_places.remove(&(listed, name.clone()));
            }
            if let Some(time) = now {
                self.open_places.insert((time, name.clone()));
            }
            place.listed = now;
        }
        if place.due.is_empty() && place.in_flight.is_empty() {
            self.places.remove(name);
        }
    }

    /// Lists an entry as one that waits.
    fn wait(&mut self, entry: &Entry) {
        self.pending.insert(entry.number);
        let place = self.places.entry(entry.place.clone()).or_default();
        place.due.insert((entry.next_try, entry.number));
        self.refresh_place(&entry.place);
    }

    /// An entry waits no more, and is not being sent.
    fn unlist(&mut self, entry: &Entry) {
        self.pending.remove(&entry.number);
        if let Some(place) = self.places.get_mut(&entry.place) {
            place.due.remove(&(entry.next_try, entry.number));
            place.in_flight.remove(&entry.number);
        }
        self.refresh_place(&entry.place);
    }
}

/// A task as a notification shows it.
fn notified(task: &Task) -> NotifiedTask {
    let starts = task.executions.iter().flat_map(|e| {
        let past = e.past.iter().map(|past| past.attempt.started_at);
        past.chain([e.current.started_at])
    });
    let stopped_by = task.stopped_by().map(|by| StoppedBy {
        kind: by.kind,
        name: by.name.map(Cow::into_owned),
        at: by.at.into_owned(),
        msg: by.msg.into_owned(),
        // Output is not sent.
        output: None,
    });
    let about = task.spec.about.as_deref().cloned().unwrap_or_default();
    NotifiedTask {
        id: task.id.to_string(),
        name: task.spec.name.to_string(),
        state: task.state(),
        machine_pattern: task.spec.selector.text().pattern.to_string(),
        mode: task.spec.mode,
        matched: task.matched,
        counts: task.counts,
        clean: task.has_undo().then(|| task.dirty() == 0),
        stopped_by,
        rerun_of: task.rerun_of.as_ref().map(|id| id.to_string()),
        group: about.group.as_ref().map(|group| group.to_string()),
        tags: about.tags,
        description: about.description,
        created_at: rfc3339(task.created_at),
        started_at: starts.flatten().min().map(rfc3339),
        finished_at: task.finished_at.map(rfc3339),
    }
}

impl Core {
    /// Something happened to a task: tells whoever asked for that, unless it was told.
    pub(super) fn notify(&mut self, now: Time, key: TaskKey, event: NotifyEvent) {
        let task = self.task(key);
        let asked = (0..).zip(&task.spec.notify);
        let asked = asked.filter(|(_, notify)| notify.on.contains(&event));
        let is_told = |nth: u8| {
            let told = &task.notifications;
            told.iter().any(|it| it.event == event && it.nth == nth)
        };
        let is_once = self.keeps(Rule::EventIsToldOnce);
        let new = asked.filter(|(nth, _)| !is_once || !is_told(*nth));
        let new: Vec<(u8, Arc<str>, Arc<str>)> = new
            .map(|(nth, notify)| (nth, notify.url.clone(), notify.place.clone()))
            .collect();
        if new.is_empty() {
            return;
        }
        let body = Arc::new(Notification {
            event,
            at: rfc3339(now),
            subject: Subject::Task(Box::new(notified(task))),
            link: None,
        });
        let prefix = task.prefix.clone();
        for (nth, url, place) in new {
            self.add_notification(Entry {
                number: 0,
                task: Some(key),
                nth,
                event,
                id: format!("msg_{prefix}-{}-{nth}", event.word()).into(),
                url,
                place,
                state: NotificationState::Pending,
                tries: 0,
                next_try: now,
                last_error: None,
                body: Some(body.clone()),
            });
        }
    }

    /// A task has ended for good.
    pub(super) fn notify_end(&mut self, now: Time, key: TaskKey) {
        if self.task(key).spec.notify.is_empty() {
            return;
        }
        self.notify(now, key, NotifyEvent::Ended);
        let task = self.task(key);
        if task.state() != TaskState::Succeeded || task.dirty() > 0 {
            self.notify(now, key, NotifyEvent::Failed);
        }
    }

    /// A firing of a schedule became no task: tells whoever the task would have told of it. To be called once for each
    /// firing.
    pub fn notify_missed(&mut self, now: Time, spec: &super::Spec, missed: &Missed<'_>) {
        let incarnation = missed.incarnation.to_string();
        let nominal = missed.nominal.0.to_string();
        let words = ["missed", missed.schedule, &incarnation, &nominal];
        let half = |which: &str| counting::mixed(&[&[which], &words[..]].concat());
        let id = format!("msg_{:016x}{:016x}", half("first"), half("second"));
        let asked = (0..).zip(&spec.notify);
        let asked = asked.filter(|(_, notify)| notify.on.contains(&NotifyEvent::Missed));
        for (nth, notify) in asked {
            let firing = MissedFiring {
                schedule: missed.schedule.into(),
                name: spec.name.to_string(),
                scheduled_for: rfc3339(missed.nominal),
                reason: missed.reason.into(),
            };
            self.add_notification(Entry {
                number: 0,
                task: None,
                nth,
                event: NotifyEvent::Missed,
                id: format!("{id}-{nth}").into(),
                url: notify.url.clone(),
                place: notify.place.clone(),
                state: NotificationState::Pending,
                tries: 0,
                next_try: now,
                last_error: None,
                body: Some(Arc::new(Notification {
                    event: NotifyEvent::Missed,
                    at: rfc3339(now),
                    subject: Subject::Schedule(Box::new(firing)),
                    link: None,
                })),
            });
        }
    }

    fn add_notification(&mut self, mut entry: Entry) {
        while self.outbox.pending.len() >= MAX_PENDING {
            let Some(oldest) = self.outbox.pending.first().copied() else {
                break;
            };
            let why =
                format!("{MAX_PENDING} notifications wait, the limit: the oldest was given up");
            self.give_up_notification(oldest, &why);
        }
        entry.number = self.outbox.next;
        self.outbox.next += 1;
        self.outbox.wait(&entry);
        self.list_notification(Arc::new(entry));
        if self.notices.last() != Some(&Notice::NotificationsWait) {
            self.notices.push(Notice::NotificationsWait);
        }
    }

    /// Keeps an entry, in place of the one with its number.
    fn list_notification(&mut self, entry: Arc<Entry>) {
        self.notification_changed(entry.number);
        if let Some(key) = entry.task.filter(|key| self.tasks.contains_key(key)) {
            let told = &mut data_mut(&mut self.tasks, key).notifications;
            match told.iter_mut().find(|it| it.number == entry.number) {
                Some(old) => *old = entry.clone(),
                None => told.push(entry.clone()),
            }
        } else if !entry.is_pending() {
            // Nobody can see it any more.
            self.outbox.entries.remove(&entry.number);
            return;
        }
        self.outbox.entries.insert(entry.number, entry);
    }

    fn notification_changed(&mut self, number: u64) {
        if let Some(changes) = &mut self.changes {
            changes.notifications.insert(number);
        }
    }

    fn give_up_notification(&mut self, number: u64, why: &str) {
        let Some(entry) = self.outbox.entries.get(&number).cloned() else {
            return;
        };
        self.outbox.unlist(&entry);
        self.outbox.stats.dead += 1;
        let what = format!("{} is given up: {why}", entry.in_words());
        self.notices.push(Notice::NotificationDead(what));
        self.list_notification(Arc::new(Entry {
            state: NotificationState::Dead,
            last_error: Some(cut(why)),
            body: None,
            ..Entry::clone(&entry)
        }));
    }

    /// Notifications that are due, `most` at most, and never more than [`MAX_AT_ONE_PLACE`] to one place at once. Each
    /// has to be sent, and what came of it to be said, or be given back.
    pub fn take_notifications(&mut self, now: Time, most: usize) -> Vec<Delivery> {
        let mut taken = Vec::new();
        while taken.len() < most {
            let first = self.outbox.open_places.first();
            let Some((_, name)) = first.filter(|(time, _)| *time <= now).cloned() else {
                break;
            };
            let Some(place) = self.outbox.places.get_mut(&name) else {
                break;
            };
            if let Some((_, number)) = place.due.pop_first() {
                place.in_flight.insert(number);
                if let Some(entry) = self.outbox.entries.get(&number)
                    && let Some(body) = &entry.body
                {
                    taken.push(Delivery {
                        number,
                        id: entry.id.clone(),
                        url: entry.url.clone(),
                        place: entry.place.clone(),
                        body: body.clone(),
                    });
                }
            }
            self.outbox.refresh_place(&name);
        }
        taken
    }

    /// When something is to be sent next, if nothing that is being sent ends before.
    pub fn next_notification(&self) -> Option<Time> {
        self.outbox.open_places.first().map(|(time, _)| *time)
    }

    /// Says what came of a try. After a failure there is another one later, or the notification is given up.
    pub fn notification_tried(&mut self, now: Time, number: u64, result: Result<(), &str>) {
        let entry = self.outbox.entries.get(&number).cloned();
        let Some(entry) = entry.filter(|entry| entry.is_pending()) else {
            return;
        };
        let tries = entry.tries + 1;
        let pause = self.outbox.policy.pause_after(tries);
        let before = Entry {
            tries,
            ..Entry::clone(&entry)
        };
        match (result, pause) {
            (Ok(()), _) => {
                self.outbox.unlist(&entry);
                self.outbox.stats.delivered += 1;
                self.list_notification(Arc::new(Entry {
                    state: NotificationState::Delivered,
                    last_error: None,
                    body: None,
                    ..before
                }));
            }
            (Err(why), Some(pause)) => {
                self.outbox.unlist(&entry);
                self.outbox.stats.failed_tries += 1;
                let entry = Entry {
                    next_try: now.plus(pause),
                    last_error: Some(cut(why)),
                    ..before
                };
                self.outbox.wait(&entry);
                self.list_notification(Arc::new(entry));
            }
            (Err(why), None) => {
                self.outbox.stats.failed_tries += 1;
                self.list_notification(Arc::new(before));
                self.give_up_notification(number, &format!("after {MAX_TRIES} tries: {why}"));
            }
        }
    }

    /// What was taken was not sent: it is due again.
    pub fn give_back_notifications(&mut self, numbers: &[u64]) {
        for number in numbers {
            let entry = self.outbox.entries.get(number).cloned();
            if let Some(entry) = entry.filter(|entry| entry.is_pending()) {
                self.outbox.unlist(&entry);
                self.outbox.wait(&entry);
            }
        }
    }

    /// Whoever was sending is gone: all that was being sent is due again.
    pub fn give_back_all_notifications(&mut self) {
        let places = self.outbox.places.values();
        let in_flight: Vec<u64> = places.flat_map(|it| it.in_flight.iter().copied()).collect();
        self.give_back_notifications(&in_flight);
    }

    /// A task is forgotten: what is still to be sent of it stays.
    pub(super) fn forget_notifications(&mut self, task: &Task) {
        for entry in &task.notifications {
            let keeps = entry.is_pending() && self.keeps(Rule::PendingOutlastsItsTask);
            if !keeps {
                self.outbox.unlist(entry);
                self.outbox.entries.remove(&entry.number);
                self.notification_changed(entry.number);
            }
        }
    }

    /// The submit of a task was refused after all: nobody is told of it.
    pub(super) fn drop_notifications(&mut self, key: TaskKey) {
        for entry in self.task(key).notifications.clone() {
            self.outbox.unlist(&entry);
            self.outbox.entries.remove(&entry.number);
            self.notification_changed(entry.number);
        }
        data_mut(&mut self.tasks, key).notifications.clear();
    }

    /// The record of a notification.
    pub(super) fn saved_numbers(&self) -> impl Iterator<Item = u64> {
        self.outbox.entries.keys().copied()
    }

    pub(super) fn saved_notification(&self, number: u64) -> Option<Entry> {
        let entry = self.outbox.entries.get(&number)?;
        Some(Entry::clone(entry))
    }

    /// Adds the notifications of a restored core, once its tasks are there.
    pub(super) fn restore_notifications(
        &mut self,
        saved: BTreeMap<u64, Entry>,
        changes: &mut Changes,
    ) {
        for (number, mut entry) in saved {
            self.outbox.next = self.outbox.next.max(number + 1);
            entry.number = number;
            // Without something to send it cannot be pending.
            if entry.is_pending() && entry.body.is_none() {
                entry.state = NotificationState::Dead;
            }
            if entry.is_pending() {
                self.outbox.wait(&entry);
            }
            self.list_notification(Arc::new(entry));
            if !self.outbox.entries.contains_key(&number) {
                changes.notifications.insert(number);
            }
        }
    }

    /// How many notifications wait.
    pub fn pending_notifications(&self) -> usize {
        self.outbox.pending.len()
    }

    /// The counters of notifications.
    pub fn notify_stats(&self) -> NotifyStats {
        self.outbox.stats
    }

    /// Every notification that is kept: its task, its event, the entry of `notify`, its state, its `webhook-id`.
    #[doc(hidden)]
    pub fn all_notifications(
        &self,
    ) -> impl Iterator<
        Item = (
            Option<TaskKey>,
            NotifyEvent,
            u8,
            NotificationState,
            &Arc<str>,
        ),
    > {
        let entries = self.outbox.entries.values();
        entries.map(|it| (it.task, it.event, it.nth, it.state, &it.id))
    }

    /// Checks the lists of notifications against all of them.
    pub(super) fn check_notifications(&self) -> Result<(), String> {
        let outbox = &self.outbox;
        let mut pending = BTreeSet::new();
        let mut of_tasks = 0;
        for (number, entry) in &outbox.entries {
            let task = entry.task.and_then(|key| self.tasks.get(&key));
            let listed = task.map(|task| {
                let mut told = task.notifications.iter();
                told.any(|it| Arc::ptr_eq(it, entry))
            });
            of_tasks += usize::from(listed == Some(true));
            if listed == Some(false) || (listed.is_none() && !entry.is_pending()) {
                return Err(format!("{entry:?}: its task does not have it"));
            }
            if !entry.is_pending() {
                continue;
            }
            pending.insert(*number);
            let place = outbox.places.get(&entry.place);
            let waits = place.is_some_and(|it| it.due.contains(&(entry.next_try, *number)));
            let is_sent = place.is_some_and(|it| it.in_flight.contains(number));
            if waits == is_sent || entry.body.is_none() {
                return Err(format!("{entry:?}: waits {waits}, is sent {is_sent}"));
            }
        }
        let told: usize = self.tasks.values().map(|it| it.notifications.len()).sum();
        let places = outbox.places.values();
        let listed: usize = places.map(|it| it.due.len() + it.in_flight.len()).sum();
        if pending != outbox.pending || told != of_tasks || listed != pending.len() {
            return Err(format!(
                "{} notifications wait, listed {}, by place {listed}; tasks have {told}, of {of_tasks}",
                pending.len(),
                outbox.pending.len()
            ));
        }
        let mut open = BTreeSet::new();
        for (name, place) in &outbox.places {
            if place.in_flight.len() > MAX_AT_ONE_PLACE {
                return Err(format!("{name}: {} at once", place.in_flight.len()));
            }
            if place.in_flight.len() < MAX_AT_ONE_PLACE
                && let Some((time, _)) = place.due.first()
            {
                open.insert((*time, name.clone()));
            }
        }
        match open == outbox.open_places {
            true => Ok(()),
            false => Err(format!(
                "places {:?}, recounted {open:?}",
                outbox.open_places
            )),
        }
    }
}

fn cut(why: &str) -> Box<str> {
    let mut why: String = why
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    why.truncate(why.floor_char_boundary(MAX_ERROR_BYTES));
    why.into()
}
