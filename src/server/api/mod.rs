//! The API: the table of routes and its handlers. A handler parses, calls the core, answers; it decides nothing.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `routes` | the table of routes: which call has which right, parameters and handler |
//! | `service` | what the edge calls: who is let in, by which route a request is served, what is written down |
//! | `call`, `server` | what handlers get: a call, and the server that it is made to |
//! | `parse`, `encoding` | bodies and parameters, read and checked; bodies that are not JSON in UTF-8 |
//! | `tasks`, `lists`, `sweeps`, `groups`, `report` | the calls of people about tasks: one, several, a group; the report |
//! | `machines`, `crew`, `output`, `follow`, `halt`, `limits`, `schedules`, `metrics`, `page`, `docs` | their other calls |
//! | `blobs` | files: brought, taken, listed |
//! | `hand_out`, `transfer` | the program itself; answers that are read from files |
//! | `agents`, `original` | the calls of agents, and of the original's |
//! | `access`, `browser` | who may: tokens, and pages of other sites |
//! | `audit`, `counters` | who changed what; how many requests there were |
//!
//! To add a call: a handler in the file of its subject, a line in `routes`, a path in the OpenAPI description, a page or a
//! paragraph of the documentation.

pub mod access;
mod agents;
pub mod audit;
mod blobs;
pub mod browser;
mod call;
pub mod counters;
mod crew;
mod docs;
mod encoding;
mod follow;
mod groups;
mod halt;
mod hand_out;
mod limits;
mod lists;
mod machines;
pub mod metrics;
mod original;
mod output;
mod page;
mod parse;
mod report;
pub mod routes;
mod schedules;
pub mod server;
mod service;
mod sweeps;
mod tasks;
mod transfer;

pub use self::service::Admission;
