//! Calls about machines.

use super::call::{Call, Handled};
use super::parse::parameter;
use super::server::Server;
use crate::core::pattern_of;
use crate::rules::{MAX_TAGS, check_tag_name, one_of};
use crate::server::answers::{self, bad};
use crate::wire::machine::{Machine, MachineState};
use regex::Regex;

/// `GET /api/v1/machine`.
pub fn list(call: Call<'_>) -> Handled {
    let label = call.request.query("label");
    let state = parameter(call.request, "state", |text| {
        one_of(&MachineState::ALL, MachineState::word, text)
    })?;
    // As many as a machine can have; each is compiled.
    let number = call.request.query_all("tag").count();
    if number > MAX_TAGS {
        return Err(bad(format!(
            "tag: can be given {MAX_TAGS} times at most, got {number}"
        )));
    }
    let tags = call.request.query_all("tag").map(|text| {
        let filter = tag_filter(text, call.server);
        filter.map_err(|why| bad(format!("tag: {why}, got {text:?}")))
    });
    let tags: Vec<(String, Regex)> = tags.collect::<Result<_, _>>()?;
    let mut machines = call.server.store.machines(label, state);
    call.large(move || {
        machines.retain(|machine| {
            tags.iter().all(|(name, pattern)| {
                let value = machine.tags.get(name);
                value.is_some_and(|value| pattern.is_match(value))
            })
        });
        // By label, the newest last.
        machines.sort_by(|a, b| a.target.label.cmp(&b.target.label));
        let machines: Vec<Machine> = machines.iter().map(|machine| machine.answer()).collect();
        answers::ok(machines)
    })
}

/// Reads `name=pattern`, as in the `machineTags` of a task.
fn tag_filter(text: &str, server: &Server) -> Result<(String, Regex), String> {
    let (name, pattern) = text.split_once('=').ok_or("expected NAME=PATTERN")?;
    check_tag_name(name)?;
    let pattern = pattern_of("its pattern", pattern, &server.texts)?;
    Ok((name.to_owned(), pattern))
}
