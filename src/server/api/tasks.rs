//! Calls about tasks: submit, list, show, cancel, pause, resume, stop, rerun, delete.

use super::audit::Change;
use super::call::{Call, Handled};
use super::parse::{body, flag, looked_at_task, named_task, optional_flag, parameter, wait_ms};
use super::sweeps::cancel_one;
use crate::core::{
    Core, Files, MAX_SWEPT, Refusal, Selection, SelectorText, Spec, Target as CoreTarget, Task,
    TaskKey, TaskPage, TaskQuery, Time,
};
use crate::rules::one_of;
use crate::server::answers::{self, TaskForm, bad, not_safe, refused};
use crate::server::blobs::Pins;
use crate::server::http::{Answer, Request};
use crate::server::state::HeldWait;
use crate::wire::Envelope;
use crate::wire::strict_object::Posted;
use crate::wire::task::{DryRun, PostedTask, Target, TaskState};
use std::sync::Arc;

/// The default and the largest `limit` of a list.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;

/// What a dry run says of a task that waits for something.
const LATER: &str = "it would begin later, and who matches is settled then";

/// Reads how the caller wants a task to be answered.
fn task_form(request: &Request) -> Result<TaskForm, Answer> {
    let text = parameter(request, "format", |text| match text {
        "text" => Ok(true),
        "json" => Ok(false),
        _ => Err("expected text or json".into()),
    })?;
    Ok(TaskForm {
        text: text.unwrap_or(false),
        strict: flag(request, "strict")?,
    })
}

/// Answers with a task: at once, or when it has ended or the caller's time is up.
fn answer_or_wait(
    call: Call<'_>,
    key: TaskKey,
    task: Task,
    wait_ms: u64,
    form: TaskForm,
) -> Handled {
    if wait_ms > 0
        && let Some(responder) = call.responder.take()
    {
        let wait = HeldWait {
            responder,
            form,
            on_answer: call.note_when_answered(),
        };
        match call.server.store.wait(key, wait_ms, wait) {
            Ok(()) => {
                *call.is_noted_later = true;
                return Ok(None);
            }
            Err(wait) => *call.responder = Some(wait.not_held()),
        }
        // It may have ended meanwhile.
        let shown = call.server.store.show(key);
        return call.large(move || form.answer(shown));
    }
    call.large(move || form.answer(Ok(task)))
}

/// The result of a submit or rerun, and the task that it answers with: the new one, or the one that has the id.
type Submitted = (Result<TaskKey, Refusal>, Option<Task>);

/// Submits or reruns a task, and answers once that is saved.
fn accept(
    call: Call<'_>,
    operation: impl FnOnce(&mut Core, Time, &str) -> Result<TaskKey, Refusal>,
) -> Handled {
    let wait_ms = wait_ms(call.request)?;
    let form = task_form(call.request)?;
    let store = &call.server.store;
    if let Some(why) = store.trouble() {
        return Err(answers::error(503, &why));
    }
    let id = call.server.fresh_id();
    let accepted = store.change_safely(|core, now| -> Submitted {
        let submitted = operation(core, now, &id);
        let task = match &submitted {
            Ok(key) | Err(Refusal::Taken(key) | Refusal::Duplicate(key) | Refusal::Joins(key)) => {
                core.show(*key).ok()
            }
            Err(_) => None,
        };
        (submitted, task)
    });
    match accepted {
        Ok((Ok(key), Some(task))) => {
            *call.change = Change::of(&task);
            if wait_ms == 0 && task.size() <= answers::FEW {
                return Ok(Some(form.answer(Ok(task))));
            }
            answer_or_wait(call, key, task, wait_ms, form)
        }
        Ok((Err(Refusal::Taken(_)), Some(task))) => call.large(move || answers::taken(&task)),
        Ok((Err(Refusal::Duplicate(_)), Some(task))) => call.large(move || answers::held(&task)),
        Ok((Err(Refusal::Joins(key)), Some(task))) => {
            *call.change = Change::of(&task);
            answer_or_wait(call, key, task, wait_ms, form)
        }
        Ok((Err(refusal), _)) => Err(refused(refusal)),
        Ok((Ok(_), None)) => Err(answers::error(
            503,
            "the task was forgotten at once, to keep a limit",
        )),
        Err(((submitted, _), why)) => {
            if let Ok(key) = submitted {
                store.change(|core, now| core.withdraw(now, key));
            }
            Err(answers::error(503, &why))
        }
    }
}

