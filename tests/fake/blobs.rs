//! The calls for files of the small server: blobs that agents fetch, with troubles on the way, and what they hand back.

use super::Shared;
use sha2::{Digest, Sha256};
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

/// What goes wrong with one request for a piece.
#[derive(Debug, Clone, Copy)]
pub enum Trouble {
    /// The connection is cut after so many bytes.
    Cut(usize),
    /// A byte of it is another one.
    Wrong,
    /// The server has all the transfers that it takes at once.
    Busy,
    /// Something ignores the range.
    Whole,
    /// Nothing comes, for a while.
    Stall(Duration),
    /// It is refused with this status.
    Refused(u16),
}

/// The hash of bytes as hexadecimal digits.
pub fn sha256(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Answers a call whose path begins with `file`. None if the connection is to be cut.
pub fn answer(
    stream: &TcpStream,
    call: &str,
    range: Option<&str>,
    body: Vec<u8>,
    shared: &Shared,
) -> Option<()> {
    let mut seen = shared.0.lock().unwrap();
    if let Some((_, query)) = call.split_once('?') {
        let path = query.split("path=").nth(1).unwrap_or_default();
        let path = path
            .replace("%2F", "/")
            .replace("%2E", ".")
            .replace("%2D", "-")
            .replace("%5F", "_");
        let hash = sha256(&body);
        let text = format!(
            r#"{{"signal":0,"msg":"","data":{{"sha256":"{hash}","size":{}}}}}"#,
            body.len()
        );
        seen.uploads.push((path, body));
        drop(seen);
        shared.1.notify_all();
        return send(stream, "200 OK", "", text.as_bytes());
    }
    seen.gets += 1;
    let trouble = seen.troubles.pop_front();
    let blob = call
        .strip_prefix("file/")
        .and_then(|sha256| seen.blobs.get(sha256))
        .cloned();
    drop(seen);
    shared.1.notify_all();
    let Some(blob) = blob else {
        return send(
            stream,
            "404 Not Found",
            "",
            br#"{"signal":-1,"msg":"no such blob","data":null}"#,
        );
    };
    let (first, last) = range?.strip_prefix("bytes=")?.split_once('-')?;
    let (first, last): (usize, usize) = (first.parse().ok()?, last.trim().parse().ok()?);
    let last = last.min(blob.len() - 1);
    let head = format!("content-range: bytes {first}-{last}/{}\r\n", blob.len());
    let piece = &blob[first..=last];
    match trouble {
        None => send(stream, "206 Partial Content", &head, piece),
        Some(Trouble::Whole) => send(stream, "200 OK", "", &blob),
        Some(Trouble::Wrong) => {
            let mut piece = piece.to_vec();
            piece[0] ^= 1;
            send(stream, "206 Partial Content", &head, &piece)
        }
        Some(Trouble::Busy) => send(stream, "503 Busy", "retry-after: 0\r\n", b"{}"),
        Some(Trouble::Refused(status)) => send(
            stream,
            &format!("{status} No"),
            "",
            br#"{"signal":-1,"msg":"as told","data":null}"#,
        ),
        Some(Trouble::Stall(time)) => {
            std::thread::sleep(time);
            None
        }
        Some(Trouble::Cut(after)) => {
            let head = format!(
                "HTTP/1.1 206 X\r\ncontent-length: {}\r\n{head}\r\n",
                piece.len()
            );
            let _ = { stream }.write_all(head.as_bytes());
            let _ = { stream }.write_all(&piece[..after.min(piece.len())]);
            None
        }
    }
}

fn send(mut stream: &TcpStream, status: &str, headers: &str, body: &[u8]) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()
}
