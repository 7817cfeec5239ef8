//! Calls about schedules, and the file of schedules that the server reads.

use super::audit::Change;
use super::call::{Call, Handled};
use super::parse::{body, flag, nests_within, read_strictly};
use super::server::Server;
use crate::core::{
    FiredTask, NewSchedule, Plan, Refusal, SelectorText, Spec, Time, check_schedule_id, within,
};
use crate::recurrence::Zone;
use crate::server::answers::{self, bad, not_safe, refused};
use crate::server::http::Answer;
use crate::wire::Envelope;
use crate::wire::schedule::{PostedSchedule, Schedule, SchedulePreview};
use crate::wire::strict_object::Posted;
use crate::wire::task::PostedTask;
use log::{info, warn};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// How many schedules are listed, or read from a file, at a time: the lock is released in between.
const AT_A_TIME: usize = 50;
/// The longest file of schedules, in bytes: 1,000 of them with a script of 64 KiB each.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Who has made the schedules of the file, in the place of a token's name.
const MADE_BY_FILE: &str = "--schedules";
/// What is said of a schedule where there is no database.
const IS_FORGOTTEN: &str =
    "the server keeps it in memory only (no --db): its restart forgets the schedule";

impl Server {
    /// Checks a posted schedule.
    fn planned(&self, id: &str, posted: PostedSchedule) -> Result<Plan, Answer> {
        check_schedule_id(id).map_err(bad)?;
        let text = posted.task.text().as_bytes();
        let Posted(mut task): Posted<PostedTask> = read_strictly(text, "task").map_err(bad)?;
        if task.id.is_some() {
            return Err(bad(
                "task.id: each firing has an id of its own; leave it out, give a name instead",
            ));
        }
        if task.start_at.is_some() || task.delay.is_some() {
            return Err(bad(
                "task.startAt: the schedule says when; leave out startAt and delay",
            ));
        }
        if task.name.is_none() {
            task.name = Some(id.to_owned());
        }
        let known = |text: &SelectorText| self.store.ask(|core| core.selector(text));
        let spec = Spec::checked(task, &self.texts, known);
        let spec = spec.map_err(|why| bad(within("task", &why)))?;
        { self.store.ask(|core| core.check_notify(&spec)) }
            .map_err(|why| refused(why.within("task")))?;
        let zone = Zone::named(Plan::zone_name(&posted));
        let zone = zone.map_err(|why| answers::error(422, &why))?;
        let wall = self.store.wall();
        let first = self.store.ask(|core| core.first_slot(id, &posted));
        let plan = Plan::checked(posted, spec, zone, first.unwrap_or(wall)).map_err(bad)?;
        plan.check_fires(wall).map_err(bad)?;
        Ok(plan)
    }

    /// A schedule as it is answered; `msg` also says what a restart does to it.
    fn answered(&self, mut schedule: Schedule) -> Answer {
        if !self.store.may_wait() {
            if !schedule.msg.is_empty() {
                schedule.msg.push_str("; ");
            }
            schedule.msg.push_str(IS_FORGOTTEN);
        }
        let answer = Envelope {
            msg: schedule.msg.clone(),
            ..Envelope::ok(schedule)
        };
        answers::json(200, &answer)
    }

    /// Writes the audit of what schedules have fired.
    pub fn note_firings(self: &Arc<Self>) {
        for fired in self.store.take_fired() {
            let FiredTask {
                schedule,
                made_by,
                task,
            } = fired;
            let Ok(task) = self.store.ask(|core| core.show(task)) else {
                continue;
            };
            let call = format!("schedule {schedule}");
            let change = Change::of(&task);
            let record = self.audit.firing(made_by.as_deref(), &call, &change);
            let lines = record.map_or_else(Vec::new, |record| record.lines(200));
            lines.into_iter().for_each(|line| self.write_later(line));
        }
    }

