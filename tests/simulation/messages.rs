//! The messages of puppet agents, filled with what most of them say. A scene changes the rest by struct update.

use sidebike::wire::agent::{AttemptId, Done, Ended, Hold, HoldState, Poll};
use sidebike::wire::duration::TimeSpan;
use sidebike::wire::task::ExecutionState;

/// A poll of an agent that runs these attempts.
pub fn poll(instance: &str, seq: u64, label: &str, runs: &[AttemptId]) -> Poll {
    let hold = |id: &AttemptId| Hold {
        id: id.clone(),
        state: HoldState::Running,
        started_ago_ms: 0,
        phase: None,
    };
    Poll {
        instance: instance.into(),
        seq,
        label: label.into(),
        host: "host".into(),
        tags: Default::default(),
        version: String::new(),
        arch: String::new(),
        jobs: 2,
        draining: false,
        drained: false,
        ending: false,
        standing: false,
        wait: TimeSpan::from_secs(20),
        holds: runs.iter().map(hold).collect(),
        undos: Vec::new(),
        features: Vec::new(),
    }
}

/// The end of an attempt, in the moment in which it began.
pub fn ended(id: &AttemptId, state: ExecutionState) -> Ended {
    Ended {
        id: id.clone(),
        state,
        exit_code: None,
        signal: None,
        msg: String::new(),
        ended_ago_ms: 0,
        duration_ms: Some(0),
        stdout_bytes: 0,
        stderr_bytes: 0,
        files: Vec::new(),
    }
}

/// A report of results that asks for no more work.
pub fn done(instance: &str, results: Vec<Ended>) -> Done {
    Done {
        instance: instance.into(),
        seq: None,
        pieces: Vec::new(),
        results,
        undos: Vec::new(),
        probes: Vec::new(),
    }
}
