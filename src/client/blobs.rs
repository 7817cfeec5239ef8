//! The bytes of files, in both directions. Nothing here is in memory as a whole, and a transfer takes as long as it goes
//! on; whether it is tried again is for the caller to decide.

use super::ask::{Ask, Repeat};
use super::connections::Connections;
use super::{CALL_TIMEOUT, CallError, Client, Kind, refused};
use crate::config::Registry;
use std::io::Read;
use std::ops::Range;
use std::time::Duration;
use ureq::Body;
use ureq::http::Response;

/// How long a transfer may make no progress.
const STALL_TIMEOUT: Duration = Duration::from_secs(15);
/// How many bytes are read of an answer that is no file.
const MAX_ANSWER: u64 = 64 << 10;
/// The pause that a server asks for is believed up to this.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);
/// The header in which an agent names its instance: addresses are written to the logs of proxies.
#[cfg(feature = "agent")]
const INSTANCE_HEADER: &str = "sidebike-instance";
/// The header that says how much of a blob is there.
#[cfg(feature = "cli")]
const OFFSET_HEADER: &str = "upload-offset";

/// A part of a blob.
pub enum FetchedPiece {
    /// The server is to be asked again: it has all the transfers that it takes at once, or it does not have the file itself
    /// yet.
    Busy {
        /// It may be asked again after this time.
        retry_after: Duration,
        /// The reason it gave.
        why: String,
    },
    /// The bytes.
    Bytes {
        /// So many of them come before those that were asked for: something has ignored the range.
        skip: u64,
        /// Where they come from.
        body: Box<dyn Read + Send>,
    },
}

/// What the server says to a file that is handed back.
#[cfg(feature = "agent")]
pub enum SentFile {
    /// See [`FetchedPiece::Busy`].
    Busy {
        /// It may be asked again after this time.
        retry_after: Duration,
        /// The reason it gave.
        why: String,
    },
    /// It has it.
    Taken {
        /// The hash of what has come.
        sha256: String,
    },
}

/// How much of a blob a server has.
#[cfg(feature = "cli")]
#[derive(Debug, PartialEq, Eq)]
pub enum BlobState {
    /// All of it.
    Whole,
    /// So many bytes from its beginning.
    Part(u64),
}

/// What the server says to a piece of a blob.
#[cfg(feature = "cli")]
#[derive(Debug, PartialEq, Eq)]
pub enum PieceAnswer {
    /// It goes on at this offset; all is there when that is the size.
    At(u64),
    /// See [`FetchedPiece::Busy`].
    Busy {
        /// It may be asked again after this time.
        retry_after: Duration,
        /// The reason it gave.
        why: String,
    },
}

/// The answer to an upload.
#[derive(serde::Deserialize)]
struct Uploaded {
    #[cfg(feature = "agent")]
    #[serde(default)]
    sha256: String,
    #[cfg(feature = "cli")]
    #[serde(default)]
    have: u64,
}

impl Client {
    /// A client with connections that are made for files.
    pub fn for_files(registry: &Registry) -> Result<Self, String> {
        Client::with_connections(registry, Connections::for_files)
    }

    /// A part of a blob that a task has an agent lay down.
    #[cfg(feature = "agent")]
    pub fn blob_for_agent(
        &self,
        sha256: &str,
        instance: &str,
        range: Range<u64>,
    ) -> Result<FetchedPiece, CallError> {
        let path = format!("/api/v1/agent/file/{sha256}");
        self.in_turn("fetching a file", &path, Repeat::Safe, |ask| {
            fetch(ask, ask.get().header(INSTANCE_HEADER, instance), &range)
        })
    }

