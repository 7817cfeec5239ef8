//! Calls of one user over one connection, which is kept alive.

use crate::http::{Connection, Reply, request};
use serde_json::Value;
use std::net::SocketAddr;
use std::str::FromStr;

/// A user.
pub struct Api {
    address: SocketAddr,
    connection: Option<Connection>,
}

impl Api {
    /// A user of this server; connects with the first call.
    pub fn new(address: SocketAddr) -> Api {
        Api {
            address,
            connection: None,
        }
    }

    /// Asks for something.
    pub fn get(&mut self, target: &str) -> Result<Value, String> {
        self.call(&request("GET", target, "", b""))
    }

    /// Posts JSON.
    pub fn post(&mut self, target: &str, body: &Value) -> Result<Value, String> {
        let body = body.to_string();
        self.call(&request("POST", target, "", body.as_bytes()))
    }

    /// Sends a request that has been made; gives `data` of the answer.
    pub fn call(&mut self, bytes: &[u8]) -> Result<Value, String> {
        let reply = self.raw(bytes)?;
        if reply.status != 200 {
            let call = String::from_utf8_lossy(bytes);
            let call = call.lines().next().unwrap_or_default().to_owned();
            return Err(format!("{call}: {} {}", reply.status, reply.text()));
        }
        Ok(reply.data())
    }

    /// Sends a request that has been made; gives the answer, which nobody has parsed yet.
    pub fn raw(&mut self, bytes: &[u8]) -> Result<Reply, String> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::try_open(self.address).ok_or("the server takes no connection")?,
        };
        connection.send(bytes);
        let reply = connection.try_read(true);
        let reply = reply.ok_or("the server has closed the connection")?;
        let closes = |word: &str| word.eq_ignore_ascii_case("close");
        if !reply.header("Connection").is_some_and(closes) {
            self.connection = Some(connection);
        }
        Ok(reply)
    }

    /// A figure of /metrics.
    pub fn metric<T: FromStr>(&mut self, name: &str) -> Result<T, String> {
        let page = self.raw(&request("GET", "/metrics", "", b""))?;
        let line = page.text().lines().find_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.strip_prefix(' ')?.parse().ok()
        });
        line.ok_or_else(|| format!("no {name} in /metrics"))
    }
}
