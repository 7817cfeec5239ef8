//! Several addresses: agents and the command line ask one server after the other, each call of theirs is executed once,
//! and nothing goes to a server that is not in the list. With one address everything is as it would be without.

mod common;

use common::double::{BlackHole, Double, Reaction};
use common::said::Said;
use common::{Agent, Folder, SIDEBIKE, Server, free_address, id, task, wait_for, wait_until};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Nobody listens there, and nobody can without being root.
const DEAD: &str = "127.0.0.1:1";
/// How long a connection may take where there are several servers.
const CONNECT: Duration = Duration::from_secs(2);
/// What everything else may take beside that, on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

fn list(addresses: &[&dyn ToString]) -> String {
    let addresses = addresses.iter().map(|address| address.to_string());
    addresses.collect::<Vec<_>>().join(",")
}

fn command(addresses: &str, words: &[&str]) -> Command {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(words)
        .env("SIDEBIKE_REGISTRY_ADDRESS", addresses)
        .stdin(Stdio::null());
    command
}

fn sidebike(addresses: &str, words: &[&str]) -> Said {
    Said::of(command(addresses, words).output().unwrap())
}

/// An agent that has a list.
fn agent(addresses: &str) -> Agent {
    let mut command = command(addresses, &["agent"]);
    command.env("SIDEBIKE_MACHINE_LABEL", "m");
    Agent(common::Process::start(command))
}

/// How many tasks a server has.
fn count_of_tasks(server: &Server) -> usize {
    let tasks = server.get("/api/v1/task").data();
    tasks.as_array().expect("a list").len()
}

#[test]
fn the_next_server_is_asked_where_nobody_listens() {
    let server = Server::start();
    let addresses = list(&[&DEAD, &server.address]);
    let agent = agent(&addresses);
    server.expect(&[&agent]);
    let said = sidebike(&addresses, &["run", "--", "echo there"]);
    assert_eq!((&*said.out, &*said.err, said.code), ("there\n", "", 0));
    let info = sidebike(&addresses, &["info"]).out;
    let answers = format!("server     http://{}\n", server.address);
    assert!(info.starts_with(&answers), "{info}");
    let info = sidebike(&server.address.to_string(), &["info"]).out;
    assert!(!info.contains("server"), "{info}");
    let log = agent.0.log().join("\n");
    let moved = format!(
        "http://{} answers now; http://{DEAD}: unreachable: ",
        server.address
    );
    assert!(
        log.contains(&moved) && !log.contains("WARN  sidebike::agent::poll"),
        "{log}"
    );
}

#[test]
fn a_server_that_does_not_lead_names_the_one_that_does() {
    let server = Server::start();
    // It is written in another way than in the list.
    let hinting = Double::standby(format!("http://{}/", server.address));
    let passed_over = Double::standby("");
    let addresses = list(&[&hinting.address, &passed_over.address, &server.address]);
    let agent = agent(&addresses);
    server.expect(&[&agent]);
    let said = sidebike(&addresses, &["run", "--", "echo led"]);
    assert_eq!((&*said.out, &*said.err, said.code), ("led\n", "", 0));
    assert!(!hinting.asked().is_empty());
    assert_eq!(passed_over.asked().len(), 0, "the hint comes first");

    let addresses = list(&[&passed_over.address, &server.address]);
    let said = sidebike(&addresses, &["ps"]);
    assert_eq!((said.code, passed_over.asked().len()), (0, 1), "{said:?}");
}

