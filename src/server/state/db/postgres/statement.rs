//! A statement with its parameters, and a row of its answer: in the binary forms of PostgreSQL.

use serde::Serialize;

/// The number of a type in PostgreSQL's catalog. Those here are the same in every database.
pub type Oid = u32;

const BYTEA: Oid = 17;
const INT8: Oid = 20;
const TEXT: Oid = 25;
const BYTEA_ARRAY: Oid = 1001;
const INT8_ARRAY: Oid = 1016;

/// A statement. Its parameters are numbered as they are added.
#[derive(Default)]
pub struct Statement {
    /// The text, with `$1`, `$2`, … for the parameters.
    pub sql: String,
    /// The type and the value of each; `None` for NULL.
    pub parameters: Vec<(Oid, Option<Vec<u8>>)>,
}

impl Statement {
    /// One without parameters so far.
    pub fn new(sql: impl Into<String>) -> Self {
        Statement {
            sql: sql.into(),
            parameters: Vec::new(),
        }
    }

    /// Adds text.
    pub fn push(&mut self, sql: &str) {
        self.sql.push_str(sql);
    }

    fn add(&mut self, oid: Oid, value: Option<Vec<u8>>) -> String {
        self.parameters.push((oid, value));
        format!("${}", self.parameters.len())
    }

    /// Adds a number as a parameter, and returns its name. PostgreSQL has no unsigned numbers; none of ours is so high.
    pub fn number(&mut self, number: u64) -> String {
        self.maybe_number(Some(number))
    }

    /// The same, perhaps NULL.
    pub fn maybe_number(&mut self, number: Option<u64>) -> String {
        self.add(INT8, number.map(|number| number.to_be_bytes().into()))
    }

    /// Adds a text, perhaps NULL.
    pub fn maybe_text(&mut self, text: Option<&str>) -> String {
        self.add(TEXT, text.map(|text| text.as_bytes().into()))
    }

    /// Adds a byte string.
    pub fn bytes(&mut self, bytes: &[u8]) -> String {
        self.add(BYTEA, Some(bytes.into()))
    }

    /// Adds a list.
    pub fn list(&mut self, list: List) -> String {
        self.add(list.array_type, Some(list.bytes))
    }
}

/// An array of PostgreSQL: numbers or byte strings. It is written as it will be sent, because it may be large.
pub struct List {
    array_type: Oid,
    count: u32,
    bytes: Vec<u8>,
}

/// Where the number of elements stands: behind the number of dimensions, the flag for NULLs and the type.
const COUNT_AT: usize = 12;

impl List {
    fn new(array_type: Oid, element: Oid) -> Self {
        let mut bytes = Vec::new();
        // One dimension, no NULLs, so many elements (set later), the first of which has the index 1.
        for word in [1, 0, element, 0, 1] {
            bytes.extend_from_slice(&u32::to_be_bytes(word));
        }
        List {
            array_type,
            count: 0,
            bytes,
        }
    }

    /// Of numbers.
    pub fn numbers() -> Self {
        List::new(INT8_ARRAY, INT8)
    }

    /// Of byte strings.
    pub fn byte_strings() -> Self {
        List::new(BYTEA_ARRAY, BYTEA)
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many there are in it.
    pub fn len(&self) -> u64 {
        self.count.into()
    }

    fn counted(&mut self) {
        self.count += 1;
        self.bytes[COUNT_AT..COUNT_AT + 4].copy_from_slice(&self.count.to_be_bytes());
    }

    /// Adds a number to a list of numbers.
    pub fn number(&mut self, number: u64) {
        self.bytes.extend_from_slice(&8_u32.to_be_bytes());
        self.bytes.extend_from_slice(&number.to_be_bytes());
        self.counted();
    }

    /// Adds a byte string in pieces to a list of byte strings.
    pub fn byte_string(&mut self, pieces: &[&[u8]]) -> Result<(), String> {
        self.written(|to| {
            pieces.iter().for_each(|piece| to.extend_from_slice(piece));
            Ok(())
        })
    }

    /// Adds a record as JSON to a list of byte strings.
    pub fn json(&mut self, record: &impl Serialize) -> Result<(), String> {
        self.written(|to| serde_json::to_writer(to, record).map_err(|why| why.to_string()))
    }

    fn written(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), String>,
    ) -> Result<(), String> {
        let length_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        write(&mut self.bytes)?;
        let length = self.bytes.len() - length_at - 4;
        let length = i32::try_from(length).map_err(|_| "a record has more than 2 GiB")?;
        self.bytes[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
        self.counted();
        Ok(())
    }
}

/// A row of an answer. Its columns are read from left to right.
pub struct Row<'a> {
    rest: &'a [u8],
}

/// What is said of a row that is not as it was asked for.
const NOT_AS_ASKED: &str =
    "its answer is not what was asked for; are the tables those of `sidebike db schema`?";

impl<'a> Row<'a> {
    /// The row of these bytes: each column is its length in 4 bytes, -1 for NULL, and its value.
    pub fn new(rest: &'a [u8]) -> Self {
        Row { rest }
    }

    fn column(&mut self) -> Result<Option<&'a [u8]>, String> {
        let (length, rest) = self.rest.split_first_chunk::<4>().ok_or(NOT_AS_ASKED)?;
        self.rest = rest;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            return Ok(None);
        };
        let (value, rest) = rest.split_at_checked(length).ok_or(NOT_AS_ASKED)?;
        self.rest = rest;
        Ok(Some(value))
    }

    /// A byte string or a text, perhaps NULL.
    pub fn maybe_bytes(&mut self) -> Result<Option<&'a [u8]>, String> {
        self.column()
    }

    /// A byte string or a text.
    pub fn bytes(&mut self) -> Result<&'a [u8], String> {
        Ok(self.column()?.ok_or(NOT_AS_ASKED)?)
    }

    /// A number, perhaps NULL.
    pub fn maybe_number(&mut self) -> Result<Option<u64>, String> {
        match self.column()? {
            None => Ok(None),
            Some(value) => {
                let value = value.try_into().map_err(|_| NOT_AS_ASKED)?;
                Ok(Some(u64::from_be_bytes(value)))
            }
        }
    }

    /// A number.
    pub fn number(&mut self) -> Result<u64, String> {
        Ok(self.maybe_number()?.ok_or(NOT_AS_ASKED)?)
    }

    /// A number below 2³².
    pub fn small_number(&mut self) -> Result<u32, String> {
        Ok(self.number()?.try_into().map_err(|_| NOT_AS_ASKED)?)
    }

    /// A truth value.
    pub fn truth(&mut self) -> Result<bool, String> {
        match self.bytes()? {
            [value] => Ok(*value != 0),
            _ => Err(NOT_AS_ASKED.into()),
        }
    }

    /// A text, perhaps NULL.
    pub fn maybe_text(&mut self) -> Result<Option<String>, String> {
        let value = self.column()?;
        Ok(value.map(|value| String::from_utf8_lossy(value).into_owned()))
    }
}
