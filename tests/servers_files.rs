//! Files of tasks with several servers: they lie in the database, and the next leader has them.
#![cfg(all(feature = "pg", feature = "agent", feature = "cli"))]

mod common;
mod postgresql;
mod several;

use common::http::{Reply, request};
use common::{Folder, SIDEBIKE, Server, bytes, id, sha256, wait_for, wait_until, wait_within};
use postgresql::PostgreSql;
use rustix::process::Signal;
use serde_json::json;
use several::{Servers, TAKEOVER, status};
use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

const MIB: usize = 1 << 20;
/// What the database has: files, and the bytes of all pieces.
const SAVED: &str = "SELECT (SELECT count(*) FROM sb_blob), \
     (SELECT coalesce(sum(octet_length(bytes)), 0) FROM sb_blob_piece)";

fn put(server: &Server, file: &[u8]) -> Reply {
    server.request("PUT", "/api/v1/file/x", file)
}

/// A piece of a file that is brought in pieces.
fn piece(server: &Server, file: &[u8], from: usize, to: usize) -> Reply {
    let target = format!("/api/v1/blob/{}?offset={from}", sha256(file));
    let range = format!(
        "Content-Range: bytes {from}-{}/{}\r\nConnection: close\r\n",
        to - 1,
        file.len()
    );
    server.raw(&request("PATCH", &target, &range, &file[from..to]))
}

/// A file, once the server that leads has fetched it.
fn get(servers: &Servers, hash: &str) -> Vec<u8> {
    let reply = servers.ask("GET", &format!("/api/v1/blob/{hash}"), b"");
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.body
}

fn leader(servers: &Servers) -> &Server {
    &servers.servers[servers.leader()]
}

/// Two servers, with folders for their copies or without.
fn two(url: &str, folder: Option<&Folder>, more: &[&str]) -> Servers {
    let flags = |n: usize| {
        let mut flags: Vec<String> = more.iter().map(|flag| flag.to_string()).collect();
        if let Some(folder) = folder {
            flags.extend(["--blobs".into(), folder.file(&n.to_string())]);
        }
        flags
    };
    Servers::with_flags(vec![url.to_owned(); 2], vec![flags(0), flags(1)])
}

/// Kills the leader, and waits until the other one leads.
fn fail_over(servers: &mut Servers) {
    let old = servers.leader();
    servers.servers[old].process.kill_9();
    wait_within(TAKEOVER, "the other one leads", || {
        servers.leader_now().filter(|n| *n != old)
    });
}

