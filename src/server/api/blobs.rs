//! The calls about files: people bring and take blobs, agents take what their tasks name and bring what they ask for.

use super::access::Caller;
use super::audit::Change;
use super::call::{Call, Handled};
use super::hand_out;
use super::parse;
use super::server::Server;
use super::transfer::{self, Content};
use crate::core::HandBack;
use crate::server::answers::{self, bad};
use crate::server::blobs::range;
use crate::server::blobs::{Begun, Done, Listed, MAX_PIECE_BYTES, NotRemoved, Refusal, Upload};
use crate::server::http::{Answer, Request};
use crate::server::images::Image;
use crate::wire::blobs::{Blob, Uploaded};
use crate::wire::files::BlobId;
use std::sync::Arc;

/// The longest name of a file, in bytes: no file system has longer ones.
const MAX_NAME_BYTES: usize = 255;
/// Tasks shown of a blob; `tasks` of the answer has no more.
const SHOWN_TASKS: usize = 10;
/// When somebody may come back whose transfer was not begun, in seconds.
const RETRY_SECONDS: u32 = 1;

/// Begins to take a body in; the error is the answer. A worker calls it, so it must not wait.
pub type Intake = fn(&Arc<Server>, &Request, &Caller) -> Result<Arc<Upload>, Answer>;

fn refused(refusal: Refusal) -> Answer {
    let msg = match &refusal {
        Refusal::Other(refused) => return answers::error(refused.status, &refused.msg),
        Refusal::Busy => {
            "as many files are being transferred as can be at once; come back in a second"
        }
        Refusal::Later(msg) => msg,
    };
    Answer {
        headers: format!("Retry-After: {RETRY_SECONDS}\r\n").into(),
        ..answers::error(503, msg)
    }
}

/// The blob that the path names.
fn named_blob(request: &Request) -> Result<BlobId, Answer> {
    let text = request.path.last().map_or("", String::as_str);
    let id = text.parse::<BlobId>();
    id.map_err(|why| bad(format!("sha256: {why}")))
}

/// `PUT /api/v1/file/{name}`: the beginning.
pub fn begin_file(
    server: &Arc<Server>,
    request: &Request,
    _: &Caller,
) -> Result<Arc<Upload>, Answer> {
    let name = request.path.last().map_or("", String::as_str);
    let is_good = !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.chars().any(|c| c.is_control() || c == '/');
    if !is_good {
        return Err(bad(format!(
            "name: must be 1 to {MAX_NAME_BYTES} bytes without control characters and slashes"
        )));
    }
    let begun = server.blobs.begin(name, request.body_bytes, None);
    begun.map_err(refused)
}

/// `PATCH /api/v1/blob/{sha256}`: the beginning. What needs no body is answered at once.
pub fn begin_piece(
    server: &Arc<Server>,
    request: &Request,
    _: &Caller,
) -> Result<Arc<Upload>, Answer> {
    let id = named_blob(request)?;
    let piece = range::piece(request.headers.content_range.as_deref()).map_err(bad)?;
    let offset = parse::parameter(request, "offset", range::offset)?;
    if offset.is_some_and(|offset| offset != piece.offset) {
        return Err(bad(format!(
            "offset: must be the first byte of Content-Range, {}",
            piece.offset
        )));
    }
    if piece.bytes > MAX_PIECE_BYTES {
        return Err(answers::error(
            413,
            &format!("Content-Range: a piece must have {MAX_PIECE_BYTES} bytes at most"),
        ));
    }
    if request.body_bytes.is_some_and(|bytes| bytes != piece.bytes) {
        return Err(bad(format!(
            "Content-Length: must be {}, as Content-Range says",
            piece.bytes
        )));
    }
    match server.blobs.begin_piece(id, piece).map_err(refused)? {
        Begun::Piece(upload) => Ok(upload),
        Begun::Whole(done) => Err(answers::ok(uploaded(&done))),
        Begun::Elsewhere(have) => Err(answers::with_data(
            409,
            format!("offset: must be {have}, so much of it has come"),
            Uploaded {
                sha256: id.to_string(),
                size: piece.total,
                have,
            },
        )),
    }
}

fn uploaded(done: &Done) -> Uploaded {
    Uploaded {
        sha256: done.id.to_string(),
        size: done.bytes,
        have: done.have,
    }
}

/// The end of every upload: all of its body has come.
pub fn finish(call: Call<'_>) -> Handled {
    let Some(upload) = call.upload else {
        return Err(bad("the body: is missing"));
    };
    let done = upload.finish().map_err(refused)?;
    *call.change = Change::of_blob(&done.id.to_string(), done.bytes);
    Ok(Some(answers::ok(uploaded(&done))))
}

/// `GET /api/v1/blob/{sha256}`.
pub fn read(call: Call<'_>) -> Handled {
    let id = named_blob(call.request)?;
    send(call, id, None)
}

