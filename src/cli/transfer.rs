//! Sending files to the server and getting them from it, with progress on a terminal.

use super::command::Failure;
use super::follow::print_message;
use super::messages;
use super::outcome::short_duration;
use super::terminal::{self, sanitize, truncate};
use crate::client::{BlobState, CallError, Client, FetchedPiece, PieceAnswer};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// How much is sent, or asked for, at once, in bytes. The server takes 8 MiB at most; a broken connection costs one.
const PIECE_BYTES: u64 = 4 << 20;
/// How much is read at once, in bytes.
const BUFFER_BYTES: usize = 128 << 10;
/// How often it is tried again without getting on.
const MAX_TRIES: u32 = 8;
/// The pause before the first of these tries, which doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// How long a server is asked again that says when to come back.
const BUSY_PATIENCE: Duration = Duration::from_secs(600);
/// How often the line on the terminal is drawn.
const REDRAW_INTERVAL: Duration = Duration::from_millis(100);
/// Moves to the beginning of the line and clears it.
const CLEAR: &str = "\r\x1b[K";

/// A file of this machine that is to be sent.
#[derive(Debug, Clone)]
pub struct LocalFile {
    /// Where it is.
    pub path: PathBuf,
    /// The hash of its bytes.
    pub sha256: String,
    /// Their number.
    pub size: u64,
    /// It may be executed.
    pub is_executable: bool,
    /// Its first bytes are those of gzip.
    pub is_gzip: bool,
}

impl LocalFile {
    /// Reads it once.
    pub fn read(path: &str) -> Result<Self, Failure> {
        let cannot =
            |why: io::Error| Failure::Usage(format!("cannot read {}: {why}", sanitize(path)));
        // To open a fifo would wait for somebody who writes to it.
        let found = std::fs::metadata(path).map_err(cannot)?;
        if !found.is_file() {
            let what = if found.is_dir() {
                "a folder; pack it first: tar -czf x.tgz FOLDER"
            } else {
                "no ordinary file"
            };
            return Err(Failure::Usage(format!("{} is {what}", sanitize(path))));
        }
        let mut file = File::open(path).map_err(cannot)?;
        let mut meter = Meter::new(&format!("reading {}", name_of(path)), found.len());
        let (mut hash, mut size) = (Sha256::new(), 0);
        let mut first = Vec::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = file.read(&mut buffer).map_err(cannot)?;
            if read == 0 {
                break;
            }
            if size == 0 {
                first = buffer[..read.min(2)].to_vec();
            }
            hash.update(&buffer[..read]);
            size += read as u64;
            meter.at(size);
        }
        meter.erase();
        Ok(LocalFile {
            path: path.into(),
            sha256: hex(&hash.finalize()),
            size,
            is_executable: std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o111
                != 0,
            is_gzip: first == [0x1f, 0x8b],
        })
    }

    /// Sends it, unless the server has it. What is there of it is not sent again.
    pub fn send(&self, client: &Client, is_told: bool) -> Result<(), Failure> {
        let name = name_of(&self.path.to_string_lossy());
        let mut at = match with_tries(|| client.blob_state(&self.sha256))? {
            BlobState::Whole => {
                if is_told {
                    print_message(&format!("sidebike: {name}: the server has it already\n"));
                }
                return Ok(());
            }
            BlobState::Part(at) => at.min(self.size),
        };
        let cannot = |why: io::Error| Failure::Because(format!("cannot read {name}: {why}"));
        let mut file = File::open(&self.path).map_err(cannot)?;
        let mut meter = Meter::new(&format!("sending {name}"), self.size);
        let begun_at = at;
        let begun = Instant::now();
        let mut tries = Tries::new();
        loop {
            let size = PIECE_BYTES.min(self.size - at);
            let mut piece = vec![0; size as usize];
            file.seek(SeekFrom::Start(at)).map_err(cannot)?;
            file.read_exact(&mut piece)
                .map_err(|why| match why.kind() {
                    io::ErrorKind::UnexpectedEof => {
                        Failure::Because(format!("{name} was changed meanwhile"))
                    }
                    _ => cannot(why),
                })?;
            meter.at(at);
            match client.send_piece(&self.sha256, at, self.size, &piece) {
                Ok(PieceAnswer::At(next)) if next >= self.size => break,
                Ok(PieceAnswer::At(next)) if next > at => {
                    at = next;
                    tries = Tries::new();
                }
                Ok(PieceAnswer::At(next)) => {
                    // It lost some of it.
                    at = next;
                    tries.pause(|| {
                        format!("cannot send {name}: the server goes on at {next} again and again")
                    })?;
                }
                Ok(PieceAnswer::Busy { retry_after, why }) => {
                    tries.wait_for_server(retry_after, why)?;
                }
                Err(why) => tries.after(why)?,
            }
        }
        meter.erase();
        if is_told {
            let sent = self.size - begun_at;
            let took = begun.elapsed();
            print_message(&format!(
                "sidebike: {name}: sent {}\n",
                with_rate(sent, took)
            ));
        }
        Ok(())
    }
}

