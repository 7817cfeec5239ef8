//! `sidebike run`.

use super::command::{CommandResult, ConnectionArgs, Failure, duration, print_json};
use super::follow::{self, FollowOptions, print_message};
use super::outcome::{CANCELED, NO_MACHINE, label_list};
use super::table::{Cell, Table};
use super::terminal::{self, Prompt, sanitize, truncate};
use crate::wire::duration::{TimeSpan, Timeout};
use crate::wire::machine::MachineState;
use crate::wire::task::{Detail, DryRun, Mode, NewTask, json_bytes};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};

/// The most that is read of a script or of standard input, in bytes: enough to say how long a file of ordinary size is.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// The longest script and the longest standard input, in bytes. A server accepts less if its --max-body is lower.
const MAX_SCRIPT_BYTES: usize = 1 << 20;
const MAX_STDIN_BYTES: usize = 1 << 20;
/// How long standard input may be as text in JSON, in bytes: as long as the longest in base64. What is full of control
/// characters grows to six times its size.
const MAX_STDIN_JSON_BYTES: usize = MAX_STDIN_BYTES.div_ceil(3) * 4;
/// The longest shell line, in bytes: Linux takes no longer argument.
const MAX_LINE_BYTES: usize = 131_071;
/// The shells that a script may name in its first line to be run as a line of the machine's own shell.
const SHELLS: [&str; 5] = ["sh", "bash", "dash", "ash", "ksh"];

/// How much of a list of other machines is shown in a hint, in columns.
const MAX_OTHERS_COLUMNS: usize = 120;

const EXAMPLES: &str = "\
Examples:
  sidebike run -- uptime                         on every machine
  sidebike run -m '^web-' -- 'df -h | tail -1'   on those whose label begins with web-
  sidebike run -m 'web-1|db-1' -- uptime         on two of them; a pattern may match any part of a label
  sidebike run -m '^web-' --dry-run -- reboot    only show who would run it
  sidebike run --fold -- cat /etc/os-release     machines with the same output together
  sidebike run --any -m '^db-' -- ./vacuum.sh    on one of them, whichever is free first
  sidebike run --script ./probe.py -- -v /data   a script of this machine, with arguments
  sidebike run --timeout 2h -- ./backup.sh       longer than the usual 3 minutes
  sidebike run --exec -- printf '%s\\n' 'a b'     no shell at all

Put the line in single quotes: without them your own shell fills in $ and ends the command at ; & |.
To name a shell yourself take --exec: sidebike run --exec -- bash -c 'a && b'.
The command has SIDEBIKE_MACHINE_LABEL, SIDEBIKE_INSTANCE, SIDEBIKE_TASK_ID, SIDEBIKE_TASK_NAME and
SIDEBIKE_ATTEMPT in its environment.
Its standard output goes to standard output, its standard error to standard error, as do the messages
of sidebike itself; --fold shows both together on standard output.

The exit code is the worst of all machines':
  0 all succeeded, else the command's own; 3 no machine matched, 124 time-out, 125 lost or not
  started in time, 126 could not be started, 128+N ended by signal N, 130 canceled or detached,
  141 the reader of the output went away, 255 sidebike itself failed, 2 wrong usage.
Ctrl-C asks whether to cancel or to detach; a second one detaches. Without a terminal it cancels. So do
TERM, HUP and a reader of the output that goes away (| head), unless --detach-on-exit is given.";

/// The arguments.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    override_usage = "sidebike run [OPTIONS] -- COMMAND...\n       sidebike run [OPTIONS] --script FILE\n       sidebike run [OPTIONS] --script FILE -- ARG..."
)]
pub struct Args {
    /// Machines whose label matches this regular expression
    #[arg(short, long = "machine", value_name = "PATTERN", default_value = ".*")]
    machine: String,
    /// On one of them only, whichever is free first
    #[arg(long)]
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
    /// The name of the task in lists
    #[arg(long, default_value = "run")]
    name: String,
    /// Run the words as a program and its arguments, without a shell
    #[arg(long, conflicts_with = "script")]
    exec: bool,
    /// Run this script by the interpreter of its #! line, or by the shell; - reads it from standard input
    #[arg(long, value_name = "FILE")]
    script: Option<String>,
    /// Do not wait for the end; print the task's id
    #[arg(long)]
    detach: bool,
    /// Let the task go on when this command is interrupted or the reader of its output goes away
    #[arg(long)]
    detach_on_exit: bool,
    /// Only show which machines would run it
    #[arg(long)]
    dry_run: bool,
    /// At the end, show machines with the same output together
    #[arg(long, conflicts_with_all = ["json", "detach"])]
    fold: bool,
    /// Ask before running on more machines than this
    #[arg(long, value_name = "N", default_value_t = 20)]
    yes_above: u32,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// At the end, print the task as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    server: ConnectionArgs,
    /// The command: its words joined by blanks are a line for the shell, as with ssh; best one word
    /// in single quotes. With --script the script's arguments
    #[arg(
        value_name = "COMMAND",
        last = true,
        required_unless_present = "script"
    )]
    command: Vec<String>,
}