fn a_failover_loses_none(folder: Option<&Folder>) {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let url = postgres.database();
    let mut servers = two(&url, folder, &[]);
    let laid = Folder::new();
    let (pushed, kept) = (bytes(3 * MIB + 7, 1), bytes(5 * MIB, 2));
    let (path, result) = (laid.file("pushed"), laid.file("result"));
    fs::write(&result, bytes(MIB + 1, 3)).unwrap();

    let agents = servers.agents(1, "fetches");
    let first = leader(&servers);
    assert_eq!(put(first, &pushed).status, 200);
    assert_eq!(put(first, &kept).status, 200);
    assert_eq!(put(first, b"").status, 200);
    postgres.wait_for(&url, SAVED, &format!("3|{}", pushed.len() + kept.len()));
    assert!(first.metric("sidebike_db_file_bytes_written_total") >= 8 << 20);
    let task = |label: &str| {
        json!({"machinePattern": format!("^{label}$"), "mode": "any",
            "files": [{"sha256": sha256(&pushed), "size": pushed.len(), "path": path}],
            "detail": {"command": "true"}})
    };
    let waiting = first.submit(task("late"));
    let fetching = first.run(json!({"machinePattern": "fetches", "mode": "any",
        "detail": {"command": "true"}, "fetch": [{"path": result}]}));
    let handed_back = &fetching["result"][0]["files"][0]["sha256"];
    assert_eq!(handed_back, &*sha256(&bytes(MIB + 1, 3)), "{fetching}");
    drop(agents);

    fail_over(&mut servers);
    let second = leader(&servers);
    // What there is, and how large, is known at once.
    let listed = second.get("/api/v1/blob").data();
    assert_eq!(listed.as_array().unwrap().len(), 4, "{listed}");
    let head = |hash: &str| {
        let mut connection = second.connect();
        let target = format!("/api/v1/blob/{hash}");
        connection.send(&request("HEAD", &target, "Connection: close\r\n", b""));
        connection.read_head_only()
    };
    let size = head(&sha256(&kept));
    assert_eq!(size.status, 200);
    assert_eq!(
        size.header("Content-Length"),
        Some(&*kept.len().to_string())
    );
    assert_eq!(
        put(second, &kept).status,
        200,
        "it is there, and comes again"
    );
    let more = second.submit(task("nobody"));
    // An agent that starts now gets it from the new leader.
    let agents = servers.agents(1, "late");
    let ended = second.finished(id(&waiting));
    assert_eq!(ended["state"], "succeeded", "{ended}");
    assert!(fs::read(&path).unwrap() == pushed);
    assert!(get(&servers, handed_back.as_str().unwrap()) == bytes(MIB + 1, 3));
    assert!(get(&servers, &sha256(&kept)) == kept);
    assert!(get(&servers, &sha256(b"")).is_empty());
    wait_for("everything is here", || {
        second.metric("sidebike_files_missing") == 0
    });
    assert!(second.metric("sidebike_db_file_bytes_read_total") >= 4 << 20);
    drop(agents);

    // What a task needs stays, the others go, and from the database, too.
    let remove = |hash: &str| second.request("DELETE", &format!("/api/v1/blob/{hash}"), b"");
    assert_eq!(remove(&sha256(&pushed)).status, 409);
    let cancel = format!("/api/v1/task/{}/cancel", id(&more));
    assert_eq!(second.post(&cancel, &json!({})).status, 200);
    for file in [&pushed, &kept] {
        let removed = remove(&sha256(file));
        assert_eq!(removed.status, 200, "{}", removed.text());
        assert_eq!(remove(&sha256(file)).status, 404);
    }
    postgres.wait_for(&url, SAVED, &format!("2|{}", MIB + 1));
    let checked = Command::new(SIDEBIKE)
        .args(["db", "check", &url])
        .output()
        .unwrap();
    let words = String::from_utf8(checked.stdout).unwrap();
    let files = format!("2 files of {} bytes\n", MIB + 1);
    assert!(words.ends_with(&files), "{words}");
    postgres.sql(
        &url,
        "UPDATE sb_blob_piece SET bytes = set_byte(bytes, 7, get_byte(bytes, 7) # 1) WHERE n = 0",
    );
    let checked = Command::new(SIDEBIKE)
        .args(["db", "check", &url])
        .output()
        .unwrap();
    let why = String::from_utf8(checked.stderr).unwrap();
    assert!(why.contains("have the SHA-256"), "{why}");
}

#[test]
fn a_failover_loses_no_file() {
    a_failover_loses_none(None);
}

#[test]
fn a_failover_loses_no_file_and_folders_have_copies() {
    let folder = Folder::new();
    a_failover_loses_none(Some(&folder));
}

/// A command that knows all servers.
fn sidebike(servers: &Servers, words: &[&str]) -> String {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(words)
        .args(["--registry-address", &servers.list()]);
    let output = command.env("RUST_LOG", "off").output().unwrap();
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {why}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn push_and_pull_wait_for_the_next_leader_and_for_what_it_fetches() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let url = postgres.database();
    let mut servers = two(&url, None, &[]);
    let folder = Folder::new();
    let agents = servers.agents(1, "m");
    let (file, to) = (bytes(9 * MIB + 5, 16), folder.file("laid"));
    let path = folder.file("file");
    fs::write(&path, &file).unwrap();
    sidebike(&servers, &["push", &path, "-m", "m", "--to", &to]);
    assert!(fs::read(&to).unwrap() == file);
    let fetch = json!({"machinePattern": "m", "mode": "any", "detail": {"command": "true"},
        "fetch": [{"path": path}], "id": "fetches"});
    leader(&servers).run(fetch);
    fail_over(&mut servers);
    let pulled = folder.file("pulled");
    sidebike(&servers, &["pull", "fetches", &pulled]);
    let pulled = format!("{pulled}/m{path}");
    assert!(fs::read(&pulled).unwrap() == file, "{pulled}");
    // What the new leader has need not be sent again.
    fs::remove_file(&to).unwrap();
    sidebike(&servers, &["push", &path, "-m", "m", "--to", &to]);
    assert!(fs::read(&to).unwrap() == file);
    let came = leader(&servers).metric("sidebike_file_bytes_received_total");
    assert_eq!(came, 0);
    drop(agents);
}

