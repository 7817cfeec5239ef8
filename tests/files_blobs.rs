//! Files on the server: brought whole or in pieces, over connections that break, kept within limits, read in parts, by
//! those who may.

mod common;

use common::http::{Connection, Reply, request};
use common::{Folder, SIDEBIKE, Server, bytes, id, sha256, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

const MIB: usize = 1 << 20;

fn ask(server: &Server, method: &str, target: &str, headers: &str, body: &[u8]) -> Reply {
    let headers = format!("{headers}Connection: close\r\n");
    let mut connection = server.connect();
    let mut bytes = request(method, target, &headers, body);
    if method == "PUT" && body.is_empty() {
        bytes = request(
            method,
            target,
            &format!("{headers}Content-Length: 0\r\n"),
            body,
        );
    }
    connection.send(&bytes);
    match method {
        "HEAD" => connection.read_head_only(),
        _ => connection.read(),
    }
}

fn put(server: &Server, name: &str, body: &[u8]) -> Reply {
    ask(server, "PUT", &format!("/api/v1/file/{name}"), "", body)
}

fn piece(server: &Server, sha256: &str, whole: &[u8], from: usize, to: usize) -> Reply {
    let target = format!("/api/v1/blob/{sha256}?offset={from}");
    let range = format!("Content-Range: bytes {from}-{}/{}\r\n", to - 1, whole.len());
    ask(server, "PATCH", &target, &range, &whole[from..to])
}

fn get(server: &Server, sha256: &str, headers: &str) -> Reply {
    ask(
        server,
        "GET",
        &format!("/api/v1/blob/{sha256}"),
        headers,
        b"",
    )
}

fn blobs(server: &Server) -> Vec<Value> {
    server
        .get("/api/v1/blob")
        .data()
        .as_array()
        .unwrap()
        .clone()
}

/// A task for a label that no machine has.
fn waiting_task(file: &str, size: usize) -> Value {
    json!({
        "machinePattern": "^nobody$", "mode": "any",
        "files": [{"sha256": file, "size": size, "path": "/tmp/x"}],
        "detail": {"command": "true"},
    })
}

#[test]
fn a_file_is_brought_whole_listed_read_and_removed() {
    let server = Server::start();
    let file = bytes(3 * MIB + 7, 1);
    let hash = sha256(&file);
    let done = put(&server, "blade%20runner.tgz", &file).data();
    assert_eq!(
        done,
        json!({"sha256": hash, "size": file.len(), "have": file.len()})
    );
    let head = ask(&server, "HEAD", &format!("/api/v1/blob/{hash}"), "", b"");
    assert_eq!(head.status, 200);
    assert_eq!(
        head.header("Content-Length"),
        Some(&*file.len().to_string())
    );
    assert_eq!(head.header("ETag"), Some(&*format!("\"{hash}\"")));
    let whole = get(&server, &hash, "");
    assert!(whole.status == 200 && whole.body == file);
    assert!(
        whole
            .header("Content-Disposition")
            .unwrap()
            .contains("blade runner.tgz")
    );
    let part = get(&server, &hash, "Range: bytes=1000000-2999999\r\n");
    assert!(part.status == 206 && part.body == file[1_000_000..3_000_000]);
    let listed = blobs(&server);
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["name"], "blade runner.tgz");
    assert_eq!(listed[0]["needed"], false);
    assert_eq!(server.metric("sidebike_files"), 1);
    assert_eq!(server.metric("sidebike_file_bytes"), file.len() as u64);

    // The same again is the same blob; an empty file is one, too.
    assert_eq!(put(&server, "other", &file).data()["sha256"], *hash);
    let empty = put(&server, "empty", b"").data();
    assert_eq!(empty["sha256"], *sha256(b""));
    assert_eq!(get(&server, &sha256(b""), "").body, b"");
    assert_eq!(blobs(&server).len(), 2);

    let target = format!("/api/v1/blob/{hash}");
    assert_eq!(ask(&server, "DELETE", &target, "", b"").status, 200);
    assert_eq!(ask(&server, "DELETE", &target, "", b"").status, 404);
    assert_eq!(get(&server, &hash, "").status, 404);
    assert_eq!(blobs(&server).len(), 1);
}

