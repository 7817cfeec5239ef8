//! The program that the server hands out: its own image, those of `--binaries`, and to whom.

mod common;

use common::http::{Reply, request};
use common::{Folder, SIDEBIKE, Server, sha256};
use std::env::consts::ARCH;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

fn get(server: &Server, target: &str, headers: &str) -> Reply {
    let headers = format!("{headers}Connection: close\r\n");
    server.raw(&request("GET", target, &headers, b""))
}

#[test]
fn what_the_server_hands_out_runs_and_is_what_it_runs() {
    let folder = Folder::new();
    let program = Path::new(folder.path()).join("server");
    fs::copy(SIDEBIKE, &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["server", "--listen", "127.0.0.1:0"]);
    let server = Server::from_command(command);
    let image = fs::read(&program).unwrap();
    // Another version lies there by now.
    fs::remove_file(&program).unwrap();
    fs::write(&program, "#!/bin/sh\n").unwrap();

    let reply = server.get("/sidebike");
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.header("Content-Length"),
        Some(&*image.len().to_string())
    );
    assert_eq!(
        reply.header("Content-Type"),
        Some("application/octet-stream")
    );
    let hash = sha256(&image);
    assert_eq!(reply.header("ETag"), Some(&*format!("\"{hash}\"")));
    assert!(reply.body == image, "other bytes");
    let copy = folder.program("copy", &reply.body);
    let said = Command::new(&copy).arg("--version").output().unwrap();
    assert!(String::from_utf8_lossy(&said.stdout).contains(env!("CARGO_PKG_VERSION")));

    let sum = server.get("/sidebike.sha256");
    assert_eq!(sum.text(), format!("{hash}  sidebike\n"));
    assert!(server.metric("sidebike_handed_out_total") > 0);
    assert!(server.metric("sidebike_file_bytes_sent_total") >= image.len() as u64);
}

#[test]
fn parts_of_it_fit_together_and_heads_have_no_body() {
    let server = Server::start();
    let image = fs::read(SIDEBIKE).unwrap();
    let size = image.len();
    // All over one connection: each answer ends where it says.
    let mut connection = server.connect();
    let mut ask = |method: &str, headers: &str| {
        connection.send(&request(method, "/sidebike", headers, b""));
        match method {
            "HEAD" => connection.read_head_only(),
            _ => connection.read(),
        }
    };
    let head = ask("HEAD", "");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("Content-Length"), Some(&*size.to_string()));
    let etag = head.header("ETag").unwrap().to_owned();
    let cases = [
        ("bytes=0-0".to_owned(), 0..1),
        ("bytes=100000-399999".into(), 100_000..400_000),
        ("bytes=-7".into(), size - 7..size),
        (format!("bytes={}-", size - 70_000), size - 70_000..size),
        (format!("bytes={}-{}", size - 1, u64::MAX), size - 1..size),
    ];
    for (range, expected) in cases {
        let part = ask("GET", &format!("Range: {range}\r\n"));
        assert_eq!(part.status, 206, "{range}");
        let said = format!("bytes {}-{}/{size}", expected.start, expected.end - 1);
        assert_eq!(part.header("Content-Range"), Some(&*said));
        assert!(part.body == image[expected], "{range}: other bytes");
    }
    let same = ask("GET", &format!("Range: bytes=5-9\r\nIf-Range: {etag}\r\n"));
    assert_eq!((same.status, &*same.body), (206, &image[5..10]));
    for (range, status) in [
        (format!("bytes={size}-"), 416),
        ("bytes=-0".into(), 416),
        ("bytes=9-5".into(), 400),
        ("bytes=x".into(), 400),
        ("bytes=99999999999999999999999-".into(), 400),
        ("=".into(), 200),
    ] {
        let reply = ask("HEAD", &format!("Range: {range}\r\n"));
        assert_eq!(reply.status, status, "{range}");
        if status == 416 {
            assert_eq!(
                reply.header("Content-Range"),
                Some(&*format!("bytes */{size}"))
            );
        }
    }
    let other = ask("HEAD", "Range: bytes=5-9\r\nIf-Range: \"other\"\r\n");
    assert_eq!(other.status, 200, "of another image a part would not fit");
    // The last one: a 304 says no length.
    let headers = format!("If-None-Match: {etag}\r\nConnection: close\r\n");
    let mut last = server.connect();
    last.send(&request("GET", "/sidebike", &headers, b""));
    let known = String::from_utf8(last.rest()).unwrap();
    assert!(known.starts_with("HTTP/1.1 304 "), "{known}");
    assert!(!known.contains("Content-Length"), "{known}");
}

