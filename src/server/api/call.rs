//! What the table of routes and its handlers share.

use super::access::{Caller, Right};
use super::audit::Change;
use super::server::Server;
use crate::server::http::{Answer, Request, Responder};
use std::sync::Arc;

/// What a handler is called with.
pub struct Call<'a> {
    /// The server.
    pub server: &'a Arc<Server>,
    /// The request.
    pub request: &'a Request,
    /// Whose it is.
    pub caller: &'a Caller,
    /// The way back; a handler that holds the request takes it.
    pub responder: &'a mut Option<Responder>,
    /// What a handler that changes something says of it, for the audit.
    pub change: &'a mut Change,
    /// What makes the answer, where a handler leaves that to others.
    pub later: &'a mut Option<Make>,
}

/// Makes an answer.
pub type Make = Box<dyn FnOnce() -> Answer + Send>;

impl Call<'_> {
    /// Leaves an answer that may be large to be made where one may wait for the room it takes.
    pub fn large(self, make: impl FnOnce() -> Answer + Send + 'static) -> Handled {
        *self.later = Some(Box::new(make));
        Ok(None)
    }
}

/// What a handler gives: an answer, or `None` when it has taken the responder, or said who makes the
/// answer later.
pub type Handled = Result<Option<Answer>, Answer>;

/// A call of the API.
pub struct Route {
    /// What the caller must have the right to.
    pub right: Right,
    /// The method.
    pub method: &'static str,
    /// The parts of the path; `*` stands for any one part.
    pub path: &'static [&'static str],
    /// The parameters of the query that it takes. Others are an error: a typo must not silently
    /// change what is done.
    pub query: &'static [&'static str],
    /// What does it.
    pub handler: fn(Call<'_>) -> Handled,
}

/// A call with its right, method, path, parameters and handler.
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
        handler,
    }
}
