//! Suspensions: nothing new is handed out on the machines that match, and no `ttl` runs there meanwhile.
//!
//! A suspension takes effect with the call that makes it: [`Core::is_suspended`] asks its selector. What follows for each
//! machine is done in slices by a sweep over all machines ([`Core::sweep_machines`]): a machine that is suspended now remembers
//! since when, one that is not any more adds that time to the `ttl` of everything that is queued for it, and takes work
//! only then. So a machine takes work when no suspension means it *and* its queue has got its time back.
//!
//! What any machine may run waits in the queue of a selector. While a suspension is in force, the queues are looked at
//! once a second ([`Core::look_at_queues`]): a queue whose machines are all suspended remembers since when, and its tasks
//! get their time back when a machine can take them again, or is gone.
//!
//! How much time an execution gets back follows from its expiry: `expiry - ttl` is when its time began, counting only
//! time that ran. Nothing else has to be remembered for each execution, and a pause and a suspension at once do no harm.
//!
//! To have something else wait for a machine: let [`Core::frozen_since`] say since when its time stands still, and call
//! [`Core::thaw`] before it leaves that place.

use super::invariants::Rule;
use super::match_index::SelectorKey;
use super::saved::is_zero;
use super::selector::{Selector, SelectorText};
use super::task::{Place, rfc3339};
use super::timers::Timer;
use super::{Core, ExecutionKey, MachineKey, Refusal, TaskKey, Time};
use crate::wire::crew as wire;
use crate::wire::duration::TimeSpan;
use crate::wire::machine::MachineState;
use crate::wire::task::ExecutionState;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

/// The most suspensions at a time: each is asked for every machine that appears.
pub const MAX_SUSPENSIONS: usize = 100;
/// The most machines examined, or executions given their time back, in one call: it runs under the lock.
const MAX_STEPS: usize = 500;
/// The most machines examined for the queues of selectors in one call, for the same reason.
const MAX_EXAMINED: usize = 2_000;
/// After this time a call does the rest.
const SOON: TimeSpan = TimeSpan::from_millis(1);
/// How often the queues are looked at while a suspension is in force.
const LOOK_EVERY: TimeSpan = TimeSpan::from_secs(1);

/// A suspension that is in force. There is one at most for each pattern.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspension {
    /// Which labels it means.
    pub pattern: Arc<str>,
    /// Why.
    pub reason: Arc<str>,
    /// Since when.
    pub since: Time,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

impl Suspension {
    /// What waits because of it says so.
    fn in_words(&self) -> String {
        match &*self.reason {
            "" => format!("waits: {} is suspended", self.pattern),
            reason => format!("waits: {} is suspended: {reason}", self.pattern),
        }
    }

    /// As the API answers it.
    pub fn answer(&self) -> wire::Suspension {
        wire::Suspension {
            machine_pattern: self.pattern.to_string(),
            reason: self.reason.to_string(),
            since: rfc3339(self.since),
            until: self.until.map(rfc3339),
        }
    }
}

/// All suspensions, and since when the time of which queue stands still, as saved.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSuspensions {
    /// The suspensions.
    pub list: Vec<Suspension>,
    /// The queues of selectors whose machines are all suspended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) frozen: Vec<FrozenQueue>,
    /// As [`Saved::away_ms`](super::Saved::away_ms) was when this was saved.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) away_ms: u64,
}

impl SavedSuspensions {
    /// Whether the time for which a server is away counts for them.
    pub(super) fn waits(&self) -> bool {
        !self.frozen.is_empty()
    }
}

/// Since when the time of a queue stands still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FrozenQueue {
    pattern: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    narrowing: Option<Arc<super::Narrowing>>,
    since: Time,
}

/// The suspensions and what is left to do because of them.
#[derive(Debug, Default)]
pub(super) struct Suspensions {
    list: Vec<(Suspension, SelectorKey)>,
    /// The sweep over the machines goes on after this one.
    sweep: Option<MachineKey>,
    /// How far the queue of a machine has got its time back.
    thawed: Option<(MachineKey, ExecutionKey)>,
    /// How far the queue of a selector has.
    queue_thawed: Option<(SelectorKey, TaskKey)>,
    /// The look at the queues goes on at this one.
    look: Option<SelectorKey>,
    /// When the queues are looked at again.
    look_at: Option<Time>,
    /// When the first suspension ends by itself.
    ends_at: Option<Time>,
}

