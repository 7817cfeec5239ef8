//! Against a real PostgreSQL, where one is installed.

#[path = "../../../../../tests/postgresql/mod.rs"]
pub(super) mod postgresql;

use self::postgresql::{PostgreSql, hand_over};
use super::*;
use crate::core::{OutputChange, OutputKey, SavedPiece, TaskKey};
use crate::server::state::db::script;
use crate::wire::agent::Stream as OutputStream;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

const ADDRESS: &str = "https://a:9410";

/// How many statements wait for a lock, and how many for a standby, in the database of the query.
pub(super) const LOCKED_OUT: &str = "SELECT count(*) FROM pg_stat_activity \
    WHERE datname = current_database() AND wait_event_type = 'Lock'";
pub(super) const UNREPLICATED: &str = "SELECT count(*) FROM pg_stat_activity \
    WHERE datname = current_database() AND wait_event = 'SyncRep'";

pub(super) fn connector(url: &str) -> Postgres {
    Postgres::connector(url, None, None, Some(ADDRESS.into())).unwrap()
}

pub(super) fn engine(url: &str) -> Box<dyn StorageEngine> {
    connector(url).connect(Holder::fresh())
}

/// One that has just taken the lead.
fn leader(url: &str) -> (Box<dyn StorageEngine>, Term) {
    let mut engine = engine(url);
    let seen = engine.look().unwrap().record;
    let term = engine.take(&seen).unwrap().unwrap();
    (engine, term)
}

fn number(term: Term, n: u64, after: u64) -> CommitNumber {
    CommitNumber { term, n, after }
}

/// Limits of these names, set or removed.
fn limits(names: &[(&str, bool)]) -> Batch {
    let mut batch = Batch::default();
    for (name, is_set) in names {
        let limit = is_set.then(|| serde_json::from_value(json!({"running": 3})).unwrap());
        batch.limits.insert((*name).into(), limit);
    }
    batch
}

fn saved_limits(engine: &mut dyn StorageEngine) -> Vec<String> {
    let saved = engine.load().unwrap();
    saved.limits.keys().map(|name| name.to_string()).collect()
}

const KEY: OutputKey = OutputKey {
    task: TaskKey(1),
    n: 0,
    attempt: 1,
};

fn output(data: Vec<u8>) -> OutputChange {
    OutputChange::Appended(SavedPiece {
        stream: OutputStream::Stderr,
        offset: 7,
        data,
    })
}

/// A transaction that stays open until it is committed.
pub(super) struct Transaction(Child);

impl Transaction {
    pub(super) fn begin(server: &PostgreSql, url: &str, sql: &str) -> Transaction {
        let mut psql = server.psql(url).stdin(Stdio::piped()).spawn().unwrap();
        let input = psql.stdin.as_mut().unwrap();
        writeln!(input, "BEGIN; {sql};").unwrap();
        let begun = "SELECT count(*) FROM pg_stat_activity \
            WHERE datname = current_database() AND state = 'idle in transaction'";
        server.wait_for(url, begun, "1");
        Transaction(psql)
    }