/// The server takes the place of a file that was removed for the next one.
#[test]
fn a_file_that_is_removed_while_it_is_sent_is_sent_to_its_end_and_no_other() {
    const REQUESTS: usize = 100;
    let server = Server::start();
    let (file, other) = (bytes(256 * 1024, 11), bytes(256 * 1024, 12));
    let hash = put(&server, "x", &file).data()["sha256"]
        .as_str()
        .unwrap()
        .to_owned();
    let target = format!("/api/v1/blob/{hash}");
    // More than the sockets hold: one of the answers is stopped in the middle.
    let mut slow = server.connect();
    slow.send(&request("GET", &target, "", b"").repeat(REQUESTS));
    wait_for("an answer that does not fit", || {
        let before = server.metric("sidebike_file_bytes_sent_total");
        thread::sleep(Duration::from_millis(200));
        server.metric("sidebike_file_bytes_sent_total") == before
    });
    assert_eq!(ask(&server, "DELETE", &target, "", b"").status, 200);
    // The place is free a moment after the last reader of the file has gone.
    for _ in 0..5 {
        let hash = put(&server, "y", &other).data()["sha256"].clone();
        let target = format!("/api/v1/blob/{}", hash.as_str().unwrap());
        assert_eq!(ask(&server, "DELETE", &target, "", b"").status, 200);
    }
    assert_eq!(put(&server, "y", &other).status, 200);
    let replies: Vec<Reply> = (0..REQUESTS).map(|_| slow.read()).collect();
    let sent = replies.iter().take_while(|reply| reply.status == 200);
    let whole = sent.clone().filter(|reply| reply.body == file).count();
    assert_eq!(whole, sent.count());
    assert!(0 < whole && whole < REQUESTS, "{whole}");
    assert!(replies[whole..].iter().all(|reply| reply.status == 404));
}

