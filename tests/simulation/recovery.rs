//! After the faults have stopped: whatever happened before, a new task must run on every machine at once.

use crate::world::{Lawful, Ms, World};
use sidebike::core::{Selection, TaskKey};
use sidebike::wire::duration::{TimeSpan, Timeout};
use sidebike::wire::machine::MachineState;
use sidebike::wire::task::{ExecutionState, Mode};
use std::sync::Arc;

/// How long to wait first: until crashed machines are offline, even if their last message was delayed by a minute, until
/// all others have polled again, and until a canceled command of an agent of the original is overdue.
const SETTLED_AFTER: Ms = 260_000;
/// How long a command of the last tasks may run.
const TIMEOUT: Ms = 20_000;
/// Until when it must have started everywhere: the original's agents ask every 10 s.
const STARTED_WITHIN: Ms = 1_000;
const ENDED_WITHIN: Ms = TIMEOUT + 5_000 + 15_000;

impl World {
    pub fn a_new_task_runs_at_once_everywhere(&mut self) -> Lawful {
        for agent in &mut self.agents {
            agent.forgotten = 0;
        }
        self.live_until(self.now.max(self.stopped_until) + SETTLED_AFTER)?;
        let online = self
            .server
            .core
            .machine_states()
            .filter(|(_, state)| *state == MachineState::Online);
        let online = online.count();
        let task = self.submit_last(Mode::All)?;
        self.live_until(self.now + STARTED_WITHIN)?;
        self.ran_well(task, online, true)?;
        self.live_until(self.now + ENDED_WITHIN)?;
        self.ran_well(task, online, false)?;
        if online > 0 {
            let task = self.submit_last(Mode::Any)?;
            self.live_until(self.now + ENDED_WITHIN)?;
            self.ran_well(task, 1, false)?;
        } else {
            let all = Selection::All;
            let canceled = self
                .server
                .core
                .cancel(self.clock.read(self.now), task, &all);
            canceled.map_err(|refusal| format!("a waiting task can be canceled: {refusal:?}"))?;
        }
        Ok(())
    }

    fn live_until(&mut self, time: Ms) -> Lawful {
        while self.now < time {
            self.step()?;
        }
        Ok(())
    }

    /// Under an id that may have been used before.
    fn submit_last(&mut self, mode: Mode) -> Lawful<TaskKey> {
        let id = format!("job-{}", self.rng.between(0, 9));
        if let Ok(old) = self.server.core.find_task(&id) {
            // Refused if there are no debts.
            let _ = self.forgive(old, &Selection::All);
            let deleted = self.server.core.delete(old);
            // A debt that was settled may have kept it until now.
            let is_gone = self.server.core.show(old).is_err();
            let deleted = if is_gone { Ok(()) } else { deleted };
            deleted.map_err(|refusal| format!("what has ended can be deleted: {refusal:?}"))?;
        }
        let mut spec = self.new_spec(".*");
        spec.id = Some(id.into());
        (spec.mode, spec.late_join, spec.retry) = (mode, false, None);
        spec.ttl = TimeSpan::from_secs(120);
        spec.result_ttl = TimeSpan::from_secs(600);
        spec.failure_ttl = TimeSpan::from_secs(600);
        let mut detail = (*spec.detail).clone();
        detail.timeout = Some(Timeout::After(TimeSpan::from_millis(TIMEOUT)));
        // Whatever its version, each agent can run it.
        (detail.env, detail.user, detail.merge_output) = (None, None, None);
        (detail.undo, spec.files) = (None, None);
        spec.detail = Arc::new(detail);
        let task = self.submit(spec)?.ok_or("the last task is refused")?;
        self.see_to_notices()?;
        Ok(task)
    }

    fn ran_well(&self, key: TaskKey, machines: usize, started_is_enough: bool) -> Lawful {
        let task = self
            .server
            .core
            .show(key)
            .map_err(|refusal| format!("{refusal:?}"))?;
        let executions: Vec<_> = task.execution_views().collect();
        let well = executions.iter().filter(|e| match e.state {
            ExecutionState::Succeeded | ExecutionState::Failed | ExecutionState::TimedOut => true,
            ExecutionState::Delivered | ExecutionState::Running => started_is_enough,
            ExecutionState::Queued => {
                started_is_enough && e.instance.is_some_and(|i| i.starts_with("original"))
            }
            _ => false,
        });
        if well.count() == executions.len() && executions.len() == machines {
            return Ok(());
        }
        Err(format!(
            "a_new_task_runs_at_once_everywhere: {} of {machines}: {executions:?}",
            task.id
        ))
    }
}
