//! Who is asked: the servers of the list, one after the other.
//!
//! Several servers can keep one registry; one of them leads, and the others refuse. Each call begins with the server that
//! answered last. Whether it goes on with the next one after a failure is decided in [`super::ask`].

use super::proxy::{self, NamedProxy};
use crate::config::Registry;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The servers.
#[derive(Debug)]
pub struct Addresses {
    registry: Registry,
    /// By which proxy each of them is reached.
    proxies: Vec<Option<NamedProxy>>,
    /// The one that is asked first.
    first: AtomicUsize,
    /// The one that answered last.
    answered: AtomicUsize,
}

/// One pass over the servers: each is asked once at most.
#[derive(Debug)]
pub struct Round {
    /// The one that is asked first, and then hinted ones.
    preferred: Option<usize>,
    was_asked: Vec<bool>,
}

impl Round {
    /// A pass over so many servers.
    fn new(count: usize, first: usize) -> Self {
        Round {
            preferred: Some(first),
            was_asked: vec![false; count],
        }
    }

    /// Who comes next.
    fn find(&self) -> Option<usize> {
        let is_left = |n: &usize| self.was_asked.get(*n) == Some(&false);
        let preferred = self.preferred.filter(is_left);
        preferred.or_else(|| (0..self.was_asked.len()).find(is_left))
    }

    /// The server to ask now; none if all were asked.
    pub fn next(&mut self) -> Option<usize> {
        let next = self.find()?;
        self.was_asked[next] = true;
        Some(next)
    }

    /// Has a server asked before the others, unless it was asked.
    pub fn prefer(&mut self, hinted: usize) {
        self.preferred = Some(hinted);
    }
}

impl Addresses {
    /// Those of the settings. The error is one line for people.
    pub fn new(registry: &Registry) -> Result<Self, String> {
        let urls = registry.urls().iter();
        let proxies = urls.map(|url| proxy::from_environment(url));
        Ok(Addresses {
            proxies: proxies.collect::<Result<_, _>>()?,
            registry: registry.clone(),
            first: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
        })
    }

    /// The settings they come from.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.proxies.len()
    }

    /// The base URL of one.
    pub fn url(&self, n: usize) -> &str {
        &self.registry.urls()[n]
    }

    /// All base URLs, the one that is asked first at the beginning.
    pub fn urls(&self) -> Vec<String> {
        let mut round = self.round();
        std::iter::from_fn(|| round.next())
            .map(|n| self.url(n).to_owned())
            .collect()
    }

    /// The proxy on the way to one.
    pub fn proxy(&self, n: usize) -> Option<&NamedProxy> {
        self.proxies[n].as_ref()
    }

    /// Whether a proxy on the way speaks https.
    pub fn has_https_proxy(&self) -> bool {
        self.proxies.iter().flatten().any(NamedProxy::is_https)
    }

    /// The server that somebody names; none if it is not in the list.
    pub fn find(&self, address: &str) -> Option<usize> {
        self.registry.find(address)
    }

    /// The one that answered last, where there are several.
    pub fn one_of_several(&self) -> Option<&str> {
        let answered = self.answered.load(Ordering::Relaxed);
        (self.count() > 1).then(|| self.url(answered))
    }

    /// A pass over all of them.
    pub fn round(&self) -> Round {
        Round::new(self.count(), self.first.load(Ordering::Relaxed))
    }

    /// The next call begins with the server that is next in this pass. Whether there is one.
    pub fn begin_with_next(&self, round: &Round) -> bool {
        let next = round.find();
        if let Some(next) = next {
            self.first.store(next, Ordering::Relaxed);
        }
        next.is_some()
    }

    /// A server has answered: the next call begins with it. Whether another one did before.
    pub fn has_answered(&self, n: usize) -> bool {
        self.first.store(n, Ordering::Relaxed);
        self.answered.swap(n, Ordering::Relaxed) != n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(round: &mut Round) -> Vec<usize> {
        std::iter::from_fn(|| round.next()).collect()
    }

    #[test]
    fn the_first_one_is_followed_by_the_others_in_order() {
        assert_eq!(rest(&mut Round::new(1, 0)), [0]);
        assert_eq!(rest(&mut Round::new(4, 2)), [2, 0, 1, 3]);
    }

    #[test]
    fn a_hint_comes_before_the_others_and_nobody_is_asked_twice() {
        let mut round = Round::new(4, 0);
        assert_eq!(round.next(), Some(0));
        round.prefer(3);
        assert_eq!(round.next(), Some(3));
        round.prefer(0);
        assert_eq!(rest(&mut round), [1, 2]);
    }

    #[test]
    fn a_call_begins_with_the_server_that_answered_last() {
        let urls = ["http://a:1", "http://b:1", "http://c:1"];
        let registry = Registry::new(urls.map(str::to_owned).to_vec(), None);
        let addresses = Addresses::new(&registry).unwrap();
        assert!(addresses.has_answered(2));
        assert!(!addresses.has_answered(2));
        assert_eq!(addresses.urls(), ["http://c:1", "http://a:1", "http://b:1"]);
        let mut round = addresses.round();
        assert_eq!(round.next(), Some(2));
        assert!(addresses.begin_with_next(&round));
        assert_eq!(rest(&mut addresses.round()), [0, 1, 2]);
        rest(&mut round);
        assert!(!addresses.begin_with_next(&round));
        assert_eq!(addresses.urls()[0], "http://a:1");
    }
}
