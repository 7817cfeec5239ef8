//! https, from outside: the real server and agent with certificates made for the test.
//!
//! To add a case: make an [`Authority`], let it vouch for a server's files, and speak to that server
//! as an agent or with [`secure`].
#![cfg(all(feature = "server", feature = "agent", feature = "tls"))]

mod authority;
mod common;

use authority::{Authority, OWN_NAMES, Secure, Stream, secure, server, stream, stream_of};
use common::http::{Connection, Reply, request};
use common::{Folder, Process, SIDEBIKE, Server, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

fn agent(address: SocketAddr, flags: &[&str]) -> Process {
    let mut command = Command::new(SIDEBIKE);
    let url = format!("https://localhost:{}", address.port());
    command
        .args(["agent", "--machine-label", "m", "--registry-address", &url])
        .args(flags);
    Process::start(command)
}

fn ask(client: &mut Secure, method: &str, target: &str, body: &Value) -> Reply {
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    client.send(&request(method, target, "", body.as_bytes()));
    client.read()
}

fn online(server: &Server, authority: &Authority, count: usize) {
    wait_for("the agents are online", || {
        let mut client = secure(server.address, authority);
        let machines = ask(&mut client, "GET", "/api/v1/machine", &Value::Null).data();
        let machines = machines.as_array().unwrap();
        machines.iter().filter(|m| m["state"] == "online").count() == count
    });
}

#[test]
fn an_agent_works_over_https() {
    let (folder, authority) = (Folder::new(), Authority::new());
    authority.vouch(&folder, &OWN_NAMES);
    let ca = authority.file(&folder, "ca");
    let server = server(&folder, &[]);
    server.process.logged(", https only");
    let _agent = agent(server.address, &["--ca", &ca]);
    online(&server, &authority, 1);

    // Its poll is held now; the one who posts waits on a connection that is kept alive.
    let mut times = Vec::new();
    for _ in 0..10 {
        let mut client = secure(server.address, &authority);
        assert_eq!(
            ask(&mut client, "GET", "/healthz", &Value::Null).status,
            200
        );
        let asked = Instant::now();
        let task = json!({"machinePattern": "m", "detail": {"argv": ["echo", "hi"]}});
        let task = ask(&mut client, "POST", "/api/v1/task?wait=30s", &task).data();
        times.push(asked.elapsed());
        assert_eq!(task["state"], "succeeded", "{task}");
        thread::sleep(Duration::from_millis(50));
    }
    times.sort();
    println!("from the post to the result: {times:?}");
    assert!(times[5] < Duration::from_millis(300), "{times:?}");

    // Much of everything.
    let line = "head -c 900000 /dev/zero | tr '\\0' x";
    let task =
        json!({"machinePattern": "m", "detail": {"command": line, "stdin": "x".repeat(500_000)}});
    let mut client = secure(server.address, &authority);
    let task = ask(&mut client, "POST", "/api/v1/task?wait=30s", &task).data();
    assert_eq!(task["result"][0]["stdout"].as_str().unwrap().len(), 900_000);
}

#[test]
fn a_file_comes_as_it_went() {
    let (folder, authority) = (Folder::new(), Authority::new());
    authority.vouch(&folder, &OWN_NAMES);
    let server = server(&folder, &[]);
    let mut client = secure(server.address, &authority);
    // No two of its parts are the same.
    let file: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    client.send(&request("PUT", "/api/v1/file/numbers", "", &file));
    let hash = client.read().data()["sha256"].clone();
    let blob = format!("/api/v1/blob/{}", hash.as_str().unwrap());
    client.send(&request("GET", &blob, "", b""));
    assert!(client.read().body == file);
    client.send(&request("GET", &blob, "Range: bytes=1-1900000\r\n", b""));
    assert!(client.read().body == file[1..=1_900_000]);
}

#[test]
fn a_held_request_keeps_nobody_waiting() {
    let (folder, authority) = (Folder::new(), Authority::new());
    authority.vouch(&folder, &OWN_NAMES);
    let server = server(&folder, &[]);
    let mut client = secure(server.address, &authority);
    let task = json!({"machinePattern": "m", "ttl": "1m", "detail": {"command": "true"}});
    let id = ask(&mut client, "POST", "/api/v1/task", &task).data()["id"].clone();
    let target = format!("/api/v1/task/{}", id.as_str().unwrap());

    // Twenty who wait, each with another request behind it that is answered after it.
    let mut waiting: Vec<Secure> = (0..20)
        .map(|_| secure(server.address, &authority))
        .collect();
    for client in &mut waiting {
        client.send(&request("GET", &format!("{target}?wait=60s"), "", b""));
        client.send(&request("GET", "/healthz", "", b""));
    }
    wait_for("they are held", || {
        let metrics = ask(&mut client, "GET", "/metrics", &Value::Null);
        metrics
            .text()
            .lines()
            .any(|line| line.contains("held") && line.ends_with(" 20"))
    });
    wait_for("no threads wait with them", || {
        server.process.figure("Threads") < 15
    });
    ask(
        &mut client,
        "POST",
        &format!("{target}/cancel"),
        &Value::Null,
    )
    .data();
    let canceled = Instant::now();
    for client in &mut waiting {
        let reply = client.read();
        assert_eq!(reply.data()["state"], "canceled");
        assert_eq!(reply.header("Connection"), None);
        assert_eq!(client.read().data(), "alive");
    }
    assert!(canceled.elapsed() < Duration::from_secs(5));
}

#[test]
fn only_who_is_vouched_for_is_believed() {
    let (folder, authority) = (Folder::new(), Authority::new());
    authority.vouch(&folder, &OWN_NAMES);
    let ca = authority.file(&folder, "ca");
    let other = Authority::new().file(&folder, "other");
    let server = server(&folder, &[]);
    let distrustful = agent(server.address, &["--ca", &other]);
    let hint = distrustful.logged("UnknownIssuer");
    assert!(hint.contains("--ca or SIDEBIKE_CA"), "{hint}");
    // Nobody's certificate: the system knows no such authority, or none at all.
    let mut by_system = agent(server.address, &[]);
    wait_for("it says no", || {
        let log = by_system.log().join("\n");
        log.contains("UnknownIssuer") || log.contains("name a file of them with --ca")
    });
    by_system.is_alive();
    // The certificate of another host.
    let elsewhere = Folder::new();
    authority.vouch(&elsewhere, &["registry.example"]);
    let (cert, key) = (elsewhere.file("cert"), elsewhere.file("key"));
    let foreign = Server::with(&["--tls-cert", &cert, "--tls-key", &key]);
    agent(foreign.address, &["--ca", &ca]).logged("not valid for name");
    online(&server, &authority, 0);
    // And who speaks something else.
    let plain = Server::start();
    agent(plain.address, &["--ca", &ca]).logged("maybe it speaks http");
    let mut command = Command::new(SIDEBIKE);
    let address = server.address.to_string();
    command.args(["agent", "--registry-address", &address]);
    Process::start(command).logged("maybe it speaks https");
}

#[test]
fn a_new_certificate_needs_no_restart() {
    let (folder, first) = (Folder::new(), Authority::new());
    first.vouch(&folder, &OWN_NAMES);
    let server = server(&folder, &[]);
    let health = |authority: &Authority| {
        let mut client = secure(server.address, authority);
        client.send(&request("GET", "/healthz", "", b""));
        client.try_read(true).map(|reply| reply.status)
    };
    let mut kept = secure(server.address, &first);
    assert_eq!(ask(&mut kept, "GET", "/healthz", &Value::Null).status, 200);

    let second = Authority::new();
    second.vouch(&folder, &OWN_NAMES);
    server.process.signal(Signal::HUP);
    server.process.logged("the certificate was read again");
    assert_eq!(health(&second), Some(200));
    // Who does not believe is not left waiting for the end of the handshake.
    let asked = Instant::now();
    assert_eq!(health(&first), None);
    assert!(asked.elapsed() < Duration::from_secs(20));
    assert_eq!(ask(&mut kept, "GET", "/healthz", &Value::Null).status, 200);

    // Half of a change: the pair in use stays.
    let key = std::fs::read(folder.file("key")).unwrap();
    Authority::new().vouch(&folder, &OWN_NAMES);
    std::fs::write(folder.file("key"), key).unwrap();
    server.process.signal(Signal::HUP);
    server.process.logged("the certificate in use stays in use");
    assert_eq!(health(&second), Some(200));
}

#[test]
fn handshakes_that_never_come_delay_nobody() {
    let (folder, authority) = (Folder::new(), Authority::new());
    authority.vouch(&folder, &OWN_NAMES);
    let ca = authority.file(&folder, "ca");
    let server = server(&folder, &["--max-request-time", "3s"]);
    let _agent = agent(server.address, &["--ca", &ca]);
    online(&server, &authority, 1);
    let opened = Instant::now();
    let mut silent: Vec<TcpStream> = (0..50)
        .map(|_| TcpStream::connect(server.address).unwrap())
        .collect();
    // The first bytes of a ClientHello, and what is none.
    let mut half: Vec<TcpStream> = (0..50)
        .map(|_| TcpStream::connect(server.address).unwrap())
        .collect();
    for stream in &mut half {
        stream
            .write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3])
            .unwrap();
    }
    let mut plain = TcpStream::connect(server.address).unwrap();
    plain
        .write_all(&request("GET", "/healthz", "", b""))
        .unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");

    let mut times = Vec::new();
    for _ in 0..50 {
        let asked = Instant::now();
        let mut client = secure(server.address, &authority);
        assert_eq!(
            ask(&mut client, "GET", "/healthz", &Value::Null).status,
            200
        );
        times.push(asked.elapsed());
    }
    times.sort();
    println!("handshake and answer: {:?} .. {:?}", times[0], times[49]);
    assert!(times[45] < Duration::from_millis(300), "{times:?}");

    // And they are cut when their time is up.
    for stream in silent.iter_mut().chain(&mut half) {
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let cut = opened.elapsed();
    assert!(cut < Duration::from_secs(30), "{cut:?}");
    online(&server, &authority, 1);
}

