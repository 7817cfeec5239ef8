//! Tasks that replace the program of agents: what goes together with that, and which images they may take.
//!
//! Such a task has no command. Its images are blobs as those of files are: they are in the same index, and the same
//! rules say who may fetch them.

use super::files::Files;
use crate::wire::duration::TimeSpan;
use crate::wire::files::BlobId;
use crate::wire::task::{Detail, Mode, PostedTask};
use crate::wire::update::{MAX_PROBATION, Update, Version};

/// The most images: there are not that many architectures.
const MAX_IMAGES: usize = 16;
/// The longest name of an architecture, in bytes.
const MAX_ARCH_BYTES: usize = 32;
/// The shortest probation: a start and a poll over a slow link.
const MIN_PROBATION: TimeSpan = TimeSpan::from_secs(5);
/// How long a program may take to start, or the one before after it, beside its probation.
const STARTS: TimeSpan = TimeSpan::from_secs(30);

/// Checks the update of a posted task, and what does not go with it.
pub(super) fn checked(posted: &mut PostedTask) -> Result<Option<Update>, String> {
    let Some(update) = posted.update.take() else {
        return Ok(None);
    };
    let has_detail = { posted.detail.as_ref() }.is_some_and(|posted| posted.0 != Detail::default());
    let others = [
        ("detail", has_detail),
        ("files", has_any(&posted.files)),
        ("fetch", has_any(&posted.fetch)),
        ("probes", has_any(&posted.probes)),
        (
            "retry",
            { posted.retry.as_ref() }.is_some_and(|retry| retry.0.max > 0),
        ),
    ];
    if let Some((field, _)) = others.iter().find(|(_, is_there)| *is_there) {
        return Err(format!(
            "{field}: does not go with update, such a task only replaces the program of agents"
        ));
    }
    if posted.mode == Some(Mode::Any) {
        return Err("mode: must be \"all\" with update; narrow machinePattern for a few".into());
    }
    let update = update.0;
    check(&update).map_err(|why| format!("update.{why}"))?;
    Ok(Some(update))
}

/// Whether a posted task replaces the program of agents, or one that begins with its end does.
pub(super) fn has_update(posted: &PostedTask) -> bool {
    let children = [&posted.on_success, &posted.on_failure, &posted.on_end];
    let mut children = children.into_iter().flatten();
    posted.update.is_some() || children.any(|child| has_update(&child.0))
}

fn has_any<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_some_and(|list| !list.is_empty())
}

fn check(update: &Update) -> Result<(), String> {
    (update.version.parse::<Version>()).map_err(|why| format!("version: {why}"))?;
    if update.images.is_empty() || update.images.len() > MAX_IMAGES {
        return Err(format!(
            "images: must be 1 to {MAX_IMAGES}, each of an architecture such as x86_64, got {}",
            update.images.len()
        ));
    }
    for (arch, sha256) in &update.images {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if arch.is_empty() || arch.len() > MAX_ARCH_BYTES || !arch.bytes().all(is_name) {
            return Err(format!(
                "images: expected names as `uname -m` prints them, such as x86_64, got {}",
                super::spec::shown(arch)
            ));
        }
        { sha256.parse::<BlobId>() }.map_err(|why| format!("images.{arch}: {why}"))?;
    }
    match update.probation {
        Some(span) if !(MIN_PROBATION..=MAX_PROBATION).contains(&span) => Err(format!(
            "probation: must be from {MIN_PROBATION} to {MAX_PROBATION}, got {span}"
        )),
        _ => Ok(()),
    }
}

impl Files {
    /// The images of an update.
    pub(super) fn images(&self) -> impl Iterator<Item = (&String, &String)> {
        self.update.iter().flat_map(|update| &update.images)
    }

    /// The architecture of an image.
    pub fn arch_of(&self, image: BlobId) -> Option<&str> {
        let image = image.to_string();
        let mut images = self.images();
        images.find_map(|(arch, sha256)| (*sha256 == image).then_some(&**arch))
    }

    /// How long an update may take once everything is prepared: the new program, then the old one again.
    pub(super) fn longest_probation(&self) -> TimeSpan {
        let update = self.update.as_ref();
        let longest = update.map_or(0, |update| {
            update.probation().as_millis() + 2 * STARTS.as_millis()
        });
        TimeSpan::from_millis(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::{Batch, ScheduleKey};
    use serde_json::json;

    fn checked_with(change: serde_json::Value) -> Result<Option<Update>, String> {
        let mut task =
            json!({"update": {"version": "0.2.0", "images": {"x86_64": "ab".repeat(32)}}});
        let fields = change.as_object().unwrap().clone();
        task.as_object_mut().unwrap().extend(fields);
        let posted = serde_json::from_value::<crate::wire::strict_object::Posted<PostedTask>>(task);
        checked(&mut posted.map_err(|why| why.to_string())?.0)
    }

    #[test]
    fn an_update_goes_alone_and_names_what_can_be() {
        assert!(checked_with(json!({})).unwrap().is_some());
        let again = json!({"detail": {"result": []}, "rollout": {"steps": [1]}, "files": []});
        assert!(
            checked_with(again).is_ok(),
            "an answered task can be posted again"
        );
        let hash = "ab".repeat(32);
        let with = |version: &str, arch: &str, sha256: &str| json!({"update": {"version": version, "images": {arch: sha256}}});
        let slow = json!({"version": "1.0.0", "images": {"x86_64": hash}, "probation": "61s"});
        for (change, word) in [
            (json!({"detail": {"command": "ls"}}), "detail:"),
            (json!({"fetch": [{"path": "x"}]}), "fetch:"),
            (json!({"retry": {"max": 1}}), "retry:"),
            (json!({"mode": "any"}), "mode:"),
            (with("new", "x86_64", &hash), "update.version:"),
            (with("1.0.0", "x86-64", &hash), "update.images:"),
            (with("1.0.0", "x86_64", "ab"), "update.images.x86_64:"),
            (
                json!({"update": {"version": "1.0.0", "images": {}}}),
                "update.images:",
            ),
            (json!({"update": slow}), "update.probation:"),
            (json!({"update": {"version": "1.0.0"}}), "images"),
            (
                json!({"update": {"version": "1.0.0", "images": {}, "arch": 1}}),
                "arch",
            ),
        ] {
            let why = checked_with(change.clone()).unwrap_err();
            assert!(why.contains(word), "{change}: {why}");
        }
    }

    #[test]
    fn an_older_program_does_not_open_a_file_with_a_schedule_of_updates() {
        let version = |task: serde_json::Value| {
            let posted = json!({"cron": "@daily", "task": task}).to_string();
            let posted = serde_json::from_str(&posted).unwrap();
            let mut batch = Batch::default();
            batch.schedules.insert(ScheduleKey(1), Some(posted));
            batch.reader_version()
        };
        let update = json!({"update": {"version": "0.2.0", "images": {"x86_64": "ab".repeat(32)}}});
        let command = json!({"detail": {"command": "true"}});
        assert_eq!((version(update.clone()), version(command.clone())), (6, 5));
        for field in ["onSuccess", "onFailure", "onEnd"] {
            let with = |child: &serde_json::Value| version(json!({field: child}));
            assert_eq!((with(&update), with(&command)), (6, 5), "{field}");
        }
        let per_machine = |is: bool| version(json!({"after": [{"task": "p", "perMachine": is}]}));
        assert_eq!((per_machine(true), per_machine(false)), (6, 5));
    }
}
