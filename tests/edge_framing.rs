//! Heads and bodies as RFC 9110 and 9112 have them: what is right is executed, what is not is refused,
//! never executed, and ends its connection, so that nothing behind it is taken for a request.

mod common;
mod edge;

use common::Server;
use edge::{Client, exists, get, task_body};
use std::thread;
use std::time::Duration;

/// A request may take 2 s on these servers, and the machine may be busy.
const CUT: Duration = Duration::from_secs(20);

/// What becomes of a submit.
enum Outcome {
    /// It is answered with 200 and executed, and the connection takes another request.
    Runs,
    /// It is answered with this status, or cut where that is 0; not executed; nothing follows.
    Refused(&'static [u16]),
}
use Outcome::{Refused, Runs};

fn quick() -> Server {
    Server::with(&["--max-request-time", "2s"])
}

/// Sends a head with these lines, and this body, behind it a request that must be answered or not.
fn check(server: &Server, id: &str, lines: &str, body: &[u8], outcome: &Outcome) {
    let head = format!("POST /api/v1/task HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n\r\n");
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    let mut client = Client::open(server.address);
    client.patience(CUT);
    client.send(&bytes);
    match outcome {
        Runs => {
            let reply = client.answer();
            let reply = reply.unwrap_or_else(|why| panic!("{why:?} for {lines:?}"));
            assert_eq!(reply.status, 200, "{lines:?}: {}", reply.text());
            assert_eq!(reply.data()["id"], *id, "{lines:?}");
            client.send(&get("/nowhere/behind"));
            let reply = client.answer();
            let is_answered = reply.as_ref().is_ok_and(|reply| reply.status == 404);
            assert!(is_answered, "{reply:?} behind {lines:?}");
        }
        Refused(right) => {
            client.send(&get("/nowhere/behind"));
            client.finish();
            let (answers, _) = client.answers(false);
            let statuses: Vec<u16> = answers.iter().map(|reply| reply.status).collect();
            let is_right = match statuses[..] {
                [] => right.contains(&0),
                [status] => right.contains(&status),
                _ => false,
            };
            assert!(is_right, "{statuses:?} for {lines:?}");
            assert!(!exists(server, id), "executed: {lines:?}");
        }
    }
}

fn check_all(server: &Server, cases: &[(&str, Outcome)], body_of: impl Fn(&str) -> Vec<u8>) {
    let mut failures = Vec::new();
    for (n, (lines, outcome)) in cases.iter().enumerate() {
        let id = format!("case-{n:03}");
        let body = body_of(&id);
        let lines = lines.replace("LENGTH", &body.len().to_string());
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check(server, &id, &lines, &body, outcome);
        }));
        if checked.is_err() {
            failures.push(lines);
        }
    }
    assert!(
        failures.is_empty(),
        "{} wrong: {failures:#?}",
        failures.len()
    );
}

#[test]
fn heads_are_taken_or_refused_as_they_should() {
    let token = "!#$%&'*+-.^_`|~09azAZ";
    let length = "Content-Length: LENGTH";
    let with = |line: &str| -> &'static str { format!("{length}\r\n{line}").leak() };
    let cases = [
        (with("X-Plain: value"), Runs),
        (with("X-Tab: a\tb"), Runs),
        (with("X-Tabs:\tvalue\t"), Runs),
        (with("X-Spaces:   value   "), Runs),
        (with("X-Empty:"), Runs),
        (with("X-Colons: a:b::c"), Runs),
        (
            with("X-Printable: !\"#$%&'()*+,-./:;<=>?@[]^_`{|}~\\"),
            Runs,
        ),
        (with(&format!("{token}: value")), Runs),
        (with("cOnNeCtIoN: Keep-Alive"), Runs),
        (with("Content-Type: text/plain"), Runs),
        (with(": value"), Refused(&[400])),
        (with("X Y: value"), Refused(&[400])),
        (with("X-Space : value"), Refused(&[400])),
        (with("X(comment): value"), Refused(&[400])),
        (with("X@: value"), Refused(&[400])),
        (with("X\u{7f}: value"), Refused(&[400])),
        (with("No colon"), Refused(&[400])),
        (with("X-Feed: a\u{c}b"), Refused(&[400])),
        (with("X-Feed: \u{c}"), Refused(&[400])),
        (with("X-Bell: a\u{7}b"), Refused(&[400])),
        (with("X-Delete: a\u{7f}b"), Refused(&[400])),
        (with("X-Nul: a\0b"), Refused(&[400])),
        (with("X-Vertical: a\u{b}b"), Refused(&[400])),
        (with("X-Fold: a\r\n b"), Refused(&[400])),
        (with("X-Fold: a\r\n\tb"), Refused(&[400])),
        (with(" X-First: folded"), Refused(&[400])),
        (with("X-Feed: a\nX-Next: b"), Refused(&[400])),
        (with("X-Return: a\rX-Next: b"), Refused(&[400])),
        ("Content-Length: LENGTH\nX-Bare: line feed", Refused(&[400])),
        (with("Content-Length: LENGTH"), Refused(&[400])),
        (with("Content-Length: 1"), Refused(&[400])),
        (with("Transfer-Encoding: chunked"), Refused(&[400])),
        (with("transfer-encoding: Chunked"), Refused(&[400])),
        (with("Transfer-Encoding: identity"), Refused(&[400])),
        (with("Transfer-Encoding:"), Refused(&[400])),
        ("Content-Length: +LENGTH", Refused(&[400])),
        ("Content-Length: LENGTH, LENGTH", Refused(&[400])),
        ("Content-Length: 0xLENGTH", Refused(&[400])),
        ("Content-Length: LENGTH LENGTH", Refused(&[400])),
        ("Content-Length:", Refused(&[400])),
        ("Content-Length: 18446744073709551617", Refused(&[400])),
    ];
    check_all(&quick(), &cases, |id| task_body(id).into_bytes());
}

