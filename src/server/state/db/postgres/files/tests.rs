//! Against a real PostgreSQL, where one is installed.

use super::super::tests::postgresql::PostgreSql;
use super::super::tests::{LOCKED_OUT, Transaction, UNREPLICATED, connector, engine};
use super::*;
use crate::server::state::db::{Connect, StorageEngine};
use std::thread;

/// The server that has just taken the lead: its connection, and one for its files.
fn leader(url: &str) -> (Box<dyn StorageEngine>, Box<dyn Vault>) {
    let (postgres, holder) = (connector(url), Holder::fresh());
    let mut engine = postgres.connect(holder);
    let seen = engine.look().unwrap().record;
    let term = engine.take(&seen).unwrap().unwrap();
    let open = postgres.vault(holder, Arc::new(move || term)).unwrap();
    (engine, open())
}

fn id(bytes: &[u8]) -> BlobId {
    BlobId(Sha256::digest(bytes).into())
}

fn entry(bytes: &[u8], name: &str, seconds: u64, upload: UploadNumber) -> Entry {
    Entry {
        id: id(bytes),
        bytes: bytes.len() as u64,
        name: name.into(),
        since: UNIX_EPOCH + Duration::from_secs(seconds),
        upload,
    }
}

fn put_all(files: &mut dyn Vault, upload: UploadNumber, bytes: &[u8]) {
    for (n, piece) in (0..).zip(bytes.chunks(VAULT_PIECE_BYTES as usize)) {
        files.put(upload, n, piece).unwrap();
    }
}

const COUNTS: &str = "SELECT (SELECT count(*) FROM sb_blob), (SELECT count(*) FROM sb_blob_piece)";

#[test]
fn a_file_is_there_once_it_has_its_name_and_goes_with_its_pieces() {
    let Some(server) = PostgreSql::shared() else {
        return;
    };
    let url = server.database();
    let (_engine, mut files) = leader(&url);
    let bytes: Vec<u8> = (0..2_500_000_u32).map(|n| (n % 251) as u8).collect();
    let (first, second) = (UploadNumber::fresh(), UploadNumber::fresh());
    put_all(&mut *files, first, &bytes);
    // A piece that is repeated, perhaps because its answer was lost.
    files.put(first, 0, &bytes[..1 << 20]).unwrap();
    let found = files.list().unwrap();
    assert!(found.blobs.is_empty() && found.broken.is_empty());
    assert_eq!(found.leftovers, [first]);

    let kept = entry(&bytes, "x", 1_000, first);
    assert_eq!(files.name(&kept).unwrap(), Named::By(first));
    assert_eq!(files.list().unwrap().blobs, std::slice::from_ref(&kept));
    for (n, piece) in (0..).zip(bytes.chunks(1 << 20)) {
        assert_eq!(files.piece(first, n).unwrap().unwrap(), piece);
    }
    assert_eq!(files.piece(first, 3).unwrap(), None);

    // The same file again is the first one, and fresher.
    put_all(&mut *files, second, &bytes);
    let again = entry(&bytes, "", 2_000, second);
    assert_eq!(files.name(&again).unwrap(), Named::By(first));
    files.discard(second).unwrap();
    files.discard(first).unwrap();
    let fresher = entry(&bytes, "x", 2_000, first);
    let found = files.list().unwrap();
    assert!(found.broken.is_empty() && found.leftovers.is_empty());
    assert_eq!(found.blobs, [fresher]);

    // Without all of its pieces nothing gets a name; an empty file has none.
    let half = entry(b"half", "", 0, UploadNumber::fresh());
    files.put(half.upload, 0, b"hal").unwrap();
    assert_eq!(files.name(&half).unwrap(), Named::Incomplete);
    let empty = entry(b"", "", 0, UploadNumber::fresh());
    assert_eq!(files.name(&empty).unwrap(), Named::By(empty.upload));
    files.remove(empty.id, empty.upload).unwrap();

    // A removal that comes late concerns its own upload only.
    files.remove(kept.id, second).unwrap();
    assert_eq!(files.list().unwrap().blobs.len(), 1);
    files.remove(kept.id, first).unwrap();
    files.remove(kept.id, first).unwrap();
    assert_eq!(server.sql(&url, COUNTS), "0|4");
    files.discard(first).unwrap();
    files.discard(half.upload).unwrap();
    assert_eq!(server.sql(&url, COUNTS), "0|0");

    // What somebody has taken pieces from is not listed as whole.
    put_all(&mut *files, second, &bytes);
    let kept = entry(&bytes, "x", 1_000, second);
    files.name(&kept).unwrap();
    server.sql(&url, "DELETE FROM sb_blob_piece WHERE n = 1");
    let found = files.list().unwrap();
    assert_eq!((found.blobs, found.broken), (vec![], vec![kept]));
}

