//! Which machines a task means: a regular expression that is searched in labels, and what narrows it down.
//!
//! To add a condition on what does not change while a machine runs: a field of [`Narrowing`], one of [`Traits`] if
//! machines do not have it yet, and one of [`Compiled`].

use super::TextLimits;
use super::match_index::Matches;
use crate::rules::{MAX_TAGS, check_tag_name, wrong_regex};
use regex::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

/// How deep groups and repetitions of a pattern may be nested. Compiling it recurses as deep, on the
/// small stack of a server thread.
const MAX_NESTING: u32 = 50;
/// The most instances that a task can name: as many machines as a server knows by default.
const MAX_INSTANCES: usize = 10_000;
/// The pattern of a task that has none: it names instances, or goes with another task machine by machine.
pub(super) const ANY_LABEL: &str = ".*";
/// What an entry of a list or a map takes of memory beside its text, in bytes, roughly.
pub(super) const ENTRY_BYTES: usize = 64;

/// The tags of a machine, by name.
pub type Tags = Arc<BTreeMap<String, String>>;

/// No tags.
pub(super) fn no_tags() -> Tags {
    static NONE: LazyLock<Tags> = LazyLock::new(Tags::default);
    NONE.clone()
}

/// What the conditions of a selector are about, beside the instance. None of it changes while the machine runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Traits {
    /// Its label.
    pub label: Arc<str>,
    /// Its host name.
    pub host: Arc<str>,
    /// Its tags.
    pub tags: Tags,
}

/// The conditions of a selector beside its pattern; all of them have to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Narrowing {
    /// Labels that are not meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclude: Option<String>,
    /// A pattern for each of these tags; a machine without the tag is not meant.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// A pattern for the host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<String>,
    /// Only these instances, if there are any.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub instances: BTreeSet<Arc<str>>,
}

/// A selector as it was written. Equal ones mean the same machines.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SelectorText {
    /// The pattern of the labels.
    pub pattern: Arc<str>,
    /// What narrows it down, if anything does.
    pub narrowing: Option<Arc<Narrowing>>,
}

/// The conditions of a selector, but for its instances.
#[derive(Debug)]
struct Compiled {
    pattern: Regex,
    exclude: Option<Regex>,
    tags: Vec<(String, Regex)>,
    hosts: Option<Regex>,
}

/// A selector; its patterns are searched unanchored. It is compiled while a task is submitted with it or waits
/// under it; a stored task keeps the text only, which takes a thousandth of the memory.
#[derive(Debug, Clone)]
pub struct Selector {
    text: SelectorText,
    compiled: Option<Arc<Compiled>>,
    /// Its matches in a snapshot, computed outside the lock. Not needed once the index has the selector.
    matches: Option<Arc<Matches>>,
}

impl PartialEq for Selector {
    fn eq(&self, other: &Selector) -> bool {
        self.text == other.text
    }
}

impl SelectorText {
    /// The selector of a pattern alone.
    pub fn of_pattern(pattern: &str) -> SelectorText {
        SelectorText {
            pattern: pattern.into(),
            narrowing: None,
        }
    }

    /// The only instances that are meant; `None` if it names none.
    pub fn instances(&self) -> Option<&BTreeSet<Arc<str>>> {
        let instances = &self.narrowing.as_ref()?.instances;
        (!instances.is_empty()).then_some(instances)
    }

    /// What it takes of memory in bytes, roughly.
    pub fn kept_bytes(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        let narrowing = self.narrowing.as_ref().map_or(0, |n| {
            let tags = n.tags.iter().map(|(name, value)| name.len() + value.len());
            let instances = n.instances.iter().map(|instance| instance.len());
            let entries = (n.tags.len() + n.instances.len()) * ENTRY_BYTES;
            text(&n.exclude) + text(&n.hosts) + entries + tags.chain(instances).sum::<usize>()
        });
        self.pattern.len() + narrowing
    }

    /// Its patterns, each with the field that has it.
    fn patterns(&self) -> impl Iterator<Item = (String, &str)> {
        let narrowing = self.narrowing.as_deref();
        let exclude = narrowing.and_then(|n| n.exclude.as_deref());
        let hosts = narrowing.and_then(|n| n.hosts.as_deref());
        let exclude = exclude.map(|text| ("exclude".to_owned(), text));
        let hosts = hosts.map(|text| ("hosts".to_owned(), text));
        let tags = narrowing.into_iter().flat_map(|n| &n.tags);
        let tags = tags.map(|(name, text)| (format!("machineTags.{name}"), &**text));
        let pattern = [("machinePattern".to_owned(), &*self.pattern)];
        pattern.into_iter().chain(exclude).chain(hosts).chain(tags)
    }

