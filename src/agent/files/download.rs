//! The bytes of a blob, in pieces that are repeated and resumed until they are there. The agent limits the time.

use super::job::FileJob;
use crate::agent::backoff::Backoff;
use crate::client::{Client, FetchedPiece};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::time::{Duration, Instant};

/// How much is asked for at once, in bytes: one transfer on the server ends soon, so that others get their turn.
const PIECE_BYTES: u64 = 4 << 20;
/// How much is read at once, in bytes.
const BUFFER_BYTES: usize = 128 << 10;
/// How often all of it is fetched again because the bytes that came are others than they should be.
const MAX_WRONG: u32 = 3;
/// How often it is said how far it is.
const TELL_PERIOD: Duration = Duration::from_secs(1);

/// Writes the bytes of a blob into a file, and compares the hash. `tell` is told from time to time how far it is, and
/// what is in the way.
pub fn download(
    client: &Client,
    instance: &str,
    job: &FileJob,
    file: &mut File,
    tell: &mut dyn FnMut(u64, Option<String>),
) -> Result<(), String> {
    for _ in 0..MAX_WRONG {
        file.set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .map_err(|why| unwritten(&why))?;
        let hash = download_once(client, instance, job, file, tell)?;
        if hash == job.sha256 {
            return Ok(());
        }
    }
    Err(format!(
        "the bytes that came have another hash than they should, {MAX_WRONG} times; something between this machine and the server changes them"
    ))
}

/// Returns the hash of what has come.
fn download_once(
    client: &Client,
    instance: &str,
    job: &FileJob,
    file: &mut File,
    tell: &mut dyn FnMut(u64, Option<String>),
) -> Result<String, String> {
    let (sha256, size) = (&*job.sha256, job.size);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut backoff = Backoff::new();
    let mut told = Instant::now();
    let mut at = 0;
    while at < size {
        let end = size.min(at + PIECE_BYTES);
        let before = at;
        let mut least_pause = Duration::ZERO;
        let trouble = match client.blob_for_agent(sha256, instance, at..end) {
            Ok(FetchedPiece::Busy { retry_after, why }) => {
                least_pause = retry_after;
                Some(why)
            }
            Ok(FetchedPiece::Bytes { mut skip, mut body }) => loop {
                let left = (end - at + skip).min(BUFFER_BYTES as u64) as usize;
                if left == 0 {
                    break None;
                }
                let read = match body.read(&mut buffer[..left]) {
                    Ok(0) => break Some("the connection ended too early".to_owned()),
                    Ok(read) => read,
                    Err(why) => break Some(format!("the connection broke: {why}")),
                };
                let skipped = skip.min(read as u64) as usize;
                skip -= skipped as u64;
                let bytes = &buffer[skipped..read];
                file.write_all(bytes).map_err(|why| unwritten(&why))?;
                hash.update(bytes);
                at += bytes.len() as u64;
                if told.elapsed() >= TELL_PERIOD {
                    tell(at, None);
                    told = Instant::now();
                }
            },
            Err(why) if why.is_temporary() => Some(why.to_string()),
            Err(why) => return Err(why.to_string()),
        };
        if at > before {
            backoff.reset();
        }
        if let Some(trouble) = trouble {
            tell(at, Some(trouble));
            std::thread::sleep(least_pause + backoff.next());
        }
    }
    tell(at, None);
    Ok(hex(&hash.finalize()))
}

/// The hash of a file from where it stands.
pub fn hash_of(file: &mut File) -> Result<String, String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(read) => hash.update(&buffer[..read]),
            Err(why) if why.kind() == std::io::ErrorKind::Interrupted => {}
            Err(why) => return Err(format!("cannot be read: {why}")),
        }
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why bytes could not be written.
pub fn unwritten(why: &std::io::Error) -> String {
    let errno = Errno::from_io_error(why);
    match errno {
        Some(errno) => super::place::explain(errno, "cannot be written"),
        None => format!("cannot be written: {why}"),
    }
}
