//! How a record becomes bytes, in every engine: JSON, and for output the bytes as they are.

use crate::core::SavedPiece;
use crate::wire::agent::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;

/// The version of records that a new database has: the lowest version of a program that may read it.
pub const FIRST_VERSION: u64 = 1;
/// The highest version that this program reads.
pub const VERSION: u64 = 7;

/// The halt, among the switches.
pub const SWITCH_HALT: &str = "halt";
/// All suspensions, among the switches.
pub const SWITCH_SUSPENSIONS: &str = "suspensions";

/// Reads a record; the error names it.
pub fn record<T: DeserializeOwned>(
    what: &str,
    key: impl Display,
    bytes: &[u8],
) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|why| format!("the record of {what} {key}: {why}"))
}

/// Encodes a record.
pub fn json<T: Serialize>(record: &T) -> Result<Vec<u8>, String> {
    serde_json::to_vec(record).map_err(text)
}

/// An error of the library, for a person.
pub fn text(error: impl Display) -> String {
    error.to_string()
}

/// What stands before the bytes of a piece of output: the stream, the offset.
pub fn piece_head(piece: &SavedPiece) -> [u8; 9] {
    let mut head = [piece.stream as u8; 9];
    head[1..].copy_from_slice(&piece.offset.to_le_bytes());
    head
}

/// Encodes a piece of output.
pub fn encoded(piece: &SavedPiece) -> Vec<u8> {
    [piece_head(piece).as_slice(), &piece.data].concat()
}

/// Reads what [`encoded`] has made.
pub fn decoded(bytes: &[u8]) -> Option<SavedPiece> {
    let (stream, rest) = bytes.split_first()?;
    let (offset, data) = rest.split_first_chunk::<8>()?;
    let stream = match stream {
        0 => Stream::Stdout,
        1 => Stream::Stderr,
        _ => return None,
    };
    Some(SavedPiece {
        stream,
        offset: u64::from_le_bytes(*offset),
        data: data.to_vec(),
    })
}
