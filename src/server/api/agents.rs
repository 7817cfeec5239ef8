//! The calls of agents.

use super::call::{Call, Handled};
use super::parse::body;
use crate::core::{check_holds, check_probe_results, check_report, is_of_original};
use crate::server::answers::{self, not_safe, refused};
use crate::server::http::Answer;
use crate::server::state::Polled;
use crate::wire::agent::{Done, Goodbye, Output, Poll};
use crate::wire::strict_object::StrictObject;

/// `POST /api/v1/agent/poll`: held until there is something to do.
pub fn poll(call: Call<'_>) -> Handled {
    let StrictObject(poll): StrictObject<Poll> = body(&call, "the poll")?;
    check_holds(&poll.holds).map_err(refused)?;
    check_report(&[], &[], &poll.undos).map_err(refused)?;
    let Some(responder) = call.responder.take() else {
        return Ok(None);
    };
    let origin = call.caller.origin(call.request.peer);
    let polled = call.server.store.poll(&origin, &poll, responder);
    if !matches!(polled, Polled::Refused(..)) {
        call.server.access.note_agent(call.caller, &poll.label);
    }
    match polled {
        Polled::Held => Ok(None),
        Polled::Answer(responder, orders) => {
            *call.responder = Some(responder);
            Ok(Some(answers::orders(&orders)))
        }
        Polled::Refused(responder, refusal) => {
            *call.responder = Some(responder);
            Err(refused(refusal))
        }
        Polled::Unsafe(responder, why) => {
            *call.responder = Some(responder);
            Err(answers::error(503, &why))
        }
    }
}

/// An agent proves who it is by knowing its instance, which is random. That of an agent of the
/// original is made of its label, which anybody can guess: nobody else may speak for it.
fn check_speaks_for(instance: &str) -> Result<(), Answer> {
    if is_of_original(instance) {
        return Err(answers::error(422, "instance: is not an agent's own"));
    }
    Ok(())
}

/// `POST /api/v1/agent/output`.
pub fn output(call: Call<'_>) -> Handled {
    let StrictObject(output): StrictObject<Output> = body(&call, "the output")?;
    check_speaks_for(&output.instance)?;
    check_report(&output.pieces, &[], &[]).map_err(refused)?;
    // The agent drops what was taken.
    let taken = call
        .server
        .store
        .change_safely(|core, now| core.output(now, &output.instance, &output.pieces));
    let orders = taken.map_err(not_safe)?;
    Ok(Some(answers::orders(&orders)))
}

/// `POST /api/v1/agent/done`.
pub fn done(call: Call<'_>) -> Handled {
    let StrictObject(done): StrictObject<Done> = body(&call, "the results")?;
    check_speaks_for(&done.instance)?;
    check_report(&done.pieces, &done.results, &done.undos).map_err(refused)?;
    check_probe_results(&done.probes).map_err(refused)?;
    let taken = call
        .server
        .store
        .change_safely(|core, now| core.done_and_next(now, &done));
    let mut taken = taken.map_err(not_safe)?;
    taken.start = call.server.store.still_to_start(taken.start);
    Ok(Some(answers::ok(taken)))
}

/// `POST /api/v1/agent/goodbye`.
pub fn goodbye(call: Call<'_>) -> Handled {
    let StrictObject(goodbye): StrictObject<Goodbye> = body(&call, "the goodbye")?;
    check_speaks_for(&goodbye.instance)?;
    check_holds(&goodbye.holds).map_err(refused)?;
    let left = call
        .server
        .store
        .change_safely(|core, now| core.leave(now, &goodbye));
    left.map_err(not_safe)?;
    Ok(Some(answers::ok(())))
}
