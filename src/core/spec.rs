//! Checks a posted task.
//!
//! A task that passes can be stored and run; no later code checks a field again. Every error names the field,
//! what is wrong and what would be right. To add a field: take it from the posted task, check it here, add it to
//! [`Spec`].

use super::TextLimits;
use super::about::{self, About};
use super::agent::is_instance;
use super::children::Child;
use super::counting::{Counts, KeepAlive};
use super::detail_spec::checked_detail;
use super::files::Files;
use super::later_spec::{
    Wait, check_goes_per_machine, checked_children, checked_wait, is_per_machine,
};
use super::named_limits;
use super::notify::{self, CheckedNotify};
use super::order::PRIORITIES;
use super::probe_data::CheckedProbe;
use super::probe_spec::checked_probes;
use super::rollout::{self, Rollout};
use super::schedule::FiringOf;
use super::selector::{ANY_LABEL, ENTRY_BYTES, Narrowing, Selector, SelectorText};
use super::unique::{self, Unique};
use super::update;
use crate::wire::duration::{TimeSpan, Timeout};
use crate::wire::rollout::{Expect, Share};
use crate::wire::strict_object::StrictObject;
use crate::wire::task::{DEFAULT_KILL_GRACE, DEFAULT_TIMEOUT, Detail, Mode, PostedTask, Retry};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The longest id of a task, in bytes.
pub const MAX_ID_BYTES: usize = 64;
/// The most retries; anyone who wants more should loop in the script.
pub const MAX_RETRIES: u32 = 1_000;
/// The most different pauses before retries.
pub const MAX_INTERVALS: usize = 100;

const DEFAULT_NAME: &str = "task";
const DEFAULT_TTL_ALL: TimeSpan = TimeSpan::from_secs(600);
const DEFAULT_TTL_ANY: TimeSpan = TimeSpan::from_secs(24 * 3_600);
const DEFAULT_RESULT_TTL: TimeSpan = TimeSpan::from_secs(24 * 3_600);
const DEFAULT_FAILURE_TTL: TimeSpan = TimeSpan::from_secs(7 * 24 * 3_600);

/// A checked task: what the user asked for, with the defaults filled in.
#[derive(Debug, Clone, PartialEq)]
#[allow(
    missing_docs,
    reason = "the fields of wire::task::Task of the same names are documented"
)]
pub struct Spec {
    pub id: Option<Arc<str>>,
    pub name: Arc<str>,
    pub priority: i8,
    pub unique: Option<Box<Unique>>,
    pub limits: Box<[Arc<str>]>,
    pub spread: Option<TimeSpan>,
    pub selector: Selector,
    pub counts: Counts,
    pub rollout: Option<Box<Rollout>>,
    pub probes: Box<[CheckedProbe]>,
    pub mode: Mode,
    pub ttl: TimeSpan,
    pub late_join: bool,
    pub retry: Option<Box<Retry>>,
    pub result_ttl: TimeSpan,
    pub failure_ttl: TimeSpan,
    pub notify: Box<[CheckedNotify]>,
    pub detail: Arc<Detail>,
    /// What it does with files, if anything.
    pub files: Option<Box<Files>>,
    /// What people say of it.
    pub about: Option<Box<About>>,
    /// The size of the detail in an answer that hands it out, in bytes, roughly.
    pub sent_bytes: usize,
    /// Tasks that begin with its end.
    pub children: Vec<Child>,
    /// The schedule that fired it.
    pub scheduled: Option<Arc<FiringOf>>,
    /// What it has to wait for; none in a stored task.
    pub wait: Option<Box<Wait>>,
}

