//! Calls about limits with a name.

use super::audit::Change;
use super::call::{Call, Handled};
use super::parse::body;
use crate::core::{Refusal, checked_limit};
use crate::server::answers::{bad, not_safe, ok, refused};
use crate::wire::limit::{Limit, PostedLimit};
use crate::wire::strict_object::StrictObject;

/// The limit that the path names.
fn name<'a>(call: &'a Call<'_>) -> &'a str {
    call.request.path.last().map_or("", |part| &**part)
}

/// What a limit allows, for the audit.
fn in_words(limit: &Limit) -> String {
    let parts = [("running", limit.running), ("perMinute", limit.per_minute)];
    let parts = parts.map(|(field, most)| most.map(|most| format!("{field} {most}")));
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    parts.join(", ")
}

/// `PUT /api/v1/limit/{name}`.
pub fn set(call: Call<'_>) -> Handled {
    let StrictObject(posted): StrictObject<PostedLimit> = body(&call, "the limit")?;
    let name = name(&call);
    let allowed = checked_limit(name, &posted).map_err(bad)?;
    let store = &call.server.store;
    let set = store.change_safely(|core, now| {
        let before = core.limit(name).ok();
        Ok::<_, Refusal>((before, core.set_limit(now, name, allowed)?))
    });
    let (before, set) = set.map_err(not_safe)?.map_err(refused)?;
    let was = before.map_or_else(
        || "new".into(),
        |before| format!("was {}", in_words(&before)),
    );
    *call.change = Change::of_limit(&format!("{} ({was})", in_words(&set)));
    Ok(Some(ok(set)))
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
    let removed = store.change_safely(|core, _| {
        let before = core.limit(name)?;
        core.remove_limit(name)?;
        Ok::<_, Refusal>(before)
    });
    let before = removed.map_err(not_safe)?.map_err(refused)?;
    *call.change = Change::of_limit(&format!("gone (was {})", in_words(&before)));
    Ok(Some(ok(())))
}
