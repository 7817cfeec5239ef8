//! `POST /api/v1/tasks`: several tasks at once, all or none.

use super::audit::Change;
use super::call::{Call, Handled};
use super::parse::{body, flag};
use crate::core::{ListRefusal, Refusal, Selector, SelectorText, Spec, Task, within};
use crate::server::answers::{self, bad, refused};
use crate::server::http::Answer;
use crate::wire::strict_object::Posted;
use crate::wire::task::{MAX_LIST, PostedTask, PostedTasks};
use crate::wire::{ERROR, Envelope};
use std::collections::HashMap;
use std::sync::Arc;

/// Submits all tasks of a list, or none.
pub fn submit(call: Call<'_>) -> Handled {
    let is_dry = flag(call.request, "dryRun")?;
    let PostedTasks(posted) = body(&call, "tasks")?;
    if posted.is_empty() {
        return Err(bad(format!(
            "tasks: the list is empty, expected 1 to {MAX_LIST} tasks"
        )));
    }
    let store = &call.server.store;
    if let Some(why) = store.trouble() {
        return Err(answers::error(503, &why));
    }
    let list = checked(&call, posted)?;
    // Only this is done with the lock held: everything was read, compiled and matched before.
    let accepted = store.change_safely(|core, now| match core.submit_all(now, list, is_dry) {
        Ok(accepted) => Ok(accepted),
        Err(ListRefusal::Taken(taken)) => {
            let tasks = core.show_all(taken.iter().map(|(_, key)| *key));
            let items = taken.into_iter().map(|(item, _)| item);
            Err(Refused::Taken(items.collect(), tasks))
        }
        Err(ListRefusal::Item(item, refusal)) => Err(Refused::Item(item, refusal)),
    });
    match accepted {
        Ok(Ok((_, tasks))) if is_dry => {
            call.large(move || answer(200, 0, "dry run: nothing was submitted".into(), &tasks))
        }
        Ok(Ok((_, tasks))) => {
            *call.change = Change::of_all(&tasks);
            call.large(move || answer(200, 0, String::new(), &tasks))
        }
        Ok(Err(Refused::Item(item, refusal))) => {
            Err(refused(refusal.within(&format!("tasks[{item}]"))))
        }
        Ok(Err(Refused::Taken(items, tasks))) => call.large(move || {
            let msg = format!(
                "tasks[{}].id: is taken by the first task in data; {} of the ids are taken, and nothing was submitted",
                items.first().copied().unwrap_or_default(),
                items.len()
            );
            answer(409, ERROR, msg, &tasks)
        }),
        Err((result, why)) => {
            if let Ok((keys, _)) = result {
                store.change(|core, now| core.withdraw_all(now, &keys));
            }
            Err(answers::error(503, &why))
        }
    }
}

/// Why nothing was submitted.
enum Refused {
    /// The ids of these items are taken by these tasks.
    Taken(Vec<usize>, Vec<Task>),
    Item(usize, Refusal),
}

/// The tasks, checked and matched with the machines, each with a fresh id.
fn checked(
    call: &Call<'_>,
    posted: Vec<Posted<PostedTask>>,
) -> Result<Vec<(String, Spec)>, Answer> {
    let store = &call.server.store;
    let mut ids: HashMap<Arc<str>, usize> = HashMap::new();
    // Most tasks of a list are for the same machines: each selector is compiled and matched once.
    let mut selectors: HashMap<SelectorText, Selector> = HashMap::new();
    let mut list = Vec::with_capacity(posted.len());
    for (item, Posted(posted)) in posted.into_iter().enumerate() {
        let mut is_known = false;
        let known = |text: &SelectorText| {
            let selector = selectors.get(text).cloned();
            let selector = selector.or_else(|| store.ask(|core| core.selector(text)));
            is_known = selector.is_some();
            selector
        };
        let mut spec = Spec::checked(posted, &call.server.texts, known)
            .map_err(|why| bad(within(&format!("tasks[{item}]"), &why)))?;
        for (n, selector) in spec.selectors_mut().enumerate() {
            if n > 0 || !is_known {
                store.match_machines(selector);
            }
            if n == 0 && !is_known {
                selectors.insert(selector.text().clone(), selector.clone());
            }
        }
        if let Some(id) = &spec.id
            && let Some(before) = ids.insert(id.clone(), item)
        {
            return Err(bad(format!(
                "tasks[{item}].id: is given twice, tasks[{before}] has it, too"
            )));
        }
        list.push((call.server.fresh_id(), spec));
    }
    Ok(list)
}

fn answer(status: u16, signal: i32, msg: String, tasks: &[Task]) -> Answer {
    let data: Vec<_> = { tasks.iter() }
        .map(|task| task.listed(answers::LISTED_OUTPUT_BYTES, answers::LISTED_DETAIL_BYTES))
        .collect();
    let list = Envelope {
        signal,
        msg,
        data,
        next: None,
    };
    answers::json(status, &list)
}
