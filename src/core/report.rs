//! The reports of agents: output while commands run, and results.
//!
//! A report counts once, and only from the machine that was handed the attempt. For any other the agent is told
//! to kill or to forget it. To add a field of a result: set it in `end_reported`.

use super::agent::truncated;
use super::invariants::Rule;
use super::output::Output;
use super::saved::{OutputKey, SavedPiece};
use super::task::Target;
use super::{Core, ExecutionKey, Notice, Refusal, Time};
use crate::head_tail_buffer::MAX_OFFSET;
use crate::wire::agent::{AttemptId, Done, Ended, Orders, Piece, Stream, Taken, Verdict};
use crate::wire::task::{Detail, ExecutionState};
use crate::wire::undo::UndoReport;
use std::collections::HashSet;
use std::sync::Arc;

/// The longest run that is believed, in milliseconds: the longest time-out, 366 days, and a day for its end.
const MAX_DURATION_MS: u64 = 367 * 24 * 3_600 * 1_000;

/// The most pieces of output and the most results in a report: several times what an agent sends.
const MAX_PIECES: usize = 2_048;
const MAX_RESULTS: usize = 1_024;

/// Refuses a report that is longer than any agent's: it is worked off under the lock.
pub fn check_report(
    pieces: &[Piece],
    results: &[Ended],
    undos: &[UndoReport],
) -> Result<(), Refusal> {
    let lists = [
        ("pieces", pieces.len(), MAX_PIECES),
        ("results", results.len(), MAX_RESULTS),
        ("undos", undos.len(), MAX_RESULTS),
    ];
    for (field, has, most) in lists {
        if has > most {
            return Err(Refusal::Impossible(format!(
                "{field}: must have {most} entries at most, got {has}"
            )));
        }
    }
    Ok(())
}

impl Core {
    /// Stores output of running commands. Pieces of attempts that this instance does not run are dropped; the
    /// orders say which of them to kill (the outcome is decided) and which to forget (unknown here).
    pub fn output(&mut self, now: Time, instance: &str, pieces: &[Piece]) -> Orders<Arc<Detail>> {
        let mut orders = Orders::none();
        let mut listed = HashSet::new();
        self.note_contact(now, instance);
        for piece in pieces {
            self.adopt(now, instance, &piece.id, 0);
            let Ok(key) = self.active_attempt(instance, &piece.id) else {
                let is_spared = self.is_left_alone(&piece.id)
                    || self.waits_for_its_machine(instance, &piece.id);
                if !is_spared && listed.insert(&piece.id) {
                    let settled = self.find(&piece.id.execution).is_some();
                    let list = match settled {
                        true => &mut orders.cancel,
                        false => &mut orders.forget,
                    };
                    list.push(piece.id.clone());
                }
                continue;
            };
            // If the machine itself reported the end, the last output came with that report.
            if !self.execution(key).state.is_terminal() {
                self.keep_piece(key, piece);
            }
        }
        self.name_stopped(&mut orders);
        orders
    }

    fn keep_piece(&mut self, key: ExecutionKey, piece: &Piece) {
        if self.make_room_for_output(piece.data.len()) {
            self.change_output(key, |output| {
                output.write(piece.stream, piece.offset, &piece.data)
            });
            self.record_output(key, piece.stream, piece.offset, &piece.data);
        } else {
            // There is nothing left to forget: count the bytes as missing.
            let end = piece.offset.saturating_add(piece.data.len() as u64);
            let end = end.min(MAX_OFFSET);
            self.change_output(key, |output| output.skip_to(piece.stream, end));
            self.record_output(key, piece.stream, end, &[]);
        }
    }

    /// Records a piece of output to be saved.
    fn record_output(&mut self, key: ExecutionKey, stream: Stream, offset: u64, data: &[u8]) {
        if let Some(changes) = &mut self.changes {
            let attempt = &self.tasks[&key.task].executions[key.n as usize].current;
            let output_key = OutputKey::of(key, attempt.number);
            if let Some(output) = &attempt.output {
                let piece = SavedPiece {
                    stream,
                    offset,
                    data: data.to_vec(),
                };
                changes.output(output_key, piece, output);
            }
        }
    }

