//! What breaks between a command or an agent and its server in real networks: proxies, names, authorities, encodings,
//! half-closed connections. The numbers are those of the list of faults that users found.
#![cfg(all(
    feature = "server",
    feature = "agent",
    feature = "cli",
    feature = "tls"
))]

mod authority;
mod common;

use authority::{Authority, OWN_NAMES, secure, server};
use common::http::request;
use common::said::Said;
use common::{Agent, Folder, Process, SIDEBIKE, Server, id, task, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

/// A proxy that opens tunnels, or answers with this status instead. It notes who was asked for.
struct Proxy {
    address: SocketAddr,
    asked_for: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(refusal: Option<&'static str>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked_for = Arc::new(Mutex::new(Vec::new()));
        let notes = asked_for.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let notes = notes.clone();
                thread::spawn(move || tunnel(client, refusal, &notes));
            }
        });
        Proxy { address, asked_for }
    }

    fn asked_for(&self) -> Vec<String> {
        self.asked_for.lock().unwrap().clone()
    }
}

fn tunnel(mut client: TcpStream, refusal: Option<&str>, notes: &Mutex<Vec<String>>) -> Option<()> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let target = head.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    notes.lock().unwrap().push(target.clone());
    if let Some(status) = refusal {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
        return client.write_all(answer.as_bytes()).ok();
    }
    let mut server = TcpStream::connect(target).ok()?;
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
    let (mut from_server, mut to_client) = (server.try_clone().ok()?, client.try_clone().ok()?);
    thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut client, &mut server);
    server.shutdown(Shutdown::Both).ok()
}

/// `sidebike machines` with this environment.
fn machines(address: &str, env: &[(&str, &str)]) -> Said {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["machines", "--registry-address", address])
        .envs(env.iter().copied())
        .stdin(Stdio::null());
    Said::of(command.output().unwrap())
}

#[test]
fn fault_14_no_proxy_is_honoured_as_curl_does() {
    let server = Server::start();
    let port = server.address.port();
    let proxy = Proxy::start(None);
    let url = format!("http://{}", proxy.address);
    let exempt = [
        "localhost, 127.0.0.1".to_owned(),
        "a.example 127.0.0.0/8".to_owned(),
        format!("127.0.0.1:{port}"),
        "*".to_owned(),
    ];
    let address = server.address.to_string();
    for list in &exempt {
        let said = machines(&address, &[("HTTP_PROXY", &url), ("NO_PROXY", list)]);
        assert_eq!(said.code, 0, "{list}: {said:?}");
        assert_eq!(proxy.asked_for(), Vec::<String>::new(), "{list}");
    }
    let by_name = format!("localhost:{port}");
    for list in [".localhost", "LOCALHOST", "x,*.localhost"] {
        let said = machines(&by_name, &[("ALL_PROXY", &url), ("no_proxy", list)]);
        assert_eq!(said.code, 0, "{list}: {said:?}");
        assert_eq!(proxy.asked_for(), Vec::<String>::new(), "{list}");
    }
    for (n, list) in ["", "127.0.0.1:1", "10.0.0.0/8", "27.0.0.1"]
        .iter()
        .enumerate()
    {
        let said = machines(&address, &[("HTTP_PROXY", &url), ("NO_PROXY", list)]);
        assert_eq!(said.code, 0, "{list}: {said:?}");
        assert_eq!(proxy.asked_for(), vec![address.clone(); n + 1], "{list}");
    }
    // Agents read the same variables.
    let env = [("HTTP_PROXY", &*url), ("NO_PROXY", "127.0.0.0/8 ")];
    let agent = Agent::start(server.address, "m", &env);
    server.expect(&[&agent]);
    assert_eq!(proxy.asked_for().len(), 4);
}

#[test]
fn fault_14_a_proxy_that_refuses_is_named() {
    let server = Server::start();
    let proxy = Proxy::start(Some("403 Forbidden"));
    let with_password = format!("http://user:secret@{}", proxy.address);
    let env = [("HTTPS_PROXY", &*with_password)];
    let said = machines(&server.address.to_string(), &env);
    let name = format!(
        "the proxy http://{} (HTTPS_PROXY) opens no tunnel",
        proxy.address
    );
    assert!(said.err.contains(&name), "{}", said.err);
    assert!(
        said.err.contains("403") && said.err.contains("NO_PROXY"),
        "{}",
        said.err
    );
    assert!(
        said.code != 0 && !said.err.contains("secret"),
        "{}",
        said.err
    );
    let agent = Agent::start(server.address, "m", &env);
    agent.0.logged(&name);

    // One that is not there.
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{gone}");
    let said = machines(&server.address.to_string(), &[("ALL_PROXY", &url)]);
    let name = format!("(by the proxy {url} (ALL_PROXY))");
    assert!(said.err.contains(&name), "{}", said.err);
}

