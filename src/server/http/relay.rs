//! What goes between a client and the server that answers its request; without I/O.
//!
//! Both heads are written anew from their parts, each with one framing, whatever the other side's framing was: what
//! one side could understand in two ways never reaches the other. Bodies are decoded and framed again. Trailers are
//! dropped, and an answer that is not understood is an error.

use super::answer;
use super::body::{Decoder, Framing};
use super::forward::Forward;
use super::head::{ONCE, ResponseMode};
use super::request::Refused;
use super::{BodyLimit, RequestLimits};
use std::io::Write;

/// The longest head of an answer, in bytes, and its headers: more than any of ours has.
const MAX_HEAD_BYTES: usize = 32 * 1024;
const MAX_HEADERS: usize = 64;
/// Interim answers (1xx) to one request: one is usual, and endless ones would never become an answer.
const MAX_INTERIM: usize = 8;
/// Headers about a connection, besides those that `Connection` lists and all that begin with `Proxy-`.
const HOP_BY_HOP: [&str; 6] = [
    "Connection",
    "Keep-Alive",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
];

/// Why an answer is not passed on.
pub type Malformed = &'static str;

/// The head of a forwarded request. `raw` is the client's, which was parsed before, within the same limits.
pub fn request_head(
    raw: &[u8],
    limits: &RequestLimits,
    framing: Framing,
    expects_continue: bool,
    forward: &Forward,
) -> Result<Vec<u8>, Refused> {
    let unread = || Refused::new(400, "the head could not be passed on");
    let mut room = vec![httparse::EMPTY_HEADER; limits.headers];
    let mut parsed = httparse::Request::new(&mut room);
    if !parsed.parse(raw).is_ok_and(|status| status.is_complete()) {
        return Err(unread());
    }
    let (method, target) = parsed.method.zip(parsed.path).ok_or_else(unread)?;
    let mut head = Vec::with_capacity(raw.len() + 256);
    for part in [method, " ", target, " HTTP/1.1\r\n"] {
        head.extend_from_slice(part.as_bytes());
    }
    let mut says_length = false;
    for header in parsed.headers.iter() {
        let is = |other: &str| header.name.eq_ignore_ascii_case(other);
        if is("Content-Length") {
            says_length = true;
            continue;
        }
        let is_ours = is("Expect")
            || forward.headers.iter().any(|(name, _)| is(name))
            || forward.withheld.iter().any(|name| is(name));
        if !is_ours && !is_of_connection(header.name, parsed.headers) {
            add(&mut head, header.name, header.value.trim_ascii());
        }
    }
    for (name, value) in &forward.headers {
        if !is_value(value.as_bytes()) {
            return Err(Refused::new(500, format!("{name}: cannot be sent")));
        }
        add(&mut head, name, value.as_bytes());
    }
    // Writing to a vector cannot fail.
    let _ = match framing {
        Framing::Chunked => head.write_all(b"Transfer-Encoding: chunked\r\n"),
        Framing::Length(0) if !says_length => Ok(()),
        Framing::Length(bytes) => write!(head, "Content-Length: {bytes}\r\n"),
    };
    if expects_continue && framing != Framing::Length(0) {
        add(&mut head, "Expect", b"100-continue");
    }
    head.extend_from_slice(b"Connection: close\r\n\r\n");
    Ok(head)
}

/// A piece of the body of a forwarded request, as it is sent.
pub fn request_piece(piece: Vec<u8>, is_chunked: bool, is_last: bool) -> Vec<u8> {
    let mut out = Vec::new();
    add_piece(&mut out, piece, is_chunked);
    if is_last && is_chunked {
        out.extend_from_slice(LAST_CHUNK);
    }
    out
}

const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Adds a piece of a body; an empty chunk would be its end.
fn add_piece(out: &mut Vec<u8>, piece: Vec<u8>, is_chunked: bool) {
    if piece.is_empty() {
        return;
    }
    if is_chunked {
        let _ = write!(out, "{:x}\r\n", piece.len());
    }
    out.extend_from_slice(&piece);
    if is_chunked {
        out.extend_from_slice(b"\r\n");
    }
}

fn add(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

fn is_value(value: &[u8]) -> bool {
    { value.iter() }.all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f))
}