impl Spec {
    /// Checks a posted task. The error names the field and what would be right.
    ///
    /// `known` gives a selector that need not be compiled again, see [`super::Core::selector`].
    pub fn checked(
        mut posted: PostedTask,
        limits: &TextLimits,
        known: impl FnOnce(&SelectorText) -> Option<Selector>,
    ) -> Result<Spec, String> {
        let mode = posted.mode.unwrap_or_default();
        let default_ttl = match mode {
            Mode::All => DEFAULT_TTL_ALL,
            Mode::Any => DEFAULT_TTL_ANY,
        };
        let late_join = posted.late_join.unwrap_or(false);
        if late_join && mode == Mode::Any {
            return Err("lateJoin: goes with mode \"all\" only, an \"any\" task runs once".into());
        }
        if let Some(id) = &posted.id {
            check_id(id)?;
        }
        if let Some(retry) = &posted.retry {
            check_retry(&retry.0)?;
        }
        let update = update::checked(&mut posted)?;
        let counts = checked_counts(&mut posted, mode, limits)?;
        let rollout = checked_rollout(&mut posted, mode, limits)?;
        let probes = checked_probes(&mut posted, mode, limits)?;
        let notify = notify::checked(posted.notify.take())?;
        let about = about::checked(&mut posted)?;
        let narrowing = narrowing(&mut posted)?;
        let mut pattern = posted.machine_pattern.take();
        let is_per_machine = is_per_machine(&posted) && pattern.is_none();
        let has_machines_of_parent = is_per_machine && narrowing == Narrowing::default();
        if is_per_machine {
            pattern = Some(ANY_LABEL.to_owned());
        }
        let selector = Selector::checked(pattern, narrowing, limits, known)?;
        let unique = unique::checked(&mut posted)?;
        let spread = checked_spread(posted.spread, mode, rollout.is_some())?;
        let children = checked_children(&mut posted, &selector, has_machines_of_parent, limits)?;
        let name = posted.name.as_deref().unwrap_or(DEFAULT_NAME);
        check_text("name", name, limits.name, " (--max-name)")?;
        let files = posted.files.take().unwrap_or_default().into_iter();
        let fetch = posted.fetch.take().unwrap_or_default().into_iter();
        let files = Files::checked(
            files.map(|file| file.0).collect(),
            posted.files_timeout,
            fetch.map(|fetch| fetch.0).collect(),
            update,
        )?;
        let wait = checked_wait(&posted, has_machines_of_parent)?;
        let detail = checked_detail(posted.detail.take(), files.as_deref())?;
        let spec = Spec {
            id: posted.id.map(Arc::from),
            name: name.into(),
            priority: checked_priority(posted.priority)?,
            unique,
            limits: named_limits::checked_names(posted.limits)?,
            spread,
            selector,
            counts,
            rollout,
            probes,
            mode,
            ttl: check_above_zero("ttl", posted.ttl.unwrap_or(default_ttl))?,
            late_join,
            retry: posted
                .retry
                .map(|retry| retry.0)
                .filter(|retry| retry.max > 0)
                .map(Box::new),
            result_ttl: check_above_zero(
                "resultTtl",
                posted.result_ttl.unwrap_or(DEFAULT_RESULT_TTL),
            )?,
            failure_ttl: check_above_zero(
                "failureTtl",
                posted.failure_ttl.unwrap_or(DEFAULT_FAILURE_TTL),
            )?,
            sent_bytes: detail.json_bytes() + files.as_ref().map_or(0, |files| files.text_bytes()),
            files,
            notify,
            detail: Arc::new(detail),
            scheduled: None,
            about,
            children,
            wait: (wait != Wait::default()).then(|| Box::new(wait)),
        };
        check_goes_per_machine(&spec)?;
        Ok(spec)
    }

    /// Adds a variable to the environment of its command.
    pub(super) fn add_variable(&mut self, name: &str, value: String) {
        // Both texts with their quotes, a colon and a comma.
        self.sent_bytes += name.len() + value.len() + 6;
        let env = &mut Arc::make_mut(&mut self.detail).env;
        env.get_or_insert_default().insert(name.to_owned(), value);
    }

    /// Every selector that it has.
    pub fn selectors_mut(&mut self) -> impl Iterator<Item = &mut Selector> {
        let pool = self.counts.keep_alive.as_mut();
        let pool = pool.and_then(|keep_alive| keep_alive.pool.as_mut());
        let canary = self.rollout.as_mut();
        let canary = canary.and_then(|rollout| rollout.canary.as_mut());
        let probes = self.probes.iter_mut();
        let probes = probes.filter_map(|probe| probe.on.as_mut());
        let first = [&mut self.selector].into_iter();
        first.chain(pool).chain(canary).chain(probes)
    }

