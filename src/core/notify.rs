//! Where notifications may go, and when they are tried again. What waits to be sent is in `outbox.rs`.
//!
//! A server sends requests to addresses that users name, from inside its network. So nothing is sent unless the expression
//! of `--webhook-allow` matches `scheme://host:port`, and the addresses that a name leads to are judged when connecting:
//! those of the machine itself, of its link, and those where clouds keep the credentials of a machine are allowed only if
//! the expression has them literally. To add such an address: [`kind_of`].

use super::outbox::Entry;
use super::spec::{Spec, check_count};
use super::{Core, Refusal};
use crate::rules::wrong_regex;
use crate::wire::duration::TimeSpan;
use crate::wire::notify::{Notify, NotifyEvent};
use crate::wire::strict_object::StrictObject;
use regex::Regex;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// The most entries of `notify`: each may be 10 requests.
pub const MAX_NOTIFY: usize = 4;
/// The longest URL, in bytes: it is kept with the task, and shown.
pub const MAX_URL_BYTES: usize = 1_024;
/// The most tries of a notification.
pub const MAX_TRIES: u32 = 10;
/// The pauses before the second and each further try, in seconds: together a day, less half an hour.
const PAUSES: [u64; MAX_TRIES as usize - 1] =
    [5, 60, 300, 1_200, 3_600, 7_200, 14_400, 21_600, 36_000];

/// An entry of `notify`, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedNotify {
    /// Where to.
    pub url: Arc<str>,
    /// `scheme://host:port`, in small letters.
    pub place: Arc<str>,
    /// Of which events.
    pub on: Box<[NotifyEvent]>,
}

impl CheckedNotify {
    /// As it was posted.
    pub fn posted(&self) -> Notify {
        Notify {
            url: self.url.to_string(),
            on: self.on.to_vec(),
        }
    }

    /// One that was accepted before.
    pub(super) fn accepted(posted: &Notify) -> CheckedNotify {
        CheckedNotify {
            url: (&*posted.url).into(),
            place: place_of(&posted.url).unwrap_or_default().into(),
            on: posted.on.clone().into(),
        }
    }

    /// What it takes of memory beside its texts, in entries: its notifications.
    pub(super) fn entries(&self) -> usize {
        self.on.len() * size_of::<Entry>().div_ceil(super::selector::ENTRY_BYTES)
    }
}

/// Checks `notify`. The error names the field and what would be right.
pub(super) fn checked(
    posted: Option<Vec<StrictObject<Notify>>>,
) -> Result<Box<[CheckedNotify]>, String> {
    let posted = posted.unwrap_or_default();
    check_count("notify", posted.len(), MAX_NOTIFY)?;
    let checked = (0..).zip(posted).map(|(n, StrictObject(mut posted))| {
        posted.on.sort_unstable();
        posted.on.dedup();
        if posted.on.is_empty() {
            let words = NotifyEvent::ALL.map(|event| format!("{:?}", event.word()));
            return Err(format!(
                "notify[{n}].on: must name at least one of {}; leave it out to mean \"ended\"",
                words.join(", ")
            ));
        }
        let place = place_of(&posted.url).map_err(|why| format!("notify[{n}].url: {why}"))?;
        Ok(CheckedNotify {
            url: posted.url.into(),
            place: place.into(),
            on: posted.on.into(),
        })
    });
    checked.collect()
}

