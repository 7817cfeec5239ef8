//! PostgreSQL with a synchronous standby, as far as servers notice it. What one server does is the engine's model of
//! the crate; here are the wait for the standby, and what gets lost between the two.
//!
//! A write changes the leader record, so its row is locked until the standby has it: what comes after waits, a take for
//! [`LOCK_TIMEOUT`] only. Until then others see the record as it was. If the primary crashes, or somebody cancels the
//! wait, the change is seen although the standby does not have it; a failover then may lose it again.

use super::{Broken, Ms};
use crate::rng::Rng;
use sidebike::core::{Batch, Saved, Time};
use sidebike::server::db::model::Model;
use sidebike::server::db::{CommitNumber, Committed, Holder, LeaderRecord, StorageEngine, Term};
use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

/// How long a take waits for the row.
pub const LOCK_TIMEOUT: Ms = 2_000;

/// Whoever only looks.
const NOBODY: Holder = Holder(NonZeroU64::MAX);

/// What a server asks.
#[derive(Debug, Clone)]
pub struct Call {
    pub id: u64,
    pub holder: Holder,
    pub what: What,
}

#[derive(Debug, Clone)]
pub enum What {
    Look,
    Take(LeaderRecord),
    Load,
    Commit(CommitNumber, Arc<Written>),
    Resign(Term),
}

impl What {
    /// The answer of a call that has none.
    pub fn failed(&self) -> Answer {
        let why = "no answer".to_owned();
        match self {
            What::Look => Answer::Looked(Err(why)),
            What::Take(_) => Answer::Took(Err(why)),
            What::Load => Answer::Loaded(None),
            What::Commit(..) => Answer::Committed(Committed::Unknown(why)),
            What::Resign(_) => Answer::Resigned,
        }
    }
}

/// What a commit saves.
pub struct Written {
    pub now: Time,
    pub batch: Batch,
}

impl Written {
    /// A sign of life.
    pub fn empty(now: Time) -> Written {
        let batch = Batch::default();
        Written { now, batch }
    }
}

/// Only how much there is.
impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Batch {
            tasks,
            executions,
            machines,
            output,
            ..
        } = &self.batch;
        let (tasks, executions) = (tasks.keys(), executions.keys());
        let (machines, output) = (machines.len(), output.len());
        write!(
            f,
            "{tasks:?} {executions:?} machines: {machines} output: {output}"
        )
    }
}

#[derive(Debug, Clone)]
pub enum Answer {
    Looked(Result<LeaderRecord, String>),
    Took(Result<Option<Term>, String>),
    Loaded(Option<Box<Saved>>),
    Committed(Committed),
    Resigned,
}

pub struct Database {
    /// Has every write.
    primary: Model,
    /// What others see of it.
    visible: Model,
    /// Has what is acknowledged.
    standby: Model,
    /// The writes since the last failover, and how many of them are in `visible` and in `standby`.
    writes: Vec<Call>,
    shown: usize,
    replicated: usize,
    /// Those that wait for the standby, and their answers then.
    waiting: Vec<(Call, Answer)>,
    /// Those that wait for the row.
    locked_out: VecDeque<Call>,
    /// The last term whose take was acknowledged.
    term: Term,
    broken: Option<Broken>,
    /// An older copy of it.
    copy: Option<Model>,
    /// Answers to be sent.
    pub answers: Vec<(u64, Answer)>,
    /// Nothing reaches it.
    pub is_away: bool,
    /// The standby does not follow.
    pub is_stalled: bool,
}

/// What a server of the database does. The same calls in the same order do the same everywhere.
fn apply(model: &Model, call: &Call, broken: Option<Broken>) -> Answer {
    let mut connection = model.connect_as(call.holder);
    match &call.what {
        What::Look => Answer::Looked(connection.look().map(|seen| seen.record)),
        What::Take(seen) => Answer::Took(connection.take(seen)),
        What::Load => {
            let saved = connection.load().unwrap();
            Answer::Loaded(Some(Box::new(saved)))
        }
        What::Commit(number, written) => {
            let Written { now, batch } = &**written;
            let committed = connection.commit(*number, *now, batch);
            let has_no_fence = match broken {
                Some(Broken::CommitsAreFenced) => true,
                Some(Broken::RenewalNamesItsHolder) => batch.is_empty(),
                _ => false,
            };
            let record = model.connect_as(call.holder).look().unwrap().record;
            if committed != Committed::Fenced || !has_no_fence {
                return Answer::Committed(committed);
            }
            let Some(holder) = record.holder else {
                return Answer::Committed(committed);
            };
            let mut other = model.connect_as(holder);
            let number = CommitNumber {
                term: record.term,
                n: record.beat + 1,
                after: 0,
            };
            Answer::Committed(other.commit(number, *now, batch))
        }
        What::Resign(term) => {
            connection.resign(*term).unwrap();
            Answer::Resigned
        }
    }
}

impl Database {
    pub fn new(broken: Option<Broken>) -> Self {
        let primary = Model::default();
        Database {
            visible: primary.copy(),
            standby: primary.copy(),
            primary,
            writes: Vec::new(),
            shown: 0,
            replicated: 0,
            waiting: Vec::new(),
            locked_out: VecDeque::new(),
            term: Term(0),
            broken,
            copy: None,
            answers: Vec::new(),
            is_away: false,
            is_stalled: false,
        }
    }

