//! Users who suspend machines, drain agents and shut them down, and the laws of that: nothing is handed out there, what
//! waits there does not expire, and wishes go with their machines.

use crate::targets::is_found;
use crate::world::{AttemptKey, Lawful, Ms, World};
use sidebike::core::{Core, ExecutionView, Selector, TaskKey, Wish};
use sidebike::wire::agent::Feature;
use sidebike::wire::crew::Wanted;
use sidebike::wire::duration::TimeSpan;
use sidebike::wire::machine::MachineState;
use sidebike::wire::task::ExecutionState;
use std::collections::HashMap;

const PATTERNS: [&str; 5] = [".*", "web", "db", "^web-0$", "nobody"];

/// What users do with the crew, and what was seen of it.
#[derive(Debug, Default)]
pub struct Crew {
    /// How many of their acts concern it, of a thousand.
    pub share: u64,
    looked_at: Ms,
    /// What was queued when it was last looked, for whom, and whether all who could run it were suspended.
    waiting: HashMap<(TaskKey, u32), bool>,
}

impl World {
    /// A user does something to the crew.
    pub fn user_sees_to_the_crew(&mut self) -> Lawful {
        let now = self.time();
        match self.rng.between(0, 9) {
            0..4 => {
                let pattern = self.rng.pick(&PATTERNS);
                let duration = self
                    .rng
                    .pick(&[None, Some(500), Some(5_000), Some(200_000)]);
                let duration = duration.map(TimeSpan::from_millis);
                let selector = self
                    .server
                    .core
                    .selector(&sidebike::core::SelectorText::of_pattern(pattern));
                let selector = selector.unwrap_or_else(|| selector_of(pattern));
                self.note(|| format!("{pattern} is suspended for {duration:?}"));
                let suspended = self.server.core.suspend(now, &selector, "why", duration);
                self.count(match suspended {
                    Ok(_) => "machines suspended",
                    Err(_) => "suspension refused",
                });
            }
            4..6 => {
                let pattern = self.rng.pick(&PATTERNS);
                let all = self.rng.chance(300);
                let pattern = Some(pattern).filter(|_| !all);
                self.note(|| format!("{pattern:?} is lifted"));
                if !self.server.core.lift_suspensions(now, pattern).is_empty() {
                    self.count("suspension lifted");
                }
            }
            _ => {
                let instances = self.server.core.machine_states();
                let instances: Vec<String> = instances.map(|(it, _)| it.to_owned()).collect();
                if instances.is_empty() {
                    return Ok(());
                }
                let n = self.rng.between(0, instances.len() as u64 - 1) as usize;
                let wishes = [Wish::Drain, Wish::Drain, Wish::Undrain, Wish::Shutdown];
                let wish = self.rng.pick(&wishes);
                self.wish(&instances[n], wish);
            }
        }
        Ok(())
    }

    fn wish(&mut self, instance: &str, wish: Wish) {
        let now = self.time();
        let core = &mut self.server.core;
        let Ok(machines) = core.machines_named(instance) else {
            return;
        };
        if core.check_wish(&machines, wish).is_err() {
            return self.count("wish refused");
        }
        for key in machines {
            core.wish(now, key, wish);
        }
        self.note(|| format!("{wish:?} of {instance}"));
        self.count(match wish {
            Wish::Drain => "agent to drain",
            Wish::Undrain => "agent to undrain",
            Wish::Shutdown => "agent to shut down",
        });
    }

    /// An agent is told what is wanted of it.
    pub fn obey_wish(&mut self, who: usize, wanted: Option<Wanted>) {
        let Some(wanted) = wanted.filter(|_| self.agents[who].can(Feature::Crew)) else {
            return;
        };
        match wanted {
            Wanted::Drain => self.agents[who].drained = true,
            Wanted::Undrain => self.agents[who].drained = false,
            Wanted::Shutdown => return self.term(who),
        }
        self.count("agent told to drain or not to");
    }

