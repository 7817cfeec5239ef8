//! Blobs as answered.

use serde::{Deserialize, Serialize};

/// What an upload has come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Uploaded {
    /// The SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
    /// Its length in bytes.
    pub size: u64,
    /// How much of it the server has; the next piece begins there.
    pub have: u64,
}

/// A blob in the list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Blob {
    /// The SHA-256 of the file, in hexadecimal digits.
    pub sha256: String,
    /// Its length in bytes.
    pub size: u64,
    /// How much of it has come, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub have: Option<u64>,
    /// The name that it was uploaded with last, if it has one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// When it came, RFC 3339.
    pub since: String,
    /// Tasks that name it, ten at most.
    pub tasks: Vec<String>,
    /// One of them has not ended.
    pub needed: bool,
}
