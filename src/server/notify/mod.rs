//! Sends notifications: the only room of the server that calls others, by the room `client`.
//!
//! One thread asks the core for what is due, waits until that is on the disk (nobody is told of what a crash could undo),
//! and starts a thread for each request, a bounded number at once. What a request came to is said to the core, which
//! decides whether and when there is another try. When the server ends, requests under way are given up: as nothing was
//! noted of them, they are repeated after its next start. So a receiver may be told the same twice, never not at all.
//!
//! | file | content |
//! | --- | --- |
//! | `mod` | when something is sent, what it contains |
//! | `signature` | the secrets, and the signature by them |

mod signature;

pub use self::signature::Secrets;

use super::state::{Health, Store, supervise};
use crate::client::webhook::{self, Judge, Webhook};
use crate::core::{Delivery, NotifyPolicy, without_query};
use crate::tls::Roots;
use crate::wire::notify::{Notification, Subject};
use log::{debug, info, warn};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The most requests at once, to all places together. Each has a thread of its own.
const MAX_SENDERS: usize = 16;
/// The flag that names the file of authorities.
const CA_FLAG: &str = "--webhook-ca";
/// The longest time of a request.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait until it is looked again whether something is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// The stack of a thread that sends, in bytes: a handshake of TLS needs some.
const STACK_BYTES: usize = 1 << 20;
/// The pause when the disk takes nothing, or when there is no thread left.
const TROUBLE_PAUSE: Duration = Duration::from_secs(1);

/// Sends notifications.
pub struct Notifier {
    store: Arc<Store>,
    policy: NotifyPolicy,
    secrets: RwLock<Secrets>,
    /// The server's own URL.
    address: Option<String>,
    /// The file of authorities.
    ca: Option<PathBuf>,
    /// The authorities, once they were read.
    roots: Mutex<Option<Arc<Roots>>>,
    senders: AtomicUsize,
}

impl Notifier {
    /// Sets what the core accepts. The error is one line for people.
    pub fn new(
        store: Arc<Store>,
        policy: NotifyPolicy,
        secrets: Secrets,
        address: Option<String>,
        ca: Option<PathBuf>,
    ) -> Result<Arc<Notifier>, String> {
        store.change(|core, _| core.set_notify_policy(policy.clone()));
        let roots = { ca.as_deref() }.map(|ca| webhook::authorities(CA_FLAG, Some(ca)));
        let roots = roots.transpose()?.map(Arc::new);
        Ok(Arc::new(Notifier {
            store,
            policy,
            secrets: RwLock::new(secrets),
            address,
            ca,
            roots: Mutex::new(roots),
            senders: AtomicUsize::new(0),
        }))
    }

    /// Logs what the receivers of notifications should know.
    pub fn explain(&self) {
        let Some(allow) = &self.policy.allow else {
            return;
        };
        self.explain_secrets();
        let pattern = allow.as_str();
        if !pattern.starts_with('^') || !pattern.ends_with(['$', ':']) {
            warn!(
                "--webhook-allow: {pattern:?} matches any part of scheme://host:port, so also hosts whose names go on; ^ at its begin and $ at its end make it strict"
            );
        }
    }

    fn explain_secrets(&self) {
        let secrets = self.secrets.read().unwrap_or_else(PoisonError::into_inner);
        if secrets.is_empty() {
            warn!(
                "NOTIFICATIONS ARE NOT SIGNED: receivers cannot tell them from those of others; set SIDEBIKE_WEBHOOK_SECRET or SIDEBIKE_WEBHOOK_SECRET_FILE"
            );
        } else if secrets.has_weak() {
            warn!(
                "SIDEBIKE_WEBHOOK_SECRET: a secret has fewer than {} bytes, it may be guessed",
                signature::STRONG_BYTES
            );
        }
    }

    /// Starts the thread that sends, if there is something to be sent, now or later.
    pub fn start(self: &Arc<Self>, health: &Arc<Health>) -> Result<(), String> {
        let waiting = self.store.ask(|core| core.pending_notifications());
        if self.policy.allow.is_none() {
            if waiting == 0 {
                return Ok(());
            }
            warn!(
                "{waiting} notifications wait, and this server was started without --webhook-allow: they are given up one after the other"
            );
        }
        let own = self.clone();
        supervise(health, "notify", move || own.send_forever())
    }

    /// Reads the secrets and the authorities again; after an error those in use stay.
    pub fn reload(&self) {
        if self.policy.allow.is_none() {
            return;
        }
        match Secrets::from_environment(&self.policy) {
            Ok(secrets) => {
                let mut known = self.secrets.write().unwrap_or_else(PoisonError::into_inner);
                // Removing the last one by mistake must not make receivers trust everybody.
                if secrets.is_empty() && !known.is_empty() {
                    warn!("no secret of notifications was found; those in use stay in use");
                } else {
                    info!("{} secrets of notifications are in use", secrets.len());
                    *known = secrets;
                }
            }
            Err(why) => warn!("{why}; the secrets in use stay in use"),
        }
        let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        match &self.ca {
            None => *roots = None,
            Some(ca) => match webhook::authorities(CA_FLAG, Some(ca)) {
                Ok(read) => *roots = Some(Arc::new(read)),
                Err(why) => warn!("{why}; the authorities in use stay in use"),
            },
        }
    }