/// Gets a blob into a new file, which has a temporary name until all of it is there. `label` is for people.
pub fn get(
    client: &Client,
    label: &str,
    sha256: &str,
    size: u64,
    file: &mut File,
) -> Result<(), Failure> {
    let mut meter = Meter::new(&format!("getting {label}"), size);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let (mut at, mut tries) = (0, Tries::new());
    while at < size {
        let end = size.min(at + PIECE_BYTES);
        let before = at;
        let failure = match client.blob(sha256, at..end) {
            Ok(FetchedPiece::Busy { retry_after, why }) => {
                tries.wait_for_server(retry_after, why)?;
                continue;
            }
            Ok(FetchedPiece::Bytes { mut skip, mut body }) => loop {
                let most = (end - at + skip).min(BUFFER_BYTES as u64) as usize;
                if most == 0 {
                    break None;
                }
                let read = match body.read(&mut buffer[..most]) {
                    Ok(0) => break Some("the connection ended too early".to_owned()),
                    Ok(read) => read,
                    Err(why) => break Some(why.to_string()),
                };
                let skipped = skip.min(read as u64) as usize;
                skip -= skipped as u64;
                file.write_all(&buffer[skipped..read])?;
                hash.update(&buffer[skipped..read]);
                at += (read - skipped) as u64;
                meter.at(at);
            },
            Err(why) => {
                tries.after(why)?;
                continue;
            }
        };
        if at > before {
            tries = Tries::new();
        }
        if let Some(why) = failure {
            tries.pause(|| format!("cannot get {label}: {why}"))?;
        }
    }
    meter.erase();
    match hex(&hash.finalize()) == sha256 {
        true => Ok(()),
        false => Err(Failure::Because(format!(
            "{label}: the bytes that came have another hash than they should"
        ))),
    }
}

/// Tries without getting on.
struct Tries {
    left: u32,
    pause: Duration,
    busy_since: Option<Instant>,
}

impl Tries {
    fn new() -> Self {
        Tries {
            left: MAX_TRIES,
            pause: FIRST_PAUSE,
            busy_since: None,
        }
    }

    fn pause(&mut self, why: impl FnOnce() -> String) -> Result<(), Failure> {
        if self.left == 0 {
            return Err(Failure::Because(why()));
        }
        self.left -= 1;
        thread::sleep(self.pause);
        self.pause = (self.pause * 2).min(MAX_PAUSE);
        Ok(())
    }

    fn after(&mut self, why: CallError) -> Result<(), Failure> {
        if !why.is_temporary() || self.left == 0 {
            return Err(why.into());
        }
        self.pause(|| messages::describe_failure(&why))
    }

