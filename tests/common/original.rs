//! An agent of the original: what it sends, byte for byte as recorded.

use super::Server;
use super::http::{Connection, Reply};

/// What Go's HTTP client puts into every request.
const GO: &str = "User-Agent: Go-http-client/1.1\r\n";

/// An agent of the original: one connection, kept alive.
pub struct Original {
    connection: Connection,
    pub host: String,
}

impl Original {
    pub fn new(server: &Server) -> Original {
        Original {
            connection: server.connect(),
            host: server.address.to_string(),
        }
    }

    pub fn get(&mut self, target: &str) -> Reply {
        let host = &self.host;
        let head =
            format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n{GO}Accept-Encoding: gzip\r\n\r\n");
        self.connection.send(head.as_bytes());
        self.connection.read()
    }

    pub fn post(&mut self, target: &str, body: &str) -> Reply {
        let (host, length) = (&self.host, body.len());
        let head = format!(
            "POST {target} HTTP/1.1\r\nHost: {host}\r\n{GO}Content-Length: {length}\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n{body}"
        );
        self.connection.send(head.as_bytes());
        self.connection.read()
    }

    pub fn ping(&mut self, label: &str) -> Reply {
        self.get(&format!("/api/v1/lifecycle/ping?path={label}"))
    }

    pub fn assigned(&mut self, label: &str) -> Reply {
        let body = format!(r#"{{"MachineLabel":"{label}"}}"#);
        self.post("/api/v1/task/status/assigned", &body)
    }

    /// Fetches a task; gives it the name that a report has to carry.
    pub fn fetch(&mut self, label: &str) -> String {
        let task = self.assigned(label).data();
        task["name"].as_str().expect("a task has a name").to_owned()
    }

    /// Reports: `rest` are the members of the result after `machineLabel`.
    pub fn done(&mut self, name: &str, label: &str, rest: &str) -> Reply {
        let body =
            format!(r#"{{"TaskName":"{name}","Result":{{"machineLabel":"{label}",{rest}}}}}"#);
        self.post("/api/v1/task/status/done", &body)
    }
}