/// Whether a header is about the connection that it came by. `Connection` may name further ones, but none that decides
/// who asks for what.
fn is_of_connection(name: &str, all: &[httparse::Header<'_>]) -> bool {
    let is = |other: &&str| name.eq_ignore_ascii_case(other);
    let is_proxys = { name.as_bytes().get(..6) }.is_some_and(|b| b.eq_ignore_ascii_case(b"proxy-"));
    let lists = |header: &httparse::Header<'_>| {
        header.name.eq_ignore_ascii_case("Connection") && {
            header.value.split(|byte| *byte == b',')
        }
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
    };
    let is_listed = || all.iter().any(lists) && !ONCE.iter().any(is);
    HOP_BY_HOP.iter().any(is) || is_proxys || is_listed()
}

/// Makes the bytes for the client out of those of the other server's answer, in whatever pieces they come.
#[derive(Debug)]
pub struct AnswerReader {
    stage: Stage,
    interim: usize,
    keeps_alive: bool,
    /// The client sees where the body ends, also when it ends too early.
    is_framed: bool,
}

#[derive(Debug)]
enum Stage {
    /// The head of the answer, or of an interim one.
    Head,
    /// A body that says where it ends; and whether the client gets it in chunks.
    Body(Decoder, bool),
    /// A body that ends with the connection; and whether the client gets it in chunks.
    UntilClose(bool),
    Done,
}

/// The head of an answer.
struct AnswerHead {
    status: u16,
    framing: Option<Framing>,
    /// What goes to the client, without framing and without the empty line.
    lines: Vec<u8>,
    length: usize,
}

impl AnswerReader {
    /// For an answer of which nothing has come.
    pub fn new() -> Self {
        AnswerReader {
            stage: Stage::Head,
            interim: 0,
            keeps_alive: false,
            is_framed: true,
        }
    }

    /// Whether its head has gone to the client; interim ones do not count.
    pub fn has_begun(&self) -> bool {
        !matches!(self.stage, Stage::Head)
    }

    /// Whether all of it is there.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// Whether its head has said that the client's connection stays.
    pub fn keeps_alive(&self) -> bool {
        self.keeps_alive
    }

    /// Whether the client sees where the body ends, also when it ends too early.
    pub fn is_framed(&self) -> bool {
        self.is_framed
    }

    /// Takes what can be understood from the front of `input`, and adds what the client gets to `out`. Returns how
    /// many bytes were taken.
    pub fn take(
        &mut self,
        input: &[u8],
        mode: ResponseMode,
        out: &mut Vec<u8>,
    ) -> Result<usize, Malformed> {
        let mut at = 0;
        loop {
            let rest = &input[at..];
            match &mut self.stage {
                Stage::Head => {
                    let Some(head) = read_head(rest)? else {
                        return Ok(at);
                    };
                    at += head.length;
                    self.begin(head, mode, out)?;
                }
                Stage::Body(decoder, in_chunks) => {
                    let mut body = Vec::new();
                    let taken = decoder.decode(rest, &mut body);
                    at += taken.map_err(|_| "its body is malformed")?;
                    let (in_chunks, is_whole) = (*in_chunks, decoder.is_done());
                    add_piece(out, body, in_chunks);
                    if is_whole {
                        self.finish(in_chunks, out);
                    }
                    return Ok(at);
                }
                Stage::UntilClose(in_chunks) => {
                    add_piece(out, rest.to_vec(), *in_chunks);
                    return Ok(input.len());
                }
                Stage::Done => return Ok(at),
            }
        }
    }

    /// The other server has closed its side; `is_clean` unless it cannot be told from a cut.
    pub fn end(&mut self, is_clean: bool, out: &mut Vec<u8>) -> Result<(), Malformed> {
        match self.stage {
            Stage::Done => Ok(()),
            Stage::UntilClose(in_chunks) if is_clean => {
                self.finish(in_chunks, out);
                Ok(())
            }
            Stage::Head => Err("it closed the connection"),
            Stage::UntilClose(_) | Stage::Body(..) => Err("its answer broke off"),
        }
    }

    fn finish(&mut self, in_chunks: bool, out: &mut Vec<u8>) {
        if in_chunks {
            out.extend_from_slice(LAST_CHUNK);
        }
        self.stage = Stage::Done;
    }

