//! Files of a task: those that it lays down before its command, and those that it hands back.

use super::enumeration::{self, Words};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// How much of a file is handed back unless the task says otherwise, in bytes.
pub const DEFAULT_FETCH_BYTES: u64 = 64 << 20;

/// A file that a task lays down, as posted, as answered, and as handed to an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    /// The SHA-256 of its bytes, as hexadecimal digits: the blob.
    pub sha256: String,
    /// Their number.
    pub size: u64,
    /// Its name, where it has no path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it goes: absolute, or relative to the workspace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Its mode in octal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// It is an archive, and `path` is the folder that it is unpacked into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpack: Option<Unpack>,
    /// How many leading parts of the names in the archive are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strip: Option<u32>,
    /// What happens if there is a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_exists: Option<IfExists>,
    /// It is written into the file that is there, which is not atomic.
    #[serde(default, skip_serializing_if = "is_false")]
    pub in_place: bool,
    /// What is made anew is removed when the execution is over.
    #[serde(default, skip_serializing_if = "is_false")]
    pub remove: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Which blob: the SHA-256 of its bytes, written as 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobId(pub [u8; 32]);

impl fmt::Display for BlobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::str::FromStr for BlobId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected a SHA-256 as 64 lower-case hexadecimal digits".to_owned();
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(wrong()),
        };
        let mut id = [0; 32];
        if text.len() != 2 * id.len() {
            return Err(wrong());
        }
        for (byte, two) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = digit(two[0])? << 4 | digit(two[1])?;
        }
        Ok(BlobId(id))
    }
}

/// A kind of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Unpack {
    /// Not compressed.
    #[serde(rename = "tar")]
    Tar,
    /// Compressed by gzip.
    #[serde(rename = "tar.gz")]
    TarGz,
}

impl Unpack {
    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Unpack::Tar => "tar",
            Unpack::TarGz => "tar.gz",
        }
    }
}

impl<'de> Deserialize<'de> for Unpack {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const WORDS: Words<Unpack> = &[("tar", Unpack::Tar), ("tar.gz", Unpack::TarGz)];
        enumeration::deserialize(WORDS, deserializer)
    }
}

/// What happens if there is a file already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum IfExists {
    /// It is replaced.
    #[default]
    Replace,
    /// It stays.
    Keep,
    /// Nothing is started.
    Fail,
}

impl<'de> Deserialize<'de> for IfExists {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const WORDS: Words<IfExists> = &[
            ("replace", IfExists::Replace),
            ("keep", IfExists::Keep),
            ("fail", IfExists::Fail),
        ];
        enumeration::deserialize(WORDS, deserializer)
    }
}

/// A file that a task hands back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fetch {
    /// Which one: absolute, or relative to the workspace.
    pub path: String,
    /// How much of it at most; its beginning is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Bytes>,
    /// It need not be there.
    #[serde(default, skip_serializing_if = "is_false")]
    pub missing_ok: bool,
}

impl Fetch {
    /// How much of it at most, in bytes.
    pub fn max(&self) -> u64 {
        self.max.map_or(DEFAULT_FETCH_BYTES, |max| max.0)
    }
}

/// A file that was handed back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FetchedFile {
    /// Its path, as the task wrote it.
    pub path: String,
    /// The blob.
    pub sha256: String,
    /// How many bytes it has.
    pub size: u64,
    /// It is only the beginning of the file.
    #[serde(default)]
    pub truncated: bool,
}

/// What an execution does with files while it is `running`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// Its files are laid down; its command has not been started.
    Files,
    /// Its command has ended, and files are handed back.
    Fetch,
}

impl Phase {
    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Files => "files",
            Phase::Fetch => "fetch",
        }
    }
}

/// A number of bytes: a number, or a text such as `64MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// The units, the largest first.
const UNITS: [(&str, u32); 4] = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits =
            |(_, bits): &&(&str, u32)| self.0 >> bits << bits == self.0 && self.0 >> bits > 0;
        let (unit, bits) = UNITS.iter().find(fits).unwrap_or(&UNITS[3]);
        write!(f, "{}{unit}", self.0 >> bits)
    }
}

impl std::str::FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = &text[digits.len()..];
        let bits = match unit {
            "" => Some(0),
            unit => UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .map(|(_, bits)| *bits),
        };
        let number = digits
            .parse::<u64>()
            .ok()
            .filter(|_| digits.bytes().all(|b| b.is_ascii_digit()));
        (number.zip(bits))
            .and_then(|(number, bits)| number.checked_mul(1 << bits))
            .map(Bytes)
            .ok_or_else(|| format!("expected a number of bytes such as 64MiB, got {text:?}"))
    }
}

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;
        impl Visitor<'_> for BytesVisitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes such as 64MiB")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Bytes, E> {
                Ok(Bytes(number))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(BytesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let id = BlobId(std::array::from_fn(|n| n as u8 * 7));
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in [
            "",
            "ab",
            &"AB".repeat(32),
            &"0g".repeat(32),
            &"é".repeat(32),
            &"a".repeat(65),
        ] {
            assert!(wrong.parse::<BlobId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn numbers_of_bytes_are_read_as_they_are_written() {
        for (text, bytes) in [
            ("64MiB", 64 << 20),
            ("1GiB", 1 << 30),
            ("1000", 1000),
            ("3KiB", 3 << 10),
            ("0", 0),
        ] {
            let read: Bytes = text.parse().unwrap();
            assert_eq!(read.0, bytes, "{text}");
            assert_eq!(read.to_string().parse::<Bytes>(), Ok(read));
        }
        for text in [
            "",
            "MiB",
            "1.5MiB",
            "-1",
            "+1",
            "64MB",
            "99999999999GiB",
            "1 KiB",
        ] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }
}