/// `POST /api/v1/task`.
pub fn submit(call: Call<'_>) -> Handled {
    let is_dry = flag(call.request, "dryRun")?;
    let Posted(posted): Posted<PostedTask> = body(&call, "the task")?;
    let store = &call.server.store;
    let mut is_known = false;
    let known = |text: &SelectorText| {
        let selector = store.ask(|core| core.selector(text));
        is_known = selector.is_some();
        selector
    };
    let mut spec = Spec::checked(posted, &call.server.texts, known).map_err(bad)?;
    // The first one selects the targets. If the core knows it, its matches are known, too.
    for selector in spec.selectors_mut().skip(usize::from(is_known)) {
        store.match_machines(selector);
    }
    for selector in spec.selectors_of_children_mut() {
        store.match_machines(selector);
    }
    if is_dry {
        return dry_run(call, spec);
    }
    let _pins = pinned(&call, spec.files.as_deref())?;
    accept(call, |core, now, id| core.submit(now, id, spec))
}

/// Keeps the blobs of a task that is being registered.
fn pinned(call: &Call<'_>, files: Option<&Files>) -> Result<Option<Pins>, Answer> {
    let Some(files) = files else {
        return Ok(None);
    };
    let blobs = &call.server.blobs;
    let mut needed = files.blobs();
    if files.update.is_some() {
        // What the server hands out itself need not be brought.
        let images = &call.server.images;
        needed
            .retain(|id| blobs.size(*id).is_some() || images.with_hash(&id.to_string()).is_none());
    }
    let pinned = blobs.pin(needed).map_err(|missing| {
        if let Some(arch) = files.arch_of(missing) {
            return answers::error(
                422,
                &format!("update.images.{arch}: the server neither has this file nor hands it out; bring it first, with PUT /api/v1/file/NAME, or put it into the folder of its --binaries"),
            );
        }
        let n = { files.files.iter() }.position(|file| file.sha256 == missing.to_string());
        let msg = format!(
            "files[{}].sha256: the server does not have this file; bring it first, with PUT /api/v1/file/NAME",
            n.unwrap_or(0)
        );
        answers::error(422, &msg)
    })?;
    for (n, file) in files.files.iter().enumerate() {
        let size = file.sha256.parse().ok().and_then(|id| blobs.size(id));
        if let Some(size) = size.filter(|size| *size != file.size) {
            return Err(bad(format!(
                "files[{n}].size: must be {size}, the size of this file"
            )));
        }
    }
    Ok(Some(pinned))
}

/// Answers what would become of a task if it were submitted now.
fn dry_run(call: Call<'_>, spec: Spec) -> Handled {
    let id = match &spec.id {
        Some(id) => id.to_string(),
        None => call.server.fresh_id(),
    };
    let store = &call.server.store;
    let preview = store.change(|core, now| core.preview(now, &id, &spec));
    call.large(move || {
        let targets = |targets: &[Arc<CoreTarget>]| {
            let targets = targets.iter().map(|target| Target {
                label: target.label.to_string(),
                instance: target.instance.to_string(),
            });
            targets.collect()
        };
        answers::ok(DryRun {
            ok: preview.refusal.is_none() || preview.waits,
            matched: preview.matched,
            machines: targets(&preview.machines),
            spared: targets(&preview.spared),
            plan: preview.plan,
            concurrency: preview.concurrency,
            offline: preview.offline,
            draining: preview.draining,
            msg: match preview.refusal {
                Some(why) if preview.waits => format!("{LATER}; if it began now: {why}"),
                None if preview.waits => LATER.into(),
                Some(why) => why,
                None if preview.matched == 0 => {
                    "no machine matches; it would wait for the first that appears within its ttl"
                        .into()
                }
                None => String::new(),
            },
        })
    })
}