#[test]
fn an_old_leader_neither_adds_nor_removes_a_file() {
    let Some(server) = PostgreSql::shared() else {
        return;
    };
    let url = server.database();
    let (_old_engine, mut old) = leader(&url);
    let (kept, coming) = (
        entry(b"kept", "", 0, UploadNumber::fresh()),
        entry(b"coming", "", 0, UploadNumber::fresh()),
    );
    old.put(kept.upload, 0, b"kept").unwrap();
    assert_eq!(old.name(&kept).unwrap(), Named::By(kept.upload));
    old.put(coming.upload, 0, b"coming").unwrap();

    // A statement that has begun when another server takes the lead, and waits for it.
    let takeover = "UPDATE sb_leader SET term = term + 1, holder = 5, beat = 0";
    let takeover = Transaction::begin(&server, &url, takeover);
    let waiting = thread::spawn(move || {
        let named = old.name(&coming);
        (old, coming, named)
    });
    server.wait_for(&url, LOCKED_OUT, "1");
    takeover.commit();
    let (mut old, coming, named) = waiting.join().unwrap();
    assert!(named.unwrap_err().contains("another server leads"));

    let (_engine, mut new) = leader(&url);
    for done in [
        old.put(kept.upload, 0, b"other"),
        old.put(UploadNumber::fresh(), 0, b"other"),
        old.name(&coming).map(drop),
        old.remove(kept.id, kept.upload),
        old.discard(coming.upload),
    ] {
        assert!(done.unwrap_err().contains("another server leads"));
    }
    let found = new.list().unwrap();
    assert_eq!(found.blobs, std::slice::from_ref(&kept));
    assert_eq!(found.leftovers, [coming.upload]);
    assert_eq!(new.piece(kept.upload, 0).unwrap().unwrap(), b"kept");
}

#[test]
fn a_database_of_an_earlier_build_gets_the_tables_of_files() {
    let Some(server) = PostgreSql::shared() else {
        return;
    };
    let url = server.database();
    let leads = |engine: &mut dyn StorageEngine| engine.look().unwrap().record.term;
    let (mut first, _) = leader(&url);
    let term = leads(&mut *first);
    drop(first);
    server.sql(&url, "DROP TABLE sb_blob_piece, sb_blob");
    assert_eq!(leads(&mut *engine(&url)), term);
    assert_eq!(server.sql(&url, COUNTS), "0|0");
    let storage = "SELECT attstorage FROM pg_attribute WHERE attname = 'bytes' \
         AND attrelid = 'sb_blob_piece'::regclass";
    assert_eq!(server.sql(&url, storage), "e");
}

#[test]
fn a_canceled_wait_for_a_standby_saves_no_file() {
    // The other tests must not wait for a standby that is not there.
    let Some(server) = PostgreSql::start(&["fsync=off"]) else {
        return;
    };
    let url = server.database();
    let (_engine, mut files) = leader(&url);
    let kept = entry(b"kept", "", 0, UploadNumber::fresh());
    files.put(kept.upload, 0, b"kept").unwrap();
    server.set("synchronous_standby_names", "nobody");
    let name = move |mut files: Box<dyn Vault>, entry: Entry| {
        thread::spawn(move || {
            let named = files.name(&entry);
            (files, entry, named)
        })
    };
    let waiting = name(files, kept);
    server.wait_for(&url, UNREPLICATED, "1");
    server.sql(
        &url,
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
    );
    let (files, kept, named) = waiting.join().unwrap();
    let why = named.unwrap_err();
    assert!(why.contains("canceling wait"), "{why}");
    // Said again it waits again, and then it is safe.
    let waiting = name(files, kept);
    server.wait_for(&url, UNREPLICATED, "1");
    server.set("synchronous_standby_names", "");
    let (_, kept, named) = waiting.join().unwrap();
    assert_eq!(named, Ok(Named::By(kept.upload)));
}
