//! Limits with a name: how many executions of the tasks that name one run at once, and how many are handed out a
//! minute, on the whole server.
//!
//! Only what a limit allows is saved. How many run follows from the executions; the rate is a bucket of tokens, which
//! is full when the limit is made and empty after a restart, so that restarts do not add to the rate.
//!
//! What waits stays in its queue, where it is apart by its set of limits ([`SetKey`]): a poll looks at the first of each
//! set, and passes over those that are exhausted, however many wait. Who is woken when a place becomes free is in
//! `limit_queues.rs`.

use super::counting::{MAX_NAMED, first_named};
use super::invariants::Rule;
use super::limit_queues::Heads;
use super::spec::{check_text, shown};
use super::timers::Timer;
use super::{Core, Refusal, TaskKey, Time};
use crate::wire::limit::{Limit as Answer, PostedLimit};
use crate::wire::task::ExecutionState;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The longest name, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// The most limits that a task names.
pub(super) const MAX_LIMITS_OF_TASK: usize = 8;
/// The most limits there are: a list of them is one answer.
const MAX_LIMITS: usize = 1_000;
/// The most different sets of limits of tasks that have not ended: a poll looks at each set that waits for its machine.
const MAX_SETS: usize = 1_000;
/// The highest `perMinute`: more is no limit for a server of this kind.
const MAX_PER_MINUTE: u32 = 1_000_000;
/// A token, in parts: the bucket gains `perMinute` parts in each millisecond.
const TOKEN: u64 = 60_000;
/// The size of a bucket: what it gains in so many milliseconds.
const BURST_MS: u64 = 10_000;

/// Identifies a limit. A limit that is made again has a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LimitKey(u64);

/// Identifies a set of limits that tasks name together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct SetKey(u32);

impl SetKey {
    /// The set without limits.
    pub const NONE: SetKey = SetKey(0);
}

/// A limit as saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are those of the API")]
pub struct SavedLimit {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_minute: Option<u32>,
}

/// The tokens of a rate.
#[derive(Debug)]
struct Bucket {
    /// In parts of a token.
    level: u64,
    at: Time,
    /// When it has a token again, while it has none. A timer is set for that time.
    dry_until: Option<Time>,
}

impl Bucket {
    fn size(per_minute: u32) -> u64 {
        (u64::from(per_minute) * BURST_MS).max(TOKEN)
    }

    fn fill(&mut self, now: Time, per_minute: u32) {
        let gained = now.millis_since(self.at).saturating_mul(per_minute.into());
        self.level = { self.level.saturating_add(gained) }.min(Self::size(per_minute));
        self.at = self.at.max(now);
    }

    /// When it has a token.
    fn next(&self, per_minute: u32) -> Time {
        let missing = TOKEN.saturating_sub(self.level);
        Time(
            self.at
                .0
                .saturating_add(missing.div_ceil(per_minute.into())),
        )
    }
}

#[derive(Debug)]
struct Limit {
    name: Arc<str>,
    allowed: SavedLimit,
    /// How many executions are delivered or running.
    running: u32,
    bucket: Option<Bucket>,
    sets: BTreeSet<SetKey>,
}

impl Limit {
    /// How many more could be handed out now.
    fn free(&self) -> u32 {
        let places =
            { self.allowed.running }.map_or(u32::MAX, |most| most.saturating_sub(self.running));
        let tokens = self
            .bucket
            .as_ref()
            .map_or(u32::MAX, |bucket| match bucket.dry_until {
                Some(_) => 0,
                None => u32::try_from(bucket.level / TOKEN)
                    .unwrap_or(u32::MAX)
                    .max(1),
            });
        places.min(tokens)
    }
}

/// Limits that tasks name together.
#[derive(Debug)]
struct LimitSet {
    limits: Box<[LimitKey]>,
    /// How many tasks have it and have not ended.
    tasks: usize,
    /// How many executions with it are queued.
    queued: usize,
}

/// All limits.
#[derive(Debug, Default)]
pub(super) struct NamedLimits {
    names: BTreeMap<Arc<str>, LimitKey>,
    limits: BTreeMap<LimitKey, Limit>,
    next_limit: u64,
    sets: BTreeMap<SetKey, LimitSet>,
    set_keys: BTreeMap<Box<[LimitKey]>, SetKey>,
    next_set: u32,
    pub heads: Heads,
    /// Those for which somebody may have to be woken, as a place may have become free or the order has changed.
    pub changed: BTreeSet<LimitKey>,
}

