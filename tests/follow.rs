//! Output while it comes: what a follower sees, that nothing is lost or repeated, and that followers
//! do the server no harm.

mod common;

use common::{Folder, Server, id, task, wait_for};
use rustix::net::sockopt;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// A stream that is being read: chunks are taken apart as they come.
struct Stream {
    socket: TcpStream,
    raw: Vec<u8>,
    head: String,
    /// What has come of the body.
    body: Vec<u8>,
    /// The last chunk has come.
    is_whole: bool,
    is_over: bool,
}

impl Stream {
    fn open(server: &Server, target: &str) -> Stream {
        Stream::of(
            server,
            &format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        )
    }

    fn of(server: &Server, request: &str) -> Stream {
        let mut socket = TcpStream::connect(server.address).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        let mut stream = Stream {
            socket,
            raw: Vec::new(),
            head: String::new(),
            body: Vec::new(),
            is_whole: false,
            is_over: false,
        };
        while stream.head.is_empty() && !stream.is_over {
            stream.read();
        }
        stream
    }

    fn read(&mut self) {
        let mut buffer = [0; 64 * 1024];
        match self.socket.read(&mut buffer) {
            Ok(0) => self.is_over = true,
            Ok(n) => self.raw.extend_from_slice(&buffer[..n]),
            Err(error) => panic!("{error} after {:?}", self.text()),
        }
        if self.head.is_empty()
            && let Some(at) = self.raw.windows(4).position(|w| w == b"\r\n\r\n")
        {
            self.head = String::from_utf8(self.raw.drain(..at + 4).collect()).unwrap();
        }
        if self.head.contains("Transfer-Encoding: chunked") {
            while self.take_chunk() {}
        } else if !self.head.is_empty() {
            self.body.append(&mut self.raw);
        }
    }

    fn take_chunk(&mut self) -> bool {
        let Some(at) = self.raw.windows(2).position(|w| w == b"\r\n") else {
            return false;
        };
        let size = std::str::from_utf8(&self.raw[..at]).unwrap();
        let size = usize::from_str_radix(size, 16).expect("the size of a chunk");
        let end = at + 2 + size;
        if self.raw.len() < end + 2 {
            return false;
        }
        assert_eq!(&self.raw[end..end + 2], b"\r\n");
        self.body.extend_from_slice(&self.raw[at + 2..end]);
        self.is_whole |= size == 0;
        self.raw.drain(..end + 2);
        true
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn until(&mut self, what: &str) -> String {
        while !self.text().contains(what) {
            assert!(!self.is_over, "{what:?} never came: {:?}", self.text());
            self.read();
        }
        self.text()
    }

    /// All of it; it must end as it should.
    fn whole(mut self) -> String {
        while !self.is_over {
            self.read();
        }
        assert!(self.is_whole, "cut off: {:?}", self.text());
        self.text()
    }
}

fn output_of(task: &Value, query: &str) -> String {
    format!("/api/v1/task/{}/output?{query}", id(task))
}

/// A task whose command goes on when the file `name` is there.
fn gated(folder: &Folder, command: &str) -> Value {
    let mut posted = task(&command.replace("GATE", "while [ ! -e gate ]; do sleep 0.02; done"));
    posted["detail"]["workspace"] = folder.path().into();
    posted
}

fn open_gate(folder: &Folder) {
    std::fs::write(folder.file("gate"), "").unwrap();
}

#[test]
fn what_is_written_is_seen_at_once() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agent = server.agent("m");
    let started = Instant::now();
    let task = server.submit(gated(&folder, "printf a; GATE; echo b; echo c >&2"));
    let mut stream = Stream::open(&server, &output_of(&task, "follow=1"));
    assert!(stream.head.starts_with("HTTP/1.1 200"), "{}", stream.head);
    assert!(stream.head.contains("Content-Type: text/plain"));
    assert_eq!(stream.until("a"), "a");
    assert!(started.elapsed() < Duration::from_millis(1_500));
    assert_eq!(server.task(id(&task))["state"], "running");
    open_gate(&folder);
    assert_eq!(stream.whole(), "ab\nc\n");
}