    /// Checks everything that needs no compilation.
    fn check(&self, limits: &TextLimits) -> Result<(), String> {
        for (field, text) in self.patterns() {
            check_pattern(&field, text, limits)?;
        }
        let Some(narrowing) = &self.narrowing else {
            return Ok(());
        };
        if narrowing.tags.len() > MAX_TAGS {
            return Err(format!(
                "machineTags: must have {MAX_TAGS} entries at most, got {}",
                narrowing.tags.len()
            ));
        }
        for name in narrowing.tags.keys() {
            check_tag_name(name).map_err(|why| format!("machineTags: {why}"))?;
        }
        if narrowing.instances.len() > MAX_INSTANCES {
            return Err(format!(
                "instances: must have {MAX_INSTANCES} entries at most, got {}",
                narrowing.instances.len()
            ));
        }
        Ok(())
    }

    /// Compiles it; all patterns together may have this many bytes then. The error says what is wrong.
    fn compiled(&self, max_bytes: usize) -> Result<Compiled, String> {
        let share = max_bytes / self.patterns().count();
        let build = |field: &str, text: &str| build(field, text, share);
        let narrowing = self.narrowing.as_deref();
        let optional = |field: &str, text: Option<&String>| {
            let built = text.map(|text| build(field, text));
            built.transpose()
        };
        let tags = narrowing.into_iter().flat_map(|n| &n.tags);
        let tags = tags
            .map(|(name, text)| Ok((name.clone(), build(&format!("machineTags.{name}"), text)?)));
        Ok(Compiled {
            pattern: build("machinePattern", &self.pattern)?,
            exclude: optional("exclude", narrowing.and_then(|n| n.exclude.as_ref()))?,
            tags: tags.collect::<Result<_, String>>()?,
            hosts: optional("hosts", narrowing.and_then(|n| n.hosts.as_ref()))?,
        })
    }
}

impl Compiled {
    fn matches(&self, traits: &Traits) -> bool {
        let has_tag = |(name, pattern): &(String, Regex)| {
            let value = traits.tags.get(name);
            value.is_some_and(|value| pattern.is_match(value))
        };
        self.pattern.is_match(&traits.label)
            && { self.exclude.as_ref() }.is_none_or(|exclude| !exclude.is_match(&traits.label))
            && { self.hosts.as_ref() }.is_none_or(|hosts| hosts.is_match(&traits.host))
            && self.tags.iter().all(has_tag)
    }
}

impl Selector {
    /// Checks and compiles a selector, unless `known` gives a compiled one. Without a pattern it has to name
    /// instances. The error names the field and says what is wrong.
    pub fn checked(
        pattern: Option<String>,
        narrowing: Narrowing,
        limits: &TextLimits,
        known: impl FnOnce(&SelectorText) -> Option<Selector>,
    ) -> Result<Selector, String> {
        if pattern.is_none() && narrowing.instances.is_empty() {
            return Err(
                "machinePattern: is required, unless instances are given; \".*\" matches every label"
                    .into(),
            );
        }
        let is_narrowed = narrowing != Narrowing::default();
        let text = SelectorText {
            pattern: pattern.as_deref().unwrap_or(ANY_LABEL).into(),
            narrowing: is_narrowed.then(|| Arc::new(narrowing)),
        };
        text.check(limits)?;
        if let Some(selector) = known(&text) {
            return Ok(selector);
        }
        let compiled = text.compiled(limits.compiled)?;
        Ok(Selector {
            text,
            compiled: Some(Arc::new(compiled)),
            matches: None,
        })
    }

    /// Checks and compiles a selector that is a pattern alone. The error names the field and says what is wrong.
    pub(super) fn checked_pattern(
        field: &str,
        pattern: &str,
        limits: &TextLimits,
    ) -> Result<Selector, String> {
        let compiled = Compiled {
            pattern: pattern_of(field, pattern, limits)?,
            exclude: None,
            tags: Vec::new(),
            hosts: None,
        };
        Ok(Selector {
            text: SelectorText::of_pattern(pattern),
            compiled: Some(Arc::new(compiled)),
            matches: None,
        })
    }

    /// The selector of an accepted pattern alone; it is not compiled.
    pub(super) fn of_pattern(pattern: &str) -> Selector {
        Selector::accepted(SelectorText::of_pattern(pattern))
    }

    /// One that was accepted before; it is not compiled.
    pub(super) fn accepted(text: SelectorText) -> Selector {
        Selector {
            text,
            compiled: None,
            matches: None,
        }
    }

    /// Compiles it, unless it is compiled.
    pub fn compile(&mut self) {
        *self = self.to_compiled();
    }

    /// Drops the compiled form; it can be compiled again.
    pub(super) fn drop_compiled(&mut self) {
        (self.compiled, self.matches) = (None, None);
    }

    pub(super) fn set_matches(&mut self, matches: Matches) {
        self.matches = Some(Arc::new(matches));
    }

    /// Which traits of a snapshot match, if they were compared.
    pub(super) fn matches_of_snapshot(&self) -> Option<Arc<Matches>> {
        self.matches.clone()
    }

