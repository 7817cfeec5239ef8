//! The records between an agent and its guard: a length, a kind, a content.
//!
//! The length has four bytes and counts the kind and the content. Numbers are written with the lowest byte first, keys
//! with their length in one byte. Both ends are the same program, so there is no version. To add a record: a variant
//! of [`Order`] or [`Answer`], with a kind that was never used before.

use crate::agent::undo::plan::MAX_PLAN_BYTES;
use crate::wire::undo::{UndoReason, UndoReport};
use rustix::process::Pid;
use std::sync::Arc;

/// The longest record, in bytes: a plan, with its key and its time.
const MAX_RECORD_BYTES: usize = MAX_PLAN_BYTES + (1 << 10);
/// The longest answer, in bytes. It is one message of a socket: what does not fit into the buffer that the agent reads
/// with is lost.
pub const MAX_ANSWER_BYTES: usize = 4 << 10;
/// The longest key, in bytes.
const MAX_KEY_BYTES: usize = u8::MAX as usize;
/// Bytes of the length.
const LENGTH_BYTES: usize = 4;
/// The capacity that is kept while no record is in the buffer, in bytes.
const KEPT_BYTES: usize = 64 << 10;

/// What an agent tells its guard.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// A command with this key is about to be started, and is to end with the agent.
    Add(String),
    /// It runs in this process group, and was started at this time.
    SetGroup(String, Pid, u64),
    /// It is over. What it left in the background is to live on.
    Remove(String),
    /// Where reports go to: a [`Destination`](super::report::Destination) as JSON.
    ReportTo(Arc<[u8]>),
    /// The attempt with this key is to be undone, whatever happens to the agent; since this time. The plan as JSON.
    Arm(String, u64, Arc<[u8]>),
    /// It is settled.
    Disarm(String),
    /// It has written this to standard output; only the beginning of its output is told.
    Output(String, Vec<u8>),
    /// Its processes have ended, the agent itself undoes it, and was at work at this time.
    Undoing(String, u64),
    /// Why it is undone, and the exit code of its command.
    Ended(String, UndoReason, Option<i32>),
    /// The server was heard of at this time.
    Contact(u64),
}

/// What a guard tells its agent.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// The guard has the plan of the attempt with this key.
    Armed(String),
    /// It cannot keep the plan.
    Refused(String, String),
    /// It ends and undoes the attempt, although the agent lives. Whether it knew that the command was started.
    TakenOver(String, bool),
    /// That is over.
    Undone(String, Box<UndoReport>),
}

impl Order {
    /// The attempt that it is about.
    pub fn key(&self) -> Option<&str> {
        match self {
            Order::Add(key)
            | Order::SetGroup(key, ..)
            | Order::Remove(key)
            | Order::Arm(key, ..)
            | Order::Disarm(key)
            | Order::Output(key, _)
            | Order::Undoing(key, _)
            | Order::Ended(key, ..) => Some(key),
            Order::ReportTo(_) | Order::Contact(_) => None,
        }
    }

    /// The record.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Order::Add(key) => Record::new(1).key(key),
            Order::SetGroup(key, group, at) => Record::new(2)
                .key(key)
                .bytes(&group.as_raw_nonzero().get().to_le_bytes())
                .number(*at),
            Order::Remove(key) => Record::new(3).key(key),
            Order::ReportTo(destination) => Record::new(4).bytes(destination),
            Order::Arm(key, at, plan) => Record::new(5).key(key).number(*at).bytes(plan),
            Order::Disarm(key) => Record::new(6).key(key),
            Order::Undoing(key, at) => Record::new(7).key(key).number(*at),
            Order::Contact(at) => Record::new(8).number(*at),
            Order::Output(key, bytes) => Record::new(9).key(key).bytes(bytes),
            Order::Ended(key, reason, exit_code) => {
                // It cannot fail: these are a word and a number.
                let end = serde_json::to_vec(&(reason, exit_code)).unwrap_or_default();
                Record::new(10).key(key).bytes(&end)
            }
        }
        .finished()
    }

    /// The order in a record; none if it is of no known form.
    pub fn decode(record: &[u8]) -> Option<Self> {
        let (kind, content) = record.split_first()?;
        let mut content = Content(content);
        Some(match kind {
            1 => Order::Add(content.key()?),
            2 => {
                let key = content.key()?;
                let group = i32::from_le_bytes(content.array()?);
                let group = Pid::from_raw(group).filter(|_| group > 1)?;
                Order::SetGroup(key, group, content.number()?)
            }
            3 => Order::Remove(content.key()?),
            4 => Order::ReportTo(content.0.into()),
            5 => Order::Arm(content.key()?, content.number()?, content.0.into()),
            6 => Order::Disarm(content.key()?),
            7 => Order::Undoing(content.key()?, content.number()?),
            8 => Order::Contact(content.number()?),
            9 => Order::Output(content.key()?, content.0.into()),
            10 => {
                let key = content.key()?;
                let (reason, exit_code) = serde_json::from_slice(content.0).ok()?;
                Order::Ended(key, reason, exit_code)
            }
            _ => return None,
        })
    }
}