#[test]
fn several_machines_come_in_whole_lines() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = (server.agent("m1"), server.agent("m2"));
    let command = "echo $SIDEBIKE_MACHINE_LABEL one; printf half; GATE; echo ' line'; printf rest";
    let task = server.submit(gated(&folder, command));
    let mut stream = Stream::open(&server, &output_of(&task, "follow=1"));
    stream.until("m1 | m1 one\n");
    let text = stream.until("m2 | m2 one\n");
    assert!(!text.contains("half"), "{text}");
    open_gate(&folder);
    let text = stream.whole();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let of = |m: &str| {
        [
            format!("{m} | half line"),
            format!("{m} | {m} one"),
            format!("{m} | rest"),
        ]
    };
    assert_eq!(lines, [of("m1"), of("m2")].concat());

    let one = Stream::open(&server, &output_of(&task, "follow=1&machine=m1")).whole();
    assert_eq!(one, "m1 one\nhalf line\nrest");
    let none = server.get(&output_of(&task, "follow=1&offset=0"));
    assert_eq!(none.status, 422, "{}", none.text());
    assert!(none.msg().contains("2 match"));
}

#[test]
fn offsets_continue_over_cut_connections() {
    let server = Server::start();
    let _agent = server.agent("m");
    let command = "for i in $(seq 300); do echo \"line $i ü\"; echo err >&2; sleep 0.005; done";
    let task = server.submit(task(command));
    let (mut seen, mut connections) = (Vec::new(), 0);
    loop {
        let target = output_of(&task, &format!("follow=1&offset={}", seen.len()));
        let mut stream = Stream::open(&server, &target);
        connections += 1;
        // A little, then the connection breaks.
        while stream.body.len() < 500 && !stream.is_over {
            stream.read();
        }
        seen.extend_from_slice(&stream.body);
        if stream.is_whole {
            break;
        }
    }
    let whole: String = (1..=300).map(|i| format!("line {i} ü\n")).collect();
    assert_eq!(String::from_utf8(seen).unwrap(), whole);
    assert!(connections > 3, "{connections}");
    let errors = Stream::open(
        &server,
        &output_of(&task, "follow=1&offset=4&stream=stderr"),
    );
    assert_eq!(errors.whole(), "err\n".repeat(299));
}

#[test]
fn json_has_the_states_and_the_places() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agent = server.agent("m");
    let mut posted = gated(&folder, "echo a; GATE; echo b; exit 3");
    posted["id"] = json!("an-id-of-ones-own");
    let task = server.submit(posted);
    let mut stream = Stream::open(&server, &output_of(&task, "follow=1&format=json"));
    assert!(stream.head.contains("application/x-ndjson"));
    stream.until("\"a\\n\"");
    open_gate(&folder);
    let text = stream.whole();
    let news: Vec<Value> = { text.lines().filter(|line| !line.is_empty()) }
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let shown = server.task(id(&task));
    let execution = &shown["result"][0]["execution"];
    assert!(news.iter().all(|n| n["execution"] == *execution), "{text}");
    let states: Vec<&str> = news.iter().filter_map(|n| n["state"].as_str()).collect();
    assert_eq!(states.last(), Some(&"failed"));
    assert!(states.contains(&"running"));
    let ends: Vec<_> = news.iter().filter(|n| n["event"] == "output").collect();
    assert_eq!(ends[1]["offset"], 2);
    assert_eq!(
        (&ends[1]["end"], &ends[1]["text"]),
        (&json!(4), &json!("b\n"))
    );
    // Without following: what there is, and the end.
    let now = Stream::open(&server, &output_of(&task, "format=json")).whole();
    assert_eq!(now.lines().count(), 2, "{now}");
}

#[test]
fn a_further_attempt_and_a_late_machine_are_announced() {
    let server = Server::start();
    let _agent = server.agent("m1");
    let mut posted = task("printf try$SIDEBIKE_ATTEMPT; test $SIDEBIKE_ATTEMPT = 2");
    posted["retry"] = json!({"max": 1});
    let retried = server.submit(posted);
    let text = Stream::open(&server, &output_of(&retried, "follow=1")).whole();
    assert_eq!(text, "try1\n… attempt 2 begins …\ntry2");

    let mut posted = task("echo here");
    posted["lateJoin"] = true.into();
    posted["ttl"] = "1h".into();
    let open = server.submit(posted);
    let mut stream = Stream::open(&server, &output_of(&open, "follow=1"));
    assert_eq!(stream.until("m1"), "m1 | here\n");
    let _late = server.agent("m2");
    stream.until("m2 | here\n");
    server.post(&format!("/api/v1/task/{}/cancel", id(&open)), &json!({}));
    assert_eq!(stream.whole().lines().count(), 2);
}

