//! A bad network between agents and a server: it cuts, delays and repeats requests.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Of a hundred requests so many are cut off with their connection, somewhere on the way.
const CUT: u64 = 10;
/// Of a hundred requests so many are delayed, and so many are sent twice.
const DELAYED: u64 = 30;
const REPEATED: u64 = 10;
const MAX_DELAY_MS: u64 = 60;

/// What it did.
#[derive(Default)]
pub struct Faults {
    pub cut_before: AtomicU64,
    pub cut_after: AtomicU64,
    pub delayed: AtomicU64,
    pub repeated: AtomicU64,
    random: AtomicU64,
}

impl Faults {
    /// A number below `end`; good enough for faults.
    fn below(&self, end: u64) -> u64 {
        let n = self.random.fetch_add(1, Ordering::Relaxed);
        let mut x = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % end
    }

    fn delay(&self) {
        if self.below(100) < DELAYED {
            self.delayed.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(self.below(MAX_DELAY_MS)));
        }
    }
}

/// Starts it; it lives as long as the test process.
pub fn start(server: SocketAddr) -> (SocketAddr, Arc<Faults>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let faults = Arc::new(Faults::default());
    let for_threads = faults.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let faults = for_threads.clone();
            thread::spawn(move || carry(client, server, &faults));
        }
    });
    (address, faults)
}

/// Carries the requests of one connection, each to the server by a connection of its own.
fn carry(mut client: TcpStream, server: SocketAddr, faults: &Faults) -> Option<()> {
    loop {
        let request = message(&mut client)?;
        let cut = faults.below(100) < CUT;
        let before = cut && faults.below(3) == 0;
        faults.delay();
        if before {
            faults.cut_before.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let mut upstream = TcpStream::connect(server).ok()?;
        upstream.write_all(&request).ok()?;
        if faults.below(100) < REPEATED {
            faults.repeated.fetch_add(1, Ordering::Relaxed);
            let late = Duration::from_millis(faults.below(MAX_DELAY_MS));
            thread::spawn(move || {
                thread::sleep(late);
                let mut again = TcpStream::connect(server).ok()?;
                again.write_all(&request).ok()?;
                message(&mut again)
            });
        }
        let answer = message(&mut upstream)?;
        faults.delay();
        if cut {
            // The server has done it, the client never learns.
            faults.cut_after.fetch_add(1, Ordering::Relaxed);
            let some = faults.below(answer.len() as u64) as usize;
            let _ = client.write_all(&answer[..some]);
            let _ = client.shutdown(Shutdown::Both);
            return None;
        }
        client.write_all(&answer).ok()?;
    }
}

/// A request or an answer, as far as its Content-Length says.
fn message(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at]).to_ascii_lowercase();
            let length = head.split("\r\ncontent-length:").nth(1);
            let length = length.and_then(|rest| rest.split("\r\n").next()?.trim().parse().ok());
            if bytes.len() >= at + 4 + length.unwrap_or(0) {
                return Some(bytes);
            }
        }
        match from.read(&mut buffer) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    }
}
