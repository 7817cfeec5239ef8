//! What `run` submits: the task that its flags describe, on top of the task of a file.

use super::command::{Failure, duration};
use super::file_flags::FileArgs;
use super::follow::print_message;
use super::later_flags::LaterArgs;
use super::order_flags::OrderArgs;
use super::selection::SelectionArgs;
use super::terminal::sanitize;
use super::undo_flags::UndoArgs;
use crate::client::Client;
use crate::rules::{MAX_ARGUMENT_BYTES, MAX_SCRIPT_BYTES, MAX_STDIN_BYTES};
use crate::wire::duration::{TimeSpan, Timeout};
use crate::wire::notify::{Notify, NotifyEvent};
use crate::wire::rollout::{Expect, KeepAlive, Order, Pause, Rollout, Share};
use crate::wire::task::{Detail, Mode, NewTask, json_bytes};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};

/// The most that is read of a task, a script or of standard input, in bytes: enough to say how long a file of ordinary
/// size is.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// How long standard input may be as text in JSON, in bytes: as long as the longest in base64. What is full of control
/// characters grows to six times its size.
const MAX_STDIN_JSON_BYTES: usize = MAX_STDIN_BYTES.div_ceil(3) * 4;
/// The shells that a script may name in its first line to be run as a line of the machine's own shell.
const SHELLS: [&str; 5] = ["sh", "bash", "dash", "ash", "ksh"];
/// The name of a task that has none.
const DEFAULT_NAME: &str = "run";

/// The objects of a task in which flags replace single fields. Every other value is replaced as a whole.
const MERGED: [&str; 6] = ["detail", "env", "machineTags", "rollout", "tags", "undo"];
/// Groups of fields of a detail that exclude each other: a flag that sets one of them removes the others.
const ALTERNATIVES: [&[&str]; 2] = [
    &["command", "argv", "script", "scriptArgs"],
    &["stdin", "stdinBase64"],
];
/// The same for its undo.
const UNDO_ALTERNATIVES: [&[&str]; 2] = [&["command", "argv"], &["check", "checkArgv"]];

/// The arguments that describe a task.
#[derive(Debug, clap::Args)]
pub struct NewTaskArgs {
    /// Run the task of this file, JSON as for POST /api/v1/task; - reads it from standard input. Other flags
    /// replace what it says
    #[arg(long = "task", value_name = "FILE")]
    file: Option<String>,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    pace: PaceArgs,
    #[command(flatten)]
    order: OrderArgs,
    #[command(flatten)]
    later: LaterArgs,
    #[command(flatten)]
    undo: UndoArgs,
    #[command(flatten)]
    files: FileArgs,
    /// On one of them only, whichever is free first
    #[arg(long, conflicts_with_all = PACE_FLAGS)]
    any: bool,
    /// How long the command may run, such as 30s or 1h30m; -1: for ever [default: 180s]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    timeout: Option<String>,
    /// How long it may wait to be started, such as 30s [default: 10m, with --any 24h]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    ttl: Option<String>,
    /// An extra variable for the command; can be given several times
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The folder it runs in [default: the agent's own]
    #[arg(long, value_name = "DIR")]
    workspace: Option<String>,
    /// The command's standard input: a file of this machine, or - for standard input
    #[arg(long, value_name = "FILE")]
    stdin: Option<String>,
    /// Run it as this user of the machine, by name or number; its agent must run as root
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Standard error goes to standard output, in the order in which the command writes
    #[arg(long)]
    merge: bool,
    /// The name of the task in lists [default: run]
    #[arg(long)]
    name: Option<String>,
    /// Tell this URL when it has ended, or of these events: started, ended, failed (ended otherwise than well),
    /// stopped; can be given several times
    #[arg(long, value_name = "URL[=EVENT,...]")]
    notify: Vec<String>,
    /// The group it belongs to, see sidebike group
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// A tag of the task, to find it by; can be given several times. --where is for the tags of machines
    #[arg(long = "tag", value_name = "NAME=VALUE", value_parser = task_tag)]
    task_tags: Vec<(String, String)>,
    /// What it is for, shown with the task
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Run the words as a program and its arguments, without a shell
    #[arg(long, conflicts_with = "script", requires = "command")]
    exec: bool,
    /// Run this script by the interpreter of its #! line, or by the shell; - reads it from standard input
    #[arg(long, value_name = "FILE")]
    script: Option<String>,
    /// The command: its words joined by blanks are a line for the shell, as with ssh; best one word
    /// in single quotes. With --script the script's arguments
    #[arg(
        value_name = "COMMAND",
        last = true,
        required_unless_present_any = ["script", "file"]
    )]
    command: Vec<String>,
}

