//! An edge that runs in the test's process with a service that forwards everything, and servers that the test plays,
//! byte for byte.

#![allow(dead_code, reason = "each file of tests uses its part")]

use serde_json::json;
use sidebike::server::http::{
    self, Answer, ConnectionId, Decision, Edge, EdgeLimits, Engine, Forward, ForwardTarget,
    Refused, Request, RequestLimits, Responder, Served, Service,
};
use sidebike::tls::ClientTls;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// What a test that waits for nothing else waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Forwards all that it is asked.
pub struct Relay(pub ForwardTarget);

impl Service for Relay {
    type Admission = ();

    fn admit(self: &Arc<Self>, request: &mut Request) -> Result<Decision<()>, Answer> {
        let peer = request.peer.expect("it has an address").to_string();
        Ok(Decision::Forward(Forward {
            target: self.0.clone(),
            headers: vec![("Test-Forwarded", format!("for={peer}"))],
            withheld: &["Test-Secret"],
        }))
    }

    fn serve(self: &Arc<Self>, _: Request, _: (), _: Responder) -> Served {
        unreachable!("all is forwarded")
    }

    fn refuse(self: &Arc<Self>, refused: &Refused, _: Option<(&Request, &())>) -> Answer {
        let body = json!({"msg": refused.msg}).to_string().into_bytes();
        Answer::new(refused.status, "application/json", body)
    }

    fn abandoned(&self, _: ConnectionId) {}
}

pub fn limits() -> EdgeLimits {
    EdgeLimits {
        request: RequestLimits {
            head_bytes: 16 << 10,
            headers: 64,
            target_bytes: 8 << 10,
            body_bytes: 1 << 20,
        },
        max_connections: 1_000,
        max_connections_per_address: 1_000,
        max_in_flight_bytes: 64 << 20,
        max_request_ms: 60_000,
        stall_ms: 30_000,
        max_threads: 4,
        max_forwarded: 1_000,
    }
}

/// Which server the edge takes the other one for.
pub const OTHER: u64 = 7;

/// An edge that forwards to this address.
pub fn relay(address: SocketAddr) -> SocketAddr {
    relay_with(address, None, limits()).0
}

/// The same, over TLS or not, within these limits.
pub fn relay_with(
    address: SocketAddr,
    tls: Option<ClientTls>,
    limits: EdgeLimits,
) -> (SocketAddr, Arc<Edge>) {
    let target = ForwardTarget {
        address,
        tls,
        name: "the other server",
        id: OTHER,
    };
    let edge = Edge::new(limits, None).expect("an edge");
    let (listener, address) = http::bind(([127, 0, 0, 1], 0).into()).expect("a port");
    let service = Arc::new(Relay(target));
    edge.serve(Engine::Edge, listener, &service)
        .expect("it starts");
    (address, edge)
}

/// A server that the test plays: each connection that comes is given to `play`.
pub fn played(play: impl Fn(Other) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().unwrap();
    let play = Arc::new(play);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let play = play.clone();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            thread::spawn(move || play(Other(stream, Vec::new())));
        }
    });
    address
}

/// The other server's side of a connection.
pub struct Other(pub TcpStream, pub Vec<u8>);

impl Other {
    /// What came up to this mark, with it.
    pub fn read_to(&mut self, mark: &[u8]) -> String {
        loop {
            if let Some(at) = self.1.windows(mark.len()).position(|some| some == mark) {
                let read: Vec<u8> = self.1.drain(..at + mark.len()).collect();
                return String::from_utf8(read).expect("text");
            }
            let mut buffer = [0; 4_096];
            let read = self.0.read(&mut buffer).expect("more comes");
            assert!(
                read > 0,
                "it ended after {:?}",
                String::from_utf8_lossy(&self.1)
            );
            self.1.extend_from_slice(&buffer[..read]);
        }
    }

    /// The next bytes, so many of them.
    pub fn read_some(&mut self, bytes: usize) -> Vec<u8> {
        while self.1.len() < bytes {
            let mut buffer = [0; 64 * 1024];
            let read = self.0.read(&mut buffer).expect("more comes");
            assert!(read > 0, "it ended with {} of {bytes} bytes", self.1.len());
            self.1.extend_from_slice(&buffer[..read]);
        }
        self.1.drain(..bytes).collect()
    }

    /// The body behind this head.
    pub fn body(&mut self, head: &str) -> String {
        let mut body = Vec::new();
        if head.contains("Transfer-Encoding: chunked\r\n") {
            loop {
                let line = self.read_to(b"\r\n");
                let size = usize::from_str_radix(line.trim(), 16).expect("a size");
                body.extend(self.read_some(size));
                assert_eq!(self.read_some(2), b"\r\n");
                if size == 0 {
                    break;
                }
            }
        } else if let Some((_, rest)) = head.split_once("Content-Length: ") {
            let length = rest.split("\r\n").next().unwrap_or_default();
            body = self.read_some(length.parse().expect("a length"));
        }
        String::from_utf8(body).expect("text")
    }

    pub fn head(&mut self) -> String {
        self.read_to(b"\r\n\r\n")
    }

    pub fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).expect("it is taken");
    }

    /// Waits until the connection is closed, whatever else comes.
    pub fn wait_for_end(&mut self) {
        let mut buffer = [0; 64 * 1024];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("it is not closed: {error}"),
            }
        }
    }
}

/// An address where nobody listens.
pub fn nowhere() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}