#[test]
fn fault_14_a_proxy_of_an_unknown_kind_is_refused() {
    let server = Server::start();
    let address = server.address.to_string();
    for (scheme, value) in [
        ("socks5", "socks5://127.0.0.1:1080"),
        ("socks5h", "socks5h://127.0.0.1:1080"),
        ("gopher", "gopher://127.0.0.1:70"),
    ] {
        let said = machines(&address, &[("ALL_PROXY", value)]);
        let words =
            format!("ALL_PROXY: a proxy of the kind {scheme:?} is not supported; give http://");
        assert!(said.err.contains(&words), "{}", said.err);
        assert_ne!(said.code, 0);
        let mut agent = Agent::start(server.address, "m", &[("ALL_PROXY", value)]);
        agent.0.logged(&words);
        assert!(!agent.0.ended().success());
        let exempt = [("ALL_PROXY", value), ("NO_PROXY", "127.0.0.1")];
        assert_eq!(machines(&address, &exempt).code, 0);
    }
    assert_eq!(server.machines(), Vec::<Value>::new());
}

#[test]
fn fault_15_a_refused_name_is_not_called_a_wrong_token() {
    let server = Server::start();
    let port = server.address.port();
    // A name that the server does not know as its own, by a proxy that leads there all the same.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let target = server.address;
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && client.read_exact(&mut byte).is_ok() {
                    head.push(byte[0]);
                }
                let mut server = TcpStream::connect(target).unwrap();
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
                let mut back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || std::io::copy(&mut back.0, &mut back.1));
                let _ = std::io::copy(&mut client, &mut server);
            });
        }
    });
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["agent", "--machine-label", "m", "--registry-address"])
        .arg(format!("registry.example:{port}"))
        .env("ALL_PROXY", &proxy);
    let agent = Process::start(command);
    let said = agent.logged("the server refuses this agent: ");
    assert!(
        said.contains("403: Host: names none of this server's addresses; see --public-url"),
        "{said}"
    );
    let log = agent.log().join("\n");
    assert!(!log.contains("wants a token"), "{log}");
}

#[test]
fn fault_16_agents_read_the_authorities_again() {
    let (folder, first) = (Folder::new(), Authority::new());
    first.vouch(&folder, &OWN_NAMES);
    let ca = first.file(&folder, "ca");
    let server = server(&folder, &[]);
    let mut command = Command::new(SIDEBIKE);
    let url = format!("https://localhost:{}", server.address.port());
    command
        .args(["agent", "--machine-label", "m", "--registry-address", &url])
        .args(["--ca", &ca]);
    let agent = Process::start(command);
    let is_online = || {
        let mut client = secure(server.address, &first);
        client.send(&request("GET", "/metrics", "", b""));
        let page = client.read();
        page.text()
            .lines()
            .any(|line| line == "sidebike_machines{state=\"online\"} 1")
    };
    wait_for("the agent is online", is_online);
    agent.signal(Signal::HUP);
    agent.logged("HUP: the same authorities were read (--ca)");

    // Another authority: first for the server, then in the agent's file, without a word to the agent.
    let second = Authority::new();
    second.vouch(&folder, &OWN_NAMES);
    let address = server.address.to_string();
    drop(server);
    let (cert, key) = (folder.file("cert"), folder.file("key"));
    let server = Server::listening_on(&address, &["--tls-cert", &cert, "--tls-key", &key]);
    second.file(&folder, "ca");
    agent.logged("the authorities of --ca have changed: using the new ones");
    agent.logged("the server is back");
    let online = || {
        let mut client = secure(server.address, &second);
        client.send(&request("GET", "/api/v1/machine", "", b""));
        client.read().data()[0]["state"] == "online"
    };
    wait_for("the agent is online again", online);
    let mut client = secure(server.address, &second);
    let body = json!({"machinePattern": "m", "detail": {"argv": ["true"]}}).to_string();
    client.send(&request(
        "POST",
        "/api/v1/task?wait=60s",
        "",
        body.as_bytes(),
    ));
    assert_eq!(client.read().data()["state"], "succeeded");

    // A file that cannot be used: those in use stay.
    std::fs::write(&ca, "nothing").unwrap();
    agent.signal(Signal::HUP);
    agent.logged("; the authorities in use stay in use");
    client.send(&request(
        "POST",
        "/api/v1/task?wait=60s",
        "",
        body.as_bytes(),
    ));
    assert_eq!(client.read().data()["state"], "succeeded");
}

