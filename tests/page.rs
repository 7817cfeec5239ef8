//! The page: what it is made of, and what it does in a real browser.
//!
//! The tests in a browser need `chromium` and `chromium-driver`; without them they say so and pass.
//! `PAGE_SHOTS=folder cargo test --test page` leaves pictures there, to be looked at;
//! `PAGE_PICTURE=1 cargo test --test page` writes the README's picture again.

mod browser;
mod common;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use browser::{Browser, assert_quiet, url, with_browser};
use common::http::{Connection, Reply, request};
use common::{Agent, Folder, SIDEBIKE, Server, id, task, wait_for, wait_until};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

/// The most that the page may have: four and a half seconds of a line of 400 kbit/s. It is sent as it was written, with its
/// comments.
const MAX_BYTES: usize = 225_000;
/// The README's picture of the page, and the most that it may have, in bytes: it is in the repository for good.
const PICTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/docs/page.webp");
const MAX_PICTURE_BYTES: usize = 60_000;

/// What the one element of that name has in it.
fn content<'a>(page: &'a str, element: &str) -> &'a str {
    let (open, close) = (format!("<{element}"), format!("</{element}>"));
    let mut parts = page.split(&open);
    let (_, after) = (parts.next(), parts.next().expect("such an element"));
    assert_eq!(parts.next(), None, "two of {element}");
    let (content, _) = after.split_once(&close).expect("its end");
    content.strip_prefix('>').expect("no attributes")
}

#[test]
fn it_is_small_self_contained_and_takes_no_html() {
    let server = Server::start();
    let page = server.get("/");
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("Content-Type"),
        Some("text/html; charset=utf-8")
    );
    let text = page.text();
    assert!(text.len() < MAX_BYTES, "{} bytes", text.len());
    for outside in [
        "http://",
        "https://",
        "url(",
        "@import",
        "src=\"//",
        "href=\"//",
    ] {
        assert!(
            !text.contains(outside),
            "it refers to the outside: {outside}"
        );
    }
    for door in [
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "DOMParser",
        "srcdoc",
        "createContextualFragment",
        "localStorage",
        "style=\"",
        " onclick=\"",
    ] {
        assert!(!text.contains(door), "{door}");
    }
}

#[test]
fn its_policy_allows_its_own_content_and_nothing_else() {
    let server = Server::start();
    let page = server.get("/");
    let policy = page.header("Content-Security-Policy").expect("a policy");
    for directive in [
        "default-src 'none'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ] {
        assert!(
            policy.split("; ").any(|is| is == directive),
            "{directive}: {policy}"
        );
    }
    assert!(
        !policy.contains("unsafe") && !policy.contains('*'),
        "{policy}"
    );
    for element in ["script", "style"] {
        let hash = STANDARD.encode(Sha256::digest(content(page.text(), element)));
        let directive = format!("{element}-src 'sha256-{hash}'");
        assert!(
            policy.split("; ").any(|is| is == directive),
            "{directive}: {policy}"
        );
    }
    assert_eq!(page.header("Referrer-Policy"), Some("no-referrer"));
    assert_eq!(page.header("Cache-Control"), Some("no-cache"));
    assert_eq!(server.request("POST", "/", b"").status, 405);
}

#[test]
fn it_is_open_even_where_the_api_is_not() {
    let server = with_token();
    assert_eq!(server.get("/").status, 200);
    assert_eq!(server.get("/api/v1/task").status, 401);
}

fn with_token() -> Server {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["server", "--listen", "127.0.0.1:0"])
        .env("SIDEBIKE_TOKEN", "the-token-of-people")
        .env("SIDEBIKE_READ_TOKEN", "the-token-of-readers")
        .env("SIDEBIKE_AGENT_TOKEN", "the-token-of-agents");
    Server::from_command(command)
}

#[test]
fn an_empty_registry_tells_how_to_begin_and_notices_when_it_is_not_empty_any_more() {
    with_browser(|browser| {
        let server = Server::start();
        browser.open(&url(&server, ""));
        browser.sees("#fleet", "No machine yet");
        browser.sees("#fleet", &format!("--registry-address {}", server.address));
        browser.sees("#tasks-empty", "No task yet");
        browser.pictures("empty");
        let agent = server.agent("m-1");
        browser.sees("#fleet", "m-1");
        browser.sees("#fleet-summary", "1 machine · 1 online");
        server.run(task("echo hello"));
        browser.sees("#tasks", "1 / 1");
        browser.press("?");
        browser.sees("#help-dialog", "Keyboard");
        browser.press("\u{e00c}m");
        browser.sees("#machines", "m-1");
        browser.press("j\u{e007}");
        browser.sees("#machine-facts", &agent.instance());
        browser.sees("#machine-tasks", "echo hello");
        assert_quiet(browser, &[]);
    });
}

#[test]
fn fifty_machines_are_watched_from_the_submit_to_the_end() {
    with_browser(|browser| {
        let server = Server::start();
        let fleet = Fleet::start(&server, 50);
        browser.open(&url(&server, ""));
        browser.sees("#fleet-summary", "50 machines · 50 online");
        browser.press("n");
        browser.type_into("[name=pattern]", "^web-");
        browser.sees("#preview-title", "50 machines");
        browser.type_into("[name=pattern]", "^web-7$");
        browser.sees("#submit-button", "Run on 1 machine");
        browser.type_into("[name=pattern]", "^web-");
        browser.sees("#submit-button", "Run on 50 machines");
        browser.type_into("[name=name]", "a look at \"all\" of them");
        browser.type_into("[name=command]", "uname -a");
        browser.pictures("submit");
        browser.click("#submit-button");
        browser.sees("#task-name", "a look at \"all\" of them");
        browser.sees("#task-progress", "0 of 50 ended · 50 running");
        assert_eq!(browser.count("#task-grid .s-running.tile"), 50);
        browser.pictures("running");
        fleet.release();
        browser.sees("#task-progress", "50 of 50 ended");
        browser.sees("#task-state", "partial");
        assert_eq!(
            browser.run("return document.getElementById('task-announcement').textContent"),
            "Task partial, 45 of 50 succeeded"
        );
        assert_eq!(browser.count("#task-grid .s-succeeded.tile"), 45);
        assert_eq!(browser.count("#task-grid .s-failed.tile"), 5);
        // Identical outputs are one.
        assert_eq!(browser.count("#result-groups details"), 2);
        browser.sees("#result-groups details:first-child", "Linux 6.1");
        browser.sees("#result-groups details:last-child", "no such thing");
        browser.pictures("ended");
        // Only those of one state, found by label.
        browser.click("#task-chips .s-failed");
        assert_eq!(browser.count("#task-grid li"), 5);
        browser.press("/");
        browser.press("web-30");
        browser.wait("document.querySelectorAll('#task-grid li').length === 1");
        browser.press("\u{e00c}\u{e00c}");
        browser.click("#task-chips .s-failed");
        browser.click("#results-tab-timeline");
        assert_eq!(browser.count("#timeline-lanes .lane"), 50);
        browser.pictures("timeline");
        // One machine, by a link that can be given away.
        browser.click("#task-grid li:nth-child(2) a");
        browser.sees("#execution-output", "Linux 6.1");
        browser.pictures("one");
        let link = browser.run("return location.href");
        browser.open("about:blank");
        browser.open(link.as_str().unwrap());
        browser.sees("#execution-output", "Linux 6.1");
        // What did not succeed, again.
        browser.click("#task-rerun");
        browser.sees("#task-progress", "5 of 5 ended");
        assert_quiet(browser, &["task?dryRun=1"]);
    });
}

