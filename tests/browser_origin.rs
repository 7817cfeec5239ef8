//! What pages somewhere else could make a browser do, with the headers that browsers send; and
//! patterns that are meant to take long or much.

mod bystander;
mod common;

use bystander::{alone, beside, quiet_server};
use common::http::{Reply, request};
use common::{SIDEBIKE, Server};
use serde_json::{Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

const TASK: &str = r#"{"machinePattern": "nobody", "detail": {"command": "true"}}"#;

/// What Chrome 120, Firefox 121 and Safari 17 send besides.
const CHROME: &str = "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.9\r\nConnection: keep-alive\r\nsec-ch-ua: \"Not_A Brand\";v=\"8\", \"Chromium\";v=\"120\"\r\nsec-ch-ua-mobile: ?0\r\nsec-ch-ua-platform: \"Linux\"\r\n";
const FIREFOX: &str = "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:121.0) Gecko/20100101 Firefox/121.0\r\nAccept: */*\r\nAccept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\nConnection: keep-alive\r\n";
const SAFARI: &str = "User-Agent: Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.2 Safari/605.1.15\r\nAccept: */*\r\nConnection: keep-alive\r\n";

fn ask(
    server: &Server,
    method: &str,
    target: &str,
    host: &str,
    headers: &str,
    body: &str,
) -> Reply {
    let host = if host.is_empty() {
        String::new()
    } else {
        format!("Host: {host}\r\n")
    };
    let length = body.len();
    let bytes = format!(
        "{method} {target} HTTP/1.1\r\n{host}{headers}Content-Length: {length}\r\n\r\n{body}"
    );
    let mut connection = server.connect();
    connection.send(bytes.as_bytes());
    connection.read()
}

fn fetch_headers(site: &str, mode: &str, dest: &str) -> String {
    format!("Sec-Fetch-Site: {site}\r\nSec-Fetch-Mode: {mode}\r\nSec-Fetch-Dest: {dest}\r\n")
}

/// A server on all addresses knows no name of its own; `{port}` in the tables is its port.
fn on_all_addresses(flags: &[&str]) -> Server {
    let mut command = Command::new(SIDEBIKE);
    command
        .args(["server", "--listen", "0.0.0.0:0"])
        .args(flags);
    let mut server = Server::from_command(command);
    server.address.set_ip([127, 0, 0, 1].into());
    server
}

#[test]
fn a_page_somewhere_else_changes_nothing() {
    for server in [Server::start(), on_all_addresses(&[])] {
        let port = server.address.port();
        let own = format!("localhost:{port}");
        let form = "Content-Type: application/x-www-form-urlencoded\r\n";
        let plain = "Content-Type: text/plain;charset=UTF-8\r\n";
        let foreign: Vec<(&str, String)> = vec![
            (
                "Chrome, fetch without CORS",
                format!(
                    "{CHROME}{plain}Origin: https://evil.example\r\nReferer: https://evil.example/\r\n{}",
                    fetch_headers("cross-site", "no-cors", "empty")
                ),
            ),
            (
                "Chrome, a form",
                format!(
                    "{CHROME}{form}Origin: https://evil.example\r\nUpgrade-Insecure-Requests: 1\r\n{}Sec-Fetch-User: ?1\r\n",
                    fetch_headers("cross-site", "navigate", "document")
                ),
            ),
            (
                "Chrome, a sandboxed frame",
                format!(
                    "{CHROME}{form}Origin: null\r\n{}",
                    fetch_headers("cross-site", "navigate", "iframe")
                ),
            ),
            (
                "Chrome, a page of another port",
                format!(
                    "{CHROME}{plain}Origin: http://localhost:3000\r\n{}",
                    fetch_headers("same-site", "no-cors", "empty")
                ),
            ),
            (
                "Firefox, fetch",
                format!(
                    "{FIREFOX}{plain}Origin: https://evil.example\r\n{}",
                    fetch_headers("cross-site", "no-cors", "empty")
                ),
            ),
            (
                "Firefox before 90, a form",
                format!("{FIREFOX}{form}Origin: https://evil.example\r\n"),
            ),
            (
                "Firefox, a file",
                format!("{FIREFOX}{form}Origin: null\r\n"),
            ),
            (
                "Safari, a form",
                format!("{SAFARI}{form}Origin: https://evil.example\r\n"),
            ),
            (
                "Safari, another scheme",
                format!(
                    "{SAFARI}{plain}Origin: https://localhost:{port}\r\n{}",
                    fetch_headers("cross-site", "cors", "empty")
                ),
            ),
            (
                "a name that begins so",
                format!("{CHROME}Origin: http://localhost:{port}.evil.example\r\n"),
            ),
            (
                "a name that ends so",
                format!("{CHROME}Origin: http://evil-localhost:{port}\r\n"),
            ),
            (
                "a user in front",
                format!("{CHROME}Origin: http://localhost:{port}@evil.example\r\n"),
            ),
            (
                "an extension",
                format!("{CHROME}Origin: chrome-extension://abcdefgh\r\n"),
            ),
            ("an empty origin", format!("{CHROME}Origin: \r\n")),
            (
                "only the site",
                format!("{CHROME}Sec-Fetch-Site: cross-site\r\n"),
            ),
        ];
        for (who, headers) in &foreign {
            for (method, target) in [
                ("POST", "/api/v1/task"),
                ("POST", "/api/v1/task/status/new"),
                ("POST", "/api/v1/task/x/cancel"),
                ("POST", "/api/v1/task/x/rerun"),
                ("DELETE", "/api/v1/task/x"),
                ("POST", "/api/v1/agent/poll"),
                ("POST", "/api/v1/agent/done"),
                ("POST", "/api/v1/task/status/done"),
                ("GET", "/api/v1/lifecycle/ping?path=evil"),
            ] {
                let reply = ask(&server, method, target, &own, headers, TASK);
                assert_eq!(reply.status, 403, "{who}: {method} {target}");
            }
            // Looking is harmless: nothing allows the page to read the answer.
            let reply = ask(&server, "GET", "/api/v1/task", &own, headers, "");
            assert_eq!(reply.status, 200, "{who}");
            assert!(
                reply.header("Access-Control-Allow-Origin").is_none(),
                "{who}"
            );
            // And nothing allows it to ask for more.
            let preflight = format!(
                "{headers}Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n"
            );
            let reply = ask(&server, "OPTIONS", "/api/v1/task", &own, &preflight, "");
            assert!([403, 405].contains(&reply.status), "{who}");
            assert!(
                reply.header("Access-Control-Allow-Origin").is_none(),
                "{who}"
            );
        }
        let tasks = server.get("/api/v1/task").data();
        assert_eq!(tasks, json!([]), "nothing was posted");
        assert_eq!(
            server.get("/api/v1/machine").data(),
            json!([]),
            "nobody was registered"
        );
    }
}

#[test]
fn the_own_page_and_plain_clients_work() {
    for server in [Server::start(), on_all_addresses(&[])] {
        let port = server.address.port();
        let json = "Content-Type: application/json\r\n";
        let same = fetch_headers("same-origin", "cors", "empty");
        for (who, host, headers) in [
            ("Chrome", format!("localhost:{port}"), format!("{CHROME}{json}Origin: http://localhost:{port}\r\n{same}")),
            ("Firefox", format!("127.0.0.1:{port}"), format!("{FIREFOX}{json}Origin: http://127.0.0.1:{port}\r\n{same}")),
            ("Safari", format!("[::1]:{port}"), format!("{SAFARI}{json}Origin: http://[::1]:{port}\r\n{same}")),
            ("Safari before 16", format!("localhost:{port}"), format!("{SAFARI}{json}Origin: http://localhost:{port}\r\n")),
            ("somebody who typed it", format!("localhost:{port}"), format!("{CHROME}{}", fetch_headers("none", "navigate", "document"))),
            ("curl -d", format!("127.0.0.1:{port}"), "User-Agent: curl/8.5.0\r\nAccept: */*\r\nContent-Type: application/x-www-form-urlencoded\r\n".into()),
            ("curl --json", format!("localhost:{port}"), "User-Agent: curl/8.5.0\r\nContent-Type: application/json\r\nAccept: application/json\r\n".into()),
            ("curl -T", format!("localhost:{port}"), "User-Agent: curl/8.5.0\r\n".into()),
            ("a program without Host", String::new(), "Content-Type: text/xml\r\n".into()),
        ] {
            let reply = ask(&server, "POST", "/api/v1/task", &host, &headers, TASK);
            assert_eq!(reply.status, 200, "{who}: {}", reply.text());
        }
    }
}

/// DNS rebinding: the page's own name leads to this machine, so its requests are of the same origin.
#[test]
fn on_loopback_only_its_own_names_are_its_own() {
    let server = Server::with(&["--public-url", "https://sidebike.example/x"]);
    let port = server.address.port();
    for (host, status) in [
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("localhost.", 200),
        ("app.localhost:8080", 200),
        ("127.0.0.1:9410", 200),
        ("127.1.2.3", 200),
        ("[::1]", 200),
        ("[::1]:80", 200),
        ("sidebike.example", 200),
        ("sidebike.example:8443", 200),
        ("evil.example", 403),
        ("evil.example:9410", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil-localhost", 403),
        ("xlocalhost", 403),
        ("127.0.0.1@evil.example", 403),
        ("evil.example#localhost", 403),
        ("evil.example localhost", 403),
        ("10.0.0.1", 403),
        ("169.254.169.254", 403),
        ("[fe80::1]", 403),
        ("sidebike.example.evil.example", 403),
        (":9410", 403),
        ("localhost:x", 403),
        ("localhost:99999", 403),
    ] {
        let origin = format!(
            "Origin: http://{host}\r\n{}",
            fetch_headers("same-origin", "cors", "empty")
        );
        for (method, target, headers) in [
            ("GET", "/api/v1/task", ""),
            ("GET", "/healthz", ""),
            ("POST", "/api/v1/task", ""),
        ] {
            let reply = ask(&server, method, target, host, headers, TASK);
            assert_eq!(reply.status, status, "{method} {target} as {host}");
        }
        if status == 403 {
            let reply = ask(&server, "POST", "/api/v1/task", host, &origin, TASK);
            assert_eq!(reply.status, 403, "a page of {host}");
        }
    }
    // On every address nobody can say which names are its own; the origin still has to be the host's.
    let open = on_all_addresses(&[]);
    assert_eq!(
        ask(&open, "GET", "/api/v1/task", "fleet.internal", "", "").status,
        200
    );
    let foreign = format!("Origin: http://evil.example:{port}\r\n");
    assert_eq!(
        ask(
            &open,
            "POST",
            "/api/v1/task",
            "fleet.internal",
            &foreign,
            TASK
        )
        .status,
        403
    );
}

#[test]
fn a_proxy_shows_it_under_another_name() {
    for server in [
        Server::with(&["--public-url", "https://sidebike.example"]),
        on_all_addresses(&["--public-url", "https://sidebike.example"]),
    ] {
        let upstream = format!("127.0.0.1:{}", server.address.port());
        for (host, origin, status) in [
            // The proxy passes the name on, or puts its own in.
            ("sidebike.example", "https://sidebike.example", 200),
            (&*upstream, "https://sidebike.example", 200),
            (&*upstream, "https://sidebike.example:443", 200),
            (&*upstream, "http://sidebike.example", 403),
            (&*upstream, "https://sidebike.example:8443", 403),
            (&*upstream, "https://evil.example", 403),
            (&*upstream, "https://sidebike.example.evil.example", 403),
            (&*upstream, "null", 403),
        ] {
            let headers = format!(
                "{CHROME}Origin: {origin}\r\n{}",
                fetch_headers("same-origin", "cors", "empty")
            );
            let reply = ask(&server, "POST", "/api/v1/task", host, &headers, TASK);
            assert_eq!(reply.status, status, "{origin} by {host}");
        }
    }
}

fn submit(server: &Server, pattern: &str) -> Reply {
    let task = json!({"machinePattern": pattern, "detail": {"command": "true"}});
    server.post("/api/v1/task", &task)
}

/// Labels of the greatest length, each of its own machine.
fn register(server: &Server, count: usize) {
    for n in 0..count {
        let label = format!("{}{n:05}", "a".repeat(250));
        let poll: Value = json!({"instance": format!("{n:016x}"), "seq": 1, "label": label, "jobs": 1, "wait": 0});
        assert_eq!(server.post("/api/v1/agent/poll", &poll).status, 200);
    }
}

#[test]
fn evil_patterns_take_neither_long_nor_much() {
    let _alone = alone();
    let server = quiet_server(&["--max-executions", "1000"]);
    register(&server, 50);
    beside(&server, || {
        let peak = server.process.figure("VmHWM");
        for (pattern, statuses) in [
            ("x".repeat(10 << 20), &[400, 413][..]),
            ("x".repeat(900_000), &[400]),
            ("(a*)*b".into(), &[200]),
            ("(a|aa)+$b".into(), &[200]),
            ("^(([a-z])+.)+[A-Z]([a-z])+$".into(), &[200]),
            ("(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)b".into(), &[200]),
            ("(a?){100}a{100}b".into(), &[200, 400]),
            ("a{1000}{1000}".into(), &[400]),
            (r"(\w{100}){100}".into(), &[400]),
            (r"[\w--\d]{1,99}".into(), &[200, 400]),
            (format!("{}x{}", "(".repeat(500), ")".repeat(500)), &[400]),
            (
                format!("{}x{}", "(?:".repeat(100), ")*".repeat(100)),
                &[400],
            ),
            (r"\p{L}".into(), &[200, 400]),
            ("(?P<n>a)(?P<n>b)".into(), &[400]),
            (r"(a)\1".into(), &[400]),
            ("a++".into(), &[200, 400]),
            ("[".into(), &[400]),
            ("".into(), &[400]),
        ] {
            let started = Instant::now();
            let reply = submit(&server, &pattern);
            let shown: String = pattern.chars().take(40).collect();
            assert!(
                statuses.contains(&reply.status),
                "{} for {shown}",
                reply.status
            );
            assert!(
                reply.body.len() < 64 * 1024,
                "{} bytes for {shown}",
                reply.body.len()
            );
            // A build that is not optimized, on a busy machine.
            assert!(
                started.elapsed() < Duration::from_secs(3),
                "{:?} for {shown}",
                started.elapsed()
            );
        }
        let grown = server.process.figure("VmHWM") - peak;
        eprintln!("grown by {grown} KiB");
        assert!(grown < 64 * 1024, "grown by {grown} KiB");
    });
}

#[test]
fn thousands_of_patterns_have_so_much_room() {
    let _alone = alone();
    let server = quiet_server(&[]);
    register(&server, 5);
    // The pattern of the well-behaved is in use before the others come.
    server.submit(
        json!({"machinePattern": "^well-behaved$", "lateJoin": true, "detail": {"argv": ["true"]}}),
    );
    let peak = server.process.figure("VmHWM");
    beside(&server, || {
        let mut full = 0;
        for n in 0..1_500 {
            // As large as they may get when compiled, more or less.
            let reply = submit(&server, &format!(r"^nobody-\w{{1,2}}-[a-z]{{1,99}}-{n}$"));
            match reply.status {
                200 => {}
                503 => full += 1,
                other => panic!("refused with {other}: {}", reply.text()),
            }
        }
        eprintln!("{full} of 1500 found no room");
    });
    let grown = server.process.figure("VmHWM") - peak;
    eprintln!("grown by {grown} KiB");
    assert!(grown < 300 * 1024, "grown by {grown} KiB");
    let log = server.process.log().join("\n");
    assert!(!log.contains("panicked"), "{log}");
    let started = Instant::now();
    assert_eq!(
        server
            .raw(&request(
                "GET",
                "/api/v1/task",
                "Connection: close\r\n",
                b""
            ))
            .status,
        200
    );
    assert!(started.elapsed() < Duration::from_secs(3));
}
