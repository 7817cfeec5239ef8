//! Archives that a task brings, from outside: unpacked, or refused before anything of them is there.
#![cfg(feature = "agent")]

mod common;
mod fake;

use common::Folder;
use fake::blobs::sha256;
use fake::{Server, pair};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sidebike::wire::agent::{Ended, Stream};
use sidebike::wire::task::ExecutionState;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use tar::{Builder, EntryType, Header};

/// An entry: its type, name, target, mode and bytes.
type Entry<'a> = (EntryType, &'a str, &'a str, u32, &'a [u8]);

const FILE: EntryType = EntryType::Regular;
const LINK: EntryType = EntryType::Symlink;

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, target, mode, bytes) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_size(bytes.len() as u64);
        // The library would refuse to write what is tried here.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

fn zipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Has an archive unpacked, and then a command run in the folder of the test.
fn unpack(server: &Server, name: &str, folder: &Folder, archive: &[u8], more: Value) -> Ended {
    let hash = sha256(archive);
    server.change(|seen| drop(seen.blobs.insert(hash.clone(), archive.to_vec())));
    let mut file = json!({"sha256": hash, "size": archive.len(), "path": "into", "unpack": "tar"});
    for (name, value) in more.as_object().unwrap() {
        file[name] = value.clone();
    }
    let file = serde_json::from_value(file).unwrap();
    let detail = json!({"command": "into/bin/tool; touch started", "workspace": folder.path()});
    server.start_with(name, detail, |start| start.files = vec![file]);
    server.result(name)
}

fn tool() -> Vec<Entry<'static>> {
    vec![
        (EntryType::Directory, "pkg/", "", 0o755, b""),
        (EntryType::Directory, "pkg/empty", "", 0o700, b""),
        (
            FILE,
            "pkg/bin/tool",
            "",
            0o755,
            b"#!/bin/sh\necho \"it runs, $(cat into/data)\"\n",
        ),
        (FILE, "pkg/data", "", 0o640, b"data"),
        (LINK, "pkg/bin/link", "../data", 0o777, b""),
        (EntryType::Link, "pkg/hard", "pkg/data", 0o640, b""),
    ]
}

