//! Several servers over PostgreSQL, from outside: who leads, who answers what, and what is kept whatever is killed.
#![cfg(all(feature = "pg", feature = "agent", feature = "cli"))]

mod common;
mod postgresql;
mod several;

use common::double::{Double, Reaction};
use common::http::{Connection, request};
use common::said::Said;
use common::{Agent, Process, SIDEBIKE, id, wait_for, wait_until, wait_within};
use postgresql::PostgreSql;
use rustix::process::Signal;
use serde_json::json;
use several::{Servers, status, try_ask, under_load};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

#[test]
fn one_leads_and_the_others_say_who() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let servers = Servers::start(3, &postgres.database());
    let leader = servers.leader();
    for (n, address) in servers.addresses.iter().enumerate() {
        assert_eq!(status(*address, "GET", "/healthz"), Some(200));
        let metrics = try_ask(*address, "GET", "/metrics", b"").unwrap();
        let leads = format!("sidebike_leads {}\n", u8::from(n == leader));
        assert!(metrics.text().contains(&leads), "{}", metrics.text());
        if n == leader {
            continue;
        }
        assert_eq!(status(*address, "GET", "/leader"), Some(503));
        let poll = br#"{"instance": "0123456789abcdef", "seq": 1, "label": "m", "jobs": 1}"#;
        let address = *address;
        wait_for("it knows who leads", || {
            let mut agent = Connection::open(address);
            let headers = "User-Agent: sidebike/0.1.0\r\n";
            agent.send(&request("POST", "/api/v1/agent/poll", headers, poll));
            let hint = agent.read();
            assert_eq!(hint.status, 503, "{}", hint.text());
            let url = format!("http://{}", servers.addresses[leader]);
            hint.header("Sidebike-Leader") == Some(&url)
        });
    }
    assert_eq!(servers.term(), 1);
}

#[test]
fn whoever_is_asked_curl_gets_the_leaders_answer() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let servers = Servers::start(2, &postgres.database());
    let leader = servers.leader();
    let (leads, stands_by) = (&servers.servers[leader], &servers.servers[1 - leader]);
    wait_for("it knows who leads", || {
        stands_by.get("/api/v1/task").status == 200
    });
    let agents = servers.agents(1, "m");
    let task =
        stands_by.submit(json!({"machinePattern": "m", "detail": {"command": "echo passed on"}}));
    let ended = stands_by.finished(id(&task));
    assert_eq!(ended["detail"]["result"], json!(["passed on"]), "{ended}");
    assert_eq!(leads.task(id(&task))["state"], "succeeded");
    // What a client claims about itself is not believed, and what was passed on once goes no further.
    let forged = request(
        "GET",
        "/api/v1/task",
        "Sidebike-Forwarded: 10.0.0.1 AAAA\r\n",
        b"",
    );
    assert_eq!(stands_by.raw(&forged).status, 503);
    assert_eq!(leads.raw(&forged).status, 200);
    // A waiting call is passed on as well, and the standby takes no thread for it.
    let page = stands_by.get("/");
    assert!(page.text().contains("<html"), "{}", page.text());
    drop(agents);
}

#[test]
fn a_leader_that_ends_is_replaced_within_three_seconds() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let mut servers = Servers::start(3, &postgres.database());
    under_load(&mut servers, |servers, load| {
        let leader = servers.leader();
        servers.servers[leader].process.signal(Signal::TERM);
        let since = Instant::now();
        wait_within(Duration::from_secs(20), "another one leads", || {
            servers.leader_now().filter(|n| *n != leader)
        });
        println!("another one leads after {:?}", since.elapsed());
        assert!(servers.servers[leader].process.ended().success());
        load.wait_for_more(20);
        servers.restart(leader);
    });
}

#[test]
fn whatever_leader_is_killed_nothing_is_lost_and_nothing_starts_twice() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let mut servers = Servers::start(2, &postgres.database());
    let kills = std::env::var("KILLS").map_or(2, |kills| kills.parse().expect("a number"));
    under_load(&mut servers, |servers, load| {
        for _ in 0..kills {
            let leader = servers.leader();
            servers.servers[leader].process.kill_9();
            load.wait_for_more(20);
            servers.restart(leader);
        }
    });
    assert_eq!(servers.term(), 1 + kills);
}

#[test]
fn a_leader_that_was_stopped_says_nothing_more_and_starts_anew() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let mut servers = Servers::start(2, &postgres.database());
    under_load(&mut servers, |servers, load| {
        let leader = servers.leader();
        let process = &servers.servers[leader].process;
        process.signal(Signal::STOP);
        let address = servers.addresses[1 - leader];
        wait_within(Duration::from_secs(30), "the other one leads", || {
            (status(address, "GET", "/leader") == Some(200)).then_some(())
        });
        load.wait_for_more(20);
        process.signal(Signal::CONT);
        process.logged("starts anew, as a standby");
        wait_for("it stands by", || {
            status(servers.addresses[leader], "GET", "/healthz") == Some(200)
                && status(servers.addresses[leader], "GET", "/leader") == Some(503)
        });
    });
    assert_eq!(servers.term(), 2);
}

