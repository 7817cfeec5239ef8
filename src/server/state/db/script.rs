//! What every engine has to do: one script of operations, run against each.

use super::{CommitNumber, Committed, LeaderRecord, Model, RedbFile, StorageEngine, Term};
use crate::core::{
    Batch, Core, Limits, OutputChange, OutputKey, Saved, SavedPiece, ScheduleKey, Spec, TaskKey,
    Time,
};
use crate::wire::agent::Stream;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::sync::Arc;

fn record<T: DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).expect("a record")
}

const INSTANCE: &str = "0123456789abcdef";

/// The records of a machine that has two tasks.
fn tasks_of_a_machine() -> Batch {
    let mut core = Core::new(Limits::NONE, Time(1_000));
    core.record_changes();
    let poll = record(json!({"instance": INSTANCE, "seq": 1, "label": "m1", "jobs": 4}));
    core.poll(Time(1_000), &poll, None).expect("it may poll");
    for id in ["first", "second"] {
        let posted = record(json!({"machinePattern": "m", "detail": {"command": "true"}}));
        let spec = Spec::checked(posted, &Limits::NONE.texts, |_| None).expect("a task");
        core.submit(Time(1_000), id, spec).expect("there is room");
    }
    let batch = core.take_batch();
    assert!(!batch.tasks.is_empty() && !batch.executions.is_empty() && !batch.machines.is_empty());
    batch
}

fn piece(data: &[u8]) -> SavedPiece {
    SavedPiece {
        stream: Stream::Stdout,
        offset: 0,
        data: data.to_vec(),
    }
}

/// A record of each other kind.
fn others() -> Batch {
    let mut batch = Batch {
        halt: Some(Some(record(
            json!({"reason": "stop", "since": 1_000, "all": true}),
        ))),
        suspensions: Some(record(json!({"list": []}))),
        next_schedule: 5,
        next_task: 7,
        away_ms: Some(9),
        ..Batch::default()
    };
    for name in ["kept", "removed"] {
        let limit = record(json!({"running": 3}));
        batch.limits.insert(name.into(), Some(limit));
    }
    for number in [1, 2] {
        let notification = record(json!({"nth": 0, "event": "ended", "id": "id", "url": "u",
            "place": "p", "state": "pending", "tries": 0, "next_try": 0}));
        batch.notifications.insert(number, Some(notification));
    }
    for number in [3, 4] {
        let task = json!({"machinePattern": "m", "detail": {"command": "true"}});
        let posted = record(json!({"cron": "0 * * * *", "task": task}));
        let progress = record(json!({"id": "s", "seed": "s", "first": 1, "created_at": 1,
            "position": 1}));
        let key = ScheduleKey(number);
        batch.schedules.insert(key, Some(Arc::new(posted)));
        batch.progress.insert(key, progress);
    }
    batch
}

/// Removes one record of each kind.
fn removals(task: TaskKey) -> Batch {
    let mut batch = Batch {
        halt: Some(None),
        ..Batch::default()
    };
    batch.tasks.insert(task, None);
    batch.machines.insert(INSTANCE.into(), None);
    batch.limits.insert("removed".into(), None);
    batch.notifications.insert(1, None);
    batch.schedules.insert(ScheduleKey(3), None);
    batch
}

/// What an engine has to have.
struct Expected(Saved);

impl Expected {
    fn apply(&mut self, now: u64, batch: &Batch) {
        self.0.apply(Time(now), batch);
    }

    fn check(&self, engine: &mut dyn StorageEngine) {
        let lines = |saved: &Saved| {
            let mut saved = saved.clone();
            // Only the order within an attempt counts.
            saved.output.sort_by_key(|(key, _)| *key);
            format!("{saved:#?}")
        };
        let loaded = lines(&engine.load().expect("it can be read"));
        let expected = lines(&self.0);
        let mut pairs = loaded.lines().zip(expected.lines());
        assert_eq!(pairs.find(|(is, ought)| is != ought), None);
        assert_eq!(loaded.len(), expected.len());
    }
}

/// The leader record, after a take, a commit or a resignation.
fn look(engine: &mut dyn StorageEngine) -> Result<LeaderRecord, String> {
    engine.look().map(|seen| seen.record)
}

