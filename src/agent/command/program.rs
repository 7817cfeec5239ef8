//! A program that only has to be started, and where: as data, so that another process can start it later.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The file, or a name that is looked for on the PATH at each start.
    pub file: PathBuf,
    /// What it is told its own name is, if that is not `file`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its arguments.
    pub args: Vec<String>,
}

/// What all programs of an attempt start with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Surroundings {
    /// The folder they start in; that of the starting process when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// What is added to the environment of the starting process, whose secrets are left out; later ones win.
    pub variables: Vec<(String, String)>,
    /// The user they run as; that of the starting process when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserIds>,
    /// They need a session of their own, or could use the terminal of the agent.
    pub needs_session: bool,
}

/// The numbers of a user.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UserIds {
    /// The user.
    pub uid: u32,
    /// The main group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
}