/// Runs a command on machines.
pub fn run(args: Args) -> CommandResult {
    let task = new_task(&args)?;
    let client = args.server.client()?;
    let matching = client.dry_run(&task)?;
    if let Some(hint) = matches_more_than_named(&args.machine, &matching) {
        print_message(&hint);
    }
    if args.dry_run {
        show_matching(&matching, args.json)?;
        return Ok(if matching.matched == 0 { NO_MACHINE } else { 0 });
    }
    if matching.matched == 0 {
        let pattern = sanitize(&args.machine);
        let others = not_online(&matching);
        print_message(&format!(
            "sidebike: no machine matches {pattern:?}{others}; see sidebike machines\n"
        ));
        return Ok(NO_MACHINE);
    }
    if !args.any && !args.yes && matching.matched > args.yes_above {
        let is_meant = confirm(&matching)?;
        if !is_meant {
            print_message("sidebike: not run\n");
            return Ok(CANCELED);
        }
    }
    if args.detach {
        let task = client.submit(&task)?;
        if args.json {
            print_json(&task)?;
        } else {
            writeln!(io::stdout(), "{}", task.id)?;
        }
        return Ok(0);
    }
    let control = follow::controls()?;
    let task = client.submit(&task)?;
    if terminal::width(&io::stderr()).is_some() || task.result.len() > 1 {
        print_message(&format!(
            "task {} on {}\n",
            task.id,
            machines_in_words(&matching, args.any)
        ));
    }
    let options = FollowOptions {
        fold: args.fold,
        json: args.json,
        detach_on_exit: args.detach_on_exit,
    };
    follow::follow_to_end(&client, &task, options, control)
}

