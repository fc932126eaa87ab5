//! Every metric: its name, its labels, its help text and the one function that feeds it.
//!
//! Names are written out whole, as Prometheus shows them, so that they can be searched for. The
//! functions cost nothing before [`install`] and are meant to be called once per batch with a count.
//! Gauges with a partition live in [`partitions`], because a partition that moves takes them along.

pub mod partitions;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::cause::Cause;

const EVENTS_RECEIVED: &str = "tidegate_events_received_total";
const EVENTS_PROCESSED: &str = "tidegate_events_processed_total";
const CHILDREN_SPAWNED: &str = "tidegate_children_spawned_total";
const CASCADE_DEPTH: &str = "tidegate_cascade_depth";
const HANDLER_DURATION: &str = "tidegate_handler_duration_seconds";
const HANDLER_RETRIES: &str = "tidegate_handler_retries_total";
const IN_FLIGHT_EVENTS: &str = "tidegate_in_flight_events";
const BUFFERED_BYTES: &str = "tidegate_buffered_bytes";
const OLDEST_AGE: &str = "tidegate_oldest_in_flight_age_seconds";
const COMMITS: &str = "tidegate_commits_total";
const COMMIT_DURATION: &str = "tidegate_commit_duration_seconds";
const TRANSACTION_ABORTS: &str = "tidegate_transaction_aborts_total";
const CONSUMER_LAG: &str = "tidegate_consumer_lag_records";
const RESTORE_REMAINING: &str = "tidegate_restore_remaining_records";
const RESTORED_RECORDS: &str = "tidegate_restored_records_total";
const TASKS: &str = "tidegate_tasks";
const REBALANCES: &str = "tidegate_rebalances_total";
const STORE_ENTRIES: &str = "tidegate_store_entries";
const STORE_BYTES: &str = "tidegate_store_bytes";
const STORES_REBUILT: &str = "tidegate_stores_rebuilt_total";
const STORE_FLUSH_DURATION: &str = "tidegate_store_flush_duration_seconds";
const DEAD_LETTERS: &str = "tidegate_dead_letters_total";
const DEAD_LETTERS_RETRIED: &str = "tidegate_dead_letters_retried_total";
const END_TO_END_LATENCY: &str = "tidegate_end_to_end_latency_seconds";
const FRONTIER: &str = "tidegate_frontier_sequence";
const UNSETTLED_ROOTS: &str = "tidegate_unsettled_roots";
const OLDEST_UNSETTLED: &str = "tidegate_oldest_unsettled_root_sequence";
const OLDEST_UNSETTLED_AGE: &str = "tidegate_oldest_unsettled_root_age_seconds";
const FRONTIER_ENTRIES: &str = "tidegate_frontier_entries";
const HORIZON: &str = "tidegate_horizon_sequence";
const READY: &str = "tidegate_ready";
const BUILD_INFO: &str = "tidegate_build_info";

/// Counters and histograms, for `# HELP`.
const HELP: &[(&str, &str)] = &[
    (EVENTS_RECEIVED, "Primary events read from the source topics."),
    (EVENTS_PROCESSED, "Events that are done, by what became of them."),
    (CHILDREN_SPAWNED, "Secondary events spawned by handlers."),
    (CASCADE_DEPTH, "Depth of processed events in their cascade; 0 is a primary event."),
    (HANDLER_DURATION, "Duration of one try of a handler."),
    (HANDLER_RETRIES, "Tries of a handler that failed and will be repeated, by cause."),
    (COMMITS, "Transactions committed."),
    (COMMIT_DURATION, "Duration of a transaction from its begin to its known commit."),
    (TRANSACTION_ABORTS, "Transactions that did not commit, by reason."),
    (RESTORED_RECORDS, "Changelog records read to restore state."),
    (REBALANCES, "Changes of the partitions owned, by phase."),
    (STORES_REBUILT, "Local stores that were set aside, damaged or not to be trusted, and rebuilt."),
    (STORE_FLUSH_DURATION, "Duration of writing a committed batch into the local store."),
    (DEAD_LETTERS, "Records and events that could not be handled, by cause."),
    (DEAD_LETTERS_RETRIED, "Dead letters that are handled once more, as it was asked for."),
    (END_TO_END_LATENCY, "From the timestamp of the primary event's record to the commit of an event of its cascade."),
    (BUILD_INFO, "Constant 1; the labels tell the version."),
];

