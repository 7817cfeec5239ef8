//! What there is to do on connections.
//!
//! Workers hear from `ready` which connections have something to be read, and do all that needs no
//! waiting: one of them serves thousands. What may have to wait, for the rest of a request, a peer that
//! reads slowly, the disk, room for a large answer, is left to `threads`, with the connection's turn and
//! what is to be done there. On the way each request is let in or not (`access`, `browser`), and what
//! changes something is written down (`audit`). A new thing to wait for is a kind of [`What`], and a line
//! in [`Server::do_work`].

use super::access::{Caller, Denied, Right};
use super::audit::Change;
use super::connection::{Found, Phase, Turn};
use super::head::{self, Eavesdropper, Lookout, Sight};
use super::http::{self, Arrived, Authorization, Raw, Refused, Request, Unserved};
use super::respond::{self, Answer, Responder, Rest, Sent};
use super::routes::{self, Call, Make, Route};
use super::{Server, answer, browser, means};
use log::{debug, warn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How often each worker gives back the memory that others have freed.
const TIDY_PERIOD: Duration = Duration::from_secs(1);

/// What has to wait for something: a connection, and what is to be done there.
pub struct Work {
    pub turn: Turn,
    pub what: What,
}

/// What is to be done where one may wait.
pub enum What {
    /// Serve all of what comes encrypted.
    Encrypted,
    /// Serve the next request, which is not all there.
    Request,
    /// Answer a head that was refused.
    Refuse(Refused),
    /// Serve a request that may have to wait for something.
    Arrived(Box<Arrived>),
    /// Make an answer that may be large.
    Make(Box<Made>),
    /// Send one that is.
    Answer(Responder, Answer),
    /// Send the rest of an answer whose peer takes its time.
    Rest(Rest),
    /// Answer a request that is not served.
    Unserved(Unserved, Answer),
}

/// An answer that is yet to be made, and what there is to do about it then.
pub struct Made {
    make: Make,
    responder: Responder,
    route: &'static Route,
    caller: Caller,
    request: Request,
    change: Change,
}

/// Does something. A bug in it must cost one connection, not a thread; the turn that it had ends that.
fn outlive(work: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(work)).is_err() {
        warn!("a request failed (a bug); its connection was closed");
    }
}

impl Server {
    /// Does for ever what there is to do and needs no waiting.
    pub fn work_forever(&self) -> ! {
        let mut lookout = Lookout::new();
        let mut events = Vec::new();
        // When this thread last gave memory back, and whether it has done something since.
        let (mut tidied, mut has_worked) = (Instant::now(), false);
        loop {
            if has_worked && tidied.elapsed() >= TIDY_PERIOD {
                means::give_memory_back();
                (tidied, has_worked) = (Instant::now(), false);
            }
            let patience = has_worked.then_some(TIDY_PERIOD);
            for (connection, found) in self.connections.ready(&mut events, patience) {
                has_worked = true;
                outlive(|| match found {
                    Found::Turn(turn) => self.attend(turn, &mut lookout),
                    Found::Held => self.store.drop_abandoned(&connection),
                    Found::Busy => {}
                });
            }
        }
    }

    /// Leaves to a thread what has to wait for something.
    fn leave(&self, turn: Turn, what: What) {
        // Nobody reads from it until the thread is there: that is not the peer's fault.
        turn.connection().enter(Phase::Serving);
        self.threads.give(Work { turn, what });
        self.connections.call_in_passing(&self.threads);
    }

    /// Does what there is to do on a connection, as far as that needs no waiting.
    fn attend(&self, mut turn: Turn, lookout: &mut Lookout) {
        loop {
            match lookout.look(&turn, &self.limits) {
                Sight::Nothing => {}
                Sight::Over => return,
                Sight::Refused(refused) => return self.leave(turn, What::Refuse(refused)),
                Sight::Part => return self.leave(turn, What::Request),
                Sight::Request {
                    is_there: false, ..
                } => return self.leave(turn, What::Request),
                Sight::Request { last, bytes, .. } => {
                    // The guard sees to it that it is what it seems.
                    turn.begin_request(Phase::Reading);
                    turn.hand_on(bytes);
                    match self.serve_next(turn, last, false) {
                        Some(back) => turn = back,
                        None => return,
                    }
                }
            }
            match turn.put_back() {
                Some(again) => turn = again,
                None => return,
            }
        }
    }

    /// Does what had to be left to a thread, which may wait.
    pub fn do_work(&self, work: Work) {
        outlive(|| self.do_patiently(work));
    }