    /// Whether it was matched with a snapshot.
    pub(super) fn is_matched(&self) -> bool {
        self.matches.is_some()
    }

    /// The selector as it was written.
    pub fn text(&self) -> &SelectorText {
        &self.text
    }

    /// Whether the conditions hold for these traits; the instance is checked by [`Selector::names`]. False if the
    /// selector is not compiled.
    pub fn matches(&self, traits: &Traits) -> bool {
        let compiled = self.compiled.as_ref();
        compiled.is_some_and(|compiled| compiled.matches(traits))
    }

    /// Whether this instance is among those that are named, or none are.
    pub fn names(&self, instance: &str) -> bool {
        let instances = self.text.instances();
        instances.is_none_or(|instances| instances.contains(instance))
    }

    /// A compiled copy. An accepted selector compiles again, without today's size limit; should that ever
    /// fail, it matches nothing.
    pub(super) fn to_compiled(&self) -> Selector {
        let compile = || self.text.compiled(usize::MAX).ok().map(Arc::new);
        Selector {
            text: self.text.clone(),
            compiled: self.compiled.clone().or_else(compile),
            matches: None,
        }
    }
}

/// Checks and compiles a pattern. The error names the field and says what is wrong.
pub fn pattern_of(field: &str, text: &str, limits: &TextLimits) -> Result<Regex, String> {
    check_pattern(field, text, limits)?;
    build(field, text, limits.compiled)
}

fn check_pattern(field: &str, text: &str, limits: &TextLimits) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!(
            "{field}: must not be empty; \".*\" matches every text"
        ));
    }
    if text.len() > limits.pattern {
        return Err(format!(
            "{field}: must have {} bytes at most (--max-pattern), got {}",
            limits.pattern,
            text.len()
        ));
    }
    Ok(())
}

fn build(field: &str, text: &str, max_bytes: usize) -> Result<Regex, String> {
    let built = RegexBuilder::new(text)
        .size_limit(max_bytes)
        .nest_limit(MAX_NESTING)
        .build();
    built.map_err(|error| {
        if let regex::Error::CompiledTooBig(most) = error {
            return format!(
                "{field}: must have {most} bytes at most when compiled (--max-compiled-pattern)"
            );
        }
        let reason = wrong_regex(text, &error);
        format!("{field}: must be a regular expression: {reason}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Limits;

    fn traits(label: &str, host: &str, tags: &[(&str, &str)]) -> Traits {
        let tags = tags.iter().map(|(n, v)| (n.to_string(), v.to_string()));
        Traits {
            label: label.into(),
            host: host.into(),
            tags: Arc::new(tags.collect()),
        }
    }

    fn checked(pattern: Option<&str>, narrowing: Narrowing) -> Result<Selector, String> {
        let pattern = pattern.map(str::to_owned);
        Selector::checked(pattern, narrowing, &Limits::NONE.texts, |_| None)
    }

    #[test]
    fn all_that_is_given_has_to_hold() {
        let narrowing = Narrowing {
            exclude: Some("7$".into()),
            tags: BTreeMap::from([("zone".into(), "^cn-".into())]),
            hosts: Some("^10-".into()),
            instances: BTreeSet::from(["aa".into()]),
        };
        let selector = checked(Some("^web-"), narrowing).unwrap();
        let cn = [("zone", "cn-1")];
        assert!(selector.matches(&traits("web-1", "10-0", &cn)));
        assert!(!selector.matches(&traits("db-1", "10-0", &cn)));
        assert!(!selector.matches(&traits("web-7", "10-0", &cn)));
        assert!(!selector.matches(&traits("web-1", "11-0", &cn)));
        assert!(!selector.matches(&traits("web-1", "10-0", &[("zone", "eu-1")])));
        assert!(!selector.matches(&traits("web-1", "10-0", &[])));
        assert!(selector.names("aa") && !selector.names("ab"));
    }

    #[test]
    fn errors_name_the_field() {
        let why = checked(None, Narrowing::default()).unwrap_err();
        assert!(why.starts_with("machinePattern: is required"), "{why}");
        let exclude = |text: &str| Narrowing {
            exclude: Some(text.into()),
            ..Narrowing::default()
        };
        for (wrong, field) in [
            (exclude("("), "exclude: must be a regular expression"),
            (exclude(""), "exclude: must not be empty"),
            (
                Narrowing {
                    tags: BTreeMap::from([("zone".into(), "*".into())]),
                    ..Narrowing::default()
                },
                "machineTags.zone: must be a regular expression",
            ),
            (
                Narrowing {
                    tags: BTreeMap::from([("a b".into(), "x".into())]),
                    ..Narrowing::default()
                },
                "machineTags: the name of a tag must be",
            ),
        ] {
            let why = checked(Some("."), wrong).unwrap_err();
            assert!(why.starts_with(field), "{why}");
        }
    }
}