#[test]
fn a_body_in_chunks_and_one_of_many_small_ones_come_whole() {
    let server = Server::start();
    let file = bytes(600_000, 2);
    let mut connection = server.connect();
    connection.send(
        b"PUT /api/v1/file/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    let mut chunked = Vec::new();
    // Their lines take more than those of any other body may.
    for chunk in file.chunks(13) {
        chunked.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    connection.send(&chunked);
    assert_eq!(connection.read().data()["sha256"], *sha256(&file));
    // The connection stays, and a request behind a body is the next one.
    let mut two = request("PUT", "/api/v1/file/y", "", b"hello");
    two.extend_from_slice(&request("GET", "/healthz", "", b""));
    connection.send(&two);
    assert_eq!(connection.read().data()["sha256"], *sha256(b"hello"));
    assert_eq!(connection.read().data(), "alive");
}

#[test]
fn an_upload_goes_on_over_twenty_connections_that_break() {
    let server = Server::start();
    let file = bytes(20 * MIB + 3, 3);
    let hash = sha256(&file);
    let mut broken = 0;
    let mut have = 0;
    while have < file.len() {
        let to = (have + 4 * MIB).min(file.len());
        if broken < 20 {
            // It breaks off somewhere in the piece, each time a bit further.
            let mut stream = TcpStream::connect(server.address).unwrap();
            let head = format!(
                "PATCH /api/v1/blob/{hash}?offset={have} HTTP/1.1\r\nHost: localhost\r\n\
                 Content-Range: bytes {have}-{}/{}\r\nContent-Length: {}\r\n\r\n",
                to - 1,
                file.len(),
                to - have
            );
            stream.write_all(head.as_bytes()).unwrap();
            let sent = (to - have) * (1 + broken % 3) / 16;
            stream.write_all(&file[have..have + sent]).unwrap();
            match broken % 2 {
                0 => stream.shutdown(Shutdown::Both).unwrap(),
                _ => drop(stream),
            }
            broken += 1;
        } else {
            piece(&server, &hash, &file, have, to);
        }
        // The server says where to go on; it may still be writing what has come.
        let reply = piece(&server, &hash, &file, file.len() - 1, file.len());
        have = match reply.status {
            409 => reply.json()["data"]["have"].as_u64().unwrap() as usize,
            _ => reply.data()["have"].as_u64().unwrap() as usize,
        };
    }
    assert_eq!(broken, 20);
    assert!(get(&server, &hash, "").body == file);
    let again = piece(&server, &hash, &file, 0, 4 * MIB);
    assert_eq!(again.data()["have"], file.len(), "it is there already");
    assert_eq!(blobs(&server).len(), 1);
}

#[test]
fn pieces_that_do_not_fit_are_refused_and_a_wrong_byte_is_noticed() {
    let server = Server::start();
    let file = bytes(100_000, 4);
    let hash = sha256(&file);
    let first = piece(&server, &hash, &file, 0, 40_000).data();
    assert_eq!(first["have"], 40_000);
    let head = ask(&server, "HEAD", &format!("/api/v1/blob/{hash}"), "", b"");
    assert_eq!(
        (head.status, head.header("Upload-Offset")),
        (404, Some("40000"))
    );
    assert_eq!(blobs(&server)[0]["have"], 40_000);
    assert_eq!(get(&server, &hash, "").status, 404);
    for (from, to) in [(0, 10), (39_999, 50_000), (40_001, 50_000)] {
        let reply = piece(&server, &hash, &file, from, to);
        assert_eq!(
            (reply.status, &reply.json()["data"]["have"]),
            (409, &json!(40_000))
        );
    }
    let target = format!("/api/v1/blob/{hash}?offset=40000");
    for (headers, body, status) in [
        ("", &b"x"[..], 400),
        ("Content-Range: bytes 40000-40000/*\r\n", b"x", 400),
        ("Content-Range: bytes 40000-39999/100000\r\n", b"x", 400),
        ("Content-Range: bytes 40000-100000/100000\r\n", b"x", 400),
        ("Content-Range: bytes 40001-40001/100000\r\n", b"x", 400),
        ("Content-Range: bytes 40000-40005/100000\r\n", b"x", 400),
        ("Content-Range: bytes 40000-+40000/100000\r\n", b"x", 400),
        ("Content-Range: lines 40000-40000/100000\r\n", b"x", 400),
        (
            "Content-Range: bytes 40000-40000/99999999999999999999999\r\n",
            b"x",
            400,
        ),
        (
            "Content-Range: bytes 40000-40000/18446744073709551615\r\n",
            b"x",
            413,
        ),
        (
            "Content-Range: bytes 40000-18000000/20000000\r\n",
            b"x",
            413,
        ),
        (
            "Content-Range: bytes 0-0/100000\r\nContent-Range: bytes 0-0/100000\r\n",
            b"x",
            400,
        ),
    ] {
        let reply = ask(&server, "PATCH", &target, headers, body);
        assert_eq!(reply.status, status, "{headers}: {}", reply.text());
    }
    for offset in ["x", "-1", "", "1e3", "99999999999999999999999"] {
        let target = format!("/api/v1/blob/{hash}?offset={offset}");
        let range = "Content-Range: bytes 40000-40000/100000\r\n";
        assert_eq!(
            ask(&server, "PATCH", &target, range, b"x").status,
            400,
            "{offset}"
        );
    }
    for name in ["x", &hash.to_uppercase(), &hash[1..]] {
        assert_eq!(get(&server, name, "").status, 400, "{name}");
    }
    assert_eq!(
        ask(&server, "PUT", "/api/v1/file/a%00b", "", b"x").status,
        400
    );
    assert_eq!(
        ask(&server, "PUT", "/api/v1/file/a%2fb", "", b"x").status,
        400
    );

    // Another byte on the way.
    let mut wrong = file.clone();
    wrong[70_000] ^= 1;
    let reply = piece(&server, &hash, &wrong, 40_000, 100_000);
    assert_eq!(reply.status, 422, "{}", reply.text());
    assert!(reply.msg().contains(&sha256(&wrong)), "{}", reply.msg());
    assert!(blobs(&server).is_empty(), "it was thrown away");
    assert_eq!(
        piece(&server, &hash, &file, 0, 100_000).data()["have"],
        100_000
    );
    assert!(get(&server, &hash, "").body == file);
}

#[test]
fn ranges_that_cannot_be_meant_are_refused() {
    let server = Server::start();
    let hash = put(&server, "x", &bytes(1_000, 5)).data()["sha256"]
        .as_str()
        .unwrap()
        .to_owned();
    for (range, status) in [
        ("bytes=0-0", 206),
        ("bytes=999-", 206),
        ("bytes=-1", 206),
        ("bytes=0-1,5-6", 200),
        ("chunks=1", 200),
        ("bytes=1000-", 416),
        ("bytes=-0", 416),
        ("bytes=5-4", 400),
        ("bytes=--1", 400),
        ("bytes=", 400),
        ("bytes=1", 400),
        ("bytes", 400),
        ("bytes=1-2-3", 400),
        ("bytes=\u{1}-", 400),
        ("bytes=99999999999999999999-", 400),
    ] {
        let reply = get(&server, &hash, &format!("Range: {range}\r\n"));
        assert_eq!(reply.status, status, "{range:?}");
    }
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn a_file_that_was_taken_out_of_the_folder_can_be_brought_again() {
    let folder = Folder::new();
    let server = Server::with(&["--blobs", folder.path()]);
    let file = bytes(1000, 9);
    let hash = sha256(&file);
    let bring = |in_pieces: bool| match in_pieces {
        true => piece(&server, &hash, &file, 0, file.len()),
        false => put(&server, "x", &file),
    };
    assert_eq!(bring(false).status, 200);
    for (in_pieces, is_noticed) in [(true, true), (false, true), (false, false)] {
        fs::remove_file(folder.file(&hash)).unwrap();
        if is_noticed {
            assert_eq!(get(&server, &hash, "").status, 404);
            assert_eq!(blobs(&server), [] as [Value; 0]);
        }
        assert_eq!(bring(in_pieces).data()["have"], file.len());
        assert!(get(&server, &hash, "").body == file);
    }
    server.process.logged("is gone from the folder of files");
}

#[test]
fn what_breaks_off_leaves_nothing_and_a_later_upload_takes_over() {
    let folder = Folder::new();
    let server = Server::with(&["--blobs", folder.path()]);
    let names = || {
        let names = fs::read_dir(folder.path()).unwrap().flatten();
        let names = names.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| name != ".lock").collect::<Vec<_>>()
    };
    let file = bytes(2 * MIB, 6);
    let mut stream = TcpStream::connect(server.address).unwrap();
    let head = format!(
        "PUT /api/v1/file/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        file.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&file[..MIB]).unwrap();
    wait_for("it is being written", || names().len() == 1);
    drop(stream);
    wait_for("it is gone", || names().is_empty());

    // A connection that nobody knows to be dead holds a piece; another goes on where it stopped.
    let hash = sha256(&file);
    let mut dead = TcpStream::connect(server.address).unwrap();
    let head = format!(
        "PATCH /api/v1/blob/{hash}?offset=0 HTTP/1.1\r\nHost: localhost\r\nContent-Range: bytes 0-{}/{}\r\nContent-Length: {}\r\n\r\n",
        file.len() - 1,
        file.len(),
        file.len()
    );
    dead.write_all(head.as_bytes()).unwrap();
    dead.write_all(&file[..MIB]).unwrap();
    wait_for("half of it has come", || {
        blobs(&server)
            .first()
            .is_some_and(|blob| blob["have"] == MIB)
    });
    let done = piece(&server, &hash, &file, MIB, file.len()).data();
    assert_eq!(done["have"], file.len());
    // What the dead one still brings is refused.
    dead.write_all(&file[MIB..]).unwrap();
    let mut said = String::new();
    let _ = dead.read_to_string(&mut said);
    assert!(said.starts_with("HTTP/1.1 409 "), "{said}");
    assert_eq!(names(), [hash.as_str()]);

    // The next server finds it, and removes what is half; two do not share a folder.
    fs::write(Path::new(folder.path()).join(".part-9"), "half").unwrap();
    let mut second = Command::new(SIDEBIKE);
    second.args([
        "server",
        "--listen",
        "127.0.0.1:0",
        "--blobs",
        folder.path(),
    ]);
    let refused = second.output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("another server uses it"),
        "{said}"
    );
    drop(server);
    let server = Server::with(&["--blobs", folder.path()]);
    assert_eq!(names(), [hash.as_str()]);
    assert!(get(&server, &hash, "").body == file);
    assert_eq!(blobs(&server)[0]["size"], file.len());
}

#[test]
fn what_tasks_need_stays_and_what_is_too_large_is_refused() {
    let server = Server::with(&["--max-blob", "1", "--max-blobs", "3"]);
    let files: Vec<Vec<u8>> = (0..4).map(|n| bytes(MIB, 10 + n)).collect();
    let too_large = put(&server, "x", &vec![0; MIB + 1]);
    assert_eq!(too_large.status, 413, "{}", too_large.text());
    assert!(too_large.msg().contains("--max-blob"));
    let mut chunked = server.connect();
    chunked.send(
        b"PUT /api/v1/file/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    let chunk = [
        format!("{:x}\r\n", MIB / 2).into_bytes(),
        vec![0; MIB / 2],
        b"\r\n".to_vec(),
    ]
    .concat();
    (0..3).for_each(|_| chunked.send(&chunk));
    assert_eq!(chunked.read().status, 413);
    for file in &files[..3] {
        put(&server, "x", file).data();
    }
    // Within its first hour nothing goes.
    let full = put(&server, "x", &files[3]);
    assert_eq!(full.status, 507, "{}", full.text());
    for word in ["3145728 of 3145728", "--max-blobs"] {
        assert!(full.msg().contains(word), "{word}: {}", full.msg());
    }
    let hash = sha256(&files[0]);
    let unknown = server.post("/api/v1/task", &waiting_task(&sha256(&files[3]), MIB));
    assert_eq!(unknown.status, 422, "{}", unknown.text());
    assert!(
        unknown.msg().contains("files[0].sha256"),
        "{}",
        unknown.msg()
    );
    let dry = server.post(
        "/api/v1/task?dryRun=1",
        &waiting_task(&sha256(&files[3]), MIB),
    );
    assert_eq!(dry.status, 200, "{}", dry.text());
    assert_eq!(
        server.post("/api/v1/task", &waiting_task(&hash, 5)).status,
        400
    );
    let task = server.submit(waiting_task(&hash, MIB));
    assert_eq!(task["files"][0]["path"], "/tmp/x");
    let target = format!("/api/v1/blob/{hash}");
    let needed = ask(&server, "DELETE", &target, "", b"");
    assert_eq!(needed.status, 409, "{}", needed.text());
    assert!(needed.msg().contains(id(&task)), "{}", needed.msg());
    let listed = blobs(&server);
    let own = listed.iter().find(|blob| blob["sha256"] == *hash).unwrap();
    assert_eq!(
        (&own["needed"], &own["tasks"][0]),
        (&json!(true), &task["id"])
    );
    server.post(&format!("/api/v1/task/{}/cancel", id(&task)), &json!({}));
    assert_eq!(ask(&server, "DELETE", &target, "", b"").status, 200);
    put(&server, "x", &files[3]).data();
    // It can be submitted again only with its file.
    let again = server.post(&format!("/api/v1/task/{}/rerun", id(&task)), &json!({}));
    assert_eq!(again.status, 422, "{}", again.text());
}

#[test]
fn files_older_than_an_hour_make_room_the_oldest_first() {
    let folder = Folder::new();
    let put_there = |n: u64, hours: u64| {
        let file = bytes(MIB, n);
        let path = Path::new(folder.path()).join(sha256(&file));
        fs::write(&path, &file).unwrap();
        let age = format!("{hours} hours ago");
        assert!(
            Command::new("touch")
                .args(["-d", &age])
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        sha256(&file)
    };
    let (old, older, oldest) = (put_there(1, 3), put_there(2, 5), put_there(3, 9));
    let server = Server::with(&["--blobs", folder.path(), "--max-blobs", "3"]);
    let task = server.submit(waiting_task(&oldest, MIB));
    put(&server, "x", &bytes(MIB, 4)).data();
    let left = |hash: &str| get(&server, hash, "Range: bytes=0-0\r\n").status == 206;
    assert!(left(&oldest) && left(&old) && !left(&older));
    server.post(&format!("/api/v1/task/{}/cancel", id(&task)), &json!({}));
    put(&server, "x", &bytes(MIB / 2, 5)).data();
    assert!(
        left(&oldest) && !left(&old),
        "what no task names goes first"
    );
    put(&server, "x", &bytes(MIB, 6)).data();
    assert!(!left(&oldest), "then that of a task that has ended");
    assert_eq!(server.metric("sidebike_files_removed_total"), 3);
    assert_eq!(put(&server, "x", &bytes(MIB, 7)).status, 507);
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let folder = Folder::new();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=3m", "tmpfs", folder.path()])
        .output();
    if !mounted.is_ok_and(|mounted| mounted.status.success()) {
        return eprintln!("left out: no tmpfs can be mounted here");
    }
    struct Unmount<'a>(&'a str);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").args(["-l", self.0]).status();
        }
    }
    let _unmount = Unmount(folder.path());
    for without_a_folder in [false, true] {
        let mut command = Command::new(SIDEBIKE);
        command.args(["server", "--listen", "127.0.0.1:0"]);
        match without_a_folder {
            true => command.env("TMPDIR", folder.path()),
            false => command.args(["--blobs", folder.path()]),
        };
        let server = Server::from_command(command);
        let full = put(&server, "x", &bytes(5 * MIB, 20));
        assert_eq!(full.status, 507, "{}", full.text());
        assert!(full.msg().contains("space"), "{}", full.msg());
        // What was written is gone, so this fits, again and again.
        for n in 0..4 {
            let file = bytes(2 * MIB, 21 + n);
            let reply = ask_until_it_fits(&server, &file);
            assert_eq!(reply.data()["sha256"], *sha256(&file));
            let target = format!("/api/v1/blob/{}", sha256(&file));
            assert!(get(&server, &sha256(&file), "").body == file);
            assert_eq!(ask(&server, "DELETE", &target, "", b"").status, 200);
        }
        assert_eq!(server.get("/healthz").status, 200);
    }
}