#[test]
fn what_the_picture_of_the_readme_shows_is_there() {
    with_browser(|browser| {
        let server = Server::start();
        let agents: Vec<Agent> = { 1..=12 }
            .map(|n| Agent::start(server.address, &format!("web-{n}"), &[]))
            .collect();
        server.expect(&agents.iter().collect::<Vec<_>>());
        let command = "echo \"connecting to db-1:5432\"; \
            case $SIDEBIKE_MACHINE_LABEL in web-3|web-8) echo \"db-1: connection timed out\" >&2; exit 1;; esac; \
            echo \"connected\"; echo \"3 tables, 1204 rows\"";
        let mut probe = task(command);
        probe["name"] = "can the group reach its database?".into();
        probe["machinePattern"] = "^web-".into();
        let done = server.run(probe);
        let hash = format!("#/task/{}/{}", id(&done), agents[2].instance());
        browser.open(&url(&server, &hash));
        browser.sees("#task-progress", "12 of 12 ended");
        browser.sees("#task-state", "partial");
        assert_eq!(browser.count("#task-grid .s-succeeded.tile"), 10);
        assert_eq!(browser.count("#task-grid .s-failed.tile"), 2);
        browser.sees("#execution-output .stderr", "connection timed out");
        if std::env::var_os("PAGE_PICTURE").is_some() {
            std::fs::write(PICTURE, browser.picture(1180, 720)).unwrap();
        }
        assert_quiet(browser, &[]);
    });
    let picture = std::fs::read(PICTURE).unwrap();
    assert!(picture.starts_with(b"RIFF") && picture[8..12] == *b"WEBP");
    assert!(picture.len() < MAX_PICTURE_BYTES, "{} bytes", picture.len());
}

#[test]
fn the_documentation_is_a_click_away_and_its_links_work() {
    with_browser(|browser| {
        let server = Server::start();
        browser.open(&url(&server, ""));
        browser.click("nav [href='docs/']");
        browser.sees("h1", "Documentation");
        browser.click("main [href='../docs/api']");
        browser.sees("h1", "The HTTP API");
        // The policy lets its style in.
        browser.wait("getComputedStyle(document.querySelector('td')).borderTopStyle === 'solid'");
        browser.click("main [href='security']");
        browser.sees("h1", "Security");
        browser.click("main [href='operations#settings']");
        browser.sees("#settings", "Settings");
        browser.click("nav [href='./']");
        browser.sees("h1", "Documentation");
        browser.click("nav [href='../docs/../']");
        browser.sees("#fleet", "No machine yet");
        assert_quiet(browser, &[]);
    });
}

#[test]
fn a_finished_task_is_not_asked_for_again() {
    with_browser(|browser| {
        let server = Server::start();
        let _agent = server.agent("m");
        let done = server.run(task("echo done"));
        browser.open(&url(&server, &format!("#/task/{}", id(&done))));
        browser.sees("#execution-output", "done");
        browser.sees("#task-state", "succeeded");
        let before = requests(browser);
        thread::sleep(std::time::Duration::from_millis(2_500));
        assert_eq!(requests(browser), before);
    });
}

/// How many requests the page has made.
fn requests(browser: &Browser) -> Value {
    browser.run("return performance.getEntriesByType('resource').length")
}

#[test]
fn cancel_asks_and_then_cancels() {
    with_browser(|browser| {
        let server = Server::start();
        let _agents = server.agents(2, "m");
        let running = server.submit(task("sleep 300"));
        browser.open(&url(&server, &format!("#/task/{}", id(&running))));
        browser.sees("#task-progress", "2 running");
        browser.click("#task-cancel");
        browser.sees("#confirm-dialog", "2 executions");
        browser.click("#confirm-dialog [value=no]");
        browser.click("#task-cancel");
        assert_eq!(server.task(id(&running))["state"], "running");
        browser.click("#confirm-yes");
        browser.sees("#task-state", "canceled");
        assert_eq!(server.finished(id(&running))["counts"]["canceled"], 2);
        assert_quiet(browser, &[]);
    });
}

#[test]
fn output_is_seen_while_the_command_runs() {
    with_browser(|browser| {
        let server = Server::start();
        let agents = server.agents(2, "m");
        let folder = Folder::new();
        let gate = |n: u32| format!("{}/{n}", folder.path());
        let until = |n| format!("while [ ! -e {} ]; do sleep 0.05; done", gate(n));
        let command = format!(
            "printf 'a '; {}; echo bä; echo oops >&2; {}; printf 'no \\377 text\\n'; echo end",
            until(1),
            until(2)
        );
        let running = server.submit(task(&command));
        let hash = format!("#/task/{}/{}", id(&running), agents[0].instance());
        browser.open(&url(&server, &hash));
        browser.sees("#execution-output", "a ");
        browser.sees("#task-state", "running");
        std::fs::write(gate(1), "").unwrap();
        browser.sees("#execution-output", "a bä");
        browser.sees("#execution-output .stderr", "oops");
        browser.sees("#task-state", "running");
        std::fs::write(gate(2), "").unwrap();
        browser.sees("#execution-output", "end");
        browser.sees("#task-state", "succeeded");
        let all = browser.text("#execution-output");
        for part in ["a bä\n", "oops\n", "no \u{fffd} text\nend"] {
            assert_eq!(all.matches(part).count(), 1, "{part:?} in {all:?}");
        }
        assert_quiet(browser, &[]);
    });
}

#[test]
fn a_token_is_asked_for_and_kept_for_the_tab_only() {
    with_browser(|browser| {
        let server = with_token();
        browser.open(&url(&server, "#/machines"));
        browser.sees("#token-dialog", "wants a token");
        browser.pictures("token");
        browser.type_into("#token-input", "not it");
        browser.press("\u{e007}");
        browser.sees("#token-reason", "not known");
        browser.type_into("#token-input", "the-token-of-people");
        browser.press("\u{e007}");
        browser.sees("#machines-empty", "No machine yet");
        assert_eq!(browser.count("dialog[open]"), 0);
        browser.reload();
        browser.sees("#machines-empty", "No machine yet");
        let kept = "return [sessionStorage.length, localStorage.length, document.cookie, location.href.includes('token')]";
        assert_eq!(browser.run(kept), json!([1, 0, "", false]));
        browser.open_tab();
        browser.open(&url(&server, ""));
        browser.sees("#token-dialog", "wants a token");
        browser.click("#token-cancel");
        browser.sees("#note", "wants a token");
        assert_quiet(browser, &["status of 401"]);
    });
}