    pub(super) fn commit(mut self) {
        writeln!(self.0.stdin.take().unwrap(), "COMMIT;").unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

#[test]
fn postgresql_keeps_every_promise() {
    let Some(server) = PostgreSql::shared() else {
        return;
    };
    let url = server.database();
    script::run(Some(ADDRESS), engine(&url), |before| {
        drop(before);
        engine(&url)
    });
}

#[test]
fn a_commit_that_waits_for_a_takeover_wakes_up_and_changes_nothing() {
    let Some(server) = PostgreSql::shared() else {
        return;
    };
    let url = server.database();
    let (mut old, term) = leader(&url);
    let takeover = "UPDATE sb_leader SET term = term + 1, holder = 5, beat = 0";
    let takeover = Transaction::begin(&server, &url, takeover);
    let waiting = thread::spawn(move || {
        let committed = old.commit(number(term, 1, 0), Time(1), &limits(&[("a", true)]));
        (old, committed)
    });
    server.wait_for(&url, LOCKED_OUT, "1");
    takeover.commit();
    let (mut old, committed) = waiting.join().unwrap();
    assert_eq!(committed, Committed::Fenced);
    assert_eq!(saved_limits(&mut *old), [""; 0]);
    let record = old.look().unwrap().record;
    assert_eq!((record.term, record.beat), (term.next(), 0));
}

#[test]
fn a_commit_sees_what_an_earlier_one_did_for_which_it_had_to_wait() {
    let Some(server) = PostgreSql::shared() else {
        return;
    };
    let url = server.database();
    let (mut engine, term) = leader(&url);
    // The connection of a commit broke, and it is still on its way.
    let earlier = "UPDATE sb_leader SET beat = 1; \
        INSERT INTO sb_limit VALUES ('b', '{\"running\": 1}')";
    let earlier = Transaction::begin(&server, &url, earlier);
    let waiting = thread::spawn(move || {
        // Contains the earlier one, whose limit is removed again.
        let batch = limits(&[("a", true), ("b", false)]);
        let committed = engine.commit(number(term, 2, 0), Time(1), &batch);
        (engine, committed)
    });
    server.wait_for(&url, LOCKED_OUT, "1");
    earlier.commit();
    let (mut engine, committed) = waiting.join().unwrap();
    assert_eq!(committed, Committed::Done);
    assert_eq!(saved_limits(&mut *engine), ["a"]);
    assert_eq!(engine.look().unwrap().record.beat, 2);
}

#[test]
fn who_wants_the_lead_does_not_wait_long_for_a_commit() {
    let Some(server) = PostgreSql::shared() else {
        return;
    };
    let url = server.database();
    let mut standby = engine(&url);
    let seen = standby.look().unwrap().record;
    let commit = Transaction::begin(&server, &url, "UPDATE sb_leader SET beat = beat + 1");
    let since = Instant::now();
    let why = standby.take(&seen).unwrap_err();
    assert!(why.contains("is locked"), "{why}");
    assert!((2..30).contains(&since.elapsed().as_secs()));
    commit.commit();
    assert_eq!(standby.take(&seen), Ok(None), "it has moved since");
}

/// A way to a server that lets so many bytes through in its direction, and then no more.
struct Dam {
    address: SocketAddr,
    left: Arc<AtomicUsize>,
}

impl Dam {
    fn before(port: u16) -> Dam {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let left = Arc::new(AtomicUsize::new(usize::MAX));
        let for_thread = left.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || std::io::copy(&mut &back.0, &mut &back.1));
                let left = for_thread.clone();
                thread::spawn(move || Dam::pass(client, server, &left));
            }
        });
        Dam { address, left }
    }

    fn pass(mut client: TcpStream, mut server: TcpStream, left: &AtomicUsize) {
        let mut bytes = [0; 4096];
        loop {
            let open = left.load(Ordering::SeqCst).min(bytes.len());
            if open == 0 {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            match client.read(&mut bytes[..open]) {
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    left.fetch_sub(n, Ordering::SeqCst);
                    if server.write_all(&bytes[..n]).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

#[test]
fn half_a_batch_blocks_nobody_and_a_stuck_connection_is_given_up() {
    let Some(server) = PostgreSql::shared() else {
        return;
    };
    let url = server.database();
    let dam = Dam::before(server.port());
    let way = url.replace(&server.port().to_string(), &dam.address.port().to_string());
    let (mut old, term) = leader(&way);
    let mut batch = limits(&[("a", true)]);
    // More than all buffers on the way can hold.
    batch.output.push((KEY, output(vec![b'x'; 32 << 20])));
    dam.left.store(1 << 20, Ordering::SeqCst);
    let stuck = thread::spawn(move || {
        let committed = old.commit(number(term, 1, 0), Time(1), &batch);
        (old, committed)
    });
    while dam.left.load(Ordering::SeqCst) > 0 {
        thread::sleep(Duration::from_millis(10));
    }
    let since = Instant::now();
    let (mut new, _) = leader(&url);
    assert!(
        since.elapsed() < Duration::from_secs(2),
        "{:?}",
        since.elapsed()
    );
    let (mut old, committed) = stuck.join().unwrap();
    assert!(matches!(committed, Committed::Unknown(_)), "{committed:?}");
    assert_eq!(saved_limits(&mut *new), [""; 0]);
    dam.left.store(usize::MAX, Ordering::SeqCst);
    let again = old.commit(number(term, 2, 0), Time(1), &limits(&[("a", true)]));
    assert_eq!(again, Committed::Fenced);
}

#[test]
fn a_canceled_wait_for_a_standby_is_no_acknowledgement() {
    // The other tests must not wait for a standby that is not there.
    let Some(server) = PostgreSql::start(&["fsync=off"]) else {
        return;
    };
    let url = server.database();
    // What a role may have set must not hide the warning, nor end the wait.
    server.sql(
        "postgres",
        "ALTER ROLE postgres SET client_min_messages = error",
    );
    server.sql(
        "postgres",
        "ALTER ROLE postgres SET synchronous_commit = off",
    );
    let (mut engine, term) = leader(&url);
    server.set("synchronous_standby_names", "nobody");
    let waiting = thread::spawn(move || {
        let committed = engine.commit(number(term, 1, 0), Time(1), &limits(&[("a", true)]));
        (engine, committed)
    });
    server.wait_for(&url, UNREPLICATED, "1");
    server.sql(
        &url,
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
    );
    let (mut engine, committed) = waiting.join().unwrap();
    match committed {
        Committed::Unknown(why) => assert!(why.contains("canceling wait"), "{why}"),
        other => panic!("{other:?}"),
    }
    // Everybody sees it, although it is not safe: written again it waits again, even under its number.
    assert_eq!(engine.look().unwrap().record.beat, 1);
    let waiting =
        thread::spawn(move || engine.commit(number(term, 1, 0), Time(1), &limits(&[("a", true)])));
    server.wait_for(&url, UNREPLICATED, "1");
    server.set("synchronous_standby_names", "");
    assert_eq!(waiting.join().unwrap(), Committed::Done);
}

#[test]
fn a_commit_goes_on_at_the_standby_that_was_promoted() {
    let Some(primary) = PostgreSql::start(&["fsync=off"]) else {
        return;
    };
    let url = primary.database();
    let standby = primary.standby();
    let database = url.rsplit('/').next().unwrap();
    // The standby is asked first, and refused as long as it is one.
    let both = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/{database}",
        standby.port(),
        primary.port()
    );
    let postgres = connector(&both);
    assert_eq!(postgres.is_synchronous(), None);
    let mut engine = postgres.connect(Holder::fresh());
    let seen = engine.look().unwrap().record;
    assert_eq!(postgres.is_synchronous(), Some(true));
    let term = engine.take(&seen).unwrap().unwrap();
    let done = engine.commit(number(term, 1, 0), Time(1), &limits(&[("a", true)]));
    assert_eq!(done, Committed::Done);
    primary.kill();
    let lost = engine.commit(number(term, 2, 1), Time(2), &limits(&[("b", true)]));
    match lost {
        Committed::Unknown(why) => assert!(why.contains("is a standby"), "{why}"),
        other => panic!("{other:?}"),
    }
    standby.promote();
    let batch = limits(&[("b", true), ("c", true)]);
    let done = engine.commit(number(term, 3, 1), Time(3), &batch);
    assert_eq!(done, Committed::Done);
    assert_eq!(saved_limits(&mut *engine), ["a", "b", "c"]);
    assert_eq!(postgres.is_synchronous(), Some(false));
}

#[test]
fn any_bytes_and_many_rows_come_back() {
    let Some(server) = PostgreSql::shared() else {
        return;
    };
    let (mut engine, term) = leader(&server.database());
    let names: Vec<String> = (0..9_001).map(|i| format!("{i}\0\u{7f}ü")).collect();
    let mut batch = Batch::default();
    for name in &names {
        let limit = serde_json::from_value(json!({"running": 3})).unwrap();
        batch.limits.insert(name.as_str().into(), Some(limit));
    }
    let all_bytes: Vec<u8> = (0..5 << 20).map(|i: u32| i.to_le_bytes()[0]).collect();
    batch.output.push((KEY, output(all_bytes.clone())));
    batch.output.push((KEY, output(Vec::new())));
    let done = engine.commit(number(term, 1, 0), Time(1), &batch);
    assert_eq!(done, Committed::Done);
    let saved = engine.load().unwrap();
    assert!(saved.limits.keys().eq(batch.limits.keys()));
    let lengths: Vec<usize> = saved.output.iter().map(|(_, it)| it.data.len()).collect();
    assert_eq!(lengths, [5 << 20, 0]);
    assert!(saved.output[0].1.data == all_bytes);
    assert_eq!(saved.output[0].1.offset, 7);
}

#[test]
fn after_a_restart_of_the_database_the_next_call_connects_again() {
    let Some(server) = PostgreSql::start(&["fsync=off"]) else {
        return;
    };
    let url = server.database();
    let (mut engine, term) = leader(&url);
    server.stop();
    let why = engine.look().unwrap_err();
    assert!(why.contains("cannot connect"), "{why}");
    server.run();
    let done = engine.commit(number(term, 1, 0), Time(1), &limits(&[("a", true)]));
    assert_eq!(done, Committed::Done);
    server.stop();
    server.run();
    // The broken connection is noticed before anything is sent.
    let done = engine.commit(number(term, 2, 1), Time(1), &limits(&[("b", true)]));
    assert_eq!(done, Committed::Done);
}

/// Why a look fails.
fn refusal(url: &str, ca: Option<&Path>) -> String {
    let postgres = Postgres::connector(url, ca, None, None).unwrap();
    let why = postgres.connect(Holder::fresh()).look().unwrap_err();
    assert!(!why.contains("S3CRET"), "{why}");
    assert!(!postgres.shown().contains("S3CRET"));
    why
}

#[test]
fn what_is_wrong_with_the_way_in_is_said_and_no_password_with_it() {
    let Some(server) = PostgreSql::shared() else {
        return;
    };
    let url = server.database();
    server.sql(
        &url,
        "CREATE ROLE with_scram LOGIN PASSWORD 'S3CRET ü,'; CREATE ROLE with_clear LOGIN; \
         CREATE ROLE with_md5 LOGIN; CREATE ROLE nobody LOGIN; SET password_encryption = md5; \
         ALTER ROLE with_md5 PASSWORD 'S3CRET'; ALTER ROLE with_clear PASSWORD 'S3CRET'",
    );
    let with = |login: &str| url.replace("postgres@", &format!("{login}@"));
    let mut made = engine(&url);
    made.look().unwrap();
    server.sql(&url, "GRANT SELECT ON sb_leader TO with_scram, with_md5");
    for login in ["with_scram:S3CRET%20%C3%BC%2C", "with_md5:S3CRET"] {
        engine(&with(login)).look().unwrap();
    }
    let empty = server.database();
    let empty = empty.replace("postgres@", "with_scram:S3CRET%20%C3%BC%2C@");
    let cases = [
        (with("with_scram:S3CRET"), "password authentication failed"),
        (with("with_md5:S3CRET2"), "password authentication failed"),
        (with("with_scram"), "SIDEBIKE_DB_PASSWORD_FILE"),
        (with("with_clear:S3CRET"), "for the password unencrypted"),
        (with("nobody"), "rejects connection"),
        (with("stranger"), "role \"stranger\" does not exist"),
        (server.url("none"), "database \"none\" does not exist"),
        (empty, "`sidebike db schema`"),
        (format!("{url}?sslmode=require"), "does not speak TLS"),
        (format!("{url}?options=-c%20nonsense%3D1"), "nonsense"),
        (
            "postgres://u@127.0.0.1:1,[::1]:1/d".into(),
            "127.0.0.1:1: cannot connect",
        ),
        (
            "postgres://u@h.invalid/d?sslmode=disable".into(),
            "h.invalid:5432: its name",
        ),
    ];
    for (url, words) in cases {
        let why = refusal(&url, None);
        assert!(why.contains(words), "{url}: {why}");
    }
    // A server of something else.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let other = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let why = refusal(&format!("postgres://u@{other}/d"), None);
    assert!(why.contains("is not PostgreSQL"), "{why}");
}

#[test]
fn tls_is_verified() {
    let folder = std::env::temp_dir().join(format!("sidebike-pg-tls-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let own = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let own = own.signed_by(&key, &authority).unwrap();
    let other =
        CertifiedIssuer::self_signed(CertificateParams::default(), KeyPair::generate().unwrap());
    let file = |name: &str, text: String| {
        let file = folder.join(name);
        std::fs::write(&file, text).unwrap();
        hand_over(&file);
        file
    };
    let (cert, key) = (file("cert", own.pem()), file("key", key.serialize_pem()));
    let (ca, other) = (
        file("ca", authority.pem()),
        file("other", other.unwrap().pem()),
    );
    let settings = [
        "fsync=off".to_owned(),
        "ssl=on".to_owned(),
        format!("ssl_cert_file={}", cert.display()),
        format!("ssl_key_file={}", key.display()),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    if let Some(server) = PostgreSql::start(&settings) {
        let url = server.database();
        let encrypted = format!(
            "{}?sslmode=verify-full",
            url.replace("127.0.0.1", "localhost")
        );
        let connect = |url: &str| {
            let postgres = Postgres::connector(url, Some(&ca), None, None).unwrap();
            postgres.connect(Holder::fresh())
        };
        let mut engine = connect(&encrypted);
        engine.look().unwrap();
        let ask = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
            WHERE ssl AND application_name = 'sidebike'";
        assert_eq!(server.sql(&url, ask), "1");
        // A password may cross an encrypted connection.
        server.sql(
            &url,
            "CREATE ROLE with_clear LOGIN PASSWORD 'S3CRET'; GRANT SELECT ON sb_leader TO with_clear",
        );
        let mut with_password = connect(&encrypted.replace("postgres@", "with_clear:S3CRET@"));
        with_password.look().unwrap();
        let why = refusal(&encrypted, Some(&other));
        assert!(why.contains("TLS: ") && why.contains("--db-ca"), "{why}");
        let wrong_name = encrypted.replace("localhost", "127.0.0.1");
        let why = refusal(&wrong_name, Some(&ca));
        assert!(why.contains("TLS: "), "{why}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn servers_that_start_at_the_same_time_make_the_tables_once() {
    let Some(server) = PostgreSql::shared() else {
        return;
    };
    let url = server.database();
    let looks: Vec<_> = (0..8)
        .map(|_| {
            let mut engine = engine(&url);
            thread::spawn(move || engine.look().unwrap())
        })
        .collect();
    let mut seen: Vec<Seen> = looks.into_iter().map(|look| look.join().unwrap()).collect();
    seen.dedup();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].record, LeaderRecord::default());
    assert!(seen[0].secret.0 != [0; Secret::BYTES]);
    let other = engine(&server.database()).look().unwrap();
    assert_ne!(
        (other.registry, other.secret),
        (seen[0].registry, seen[0].secret.clone())
    );
}

#[test]
fn records_of_a_newer_program_are_left_alone() {
    let Some(server) = PostgreSql::shared() else {
        return;
    };
    let url = server.database();
    let mut engine = engine(&url);
    let seen = engine.look().unwrap().record;
    server.sql(&url, "UPDATE sb_leader SET version = 99");
    for why in [engine.look().unwrap_err(), engine.load().unwrap_err()] {
        assert!(why.contains("written by a newer sidebike"), "{why}");
    }
    assert_eq!(engine.take(&seen), Ok(None));
}
