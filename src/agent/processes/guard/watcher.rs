//! The thread of the agent that reads the answers of its guard, and has another guard started when it is gone.

use super::client::{ARM_TIMEOUT, Loss};
use super::connection::{Armed, FULL_PIPE_PERIOD, Hook, Shared, State, wait_for};
use super::record::{Answer, MAX_ANSWER_BYTES, Records};
use crate::agent::attempt::lock;
use crate::agent::processes::pipe_drain::PipeSender;
use log::warn;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Instant;

/// The stack of the thread that reads answers, in bytes.
const STACK_BYTES: usize = 128 << 10;

impl Shared {
    /// Has a thread read the answers of the guard, if none does. What is armed has to be acknowledged until
    /// `rearmed_by`, if the guard took the place of another one.
    pub fn watch(
        shared: &Arc<Shared>,
        state: &mut State,
        rearmed_by: Option<Instant>,
    ) -> Result<(), String> {
        let Some(process) = &mut state.process else {
            return Err("there is no guard, and none can be started".into());
        };
        if !std::mem::take(&mut process.is_unread) {
            return Ok(());
        }
        let watcher = Watcher {
            shared: Arc::clone(shared),
            socket: Arc::clone(&process.socket),
            generation: process.generation,
            rearmed_by,
        };
        let started = std::thread::Builder::new()
            .name("guard".into())
            .stack_size(STACK_BYTES)
            .spawn(move || watcher.run());
        match started {
            Ok(_) => Ok(()),
            Err(why) => {
                // Without its answers nothing can be armed with it.
                state.end_process(&format!("no thread is left for its answers ({why})"));
                state.start_process();
                Err(format!("no thread is left for the guard: {why}"))
            }
        }
    }

    /// Takes an answer of the guard of this generation.
    pub fn answered(&self, answer: Answer, generation: u64) {
        let mut state = lock(&self.state);
        let mut taken_over = None;
        match answer {
            Answer::Armed(key) => {
                if let Some(armed) = state.armed.get_mut(&key) {
                    armed.acknowledged = Some(generation);
                }
            }
            Answer::Refused(key, why) => {
                if let Some(armed) = state.armed.get_mut(&key) {
                    armed.refused = Some(why);
                }
            }
            Answer::TakenOver(key, was_started) => {
                if let Some(armed) = state.armed.get_mut(&key) {
                    armed.taken_over = Some(was_started);
                    taken_over = Some(key);
                }
            }
            Answer::Undone(key, report) => {
                if let Some(armed) = state.armed.get_mut(&key) {
                    armed.report = Some(*report);
                }
            }
        }
        let hook = state.hook.clone();
        drop(state);
        self.answered.notify_all();
        if let (Some(key), Some(hook)) = (taken_over, hook) {
            hook(&key, Loss::TakenOver);
        }
    }
}

/// Reads the answers of one guard.
struct Watcher {
    shared: Arc<Shared>,
    socket: Arc<PipeSender>,
    generation: u64,
    /// Until when the guard has to acknowledge everything that is armed; none once it has.
    rearmed_by: Option<Instant>,
}

impl Watcher {
    /// Reads until the guard is gone, and has another one started.
    fn run(mut self) {
        let mut records = Records::default();
        let mut buffer = [0; MAX_ANSWER_BYTES];
        loop {
            self.check_rearmed();
            match self.rearmed_by {
                Some(_) if !wait_for(&*self.socket, PollFlags::IN, FULL_PIPE_PERIOD) => continue,
                _ => {}
            }
            match rustix::io::read(&*self.socket, &mut buffer[..]) {
                Ok(read @ 1..) => records.push(&buffer[..read]),
                Err(Errno::INTR) => continue,
                Ok(_) | Err(_) => break,
            }
            while let Ok(Some(record)) = records.take() {
                if let Some(answer) = Answer::decode(record) {
                    self.shared.answered(answer, self.generation);
                }
            }
        }
        self.replace();
    }

    /// Tells the agent of what a guard that took the place of another one has not acknowledged in time.
    fn check_rearmed(&mut self) {
        let Some(deadline) = self.rearmed_by else {
            return;
        };
        let mut state = lock(&self.shared.state);
        self.shared.flush(&mut state);
        let is_missing =
            |armed: &Armed| armed.acknowledged != Some(self.generation) && armed.report.is_none();
        let missing: Vec<String> = { state.armed.iter() }
            .filter(|(_, armed)| is_missing(armed))
            .map(|(key, _)| key.clone())
            .collect();
        if !missing.is_empty() && Instant::now() < deadline {
            return;
        }
        self.rearmed_by = None;
        let hook = state.hook.clone();
        drop(state);
        unguarded(hook, &missing);
    }

    /// The guard is gone: starts another one.
    fn replace(self) {
        let mut state = lock(&self.shared.state);
        if state
            .process
            .as_ref()
            .is_some_and(|process| process.generation == self.generation)
        {
            state.end_process("it has ended");
        }
        if state.process.is_none() {
            state.start_process();
        }
        let deadline = Instant::now() + ARM_TIMEOUT;
        let lost: Vec<String> = match Shared::watch(&self.shared, &mut state, Some(deadline)) {
            Ok(()) => {
                self.shared.flush(&mut state);
                Vec::new()
            }
            Err(why) => {
                warn!("{why}");
                state.armed.keys().cloned().collect()
            }
        };
        let hook = state.hook.clone();
        drop(state);
        self.shared.answered.notify_all();
        unguarded(hook, &lost);
    }
}

/// Tells the agent of attempts that no guard would undo.
fn unguarded(hook: Option<Hook>, keys: &[String]) {
    for key in keys {
        warn!("the guard does not know of an undo any more: ending the command with the key {key}");
        if let Some(hook) = &hook {
            hook(key, Loss::Unguarded);
        }
    }
}