#[test]
fn hostile_labels_and_output_are_shown_as_text() {
    with_browser(|browser| {
        let server = Server::start();
        let labels = [
            "m<script>window.hacked=1</script>".to_owned(),
            "m\"'><img src=x onerror=window.hacked=1>".to_owned(),
            format!("m{}", "x".repeat(254)),
            "m\u{202e}gpj.exe\u{200b}%2F../..?#&".to_owned(),
            "m constructor __proto__".to_owned(),
        ];
        let agents: Vec<Agent> = labels
            .iter()
            .map(|label| Agent::start(server.address, label, &[]))
            .collect();
        server.expect(&agents.iter().collect::<Vec<_>>());
        let mut posted = task(
            "printf '<script>window.hacked=1</script>\\n\\033[2J\\033]0;owned\\007\\b\\0<img src=x onerror=window.hacked=1>\\n'; head -c 100000 /dev/zero | tr '\\0' y; printf '\\342\\200\\256evil'; exit 3",
        );
        posted["name"] = "<b onclick=window.hacked=1>\u{202e}name</b>".into();
        let done = server.run(posted);
        for (hash, element, text) in [
            ("".to_owned(), "#fleet", labels[0].as_str()),
            (
                "".to_owned(),
                "#tasks",
                "<b onclick=window.hacked=1>\\u{202e}name</b>",
            ),
            ("#/machines".to_owned(), "#machines", labels[1].as_str()),
            (
                "#/machines".to_owned(),
                "#machines",
                "m\\u{202e}gpj.exe\\u{200b}%2F../..?#&",
            ),
            (
                format!("#/task/{}", id(&done)),
                "#task-grid",
                labels[1].as_str(),
            ),
            (
                format!("#/task/{}", id(&done)),
                "#result-groups",
                "<script>window.hacked=1</script>\n\\x1b[2J\\x1b]0;owned\\x07\\x08\\x00<img",
            ),
            (
                format!("#/task/{}/{}", id(&done), agents[3].instance()),
                "#execution-output",
                "yyy\\u{202e}evil",
            ),
            (
                format!(
                    "#/machine/{}",
                    "m%E2%80%AEgpj.exe%E2%80%8B%252F..%2F..%3F%23%26"
                ),
                "#machine-tasks",
                "name</b>",
            ),
            (
                "#/submit?pattern=m".to_owned(),
                "#preview-list",
                labels[0].as_str(),
            ),
            (
                "#/<img src=x onerror=window.hacked=1>".to_owned(),
                "#gone-text",
                "onerror",
            ),
        ] {
            browser.size(390, 844);
            browser.open("about:blank");
            browser.open(&url(&server, &hash));
            browser.sees(element, text);
            browser.fits_a_phone();
            browser.pictures(&format!("hostile-{}", element.trim_start_matches('#')));
            assert_eq!(
                browser.count("main script, main img, main [onclick], main [onerror]"),
                0
            );
            assert_eq!(browser.run("return window.hacked ?? null"), Value::Null);
        }
        assert_quiet(browser, &["task?dryRun=1"]);
    });
}

#[test]
fn a_hidden_tab_asks_for_nothing() {
    with_browser(|browser| {
        let server = Server::start();
        let _agent = server.agent("m");
        browser.open(&url(&server, ""));
        browser.sees("#live", "live");
        let before = requests(browser);
        browser.wait(&format!(
            "performance.getEntriesByType('resource').length > {before}"
        ));
        browser.minimize();
        browser.wait("document.hidden");
        let hidden = requests(browser);
        thread::sleep(std::time::Duration::from_millis(4_500));
        assert_eq!(requests(browser), hidden);
        browser.restore();
        browser.wait(&format!(
            "performance.getEntriesByType('resource').length > {hidden}"
        ));
    });
}

/// A rollout over fifty machines whose third step fails: web-0 fails alone, web-10 is one too many.
#[test]
fn a_rollout_that_fails_says_so_in_the_list_and_in_its_steps() {
    with_browser(|browser| {
        let server = Server::start();
        let fleet = Fleet::start(&server, 50);
        fleet.release();
        let mut rollout = task("deploy");
        rollout["machinePattern"] = "^web-".into();
        rollout["rollout"] = json!({"steps": [1, 5, 20, "100%"], "maxFailures": 1});
        let done = server.run(rollout);
        assert_eq!(done["counts"]["skipped"], 30, "{done}");
        browser.open(&url(&server, "#/"));
        browser.sees("#tasks", "50 / 50 · stopped");
        browser.click("#tasks a");
        browser.sees("#rollout-state", "Stopped");
        browser.sees(
            "#rollout-text",
            "step 3 of 4 · 20 of 50 started · 2 failures",
        );
        browser.sees("#rollout-text", "stopped after 2 failures (1 allowed)");
        let step = |n: u32| format!("#task-steps li:nth-child({n})");
        for (n, size, barrier, parts) in [
            (1, "1/1", "passed", [0, 1, 0]),
            (2, "4/4", "passed", [1, 0, 0]),
            (3, "15/15", "s-stopped", [1, 1, 0]),
            (4, "30/30", "", [0, 0, 1]),
        ] {
            browser.sees(&step(n), size);
            let class = browser.run(&format!(
                "return document.querySelector({:?}).className",
                step(n)
            ));
            assert_eq!(class, barrier, "{n}");
            for (state, count) in ["succeeded", "failed", "skipped"].iter().zip(parts) {
                let part = format!("{} .bar .s-{state}", step(n));
                assert_eq!(browser.count(&part), count, "{part}");
            }
        }
        browser.pictures("failed-rollout");
        // As many steps as machines: on a narrow screen, too.
        let mut careful = task("deploy");
        careful["machinePattern"] = "^web-".into();
        careful["rollout"] =
            json!({"steps": (1..=50).collect::<Vec<_>>(), "maxFailures": 50, "pause": "approve"});
        let careful = server.submit(careful);
        browser.open(&url(&server, &format!("#/task/{}", id(&careful))));
        browser.sees("#rollout-text", "before step 2 of 50 · 1 of 50 started");
        browser.wait("document.querySelector('#task-steps li').className === 's-paused'");
        browser.fits_a_phone();
        browser.pictures("careful-rollout");
        assert_quiet(browser, &[]);
    });
}

/// So many machines that do what a task wants only when they are released; every tenth fails. It does so when the nine
/// after it have begun, or those of a rollout would begin or not as they happen to poll.
struct Fleet {
    released: Arc<AtomicBool>,
    over: Arc<AtomicBool>,
    machines: Vec<JoinHandle<()>>,
}

impl Fleet {
    fn start(server: &Server, count: usize) -> Fleet {
        let (released, over) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let begun = Arc::new(AtomicUsize::new(0));
        let machines = (0..count)
            .map(|n| {
                let (address, released, over) = (server.address, released.clone(), over.clone());
                let begun = begun.clone();
                thread::spawn(move || be_a_machine(address, n, &released, &begun, &over))
            })
            .collect();
        wait_for("the fleet is online", || server.machines().len() == count);
        Fleet {
            released,
            over,
            machines,
        }
    }

    fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        for machine in self.machines.drain(..) {
            let _ = machine.join();
        }
    }
}

fn be_a_machine(
    server: SocketAddr,
    n: usize,
    released: &AtomicBool,
    begun: &AtomicUsize,
    over: &AtomicBool,
) {
    let instance = format!("{n:016x}");
    let mut held: Vec<Value> = Vec::new();
    let mut seq = 0;
    while !over.load(Ordering::SeqCst) {
        seq += 1;
        let answer = agent_call(
            server,
            "poll",
            &poll(&instance, &format!("web-{n}"), seq, &held),
        );
        if answer.status != 200 {
            // A poll that had been answered, on a connection that was cut before we knew.
            continue;
        }
        let mut orders = answer.data();
        for order in orders["start"].as_array_mut().into_iter().flatten() {
            let (execution, attempt) = (order["execution"].take(), order["attempt"].take());
            held.push(json!({"execution": execution, "attempt": attempt, "state": "running", "startedAgoMs": 0}));
            begun.fetch_add(1, Ordering::SeqCst);
        }
        let fails = n.is_multiple_of(10);
        let is_early = fails && n > 0 && begun.load(Ordering::SeqCst) < n + 10;
        if !released.load(Ordering::SeqCst) || is_early {
            continue;
        }
        for hold in held.drain(..) {
            let (execution, attempt) = (&hold["execution"], &hold["attempt"]);
            let (stream, text, state, code) = match fails {
                true => ("stderr", "uname: no such thing\n", "failed", 1),
                false => ("stdout", "Linux 6.1\n", "succeeded", 0),
            };
            let piece = json!({"execution": execution, "attempt": attempt, "stream": stream, "offset": 0, "data": STANDARD.encode(text)});
            let mut result = json!({"execution": execution, "attempt": attempt, "state": state, "exitCode": code, "durationMs": 100 + 40 * n});
            result[format!("{stream}Bytes")] = text.len().into();
            agent_call(
                server,
                "done",
                &json!({"instance": instance, "pieces": [piece], "results": [result]}),
            )
            .data();
        }
    }
}