    /// Changes an attempt's output and updates the sums.
    fn change_output(&mut self, key: ExecutionKey, change: impl FnOnce(&mut Output)) {
        let task = super::data_mut(&mut self.tasks, key.task);
        let output = task.executions[key.n as usize]
            .current
            .output
            .get_or_insert_default();
        let output = Arc::make_mut(output);
        let before = output.kept();
        change(output);
        let after = output.kept();
        task.output_bytes = task.output_bytes + after - before;
        self.ledger.resize_output(before, after);
        self.record_change(key);
    }

    /// Processes results, with the last of their output. There is a verdict for each, and it need not be reported again;
    /// except after a loss, when a machine has to register first.
    pub fn done(
        &mut self,
        now: Time,
        instance: &str,
        pieces: &[Piece],
        results: &[Ended],
    ) -> Vec<Verdict> {
        self.adopt_ended(now, instance, results);
        self.take_results(now, instance, pieces, results)
    }

    /// Adopts what has ended since its hand-out was lost.
    fn adopt_ended(&mut self, now: Time, instance: &str, results: &[Ended]) {
        for ended in results {
            let ran = ended.duration_ms.unwrap_or_default();
            self.adopt(
                now,
                instance,
                &ended.id,
                ran.saturating_add(ended.ended_ago_ms),
            );
        }
    }

    /// The same, and hands out more work if the agent asks for that. An agent that reports a result has a
    /// free job; a second round trip for its next order would take as long as a small command.
    ///
    /// The agent asks by giving the number of its latest poll. If that is the latest here too, the agent makes
    /// every later poll only after this answer has arrived or was given up. So whatever such a poll does not
    /// list was not started, as with orders in the answer to a poll.
    pub fn done_and_next(&mut self, now: Time, done: &Done) -> Taken<Arc<Detail>> {
        self.adopt_ended(now, &done.instance, &done.results);
        let undos = self.report_undos(now, &done.instance, &done.undos);
        self.report_probes(now, &done.instance, &done.probes);
        let results = self.take_results(now, &done.instance, &done.pieces, &done.results);
        let machine = self.instances.get(&*done.instance).copied().filter(|key| {
            let machine = self.machine(*key);
            let agrees = done.seq == Some(machine.seq)
                || (done.seq.is_some() && !self.keeps(Rule::MoreOnlyAfterTheLatestPoll));
            machine.is_live() && !machine.is_original() && agrees
        });
        // Debts come first, in the answer to the next poll.
        let machine = machine.filter(|key| !self.has_undo_for(*key));
        let mut orders = Orders::none();
        if let Some(machine) = machine {
            self.deliver(now, machine, 0, &mut orders);
            if !orders.start.is_empty() {
                self.notices.push(Notice::HandedOut(machine));
            }
            self.revoke_offers(machine);
        }
        Taken {
            results,
            undos,
            start: orders.start,
        }
    }

    fn take_results(
        &mut self,
        now: Time,
        instance: &str,
        pieces: &[Piece],
        results: &[Ended],
    ) -> Vec<Verdict> {
        self.output(now, instance, pieces);
        let is_judged = |ended: &&Ended| !self.waits_for_its_machine(instance, &ended.id);
        let judged: Vec<&Ended> = results.iter().filter(is_judged).collect();
        let verdicts = judged.into_iter().map(|ended| {
            let verdict = match self.is_known_end(instance, &ended.id) {
                true => Ok(()),
                false => { self.active_attempt(instance, &ended.id) }
                    .and_then(|key| self.end_reported(now, key, ended)),
            };
            Verdict {
                id: ended.id.clone(),
                taken: verdict.is_ok(),
                msg: verdict.err().unwrap_or_default(),
            }
        });
        verdicts.collect()
    }