/// The flags that do not go with a task for one machine.
const PACE_FLAGS: [&str; 9] = [
    "max_targets",
    "keep_alive",
    "concurrency",
    "steps",
    "pause",
    "max_failures",
    "canary",
    "order",
    "stop_running",
];

/// The heading of these flags in the help.
const PACE: &str = "How many of them, at which pace";

/// The arguments about numbers and pace.
#[derive(Debug, clap::Args)]
pub struct PaceArgs {
    /// Run it only if so many machines match: 3, 2..10, 2.. or ..10
    #[arg(help_heading = PACE, long, value_name = "N", allow_negative_numbers = true)]
    expect: Option<Expect>,
    /// At most on so many of those that match, chosen at random: 5, or 25%, which rounds down
    #[arg(help_heading = PACE, long, value_name = "N|%", allow_negative_numbers = true)]
    max_targets: Option<Share>,
    /// Run it only if so many stay untouched and healthy: 2 or 50%, of the machines that are meant; 50%:^web-
    /// is half of those whose label matches
    #[arg(help_heading = PACE, long, value_name = "N|%[:PATTERN]", allow_negative_numbers = true)]
    keep_alive: Option<KeepAlive>,
    /// On so many at the same time: 10, or 10%, which rounds up
    #[arg(help_heading = PACE, long, value_name = "N|%", allow_negative_numbers = true)]
    concurrency: Option<Share>,
    /// Step by step: so many have been started when each step is done, such as 1,10%,100%. Percentages round
    /// down, each step adds at least one, and the last is always everything
    #[arg(
        help_heading = PACE,
        long,
        value_name = "N|%,...",
        value_delimiter = ',',
        allow_negative_numbers = true
    )]
    steps: Vec<Share>,
    /// What happens after each step: a duration such as 30s, or approve, which waits for sidebike resume
    #[arg(help_heading = PACE, long, value_name = "DURATION|approve", allow_negative_numbers = true)]
    pause: Option<Pause>,
    /// Stop when more than these have failed: 2 or 5% [default: 0 with any of --concurrency, --steps,
    /// --pause, --canary, --order and --stop-running, else no limit]
    #[arg(help_heading = PACE, long, value_name = "N|%", allow_negative_numbers = true)]
    max_failures: Option<Share>,
    /// Machines whose label matches this regular expression are the first step
    #[arg(help_heading = PACE, long, value_name = "PATTERN")]
    canary: Option<String>,
    /// In this order: label (web-2 before web-10), random, joined (which came online first) [default: label]
    #[arg(help_heading = PACE, long, value_name = "ORDER")]
    order: Option<Order>,
    /// Cancel what runs, too, when it is stopped
    #[arg(help_heading = PACE, long)]
    stop_running: bool,
}

impl PaceArgs {
    /// Sets what was given.
    pub fn apply(&self, task: &mut NewTask) {
        task.expect = self.expect;
        task.max_targets = self.max_targets;
        task.keep_alive = self.keep_alive.clone();
        let rollout = Rollout {
            concurrency: self.concurrency,
            steps: self.steps.clone(),
            pause: self.pause,
            max_failures: self.max_failures,
            stop_running: self.stop_running.then_some(true),
            order: self.order,
            canary: self.canary.clone(),
        };
        task.rollout = (rollout != Rollout::default()).then_some(rollout);
    }
}

