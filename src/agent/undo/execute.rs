//! Running undos in the agent's threads: that of a command that has ended, and those that the server orders.

use super::exclusion::Exclusion;
use super::machine::Event;
use super::plan::UndoPlan;
use super::run::{self, Observer};
use crate::agent::attempt::{Attempt, Outcome, StopReason};
use crate::agent::processes::guard::report::Destination;
use crate::agent::processes::guard::{self, Loss};
use crate::agent::reporter;
use crate::agent::shared::{Agent, Task};
use crate::agent::state::UndoJob;
use crate::agent::undo::ledger::new_report;
use crate::wire::agent::AttemptId;
use crate::wire::undo::{UndoBy, UndoReason, UndoReport, UndoState};
use log::{info, warn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Tells the server and the guard how an undo goes.
struct Told<'a> {
    agent: &'a Agent,
    key: &'a str,
}

impl Observer for Told<'_> {
    fn changed(&mut self, report: &UndoReport) {
        self.agent.state.note_undo(report.clone());
    }

    fn tick(&mut self) {
        let guard = self.agent.runner.guard();
        guard.undoing(self.key);
        guard.contact(self.agent.state.contact.age());
    }
}

impl Agent {
    /// Has the guard know where to report, and this agent act when the guard cannot.
    pub fn connect_guard(self: &Arc<Self>) {
        let guard = self.runner.guard();
        let (client, ca) = (self.client.clone(), self.config.registry.ca.clone());
        // The guard has another folder.
        let ca = ca.map(|ca| std::path::absolute(&ca).unwrap_or(ca));
        guard.report_to(move || Destination::of(&client, ca.clone()));
        let agent = Arc::downgrade(self);
        guard.on_loss(move |key, loss| {
            let reason = match loss {
                Loss::Unguarded => StopReason::Unguarded,
                Loss::TakenOver => StopReason::TakenOver,
            };
            if let Some(agent) = agent.upgrade() {
                agent.state.stop_with_key(key, reason);
            }
        });
    }

    /// Undoes an attempt whose command has ended with this outcome. Both results are reported together.
    pub fn undo_attempt(self: &Arc<Self>, attempt: &Attempt, outcome: Outcome) {
        let report = match attempt.take_plan(outcome.exit_code) {
            Some(plan) => self.run_undo(&plan, Exclusion::take),
            // Only a bug leads here: no command starts before its plan is kept.
            None => failed(attempt.id.clone(), "its undo is not known"),
        };
        attempt.advance(Event::Undone(report.state));
        let outcome = self.settle_files(attempt, None, outcome);
        self.state.undone(attempt, outcome, report);
    }

    /// Undoes an attempt once more: its start was left alone and its undo has been begun, and after that its command was
    /// started all the same, and killed.
    pub fn undo_late_start(&self, attempt: &Attempt, mut plan: UndoPlan) {
        let reason = attempt.stop_reason().map(StopReason::undo_reason);
        plan.because(reason.unwrap_or(UndoReason::TimedOut));
        guard::end_present(&plan.key);
        let report = self.run_undo(&plan, Exclusion::take);
        self.state.note_undo(report);
        self.state.result_ready();
    }

    /// Has another thread run an undo that the server orders. Whether it will.
    pub fn start_undo(self: &Arc<Self>, job: UndoJob) -> bool {
        if !self.state.accept_undo(&job) {
            return false;
        }
        let id = id(&job);
        let started = self.submit(Task::Undo(Box::new(job)));
        if let Err(back) = &started {
            warn!("cannot start a thread for an undo: {}", back.1);
            self.state.undo_not_begun(&id);
        }
        started.is_ok()
    }

    /// Runs an undo that the server has ordered, and has its end reported.
    pub fn undo_order(self: &Arc<Self>, job: UndoJob) {
        let id = id(&job);
        let run = || match self.runner.plan_order(&job, &self.state.instance()) {
            Ok(plan) => {
                if let Err(why) = self.runner.guard().arm(&plan) {
                    // It has to be run all the same.
                    warn!("the guard does not know of an undo that runs: {why}");
                }
                // Agent and guard that began it may both have been killed, and left the command. Whoever has the name is
                // at work on it.
                self.run_undo(&plan, Exclusion::take_over)
            }
            Err(why) => UndoReport {
                reason: Some(job.reason),
                ..failed(id.clone(), &why)
            },
        };
        let report = catch_unwind(AssertUnwindSafe(run))
            .unwrap_or_else(|_| failed(id.clone(), "the agent failed to run it (a bug)"));
        self.state.note_undo(report);
        let reported = catch_unwind(AssertUnwindSafe(|| reporter::report(self)));
        match reported {
            Ok(runnable) => runnable.into_iter().for_each(|it| self.start(it)),
            Err(_) => self.state.result_ready(),
        }
    }

    /// Runs an undo to its end, and disarms the guard. `take` keeps others from it, after the guard has had its turn.
    fn run_undo(&self, plan: &UndoPlan, take: fn(&str) -> Option<Exclusion>) -> UndoReport {
        let (execution, attempt) = (&plan.id.execution, plan.id.attempt);
        let reason = plan.reason.map_or("", |reason| reason.word());
        info!("{execution} (attempt {attempt}): undoing it ({reason})");
        let guard = self.runner.guard();
        guard.undoing(&plan.key);
        if let (Some(_), Some(reason)) = (plan.command_timeout, plan.reason) {
            guard.ended(&plan.key, reason, plan.exit_code);
        }
        let pipes = self.runner.orphaned_pipes();
        let mut told = Told {
            agent: self,
            key: &plan.key,
        };
        let run = || {
            // If the guard has taken it over meanwhile, it is done or about to be.
            guard
                .wait_until_undone(plan)
                .unwrap_or_else(|| run::run(plan, UndoBy::Agent, pipes, &mut told, take(&plan.key)))
        };
        // A bug in there must not cost the agent the report.
        let report = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| UndoReport {
            reason: plan.reason,
            ..failed(plan.id.clone(), "the agent failed to run it (a bug)")
        });
        guard.disarm(&plan.key);
        let tries = report.tries;
        match report.state {
            UndoState::Done => info!("{execution} (attempt {attempt}): undone, tries: {tries}"),
            _ => warn!(
                "{execution} (attempt {attempt}): NOT UNDONE, tries: {tries}: {}",
                report.msg
            ),
        }
        report
    }
}

fn id(job: &UndoJob) -> AttemptId {
    AttemptId {
        execution: job.execution.clone(),
        attempt: job.attempt,
    }
}

/// The report of an undo that could not be tried.
fn failed(id: AttemptId, why: &str) -> UndoReport {
    UndoReport {
        msg: why.to_owned(),
        began_ago_ms: Some(0),
        ended_ago_ms: Some(0),
        ..new_report(id, UndoState::Failed)
    }
}
