//! `/metrics`: counters and gauges in the text format of Prometheus.

use super::call::{Call, Handled};
use crate::core::Histogram;
use crate::server::http::{Answer, Edge};
use crate::server::log_queue;
use crate::wire::task::ExecutionState;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// The format's name.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// `GET /metrics` of a server that stands by.
#[cfg(feature = "db")]
pub fn of_standby(edge: &Edge, differences: u64) -> Answer {
    let mut page = Page(String::new());
    page.leads(false);
    page.forwarded(edge);
    page.single(
        "sidebike_differing_settings",
        "gauge",
        "How many of tokens, limits and binaries differ from those of the server that leads.",
        differences,
    );
    Answer::new(200, CONTENT_TYPE, page.0.into_bytes())
}

/// `GET /metrics`.
pub fn metrics(call: Call<'_>) -> Handled {
    let server = call.server;
    let (machines, tasks, mut executions, figures, output_bytes, detail_bytes, debts, more) =
        server.store.ask(|core| {
            let figures = core.stats().clone();
            (
                core.machines_by_state(),
                core.tasks_by_state(),
                core.executions_by_state(),
                figures,
                core.output_bytes(),
                core.detail_bytes(),
                core.debts(),
                (
                    core.pending_notifications(),
                    core.notify_stats(),
                    core.suspensions().len(),
                ),
            )
        });
    let oldest = server.store.look(|core, now| core.oldest_queued(now));
    let limits = server.store.ask(|core| core.limits());
    let schedules = server.store.look(|core, now| {
        let by_outcome: Vec<_> = core.firings_by_outcome().collect();
        (
            core.schedules_by_state(),
            by_outcome,
            core.schedules_due(now),
        )
    });
    let mut page = Page(String::new());
    page.leads(!server.store.is_mute());
    let shared = server.shared.as_ref();
    if shared.is_some() {
        page.forwarded(&server.edge);
    }
    if let Some(is_synchronous) = shared.and_then(|shared| (shared.is_synchronous)()) {
        page.single(
            "sidebike_db_synchronous",
            "gauge",
            "Whether acknowledged commits survive a failover of PostgreSQL.",
            is_synchronous.into(),
        );
        page.single(
            "sidebike_db_heals_total",
            "counter",
            "How often PostgreSQL had lost what it had saved, and everything was written anew.",
            server.store.heals(),
        );
        let (has_lost, adopted) = server
            .store
            .ask(|core| (core.has_found_loss(), core.adopted()));
        page.single(
            "sidebike_db_losses_total",
            "counter",
            "Whether agents have seen commits that PostgreSQL had lost when this server loaded it.",
            has_lost.into(),
        );
        page.single(
            "sidebike_adopted_total",
            "counter",
            "Attempts that agents ran although PostgreSQL had lost that they were handed out.",
            adopted,
        );
    }
    let classes = (1..=5).zip(server.requests.by_class());
    page.family(
        "sidebike_requests_total",
        "counter",
        "Requests answered, by class of HTTP status.",
    );
    for (class, count) in classes {
        page.sample(
            "sidebike_requests_total",
            &format!("status=\"{class}xx\""),
            count,
        );
    }
    page.family("sidebike_machines", "gauge", "Machines known, by state.");
    for (state, count) in machines {
        page.sample(
            "sidebike_machines",
            &format!("state=\"{}\"", state.word()),
            count as u64,
        );
    }
    page.family("sidebike_tasks", "gauge", "Tasks kept, by state.");
    for (state, count) in tasks {
        page.sample(
            "sidebike_tasks",
            &format!("state=\"{}\"", state.word()),
            count as u64,
        );
    }
    page.family("sidebike_executions", "gauge", "Executions kept, by state.");
    for state in ExecutionState::ALL {
        let count = u64::from(*executions.of(state));
        page.sample(
            "sidebike_executions",
            &format!("state=\"{}\"", state.word()),
            count,
        );
    }
    page.family(
        "sidebike_executions_ended_total",
        "counter",
        "Executions that ended, by state.",
    );
    for state in ExecutionState::ALL
        .into_iter()
        .filter(|state| state.is_terminal())
    {
        let count = figures.executions_ended[state as usize];
        page.sample(
            "sidebike_executions_ended_total",
            &format!("state=\"{}\"", state.word()),
            count,
        );
    }
    let (by_state, by_outcome, due) = schedules;
    page.family("sidebike_schedules", "gauge", "Schedules, by state.");
    for (state, count) in by_state {
        let label = format!("state=\"{}\"", state.word());
        page.sample("sidebike_schedules", &label, count as u64);
    }
    page.single(
        "sidebike_schedules_due",
        "gauge",
        "Schedules with a firing that is due and has not become a task yet.",
        due as u64,
    );
    page.family(
        "sidebike_firings_total",
        "counter",
        "Firings of schedules, by outcome; several missed at once count as one.",
    );
    for (outcome, count) in by_outcome {
        let label = format!("outcome=\"{}\"", outcome.word());
        page.sample("sidebike_firings_total", &label, count);
    }
    page.single(
        "sidebike_tasks_submitted_total",
        "counter",
        "Tasks accepted.",
        figures.submitted,
    );
    page.single(
        "sidebike_retries_total",
        "counter",
        "Further attempts.",
        figures.retries,
    );
    page.family(
        "sidebike_oldest_queued_seconds",
        "gauge",
        "How long the oldest task waits of which something is queued, by priority: below, at and above 0.",
    );
    for (priority, ms) in oldest {
        let labels = format!("priority=\"{priority}\"");
        page.sample("sidebike_oldest_queued_seconds", &labels, ms / 1_000);
    }
    let used = [
        (
            "sidebike_limit_running",
            "Executions that are delivered or running, by limit.",
        ),
        (
            "sidebike_limit_waiting",
            "Executions that are queued, by limit.",
        ),
    ];
    for (family, help) in used {
        page.family(family, "gauge", help);
        for limit in &limits {
            let number = match family {
                "sidebike_limit_running" => limit.running_now.into(),
                _ => limit.waiting,
            };
            page.sample(family, &format!("limit=\"{}\"", limit.name), number);
        }
    }
    page.single(
        "sidebike_output_bytes",
        "gauge",
        "Bytes of output kept.",
        output_bytes as u64,
    );
    page.single(
        "sidebike_detail_bytes",
        "gauge",
        "Bytes of details of tasks kept.",
        detail_bytes as u64,
    );
    page.single(
        "sidebike_undos_open",
        "gauge",
        "Undos that are failed or owed.",
        debts as u64,
    );
    let (pending, told, suspensions) = more;
    page.single(
        "sidebike_notifications_pending",
        "gauge",
        "Notifications that are still to be delivered.",
        pending as u64,
    );
    page.family(
        "sidebike_notifications_total",
        "counter",
        "Notifications that were delivered, or given up (dead).",
    );
    for (state, count) in [("delivered", told.delivered), ("dead", told.dead)] {
        page.sample(
            "sidebike_notifications_total",
            &format!("state=\"{state}\""),
            count,
        );
    }
    page.single(
        "sidebike_notification_failures_total",
        "counter",
        "Tries of notifications that failed.",
        told.failed_tries,
    );
    page.single(
        "sidebike_suspensions",
        "gauge",
        "Suspensions of machines in force.",
        suspensions as u64,
    );
    page.single(
        "sidebike_held_requests",
        "gauge",
        "Polls and waits held.",
        server.store.held() as u64,
    );
    page.single(
        "sidebike_connections",
        "gauge",
        "Connections open.",
        server.edge.connections() as u64,
    );
    page.single(
        "sidebike_thread_failures_total",
        "counter",
        "Threads that failed (a bug) and were started again.",
        server.store.health.failures(),
    );
    page.single(
        "sidebike_log_lines_dropped_total",
        "counter",
        "Lines of the log dropped as standard error was not read.",
        log_queue::dropped(),
    );
    let holds = &server.store.holds;
    page.single(
        "sidebike_lock_holds_total",
        "counter",
        "How often the one lock was taken.",
        holds.count.load(Ordering::Relaxed),
    );
    page.seconds(
        "sidebike_lock_held_seconds_total",
        "counter",
        "How long it was held in all.",
        &holds.total_ns,
    );
    page.seconds(
        "sidebike_lock_held_seconds_max",
        "gauge",
        "How long it was held at most.",
        &holds.longest_ns,
    );
    page.histogram(
        "sidebike_submit_to_start_seconds",
        "From submit to start of the first attempt.",
        &figures.submit_to_start,
    );
    page.histogram(
        "sidebike_run_time_seconds",
        "How long commands ran.",
        &figures.run_time,
    );
    let transfers = &server.transfers;
    page.single(
        "sidebike_file_bytes_sent_total",
        "counter",
        "Bytes of files and of the program sent.",
        transfers.bytes_sent.load(Ordering::Relaxed),
    );
    page.single(
        "sidebike_handed_out_total",
        "counter",
        "How often the program was asked for.",
        transfers.handed_out.load(Ordering::Relaxed),
    );
    let (blobs, blob_bytes) = server.blobs.usage();
    page.single("sidebike_files", "gauge", "Files kept.", blobs as u64);
    page.single(
        "sidebike_file_bytes",
        "gauge",
        "Bytes of files kept, half ones included.",
        blob_bytes,
    );
    let counters = &server.blobs.counters;
    for (name, help, count) in [
        (
            "sidebike_file_bytes_received_total",
            "Bytes of files that came.",
            &counters.received,
        ),
        (
            "sidebike_files_received_total",
            "Files that came and were kept.",
            &counters.uploads,
        ),
        (
            "sidebike_file_transfers_refused_total",
            "Transfers of files that were told to come back.",
            &counters.refused,
        ),
        (
            "sidebike_files_removed_total",
            "Files that were removed to make room.",
            &counters.evicted,
        ),
    ] {
        page.single(name, "counter", help, count.load(Ordering::Relaxed));
    }
    if let Some((written, fetched)) = server.blobs.moved() {
        page.single(
            "sidebike_files_missing",
            "gauge",
            "Files that the database has and that were not fetched yet.",
            server.blobs.missing() as u64,
        );
        page.single(
            "sidebike_db_file_bytes_written_total",
            "counter",
            "Bytes of files saved in the database.",
            written,
        );
        page.single(
            "sidebike_db_file_bytes_read_total",
            "counter",
            "Bytes of files fetched from the database.",
            fetched,
        );
    }
    let body = page.0.into_bytes();
    Ok(Some(Answer::new(200, CONTENT_TYPE, body)))
}

