//! Commands that survived KILL, because they hang in the kernel or belong to another user: their results are
//! reported, and one thread, started when it is first needed, reaps them when they end after all.

use crate::agent::attempt::lock;
use crate::agent::processes::guard::Guard;
use log::{info, warn};
use std::process::Child;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Commands that are waited for, in number. More stay zombies when they end.
const MAX_SURVIVORS: usize = 1_000;
/// The stack of the thread, in bytes.
const STACK_BYTES: usize = 128 * 1024;
/// How often the thread looks whether one has ended.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// The commands, and the thread that reaps them.
#[derive(Debug)]
pub struct Survivors {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    guard: Arc<Guard>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Each with the key by which the guard has it on its list, if it has.
    commands: Vec<(Child, Option<String>)>,
    is_running: bool,
}

impl Survivors {
    /// No commands, and no thread.
    pub fn new(guard: Arc<Guard>) -> Self {
        Survivors {
            shared: Arc::new(Shared {
                guard,
                state: Mutex::default(),
            }),
        }
    }

    /// Adds a command. If the guard has it on its list, by this key, it stays there until it has ended.
    pub fn add(&self, child: Child, key: Option<String>) {
        let mut state = lock(&self.shared.state);
        if state.commands.len() >= MAX_SURVIVORS {
            drop(state);
            warn!(
                "process {} stays a zombie when it ends: there are too many",
                child.id()
            );
            return;
        }
        state.commands.push((child, key));
        if state.is_running {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new()
            .name("survivors".into())
            .stack_size(STACK_BYTES)
            .spawn(move || wait(&shared));
        // Where none can be started, the next call tries again.
        state.is_running = started.is_ok();
    }
}

/// Looks until every command has ended.
fn wait(shared: &Shared) {
    loop {
        std::thread::sleep(LOOK_PERIOD);
        let mut ended = Vec::new();
        let mut state = lock(&shared.state);
        state.commands.retain_mut(|(child, key)| {
            let lives = matches!(child.try_wait(), Ok(None));
            if !lives {
                ended.push((child.id(), std::mem::take(key)));
            }
            lives
        });
        state.is_running = !state.commands.is_empty();
        let is_over = !state.is_running;
        drop(state);
        for (process, key) in ended {
            if let Some(key) = key {
                shared.guard.remove(&key);
            }
            info!("process {process}, which could not be ended, has ended");
        }
        if is_over {
            return;
        }
    }
}
