//! Run a command on every machine whose label matches: a registry, an agent and a curl.
//!
//! The map of the crate. Data flows one way: bytes → [`wire`] types → core → wire types → bytes.
//!
//! | room | what it is for |
//! | --- | --- |
//! | [`config`] | flags and environment → checked settings; every default and limit |
//! | [`wire`] | the types of the API's JSON; no rules, no I/O |
//! | [`rules`] | what is checked alike at both ends |
//! | [`secret`] | tokens: where they come from, and that they never show |
//! | `footprint` | what of the program need not stay in memory |
//! | [`tls`] | which cryptography, whose certificates |
//! | [`tape`] | what is kept of a stream of output; used by the agent and by `core` |
//! | `core` | machines, tasks, executions: the pure state machine, the only home of the rules |
//! | `server` | sockets, routes, held requests, the one lock around the core |
//! | `agent` | the poll loop, the runner of commands, the reporter of results |
//! | `cli` | the commands for people |
//! | `client` | every HTTP call a caller can make; the only place that names ureq |
//!
//! Invariants, mostly about what is absent:
//!
//! - `core` has no clock, no lock, no socket, no log: time and ids come in as arguments. It uses
//!   `wire`, `rules` and `tape` only.
//! - The agent uses neither `core` nor `server`; the server uses neither `agent` nor `client`; `cli`
//!   uses none of them but `client`.
//! - tiny_http is named in `server/http` only, ureq in `client`, rustls in `tls`, redb in `server/db`,
//!   `process::Command` in `agent/command/runner`.
//! - The lock around the core is held for computing only, never across a socket or a log line.

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(any(feature = "agent", feature = "cli"))]
pub mod client;
pub mod config;
#[cfg(feature = "server")]
pub mod core;
mod footprint;
pub mod rules;
pub mod secret;
#[cfg(feature = "server")]
pub mod server;
pub mod tape;
pub mod tls;
pub mod wire;