#[test]
fn transfer_codings_are_taken_or_refused_as_they_should() {
    let cases = [
        ("Transfer-Encoding: chunked", Runs),
        ("Transfer-Encoding: Chunked", Runs),
        ("Transfer-Encoding: CHUNKED", Runs),
        ("tRANSFER-eNCODING:\tchunKed ", Runs),
        ("Transfer-Encoding: xchunked", Refused(&[0, 400, 501])),
        ("Transfer-Encoding: chunkedchunked", Refused(&[0, 400, 501])),
        ("Transfer-Encoding: chunked, gzip", Refused(&[0, 400, 501])),
        ("Transfer-Encoding: gzip, chunked", Refused(&[0, 400, 501])),
        (
            "Transfer-Encoding: chunked, chunked",
            Refused(&[0, 400, 501]),
        ),
        ("Transfer-Encoding: \"chunked\"", Refused(&[0, 400, 501])),
        ("Transfer-Encoding: chunked;q=1", Refused(&[0, 400, 501])),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            Refused(&[400]),
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: LENGTH",
            Refused(&[400]),
        ),
    ];
    check_all(&quick(), &cases, |id| {
        let body = task_body(id);
        format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()).into_bytes()
    });
}

/// Chunked bodies: `SIZE` is the size of the task in hexadecimal, `BODY` is the task; `HALF1` and `HALF2`
/// are its halves, of `SIZE1` and `SIZE2` bytes.
#[test]
fn chunks_are_taken_or_refused_as_they_should() {
    let (whole, refused) = ("SIZE\r\nBODY\r\n0\r\n", || Refused(&[0, 400]));
    let behind = |tail: &str| -> &'static str { format!("{whole}{tail}").leak() };
    let many = "X-Trailer: value\r\n".repeat(10_000);
    let long = format!("X-Trailer: {}\r\n\r\n", "x".repeat(200_000));
    let extension = format!("SIZE;x={}\r\nBODY\r\n0\r\n\r\n", "x".repeat(200_000));
    let cases: Vec<(&str, Outcome)> = vec![
        (behind("\r\n"), Runs),
        ("SIZE1\r\nHALF1\r\nSIZE2\r\nHALF2\r\n0\r\n\r\n", Runs),
        ("SIZE\r\nBODY\r\n000\r\n\r\n", Runs),
        ("0000SIZE\r\nBODY\r\n0\r\n\r\n", Runs),
        (behind("X-Trailer: value\r\n\r\n"), Runs),
        (behind("X-One: 1\r\nX-Two: a\tb\r\nX-Three:\r\n\r\n"), Runs),
        ("SIZE;name=value\r\nBODY\r\n0\r\n\r\n", Runs),
        ("SIZE;name\r\nBODY\r\n0;last=\"of all; 5\"\r\n\r\n", Runs),
        ("SIZE;a=b;c=\"d\"\r\nBODY\r\n0\r\nX: y\r\n\r\n", Runs),
        ("+SIZE\r\nBODY\r\n0\r\n\r\n", refused()),
        ("-SIZE\r\nBODY\r\n0\r\n\r\n", refused()),
        ("0xSIZE\r\nBODY\r\n0\r\n\r\n", refused()),
        (" SIZE\r\nBODY\r\n0\r\n\r\n", refused()),
        ("SIZE name\r\nBODY\r\n0\r\n\r\n", refused()),
        ("SIZE\nBODY\r\n0\r\n\r\n", refused()),
        ("SIZE\rBODY\r\n0\r\n\r\n", refused()),
        ("SIZE\r\nBODY\n0\r\n\r\n", refused()),
        ("SIZE\r\nBODY0\r\n\r\n", refused()),
        ("SIZE\r\nBODY\r\n\r\n0\r\n\r\n", refused()),
        ("\r\nSIZE\r\nBODY\r\n0\r\n\r\n", refused()),
        (
            "10000000000000SIZE\r\nBODY\r\n0\r\n\r\n",
            Refused(&[0, 400, 413]),
        ),
        (
            "fffffffffffffffff\r\nBODY\r\n0\r\n\r\n",
            Refused(&[0, 400, 413]),
        ),
        (behind("no colon\r\n\r\n"), refused()),
        (behind(" folded: line\r\n\r\n"), refused()),
        (behind("X-Trailer: a\nb: c\r\n\r\n"), refused()),
        // More than any sensible limit.
        (
            format!("{whole}{many}\r\n").leak(),
            Refused(&[0, 400, 413, 431]),
        ),
        (
            format!("{whole}{long}").leak(),
            Refused(&[0, 400, 413, 431]),
        ),
        (&extension, Refused(&[0, 400, 413, 431])),
        // Broken off: what follows here is the end.
        ("SIZE\r\nBODY\r\n0\r\nEND", refused()),
        ("SIZE\r\nBODY\r\n0\r\nX: y\r\nEND", refused()),
        ("SIZE\r\nBODY\r\n0END", refused()),
        ("SIZE\r\nBODY\r\nEND", refused()),
        ("SIZE\r\nBODYEND", refused()),
        // What has come would do as a task, and more was promised.
        ("fff\r\nBODYEND", refused()),
        ("SIZE1\r\nHALF1\r\nfff\r\nHALF2END", refused()),
        ("SIZE1\r\nHALF1\r\nSIZE2\r\nEND", refused()),
        ("SIZE1\r\nHALF1\r\nEND", refused()),
        ("END", refused()),
    ];
    let (server, head) = (quick(), "POST /api/v1/task HTTP/1.1\r\nHost: localhost\r\n");
    let mut failures = Vec::new();
    for (n, (form, outcome)) in cases.iter().enumerate() {
        let id = format!("chunks-{n:03}");
        let body = task_body(&id);
        let (first, second) = body.split_at(body.len() / 2);
        let hexadecimal = |text: &str| format!("{:x}", text.len());
        let bytes = form
            .replace("SIZE1", &hexadecimal(first))
            .replace("SIZE2", &hexadecimal(second))
            .replace("SIZE", &hexadecimal(&body))
            .replace("HALF1", first)
            .replace("HALF2", second)
            .replace("BODY", &body);
        let shown = &form[..form.len().min(60)];
        let lines = format!("X-Case: {n}\r\nTransfer-Encoding: chunked");
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            match bytes.strip_suffix("END") {
                None => check(&server, &id, &lines, bytes.as_bytes(), outcome),
                Some(start) => {
                    let mut client = Client::open(server.address);
                    client.patience(CUT);
                    client.send(format!("{head}{lines}\r\n\r\n{start}").as_bytes());
                    client.finish();
                    let (answers, _) = client.answers(false);
                    assert!(
                        answers.iter().all(|reply| reply.status == 400),
                        "{answers:?}"
                    );
                    assert!(!exists(&server, &id), "executed: broken off");
                }
            }
        }));
        if checked.is_err() {
            failures.push(shown);
        }
    }
    assert!(
        failures.is_empty(),
        "{} wrong: {failures:#?}",
        failures.len()
    );
}