fn send(call: Call<'_>, id: BlobId, image: Option<Image>) -> Handled {
    let blobs = &call.server.blobs;
    let is_head = call.request.method == "HEAD";
    let reading = blobs.read(id, !is_head).map_err(refused)?;
    let Some(reading) = reading else {
        if let Some(image) = image {
            return hand_out::send(call, image);
        }
        let half = blobs.half(id).map_err(refused)?;
        let headers = half.map(|have| format!("Upload-Offset: {have}\r\n"));
        let msg = match half {
            None => "sha256: there is no such file here".to_owned(),
            Some(have) => format!("sha256: only {have} bytes of it have come"),
        };
        return Err(Answer {
            headers: headers.unwrap_or_default().into(),
            ..answers::error(404, &msg)
        });
    };
    // A HEAD moves nothing.
    let permit = match is_head {
        true => None,
        false => Some(blobs.permit().map_err(refused)?),
    };
    let name = match reading.name.is_empty() {
        true => id.to_string(),
        false => safe_name(&reading.name),
    };
    let content = Content {
        file: reading.file,
        base: reading.base,
        bytes: reading.bytes,
        sha256: id.to_string(),
        name,
        sent: call.server.transfers.bytes_sent.clone(),
        kept: Box::new((reading.kept, permit)),
    };
    transfer::answer(call, content)
}

/// A name that can stand between quotes in a header.
fn safe_name(name: &str) -> String {
    let safe = |c: char| match c {
        '"' | '\\' => '_',
        c if c.is_ascii_graphic() || c == ' ' => c,
        _ => '_',
    };
    name.chars().map(safe).collect()
}

/// `GET /api/v1/blob`.
pub fn list(call: Call<'_>) -> Handled {
    let server = call.server.clone();
    call.large(move || {
        let listed = server.blobs.list().into_iter();
        let blobs: Vec<Blob> = listed.map(|listed| described(&server, &listed)).collect();
        answers::ok(blobs)
    })
}

fn described(server: &Server, listed: &Listed) -> Blob {
    let (tasks, needed) = server
        .store
        .ask(|core| core.tasks_with_blob(listed.id, SHOWN_TASKS));
    Blob {
        sha256: listed.id.to_string(),
        size: listed.bytes,
        have: listed.have,
        name: listed.name.to_string(),
        since: humantime::format_rfc3339_millis(listed.since).to_string(),
        tasks: tasks.iter().map(|task| task.to_string()).collect(),
        needed,
    }
}

/// `DELETE /api/v1/blob/{sha256}`.
pub fn delete(call: Call<'_>) -> Handled {
    let id = named_blob(call.request)?;
    *call.change = Change::of_blob(&id.to_string(), 0);
    match call.server.blobs.delete(id) {
        Ok(true) => Ok(Some(answers::ok(()))),
        Ok(false) => Err(answers::error(404, "sha256: there is no such file here")),
        Err(NotRemoved::Refused(why)) => Err(refused(why)),
        Err(NotRemoved::Needed) => {
            let (tasks, _) = call
                .server
                .store
                .ask(|core| core.tasks_with_blob(id, SHOWN_TASKS));
            let msg = match tasks.is_empty() {
                true => "a task is just being submitted with it".to_owned(),
                false => format!("a task that has not ended needs it: {}", tasks.join(", ")),
            };
            Err(answers::error(409, &msg))
        }
    }
}

/// The instance of the agent that asks.
fn instance(request: &Request) -> Result<&str, Answer> {
    let instance = request
        .headers
        .instance
        .as_ref()
        .map(|instance| instance.expose());
    instance.ok_or_else(|| bad("Sidebike-Instance: must be the agent's instance"))
}

/// `GET /api/v1/agent/file/{sha256}`.
pub fn read_for_agent(call: Call<'_>) -> Handled {
    let id = named_blob(call.request)?;
    let instance = instance(call.request)?;
    if !call
        .server
        .store
        .ask(|core| core.may_take_blob(instance, id))
    {
        return Err(answers::error(
            403,
            "sha256: no task that was handed to this instance names this file",
        ));
    }
    // A task may name it because it is what the server hands out.
    let image = match call.server.blobs.size(id) {
        Some(_) => None,
        None => call.server.images.with_hash(&id.to_string()),
    };
    send(call, id, image)
}

/// `PUT /api/v1/agent/file`: the beginning.
pub fn begin_hand_back(
    server: &Arc<Server>,
    request: &Request,
    _: &Caller,
) -> Result<Arc<Upload>, Answer> {
    let instance = instance(request)?;
    let needed = |name: &str| {
        let value = request.query(name);
        value.ok_or_else(|| bad(format!("{name}: is needed")))
    };
    let attempt = needed("attempt")?.parse::<u32>();
    let asked = HandBack {
        instance,
        execution: needed("execution")?,
        attempt: attempt.map_err(|_| bad("attempt: expected the number of an attempt"))?,
        path: needed("path")?,
    };
    let Some(max) = server.store.ask(|core| core.may_hand_back(&asked)) else {
        return Err(answers::error(
            403,
            "path: no attempt that this instance has is to hand back this file",
        ));
    };
    let name = asked.path.rsplit('/').next().unwrap_or_default();
    let name = &name[..name.floor_char_boundary(MAX_NAME_BYTES)];
    let begun = server.blobs.begin(
        name,
        request.body_bytes,
        Some((max, "max of the task's fetch")),
    );
    begun.map_err(refused)
}