    /// The record as everybody sees it.
    pub fn record(&self) -> LeaderRecord {
        self.visible.connect_as(NOBODY).look().unwrap().record
    }

    /// The record with all writes.
    pub fn written_record(&self) -> LeaderRecord {
        self.primary.connect_as(NOBODY).look().unwrap().record
    }

    /// What survives whatever happens now.
    pub fn kept(&self) -> Saved {
        self.standby.connect_as(NOBODY).load().unwrap()
    }

    /// An administrator makes a copy of what is there.
    pub fn keep_a_copy(&mut self) {
        self.copy = Some(self.standby.copy());
    }

    /// The copy is put in the place of everything.
    pub fn put_back(&mut self) {
        if let Some(copy) = self.copy.take() {
            self.crash();
            self.term = copy.connect_as(NOBODY).look().unwrap().record.term;
            self.primary = copy.copy();
            self.visible = copy.copy();
            self.standby = copy;
            self.writes.clear();
            (self.shown, self.replicated) = (0, 0);
        }
    }

    /// Whether there is something for the standby.
    pub fn is_behind(&self) -> bool {
        self.replicated < self.writes.len()
    }

    fn is_locked(&self) -> bool {
        self.shown < self.writes.len()
    }

    /// A call has come. The error says which law is broken.
    pub fn arrive(&mut self, call: Call) -> Result<(), String> {
        match call.what {
            What::Look | What::Load => {
                let answer = apply(&self.visible, &call, self.broken);
                self.answers.push((call.id, answer));
            }
            _ if self.is_locked() => self.locked_out.push_back(call),
            _ => self.write(call)?,
        }
        Ok(())
    }

    fn write(&mut self, call: Call) -> Result<(), String> {
        let mut primary = self.primary.connect_as(call.holder);
        let before = primary.look().unwrap().record;
        let answer = apply(&self.primary, &call, self.broken);
        let after = primary.look().unwrap().record;
        if let What::Commit(CommitNumber { term, .. }, _) = &call.what
            && before != after
            && (before.term, before.holder) != (*term, Some(call.holder))
        {
            return Err(format!(
                "no_commit_of_an_old_term: {before:?}, and {term:?} of {:?} is saved",
                call.holder
            ));
        }
        if matches!(
            answer,
            Answer::Took(Ok(None)) | Answer::Committed(Committed::Fenced | Committed::WentBack(_))
        ) {
            // Nothing is written.
            self.answers.push((call.id, answer));
            return Ok(());
        }
        self.writes.push(call.clone());
        if self.broken == Some(Broken::StandbyIsSynchronous) {
            self.answers.push((call.id, answer));
            self.show();
            return Ok(());
        }
        self.waiting.push((call, answer));
        Ok(())
    }

    /// Others see all writes.
    fn show(&mut self) {
        for call in &self.writes[self.shown..] {
            apply(&self.visible, call, self.broken);
        }
        self.shown = self.writes.len();
    }

    /// The standby receives the first so many writes.
    fn replicate_to(&mut self, end: usize) {
        for call in &self.writes[self.replicated..end] {
            apply(&self.standby, call, self.broken);
        }
        self.replicated = end;
    }

    /// The standby receives all.
    pub fn replicate(&mut self) -> Result<(), String> {
        self.replicate_to(self.writes.len());
        self.show();
        for (call, answer) in std::mem::take(&mut self.waiting) {
            if let Answer::Took(Ok(Some(term))) = answer {
                if term <= self.term {
                    return Err(format!("terms_only_rise: {term:?} after {:?}", self.term));
                }
                self.term = term;
            }
            self.answers.push((call.id, answer));
        }
        self.go_on()
    }

    /// Those that waited for the row go on.
    fn go_on(&mut self) -> Result<(), String> {
        while !self.is_locked()
            && let Some(call) = self.locked_out.pop_front()
        {
            self.write(call)?;
        }
        Ok(())
    }

    /// A take has waited long enough for the row.
    pub fn end_of_lock_wait(&mut self, id: u64) {
        if let Some(at) = self.locked_out.iter().position(|call| call.id == id) {
            let call = self.locked_out.remove(at).unwrap();
            self.answers.push((id, call.what.failed()));
        }
    }

    /// Somebody cancels the waits for the standby: they end with a warning.
    pub fn cancel_waits(&mut self) -> Result<(), String> {
        for (call, _) in std::mem::take(&mut self.waiting) {
            self.answers.push((call.id, call.what.failed()));
        }
        self.show();
        self.go_on()
    }

    /// All connections break, and the primary starts again: what waited for the standby is seen now.
    pub fn crash(&mut self) {
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        let calls = waiting
            .map(|(call, _)| call)
            .chain(self.locked_out.drain(..));
        let failed = calls.map(|call| (call.id, call.what.failed()));
        self.answers.extend(failed.collect::<Vec<_>>());
        self.show();
    }

    /// The standby becomes the primary. It may have received more than what is acknowledged. True: something was lost
    /// that had been seen.
    pub fn fail_over(&mut self, rng: &mut Rng) -> bool {
        let seen = self.shown;
        self.crash();
        let end = rng.between(self.replicated as u64, self.writes.len() as u64) as usize;
        self.replicate_to(end);
        self.primary = self.standby.copy();
        self.visible = self.standby.copy();
        self.writes.clear();
        (self.shown, self.replicated) = (0, 0);
        end < seen
    }
}