/// Wherever a submit breaks off, by FIN or by time, it is not executed.
#[test]
fn what_is_broken_off_is_never_executed() {
    let server = quick();
    // Without the spaces at its end it would do as well.
    let body = format!("{}{}", task_body("broken-off"), " ".repeat(60));
    let post = "POST /api/v1/task HTTP/1.1\r\nHost: localhost\r\n";
    let half = body.len() / 2;
    let (first, second) = body.split_at(half);
    let length = format!("{post}Content-Length: {}\r\n\r\n{body}", body.len());
    let chunked = format!(
        "{post}Transfer-Encoding: chunked\r\n\r\n{half:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        second.len()
    );
    thread::scope(|scope| {
        for whole in [&length, &chunked] {
            for size in (1..whole.len()).step_by(3).chain([whole.len() - 1]) {
                let mut client = Client::open(server.address);
                client.send(&whole.as_bytes()[..size]);
                if size % 2 == 0 {
                    client.finish();
                }
                client.patience(CUT);
                scope.spawn(move || {
                    let (answers, end) = client.answers(false);
                    let refused = answers.iter().all(|r| [400, 408].contains(&r.status));
                    assert!(refused, "{answers:?} for {size} bytes");
                    assert_ne!(end, edge::NoAnswer::TimedOut, "{size} bytes");
                });
            }
        }
    });
    assert!(!exists(&server, "broken-off"));
}