    fn do_patiently(&self, Work { turn, what }: Work) {
        let turn = match what {
            What::Encrypted => return self.serve_encrypted(turn),
            What::Request => self.serve_patiently(turn),
            What::Refuse(refused) => return self.refuse(&turn, refused),
            What::Arrived(arrived) => self.serve(turn, *arrived, true),
            What::Make(made) => self.make(turn, *made),
            What::Answer(responder, answer) => responder.send(&answer).then_some(turn),
            What::Rest(rest) => rest.send().then_some(turn),
            What::Unserved(unserved, answer) => {
                return unserved.refuse(turn.connection(), &answer);
            }
        };
        if let Some(turn) = turn {
            turn.leave();
        }
    }

    /// Serves the next request of a connection, however slowly it comes. The turn, if another one may.
    fn serve_patiently(&self, mut turn: Turn) -> Option<Turn> {
        turn.begin_request(Phase::Reading);
        match Lookout::new().wait(&turn, &self.limits) {
            Sight::Request { last, bytes, .. } => {
                turn.hand_on(bytes);
                self.serve_next(turn, last, true)
            }
            Sight::Refused(refused) => {
                self.refuse(&turn, refused);
                None
            }
            Sight::Nothing | Sight::Part | Sight::Over => None,
        }
    }

    /// Answers a head that is not to be read.
    fn refuse(&self, turn: &Turn, refused: Refused) {
        turn.connection().enter(Phase::Draining);
        head::refuse(turn, &respond::in_bytes(&self.explain(refused)));
    }

    /// Serves a connection until it is over or its request is held. Nothing can be seen of a head before
    /// it is decrypted, and nobody can tell whether there is something to be read without reading it.
    fn serve_encrypted(&self, mut turn: Turn) {
        let mut listener = Eavesdropper::on_this_thread(&self.limits);
        let mut last = false;
        while !last && listener.expects_a_head() {
            turn.begin_request(Phase::Reading);
            let Some(raw) = self.read_next(&mut turn) else {
                return;
            };
            last = match listener.judge(&self.limits) {
                Sight::Request { last, .. } => last,
                Sight::Refused(refused) => {
                    let answer = self.explain(refused);
                    return Unserved::new(raw).refuse(turn.connection(), &answer);
                }
                Sight::Nothing | Sight::Part | Sight::Over => return,
            };
            match self.serve_raw(turn, raw, last, true) {
                Some(back) => turn = back,
                None => return,
            }
        }
    }

    /// The next request of a connection, as tiny_http reads it.
    fn read_next(&self, turn: &mut Turn) -> Option<Raw> {
        match turn.incoming()?.next()? {
            Ok(raw) => Some(raw),
            Err(error) => {
                // tiny_http has an answer to that, sent when `incoming` is dropped; after half a
                // handshake it would wait for the other half first.
                turn.connection().enter(Phase::Draining);
                debug!("a connection ended: {error}");
                None
            }
        }
    }

    /// Serves the next request, as tiny_http reads it. The turn, if its connection can take another.
    fn serve_next(&self, mut turn: Turn, last: bool, may_wait: bool) -> Option<Turn> {
        let raw = self.read_next(&mut turn)?;
        self.serve_raw(turn, raw, last, may_wait)
    }

    fn serve_raw(&self, turn: Turn, raw: Raw, last: bool, may_wait: bool) -> Option<Turn> {
        match http::arrived(&turn, raw, last, &self.limits) {
            Ok(arrived) => self.serve(turn, arrived, may_wait),
            Err((unserved, refused)) => {
                self.leave_unserved(turn, unserved, self.explain(refused), may_wait);
                None
            }
        }
    }

    /// Answers a request that is not served, its connection's last.
    fn leave_unserved(&self, turn: Turn, unserved: Unserved, answer: Answer, may_wait: bool) {
        match may_wait {
            true => unserved.refuse(turn.connection(), &answer),
            false => self.leave(turn, What::Unserved(unserved, answer)),
        }
    }

