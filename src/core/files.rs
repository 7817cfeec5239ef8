//! Files of tasks: what a task may ask for, which tasks need which blob, and which agent may take and bring what.
//!
//! The bytes are elsewhere; a task names them by their hash. Which tasks name a blob is an index over the tasks and
//! their results, rebuilt with them. To add a field of a file: `wire::files`, its check here.

use super::spec::{check_count, shown};
use super::task::{Execution, TaskData};
use super::{Core, ExecutionKey, Place, TaskKey, Time};
use crate::wire::agent::{AttemptId, Feature};
use crate::wire::duration::TimeSpan;
use crate::wire::files::{BlobId, Fetch, FetchedFile, File};
use crate::wire::update::Update;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The most files that a task lays down, and the most that it hands back.
pub const MAX_FILES: usize = 16;
/// The longest path, in bytes: Linux takes no longer one (`PATH_MAX`).
const MAX_PATH_BYTES: usize = 4_095;
/// The longest name, in bytes: no file system has longer ones.
const MAX_NAME_BYTES: usize = 255;
/// The most leading parts of names that are left out.
const MAX_STRIP: u32 = 100;
/// How long laying files down may take unless the task says otherwise.
const DEFAULT_TIMEOUT: TimeSpan = TimeSpan::from_secs(600);
/// The longest that it may take.
const MAX_TIMEOUT: TimeSpan = TimeSpan::from_secs(24 * 3_600);

/// The files of a task, checked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Files {
    /// What it lays down before its command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<File>,
    /// How long that may take, and handing back again.
    pub timeout: TimeSpan,
    /// What it hands back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fetch: Vec<Fetch>,
    /// The program that agents are to run from now on; then it has nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<Update>,
}

/// A file that an agent wants to hand back.
#[derive(Debug, Clone, Copy)]
pub struct HandBack<'a> {
    /// The instance of the agent.
    pub instance: &'a str,
    /// The execution.
    pub execution: &'a str,
    /// The number of its attempt.
    pub attempt: u32,
    /// The path, as the task has it.
    pub path: &'a str,
}

impl Files {
    /// Checks what was posted; `None` if the task has nothing to do with files.
    pub fn checked(
        files: Vec<File>,
        timeout: Option<TimeSpan>,
        fetch: Vec<Fetch>,
        update: Option<Update>,
    ) -> Result<Option<Box<Self>>, String> {
        if files.is_empty() && fetch.is_empty() && update.is_none() {
            return match timeout {
                Some(_) => Err("filesTimeout: goes with files, fetch or update only".into()),
                None => Ok(None),
            };
        }
        check_count("files", files.len(), MAX_FILES)?;
        check_count("fetch", fetch.len(), MAX_FILES)?;
        for (n, file) in files.iter().enumerate() {
            check_file(file).map_err(|why| format!("files[{n}].{why}"))?;
        }
        for (n, one) in fetch.iter().enumerate() {
            check_path(&one.path).map_err(|why| format!("fetch[{n}].path: {why}"))?;
            if one.max() == 0 {
                return Err(format!("fetch[{n}].max: must be above 0"));
            }
            if fetch[..n].iter().any(|other| other.path == one.path) {
                return Err(format!("fetch[{n}].path: stands there twice"));
            }
        }
        let timeout = timeout.unwrap_or(DEFAULT_TIMEOUT);
        if timeout == TimeSpan::default() || timeout > MAX_TIMEOUT {
            return Err(format!(
                "filesTimeout: must be above 0 and {MAX_TIMEOUT} at most"
            ));
        }
        Ok(Some(Box::new(Files {
            files,
            timeout,
            fetch,
            update,
        })))
    }

