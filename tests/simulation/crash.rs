//! The server with a database, and its crashes. Answers that need the disk are sent only after their commit. The server
//! crashes at any point between two commits and is rebuilt from the model disk. Everything that it had
//! acknowledged must be there, and every law must still hold.

use crate::laws::Memory as LawsMemory;
use crate::undo_laws::Debts;
use crate::users::TaskModel;
use crate::world::{AttemptKey, Event, Lawful, Ms, Response, World};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sidebike::core::{Batch, Core, Delivery, OutputChange, OutputKey, Saved, TaskKey, Time};
use sidebike::wire::task::Mode;
use std::collections::{BTreeMap, BTreeSet};

/// How often the present time is committed while a task is unfinished.
const SIGN_OF_LIFE: Ms = 10_000;

/// An answer that waits for a commit.
#[derive(Debug)]
enum Answer {
    ToAgent(usize, Response),
    Submitted(TaskKey),
    /// A halt was begun, or lifted.
    Halt(bool),
    /// Somebody is to be told.
    Deliveries(Vec<Delivery>),
}

/// What had been acknowledged when a commit began.
struct Memory {
    /// When that was.
    at: Ms,
    laws: LawsMemory,
    tasks: BTreeMap<TaskKey, TaskModel>,
    dump: Option<String>,
    debts: Debts,
}

/// A commit in progress.
struct Writing {
    batch: Batch,
    answers: Vec<Answer>,
    memory: Memory,
    began: Time,
}

/// The model disk, and the changes queued for it.
pub struct Disk {
    saved: Saved,
    memory: Memory,
    waiting: Batch,
    /// Attempts whose output has to be saved as a whole, because it may or may not be on the disk.
    whole: BTreeSet<OutputKey>,
    answers: Vec<Answer>,
    writing: Option<Writing>,
    last_commit: Ms,
    scheduled: bool,
    /// How often the server has crashed.
    life: u32,
    /// A deliberate fault: answers do not wait for the commit.
    pub hasty: bool,
    /// Compare every answer after a crash with the one before it; slow.
    dumps: bool,
    said_accepted: BTreeSet<TaskKey>,
    said_taken: BTreeSet<AttemptKey>,
    said_halted: Option<bool>,
}

fn dump(core: &Core) -> String {
    let mut all = String::new();
    for (_, task) in core.tasks_by_key() {
        let mut answer = task.answer(usize::MAX);
        // What was only offered to a machine waits for any machine after a restart.
        if task.spec.mode == Mode::Any && answer.counts.queued > 0 {
            answer.status = 0;
            answer.assignees.clear();
            for execution in &mut answer.result {
                execution.machine_label = "".into();
                execution.instance = "".into();
                execution.host = "".into();
            }
        }
        // The time of the restart does not count.
        if let Some(state) = &mut answer.rollout_state {
            state.resumes_at = None;
        }
        all += &serde_json::to_string(&answer).expect("an answer is JSON");
        all.push('\n');
    }
    all
}

/// A value after it was written to a file and read back.
pub fn read_back<K: Ord + Clone, T: Serialize + DeserializeOwned>(
    records: &BTreeMap<K, T>,
) -> BTreeMap<K, T> {
    let read = |record: &T| {
        let json = serde_json::to_vec(record).expect("a record is JSON");
        serde_json::from_slice(&json).expect("a record is read as it was written")
    };
    records
        .iter()
        .map(|(key, record)| (key.clone(), read(record)))
        .collect()
}

impl World {
    /// Adds a database.
    pub fn give_disk(&mut self) {
        self.server.core.record_changes();
        self.server.disk = Some(Disk {
            saved: Saved {
                last_alive: self.clock.read(self.now),
                ..Saved::default()
            },
            memory: self.memory(false),
            waiting: Batch::default(),
            whole: BTreeSet::new(),
            answers: Vec::new(),
            writing: None,
            last_commit: self.now,
            scheduled: false,
            life: 0,
            hasty: false,
            dumps: self.rng.chance(250) && !self.setting.is_loud,
            said_accepted: BTreeSet::new(),
            said_taken: BTreeSet::new(),
            said_halted: None,
        });
        self.weather.crash = self.rng.pick(&[50, 200, 400]);
        self.weather.refuse = self.rng.pick(&[0, 0, 100, 300]);
        self.weather.slow_disk = self.rng.pick(&[0, 100, 300]);
    }

