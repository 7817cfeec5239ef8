//! The report of a result, read without a copy of its lines, and as far as it goes if it was cut.
//!
//! Since 0.2.7: `{"TaskName":…,"Result":{"machineLabel":…,"status":0,"msg":"","output":["line"]}}`. Before that:
//! `{"TaskName":…,"TaskStatus":2,"TaskResult":["line"]}`. Member names are read without regard to case.

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// `Result.status` of a command that went well.
const OK: i64 = 0;
/// `TaskStatus` of a command that went well.
const FINISHED: i64 = 2;

/// What an agent reports.
#[derive(Debug, Default)]
pub struct Report {
    /// The name that the task was handed out under.
    pub task_name: String,
    /// The agent's label, if it gives one.
    pub machine_label: Option<String>,
    /// The command went well.
    pub has_succeeded: bool,
    /// Why not.
    pub msg: String,
    /// The lines of the output, each with its line end.
    pub text: Vec<u8>,
}

/// What has been read of a report.
#[derive(Default)]
struct Partial {
    task_name: Option<String>,
    has_succeeded: Option<bool>,
    report: Report,
}

impl Report {
    /// Reads a body. One that was cut may end anywhere behind the status.
    pub fn read(body: &[u8], is_cut: bool) -> Result<Report, serde_json::Error> {
        let mut partial = Partial::default();
        let mut json = serde_json::Deserializer::from_slice(body);
        let read = Members(&mut partial)
            .deserialize(&mut json)
            .and_then(|()| json.end());
        match read {
            Err(error) if !(is_cut && error.is_eof()) => return Err(error),
            _ => {}
        }
        let missing = |name| move || de::Error::missing_field(name);
        Ok(Report {
            task_name: partial.task_name.ok_or_else(missing("TaskName"))?,
            has_succeeded: partial.has_succeeded.ok_or_else(missing("Result.status"))?,
            ..partial.report
        })
    }
}

/// The members of the report, or of its `Result`.
struct Members<'a>(&'a mut Partial);

impl<'de> DeserializeSeed<'de> for Members<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let Members(partial) = self;
        while let Some(name) = members.next_key::<String>()? {
            let report = &mut partial.report;
            match name.to_lowercase().as_str() {
                "taskname" => partial.task_name = Some(members.next_value()?),
                "result" => members.next_value_seed(Members(partial))?,
                "machinelabel" => report.machine_label = Some(members.next_value()?),
                "status" => partial.has_succeeded = Some(members.next_value::<i64>()? == OK),
                "taskstatus" => {
                    partial.has_succeeded = Some(members.next_value::<i64>()? == FINISHED);
                }
                "msg" => report.msg = members.next_value::<Option<String>>()?.unwrap_or_default(),
                "output" | "taskresult" => members.next_value_seed(Lines(&mut report.text))?,
                _ => drop(members.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// A list of lines, or `null`; each is added as it is read.
struct Lines<'a>(&'a mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for Lines<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Lines<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of lines, or null")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut lines: A) -> Result<(), A::Error> {
        while lines.next_element_seed(Line(self.0))?.is_some() {}
        Ok(())
    }
}

struct Line<'a>(&'a mut Vec<u8>);

impl<'de> DeserializeSeed<'de> for Line<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Line<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a line")
    }

    fn visit_str<E>(self, line: &str) -> Result<(), E> {
        self.0.extend_from_slice(line.as_bytes());
        self.0.push(b'\n');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_of_all_versions_are_read() {
        let new = r#"{"TaskName":"t/1","Result":{"machineLabel":"X","status":0,"msg":"","output":["a","b\t"]}}"#;
        let report = Report::read(new.as_bytes(), false).unwrap();
        assert_eq!(
            (&*report.task_name, report.has_succeeded, &*report.text),
            ("t/1", true, &b"a\nb\t\n"[..])
        );
        assert_eq!(report.machine_label.as_deref(), Some("X"));
        let old = r#"{"TaskName":"t/1","TaskStatus":3,"TaskResult":null}"#;
        let report = Report::read(old.as_bytes(), false).unwrap();
        assert!(!report.has_succeeded && report.text.is_empty() && report.machine_label.is_none());
        for bad in ["", "7", "{}", r#"{"TaskName":"t/1"}"#, r#"{"TaskName":1}"#] {
            assert!(Report::read(bad.as_bytes(), true).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_report_that_was_cut_keeps_what_came() {
        let whole = r#"{"TaskName":"t/1","Result":{"machineLabel":"X","status":2,"msg":"","output":["one","two"]}}"#;
        let cut = &whole[..whole.find("wo").unwrap()];
        assert!(Report::read(cut.as_bytes(), false).is_err());
        let report = Report::read(cut.as_bytes(), true).unwrap();
        assert_eq!(
            (report.has_succeeded, &*report.text),
            (false, &b"one\n"[..])
        );
    }
}