fn poll(instance: &str, label: &str, seq: u32, holds: &[Value]) -> Value {
    json!({"instance": instance, "seq": seq, "label": label, "host": format!("host-of-{label}"), "version": "0.1.0", "jobs": 4,
        "wait": if seq == 1 { 0.0 } else { 0.5 }, "holds": holds})
}

/// One call of an agent; like an agent, it calls again when its connection is cut.
fn agent_call(server: SocketAddr, call: &str, body: &Value) -> Reply {
    let target = format!("/api/v1/agent/{call}");
    let headers = "Connection: close\r\n";
    let bytes = request("POST", &target, headers, body.to_string().as_bytes());
    wait_until("the server answers an agent", || {
        let mut connection = Connection::open(server);
        connection.send(&bytes);
        connection.try_read(true)
    })
}

#[test]
fn output_is_shown_as_a_terminal_would_and_machines_are_told_apart() {
    with_browser(|browser| {
        let server = Server::start();
        let agents = server.agents(2, "m");
        let folder = Folder::new();
        let gate = folder.file("gate");
        let command = format!(
            "printf '10%%\\r'; while [ ! -e {gate} ]; do sleep 0.05; done; \
             printf '50%%\\r100%%\\n\\033[1;31mred\\033[0m plain \\033[2Jx\\n'"
        );
        let running = server.submit(task(&command));
        let instance = agents[0].instance();
        let hash = format!("#/task/{}/{instance}", id(&running));
        browser.open(&url(&server, &hash));
        browser.sees("#execution-output", "10%");
        browser.sees("#execution-name", &format!("m/{}", &instance[..8]));
        std::fs::write(gate, "").unwrap();
        browser.sees("#task-state", "succeeded");
        browser.sees("#execution-output .sgr-1.sgr-31", "red");
        let all = browser.text("#execution-output");
        assert_eq!(all.trim_end(), "100%\nred plain \\x1b[2Jx");
        assert_quiet(browser, &[]);
    });
}

/// Starts agents of these labels with these tags, as `SIDEBIKE_TAGS` has them, and waits until they are there.
fn tagged(server: &Server, machines: &[(&str, &str)]) -> Vec<Agent> {
    let start = |(label, tags): &(&str, &str)| {
        Agent::start(server.address, label, &[("SIDEBIKE_TAGS", *tags)])
    };
    let agents: Vec<Agent> = machines.iter().map(start).collect();
    server.expect(&agents.iter().collect::<Vec<_>>());
    agents
}

/// The lines of a list as they are seen.
fn lines(browser: &Browser, css: &str) -> Vec<String> {
    browser.text(css).lines().map(str::to_owned).collect()
}

#[test]
fn the_preview_follows_the_form_and_the_task_hits_what_it_showed() {
    with_browser(|browser| {
        let server = Server::start();
        let cn = "zone=cn-1,role=web";
        let agents = tagged(
            &server,
            &[
                ("web-1", cn),
                ("web-2", cn),
                ("web-3", cn),
                ("web-4", "zone=eu-1"),
                ("db-1", ""),
            ],
        );
        browser.open(&url(&server, "#/submit"));
        browser.sees("#preview-title", "5 machines");
        assert_eq!(browser.count("#submit-form details[open]"), 0);
        browser.click("#submit-form details:nth-of-type(1) summary");
        browser.click("#submit-form details:nth-of-type(2) summary");
        browser.type_into("[name=pattern]", "^web-");
        browser.sees("#preview-title", "4 machines");
        browser.type_into("[name=exclude]", "-2$");
        browser.sees("#preview-title", "3 machines");
        browser.type_into("[name=machineTags]", "zone=^cn-");
        browser.sees("#preview-title", "2 machines");
        assert_eq!(lines(browser, "#preview-list"), ["web-1", "web-3"]);
        browser.type_into("[name=instances]", &agents[2].instance());
        browser.sees("#submit-button", "Run on 1 machine");
        assert_eq!(lines(browser, "#preview-list"), ["web-3"]);
        browser.type_into("[name=hosts]", "no such host");
        browser.sees("#preview-title", "No machine matches now");
        for field in ["exclude", "machineTags", "instances", "hosts"] {
            browser.type_into(&format!("[name={field}]"), "");
        }
        // Text that is not a pair is told here, what is no expression by the server.
        browser.type_into("[name=machineTags]", "zone");
        browser.sees("#preview-hint", "expected NAME=PATTERN, got zone");
        browser.type_into("[name=machineTags]", "zone=(");
        browser.sees("#preview-hint", "machineTags.zone");
        browser.type_into("[name=machineTags]", "");
        // The numbers, and a refusal in the server's words.
        browser.type_into("[name=expect]", "5..");
        browser.sees("#preview-title", "would refuse");
        browser.sees(
            "#preview-hint",
            "at least 5 machines were expected, 4 match",
        );
        browser.type_into("[name=expect]", "2..10");
        browser.sees("#preview-title", "4 machines");
        browser.type_into("[name=keepAlive]", "2");
        browser.sees("#preview-title", "would refuse");
        browser.type_into("[name=maxTargets]", "50%");
        browser.sees("#preview-title", "2 machines");
        browser.sees("#preview-numbers", "4 match · 2 spared");
        browser.type_into("[name=steps]", "1, 100%");
        browser.sees("#preview-numbers", "started by step: 1, 2");
        browser.sees("#preview-list", "Step 2: 1 machine");
        browser.type_into("[name=command]", "true");
        browser.pictures("targets");
        let chosen: Vec<String> = { lines(browser, "#preview-list").into_iter() }
            .filter(|line| !line.starts_with("Step "))
            .collect();
        let spared = lines(browser, "#preview-spared");
        assert_eq!((chosen.len(), spared.len()), (2, 2));
        assert!(spared.iter().all(|label| !chosen.contains(label)));
        // Which ones are spared is drawn by lot: those that were shown.
        browser.click("#submit-button");
        browser.sees("#rollout-text", "2 of 2 started");
        browser.sees("#task-facts", "Spared");
        let done = server.finished(&browser.made_task(""));
        assert_eq!(done["assignees"], json!(chosen));
        assert_eq!(done["spared"], 2);
        assert_eq!(done["expect"], json!({"min": 2, "max": 10}));
        assert_eq!(done["keepAlive"], 2);
        assert_eq!(done["rollout"], json!({"steps": [1, "100%"]}));
        // The same again, from the task: all its fields are in the form, and none is hidden.
        browser.click("#task-edit");
        let value = |name: &str| {
            browser.sees("#preview-numbers", "4 match");
            browser.run(&format!(
                "return document.querySelector('[name={name}]').value"
            ))
        };
        for (name, text) in [
            ("pattern", "^web-"),
            ("expect", "2..10"),
            ("maxTargets", "50%"),
            ("keepAlive", "2"),
            ("steps", "1, 100%"),
        ] {
            assert_eq!(value(name), text, "{name}");
            browser.wait(&format!(
                "document.querySelector('[name={name}]').checkVisibility()"
            ));
        }
        assert_quiet(browser, &["task?dryRun=1"]);
    });
}