impl Answer {
    /// The record, of [`MAX_ANSWER_BYTES`] at most: texts are cut.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Answer::Armed(key) => Record::new(1).key(key).finished(),
            Answer::Refused(key, why) => {
                let why = &why[..why.floor_char_boundary(MAX_ANSWER_BYTES / 2)];
                Record::new(2).key(key).bytes(why.as_bytes()).finished()
            }
            Answer::TakenOver(key, was_started) => Record::new(3)
                .key(key)
                .bytes(&[u8::from(*was_started)])
                .finished(),
            Answer::Undone(key, report) => {
                let mut report = report.clone();
                loop {
                    // It cannot fail: keys of maps are texts.
                    let json = serde_json::to_vec(&report).unwrap_or_default();
                    let record = Record::new(4).key(key).bytes(&json).finished();
                    if record.len() <= MAX_ANSWER_BYTES {
                        return record;
                    }
                    halve(&mut report);
                }
            }
        }
    }

    /// The answer in a record; none if it is of no known form.
    pub fn decode(record: &[u8]) -> Option<Self> {
        let (kind, content) = record.split_first()?;
        let mut content = Content(content);
        let key = content.key()?;
        Some(match kind {
            1 => Answer::Armed(key),
            2 => Answer::Refused(key, String::from_utf8_lossy(content.0).into_owned()),
            3 => {
                let [was_started] = content.array()?;
                Answer::TakenOver(key, was_started != 0)
            }
            4 => Answer::Undone(key, serde_json::from_slice(content.0).ok()?),
            _ => return None,
        })
    }
}

/// Makes the longest text of a report half as long: the end of the output is kept, the beginning of others.
fn halve(report: &mut UndoReport) {
    let texts = [
        report.output.len(),
        report.msg.len(),
        report.id.execution.len(),
    ];
    match texts.iter().max() {
        Some(longest) if *longest == texts[0] => {
            let half = report.output.ceil_char_boundary(longest.div_ceil(2));
            report.output.drain(..half);
        }
        Some(longest) if *longest == texts[1] => {
            let half = report.msg.floor_char_boundary(longest / 2);
            report.msg.truncate(half);
        }
        _ => report.id.execution.clear(),
    }
}

/// A record that is being written.
struct Record(Vec<u8>);

impl Record {
    fn new(kind: u8) -> Self {
        let mut bytes = vec![0; LENGTH_BYTES];
        bytes.push(kind);
        Record(bytes)
    }

    fn key(mut self, key: &str) -> Self {
        let key = &key.as_bytes()[..key.len().min(MAX_KEY_BYTES)];
        self.0.push(key.len() as u8);
        self.bytes(key)
    }

    fn number(self, number: u64) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn finished(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - LENGTH_BYTES).unwrap_or(u32::MAX);
        self.0[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        self.0
    }
}

/// What is left of the content of a record.
struct Content<'a>(&'a [u8]);

impl Content<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn key(&mut self) -> Option<String> {
        let [length] = self.array()?;
        let (key, rest) = self.0.split_at_checked(length.into())?;
        self.0 = rest;
        String::from_utf8(key.to_vec()).ok()
    }
}

/// The records in a stream of bytes that comes in pieces.
#[derive(Debug, Default)]
pub struct Records {
    bytes: Vec<u8>,
    /// How many of them have been taken.
    taken: usize,
}

/// The stream has lost its order: a record is longer than any can be.
#[derive(Debug, PartialEq)]
pub struct TooLong;

