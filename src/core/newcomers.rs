//! How many new machines come from where.
//!
//! Whoever has the token of an agent can make up instances. Known machines must not have to go for them, so only a
//! limited number of new ones is accepted from each origin (an address and a token) in a while.

use super::machine::FORGOTTEN_AFTER;
use super::{Core, Notice, Refusal, Time};
use std::collections::HashMap;
use std::sync::Arc;

/// The most origins that are counted apart; further ones are counted together, under this name.
const MAX_ORIGINS: usize = 10_000;
const OTHERS: &str = "all other addresses";

/// The origins from which new machines have come.
#[derive(Debug, Default)]
pub(super) struct Newcomers(HashMap<Arc<str>, Count>);

/// The new machines of an origin in a while.
#[derive(Debug)]
struct Count {
    since: Time,
    machines: usize,
    /// It was said that more are refused.
    is_said: bool,
}

impl Newcomers {
    /// The count of an origin, from 0 when its while is over.
    fn of(&mut self, now: Time, origin: &str) -> (&mut Count, Arc<str>) {
        let is_over = |count: &Count| now >= count.since.plus(FORGOTTEN_AFTER);
        if !self.0.contains_key(origin) && self.0.len() >= MAX_ORIGINS {
            self.0.retain(|_, count| !is_over(count));
        }
        let known = self.0.contains_key(origin) || self.0.len() < MAX_ORIGINS;
        let origin: Arc<str> = if known { origin.into() } else { OTHERS.into() };
        let fresh = || Count {
            since: now,
            machines: 0,
            is_said: false,
        };
        let count = self.0.entry(origin.clone()).or_insert_with(fresh);
        if is_over(count) {
            *count = fresh();
        }
        (count, origin)
    }
}

impl Core {
    /// Counts a machine that comes for the first time, before it is registered. Refused with [`Refusal::Full`] if too
    /// many have come from its origin.
    pub fn admit(&mut self, now: Time, origin: &str, instance: &str) -> Result<(), Refusal> {
        if self.instances.contains_key(instance) {
            return Ok(());
        }
        let limit = self.limits.new_machines;
        let (count, origin) = self.newcomers.of(now, origin);
        if count.machines < limit {
            count.machines += 1;
            return Ok(());
        }
        if !std::mem::replace(&mut count.is_said, true) {
            self.notices.push(Notice::NewcomersRefused(origin));
        }
        Err(Refusal::Full(format!(
            "{limit} new machines have come from this address with this token within {FORGOTTEN_AFTER}, the limit (--max-new-machines)"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Limits;

    #[test]
    fn each_origin_has_its_own_limit_for_a_while() {
        let limits = Limits {
            new_machines: 2,
            ..Limits::NONE
        };
        let mut core = Core::new(limits, Time(0));
        let mut admitted = |now, origin: &str| core.admit(Time(now), origin, "i").is_ok();
        assert_eq!(
            [1, 2, 3, 4].map(|now| admitted(now, "a")),
            [true, true, false, false]
        );
        assert!(admitted(4, "b"));
        assert!(admitted(1 + FORGOTTEN_AFTER.as_millis(), "a"));
        let said = core.take_notices();
        assert_eq!(said, [Notice::NewcomersRefused("a".into())], "once");
    }

    #[test]
    fn origins_are_bounded_too() {
        let mut core = Core::new(
            Limits {
                new_machines: 1,
                ..Limits::NONE
            },
            Time(0),
        );
        let mut admitted = |n: usize| core.admit(Time(0), &n.to_string(), "i").is_ok();
        assert!((0..=MAX_ORIGINS).all(&mut admitted));
        assert!(!admitted(MAX_ORIGINS + 1), "it is one of the others");
        assert!(core.newcomers.0.len() <= MAX_ORIGINS + 1);
    }
}