impl Core {
    /// The suspensions in force, in the order in which they began.
    pub fn suspensions(&self) -> impl ExactSizeIterator<Item = &Suspension> {
        self.suspensions.list.iter().map(|(it, _)| it)
    }

    /// Suspends the machines that a selector means, for some time or until it is lifted. A further suspension of the same
    /// pattern takes the place of the one before. Refused with [`Refusal::Full`] if there are too many.
    pub fn suspend(
        &mut self,
        now: Time,
        selector: &Selector,
        reason: &str,
        duration: Option<TimeSpan>,
    ) -> Result<Suspension, Refusal> {
        let pattern = selector.text().pattern.clone();
        let known = { self.suspensions.list.iter() }.position(|(it, _)| it.pattern == pattern);
        if known.is_none() && self.suspensions.list.len() >= MAX_SUSPENSIONS {
            return Err(Refusal::Full(format!(
                "{MAX_SUSPENSIONS} suspensions are in force, the limit; lift some with DELETE /api/v1/suspend (sidebike suspend --lift)"
            )));
        }
        let Some(key) = self.match_index.key_if_room(selector) else {
            return Err(Refusal::Full(format!(
                "{} different selectors of machines have tasks waiting for them, the limit (--max-patterns)",
                self.limits.patterns
            )));
        };
        let since = known.map_or(now, |n| self.suspensions.list[n].0.since);
        let suspension = Suspension {
            pattern,
            reason: reason.into(),
            since,
            until: duration.map(|it| now.plus(it)),
        };
        let entry = (suspension.clone(), key);
        match known {
            Some(n) => self.suspensions.list[n] = entry,
            None => self.suspensions.list.push(entry),
        }
        self.match_index.entry_mut(key).suspends = true;
        self.suspensions_changed(now);
        Ok(suspension)
    }

    /// Lifts the suspension of this pattern, or all of them. Returns those that were in force.
    pub fn lift_suspensions(&mut self, now: Time, pattern: Option<&str>) -> Vec<Suspension> {
        self.end_suspensions(now, |it| {
            pattern.is_none_or(|pattern| *it.pattern == *pattern)
        })
    }

    fn end_suspensions(
        &mut self,
        now: Time,
        ends: impl Fn(&Suspension) -> bool,
    ) -> Vec<Suspension> {
        let (ended, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.suspensions.list)
            .into_iter()
            .partition(|(it, _)| ends(it));
        self.suspensions.list = rest;
        for (_, key) in &ended {
            self.match_index.entry_mut(*key).suspends = false;
        }
        if !ended.is_empty() {
            self.suspensions_changed(now);
        }
        ended.into_iter().map(|(it, _)| it).collect()
    }

    /// The time of a suspension may be over.
    pub(super) fn suspension_may_be_over(&mut self, now: Time) {
        self.suspensions.ends_at = None;
        let over = |it: &Suspension| it.until.is_some_and(|until| until <= now);
        if self.end_suspensions(now, over).is_empty() {
            self.set_suspension_timer();
        }
    }

    fn suspensions_changed(&mut self, now: Time) {
        self.set_suspension_timer();
        self.save_suspensions();
        self.suspensions.sweep = Some(MachineKey(0));
        // What the first slice does is done when the call is answered.
        self.sweep_machines(now);
        self.look_at_queues_again(now, now);
    }

    fn set_suspension_timer(&mut self) {
        if let Some(before) = self.suspensions.ends_at.take() {
            self.timers.cancel(before, Timer::SuspensionEnds);
        }
        let ends = { self.suspensions.list.iter() }.filter_map(|(it, _)| it.until);
        if let Some(first) = ends.min() {
            self.suspensions.ends_at = Some(first);
            self.timers.set(first, Timer::SuspensionEnds);
        }
    }

    /// The suspension that means a machine, the oldest if there are several.
    pub(super) fn suspension_of(&self, key: MachineKey) -> Option<&Suspension> {
        let machine = self.machine(key);
        let mut all = self.suspensions.list.iter();
        let means = |selector: SelectorKey| {
            let entry = self.match_index.entry(selector);
            entry.means(machine.traits_key, &machine.instance)
        };
        all.find(|(_, selector)| means(*selector)).map(|(it, _)| it)
    }