    fn begin(
        &mut self,
        head: AnswerHead,
        mode: ResponseMode,
        out: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        if head.status < 200 {
            self.interim += 1;
            if self.interim > MAX_INTERIM {
                return Err("it sent too many interim answers");
            }
            // HTTP/1.0 has none.
            if !mode.is_http_1_0 {
                out.extend_from_slice(&head.lines);
                out.extend_from_slice(b"\r\n");
            }
            return Ok(());
        }
        self.keeps_alive = mode.keep_alive;
        let is_empty = mode.without_body || matches!(head.status, 204 | 304);
        let in_chunks = !mode.is_http_1_0;
        self.stage = match head.framing {
            _ if is_empty => Stage::Done,
            Some(framing) => {
                let in_chunks = in_chunks && framing == Framing::Chunked;
                let decoder = Decoder::new(framing, BodyLimit::Streamed);
                Stage::Body(decoder.map_err(|_| "its body is too large")?, in_chunks)
            }
            None => Stage::UntilClose(in_chunks),
        };
        out.extend_from_slice(&head.lines);
        // Writing to a vector cannot fail.
        let _ = match head.framing {
            // The length would be that of the body which is not sent.
            Some(Framing::Length(bytes)) if head.status != 204 => {
                write!(out, "Content-Length: {bytes}\r\n")
            }
            _ if is_empty => Ok(()),
            _ if in_chunks => out.write_all(b"Transfer-Encoding: chunked\r\n"),
            _ => {
                (self.keeps_alive, self.is_framed) = (false, false);
                Ok(())
            }
        };
        out.extend_from_slice(match (self.keeps_alive, mode.is_http_1_0) {
            (false, _) => b"Connection: close\r\n\r\n",
            (true, true) => b"Connection: keep-alive\r\n\r\n",
            (true, false) => b"\r\n",
        });
        if let Stage::Body(decoder, in_chunks) = &self.stage
            && decoder.is_done()
        {
            self.finish(*in_chunks, out);
        }
        Ok(())
    }
}

