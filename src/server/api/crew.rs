//! Calls about the agents as a crew: suspend machines, drain agents, shut them down.

use super::audit::Change;
use super::call::{Call, Handled};
use super::parse::body;
use crate::core::{MAX_LABELS, MAX_REASON_BYTES, Narrowing, Refusal, Selector, SelectorText, Wish};
use crate::server::answers::{self, bad, not_safe, ok, refused};
use crate::server::http::Answer;
use crate::wire::crew::{PostedSuspension, Summary, Suspension};
use crate::wire::duration::TimeSpan;
use crate::wire::machine::Machine;
use crate::wire::strict_object::StrictObject;
use crate::wire::task::ExecutionState;

/// The shortest and the longest time of a suspension that ends by itself: what is longer has to be lifted.
const MIN_FOR: TimeSpan = TimeSpan::from_secs(1);
const MAX_FOR: TimeSpan = TimeSpan::from_secs(366 * 24 * 3_600);
/// The most machines that are drained while the lock is held once.
const MAX_DRAINED: usize = 500;

/// `POST /api/v1/suspend`.
pub fn suspend(call: Call<'_>) -> Handled {
    let StrictObject(posted): StrictObject<PostedSuspension> = body(&call, "the suspension")?;
    let PostedSuspension {
        machine_pattern,
        duration,
        reason,
    } = posted;
    if reason.len() > MAX_REASON_BYTES {
        return Err(bad(format!(
            "reason: must have {MAX_REASON_BYTES} bytes at most, got {}",
            reason.len()
        )));
    }
    if let Some(span) = duration.filter(|span| !(MIN_FOR..=MAX_FOR).contains(span)) {
        return Err(bad(format!(
            "for: must be from {MIN_FOR} to {MAX_FOR}, got {span}; without it the suspension is in force until it is lifted"
        )));
    }
    let store = &call.server.store;
    let mut is_known = false;
    let known = |text: &SelectorText| {
        let selector = store.ask(|core| core.selector(text));
        is_known = selector.is_some();
        selector
    };
    let pattern = Some(machine_pattern);
    let selector = Selector::checked(pattern, Narrowing::default(), &call.server.texts, known);
    let mut selector = selector.map_err(bad)?;
    if !is_known {
        store.match_machines(&mut selector);
    }
    let suspended = store.change_safely(|core, now| {
        let suspension = core.suspend(now, &selector, &reason, duration)?;
        Ok::<_, Refusal>(suspension.answer())
    });
    let suspension = suspended.map_err(not_safe)?.map_err(refused)?;
    *call.change = Change::of_suspension(&suspension.machine_pattern, &suspension.reason);
    Ok(Some(ok(suspension)))
}

/// `GET /api/v1/suspend`.
pub fn suspensions(call: Call<'_>) -> Handled {
    let store = &call.server.store;
    let all: Vec<Suspension> = store.ask(|core| core.suspensions().map(|it| it.answer()).collect());
    Ok(Some(ok(all)))
}

/// `DELETE /api/v1/suspend`.
pub fn lift(call: Call<'_>) -> Handled {
    let pattern = call.request.query("machinePattern");
    let lifted = call.server.store.change_safely(|core, now| {
        let lifted = core.lift_suspensions(now, pattern);
        lifted.iter().map(|it| it.answer()).collect()
    });
    let lifted: Vec<Suspension> = lifted.map_err(not_safe)?;
    if let (Some(pattern), true) = (pattern, lifted.is_empty()) {
        return Err(answers::error(
            404,
            &format!("machinePattern: no suspension has exactly this pattern, {pattern:?}"),
        ));
    }
    let patterns: Vec<&str> = lifted.iter().map(|it| &*it.machine_pattern).collect();
    *call.change = Change::of_suspension(&patterns.join(" "), "");
    Ok(Some(ok(lifted)))
}

/// `GET /api/v1/summary`.
pub fn summary(call: Call<'_>) -> Handled {
    let store = &call.server.store;
    let (mut labels, oldest) = store.summary();
    let more_labels = labels.len().saturating_sub(MAX_LABELS) as u64;
    labels.truncate(MAX_LABELS);
    let mut summary = store.look(|core, now| {
        let tasks = core.tasks_by_state().into_iter();
        let machines = core.machines_by_state().into_iter();
        let mut executions = core.executions_by_state();
        let executions = ExecutionState::ALL.into_iter().map(|state| {
            let count = *executions.of(state);
            (state.word().to_owned(), u64::from(count))
        });
        Summary {
            tasks: tasks
                .map(|(state, n)| (state.word().to_owned(), n as u64))
                .collect(),
            executions: executions.collect(),
            machines: machines
                .map(|(state, n)| (state.word().to_owned(), n as u64))
                .collect(),
            labels,
            more_labels,
            oldest,
            suspensions: core.suspensions().map(|it| it.answer()).collect(),
            limits: core.limits(),
            schedules: { core.schedules_by_state().into_iter() }
                .map(|(state, n)| (state.word().to_owned(), n as u64))
                .collect(),
            schedules_due: core.schedules_due(now) as u64,
            halt: core.halt().map(|halt| halt.answer()),
            undos_open: core.debts() as u64,
            servers: Vec::new(),
        }
    });
    if let Some(shared) = &call.server.shared {
        summary.servers = (shared.servers)();
    }
    call.large(move || ok(summary))
}

/// `POST /api/v1/machine/{instance or label}/drain`.
pub fn drain(call: Call<'_>) -> Handled {
    wish(call, Wish::Drain)
}

/// `POST /api/v1/machine/{instance or label}/undrain`.
pub fn undrain(call: Call<'_>) -> Handled {
    wish(call, Wish::Undrain)
}

/// `POST /api/v1/machine/{instance or label}/shutdown`.
pub fn shutdown(call: Call<'_>) -> Handled {
    wish(call, Wish::Shutdown)
}

/// Notes a wish for the machines that the path names, and answers with them. For many of them the lock is released in
/// between.
fn wish(call: Call<'_>, wish: Wish) -> Handled {
    let path: &[String] = &call.request.path;
    let name = path.get(3).map(String::as_str).unwrap_or_default();
    let store = &call.server.store;
    let meant = store.ask(|core| {
        let meant = core.machines_named(name)?;
        core.check_wish(&meant, wish).map(|()| meant)
    });
    let meant = meant.map_err(refused)?;
    let mut machines: Vec<Machine> = Vec::with_capacity(meant.len());
    for some in meant.chunks(MAX_DRAINED) {
        let changed = store.change_safely(|core, now| {
            let snapshots = some.iter().filter_map(|key| core.wish(now, *key, wish));
            snapshots.collect::<Vec<_>>()
        });
        let changed = changed.map_err(not_safe)?;
        machines.extend(changed.iter().map(|machine| machine.answer()));
    }
    *call.change = Change::of_machines(machines.iter().map(|machine| &*machine.label));
    call.large(move || -> Answer { ok(machines) })
}