    /// Whether a machine takes no work because it is suspended, or what was queued for it has not got its time back yet.
    pub(super) fn is_suspended(&self, key: MachineKey) -> bool {
        self.machine(key).suspended_since.is_some()
            || (self.suspensions.sweep.is_some() && self.suspension_of(key).is_some())
    }

    /// Whether a machine is handed nothing because it is suspended.
    pub(super) fn is_handed_nothing(&self, key: MachineKey) -> bool {
        self.is_suspended(key) && self.keeps(Rule::SuspendedGetsNothing)
    }

    /// Applies the suspensions to a machine that is new, or has other traits than before.
    pub(super) fn suspend_newcomer(&mut self, now: Time, key: MachineKey) {
        if self.suspension_of(key).is_some() {
            self.freeze_machine(now, key);
        }
    }

    /// Applies the suspensions to all machines again, if there is any.
    pub(super) fn sweep_again(&mut self, now: Time) {
        if !self.suspensions.list.is_empty() {
            self.suspensions.sweep = Some(MachineKey(0));
            self.sweep_machines(now);
        }
    }

    /// Whether the time of a waiting execution stands still.
    pub(super) fn stands_still(&self, key: ExecutionKey) -> bool {
        match self.execution(key).place {
            Place::Inbox(machine) => self.is_suspended(machine),
            Place::Selector(selector) => self.match_index.entry(selector).frozen_since.is_some(),
            Place::Nowhere | Place::Active(_) => false,
        }
    }

    /// Goes on with the sweep over the machines.
    pub(super) fn sweep_machines(&mut self, now: Time) {
        let mut left = MAX_STEPS;
        while let Some(last) = self.suspensions.sweep {
            if left == 0 {
                self.timers.set(now.plus(SOON), Timer::SuspensionSweep);
                return;
            }
            left -= 1;
            let after = (Bound::Excluded(last), Bound::Unbounded);
            let next = self.machines.range(after).next().map(|(key, _)| *key);
            let Some(key) = next else {
                self.suspensions.sweep = None;
                return;
            };
            if self.sweep_machine(now, key, &mut left) {
                self.suspensions.sweep = Some(key);
            }
        }
    }

    /// Applies the suspensions to a machine. False if more of its queue has to get its time back.
    fn sweep_machine(&mut self, now: Time, key: MachineKey, left: &mut usize) -> bool {
        let is_meant = self.suspension_of(key).is_some();
        match (self.machine(key).suspended_since, is_meant) {
            (None, true) => self.freeze_machine(now, key),
            (Some(since), false) => return self.thaw_machine(now, key, since, left),
            _ => {}
        }
        true
    }

    fn freeze_machine(&mut self, now: Time, key: MachineKey) {
        self.machine_mut(key).suspended_since = Some(now);
        self.machine_changed(key);
        self.refresh_ready(key);
        self.revoke_offers(key);
    }

    fn thaw_machine(&mut self, now: Time, key: MachineKey, since: Time, left: &mut usize) -> bool {
        let thawed = self.suspensions.thawed.filter(|(of, _)| *of == key);
        // In the order of their keys, which they keep while it goes on in slices.
        let mut queued = self.machine(key).inbox.executions();
        queued.retain(|execution| thawed.is_none_or(|(_, last)| last < *execution));
        queued.sort_unstable();
        queued.truncate(*left + 1);
        *left = left.saturating_sub(queued.len());
        for execution in &queued {
            self.give_time_back(now, *execution, since);
        }
        if let Some(last) = queued.last().filter(|_| *left == 0) {
            self.suspensions.thawed = Some((key, *last));
            return false;
        }
        self.suspensions.thawed = None;
        self.machine_mut(key).suspended_since = None;
        self.machine_changed(key);
        self.refresh_ready(key);
        self.wake(key);
        true
    }

    /// Since when the time of an execution stands still; `None` if it runs.
    pub(super) fn frozen_since(&self, key: ExecutionKey) -> Option<Time> {
        if !self.keeps(Rule::SuspendedHasTime) {
            return None;
        }
        match self.execution(key).place {
            Place::Inbox(machine) => self.machine(machine).suspended_since,
            Place::Selector(selector) => self.match_index.entry(selector).frozen_since,
            Place::Nowhere | Place::Active(_) => None,
        }
    }

