//! The API's answer about a task, made of its data.

use super::task::{Attempt, Execution, PastAttempt, Target, Task, execution_id, timestamp};
use crate::wire::after::Outcome;
use crate::wire::agent::Stream;
use crate::wire::task::{self as wire, ExecutionState, TaskState};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// How many of the instances that a task names are shown in a list.
const LISTED_INSTANCES: usize = 10;

impl Task {
    fn status(&self) -> u8 {
        match self.state() {
            TaskState::Scheduled | TaskState::Blocked | TaskState::Waiting => 0,
            TaskState::Running if self.counts.held == self.counts.total() => 0,
            TaskState::Running if self.executions.iter().all(|e| e.target.is_none()) => 0,
            TaskState::Running => 1,
            TaskState::Succeeded => 2,
            TaskState::Partial
            | TaskState::Failed
            | TaskState::Canceled
            | TaskState::Expired
            | TaskState::Skipped => 3,
        }
    }

    fn msg(&self) -> String {
        if let Some(msg) = self.waiting_msg() {
            return msg;
        }
        match self.state() {
            TaskState::Waiting => {
                "no machine matches yet; it goes to the first that appears within its ttl".into()
            }
            TaskState::Running if self.is_gated() => "waits until its probes have passed".into(),
            TaskState::Running if self.counts.unfinished() == 0 => {
                "open to machines that appear within its ttl".into()
            }
            TaskState::Expired if self.executions.is_empty() => {
                "no machine matched within its ttl".into()
            }
            _ if self.late_join_full => format!(
                "lateJoin ended: limit; it has {} executions, a task takes half of --max-executions at most",
                self.executions.len()
            ),
            _ => String::new(),
        }
    }