    fn wait_for_server(&mut self, pause: Duration, why: String) -> Result<(), Failure> {
        let since = self.busy_since.get_or_insert_with(Instant::now);
        if since.elapsed() > BUSY_PATIENCE {
            return Err(Failure::Because(why));
        }
        thread::sleep(pause.max(FIRST_PAUSE));
        Ok(())
    }
}

fn with_tries<T>(mut call: impl FnMut() -> Result<T, CallError>) -> Result<T, Failure> {
    let mut tries = Tries::new();
    loop {
        match call() {
            Ok(answer) => return Ok(answer),
            Err(why) => tries.after(why)?,
        }
    }
}

/// A line on the terminal that says how far a transfer is; nothing elsewhere.
struct Meter {
    label: String,
    size: u64,
    begun: Instant,
    /// Where it stood when it was first drawn: what was there before is not part of the rate.
    first: Option<u64>,
    drawn: Option<Instant>,
    is_wanted: bool,
}

impl Meter {
    fn new(label: &str, size: u64) -> Self {
        Meter {
            label: label.to_owned(),
            size,
            begun: Instant::now(),
            first: None,
            drawn: None,
            is_wanted: terminal::width(&io::stderr()).is_some() && !terminal::is_dumb(),
        }
    }

    fn at(&mut self, bytes: u64) {
        let first = *self.first.get_or_insert(bytes);
        let elapsed = self.begun.elapsed();
        let last = self.drawn.map_or(elapsed, |drawn| drawn.elapsed());
        if !self.is_wanted || last < REDRAW_INTERVAL {
            return;
        }
        let Some(width) = terminal::width(&io::stderr()) else {
            return;
        };
        let percent = bytes
            .saturating_mul(100)
            .checked_div(self.size)
            .unwrap_or(100);
        let line = format!(
            "{}: {percent} %, {} of {}, {}",
            self.label,
            in_units(bytes),
            in_units(self.size),
            rate(bytes.saturating_sub(first), elapsed),
        );
        self.drawn = Some(Instant::now());
        // One column less: some terminals wrap after the last column.
        let _ = write!(io::stderr(), "{CLEAR}{}", truncate(&line, width - 1));
    }

    fn erase(&mut self) {
        if self.drawn.take().is_some() {
            // A failure only leaves the old line visible.
            let _ = io::stderr().write_all(CLEAR.as_bytes());
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.erase();
    }
}

/// `50.0 MiB in 1.2s, 41.7 MiB/s`.
pub fn with_rate(bytes: u64, took: Duration) -> String {
    format!(
        "{} in {}, {}",
        in_units(bytes),
        short_duration(took),
        rate(bytes, took)
    )
}

fn rate(bytes: u64, took: Duration) -> String {
    let seconds = took.as_secs_f64().max(0.001);
    format!("{}/s", in_units((bytes as f64 / seconds) as u64))
}

/// A number of bytes for people.
pub fn in_units(bytes: u64) -> String {
    for (unit, bits) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >> bits > 0 {
            return format!("{:.1} {unit}", bytes as f64 / (1u64 << bits) as f64);
        }
    }
    format!("{bytes} B")
}

/// The last part of a path, for people.
pub fn name_of(path: &str) -> String {
    let name = Path::new(path).file_name();
    sanitize(&name.map_or_else(
        || path.to_owned(),
        |name| name.to_string_lossy().into_owned(),
    ))
}

/// The hash of a file.
pub fn hash_of(mut file: File) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_in_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (50 << 20, "50.0 MiB"),
            (3 << 30, "3.0 GiB"),
        ] {
            assert_eq!(in_units(bytes), text);
        }
        assert_eq!(
            with_rate(10 << 20, Duration::from_secs(2)),
            "10.0 MiB in 2.0s, 5.0 MiB/s"
        );
        assert_eq!(name_of("a/b\n.tgz"), name_of("b\n.tgz"));
    }
}