#[test]
fn a_rollout_is_seen_in_its_steps_and_is_paused_resumed_and_stopped() {
    with_browser(|browser| {
        let server = Server::start();
        let labels = ["m-1", "m-2", "m-3", "m-4"].map(|label| (label, ""));
        let _agents = tagged(&server, &labels);
        let folder = Folder::new();
        let wait = format!(
            "while [ ! -e {}/$SIDEBIKE_MACHINE_LABEL ]; do sleep 0.05; done",
            folder.path()
        );
        let mut rollout = task(&wait);
        rollout["rollout"] = json!({"steps": [1, "100%"], "concurrency": 1, "pause": "approve"});
        let rollout = server.submit(rollout);
        let hash = format!("#/task/{}", id(&rollout));
        let state = || server.task(id(&rollout))["rolloutState"]["state"].clone();
        browser.open(&url(&server, &hash));
        browser.sees("#rollout-state", "Rollout running");
        browser.sees("#rollout-text", "step 1 of 2 · 1 of 4 started · 0 failures");
        browser.sees("#task-steps li:nth-child(1)[aria-current=step]", "0/1");
        browser.sees("#task-steps li:nth-child(2)", "0/3");
        browser.sees("#task-chips .s-held b", "3");
        // Wide as their shares are, and held is told apart from what has ended.
        browser.wait("document.querySelector('#task-steps li:nth-child(2) .bar .s-held').offsetWidth > 2 * document.querySelector('#task-steps li:nth-child(1) .bar').offsetWidth");
        std::fs::write(folder.file("m-1"), "").unwrap();
        browser.sees("#rollout-state", "Paused");
        browser.sees("#rollout-text", "before step 2 of 2 · 1 of 4 started");
        browser.sees("#rollout-text", "until somebody resumes it");
        assert_eq!(
            browser.count("#task-steps li:nth-child(1) .bar .s-succeeded"),
            1
        );
        browser.pictures("rollout");
        browser.open(&url(&server, "#/"));
        browser.sees("#tasks", "1 / 4 · paused");
        browser.open(&url(&server, &hash));
        browser.click("#task-resume");
        browser.sees("#task-steps li:nth-child(1).passed", "1/1");
        browser.sees("#rollout-text", "step 2 of 2 · 2 of 4 started");
        // The focus is where the next key is wanted.
        browser.click("#task-pause");
        browser.sees("#rollout-state", "Paused");
        assert_eq!(state(), "paused");
        browser.wait("document.activeElement.id === 'task-resume'");
        browser.press("\u{e007}");
        browser.sees("#rollout-state", "Rollout running");
        browser.wait("document.activeElement.id === 'task-pause'");
        browser.sees("#task-chips .s-running b", "1");
        // Stop asks, also what is to become of what runs.
        browser.click("#task-stop");
        browser.sees("#confirm-dialog", "2 executions will be skipped");
        browser.sees("#confirm-option", "Cancel what runs now, too (1)");
        browser.click("#confirm-dialog [value=no]");
        assert_eq!(state(), "running");
        browser.click("#task-stop");
        browser.click("#confirm-choice");
        browser.pictures("stop");
        browser.click("#confirm-yes");
        browser.sees("#rollout-state", "Stopped");
        browser.sees("#rollout-text", "stopped by a user");
        browser.sees("#task-chips .s-skipped b", "2");
        browser.sees("#task-chips .s-canceled b", "1");
        browser.sees("#task-progress", "4 of 4 ended");
        assert_eq!(browser.count("#task-grid .s-skipped.tile"), 2);
        browser.pictures("stopped");
        let done = server.finished(id(&rollout));
        assert_eq!(done["stoppedBy"]["kind"], "user");
        for button in ["pause", "resume", "stop"] {
            browser.wait(&format!(
                "!document.getElementById('task-{button}').checkVisibility()"
            ));
        }
        assert_quiet(browser, &[]);
    });
}

#[test]
fn what_runs_may_end_by_itself_and_failures_stop_a_rollout_in_words() {
    with_browser(|browser| {
        let server = Server::start();
        let _agents = tagged(&server, &[("m-1", ""), ("m-2", ""), ("m-3", "")]);
        let folder = Folder::new();
        let gate = folder.file("gate");
        let mut running = task(&format!("while [ ! -e {gate} ]; do sleep 0.05; done"));
        running["rollout"] = json!({"concurrency": 1, "stopRunning": true});
        let running = server.submit(running);
        browser.open(&url(&server, &format!("#/task/{}", id(&running))));
        browser.sees("#task-chips .s-running b", "1");
        // The box begins as the task wants it.
        browser.click("#task-stop");
        browser.wait("document.getElementById('confirm-choice').checked");
        browser.click("#confirm-choice");
        browser.click("#confirm-yes");
        browser.sees("#task-chips .s-skipped b", "2");
        browser.sees("#task-state", "running");
        std::fs::write(gate, "").unwrap();
        browser.sees("#task-chips .s-succeeded b", "1");
        let done = server.finished(id(&running));
        assert_eq!(done["counts"]["canceled"], 0);
        let mut failing = task("exit 1");
        failing["rollout"] = json!({"steps": [1, "100%"]});
        let failing = server.run(failing);
        browser.open(&url(&server, &format!("#/task/{}", id(&failing))));
        browser.sees("#rollout-state", "Stopped");
        browser.sees("#rollout-text", "stopped after 1 failure");
        browser.sees("#task-steps li:nth-child(1)", "1/1");
        browser.sees("#task-steps li:nth-child(2)", "2/2");
        // A pause that ends by itself says when; paused by hand it does not end any more.
        let mut pausing = task("true");
        pausing["rollout"] = json!({"steps": [1, "100%"], "pause": "1h"});
        let pausing = server.submit(pausing);
        browser.open(&url(&server, &format!("#/task/{}", id(&pausing))));
        browser.sees("#rollout-text", "before step 2 of 2");
        browser.sees("#rollout-text", "goes on in ");
        browser.sees("#task-facts", "1 h");
        browser.click("#task-pause");
        browser.sees("#rollout-text", "until somebody resumes it");
        browser.click("#task-resume");
        browser.sees("#rollout-state", "Rollout done");
        assert_eq!(browser.count("#task-steps [aria-current]"), 0);
        // A task without a rollout has no steps, and nothing to pause once all of it runs.
        let plain = server.run(task("true"));
        browser.open(&url(&server, &format!("#/task/{}", id(&plain))));
        browser.sees("#task-progress", "3 of 3 ended");
        browser.wait("!document.getElementById('task-rollout').checkVisibility()");
        browser.wait("document.getElementById('task-bar').checkVisibility()");
        assert_quiet(browser, &[]);
    });
}

#[test]
fn machines_are_found_by_tag_and_chosen_for_a_task_and_tags_are_text() {
    with_browser(|browser| {
        let server = Server::start();
        let hostile = "note=<img src=x onerror=window.hacked=1>\u{202e}\"'>";
        let agents = tagged(
            &server,
            &[
                ("m", "zone=cn-1"),
                ("m", "zone=cn-1"),
                ("m", "zone=cn-10"),
                ("m-note", hostile),
            ],
        );
        let shown = r#"note=<img src=x onerror=window.hacked=1>\u{202e}"'>"#;
        browser.open(&url(&server, "#/machines"));
        browser.sees("#machines", shown);
        browser.sees("#machines", "zone=cn-10");
        browser.pictures("tags");
        browser.fits_a_phone();
        // The search finds a part of a tag, the choice exactly one.
        browser.type_into("#machines-search", "zone=cn-1");
        browser.wait("document.querySelectorAll('#machines li').length === 3");
        browser.type_into("#machines-search", "");
        browser.sees("#machines-tag", shown);
        browser.click("#machines-tag [value='zone=cn-1']");
        browser.wait("document.querySelectorAll('#machines li').length === 2");
        browser.wait("document.getElementById('machines-tag').value === 'zone=cn-1'");
        browser.click("#machines-tag [value='']");
        browser.wait("document.querySelectorAll('#machines li').length === 4");
        // Two of three that share a label, by keyboard and by mouse.
        let instances: Vec<String> = agents[1..3].iter().map(Agent::instance).collect();
        let row = |instance: &str| {
            format!("#machines li:has([href='#/machine/{instance}']) input[type=checkbox]")
        };
        browser.run(&format!(
            "document.querySelector({:?}).focus()",
            row(&instances[0])
        ));
        browser.press(" ");
        browser.sees("#machines-chosen-count", "1 machine chosen");
        browser.click(&row(&instances[1]));
        browser.sees("#machines-chosen-count", "2 machines chosen");
        browser.click("#machines-run");
        browser.sees("#preview-title", "2 machines");
        browser.sees("#preview-list", "m ×2");
        browser.type_into("[name=command]", "echo here");
        browser.click("#submit-button");
        browser.sees("#task-progress", "2 of 2 ended");
        let done = server.finished(&browser.made_task(""));
        let mut hit: Vec<&str> = { done["result"].as_array().unwrap().iter() }
            .filter_map(|execution| execution["instance"].as_str())
            .collect();
        let mut wanted: Vec<&str> = instances.iter().map(String::as_str).collect();
        hit.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(hit, wanted);
        // One machine: its tags are facts; one of several of its label is meant by its instance.
        browser.open(&url(
            &server,
            &format!("#/machine/{}", agents[3].instance()),
        ));
        browser.sees("#machine-facts", shown);
        browser.open(&url(&server, &format!("#/machine/{}", instances[0])));
        browser.sees("#machine-facts", "zone=cn-1");
        browser.click("#machine-run");
        browser.sees("#preview-title", "1 machine");
        // A task that asks for a hostile tag.
        let mut posted = task("true");
        posted["machineTags"] = json!({"note": "<img src=x onerror=window.hacked=1>"});
        let done = server.run(posted);
        browser.open(&url(&server, &format!("#/task/{}", id(&done))));
        browser.sees("#task-facts", "note=<img src=x onerror=window.hacked=1>");
        assert_eq!(
            browser.count("main script, main img, main [onclick], main [onerror]"),
            0
        );
        assert_eq!(browser.run("return window.hacked ?? null"), Value::Null);
        assert_quiet(browser, &["task?dryRun=1"]);
    });
}

