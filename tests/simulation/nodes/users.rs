//! Users that submit, cancel and read, each time at one of the servers.

use super::laws::Facts;
use super::serving::{Asked, Reply};
use super::{Broken, Event, Lawful, NODES, Scene};
use crate::users::base_spec;
use serde_json::json;
use sidebike::core::{Core, Selection, Spec, TaskKey, Time};
use sidebike::server::db::election::Role;
use sidebike::wire::duration::{TimeSpan, Timeout};
use sidebike::wire::task::{ExecutionState, Mode};
use std::sync::Arc;

/// Finished tasks outlast a seed.
const KEPT: TimeSpan = TimeSpan::from_secs(86_400);

#[derive(Debug, Clone, Copy)]
pub enum UserCall {
    Submit,
    Cancel,
    Read,
}

/// What a user is told.
pub enum Said {
    Submitted {
        key: TaskKey,
        id: String,
    },
    /// The executions that had not been handed out: by number, with their attempt.
    Canceled {
        id: String,
        is_whole: bool,
        never: Vec<(u32, u32)>,
    },
    /// And whether it lacks something that somebody had been told before.
    Read(Facts, Lawful),
}

impl Said {
    pub fn is_read(&self) -> bool {
        matches!(self, Said::Read(..))
    }
}

impl Scene {
    /// A user asks a node.
    pub fn user(&mut self) -> Lawful {
        if self.is_over {
            return Ok(());
        }
        let pause = self.rng.between(200, 2_000);
        self.after(pause, Event::User);
        let at = self.rng.between(0, NODES - 1) as usize;
        let call = match self.rng.between(0, 99) {
            0..35 => UserCall::Submit,
            35..50 => UserCall::Cancel,
            _ => UserCall::Read,
        };
        let node = &self.nodes[at];
        // People know no terms: no rule protects their reads from a server that was frozen with its clock.
        let is_exposed = node.was_frozen && matches!(call, UserCall::Read);
        match node.is_up && !node.is_paused && !is_exposed {
            true => self.serve(at, Asked::User(call)),
            false => Ok(()),
        }
    }

    pub fn serve_user(&mut self, at: usize, call: UserCall) -> Lawful {
        let node = &self.nodes[at];
        if node.elector.role() != Role::Leader {
            return Ok(());
        }
        let is_mute = !node.trusts_itself(self.now, self.broken);
        if is_mute {
            self.count("a leader was mute");
        }
        match call {
            UserCall::Submit => self.submit_something(at).map(|_| ()),
            UserCall::Cancel => self.cancel_something(at),
            UserCall::Read => self.read_everything(at),
        }
    }

    fn submit_something(&mut self, at: usize) -> Lawful {
        let rng = &mut self.rng;
        let pattern = rng.pick(&[".*", "web", "db", "nobody"]);
        let mode = rng.pick(&["all", "any", "any"]);
        let mut posted = json!({"mode": mode});
        if rng.chance(300) {
            let on = rng.pick(&["failed", "lost"]);
            posted["retry"] = json!({"max": 1, "on": [on]});
        }
        let posted = posted.as_object().cloned().unwrap_or_default();
        let mut spec = base_spec(pattern, posted);
        spec.ttl = TimeSpan::from_millis(rng.pick(&[3_000, 20_000, 60_000]));
        let longest = Timeout::After(TimeSpan::from_millis(rng.between(500, 30_000)));
        let timeout = rng.pick(&[longest, Timeout::After(TimeSpan::from_secs(90))]);
        self.submit(at, spec, timeout).map(|_| ())
    }

    /// Returns the id of the task.
    pub fn submit(&mut self, at: usize, mut spec: Spec, timeout: Timeout) -> Lawful<String> {
        let id = format!("t{}", self.number());
        (spec.result_ttl, spec.failure_ttl) = (KEPT, KEPT);
        let mut detail = (*spec.detail).clone();
        detail.timeout = Some(timeout);
        detail.kill_grace = Some(TimeSpan::from_millis(500));
        spec.detail = Arc::new(detail);
        let is_once = spec.mode == Mode::Any && spec.retry.is_none();
        self.note(|| format!("a user submits {id} to node {at}, once: {is_once}"));
        let (core, now) = self.core_of(at);
        let submitted = core.submit(now, &id, spec);
        let key = submitted.map_err(|refusal| format!("a good task is refused: {refusal:?}"))?;
        self.laws.submitted(&id, is_once);
        self.count("task submitted");
        let said = Said::Submitted {
            key,
            id: id.clone(),
        };
        self.changed(at, said)?;
        Ok(id)
    }

    fn cancel_something(&mut self, at: usize) -> Lawful {
        let draw = self.rng.between(0, 5) as usize;
        let (core, now) = self.core_of(at);
        let open = core
            .tasks_by_key()
            .filter(|(key, _)| !core.is_finished(*key));
        let mut open: Vec<TaskKey> = open.map(|(key, _)| key).collect();
        open.reverse();
        let Some(key) = open.get(draw % open.len().max(1)).copied() else {
            return Ok(());
        };
        let views = |core: &Core| -> Vec<(u32, u32, ExecutionState)> {
            let task = core.show(key).expect("it was there");
            { task.execution_views() }
                .map(|e| (e.n, e.attempt, e.state))
                .collect()
        };
        let before = views(core);
        if core.cancel(now, key, &Selection::All).is_err() {
            return Ok(());
        }
        let after = views(core);
        let waited =
            |(before, after): &(&(u32, u32, ExecutionState), &(u32, u32, ExecutionState))| {
                before.2 == ExecutionState::Queued && after.2 == ExecutionState::Canceled
            };
        let never = before.iter().zip(&after).filter(waited);
        let never = never.map(|(_, (n, attempt, _))| (*n, *attempt)).collect();
        let task = core.show(key).expect("it was there");
        let (id, is_whole) = (task.id.to_string(), task.is_canceled());
        self.count("task canceled");
        let said = Said::Canceled {
            id,
            is_whole,
            never,
        };
        self.changed(at, said)
    }

    fn read_everything(&mut self, at: usize) -> Lawful {
        let (core, _) = self.core_of(at);
        let facts = Facts::of_core(core);
        let is_complete = self.laws.reads_never_go_back(at, &facts);
        let reply = Reply::User(Said::Read(facts, is_complete));
        match self.breaks(Broken::ReadsWaitForTheirCommit) {
            true => self.reply(at, reply),
            false => self.reply_when_saved(at, reply),
        }
    }

    fn core_of(&mut self, at: usize) -> (&mut Core, Time) {
        let node = &mut self.nodes[at];
        let clock = node.clock(self.now);
        let registry = node.registry.as_mut().expect("it leads");
        let now = registry.time(clock);
        (&mut registry.core, now)
    }

    /// A change is acknowledged once it is saved.
    fn changed(&mut self, at: usize, said: Said) -> Lawful {
        let node = &mut self.nodes[at];
        let clock = node.clock(self.now);
        let registry = node.registry.as_mut().expect("it leads");
        registry.gather_changes(clock);
        self.reply_when_saved(at, Reply::User(said))
    }

    pub fn user_is_told(&mut self, said: Said) -> Lawful {
        match said {
            Said::Submitted { id, .. } => {
                self.count("a task was acknowledged");
                self.laws.said_submitted(id);
            }
            Said::Canceled {
                id,
                is_whole,
                never,
            } => {
                self.count("a cancel was acknowledged");
                self.laws.said_canceled(id, is_whole, &never);
            }
            Said::Read(facts, is_complete) => {
                is_complete?;
                self.count("tasks were read");
                self.laws.said(facts);
            }
        }
        Ok(())
    }
}
