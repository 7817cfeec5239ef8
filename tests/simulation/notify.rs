//! Notifications: receivers that are away, slow, or take something and are not heard; senders that die with the server.
//! The laws of what is told.

use crate::rng::Rng;
use crate::world::{Event, Lawful, World};
use sidebike::core::{CheckedNotify, Delivery, NotifyPolicy, Spec, TaskKey};
use sidebike::wire::duration::TimeSpan;
use sidebike::wire::notify::{NotificationState, NotifyEvent, Subject};
use sidebike::wire::task::{ExecutionState, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// The receivers, and their places: two are one place.
const RECEIVERS: [(&str, &str); 3] = [
    ("https://a.example/x", "https://a.example:443"),
    ("https://a.example/y", "https://a.example:443"),
    ("http://b.example/", "http://b.example:80"),
];
/// The most that is taken at once.
const SENDERS: usize = 4;
/// The most tries of a notification.
const TRIES: u32 = 10;
/// How long everything may take to be told once all receivers are there.
const PATIENCE: u64 = 400_000;

/// Everybody may be told; tries follow each other quickly, or a seed would take a day.
pub fn policy() -> NotifyPolicy {
    static POLICY: LazyLock<NotifyPolicy> = LazyLock::new(|| NotifyPolicy {
        allow: Some(NotifyPolicy::allowing(".").expect("an expression")),
        pause: Some(TimeSpan::from_millis(2_000)),
    });
    POLICY.clone()
}

/// What receivers were told, and what the laws know.
#[derive(Debug)]
pub struct Receivers {
    /// A random sequence of their own: worlds without them stay as they are.
    rng: Rng,
    /// How many tasks tell them, of a thousand.
    pub share: u64,
    /// How many requests fail, of a thousand.
    failing: u64,
    /// What was taken, by `webhook-id`.
    taken: BTreeMap<String, Told>,
    /// How many tries of each failed.
    failures: BTreeMap<String, u32>,
    /// What was pending after the last step, and of which task.
    pending: BTreeMap<String, Option<TaskKey>>,
    /// Tasks whose submit was answered 503.
    withdrawn: BTreeSet<TaskKey>,
    /// Finished tasks that were looked at.
    checked: BTreeSet<TaskKey>,
}

/// What a receiver took.
#[derive(Debug, Clone)]
struct Told {
    epoch: u32,
    task: TaskKey,
    event: NotifyEvent,
    state: TaskState,
}

impl Receivers {
    pub fn new(seed: u64) -> Receivers {
        let mut rng = Rng::new(seed ^ 0x5eed_0f4e_071f_1e55);
        Receivers {
            share: rng.pick(&[0, 300, 900]),
            failing: rng.pick(&[0, 200, 600, 950]),
            rng,
            taken: BTreeMap::new(),
            failures: BTreeMap::new(),
            pending: BTreeMap::new(),
            withdrawn: BTreeSet::new(),
            checked: BTreeSet::new(),
        }
    }

    /// Adds what a task tells, to some of them.
    pub fn are_told_by(&mut self, spec: &mut Spec) {
        if !self.rng.chance(self.share) {
            return;
        }
        let entries = (0..self.rng.between(1, 3)).map(|_| {
            let (url, place) = self.rng.pick(&RECEIVERS);
            let mut on = NotifyEvent::ALL.to_vec();
            on.retain(|_| self.rng.chance(600));
            CheckedNotify {
                url: url.into(),
                place: place.into(),
                on: on.into(),
            }
        });
        spec.notify = entries.collect();
    }

    pub fn withdrawn(&mut self, key: TaskKey) {
        self.withdrawn.insert(key);
    }

    /// The server has forgotten everything.
    pub fn wipe(&mut self) {
        self.pending.clear();
        self.checked.clear();
        self.withdrawn.clear();
    }
}

impl World {
    /// The server's thread looks for what is due.
    pub fn sender_looks(&mut self) -> Lawful {
        let pause = self.receivers.rng.between(50, 1_500);
        self.after(pause, Event::SenderLooks);
        let now = self.time();
        let taken = self.server.core.take_notifications(now, SENDERS);
        if !taken.is_empty() {
            self.answer_deliveries(taken);
        }
        Ok(())
    }

    /// Sends what is on the disk.
    pub fn deliver_notifications(&mut self, deliveries: Vec<Delivery>) {
        let lives = self.server.lives;
        for delivery in deliveries {
            let is_away = !self.calm && self.receivers.rng.chance(self.receivers.failing);
            let is_heard = !is_away && (self.calm || !self.receivers.rng.chance(100));
            let id = delivery.id.to_string();
            if !is_away {
                self.note(|| format!("told {id}"));
                let known = self.server.core.all_notifications();
                let task = known.filter_map(|it| (*it.4 == delivery.id).then_some(it.0?));
                let task = task.last();
                if let (Some(task), Subject::Task(body)) = (task, &delivery.body.subject) {
                    let told = Told {
                        epoch: self.server.epoch,
                        task,
                        event: delivery.body.event,
                        state: body.state,
                    };
                    if self.receivers.taken.insert(id.clone(), told).is_some() {
                        self.count("told twice");
                    }
                }
                self.count(if is_heard {
                    "notification taken"
                } else {
                    "notification taken, and not heard"
                });
            }
            let takes = self.receivers.rng.between(1, 3_000);
            let number = delivery.number;
            self.after(takes, Event::NotificationTried(lives, number, id, is_heard));
        }
    }

    /// What came of a request is said to the core.
    pub fn notification_tried(&mut self, lives: u64, number: u64, id: String, is_ok: bool) {
        if lives != self.server.lives {
            self.count("sender died with the server");
            return;
        }
        let now = self.time();
        let result = match is_ok {
            true => Ok(()),
            false => Err("it answers 503"),
        };
        if !is_ok {
            *self.receivers.failures.entry(id).or_default() += 1;
        }
        self.server.core.notification_tried(now, number, result);
    }

    /// The laws of notifications, after every step.
    pub fn look_at_notifications(&mut self) -> Lawful {
        if self.receivers.share == 0 {
            return Ok(());
        }
        let core = &self.server.core;
        let mut told = BTreeSet::new();
        let mut pending = BTreeMap::new();
        for (task, event, nth, state, id) in core.all_notifications() {
            if task.is_some() && !told.insert((task, event, nth)) {
                return Err(format!("an_event_is_told_once: {task:?} {event:?}"));
            }
            if state == NotificationState::Pending {
                pending.insert(id.to_string(), task);
            }
            let is_taken = self.receivers.taken.contains_key(&**id);
            if state == NotificationState::Delivered && !is_taken {
                return Err(format!("what_is_delivered_was_taken: {id}"));
            }
        }
        let gone = { self.receivers.pending.iter() }.filter(|(id, _)| !pending.contains_key(*id));
        for (id, task) in gone {
            let is_taken = self.receivers.taken.contains_key(id);
            let is_dead = self.receivers.failures.get(id) >= Some(&TRIES);
            let is_withdrawn = task.is_some_and(|task| self.receivers.withdrawn.contains(&task));
            if !is_taken && !is_dead && !is_withdrawn {
                return Err(format!("what_waits_is_told: {id}"));
            }
        }
        self.receivers.pending = pending;
        for (key, task) in core.tasks_by_key() {
            if task.spec.notify.is_empty() || !core.is_finished(key) {
                continue;
            }
            if self.receivers.checked.insert(key) {
                let known = core.all_notifications().filter(|it| it.0 == Some(key));
                let told = known.map(|it| (it.1, it.2)).collect();
                every_event_is_told(&told, task)?;
            }
        }
        Ok(())
    }

    /// After a crash: nobody was told of what did not happen.
    pub fn what_was_told_is_true(&mut self) -> Lawful {
        // What had not been saved did not happen.
        self.receivers.pending.clear();
        self.receivers.checked.clear();
        let (core, epoch) = (&self.server.core, self.server.epoch);
        for told in self.receivers.taken.values().filter(|it| it.epoch == epoch) {
            let Ok(task) = core.show(told.task) else {
                continue;
            };
            let is_end = matches!(told.event, NotifyEvent::Ended | NotifyEvent::Failed);
            let is_true = core.is_finished(told.task) && task.state() == told.state;
            if is_end && !is_true {
                return Err(format!("nobody_is_told_of_what_did_not_happen: {told:?}"));
            }
        }
        Ok(())
    }

    /// After all: everything that waited was told, or given up.
    pub fn everything_is_told(&mut self) -> Lawful {
        let bound = self.now.max(self.stopped_until) + PATIENCE;
        while self.server.core.pending_notifications() > 0 {
            if self.now > bound {
                let waiting = self.server.core.pending_notifications();
                return Err(format!("what_waits_is_told: {waiting} still wait"));
            }
            self.step()?;
        }
        Ok(())
    }
}

/// A finished task has told everything that was asked for and has happened, and nothing else.
fn every_event_is_told(told: &BTreeSet<(NotifyEvent, u8)>, task: &sidebike::core::Task) -> Lawful {
    let answer = task.answer(0);
    let starts = answer.result.iter().flat_map(|e| {
        let past = e
            .attempts
            .iter()
            .map(|past| past.attempt.started_at.is_some());
        past.chain([e.attempt.started_at.is_some()])
    });
    let has_started = starts.into_iter().any(|it| it);
    let is_first = |e: &sidebike::wire::task::Execution<_>| e.attempt.attempt == 1;
    let has_undo = answer.undos.is_some();
    let was_delivered = |state| {
        !matches!(
            state,
            ExecutionState::Expired | ExecutionState::Skipped | ExecutionState::Canceled
        )
    };
    for (nth, notify) in (0..).zip(&task.spec.notify) {
        for event in NotifyEvent::ALL {
            let expected = match event {
                NotifyEvent::Ended => Some(true),
                // What an undo has left may be settled later.
                NotifyEvent::Failed if answer.state == TaskState::Succeeded && has_undo => None,
                NotifyEvent::Failed => Some(answer.state != TaskState::Succeeded),
                NotifyEvent::Started if has_started => Some(true),
                // A start may be among the attempts that are not kept.
                NotifyEvent::Started => answer.result.iter().all(is_first).then_some(false),
                NotifyEvent::Stopped => Some(answer.stopped_by.is_some()),
                NotifyEvent::Missed => Some(false),
            };
            let is_told = told.contains(&(event, nth));
            let is_asked = notify.on.contains(&event);
            let is_right = expected.is_none_or(|expected| is_told == (expected && is_asked));
            if !is_right {
                let states: Vec<_> = answer.result.iter().map(|e| e.state).collect();
                let delivered = states.iter().filter(|state| was_delivered(**state)).count();
                return Err(format!(
                    "every_event_is_told: {} {event:?} of {nth}: told {is_told}, asked {is_asked}, expected {expected:?}; {states:?}, {delivered} were handed out",
                    task.id
                ));
            }
        }
    }
    Ok(())
}