    /// Serves one request. The turn, if its connection can take another.
    fn serve(&self, turn: Turn, arrived: Arrived, may_wait: bool) -> Option<Turn> {
        let found = routes::find(&arrived.request).and_then(|route| {
            if !may_wait && self.may_have_to_wait(route) {
                return Ok(None);
            }
            let caller = self.admit(&arrived.request, route)?;
            Ok(Some((route, caller)))
        });
        let (route, caller) = match found {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.leave(turn, What::Arrived(Box::new(arrived)));
                return None;
            }
            Err(answer) => {
                self.requests.count(answer.status);
                return match arrived.without_body() {
                    Ok(responder) => self.send(turn, responder, answer, may_wait),
                    Err(unserved) => {
                        self.leave_unserved(turn, unserved, answer, may_wait);
                        None
                    }
                };
            }
        };
        let (request, responder) = match arrived.read(&self.limits) {
            Ok(read) => read,
            Err(unread) => {
                let (unserved, refused, request) = *unread;
                self.note(route, &caller, &request, &Change::default(), refused.status);
                self.leave_unserved(turn, unserved, self.explain(refused), may_wait);
                return None;
            }
        };
        let (mut responder, mut change) = (Some(responder), Change::default());
        let mut later = None;
        let call = Call {
            server: self,
            request: &request,
            caller: &caller,
            responder: &mut responder,
            change: &mut change,
            later: &mut later,
        };
        let answer = (route.handler)(call).unwrap_or_else(Some);
        match (answer, responder, later) {
            (None, Some(responder), Some(make)) => {
                let made = Made {
                    make,
                    responder,
                    route,
                    caller,
                    request,
                    change,
                };
                if may_wait {
                    return self.make(turn, made);
                }
                self.leave(turn, What::Make(Box::new(made)));
                None
            }
            (answer, responder, _) => {
                let status = answer.as_ref().map_or(200, |answer| answer.status);
                self.requests.count(status);
                self.note(route, &caller, &request, &change, status);
                match (answer, responder) {
                    (Some(answer), Some(responder)) => self.send(turn, responder, answer, may_wait),
                    _ => self.after_taken(turn),
                }
            }
        }
    }

    /// Whether a call may have to wait for the disk, or takes its time.
    fn may_have_to_wait(&self, route: &Route) -> bool {
        let saves = self.store.may_wait() && route.right != Right::Open;
        let notes = self.audit.has_file() && route.right == Right::Change;
        route.waits || saves || notes
    }

    /// The handler has the responder: the request is held, or it was answered and that was the last.
    fn after_taken(&self, turn: Turn) -> Option<Turn> {
        if self.is_https {
            self.connections.watch_hangup(turn.connection());
        }
        turn.after_taken()
    }

    /// Makes an answer that may be large: few at once, and each finds its room before the next one is
    /// made.
    fn make(&self, turn: Turn, made: Made) -> Option<Turn> {
        let Made {
            make,
            mut responder,
            route,
            caller,
            request,
            change,
        } = made;
        let answer = {
            let _maker = self.connections.room.make();
            let answer = make();
            responder.make_room(&answer);
            answer
        };
        self.requests.count(answer.status);
        self.note(route, &caller, &request, &change, answer.status);
        self.send(turn, responder, answer, true)
    }

    /// Sends an answer. The turn, if the connection can take another request.
    fn send(
        &self,
        turn: Turn,
        responder: Responder,
        answer: Answer,
        may_wait: bool,
    ) -> Option<Turn> {
        if may_wait {
            return responder.send(&answer).then_some(turn);
        }
        if answer.is_large() {
            self.leave(turn, What::Answer(responder, answer));
            return None;
        }
        match responder.send_now(&answer) {
            Sent::Whole(stays) => stays.then_some(turn),
            Sent::Part(rest) => {
                self.leave(turn, What::Rest(rest));
                None
            }
        }
    }

    /// Writes down who changed what.
    fn note(
        &self,
        route: &Route,
        caller: &Caller,
        request: &Request,
        change: &Change,
        status: u16,
    ) {
        if route.right == Right::Change {
            self.audit
                .write(caller.name.as_deref(), request, status, change);
        }
    }

    /// Whether a request may be served, and whose it is.
    fn admit(&self, request: &Request, route: &Route) -> Result<Caller, Answer> {
        let looks_only = matches!(route.right, Right::Open | Right::Look);
        let checked = match browser::refusal(request, looks_only, &self.own_names) {
            Some(msg) => Err(Denied {
                status: 403,
                msg,
                caller: Caller::default(),
            }),
            None => {
                let authorization = request.headers.authorization.as_ref();
                self.access
                    .check(authorization.map(Authorization::expose), route.right)
            }
        };
        checked.map_err(|denied| {
            match route.right {
                Right::Change => {
                    let caller = denied.caller.name.as_deref();
                    self.audit
                        .write(caller, request, denied.status, &Change::default());
                }
                Right::Agent => self.access.note_refused(request.peer, denied.msg),
                Right::Open | Right::Look | Right::Original => {}
            }
            answer::error(denied.status, denied.msg)
        })
    }

    fn explain(&self, refused: Refused) -> Answer {
        self.requests.count(refused.status);
        answer::error(refused.status, &refused.msg)
    }
}
