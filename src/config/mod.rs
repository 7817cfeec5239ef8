//! Flags and environment variables, checked once at the start. No later code checks a setting again.
//!
//! Each program has a file with its arguments (as typed) and its settings (checked). Every default and every limit
//! of the program is there, with its unit and its reason. What the commands for people take is in `cli`.
//!
//! To add a setting: a field of the arguments, whose comment is the help text; its check in `checked`; a field of the
//! settings; a line in the documentation's list of settings.

#[cfg(feature = "agent")]
mod agent;
#[cfg(feature = "server")]
mod database;
mod registry;
#[cfg(feature = "server")]
mod server;

#[cfg(feature = "agent")]
pub use agent::{AgentArgs, AgentConfig, CommandPolicy, FilePolicy};
#[cfg(feature = "server")]
pub use database::{Database, DatabaseUrl, SharedDatabase};
pub use registry::{Registry, RegistryArgs};
#[cfg(feature = "server")]
pub use server::{AuditTarget, ServerArgs, ServerConfig};

/// The default port; that of the original, too.
pub const DEFAULT_PORT: u16 = 9410;