/// Gauges, for `# HELP`; the names of [`partitions`] need a `# TYPE` as well.
const GAUGES: &[(&str, &str)] = &[
    (IN_FLIGHT_EVENTS, "Handler calls running."),
    (BUFFERED_BYTES, "What is read and not committed; at processing.max_buffered partitions pause."),
    (READY, "1 where /readyz answers 200, else 0."),
    (FRONTIER, "Greatest sequence up to which everything is settled; NaN where that is not known."),
    (UNSETTLED_ROOTS, "Primary events received whose cascade is not done."),
    (OLDEST_UNSETTLED, "Sequence of the first of those; NaN when there is none."),
    (OLDEST_UNSETTLED_AGE, "Since when that one is received; 0 when there is none."),
    (
        FRONTIER_ENTRIES,
        "Entries, about 100 bytes each, that what is known of roots takes; at 4 million the sources pause.",
    ),
    (OLDEST_AGE, "Age of the oldest event that is read and not done."),
    (CONSUMER_LAG, "Records between the committed position and the end of the partition."),
    (RESTORE_REMAINING, "Changelog records still to be restored."),
    (TASKS, "Tasks and source partitions, by role and state."),
    (STORE_ENTRIES, "Keys in the local stores, removed ones included; estimated."),
    (STORE_BYTES, "Size of the local stores on disk."),
];

/// The words of labels, where they are known beforehand: they begin at 0, so that the first of a kind is an
/// increase and not a series that appears out of nothing.
const WORDS: &[(&str, &str, &[&str])] = &[
    (HANDLER_RETRIES, "cause", &["failure", "timeout", "panic"]),
    (TRANSACTION_ABORTS, "reason", &["refused", "rebalance", "fenced", "unknown"]),
    (REBALANCES, "phase", &["assigned", "revoked", "lost"]),
];

/// From a tenth of a millisecond to five minutes.
const SECONDS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0,
];

const DEPTHS: &[f64] = &[0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0, 128.0, 255.0];

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its key took its value.
    Applied,
    /// Its key already held a greater stamp.
    Superseded,
    /// It had been done before.
    Duplicate,
    /// It became a dead letter.
    Rejected,
}

/// Renders what has been measured, in Prometheus' text format.
#[derive(Clone)]
pub struct Renderer {
    handle: PrometheusHandle,
    process: metrics_process::Collector,
}

/// The handles whose labels never change, and the recorder for the others.
struct Meters {
    recorder: Arc<PrometheusRecorder>,
    renderer: Renderer,
    processed: [Counter; 4],
    children: Counter,
    dead_letters_retried: Counter,
    depth: Histogram,
    handler_duration: Histogram,
    in_flight: Gauge,
    buffered: Gauge,
    frontier: Gauge,
    horizon: Gauge,
    unsettled: Gauge,
    oldest_unsettled: Gauge,
    oldest_unsettled_age: Gauge,
    frontier_entries: Gauge,
    ready: Gauge,
    commits: Counter,
    commit_duration: Histogram,
    restored: Counter,
    stores_rebuilt: Counter,
    store_entries: Gauge,
    store_bytes: Gauge,
    flush_duration: Histogram,
    latency: Histogram,
}

static METERS: OnceLock<Meters> = OnceLock::new();

/// Begins to measure; further calls give the same renderer.
pub fn install() -> Renderer {
    METERS.get_or_init(Meters::new).renderer.clone()
}