impl NamedLimits {
    /// The limits of a set.
    pub fn limits_of(&self, set: SetKey) -> &[LimitKey] {
        self.sets.get(&set).map_or(&[], |set| &set.limits)
    }

    /// The sets that have a limit.
    pub fn sets_with(&self, limit: LimitKey) -> impl Iterator<Item = SetKey> {
        let limit = self.limits.get(&limit);
        limit
            .into_iter()
            .flat_map(|limit| limit.sets.iter().copied())
    }

    /// How many executions could be handed out for a limit now.
    pub fn free(&self, limit: LimitKey) -> u32 {
        self.limits.get(&limit).map_or(u32::MAX, Limit::free)
    }

    /// Whether a limit of this set is exhausted.
    pub fn is_exhausted(&self, set: SetKey) -> bool {
        self.limits_of(set)
            .iter()
            .any(|limit| self.free(*limit) == 0)
    }

    /// What is known of a limit that is exhausted, in words.
    pub fn why_exhausted(&self, set: SetKey) -> Option<String> {
        let limits = self.limits_of(set).iter();
        let mut limits = limits.filter_map(|limit| self.limits.get(limit));
        let limit = limits.find(|limit| limit.free() == 0)?;
        let why = match (limit.allowed.running, limit.allowed.per_minute) {
            (Some(most), _) if limit.running >= most => {
                format!("{} of {most} run", limit.running)
            }
            (_, Some(rate)) => format!("{rate} are handed out a minute"),
            _ => "it is exhausted".into(),
        };
        Some(format!("waits for the limit {:?}: {why}", limit.name))
    }

    /// Somebody may have to be woken for the limits of a set.
    pub fn touch(&mut self, set: SetKey) {
        if let Some(set) = self.sets.get(&set) {
            self.changed.extend(set.limits.iter().copied());
        }
    }

    /// An execution with this set begins or ceases to be delivered or running.
    pub fn count(&mut self, set: SetKey, begins: bool) {
        let limits = { self.sets.get(&set) }.map_or_else(Box::default, |set| set.limits.clone());
        for key in limits {
            if let Some(limit) = self.limits.get_mut(&key) {
                match begins {
                    true => limit.running += 1,
                    false => limit.running = limit.running.saturating_sub(1),
                }
                self.changed.insert(key);
            }
        }
    }

    /// An execution with this set is queued, or no longer.
    pub fn count_queued(&mut self, set: SetKey, more: bool) {
        if let Some(set) = self.sets.get_mut(&set) {
            set.queued = if more {
                set.queued + 1
            } else {
                set.queued.saturating_sub(1)
            };
        }
    }

    fn make(&mut self, now: Time, name: Arc<str>, allowed: SavedLimit, is_full: bool) {
        self.next_limit += 1;
        let key = LimitKey(self.next_limit);
        let bucket = allowed.per_minute.map(|rate| Bucket {
            level: if is_full { Bucket::size(rate) } else { 0 },
            at: now,
            dry_until: None,
        });
        self.names.insert(name.clone(), key);
        let limit = Limit {
            name,
            allowed,
            running: 0,
            bucket,
            sets: BTreeSet::new(),
        };
        self.limits.insert(key, limit);
    }

    fn answer(&self, limit: &Limit) -> Answer {
        let sets = limit.sets.iter().filter_map(|set| self.sets.get(set));
        Answer {
            name: limit.name.to_string(),
            running: limit.allowed.running,
            per_minute: limit.allowed.per_minute,
            running_now: limit.running,
            waiting: sets.map(|set| set.queued as u64).sum(),
        }
    }
}

/// Checks the names of the limits of a task, and puts them in order.
pub(super) fn checked_names(names: Option<Vec<String>>) -> Result<Box<[Arc<str>]>, String> {
    let names = names.unwrap_or_default();
    if names.len() > MAX_LIMITS_OF_TASK {
        return Err(format!(
            "limits: must name {MAX_LIMITS_OF_TASK} at most, got {}",
            names.len()
        ));
    }
    for (n, name) in names.iter().enumerate() {
        check_name(&format!("limits[{n}]"), name)?;
    }
    let names: BTreeSet<Arc<str>> = names.into_iter().map(Arc::from).collect();
    Ok(names.into_iter().collect())
}

fn check_name(field: &str, name: &str) -> Result<(), String> {
    check_text(field, name, MAX_NAME_BYTES, "")?;
    let is_good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match name.chars().all(is_good) {
        true => Ok(()),
        false => Err(format!(
            "{field}: must be letters, digits, \"-\", \"_\" and \".\", got {}",
            shown(name)
        )),
    }
}

