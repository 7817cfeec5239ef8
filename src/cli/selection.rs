//! Which machines a task means: the flags of `run` for it, instances by their beginning, and the same in words.

use super::command::Failure;
use super::table::{Cell, Table};
use super::terminal::sanitize;
use crate::client::{Client, MachineFilter};
use crate::wire::machine::Machine;
use crate::wire::task::{NewTask, Task};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::{fmt, io};

/// How many characters of an instance are shown: enough to tell replicas apart.
const SHOWN_INSTANCE: usize = 8;
/// The most candidates that are listed where the beginning of an instance is not unique.
const MAX_CANDIDATES: usize = 10;

/// The heading of these flags in the help.
const HEADING: &str = "Which machines";

/// The arguments.
#[derive(Debug, clap::Args)]
pub struct SelectionArgs {
    /// Machines whose label matches this regular expression [default: all; with --instance or --task
    /// what those say]
    #[arg(help_heading = HEADING, short, long = "machine", value_name = "PATTERN")]
    machine: Option<String>,
    /// But not those whose label matches this one
    #[arg(help_heading = HEADING, long, value_name = "PATTERN")]
    exclude: Option<String>,
    /// Only those with this tag, if its value matches the regular expression; can be given several times
    #[arg(help_heading = HEADING, long = "where", value_name = "NAME=PATTERN", value_parser = tag_pattern)]
    tags: Vec<(String, String)>,
    /// Only those whose host name matches this regular expression
    #[arg(help_heading = HEADING, long = "host", value_name = "PATTERN")]
    hosts: Option<String>,
    /// Only the machine with this instance, as sidebike machines shows it; can be given several times
    #[arg(help_heading = HEADING, long = "instance", value_name = "ID")]
    instances: Vec<String>,
}

/// Reads `NAME=PATTERN`.
fn tag_pattern(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, pattern) = pair.ok_or("expected NAME=PATTERN such as zone=^cn-")?;
    Ok((name.to_owned(), pattern.to_owned()))
}

impl SelectionArgs {
    /// Sets what was given. With `is_all` every machine is meant, unless a flag says which.
    pub fn apply(&self, task: &mut NewTask, is_all: bool) -> Result<(), Failure> {
        let is_all = is_all && self.instances.is_empty();
        let all = || is_all.then(|| ".*".to_owned());
        task.machine_pattern = self.machine.clone().or_else(all);
        task.exclude = self.exclude.clone();
        task.hosts = self.hosts.clone();
        for (name, pattern) in &self.tags {
            let before = task.machine_tags.insert(name.clone(), pattern.clone());
            if before.is_some() {
                return Err(Failure::Usage(format!("--where: {name} is given twice")));
            }
        }
        Ok(())
    }

    /// The instances that were given, each in full.
    pub fn instances(&self, client: &Client) -> Result<Vec<String>, Failure> {
        if self.instances.is_empty() {
            return Ok(Vec::new());
        }
        let machines = client.machines(&MachineFilter::default())?;
        let given = self.instances.iter();
        given.map(|text| instance(text, &machines)).collect()
    }
}

/// The instance that begins like this.
fn instance(text: &str, machines: &[Machine]) -> Result<String, Failure> {
    let given = sanitize(text);
    if text.is_empty() {
        let why =
            "--instance: expected an instance or its beginning, such as 8da52e4c, got nothing";
        return Err(Failure::Usage(why.into()));
    }
    let candidates = machines.iter().filter(|m| m.instance.starts_with(text));
    let candidates: Vec<&Machine> = candidates.collect();
    let exact = candidates.iter().find(|m| m.instance == text);
    match (&candidates[..], exact) {
        (_, Some(machine)) | ([machine], None) => Ok(machine.instance.clone()),
        ([], None) => Err(Failure::NoMachine(format!(
            "--instance: no machine has an instance that begins with {given:?}; see sidebike machines"
        ))),
        (several, None) => Err(Failure::Usage(format!(
            "--instance: {given:?} is the beginning of {} instances; give more of it:\n{}",
            several.len(),
            listed(several)
        ))),
    }
}

fn listed(machines: &[&Machine]) -> String {
    let mut table = Table::new(&["INSTANCE", "LABEL", "HOST"]);
    for machine in machines.iter().take(MAX_CANDIDATES) {
        table.add(vec![
            Cell::of(&machine.instance),
            Cell::of(&machine.label),
            Cell::of(&machine.host),
        ]);
    }
    let mut text = Vec::new();
    // Writing to memory cannot fail.
    let _ = table.print(&mut text, &io::stderr());
    let mut text = String::from_utf8_lossy(&text).into_owned();
    match machines.len().saturating_sub(MAX_CANDIDATES) {
        0 => text.truncate(text.trim_end().len()),
        more => text.push_str(&format!("… and {more} more")),
    }
    text
}

/// As many characters of an instance as are shown.
pub fn short_instance(instance: &str) -> &str {
    instance.get(..SHOWN_INSTANCE).unwrap_or(instance)
}

/// Which machines a task means.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selection {
    machine_pattern: Option<String>,
    exclude: Option<String>,
    machine_tags: BTreeMap<String, String>,
    hosts: Option<String>,
    instances: Vec<String>,
}

impl Selection {
    /// The selection of a task that is posted.
    pub fn posted(task: &Map<String, Value>) -> Selection {
        // Only a task that the server has accepted gets here, so its fields have these types.
        serde_json::from_value(Value::Object(task.clone())).unwrap_or_default()
    }

    /// The selection of a task that was answered.
    pub fn of(task: &Task) -> Selection {
        Selection {
            machine_pattern: Some(task.machine_pattern.clone()),
            exclude: task.exclude.clone(),
            machine_tags: task.machine_tags.clone(),
            hosts: task.hosts.clone(),
            instances: task.instances.clone(),
        }
    }
}

/// The pattern, and the other conditions as flags: `"^web-" --exclude "web-7"`.
impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |text: &String| format!("{:?}", sanitize(text));
        let flag = |name: &str, value: String| format!("--{name} {value}");
        let pattern = self.machine_pattern.iter().map(quoted);
        let exclude = self.exclude.iter().map(quoted);
        let hosts = self.hosts.iter().map(quoted);
        let tags = self.machine_tags.iter();
        let tags = tags.map(|(name, pattern)| quoted(&format!("{name}={pattern}")));
        let instances = self.instances.iter();
        let instances = instances.map(|instance| sanitize(short_instance(instance)));
        let words = pattern
            .chain(exclude.map(|value| flag("exclude", value)))
            .chain(tags.map(|value| flag("where", value)))
            .chain(hosts.map(|value| flag("host", value)))
            .chain(instances.map(|value| flag("instance", value)));
        f.write_str(&words.collect::<Vec<_>>().join(" "))
    }
}
