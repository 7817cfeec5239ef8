//! What users do with experiments: they submit tasks with an undo, order undos again, forgive debts, and halt everything.
//! And the law that nothing is accepted in a halt. What a crash must not take back is in `crash.rs`.

use crate::world::{AttemptKey, Lawful, World};
use sidebike::core::{Refusal, Selection, Spec, TaskKey};
use sidebike::wire::duration::{TimeSpan, Timeout};
use sidebike::wire::task::ExecutionState;
use sidebike::wire::undo::Undo;
use std::sync::Arc;

impl World {
    /// Gives a task an undo, or not.
    pub fn fill_in_undo(&mut self, spec: &mut Spec) {
        if self.experiments.share == 0 || !self.rng.chance(self.experiments.share) {
            return;
        }
        let rng = &mut self.rng;
        let mut detail = (*spec.detail).clone();
        let seconds =
            |from, to, rng: &mut crate::rng::Rng| TimeSpan::from_secs(rng.between(from, to));
        let deadman = match rng.chance(150) {
            true => Timeout::Never,
            false => Timeout::After(seconds(10, 60, rng)),
        };
        let lock = rng.pick(&[None, Some("eth0"), Some("eth0"), Some("disk")]);
        detail.undo = Some(Box::new(Undo {
            command: Some("undo".into()),
            check: rng.chance(500).then(|| "check".into()),
            timeout: Some(seconds(1, 10, rng)),
            patience: Some(TimeSpan::from_secs(rng.pick(&[0, 5, 60]))),
            deadman: Some(deadman),
            lock: lock.map(str::to_owned),
            ..Undo::default()
        }));
        let timeout = TimeSpan::from_millis(rng.between(500, 90_000));
        detail.timeout = Some(Timeout::After(timeout));
        spec.detail = Arc::new(detail);
        self.count("task with an undo");
    }

    /// A user sees to what is left, or halts everything.
    pub fn user_sees_to_undos(&mut self) -> Lawful {
        if self.server.core.halt().is_some() && self.rng.chance(600) {
            self.count("halt lifted");
            self.note(|| "the halt is lifted".into());
            self.server.core.lift_halt();
            self.answer_halt(false);
            return Ok(());
        }
        if self.rng.chance(60) {
            return self.user_halts();
        }
        let with_undo: Vec<_> = { self.server.core.tasks_by_key() }
            .filter(|(_, task)| task.execution_views().any(|view| view.undo.is_some()))
            .map(|(key, task)| {
                (
                    key,
                    task.execution_views()
                        .find_map(|it| it.instance.map(str::to_owned)),
                )
            })
            .collect();
        let Some(last) = with_undo.len().checked_sub(1) else {
            return Ok(());
        };
        let at = self.rng.between(0, last as u64) as usize;
        let (key, instance) = with_undo[at].clone();
        let selection = match instance {
            Some(instance) if self.rng.chance(300) => Selection::Machine(instance),
            _ => Selection::All,
        };
        if self.rng.chance(600) {
            let again = self.server.core.undo_again(key, &selection);
            self.note(|| format!("undo {key:?} again: {again:?}"));
            self.count(match again {
                Ok(()) => "undo wanted again",
                Err(_) => "undo again refused",
            });
        } else {
            let forgiven = self.forgive(key, &selection);
            self.note(|| format!("forgive {key:?}: {forgiven:?}"));
            self.count(match forgiven {
                Ok(()) => "debt forgiven",
                Err(_) => "forgive refused",
            });
        }
        self.debts_are_counted()
    }

    /// A user settles debts by hand.
    pub fn forgive(&mut self, key: TaskKey, selection: &Selection) -> Result<(), Refusal> {
        let before = self.debts();
        let forgiven = self
            .server
            .core
            .forgive(self.time(), key, selection, "a user");
        let after = self.debts();
        for (task, n, attempt) in before.difference(&after) {
            let epoch = self.server.epoch;
            let key = AttemptKey {
                epoch,
                task: *task,
                n: *n,
                attempt: *attempt,
            };
            if let Some(truth) = self.experiments.truths.get_mut(&key) {
                truth.is_forgiven = true;
            }
        }
        forgiven
    }

    fn user_halts(&mut self) -> Lawful {
        let all = self.rng.chance(200);
        self.count("halt");
        self.note(|| format!("halt, all: {all}"));
        let core = &self.server.core;
        let mut meant = Vec::new();
        for (key, task) in core.tasks_by_key() {
            if !core.is_finished(key) && (all || task.spec.detail.undo.is_some()) {
                let states = task.execution_views().map(|e| (e.n, e.state));
                let states: Vec<(u32, ExecutionState)> = states.collect();
                meant.push((key, states));
            }
        }
        let was_all = core.halt().is_some_and(|halt| halt.all);
        let now = self.time();
        let (_, canceled) = self.server.core.begin_halt(now, "test", all);
        if canceled > meant.len() && !was_all {
            return Err(format!(
                "a_halt_cancels_what_it_means: {canceled}, {} are meant",
                meant.len()
            ));
        }
        for (key, before) in meant {
            self.laws.canceled(&self.server.core, key, &before, true);
        }
        self.answer_halt(true);
        Ok(())
    }

    /// The faults are over: so is a halt.
    pub fn halt_is_lifted(&mut self) {
        if self.server.core.halt().is_some() {
            self.server.core.lift_halt();
            self.answer_halt(false);
        }
    }

    /// A task was accepted.
    pub fn was_right_to_accept_in_a_halt(&self, has_undo: bool) -> Lawful {
        let halt = self.server.core.halt();
        match halt.is_some_and(|halt| halt.all || has_undo) {
            true => Err(format!("nothing_is_accepted_in_a_halt: {halt:?}")),
            false => Ok(()),
        }
    }
}
