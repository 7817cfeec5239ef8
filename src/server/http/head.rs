//! The head of a request: httparse reads it, the rules that httparse does not have are here.
//!
//! A head that could be understood in two ways is refused. If a proxy takes the first of two headers and the server
//! the second, a client can smuggle requests past the proxy. To add a rule:
//! add it to `read`, and a line to the table of its test. To show a further header to handlers: add it to
//! [`Headers`] and to `read`.

use super::body::Framing;
use super::request::{Authorization, Headers, Refused, Request};
use crate::wire::term::{COMMIT_HEADER, FORWARDED_HEADER, TERM_HEADER};
use std::net::IpAddr;

/// How much a request may have; settings of the server.
#[derive(Debug, Clone)]
pub struct RequestLimits {
    /// Bytes of all headers with the request line.
    pub head_bytes: usize,
    /// Number of headers.
    pub headers: usize,
    /// Bytes of path and query.
    pub target_bytes: usize,
    /// Bytes of the body.
    pub body_bytes: usize,
}

/// What a head says.
#[derive(Debug)]
pub struct Head {
    /// The request, without its body.
    pub request: Request,
    /// How its body is framed.
    pub framing: Framing,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// How it is to be answered.
    pub mode: ResponseMode,
    /// Its length in bytes.
    pub length: usize,
}

/// How a request is to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseMode {
    /// The connection can take another request after it.
    pub keep_alive: bool,
    /// The client is of HTTP/1.0: it knows no chunks, and has to be told that the connection stays.
    pub is_http_1_0: bool,
    /// Only the head of the answer is wanted.
    pub without_body: bool,
}

/// Headers that must be given once: those that decide who asks for what.
pub(super) const ONCE: [&str; 10] = [
    "Content-Length",
    "Transfer-Encoding",
    "Host",
    "Origin",
    "Sec-Fetch-Site",
    "Authorization",
    "Range",
    "Content-Range",
    "Sidebike-Instance",
    FORWARDED_HEADER,
];
/// What the `User-Agent` of sidebike's own agent and command line begins with.
const OWN_AGENTS: &str = "sidebike/";
/// Headers that are parsed without allocating; a request with more is refused, or parsed again with more room.
const USUAL_HEADERS: usize = 32;

/// Reads the head at the beginning of `bytes`; `None` when it is not whole. The first `searched` bytes are
/// known not to contain its end: only the rest is searched, or a head that comes byte by byte would be parsed once for
/// each byte.
pub fn read(
    bytes: &[u8],
    searched: usize,
    limits: &RequestLimits,
    peer: Option<IpAddr>,
) -> Result<Option<Head>, Refused> {
    if searched > 0 && !ends_after(bytes, searched) {
        has_no_bare_newline(bytes, searched.saturating_sub(1))?;
        return too_large(bytes.len() > limits.head_bytes, limits).map(|()| None);
    }
    let mut few = [httparse::EMPTY_HEADER; USUAL_HEADERS];
    match parse(&mut few, bytes, limits, peer) {
        Err(Unparsed::TooMany) if limits.headers > USUAL_HEADERS => {
            let mut many = vec![httparse::EMPTY_HEADER; limits.headers];
            parse(&mut many, bytes, limits, peer)
        }
        parsed => parsed,
    }
    .map_err(|unparsed| match unparsed {
        Unparsed::Refused(refused) => refused,
        Unparsed::TooMany => Refused::new(
            431,
            format!("{} headers at most (--max-headers)", limits.headers),
        ),
    })
}

enum Unparsed {
    Refused(Refused),
    /// More headers than there was room for.
    TooMany,
}

impl From<Refused> for Unparsed {
    fn from(refused: Refused) -> Self {
        Unparsed::Refused(refused)
    }
}

fn parse<'b>(
    room: &mut [httparse::Header<'b>],
    bytes: &'b [u8],
    limits: &RequestLimits,
    peer: Option<IpAddr>,
) -> Result<Option<Head>, Unparsed> {
    let mut parsed = httparse::Request::new(room);
    let length = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return unfinished(bytes, limits),
        // Which fault the first line has is told when it is whole, or the answer would depend on how it comes.
        Err(httparse::Error::Version) if !bytes.trim_ascii_start().contains(&b'\r') => {
            return unfinished(bytes, limits);
        }
        Err(httparse::Error::TooManyHeaders) => return Err(Unparsed::TooMany),
        Err(why) => return Err(malformed(why, bytes).into()),
    };
    has_no_bare_newline(&bytes[..length], 0)?;
    too_large(length > limits.head_bytes, limits)?;
    if parsed.headers.len() > limits.headers {
        return Err(Unparsed::TooMany);
    }
    Ok(Some(checked(&parsed, length, limits, peer)?))
}