impl NewTaskArgs {
    /// Reads the task, without its instances.
    pub fn read(&self) -> Result<Map<String, Value>, Failure> {
        let files = [
            ("--task", &self.file),
            ("--script", &self.script),
            ("--stdin", &self.stdin),
        ];
        let from_stdin = files.iter().filter(|(_, f)| f.as_deref() == Some("-"));
        let from_stdin: Vec<String> = from_stdin.map(|(flag, _)| format!("{flag} -")).collect();
        if from_stdin.len() > 1 {
            return Err(Failure::Usage(format!(
                "{}: standard input can be only one of them",
                from_stdin.join(" and ")
            )));
        }
        let mut task = match &self.file {
            Some(file) => task_of(file)?,
            None => Map::new(),
        };
        let flags = serde_json::to_value(self.flags()?);
        if let Ok(Value::Object(flags)) = flags {
            drop_alternatives(&mut task, &flags);
            self.later.replace(&mut task);
            overlay(&mut task, flags);
        }
        self.undo.complete(&mut task)?;
        Ok(task)
    }

    /// Completes the instances that were given, and sets them.
    pub fn set_instances(
        &self,
        task: &mut Map<String, Value>,
        client: &Client,
    ) -> Result<(), Failure> {
        let instances = self.selection.instances(client)?;
        if !instances.is_empty() {
            task.insert("instances".into(), instances.into());
        }
        Ok(())
    }

    /// Sends the files of the task, if the server does not have them.
    pub fn send_files(&self, task: &Map<String, Value>, client: &Client) -> Result<(), Failure> {
        let is_told = super::terminal::width(&io::stderr()).is_some();
        self.files.send(task, client, is_told)
    }

    /// The task that the flags describe.
    fn flags(&self) -> Result<NewTask, Failure> {
        let is_alone = self.file.is_none();
        let mut task = NewTask {
            name: self
                .name
                .clone()
                .or_else(|| is_alone.then(|| DEFAULT_NAME.into())),
            mode: self.any.then_some(Mode::Any),
            ttl: duration("--ttl", &self.ttl)?,
            notify: self.notify.iter().map(|text| notify_of(text)).collect(),
            group: self.group.clone(),
            description: self.description.clone(),
            detail: self.detail()?,
            ..NewTask::default()
        };
        for (name, value) in &self.task_tags {
            if task.tags.insert(name.clone(), value.clone()).is_some() {
                return Err(Failure::Usage(format!("--tag: {name} is given twice")));
            }
        }
        let means_all = is_alone && !self.later.has_machines_of_parent();
        self.selection.apply(&mut task, means_all)?;
        self.pace.apply(&mut task);
        self.files.apply(&mut task)?;
        self.order.apply(&mut task)?;
        self.later.apply(&mut task)?;
        Ok(task)
    }