/// The leader record. Somebody leads in this term, and has come so far.
fn led(engine: &mut dyn StorageEngine, term: u64, beat: u64) -> LeaderRecord {
    let record = look(engine).expect("it can be read");
    assert_eq!((record.term, record.beat), (Term(term), beat));
    assert!(record.holder.is_some(), "nobody leads");
    record
}

/// A commit of a term, for an engine that has never gone back.
fn commit(term: u64, n: u64) -> CommitNumber {
    CommitNumber {
        term: Term(term),
        n,
        after: 0,
    }
}

/// Runs the script against an empty engine. Each connection is of a server that can be reached at `address`. `reopen`
/// closes a connection to it and opens another.
pub fn run(
    address: Option<&str>,
    mut engine: Box<dyn StorageEngine>,
    reopen: impl Fn(Box<dyn StorageEngine>) -> Box<dyn StorageEngine>,
) {
    let mut expected = Expected(Saved::default());
    let tasks = tasks_of_a_machine();
    let keys: Vec<TaskKey> = tasks.tasks.keys().copied().collect();
    let output_of = |task: TaskKey, attempt: u32| OutputKey {
        task,
        n: 0,
        attempt,
    };

    // Nobody has ever led.
    let nobody = LeaderRecord::default();
    let first = engine.look().expect("it can be read");
    assert_eq!((first.record, first.address), (nobody, None));
    let early = engine.commit(commit(0, 1), Time(1), &tasks);
    assert_eq!(early, Committed::Fenced);
    assert_eq!(look(&mut *engine), Ok(nobody));

    // A take needs the latest look.
    assert_eq!(engine.take(&nobody), Ok(Some(Term(1))));
    let before = led(&mut *engine, 1, 0);
    let seen = engine.look().expect("it can be read");
    assert_eq!(seen.address.as_deref(), address);
    assert_eq!(
        (seen.registry, &seen.secret),
        (first.registry, &first.secret)
    );
    assert_eq!(engine.take(&nobody), Ok(None));
    assert_eq!(look(&mut *engine), Ok(before));
    expected.check(&mut *engine);

    // What was committed is loaded.
    let done = engine.commit(commit(1, 1), Time(2_000), &tasks);
    assert_eq!(done, Committed::Done);
    expected.apply(2_000, &tasks);
    expected.check(&mut *engine);
    assert_eq!(engine.take(&before), Ok(None), "it has moved since");

    // The same number again changes nothing.
    let mut more = others();
    for key in &keys {
        for (attempt, data) in [(1, "one"), (2, "two"), (1, "three")] {
            let appended = OutputChange::Appended(piece(data.as_bytes()));
            more.output.push((output_of(*key, attempt), appended));
        }
    }
    for _ in 0..2 {
        let done = engine.commit(commit(1, 2), Time(3_000), &more);
        assert_eq!(done, Committed::Done);
        led(&mut *engine, 1, 2);
    }
    expected.apply(3_000, &more);
    expected.check(&mut *engine);

    // An empty commit shows that the leader lives.
    let done = engine.commit(commit(1, 3), Time(4_000), &Batch::default());
    assert_eq!(done, Committed::Done);
    expected.apply(4_000, &Batch::default());
    expected.check(&mut *engine);

    // Another takes the lead: the earlier term is fenced.
    let seen = led(&mut *engine, 1, 3);
    assert_eq!(engine.take(&seen), Ok(Some(Term(2))));
    let mut unwanted = removals(keys[1]);
    unwanted.next_task = 99;
    for n in [1, 4] {
        let fenced = engine.commit(commit(1, n), Time(9_000), &unwanted);
        assert_eq!(fenced, Committed::Fenced);
    }
    led(&mut *engine, 2, 0);
    expected.check(&mut *engine);
    let never = engine.commit(commit(9, 1), Time(9_000), &unwanted);
    assert_eq!(never, Committed::Fenced);
    expected.check(&mut *engine);

    // Numbers may be left out; a commit that comes after a higher one changes nothing.
    let removed = removals(keys[0]);
    let done = engine.commit(commit(2, 3), Time(5_000), &removed);
    assert_eq!(done, Committed::Done);
    expected.apply(5_000, &removed);
    let late = engine.commit(commit(2, 2), Time(5_000), &unwanted);
    assert_eq!(late, Committed::Done);
    let before = led(&mut *engine, 2, 3);
    expected.check(&mut *engine);

    // The engine is asked for commits that it does not have: it changes nothing until it is told to go on from there.
    let lost = CommitNumber {
        after: 7,
        ..commit(2, 8)
    };
    let back = engine.commit(lost, Time(9_000), &unwanted);
    assert_eq!(back, Committed::WentBack(3));
    assert_eq!(led(&mut *engine, 2, 3), before);
    expected.check(&mut *engine);
    let anew = CommitNumber {
        after: 3,
        ..commit(2, 9)
    };
    let done = engine.commit(anew, Time(0), &Batch::default());
    assert_eq!(done, Committed::Done);
    expected.apply(0, &Batch::default());
    let before = led(&mut *engine, 2, 9);
    expected.check(&mut *engine);

    // Only who leads can resign; whoever has resigned is fenced.
    assert_eq!(engine.resign(Term(1)), Ok(()));
    assert_eq!(look(&mut *engine), Ok(before));
    assert_eq!(engine.resign(Term(2)), Ok(()));
    let seen = engine.look().expect("it can be read");
    assert_eq!((seen.address, &seen.secret), (None, &first.secret));
    let resigned = seen.record;
    assert_eq!((resigned.term, resigned.holder), (Term(2), None));
    let fenced = engine.commit(commit(2, 10), Time(9_000), &unwanted);
    assert_eq!(fenced, Committed::Fenced);
    assert_eq!(engine.take(&before), Ok(None), "it has resigned since");
    assert_eq!(engine.take(&resigned), Ok(Some(Term(3))));
    expected.check(&mut *engine);

    // Output is replaced, and added to again.
    let key = output_of(keys[1], 1);
    let replaced = Batch {
        output: vec![
            (key, OutputChange::Replaced(vec![piece(b"four")])),
            (key, OutputChange::Appended(piece(b"five"))),
        ],
        ..Batch::default()
    };
    let done = engine.commit(commit(3, 1), Time(6_000), &replaced);
    assert_eq!(done, Committed::Done);
    expected.apply(6_000, &replaced);
    expected.check(&mut *engine);

    // All of it is there after a reopening, and a term belongs to the connection that took it.
    let before = led(&mut *engine, 3, 1);
    engine = reopen(engine);
    assert_eq!(look(&mut *engine), Ok(before));
    expected.check(&mut *engine);
    expected.check(&mut *engine);
    let fenced = engine.commit(commit(3, 2), Time(9_000), &unwanted);
    assert_eq!(fenced, Committed::Fenced);
    assert_eq!(engine.resign(Term(3)), Ok(()));
    assert_eq!(look(&mut *engine), Ok(before));
    assert_eq!(engine.take(&before), Ok(Some(Term(4))));
    assert_ne!(led(&mut *engine, 4, 0).holder, before.holder);
    let appended = Batch {
        output: vec![(key, OutputChange::Appended(piece(b"six")))],
        ..Batch::default()
    };
    let done = engine.commit(commit(4, 1), Time(7_000), &appended);
    assert_eq!(done, Committed::Done);
    expected.apply(7_000, &appended);
    expected.check(&mut *engine);

    // The same without a load before the first commit.
    engine = reopen(engine);
    let seen = led(&mut *engine, 4, 1);
    assert_eq!(engine.take(&seen), Ok(Some(Term(5))));
    let done = engine.commit(commit(5, 1), Time(8_000), &appended);
    assert_eq!(done, Committed::Done);
    expected.apply(8_000, &appended);
    expected.check(&mut *engine);
}

#[test]
fn the_model_keeps_every_promise() {
    let model = Model::default().with_address("https://a:9410");
    run(Some("https://a:9410"), Box::new(model.connect()), |_| {
        Box::new(model.connect())
    });
}

#[test]
fn a_file_of_redb_keeps_every_promise() {
    let name = format!("sidebike-script-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let open = || -> Box<dyn StorageEngine> { Box::new(RedbFile::open(&path).expect("it opens")) };
    run(None, open(), |before| {
        drop(before);
        open()
    });
    std::fs::remove_file(&path).expect("it is there");
}
