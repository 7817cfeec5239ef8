//! The body of a request, decoded as it comes: of a given length, or in chunks.
//!
//! A decoder takes bytes, whatever pieces they come in, and never more than the body has: what follows is the next
//! request. Chunk extensions and trailers are checked and dropped, within limits.

use super::request::Refused;

/// The longest line of a chunk's size with its extensions, in bytes: extensions mean nothing here.
const MAX_CHUNK_LINE: usize = 1_024;
/// What chunk lines may take in all, in bytes, so that a body in one-byte chunks is bounded as well.
const MAX_FRAMING_BYTES: usize = 256 * 1024;
/// Of a streamed body, which has no limit, chunk lines may take one part in so many besides.
const STREAMED_SHARE: u64 = 4;
/// Bytes of all trailers.
const MAX_TRAILER_BYTES: usize = 8 * 1024;

/// The longest body of which a part is kept, in bytes: to read it is work.
const MAX_CUT_BYTES: u64 = 4 << 30;

/// How a body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// So many bytes.
    Length(u64),
    /// In chunks, each with its size.
    Chunked,
}

/// What happens to a body that is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLimit {
    /// One of more bytes is refused.
    Refuse(usize),
    /// So many bytes are kept, and the rest is read and dropped: for clients that send once and never again.
    Cut(usize),
    /// There is none: a [`Sink`](super::Sink) takes the body piece by piece.
    Streamed,
}

impl BodyLimit {
    /// How many bytes are kept at most.
    pub fn kept(self) -> usize {
        match self {
            BodyLimit::Refuse(bytes) | BodyLimit::Cut(bytes) => bytes,
            BodyLimit::Streamed => usize::MAX,
        }
    }

    /// How many bytes there may be.
    pub(super) fn max(self) -> u64 {
        match self {
            BodyLimit::Refuse(bytes) => bytes as u64,
            BodyLimit::Cut(_) => MAX_CUT_BYTES,
            BodyLimit::Streamed => u64::MAX,
        }
    }
}

/// Decodes one body.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    /// Bytes of chunk lines and trailers so far.
    framing_bytes: usize,
    limit: BodyLimit,
    /// Bytes that were not kept.
    left_out: u64,
    /// Bytes of the body so far.
    has_come: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// So many bytes of a body of given length are to come.
    Length(u64),
    /// The line with a chunk's size.
    Size,
    /// So many bytes of a chunk are to come.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    /// Trailers, or the empty line that ends them.
    Trailer,
    Done,
}

impl Decoder {
    /// For a body framed like this.
    pub fn new(framing: Framing, limit: BodyLimit) -> Result<Self, Refused> {
        let decoder = Decoder {
            state: match framing {
                Framing::Length(0) => State::Done,
                Framing::Length(bytes) => State::Length(bytes),
                Framing::Chunked => State::Size,
            },
            framing_bytes: 0,
            limit,
            left_out: 0,
            has_come: 0,
        };
        match framing {
            Framing::Length(bytes) if bytes > limit.max() => Err(decoder.too_large()),
            _ => Ok(decoder),
        }
    }

    fn too_large(&self) -> Refused {
        let max = self.limit.max();
        Refused::new(
            413,
            format!("the body must have {max} bytes at most (the server's --max-body)"),
        )
    }

    /// How many bytes were not kept.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// Keeps bytes of the body, as many as there is room for. Returns how many of `from` belong to it.
    fn keep(&mut self, from: &[u8], left: u64, body: &mut Vec<u8>) -> usize {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(from.len());
        let kept = taken.min(self.limit.kept().saturating_sub(body.len()));
        body.extend_from_slice(&from[..kept]);
        self.left_out += (taken - kept) as u64;
        self.has_come += taken as u64;
        taken
    }