    /// How many bytes an image has that an update names.
    #[cfg(feature = "agent")]
    pub fn blob_size_for_agent(&self, sha256: &str, instance: &str) -> Result<u64, CallError> {
        let path = format!("/api/v1/agent/file/{sha256}");
        let call = "asking for the size of a file";
        self.in_turn(call, &path, Repeat::Safe, |ask| {
            let request = ask.head().header(INSTANCE_HEADER, instance);
            let request = request.config().timeout_global(Some(CALL_TIMEOUT)).build();
            let answer = ask.answered(request.call())?;
            let size = answer.headers().get("content-length");
            let size = size.and_then(|size| size.to_str().ok()?.parse().ok());
            match (answer.status().as_u16(), size) {
                (200, Some(size)) => Ok(size),
                (200, None) => Err(Kind::NotUnderstood("it does not say its length".into())),
                (status, _) => Err(refused(status, &[], None)),
            }
        })
    }

    /// A part of a blob.
    #[cfg(feature = "cli")]
    pub fn blob(&self, sha256: &str, range: Range<u64>) -> Result<FetchedPiece, CallError> {
        let path = format!("/api/v1/blob/{sha256}");
        self.in_turn("fetch the file", &path, Repeat::Safe, |ask| {
            fetch(ask, ask.get(), &range)
        })
    }

    /// Hands a file of an attempt back: its first `size` bytes. Of several servers the next one gets them with the next
    /// call: `body` is read once.
    #[cfg(feature = "agent")]
    pub fn send_file(
        &self,
        instance: &str,
        execution: &str,
        attempt: u32,
        path: &str,
        size: u64,
        body: &mut (dyn Read + Send),
    ) -> Result<SentFile, CallError> {
        let encoded =
            |text| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC);
        let path = format!(
            "/api/v1/agent/file?execution={}&attempt={attempt}&path={}",
            encoded(execution),
            encoded(path)
        );
        self.in_turn("handing a file back", &path, Repeat::NotSent, |ask| {
            let request = ask.put().header(INSTANCE_HEADER, instance);
            let body = ureq::SendBody::from_reader(&mut *body);
            let mut answer = ask.answered(streaming(request, size).send(body))?;
            if let Some((retry_after, why)) = busy(&mut answer) {
                return Ok(SentFile::Busy { retry_after, why });
            }
            let status = answer.status().as_u16();
            let answer: Uploaded = self.understand(status, read(&mut answer)?)?;
            Ok(SentFile::Taken {
                sha256: answer.sha256,
            })
        })
    }

    /// How much of a blob the server has.
    #[cfg(feature = "cli")]
    pub fn blob_state(&self, sha256: &str) -> Result<BlobState, CallError> {
        let path = format!("/api/v1/blob/{sha256}");
        let call = "find out whether the server has the file";
        self.in_turn(call, &path, Repeat::Safe, |ask| {
            let request = ask.head().config().timeout_global(Some(CALL_TIMEOUT));
            let answer = ask.answered(request.build().call())?;
            match answer.status().as_u16() {
                200 => Ok(BlobState::Whole),
                404 => {
                    let offset = answer.headers().get(OFFSET_HEADER);
                    let offset = offset.and_then(|offset| offset.to_str().ok()?.parse().ok());
                    Ok(BlobState::Part(offset.unwrap_or(0)))
                }
                status => Err(refused(status, &[], None)),
            }
        })
    }

    /// Sends a piece of a blob.
    #[cfg(feature = "cli")]
    pub fn send_piece(
        &self,
        sha256: &str,
        offset: u64,
        total: u64,
        piece: &[u8],
    ) -> Result<PieceAnswer, CallError> {
        let size = piece.len() as u64;
        let path = match total {
            // There is no range of nothing.
            0 => "/api/v1/file/empty".to_owned(),
            _ => format!("/api/v1/blob/{sha256}?offset={offset}"),
        };
        let range = format!("bytes {offset}-{}/{total}", offset + size.saturating_sub(1));
        // A piece that is there is answered with where it goes on.
        self.in_turn("send the file", &path, Repeat::Safe, |ask| {
            let request = match total {
                0 => ask.put(),
                _ => ask.patch().header("content-range", &range),
            };
            let mut answer = ask.answered(streaming(request, size).send(piece))?;
            if let Some((retry_after, why)) = busy(&mut answer) {
                return Ok(PieceAnswer::Busy { retry_after, why });
            }
            let status = answer.status().as_u16();
            let bytes = read(&mut answer)?;
            if status == 409
                && let Ok(envelope) =
                    serde_json::from_slice::<crate::wire::Envelope<Uploaded>>(&bytes)
            {
                return Ok(PieceAnswer::At(envelope.data.have));
            }
            let answer: Uploaded = self.understand(status, bytes)?;
            Ok(PieceAnswer::At(answer.have))
        })
    }
}