    fn memory(&self, dumps: bool) -> Memory {
        Memory {
            at: self.now,
            laws: self.laws.memory(),
            tasks: self.users.tasks(),
            dump: dumps.then(|| dump(&self.server.core)),
            debts: self.debts(),
        }
    }

    /// Answers an agent: at once, or after the commit that the answer depends on.
    pub fn answer(&mut self, who: usize, response: Response) {
        let is_news = match &response {
            Response::Orders(_, orders, _) | Response::Fetched(orders, _) => {
                !orders.start.is_empty() || !orders.cancel.is_empty() || !orders.undo.is_empty()
            }
            Response::Taken(..) | Response::Settled(..) => true,
            Response::Refused(..) | Response::Kept(..) | Response::Pong(_) => false,
        };
        match &mut self.server.disk {
            Some(disk) if is_news && !disk.hasty => {
                disk.answers.push(Answer::ToAgent(who, response))
            }
            _ => self.send(who, Event::ToAgent(who, response)),
        }
    }

    /// Acknowledges a task to its user, after its commit.
    pub fn answer_submit(&mut self, key: TaskKey) {
        if let Some(disk) = &mut self.server.disk {
            disk.answers.push(Answer::Submitted(key));
        }
    }

    /// Sends notifications, after the commit of what they tell of.
    pub fn answer_deliveries(&mut self, deliveries: Vec<Delivery>) {
        match &mut self.server.disk {
            Some(disk) if !disk.hasty => disk.answers.push(Answer::Deliveries(deliveries)),
            _ => self.deliver_notifications(deliveries),
        }
    }

    /// Acknowledges a halt, or its end, to its user, after its commit.
    pub fn answer_halt(&mut self, is_halted: bool) {
        if let Some(disk) = &mut self.server.disk {
            disk.said_halted = None;
            disk.answers.push(Answer::Halt(is_halted));
        }
    }

    /// After every step: queues the changes for the next commit.
    pub fn gather_changes(&mut self) {
        let batch = self.server.core.take_batch();
        let unfinished = self.server.core.has_unfinished();
        let Some(disk) = &mut self.server.disk else {
            return;
        };
        disk.waiting.add(batch);
        let silent = unfinished && self.now >= disk.last_commit + SIGN_OF_LIFE;
        let wanted = !disk.waiting.is_empty() || !disk.answers.is_empty() || silent;
        if wanted && disk.writing.is_none() && !disk.scheduled {
            disk.scheduled = true;
            let life = disk.life;
            let pause = self.rng.between(0, 10);
            self.after(pause, Event::CommitBegins(life));
        }
    }

    pub fn commit_begins(&mut self, life: u32) {
        let dumps = self.server.disk.as_ref().is_some_and(|disk| disk.dumps);
        let memory = self.memory(dumps);
        let Some(disk) = self.server.disk.as_mut().filter(|disk| disk.life == life) else {
            return;
        };
        let mut batch = std::mem::take(&mut disk.waiting);
        let whole = std::mem::take(&mut disk.whole);
        batch
            .output
            .extend(self.server.core.output_snapshot(&whole));
        let known = |key: &TaskKey| self.server.core.show(*key).is_ok();
        disk.said_accepted.retain(known);
        disk.scheduled = false;
        disk.last_commit = self.now;
        disk.writing = Some(Writing {
            batch,
            answers: std::mem::take(&mut disk.answers),
            memory,
            began: self.clock.read(self.now),
        });
        let takes = match self.rng.chance(self.weather.slow_disk) {
            true => self.rng.between(30, 3_000),
            false => self.rng.between(1, 10),
        };
        self.after(takes, Event::CommitEnds(life));
    }

