//! The documentation: its examples run as a reader would type them, page by page, top to bottom, in one folder;
//! its links lead somewhere; it names every flag; the binary and the server show it.
//!
//! - Every block marked `sh` is run. The program is there as `./sidebike`, as a reader has it.
//! - `10.23.45.67`, with or without `:9410`, is the server that the last block of that kind started. Pages other
//!   than the README find a server and the machine `MY_MACHINE_1` running.
//! - A block that is one call of `./sidebike server`, or one of `./sidebike agent` on each line, is left running (the
//!   server on a free port, by `SIDEBIKE_LISTEN`). A new server ends everything before it, and so does a block
//!   that begins with `./sidebike db`, which reads the file of a stopped server.
//! - A block that is `pkill -KILL -f 'sidebike server'` kills the server that the page has started, and no other.
//! - The page of several servers finds an empty PostgreSQL in `SIDEBIKE_DB`. `./sidebike server --listen ADDRESS` is one
//!   more server, on a free port which stands for that address from then on; `pkill` kills it by the same words.
//! - A block marked `json` is what the `sh` block before it answers last: at least these members.
//!   `"..."` fits anything, `["..."]` any list that is not empty. A block that only reads is run
//!   again until it fits, for ten seconds: a reader is slower than a test.
//! - A block marked `text` is all that the `sh` block before it prints.
//!
//! Blocks of other kinds (`console`) are not run; command lines of sidebike in them have to be such as it takes.
#![cfg(all(feature = "pg", feature = "agent", feature = "cli"))]

mod common;
mod postgresql;

use clap::Parser;
use common::{Folder, SIDEBIKE, Server, free_address};
use percent_encoding::percent_decode_str;
use postgresql::PostgreSql;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Deserializer, Value};
use sidebike::command_line::CommandLine;
use sidebike::docs::{PAGES, Page};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What a page says to kill its server, or one of them.
const KILLS_A_SERVER: &str = "pkill -KILL -f 'sidebike server";
/// What begins the line of one of several servers.
const ONE_OF_SEVERAL: &str = "./sidebike server --listen ";

const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// A fenced block and the line it begins at.
struct Block {
    line: usize,
    kind: String,
    text: String,
}

/// The most lines that the README and the figures may have: a reader's patience.
const MOST_LINES: [(&str, usize); 2] = [("readme", 350), ("performance", 120)];

/// The link of a page, as the server shows it, to the OpenAPI description.
const OPENAPI_FROM_A_PAGE: &str = "../api/v1/openapi.json";

/// Where a page lies in the tree.
fn source(page: &Page) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    match page.name {
        "readme" => root.join("README.md"),
        name => root.join("src/docs").join(format!("{name}.md")),
    }
}

fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (line, text) in (1..).zip(page.lines()) {
        match (text.strip_prefix("```"), &mut open) {
            (Some(kind), None) => {
                open = Some(Block {
                    line,
                    kind: kind.into(),
                    text: String::new(),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => {
                block.text.push_str(text);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// A program that ends, politely, with its owner.
struct Running {
    child: Child,
    /// It got a signal already: a second one would end it at once.
    is_ending: bool,
}

impl Running {
    fn signal(&mut self, signal: Signal) {
        if !self.is_ending {
            self.is_ending = true;
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Somebody who reads a page and does what it says.
struct Reader {
    folder: Folder,
    address: String,
    running: Vec<Running>,
    /// What else is in the environment.
    variables: Vec<(&'static str, String)>,
    /// Several servers: the address that the page shows, and the real one.
    several: Vec<(String, String)>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.end_all();
    }
}

impl Reader {
    fn new() -> Self {
        let folder = Folder::new();
        std::os::unix::fs::symlink(SIDEBIKE, folder.file("sidebike")).unwrap();
        Reader {
            folder,
            address: String::new(),
            running: Vec::new(),
            variables: Vec::new(),
            several: Vec::new(),
        }
    }

    /// One who has an empty database for several servers.
    fn with_database(url: String) -> Self {
        let mut reader = Reader::new();
        reader.variables.push(("SIDEBIKE_DB", url));
        reader
    }

    /// One who has read the README's walk-through before.
    fn with_machine() -> Self {
        let mut reader = Reader::new();
        reader.start("./sidebike server");
        reader.start("SIDEBIKE_MACHINE_LABEL=MY_MACHINE_1 SIDEBIKE_REGISTRY_ADDRESS=10.23.45.67 ./sidebike agent");
        reader
    }

    /// Agents before their server: they have to say goodbye. All at once: without a server each tries for some seconds.
    fn end_all(&mut self) {
        let agents = self.running.iter_mut().skip(1);
        agents.for_each(|agent| agent.signal(Signal::TERM));
        while self.running.pop().is_some() {}
    }

    /// Kills the server, or the one of several that listens there. It is reaped with the others, so that its number stays
    /// its own.
    fn kill_server(&mut self, words: &str) {
        let is_named = |(shown, _): &(String, String)| words.contains(shown.as_str());
        let n = self.several.iter().position(is_named).unwrap_or_default();
        let server = self.running.get_mut(n).expect("a server");
        server.signal(Signal::KILL);
    }

    /// A command in the folder, without what the environment of this test may say (proxies, …).
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var_os("PATH").unwrap_or_default();
        command
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", path)
            .envs(self.variables.iter().cloned());
        command
    }

    fn addressed(&self, text: &str) -> String {
        let text = text
            .replace(":9410", "")
            .replace("10.23.45.67", &self.address);
        { self.several.iter() }.fold(text, |text, (shown, real)| text.replace(shown, real))
    }

    /// Leaves `VARIABLE=value … ./sidebike …` running.
    fn start(&mut self, line: &str) {
        if let Some(shown) = line.strip_prefix(ONE_OF_SEVERAL) {
            let real = (shown.to_owned(), free_address().to_string());
            self.several.push(real);
        } else if line.contains("sidebike server") {
            self.end_all();
        }
        let line = self.addressed(line);
        let words: Vec<&str> = line.split_whitespace().collect();
        let program = words.iter().position(|word| !word.contains('='));
        let (variables, words) = words.split_at(program.unwrap_or_default());
        let log = self.folder.file(&format!("log{}", self.running.len()));
        let mut command = self.command(SIDEBIKE);
        command
            .args(&words[1..])
            .envs(variables.iter().filter_map(|v| v.split_once('=')))
            .env("SIDEBIKE_LISTEN", "127.0.0.1:0")
            .stderr(File::create(&log).unwrap());
        self.running.push(Running {
            child: command.spawn().unwrap(),
            is_ending: false,
        });
        if self.running.len() <= self.several.len().max(1) {
            self.address = wait_for("the server's address", || {
                let log = fs::read_to_string(&log).unwrap();
                let (_, rest) = log.split_once(" listens on ")?;
                Some(rest.lines().next()?.to_owned())
            });
        } else {
            let agents = self.running.len() - self.several.len().max(1);
            // With a token where the page has made one for people.
            let list = self.addressed(
                "curl -sS -H \"Authorization: Bearer $(cat people 2>/dev/null)\" http://10.23.45.67/api/v1/machine?state=online",
            );
            wait_for("the agent to be online", || {
                let known = self.run(&list).matches("\"instance\"").count();
                (known >= agents).then_some(())
            });
        }
    }

    /// Runs a block; what it printed.
    fn run(&self, text: &str) -> String {
        let script = self.addressed(text);
        let output = self
            .command("sh")
            .args(["-ec", &script])
            .output()
            .expect("a shell");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}\n{stderr}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "waited in vain for {what}");
        sleep(PAUSE);
    }
}

/// Whether `real` has at least what is `shown`.
fn fits(shown: &Value, real: &Value) -> bool {
    match (shown, real) {
        (Value::String(any), _) if any == "..." => true,
        (Value::Array(shown), Value::Array(real)) if *shown == ["..."] => !real.is_empty(),
        (Value::Array(shown), Value::Array(real)) => {
            shown.len() == real.len() && shown.iter().zip(real).all(|(s, r)| fits(s, r))
        }
        (Value::Object(shown), Value::Object(real)) => shown
            .iter()
            .all(|(name, value)| real.get(name).is_some_and(|real| fits(value, real))),
        _ => shown == real,
    }
}

fn last_json(printed: &str) -> Value {
    let values = Deserializer::from_str(printed).into_iter::<Value>();
    let last = values.map(|value| value.expect(printed)).last();
    last.unwrap_or_default()
}

/// Runs the examples of a page; how many there were.
fn run_examples(name: &str, mut reader: Reader) -> usize {
    let page = PAGES.iter().find(|page| page.name == name).expect(name);
    let file = source(page);
    let blocks = blocks(&fs::read_to_string(&file).unwrap());
    let mut checked = 0;
    for (n, block) in blocks.iter().enumerate() {
        if block.kind != "sh" {
            continue;
        }
        let at = format!("{}:{}: {}", file.display(), block.line, block.text);
        let first = block.text.lines().next().unwrap_or_default();
        if first.contains("./sidebike server") || first.contains("./sidebike agent") {
            block.text.lines().for_each(|line| reader.start(line));
            continue;
        }
        if first.starts_with("./sidebike db") {
            reader.end_all();
        }
        if let Some(words) = block.text.strip_prefix(KILLS_A_SERVER) {
            reader.kill_server(words);
            continue;
        }
        let only_reads = ![" -X", " -d", " --data", "sidebike run"]
            .iter()
            .any(|w| block.text.contains(w));
        let shown = blocks.get(n + 1).filter(|shown| shown.kind != "sh");
        let until = Instant::now() + PATIENCE;
        loop {
            let printed = reader.run(&block.text);
            let fits = match shown {
                Some(shown) if shown.kind == "json" => {
                    fits(&last_json(&shown.text), &last_json(&printed))
                }
                Some(shown) if shown.kind == "text" => shown.text.trim() == printed.trim(),
                _ => !printed.contains("\"signal\":-1"),
            };
            if fits {
                break;
            }
            let again = only_reads && Instant::now() < until;
            assert!(again, "{at}\ndoes not answer what is shown, but\n{printed}");
            sleep(PAUSE);
        }
        checked += 1;
    }
    checked
}

#[test]
fn every_example_of_the_readme_does_what_it_says() {
    let checked = run_examples("readme", Reader::new());
    assert!(checked >= 8, "only {checked} examples were found");
}

#[test]
fn every_example_of_the_api_does_what_it_says() {
    let checked = run_examples("api", Reader::with_machine());
    assert!(checked >= 15, "only {checked} examples were found");
}

#[test]
fn every_example_of_the_other_pages_does_what_it_says() {
    let mut checked = 0;
    for page in PAGES {
        if !["readme", "api", "servers"].contains(&page.name) {
            checked += run_examples(page.name, Reader::with_machine());
        }
    }
    assert!(checked >= 10, "only {checked} examples were found");
}

#[test]
fn every_example_of_several_servers_does_what_it_says() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let checked = run_examples("servers", Reader::with_database(postgres.database()));
    assert!(checked >= 4, "only {checked} examples were found");
}

#[test]
fn every_command_line_that_is_only_shown_is_understood() {
    let mut count = 0;
    for page in PAGES {
        for block in blocks(&page.markdown.text()) {
            if block.kind != "console" {
                continue;
            }
            let lines = block.text.replace("\\\n", " ");
            for line in lines.lines() {
                let line = line.trim_start_matches("$ ");
                let line = line.trim_start_matches("ExecStart=/usr/local/bin/");
                let words = shlex::split(line).unwrap_or_default().into_iter();
                let words: Vec<String> = words.skip_while(|word| word.contains('=')).collect();
                if words.first().is_none_or(|word| word != "sidebike") {
                    continue;
                }
                let read = CommandLine::try_parse_from(&words);
                assert!(read.is_ok(), "{}: {line}: {}", page.name, read.unwrap_err());
                count += 1;
            }
        }
    }
    assert!(count > 15, "only {count} were found");
}

/// The text without what stands in blocks and between backticks.
fn prose(page: &str) -> String {
    let outside = page.split("```").step_by(2).collect::<String>();
    outside.split('`').step_by(2).collect()
}

/// The target of every link, as `page#heading`.
fn links(page: &str) -> Vec<String> {
    let prose = prose(page);
    let links = prose.split("](").skip(1);
    let targets = links.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
    targets.collect()
}

/// The ids that GitHub gives the headings of a page.
fn headings(page: &str) -> Vec<String> {
    let outside = page.split("```").step_by(2).collect::<String>();
    let titles = outside.lines().filter(|line| line.starts_with('#'));
    let slug = |title: &str| {
        let title = title.trim_start_matches('#').trim().to_lowercase();
        let kept = title.replace(' ', "-");
        kept.chars()
            .filter(|c| c.is_alphanumeric() || *c == '-' || *c == '_')
            .collect()
    };
    titles.map(slug).collect()
}

#[test]
fn every_page_is_listed_linked_and_short_enough() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/docs");
    let files = fs::read_dir(folder).unwrap();
    let files = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<String> = files.filter(|name| name.ends_with(".md")).collect();
    files.push("readme.md".into());
    files.sort();
    let mut pages: Vec<String> = PAGES.iter().map(|p| format!("{}.md", p.name)).collect();
    pages.sort();
    assert_eq!(files, pages);
    let readme = links(&PAGES[0].markdown.text());
    for page in &pages {
        assert!(
            page == "readme.md" || readme.contains(page),
            "{page} is not linked"
        );
    }
    for (name, most) in MOST_LINES {
        let page = PAGES.iter().find(|page| page.name == name).unwrap();
        let lines = fs::read_to_string(source(page)).unwrap().lines().count();
        assert!(lines <= most, "{name} has {lines} lines");
    }
}

#[test]
fn links_lead_somewhere_in_the_tree_and_in_the_binary() {
    for page in PAGES {
        let file = source(page);
        let text = fs::read_to_string(&file).unwrap();
        for link in links(&text) {
            let (path, heading) = link.split_once('#').unwrap_or((&link, ""));
            let target = match path {
                "" => file.clone(),
                path => file.parent().unwrap().join(path),
            };
            let exists = target.exists();
            assert!(exists, "{}: {link} leads nowhere", file.display());
            let there = heading.is_empty()
                || headings(&fs::read_to_string(target).unwrap()).contains(&heading.to_owned());
            assert!(there, "{}: {link} has no such heading", file.display());
        }
        for link in links(&page.markdown.text()) {
            let (name, _) = link.split_once('#').unwrap_or((&link, ""));
            let there = ["", OPENAPI_FROM_A_PAGE].contains(&name)
                || PAGES.iter().any(|page| name == format!("{}.md", page.name));
            assert!(there, "{} in the binary: {link} leads nowhere", page.name);
        }
        for href in page.html.text().split("href=\"").skip(1) {
            let href = href.split('"').next().unwrap();
            let href = &*percent_decode_str(href).decode_utf8().unwrap();
            let (name, heading) = href.split_once('#').unwrap_or((href, ""));
            let target = match name {
                "" => Some(page),
                name => PAGES.iter().find(|page| page.name == name),
            };
            if name == OPENAPI_FROM_A_PAGE || href.starts_with("http://10.23.45.67:9410/") {
                continue;
            }
            let target = target.unwrap_or_else(|| panic!("{}: {href}", page.name));
            let id = format!(" id=\"{heading}\"");
            let there = heading.is_empty() || target.html.text().contains(&id);
            assert!(there, "{} as HTML: {href} has no such heading", page.name);
        }
    }
}

#[test]
fn what_the_map_of_the_code_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = PAGES[0].markdown.text();
    let named: Vec<&str> = { readme.split('`') }
        .filter(|part| part.starts_with("src/") || part.starts_with("tests/"))
        .collect();
    assert!(named.len() > 20, "{named:?}");
    for path in named {
        assert!(root.join(path).exists(), "the README names {path}");
    }
}

#[test]
fn every_flag_and_variable_is_documented() {
    let page = |name: &str| {
        PAGES
            .iter()
            .find(|p| p.name == name)
            .unwrap()
            .markdown
            .text()
    };
    let commands = [
        ("server", "operations"),
        ("agent", "operations"),
        ("run", "cli"),
        ("ps", "cli"),
        ("pause", "cli"),
        ("resume", "cli"),
        ("stop", "cli"),
        ("rerun", "cli"),
        ("machines", "cli"),
        ("wait", "cli"),
    ];
    for (command, name) in commands {
        let output = Command::new(SIDEBIKE).args([command, "--help"]).output();
        let help = String::from_utf8(output.unwrap().stdout).unwrap();
        let words = help.split(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c)));
        let named = words.filter(|word| {
            let is_flag = word.starts_with("--") && word.len() > 2;
            (is_flag || word.starts_with("SIDEBIKE_")) && *word != "--help" && *word != "--version"
        });
        let mut count = 0;
        for word in named {
            let there = page(name).contains(word) || page("operations").contains(word);
            assert!(there, "{word} of {command} is not in {name}.md");
            count += 1;
        }
        assert!(count > 2, "{help}");
    }
    let output = Command::new(SIDEBIKE).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let (_, list) = help.split_once("Commands:\n").expect(&help);
    let names = list.lines().take_while(|line| !line.is_empty());
    for name in names.filter_map(|line| line.split_whitespace().next()) {
        let there = page("cli").contains(&format!("`{name}")) || name == "help";
        assert!(there, "the command {name} is not in cli.md");
    }
}

#[test]
fn the_command_prints_pages() {
    let say = |words: &[&str]| {
        let output = Command::new(SIDEBIKE).arg("docs").args(words).output();
        let output = output.unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, list, _) = say(&[]);
    assert_eq!(code, Some(0));
    for page in PAGES {
        let listed = list.lines().any(|line| line.starts_with(page.name));
        assert!(listed, "{list}");
        let (code, text, _) = say(&[page.name]);
        assert_eq!((code, text), (Some(0), page.markdown.text()));
    }
    let (code, out, why) = say(&["nothing"]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(
        why.contains("\"nothing\"") && why.contains("api, operations"),
        "{why}"
    );
}

#[test]
fn the_server_shows_pages_as_html_to_a_browser_and_as_text_to_others() {
    let server = Server::start();
    let get = |target: &str, accept: &str| {
        let headers = format!("{accept}Connection: close\r\n");
        server.raw(&common::http::request("GET", target, &headers, b""))
    };
    let browser = "Accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";
    let curl = "Accept: */*\r\n";
    for target in ["/docs", "/docs/"] {
        let list = get(target, curl);
        assert!(list.text().contains("operations"), "{}", list.text());
        let list = get(target, browser);
        assert!(list.text().contains("href=\"../docs/operations\""));
    }
    let policy_of = |page: &str| {
        get(page, browser)
            .header("Content-Security-Policy")
            .unwrap()
            .to_owned()
    };
    let same = |policy: String| {
        let kept = policy
            .split("; ")
            .filter(|part| !part.starts_with("script-src") && !part.starts_with("style-src"));
        kept.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(same(policy_of("/")), same(policy_of("/docs/api")));
    assert!(policy_of("/docs/api").contains("script-src 'none'"));
    for page in PAGES {
        let target = format!("/docs/{}", page.name);
        for (target, accept) in [
            (target.clone(), curl),
            (target.clone(), ""),
            (format!("{target}.md"), browser),
        ] {
            let text = get(&target, accept);
            assert_eq!(text.status, 200);
            assert_eq!(
                text.header("Content-Type"),
                Some("text/plain; charset=utf-8")
            );
            assert_eq!(text.text(), page.markdown.text());
        }
        let html = get(&target, browser);
        assert_eq!(
            html.header("Content-Type"),
            Some("text/html; charset=utf-8")
        );
        assert_eq!(html.header("Vary"), Some("Accept"));
        assert!(html.text().contains(&page.html.text()), "{target}");
    }
    let none = get("/docs/nothing", curl);
    assert_eq!(none.status, 404);
    assert!(none.text().contains("api, operations"), "{}", none.text());
    assert!(server.get("/").text().contains("<a href=\"docs/\">"));
}
