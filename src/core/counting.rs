//! How many machines a task may hit: `expect`, `maxTargets` and `keepAlive`, and the order of its targets.
//!
//! Everything is decided in the step in which a task is registered, so that of many tasks that are submitted at once
//! none takes the last healthy machine. What may be hit rounds down, what must stay rounds up, and no machines at all
//! are a refusal. To add a count: a field of [`Counts`], and its check in [`Core::choose`].

use super::invariants::Rule;
use super::machine::Machine;
use super::match_index::TraitsKey;
use super::rollout::Plan;
use super::selector::{Selector, Traits, no_tags};
use super::spec::Spec;
use super::task::Target;
use super::{Core, MachineKey, Refusal, Time};
use crate::wire::duration::TimeSpan;
use crate::wire::machine::MachineState;
use crate::wire::rollout::{self as wire, Expect, Order, Share};
use crate::wire::task::Mode;
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// The most labels named in a refusal.
pub(super) const MAX_NAMED: usize = 10;
/// How long a restored server waits for the machines that it knew, before it counts.
const RECOUNT_WAIT: TimeSpan = TimeSpan::from_secs(60);

/// What a task says about how many machines it may hit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Counts {
    /// How many machines have to match.
    pub expect: Option<Expect>,
    /// At most so many of them are targets.
    pub max_targets: Option<Share>,
    /// How many machines have to be left alone.
    pub keep_alive: Option<KeepAlive>,
}

impl Counts {
    pub(super) fn is_none(&self) -> bool {
        *self == Counts::default()
    }
}

/// How many machines of a pool have to be left alone.
#[derive(Debug, Clone, PartialEq)]
pub struct KeepAlive {
    /// So many.
    pub keep: Share,
    /// The pool; the machines that the task means, if absent.
    pub pool: Option<Selector>,
}

impl KeepAlive {
    /// As it was posted.
    pub fn posted(&self) -> wire::KeepAlive {
        let pool = self.pool.as_ref();
        wire::KeepAlive {
            keep: self.keep,
            pool: pool.map(|pool| pool.text().pattern.to_string()),
        }
    }
}

/// The machines that a task is for.
#[derive(Debug, Clone, Default)]
pub(super) struct Choice {
    /// How many live machines match.
    pub matched: u32,
    /// Those that run it, in the order of its rollout if it has one.
    pub machines: Vec<MachineKey>,
    /// Those that match and do not.
    pub spared: Vec<MachineKey>,
    /// The steps of its rollout.
    pub plan: Option<Plan>,
}

/// What would become of a task if it were submitted now.
#[derive(Debug, Clone, Default)]
pub struct Preview {
    /// Why it would be refused. Of a task that begins later: why it would be if it began now.
    pub refusal: Option<String>,
    /// It would begin later: who matches is settled then.
    pub waits: bool,
    /// How many live machines match.
    pub matched: u32,
    /// The machines that would run it.
    pub machines: Vec<Arc<Target>>,
    /// The machines that match and would not.
    pub spared: Vec<Arc<Target>>,
    /// How many targets its rollout has started when each step is done.
    pub plan: Vec<u32>,
    /// The most executions of its rollout at once.
    pub concurrency: Option<u32>,
    /// How many machines match and are offline.
    pub offline: u32,
    /// How many machines match and are draining.
    pub draining: u32,
}

/// The machines of which some have to be left alone.
#[derive(Debug)]
pub(super) struct Pool {
    /// How many there are.
    pub total: usize,
    /// How many of them have to be left alone.
    pub must_stay: u32,
    /// How many are online.
    pub online: usize,
    /// Those of them that nothing is done to.
    pub healthy: Vec<MachineKey>,
}

/// The machines that a restored server waits for before it counts.
#[derive(Debug, Default)]
pub(super) struct Recount {
    /// When it counts in any case.
    until: Time,
    /// How many of the machines that it knew have not come back.
    missing: usize,
}

impl Recount {
    /// A wait for so many machines.
    pub fn of(now: Time, machines: usize) -> Self {
        Recount {
            until: now.plus(RECOUNT_WAIT),
            missing: machines,
        }
    }