    /// The selectors of its children.
    pub fn selectors_of_children_mut(&mut self) -> impl Iterator<Item = &mut Selector> {
        let children = self.children.iter_mut();
        children.map(|child| &mut Arc::make_mut(&mut child.spec).selector)
    }

    /// Whether what runs is canceled when it is stopped.
    pub fn stops_running(&self) -> bool {
        let rollout = self.rollout.as_ref();
        self.detail
            .stops_running(rollout.map(|rollout| &rollout.posted))
    }

    /// Whether its targets count as touched from its registration on, until their executions have ended.
    pub fn is_guarding(&self) -> bool {
        let guards = self.counts.keep_alive.is_some() || self.detail.undo.is_some();
        guards && self.mode == Mode::All
    }

    /// The longest time a command of this task can run; `None` without a time-out.
    pub fn longest_run(&self) -> Option<TimeSpan> {
        match self
            .detail
            .timeout
            .unwrap_or(Timeout::After(DEFAULT_TIMEOUT))
        {
            Timeout::After(duration) => {
                let undo = self.detail.undo.as_ref();
                let undo = undo.map_or(0, |undo| undo.longest().as_millis());
                let files = self.files.as_ref();
                let files = files.map_or(0, |files| files.longest().as_millis());
                let command = duration.as_millis() + self.kill_grace().as_millis() + files;
                Some(TimeSpan::from_millis(command + undo))
            }
            Timeout::Never => None,
        }
    }

    /// The time between TERM and KILL.
    pub fn kill_grace(&self) -> TimeSpan {
        self.detail.kill_grace.unwrap_or(DEFAULT_KILL_GRACE)
    }

    /// What a task with this spec takes of memory, in bytes, roughly: all its texts, and a little for each entry.
    pub fn kept_bytes(&self) -> usize {
        let detail = &self.detail;
        let lists = [&detail.argv, &detail.script_args].into_iter().flatten();
        let entries: usize = lists.map(Vec::len).sum();
        let entries = entries + detail.env.as_ref().map_or(0, |env| env.len());
        let retry = self.retry.as_ref().map_or(0, |retry| retry.interval.len());
        let pool = self.counts.keep_alive.as_ref();
        let pool = pool.and_then(|keep_alive| keep_alive.pool.as_ref());
        let rollout = self.rollout.as_ref().map(|rollout| &rollout.posted);
        let canary = rollout.and_then(|rollout| rollout.canary.as_ref());
        let steps = rollout.map_or(0, |rollout| rollout.steps.len());
        self.detail_bytes()
            + self.files.as_ref().map_or(0, |files| files.text_bytes())
            + detail.workspace.as_ref().map_or(0, String::len)
            + self.name.len()
            + self
                .limits
                .iter()
                .map(|name| name.len() + ENTRY_BYTES)
                .sum::<usize>()
            + self.unique.as_ref().map_or(0, |unique| unique.key.len())
            + self.about.as_ref().map_or(0, |about| about.kept_bytes())
            + self.selector.text().kept_bytes()
            + pool.map_or(0, |pool| pool.text().kept_bytes())
            + canary.map_or(0, String::len)
            + { self.probes.iter() }
                .map(|probe| {
                    // The pattern stands in what was posted, too.
                    let on = probe.on.as_ref().map_or(0, |on| 2 * on.text().kept_bytes());
                    probe.posted.text_bytes() + on + ENTRY_BYTES
                })
                .sum::<usize>()
            + { self.notify.iter() }
                .map(|it| it.url.len() + it.place.len() + (1 + it.entries()) * ENTRY_BYTES)
                .sum::<usize>()
            + (entries + retry + steps) * ENTRY_BYTES
            // A child may be forgotten before its parent.
            + { self.children.iter() }
                .map(|child| child.spec.kept_bytes() + ENTRY_BYTES)
                .sum::<usize>()
    }

