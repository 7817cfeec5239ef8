//! The service behind the HTTP edge: finds the route of a request, checks that it is allowed, calls the handler, writes
//! the audit.

use super::access::{Caller, Denied, Right};
use super::audit::Change;
use super::call::{Call, Route};
use super::server::Server;
use super::{browser, original, routes};
use crate::server::answers;
use crate::server::blobs::Upload;
use crate::server::http::{
    Admitted, Answer, Authorization, BodyLimit, ConnectionId, Decision, Refused, Request,
    Responder, Served, Service, Sink,
};
use crate::server::state::{Compared, OnAnswer};
use crate::wire::term::Position;
use std::sync::Arc;

/// The longest body of an agent's call, in bytes, if `--max-body` is not lower. An agent sends no longer one, and while it
/// is read it takes several times its length.
const MAX_REPORT_BYTES: usize = 1 << 20;
/// The status in the audit when a request was not answered: its client was gone, or the server ended. No answer has it;
/// nginx logs the same.
const NOT_ANSWERED: u16 = 499;

/// The route and the caller of an allowed request.
pub struct Admission {
    route: &'static Route,
    caller: Caller,
    /// What takes the body in, if it is streamed.
    upload: Option<Arc<Upload>>,
}

impl Service for Server {
    type Admission = Admission;

    fn admit(self: &Arc<Self>, request: &mut Request) -> Result<Decision<Admission>, Answer> {
        let request = &*request;
        let admitted = routes::find(request).and_then(|route| {
            if route.right != Right::Open && self.store.is_mute() {
                return Err(answers::ask_another(MUTE, None));
            }
            let caller = self.authorize(request, route)?;
            if route.right == Right::Agent
                && let Some((own, term)) = self.shared.as_ref().zip(request.headers.term)
            {
                let commit = request.headers.commit;
                let seen = Position { term, commit };
                match own.term.compare(seen) {
                    Compared::Higher(higher) => {
                        self.store.note_higher_term(higher);
                        return Err(answers::ask_another(MUTE, None));
                    }
                    // Before the call itself: it may report what was handed out by a commit that was lost.
                    Compared::Lost(what) => own.note_loss(&self.store, &what),
                    Compared::Consistent => {}
                }
            }
            let upload = match route.intake {
                Some(begin) => Some(begin(self, request, &caller).inspect_err(|answer| {
                    self.note_refused(route, &caller, request, answer.status);
                })?),
                None => None,
            };
            Ok(Decision::Serve(Admitted {
                may_wait: self.may_have_to_wait(route),
                tells_state: route.right != Right::Open,
                body: match route.right {
                    _ if upload.is_some() => BodyLimit::Streamed,
                    Right::Original => original::body_limit(self.edge.max_body()),
                    Right::Agent => BodyLimit::Refuse(self.edge.max_body().min(MAX_REPORT_BYTES)),
                    _ => BodyLimit::Refuse(self.edge.max_body().saturating_mul(route.bodies)),
                },
                sink: upload.clone().map(|upload| upload as Arc<dyn Sink>),
                admission: Admission {
                    route,
                    caller,
                    upload,
                },
            }))
        });
        admitted.inspect_err(|answer| self.requests.count(answer.status))
    }

    fn serve(
        self: &Arc<Self>,
        request: Request,
        admission: Admission,
        responder: Responder,
    ) -> Served {
        let (mut responder, mut change, mut later) = (Some(responder), Change::default(), None);
        let mut is_noted_later = false;
        let call = Call {
            server: self,
            request: &request,
            caller: &admission.caller,
            responder: &mut responder,
            change: &mut change,
            right: admission.route.right,
            upload: admission.upload.as_ref(),
            is_noted_later: &mut is_noted_later,
            later: &mut later,
        };
        let answer = (admission.route.handler)(call).unwrap_or_else(Some);
        if let (None, Some(_), Some(make)) = (&answer, &responder, later) {
            let server = self.clone();
            let make = move || {
                let answer = make();
                server.note(&admission, &request, &change, answer.status);
                answer
            };
            if let Some(responder) = responder {
                responder.answer_later(make);
            }
            return Served::Answered;
        }
        if !is_noted_later {
            let status = answer.as_ref().map_or(200, |answer| answer.status);
            self.note(&admission, &request, &change, status);
        }
        match (answer, responder) {
            (Some(answer), Some(responder)) => {
                responder.answer(answer);
                Served::Answered
            }
            // The handler took the responder.
            _ => Served::Held,
        }
    }