/// Checks a limit. The error names the field and what would be right.
pub fn checked_limit(name: &str, posted: &PostedLimit) -> Result<SavedLimit, String> {
    check_name("name", name)?;
    if posted.running.is_none() && posted.per_minute.is_none() {
        return Err(
            "the limit: needs running (at once), perMinute (handed out a minute), or both".into(),
        );
    }
    let per_minute = posted.per_minute;
    if per_minute.is_some_and(|rate| !(1..=MAX_PER_MINUTE).contains(&rate)) {
        return Err(format!(
            "perMinute: must be 1 to {MAX_PER_MINUTE}; \"running\": 0 lets nothing go"
        ));
    }
    Ok(SavedLimit {
        running: posted.running,
        per_minute,
    })
}

fn no_limit(name: &str) -> String {
    format!(
        "there is no limit {name:?}; sidebike limit set {name}, or PUT /api/v1/limit/{name}, makes it"
    )
}

/// Whether an execution in this state takes a place of its limits.
fn takes_place(state: ExecutionState) -> bool {
    matches!(state, ExecutionState::Delivered | ExecutionState::Running)
}

impl Core {
    /// Makes a limit, or changes it: what is queued goes on at once if it may. The same again changes nothing.
    pub fn set_limit(
        &mut self,
        now: Time,
        name: &str,
        allowed: SavedLimit,
    ) -> Result<Answer, Refusal> {
        let Some(key) = self.named_limits.names.get(name).copied() else {
            if self.named_limits.names.len() >= MAX_LIMITS {
                return Err(Refusal::Full(format!(
                    "there are {MAX_LIMITS} limits, the most"
                )));
            }
            self.named_limits.make(now, name.into(), allowed, true);
            self.limit_changed(name);
            return self.limit(name);
        };
        if let Some(limit) = self.named_limits.limits.get_mut(&key)
            && limit.allowed != allowed
        {
            let before = limit.allowed.per_minute;
            if let (Some(bucket), Some(rate)) = (&mut limit.bucket, before) {
                bucket.fill(now, rate);
                if let Some(time) = bucket.dry_until.take() {
                    self.timers.cancel(time, Timer::Limit(key));
                }
            }
            limit.bucket = allowed.per_minute.map(|rate| {
                let level = limit
                    .bucket
                    .as_ref()
                    .map_or(Bucket::size(rate), |it| it.level);
                Bucket {
                    level: level.min(Bucket::size(rate)),
                    at: now,
                    dry_until: None,
                }
            });
            limit.allowed = allowed;
            self.named_limits.changed.insert(key);
            self.note_dry(now, key);
            self.limit_changed(name);
        }
        self.limit(name)
    }

    /// Removes a limit. Refused with [`Refusal::Conflict`] while tasks that have not ended, or schedules, name it.
    pub fn remove_limit(&mut self, name: &str) -> Result<(), Refusal> {
        let key = self.limit_key(name)?;
        let limit = &self.named_limits.limits[&key];
        let sets = { limit.sets.iter() }.filter_map(|set| self.named_limits.sets.get(set));
        let tasks: usize = sets.map(|set| set.tasks).sum();
        if tasks > 0 {
            return Err(Refusal::Conflict(format!(
                "limit {name:?} is named by {tasks} tasks that have not ended; cancel them first, or set it higher"
            )));
        }
        let schedules: Vec<&str> = self
            .schedules_with_limit(name)
            .take(MAX_NAMED + 1)
            .collect();
        if !schedules.is_empty() {
            return Err(Refusal::Conflict(format!(
                "limit {name:?} is named by the task of a schedule: {}; change or delete that first, or set it higher",
                first_named(&schedules)
            )));
        }
        let dry = { limit.bucket.as_ref() }.and_then(|bucket| bucket.dry_until);
        if let Some(time) = dry {
            self.timers.cancel(time, Timer::Limit(key));
        }
        self.named_limits.limits.remove(&key);
        self.named_limits.names.remove(name);
        self.limit_changed(name);
        Ok(())
    }

    /// A limit, and how it is used.
    pub fn limit(&self, name: &str) -> Result<Answer, Refusal> {
        let key = self.limit_key(name)?;
        let limit = &self.named_limits.limits[&key];
        Ok(self.named_limits.answer(limit))
    }