    /// A machine has polled for the first time since the start.
    pub fn came(&mut self) {
        self.missing = self.missing.saturating_sub(1);
    }
}

impl Core {
    /// Chooses the targets of a task among the machines that it means. Refused if they are not as many as it expects,
    /// or if it would hit more than it may.
    pub(super) fn choose(
        &self,
        now: Time,
        id: &str,
        spec: &Spec,
        meant: Vec<MachineKey>,
    ) -> Result<Choice, Refusal> {
        let counts = &spec.counts;
        let live = self.counted(now, spec, &meant)?;
        let matched = live.len() as u32;
        let mut choice = Choice {
            matched,
            machines: live,
            ..Choice::default()
        };
        if spec.mode == Mode::Any {
            // Whichever of them runs it, another one is left for the probes, or they stop it.
            self.check_probe_machines(spec, &[])?;
            return Ok(choice);
        }
        if let Some(most) = counts.max_targets {
            let number = match self.keeps(Rule::HitsRoundDown) {
                true => most.rounded_down(matched),
                false => most.rounded_up(matched),
            };
            if number == 0 {
                return Err(Refusal::Conflict(format!(
                    "maxTargets: {most} of {matched} machines is none"
                )));
            }
            self.spare(id, number as usize, spec, &mut choice);
        }
        if let Some(keep_alive) = &counts.keep_alive {
            self.check_keep_alive(keep_alive, &meant, &choice.machines)?;
        }
        self.check_probe_machines(spec, &choice.machines)?;
        if let Some(rollout) = &spec.rollout {
            if choice.machines.is_empty() {
                return Err(Refusal::Conflict(
                    "rollout: no machine matches; its steps are shares of the machines that match when it is submitted"
                        .into(),
                ));
            }
            self.sort(id, rollout.order, &mut choice.machines);
            let canary = self.canary(spec);
            let is_canary = |key: &MachineKey| canary.contains(&self.machine(*key).traits_key);
            let canaries = choice.machines.iter().filter(|key| is_canary(key)).count();
            if let (0, Some(canary)) = (canaries, &rollout.canary) {
                return Err(Refusal::Conflict(format!(
                    "rollout.canary: {:?} matches none of the {} targets{}",
                    canary.text().pattern,
                    choice.machines.len(),
                    self.named(&choice.machines)
                )));
            }
            choice.machines.sort_by_key(|key| !is_canary(key));
            let total = choice.machines.len() as u32;
            choice.plan = Some(rollout.plan(canaries as u32, total));
        }
        Ok(choice)
    }

    /// The live machines among those that a task means, if they are as many as it expects.
    fn counted(
        &self,
        now: Time,
        spec: &Spec,
        meant: &[MachineKey],
    ) -> Result<Vec<MachineKey>, Refusal> {
        let counts = &spec.counts;
        if !counts.is_none() && self.is_recounting(now) {
            return Err(Refusal::Full(format!(
                "still counting: {} of the machines that this server knew before its start have not come back; it counts without them in {} s",
                self.recount.missing,
                self.recount.until.millis_since(now).div_ceil(1_000)
            )));
        }
        let mut live = meant.to_vec();
        live.retain(|key| self.machine(*key).is_live());
        if !counts.is_none() || spec.rollout.is_some() {
            self.drop_replaced(&mut live);
        }
        let matched = live.len() as u32;
        match counts.expect.filter(|expect| !expect.allows(matched)) {
            None => Ok(live),
            Some(expect) => Err(Refusal::Conflict(format!(
                "expect: {expect} {} expected, {matched} match{}",
                match expect {
                    Expect::Exactly(1) => "machine was",
                    _ => "machines were",
                },
                self.named(&live)
            ))),
        }
    }