/// A head that is not whole yet, and may become a good one.
fn unfinished(bytes: &[u8], limits: &RequestLimits) -> Result<Option<Head>, Unparsed> {
    has_no_bare_newline(bytes, 0)?;
    too_large(bytes.len() > limits.head_bytes, limits)?;
    Ok(None)
}

fn too_large(is: bool, limits: &RequestLimits) -> Result<(), Refused> {
    let most = limits.head_bytes;
    match is {
        true => Err(Refused::new(
            431,
            format!("the head must have {most} bytes at most (--max-head)"),
        )),
        false => Ok(()),
    }
}

/// Whether a head ends in `bytes` after the first `searched` ones.
fn ends_after(bytes: &[u8], searched: usize) -> bool {
    // The empty line may have begun in them.
    let from = searched.saturating_sub(3);
    bytes[from..].windows(4).any(|four| four == b"\r\n\r\n")
}

/// Refuses a line that ends with LF only: httparse accepts it, proxies may not.
fn has_no_bare_newline(bytes: &[u8], from: usize) -> Result<(), Refused> {
    let is_bare = |at: usize| bytes[at] == b'\n' && (at == 0 || bytes[at - 1] != b'\r');
    match (from..bytes.len()).any(is_bare) {
        true => Err(Refused::new(400, "a line of the head must end with CR LF")),
        false => Ok(()),
    }
}

fn malformed(why: httparse::Error, bytes: &[u8]) -> Refused {
    use httparse::Error;
    if let Err(refused) = has_no_bare_newline(bytes, 0) {
        return refused;
    }
    let line = "the first line must be METHOD PATH HTTP/1.1";
    match why {
        Error::Version if says_http(bytes) => {
            Refused::new(505, "HTTP/1.1 and HTTP/1.0 are spoken here")
        }
        Error::Token | Error::NewLine | Error::Status | Error::Version => Refused::new(400, line),
        Error::HeaderName => Refused::new(
            400,
            "a header must be a name (a token), a colon and a value, in one line",
        ),
        Error::HeaderValue => {
            Refused::new(400, "a header's value must not have control characters")
        }
        Error::TooManyHeaders => Refused::new(431, "too many headers (--max-headers)"),
    }
}

/// Whether the first line has three words, and the third one begins with `HTTP/`.
fn says_http(bytes: &[u8]) -> bool {
    let line = bytes.trim_ascii_start().split(|byte| *byte == b'\r').next();
    let mut words = line.unwrap_or_default().split(|byte| *byte == b' ').skip(2);
    words.next().is_some_and(|word| word.starts_with(b"HTTP/")) && words.next().is_none()
}