#[test]
fn too_much_is_refused_or_cut() {
    let (folder, authority) = (Folder::new(), Authority::new());
    authority.vouch(&folder, &OWN_NAMES);
    let server = server(&folder, &["--max-request-time", "3s"]);
    // A client that is not read any more notices when it has waited long enough.
    let impatient = || {
        let stream = stream(server.address, &authority);
        let short = Some(Duration::from_secs(3));
        stream.sock.set_read_timeout(short).unwrap();
        stream
    };
    let body = json!("x".repeat(8 << 20));
    let mut client = Connection::over(impatient());
    let reply = ask(&mut client, "POST", "/api/v1/task", &body);
    assert_eq!(reply.status, 413);
    // Headers without an end.
    let before = server.process.figure("VmRSS");
    let mut stream = impatient();
    stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let line = format!("X-A: {}\r\n", "x".repeat(8_000)).into_bytes();
    // It keeps some records before it says that it cannot write.
    let started = Instant::now();
    let patient = || started.elapsed() < Duration::from_secs(10);
    let sent = (0..20_000).take_while(|_| patient() && stream.write_all(&line).is_ok());
    let sent = sent.count() * line.len();
    assert!(sent < 100 << 20, "{sent} bytes of headers");
    let grown = server.process.figure("VmRSS").saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB");
}

