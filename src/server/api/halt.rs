//! Calls about the halt of all experiments, and what has to be known of them at a glance.

use super::call::{Call, Handled};
use super::parse::{body, flag};
use crate::core::MAX_REASON_BYTES;
use crate::server::answers::{bad, not_safe, ok};
use crate::wire::halt::{Halted, PostedHalt, Status};
use crate::wire::strict_object::StrictObject;

/// `POST /api/v1/halt`.
pub fn halt(call: Call<'_>) -> Handled {
    let all = flag(call.request, "all")?;
    let StrictObject(PostedHalt { reason }) = body(&call, "the halt")?;
    if reason.trim().is_empty() || reason.len() > MAX_REASON_BYTES {
        return Err(bad(format!(
            "reason: must have 1 to {MAX_REASON_BYTES} bytes"
        )));
    }
    let halted = call.server.store.change_safely(|core, now| {
        let (halt, canceled) = core.begin_halt(now, &reason, all);
        Halted {
            halt: halt.answer(),
            canceled,
        }
    });
    Ok(Some(ok(halted.map_err(not_safe)?)))
}

/// `DELETE /api/v1/halt`.
pub fn lift(call: Call<'_>) -> Handled {
    let lifted = call.server.store.change_safely(|core, _| core.lift_halt());
    lifted.map_err(not_safe)?;
    Ok(Some(ok(())))
}

/// `GET /api/v1/halt`.
pub fn show(call: Call<'_>) -> Handled {
    let halt = call
        .server
        .store
        .ask(|core| core.halt().map(|halt| halt.answer()));
    Ok(Some(ok(halt)))
}

/// `GET /api/v1/status`.
pub fn status(call: Call<'_>) -> Handled {
    let status = call.server.store.ask(|core| Status {
        halt: core.halt().map(|halt| halt.answer()),
        undos_open: core.debts(),
    });
    Ok(Some(ok(status)))
}