    fn send_forever(self: &Arc<Self>) {
        // After a failure of this thread nobody may be sending what it had taken.
        self.store
            .change(|core, _| core.give_back_all_notifications());
        loop {
            let room = MAX_SENDERS.saturating_sub(self.senders.load(Ordering::Acquire));
            let taken = self.store.change_safely(|core, now| {
                let taken = core.take_notifications(now, room);
                let next = core.next_notification();
                (taken, next.map(|next| next.millis_since(now)))
            });
            let next = match taken {
                Ok((taken, next)) => {
                    taken.into_iter().for_each(|delivery| self.send(delivery));
                    next
                }
                Err(((taken, _), why)) => {
                    debug!("notifications wait: {why}");
                    self.give_back(&taken);
                    Some(TROUBLE_PAUSE.as_millis() as u64)
                }
            };
            let is_full = self.senders.load(Ordering::Acquire) >= MAX_SENDERS;
            // The end of a request rings, too.
            let next = next.filter(|_| !is_full).map(Duration::from_millis);
            self.store
                .outbox_bell
                .wait(next.unwrap_or(LOOK_EVERY).min(LOOK_EVERY));
        }
    }

    fn give_back(&self, deliveries: &[Delivery]) {
        let numbers: Vec<u64> = deliveries.iter().map(|delivery| delivery.number).collect();
        self.store
            .change(|core, _| core.give_back_notifications(&numbers));
    }

    /// Sends a notification by a thread of its own.
    fn send(self: &Arc<Self>, delivery: Delivery) {
        self.senders.fetch_add(1, Ordering::AcqRel);
        let sending = Sending {
            notifier: self.clone(),
            number: delivery.number,
            result: Err("the thread that sent it has failed (a bug)".into()),
        };
        let own = self.clone();
        let thread = thread::Builder::new().name("send".into());
        let started = thread.stack_size(STACK_BYTES).spawn(move || {
            let mut sending = sending;
            sending.result = own.try_once(&delivery);
            if let Err(why) = &sending.result {
                let (id, url) = (&delivery.id, without_query(&delivery.url));
                debug!("notification {id} to {url}: {why}");
            }
        });
        // Dropped unused, it counts as a try that failed.
        if let Err(why) = started {
            warn!("notifications: cannot start a thread: {why}");
        }
    }

    /// One request. The error is the reason why the notification was not taken.
    fn try_once(&self, delivery: &Delivery) -> Result<(), String> {
        // What was accepted by a server with another expression.
        if let Some(why) = self.policy.refusal(&delivery.place) {
            return Err(why);
        }
        let roots = match delivery.place.starts_with("https:") {
            true => Some(self.authorities()?),
            false => None,
        };
        let body = self.body(&delivery.body)?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let timestamp = since_1970.unwrap_or_default().as_secs();
        let mut headers = vec![
            ("webhook-id", delivery.id.to_string()),
            ("webhook-timestamp", timestamp.to_string()),
        ];
        let secrets = self.secrets.read().unwrap_or_else(PoisonError::into_inner);
        let signatures = secrets.signatures(&delivery.id, timestamp, &body);
        drop(secrets);
        headers.extend(signatures.map(|signatures| ("webhook-signature", signatures)));
        let (policy, place) = (self.policy.clone(), delivery.place.clone());
        let judge: Judge = Arc::new(move |address| policy.judge(&place, address));
        let request = Webhook {
            url: &delivery.url,
            headers: &headers,
            body: &body,
            timeout: TIMEOUT,
        };
        let status = webhook::post(&request, roots.as_deref(), judge);
        let status = status.map_err(|why| match delivery.url.split_once('?') {
            // An error of a library might quote it.
            Some((_, query)) if !query.is_empty() => why.replace(query, "..."),
            _ => why,
        });
        match status? {
            200..300 => Ok(()),
            status @ 300..400 => Err(format!("it answers {status}; redirects are not followed")),
            status => Err(format!("it answers {status}")),
        }
    }

    fn authorities(&self) -> Result<Arc<Roots>, String> {
        if cfg!(not(feature = "tls")) {
            return Err("this build of the server has no TLS (the feature tls)".into());
        }
        let mut known = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = &*known {
            return Ok(known.clone());
        }
        let roots = Arc::new(webhook::authorities(CA_FLAG, self.ca.as_deref())?);
        *known = Some(roots.clone());
        Ok(roots)
    }

    fn body(&self, notification: &Notification) -> Result<Vec<u8>, String> {
        let mut notification = notification.clone();
        if let (Some(address), Subject::Task(task)) = (&self.address, &notification.subject) {
            let id = utf8_percent_encode(&task.id, NON_ALPHANUMERIC);
            notification.link = Some(format!("{address}/#/task/{id}"));
        }
        serde_json::to_vec(&notification).map_err(|why| why.to_string())
    }
}

/// A request under way. When it ends, however it does, the core is told.
struct Sending {
    notifier: Arc<Notifier>,
    number: u64,
    result: Result<(), String>,
}

impl Drop for Sending {
    fn drop(&mut self) {
        let notifier = &self.notifier;
        let result = self.result.as_ref().map_err(String::as_str).copied();
        notifier
            .store
            .change(|core, now| core.notification_tried(now, self.number, result));
        notifier.senders.fetch_sub(1, Ordering::AcqRel);
        notifier.store.outbox_bell.ring();
    }
}
