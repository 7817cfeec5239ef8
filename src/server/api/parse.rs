//! What handlers read of a request: its body as JSON, its parameters, the task that its path names.

use super::call::Call;
use super::encoding;
use crate::core::TaskKey;
use crate::server::answers::{bad, refused};
use crate::server::http::{Answer, Request};
use crate::wire::duration::TimeSpan;
use serde::de::DeserializeOwned;

/// The longest a request may wait for a task: longer ones are asked again.
const MAX_WAIT: TimeSpan = TimeSpan::from_secs(3_600);

/// Reads a JSON body, as a [`StrictObject`](crate::wire::strict_object::StrictObject) or `Posted`. The error names the field.
pub fn body<T: DeserializeOwned>(call: &Call<'_>, what: &str) -> Result<T, Answer> {
    let bytes = encoding::without_mark(&call.request.body);
    if bytes.is_empty() {
        return Err(bad(format!("{what}: the body is empty, expected JSON")));
    }
    let other = |error| match encoding::refusal(bytes) {
        Some(why) => bad(format!("{what}: the body {why}")),
        None => error,
    };
    check_depth(call, what).map_err(other)?;
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    let read = read_with_path(bytes, |path| match path {
        "" => what.to_owned(),
        // Of an entry of a list: `tasks[3].detail`.
        path if path.starts_with('[') => format!("{what}{path}"),
        path => path.to_owned(),
    });
    let (value, end) = read.map_err(|why| other(bad(why)))?;
    end.map_err(|why| bad(format!("{what}: something follows the JSON: {why}")))?;
    Ok(value)
}

/// Reads the JSON of a field of a body, which is a text of its own. The error names the field.
pub fn read_strictly<T: DeserializeOwned>(bytes: &[u8], field: &str) -> Result<T, String> {
    if let Ok(value) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    let read = read_with_path(bytes, |path| match path {
        "" => field.to_owned(),
        path if field.contains(' ') => path.to_owned(),
        path => format!("{field}.{path}"),
    });
    Ok(read?.0)
}

/// Reads JSON; the error says where it is, as `named` names the path. Also whether nothing follows. To keep in mind where
/// one is costs as much as to read: only for the words of an error.
fn read_with_path<T: DeserializeOwned>(
    bytes: &[u8],
    named: impl FnOnce(&str) -> String,
) -> Result<(T, serde_json::Result<()>), String> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = serde_path_to_error::deserialize(&mut json);
    let value: T = read.map_err(|error| {
        let path = error.path().to_string();
        // "?" stands where the JSON broke off before a name was complete.
        let field = named(path.trim_end_matches('?').trim_end_matches('.'));
        let mut why = in_words_of_json(&error.inner().to_string());
        if why.starts_with("invalid unicode code point") {
            why = "is not UTF-8; send the body as UTF-8".into();
        }
        format!("{field}: {why}")
    })?;
    let end = json.end();
    Ok((value, end))
}

/// serde's message about a value of the wrong type, with words of JSON in place of those of Rust.
fn in_words_of_json(why: &str) -> String {
    let Some((got, expected)) = why.rsplit_once(", expected ") else {
        return why.to_owned();
    };
    let (expected, place) = match expected.find(" at line ") {
        Some(at) => expected.split_at(at),
        None => (expected, ""),
    };
    let expected = match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0 on",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        other => other,
    };
    let got = match got {
        "invalid type: sequence" => "invalid type: a list",
        "invalid type: map" => "invalid type: an object",
        other => other,
    };
    format!("{got}, expected {expected}{place}")
}

/// Refuses a body whose JSON is nested too deeply, before anything is made of it.
pub fn check_depth(call: &Call<'_>, what: &str) -> Result<(), Answer> {
    let max = call.server.max_json_depth;
    if nests_within(&call.request.body, max) {
        return Ok(());
    }
    Err(bad(format!(
        "{what}: must not be nested deeper than {max} (--max-json-depth)"
    )))
}

/// Whether arrays and objects are nested no deeper than `max`.
pub fn nests_within(body: &[u8], max: usize) -> bool {
    let (mut depth, mut at) = (0usize, 0);
    while let Some(byte) = body.get(at) {
        at += 1;
        match byte {
            b'"' => at += string_length(&body[at..]),
            b'{' | b'[' if depth == max => return false,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    true
}

/// The length of a JSON string in bytes, from after its opening quote to after its closing one.
fn string_length(rest: &[u8]) -> usize {
    let mut is_escaped = false;
    for (at, byte) in rest.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Reads a parameter of the query.
pub fn parameter<T>(
    request: &Request,
    name: &str,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Result<Option<T>, Answer> {
    let value = request.query(name).map(read).transpose();
    value.map_err(|why| {
        bad(format!(
            "{name}: {why}, got {:?}",
            request.query(name).unwrap_or_default()
        ))
    })
}

/// How long the caller wants to wait, in milliseconds.
pub fn wait_ms(request: &Request) -> Result<u64, Answer> {
    let read = |text: &str| match text.parse::<TimeSpan>() {
        Ok(span) if span <= MAX_WAIT => Ok(span),
        _ => Err(format!(
            "expected a number of seconds or a string such as \"90s\", {MAX_WAIT} at most"
        )),
    };
    Ok(parameter(request, "wait", read)?
        .unwrap_or_default()
        .as_millis())
}

/// The task that the path names.
pub fn named_task(call: &Call<'_>) -> Result<TaskKey, Answer> {
    let name = task_name(call);
    let found = call.server.store.ask(|core| core.find_task(name));
    found.map_err(refused)
}

/// The task that the path names, if only by the beginning of its id: for calls that change nothing.
pub fn looked_at_task(call: &Call<'_>) -> Result<TaskKey, Answer> {
    let name = task_name(call);
    let store = &call.server.store;
    let found = store.ask(|core| core.find_task_by_beginning(name));
    found.map_err(refused)
}

fn task_name<'a>(call: &Call<'a>) -> &'a str {
    let path: &'a [String] = &call.request.path;
    path.get(3).map(String::as_str).unwrap_or_default()
}

/// A parameter that is either set or not.
pub fn flag(request: &Request, name: &str) -> Result<bool, Answer> {
    Ok(optional_flag(request, name)?.unwrap_or(false))
}

/// A parameter that is set, not set, or left to its default.
pub fn optional_flag(request: &Request, name: &str) -> Result<Option<bool>, Answer> {
    parameter(request, name, |text| match text {
        "1" | "true" | "" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("expected 1 or 0".into()),
    })
}