fn checked(
    parsed: &httparse::Request<'_, '_>,
    length: usize,
    limits: &RequestLimits,
    peer: Option<IpAddr>,
) -> Result<Head, Refused> {
    let bad = |msg: &str| Err(Refused::new(400, msg));
    let target = parsed.path.unwrap_or_default();
    if target.len() > limits.target_bytes {
        let most = limits.target_bytes;
        return Err(Refused::new(
            414,
            format!("the path and query must have {most} bytes at most (--max-target)"),
        ));
    }
    if !target.is_ascii() {
        return bad("the path and query must be ASCII, other characters percent-encoded");
    }
    let mut headers = Headers::default();
    let mut seen = [false; ONCE.len()];
    let (mut content_length, mut is_chunked, mut expects_continue) = (None, false, false);
    let (mut closes, mut stays, mut upgrades) = (false, false, false);
    for header in parsed.headers.iter() {
        let (name, value) = (header.name, header.value.trim_ascii());
        if !value.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t')) {
            return bad("a header's value must be of printable ASCII characters");
        }
        // It was just checked.
        let text = std::str::from_utf8(value).unwrap_or_default();
        if let Some(n) = ONCE.iter().position(|once| name.eq_ignore_ascii_case(once))
            && std::mem::replace(&mut seen[n], true)
        {
            return bad(&format!("{}: must be given once", ONCE[n]));
        }
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        if is("Content-Length") {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let number: Option<u64> = text.parse().ok().filter(|_| digits);
            let Some(number) = number else {
                return bad("Content-Length: must be a number of bytes");
            };
            content_length = Some(number);
        } else if is("Transfer-Encoding") {
            if !text.eq_ignore_ascii_case("chunked") {
                return bad("Transfer-Encoding: must be chunked");
            }
            is_chunked = true;
        } else if is("Expect") {
            if !text.eq_ignore_ascii_case("100-continue") {
                return Err(Refused::new(417, "Expect: must be 100-continue"));
            }
            expects_continue = true;
        } else if is("Connection") {
            let words = || text.split(',').map(str::trim);
            closes |= words().any(|word| word.eq_ignore_ascii_case("close"));
            stays |= words().any(|word| word.eq_ignore_ascii_case("keep-alive"));
            upgrades |= words().any(|word| word.eq_ignore_ascii_case("upgrade"));
        } else if is("Host") {
            headers.host = Some(text.to_owned());
        } else if is("Origin") {
            headers.origin = Some(text.to_owned());
        } else if is("Sec-Fetch-Site") {
            headers.fetch_site = Some(text.to_owned());
        } else if is("Accept") {
            headers.accept = Some(text.to_owned());
        } else if is("Range") {
            headers.range = Some(text.to_owned());
        } else if is("If-Range") {
            headers.if_range = Some(text.to_owned());
        } else if is("If-None-Match") {
            headers.if_none_match = Some(text.to_owned());
        } else if is("Content-Range") {
            headers.content_range = Some(text.to_owned());
        } else if is("Sidebike-Instance") {
            headers.instance = Some(Authorization(text.to_owned()));
        } else if is(TERM_HEADER) {
            headers.term = text.parse().ok();
        } else if is(COMMIT_HEADER) {
            headers.commit = text.parse().ok();
        } else if is("User-Agent") {
            headers.is_of_sidebike = text.starts_with(OWN_AGENTS);
        } else if is(FORWARDED_HEADER) {
            headers.forwarded = Some(text.to_owned());
        } else if is("Authorization") {
            headers.authorization = Some(Authorization(text.to_owned()));
        }
    }
    let is_http_1_0 = parsed.version == Some(0);
    let framing = match (content_length, is_chunked) {
        (Some(_), true) => {
            return bad("Transfer-Encoding: does not go with Content-Length, give one of them");
        }
        (None, true) if is_http_1_0 => {
            return bad("Transfer-Encoding: is not of HTTP/1.0, give a Content-Length");
        }
        // A proxy that upgrades would read the rest as another protocol.
        (None, true) if upgrades => {
            return bad("Transfer-Encoding: does not go with Connection: upgrade");
        }
        (None, true) => Framing::Chunked,
        (Some(bytes), false) => Framing::Length(bytes),
        (None, false) => Framing::Length(0),
    };
    let method = parsed.method.unwrap_or_default();
    Ok(Head {
        request: Request::parsed(method, target, headers, peer)?,
        framing,
        // HTTP/1.0 has no interim responses.
        expects_continue: expects_continue && !is_http_1_0,
        mode: ResponseMode {
            keep_alive: !closes && (stays || !is_http_1_0),
            is_http_1_0,
            without_body: method == "HEAD",
        },
        length,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: RequestLimits = RequestLimits {
        head_bytes: 16 << 10,
        headers: 4,
        target_bytes: 99,
        body_bytes: 99,
    };

    fn status(head: &str) -> u16 {
        match read(head.as_bytes(), 0, &LIMITS, None) {
            Ok(Some(_)) => 200,
            Ok(None) => 100,
            Err(refused) => refused.status,
        }
    }

    #[test]
    fn a_head_means_one_thing_or_is_refused() {
        for (head, expected) in [
            ("GET / HTTP/1.1\r\n\r\n", 200),
            ("\r\nGET / HTTP/1.1\r\n\r\n", 200),
            ("GET / HTTP/1.1\r\n", 100),
            ("GET / HTTP/1.0\r\nHost: x\r\n\r\n", 200),
            ("PRI * HTTP/2.0\r\n\r\n", 505),
            ("GET / HTTP/1.1x\r\n\r\n", 400),
            ("GET / HTTP/2.0 HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1 \r\n\r\n", 400),
            (" / HTTP/1.1\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\n\r\n", 400),
            ("GET /é HTTP/1.1\r\n\r\n", 400),
            ("GET / ICE/1.0\r\n\r\n", 400),
            ("\n\nGET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: b\r\n c: d\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\x0bContent-Length: 9\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length\x0c: 9\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length : 9\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n!#$%&'*+-.^_`|~: b\r\n\r\n", 200),
            ("GET / HTTP/1.1\nA: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: b\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: b\n", 400),
            (
                "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-length: 1\r\n\r\n",
                400,
            ),
            (
                "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                400,
            ),
            ("GET / HTTP/1.1\r\nA: \0\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: b\x0cc\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: é\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nA: b\tc d~\r\n\r\n", 200),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n", 200),
            ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nExpect: 100-Continue\r\n\r\n", 200),
            ("GET / HTTP/1.1\r\nExpect: much\r\n\r\n", 417),
            ("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
            (
                "GET / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
                400,
            ),
            (
                "GET / HTTP/1.1\r\na: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\n\r\n",
                200,
            ),
            (
                "GET / HTTP/1.1\r\na: 1\r\nb: 2\r\nc: 3\r\nd: 4\r\ne: 5\r\n\r\n",
                431,
            ),
        ] {
            assert_eq!(status(head), expected, "{head:?}");
        }
    }

    #[test]
    fn a_head_is_found_however_it_is_cut() {
        let head = b"\r\nPOST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
        let whole = head.len() - 3;
        for first in 1..head.len() {
            let found = read(&head[..first], 0, &LIMITS, None).unwrap();
            assert_eq!(found.is_some(), first >= whole, "{first}");
            if found.is_none() {
                for next in first + 1..=head.len() {
                    let found = read(&head[..next], first, &LIMITS, None).unwrap();
                    let length = found.map(|head| head.length);
                    assert_eq!(length, (next >= whole).then_some(whole), "{first} {next}");
                }
            }
        }
    }

    #[test]
    fn more_headers_than_usual_are_read_when_the_limit_allows() {
        let limits = RequestLimits {
            headers: 50,
            ..LIMITS
        };
        let head = |count| {
            let headers: String = (0..count).map(|n| format!("h{n}: x\r\n")).collect();
            format!("GET / HTTP/1.1\r\n{headers}\r\n")
        };
        let of = |count| read(head(count).as_bytes(), 0, &limits, None);
        assert!(of(50).unwrap().is_some());
        assert_eq!(of(51).unwrap_err().status, 431);
    }

    #[test]
    fn a_term_and_a_commit_are_read_and_what_is_none_is_ignored() {
        let read = |value: &str| {
            let head = format!(
                "POST / HTTP/1.1\r\nsidebike-term: {value}\r\nsidebike-commit: {value}\r\n\r\n"
            );
            let head = read(head.as_bytes(), 0, &LIMITS, None).unwrap().unwrap();
            let headers = head.request.headers;
            let (term, commit) = (headers.term, headers.commit);
            (
                term.map(|term| term.to_string()),
                commit.map(|commit| commit.to_string()),
            )
        };
        let good = "00000000000000ab:7";
        assert_eq!(read(good), (Some(good.into()), Some(good.into())));
        for bad in ["", "7", "ab:7", "00000000000000ab:-7"] {
            assert_eq!(read(bad), (None, None), "{bad}");
        }
    }

    #[test]
    fn the_connection_stays_as_the_version_says() {
        let stays = |head: &str| {
            let head = read(head.as_bytes(), 0, &LIMITS, None).unwrap().unwrap();
            head.mode.keep_alive
        };
        assert!(stays("GET / HTTP/1.1\r\n\r\n"));
        assert!(!stays("GET / HTTP/1.1\r\nConnection: a, Close\r\n\r\n"));
        assert!(!stays("GET / HTTP/1.0\r\n\r\n"));
        assert!(stays("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
    }
}
