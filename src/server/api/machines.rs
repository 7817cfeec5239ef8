//! Calls about machines.

use super::call::{Call, Handled};
use super::parse::parameter;
use crate::rules::one_of;
use crate::server::answers;
use crate::wire::machine::{Machine, MachineState};

/// `GET /api/v1/machine`.
pub fn list(call: Call<'_>) -> Handled {
    let label = call.request.query("label");
    let state = parameter(call.request, "state", |text| {
        one_of(&MachineState::ALL, MachineState::word, text)
    })?;
    let mut machines = call
        .server
        .store
        .ask(|core| core.list_machines(label, state));
    call.large(move || {
        // By label, the newest last.
        machines.sort_by(|a, b| a.target.label.cmp(&b.target.label));
        let machines: Vec<Machine> = machines.iter().map(|machine| machine.answer()).collect();
        answers::ok(machines)
    })
}
