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

/// Files of the kernel, in /proc and /sys, say 0 bytes or a page, whatever is in them. So what says this or less, in bytes,
/// is read first, and has the size that it turns out to have. 64 KiB is the largest page.
const SMALL_BYTES: u64 = 64 << 10;
/// The most of such a file, in bytes: it is kept in memory. The rest is cut.
const MAX_SMALL_BYTES: u64 = 16 << 20;
/// How often a file may turn out to be shorter than it said before that is a failure.
const MAX_SHORT: u32 = 5;

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
        let mut short = 0;
        loop {
            // It may have grown since the last try.
            let said = temporary::size(&file)?;
            let rewound = file.seek(SeekFrom::Start(0));
            rewound.map_err(|why| unreadable(&why))?;
            let small = match said <= SMALL_BYTES {
                true => Some(read_small(&mut file, self.file.max)?),
                false => None,
            };
            let (size, is_cut) = match &small {
                Some((bytes, is_cut)) => (bytes.len() as u64, *is_cut),
                None => (said.min(self.file.max), said > self.file.max),
            };
            let mut in_memory = small.as_ref().map(|(bytes, _)| &**bytes);
            let mut body = Hashed {
                source: match &mut in_memory {
                    Some(bytes) => bytes,
                    None => &mut file,
                },
                left: size,
                hash: Sha256::new(),
                bytes: 0,
                is_short: false,
            };
            let sent = self.client.send_file(
                &self.job.instance,
                self.execution,
                self.attempt,
                &self.file.path,
                size,
                &mut body,
            );
            let (bytes, hash, is_short) = (body.bytes, hex(&body.hash.finalize()), body.is_short);
            if is_short {
                short += 1;
                if short == MAX_SHORT {
                    return Err(format!(
                        "it has fewer bytes than it says, {bytes} of {size}, {MAX_SHORT} times"
                    ));
                }
            }
            let trouble = match sent {
                Ok(SentFile::Taken { sha256 }) if sha256 == hash && bytes == size => {
                    return Ok(FetchedFile {
                        path: self.file.path.clone(),
                        sha256,
                        size,
                        truncated: is_cut,
                    });
                }
                Ok(SentFile::Taken { .. }) => {
                    "the server got other bytes than were sent".to_owned()
                }
                Ok(SentFile::Busy { retry_after, why }) => {
                    std::thread::sleep(retry_after);
                    why
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

fn unreadable(why: &std::io::Error) -> String {
    format!("cannot be read: {why}")
}

/// The beginning of a file, and whether there is more.
fn read_small(file: &mut File, max: u64) -> Result<(Vec<u8>, bool), String> {
    let max = max.min(MAX_SMALL_BYTES);
    let mut bytes = Vec::new();
    let read = file.take(max + 1).read_to_end(&mut bytes);
    read.map_err(|why| unreadable(&why))?;
    let is_cut = bytes.len() as u64 > max;
    bytes.truncate(usize::try_from(max).unwrap_or(usize::MAX));
    Ok((bytes, is_cut))
}

/// Reads so many bytes, and computes the hash of what was read.
struct Hashed<'a> {
    source: &'a mut (dyn Read + Send),
    left: u64,
    hash: Sha256,
    bytes: u64,
    /// It ended before all of them were read.
    is_short: bool,
}

impl Read for Hashed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        let read = self.source.read(&mut buffer[..most])?;
        self.is_short |= read == 0;
        self.hash.update(&buffer[..read]);
        self.left -= read as u64;
        self.bytes += read as u64;
        Ok(read)
    }
}