#[test]
fn a_hint_that_is_not_in_the_list_is_not_followed() {
    let server = Server::start();
    let stranger = Double::standby("");
    let forged = Double::standby(stranger.address);
    let addresses = list(&[&forged.address, &server.address]);
    let agent = agent(&addresses);
    server.expect(&[&agent]);
    let said = sidebike(&addresses, &["run", "--", "true"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!forged.asked().is_empty());

    // Nor when it is the last one.
    let alone = forged.address.to_string();
    let said = sidebike(&alone, &["ps"]);
    let why = "sidebike: this server stands by; --registry-address or ";
    assert!(said.code == 1 && said.err.starts_with(why), "{said:?}");
    assert_eq!(stranger.asked().len(), 0);
}

#[test]
fn another_registry_takes_over_where_the_first_one_has_died() {
    let (mut first, second) = (Server::start(), Server::start());
    let addresses = list(&[&first.address, &second.address]);
    let agent = agent(&addresses);
    first.expect(&[&agent]);
    assert_eq!(second.machines().len(), 0);
    first.process.kill_9();
    second.expect(&[&agent]);
    let said = sidebike(&addresses, &["run", "--", "echo second"]);
    assert_eq!((&*said.out, said.code), ("second\n", 0), "{said:?}");
}

#[test]
fn what_runs_is_followed_on_another_server_with_the_same_tasks() {
    let folder = Folder::new();
    let db = folder.file("db");
    let mut first = Server::with(&["--db", &db]);
    let second = free_address();
    let addresses = list(&[&first.address, &second]);
    let agent = agent(&addresses);
    first.expect(&[&agent]);
    let line = format!(
        "echo begun; until test -e {}; do sleep 0.1; done; echo ended",
        folder.file("go")
    );
    let mut run = command(&addresses, &["run", "--", &line]);
    let run = run.stdout(Stdio::piped()).stderr(Stdio::piped());
    let run = run.spawn().unwrap();
    let task = wait_until("it runs", || {
        let tasks = first.get("/api/v1/task").data();
        let newest = tasks.as_array().and_then(|tasks| tasks.first())?;
        (newest["counts"]["running"] == 1).then(|| newest.clone())
    });
    wait_for("its output has come", || {
        first.task(id(&task))["result"][0]["output"] == json!(["begun"])
    });
    let mut wait = command(&addresses, &["wait", id(&task)]);
    let wait = wait.stdout(Stdio::piped()).stderr(Stdio::piped());
    let wait = wait.spawn().unwrap();
    wait_for("the wait is held beside the poll", || {
        first.metric("sidebike_held_requests") > 2
    });
    first.process.kill_9();
    let second = Server::listening_on(&second.to_string(), &["--db", &db]);
    second.expect(&[&agent]);
    folder.write("go");
    let said = Said::of(run.wait_with_output().unwrap());
    assert_eq!((&*said.out, said.code), ("begun\nended\n", 0), "{said:?}");
    let said = Said::of(wait.wait_with_output().unwrap());
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(second.finished(id(&task))["state"], "succeeded");
}

#[test]
fn a_black_hole_costs_the_time_of_one_connection() {
    let server = Server::start();
    let hole = BlackHole::open();
    let addresses = list(&[&hole.address, &server.address]);
    let begun = Instant::now();
    let said = sidebike(&addresses, &["ps"]);
    let took = begun.elapsed();
    assert_eq!(said.code, 0, "{said:?}");
    assert!((CONNECT..CONNECT + SLACK).contains(&took), "{took:?}");
    let begun = Instant::now();
    let agent = agent(&addresses);
    server.expect(&[&agent]);
    let took = begun.elapsed();
    assert!((CONNECT..CONNECT + SLACK).contains(&took), "{took:?}");
}

/// Something before a server that passes on what changes something, and loses the answer.
fn lossy(server: SocketAddr) -> Double {
    Double::start(move |asked| {
        let answer = asked.pass_on(server);
        let is_change = asked.line.starts_with("POST") && !asked.line.contains("dryRun");
        match is_change {
            true => Reaction::Cut,
            false => answer,
        }
    })
}

#[test]
fn a_submit_that_may_have_arrived_is_accepted_once() {
    let server = Server::start();
    let _agent = server.agent("m");
    let lossy = lossy(server.address);
    let addresses = list(&[&lossy.address, &server.address]);
    let said = sidebike(&addresses, &["run", "--detach", "--", "true"]);
    assert_eq!(said.code, 0, "{said:?}");
    let submits = lossy.asked().into_iter();
    let submits = submits.filter(|asked| asked.line == "POST /api/v1/task");
    assert_eq!((submits.count(), count_of_tasks(&server)), (1, 1));
    let id = said.out.trim();
    assert_eq!(server.finished(id)["counts"]["succeeded"], 1);

    // A list is accepted once, as a whole.
    let folder = Folder::new();
    let list_file = folder.file("list.json");
    let task = json!({"machinePattern": "^nobody$", "detail": {"command": "true"}});
    let mut named = task.clone();
    named["id"] = "named".into();
    std::fs::write(&list_file, json!([named, task, task]).to_string()).unwrap();
    let submit = ["submit", &list_file];
    let said = sidebike(&addresses, &submit);
    assert_eq!((said.code, said.out.lines().count()), (0, 3), "{said:?}");
    assert!(said.out.starts_with("named\n"), "{said:?}");
    assert_eq!(count_of_tasks(&server), 4);
    // A name that somebody else has taken is no sign of it.
    let said = sidebike(&addresses, &submit);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("is taken"), "{said:?}");
    assert_eq!(count_of_tasks(&server), 4);

    // What has no id is not repeated: whether it was executed is not known.
    let said = sidebike(&addresses, &["rerun", "--all", id]);
    assert_eq!(said.code, 255, "{said:?}");
    assert!(said.err.contains("cannot run the task again"), "{said:?}");
    assert_eq!(count_of_tasks(&server), 5);

    // Nor is it where a server says that it had begun; where it had not, it is.
    let (begun, refused) = (
        "Sidebike-Leader: \r\nSidebike-Begun: 1\r\n",
        "Sidebike-Leader: \r\n",
    );
    for (headers, code, tasks) in [(begun, 255, 5), (refused, 0, 6)] {
        let address = server.address;
        let resigning = Double::start(move |asked| match asked.line.starts_with("POST") {
            true => Reaction::Answer(503, headers.into(), String::new()),
            false => asked.pass_on(address),
        });
        let addresses = list(&[&resigning.address, &server.address]);
        let said = sidebike(&addresses, &["rerun", "--all", id]);
        assert_eq!(
            (said.code, count_of_tasks(&server)),
            (code, tasks),
            "{said:?}"
        );
    }

    // With one address there is no id that the server has not made.
    let said = sidebike(
        &lossy.address.to_string(),
        &["run", "--detach", "--", "true"],
    );
    assert_eq!(said.code, 255, "{said:?}");
    let submit = lossy.asked().pop().expect("a submit");
    assert!(!submit.text().contains(r#""id""#), "{submit:?}");
}

#[test]
fn an_agent_goes_on_where_an_answer_is_lost() {
    let server = Server::start();
    // It lets polls through, loses the answers to all others, and then every answer.
    let broken = Arc::new(AtomicUsize::new(0));
    let (count, address) = (Arc::clone(&broken), server.address);
    let cutting = Double::start(move |asked| {
        let answer = asked.pass_on(address);
        let is_poll = asked.line.ends_with("/poll");
        match is_poll && count.load(SeqCst) == 0 {
            true => answer,
            false => {
                count.fetch_add(1, SeqCst);
                Reaction::Cut
            }
        }
    });
    let addresses = list(&[&cutting.address, &server.address]);
    let folder = Folder::new();
    let agent = agent(&addresses);
    server.expect(&[&agent]);
    for count in 1..=3 {
        let mut task = task("echo ran >> ran");
        task["detail"]["workspace"] = folder.path().into();
        let done = server.run(task);
        assert_eq!(done["state"], "succeeded", "{done}");
        assert_eq!(folder.lines("ran").len(), count);
    }
    assert!(broken.load(SeqCst) > 0);
    // A poll that may have arrived is not made twice: the server would refuse the second one.
    let log = agent.0.log().join("\n");
    assert!(!log.contains("seq: must be above"), "{log}");
}

#[test]
fn files_come_from_and_go_to_the_server_that_leads() {
    let (server, folder) = (Server::start(), Folder::new());
    let standby = Double::standby("");
    let addresses = list(&[&DEAD, &standby.address, &server.address]);
    let agent = agent(&addresses);
    server.expect(&[&agent]);
    let from = folder.file("from");
    std::fs::write(&from, "what is in it\n").unwrap();
    let to = format!("{}/to/", folder.path());
    let said = sidebike(&addresses, &["push", &from, "--to", &to]);
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(folder.lines("to/from"), ["what is in it"]);
    let laid = folder.file("to/from");
    let said = sidebike(
        &addresses,
        &["run", "--detach", "--fetch", &laid, "--", "true"],
    );
    assert_eq!(said.code, 0, "{said:?}");
    let task = said.out.trim().to_owned();
    assert_eq!(sidebike(&addresses, &["wait", &task]).code, 0);
    let said = sidebike(&addresses, &["pull", &task, &folder.file("back")]);
    assert_eq!(said.code, 0, "{said:?}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder.file("back")).unwrap() {
        found.push(entry.unwrap().path());
    }
    assert!(!found.is_empty());
}

/// The answer to a poll that may hand out the start of a shell line, by a server of this term.
fn orders(term: &str, start: Option<(&str, &str)>) -> Reaction {
    let start = start.map(|(execution, line)| {
        json!({
            "execution": execution, "attempt": 1, "taskId": "t", "taskName": "t",
            "detail": {"command": line},
        })
    });
    let start: Vec<Value> = start.into_iter().collect();
    let body = json!({"signal": 1, "msg": "", "data": {"start": start}});
    Reaction::Answer(200, format!("Sidebike-Term: {term}\r\n"), body.to_string())
}

#[test]
fn an_answer_of_a_server_that_was_replaced_is_not_obeyed() {
    const NEW: &str = "00000000000000ab:7";
    const OLD: &str = "00000000000000ab:6";
    const OTHER: &str = "00000000000000cd:1";
    let folder = Folder::new();
    let ran = folder.file("ran");
    let line = |word: &str| format!("echo {word} >> {ran}");
    let (first, replaced, other) = (line("first"), line("replaced"), line("other"));
    let polls = AtomicUsize::new(0);
    let server = Double::start(move |asked| {
        if !asked.line.ends_with("/poll") {
            let body = r#"{"signal":0,"msg":"","data":{"results":[],"undos":[]}}"#;
            return Reaction::Answer(200, String::new(), body.into());
        }
        match polls.fetch_add(1, SeqCst) {
            0 => orders(NEW, Some(("x.1", &first))),
            // It does not know that it was replaced.
            1 => orders(OLD, Some(("x.2", &replaced))),
            // Of another registry, whose terms have nothing to do with those.
            2 => orders(OTHER, Some(("x.3", &other))),
            _ => Reaction::Cut,
        }
    });
    let agent = agent(&server.address.to_string());
    folder.until("ran", 2);
    let mut lines = folder.lines("ran");
    lines.sort_unstable();
    assert_eq!(lines, ["first", "other"]);
    let polls = || {
        let polls = server.asked().into_iter();
        polls.filter(|asked| asked.line.ends_with("/poll"))
    };
    wait_for("the fourth poll", || polls().count() >= 4);
    let told: Vec<Option<String>> = polls()
        .map(|poll| poll.header("sidebike-term"))
        .take(4)
        .collect();
    let told: Vec<Option<&str>> = told.iter().map(Option::as_deref).collect();
    assert_eq!(told, [None, Some(NEW), Some(NEW), Some(OTHER)]);
    let why = "the answer is of a server that was replaced: term 6, and 7 was seen";
    agent.0.logged(why);
}

#[test]
fn a_refusal_says_nothing_about_terms() {
    const HIGH: &str = "00000000000000ab:9";
    const LOW: &str = "00000000000000ab:2";
    let polls = AtomicUsize::new(0);
    let server = Double::start(move |_| match polls.fetch_add(1, SeqCst) {
        0 => Reaction::Answer(500, format!("Sidebike-Term: {HIGH}\r\n"), String::new()),
        _ => orders(LOW, None),
    });
    let _agent = agent(&server.address.to_string());
    let told = wait_until("the third poll", || server.asked().get(2).cloned());
    assert_eq!(told.header("sidebike-term").as_deref(), Some(LOW));
}

#[test]
fn one_address_says_what_it_always_said_and_several_say_each() {
    let refused = "unreachable: Connection refused (os error 111)";
    let hint = "--registry-address or SIDEBIKE_REGISTRY_ADDRESS says where the server is";
    let said = sidebike(DEAD, &["ps"]);
    let one = format!("sidebike: cannot list tasks: http://{DEAD}: {refused}; {hint}\n");
    assert_eq!((said.err, said.code), (one, 1));
    let said = sidebike(&list(&[&DEAD, &"127.0.0.1:2"]), &["ps"]);
    let each = format!(
        "sidebike: cannot list tasks: http://{DEAD}: {refused}; http://127.0.0.1:2: {refused}; {hint}\n"
    );
    assert_eq!((said.err, said.code), (each, 1));

    let alone = agent(DEAD);
    let rest = alone.0.logged("poll to ");
    let one = format!("http://{DEAD}/api/v1/agent/poll: {refused}; trying again until it works");
    assert_eq!(rest, one);
    let alone = agent(&list(&[&DEAD, &"127.0.0.1:2"]));
    let rest = alone.0.logged("poll to ");
    let each = format!(
        "http://{DEAD}/api/v1/agent/poll: {refused}; http://127.0.0.1:2: {refused}; trying again until it works"
    );
    assert_eq!(rest, each);
}