/// Writing to a string cannot fail, so the results of `write!` say nothing here.
struct Page(String);

impl Page {
    fn leads(&mut self, leads: bool) {
        let help = "Whether this server leads; a single one always does.";
        self.single("sidebike_leads", "gauge", help, leads.into());
    }

    /// What one of several servers has passed on to the one that leads.
    fn forwarded(&mut self, edge: &Edge) {
        self.single(
            "sidebike_forwarded",
            "gauge",
            "Requests that the server that leads answers through this one.",
            edge.forwarded() as u64,
        );
        self.single(
            "sidebike_forwarded_total",
            "counter",
            "Requests that were passed on to the server that leads.",
            edge.forwarded_ever(),
        );
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "{name}{{{labels}}} {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        let _ = writeln!(self.0, "{name} {value}");
    }

    fn seconds(&mut self, name: &str, kind: &str, help: &str, ns: &AtomicU64) {
        self.family(name, kind, help);
        let seconds = ns.load(Ordering::Relaxed) as f64 / 1e9;
        let _ = writeln!(self.0, "{name} {seconds}");
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, "histogram", help);
        let mut below = 0;
        for (count, bound) in histogram.counts.iter().zip(Histogram::BOUNDS_MS) {
            below += count;
            let _ = writeln!(
                self.0,
                "{name}_bucket{{le=\"{}\"}} {below}",
                bound as f64 / 1000.0
            );
        }
        let total: u64 = histogram.counts.iter().sum();
        let _ = writeln!(self.0, "{name}_bucket{{le=\"+Inf\"}} {total}");
        let _ = writeln!(self.0, "{name}_sum {}", histogram.sum_ms as f64 / 1000.0);
        let _ = writeln!(self.0, "{name}_count {total}");
    }
}