    /// All limits, by name.
    pub fn limits(&self) -> Vec<Answer> {
        let keys = self.named_limits.names.values();
        let limits = keys.filter_map(|key| self.named_limits.limits.get(key));
        limits
            .map(|limit| self.named_limits.answer(limit))
            .collect()
    }

    fn limit_key(&self, name: &str) -> Result<LimitKey, Refusal> {
        let key = self.named_limits.names.get(name).copied();
        key.ok_or_else(|| Refusal::Unknown(no_limit(name)))
    }

    /// Records that a limit has to be saved.
    fn limit_changed(&mut self, name: &str) {
        if let Some(changes) = &mut self.changes {
            changes.limits.insert(name.into());
        }
    }

    /// The limit to save; none if it was removed.
    pub(super) fn saved_limit_names(&self) -> impl Iterator<Item = Arc<str>> {
        self.named_limits.names.keys().cloned()
    }

    pub(super) fn saved_limit(&self, name: &str) -> Option<SavedLimit> {
        let key = self.named_limits.names.get(name)?;
        Some(self.named_limits.limits.get(key)?.allowed.clone())
    }

    /// Restores the limits. Their rates begin without a token.
    pub(super) fn restore_limits(&mut self, now: Time, saved: BTreeMap<Arc<str>, SavedLimit>) {
        for (name, allowed) in saved {
            self.named_limits.make(now, name.clone(), allowed, false);
            let key = self.named_limits.names[&name];
            self.note_dry(now, key);
        }
    }

    /// Refuses a task that names a limit which is not there.
    pub(super) fn check_named_limits(&self, names: &[Arc<str>]) -> Result<(), Refusal> {
        let mut keys = Vec::with_capacity(names.len());
        for name in names {
            match self.named_limits.names.get(name) {
                Some(key) => keys.push(*key),
                None => {
                    let why = format!("limits: {}", no_limit(name));
                    return Err(Refusal::Impossible(why));
                }
            }
        }
        let is_new = !keys.is_empty() && !self.named_limits.set_keys.contains_key(&*keys);
        if is_new && self.named_limits.sets.len() >= MAX_SETS {
            return Err(Refusal::Full(format!(
                "the tasks that have not ended name {MAX_SETS} different sets of limits, the most"
            )));
        }
        Ok(())
    }

    /// A task was added or restored that has not ended: its set of limits. A limit that a damaged file has lost lets
    /// nothing go.
    pub(super) fn take_limits(&mut self, now: Time, key: TaskKey) {
        let names = self.task(key).spec.limits.clone();
        if names.is_empty() {
            return;
        }
        let lost: Vec<_> = { names.iter() }
            .filter(|name| !self.named_limits.names.contains_key(*name))
            .cloned()
            .collect();
        for name in lost {
            let nothing = SavedLimit {
                running: Some(0),
                per_minute: None,
            };
            self.named_limits.make(now, name, nothing, false);
        }
        let all = &mut self.named_limits;
        let limits: Box<[LimitKey]> = names.iter().map(|name| all.names[name]).collect();
        let set = match all.set_keys.get(&limits) {
            Some(set) => *set,
            None => {
                all.next_set += 1;
                let set = SetKey(all.next_set);
                all.set_keys.insert(limits.clone(), set);
                for limit in &limits {
                    if let Some(limit) = all.limits.get_mut(limit) {
                        limit.sets.insert(set);
                    }
                }
                let made = LimitSet {
                    limits,
                    tasks: 0,
                    queued: 0,
                };
                all.sets.insert(set, made);
                set
            }
        };
        if let Some(set) = all.sets.get_mut(&set) {
            set.tasks += 1;
        }
        super::data_mut(&mut self.tasks, key).limit_set = set;
    }

    /// A task has ended.
    pub(super) fn free_limits(&mut self, key: TaskKey) {
        let task = super::data_mut(&mut self.tasks, key);
        let set = std::mem::take(&mut task.limit_set);
        let all = &mut self.named_limits;
        let Some(left) = all.sets.get_mut(&set) else {
            return;
        };
        left.tasks -= 1;
        if left.tasks > 0 {
            return;
        }
        if let Some(gone) = all.sets.remove(&set) {
            all.set_keys.remove(&gone.limits);
            for limit in gone.limits {
                if let Some(limit) = all.limits.get_mut(&limit) {
                    limit.sets.remove(&set);
                }
            }
        }
    }

