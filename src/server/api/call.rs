//! The types that the table of routes and the handlers share.

use super::access::{Caller, Right};
use super::audit::Change;
use super::server::Server;
use crate::server::http::{Answer, Request, Responder};
use std::sync::Arc;

/// The arguments of a handler.
pub struct Call<'a> {
    /// The server.
    pub server: &'a Arc<Server>,
    /// The request.
    pub request: &'a Request,
    /// The caller.
    pub caller: &'a Caller,
    /// Answers the request later; a handler that holds the request takes it.
    pub responder: &'a mut Option<Responder>,
    /// The changed task, set by handlers that change one, for the audit.
    pub change: &'a mut Change,
    /// The right that the route requires.
    pub right: Right,
    /// The status is noted when the request is answered, set by handlers that hold one that has an `OnAnswer`.
    pub is_noted_later: &'a mut bool,
    /// Makes the answer, set by handlers whose answer may be large.
    pub later: &'a mut Option<Make>,
}

/// Makes an answer.
pub type Make = Box<dyn FnOnce() -> Answer + Send>;

impl Call<'_> {
    /// Has an answer that may be large made by a thread that may wait for memory.
    pub fn large(self, make: impl FnOnce() -> Answer + Send + 'static) -> Handled {
        *self.later = Some(Box::new(make));
        Ok(None)
    }
}

/// The result of a handler: an answer, or `None` if it took the responder or set `later`.
pub type Handled = Result<Option<Answer>, Answer>;

/// A call of the API.
pub struct Route {
    /// The right that the caller must have.
    pub right: Right,
    /// The method.
    pub method: &'static str,
    /// The parts of the path; `*` stands for any one part.
    pub path: &'static [&'static str],
    /// The parameters of the query. Others are an error: a typo must not silently change what is done.
    pub query: &'static [&'static str],
    /// How many times `--max-body` its body may have.
    pub bodies: usize,
    /// The handler.
    pub handler: fn(Call<'_>) -> Handled,
    /// The handler reads files, so a thread that may wait calls it.
    pub reads_files: bool,
}

impl Route {
    /// Says that the handler reads files.
    pub const fn reading_files(mut self) -> Self {
        self.reads_files = true;
        self
    }
}

/// A line of the table of routes.
pub const fn route(
    right: Right,
    method: &'static str,
    path: &'static [&'static str],
    query: &'static [&'static str],
    handler: fn(Call<'_>) -> Handled,
) -> Route {
    Route {
        right,
        method,
        path,
        query,
        bodies: 1,
        handler,
        reads_files: false,
    }
}

/// The same for a call whose body may be so many times as large as that of others.
pub const fn with_bodies(bodies: usize, route: Route) -> Route {
    Route { bodies, ..route }
}