    fn detail(&self) -> Result<Detail, Failure> {
        let mut detail = Detail::default();
        match &self.script {
            Some(file) => set_script(&mut detail, script(file)?, &self.command),
            None if self.command.is_empty() => {}
            None if self.exec => detail.argv = Some(self.command.clone()),
            None => {
                let line = self.command.join(" ");
                if loses_quotes(&self.command) {
                    print_message(&format!(
                        "sidebike: hint: what runs is the line: {}\n  your shell took the quotes; keep the words with --exec (sidebike run --exec -- {} …), or quote the whole line once more\n",
                        sanitize(&line),
                        self.command[..2].join(" ")
                    ));
                }
                detail.command = Some(line);
            }
        }
        detail.workspace = self.workspace.clone();
        let timeout = self.timeout.as_deref();
        detail.timeout = timeout
            .map(|text| timeout_of("--timeout", text))
            .transpose()?;
        detail.undo = self.undo.undo()?.map(Box::new);
        detail.user = self.user.clone();
        detail.merge_output = self.merge.then_some(true);
        if let Some(file) = &self.stdin {
            let bytes = bytes_of("--stdin", file)?;
            if bytes.len() > MAX_STDIN_BYTES {
                return Err(Failure::Usage(format!(
                    "--stdin: {file} has {}, {MAX_STDIN_BYTES} at most",
                    length(&bytes)
                )));
            }
            // As text where possible: old agents do not know base64.
            match String::from_utf8(bytes) {
                Ok(text) if json_bytes(&text) <= MAX_STDIN_JSON_BYTES => detail.stdin = Some(text),
                Ok(text) => detail.stdin_base64 = Some(STANDARD.encode(text)),
                Err(bytes) => detail.stdin_base64 = Some(STANDARD.encode(bytes.as_bytes())),
            }
        }
        if !self.env.is_empty() {
            let mut variables = BTreeMap::new();
            for variable in &self.env {
                let pair = variable
                    .split_once('=')
                    .filter(|(name, _)| !name.is_empty());
                let (name, value) = pair.ok_or_else(|| {
                    Failure::Usage(format!("--env: expected NAME=VALUE, got {variable:?}"))
                })?;
                variables.insert(name.to_owned(), value.to_owned());
            }
            detail.env = Some(variables);
        }
        Ok(detail)
    }
}

/// `URL` or `URL=EVENT,EVENT`. A URL may have a `=` itself: what follows the last one counts only if it names events.
fn notify_of(text: &str) -> Notify {
    let event = |word: &str| NotifyEvent::ALL.into_iter().find(|it| it.word() == word);
    let parts = text.rsplit_once('=').and_then(|(url, words)| {
        let on: Option<Vec<NotifyEvent>> = words.split(',').map(event).collect();
        Some((url, on?))
    });
    let (url, on) = parts.unwrap_or_else(|| (text, Notify::default_on()));
    Notify {
        url: url.to_owned(),
        on,
    }
}

