//! Requests that another server answers over TLS: the same, and only by the server that proves its name.
#![cfg(all(feature = "server", feature = "agent", feature = "tls"))]

mod authority;
mod common;
mod edge;
mod relay;

use authority::{Authority, OWN_NAMES, server};
use common::http::request;
use common::{Folder, id, wait_for};
use edge::{Client, get, is_pong, ping};
use relay::{limits, nowhere, played, relay_with};
use serde_json::json;
use sidebike::tls::{ClientTls, load_roots};
use std::path::Path;
use std::time::Duration;

/// How one speaks with a server of this name for which this authority vouches.
fn tls(folder: &Folder, authority: &Authority, name: &str) -> ClientTls {
    let file = authority.file(folder, "authority");
    let roots = load_roots(Some(Path::new(&file))).expect("its certificate");
    ClientTls::new(&roots, name).expect("a name")
}

#[test]
fn a_server_with_a_certificate_answers_through_it() {
    let (folder, authority) = (Folder::new(), Authority::new());
    authority.vouch(&folder, &OWN_NAMES);
    let server = server(&folder, &[]);
    for name in OWN_NAMES {
        let tls = tls(&folder, &authority, name);
        let (address, edge) = relay_with(server.address, Some(tls), limits());
        let mut client = Client::open(address);
        for n in 0..50 {
            client.send(&ping(&format!("n{n}")));
            let reply = client.answer().expect("an answer");
            assert!(is_pong(&reply, &format!("n{n}")), "{reply:?}");
        }
        // More than a session keeps while the handshake goes on.
        let input = "x".repeat(300_000);
        let task =
            json!({"machinePattern": "^nobody$", "detail": {"command": "true", "stdin": input}});
        client.send(&request(
            "POST",
            "/api/v1/task",
            "",
            task.to_string().as_bytes(),
        ));
        client.answer().expect("an answer").data();
        let task = json!({"machinePattern": "^nobody$", "detail": {"command": "true"}});
        client.send(&request(
            "POST",
            "/api/v1/task",
            "",
            task.to_string().as_bytes(),
        ));
        let task = client.answer().expect("an answer").data();
        let target = format!("/api/v1/task/{}", id(&task));
        let mut held: Vec<Client> = (0..20).map(|_| Client::open(address)).collect();
        for held in &mut held {
            held.send(&get(&format!("{target}?wait=60s")));
        }
        wait_for("all are held", || edge.forwarded() == 20);
        client.send(&request("POST", &format!("{target}/cancel"), "", b""));
        client.answer().expect("an answer").data();
        for held in &mut held {
            assert_eq!(held.answer().expect("an answer").data()["id"], task["id"]);
        }
        // Who goes away while one is held.
        client.send(&request(
            "POST",
            "/api/v1/task",
            "",
            json!({"machinePattern": "^nobody$",
            "detail": {"command": "true"}})
            .to_string()
            .as_bytes(),
        ));
        let task = client.answer().expect("an answer").data();
        client.send(&get(&format!("/api/v1/task/{}?wait=60s", id(&task))));
        wait_for("it is held", || edge.forwarded() == 1);
        drop(client);
        wait_for("it is not held any more", || edge.forwarded() == 0);
    }
}

#[test]
fn a_server_that_does_not_prove_its_name_is_asked_nothing() {
    let (folder, authority) = (Folder::new(), Authority::new());
    authority.vouch(&folder, &OWN_NAMES);
    let server = server(&folder, &[]);
    let strangers = Authority::new();
    let other = Folder::new();
    for tls in [
        tls(&folder, &authority, "elsewhere.example"),
        tls(&other, &strangers, "localhost"),
    ] {
        let mut client = Client::open(relay_with(server.address, Some(tls), limits()).0);
        client.send(&request("POST", "/api/v1/task", "", b"{}"));
        let reply = client.answer().expect("an answer");
        assert_eq!(reply.status, 502);
        assert!(reply.msg().contains("certificate"), "{}", reply.msg());
    }
}

#[test]
fn what_speaks_no_tls_is_told_of() {
    let (folder, authority) = (Folder::new(), Authority::new());
    let asked = |address| {
        let tls = tls(&folder, &authority, "localhost");
        let mut client = Client::open(relay_with(address, Some(tls), limits()).0);
        client.patience(Duration::from_secs(30));
        client.send(&get("/"));
        let reply = client.answer().expect("an answer");
        assert_eq!(reply.status, 502, "{}", reply.text());
        reply.msg()
    };
    assert!(asked(nowhere()).contains("refused"));
    let plain = played(|mut other| {
        other.say("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        other.wait_for_end();
    });
    let msg = asked(plain);
    assert!(msg.contains("did not answer: "), "{msg}");
    // Nothing of the request goes out before the handshake, and it is not waited for without end.
    let silent = played(|mut other| other.wait_for_end());
    let msg = asked(silent);
    assert!(msg.contains("it took too long"), "{msg}");
}
