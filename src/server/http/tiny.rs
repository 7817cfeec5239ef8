//! The plain engine: tiny_http's own loop, `recv` on a few threads, behind the same face as the edge.
//!
//! For closed networks, and as the reference that the edge's answers are compared with. A held request is kept as the
//! library's `Request`, and whoever answers it writes to its peer. There is no defence against slow or hostile peers,
//! no TLS, and most limits of the edge do not hold. The only place that names tiny_http.

use super::answer::Answer;
use super::body::BodyLimit;
use super::request::{Authorization, Headers, Refused, Request};
use super::responder::{Part, ReplyPath, Responder, Source};
use super::{Admitted, ConnectionId, Decision, RequestLimits, Service, Sink, start_thread};
use crate::wire::term::{COMMIT_HEADER, TERM_HEADER};
use log::{debug, warn};
use std::io::{self, Cursor, Read};
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Threads that take requests and serve them.
const THREADS: usize = 16;
/// What is read of a body at once for its sink, in bytes.
const PIECE_BYTES: usize = 256 * 1024;
/// The pause after an error of the library.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

/// A request, to be answered.
pub struct TinyReply {
    request: tiny_http::Request,
    id: ConnectionId,
    signal: Arc<StreamSignal>,
}

/// Tells the thread of a stream that there may be something new.
#[derive(Default)]
pub struct StreamSignal {
    is_set: Mutex<bool>,
    comes: Condvar,
}

impl StreamSignal {
    /// There may be something new.
    pub fn notify(&self) {
        *self.is_set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.comes.notify_one();
    }

    fn wait(&self, patience: Duration) {
        let set = self.is_set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = (self.comes).wait_timeout_while(set, patience, |set| !*set);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

/// Serves for ever what comes by a listening socket.
pub fn start<S: Service>(
    listener: TcpListener,
    limits: &RequestLimits,
    service: &Arc<S>,
) -> Result<(), String> {
    let cannot = |why: &dyn std::fmt::Display| format!("--engine tiny_http: {why}");
    listener
        .set_nonblocking(false)
        .map_err(|why| cannot(&why))?;
    let address = listener.local_addr().map_err(|why| cannot(&why))?;
    let config = tiny_http::ServerConfig::new_http(address).map_err(|why| cannot(&why))?;
    let server = tiny_http::Server::from_listener(listener, address.into(), config);
    let server = server.map_err(|why| cannot(&why))?;
    let server = Arc::new(server);
    for _ in 0..THREADS {
        let (server, service, limits) = (server.clone(), service.clone(), limits.clone());
        start_thread("request", move || {
            loop {
                match server.recv() {
                    Ok(Ok(request)) => {
                        let serve = AssertUnwindSafe(|| serve(request, &limits, &service));
                        if catch_unwind(serve).is_err() {
                            warn!("a request failed (a bug); its connection was closed");
                        }
                    }
                    Ok(Err(error)) => debug!("tiny_http: {error}"),
                    Err(error) => {
                        debug!("tiny_http: {error}");
                        thread::sleep(ERROR_PAUSE);
                    }
                }
            }
        })?;
    }
    Ok(())
}

fn serve<S: Service>(mut raw: tiny_http::Request, limits: &RequestLimits, service: &Arc<S>) {
    let parsed = parsed(&raw, limits).map_err(|refused| service.refuse(&refused, None));
    let admitted =
        parsed.and_then(|mut request| Ok((served_here(service, &mut request)?, request)));
    let (admitted, mut request) = match admitted {
        Ok(admitted) => admitted,
        Err(answer) => return respond(raw, answer),
    };
    let taken = match &admitted.sink {
        Some(sink) => pass_on(&mut raw, &**sink).map(|()| (Vec::new(), 0)),
        None => body(&mut raw, admitted.body),
    };
    match taken {
        Ok((body, left_out)) => (request.body, request.body_left_out) = (body, left_out),
        Err(refused) => {
            let answer = service.refuse(&refused, Some((&request, &admitted.admission)));
            return respond(raw, answer);
        }
    }
    let reply = TinyReply {
        request: raw,
        id: next_id(),
        signal: Arc::default(),
    };
    let responder = Responder::over(ReplyPath::Tiny(Box::new(reply)));
    service.serve(request, admitted.admission, responder);
}

/// What is known of a request. None is forwarded by this engine.
fn served_here<S: Service>(
    service: &Arc<S>,
    request: &mut Request,
) -> Result<Admitted<S::Admission>, Answer> {
    match service.admit(request)? {
        Decision::Serve(admitted) => Ok(admitted),
        Decision::Forward(forward) => {
            let name = forward.target.name;
            let msg = format!("ask {name}: --engine tiny_http forwards no requests to it");
            Err(service.refuse(&Refused::new(503, msg), None))
        }
    }
}

/// Numbers requests: here a connection has no number of its own.
fn next_id() -> ConnectionId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    ConnectionId(NEXT.fetch_add(1, Ordering::Relaxed))
}

fn parsed(raw: &tiny_http::Request, limits: &RequestLimits) -> Result<Request, Refused> {
    if raw.url().len() > limits.target_bytes {
        let most = limits.target_bytes;
        let msg = format!("the path and query must have {most} bytes at most (--max-target)");
        return Err(Refused::new(414, msg));
    }
    let header = |name: &'static str| {
        let found = raw.headers().get(name);
        found.map(|value| value.as_str().to_owned())
    };
    let headers = Headers {
        host: header("Host"),
        origin: header("Origin"),
        fetch_site: header("Sec-Fetch-Site"),
        accept: header("Accept"),
        range: header("Range"),
        if_range: header("If-Range"),
        if_none_match: header("If-None-Match"),
        content_range: header("Content-Range"),
        instance: header("Sidebike-Instance").map(Authorization),
        term: header(TERM_HEADER).and_then(|term| term.parse().ok()),
        commit: header(COMMIT_HEADER).and_then(|commit| commit.parse().ok()),
        is_of_sidebike: false,
        forwarded: None,
        authorization: header("Authorization").map(Authorization),
    };
    let peer = raw.remote_addr().map(|address| address.ip());
    let mut request = Request::parsed(raw.method().as_str(), raw.url(), headers, peer)?;
    request.body_bytes = raw.body_length().map(|bytes| bytes as u64);
    Ok(request)
}