    /// The beginning of the detail, and how many bytes of it are left out.
    pub fn shortened_detail(&self, limit: usize) -> (Arc<Detail>, u64) {
        let whole = self.detail_bytes();
        if whole <= limit {
            return (self.detail.clone(), 0);
        }
        let (mut short, mut left) = (Detail::clone(&self.detail), limit);
        let mut cut = |text: &mut String| {
            text.truncate(text.floor_char_boundary(left));
            text.shrink_to_fit();
            left -= text.len();
        };
        let texts = [
            &mut short.command,
            &mut short.script,
            &mut short.stdin,
            &mut short.stdin_base64,
        ];
        texts.into_iter().flatten().for_each(&mut cut);
        for list in [&mut short.argv, &mut short.script_args] {
            list.iter_mut().flatten().for_each(&mut cut);
            if let Some(list) = list {
                list.retain(|argument| !argument.is_empty());
            }
        }
        if let Some(env) = &mut short.env {
            env.values_mut().for_each(&mut cut);
            let mut names = left;
            env.retain(|name, value| {
                names = names.saturating_sub(name.len());
                !value.is_empty() && names > 0
            });
        }
        let shown = Spec {
            detail: Arc::new(short),
            ..self.clone()
        };
        let missing = whole - shown.detail_bytes();
        (shown.detail, missing as u64)
    }

    /// The size of the texts of the detail, in bytes.
    pub fn detail_bytes(&self) -> usize {
        let detail = &self.detail;
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        text(&detail.command)
            + text(&detail.stdin)
            + text(&detail.script)
            + text(&detail.stdin_base64)
            + detail.undo.as_ref().map_or(0, |undo| undo.text_bytes())
            + [&detail.argv, &detail.script_args]
                .into_iter()
                .flatten()
                .flatten()
                .map(String::len)
                .sum::<usize>()
            + detail
                .env
                .iter()
                .flatten()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
    }
}

fn narrowing(posted: &mut PostedTask) -> Result<Narrowing, String> {
    let instances = match posted.instances.take() {
        Some(instances) if instances.is_empty() => {
            return Err(
                "instances: must name at least one; leave it out to mean every machine".into(),
            );
        }
        instances => instances.into_iter().flatten().map(Arc::from).collect(),
    };
    let instances: BTreeSet<Arc<str>> = instances;
    if let Some(wrong) = instances.iter().find(|instance| !is_instance(instance)) {
        return Err(format!(
            "instances: each must be the whole instance of a machine as in the list of machines, got {}",
            shown(wrong)
        ));
    }
    Ok(Narrowing {
        exclude: posted.exclude.take(),
        tags: posted.machine_tags.take().unwrap_or_default(),
        hosts: posted.hosts.take(),
        instances,
    })
}

fn checked_counts(
    posted: &mut PostedTask,
    mode: Mode,
    limits: &TextLimits,
) -> Result<Counts, String> {
    let late_join = posted.late_join == Some(true);
    if let Some(Expect::Between { min, max }) = posted.expect {
        if min.is_none() && max.is_none() {
            return Err("expect: needs min or max".into());
        }
        if min.zip(max).is_some_and(|(min, max)| min > max) {
            return Err("expect: min must not be above max".into());
        }
    }
    let given = [
        ("maxTargets", posted.max_targets.is_some()),
        ("keepAlive", posted.keep_alive.is_some()),
    ];
    for (field, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
        if mode == Mode::Any {
            return Err(format!(
                "{field}: goes with mode \"all\" only, an \"any\" task runs once"
            ));
        }
        if late_join {
            return Err(format!(
                "{field}: does not go with lateJoin, by which any number of machines may join"
            ));
        }
    }
    if posted.max_targets.is_some_and(Share::is_zero) {
        return Err("maxTargets: must be above 0".into());
    }
    let keep_alive = posted.keep_alive.take().map(|keep_alive| {
        let pool = keep_alive.pool.as_deref();
        let pool = pool.map(|pool| Selector::checked_pattern("keepAlive.pool", pool, limits));
        Ok::<_, String>(KeepAlive {
            keep: keep_alive.keep,
            pool: pool.transpose()?,
        })
    });
    Ok(Counts {
        expect: posted.expect,
        max_targets: posted.max_targets,
        keep_alive: keep_alive.transpose()?,
    })
}