/// What was removed is given back a moment later.
fn ask_until_it_fits(server: &Server, file: &[u8]) -> Reply {
    let mut reply = put(server, "x", file);
    for _ in 0..100 {
        if reply.status != 507 {
            break;
        }
        thread::sleep(Duration::from_millis(20));
        reply = put(server, "x", file);
    }
    reply
}

#[test]
fn without_a_place_the_server_starts_and_says_why_it_keeps_nothing() {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["server", "--listen", "127.0.0.1:0"])
        .env("TMPDIR", "/nowhere");
    let server = Server::from_command(command);
    server.process.logged("files cannot be kept");
    let refused = put(&server, "x", b"hello");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert!(refused.msg().contains("--blobs"), "{}", refused.msg());
    assert_eq!(get(&server, &sha256(b"x"), "").status, 503);
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn many_at_once_take_little_memory_and_those_too_many_are_told_to_come_back() {
    let server = Server::start();
    let file = bytes(16 * MIB, 30);
    let hash = put(&server, "x", &file).data()["sha256"]
        .as_str()
        .unwrap()
        .to_owned();
    let before = server.process.figure("VmRSS");
    // Sixteen hold their transfers: they read the beginning and stop.
    let target = format!("/api/v1/blob/{hash}");
    let mut held: Vec<TcpStream> = (0..16)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.write_all(&request("GET", &target, "", b"")).unwrap();
            let mut begun = [0; 1];
            stream.read_exact(&mut begun).unwrap();
            stream
        })
        .collect();
    let busy = get(&server, &hash, "");
    assert_eq!((busy.status, busy.header("Retry-After")), (503, Some("1")));
    assert_eq!(put(&server, "y", b"hello").status, 503);
    assert_eq!(server.get("/healthz").status, 200);
    drop(held.split_off(8));
    // Many come back until they have it.
    let most = AtomicU64::new(0);
    thread::scope(|scope| {
        for n in 0..40u64 {
            let (server, hash, file, most) = (&server, &hash, &file, &most);
            scope.spawn(move || {
                let own = bytes(2 * MIB, 100 + n);
                loop {
                    let reply = match n % 4 {
                        0 => put(server, "own", &own),
                        _ => get(server, hash, ""),
                    };
                    most.fetch_max(server.process.figure("VmRSS"), Ordering::Relaxed);
                    match reply.status {
                        503 => thread::sleep(Duration::from_millis(20 + n)),
                        200 if n % 4 == 0 => {
                            break assert_eq!(reply.data()["sha256"], *sha256(&own));
                        }
                        200 => break assert!(reply.body == *file),
                        other => panic!("{other}: {}", reply.text()),
                    }
                }
            });
        }
    });
    let grown = most.into_inner().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} KiB");
    assert!(server.metric("sidebike_file_transfers_refused_total") >= 2);
    drop(held);
}