/// `scheme://host:port` of a URL, in small letters. The error says what is wrong.
pub fn place_of(url: &str) -> Result<String, String> {
    if url.len() > MAX_URL_BYTES {
        return Err(format!(
            "must have {MAX_URL_BYTES} bytes at most, got {}",
            url.len()
        ));
    }
    // Not quoted as a whole: what follows the host may be secret.
    let wrong = |why: &str| {
        Err(format!(
            "expected a URL such as https://hooks.example/path, {why}"
        ))
    };
    if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
        return wrong("got one with blanks or with characters that are not ASCII");
    }
    if url.contains(['\\', '"', '<', '>', '`', '{', '}', '|', '^']) {
        return wrong("got one with characters that have to be written with %");
    }
    let Some((scheme, rest)) = url.split_once("://") else {
        return wrong("got one without http:// or https://");
    };
    let scheme = scheme.to_ascii_lowercase();
    let default_port = match &*scheme {
        "http" => 80,
        "https" => 443,
        _ => return wrong("got another scheme than http and https"),
    };
    if rest.contains('#') {
        return wrong("got one with #, which is never sent");
    }
    let authority = &rest[..rest.find(['/', '?']).unwrap_or(rest.len())];
    if authority.contains('@') {
        return wrong("got one with a user or password in it, which would be shown; none is sent");
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let port = match port {
        None => default_port,
        Some(port) => {
            let digits = port.bytes().all(|byte| byte.is_ascii_digit());
            match port.parse::<u16>() {
                Ok(port) if port > 0 && digits => port,
                _ => return wrong("got one with a port that is none from 1 to 65535"),
            }
        }
    };
    let is_good = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None => {
            let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
            !host.is_empty() && host.bytes().all(is_of_name)
        }
    };
    match is_good {
        true => Ok(format!("{scheme}://{}:{port}", host.to_ascii_lowercase())),
        false => wrong("got one with a host that is no name and no address"),
    }
}

/// A URL as it may be logged: without its query, which may be secret.
pub fn without_query(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

/// What is allowed, and how patient tries are; set by the server's flags.
#[derive(Debug, Clone, Default)]
pub struct NotifyPolicy {
    /// The expression of `--webhook-allow`; without it nothing is sent.
    pub allow: Option<Regex>,
    /// Every pause between two tries, in place of those that grow; for tests.
    pub pause: Option<TimeSpan>,
}

impl NotifyPolicy {
    /// Reads the expression. The error says what is wrong with it.
    pub fn allowing(pattern: &str) -> Result<Regex, String> {
        if pattern.is_empty() {
            return Err("must not be empty; leave it out to turn notifications off".into());
        }
        let why = |why| {
            let why = wrong_regex(pattern, &why);
            format!("expected a regular expression: {why}")
        };
        Regex::new(pattern).map_err(why)
    }

    /// Why nothing may be sent to a place, `scheme://host:port`.
    pub fn refusal(&self, place: &str) -> Option<String> {
        match &self.allow {
            None => Some(
                "notifications are off on this server; it has to be started with --webhook-allow REGEX, such as --webhook-allow '^https://hooks\\.example:443$'"
                    .into(),
            ),
            Some(allow) if allow.is_match(place) => None,
            Some(_) => Some(format!(
                "{place} is not allowed on this server; the regular expression of its --webhook-allow has to match that"
            )),
        }
    }

    /// Judges an address that the host of an allowed place leads to. The error says why nothing is sent there.
    pub fn judge(&self, place: &str, address: IpAddr) -> Result<(), String> {
        let (kind, meant) = kind_of(address);
        let Some(kind) = kind else {
            return Ok(());
        };
        let allow = self.allow.as_ref();
        let is_literal = allow.is_some_and(|allow| has_literally(allow.as_str(), meant));
        // What allows one place on such an address does not allow others by another name.
        let port = place.rsplit(':').next().unwrap_or_default();
        let scheme = place.split(':').next().unwrap_or_default();
        let own = match meant {
            IpAddr::V4(v4) => format!("{scheme}://{v4}:{port}"),
            IpAddr::V6(v6) => format!("{scheme}://[{v6}]:{port}"),
        };
        match is_literal && allow.is_some_and(|allow| allow.is_match(&own)) {
            true => Ok(()),
            false => Err(format!(
                "its address {address} is {kind}; such a one is allowed only if the expression of --webhook-allow has it literally and matches {own}"
            )),
        }
    }

    /// The pause after so many tries; `None` if there is no further one.
    pub fn pause_after(&self, tries: u32) -> Option<TimeSpan> {
        let nth = (tries as usize).checked_sub(1)?;
        let seconds = PAUSES.get(nth)?;
        Some(self.pause.unwrap_or(TimeSpan::from_secs(*seconds)))
    }
}

/// Whether an expression has an address, with its dots escaped or not, and not as a part of a longer one.
fn has_literally(pattern: &str, address: IpAddr) -> bool {
    let plain = pattern.replace('\\', "");
    let address = address.to_string();
    let is_part = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
    plain.match_indices(&address).any(|(at, _)| {
        let before = at.checked_sub(1).and_then(|at| plain.as_bytes().get(at));
        !is_part(before) && !is_part(plain.as_bytes().get(at + address.len()))
    })
}

/// What is special about an address, and the address that is meant by it: `::ffff:127.0.0.1` is `127.0.0.1`.
fn kind_of(address: IpAddr) -> (Option<&'static str>, IpAddr) {
    match address {
        IpAddr::V4(v4) => (kind_of_v4(v4), address),
        IpAddr::V6(v6) => match embedded(v6) {
            Some(v4) => (kind_of_v4(v4), v4.into()),
            None => (kind_of_v6(v6), address),
        },
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, of NAT64, of 6to4.
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let of = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => Some(of(high, low)),
        [0, 0, 0, 0, 0xffff, 0, high, low] => Some(of(high, low)),
        [0x64, 0xff9b, _, _, _, _, high, low] => Some(of(high, low)),
        [0x2002, high, low, ..] => Some(of(high, low)),
        _ => None,
    }
}

const LOOPBACK: &str = "of the server's own machine (loopback)";
const LINK_LOCAL: &str = "link-local";
const METADATA: &str = "one of those where clouds keep the credentials of a machine (metadata)";
const NOBODY: &str = "of no single machine (multicast, broadcast)";

fn kind_of_v4(v4: Ipv4Addr) -> Option<&'static str> {
    match v4.octets() {
        [0 | 127, ..] => Some(LOOPBACK),
        [169, 254, 169, 254] => Some(METADATA),
        [169, 254, ..] => Some(LINK_LOCAL),
        // Alibaba, Azure, Oracle.
        [100, 100, 100, 200] | [168, 63, 129, 16] | [192, 0, 0, 192] => Some(METADATA),
        [224..=255, ..] => Some(NOBODY),
        _ => None,
    }
}

