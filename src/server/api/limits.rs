//! Calls about limits with a name.

use super::call::{Call, Handled};
use super::parse::body;
use crate::core::checked_limit;
use crate::server::answers::{bad, not_safe, ok, refused};
use crate::wire::limit::PostedLimit;
use crate::wire::strict_object::StrictObject;

/// The limit that the path names.
fn name<'a>(call: &'a Call<'_>) -> &'a str {
    call.request.path.last().map_or("", |part| &**part)
}

/// `PUT /api/v1/limit/{name}`.
pub fn set(call: Call<'_>) -> Handled {
    let StrictObject(posted): StrictObject<PostedLimit> = body(&call, "the limit")?;
    let name = name(&call);
    let allowed = checked_limit(name, &posted).map_err(bad)?;
    let store = &call.server.store;
    let set = store.change_safely(|core, now| core.set_limit(now, name, allowed));
    Ok(Some(ok(set.map_err(not_safe)?.map_err(refused)?)))
}

/// `GET /api/v1/limit/{name}`.
pub fn show(call: Call<'_>) -> Handled {
    let name = name(&call);
    let limit = call.server.store.ask(|core| core.limit(name));
    Ok(Some(ok(limit.map_err(refused)?)))
}

/// `GET /api/v1/limit`.
pub fn list(call: Call<'_>) -> Handled {
    Ok(Some(ok(call.server.store.ask(|core| core.limits()))))
}

/// `DELETE /api/v1/limit/{name}`.
pub fn remove(call: Call<'_>) -> Handled {
    let name = name(&call);
    let store = &call.server.store;
    let removed = store.change_safely(|core, _| core.remove_limit(name));
    removed.map_err(not_safe)?.map_err(refused)?;
    Ok(Some(ok(())))
}