    /// Whether the time of an execution, whose time seems to be over, stands still. Notes that for its queue.
    pub(super) fn is_frozen(&mut self, now: Time, key: ExecutionKey) -> bool {
        if !self.keeps(Rule::SuspendedHasTime) {
            return false;
        }
        match self.execution(key).place {
            Place::Inbox(machine) => self.is_suspended(machine),
            Place::Selector(selector) => {
                if self.match_index.entry(selector).frozen_since.is_some() {
                    return true;
                }
                if self.suspensions.list.is_empty() || self.was_found_free(now, selector) {
                    return false;
                }
                let since = self.all_suspended_since(now, selector).0;
                match since {
                    Some(since) => self.freeze_queue(since, selector),
                    None => self.match_index.entry_mut(selector).found_free = Some(now),
                }
                since.is_some()
            }
            Place::Nowhere | Place::Active(_) => false,
        }
    }

    /// Whether a queue has just been looked at: thousands of tasks may expire at the same time.
    fn was_found_free(&self, now: Time, selector: SelectorKey) -> bool {
        self.match_index.entry(selector).found_free == Some(now)
    }

    /// Gives an execution the time back for which its machine, or all of them, were suspended, and says since when that
    /// was. For what leaves its place before its queue has got its time back.
    pub(super) fn thaw(&mut self, now: Time, key: ExecutionKey) {
        if let Some(since) = self.frozen_since(key) {
            self.give_time_back(now, key, since);
        }
    }

    fn give_time_back(&mut self, now: Time, key: ExecutionKey, since: Time) {
        if self.execution(key).state != ExecutionState::Queued {
            return;
        }
        let task = self.task(key.task);
        let own = self.execution(key).current.expires_at;
        let expires = own.unwrap_or(task.expires_at);
        let begun = Time(expires.0.saturating_sub(task.spec.ttl.as_millis()));
        let stood_still = now.millis_since(since.max(begun));
        if stood_still == 0 && now < expires {
            return;
        }
        let later = expires.later_by(stood_still);
        let is_alone = task.executions.len() == 1 && !task.open;
        match own {
            Some(before) => {
                let timer = Timer::AttemptTtl(key, self.execution(key).current.number);
                self.timers.cancel(before, timer);
                self.set_expiry(key, later);
            }
            // Its own time would take more memory.
            None if is_alone => {
                let is_paused = task.is_paused();
                self.timers.cancel(expires, Timer::TaskTtl(key.task));
                self.task_mut(key.task).expires_at = later;
                if !is_paused {
                    self.timers.set(later, Timer::TaskTtl(key.task));
                }
            }
            None => self.set_expiry(key, later),
        }
    }

    /// Since when every machine that a selector means and that is there is suspended; `None` if one is not, or there is
    /// none. And how many were looked at.
    fn all_suspended_since(&self, now: Time, selector: SelectorKey) -> (Option<Time>, usize) {
        let (mut since, mut examined) = (None, 0);
        for key in self.machines_of(selector) {
            examined += 1;
            let machine = self.machine(key);
            if machine.left {
                continue;
            }
            if self.is_suspended(key) {
                // The last one of them counts.
                since = since.max(Some(machine.suspended_since.unwrap_or(now)));
            } else if machine.state != MachineState::Offline {
                return (None, examined);
            }
        }
        (since, examined)
    }

    fn freeze_queue(&mut self, since: Time, selector: SelectorKey) {
        self.match_index.entry_mut(selector).frozen_since = Some(since);
        self.save_suspensions();
    }

    /// Looks at the queues again at this time, if there is a reason to.
    fn look_at_queues_again(&mut self, now: Time, at: Time) {
        if let Some(before) = self.suspensions.look_at.take() {
            self.timers.cancel(before, Timer::SuspendedQueues);
        }
        let is_needed = !self.suspensions.list.is_empty()
            || self.suspensions.look.is_some()
            || self.match_index.frozen().next().is_some();
        if is_needed {
            let at = at.max(now);
            self.suspensions.look_at = Some(at);
            self.timers.set(at, Timer::SuspendedQueues);
        }
    }

