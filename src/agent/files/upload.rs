//! Handing a file back to the server.

use super::download::hex;
use super::job::{FetchJob, HelperJob, Said};
use super::place::{Place, Root};
use super::temporary;
use crate::agent::backoff::Backoff;
use crate::client::{Client, SentFile};
use crate::wire::files::FetchedFile;
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Hands files back, one after the other, and goes on after one that fails. The error is about the first of these.
pub fn hand_back(
    job: &HelperJob,
    execution: &str,
    attempt: u32,
    files: &[FetchJob],
    client: &Client,
    say: &dyn Fn(&Said),
) -> Result<(), String> {
    let root = Root::open(job.root.as_deref())?;
    let mut first = Ok(());
    for file in files {
        let sender = Sender {
            job,
            file,
            client,
            say,
            execution,
            attempt,
        };
        match sender.hand_back(&root) {
            Ok(Some(fetched)) => say(&Said::Fetched(fetched)),
            Ok(None) => {}
            Err(why) => first = first.and(Err(format!("file {}: {why}", file.path))),
        }
    }
    first
}

struct Sender<'a> {
    job: &'a HelperJob,
    file: &'a FetchJob,
    client: &'a Client,
    say: &'a dyn Fn(&Said),
    execution: &'a str,
    attempt: u32,
}

impl Sender<'_> {
    /// None if it is not there and need not be.
    fn hand_back(&self, root: &Root) -> Result<Option<FetchedFile>, String> {
        let place = root.find(Path::new(&self.file.path), &self.job.workspace)?;
        let found = match &place {
            Some(place) => place.look()?,
            None => None,
        };
        let Some(place) = place.filter(|_| found.is_some()) else {
            return match self.file.is_missing_ok {
                true => Ok(None),
                false => Err("there is no such file".into()),
            };
        };
        self.send(&place).map(Some)
    }

    fn send(&self, place: &Place) -> Result<FetchedFile, String> {
        let mut file = place.open(OFlags::RDONLY)?;
        let mut backoff = Backoff::new();
        loop {
            // It may have grown since the last try.
            let whole = temporary::size(&file)?;
            let size = whole.min(self.file.max);
            file.seek(SeekFrom::Start(0))
                .map_err(|why| format!("cannot be read: {why}"))?;
            let mut body = Hashed {
                file: (&mut file).take(size),
                hash: Sha256::new(),
                bytes: 0,
            };
            let sent = self.client.send_file(
                &self.job.instance,
                self.execution,
                self.attempt,
                &self.file.path,
                size,
                &mut body,
            );
            let (bytes, hash) = (body.bytes, hex(&body.hash.finalize()));
            let trouble = match sent {
                Ok(SentFile::Taken { sha256 }) if sha256 == hash && bytes == size => {
                    return Ok(FetchedFile {
                        path: self.file.path.clone(),
                        sha256,
                        size,
                        truncated: whole > size,
                    });
                }
                Ok(SentFile::Taken { .. }) => {
                    "the server got other bytes than were sent".to_owned()
                }
                Ok(SentFile::Busy { retry_after }) => {
                    std::thread::sleep(retry_after);
                    "the server has all the transfers that it takes at once".to_owned()
                }
                // The file is shorter by now than it said it was.
                Err(why) if why.is_temporary() => why.to_string(),
                Err(why) => return Err(why.to_string()),
            };
            let path = self.file.path.clone();
            (self.say)(&Said::At {
                path,
                bytes,
                size,
                trouble: Some(trouble),
            });
            std::thread::sleep(backoff.next());
        }
    }
}

/// Reads a file, and computes the hash of what was read.
struct Hashed<'a> {
    file: std::io::Take<&'a mut File>,
    hash: Sha256,
    bytes: u64,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}