/// `GET /api/v1/task/{id}`.
pub fn show(call: Call<'_>) -> Handled {
    let wait_ms = wait_ms(call.request)?;
    let form = task_form(call.request)?;
    let key = looked_at_task(&call)?;
    let task = call.server.store.show(key).map_err(refused)?;
    answer_or_wait(call, key, task, wait_ms, form)
}

/// `POST /api/v1/task/{id}/rerun`.
pub fn rerun(call: Call<'_>) -> Handled {
    let all = flag(call.request, "all")?;
    let old = named_task(&call)?;
    let shown = call.server.store.show(old).map_err(refused)?;
    let _pins = pinned(&call, shown.spec.files.as_deref())?;
    drop(shown);
    accept(call, |core, now, id| core.rerun(now, id, old, all))
}

/// Which tasks a call means.
pub fn filter(request: &Request) -> Result<TaskQuery, Answer> {
    let tags = request.query_all("tag").map(|text| {
        let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
        let (name, value) = pair.ok_or_else(|| {
            bad(format!(
                "tag: expected NAME=VALUE such as team=pay, got {text:?}"
            ))
        })?;
        Ok((name.to_owned(), value.to_owned()))
    });
    Ok(TaskQuery {
        prefix: request.query("taskPrefix").map(str::to_owned),
        state: parameter(request, "state", |text| {
            one_of(&TaskState::ALL, TaskState::word, text)
        })?,
        label: request.query("label").map(str::to_owned),
        clean: None,
        group: request.query("group").map(str::to_owned),
        tags: tags.collect::<Result<_, Answer>>()?,
    })
}

/// Which page of a list a call means: how many entries at most, and after which task it begins.
pub fn page(request: &Request) -> Result<(usize, Option<TaskKey>), Answer> {
    let limit = parameter(request, "limit", |text| {
        let number = text.parse().ok().filter(|n| (1..=MAX_LIMIT).contains(n));
        number.ok_or_else(|| format!("expected a number from 1 to {MAX_LIMIT}"))
    })?;
    let cursor = |text: &str| {
        let number = text.parse().ok().map(TaskKey);
        number.ok_or_else(|| "expected what an earlier answer gave as \"next\"".into())
    };
    let after = parameter(request, "cursor", cursor)?;
    Ok((limit.unwrap_or(DEFAULT_LIMIT), after))
}

/// `GET /api/v1/task`.
pub fn list(call: Call<'_>) -> Handled {
    let request = call.request;
    let query = TaskQuery {
        clean: optional_flag(request, "clean")?,
        ..filter(request)?
    };
    let (limit, mut before) = page(request)?;
    let mut tasks = Vec::new();
    let next = loop {
        let store = &call.server.store;
        let page: TaskPage = store.list(&query, before, limit - tasks.len());
        tasks.extend(page.tasks);
        before = page.next;
        if !page.interrupted {
            break page.next;
        }
    };
    let next = next.map(|key| key.0.to_string());
    call.large(move || {
        let data: Vec<_> = tasks
            .iter()
            .map(|task| task.listed(answers::LISTED_OUTPUT_BYTES, answers::LISTED_DETAIL_BYTES))
            .collect();
        let list = Envelope {
            next,
            ..Envelope::ok(data)
        };
        answers::json(200, &list)
    })
}

