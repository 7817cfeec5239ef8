//! The agent's token. It is read at the start, on HUP, and when the server refuses it, so that a token
//! that is replaced in its file needs no restart.

use super::reread::RereadLimit;
use crate::client::Client;
use crate::config::Registry;
use crate::secret::{self, Secret};
use log::{info, warn};

/// The variable that holds it. With `_FILE` appended, the variable that names its file.
pub const VARIABLE: &str = "SIDEBIKE_AGENT_TOKEN";

/// Reads the token again after a refusal.
#[derive(Debug, Default)]
pub struct TokenReader {
    limit: RereadLimit,
}

/// Reads the token. Of several it is the first: the others are for servers that accept more than one.
pub fn load() -> Result<Option<Secret>, String> {
    Ok(secret::load(VARIABLE)?.into_iter().next())
}

/// Warns if no token is set, or if it can be read on the network.
pub fn explain(token: Option<&Secret>, registry: &Registry) {
    if token.is_none() {
        warn!(
            "NO TOKEN IS SET ({VARIABLE}): a server without tokens lets everyone who reaches it run commands on this machine"
        );
    } else if let Some(insecure) = registry.insecure() {
        warn!(
            "the token goes to {insecure} as plain text: everyone on the network path can read it and pose as this agent; use https"
        );
    }
}

impl TokenReader {
    /// Reads the token again because the server refused it. Whether there is a new one.
    pub fn refused(&self, client: &Client) -> bool {
        if !self.limit.is_due() {
            return false;
        }
        // If there is none, or its file cannot be read, the token in use stays.
        let found = load().unwrap_or_default();
        let changed = found.is_some_and(|token| client.set_token(Some(token)));
        if changed {
            info!("the token has changed: using the new one");
        }
        changed
    }
}

/// Reads the token again because of HUP. If there is none to read, the token in use stays.
pub fn reload(client: &Client) {
    match load() {
        Ok(Some(token)) => {
            let word = if client.set_token(Some(token)) {
                "a new"
            } else {
                "the same"
            };
            info!("HUP: {word} token was read");
        }
        Ok(None) => info!("HUP: there is no token to read ({VARIABLE})"),
        Err(why) => warn!("{why}; the token in use stays in use"),
    }
}
