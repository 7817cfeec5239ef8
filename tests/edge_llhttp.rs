//! llhttp's own collection of good and bad requests, with the verdict of a strict parser for each.
//!
//! It is read from beside the repository, and left out with a word where it is not. The server knows few
//! paths and methods: that it has understood a request is seen by any answer that is not about its form.
//! What is refused must not be followed by another answer: whatever stands behind is no request. There is
//! no request that the strict parser accepts and this server refuses; where it is stricter than lenient
//! parsers (bare LF, folds, HTTP/0.9), the collection says `refuse`, or `any`, which does not count.

mod common;
mod edge;

use common::Server;
use common::http::Reply;
use edge::{Client, NoAnswer, get};
use serde_json::Value;
use std::path::Path;
use std::time::Duration;

/// A request may take 2 s on this server, and the machine may be busy.
const CUT: Duration = Duration::from_secs(20);
/// Answers about a request's form.
const ABOUT_FORM: [u16; 6] = [400, 408, 414, 417, 431, 505];

/// A vector of the collection.
struct Vector {
    title: String,
    bytes: Vec<u8>,
    verdict: String,
    /// Whole requests in it.
    requests: usize,
    why: String,
}

fn latin_1(text: &str) -> Vec<u8> {
    let byte = |c| u8::try_from(u32::from(c)).expect("latin-1");
    text.chars().map(byte).collect()
}

fn vectors() -> Option<Vec<Vector>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/llhttp.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("left out: there is no {}", path.display());
        return None;
    };
    let file: Value = serde_json::from_str(&text).expect("a collection in JSON");
    let vectors = file["vectors"].as_array().expect("a list");
    let word = |value: &Value| value.as_str().expect("a text").to_owned();
    let vector = |vector: &Value| Vector {
        title: word(&vector[0]),
        bytes: latin_1(&word(&vector[1])),
        verdict: word(&vector[2]),
        requests: vector[3].as_u64().expect("a number") as usize,
        why: word(&vector[4]),
    };
    Some(vectors.iter().map(vector).collect())
}

/// Sends it, then FIN, and reads all answers.
fn answers(server: &Server, bytes: &[u8], in_parts_of: usize) -> (Vec<Reply>, NoAnswer) {
    let mut client = Client::open(server.address);
    client.patience(CUT);
    for part in bytes.chunks(in_parts_of) {
        client.send(part);
    }
    client.finish();
    client.answers(bytes.starts_with(b"HEAD "))
}

/// The status; 404 where the request was understood and its path has no such parameter.
fn status(reply: &Reply) -> u16 {
    match reply.text().contains("is not a parameter of this call") {
        true => 404,
        false => reply.status,
    }
}

/// What is wrong with the answers; `None` when nothing is.
fn judge(server: &Server, vector: &Vector, in_parts_of: usize) -> Option<String> {
    let (replies, end) = answers(server, &vector.bytes, in_parts_of);
    let statuses: Vec<u16> = replies.iter().map(status).collect();
    let (understood, refused): (Vec<u16>, Vec<u16>) =
        { statuses.iter() }.partition(|status| !ABOUT_FORM.contains(status));
    let is_in_order = statuses.iter().position(|s| ABOUT_FORM.contains(s))
        >= Some(understood.len())
        || refused.is_empty();
    let is_right = match &*vector.verdict {
        // Of what is not whole the head may be.
        "accept" => understood.len() >= vector.requests && understood.len() <= vector.requests + 1,
        // 501: of another transfer coding.
        "refuse" => understood.iter().all(|status| *status == 501),
        "refuse body" => understood.len() <= 1,
        other => panic!("an unknown verdict: {other}"),
    };
    let is_over = !matches!(end, NoAnswer::TimedOut | NoAnswer::Broken(_));
    if is_right && is_in_order && is_over && refused.len() <= 1 {
        return None;
    }
    Some(format!(
        "{}: {} ({}), in parts of {in_parts_of}: {statuses:?}, then {end:?}",
        vector.title, vector.verdict, vector.why
    ))
}

/// Behind what was refused nothing is taken for a request: also not where the head was good, and not when
/// the call reads its body.
fn desync(server: &Server, vector: &Vector) -> Option<String> {
    let behind = get("/healthz");
    let line_ends = vector.bytes.windows(2).position(|w| w == b"\r\n")?;
    let reads_body = [
        b"POST /api/v1/task HTTP/1.1".as_slice(),
        &vector.bytes[line_ends..],
    ]
    .concat();
    let mut starts = vec![vector.bytes.clone()];
    if vector.verdict == "refuse body" {
        starts.push(reads_body);
    }
    for start in starts {
        let (replies, _) = answers(
            server,
            &[start.clone(), behind.clone()].concat(),
            usize::MAX,
        );
        let is_alive = |reply: &Reply| reply.status == 200 && reply.text().contains("alive");
        if replies.iter().any(is_alive) {
            let start = String::from_utf8_lossy(&start).into_owned();
            return Some(format!("{}: answered behind {start:?}", vector.title));
        }
    }
    None
}

#[test]
fn llhttp_s_collection() {
    let Some(vectors) = vectors() else { return };
    let server = Server::with(&["--max-request-time", "2s"]);
    let counted: Vec<&Vector> = vectors.iter().filter(|v| v.verdict != "any").collect();
    assert!(counted.len() > 70, "{} vectors", counted.len());
    let mut failures = Vec::new();
    for vector in &counted {
        for in_parts_of in [usize::MAX, 7, 1] {
            failures.extend(judge(&server, vector, in_parts_of));
        }
        if vector.verdict != "accept" {
            failures.extend(desync(&server, vector));
        }
    }
    let all = failures.join("\n");
    assert!(failures.is_empty(), "{} wrong:\n{all}", failures.len());
    eprintln!("{} vectors", counted.len());
}