    /// Reads the file of schedules: makes and changes those that are in it, and deletes those that came from it and are
    /// not in it any more. A file with an error changes nothing. Returns what was done, in words.
    pub fn read_schedules(&self, path: &Path) -> Result<String, String> {
        let named = |why: String| format!("{}: {why}", path.display());
        let meta = std::fs::metadata(path).map_err(|why| named(why.to_string()))?;
        if meta.len() > MAX_FILE_BYTES {
            return Err(named(format!("is longer than {MAX_FILE_BYTES} bytes")));
        }
        let text = std::fs::read(path).map_err(|why| named(why.to_string()))?;
        if !nests_within(&text, self.max_json_depth) {
            return Err(named(format!(
                "must not be nested deeper than {} (--max-json-depth)",
                self.max_json_depth
            )));
        }
        let Entries(entries) = serde_json::from_slice(&text).map_err(|why| {
            named(format!(
                "expected an object with a schedule for each id: {why}"
            ))
        })?;
        let mut plans = Vec::new();
        for (id, text) in &entries {
            let read = read_strictly(text.get().as_bytes(), "the schedule");
            let plan = read
                .map_err(bad)
                .and_then(|Posted(posted)| self.planned(id, posted));
            let plan = plan.map_err(|answer| named(format!("{id}: {}", msg_of(&answer))))?;
            plans.push((id.as_str(), plan));
        }
        let ids: BTreeSet<&str> = plans.iter().map(|(id, _)| *id).collect();
        let known = self.schedules();
        let made_here = |schedule: &&Schedule| schedule.made_by.as_deref() == Some(MADE_BY_FILE);
        let gone: Vec<&str> = { known.iter().filter(made_here) }
            .map(|schedule| &*schedule.id)
            .filter(|id| !ids.contains(id))
            .collect();
        let stay = known.iter().filter(|schedule| {
            let id = &*schedule.id;
            !ids.contains(id) && !gone.contains(&id)
        });
        let (stay, limit) = (stay.count(), self.store.ask(|core| core.max_schedules()));
        if stay + plans.len() > limit {
            return Err(named(format!(
                "has {} schedules, with {stay} others that is more than {limit} (--max-schedules)",
                plans.len()
            )));
        }
        self.store
            .ask(|core| {
                core.check_room_for_plans(plans.iter().map(|(id, plan)| (*id, plan)), &gone)
            })
            .map_err(named)?;
        for gone in gone.chunks(AT_A_TIME) {
            self.store.change(|core, _| {
                for id in gone {
                    // Somebody else may have deleted it.
                    let _ = core.delete_schedule(id);
                }
            });
        }
        let number = plans.len();
        let mut refusals = Vec::new();
        while !plans.is_empty() {
            let some: Vec<_> = plans.drain(..plans.len().min(AT_A_TIME)).collect();
            let some: Vec<_> = some
                .into_iter()
                .map(|(id, plan)| (id, plan, self.fresh_id()))
                .collect();
            self.store.change(|core, now| {
                for (id, plan, seed) in some {
                    let new = NewSchedule {
                        id,
                        made_by: Some(MADE_BY_FILE),
                        seed: &seed,
                    };
                    if let Err(why) = core.put_schedule(now, &new, plan) {
                        refusals.push(format!("{id}: {why}"));
                    }
                }
            });
        }
        match refusals.first() {
            None => Ok(format!(
                "{}: {number} schedules, {} deleted as they are not in it any more",
                path.display(),
                gone.len()
            )),
            // Somebody has made others since they were counted.
            Some(why) => Err(named(format!(
                "{} of its {number} schedules were refused, the others are in force: {why}",
                refusals.len()
            ))),
        }
    }

    /// The same while the server runs: the log says what became of it.
    pub fn reread_schedules(&self, path: &Path) {
        match self.read_schedules(path) {
            Ok(words) => info!("the schedules were read again, {words}"),
            Err(why) => warn!("--schedules: {why}"),
        }
    }

    fn schedules(&self) -> Vec<Schedule> {
        let mut all: Vec<Schedule> = Vec::new();
        loop {
            let last = all.last().map(|schedule| schedule.id.clone());
            let some =
                (self.store).look(|core, now| core.list_schedules(now, last.as_deref(), AT_A_TIME));
            let is_last = some.len() < AT_A_TIME;
            all.extend(some);
            if is_last {
                return all;
            }
        }
    }
}

