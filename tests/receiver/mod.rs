//! A receiver of notifications that does to each request what the test wants.

#![allow(dead_code, reason = "each file of tests uses its part")]

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::wait_until;

/// What is done to a request.
#[derive(Debug, Clone)]
pub enum Reaction {
    /// It is answered so.
    Answer(u16),
    /// It is sent elsewhere.
    Redirect(String),
    /// The connection is closed.
    Close,
    /// It is answered so late.
    Late(Duration),
    /// It is never answered.
    Hang,
    /// The answer never ends.
    HugeBody,
    /// The head of the answer never ends.
    HugeHead,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Received {
    pub at: Instant,
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut same = self.headers.iter().filter(|(n, _)| n == name);
        same.next().map(|(_, value)| &**value)
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("the body is JSON")
    }

    pub fn event(&self) -> String {
        self.json()["event"].as_str().unwrap_or_default().to_owned()
    }
}

/// A receiver; its threads end with the test.
pub struct Receiver {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    /// The most requests at once.
    most: Arc<AtomicUsize>,
}

impl Receiver {
    /// One that does this to the nth request, from 0.
    pub fn new(react: impl Fn(usize) -> Reaction + Send + Sync + 'static) -> Receiver {
        Receiver::at("127.0.0.1:0", react)
    }

    pub fn at(
        address: &str,
        react: impl Fn(usize) -> Reaction + Send + Sync + 'static,
    ) -> Receiver {
        let listener = wait_until("the address is free", || TcpListener::bind(address).ok());
        let receiver = Receiver {
            address: listener.local_addr().expect("it has one"),
            received: Arc::default(),
            most: Arc::default(),
        };
        let (received, most) = (receiver.received.clone(), receiver.most.clone());
        let (react, at_once) = (Arc::new(react), Arc::new(AtomicUsize::new(0)));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (received, most) = (received.clone(), most.clone());
                let (react, at_once) = (react.clone(), at_once.clone());
                thread::spawn(move || {
                    let now = at_once.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    serve(stream, &received, &*react);
                    at_once.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        receiver
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    pub fn most_at_once(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }

    /// Waits until so many requests have come.
    pub fn until(&self, count: usize) -> Vec<Received> {
        wait_until(&format!("{count} requests"), || {
            let received = self.received();
            (received.len() >= count).then_some(received)
        })
    }
}

fn serve(
    mut stream: TcpStream,
    received: &Mutex<Vec<Received>>,
    react: &(dyn Fn(usize) -> Reaction + Send + Sync),
) {
    let Some(request) = read(&mut stream) else {
        return;
    };
    let nth = {
        let mut received = received.lock().unwrap();
        received.push(request);
        received.len() - 1
    };
    // Whoever sent it may be gone.
    let mut say = |text: &str| stream.write_all(text.as_bytes()).is_ok();
    let end = "Content-Length: 2\r\nConnection: close\r\n\r\nok";
    match react(nth) {
        Reaction::Answer(status) => drop(say(&format!("HTTP/1.1 {status} X\r\n{end}"))),
        Reaction::Redirect(to) => {
            say(&format!("HTTP/1.1 307 X\r\nLocation: {to}\r\n{end}"));
        }
        Reaction::Close => {}
        Reaction::Late(by) => {
            thread::sleep(by);
            say(&format!("HTTP/1.1 200 X\r\n{end}"));
        }
        Reaction::Hang => {
            let _ = stream.read(&mut [0; 16]);
        }
        Reaction::HugeBody => {
            if say("HTTP/1.1 200 X\r\nContent-Length: 100000000000\r\n\r\n") {
                let many = "x".repeat(1 << 16);
                while stream.write_all(many.as_bytes()).is_ok() {}
            }
        }
        Reaction::HugeHead => {
            if say("HTTP/1.1 200 X\r\n") {
                let many = format!("X-Much: {}\r\n", "x".repeat(1 << 12));
                while stream.write_all(many.as_bytes()).is_ok() {}
            }
        }
    }
}

fn read(stream: &mut TcpStream) -> Option<Received> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4_096];
    let mut more = |bytes: &mut Vec<u8>| {
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&buffer[..read]);
        Some(())
    };
    let head_ends = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        more(&mut bytes)?;
    };
    let head = String::from_utf8(bytes[..head_ends].to_vec()).ok()?;
    let mut lines = head.split("\r\n");
    let line = lines.next()?.to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length?.1.parse().ok()?;
    while bytes.len() < head_ends + length {
        more(&mut bytes)?;
    }
    Some(Received {
        at: Instant::now(),
        line,
        headers,
        body: bytes.split_off(head_ends),
    })
}