    fn refuse(self: &Arc<Self>, refused: &Refused, of: Option<(&Request, &Admission)>) -> Answer {
        match of {
            Some((request, admission)) => {
                self.requests.count(refused.status);
                self.note_refused(admission.route, &admission.caller, request, refused.status);
            }
            None => self.requests.count(refused.status),
        }
        answers::error(refused.status, &refused.msg)
    }

    fn abandoned(&self, connection: ConnectionId) {
        self.store.drop_abandoned(connection);
    }

    fn stamp(&self) -> Result<Option<Arc<str>>, Answer> {
        match self.store.is_mute() {
            true => Err(answers::ask_another_with_care(MUTE)),
            false => Ok(self.shared.as_ref().map(|shared| shared.term.lines())),
        }
    }
}

/// Why a server answers nothing that may have been replaced as the leader. It does not know who leads.
pub const MUTE: &str =
    "the database does not acknowledge what is saved, and another server may lead by now";

impl Call<'_> {
    /// Counts the request and writes the audit when the request, which is being held, is answered. Without an answer the
    /// audit has it all the same: what it changed is changed.
    pub fn note_when_answered(&self) -> OnAnswer {
        let server = self.server.clone();
        let record = (self.right == Right::Change)
            .then(|| server.audit.record(self.caller, self.request, self.change))
            .flatten();
        OnAnswer::new(move |status| {
            if let Some(status) = status {
                server.requests.count(status);
            }
            let status = status.unwrap_or(NOT_ANSWERED);
            let lines = record.iter().flat_map(|record| record.lines(status));
            lines.for_each(|line| server.write_later(line));
        })
    }
}

impl Server {
    /// Whether a call may wait for the disk.
    fn may_have_to_wait(&self, route: &Route) -> bool {
        let saves = self.store.may_wait() && route.right != Right::Open;
        let notes = self.audit.has_file() && route.right == Right::Change;
        saves || notes || route.reads_files
    }

    /// Counts a request, and writes the audit.
    fn note(&self, admission: &Admission, request: &Request, change: &Change, status: u16) {
        self.requests.count(status);
        if admission.route.right == Right::Change {
            let record = self.audit.record(&admission.caller, request, change);
            let lines = record.iter().flat_map(|record| record.lines(status));
            lines.for_each(|line| self.audit.write(line));
        }
    }

    /// Writes a line to the audit; to a file by another thread, as that may have to wait.
    pub(super) fn write_later(self: &Arc<Self>, line: String) {
        if !self.audit.has_file() {
            return self.audit.write(line);
        }
        let (server, pending) = (self.clone(), self.audit.pending());
        self.edge.run_in_pool(move || {
            server.audit.write(line);
            drop(pending);
        });
    }

    /// Writes to the audit that a call was refused before it was served. Workers call this, and must not wait for a file.
    fn note_refused(
        self: &Arc<Self>,
        route: &Route,
        caller: &Caller,
        request: &Request,
        status: u16,
    ) {
        if route.right != Right::Change {
            return;
        }
        let record = self.audit.record(caller, request, &Change::default());
        let lines = record.iter().flat_map(|record| record.lines(status));
        lines.for_each(|line| self.write_later(line));
    }

    /// Checks that a request is allowed, and says who the caller is.
    fn authorize(self: &Arc<Self>, request: &Request, route: &Route) -> Result<Caller, Answer> {
        let looks_only = matches!(
            route.right,
            Right::Open | Right::Look | Right::Read | Right::HandOut
        );
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
                Right::Change => self.note_refused(route, &denied.caller, request, denied.status),
                Right::Agent => self.access.note_refused(request.peer, denied.msg),
                Right::Original => original::note_refused(&self.access, request, denied.msg),
                Right::Open | Right::Look | Right::Read | Right::HandOut => {}
            }
            answers::error(denied.status, denied.msg)
        })
    }
}