/// Does something while the row of the leader is locked, as by a commit that waits for its standby.
fn while_locked<T>(postgres: &PostgreSql, url: &str, work: impl FnOnce() -> T) -> T {
    let mut psql = postgres.psql(url).stdin(Stdio::piped()).spawn().unwrap();
    let input = psql.stdin.as_mut().unwrap();
    writeln!(input, "BEGIN; SELECT FROM sb_leader FOR UPDATE;").unwrap();
    let begun = "SELECT count(*) FROM pg_stat_activity \
         WHERE datname = current_database() AND state = 'idle in transaction'";
    postgres.wait_for(url, begun, "1");
    let done = work();
    psql.kill().unwrap();
    psql.wait().unwrap();
    done
}

#[test]
fn a_leader_that_was_replaced_acknowledges_no_file() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let url = postgres.database();
    let servers = two(&url, None, &[]);
    let old = servers.leader();
    let (half, whole) = (bytes(2 * MIB, 4), bytes(3 * MIB, 5));
    let leads = &servers.servers[old];
    assert_eq!(piece(leads, &half, 0, 2 * MIB - 9).status, 200);
    // The rest of one file is on its way when the leader is stopped, and of another one the end.
    let target = format!("/api/v1/blob/{}?offset={}", sha256(&half), 2 * MIB - 9);
    let headers = format!(
        "Content-Range: bytes {}-{}/{}\r\n",
        2 * MIB - 9,
        2 * MIB - 1,
        2 * MIB
    );
    let rest = request("PATCH", &target, &headers, &half[2 * MIB - 9..]);
    let all = request("PUT", "/api/v1/file/x", "", &whole);
    let mut sent = [leads.connect(), leads.connect()];
    sent[1].send(&all[..all.len() - 1]);
    leads.process.signal(Signal::STOP);
    sent[0].send(&rest);
    sent[1].send(&all[all.len() - 1..]);
    wait_within(TAKEOVER, "the other one leads", || {
        (status(servers.addresses[1 - old], "GET", "/leader") == Some(200)).then_some(())
    });
    leads.process.signal(Signal::CONT);
    for mut connection in sent {
        let answer = connection.try_read(true);
        let status = answer.as_ref().map(|answer| answer.status);
        assert!(matches!(status, None | Some(503)), "{answer:?}");
    }
    leads.process.logged("starts anew, as a standby");
    // What it had saved of them is removed by the one that leads.
    let next = &servers.servers[1 - old];
    assert_eq!(next.get("/api/v1/blob").data(), json!([]));
    postgres.wait_for(&url, SAVED, "0|0");
    assert_eq!(put(next, &whole).status, 200);
    postgres.wait_for(&url, SAVED, &format!("1|{}", 3 * MIB));
}

