//! The rollout of a task: the checked form of what was posted, and the plan that it makes for a number of targets.
//! What the plan means while the task runs is decided in `pacing.rs`.

use super::selector::Selector;
use crate::wire::rollout::{self as wire, Order, Share};
use crate::wire::task::Mode;
use serde::{Deserialize, Serialize};

/// The most steps of a rollout.
const MAX_STEPS: usize = 100;

/// A checked rollout, with the defaults filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// As it was posted.
    pub posted: wire::Rollout,
    /// The order of its targets.
    pub order: Order,
    /// The targets that are the first step.
    pub canary: Option<Selector>,
}

/// The numbers of a rollout for a certain number of targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    /// How many targets have been started when each step is done. The last step is everything, also what joins later.
    pub steps: Vec<u32>,
    /// The most executions at once.
    pub window: u32,
    /// It stops when more have failed.
    pub max_failures: u32,
}

impl Rollout {
    /// The plan for `total` targets, of which the first `canaries` are the first step.
    pub(super) fn plan(&self, canaries: u32, total: u32) -> Plan {
        let shares = match &*self.posted.steps {
            [] => &[Share::Percent(100)],
            steps => steps,
        };
        let shares = shares.iter().map(|share| share.rounded_down(total));
        let mut steps: Vec<u32> = Vec::new();
        for until in (canaries > 0).then_some(canaries).into_iter().chain(shares) {
            let started = steps.last().copied().unwrap_or(0);
            if started < total {
                steps.push(until.clamp(started + 1, total));
            }
        }
        // A rollout reaches every target, even if its steps end earlier.
        if let Some(last) = steps.last_mut() {
            *last = total;
        }
        let window = self.posted.concurrency.map(|share| share.rounded_up(total));
        let max_failures = self.posted.max_failures.unwrap_or(Share::Count(0));
        Plan {
            steps,
            window: window.unwrap_or(u32::MAX).max(1),
            max_failures: max_failures.rounded_down(total),
        }
    }
}

/// Checks a posted rollout. The error names the field.
pub(super) fn checked(
    posted: wire::Rollout,
    mode: Mode,
    canary: Option<Selector>,
) -> Result<Rollout, String> {
    if mode == Mode::Any {
        return Err("rollout: goes with mode \"all\" only, an \"any\" task runs once".into());
    }
    if posted.concurrency.is_some_and(Share::is_zero) {
        return Err("rollout.concurrency: must be above 0".into());
    }
    if posted.steps.len() > MAX_STEPS {
        return Err(format!(
            "rollout.steps: must have {MAX_STEPS} entries at most, got {}",
            posted.steps.len()
        ));
    }
    if posted.steps.iter().any(|share| share.is_zero()) {
        return Err("rollout.steps: each must be above 0".into());
    }
    for (n, (before, step)) in posted
        .steps
        .iter()
        .zip(posted.steps.iter().skip(1))
        .enumerate()
    {
        // A number and a percentage can be compared only when the targets are known.
        let rises = match (before, step) {
            (Share::Count(before), Share::Count(step)) => step > before,
            (Share::Percent(before), Share::Percent(step)) => step > before,
            (Share::Percent(before), Share::Count(_)) => *before < 100,
            (Share::Count(_), Share::Percent(_)) => true,
        };
        if !rises {
            return Err(format!(
                "rollout.steps[{}]: each says how many have been started when it is done, so {step} cannot follow {before}",
                n + 1
            ));
        }
    }
    Ok(Rollout {
        order: posted.order.unwrap_or_default(),
        posted,
        canary,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(steps: &[Share]) -> Rollout {
        let posted = wire::Rollout {
            steps: steps.into(),
            ..wire::Rollout::default()
        };
        checked(posted, Mode::All, None).unwrap()
    }

    #[test]
    fn each_step_adds_at_least_one_and_the_last_is_everything() {
        use Share::{Count, Percent};
        let steps = |shares: &[Share], canaries, total| rollout(shares).plan(canaries, total).steps;
        let usual = [Count(1), Percent(10), Percent(100)];
        assert_eq!(steps(&usual, 0, 100), [1, 10, 100]);
        assert_eq!(steps(&usual, 0, 3), [1, 2, 3]);
        assert_eq!(steps(&usual, 0, 2), [1, 2]);
        assert_eq!(steps(&usual, 0, 1), [1]);
        assert_eq!(steps(&[], 0, 7), [7]);
        assert_eq!(steps(&[], 2, 7), [2, 7]);
        assert_eq!(steps(&[Percent(10), Percent(50)], 15, 100), [15, 16, 100]);
        assert_eq!(steps(&[Percent(10)], 100, 100), [100]);
        assert_eq!(
            steps(&[Percent(60), Count(50), Percent(70)], 0, 100),
            [60, 61, 100]
        );
        assert_eq!(steps(&usual, 0, 0), Vec::<u32>::new());
    }
}