impl Renderer {
    /// The whole page of `/metrics`.
    pub fn render(&self) -> String {
        self.process.collect();
        let mut page = self.handle.render();
        partitions::render(GAUGES, &mut page);
        page
    }
}

impl Meters {
    fn new() -> Meters {
        let recorder = Arc::new(recorder());
        // A program that embeds Tidegate may have a recorder of its own: then the process metrics are there.
        if metrics::set_global_recorder(Arc::clone(&recorder)).is_err() {
            tracing::debug!("another metrics recorder is installed: process metrics go there");
        }
        for (name, help) in HELP.iter().chain(GAUGES) {
            recorder.describe_counter((*name).into(), None, (*help).into());
        }
        let process = metrics_process::Collector::default();
        process.describe();
        let handle = recorder.handle();
        drain_regularly(handle.clone());
        let counter = |name| recorder.register_counter(&Key::from_static_name(name), &METADATA);
        let gauge = |name| recorder.register_gauge(&Key::from_static_name(name), &METADATA);
        let histogram = |name| recorder.register_histogram(&Key::from_static_name(name), &METADATA);
        let processed = ["applied", "superseded", "duplicate", "rejected"].map(|outcome| {
            let key = Key::from_parts(EVENTS_PROCESSED, vec![Label::new("outcome", outcome)]);
            recorder.register_counter(&key, &METADATA)
        });
        let causes = Cause::ALL.map(Cause::as_str);
        for (name, label, words) in WORDS.iter().copied().chain([(DEAD_LETTERS, "cause", &causes[..])]) {
            for word in words {
                let key = Key::from_parts(name, vec![Label::new(label, *word)]);
                recorder.register_counter(&key, &METADATA).increment(0);
            }
        }
        let version = vec![Label::new("version", env!("CARGO_PKG_VERSION"))];
        recorder.register_gauge(&Key::from_parts(BUILD_INFO, version), &METADATA).set(1.0);
        Meters {
            renderer: Renderer { handle, process },
            processed,
            children: counter(CHILDREN_SPAWNED),
            dead_letters_retried: counter(DEAD_LETTERS_RETRIED),
            depth: histogram(CASCADE_DEPTH),
            handler_duration: histogram(HANDLER_DURATION),
            in_flight: gauge(IN_FLIGHT_EVENTS),
            buffered: gauge(BUFFERED_BYTES),
            frontier: gauge(FRONTIER),
            unsettled: gauge(UNSETTLED_ROOTS),
            oldest_unsettled: gauge(OLDEST_UNSETTLED),
            oldest_unsettled_age: gauge(OLDEST_UNSETTLED_AGE),
            frontier_entries: gauge(FRONTIER_ENTRIES),
            horizon: gauge(HORIZON),
            ready: gauge(READY),
            commits: counter(COMMITS),
            commit_duration: histogram(COMMIT_DURATION),
            restored: counter(RESTORED_RECORDS),
            stores_rebuilt: counter(STORES_REBUILT),
            store_entries: gauge(STORE_ENTRIES),
            store_bytes: gauge(STORE_BYTES),
            flush_duration: histogram(STORE_FLUSH_DURATION),
            latency: histogram(END_TO_END_LATENCY),
            recorder,
        }
    }
}

fn recorder() -> PrometheusRecorder {
    let mut builder = PrometheusBuilder::new();
    let durations = [HANDLER_DURATION, COMMIT_DURATION, STORE_FLUSH_DURATION, END_TO_END_LATENCY];
    for (name, buckets) in durations.map(|name| (name, SECONDS)).into_iter().chain([(CASCADE_DEPTH, DEPTHS)]) {
        builder = builder
            .set_buckets_for_metric(Matcher::Full(name.to_owned()), buckets)
            .expect("the list of buckets is not empty");
    }
    builder.build_recorder()
}

/// Histograms keep single samples until they are drained: without this, memory grows where nobody scrapes.
fn drain_regularly(handle: PrometheusHandle) {
    let spawned = std::thread::Builder::new().name("metrics".into()).spawn(move || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            handle.run_upkeep();
        }
    });
    if let Err(error) = spawned {
        tracing::warn!("no thread for the upkeep of metrics: {error}; memory grows until /metrics is read");
    }
}