/// Reads the tag of a task, `NAME=VALUE`.
pub fn task_tag(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = pair.ok_or("expected NAME=VALUE such as team=pay")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Removes from a task's detail the fields that exclude one that flags set.
fn drop_alternatives(task: &mut Map<String, Value>, flags: &Map<String, Value>) {
    let (Some(Value::Object(detail)), Some(flags)) = (task.get_mut("detail"), flags.get("detail"))
    else {
        return;
    };
    drop_set(detail, flags, &ALTERNATIVES);
    if let (Some(Value::Object(undo)), Some(flags)) = (detail.get_mut("undo"), flags.get("undo")) {
        drop_set(undo, flags, &UNDO_ALTERNATIVES);
    }
}

/// Removes the fields of each group of which flags set one.
fn drop_set(fields: &mut Map<String, Value>, flags: &Value, groups: &[&[&str]]) {
    for group in groups {
        if group.iter().any(|name| flags.get(*name).is_some()) {
            fields.retain(|name, _| !group.contains(&&**name));
        }
    }
}

/// Replaces fields of a task with those of flags.
fn overlay(task: &mut Map<String, Value>, flags: Map<String, Value>) {
    for (name, value) in flags {
        let is_merged = MERGED.contains(&&*name);
        match (task.get_mut(&name), value) {
            (Some(Value::Object(old)), Value::Object(new)) if is_merged => overlay(old, new),
            (_, value) => drop(task.insert(name, value)),
        }
    }
}

/// Reads the task of a file.
fn task_of(file: &str) -> Result<Map<String, Value>, Failure> {
    let bytes = bytes_of("--task", file)?;
    let file = match file {
        "-" => "standard input",
        file => file,
    };
    serde_json::from_slice(&bytes).map_err(|why| {
        Failure::Usage(format!(
            "--task: expected a task as JSON in {file}, such as {{\"machinePattern\": \".*\", \"detail\": {{\"command\": \"uptime\"}}}}: {why}"
        ))
    })
}

/// Whether the words are a call such as `bash -c 'a && b'`, whose line needs the quotes that are lost when
/// the words are joined by blanks.
fn loses_quotes(words: &[String]) -> bool {
    let [program, flag, line @ ..] = words else {
        return false;
    };
    let takes_line = flag.starts_with('-') && flag.ends_with('c');
    let has_quotes = |word: &String| word.starts_with(['\'', '"']);
    if !takes_line || line.first().is_none_or(has_quotes) {
        return false;
    }
    let program = program.rsplit('/').next().unwrap_or_default();
    let plain = |c: char| c.is_alphanumeric() || "-_./:,=+@%".contains(c);
    let is_word = line.len() == 1 && line[0].chars().all(plain);
    let has_blanks = line.iter().any(|word| word.contains(char::is_whitespace));
    has_blanks || (SHELLS.contains(&program) && !is_word)
}

/// Parses a time-out given with a flag; -1 is none.
pub fn timeout_of(flag: &str, text: &str) -> Result<Timeout, Failure> {
    if text.trim() == "-1" {
        return Ok(Timeout::Never);
    }
    let duration = text.parse::<TimeSpan>();
    duration
        .map(Timeout::After)
        .map_err(|why| Failure::Usage(format!("{flag}: {why}, or -1; got {text:?}")))
}

/// Sets the script to run. A short one for a shell goes as a command line, which every agent understands.
fn set_script(detail: &mut Detail, text: String, args: &[String]) {
    let first = text.lines().next().and_then(|line| line.strip_prefix("#!"));
    let mut words = first.unwrap_or_default().split_whitespace();
    let mut program = words.next().unwrap_or("sh");
    if program.ends_with("/env") {
        program = words.next().unwrap_or("sh");
    }
    let name = program.rsplit('/').next().unwrap_or_default();
    let has_options = words.next().is_some();
    let is_line = SHELLS.contains(&name) && !has_options && text.len() <= MAX_ARGUMENT_BYTES;
    if is_line && args.is_empty() {
        detail.command = Some(text);
    } else {
        detail.script = Some(text);
        detail.script_args = (!args.is_empty()).then(|| args.to_vec());
    }
}

/// Reads a script.
fn script(file: &str) -> Result<String, Failure> {
    let bytes = bytes_of("--script", file)?;
    if bytes.len() > MAX_SCRIPT_BYTES {
        return Err(Failure::Usage(format!(
            "--script: {file} has {}, {MAX_SCRIPT_BYTES} at most; pass data as --stdin FILE",
            length(&bytes)
        )));
    }
    let text = String::from_utf8(bytes);
    text.map_err(|_| Failure::Usage(format!("--script: {file} is not text in UTF-8")))
}

/// The size of a file in words; "or more" if it was not read to its end.
fn length(bytes: &[u8]) -> String {
    let more = if bytes.len() as u64 == MAX_FILE_BYTES {
        " or more"
    } else {
        ""
    };
    format!("{} bytes{more}", bytes.len())
}

/// Reads a file, or standard input.
pub fn bytes_of(flag: &str, file: &str) -> Result<Vec<u8>, Failure> {
    let cannot = |why: io::Error| Failure::Usage(format!("{flag}: cannot read {file}: {why}"));
    let mut bytes = Vec::new();
    let read = if file == "-" {
        io::stdin().take(MAX_FILE_BYTES).read_to_end(&mut bytes)
    } else {
        let open = fs::File::open(file).map_err(cannot)?;
        open.take(MAX_FILE_BYTES).read_to_end(&mut bytes)
    };
    read.map_err(cannot)?;
    Ok(bytes)
}