#[test]
fn what_the_database_does_not_acknowledge_is_said_and_comes_all_the_same() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let url = postgres.database();
    let folder = Folder::new();
    let servers = two(&url, Some(&folder), &[]);
    let (first, second) = (bytes(MIB + 9, 6), bytes(2 * MIB + 1, 7));
    let n = servers.leader();
    assert_eq!(put(&servers.servers[n], &first).status, 200);
    while_locked(&postgres, &url, || {
        let leads = &servers.servers[n];
        let answers = thread::scope(|scope| {
            let removes = scope.spawn(|| {
                let target = format!("/api/v1/blob/{}", sha256(&first));
                leads.request("DELETE", &target, b"")
            });
            let brings = scope.spawn(|| piece(leads, &second, 0, second.len()));
            [removes.join().unwrap(), brings.join().unwrap()]
        });
        for answer in answers {
            assert_eq!(answer.status, 503, "{}", answer.text());
        }
    });
    wait_until("what was asked for is done", || {
        let reply = servers.ask("GET", "/api/v1/blob", b"").data();
        let only = reply.as_array()?.first()?.clone();
        (only["sha256"] == *sha256(&second) && only.get("have").is_none()).then_some(())
    });
    postgres.wait_for(&url, SAVED, &format!("1|{}", second.len()));
    assert_eq!(servers.leader(), n);
    // A piece that is repeated finds it whole.
    let repeated = piece(&servers.servers[n], &second, 0, second.len());
    assert_eq!(repeated.data()["have"], second.len(), "{}", repeated.text());

    // A copy that is gone is fetched again; what the database has in its place must be the file.
    let leads = &servers.servers[n];
    let copy = folder.file(&format!("{n}/{}", sha256(&second)));
    let target = format!("/api/v1/blob/{}", sha256(&second));
    fs::remove_file(&copy).unwrap();
    let absent = leads.get(&target);
    assert_eq!(absent.status, 503, "{}", absent.text());
    assert_eq!(absent.header("Retry-After"), Some("1"));
    assert!(absent.msg().contains("is being fetched from the database"));
    assert!(get(&servers, &sha256(&second)) == second);
    assert!(fs::read(&copy).unwrap() == second);
    postgres.sql(
        &url,
        "UPDATE sb_blob_piece SET bytes = set_byte(bytes, 7, get_byte(bytes, 7) # 1) WHERE n = 0",
    );
    fs::remove_file(&copy).unwrap();
    wait_for("it is said what is wrong", || {
        let reply = leads.get(&target);
        assert_eq!(reply.status, 503);
        reply
            .msg()
            .contains("the database has other bytes in its place")
    });
}

#[test]
fn files_in_the_database_count_for_the_limit() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let url = postgres.database();
    let mut servers = two(&url, None, &["--max-blobs", "3", "--max-blob", "3"]);
    let (old, needed) = (bytes(MIB, 8), bytes(MIB, 9));
    for file in [&old, &needed] {
        assert_eq!(put(leader(&servers), file).status, 200);
    }
    leader(&servers).submit(json!({"machinePattern": "^nobody$", "mode": "any",
        "files": [{"sha256": sha256(&needed), "size": MIB, "path": "/tmp/x"}],
        "detail": {"command": "true"}}));
    // Both came two hours ago.
    postgres.sql(&url, "UPDATE sb_blob SET since = since - 7200000");
    fail_over(&mut servers);
    let next = leader(&servers);
    assert_eq!(next.metric("sidebike_file_bytes"), 2 * MIB as u64);
    assert_eq!(put(next, &bytes(2 * MIB, 10)).status, 200);
    let left = next.get("/api/v1/blob").data();
    let left: Vec<&str> = left
        .as_array()
        .unwrap()
        .iter()
        .map(|b| b["sha256"].as_str().unwrap())
        .collect();
    assert!(
        left.len() == 2 && !left.contains(&&*sha256(&old)),
        "{left:?}"
    );
    postgres.wait_for(&url, SAVED, &format!("2|{}", 3 * MIB));
    let full = put(next, &bytes(MIB, 11));
    assert_eq!(full.status, 507, "{}", full.text());
    postgres.wait_for(&url, SAVED, &format!("2|{}", 3 * MIB));
}