    /// The task as the API answers it, with about `output_limit` bytes of output, of earlier attempts too. Takes
    /// time in proportion to the output: must not be called under the lock.
    pub fn answer(&self, output_limit: usize) -> wire::Task<Cow<'_, str>> {
        self.listed(output_limit, usize::MAX)
    }

    /// The same, with the first `detail_limit` bytes of its detail.
    pub fn listed(&self, output_limit: usize, detail_limit: usize) -> wire::Task<Cow<'_, str>> {
        let attempts = self.executions.iter().flat_map(|e| {
            let past = e.past.iter().map(|past| &past.attempt);
            past.chain([&*e.current])
        });
        let outputs = attempts.filter_map(|attempt| attempt.output.as_ref());
        let share = fair_share(output_limit, outputs.map(|output| output.kept()).collect());
        let result: Vec<wire::Execution<Cow<'_, str>>> = self
            .executions
            .iter()
            .zip(0..)
            .map(|(e, n)| {
                let mut answer = e.answer(&self.prefix, n, share);
                let wait = self
                    .execution_waits
                    .as_ref()
                    .and_then(|waits| waits.get(&n));
                if let Some(wait) = wait.filter(|_| answer.attempt.msg.is_empty()) {
                    answer.attempt.msg = wait.clone().into();
                }
                answer
            })
            .collect();
        let mut finished: Vec<usize> = (0..result.len())
            .filter(|n| self.executions[*n].state.is_terminal())
            .collect();
        finished.sort_unstable_by_key(|n| (self.executions[*n].current.finished_at, *n));
        let lines = finished
            .iter()
            .flat_map(|n| result[*n].attempt.output.iter().cloned())
            .collect();
        let spec = &self.spec;
        let files = spec.files.as_deref();
        let selector = spec.selector.text();
        let narrowing = selector.narrowing.as_deref();
        let about = spec.about.as_deref();
        let all_instances = narrowing.map_or(0, |n| n.instances.len());
        let instances = match detail_limit {
            usize::MAX => usize::MAX,
            _ => LISTED_INSTANCES,
        };
        let (detail, truncated_bytes) = spec.shortened_detail(detail_limit);
        let is_whole = detail_limit == usize::MAX;
        wire::Task {
            id: Cow::from(&*self.id),
            name: Cow::from(&*spec.name),
            kind: 0,
            status: self.status(),
            state: self.state(),
            msg: match self.waits() {
                Some(waits) => waits.msg.to_string(),
                None => self.msg(),
            },
            created_at: timestamp(self.created_at),
            finished_at: self.finished_at.map(timestamp),
            machine_pattern: Cow::from(&*selector.pattern),
            exclude: narrowing.and_then(|n| n.exclude.as_deref()).map(Cow::from),
            machine_tags: narrowing.map_or_else(BTreeMap::new, |n| n.tags.clone()),
            hosts: narrowing.and_then(|n| n.hosts.as_deref()).map(Cow::from),
            instances: { narrowing.into_iter() }
                .flat_map(|n| n.instances.iter().map(|instance| Cow::from(&**instance)))
                .take(instances)
                .collect(),
            truncated_instances: all_instances.saturating_sub(instances) as u32,
            expect: spec.counts.expect,
            max_targets: spec.counts.max_targets,
            keep_alive: spec.counts.keep_alive.as_ref().map(|it| it.posted()),
            rollout: spec.rollout.as_ref().map(|rollout| rollout.posted.clone()),
            rollout_state: self.rollout_state(),
            stopped_by: self.stopped_by(),
            priority: spec.priority,
            unique_key: { spec.unique.as_ref() }.map(|unique| Cow::from(&*unique.key)),
            on_duplicate: spec.unique.as_ref().map(|unique| unique.on_duplicate),
            limits: spec.limits.iter().map(|name| Cow::from(&**name)).collect(),
            spread: spec.spread,
            position: self.waits().and_then(|waits| waits.position),
            replace_running: spec.unique.as_ref().is_some_and(|it| it.replace_running),
            probes: self.answered_probes(is_whole),
            mode: spec.mode,
            ttl: spec.ttl,
            late_join: spec.late_join,
            retry: spec.retry.as_deref().cloned(),
            group: about
                .and_then(|about| about.group.as_deref())
                .map(Cow::from),
            tags: about.map_or_else(BTreeMap::new, |about| about.tags.clone()),
            description: { about.and_then(|about| about.description.as_deref()) }.map(Cow::from),
            result_ttl: spec.result_ttl,
            failure_ttl: spec.failure_ttl,
            rerun_of: self.rerun_of.as_deref().map(Cow::from),
            schedule: { spec.scheduled.as_ref() }.map(|of| Cow::from(&*of.schedule)),
            scheduled_for: { spec.scheduled.as_ref() }.map(|of| timestamp(of.at)),
            start_at: { self.waiting.as_ref() }
                .and_then(|waiting| waiting.start_at)
                .map(timestamp),
            after: self.answered_after(),
            blocked_ttl: self.answered_blocked_ttl(),
            parent: self.parent_id().map(Cow::from),
            on_success: self.answered_child(Outcome::Succeeded, is_whole),
            on_failure: self.answered_child(Outcome::Failed, is_whole),
            on_end: self.answered_child(Outcome::Ended, is_whole),
            children: self.answered_children(),
            matched: self.matched,
            spared: self.spared,
            assignees: self.labels().map(|label| Cow::from(&**label)).collect(),
            counts: self.counts,
            undos: self.has_undo().then_some(self.undos),
            clean: self.has_undo().then(|| self.dirty() == 0),
            files: files.map_or_else(Vec::new, |files| files.files.clone()),
            files_timeout: files.map(|files| files.timeout),
            fetch: files.map_or_else(Vec::new, |files| files.fetch.clone()),
            update: files.and_then(|files| files.update.clone()),
            notify: spec.notify.iter().map(|it| it.posted()).collect(),
            notifications: match detail_limit {
                usize::MAX => self.notifications.iter().map(|it| it.answer()).collect(),
                _ => Vec::new(),
            },
            detail: wire::AnsweredDetail {
                detail,
                truncated_bytes,
                result: lines,
            },
            result,
        }
    }

    /// The size of the answer without the output, in bytes, roughly.
    pub fn bytes_without_output(&self) -> usize {
        // Rather too large: a buffer that has to grow is copied.
        const TASK: usize = 800;
        const EXECUTION: usize = 400;
        TASK + EXECUTION * self.executions.len() + self.spec.kept_bytes()
    }

    /// The size of the answer in bytes, roughly, with all of the output that one answer shows.
    pub fn answer_bytes(&self) -> usize {
        // As text of the stream, as lines of the execution, as lines of the task.
        const SHOWN: usize = 3;
        self.bytes_without_output() + SHOWN * self.output_bytes
    }
}