    /// Whether the body is whole.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes what belongs to the body from the front of `from` and adds what it means to `body`. Returns how many
    /// bytes were taken; fewer than all of them when the body is whole, or a line is not.
    pub fn decode(&mut self, from: &[u8], body: &mut Vec<u8>) -> Result<usize, Refused> {
        let mut at = 0;
        loop {
            let rest = &from[at..];
            match self.state {
                State::Done => return Ok(at),
                _ if rest.is_empty() => return Ok(at),
                State::Length(left) => {
                    let taken = self.keep(rest, left, body);
                    at += taken;
                    self.state = match left - taken as u64 {
                        0 => State::Done,
                        left => State::Length(left),
                    };
                }
                State::Chunk(left) => {
                    if self.has_come.saturating_add(left) > self.limit.max() {
                        return Err(self.too_large());
                    }
                    let taken = self.keep(rest, left, body);
                    at += taken;
                    self.state = match left - taken as u64 {
                        0 => State::ChunkEnd,
                        left => State::Chunk(left),
                    };
                }
                State::ChunkEnd => match rest {
                    [b'\r', b'\n', ..] => {
                        at += 2;
                        self.state = State::Size;
                    }
                    [b'\r'] => return Ok(at),
                    _ => return Err(malformed("a chunk must end with CR LF")),
                },
                State::Size => {
                    let Some(line) = line(rest, MAX_CHUNK_LINE)? else {
                        return Ok(at);
                    };
                    at += line.len() + 2;
                    let share = match self.limit {
                        BodyLimit::Streamed => (self.has_come / STREAMED_SHARE) as usize,
                        BodyLimit::Refuse(_) | BodyLimit::Cut(_) => 0,
                    };
                    self.count(line.len() + 2, MAX_FRAMING_BYTES + share)?;
                    self.state = match chunk_size(line)? {
                        0 => {
                            self.framing_bytes = 0;
                            State::Trailer
                        }
                        size => State::Chunk(size),
                    };
                }
                State::Trailer => {
                    let Some(line) = line(rest, MAX_TRAILER_BYTES)? else {
                        return Ok(at);
                    };
                    at += line.len() + 2;
                    self.count(line.len() + 2, MAX_TRAILER_BYTES)?;
                    match line {
                        [] => self.state = State::Done,
                        line => check_trailer(line)?,
                    }
                }
            }
        }
    }

    fn count(&mut self, bytes: usize, max: usize) -> Result<(), Refused> {
        self.framing_bytes += bytes;
        match self.framing_bytes > max {
            true => Err(Refused::new(
                413,
                "the chunks of the body have too many lines around them",
            )),
            false => Ok(()),
        }
    }
}

fn malformed(msg: &str) -> Refused {
    Refused::new(400, format!("the body could not be read: {msg}"))
}

/// The line at the beginning of `from`, without its CR LF; `None` when it is not whole.
fn line(from: &[u8], max: usize) -> Result<Option<&[u8]>, Refused> {
    let looked_at = &from[..from.len().min(max + 2)];
    let end = looked_at.iter().position(|byte| *byte == b'\n');
    let Some(end) = end else {
        // A CR that is not the last byte cannot be followed by LF any more.
        let before_last = looked_at.len().saturating_sub(1);
        return match looked_at.len() > max || looked_at[..before_last].contains(&b'\r') {
            true => Err(malformed(
                "a line between chunks is too long or has no CR LF",
            )),
            false => Ok(None),
        };
    };
    match from[..end].strip_suffix(b"\r") {
        Some(line) if !line.contains(&b'\r') => Ok(Some(line)),
        _ => Err(malformed("a line between chunks must end with CR LF")),
    }
}

/// `1A;name=value;name="a value"` → 26.
fn chunk_size(line: &[u8]) -> Result<u64, Refused> {
    let digits = line
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let (number, extensions) = line.split_at(digits);
    // It was just checked that it is ASCII.
    let number = std::str::from_utf8(number).unwrap_or_default();
    let size = u64::from_str_radix(number, 16).ok();
    match size {
        Some(size) if are_extensions(extensions) => Ok(size),
        _ => Err(malformed(
            "a chunk must begin with its size in hexadecimal digits, in a line of its own",
        )),
    }
}

/// Whether this is a list of `;name`, `;name=token` and `;name="quoted"`.
fn are_extensions(mut rest: &[u8]) -> bool {
    while let Some((first, after)) = rest.split_first() {
        let name = token_length(after);
        if *first != b';' || name == 0 {
            return false;
        }
        rest = &after[name..];
        if let [b'=', value @ ..] = rest {
            let length = match value {
                [b'"', quoted @ ..] => quoted_length(quoted).map(|length| length + 1),
                _ => Some(token_length(value)).filter(|length| *length > 0),
            };
            let Some(length) = length else {
                return false;
            };
            rest = &value[length..];
        }
    }
    true
}

fn token_length(text: &[u8]) -> usize {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    text.iter().take_while(|byte| is_token(byte)).count()
}

/// How many bytes there are up to the closing quote, with it.
fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            b'\t' | b' '..=b'~' => at += 1,
            _ => return None,
        }
    }
}