#[test]
fn what_the_database_has_lost_is_brought_from_the_copies() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let url = postgres.database();
    let mut servers = two(&url, None, &[]);
    let (kept, removed) = (bytes(2 * MIB + 3, 12), bytes(MIB, 13));
    for file in [&kept, &removed] {
        assert_eq!(put(leader(&servers), file).status, 200);
    }
    let aside = "CREATE TABLE aside AS SELECT * FROM sb_blob; CREATE TABLE aside_piece AS SELECT * FROM sb_blob_piece";
    postgres.sql(&url, aside);
    let target = format!("/api/v1/blob/{}", sha256(&removed));
    assert_eq!(leader(&servers).request("DELETE", &target, b"").status, 200);
    postgres.wait_for(&url, SAVED, &format!("1|{}", kept.len()));
    postgres.wait_for(&url, "SELECT beat > 0 FROM sb_leader", "t");
    // As after a failover to a standby that was behind: the removed one is there again, the kept one not yet.
    postgres.sql(
        &url,
        &format!(
            "BEGIN; UPDATE sb_leader SET beat = 0; DELETE FROM sb_blob; DELETE FROM sb_blob_piece; \
             INSERT INTO sb_blob SELECT * FROM aside WHERE size = {MIB}; \
             INSERT INTO sb_blob_piece SELECT * FROM aside_piece WHERE upload IN (SELECT upload FROM sb_blob); COMMIT"
        ),
    );
    leader(&servers)
        .process
        .logged("was saved in the database anew");
    postgres.wait_for(&url, SAVED, &format!("1|{}", kept.len()));
    fail_over(&mut servers);
    assert!(get(&servers, &sha256(&kept)) == kept);
    assert_eq!(leader(&servers).get(&target).status, 404);
}

#[test]
fn a_folder_of_an_earlier_build_is_brought_into_the_database() {
    let Some(postgres) = PostgreSql::shared() else {
        return;
    };
    let url = postgres.database();
    let folder = Folder::new();
    let mut servers = two(&url, Some(&folder), &[]);
    let (needed, other) = (bytes(MIB + 5, 14), bytes(MIB, 15));
    for file in [&needed, &other] {
        assert_eq!(put(leader(&servers), file).status, 200);
    }
    leader(&servers).submit(json!({"machinePattern": "^nobody$", "mode": "any",
        "files": [{"sha256": sha256(&needed), "size": needed.len(), "path": "/tmp/x"}],
        "detail": {"command": "true"}}));
    let n = servers.leader();
    for server in &mut servers.servers {
        server.process.kill_9();
    }
    postgres.sql(&url, "DROP TABLE sb_blob, sb_blob_piece");
    servers.restart(n);
    assert_eq!(servers.leader(), n);
    servers.servers[n]
        .process
        .logged("of the folder was saved in the database");
    postgres.wait_for(&url, SAVED, &format!("1|{}", needed.len()));
    servers.restart(1 - n);
    fail_over(&mut servers);
    assert!(get(&servers, &sha256(&needed)) == needed);
}

#[test]
fn without_the_database_no_file_is_acknowledged_and_afterwards_it_comes_again() {
    let Some(postgres) = PostgreSql::start(&["fsync=off"]) else {
        return;
    };
    let url = postgres.database();
    let servers = two(&url, None, &[]);
    let (kept, half) = (bytes(MIB + 1, 17), bytes(2 * MIB + 2, 18));
    let n = servers.leader();
    let leads = &servers.servers[n];
    assert_eq!(put(leads, &kept).status, 200);
    let last = half.len() - 1;
    assert_eq!(piece(leads, &half, 0, last).status, 200);
    postgres.kill();
    for answer in [
        piece(leads, &half, last, half.len()),
        put(leads, &bytes(MIB, 19)),
    ] {
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.msg().contains("database"), "{}", answer.text());
    }
    postgres.run();
    wait_within(TAKEOVER, "it leads again", || {
        servers.leader_now().filter(|now| *now == n)
    });
    // Its last byte came, or did not, and could not be saved: it comes again, and nothing else.
    wait_until("the file is whole", || {
        let probe = piece(leads, &half, 0, 1);
        let from = match probe.status {
            409 => probe.json()["data"]["have"].as_u64().unwrap() as usize,
            _ => return None,
        };
        assert_eq!(from, last);
        let done = piece(leads, &half, from, half.len());
        (done.status == 200 && done.data()["have"] == half.len()).then_some(())
    });
    assert_eq!(put(leads, &kept).status, 200);
    postgres.wait_for(&url, SAVED, &format!("2|{}", kept.len() + half.len()));
}