fn checked_rollout(
    posted: &mut PostedTask,
    mode: Mode,
    limits: &TextLimits,
) -> Result<Option<Box<Rollout>>, String> {
    let Some(StrictObject(rollout)) = posted.rollout.take() else {
        return Ok(None);
    };
    let canary = rollout.canary.as_deref();
    let canary = canary.map(|canary| Selector::checked_pattern("rollout.canary", canary, limits));
    let rollout = rollout::checked(rollout, mode, canary.transpose()?)?;
    Ok(Some(Box::new(rollout)))
}

/// Checks an id.
pub(super) fn check_id(id: &str) -> Result<(), String> {
    let good = !id.is_empty()
        && id.len() <= MAX_ID_BYTES
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    good.then_some(()).ok_or_else(|| {
        format!(
            "id: must be 1 to {MAX_ID_BYTES} letters, digits, \"-\" and \"_\", got {}",
            shown(id)
        )
    })
}

fn checked_spread(
    spread: Option<TimeSpan>,
    mode: Mode,
    is_rolled_out: bool,
) -> Result<Option<TimeSpan>, String> {
    let Some(spread) = spread else {
        return Ok(None);
    };
    if mode == Mode::Any {
        return Err("spread: goes with mode \"all\" only, an \"any\" task runs once".into());
    }
    if is_rolled_out {
        return Err(
            "spread: does not go with rollout, which says when each machine has its turn".into(),
        );
    }
    check_above_zero("spread", spread).map(Some)
}

fn checked_priority(priority: Option<i64>) -> Result<i8, String> {
    let priority = priority.unwrap_or(0);
    let known = i8::try_from(priority).ok();
    known
        .filter(|known| PRIORITIES.contains(known))
        .ok_or_else(|| {
            format!(
                "priority: must be {} to {}, got {priority}; the higher ones are handed out first",
                PRIORITIES.start(),
                PRIORITIES.end()
            )
        })
}

fn check_retry(retry: &Retry) -> Result<(), String> {
    if retry.max > MAX_RETRIES {
        return Err(format!(
            "retry.max: must be {MAX_RETRIES} at most, got {}",
            retry.max
        ));
    }
    check_count("retry.interval", retry.interval.len(), MAX_INTERVALS)?;
    if retry.on.is_empty() {
        return Err(
            "retry.on: must name at least one of \"failed\", \"timedOut\", \"lost\"".into(),
        );
    }
    Ok(())
}

pub(super) fn check_above_zero(field: &str, duration: TimeSpan) -> Result<TimeSpan, String> {
    if duration == TimeSpan::default() {
        return Err(format!(
            "{field}: must be above 0 (seconds, or a string such as \"10m\")"
        ));
    }
    Ok(duration)
}

pub(super) fn check_count(field: &str, count: usize, max: usize) -> Result<(), String> {
    if count > max {
        return Err(format!(
            "{field}: must have {max} entries at most, got {count}"
        ));
    }
    Ok(())
}

/// Checks a text that appears in tables, logs or paths: not empty, at most `max` bytes (the limit is set `by`
/// this), no control characters.
pub(super) fn check_text(field: &str, text: &str, max: usize, by: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err(format!("{field}: must not be empty"));
    }
    if text.len() > max {
        return Err(format!(
            "{field}: must have {max} bytes at most{by}, got {}",
            text.len()
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(format!(
            "{field}: must not contain control characters, got {}",
            shown(text)
        ));
    }
    Ok(())
}

/// The beginning of a text, quoted, for an error message.
pub(super) fn shown(text: &str) -> String {
    const SHOWN_CHARS: usize = 40;
    let cut: String = text.chars().take(SHOWN_CHARS).collect();
    if cut.len() < text.len() {
        format!("{cut:?}…")
    } else {
        format!("{cut:?}")
    }
}