impl Records {
    /// Adds the next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        if self.bytes.is_empty() {
            self.bytes.shrink_to(KEPT_BYTES);
        }
        self.bytes.extend(piece);
    }

    /// The next record; none before all of it has come.
    pub fn take(&mut self) -> Result<Option<&[u8]>, TooLong> {
        let rest = &self.bytes[self.taken..];
        let Some((length, rest)) = rest.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| TooLong)?;
        if length > MAX_RECORD_BYTES {
            return Err(TooLong);
        }
        if rest.len() < length {
            return Ok(None);
        }
        let from = self.taken + LENGTH_BYTES;
        self.taken = from + length;
        Ok(Some(&self.bytes[from..self.taken]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::agent::AttemptId;
    use crate::wire::undo::{UndoBy, UndoState};

    const KEY: &str = "0123456789abcdef0123456789abcdef";

    fn orders() -> Vec<Order> {
        let key = || KEY.to_owned();
        vec![
            Order::Add(key()),
            Order::SetGroup(key(), Pid::from_raw(4_711).unwrap(), 1 << 40),
            Order::Remove(key()),
            Order::ReportTo((*b"{}").into()),
            Order::Arm(key(), 12, vec![b'x'; MAX_PLAN_BYTES].into()),
            Order::Disarm(key()),
            Order::Undoing(key(), 13),
            Order::Contact(14),
            Order::Output(key(), b"out".into()),
            Order::Ended(key(), UndoReason::Ended, Some(-3)),
            Order::Ended(key(), UndoReason::Deadman, None),
        ]
    }

    #[test]
    fn orders_are_read_as_they_were_written_in_pieces_of_any_length() {
        let bytes: Vec<u8> = orders().iter().flat_map(Order::encode).collect();
        for length in [7, 4_096, bytes.len()] {
            let (mut records, mut found) = (Records::default(), Vec::new());
            for piece in bytes.chunks(length) {
                records.push(piece);
                while let Some(record) = records.take().unwrap() {
                    found.push(Order::decode(record).unwrap());
                }
            }
            assert_eq!(found, orders());
        }
    }

    #[test]
    fn what_is_no_order_is_none() {
        for order in orders() {
            let record = &order.encode()[LENGTH_BYTES..];
            let shortest = match order {
                Order::ReportTo(_) => 1,
                Order::Arm(..) => record.len() - MAX_PLAN_BYTES,
                Order::Output(..) => record.len() - 3,
                _ => record.len(),
            };
            for length in 0..shortest {
                assert_eq!(Order::decode(&record[..length]), None, "{order:?} {length}");
            }
        }
        let init = Order::SetGroup(KEY.into(), Pid::INIT, 0).encode();
        assert_eq!(Order::decode(&init[LENGTH_BYTES..]), None);
        assert_eq!(Order::decode(&[99, 0]), None);
        let mut records = Records::default();
        records.push(&u32::MAX.to_le_bytes());
        assert_eq!(records.take(), Err(TooLong));
    }

    #[test]
    fn an_answer_fits_into_a_pipe_in_one_piece() {
        let report = UndoReport {
            id: AttemptId {
                execution: "x.1".into(),
                attempt: 1,
            },
            state: UndoState::Failed,
            reason: None,
            by: UndoBy::Guard,
            tries: 3,
            exit_code: Some(1),
            check_exit_code: None,
            msg: "exit code 1 ".repeat(1_000),
            output: "\u{1}é".repeat(30_000),
            began_ago_ms: Some(1),
            ended_ago_ms: Some(0),
        };
        let long = Answer::Undone(KEY.into(), Box::new(report));
        for answer in [
            Answer::Armed(KEY.into()),
            Answer::Refused(KEY.into(), "é".repeat(10_000)),
            Answer::TakenOver(KEY.into(), true),
            Answer::TakenOver(KEY.into(), false),
            long,
        ] {
            let record = answer.encode();
            assert!(record.len() <= MAX_ANSWER_BYTES, "{}", record.len());
            let read = Answer::decode(&record[LENGTH_BYTES..]).unwrap();
            match read {
                Answer::Undone(key, report) => {
                    assert_eq!((&*key, report.tries), (KEY, 3));
                    assert_eq!(report.id.execution, "x.1");
                    assert!(report.output.len() > 100 && report.msg.len() > 100);
                }
                Answer::Refused(key, why) => assert!(key == KEY && why.len() > 1_000),
                short => assert_eq!(short, answer),
            }
        }
    }
}