#[test]
fn other_architectures_come_from_a_folder() {
    let folder = Folder::new();
    let path = Path::new(folder.path()).join("sidebike-riscv64-linux");
    fs::write(&path, "first").unwrap();
    let folder_name = folder.path().to_owned();
    let server = Server::with(&["--binaries", &folder_name]);
    let target = "/sidebike?arch=riscv64";
    assert_eq!(server.get(target).body, b"first");
    assert_eq!(
        server.get("/sidebike.sha256?arch=riscv64").text(),
        format!("{}  sidebike\n", sha256(b"first"))
    );
    // A new one takes its place.
    let new = Path::new(folder.path()).join("new");
    fs::write(&new, "second!").unwrap();
    fs::rename(&new, &path).unwrap();
    let reply = server.get(target);
    assert_eq!(reply.body, b"second!");
    assert_eq!(
        reply.header("ETag"),
        Some(&*format!("\"{}\"", sha256(b"second!")))
    );
    fs::write(&path, "").unwrap();
    assert_eq!(
        server.get(target).body,
        b"",
        "an empty file has an end, too"
    );

    let own = get(
        &server,
        &format!("/sidebike?arch={ARCH}"),
        "Range: bytes=0-3\r\n",
    );
    assert_eq!((own.status, &*own.body), (206, &b"\x7fELF"[..]));
    let missing = server.get("/sidebike?arch=sparc");
    assert_eq!(missing.status, 404);
    for word in [
        "sparc",
        ARCH,
        "riscv64",
        "sidebike-sparc-linux",
        "--binaries",
    ] {
        assert!(missing.msg().contains(word), "{word}: {}", missing.msg());
    }
    for arch in ["..%2F..%2Fetc", "", "x.y", "a%00b"] {
        assert_eq!(
            server.get(&format!("/sidebike?arch={arch}")).status,
            400,
            "{arch}"
        );
    }
    assert_eq!(server.request("POST", "/sidebike", b"x").status, 405);
    // A folder in its place.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let broken = server.get(target);
    assert_eq!(broken.status, 503, "{}", broken.text());
}

#[test]
fn settings_that_make_no_sense_are_told() {
    for (flags, word) in [
        (["--binaries", "/nowhere"], "--binaries"),
        (["--hand-out", "all"], "--hand-out: expected token or open"),
    ] {
        let mut command = Command::new(SIDEBIKE);
        command
            .args(["server", "--listen", "127.0.0.1:0"])
            .args(flags);
        let ended = command.stdin(Stdio::null()).output().unwrap();
        assert!(!ended.status.success());
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(said.contains(word) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn with_tokens_any_of_them_is_wanted_unless_it_is_open() {
    for (flags, without) in [(&[][..], 401), (&["--hand-out", "open"][..], 200)] {
        let mut command = Command::new(SIDEBIKE);
        command
            .args(["server", "--listen", "127.0.0.1:0"])
            .args(flags)
            .env("SIDEBIKE_TOKEN", "people-secret")
            .env("SIDEBIKE_AGENT_TOKEN", "agent-secret")
            .env("SIDEBIKE_READ_TOKEN", "read-secret");
        let server = Server::from_command(command);
        for target in ["/sidebike.sha256", "/sidebike"] {
            assert_eq!(
                get(&server, target, "Range: bytes=0-9\r\n").status / 100,
                without / 100
            );
            for token in ["people-secret", "agent-secret", "read-secret"] {
                let headers = format!("Authorization: Bearer {token}\r\nRange: bytes=0-9\r\n");
                let reply = get(&server, target, &headers);
                assert!(
                    matches!(reply.status, 200 | 206),
                    "{token}: {}",
                    reply.status
                );
            }
        }
        assert_eq!(get(&server, "/api/v1/task", "").status, 401);
    }
}

/// A hundred readers that stop in the middle take little memory, and others get it meanwhile.
#[test]
fn readers_that_stall_take_little_memory_and_delay_nobody() {
    let server = Server::start();
    let image = fs::read(SIDEBIKE).unwrap();
    assert_eq!(server.get("/sidebike.sha256").status, 200);
    let before = server.process.figure("VmRSS");
    let stalled: Vec<TcpStream> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream
                .write_all(&request("GET", "/sidebike", "", b""))
                .unwrap();
            let mut begun = [0; 1];
            stream.read_exact(&mut begun).unwrap();
            stream
        })
        .collect();
    thread::sleep(Duration::from_millis(300));
    let reply = server.get("/sidebike");
    assert!(reply.body == image, "other bytes");
    let grown = server.process.figure("VmRSS").saturating_sub(before);
    // 128 KiB for each, the binary several times over otherwise.
    assert!(grown < 40 * 1024, "{grown} KiB");
    drop(stalled);
    assert_eq!(server.get("/healthz").status, 200);
}

#[test]
fn a_machine_shows_its_architecture() {
    let server = Server::start();
    let _agent = server.agent("m");
    let machine = server.machines()[0].clone();
    assert_eq!(machine["arch"], ARCH, "{machine}");
    assert_eq!(machine["version"], env!("CARGO_PKG_VERSION"));
    // An older agent does not say it.
    let poll = serde_json::json!({"instance": "0123456789abcdef", "seq": 1, "label": "old", "jobs": 1, "holds": []});
    server.post("/api/v1/agent/poll", &poll);
    let machines = server.machines();
    let old = machines
        .iter()
        .find(|machine| machine["label"] == "old")
        .unwrap();
    assert!(old.get("arch").is_none(), "{old}");
}