/// The body as far as it is kept, and how many bytes were left out.
fn body(raw: &mut tiny_http::Request, limit: BodyLimit) -> Result<(Vec<u8>, u64), Refused> {
    let max = limit.kept();
    let mut body = Vec::new();
    let mut reader = raw.as_reader().take(max as u64 + 1);
    if let Err(error) = reader.read_to_end(&mut body) {
        return Err(Refused::new(
            400,
            format!("the body could not be read: {error}"),
        ));
    }
    let is_too_large = body.len() > max;
    if is_too_large && let BodyLimit::Cut(_) = limit {
        body.truncate(max);
        let rest = io::copy(&mut raw.as_reader().take(limit.max()), &mut io::sink());
        return Ok((body, 1 + rest.unwrap_or(0)));
    }
    match is_too_large {
        true => Err(Refused::new(
            413,
            format!("the body must have {max} bytes at most (the server's --max-body)"),
        )),
        false => Ok((body, 0)),
    }
}

/// Gives a body to its sink.
fn pass_on(raw: &mut tiny_http::Request, sink: &dyn Sink) -> Result<(), Refused> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match raw.as_reader().read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(bytes) => sink.take(&piece[..bytes])?,
            Err(error) => {
                let msg = format!("the body could not be read: {error}");
                return Err(Refused::new(400, msg));
            }
        }
    }
}

fn respond(request: tiny_http::Request, mut answer: Answer) {
    let body = std::mem::take(&mut answer.body);
    let length = body.len();
    respond_with(request, answer, Cursor::new(body), length);
}

fn respond_with(request: tiny_http::Request, answer: Answer, body: impl Read, length: usize) {
    let mut response = tiny_http::Response::new(
        tiny_http::StatusCode(answer.status),
        Vec::new().into(),
        body,
        Some(length),
        None,
    )
    .with_chunked_threshold(usize::MAX);
    let allow = answer.allow.map(|methods| format!("Allow: {methods}"));
    let fixed = [
        format!("Content-Type: {}", answer.content_type),
        "X-Content-Type-Options: nosniff".into(),
    ];
    let more = answer.headers.lines().map(str::to_owned).chain(allow);
    for line in fixed.into_iter().chain(more) {
        // Our own headers are such.
        if let Ok(header) = line.parse::<tiny_http::Header>() {
            response.add_header(header);
        }
    }
    if let Err(error) = request.respond(response) {
        debug!("an answer could not be written: {error}");
    }
}

impl TinyReply {
    /// The number of the request.
    pub fn id(&self) -> ConnectionId {
        self.id
    }

    /// What tells the thread of a stream that there may be something new.
    pub fn signal(&self) -> Arc<StreamSignal> {
        self.signal.clone()
    }

    /// Answers, as far as the peer takes it now.
    pub fn answer(self, answer: Answer) {
        respond(self.request, answer);
    }

    /// Answers with a body of so many bytes, on a thread of its own.
    pub fn stream_sized(self, answer: Answer, bytes: u64, source: Box<dyn Source>) {
        let reader = Reader {
            source,
            signal: self.signal,
            part: Cursor::default(),
        };
        let request = self.request;
        let send = move || respond_with(request, answer, reader.take(bytes), bytes as usize);
        if let Err(why) = start_thread("stream", send) {
            warn!("{why}; a stream was not answered");
        }
    }

    /// Answers with a stream, on a thread of its own.
    pub fn stream(self, content_type: &str, source: Box<dyn Source>) {
        let head = ["Cache-Control: no-store", "X-Content-Type-Options: nosniff"];
        let headers = [format!("Content-Type: {content_type}")];
        let headers =
            { headers.iter().map(String::as_str).chain(head) }.filter_map(|line| line.parse().ok());
        let reader = Reader {
            source,
            signal: self.signal,
            part: Cursor::default(),
        };
        let response = tiny_http::Response::new(
            tiny_http::StatusCode(200),
            headers.collect::<Vec<tiny_http::Header>>().into(),
            reader,
            None,
            None,
        );
        let request = self.request;
        let started = start_thread("stream", move || {
            if let Err(error) = request.respond(response) {
                debug!("a stream could not be written: {error}");
            }
        });
        if let Err(why) = started {
            warn!("{why}; a stream was not answered");
        }
    }
}

/// A source, to be read by the library.
struct Reader {
    source: Box<dyn Source>,
    signal: Arc<StreamSignal>,
    part: Cursor<Vec<u8>>,
}

impl Read for Reader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.part.read(to)?;
            if read > 0 {
                return Ok(read);
            }
            match self.source.next() {
                Part::Bytes(bytes) => self.part = Cursor::new(bytes),
                Part::File(part) => self.part = Cursor::new(part.read(part.bytes)?),
                Part::Wait(patience) => self.signal.wait(patience),
                Part::End => return Ok(0),
            }
        }
    }
}