/// What an answer says.
fn msg_of(answer: &Answer) -> String {
    let read: Result<Envelope<()>, _> = serde_json::from_slice(&answer.body);
    read.map_or_else(|_| "is refused".into(), |envelope| envelope.msg)
}

/// The entries of a JSON object, in their order. An id that is there twice is an error.
struct Entries(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let (mut entries, mut ids) = (Vec::new(), BTreeSet::new());
        while let Some((id, text)) = map.next_entry::<String, Box<RawValue>>()? {
            if !ids.insert(id.clone()) {
                return Err(Error::custom(format_args!("{id:?} is there twice")));
            }
            entries.push((id, text));
        }
        Ok(Entries(entries))
    }
}

fn id_of<'a>(call: &Call<'a>) -> &'a str {
    let path: &'a [String] = &call.request.path;
    path.get(3).map(String::as_str).unwrap_or_default()
}

/// `PUT /api/v1/schedule/{id}`.
pub fn put(call: Call<'_>) -> Handled {
    let is_dry = flag(call.request, "dryRun")?;
    let Posted(posted): Posted<PostedSchedule> = body(&call, "the schedule")?;
    let (server, id) = (call.server, id_of(&call));
    let plan = server.planned(id, posted)?;
    // Not for those of the file: a server that starts anew has no limit yet.
    let checked = server.store.ask(|core| core.check_limits_of(&plan));
    checked.map_err(refused)?;
    if is_dry {
        return Ok(Some(answers::ok(SchedulePreview {
            time_zone_data: plan.zone_data().to_owned(),
            next: plan.preview(server.store.wall()),
        })));
    }
    let (made_by, seed) = (call.caller.name.clone(), server.fresh_id());
    let new = NewSchedule {
        id,
        made_by: made_by.as_deref(),
        seed: &seed,
    };
    *call.change = Change::of_schedule(&plan);
    change(call, |core, now| core.put_schedule(now, &new, plan))
}

/// `GET /api/v1/schedule`.
pub fn list(call: Call<'_>) -> Handled {
    let server = call.server.clone();
    call.large(move || answers::ok(server.schedules()))
}

/// `GET /api/v1/schedule/{id}`.
pub fn show(call: Call<'_>) -> Handled {
    let (server, id) = (call.server.clone(), id_of(&call));
    let schedule = server.store.look(|core, now| core.schedule(now, id));
    let schedule = schedule.map_err(refused)?;
    call.large(move || server.answered(schedule))
}

/// `DELETE /api/v1/schedule/{id}`.
pub fn delete(call: Call<'_>) -> Handled {
    let id = id_of(&call);
    let deleted = call
        .server
        .store
        .change_safely(|core, _| core.delete_schedule(id));
    deleted.map_err(not_safe)?.map_err(refused)?;
    Ok(Some(answers::ok(())))
}

/// `POST /api/v1/schedule/{id}/pause`.
pub fn pause(call: Call<'_>) -> Handled {
    let id = id_of(&call);
    let why = format!("by {}", call.caller.who());
    change(call, |core, now| core.pause_schedule(now, id, &why))
}

/// `POST /api/v1/schedule/{id}/resume`.
pub fn resume(call: Call<'_>) -> Handled {
    let id = id_of(&call);
    change(call, |core, now| core.resume_schedule(now, id))
}

/// `POST /api/v1/schedule/{id}/run`.
pub fn run(call: Call<'_>) -> Handled {
    let id = id_of(&call);
    change(call, |core, now| core.run_schedule(now, id))
}

/// Changes a schedule, and answers with it once that is saved.
fn change(
    call: Call<'_>,
    operation: impl FnOnce(&mut crate::core::Core, Time) -> Result<Schedule, Refusal>,
) -> Handled {
    let server = call.server.clone();
    let changed = server.store.change_safely(operation);
    let changed = changed.map_err(not_safe)?.map_err(refused)?;
    call.large(move || server.answered(changed))
}