/// Asks for a part of a blob.
fn fetch(
    ask: &Ask<'_>,
    request: ureq::RequestBuilder<ureq::typestate::WithoutBody>,
    range: &Range<u64>,
) -> Result<FetchedPiece, Kind> {
    let last = range.end.saturating_sub(1);
    let request = request
        .header("range", format!("bytes={}-{last}", range.start))
        .header("accept-encoding", "identity")
        .config()
        .timeout_global(None)
        .timeout_recv_response(Some(CALL_TIMEOUT))
        .timeout_per_read(Some(STALL_TIMEOUT))
        .build();
    piece_of(ask.answered(request.call())?, range.start)
}

/// A request whose body is a file: it takes as long as it goes on.
fn streaming(
    request: ureq::RequestBuilder<ureq::typestate::WithBody>,
    size: u64,
) -> ureq::RequestBuilder<ureq::typestate::WithBody> {
    request
        .header("content-type", "application/octet-stream")
        .header("content-length", size)
        .config()
        .timeout_global(None)
        .timeout_recv_response(Some(CALL_TIMEOUT))
        .timeout_per_read(Some(CALL_TIMEOUT))
        .timeout_per_write(Some(STALL_TIMEOUT))
        .build()
}

/// After which time a server may be asked again that says so, and why; none if the answer does not say that.
fn busy(answer: &mut Response<Body>) -> Option<(Duration, String)> {
    let seconds = answer.headers().get("retry-after")?.to_str().ok()?;
    let pause = Duration::from_secs(seconds.trim().parse().ok()?);
    if answer.status().as_u16() != 503 {
        return None;
    }
    let why = match refused(503, &read(answer).unwrap_or_default(), None) {
        Kind::Refused {
            msg, ours: true, ..
        } if !msg.is_empty() => msg,
        _ => "the server asks to come back".to_owned(),
    };
    Some((pause.min(MAX_RETRY_AFTER), why))
}

fn read(answer: &mut Response<Body>) -> Result<Vec<u8>, Kind> {
    let mut bytes = Vec::new();
    let mut body = answer.body_mut().as_reader().take(MAX_ANSWER);
    match body.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(why) => Err(Kind::Interrupted(format!("the answer broke off: {why}"))),
    }
}

/// The bytes in an answer.
fn piece_of(mut answer: Response<Body>, start: u64) -> Result<FetchedPiece, Kind> {
    if let Some((retry_after, why)) = busy(&mut answer) {
        return Ok(FetchedPiece::Busy { retry_after, why });
    }
    let skip = match answer.status().as_u16() {
        200 => start,
        206 => {
            let begins = answer.headers().get("content-range").and_then(|range| {
                let range = range.to_str().ok()?.strip_prefix("bytes ")?;
                range.split_once('-')?.0.parse::<u64>().ok()
            });
            match begins {
                Some(begins) if begins <= start => start - begins,
                _ => return Err(Kind::NotUnderstood("it is another part of the file".into())),
            }
        }
        status => return Err(refused(status, &read(&mut answer)?, None)),
    };
    Ok(FetchedPiece::Bytes {
        skip,
        body: Box::new(answer.into_body().into_reader()),
    })
}