    /// The same as [`Core::choose`] for a rerun on these targets. They keep their order, but for canaries that joined late.
    pub(super) fn choose_again(
        &self,
        now: Time,
        spec: &Spec,
        targets: &mut [Arc<Target>],
    ) -> Result<Choice, Refusal> {
        let meant = match spec.counts.is_none() {
            true => Vec::new(),
            false => self.meant_by(&spec.selector),
        };
        self.counted(now, spec, &meant)?;
        let known = |target: &Arc<Target>| self.instances.get(&target.instance).copied();
        let mut live: Vec<MachineKey> = targets.iter().filter_map(known).collect();
        live.retain(|key| self.machine(*key).is_live());
        if let Some(keep_alive) = &spec.counts.keep_alive {
            self.check_keep_alive(keep_alive, &meant, &live)?;
        }
        self.check_probe_machines(spec, &live)?;
        let plan = spec.rollout.as_ref().map(|rollout| {
            // All of them: also those whose machines are offline or no longer known.
            let canary = rollout.canary.as_ref().map(Selector::to_compiled);
            let is_canary = |target: &Arc<Target>| {
                let traits = Traits {
                    label: target.label.clone(),
                    host: target.host.clone(),
                    tags: no_tags(),
                };
                canary
                    .as_ref()
                    .is_some_and(|canary| canary.matches(&traits))
            };
            targets.sort_by_cached_key(|target| !is_canary(target));
            let canaries = targets.partition_point(is_canary);
            rollout.plan(canaries as u32, targets.len() as u32)
        });
        Ok(Choice {
            matched: live.len() as u32,
            machines: live,
            plan,
            ..Choice::default()
        })
    }

    /// What would become of a task. Changes nothing.
    pub fn preview(&self, now: Time, id: &str, spec: &Spec) -> Preview {
        let meant = self.meant_by(&self.previewed_selector(spec));
        let count = |state| {
            let machines = meant
                .iter()
                .filter(|key| self.machine(**key).state == state);
            machines.count() as u32
        };
        let (offline, draining) = (count(MachineState::Offline), count(MachineState::Draining));
        let targets = |keys: &[MachineKey]| {
            let targets = keys.iter().map(|key| self.target(*key));
            targets.collect()
        };
        let preview = Preview {
            offline,
            draining,
            waits: spec.wait.as_ref().is_some_and(|wait| {
                !wait.after.is_empty() || Core::waiting_of(now, wait, Vec::new()).is_some()
            }),
            ..Preview::default()
        };
        let unused = { self.check_unused(id, id) }.and_then(|()| self.check_notify(spec));
        let unused = unused.and_then(|()| self.check_named_limits(&spec.limits));
        let unused = unused.and_then(|()| match self.check_unique(spec) {
            Ok(_) | Err(Refusal::Joins(_)) => Ok(()),
            Err(why) => Err(why),
        });
        match unused.and_then(|()| self.choose(now, id, spec, meant.clone())) {
            Ok(mut choice) => {
                if spec.rollout.is_none() {
                    self.sort(id, Order::Label, &mut choice.machines);
                }
                Preview {
                    matched: choice.matched,
                    machines: targets(&choice.machines),
                    spared: targets(&choice.spared),
                    concurrency: { choice.plan.as_ref() }
                        .map(|plan| plan.window)
                        .filter(|window| *window < u32::MAX),
                    plan: choice.plan.map_or_else(Vec::new, |plan| plan.steps),
                    ..preview
                }
            }
            Err(refusal) => {
                let mut live = meant;
                live.retain(|key| self.machine(*key).is_live());
                Preview {
                    refusal: Some(
                        self.naming(spec.id.as_deref(), spec.unique.as_deref(), refusal)
                            .to_string(),
                    ),
                    matched: live.len() as u32,
                    spared: targets(&live),
                    ..preview
                }
            }
        }
    }

    /// The machines that a selector means, in whatever state they are.
    pub(super) fn meant_by(&self, selector: &Selector) -> Vec<MachineKey> {
        let traits = self.match_index.matching(selector);
        self.machines_with(&traits, selector.text().instances())
            .collect()
    }

