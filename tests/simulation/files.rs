//! Files of tasks: some tasks lay files down and ask for one back, and every agent reports more than was asked for. Some
//! replace the program of agents.
//!
//! That the index of blobs fits the tasks is one of the core's invariants, which are checked after every step; here is
//! what keeps it busy.

use sidebike::core::Files;
use sidebike::wire::duration::TimeSpan;
use sidebike::wire::files::{BlobId, Fetch, FetchedFile, File};
use sidebike::wire::update::Update;

/// The path that some tasks ask for.
const ASKED: &str = "/tmp/asked";

/// One of a few blobs.
fn blob(n: u64) -> String {
    BlobId([(n % 5) as u8; 32]).to_string()
}

/// The files of a task; the number makes them different.
pub fn files(n: u64) -> Box<Files> {
    let file = |n: u64| File {
        sha256: blob(n),
        size: 1,
        name: Some("x".into()),
        path: None,
        mode: None,
        unpack: None,
        strip: None,
        if_exists: None,
        in_place: false,
        remove: false,
    };
    let fetch = Fetch {
        path: ASKED.into(),
        max: None,
        missing_ok: true,
    };
    Box::new(Files {
        // The same blob may stand there twice.
        files: (0..n % 4).map(|i| file(n / 4 * i)).collect(),
        timeout: TimeSpan::from_secs(1),
        fetch: vec![fetch],
        update: None,
    })
}

/// A task that replaces the program of agents.
pub fn update(n: u64) -> Box<Files> {
    Box::new(Files {
        files: Vec::new(),
        timeout: TimeSpan::from_secs(1),
        fetch: Vec::new(),
        update: Some(Update {
            version: "0.2.0".into(),
            images: [("x86_64".to_owned(), blob(n))].into(),
            probation: None,
        }),
    })
}

/// What an agent says that it has handed back.
pub fn handed_back(n: u64) -> Vec<FetchedFile> {
    let file = |path: &str, sha256: String| FetchedFile {
        path: path.into(),
        sha256,
        size: 1,
        truncated: false,
    };
    vec![
        file(ASKED, blob(n)),
        file("/tmp/unasked", blob(n)),
        file(ASKED, "no hash".into()),
    ]
}