#[test]
fn a_waiting_task_can_be_followed_and_old_clients_too() {
    let server = Server::start();
    let waiting = server.submit(task("echo done"));
    let mut stream = Stream::open(&server, &output_of(&waiting, "follow=1"));
    let _agent = server.agent("m");
    assert_eq!(stream.until("done\n"), "done\n");
    stream.whole();
    let target = output_of(&waiting, "follow=1");
    let mut old = Stream::of(&server, &format!("GET {target} HTTP/1.0\r\n\r\n"));
    while !old.is_over {
        old.read();
    }
    assert!(!old.head.contains("Transfer-Encoding"), "{}", old.head);
    assert_eq!(old.text(), "done\n");
    let mut head = server.connect();
    head.send(format!("HEAD {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
    let head = String::from_utf8(head.rest()).unwrap();
    assert!(
        head.ends_with("\r\n\r\n") && head.starts_with("HTTP/1.1 200"),
        "{head}"
    );
    // Chunks have no length that this client knows.
    assert!(
        Stream::open(&server, &output_of(&waiting, "follow=2"))
            .head
            .contains(" 400 ")
    );
}

#[test]
fn two_hundred_followers_do_not_slow_the_server() {
    let (server, folder) = (Server::start(), Folder::new());
    let _agents = (server.agent("m"), server.agent("other"));
    let command = "for i in $(seq 2000); do echo line $i; sleep 0.001; done; GATE; echo end";
    let task = server.submit(gated(&folder, command));
    let target = output_of(&task, "follow=1");
    let streams: Vec<Stream> = (0..200).map(|_| Stream::open(&server, &target)).collect();
    let readers: Vec<_> = { streams.into_iter() }
        .map(|stream| thread::spawn(move || stream.whole()))
        .collect();
    let mut slowest = Duration::ZERO;
    while server.task(id(&task))["counts"]["running"] != 1 {}
    for _ in 0..20 {
        let started = Instant::now();
        server.run(json!({"machinePattern": "other", "detail": {"command": "true"}}));
        slowest = slowest.max(started.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "{slowest:?}");
    open_gate(&folder);
    let lines: String = (1..=2000).map(|i| format!("line {i}\n")).collect();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), format!("{lines}end\n"));
    }
    wait_for("nobody is held", || {
        server.metric("sidebike_held_requests") <= 2
    });
}

/// Whether the server's end of a connection is neither closed nor cut, as the kernel sees it.
fn is_established(server: SocketAddr, client: SocketAddr) -> bool {
    let ports = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let mut port = || u16::from_str_radix(words.next()?.rsplit(':').next()?, 16).ok();
        let (local, remote) = (port()?, port()?);
        Some((local, remote, words.next()? == "01"))
    };
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    { table.lines().skip(1).filter_map(ports) }
        .any(|found| found == (server.port(), client.port(), true))
}

#[test]
fn one_that_does_not_read_is_cut() {
    let server = Server::with(&["--max-request-time", "2s"]);
    let _agents = server.agents(4, "m");
    let task = server.submit(task(
        "while :; do head -c 400000 /dev/zero; sleep 0.3; done",
    ));
    let socket = TcpStream::connect(server.address).unwrap();
    // The kernels on both sides take some megabytes before anybody notices.
    sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
    let target = output_of(&task, "follow=1");
    (&socket)
        .write_all(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
        .unwrap();
    let client = socket.local_addr().unwrap();
    assert!(is_established(server.address, client));
    wait_for("it is cut", || !is_established(server.address, client));
    let mut other = Stream::open(&server, &target);
    other.until(" | ");
    server.post(&format!("/api/v1/task/{}/cancel", id(&task)), &json!({}));
}