#[test]
fn whoever_may_only_look_gets_a_guess_and_an_error_in_words() {
    with_browser(|browser| {
        let server = with_token();
        let token = ("SIDEBIKE_AGENT_TOKEN", "the-token-of-agents");
        let start =
            |label, tags| Agent::start(server.address, label, &[token, ("SIDEBIKE_TAGS", tags)]);
        let _agents = [
            start("m-1", "zone=cn-1"),
            start("m-2", "zone=cn-1"),
            start("m-3", ""),
        ];
        browser.open(&url(&server, ""));
        browser.sees("#token-dialog", "wants a token");
        browser.type_into("#token-input", "the-token-of-readers");
        browser.press("\u{e007}");
        browser.sees("#fleet-summary", "3 online");
        browser.press("n");
        browser.sees("#preview-title", "3 machines");
        browser.sees("#preview-hint", "made in this browser");
        browser.click("#submit-form details:nth-of-type(1) summary");
        // A machine without the tag does not match, whatever the pattern is.
        browser.type_into("[name=machineTags]", "zone=.*");
        browser.sees("#preview-title", "2 machines");
        browser.type_into("[name=exclude]", "(?i)^M-1$");
        browser.sees("#preview-title", "1 machine");
        assert_eq!(lines(browser, "#preview-list"), ["m-2"]);
        browser.type_into("[name=command]", "true");
        browser.click("#submit-button");
        browser.sees("#submit-error", "a read token is for looking only");
        browser.click("#halt-button");
        browser.type_into("#halt-reason", "curious");
        browser.press("\u{e007}");
        browser.sees("#toast", "a read token is for looking only");
        assert_quiet(browser, &["status of 401", "status of 403"]);
    });
}

/// A task whose undo succeeds on a machine once the folder has a file with its label.
fn experiment(folder: &Folder) -> Value {
    let undo = format!(
        "echo '<b>trying</b>'; [ -e {}/$SIDEBIKE_MACHINE_LABEL ]",
        folder.path()
    );
    let mut experiment = task("echo fault");
    experiment["detail"]["timeout"] = json!(60);
    experiment["detail"]["undo"] = json!({"command": undo, "patience": "1s", "lock": "disk"});
    experiment
}

#[test]
fn what_is_not_undone_is_red_in_every_view_and_can_be_settled() {
    with_browser(|browser| {
        let server = Server::start();
        let _agents = tagged(&server, &[("m-1", ""), ("m-2", "")]);
        let folder = Folder::new();
        let gate = |label: &str| std::fs::write(folder.file(label), "").unwrap();
        gate("m-1");
        browser.open(&url(&server, ""));
        browser.sees("#fleet-summary", "2 online");
        browser.sees("#live", "live");
        browser.wait("!document.getElementById('status').checkVisibility()");
        let done = server.run(experiment(&folder));
        assert_eq!(done["clean"], false, "{done}");
        server.run(task("true"));
        let link = format!("#/task/{}", id(&done));
        for hash in ["#/", "#/machines", "#/machine/m-1", "#/submit", &link] {
            browser.open("about:blank");
            browser.open(&url(&server, hash));
            browser.sees("#status-debts", "1 not undone");
            browser.wait("document.querySelector('main').firstElementChild.id === 'status'");
            let color = "return getComputedStyle(document.getElementById('status-debts')).color";
            assert_eq!(browser.run(color), "rgb(204, 58, 58)", "{hash}");
        }
        browser.pictures("not-undone");
        browser.fits_a_phone();
        // The link leads to those tasks, and the choice of the list to the others and back.
        browser.click("#status-debts");
        browser.sees("#tasks", "1 not undone");
        assert_eq!(browser.count("#tasks li"), 1);
        browser.wait("document.getElementById('tasks-state').value === 'not undone'");
        browser.pictures("not-undone-list");
        browser.click("#tasks-state [value='']");
        browser.wait("document.querySelectorAll('#tasks li').length === 2");
        browser.click("#status-debts");
        browser.wait("document.querySelectorAll('#tasks li').length === 1");
        browser.click("#tasks a");
        browser.sees("#undos-left", "1 NOT UNDONE");
        browser.sees("#task-facts", "disk");
        browser.sees("#task-grid .not-undone", "NOT UNDONE");
        assert_eq!(browser.count("#task-grid .not-undone"), 1);
        assert_eq!(browser.count("#result-groups details"), 2);
        browser.click("#undo-chips .s-failed");
        assert_eq!(browser.count("#task-grid li"), 1);
        browser.click("#undo-chips .s-failed");
        // One machine: its output is shown on demand, as text.
        browser.click("#task-grid .not-undone");
        browser.sees("#undo-state", "NOT UNDONE: failed");
        for (name, value) in [("Because", "ended"), ("By", "agent"), ("Exit code", "1")] {
            browser.sees("#undo-facts", &format!("{name}\n{value}"));
        }
        browser.wait("!document.getElementById('undo-output').checkVisibility()");
        browser.click("#undo-fold summary");
        browser.sees("#undo-output", "<b>trying</b>");
        browser.pictures("undo");
        // Undo again asks; the task has ended long ago, and is looked at until it is done.
        let state = || {
            let task = server.task(id(&done));
            let mut undos = task["result"].as_array().unwrap().iter();
            let here = undos.find(|e| e["machineLabel"] == "m-2").unwrap();
            here["undo"]["state"].clone()
        };
        gate("m-2");
        browser.click("#undo-again");
        browser.sees("#confirm-dialog", "It runs again on this machine");
        browser.click("#confirm-dialog [value=no]");
        assert_eq!(state(), "failed");
        browser.click("#undo-again");
        browser.click("#confirm-yes");
        browser.sees("#undo-state", "Undo done");
        browser.sees("#undo-facts", "Because\nby hand");
        assert_eq!(state(), "done");
        browser.wait("!document.getElementById('status').checkVisibility()");
        for button in ["undo-again", "undo-forgive", "undos-again", "undos-forgive"] {
            browser.wait(&format!(
                "!document.getElementById('{button}').checkVisibility()"
            ));
        }
        // A debt of a whole task is forgiven, and the page says by whom.
        std::fs::remove_file(folder.file("m-1")).unwrap();
        std::fs::remove_file(folder.file("m-2")).unwrap();
        let done = server.run(experiment(&folder));
        browser.open(&url(&server, &format!("#/task/{}", id(&done))));
        browser.sees("#undos-left", "2 NOT UNDONE");
        browser.sees("#status-debts", "2 not undone");
        browser.click("#undos-forgive");
        browser.sees("#confirm-dialog", "Forgive 2 undos?");
        browser.click("#confirm-dialog [value=no]");
        assert_eq!(server.task(id(&done))["clean"], false);
        browser.click("#undos-forgive");
        browser.click("#confirm-yes");
        browser.sees("#undo-chips .s-forgiven", "2");
        browser.wait("!document.getElementById('status').checkVisibility()");
        browser.click("#task-grid a");
        browser.sees("#undo-facts", "forgiven by");
        assert_eq!(server.task(id(&done))["clean"], true);
        assert_quiet(browser, &[]);
    });
}