    /// Looks which queues have only suspended machines, and gives those their time back that have others again.
    pub(super) fn look_at_queues(&mut self, now: Time) {
        self.suspensions.look_at = None;
        let mut steps = MAX_EXAMINED;
        let mut next = self.suspensions.look.take();
        loop {
            let from = next.unwrap_or(SelectorKey::FIRST);
            let Some(selector) = self.match_index.next_entry(from) else {
                break;
            };
            next = Some(selector);
            if steps == 0 {
                break;
            }
            steps -= 1;
            let entry = self.match_index.entry(selector);
            let frozen_since = entry.frozen_since;
            let is_waited = !entry.queue.is_empty();
            let (all_since, examined) = match is_waited {
                true => self.all_suspended_since(now, selector),
                false => (None, 0),
            };
            steps = steps.saturating_sub(examined);
            match (frozen_since, all_since) {
                (None, Some(since)) => self.freeze_queue(since, selector),
                (Some(since), None) if !self.thaw_queue(now, selector, since) => {
                    steps = 0;
                    continue;
                }
                _ => {}
            }
            next = Some(selector.next());
        }
        let is_done = self
            .match_index
            .next_entry(next.unwrap_or(SelectorKey::FIRST))
            .is_none();
        if is_done {
            return self.look_at_queues_again(now, now.plus(LOOK_EVERY));
        }
        self.suspensions.look = next;
        self.look_at_queues_again(now, now.plus(SOON));
    }

    /// Gives the tasks of a queue their time back: a bounded number. False if there are more.
    fn thaw_queue(&mut self, now: Time, selector: SelectorKey, since: Time) -> bool {
        let thawed = self.suspensions.queue_thawed;
        let thawed = thawed.filter(|(of, _)| *of == selector);
        let after = thawed.map_or(Bound::Unbounded, |(_, last)| Bound::Excluded(last));
        let entry = self.match_index.entry(selector);
        let waiting = entry.queue.range((after, Bound::Unbounded));
        let waiting: Vec<TaskKey> = waiting.take(MAX_STEPS).copied().collect();
        for task in &waiting {
            self.give_time_back(now, ExecutionKey { task: *task, n: 0 }, since);
        }
        if let Some(last) = waiting.last().filter(|_| waiting.len() == MAX_STEPS) {
            self.suspensions.queue_thawed = Some((selector, *last));
            return false;
        }
        self.suspensions.queue_thawed = None;
        self.match_index.entry_mut(selector).frozen_since = None;
        self.save_suspensions();
        true
    }

    fn save_suspensions(&mut self) {
        if let Some(changes) = &mut self.changes {
            changes.suspensions = true;
        }
    }

    /// The suspensions, to be saved.
    pub(super) fn saved_suspensions(&self) -> SavedSuspensions {
        let frozen = self.match_index.frozen().map(|(text, since)| FrozenQueue {
            pattern: text.pattern.clone(),
            narrowing: text.narrowing.clone(),
            since,
        });
        SavedSuspensions {
            frozen: frozen.collect(),
            list: self.suspensions().cloned().collect(),
            away_ms: self.away_ms,
        }
    }

    /// Restores the suspensions, after the tasks. The time for which the server was away counts for what stands still as
    /// it does for every `ttl`, and not for when a suspension ends.
    pub(super) fn restore_suspensions(&mut self, now: Time, saved: SavedSuspensions) {
        let away = self.away_since(saved.away_ms);
        for suspension in saved.list {
            let selector = Selector::of_pattern(&suspension.pattern);
            let key = self.match_index.key_of(&selector);
            self.match_index.entry_mut(key).suspends = true;
            self.suspensions.list.push((suspension, key));
        }
        for frozen in saved.frozen {
            let text = SelectorText {
                pattern: frozen.pattern,
                narrowing: frozen.narrowing,
            };
            let since = frozen.since.later_by(away);
            self.match_index.restore_frozen(&text, since);
        }
        let is_needed =
            !self.suspensions.list.is_empty() || self.machines.values().any(|m| m.is_frozen());
        if is_needed {
            self.suspensions.sweep = Some(MachineKey(0));
            self.timers.set(now, Timer::SuspensionSweep);
        }
        self.set_suspension_timer();
        self.look_at_queues_again(now, now);
    }

    /// What the first waiting executions of a task wait for, where that is a suspension, by number.
    pub(super) fn suspensions_in_words(&self, key: TaskKey) -> BTreeMap<u32, String> {
        let Some(task) = self.tasks.get(&key) else {
            return BTreeMap::new();
        };
        if self.suspensions.list.is_empty() || task.counts.queued == 0 {
            return BTreeMap::new();
        }
        let executions = (0..).zip(&task.executions).take(MAX_EXAMINED);
        let queued = executions.filter(|(_, e)| e.state == ExecutionState::Queued);
        let waits = queued.filter_map(|(n, _)| {
            let wait = self.waits_for_suspension(ExecutionKey { task: key, n })?;
            Some((n, wait))
        });
        waits.collect()
    }