fn check_trailer(line: &[u8]) -> Result<(), Refused> {
    let name = token_length(line);
    let is_good = name > 0
        && line.get(name) == Some(&b':')
        && line[name..]
            .iter()
            .all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    match is_good {
        true => Ok(()),
        false => Err(malformed("a trailer must be a name, a colon and a value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: BodyLimit = BodyLimit::Refuse(64);

    /// Decodes `bytes` in pieces of `piece` bytes, as a connection does: what was not taken comes again.
    fn decode(framing: Framing, bytes: &[u8], piece: usize) -> Result<(Vec<u8>, usize), u16> {
        let status = |refused: Refused| refused.status;
        let mut decoder = Decoder::new(framing, MAX).map_err(status)?;
        let (mut body, mut taken) = (Vec::new(), 0);
        for end in (0..=bytes.len()).step_by(piece).chain([bytes.len()]) {
            if end > taken {
                taken += decoder
                    .decode(&bytes[taken..end], &mut body)
                    .map_err(status)?;
            }
        }
        match decoder.is_done() {
            true => Ok((body, taken)),
            false => Err(0),
        }
    }

    #[test]
    fn bodies_are_decoded_however_they_are_cut() {
        let long = format!("41\r\n{}\r\n0\r\n\r\n", "x".repeat(0x41));
        for (bytes, expected) in [
            (
                "5\r\nhello\r\n6\r\n world\r\n000\r\n\r\nGET",
                Ok("hello world"),
            ),
            ("0\r\n\r\n", Ok("")),
            (
                "A;a;b=c;d=\"e \\\" f\"\r\n0123456789\r\n0\r\nVary: *\r\nB: c\r\n\r\n",
                Ok("0123456789"),
            ),
            ("5\r\nhello\r\n0\r\n", Err(0)),
            ("5\r\nhel", Err(0)),
            ("+1\r\na\r\n0\r\n\r\n", Err(400)),
            ("0x1\r\na\r\n0\r\n\r\n", Err(400)),
            ("\r\n\r\n", Err(400)),
            ("1\na\r\n0\r\n\r\n", Err(400)),
            ("1 \r\na\r\n0\r\n\r\n", Err(400)),
            ("1;\r\na\r\n0\r\n\r\n", Err(400)),
            ("1;a=\"b\r\na\r\n0\r\n\r\n", Err(400)),
            ("1;a\r;b\r\na\r\n0\r\n\r\n", Err(400)),
            ("1\r\nab\r\n0\r\n\r\n", Err(400)),
            ("1\r\na0\r\n\r\n", Err(400)),
            ("0\r\n folded\r\n\r\n", Err(400)),
            ("0\r\nA\r\n\r\n", Err(400)),
            ("11111111111111111\r\n", Err(400)),
            (&*long, Err(413)),
        ] {
            for piece in [1, 2, 3, 7, 1_000] {
                let found = decode(Framing::Chunked, bytes.as_bytes(), piece);
                let found = found.map(|(body, _)| String::from_utf8(body).unwrap());
                assert_eq!(
                    found.as_deref().map_err(|s| *s),
                    expected,
                    "{piece}: {bytes:?}"
                );
            }
        }
        for piece in [1, 2, 5, 9] {
            let found = decode(Framing::Length(5), b"helloGET", piece);
            assert_eq!(
                found,
                Ok((b"hello".to_vec(), 5)),
                "what follows is the next request"
            );
        }
        assert_eq!(decode(Framing::Length(5), b"hell", 3), Err(0));
        assert_eq!(decode(Framing::Length(65), b"", 1), Err(413));
    }

    #[test]
    fn a_body_that_is_cut_is_read_to_its_end() {
        for (framing, bytes) in [
            (Framing::Length(11), "hello worldGET"),
            (
                Framing::Chunked,
                "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\nGET",
            ),
        ] {
            let mut decoder = Decoder::new(framing, BodyLimit::Cut(7)).unwrap();
            let mut body = Vec::new();
            let taken = decoder.decode(bytes.as_bytes(), &mut body).unwrap();
            assert_eq!((&*body, &bytes[taken..]), (&b"hello w"[..], "GET"));
            assert!(decoder.is_done() && decoder.left_out() == 4);
        }
        let endless = Framing::Length(u64::MAX);
        assert!(Decoder::new(endless, BodyLimit::Cut(7)).is_err());
    }

    #[test]
    fn the_lines_around_chunks_are_bounded() {
        let chunk = format!("1;{}\r\nx\r\n", "e".repeat(1_000));
        let mut decoder =
            Decoder::new(Framing::Chunked, BodyLimit::Refuse(usize::MAX >> 1)).unwrap();
        let mut body = Vec::new();
        let status = (0..1_000).find_map(|_| decoder.decode(chunk.as_bytes(), &mut body).err());
        assert_eq!(status.map(|refused| refused.status), Some(413));
        let mut decoder = Decoder::new(Framing::Chunked, BodyLimit::Refuse(9)).unwrap();
        let trailers = format!("0\r\n{}", "a: b\r\n".repeat(2_000));
        assert_eq!(
            decoder
                .decode(trailers.as_bytes(), &mut body)
                .unwrap_err()
                .status,
            413
        );
        let endless = "1".repeat(2_000);
        let mut decoder = Decoder::new(Framing::Chunked, BodyLimit::Refuse(9)).unwrap();
        assert_eq!(
            decoder
                .decode(endless.as_bytes(), &mut body)
                .unwrap_err()
                .status,
            400
        );
    }
}