    /// The faults are over: everybody works again.
    pub fn crew_is_let_go(&mut self) {
        if self.crew.share == 0 {
            return;
        }
        let now = self.time();
        // One that takes no work because of these takes no undo that was ordered while it was drained, either.
        for agent in &mut self.agents {
            agent.forgotten = 0;
        }
        self.server.core.lift_suspensions(now, None);
        let machines = self.server.core.machine_states();
        let draining = machines.filter(|(_, state)| *state == MachineState::Draining);
        let draining: Vec<String> = draining.map(|(it, _)| it.to_owned()).collect();
        for instance in draining {
            if self.server.core.wish_of(&instance) != Some(Wish::Shutdown) {
                self.wish(&instance, Wish::Undrain);
            }
        }
    }

    /// Nothing is handed out on a machine that is suspended, or that is to drain.
    pub fn nothing_is_handed_out_there(&self, who: usize, key: AttemptKey) -> Lawful {
        let agent = &self.agents[who];
        if !agent.is_plain() {
            return Ok(());
        }
        let core = &self.server.core;
        let suspended = { core.suspensions() }.find(|it| is_found(&it.pattern, &agent.label));
        if let Some(suspension) = suspended {
            return Err(format!(
                "nothing_is_handed_out_while_suspended: {key:?} on {}, {suspension:?}",
                agent.label
            ));
        }
        match core.wish_of(&agent.instance) {
            Some(wish @ (Wish::Drain | Wish::Shutdown)) => Err(format!(
                "nothing_is_handed_out_while_draining: {key:?} on {}, {wish:?}",
                agent.label
            )),
            _ => Ok(()),
        }
    }

    /// The time of all suspensions is no part of any `ttl`.
    pub fn time_passes_for_the_crew(&mut self) {
        let passed = self.now - std::mem::replace(&mut self.crew.looked_at, self.now);
        if self.crew.share > 0 && self.server.core.has_suspended() {
            self.users.extend(passed);
        }
    }

    /// Nothing expires while all that could run it is suspended.
    pub fn look_at_crew(&mut self) -> Lawful {
        let core = &self.server.core;
        if self.crew.share == 0 {
            return Ok(());
        }
        let mut waiting = HashMap::new();
        for (key, task) in core.tasks_by_key() {
            for seen in task.execution_views() {
                let at = (key, seen.n);
                let was_suspended = self.crew.waiting.get(&at) == Some(&true);
                match seen.state {
                    ExecutionState::Queued => {
                        waiting.insert(at, is_suspended(core, key, &seen));
                    }
                    ExecutionState::Expired if was_suspended && is_suspended(core, key, &seen) => {
                        return Err(format!(
                            "nothing_expires_while_all_that_could_run_it_is_suspended: {at:?}"
                        ));
                    }
                    _ => {}
                }
            }
        }
        self.crew.waiting = waiting;
        Ok(())
    }

    /// Wishes go with their machines: none is left of one that said goodbye.
    pub fn wishes_go_with_their_machines(&self) -> Lawful {
        let core = &self.server.core;
        for (instance, _) in core.machine_states() {
            let is_gone = self.laws.has_left(instance) && core.machines_named(instance).is_err();
            if is_gone && core.wish_of(instance).is_some() {
                return Err(format!("wishes_go_with_their_machines: {instance}"));
            }
        }
        Ok(())
    }
}

/// Whether all machines are suspended that could run what waits, and there is one.
fn is_suspended(core: &Core, key: TaskKey, seen: &ExecutionView<'_>) -> bool {
    if let Some(instance) = seen.instance {
        return core.is_instance_suspended(instance);
    }
    core.are_all_suspended_for(key)
}

fn selector_of(pattern: &str) -> Selector {
    let narrowing = sidebike::core::Narrowing::default();
    let texts = &crate::server::TEXTS;
    Selector::checked(Some(pattern.into()), narrowing, texts, |_| None).expect("a good pattern")
}
