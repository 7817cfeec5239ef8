//! The agent's token: read at the start, on HUP, and when the server does not accept it, so that a
//! token that is changed in its file needs no restart.

use crate::client::Client;
use crate::config::Registry;
use crate::secret::{self, Secret};
use log::{info, warn};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where it comes from; with `_FILE` appended, the variable that names its file.
pub const VARIABLE: &str = "SIDEBIKE_AGENT_TOKEN";
/// The file is not read more often than this because the server said no.
const READ_PERIOD: Duration = Duration::from_secs(1);

/// Reads the token again when there is reason to.
#[derive(Debug, Default)]
pub struct Rereader {
    last: Mutex<Option<Instant>>,
}

/// The token; of several the first, the others are for servers.
pub fn load() -> Result<Option<Secret>, String> {
    Ok(secret::load(VARIABLE)?.into_iter().next())
}

/// Says what having this token, or none, means.
pub fn explain(token: Option<&Secret>, registry: &Registry) {
    if token.is_none() {
        warn!(
            "NO TOKEN IS SET ({VARIABLE}): a server that accepts that lets whoever reaches it run commands on this machine"
        );
    } else if registry.is_insecure() {
        warn!(
            "the token goes to {} as plain text: whoever is on the way can read it and be this agent; use https",
            registry.url
        );
    }
}

impl Rereader {
    /// The server did not accept the token. Whether there is another one now.
    pub fn refused(&self, client: &Client) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_some_and(|last| last.elapsed() < READ_PERIOD) {
            return false;
        }
        *last = Some(Instant::now());
        // Without one, or with a file that cannot be read, the one in use stays.
        let found = load().unwrap_or_default();
        let changed = found.is_some_and(|token| client.set_token(Some(token)));
        if changed {
            info!("the token has changed: using the new one");
        }
        changed
    }
}

/// HUP: reads the token again; the one in use stays when there is none to be had.
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
