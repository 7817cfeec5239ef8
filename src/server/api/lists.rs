//! `POST /api/v1/tasks`: several tasks at once, all or none.

use super::audit::Change;
use super::call::{Call, Handled};
use super::parse::body;
use crate::core::{ListRefusal, Refusal, Selector, SelectorText, Spec, Task};
use crate::server::answers::{self, bad, refused};
use crate::server::http::Answer;
use crate::wire::strict_object::Posted;
use crate::wire::task::{MAX_LIST, PostedTask, PostedTasks};
use crate::wire::{ERROR, Envelope};
use std::collections::HashMap;
use std::sync::Arc;

/// Submits all tasks of a list, or none.
pub fn submit(call: Call<'_>) -> Handled {
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
    let accepted = store.change_safely(|core, now| match core.submit_all(now, list) {
        Ok(keys) => {
            let tasks = core.show_all(keys.iter().copied());
            Ok((keys, tasks))
        }
        Err(ListRefusal::Taken(taken)) => {
            let tasks = core.show_all(taken.iter().map(|(_, key)| *key));
            let items = taken.into_iter().map(|(item, _)| item);
            Err(Refused::Taken(items.collect(), tasks))
        }
        Err(ListRefusal::Item(item, refusal)) => Err(Refused::Item(item, refusal)),
    });
    match accepted {
        Ok(Ok((_, tasks))) => {
            *call.change = Change::of_all(&tasks);
            call.large(move || answer(200, 0, String::new(), &tasks))
        }
        Ok(Err(Refused::Item(item, refusal))) => Err(refused(at_item(item, refusal))),
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
            .map_err(|why| bad(with_item(item, &why)))?;
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

/// A refusal that says which item it is about.
fn at_item(item: usize, refusal: Refusal) -> Refusal {
    match refusal {
        // Only of an id that the server made, which is never used.
        Refusal::Taken(key) => Refusal::Taken(key),
        Refusal::Duplicate(_) | Refusal::Joins(_) => {
            Refusal::Conflict(with_item(item, &refusal.to_string()))
        }
        Refusal::Unknown(why) => Refusal::Unknown(with_item(item, &why)),
        Refusal::Conflict(why) => Refusal::Conflict(with_item(item, &why)),
        Refusal::Wrong(why) => Refusal::Wrong(with_item(item, &why)),
        Refusal::Impossible(why) => Refusal::Impossible(with_item(item, &why)),
        Refusal::Full(why) => Refusal::Full(with_item(item, &why)),
    }
}

/// `tasks[3].detail.command: …`, or `tasks[3]: …` where the reason names no field.
fn with_item(item: usize, why: &str) -> String {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || "._-/[]".contains(c);
    let field = why.split_once(':').map_or("", |(field, _)| field);
    match !field.is_empty() && field.chars().all(is_of_a_name) {
        true => format!("tasks[{item}].{why}"),
        false => format!("tasks[{item}]: {why}"),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_item_and_its_field() {
        for (why, said) in [
            ("detail: needs command", "tasks[3].detail: needs command"),
            ("detail.env.A: no NUL", "tasks[3].detail.env.A: no NUL"),
            ("detail.argv[1]: no NUL", "tasks[3].detail.argv[1]: no NUL"),
            ("5 executions have: no", "tasks[3]: 5 executions have: no"),
            ("the task is gone", "tasks[3]: the task is gone"),
        ] {
            assert_eq!(with_item(3, why), said);
        }
    }
}