fn kind_of_v6(v6: Ipv6Addr) -> Option<&'static str> {
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Some(LOOPBACK),
        // Amazon.
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => Some(METADATA),
        [0xfe80..=0xfebf, ..] => Some(LINK_LOCAL),
        [0xff00..=0xffff, ..] => Some(NOBODY),
        _ => None,
    }
}

impl Core {
    /// From now on notifications may go where this allows it.
    pub fn set_notify_policy(&mut self, policy: NotifyPolicy) {
        self.outbox.policy = policy;
    }

    /// Refuses a task that would tell whom it may not.
    pub fn check_notify(&self, spec: &Spec) -> Result<(), Refusal> {
        for (n, notify) in spec.notify.iter().enumerate() {
            if let Some(why) = self.outbox.policy.refusal(&notify.place) {
                return Err(Refusal::Impossible(format!("notify[{n}].url: {why}")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_scheme_host_and_port() {
        for (url, place) in [
            ("https://Hooks.Example/a?b=c", "https://hooks.example:443"),
            ("HTTP://h", "http://h:80"),
            ("http://h:8080?x", "http://h:8080"),
            ("http://127.1/", "http://127.1:80"),
            ("http://2130706433/", "http://2130706433:80"),
            ("http://[::1]:9/x", "http://[::1]:9"),
            ("http://[::1]/", "http://[::1]:80"),
        ] {
            assert_eq!(place_of(url).as_deref(), Ok(place), "{url}");
        }
        let long = format!("http://h/{}", "a".repeat(MAX_URL_BYTES));
        for url in [
            "",
            "h",
            "ftp://h/",
            "http://",
            "http:///x",
            "http://h:0/",
            "http://h:70000/",
            "http://h:+1/",
            "http://u@h/",
            "http://u:p@h/",
            "http://h /",
            "http://h/ä",
            "http://h/#x",
            "http://h\\@e/",
            "http://[::1/",
            "http://[x]/",
            "http://h:/",
            "//h/",
            "http://h%2e/",
            "http://h/a\nb",
            &long,
        ] {
            assert!(place_of(url).is_err(), "{url}");
        }
        let secret = place_of("https://u:s3cret@h/?k=s3cret").unwrap_err();
        assert!(!secret.contains("s3cret"), "{secret}");
    }

    fn policy(pattern: &str) -> NotifyPolicy {
        NotifyPolicy {
            allow: Some(NotifyPolicy::allowing(pattern).unwrap()),
            pause: None,
        }
    }

    #[test]
    fn nothing_is_allowed_but_what_the_expression_matches() {
        let off = NotifyPolicy::default().refusal("https://h:443").unwrap();
        assert!(off.contains("--webhook-allow"), "{off}");
        let one = policy(r"^https://hooks\.example:443$");
        assert_eq!(one.refusal("https://hooks.example:443"), None);
        for place in [
            "http://hooks.example:443",
            "https://hooks.example:444",
            "https://hooks.example.evil:443",
        ] {
            assert!(one.refusal(place).is_some(), "{place}");
        }
        assert!(NotifyPolicy::allowing("").is_err());
        assert!(NotifyPolicy::allowing("(").is_err());
    }

    #[test]
    fn special_addresses_are_allowed_only_where_they_are_named() {
        let special = [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "255.255.255.255",
            "224.0.0.1",
            "::",
            "::1",
            "fe80::1",
            "febf::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "::ffff:169.254.169.254",
        ];
        let all = policy(".*");
        for address in special {
            assert!(
                all.judge("http://h:80", address.parse().unwrap()).is_err(),
                "{address}"
            );
        }
        for address in [
            "10.0.0.1",
            "192.168.0.1",
            "172.16.0.1",
            "8.8.8.8",
            "2001:db8::1",
            "fd12::1",
        ] {
            assert_eq!(
                all.judge("http://h:80", address.parse().unwrap()),
                Ok(()),
                "{address}"
            );
        }
        for pattern in [
            r"^http://127\.0\.0\.1:",
            "^http://127.0.0.1:80$",
            "127.0.0.1|x",
        ] {
            let one = policy(pattern);
            let judge = |address: &str| one.judge("http://h:80", address.parse().unwrap());
            assert_eq!(judge("127.0.0.1"), Ok(()), "{pattern}");
            assert_eq!(judge("::ffff:127.0.0.1"), Ok(()), "{pattern}");
            for other in ["127.0.0.2", "0.0.0.0", "::1", "169.254.169.254"] {
                assert!(judge(other).is_err(), "{pattern} {other}");
            }
        }
        // A longer address is another one, and what allows one port does not allow others.
        assert!(
            policy("127.0.0.10|.*")
                .judge("http://h:80", "127.0.0.1".parse().unwrap())
                .is_err()
        );
        let two = policy(r"^http://127\.0\.0\.1:9000$|^https://hooks\.example:443$");
        assert!(
            two.judge("https://hooks.example:443", "127.0.0.1".parse().unwrap())
                .is_err()
        );
        let v6 = policy(r"^http://\[::1\]:80$");
        assert_eq!(v6.judge("http://[::1]:80", "::1".parse().unwrap()), Ok(()));
    }

    #[test]
    fn the_pauses_grow_from_five_seconds_to_a_day_in_all() {
        let policy = NotifyPolicy::default();
        let pauses: Vec<u64> = (1..)
            .map_while(|tries| policy.pause_after(tries))
            .map(|pause| pause.as_millis() / 1_000)
            .collect();
        assert_eq!(pauses.len() + 1, MAX_TRIES as usize);
        assert_eq!(pauses[0], 5);
        assert!(pauses.is_sorted_by(|a, b| a < b));
        let all: u64 = pauses.iter().sum();
        assert!((23 * 3_600..=24 * 3_600).contains(&all), "{all}");
    }
}