/// The percentages at which a bar or a mark begins and ends on its lane.
fn on_timeline(browser: &Browser, css: &str) -> (f64, f64) {
    let script = format!(
        "const s = document.querySelector({css:?}).style; \
         return [parseFloat(s.left), parseFloat(s.left) + (parseFloat(s.width) || 0)]"
    );
    let [from, until] = serde_json::from_value(browser.run(&script)).expect("two numbers");
    (from, until)
}

#[test]
fn the_timeline_has_the_moments_of_an_experiment_and_what_is_owed_has_no_end() {
    with_browser(|browser| {
        let server = Server::start();
        let _agents = tagged(&server, &[("m-1", ""), ("m-2", "")]);
        let mut slow = task("sleep 0.4");
        slow["detail"]["undo"] = json!({"command": "sleep 0.3"});
        slow["rollout"] = json!({"concurrency": 1});
        let done = server.run(slow);
        browser.open(&url(&server, &format!("#/task/{}", id(&done))));
        browser.click("#results-tab-timeline");
        browser.sees("#timeline-legend", "undo armed");
        assert_eq!(browser.count("#timeline-lanes .undo.s-done"), 2);
        let place = |of: &str| on_timeline(browser, &format!("#timeline-lanes .lane {of}"));
        let (armed, run, undo) = (place(".armed"), place(".s-succeeded"), place(".undo"));
        assert!(armed.0 <= run.0, "{armed:?} {run:?}");
        assert!(
            run.1 > run.0 + 1.0 && undo.0 >= run.1 - 1.0,
            "{run:?} {undo:?}"
        );
        assert!(undo.1 > undo.0 + 1.0 && undo.1 < 99.0, "{undo:?}");
        let title = "return document.querySelector('#timeline-lanes .lane').title";
        let title = browser.run(title);
        for moment in ["armed ", "from ", "to ", "Undo done"] {
            assert!(title.as_str().unwrap().contains(moment), "{title}");
        }
        browser.wait("!document.querySelector('#timeline-lanes .stop').checkVisibility()");
        browser.pictures("undo-timeline");
        // Stopped, with a mark on every lane.
        let mut endless = task("sleep 300");
        endless["detail"]["undo"] = json!({"command": "true"});
        endless["rollout"] = json!({"concurrency": 1});
        let endless = server.submit(endless);
        browser.open(&url(&server, &format!("#/task/{}", id(&endless))));
        browser.sees("#undo-chips .s-armed", "1");
        // With an undo the box is checked though the task does not say so.
        browser.click("#task-stop");
        browser.wait("document.getElementById('confirm-choice').checked");
        browser.click("#confirm-yes");
        browser.sees("#task-progress", "2 of 2 ended");
        browser.click("#results-tab-timeline");
        browser.wait("document.querySelector('#timeline-lanes .stop').checkVisibility()");
        assert!(place(".stop").0 > 0.0);
        browser.pictures("stop-timeline");
        // An agent that goes away in the middle.
        let poll = |seq: u32| {
            let mut body = poll("aaaaaaaaaaaaaaaa", "gone-1", seq, &[]);
            body["features"] = json!(["undo"]);
            body["wait"] = json!(0);
            agent_call(server.address, "poll", &body).data()
        };
        poll(1);
        let mut owed = experiment(&Folder::new());
        owed["machinePattern"] = "^gone-1$".into();
        owed["detail"]["killGrace"] = json!("0.1s");
        owed["detail"]["undo"]["timeout"] = json!("0.1s");
        owed["detail"]["undo"]["deadman"] = json!("10s");
        let owed = server.submit(owed);
        let order = poll(2)["start"][0].clone();
        let hold = json!({"execution": order["execution"], "attempt": order["attempt"], "state": "running"});
        let mut armed = hold.clone();
        (armed["state"], armed["by"]) = ("armed".into(), "agent".into());
        let instance = "aaaaaaaaaaaaaaaa";
        let report = json!({"instance": instance, "results": [], "undos": [armed]});
        agent_call(server.address, "done", &report).data();
        let goodbye = json!({"instance": instance, "holds": [hold]});
        agent_call(server.address, "goodbye", &goodbye).data();
        browser.open(&url(&server, &format!("#/task/{}", id(&owed))));
        browser.sees("#undo-state", "NOT UNDONE: owed");
        // Late only once its machine had the time to undo it without the server.
        browser.wait("!document.getElementById('undo-due').checkVisibility()");
        browser.wait("document.getElementById('undo-due').checkVisibility()");
        browser.sees("#undo-due", "Should have undone itself by ");
        browser.sees("#undo-due", ", not confirmed.");
        browser.sees("#status-debts", "1 not undone");
        assert_eq!(place(".undo.s-owed").1, 100.0);
        browser.pictures("owed");
        // As many as are settled elsewhere: the page notices, though the task has ended.
        let path = format!("/api/v1/task/{}/forgive", id(&owed));
        server.post(&path, &json!({})).data();
        browser.sees("#undo-state", "Undo forgiven");
        browser.wait("!document.getElementById('undo-due').checkVisibility()");
        assert_quiet(browser, &[]);
    });
}

#[test]
fn a_suspension_is_seen_everywhere_with_its_reason_and_a_task_begins_later() {
    with_browser(|browser| {
        let server = Server::start();
        let _agent = server.agent("m");
        let suspension = json!({"machinePattern": "^m$", "for": "1h", "reason": "disk swap <b>"});
        server.post("/api/v1/suspend", &suspension).data();
        let waiting = server.submit(task("true"));
        browser.open(&url(&server, &format!("#/task/{}", id(&waiting))));
        browser.sees("#status-suspended", "^m$ is suspended until ");
        browser.sees("#status-suspended", ": disk swap <b>");
        browser.sees("#task-progress", "waits: ^m$ is suspended: disk swap <b>");
        browser.pictures("suspended");
        browser.open(&url(&server, "#/machines"));
        browser.sees("#machines", "suspended: disk swap <b>");
        server.request("DELETE", "/api/v1/suspend", b"");
        browser.wait("!document.getElementById('status').checkVisibility()");
        // A task that begins later: from the form, and once more from what it was.
        browser.open(&url(&server, "#/submit?pattern=^m$"));
        browser.type_into("[name=command]", "true");
        browser.run("for (const fold of document.querySelectorAll('details')) fold.open = true");
        browser.type_into("[name=startAt]", "2199-01-31T08:00:00Z");
        browser.click("#submit-button");
        browser.sees("#task-state", "scheduled");
        browser.sees("#task-progress", "Not begun: its time has not come");
        browser.click("#task-edit");
        browser.wait(
            "document.querySelector('[name=startAt]').value.startsWith('2199-01-31T08:00:00')",
        );
        assert_quiet(browser, &[]);
    });
}

