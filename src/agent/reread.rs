//! Files that are read again when the server, or its certificate, is not accepted with what was in them.

use super::attempt::lock;
use crate::client::Client;
use log::{info, warn};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// After a failure a file is not read more often than this.
const READ_PERIOD: Duration = Duration::from_secs(1);

/// When a file was last read because of a failure.
#[derive(Debug, Default)]
pub struct RereadLimit(Mutex<Option<Instant>>);

impl RereadLimit {
    /// Whether the file may be read again now; notes that it is.
    pub fn is_due(&self) -> bool {
        let mut last_read = lock(&self.0);
        let is_due = last_read.is_none_or(|at| at.elapsed() >= READ_PERIOD);
        if is_due {
            *last_read = Some(Instant::now());
        }
        is_due
    }
}

/// Reads the authorities of `--ca` again because the server's certificate was not accepted. Whether they differ.
pub fn untrusted(limit: &RereadLimit, client: &Client) -> bool {
    if !limit.is_due() {
        return false;
    }
    // If the file cannot be read, the authorities in use stay.
    let changed = client.reload_authorities().unwrap_or_default() == Some(true);
    if changed {
        info!("the authorities of --ca have changed: using the new ones");
    }
    changed
}

/// Reads the authorities of `--ca` again because of HUP.
pub fn reload_authorities(client: &Client) {
    match client.reload_authorities() {
        Ok(Some(true)) => info!("HUP: new authorities were read (--ca)"),
        Ok(Some(false)) => info!("HUP: the same authorities were read (--ca)"),
        Ok(None) => {}
        Err(why) => warn!("{why}; the authorities in use stay in use"),
    }
}