    /// What a waiting execution waits for, if that is a suspension.
    pub(super) fn waits_for_suspension(&self, key: ExecutionKey) -> Option<String> {
        match self.execution(key).place {
            Place::Inbox(machine) => Some(self.suspension_of(machine)?.in_words()),
            Place::Selector(selector) => {
                self.match_index.entry(selector).frozen_since?;
                self.suspension_among(selector)
            }
            Place::Nowhere | Place::Active(_) => None,
        }
    }

    /// A suspension that means one of the machines that a selector means.
    pub(super) fn suspension_among(&self, selector: SelectorKey) -> Option<String> {
        let mut machines = self.machines_of(selector).take(MAX_EXAMINED);
        let suspension = machines.find_map(|machine| self.suspension_of(machine))?;
        Some(suspension.in_words())
    }

    /// A machine that no suspension means is not suspended for ever, and each timer is set that is needed.
    pub(super) fn check_suspensions(&self) -> Result<(), String> {
        let is_set = |timer: Timer| self.timers.iter().any(|(_, set)| *set == timer);
        for (key, machine) in &self.machines {
            let agrees = machine.is_frozen() == self.suspension_of(*key).is_some();
            if !agrees && self.suspensions.sweep.is_none() {
                return Err(format!("{key:?}: suspended {:?}", machine.suspended_since));
            }
        }
        if self.suspensions.sweep.is_some() && !is_set(Timer::SuspensionSweep) {
            return Err("the sweep over suspended machines does not go on".into());
        }
        let frozen = self.match_index.frozen().count();
        let is_looked_at = is_set(Timer::SuspendedQueues);
        if (frozen > 0 || !self.suspensions.list.is_empty()) && !is_looked_at {
            return Err(format!("{frozen} queues stand still, and nobody looks"));
        }
        for (suspension, key) in &self.suspensions.list {
            if !self.match_index.entry(*key).suspends {
                return Err(format!("{suspension:?}: its selector could be dropped"));
            }
        }
        let first = { self.suspensions.list.iter() }.filter_map(|(it, _)| it.until);
        match (first.min(), self.suspensions.ends_at) {
            (first, ends_at) if first != ends_at => Err(format!("{first:?} is not {ends_at:?}")),
            (Some(_), _) if !is_set(Timer::SuspensionEnds) => {
                Err("a suspension would not end by itself".into())
            }
            _ => Ok(()),
        }
    }

    /// Whether a timer of suspensions is the one that is waited for.
    pub(super) fn is_timer_of_suspensions(&self, time: Time, timer: Timer) -> bool {
        match timer {
            Timer::SuspensionEnds => self.suspensions.ends_at == Some(time),
            Timer::SuspendedQueues => self.suspensions.look_at == Some(time),
            // It may have become needless since it was set.
            _ => true,
        }
    }

    /// Whether every machine that could run what any may run is suspended, for tests.
    #[doc(hidden)]
    pub fn are_all_suspended_for(&self, key: TaskKey) -> bool {
        let selector = &self.task(key).spec.selector;
        let meant = self.meant_by(selector);
        let there = meant.iter().filter(|key| {
            let machine = self.machine(**key);
            !machine.left && (machine.state != MachineState::Offline || self.is_suspended(**key))
        });
        let there: Vec<&MachineKey> = there.collect();
        let is_suspended = |key: &&MachineKey| self.suspension_of(**key).is_some();
        !there.is_empty() && there.iter().all(is_suspended)
    }

    /// Whether some time stands still, for tests.
    #[doc(hidden)]
    pub fn has_suspended(&self) -> bool {
        !self.suspensions.list.is_empty()
            || self.suspensions.sweep.is_some()
            || self.match_index.frozen().next().is_some()
    }

    /// Whether an instance is suspended, for tests.
    #[doc(hidden)]
    pub fn is_instance_suspended(&self, instance: &str) -> bool {
        let key = self.instances.get(instance);
        key.is_some_and(|key| self.suspension_of(*key).is_some())
    }
}