    /// Drops each machine that another with its host and label has probably replaced: the other one appeared after
    /// it, and its poll is not held and it was not heard of since.
    fn drop_replaced(&self, machines: &mut Vec<MachineKey>) {
        let host_and_label = |key: &MachineKey| {
            let machine = self.machine(*key);
            (&*machine.host, &*machine.label)
        };
        let mut newest: HashMap<_, Time> = HashMap::new();
        for key in machines.iter() {
            let since = newest.entry(host_and_label(key)).or_default();
            *since = self.machine(*key).since.max(*since);
        }
        machines.retain(|key| {
            let machine = self.machine(*key);
            let newest = newest[&host_and_label(key)];
            machine.since >= newest || machine.poll_held || machine.last_seen >= newest
        });
    }

    /// The traits of the machines that are the first step of a rollout.
    fn canary(&self, spec: &Spec) -> BTreeSet<TraitsKey> {
        let canary = { spec.rollout.as_ref() }.and_then(|rollout| rollout.canary.as_ref());
        canary.map_or_else(BTreeSet::new, |it| {
            self.match_index.matching(it).into_owned()
        })
    }

    /// Chooses so many of the machines by the task's id, and spares the others. Those of the first step are spared last.
    fn spare(&self, id: &str, number: usize, spec: &Spec, choice: &mut Choice) {
        let canary = self.canary(spec);
        let mut chosen = choice.machines.clone();
        chosen.sort_by_key(|key| {
            let machine = self.machine(*key);
            let is_canary = canary.contains(&machine.traits_key);
            (!is_canary, mixed(&[id, &machine.instance]))
        });
        choice.spared = chosen.split_off(number.min(chosen.len()));
        let spared = HashSet::<&MachineKey>::from_iter(&choice.spared);
        choice.machines.retain(|key| !spared.contains(key));
    }

    /// Whether machines that were there before a restart are still waited for.
    pub(super) fn is_recounting(&self, now: Time) -> bool {
        now < self.recount.until && self.recount.missing > 0
    }

    /// Counts a pool of these machines, of which so many have to stay.
    pub(super) fn pool_of(&self, keep: Share, mut pool: Vec<MachineKey>) -> Pool {
        if !self.keeps(Rule::OfflineIsOfThePool) {
            pool.retain(|key| self.machine(*key).state != MachineState::Offline);
        }
        // A machine that said goodbye does not come back. If it counted, each redeploy would double the pool.
        pool.retain(|key| !self.machine(*key).left);
        self.drop_replaced(&mut pool);
        let total = pool.len();
        let must_stay = match self.keeps(Rule::KeptRoundsUp) {
            true => keep.rounded_up(total as u32),
            false => keep.rounded_down(total as u32),
        };
        pool.retain(|key| self.machine(*key).is_live());
        let online = pool.len();
        pool.retain(|key| {
            let instance = &self.machine(*key).instance;
            !self.guarded.contains_key(instance) && !self.has_open_undo(*key)
        });
        Pool {
            total,
            must_stay,
            online,
            healthy: pool,
        }
    }

    pub(super) fn check_keep_alive(
        &self,
        keep_alive: &KeepAlive,
        meant: &[MachineKey],
        chosen: &[MachineKey],
    ) -> Result<(), Refusal> {
        let keep = keep_alive.keep;
        let all = match &keep_alive.pool {
            Some(pool) => self.meant_by(pool),
            None => meant.to_vec(),
        };
        let Pool {
            total,
            must_stay,
            online,
            healthy: pool,
        } = self.pool_of(keep, all);
        if let (0, Some(pool)) = (total, &keep_alive.pool) {
            return Err(Refusal::Conflict(format!(
                "keepAlive.pool: {:?} matches no machine",
                pool.text().pattern
            )));
        }
        if chosen.is_empty() {
            return Err(Refusal::Conflict("keepAlive: no machine matches".into()));
        }
        let guarded = match online - pool.len() {
            0 => String::new(),
            number => format!(
                " ({number} more are targets of tasks with keepAlive or an undo that have not ended, or not been undone)"
            ),
        };
        let healthy = pool.len() as u32;
        let pool = HashSet::<MachineKey>::from_iter(pool);
        let hit = chosen.iter().filter(|key| pool.contains(key)).count() as u32;
        // Subtracted, not added: the sum of a posted number and of these can be more than the type holds.
        let spare = healthy.saturating_sub(must_stay);
        if healthy >= must_stay && hit <= spare {
            return Ok(());
        }
        let may_be_hit = match spare {
            0 => "none".to_owned(),
            number => number.to_string(),
        };
        let share = match keep {
            Share::Count(_) => String::new(),
            Share::Percent(_) => format!(" ({keep})"),
        };
        Err(Refusal::Conflict(format!(
            "keepAlive: {must_stay} of {total} machines must stay{share}, {healthy} are healthy{guarded}, so {may_be_hit} may be hit; {hit} were asked for"
        )))
    }