fn meters() -> Option<&'static Meters> {
    METERS.get()
}

fn add(name: &'static str, label: &'static str, value: &str, n: u64) {
    let Some(meters) = meters() else { return };
    let key = Key::from_parts(name, vec![Label::new(label, value.to_owned())]);
    meters.recorder.register_counter(&key, &METADATA).increment(n);
}

/// `n` primary events were read from the source topic `topic`.
pub fn events_received(topic: &str, n: u64) {
    add(EVENTS_RECEIVED, "topic", topic, n);
}

/// `n` events are done.
pub fn events_processed(outcome: Outcome, n: u64) {
    if let Some(meters) = meters() {
        meters.processed[outcome as usize].increment(n);
    }
}

/// Handlers spawned `n` events.
pub fn children_spawned(n: u64) {
    if let Some(meters) = meters() {
        meters.children.increment(n);
    }
}

/// `n` events of the depth `depth` were processed; 0 is a primary event.
pub fn cascade_depth(depth: usize, n: usize) {
    if let Some(meters) = meters() {
        meters.depth.record_many(depth as f64, n);
    }
}

/// One try of a handler took this long.
pub fn handler_duration(duration: Duration) {
    if let Some(meters) = meters() {
        meters.handler_duration.record(duration);
    }
}

/// A try of a handler failed and will be repeated; `cause` is `failure`, `timeout` or `panic`.
pub fn handler_retried(cause: &'static str) {
    add(HANDLER_RETRIES, "cause", cause, 1);
}

/// Handler calls that run now.
pub fn in_flight(n: usize) {
    if let Some(meters) = meters() {
        meters.in_flight.set(n as f64);
    }
}

/// Bytes that are read and not committed.
pub fn buffered(bytes: usize) {
    if let Some(meters) = meters() {
        meters.buffered.set(bytes as f64);
    }
}

/// How far everything is settled, where that is known, and how many roots are not.
pub fn frontier(frontier: Option<u64>, unsettled: u64) {
    if let Some(meters) = meters() {
        meters.frontier.set(frontier.map_or(f64::NAN, |frontier| frontier as f64));
        meters.unsettled.set(unsettled as f64);
    }
}

/// The first root that is not settled, and since when it is received.
pub fn oldest_unsettled(sequence: Option<u64>, age: Duration) {
    if let Some(meters) = meters() {
        meters.oldest_unsettled.set(sequence.map_or(f64::NAN, |sequence| sequence as f64));
        meters.oldest_unsettled_age.set(age.as_secs_f64());
    }
}

/// How many entries what is known of roots takes.
pub fn frontier_entries(entries: usize) {
    if let Some(meters) = meters() {
        meters.frontier_entries.set(entries as f64);
    }
}

/// The sequence up to which REMOVE markers are deleted, if there is one.
pub fn horizon(horizon: Option<u64>) {
    if let Some(meters) = meters() {
        meters.horizon.set(horizon.map_or(f64::NAN, |horizon| horizon as f64));
    }
}

/// Whether the instance is ready.
pub fn ready(ready: bool) {
    if let Some(meters) = meters() {
        meters.ready.set(f64::from(u8::from(ready)));
    }
}

/// The age of the oldest event of partition `partition` that is read and not done.
pub fn oldest_age(partition: i32, age: Duration) {
    partitions::set(OLDEST_AGE, None, partition, age.as_secs_f64());
}

/// A transaction was committed and took this long.
pub fn commit(duration: Duration) {
    if let Some(meters) = meters() {
        meters.commits.increment(1);
        meters.commit_duration.record(duration);
    }
}

/// A transaction did not commit. `reason`: `refused` by the log, `rebalance` (of a generation that is over),
/// `fenced` (the producer has to begin anew), `unknown` (no answer; the positions say that it did not).
pub fn aborted(reason: &'static str) {
    add(TRANSACTION_ABORTS, "reason", reason, 1);
}