    /// The blobs that it needs, each once.
    pub fn blobs(&self) -> Vec<BlobId> {
        let mut ids: Vec<BlobId> = { self.named() }
            .filter_map(|sha256| sha256.parse().ok())
            .collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// The hashes of what agents may fetch, as often as they stand there.
    pub fn named(&self) -> impl Iterator<Item = &String> {
        let files = self.files.iter().map(|file| &file.sha256);
        files.chain(self.images().map(|(_, sha256)| sha256))
    }

    /// What an agent must be able to do.
    pub fn needs(&self) -> impl Iterator<Item = Feature> + use<> {
        let unpacks = self.files.iter().any(|file| file.unpack.is_some());
        let needed = [
            (!self.files.is_empty(), Feature::Files),
            (unpacks, Feature::Unpack),
            (!self.fetch.is_empty(), Feature::Fetch),
            (self.update.is_some(), Feature::Update),
        ];
        let needed = needed.into_iter().filter(|(is_needed, _)| *is_needed);
        needed.map(|(_, feature)| feature)
    }

    /// How long all of it may take besides the command.
    pub fn longest(&self) -> TimeSpan {
        let phases = [
            !self.files.is_empty() || self.update.is_some(),
            !self.fetch.is_empty(),
        ];
        let phases = phases.into_iter().filter(|has| *has).count() as u64;
        let phases = self.timeout.as_millis().saturating_mul(phases);
        TimeSpan::from_millis(phases.saturating_add(self.longest_probation().as_millis()))
    }

    /// The size of its texts, in bytes, and of what stands around them.
    pub fn text_bytes(&self) -> usize {
        /// Of a file in memory or in JSON, besides its texts.
        const ENTRY_BYTES: usize = 200;
        let files = self.files.iter().map(|file| {
            let texts = [&file.name, &file.path, &file.mode];
            let texts = texts.into_iter().flatten().map(String::len);
            ENTRY_BYTES + file.sha256.len() + texts.sum::<usize>()
        });
        let fetch = self.fetch.iter().map(|one| ENTRY_BYTES + one.path.len());
        let images = self.images();
        let images = images.map(|(arch, sha256)| ENTRY_BYTES + arch.len() + sha256.len());
        files.chain(fetch).chain(images).sum()
    }
}

fn check_file(file: &File) -> Result<(), String> {
    file.sha256
        .parse::<BlobId>()
        .map_err(|why| format!("sha256: {why}"))?;
    match (&file.path, &file.name) {
        (Some(_), Some(_)) => return Err("name: does not go with path".into()),
        (None, None) => return Err("path: is needed, or a name".into()),
        (Some(path), None) => check_path(path).map_err(|why| format!("path: {why}"))?,
        (None, Some(name)) => {
            let is_good = !matches!(name.as_str(), "" | "." | "..")
                && name.len() <= MAX_NAME_BYTES
                && !name.chars().any(|c| c == '/' || c.is_control());
            if !is_good {
                return Err(format!(
                    "name: must be the name of a file, {MAX_NAME_BYTES} bytes at most, got {}",
                    shown(name)
                ));
            }
        }
    }
    if let Some(mode) = &file.mode {
        let digits = mode.len() <= 4 && mode.bytes().all(|b| (b'0'..=b'7').contains(&b));
        let bits = u32::from_str_radix(mode, 8).ok().filter(|_| digits);
        match bits {
            Some(0..=0o777) => {}
            Some(_) => return Err("mode: setuid, setgid and sticky are not laid down".into()),
            None => {
                return Err(format!(
                    "mode: must be octal digits such as 0755, got {}",
                    shown(mode)
                ));
            }
        }
    }
    match (file.unpack, file.strip) {
        (None, Some(_)) => return Err("strip: goes with unpack only".into()),
        (Some(_), Some(strip)) if strip > MAX_STRIP => {
            return Err(format!("strip: must be {MAX_STRIP} at most"));
        }
        _ => {}
    }
    if file.unpack.is_some() && file.in_place {
        return Err("inPlace: does not go with unpack".into());
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() || path.len() > MAX_PATH_BYTES || path.contains('\0') {
        return Err(format!(
            "must be 1 to {MAX_PATH_BYTES} bytes without NUL, got {}",
            shown(path)
        ));
    }
    Ok(())
}

/// How often each task names a blob: its spec once for each file and image, each latest attempt once for each file it brought.
pub(super) type BlobIndex = BTreeMap<(BlobId, TaskKey), u32>;

/// The blobs that a task names, as often as it does.
pub(super) fn blobs_of(task: &TaskData) -> impl Iterator<Item = BlobId> {
    let files = task.spec.files.iter().flat_map(|files| files.named());
    let brought = task.executions.iter().flat_map(brought_by);
    files
        .chain(brought)
        .filter_map(|sha256| sha256.parse().ok())
}

fn brought_by(execution: &Execution) -> impl Iterator<Item = &String> {
    let files = execution.current.files.iter().flat_map(|files| &**files);
    files.map(|file| &file.sha256)
}

impl Core {
    /// Enters the blobs of a task that was added or restored.
    pub(super) fn add_blobs(&mut self, key: TaskKey) {
        if let Some(task) = self.tasks.get(&key) {
            for id in blobs_of(task) {
                *self.blobs.entry((id, key)).or_default() += 1;
            }
        }
    }

    /// Takes out those of a task that was removed.
    pub(super) fn forget_blobs(&mut self, key: TaskKey, task: &TaskData) {
        blobs_of(task).for_each(|id| self.forget_blob(id, key));
    }

    fn forget_blob(&mut self, id: BlobId, key: TaskKey) {
        if let Some(count) = self.blobs.get_mut(&(id, key)) {
            *count -= 1;
            if *count == 0 {
                self.blobs.remove(&(id, key));
            }
        }
    }

    /// Keeps what an attempt has brought, as far as its task asks for it.
    pub(super) fn keep_brought(&mut self, key: ExecutionKey, brought: &[FetchedFile]) {
        let task = self.task(key.task);
        let Some(asked) = &task.spec.files else {
            return;
        };
        let is_asked = |file: &&FetchedFile| {
            let one = asked.fetch.iter().find(|one| one.path == file.path);
            one.is_some() && file.sha256.parse::<BlobId>().is_ok()
        };
        let files: Box<[FetchedFile]> = { brought.iter() }
            .filter(is_asked)
            .take(MAX_FILES)
            .cloned()
            .collect();
        if files.is_empty() {
            return;
        }
        let ids: Vec<BlobId> = { files.iter() }
            .filter_map(|file| file.sha256.parse().ok())
            .collect();
        self.drop_brought(key);
        self.execution_mut(key).current.files = Some(files);
        for id in ids {
            *self.blobs.entry((id, key.task)).or_default() += 1;
        }
    }

    /// Drops what an attempt has brought: another follows it.
    pub(super) fn drop_brought(&mut self, key: ExecutionKey) {
        if self.execution(key).current.files.is_none() {
            return;
        }
        let files = self.execution_mut(key).current.files.take();
        for file in files.iter().flat_map(|files| &**files) {
            if let Ok(id) = file.sha256.parse() {
                self.forget_blob(id, key.task);
            }
        }
    }

    /// Checks the index against the tasks.
    pub(super) fn check_blobs(&self) -> Result<(), String> {
        let mut counted = BlobIndex::new();
        for (key, task) in &self.tasks {
            for id in blobs_of(task) {
                *counted.entry((id, *key)).or_default() += 1;
            }
        }
        match counted == self.blobs {
            true => Ok(()),
            false => Err(format!(
                "the index of blobs has {} entries, the tasks name {}",
                self.blobs.len(),
                counted.len()
            )),
        }
    }

    /// When the last task that names a blob ended: `None` if none names it, `Some(None)` if one has not ended.
    pub fn blob_needed_until(&self, id: BlobId) -> Option<Option<Time>> {
        let ends = self.tasks_naming(id).map(|(_, task)| task.finished_at);
        // One that has not ended counts for more than any that has.
        ends.max_by_key(|end| end.map_or((1, Time(0)), |end| (0, end)))
    }

    /// The ids of tasks that name a blob, so many at most, those that have not ended first; and whether one has not.
    pub fn tasks_with_blob(&self, id: BlobId, most: usize) -> (Vec<Arc<str>>, bool) {
        let ids = |ended: bool| {
            let tasks = self.tasks_naming(id);
            let tasks = tasks.filter(move |(_, task)| task.finished_at.is_some() == ended);
            tasks.map(|(_, task)| task.id.clone()).take(most)
        };
        let mut tasks: Vec<Arc<str>> = ids(false).collect();
        let needed = !tasks.is_empty();
        tasks.extend(ids(true).take(most - tasks.len()));
        (tasks, needed)
    }

    fn tasks_naming(&self, id: BlobId) -> impl Iterator<Item = (TaskKey, &super::Task)> {
        let naming = self.blobs.range((id, TaskKey(0))..=(id, TaskKey(u64::MAX)));
        naming.filter_map(|((_, key), _)| Some((*key, self.tasks.get(key)?)))
    }

    /// Whether an instance was handed an attempt whose task lays this blob down.
    pub fn may_take_blob(&self, instance: &str, id: BlobId) -> bool {
        let Some(machine) = self.instances.get(instance) else {
            return false;
        };
        let text = id.to_string();
        let names = |key: &ExecutionKey| {
            let files = self.task(key.task).spec.files.iter();
            let mut named = files.flat_map(|files| files.named());
            named.any(|sha256| *sha256 == text)
        };
        self.machine(*machine).active.iter().any(names)
    }

    /// How much of a file an instance may bring, in bytes; `None` if no attempt that it has asks for it.
    pub fn may_hand_back(&self, asked: &HandBack<'_>) -> Option<u64> {
        let id = AttemptId {
            execution: asked.execution.to_owned(),
            attempt: asked.attempt,
        };
        let machine = *self.instances.get(asked.instance)?;
        let key = self.find(&id.execution)?;
        let execution = self.execution(key);
        if execution.place != Place::Active(machine) || execution.current.number != id.attempt {
            return None;
        }
        let files = self.task(key.task).spec.files.as_ref()?;
        let one = files.fetch.iter().find(|one| one.path == asked.path)?;
        Some(one.max())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn checked(mut file: Value) -> Result<Option<Box<Files>>, String> {
        file["sha256"] = json!("ab".repeat(32));
        file["size"] = json!(1);
        let file = serde_json::from_value(file).map_err(|why| why.to_string())?;
        Files::checked(vec![file], None, Vec::new(), None)
    }

    #[test]
    fn a_file_means_one_thing_or_is_refused() {
        for good in [
            json!({"path": "/tmp/x", "mode": "0755"}),
            json!({"name": "x", "remove": true, "ifExists": "keep"}),
            json!({"path": "x", "unpack": "tar.gz", "strip": 1}),
            json!({"path": "x", "mode": "644", "inPlace": true}),
        ] {
            assert!(checked(good.clone()).is_ok(), "{good}");
        }
        for (bad, word) in [
            (json!({}), "files[0].path"),
            (json!({"path": "x", "name": "y"}), "files[0].name"),
            (json!({"path": ""}), "files[0].path"),
            (json!({"path": "a\u{0}b"}), "files[0].path"),
            (json!({"name": "a/b"}), "files[0].name"),
            (json!({"name": ".."}), "files[0].name"),
            (json!({"path": "x", "mode": "4755"}), "setuid"),
            (json!({"path": "x", "mode": "0x1"}), "files[0].mode"),
            (json!({"path": "x", "mode": "9"}), "files[0].mode"),
            (json!({"path": "x", "mode": "+7"}), "files[0].mode"),
            (json!({"path": "x", "strip": 1}), "files[0].strip"),
            (
                json!({"path": "x", "unpack": "tar", "strip": 101}),
                "files[0].strip",
            ),
            (
                json!({"path": "x", "unpack": "tar", "inPlace": true}),
                "files[0].inPlace",
            ),
            (json!({"path": "x", "unpack": "zip"}), "zip"),
            (json!({"path": "x", "more": 1}), "more"),
        ] {
            let why = checked(bad.clone()).unwrap_err();
            assert!(why.contains(word), "{bad}: {why}");
        }
        let fetch = |path: &str| Fetch {
            path: path.into(),
            max: None,
            missing_ok: false,
        };
        let twice = Files::checked(Vec::new(), None, vec![fetch("a"), fetch("a")], None);
        assert!(twice.unwrap_err().contains("fetch[1].path"));
        let many = Files::checked(Vec::new(), None, vec![fetch("a"); MAX_FILES + 1], None);
        assert!(many.unwrap_err().contains("fetch"));
        assert!(
            Files::checked(Vec::new(), Some(TimeSpan::from_secs(1)), Vec::new(), None).is_err()
        );
        let one = Files::checked(Vec::new(), None, vec![fetch("a")], None)
            .unwrap()
            .unwrap();
        assert_eq!(one.longest(), DEFAULT_TIMEOUT);
    }
}