#[test]
fn an_outage_of_the_database_is_no_failover() {
    let Some(postgres) = PostgreSql::start(&[]) else {
        return;
    };
    let mut servers = Servers::start(3, &postgres.database());
    let seconds = std::env::var("OUTAGE_SECONDS").map_or(12, |it| it.parse().expect("a number"));
    under_load(&mut servers, |servers, load| {
        let leader = servers.leader();
        postgres.kill();
        // Long enough for a failover, if the silence counted.
        wait_within(Duration::from_secs(30), "the leader is mute", || {
            (status(servers.addresses[leader], "GET", "/leader") == Some(503)).then_some(())
        });
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(seconds) {
            assert_eq!(servers.leader_now(), None);
            std::thread::sleep(Duration::from_millis(200));
        }
        postgres.run();
        load.wait_for_more(20);
        assert_eq!(servers.leader_now(), Some(leader));
    });
    assert_eq!(servers.term(), 1);
}

#[test]
fn a_leader_writes_anew_what_the_database_has_lost() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let url = postgres.database();
    let servers = Servers::start(2, &url);
    let agents = servers.agents(1, "m");
    let leader = &servers.servers[servers.leader()];
    let kept = leader.run(json!({"machinePattern": "m", "detail": {"command": "echo kept"}}));
    let counts = "SELECT (SELECT count(*) FROM sb_task), (SELECT count(*) FROM sb_execution), \
         (SELECT count(*) FROM sb_machine), (SELECT count(*) > 0 FROM sb_output)";
    postgres.wait_for(&url, counts, "1|1|1|t");
    // As after a failover to a standby that was behind: an earlier commit, and less; and something that was forgotten since.
    postgres.sql(
        &url,
        "BEGIN; UPDATE sb_leader SET beat = 1; INSERT INTO sb_task SELECT 9999, record FROM sb_task; \
         DELETE FROM sb_task WHERE task < 9999; DELETE FROM sb_execution; DELETE FROM sb_output; \
         DELETE FROM sb_machine; COMMIT",
    );
    leader
        .process
        .logged("everything is written anew from memory");
    postgres.wait_for(&url, counts, "1|1|1|t");
    assert_eq!(leader.metric("sidebike_db_heals_total"), 1);
    assert_eq!(servers.term(), 1);
    drop(agents);
    // The next leader has it from the database.
    leader.process.signal(Signal::TERM);
    wait_for("the other one leads", || servers.term() == 2);
    let task = servers.servers[servers.leader()].task(id(&kept));
    assert_eq!(task["detail"]["result"], json!(["kept"]), "{task}");
}

#[test]
fn an_agent_that_has_seen_a_higher_term_makes_the_leader_rise_above_it() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let servers = Servers::start(1, &postgres.database());
    let leader = &servers.servers[0];
    let own = leader.get("/api/v1/machine");
    let own = own
        .header("Sidebike-Term")
        .expect("a leader says its term")
        .to_owned();
    let (registry, _) = own.split_once(':').unwrap();
    let mut seq = 0;
    let mut poll = |term: &str| {
        seq += 1;
        let body = json!({"instance": "0123456789abcdef", "seq": seq, "label": "m", "jobs": 1});
        let body = body.to_string();
        let headers = format!("Sidebike-Term: {term}\r\nConnection: close\r\n");
        leader.raw(&request(
            "POST",
            "/api/v1/agent/poll",
            &headers,
            body.as_bytes(),
        ))
    };
    let refused = poll(&format!("{registry}:7"));
    assert_eq!(refused.status, 503, "{}", refused.text());
    wait_for("it has risen", || servers.term() == 8);
    assert_eq!(poll(&format!("{registry}:8")).status, 200);
    // Another registry, nonsense, and what cannot be.
    for term in [
        "0000000000000001:99",
        "x",
        &format!("{registry}:{}", u64::MAX),
    ] {
        assert_eq!(poll(term).status, 200, "{term}");
    }
    assert_eq!(servers.term(), 8);
}