/// Which executions a call means: all, or those on one machine.
fn selection(request: &Request) -> Result<Selection, Answer> {
    match request.query("machine") {
        Some("") => Err(bad("machine: expected an instance or a label, got nothing")),
        Some(name) => Ok(Selection::Machine(name.to_owned())),
        None => Ok(Selection::All),
    }
}

/// `POST /api/v1/task/{id}/undo`.
pub fn undo(call: Call<'_>) -> Handled {
    let selection = selection(call.request)?;
    change_task(call, |core, _, key| core.undo_again(key, &selection))
}

/// `POST /api/v1/task/{id}/forgive`.
pub fn forgive(call: Call<'_>) -> Handled {
    let selection = selection(call.request)?;
    let who = call.caller.who().to_owned();
    change_task(call, |core, now, key| {
        core.forgive(now, key, &selection, &who)
    })
}

/// `POST /api/v1/task/{id}/cancel`.
pub fn cancel(call: Call<'_>) -> Handled {
    let selection = selection(call.request)?;
    let dependents = flag(call.request, "dependents")?;
    if dependents && !matches!(selection, Selection::All) {
        return Err(bad("dependents: goes with a cancel on all machines only"));
    }
    let key = named_task(&call)?;
    if matches!(selection, Selection::All) {
        // No copy of the task is kept: the first change would copy all of it.
        let large = |task: Task| (task.size() > MAX_SWEPT).then(|| Change::of(&task));
        let large = call.server.store.ask(|core| core.show(key).map(large));
        if let Some(change) = large.map_err(refused)? {
            *call.change = change;
            return cancel_large(call, key, dependents);
        }
    }
    change_task(call, |core, now, key| {
        if dependents {
            core.cancel_dependents(key);
        }
        core.cancel(now, key, &selection)
    })
}

/// Cancels a task of many executions in slices: others do not wait for the lock as long as that takes.
fn cancel_large(call: Call<'_>, key: TaskKey, dependents: bool) -> Handled {
    if let Some(why) = call.server.store.trouble() {
        return Err(answers::error(503, &why));
    }
    let server = call.server.clone();
    call.large(move || {
        if dependents {
            server.store.change(|core, _| core.cancel_dependents(key));
        }
        cancel_one(&server, key);
        match server.store.change_safely(|core, _| core.show(key)) {
            Ok(task) => answers::task(task),
            Err(not_safe) => answers::not_safe(not_safe),
        }
    })
}

/// `POST /api/v1/task/{id}/pause`.
pub fn pause(call: Call<'_>) -> Handled {
    change_task(call, |core, now, key| core.pause(now, key))
}

/// `POST /api/v1/task/{id}/resume`.
pub fn resume(call: Call<'_>) -> Handled {
    change_task(call, |core, now, key| core.resume(now, key))
}

/// `POST /api/v1/task/{id}/stop`.
pub fn stop(call: Call<'_>) -> Handled {
    let running = optional_flag(call.request, "running")?;
    change_task(call, |core, now, key| core.stop(now, key, running))
}

/// Changes the task that the path names, and answers with the task.
fn change_task(
    call: Call<'_>,
    operation: impl FnOnce(&mut Core, Time, TaskKey) -> Result<(), Refusal>,
) -> Handled {
    let key = named_task(&call)?;
    let changed = call.server.store.change_safely(|core, now| {
        operation(core, now, key)?;
        core.show(key)
    });
    let changed = changed.map_err(not_safe)?;
    if let Ok(task) = &changed {
        *call.change = Change::of(task);
    }
    call.large(move || answers::task(changed))
}

/// `DELETE /api/v1/task/{id}`.
pub fn delete(call: Call<'_>) -> Handled {
    let key = named_task(&call)?;
    let deleted = call.server.store.change_safely(|core, _| {
        let task = core.show(key)?;
        core.delete(key).map(|()| task)
    });
    *call.change = Change::of(&deleted.map_err(not_safe)?.map_err(refused)?);
    Ok(Some(answers::ok(())))
}