#[test]
fn a_halt_asks_for_the_reason_and_is_seen_until_it_is_lifted() {
    with_browser(|browser| {
        let server = Server::start();
        let _agent = server.agent("m");
        let mut endless = task("sleep 300");
        endless["detail"]["undo"] = json!({"command": "true"});
        let (endless, plain) = (server.submit(endless), server.submit(task("sleep 300")));
        let halt = || server.get("/api/v1/halt").data();
        browser.open(&url(&server, &format!("#/task/{}", id(&endless))));
        browser.sees("#undo-chips .s-armed", "1");
        // Not without a reason, and not after a "No".
        browser.click("#halt-button");
        browser.sees("#halt-dialog", "Halt all experiments?");
        browser.pictures("halt");
        browser.press("\u{e007}");
        browser.sees("#halt-dialog", "Halt all experiments?");
        browser.type_into("#halt-reason", "the shop is down <b>");
        browser.click("#halt-no");
        assert_eq!(halt(), Value::Null);
        browser.click("#halt-button");
        browser.wait("document.getElementById('halt-reason').value === ''");
        browser.type_into("#halt-reason", "the shop is down <b>");
        browser.press("\u{e007}");
        browser.sees("#toast", "1 task canceled");
        browser.sees("#status-halt", "Tasks with an undo are halted since ");
        browser.sees("#status-halt", ": the shop is down <b>");
        browser.sees("#task-state", "canceled");
        assert_eq!(server.task(id(&plain))["state"], "running");
        assert_eq!(
            (&halt()["all"], &halt()["reason"]),
            (&json!(false), &json!("the shop is down <b>"))
        );
        browser.pictures("halted");
        browser.fits_a_phone();
        // A new experiment is refused, with the reason.
        browser.open(&url(&server, &format!("#/submit?from={}", id(&endless))));
        browser.sees("#preview-title", "1 machine");
        browser.click("#submit-button");
        browser.sees("#submit-error", "the shop is down <b>");
        // The same for all tasks.
        browser.click("#halt-button");
        browser.type_into("#halt-reason", "all of it");
        browser.click("#halt-all");
        browser.press("\u{e007}");
        browser.sees("#status-halt", "All tasks are halted since ");
        assert_eq!(server.finished(id(&plain))["state"], "canceled");
        browser.wait("!document.getElementById('halt-button').checkVisibility()");
        // Lifting asks as well. The form is long: the first line is out of sight.
        browser.run("scrollTo(0, 0)");
        browser.click("#status-lift");
        browser.sees("#confirm-dialog", "Lift the halt?");
        browser.click("#confirm-dialog [value=no]");
        assert_eq!(halt()["reason"], "all of it");
        browser.click("#status-lift");
        browser.click("#confirm-yes");
        browser.wait("!document.getElementById('status').checkVisibility()");
        browser.sees("#halt-button", "Halt");
        assert_eq!(halt(), Value::Null);
        // Another one's halt is seen, too, in a view that has nothing else to ask for.
        browser.open(&url(&server, &format!("#/task/{}", id(&plain))));
        browser.sees("#task-state", "canceled");
        server
            .post("/api/v1/halt", &json!({"reason": "somebody else"}))
            .data();
        browser.sees("#status-halt", "somebody else");
        assert_quiet(browser, &["status of 503"]);
    });
}

#[test]
fn the_form_has_the_undo_and_edit_as_new_loses_nothing_of_it() {
    with_browser(|browser| {
        let server = Server::start();
        let _agent = server.agent("m");
        browser.open(&url(&server, "#/submit"));
        browser.sees("#preview-title", "1 machine");
        browser.wait("!document.querySelector('[name=undo]').checkVisibility()");
        browser.click("#submit-form details:nth-of-type(3) summary");
        for (name, text) in [
            ("command", "true"),
            ("undo", "echo undone"),
            ("undoCheck", "test\n-d\n/"),
            ("deadman", "20"),
            ("lock", "eth0"),
            ("undoTimeout", "5s"),
            ("patience", "1m"),
        ] {
            browser.type_into(&format!("[name={name}]"), text);
        }
        browser.click("[name=checkArgv]");
        browser.click("#submit-form details:nth-of-type(2) summary");
        browser.click("[name=stopRunning] [value=false]");
        browser.sees("#preview-title", "1 machine");
        browser.pictures("submit-undo");
        browser.click("#submit-button");
        browser.sees("#undo-state", "Undo done");
        browser.sees("#undo-facts", "Check exit code\n0");
        browser.sees("#task-facts", "test -d /");
        let made = browser.made_task("");
        let undo = |id: &str| server.finished(id)["detail"]["undo"].clone();
        let posted = json!({
            "command": "echo undone", "checkArgv": ["test", "-d", "/"], "deadman": 20, "lock": "eth0",
            "timeout": 5, "patience": 60
        });
        assert_eq!(undo(&made), posted);
        let rollout = |id: &str| server.task(id)["rollout"].clone();
        let leaves_running = json!({"stopRunning": false});
        assert_eq!(rollout(&made), leaves_running);
        // The same again, from the task.
        browser.click("#task-edit");
        browser.wait("document.querySelector('[name=checkArgv]').checked");
        browser.wait("document.querySelector('[name=undo]').checkVisibility()");
        browser.click("#submit-button");
        let again = browser.made_task(&made);
        browser.sees("#undo-state", "Undo done");
        assert_eq!(undo(&again), posted);
        assert_eq!(rollout(&again), leaves_running);
        // What the server does not take is said in its words.
        browser.open(&url(&server, &format!("#/submit?from={again}")));
        browser.wait("document.querySelector('[name=checkArgv]').checked");
        browser.type_into("[name=undo]", "");
        browser.click("#submit-button");
        browser.sees("#submit-error", "detail.undo: needs command");
        assert_quiet(browser, &["status of 400"]);
    });
}

#[test]
fn a_probe_that_stops_a_task_is_shown_and_copied_with_it() {
    with_browser(|browser| {
        let server = Server::start();
        let _agents = [server.agent("m"), server.agent("probe-1")];
        let probe = json!({
            "name": "p99", "command": "exit 7", "on": {"machinePattern": "^probe-"}, "interval": 1, "failures": 1,
            "after": 0
        });
        let mut posted = task("exec sleep 600");
        posted["detail"]["timeout"] = json!(900);
        posted["detail"]["undo"] = json!({"command": "true"});
        posted["probes"] = json!([probe]);
        let first = server.submit(posted);
        browser.open(&url(&server, &format!("#/task/{}", id(&first))));
        browser.sees(
            "#task-facts",
            "Probe p99\nfailed · 1 failed in a row · exit code 7",
        );
        browser.sees("#rollout-text", "stopped by a probe: probe p99 ");
        browser.sees("#undo-state", "Undo done");
        // The copy has them, too, unless it is told otherwise.
        let copy = |tells: &dyn Fn()| {
            browser.open(&url(&server, &format!("#/submit?from={}", id(&first))));
            browser.sees("#submit-probes", "With its probes: p99");
            browser.wait("document.querySelector('[name=probes]').checked");
            browser.sees("#preview-title", "1 machine");
            tells();
            browser.click("#submit-button");
            server.task(&browser.made_task(""))
        };
        let copied = copy(&|| ());
        for (member, value) in probe.as_object().unwrap() {
            assert_eq!(copied["probes"][0][member], *value, "{copied}");
        }
        browser.sees("#task-facts", "1 failed in a row · exit code 7");
        let without = copy(&|| browser.click("[name=probes]"));
        assert_eq!(without["probes"], Value::Null, "{without}");
        server
            .post(&format!("/api/v1/task/{}/cancel", id(&without)), &json!({}))
            .data();
        browser.sees("#task-state", "canceled");
        assert_quiet(browser, &[]);
    });
}