#[test]
fn no_token_goes_to_a_stranger_whom_somebody_on_the_way_calls_the_leader() {
    const TOKENS: [(&str, &str); 2] = [
        ("SIDEBIKE_TOKEN", "a-token-for-people-0123456789abcdef"),
        (
            "SIDEBIKE_AGENT_TOKEN",
            "a-token-for-agents-0123456789abcdef",
        ),
    ];
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let servers = Servers::with_environment(vec![postgres.database(); 2], &TOKENS);
    let stranger = Double::standby("");
    // Somebody stands in the way of each server, and gives every fourth call one of these hints in place of the answer.
    let hints = |listed: SocketAddr| {
        let stranger = stranger.address;
        [
            format!("http://{stranger}"),
            stranger.to_string(),
            format!("http://{listed}@{stranger}/"),
            format!("http://{listed}, http://{stranger}"),
            format!("http://{stranger}/http://{listed}"),
            format!("http://{stranger}#http://{listed}"),
        ]
    };
    let on_the_way = |server: SocketAddr| {
        let hints = hints(server);
        let count = AtomicUsize::new(0);
        Double::start(move |asked| {
            let n = count.fetch_add(1, Ordering::Relaxed);
            match n % 4 {
                0 => Reaction::standby(&hints[n / 4 % hints.len()]),
                _ => asked.pass_on(server),
            }
        })
    };
    let doubles: Vec<Double> = servers.addresses.iter().map(|it| on_the_way(*it)).collect();
    let list: Vec<String> = { doubles.iter() }
        .map(|double| double.address.to_string())
        .collect();
    let command = |words: &[&str], (name, token): (&str, &str)| {
        let mut command = Command::new(SIDEBIKE);
        command
            .args(words)
            .env("SIDEBIKE_REGISTRY_ADDRESS", list.join(","))
            .env("SIDEBIKE_MACHINE_LABEL", "m")
            .env(name, token);
        command
    };
    let agent = Agent(Process::start(command(&["agent"], TOKENS[1])));
    let said = |words: &[&str]| Said::of(command(words, TOKENS[0]).output().unwrap());
    wait_for("the agent is online", || {
        said(&["machines"]).out.contains(" online")
    });
    // All servers may be called standbys in the same round.
    let done = |words: &[&str], mark: &str| {
        wait_until(mark, || {
            let said = said(words);
            (said.code == 0 && said.out.contains(mark)).then_some(said.out)
        })
    };
    for _ in 0..12 {
        let task = done(&["run", "--detach", "--", "true"], "\n");
        done(&["show", task.trim()], "succeeded");
    }
    assert_eq!(stranger.asked().len(), 0);
    let all = doubles.iter().flat_map(Double::asked);
    let tokens: Vec<String> = all.filter_map(|it| it.header("Authorization")).collect();
    for (_, token) in TOKENS {
        assert!(tokens.contains(&format!("Bearer {token}")), "it was used");
    }
    drop(agent);
}

#[test]
fn people_see_which_servers_there_are_and_whose_settings_differ() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let url = postgres.database();
    let mut servers = Servers::start(2, &url);
    let leader = servers.leader();
    let standby = 1 - leader;
    let addresses = servers.addresses.clone();
    let list = servers.list();
    let wait_for_servers = |differing: &[&str]| {
        wait_until("the leader knows both", || {
            let reply = try_ask(addresses[leader], "GET", "/api/v1/summary", b"")?;
            let all = reply.data()["servers"].take();
            let as_expected = all[1]["differing"] == json!(differing);
            as_expected.then_some(all)
        })
    };
    let info = || {
        let mut command = Command::new(SIDEBIKE);
        command.arg("info").env("SIDEBIKE_REGISTRY_ADDRESS", &list);
        Said::of(command.output().unwrap()).out
    };
    let all = wait_for_servers(&[]);
    assert_eq!(all.as_array().map(Vec::len), Some(2), "{all}");
    for (shown, (n, leads)) in [(leader, true), (standby, false)].into_iter().enumerate() {
        let shown = &all[shown];
        assert_eq!(
            shown["address"],
            format!("http://{}", addresses[n]),
            "{all}"
        );
        assert_eq!(shown["leads"], leads, "{all}");
        assert_eq!(shown["version"], env!("CARGO_PKG_VERSION"), "{all}");
        assert!(shown["since"].is_string(), "{all}");
        let role = if leads { "leads" } else { "stands by" };
        let line = format!("http://{} {role}, version ", addresses[n]);
        assert!(info().contains(&line), "{}", info());
    }
    assert_eq!(
        servers.servers[standby].metric("sidebike_differing_settings"),
        0
    );

    // Anew with other settings, in a database whose tables an older version has made.
    servers.servers[standby].process.kill_9();
    postgres.sql(&url, "DROP TABLE sb_server");
    let secret = "not-the-token-of-the-leader-0123456789";
    let other = [
        ("SIDEBIKE_TOKEN", secret),
        ("SIDEBIKE_AGENT_TOKEN", "another-0123456789"),
    ];
    servers.restart_with(
        standby,
        &[&other[..], &[("SIDEBIKE_MAX_TASKS", "77")]].concat(),
    );
    let differs = &servers.servers[standby];
    let of = differs
        .process
        .logged("OTHER TOKENS AND LIMITS THAN THOSE OF ");
    assert_eq!(
        of.split(',').next(),
        Some(&*format!("http://{}", addresses[leader]))
    );
    assert_eq!(differs.metric("sidebike_differing_settings"), 2);
    wait_for_servers(&["tokens", "limits"]);
    assert!(info().contains("; OTHER tokens, limits\n"), "{}", info());
    // Nothing in the database says what the tokens are.
    let told = postgres.sql(&url, "SELECT s::text FROM sb_server s");
    for hidden in [secret.to_owned(), common::sha256(secret.as_bytes())] {
        assert!(!told.contains(&hidden), "{told}");
    }
}