/// Reads the head at the beginning of `bytes`; `None` when it is not whole.
fn read_head(bytes: &[u8]) -> Result<Option<AnswerHead>, Malformed> {
    let searched = &bytes[..bytes.len().min(MAX_HEAD_BYTES)];
    let Some(end) = searched.windows(4).position(|four| four == b"\r\n\r\n") else {
        return match bytes.len() >= MAX_HEAD_BYTES {
            true => Err("the head of its answer is too large"),
            false => Ok(None),
        };
    };
    let length = end + 4;
    let head = &bytes[..length];
    let is_bare = |at: usize| head[at] == b'\n' && (at == 0 || head[at - 1] != b'\r');
    let mut room = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut room);
    let is_whole = matches!(parsed.parse(head), Ok(httparse::Status::Complete(n)) if n == length);
    let (Some(status), true) = (parsed.code, is_whole && !(0..length).any(is_bare)) else {
        return Err("the head of its answer is malformed");
    };
    // Nothing here asks for another protocol.
    if !(100..600).contains(&status) || status == 101 {
        return Err("the status of its answer is none");
    }
    let reason = parsed.reason.unwrap_or_default();
    let mut lines = Vec::with_capacity(length + 64);
    lines.extend_from_slice(answer::FIRST_BYTES);
    let _ = write!(lines, "{status} {reason}\r\n");
    let (mut content_length, mut is_chunked) = (None, false);
    for header in parsed.headers.iter() {
        let value = header.value.trim_ascii();
        let is = |other: &str| header.name.eq_ignore_ascii_case(other);
        if is("Content-Length") {
            let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
            let number = std::str::from_utf8(value).ok().filter(|_| digits);
            let number: Option<u64> = number.and_then(|number| number.parse().ok());
            if number.is_none() || content_length.is_some() {
                return Err("the length of its answer is none");
            }
            content_length = number;
        } else if is("Transfer-Encoding") {
            if is_chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err("the framing of its answer is unknown");
            }
            is_chunked = true;
        } else if !is_value(value) {
            return Err("a header of its answer is malformed");
        } else if !is_of_connection(header.name, parsed.headers) {
            add(&mut lines, header.name, value);
        }
    }
    let framing = match (content_length, is_chunked) {
        (Some(_), true) => return Err("its answer has two framings"),
        (None, true) if parsed.version == Some(0) => {
            return Err("the framing of its answer is not of HTTP/1.0");
        }
        (None, true) => Some(Framing::Chunked),
        (Some(bytes), false) => Some(Framing::Length(bytes)),
        (None, false) => None,
    };
    Ok(Some(AnswerHead {
        status,
        framing,
        lines,
        length,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::ForwardTarget;
    use super::super::head;
    use super::*;

    const LIMITS: RequestLimits = RequestLimits {
        head_bytes: 16 << 10,
        headers: 32,
        target_bytes: 999,
        body_bytes: 99,
    };
    const HTTP_1_1: ResponseMode = ResponseMode {
        keep_alive: true,
        is_http_1_0: false,
        without_body: false,
    };
    const HTTP_1_0: ResponseMode = ResponseMode {
        keep_alive: true,
        is_http_1_0: true,
        without_body: false,
    };
    const HEAD: ResponseMode = ResponseMode {
        keep_alive: true,
        is_http_1_0: false,
        without_body: true,
    };

    fn forward(headers: Vec<(&'static str, String)>) -> Forward {
        Forward {
            target: ForwardTarget {
                address: ([127, 0, 0, 1], 1).into(),
                tls: None,
                id: 1,
                name: "another",
            },
            headers,
            withheld: &["Secret"],
        }
    }

    /// The head that goes out for one that came.
    fn sent(raw: &str, headers: Vec<(&'static str, String)>) -> Result<String, u16> {
        let head = head::read(raw.as_bytes(), 0, &LIMITS, None);
        let head = head
            .map_err(|refused| refused.status)?
            .expect("it is whole");
        let raw = &raw.as_bytes()[..head.length];
        let expects = head.expects_continue;
        request_head(raw, &LIMITS, head.framing, expects, &forward(headers))
            .map(|head| String::from_utf8(head).unwrap())
            .map_err(|refused| refused.status)
    }

    #[test]
    fn a_head_goes_on_without_what_is_about_its_connection() {
        for (came, goes) in [
            (
                "\r\nGET /a%20b?c=d HTTP/1.1\r\nHost: x:1\r\nOrigin: http://y\r\nA:  b c \r\n\r\n",
                "GET /a%20b?c=d HTTP/1.1\r\nHost: x:1\r\nOrigin: http://y\r\nA: b c\r\nBy: me\r\n",
            ),
            (
                "GET / HTTP/1.0\r\nby: you\r\nBY: them\r\nsecret: s\r\n\r\n",
                "GET / HTTP/1.1\r\nBy: me\r\n",
            ),
            (
                "GET / HTTP/1.1\r\nConnection: a, Keep-Alive\r\nconnection: Host,b,Origin\r\nA: 1\r\n\
                 B: 2\r\nKeep-Alive: 3\r\nTE: gzip\r\nTrailer: A\r\nUpgrade: h2c\r\nProxy-X: 4\r\n\
                 Host: h\r\nOrigin: o\r\nC: 5\r\n\r\n",
                "GET / HTTP/1.1\r\nHost: h\r\nOrigin: o\r\nC: 5\r\nBy: me\r\n",
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length: 007\r\nExpect: 100-Continue\r\n\r\n",
                "POST / HTTP/1.1\r\nBy: me\r\nContent-Length: 7\r\nExpect: 100-continue\r\n",
            ),
            (
                "POST / HTTP/1.1\r\nContent-Length: 0\r\nExpect: 100-continue\r\n\r\n",
                "POST / HTTP/1.1\r\nBy: me\r\nContent-Length: 0\r\n",
            ),
            (
                "PUT / HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n",
                "PUT / HTTP/1.1\r\nBy: me\r\nTransfer-Encoding: chunked\r\n",
            ),
        ] {
            let found = sent(came, vec![("By", "me".into())]);
            assert_eq!(found.unwrap(), format!("{goes}Connection: close\r\n\r\n"));
        }
        let two_lines = vec![("By", "me\r\nHost: other".to_owned())];
        assert_eq!(sent("GET / HTTP/1.1\r\n\r\n", two_lines), Err(500));
    }

    /// What the client gets of an answer that comes in these pieces, and whether the connection stays.
    fn relayed(
        pieces: &[&[u8]],
        ends: bool,
        mode: ResponseMode,
    ) -> Result<(Vec<u8>, bool), Malformed> {
        let (mut reader, mut out) = (AnswerReader::new(), Vec::new());
        let mut input = Vec::new();
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                let taken = reader.take(&input, mode, &mut out)?;
                input.drain(..taken);
                if taken == 0 {
                    break;
                }
            }
        }
        if ends {
            reader.end(true, &mut out)?;
        }
        match reader.is_done() {
            true => Ok((out, reader.keeps_alive())),
            false => Err("unfinished"),
        }
    }

    /// Heads and body of what a client got.
    fn understood(out: &[u8], mode: ResponseMode) -> (String, String) {
        let mut at = 0;
        let head = loop {
            let head = read_head(&out[at..]).unwrap().expect("a whole head");
            at += head.length;
            if head.status >= 200 {
                break head;
            }
        };
        let heads = String::from_utf8(out[..at].to_vec()).unwrap();
        let mut body = Vec::new();
        match head.framing {
            _ if mode.without_body || matches!(head.status, 204 | 304) => {}
            Some(framing) => {
                let mut decoder = Decoder::new(framing, BodyLimit::Streamed).unwrap();
                at += decoder.decode(&out[at..], &mut body).unwrap();
                assert!(decoder.is_done(), "{heads}");
            }
            None => {
                body.extend_from_slice(&out[at..]);
                at = out.len();
            }
        }
        assert_eq!(at, out.len(), "nothing behind the answer: {heads}");
        (heads, String::from_utf8(body).unwrap())
    }

    const OK: &str = "HTTP/1.1 200 OK\r\n";
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";

    #[test]
    fn an_answer_goes_on_however_it_is_cut() {
        let length = "Content-Length: 5\r\n";
        let close = "Connection: close\r\n";
        for (came, ends, mode, heads, body, stays) in [
            (
                format!("{OK}A: b\r\n{length}{close}\r\nhello"),
                false,
                HTTP_1_1,
                format!("{OK}A: b\r\n{length}\r\n"),
                "hello",
                true,
            ),
            (
                format!("{OK}{length}\r\nhello, and more"),
                false,
                HTTP_1_0,
                format!("{OK}{length}Connection: keep-alive\r\n\r\n"),
                "hello",
                true,
            ),
            (
                format!(
                    "{OK}{CHUNKED}X: y\r\n{close}\r\n2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n"
                ),
                false,
                HTTP_1_1,
                format!("{OK}X: y\r\n{CHUNKED}\r\n"),
                "hello",
                true,
            ),
            (
                format!("{OK}{CHUNKED}\r\n5\r\nhello\r\n0\r\n\r\n"),
                false,
                HTTP_1_0,
                format!("{OK}{close}\r\n"),
                "hello",
                false,
            ),
            (
                "HTTP/1.0 404 \r\nProxy-Y: a\r\n\r\nhello".into(),
                true,
                HTTP_1_1,
                format!("HTTP/1.1 404 \r\n{CHUNKED}\r\n"),
                "hello",
                true,
            ),
            (
                format!("{OK}\r\nhello"),
                true,
                HTTP_1_0,
                format!("{OK}{close}\r\n"),
                "hello",
                false,
            ),
            (
                format!("{OK}{length}\r\n"),
                false,
                HEAD,
                format!("{OK}{length}\r\n"),
                "",
                true,
            ),
            (
                format!("{OK}{CHUNKED}\r\n"),
                false,
                HEAD,
                format!("{OK}\r\n"),
                "",
                true,
            ),
            (
                "HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n".into(),
                false,
                HTTP_1_1,
                "HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n".into(),
                "",
                true,
            ),
            (
                "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n".into(),
                false,
                HTTP_1_1,
                "HTTP/1.1 204 No Content\r\n\r\n".into(),
                "",
                true,
            ),
            (
                format!(
                    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nLink: a\r\n\r\n{OK}{length}\r\nhello"
                ),
                false,
                HTTP_1_1,
                format!(
                    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 x\r\nLink: a\r\n\r\n{OK}{length}\r\n"
                ),
                "hello",
                true,
            ),
            (
                format!("HTTP/1.1 100 Continue\r\n\r\n{OK}Content-Length: 0\r\n\r\n"),
                false,
                HTTP_1_0,
                format!("{OK}Content-Length: 0\r\nConnection: keep-alive\r\n\r\n"),
                "",
                true,
            ),
        ] {
            let bytes = came.as_bytes();
            let each: Vec<&[u8]> = bytes.chunks(1).collect();
            let halves = (0..=bytes.len()).map(|at| vec![&bytes[..at], &bytes[at..]]);
            for pieces in halves.chain([each]) {
                let (out, keeps) =
                    relayed(&pieces, ends, mode).unwrap_or_else(|why| panic!("{why}: {came}"));
                let (found_heads, found_body) = understood(&out, mode);
                assert_eq!(found_heads, heads);
                assert_eq!(found_body, body, "{came}");
                assert_eq!(keeps, stays, "{came}");
            }
        }
    }

    #[test]
    fn an_answer_that_is_not_understood_or_not_whole_is_an_error() {
        for came in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
            "HTTP/1.1 200 OK\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA : b\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 099 What\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n",
            "HTTP/2 200\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        ] {
            assert!(
                relayed(&[came.as_bytes()], true, HTTP_1_1).is_err(),
                "{came:?}"
            );
        }
        let endless = "HTTP/1.1 102 Processing\r\n\r\n".repeat(MAX_INTERIM + 1);
        assert!(relayed(&[endless.as_bytes()], true, HTTP_1_1).is_err());
        let large = format!("{OK}A: {}", "a".repeat(MAX_HEAD_BYTES));
        let (mut reader, mut out) = (AnswerReader::new(), Vec::new());
        assert!(reader.take(large.as_bytes(), HTTP_1_1, &mut out).is_err());
        // Without close_notify it may have been cut.
        let mut reader = AnswerReader::new();
        let open = format!("{OK}\r\nhello");
        reader.take(open.as_bytes(), HTTP_1_1, &mut out).unwrap();
        assert!(reader.end(false, &mut out).is_err());
    }

    #[test]
    fn whatever_comes_a_client_sees_one_framing() {
        let good = format!("{OK}A: b\r\n{CHUNKED}\r\n5\r\nhello\r\n0\r\n\r\n");
        let words: [&[u8]; 8] = [
            b"Content-Length: 3\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Connection: Content-Length, A\r\n",
            b"\r\n",
            b"\n",
            b" ",
            b"\0",
            b"Content-Length: 0\r\n\r\n",
        ];
        let mut seed = 7u64;
        let mut below = |most: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 33) as usize % most
        };
        let mut whole = 0;
        for _ in 0..20_000 {
            let mut bytes = good.clone().into_bytes();
            for _ in 0..below(3) {
                let at = below(bytes.len() + 1);
                match below(3) {
                    0 if at < bytes.len() => bytes[at] ^= 1 << below(8),
                    1 if at < bytes.len() => drop(bytes.remove(at)),
                    _ => drop(bytes.splice(at..at, words[below(words.len())].iter().copied())),
                }
            }
            let at = below(bytes.len() + 1);
            let mode = [HTTP_1_1, HTTP_1_0, HEAD][below(3)];
            if let Ok((out, _)) = relayed(&[&bytes[..at], &bytes[at..]], true, mode) {
                let end = out.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
                let head = String::from_utf8_lossy(&out[..end]).to_ascii_lowercase();
                let framings = head.matches("\r\ncontent-length:").count()
                    + head.matches("\r\ntransfer-encoding:").count();
                // Its end is known, or that of the connection tells.
                let ends_otherwise = mode == HEAD
                    || head.contains("\r\nconnection: close")
                    || ["http/1.1 204", "http/1.1 304"]
                        .iter()
                        .any(|line| head.starts_with(line));
                assert!(framings == 1 || (framings == 0 && ends_otherwise), "{head}");
                whole += 1;
            }
        }
        assert!(whole > 5_000, "{whole}");
    }
}