/// The text as UTF-16 with a byte order mark.
fn utf16(text: &str, little: bool) -> Vec<u8> {
    let units = std::iter::once(0xFEFF).chain(text.encode_utf16());
    let bytes = units.flat_map(|unit| match little {
        true => unit.to_le_bytes(),
        false => unit.to_be_bytes(),
    });
    bytes.collect()
}

#[test]
fn fault_17_encodings_are_taken_or_named() {
    let server = Server::start();
    let _agent = server.agent("m");
    let json = task("echo hi").to_string();
    let marked = [b"\xEF\xBB\xBF", json.as_bytes()].concat();
    let taken = server.request("POST", "/api/v1/task?wait=60s", &marked);
    assert_eq!(taken.data()["state"], "succeeded");

    let form = format!("task={}", json.replace('"', "%22"));
    let encoded = json.replace('"', "%22").replace('{', "%7B");
    let multipart = format!(
        "--b\r\nContent-Disposition: form-data; name=\"task\"; filename=\"t\"\r\n\r\n{json}\r\n--b--\r\n"
    );
    let gzip = [&[0x1F, 0x8B, 8, 0], json.as_bytes()].concat();
    let zstd = [&[0x28, 0xB5, 0x2F, 0xFD], json.as_bytes()].concat();
    let utf16_unmarked = utf16(&json, true)[2..].to_vec();
    for (body, words) in [
        (utf16(&json, true), "is UTF-16; send it as UTF-8"),
        (utf16(&json, false), "is UTF-16; send it as UTF-8"),
        (utf16_unmarked, "is UTF-16; send it as UTF-8"),
        (gzip, "is compressed (gzip); send it as it is"),
        (zstd, "is compressed (zstd); send it as it is"),
        (form.into_bytes(), "is a form; expected the JSON itself"),
        (encoded.into_bytes(), "is a form; expected the JSON itself"),
        (
            multipart.into_bytes(),
            "is a multipart form; expected the JSON itself",
        ),
    ] {
        let reply = server.request("POST", "/api/v1/task", &body);
        assert_eq!(reply.status, 400, "{words}: {}", reply.text());
        let msg = reply.msg();
        assert!(
            msg.starts_with("the task: ") && msg.contains(words),
            "{words}: {msg}"
        );
    }
    let latin = [b"{\"name\":\"", &b"\xFC\"}"[..]].concat();
    let reply = server.request("POST", "/api/v1/task", &latin);
    assert_eq!(reply.msg(), "name: is not UTF-8; send the body as UTF-8");
    // What it says can be done: curl's own type of content does no harm.
    let headers = "Connection: close\r\nContent-Type: application/x-www-form-urlencoded\r\n";
    let reply = server.raw(&request("POST", "/api/v1/task", headers, json.as_bytes()));
    assert_eq!(reply.status, 200);
}

#[test]
fn fault_18_who_has_closed_the_sending_side_is_answered() {
    let server = Server::start();
    let submitted = server.submit(json!({"machinePattern": "m", "mode": "any",
        "detail": {"command": "echo hi"}}));
    let target = format!("/api/v1/task/{}?wait=60s", id(&submitted));
    let posted = task("echo hi").to_string();
    let requests = [
        request("GET", &target, "", b""),
        request("POST", "/api/v1/task?wait=60s", "", posted.as_bytes()),
    ];
    let mut waiting = Vec::new();
    for bytes in &requests {
        let mut stream = TcpStream::connect(server.address).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        waiting.push(stream);
    }
    wait_for("both are held", || {
        server.metric("sidebike_held_requests") == 2
    });
    let _agent = server.agent("m");
    for mut stream in waiting {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains(r#""state":"succeeded""#), "{answer}");
    }
}