    fn end_reported(&mut self, now: Time, key: ExecutionKey, ended: &Ended) -> Result<(), String> {
        let execution = self.execution(key);
        if execution.state.is_terminal() {
            return Ok(()); // The report was repeated.
        }
        let state = match ended.state {
            // No user canceled it: the agent was shut down, and its command with it.
            ExecutionState::Canceled if !execution.canceling => ExecutionState::Lost,
            state @ (ExecutionState::Succeeded
            | ExecutionState::Failed
            | ExecutionState::TimedOut
            | ExecutionState::Canceled) => state,
            other => return Err(format!("state: an attempt cannot end {}", other.word())),
        };
        if let Some(ms) = ended.duration_ms {
            self.record_start(now, key, ended.ended_ago_ms.saturating_add(ms));
        }
        let room = self
            .execution(key)
            .current
            .delivered_at
            .map_or(0, |delivered| now.millis_since(delivered));
        let attempt = &mut self.execution_mut(key).current;
        attempt.reported = true;
        attempt.finished_at = Some(
            Time(now.0 - ended.ended_ago_ms.min(room)).max(attempt.started_at.unwrap_or_default()),
        );
        attempt.duration_ms = ended.duration_ms.map(|ms| ms.min(MAX_DURATION_MS));
        attempt.exit_code = ended.exit_code;
        attempt.signal = ended
            .signal
            .as_deref()
            .map(|signal| truncated(signal).into());
        self.keep_brought(key, &ended.files);
        // What is saved must have the same effect when it is read: there, too, nothing lies beyond the highest offset.
        let ends = [
            (Stream::Stdout, ended.stdout_bytes.min(MAX_OFFSET)),
            (Stream::Stderr, ended.stderr_bytes.min(MAX_OFFSET)),
        ];
        self.change_output(key, |output| {
            ends.iter()
                .for_each(|(stream, end)| output.skip_to(*stream, *end));
        });
        for (stream, end) in ends {
            self.record_output(key, stream, end, &[]);
        }
        self.end_attempt(now, key, state, truncated(&ended.msg));
        Ok(())
    }

    /// Whether this instance has reported the end of this attempt before, and another attempt followed.
    fn is_known_end(&self, instance: &str, id: &AttemptId) -> bool {
        let Some(key) = self.find(&id.execution) else {
            return false;
        };
        let own = |target: &Option<Arc<Target>>| {
            let target = target.as_ref();
            target.is_some_and(|target| *target.instance == *instance)
        };
        let mut past = self.execution(key).past.iter();
        past.any(|past| {
            past.attempt.number == id.attempt && past.attempt.reported && own(&past.target)
        })
    }

    fn note_contact(&mut self, now: Time, instance: &str) {
        if let Some(key) = self.instances.get(instance).copied() {
            let machine = self.machine_mut(key);
            machine.last_seen = now;
            machine.has_hung_up = false;
        }
    }

    /// The execution of an attempt that this instance runs, or whose end it has reported itself.
    fn active_attempt(&self, instance: &str, id: &AttemptId) -> Result<ExecutionKey, String> {
        let key = self
            .find(&id.execution)
            .ok_or("this execution is not known, or no longer")?;
        let execution = self.execution(key);
        let own = execution
            .target
            .as_ref()
            .is_some_and(|target| *target.instance == *instance);
        if !own {
            return Err("it was not handed to this instance".into());
        }
        if execution.current.number != id.attempt {
            return Err(format!(
                "attempt {} is over, this is attempt {}",
                id.attempt, execution.current.number
            ));
        }
        let waits = [ExecutionState::Held, ExecutionState::Queued];
        if waits.contains(&execution.state) {
            return Err("it was not handed out, or its hand-out did not arrive".into());
        }
        let settled = execution.state.is_terminal() && !execution.current.reported;
        if settled {
            return Err(format!(
                "it ended {}: {}",
                execution.state.word(),
                execution.current.msg
            ));
        }
        Ok(key)
    }
}