#[test]
fn a_package_is_unpacked_and_removed() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    let plain = archive(&tool());
    let ended = unpack(&server, "x.1", &folder, &plain, json!({"strip": 1}));
    assert_eq!(ended.state, ExecutionState::Succeeded, "{}", ended.msg);
    assert_eq!(server.text("x.1", Stream::Stdout), "it runs, data\n");
    let mode = |name: &str| {
        fs::metadata(folder.file(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!(
        ["into/empty", "into/bin", "into/bin/tool", "into/data"].map(mode),
        [0o700, 0o755, 0o755, 0o640]
    );
    assert_eq!(
        fs::read_to_string(folder.file("into/bin/link")).unwrap(),
        "data"
    );
    assert_eq!(
        fs::read_to_string(folder.file("into/hard")).unwrap(),
        "data"
    );

    // Over what is there, compressed; what was there stays in the end.
    fs::write(folder.file("into/data"), "changed").unwrap();
    fs::remove_dir_all(folder.file("into/bin")).unwrap();
    let more = json!({"strip": 1, "unpack": "tar.gz", "remove": true});
    let ended = unpack(&server, "x.2", &folder, &zipped(&plain), more);
    assert_eq!(ended.state, ExecutionState::Succeeded, "{}", ended.msg);
    assert!(
        !fs::exists(folder.file("into/bin")).unwrap(),
        "it was made anew"
    );
    assert_eq!(
        fs::read_to_string(folder.file("into/data")).unwrap(),
        "data"
    );
    let keep = json!({"strip": 1, "ifExists": "keep"});
    fs::write(folder.file("into/data"), "changed").unwrap();
    let ended = unpack(&server, "x.3", &folder, &plain, keep);
    assert_eq!(ended.state, ExecutionState::Succeeded, "{}", ended.msg);
    assert_eq!(server.text("x.3", Stream::Stdout), "it runs, changed\n");
    fs::remove_dir_all(folder.file("into/bin")).unwrap();
    let ended = unpack(
        &server,
        "x.4",
        &folder,
        &plain,
        json!({"strip": 1, "ifExists": "fail"}),
    );
    assert!(ended.msg.contains("ifExists is fail"), "{}", ended.msg);
    assert!(
        !fs::exists(folder.file("into/bin")).unwrap(),
        "nothing was begun"
    );

    // The folder is made for it, and all that is in it goes with it.
    fs::remove_dir_all(folder.file("into")).unwrap();
    let ended = unpack(
        &server,
        "x.5",
        &folder,
        &plain,
        json!({"strip": 1, "remove": true}),
    );
    assert_eq!(ended.state, ExecutionState::Succeeded, "{}", ended.msg);
    assert!(!fs::exists(folder.file("into")).unwrap());
}

#[test]
fn what_leads_out_is_refused_and_nothing_is_there() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    fs::create_dir(folder.file("into")).unwrap();
    symlink("/tmp", folder.file("into/theirs")).unwrap();
    let good: Entry<'_> = (FILE, "good", "", 0o644, b"x");
    let way: Entry<'_> = (LINK, "way", ".", 0o777, b"");
    let cases: Vec<(Vec<Entry<'_>>, &str)> = vec![
        (
            vec![good, (FILE, "../out", "", 0o644, b"x")],
            "it has a .. in it",
        ),
        (
            vec![good, (FILE, "/tmp/sidebike-out", "", 0o644, b"x")],
            "an absolute name",
        ),
        (
            vec![
                good,
                (LINK, "l", "/etc", 0o777, b""),
                (FILE, "l/out", "", 0o644, b"x"),
            ],
            "a link to the outside",
        ),
        (
            vec![good, (LINK, "a/l", "../../out", 0o777, b"")],
            "a link to the outside",
        ),
        (
            vec![good, way, (FILE, "way/out", "", 0o644, b"x")],
            "behind a link",
        ),
        (
            vec![good, (EntryType::Link, "h", "/etc/passwd", 0o644, b"")],
            "an absolute name",
        ),
        (
            vec![good, (EntryType::Char, "null", "", 0o666, b"")],
            "a device",
        ),
        (
            vec![good, (EntryType::Fifo, "fifo", "", 0o666, b"")],
            "a fifo",
        ),
        (vec![good, (FILE, "suid", "", 0o4755, b"x")], "setuid"),
        (vec![], "nothing in it"),
    ];
    for (n, (entries, word)) in cases.into_iter().enumerate() {
        let ended = unpack(
            &server,
            &format!("x.{n}"),
            &folder,
            &archive(&entries),
            json!({}),
        );
        assert_eq!(ended.state, ExecutionState::Failed, "{word}");
        assert!(
            ended.msg.contains(word) && ended.msg.starts_with("file into: "),
            "{word}: {}",
            ended.msg
        );
        let left: Vec<_> = fs::read_dir(folder.file("into")).unwrap().collect();
        assert_eq!(left.len(), 1, "{word}: {left:?}");
    }
    // A link that was there before is not followed.
    let through = archive(&[good, (FILE, "theirs/sidebike-out", "", 0o644, b"x")]);
    let ended = unpack(&server, "through", &folder, &through, json!({}));
    assert!(
        ended.msg.contains("theirs is a link or no folder"),
        "{}",
        ended.msg
    );
    for out in [
        "/tmp/sidebike-out",
        &folder.file("out"),
        &folder.file("started"),
    ] {
        assert!(!fs::exists(out).unwrap(), "{out}");
    }
    let no_archive = unpack(
        &server,
        "none",
        &folder,
        b"this is no archive",
        json!({"unpack": "tar.gz"}),
    );
    assert!(
        no_archive.msg.contains("cannot be read as tar.gz"),
        "{}",
        no_archive.msg
    );
}

#[test]
fn a_bomb_is_refused() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    // A header that promises two gigabytes, and as many zeros in a few bytes.
    let mut header = Header::new_gnu();
    header.set_path("bomb").unwrap();
    header.set_mode(0o644);
    header.set_size(2 << 30);
    header.set_cksum();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(header.as_bytes()).unwrap();
    encoder.write_all(&vec![0; 8 << 20]).unwrap();
    let bomb = encoder.finish().unwrap();
    let ended = unpack(&server, "x.1", &folder, &bomb, json!({"unpack": "tar.gz"}));
    assert!(
        ended.msg.contains("more than 1073741824 bytes"),
        "{}",
        ended.msg
    );

    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    for n in 0..100_001 {
        let mut header = Header::new_gnu();
        header.set_path(format!("{n}")).unwrap();
        header.set_mode(0o644);
        header.set_size(0);
        header.set_cksum();
        encoder.write_all(header.as_bytes()).unwrap();
    }
    encoder.write_all(&[0; 1024]).unwrap();
    let many = encoder.finish().unwrap();
    let ended = unpack(&server, "x.2", &folder, &many, json!({"unpack": "tar.gz"}));
    assert!(
        ended.msg.contains("more than 100000 entries"),
        "{}",
        ended.msg
    );
    assert!(!fs::exists(folder.file("into/0")).unwrap());
}

#[test]
fn a_broken_archive_is_refused_before_anything_is_there() {
    let (server, _agent) = pair(&[]);
    let folder = Folder::new();
    // The sum at the end is another one than that of what is in it.
    let mut wrong_sum = zipped(&archive(&tool()));
    let at = wrong_sum.len() - 8;
    wrong_sum[at] ^= 1;
    let tried = json!({"unpack": "tar.gz"});
    let ended = unpack(&server, "x.1", &folder, &wrong_sum, tried.clone());
    assert!(
        ended.msg.contains("cannot be read as tar.gz"),
        "{}",
        ended.msg
    );
    // What the archive says is not repeated as it is: it may have control characters.
    let garbage: Vec<u8> = (0..5_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let ended = unpack(&server, "x.2", &folder, &garbage, json!({}));
    let msg = &ended.msg;
    assert!(msg.contains("cannot be read as tar: "), "{msg}");
    assert!(
        msg.len() < 1_500 && !msg.contains(char::is_control),
        "{msg:?}"
    );
    // So deep that it could not be removed again.
    let mut builder = Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(0);
    header.set_cksum();
    let deep = format!("{}x", "d/".repeat(101));
    builder.append_data(&mut header, &deep, &b""[..]).unwrap();
    let deep = builder.into_inner().unwrap();
    let ended = unpack(&server, "x.3", &folder, &deep, json!({"remove": true}));
    assert!(ended.msg.contains("more than 100 folders"), "{}", ended.msg);
    assert!(!fs::exists(folder.file("into/bin")).unwrap());
    assert!(!fs::exists(folder.file("into/d")).unwrap());
    assert!(!fs::exists(folder.file("started")).unwrap());
}