    /// A task was restored: what of it is delivered or running takes its places again.
    pub(super) fn count_restored(&mut self, key: TaskKey) {
        let task = self.task(key);
        let (set, active) = (task.limit_set, task.counts.delivered + task.counts.running);
        for _ in 0..active {
            self.named_limits.count(set, true);
        }
    }

    /// An execution has changed its state.
    pub(super) fn count_for_limits(
        &mut self,
        set: SetKey,
        from: ExecutionState,
        to: ExecutionState,
    ) {
        if set != SetKey::NONE && takes_place(from) != takes_place(to) {
            self.named_limits.count(set, takes_place(to));
        }
    }

    /// An execution of a task was handed out: it takes a token of each rate.
    pub(super) fn take_tokens(&mut self, now: Time, task: TaskKey) {
        if !self.keeps(Rule::RateIsKept) {
            return;
        }
        let limits = self
            .named_limits
            .limits_of(self.task(task).limit_set)
            .to_vec();
        for key in limits {
            let limit = self.named_limits.limits.get_mut(&key);
            if let Some((bucket, rate)) =
                limit.and_then(|limit| limit.bucket.as_mut().zip(limit.allowed.per_minute))
            {
                bucket.fill(now, rate);
                bucket.level = bucket.level.saturating_sub(TOKEN);
            }
            self.note_dry(now, key);
        }
    }

    /// Sets a timer for the next token of a rate that has none.
    fn note_dry(&mut self, now: Time, key: LimitKey) {
        let limit = self.named_limits.limits.get_mut(&key);
        let bucket = limit.and_then(|limit| limit.bucket.as_mut().zip(limit.allowed.per_minute));
        let Some((bucket, rate)) = bucket else {
            return;
        };
        bucket.fill(now, rate);
        if bucket.level < TOKEN && bucket.dry_until.is_none() {
            let next = bucket.next(rate);
            bucket.dry_until = Some(next);
            self.timers.set(next, Timer::Limit(key));
        }
    }

    /// A rate may have a token again.
    pub(super) fn token_is_due(&mut self, now: Time, key: LimitKey) {
        let limit = self.named_limits.limits.get_mut(&key);
        if let Some(bucket) = limit.and_then(|limit| limit.bucket.as_mut()) {
            bucket.dry_until = None;
            self.named_limits.changed.insert(key);
            self.note_dry(now, key);
        }
    }

    /// Whether a timer is that of a limit.
    pub(super) fn is_timer_of_limit(&self, key: LimitKey, time: Time) -> bool {
        let limit = self.named_limits.limits.get(&key);
        let bucket = limit.and_then(|limit| limit.bucket.as_ref());
        bucket.is_some_and(|bucket| bucket.dry_until == Some(time))
    }

    /// What is known of limits is right.
    pub(super) fn check_limit_sets(&self) -> Result<(), String> {
        let mut running: BTreeMap<LimitKey, u32> = BTreeMap::new();
        let mut sets: BTreeMap<SetKey, (usize, usize)> = BTreeMap::new();
        for task in self
            .tasks
            .values()
            .filter(|task| task.limit_set != SetKey::NONE)
        {
            let (tasks, queued) = sets.entry(task.limit_set).or_default();
            *tasks += 1;
            *queued += task.executions.iter().filter(|e| e.is_in_queue()).count();
            let active = task.counts.delivered + task.counts.running;
            for limit in self.named_limits.limits_of(task.limit_set) {
                *running.entry(*limit).or_default() += active;
            }
        }
        for (key, limit) in &self.named_limits.limits {
            let counted = running.remove(key).unwrap_or(0);
            if limit.running != counted {
                let (name, said) = (&limit.name, limit.running);
                return Err(format!("limit {name}: {said} run, recounted {counted}"));
            }
        }
        let known = self.named_limits.sets.iter();
        let known: BTreeMap<_, _> = known
            .map(|(key, set)| (*key, (set.tasks, set.queued)))
            .collect();
        if known != sets {
            return Err(format!("sets of limits {known:?}, recounted {sets:?}"));
        }
        for task in self
            .tasks
            .values()
            .filter(|task| !task.spec.limits.is_empty())
        {
            let has_set = task.limit_set != SetKey::NONE;
            if has_set != task.finished_at.is_none() {
                return Err(format!(
                    "task {}: its set of limits is {:?}",
                    task.id, task.limit_set
                ));
            }
        }
        Ok(())
    }

    /// Whether limits hold; always, except when a test has switched that off.
    pub(super) fn keeps_limits(&self) -> bool {
        self.keeps(Rule::LimitIsKept)
    }
}