/// Records between the committed position and the end of the partition.
pub fn lag(topic: &str, partition: i32, records: i64) {
    partitions::set(CONSUMER_LAG, Some(topic), partition, records as f64);
}

/// Changelog records of partition `partition` still to be restored.
pub fn restore_remaining(partition: i32, records: i64) {
    partitions::set(RESTORE_REMAINING, None, partition, records as f64);
}

/// `n` changelog records were read to restore state.
pub fn restored(n: u64) {
    if let Some(meters) = meters() {
        meters.restored.increment(n);
    }
}

/// A local store was set aside and is rebuilt.
pub fn store_rebuilt() {
    if let Some(meters) = meters() {
        meters.stores_rebuilt.increment(1);
    }
}

/// The partition of a topic has gone: its lag is no more shown.
pub fn forget_partition(topic: &str, partition: i32) {
    partitions::forget(Some(topic), partition);
}

/// The task has gone: its age and restore progress are no more shown.
pub fn forget_task(partition: i32) {
    partitions::forget(None, partition);
}

/// As many tasks of `role` (`task`, `source`, `standby`) are in `state`; set 0 for those that are none any more.
pub fn tasks(role: &'static str, state: &'static str, n: usize) {
    let Some(meters) = meters() else { return };
    let key = Key::from_parts(TASKS, vec![Label::new("role", role), Label::new("state", state)]);
    meters.recorder.register_gauge(&key, &METADATA).set(n as f64);
}

/// The group's partitions changed; `phase` is `assigned`, `revoked` or `lost`.
pub fn rebalanced(phase: &'static str) {
    add(REBALANCES, "phase", phase, 1);
}

/// What the local stores hold: keys (estimated) and bytes on disk.
pub fn store_size(entries: u64, bytes: u64) {
    if let Some(meters) = meters() {
        meters.store_entries.set(entries as f64);
        meters.store_bytes.set(bytes as f64);
    }
}

/// Writing a committed batch into the local store took this long.
pub fn store_flushed(duration: Duration) {
    if let Some(meters) = meters() {
        meters.flush_duration.record(duration);
    }
}

/// `n` dead letters of one cause (`tidegate_cause`, a stable word).
pub fn dead_letters(cause: &str, n: u64) {
    add(DEAD_LETTERS, "cause", cause, n);
}

/// It is committed that `n` dead letters are handled once more.
pub fn dead_letters_retried(n: u64) {
    if let Some(meters) = meters() {
        meters.dead_letters_retried.increment(n);
    }
}

/// `n` events were committed this long after the timestamp of their root's source record.
pub fn end_to_end_latency(latency: Duration, n: usize) {
    if let Some(meters) = meters() {
        meters.latency.record_many(latency.as_secs_f64(), n);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_is_rendered_under_its_exact_name() {
        let renderer = install();
        install();
        events_received("metrics-test", 3);
        events_processed(Outcome::Superseded, 2);
        handler_duration(Duration::from_millis(3));
        lag("metrics-test", 7, 12);
        let page = renderer.render();
        assert!(page.contains("tidegate_dead_letters_total{cause=\"too_deep\"} 0"), "{page}");
        assert!(page.contains("tidegate_events_received_total{topic=\"metrics-test\"} 3"), "{page}");
        assert!(page.contains("tidegate_handler_duration_seconds_bucket{le=\"0.005\"}"), "{page}");
        assert!(page.contains("tidegate_consumer_lag_records{topic=\"metrics-test\",partition=\"7\"} 12"), "{page}");
        assert!(page.contains("# TYPE tidegate_consumer_lag_records gauge"), "{page}");
        assert!(page.contains("tidegate_build_info{version="), "{page}");
        forget_partition("metrics-test", 7);
        assert!(!renderer.render().contains("topic=\"metrics-test\",partition=\"7\""));
    }
}