fn with_tokens(flags: &[&str]) -> Server {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["server", "--listen", "127.0.0.1:0"])
        .args(flags)
        .env("SIDEBIKE_TOKEN", "people-secret")
        .env("SIDEBIKE_AGENT_TOKEN", "agent-secret")
        .env("SIDEBIKE_READ_TOKEN", "read-secret");
    Server::from_command(command)
}

fn as_who(token: &str, more: &str) -> String {
    format!("Authorization: Bearer {token}-secret\r\n{more}")
}

/// An agent of the test's own, which polls once.
struct Agent(&'static str);

impl Agent {
    fn poll(&self, server: &Server, seq: u32, holds: Value) -> Value {
        let poll = json!({
            "instance": self.0, "seq": seq, "label": "m", "jobs": 4, "holds": holds, "wait": 0,
            "features": ["files", "fetch"],
        });
        let reply = ask(
            server,
            "POST",
            "/api/v1/agent/poll",
            &as_who("agent", ""),
            poll.to_string().as_bytes(),
        );
        reply.data()
    }

    fn headers(&self) -> String {
        as_who("agent", &format!("Sidebike-Instance: {}\r\n", self.0))
    }

    fn get(&self, server: &Server, sha256: &str) -> Reply {
        ask(
            server,
            "GET",
            &format!("/api/v1/agent/file/{sha256}"),
            &self.headers(),
            b"",
        )
    }
}

#[test]
fn people_bring_and_read_readers_see_the_list_and_agents_what_their_tasks_name() {
    let folder = Folder::new();
    let audit = folder.file("audit");
    let server = with_tokens(&["--audit", &audit]);
    let file = bytes(100_000, 40);
    let hash = sha256(&file);
    for (token, status) in [("agent", 403), ("read", 403), ("people", 200)] {
        let reply = ask(&server, "PUT", "/api/v1/file/x", &as_who(token, ""), &file);
        assert_eq!(reply.status, status, "{token}");
    }
    let target = format!("/api/v1/blob/{hash}");
    for (token, list, bytes) in [
        ("agent", 403, 403),
        ("read", 200, 403),
        ("people", 200, 200),
    ] {
        assert_eq!(
            ask(&server, "GET", "/api/v1/blob", &as_who(token, ""), b"").status,
            list
        );
        assert_eq!(
            ask(&server, "GET", &target, &as_who(token, ""), b"").status,
            bytes
        );
        assert_eq!(
            ask(&server, "HEAD", &target, &as_who(token, ""), b"").status,
            bytes
        );
    }
    let (one, other) = (Agent("00000001aaaa"), Agent("00000002bbbb"));
    one.poll(&server, 1, json!([]));
    other.poll(&server, 1, json!([]));
    assert_eq!(one.get(&server, &hash).status, 403, "no task names it");
    let task = json!({
        "machinePattern": "^m$", "instances": [one.0],
        "files": [{"sha256": hash, "size": file.len(), "name": "x"}],
        "fetch": [{"path": "/tmp/heap", "max": "1KiB"}],
        "detail": {"command": "true"},
    });
    let task = ask(
        &server,
        "POST",
        "/api/v1/task",
        &as_who("people", ""),
        task.to_string().as_bytes(),
    )
    .data();
    assert_eq!(one.get(&server, &hash).status, 403, "it was not handed out");
    let orders = one.poll(&server, 2, json!([]));
    let start = &orders["start"][0];
    assert_eq!(start["files"][0]["sha256"], *hash, "{orders}");
    assert_eq!(start["filesTimeout"], 600, "{orders}");
    assert!(one.get(&server, &hash).body == file);
    assert_eq!(other.get(&server, &hash).status, 403);
    let nobody = ask(
        &server,
        "GET",
        &format!("/api/v1/agent/file/{hash}"),
        &as_who("agent", ""),
        b"",
    );
    assert_eq!(nobody.status, 400, "it does not say who it is");

    // What it brings: what is asked for, of an attempt that it has, and no more of it.
    let execution = start["execution"].as_str().unwrap();
    let back = |agent: &Agent, attempt: u32, path: &str, body: &[u8]| {
        let target =
            format!("/api/v1/agent/file?execution={execution}&attempt={attempt}&path={path}");
        ask(&server, "PUT", &target, &agent.headers(), body)
    };
    let hold = |phase: Option<&str>| json!([{"execution": execution, "attempt": 1, "state": "running", "phase": phase, "startedAgoMs": 5}]);
    one.poll(&server, 3, hold(Some("files")));
    let shown = |what: &str| {
        let target = format!("/api/v1/task/{}", id(&task));
        let task = ask(&server, "GET", &target, &as_who("read", ""), b"").data();
        task["result"][0][what].clone()
    };
    assert_eq!(
        (shown("state"), shown("phase"), shown("startedAt")),
        (json!("running"), json!("files"), Value::Null)
    );
    one.poll(&server, 4, hold(None));
    assert_eq!(
        (shown("state"), shown("phase")),
        (json!("running"), Value::Null)
    );
    assert!(shown("startedAt").is_string());
    assert_eq!(back(&one, 1, "/tmp/other", b"x").status, 403);
    assert_eq!(back(&one, 2, "/tmp/heap", b"x").status, 403);
    assert_eq!(back(&other, 1, "/tmp/heap", b"x").status, 403);
    assert_eq!(back(&one, 1, "/tmp/heap", &[0; 1_025]).status, 413);
    let brought = back(&one, 1, "/tmp/heap", b"result").data();
    let files = json!([
        {"path": "/tmp/heap", "sha256": brought["sha256"], "size": 6, "truncated": false},
        {"path": "/tmp/unasked", "sha256": brought["sha256"], "size": 6},
    ]);
    let done = json!({"instance": one.0, "pieces": [], "results": [{
        "execution": execution, "attempt": 1, "state": "succeeded", "exitCode": 0, "durationMs": 5, "endedAgoMs": 0, "files": files,
    }]});
    let verdict = ask(
        &server,
        "POST",
        "/api/v1/agent/done",
        &as_who("agent", ""),
        done.to_string().as_bytes(),
    )
    .data();
    assert_eq!(verdict["results"][0]["taken"], true, "{verdict}");
    assert_eq!(shown("files"), json!([files[0]]));
    assert_eq!(one.get(&server, &hash).status, 403, "it has ended");
    assert_eq!(back(&one, 1, "/tmp/heap", b"x").status, 403);
    let result = ask(
        &server,
        "GET",
        &format!("/api/v1/blob/{}", brought["sha256"].as_str().unwrap()),
        &as_who("people", ""),
        b"",
    );
    assert_eq!(result.body, b"result");

    let delete = ask(&server, "DELETE", &target, &as_who("people", ""), b"");
    assert_eq!(delete.status, 200, "{}", delete.text());
    let lines = folder.json_lines("audit");
    let of = |call: &str, status: u16| {
        let line = lines.iter().find(|line| {
            line["call"].as_str().unwrap().starts_with(call) && line["status"] == status
        });
        line.unwrap_or_else(|| panic!("no {call} {status} in {lines:?}"))
            .clone()
    };
    assert_eq!(of("PUT /api/v1/file/x", 200)["sha256"], *hash);
    assert_eq!(of("PUT /api/v1/file/x", 200)["bytes"], file.len());
    of("PUT /api/v1/file/x", 403);
    assert_eq!(of("POST /api/v1/task", 200)["files"], json!([hash]));
    assert_eq!(of("DELETE /api/v1/blob/", 200)["sha256"], *hash);
}

#[test]
fn files_and_results_of_tasks_survive_a_restart() {
    let folder = Folder::new();
    let (db, blobs_folder) = (folder.file("db"), folder.file("blobs"));
    let flags = ["--db", &*db, "--blobs", &*blobs_folder];
    let server = Server::with(&flags);
    let hash = put(&server, "x", b"hello").data()["sha256"]
        .as_str()
        .unwrap()
        .to_owned();
    let task = server.submit(waiting_task(&hash, 5));
    let only_files =
        json!({"machinePattern": "^nobody$", "files": [{"sha256": hash, "size": 5, "name": "y"}]});
    let second = server.submit(only_files);
    drop(server);
    let server = Server::with(&flags);
    assert_eq!(server.task(id(&task))["files"], task["files"]);
    assert_eq!(server.task(id(&second))["files"][0]["name"], "y");
    let target = format!("/api/v1/blob/{hash}");
    assert_eq!(ask(&server, "DELETE", &target, "", b"").status, 409);
    assert_eq!(blobs(&server)[0]["tasks"].as_array().unwrap().len(), 2);
    // What was answered can be posted again.
    let mut again = server.task(id(&second));
    again.as_object_mut().unwrap().remove("id");
    server.submit(again);
}

#[test]
fn a_silent_upload_is_cut_and_a_slow_one_is_not() {
    let server = Server::with(&["--max-request-time", "1s"]);
    let file = bytes(400_000, 50);
    // Slower than the time that any other request may take.
    let mut stream = TcpStream::connect(server.address).unwrap();
    let head = format!(
        "PUT /api/v1/file/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        file.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    for part in file.chunks(100_000) {
        thread::sleep(Duration::from_millis(700));
        stream.write_all(part).unwrap();
    }
    assert_eq!(
        Connection::over(stream).read().data()["sha256"],
        *sha256(&file)
    );
}