impl Execution {
    fn answer(&self, prefix: &str, n: u32, output_limit: usize) -> wire::Execution<Cow<'_, str>> {
        let [machine_label, instance, host] = target_words(self.target.as_deref());
        let status = match self.state {
            ExecutionState::Succeeded => 0,
            state if state.is_terminal() => 2,
            _ => 1,
        };
        wire::Execution {
            execution: execution_id(prefix, n).into(),
            machine_label,
            instance,
            host,
            status,
            state: self.state,
            phase: self
                .current
                .phase
                .filter(|_| self.state == ExecutionState::Running),
            attempt: self.current.answer(output_limit),
            attempts: self
                .past
                .iter()
                .map(|past| past.answer(output_limit))
                .collect(),
        }
    }
}

impl PastAttempt {
    fn answer(&self, output_limit: usize) -> wire::PastAttempt<Cow<'_, str>> {
        let [machine_label, instance, _] = target_words(self.target.as_deref());
        wire::PastAttempt {
            state: self.state,
            machine_label,
            instance,
            attempt: self.attempt.answer(output_limit),
        }
    }
}

impl Attempt {
    fn answer(&self, output_limit: usize) -> wire::Attempt<Cow<'_, str>> {
        let mut answer = wire::Attempt {
            attempt: self.number,
            exit_code: self.exit_code,
            signal: self.signal.as_deref().map(Cow::from),
            msg: Cow::from(&*self.msg),
            started_at: self.started_at.map(timestamp),
            finished_at: self.finished_at.map(timestamp),
            duration_ms: self.duration_ms,
            undo: self.undo.as_ref().map(|undo| undo.answer()),
            files: self
                .files
                .iter()
                .flat_map(|files| &**files)
                .cloned()
                .collect(),
            ..Default::default()
        };
        if let Some(output) = &self.output {
            let (out, err) = (
                output.stream(Stream::Stdout).kept(),
                output.stream(Stream::Stderr).kept(),
            );
            let fits = out + err <= output_limit;
            let limit = if fits { usize::MAX } else { output_limit / 2 };
            let (stdout, stdout_missing) = output.text(Stream::Stdout, limit);
            let (stderr, stderr_missing) = output.text(Stream::Stderr, limit);
            answer.output = output.lines(limit);
            answer.truncated_bytes = stdout_missing + stderr_missing;
            answer.missing_bytes = output.truncated();
            (answer.stdout, answer.stderr) = (stdout, stderr);
        }
        answer
    }
}

/// The most bytes of each part, so that the sum is within the limit: what small parts leave is shared by the others.
fn fair_share(limit: usize, mut sizes: Vec<usize>) -> usize {
    sizes.sort_unstable();
    let (mut left, mut parts) = (limit, sizes.len());
    for size in sizes {
        let share = left / parts;
        if size > share {
            return share;
        }
        left -= size;
        parts -= 1;
    }
    usize::MAX
}

fn target_words(target: Option<&Target>) -> [Cow<'_, str>; 3] {
    let words = target.map_or([""; 3], |t| [&*t.label, &*t.instance, &*t.host]);
    words.map(Cow::from)
}

#[cfg(test)]
mod tests {
    use super::fair_share;

    #[test]
    fn what_small_parts_leave_is_shared_by_the_others() {
        assert_eq!(fair_share(100, vec![]), usize::MAX);
        assert_eq!(fair_share(100, vec![60, 40]), usize::MAX);
        assert_eq!(fair_share(100, vec![1_000, 10, 1_000]), 45);
        assert_eq!(fair_share(100, vec![1_000; 200]), 0);
    }
}