    pub fn commit_ends(&mut self, life: u32) -> Lawful {
        let refuse = self.rng.chance(self.weather.refuse);
        let reached_it = !refuse || self.rng.chance(500);
        let Some(disk) = self.server.disk.as_mut().filter(|disk| disk.life == life) else {
            return Ok(());
        };
        let Some(writing) = disk.writing.take() else {
            return Ok(());
        };
        if reached_it {
            disk.saved.apply(writing.began, &writing.batch);
            disk.memory = writing.memory;
        }
        let is_replaced =
            |(_, change): &(OutputKey, OutputChange)| matches!(change, OutputChange::Replaced(_));
        if reached_it && writing.batch.output.iter().any(is_replaced) {
            *self.tally.entry("saved output replaced").or_default() += 1;
        }
        if refuse {
            let mut batch = writing.batch;
            disk.whole
                .extend(batch.output.drain(..).map(|(key, _)| key));
            batch.add(std::mem::take(&mut disk.waiting));
            disk.waiting = batch;
            self.count("commit refused");
            for answer in writing.answers {
                self.refuse(answer);
            }
        } else {
            self.count("commit");
            for answer in writing.answers {
                self.say(answer)?;
            }
        }
        self.see_to_notices()
    }

    fn say(&mut self, answer: Answer) -> Lawful {
        match answer {
            Answer::Deliveries(deliveries) => self.deliver_notifications(deliveries),
            Answer::Submitted(key) => {
                // It may have finished and been forgotten during the commit.
                if self.server.core.show(key).is_ok() {
                    let disk = self.server.disk.as_mut().expect("who waits has a disk");
                    disk.said_accepted.insert(key);
                }
            }
            Answer::Halt(is_halted) => {
                let disk = self.server.disk.as_mut().expect("who waits has a disk");
                let is_latest = !disk.answers.iter().any(|it| matches!(it, Answer::Halt(_)));
                disk.said_halted = is_latest.then_some(is_halted);
            }
            Answer::ToAgent(who, mut response) => {
                self.drop_what_was_canceled(who, &mut response)?;
                if let Response::Taken(taken, ..) = &response {
                    let taken = taken.results.iter().filter(|verdict| verdict.taken);
                    let taken: Vec<AttemptKey> = taken
                        .filter_map(|verdict| self.server.key_of(&verdict.id))
                        .collect();
                    let disk = self.server.disk.as_mut().expect("who waits has a disk");
                    disk.said_taken.extend(taken);
                }
                self.send(who, Event::ToAgent(who, response));
            }
        }
        Ok(())
    }

    /// What was canceled while its hand-out was being saved is not sent.
    fn drop_what_was_canceled(&mut self, who: usize, response: &mut Response) -> Lawful {
        let is_original = matches!(response, Response::Fetched(..));
        let (start, keys) = match response {
            Response::Orders(_, orders, keys) | Response::Fetched(orders, keys) => {
                (&mut orders.start, keys)
            }
            Response::Taken(taken, _, keys, _) => (&mut taken.start, keys),
            Response::Refused(..)
            | Response::Kept(..)
            | Response::Pong(_)
            | Response::Settled(..) => return Ok(()),
        };
        let before = start.len();
        let core = &mut self.server.core;
        let wanted: Vec<bool> = start.iter().map(|job| core.is_to_start(&job.id)).collect();
        if is_original {
            let label = &self.agents[who].label;
            let dropped = start.iter().zip(&wanted).filter(|(_, wanted)| !**wanted);
            for (job, _) in dropped {
                core.not_sent_to_original(label, &job.id);
            }
        }
        let mut wanted_start = wanted.iter();
        start.retain(|_| *wanted_start.next().unwrap_or(&true));
        let mut wanted_keys = wanted.iter();
        keys.retain(|_| *wanted_keys.next().unwrap_or(&true));
        if start.len() < before {
            self.count("canceled before its hand-out was sent");
        }
        self.laws.sent(keys)
    }

    /// The submit was answered 503: the task could not be saved.
    fn refuse(&mut self, answer: Answer) {
        match answer {
            Answer::Deliveries(deliveries) => {
                let numbers: Vec<u64> = deliveries.iter().map(|it| it.number).collect();
                self.server.core.give_back_notifications(&numbers);
            }
            Answer::Submitted(key) => {
                self.receivers.withdrawn(key);
                self.count("submit withdrawn");
                self.note(|| format!("{key:?} is withdrawn"));
                if !self.server.core.is_finished(key) {
                    self.laws.withdrawn(key);
                }
                self.server.core.withdraw(self.clock.read(self.now), key);
            }
            Answer::ToAgent(who, Response::Orders(seq, ..)) => {
                self.send(who, Event::ToAgent(who, Response::Refused(seq, false)));
            }
            Answer::ToAgent(..) | Answer::Halt(_) => {}
        }
    }