/// A client of this version of TLS.
fn versioned(
    server: &Server,
    authority: &Authority,
    version: &'static rustls::SupportedProtocolVersion,
) -> Stream {
    let stream = stream_of(server.address, authority, &[version]);
    let short = Some(Duration::from_secs(20));
    stream.sock.set_read_timeout(short).unwrap();
    stream
}

/// No head is believed that is not believed without TLS, and each refusal says the same.
#[test]
fn heads_are_judged_as_without_tls() {
    let (folder, authority) = (Folder::new(), Authority::new());
    authority.vouch(&folder, &OWN_NAMES);
    let server = server(&folder, &[]);
    let threads = server.process.figure("Threads");
    let rest = "Host: localhost\r\n\r\n";
    let headers = |count: usize| "X-A: b\r\n".repeat(count);
    let long = |bytes: usize| format!("X-A: {}\r\n", "x".repeat(bytes));
    let spaces = |bytes: usize| format!("X-A: {}b\r\n", " ".repeat(bytes));
    let good = "GET /healthz HTTP/1.1\r\n";
    // In parts of so many bytes, each a record of its own.
    let cases: Vec<(String, usize, u16)> = vec![
        (format!("{good}{rest}"), 1, 200),
        (format!("{good}{}{rest}", headers(63)), 100_000, 200),
        (format!("{good}{}{rest}", headers(64)), 7, 431),
        (format!("{good}{}{rest}", long(17_000)), 100_000, 431),
        (format!("{good}{}{rest}", spaces(17_000)), 999, 431),
        (format!("{good}X: y\r\n folded: z\r\n{rest}"), 100_000, 400),
        (format!("{good}Host: elsewhere\r\n{rest}"), 100_000, 400),
        (format!("GET /healthz HTTP/2.0\r\n{rest}"), 100_000, 505),
        (format!("GET /healthz HTTP/3.0\r\n{rest}"), 1, 505),
        (format!("GET /healthz HTTP/2.0 HTTP/1.1\r\n{rest}"), 5, 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(), 100_000, 505),
        ("x".repeat(40_000), 100_000, 431),
    ];
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (head, size, status) in &cases {
            let mut stream = versioned(&server, &authority, version);
            let asked = Instant::now();
            for part in head.as_bytes().chunks(*size) {
                // Whoever is refused may be cut before all was sent.
                if stream.write_all(part).is_err() || stream.flush().is_err() {
                    break;
                }
            }
            let mut client = Connection::over(stream);
            let reply = client.read().status;
            let start = &head[..30.min(head.len())];
            assert_eq!(reply, *status, "{start:?} in parts of {size}");
            assert!(asked.elapsed() < Duration::from_secs(10), "{start:?}");
        }
        // Behind another request, whether its answer was waited for or not.
        let bad = format!("GET /healthz HTTP/2.0\r\n{rest}");
        for _ in 0..20 {
            let mut client = Connection::over(versioned(&server, &authority, version));
            client.send(format!("{good}{rest}").as_bytes());
            assert_eq!(client.read().status, 200);
            client.send(bad.as_bytes());
            assert_eq!(client.read().status, 505);
            let mut client = Connection::over(versioned(&server, &authority, version));
            client.send(format!("{good}{rest}{bad}").as_bytes());
            assert_eq!(client.read().status, 200);
            let reply = client.read();
            assert_eq!(
                (reply.status, reply.header("Connection")),
                (505, Some("close"))
            );
        }
    }
    wait_for("their threads are gone", || {
        server.process.figure("Threads") <= threads + 2
    });
}