fn new_task(args: &Args) -> Result<NewTask, Failure> {
    if args.script.as_deref() == Some("-") && args.stdin.as_deref() == Some("-") {
        return Err(Failure::Usage(
            "--script - and --stdin -: standard input can be only one of them".into(),
        ));
    }
    let mut detail = Detail::default();
    match &args.script {
        Some(file) => set_script(&mut detail, script(file)?, &args.command),
        None if args.exec => detail.argv = Some(args.command.clone()),
        None => {
            let line = args.command.join(" ");
            if loses_quotes(&args.command) {
                print_message(&format!(
                    "sidebike: hint: what runs is the line: {}\n  your shell took the quotes; keep the words with --exec (sidebike run --exec -- {} …), or quote the whole line once more\n",
                    sanitize(&line),
                    args.command[..2].join(" ")
                ));
            }
            detail.command = Some(line);
        }
    }
    detail.workspace = args.workspace.clone();
    detail.timeout = args.timeout.as_deref().map(timeout).transpose()?;
    detail.user = args.user.clone();
    detail.merge_output = args.merge.then_some(true);
    if let Some(file) = &args.stdin {
        let bytes = bytes_of("--stdin", file)?;
        if bytes.len() > MAX_STDIN_BYTES {
            return Err(Failure::Usage(format!(
                "--stdin: {file} has {}, {MAX_STDIN_BYTES} at most",
                length(&bytes)
            )));
        }
        // Every agent understands a text.
        match String::from_utf8(bytes) {
            Ok(text) if json_bytes(&text) <= MAX_STDIN_JSON_BYTES => detail.stdin = Some(text),
            Ok(text) => detail.stdin_base64 = Some(STANDARD.encode(text)),
            Err(bytes) => detail.stdin_base64 = Some(STANDARD.encode(bytes.as_bytes())),
        }
    }
    if !args.env.is_empty() {
        let mut variables = BTreeMap::new();
        for variable in &args.env {
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
    Ok(NewTask {
        name: args.name.clone(),
        machine_pattern: args.machine.clone(),
        mode: if args.any { Mode::Any } else { Mode::All },
        ttl: args
            .ttl
            .as_deref()
            .map(|text| duration("--ttl", text))
            .transpose()?,
        detail,
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

fn timeout(text: &str) -> Result<Timeout, Failure> {
    if text.trim() == "-1" {
        return Ok(Timeout::Never);
    }
    let duration = text.parse::<TimeSpan>();
    duration
        .map(Timeout::After)
        .map_err(|why| Failure::Usage(format!("--timeout: {why}, or -1; got {text:?}")))
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
    let is_line = SHELLS.contains(&name) && !has_options && text.len() <= MAX_LINE_BYTES;
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

/// How many bytes a file has, as far as it was read.
fn length(bytes: &[u8]) -> String {
    let more = if bytes.len() as u64 == MAX_FILE_BYTES {
        " or more"
    } else {
        ""
    };
    format!("{} bytes{more}", bytes.len())
}

fn bytes_of(flag: &str, file: &str) -> Result<Vec<u8>, Failure> {
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

fn show_matching(matching: &DryRun, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return print_json(matching);
    }
    let mut table = Table::new(&["LABEL", "INSTANCE"]);
    for machine in &matching.machines {
        table.add(vec![Cell::of(&machine.label), Cell::of(&machine.instance)]);
    }
    let stdout = io::stdout();
    table.print(&mut stdout.lock(), &stdout)?;
    let others = not_online(matching);
    match matching.matched {
        1 => print_message(&format!("1 machine matches{others}\n")),
        n => print_message(&format!("{n} machines match{others}\n")),
    }
    Ok(())
}

/// A hint when the pattern is the label of a machine and matches others too: who types `web-1` may not mean `web-10`.
fn matches_more_than_named(pattern: &str, matching: &DryRun) -> Option<String> {
    let (named, others): (Vec<_>, Vec<_>) = matching
        .machines
        .iter()
        .map(|machine| &*machine.label)
        .partition(|label| *label == pattern);
    if named.is_empty() || others.is_empty() {
        return None;
    }
    let is_plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ');
    let mut exact = String::new();
    for c in pattern.chars() {
        exact.push_str(if is_plain(c) { "" } else { "\\" });
        exact.push(c);
    }
    let others = label_list(others.into_iter());
    Some(format!(
        "sidebike: {:?} is the label of a machine, and as a pattern it also matches: {}; only that one: -m '^{}$'\n",
        sanitize(pattern),
        truncate(&others, MAX_OTHERS_COLUMNS),
        sanitize(&exact)
    ))
}

/// Asks whether to run on that many machines.
fn confirm(matching: &DryRun) -> Result<bool, Failure> {
    let words = machines_in_words(matching, false);
    let Some(mut person) = Prompt::open() else {
        return Err(Failure::Usage(format!(
            "it would run on {words}: say --yes, or --yes-above {}",
            matching.matched
        )));
    };
    let answer = person.ask(&format!("Run on {words}? [y/N] "));
    Ok(matches!(&*answer, "y" | "yes"))
}

/// How many matching machines cannot take work now, as a text.
fn not_online(matching: &DryRun) -> String {
    let states = [
        (matching.offline, MachineState::Offline),
        (matching.draining, MachineState::Draining),
    ];
    let some = states.into_iter().filter(|(count, _)| *count > 0);
    let words: Vec<String> = some
        .map(|(count, state)| match count {
            1 => format!("1 matches but is {}", state.word()),
            n => format!("{n} match but are {}", state.word()),
        })
        .collect();
    match words.is_empty() {
        true => String::new(),
        false => format!(" ({})", words.join(", ")),
    }
}

/// `3 machines: web-1, web-2, web-3`, cut to the width of the terminal.
fn machines_in_words(matching: &DryRun, any: bool) -> String {
    let names = label_list(matching.machines.iter().map(|machine| &*machine.label));
    let width = terminal::width(&io::stderr()).unwrap_or(80);
    let names = truncate(&names, width.saturating_sub(20).max(20));
    match (any, matching.matched) {
        (true, n) => format!("any of {n}: {names}"),
        (false, 1) => format!("1 machine: {names}"),
        (false, n) => format!("{n} machines: {names}"),
    }
}