    /// The server crashes, and some time later another one is rebuilt from the disk.
    pub fn crash(&mut self) -> Lawful {
        let Some(mut disk) = self.server.disk.take() else {
            return Ok(());
        };
        let written_unseen = self.rng.chance(500);
        if let Some(writing) = disk.writing.take().filter(|_| written_unseen) {
            self.count("crash after a commit that nobody heard of");
            disk.saved.apply(writing.began, &writing.batch);
            disk.memory = writing.memory;
        }
        let down = match self.rng.between(0, 9) {
            0..5 => self.rng.between(1, 500),
            5..8 => self.rng.between(500, 10_000),
            _ => self.rng.between(10_000, 200_000),
        };
        self.count(if down < 10_000 {
            "server crashed < 10 s"
        } else {
            "server crashed > 10 s"
        });
        let up = self.now.max(self.stopped_until) + down;
        self.clock_may_jump(up, disk.saved.last_alive);
        self.limits_may_change();
        if self.server.had_other_limits {
            // What has ended may be forgotten by the start: there may be more than is allowed now.
            disk.memory.dump = None;
            let unfinished = |key: &TaskKey| {
                { disk.saved.tasks.get(key) }.is_some_and(|task| task.finished_at.is_none())
            };
            disk.said_accepted.retain(unfinished);
        }
        self.note(|| format!("server crashes, and is back after {down}"));
        self.stopped_until = up;
        let saved = Saved {
            tasks: read_back(&disk.saved.tasks),
            executions: read_back(&disk.saved.executions),
            machines: read_back(&disk.saved.machines),
            notifications: read_back(&disk.saved.notifications),
            output: disk.saved.output.clone(),
            next_task: disk.saved.next_task,
            last_alive: disk.saved.last_alive,
            away_ms: disk.saved.away_ms,
            halt: disk.saved.halt.clone(),
            limits: read_back(&disk.saved.limits),
            suspensions: disk.saved.suspensions.clone(),
            ..Saved::default()
        };
        let away = up - disk.memory.at;
        self.server.restore(self.clock.read(up), saved)?;
        self.lists_are_restored_as_a_whole()?;
        let machines = self.server.core.machine_states();
        self.laws.forget_unsaved_goodbyes(machines);
        self.users.roll_back(disk.memory.tasks.clone(), away);
        self.laws
            .roll_back(disk.memory.laws.clone(), &self.server.core);
        self.laws.server_stopped_until(up);
        self.fleet.restored(up, &self.server.core);
        what_was_said_is_there(&disk, &self.server)?;
        self.what_was_told_is_true()?;
        let (debts, before) = (self.debts(), &disk.memory.debts);
        if debts != *before {
            return Err(format!(
                "no_debt_is_lost_or_doubled: {before:?} before, {debts:?} after"
            ));
        }
        let is_halted = self.server.core.halt().is_some();
        if disk.said_halted.is_some_and(|said| said != is_halted) {
            return Err(format!("a_halt_is_not_forgotten: {is_halted}"));
        }
        disk.waiting = Batch::default();
        disk.whole.clear();
        disk.answers.clear();
        disk.scheduled = false;
        disk.life += 1;
        self.server.disk = Some(disk);
        // Its connections are closed.
        for who in 0..self.agents.len() {
            if self.rng.chance(800) {
                self.connection_breaks(who);
            }
        }
        Ok(())
    }
}

/// Everything that was acknowledged survives, with its final state.
fn what_was_said_is_there(disk: &Disk, server: &crate::server::Server) -> Lawful {
    let core = &server.core;
    if let Some(before) = &disk.memory.dump {
        let after = dump(core);
        if *before != after {
            return Err(format!(
                "what_was_saved_is_there: before\n{before}after\n{after}"
            ));
        }
    }
    for key in &disk.said_accepted {
        if core.show(*key).is_err() {
            return Err(format!("what_was_accepted_is_there: {key:?}"));
        }
    }
    for key in disk
        .said_taken
        .iter()
        .filter(|key| key.epoch == server.epoch)
    {
        let Ok(task) = core.show(key.task) else {
            continue;
        };
        let open = task.execution_views().any(|seen| {
            seen.n == key.n && seen.attempt == key.attempt && !seen.state.is_terminal()
        });
        if open {
            return Err(format!("what_was_taken_has_ended: {key:?}"));
        }
    }
    Ok(())
}