    /// Sorts targets in the order of a rollout.
    fn sort(&self, id: &str, order: Order, machines: &mut [MachineKey]) {
        match order {
            Order::Joined => machines.sort(),
            Order::Random => machines.sort_by_key(|key| mixed(&[id, &self.machine(*key).instance])),
            Order::Label => machines.sort_by(|a, b| {
                let (a, b) = (self.machine(*a), self.machine(*b));
                by_label(a, b)
            }),
        }
    }

    /// The labels of these machines after a colon, for a refusal. Empty if there are none.
    fn named(&self, machines: &[MachineKey]) -> String {
        let mut labels: Vec<&str> = machines
            .iter()
            .map(|key| &*self.machine(*key).label)
            .collect();
        labels.sort_by(|a, b| natural(a, b));
        match labels.is_empty() {
            true => String::new(),
            false => format!(": {}", first_named(&labels)),
        }
    }
}

/// The first of these labels, for a refusal.
pub(super) fn first_named(labels: &[&str]) -> String {
    match labels.get(..MAX_NAMED) {
        Some(first) if first.len() < labels.len() => format!("{}, …", first.join(", ")),
        _ => labels.join(", "),
    }
}

fn by_label(a: &Machine, b: &Machine) -> Ordering {
    natural(&a.label, &b.label).then_with(|| a.instance.cmp(&b.instance))
}

/// Compares two texts as people count: web-2 comes before web-10.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    let digits = |text: &[u8]| text.iter().take_while(|c| c.is_ascii_digit()).count();
    while let (Some(x), Some(y)) = (a.first(), b.first()) {
        let (in_a, in_b) = (digits(a), digits(b));
        let order = match in_a > 0 && in_b > 0 {
            true => {
                let number = |text: &[u8]| text.iter().skip_while(|c| **c == b'0').count();
                let (x, y) = (&a[..in_a], &b[..in_b]);
                let (x, y) = (&x[in_a - number(x)..], &y[in_b - number(y)..]);
                x.len().cmp(&y.len()).then_with(|| x.cmp(y))
            }
            false => x.cmp(y),
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (&a[in_a.max(1)..], &b[in_b.max(1)..]);
    }
    a.len().cmp(&b.len())
}

/// A number that these texts decide: for a random choice that a repeat makes again. FNV-1a with further mixing: alone
/// it would leave texts that differ in their last digit in order.
pub(super) fn mixed(texts: &[&str]) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = texts.iter().flat_map(|text| text.bytes().chain([0]));
    let hash = bytes.fold(BASIS, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    });
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_ordered_as_people_count() {
        let mut labels = [
            "web-10", "web-2", "web-02", "web", "db-3", "web-2a", "web-1",
        ];
        labels.sort_by(|a, b| natural(a, b));
        assert_eq!(
            labels,
            [
                "db-3", "web", "web-1", "web-2", "web-02", "web-2a", "web-10"
            ]
        );
        assert_eq!(natural("9".repeat(40).as_str(), "1"), Ordering::Greater);
    }

    #[test]
    fn a_choice_is_made_again_and_spreads() {
        assert_eq!(mixed(&["task", "aa"]), mixed(&["task", "aa"]));
        let mut seen = [0; 10];
        for n in 0..1_000 {
            let order = |m: u32| mixed(&[&format!("task-{n}"), &format!("{m:08x}")]);
            let first = (0..10u32).min_by_key(|m| order(*m)).unwrap();
            seen[first as usize] += 1;
        }
        assert!(
            seen.iter().all(|count| (50..200).contains(count)),
            "{seen:?}"
        );
    }
}
