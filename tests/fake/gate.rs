//! What stands between an agent and its server: a proxy that refuses from the head, a slow link.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes the system keeps of what an agent sends: more would hide a slow reader.
const RECEIVE_BUFFER_BYTES: usize = 4 << 10;
/// How often a slow link takes something.
const TICK: Duration = Duration::from_millis(50);

/// What is done with a request once its head has come.
#[derive(Debug, Clone)]
pub enum Act {
    Pass,
    /// Answers so and closes, without reading the body.
    Answer(String),
    /// Reads the request and answers so.
    Reply(String),
    /// Reads the request and says nothing; cuts the connection once there is another rule.
    Silent,
    /// Reads this many bytes a second, then passes the request on; cuts the connection after so long.
    Slow {
        rate: usize,
        cut: Duration,
    },
}

/// A request: the call, the length of its body, and when it came.
pub struct Request {
    pub call: String,
    pub length: usize,
    pub at: Instant,
}

type Rule = dyn Fn(&str, usize) -> Act + Send + Sync;

pub struct Gate {
    pub port: u16,
    rule: Arc<Mutex<Arc<Rule>>>,
    requests: Arc<Mutex<Vec<Request>>>,
    /// The body of the latest request of each call that was replied to.
    bodies: Arc<Mutex<HashMap<String, Vec<u8>>>>,
}

/// A reply with this status and body.
pub fn reply(status: u16, body: &str) -> Act {
    match answer(status, body) {
        Act::Answer(answer) => Act::Reply(answer),
        other => other,
    }
}

/// An answer with this status and body.
pub fn answer(status: u16, body: &str) -> Act {
    let length = body.len();
    Act::Answer(format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    ))
}

impl Gate {
    /// A gate before the server at `port`.
    pub fn new(port: u16, rule: impl Fn(&str, usize) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, RECEIVE_BUFFER_BYTES).unwrap();
        let gate = Gate {
            port: listener.local_addr().unwrap().port(),
            rule: Arc::new(Mutex::new(Arc::new(rule))),
            requests: Arc::default(),
            bodies: Arc::default(),
        };
        let (rule, requests) = (Arc::clone(&gate.rule), Arc::clone(&gate.requests));
        let bodies = Arc::clone(&gate.bodies);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (rule, requests) = (Arc::clone(&rule), Arc::clone(&requests));
                let bodies = Arc::clone(&bodies);
                std::thread::spawn(move || carry(client, port, &rule, &requests, &bodies));
            }
        });
        gate
    }

    /// Another rule from now on.
    pub fn change(&self, rule: impl Fn(&str, usize) -> Act + Send + Sync + 'static) {
        *self.rule.lock().unwrap() = Arc::new(rule);
    }

    /// The lengths of all requests of a call.
    pub fn lengths(&self, call: &str) -> Vec<usize> {
        let requests = self.requests.lock().unwrap();
        let of_call = requests.iter().filter(|request| request.call == call);
        of_call.map(|request| request.length).collect()
    }

    /// The latest body of a call that was replied to.
    pub fn body(&self, call: &str) -> Option<serde_json::Value> {
        let bodies = self.bodies.lock().unwrap();
        Some(serde_json::from_slice(bodies.get(call)?).unwrap())
    }
}

fn carry(
    mut client: TcpStream,
    port: u16,
    current: &Mutex<Arc<Rule>>,
    requests: &Mutex<Vec<Request>>,
    bodies: &Mutex<HashMap<String, Vec<u8>>>,
) -> Option<()> {
    loop {
        let head = head(&mut client)?;
        let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let call = text.split(' ').nth(1)?.rsplit('/').next()?.to_owned();
        let length = length(&text);
        requests.lock().unwrap().push(Request {
            call: call.clone(),
            length,
            at: Instant::now(),
        });
        let rule = Arc::clone(&current.lock().unwrap());
        let mut body = vec![0; length];
        match rule(&call, length) {
            Act::Pass => client.read_exact(&mut body).ok()?,
            Act::Answer(answer) => {
                client.write_all(answer.as_bytes()).ok()?;
                // What was not read makes the system send a reset.
                return None;
            }
            Act::Reply(answer) => {
                client.read_exact(&mut body).ok()?;
                bodies.lock().unwrap().insert(call, body);
                client.write_all(answer.as_bytes()).ok()?;
                return client.shutdown(Shutdown::Both).ok();
            }
            Act::Silent => {
                client.read_exact(&mut body).ok()?;
                while Arc::ptr_eq(&rule, &current.lock().unwrap()) {
                    std::thread::sleep(TICK);
                }
                return None;
            }
            Act::Slow { rate, cut } => {
                let begun = Instant::now();
                let mut read = 0;
                while read < length {
                    if begun.elapsed() >= cut {
                        return client.shutdown(Shutdown::Both).ok();
                    }
                    std::thread::sleep(TICK);
                    let most = (rate * TICK.as_millis() as usize / 1_000).max(1);
                    let end = length.min(read + most);
                    read += client.read(&mut body[read..end]).ok().filter(|n| *n > 0)?;
                }
            }
        }
        let mut server = TcpStream::connect(("127.0.0.1", port)).ok()?;
        server.write_all(&head).ok()?;
        server.write_all(&body).ok()?;
        let mut answer = self::head(&mut server)?;
        let mut rest = vec![0; self::length(&String::from_utf8_lossy(&answer))];
        server.read_exact(&mut rest).ok()?;
        answer.append(&mut rest);
        client.write_all(&answer).ok()?;
    }
}

fn head(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        from.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(head)
}

fn length(head: &str) -> usize {
    let mut lines = head.lines();
    let value = lines.find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("content-length:")
            .map(|value| value.trim().parse().unwrap())
    });
    value.unwrap_or(0)
}