/// Who waits for answers keeps the connection, whatever parts the requests come in.
#[test]
fn one_connection_takes_many_requests() {
    let (folder, authority) = (Folder::new(), Authority::new());
    authority.vouch(&folder, &OWN_NAMES);
    let server = server(&folder, &[]);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let mut client = Connection::over(versioned(&server, &authority, version));
        for bytes in [0, 10, 2_000, 40_000, 900_000] {
            let task = json!({"machinePattern": "m", "ttl": "1m",
                "detail": {"command": "true", "stdin": "x".repeat(bytes)}});
            let request = request("POST", "/api/v1/task", "", task.to_string().as_bytes());
            let (first, second) = request.split_at(request.len() / 2);
            for part in [&first[..10], &first[10..], second] {
                client.send(part);
            }
            let reply = client.read();
            assert_eq!(
                (reply.status, reply.header("Connection")),
                (200, None),
                "{bytes}"
            );
        }
    }
}

#[test]
fn files_that_cannot_be_used_are_errors() {
    let (folder, authority) = (Folder::new(), Authority::new());
    authority.vouch(&folder, &OWN_NAMES);
    let (cert, key) = (folder.file("cert"), folder.file("key"));
    let other = Folder::new();
    authority.vouch(&other, &OWN_NAMES);
    let other_key = other.file("key");
    let garbage = folder.file("garbage");
    std::fs::write(
        &garbage,
        "-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let no_der = folder.file("no-der");
    std::fs::write(
        &no_der,
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let ca = |file| {
        vec![
            "agent",
            "--registry-address",
            "https://localhost",
            "--ca",
            file,
        ]
    };
    let pair = |cert, key| {
        vec![
            "server",
            "--listen",
            "127.0.0.1:0",
            "--tls-cert",
            cert,
            "--tls-key",
            key,
        ]
    };
    for (arguments, words) in [
        (
            vec!["server", "--tls-cert", &cert],
            "--tls-cert: needs --tls-key",
        ),
        (
            vec!["server", "--tls-key", &key],
            "--tls-key: needs --tls-cert",
        ),
        (
            pair("/no/such", &key),
            "--tls-cert: /no/such: cannot be read",
        ),
        (
            pair(&cert, "/no/such"),
            "--tls-key: /no/such: cannot be read",
        ),
        (
            pair(&cert, &other_key),
            "this key does not belong to the certificate",
        ),
        (pair(&key, &key), "there is no certificate in it"),
        (pair(&cert, &cert), "there is no private key in it"),
        (pair(&garbage, &key), "it is damaged"),
        (pair(&no_der, &key), "its first certificate cannot be used"),
        (ca("/no/such"), "--ca: /no/such: cannot be read"),
        (ca(&key), "there is no certificate in it"),
        (ca(&no_der), "cannot be used"),
    ] {
        let output = Command::new(SIDEBIKE).args(&arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        let code = if words.contains(": needs --tls") {
            2
        } else {
            1
        };
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        let last = error.lines().last().unwrap();
        assert!(
            last.starts_with("sidebike: ") && last.contains(words),
            "{arguments:?}: {error}"
        );
    }
}
