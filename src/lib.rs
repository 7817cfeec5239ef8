//! Run a command on every machine whose label matches: a registry, an agent and a curl.
//!
//! Data flows one way: bytes → [`wire`] types → core → wire types → bytes.
//!
//! | module | content |
//! | --- | --- |
//! | [`command_line`] | which programs and commands there are |
//! | [`config`] | flags and environment variables → checked settings; every default and limit |
//! | [`wire`] | the types of the API's JSON; no rules, no I/O |
//! | `core` | machines, tasks, executions: the pure state machine, and the only place for its rules |
//! | `server` | the HTTP edge, the API, the lock around the core, the database |
//! | `agent` | the poll loop, the commands that run, the reports |
//! | `cli` | the commands for people |
//! | `client` | every HTTP call of the agent and of the commands for people, and the server's notifications |
//! | `recurrence` | when a schedule fires: cron expressions and time zones |
//! | [`rules`] | checks that both ends share |
//! | `docs` | the pages of the documentation, as `sidebike docs` and the server show them |
//! | [`secret`] | tokens: where they are read from; never printed |
//! | [`tls`] | certificates and cryptography |
//! | `allocator` | the allocator's calls that have no safe form |
//! | [`head_tail_buffer`] | the first and the last bytes of a stream of output; used by the agent and by `core` |
//!
//! Invariants:
//!
//! - `core` has no clock, no lock, no socket and no log: times and ids are arguments. It uses only `wire`, `rules`,
//!   `recurrence` and `head_tail_buffer`.
//! - The agent uses neither `core` nor `server`; the server does not use `agent`, and only `server/notify` uses
//!   `client`; `cli` uses of these only `client`.
//! - Each library is named in one place: httparse and tiny_http in `server/http`, ureq in `client`, rustls in `tls`,
//!   redb in `server/state/db`, croner and jiff in `recurrence`; `Command::new` in `agent/command/launch` (and in `cli/docs`, which starts the pager).
//! - The lock around the core is held for computing only, never during I/O or logging.

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "server")]
mod allocator;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(any(feature = "agent", feature = "cli", feature = "server"))]
pub mod client;
pub mod command_line;
pub mod config;
#[cfg(feature = "server")]
pub mod core;
#[cfg(any(feature = "server", feature = "cli"))]
pub mod docs;
pub mod head_tail_buffer;
#[cfg(feature = "server")]
pub mod recurrence;
pub mod rules;
pub mod secret;
#[cfg(feature = "server")]
pub mod server;
pub mod tls;
pub mod wire;
