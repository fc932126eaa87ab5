//! What an instance does at leisure: deletes consumed records of the repartition topic and measures
//! how far behind the group is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::clock;
use crate::config::Config;
use crate::instance::engine::ThreadStatus;
use crate::instance::topology::{Wanted, source_partitions};
use crate::instance::view::TaskState;
use crate::log::{Log, LogError, TopicPartition};
use crate::metrics;
use crate::topics::Topics;

/// How often it looks whether something is due or the instance stops.
const STEP: Duration = Duration::from_millis(100);

/// How often the lag is measured.
const MEASURE: Duration = Duration::from_secs(5);

/// The instance, as housekeeping needs it.
pub(super) struct House<'a> {
    /// Asks the engine how it is.
    pub(super) look: &'a dyn Fn() -> Option<ThreadStatus>,
    /// Takes where a partition ends.
    pub(super) end: &'a dyn Fn(&TopicPartition, i64),
    /// Takes what of the log, and what is wrong with it; `None` = nothing.
    pub(super) report: &'a dyn Fn(&str, Option<String>),
    /// Takes the partitions that the source topics have now.
    pub(super) tell_sources: &'a dyn Fn(Vec<TopicPartition>),
    /// Whether the instance stops.
    pub(super) stopping: &'a dyn Fn() -> bool,
}

/// Runs until the instance stops.
pub(super) fn run(log: &Arc<dyn Log>, config: &Config, topics: &Topics, house: &House<'_>) {
    let House { look, end, report, tell_sources, stopping } = house;
    let tasks = (0..config.processing.partitions).map(|partition| TopicPartition::new(&topics.repartition, partition));
    let tasks: Vec<_> = tasks.collect();
    let wanted = Wanted::of(config, topics);
    let (mut purged, mut measured) = (clock::now(), clock::now());
    while !stopping() {
        std::thread::sleep(STEP);
        let status = look();
        if let Some(status) = &status {
            tell(status);
        }
        if measured.elapsed() >= MEASURE {
            tell_restores(&status);
        }
        let (what, result) = match config.processing.repartition_purge {
            Some(interval) if purged.elapsed() >= interval => {
                purged = clock::now();
                ("purge", purge(log.as_ref(), &config.application.id, &tasks))
            }
            _ if measured.elapsed() >= MEASURE => {
                measured = clock::now();
                // A right that is missing where nothing is on its way would not be noticed otherwise, nor its return.
                let answered = wanted.check(log.as_ref()).and_then(|()| {
                    let sources = source_partitions(log.as_ref(), topics)?;
                    let all: Vec<_> = tasks.iter().chain(&sources).cloned().collect();
                    tell_sources(sources);
                    measure(log.as_ref(), &config.application.id, &all, *end)
                });
                ("log", answered)
            }
            _ => continue,
        };
        // What the log just did it can do: an earlier trouble with it is over. So is one that the member has told, or it
        // tells it again.
        if what == "log" && result.is_ok() {
            report("group", None);
        }
        report(
            what,
            result.err().map(|error| match error {
                LogError::Unauthorized(text) => text,
                error => format!("the log does not answer as it should: {error}"),
            }),
        );
    }
}

/// A restore that takes long shows how far it is.
fn tell_restores(status: &Option<ThreadStatus>) {
    let restores = status.as_ref().and_then(|status| status.restores.as_ref());
    if let Some(restores) = restores.filter(|restores| restores.remaining > 0) {
        tracing::info!("restoring: {restores}");
    }
}

fn tell(status: &ThreadStatus) {
    metrics::in_flight(status.running);
    metrics::buffered(status.buffered_bytes);
    metrics::store_size(status.store_size.0, status.store_size.1);
    // A gauge keeps its value: what there is none of any more has to be told, too.
    let states = [TaskState::Restoring, TaskState::Running, TaskState::Closing].map(TaskState::as_str);
    let kinds = ["task", "source"].into_iter().flat_map(|role| states.map(|state| ((role, state), 0)));
    let mut counts = BTreeMap::from_iter(kinds);
    for task in &status.tasks {
        *counts.entry((task.role, task.state.as_str())).or_default() += 1;
        if task.role == "task" {
            metrics::oldest_age(task.partition, Duration::from_millis(task.oldest_age_ms));
        }
    }
    for ((role, state), n) in counts {
        metrics::tasks(role, state, n);
    }
}

/// Deletes what lies below the committed positions: never what is only consumed.
fn purge(log: &dyn Log, group: &str, tasks: &[TopicPartition]) -> Result<(), LogError> {
    let committed = log.committed(group, tasks, false)?;
    let below = tasks.iter().zip(committed);
    let below = below.filter_map(|(of, committed)| committed.map(|committed| (of.clone(), committed.position)));
    let below: Vec<_> = below.filter(|(_, position)| *position > 0).collect();
    if below.is_empty() { Ok(()) } else { log.purge(&below) }
}

/// The whole group's lag: every instance tells the same.
fn measure(
    log: &dyn Log,
    group: &str,
    all: &[TopicPartition],
    end: &dyn Fn(&TopicPartition, i64),
) -> Result<(), LogError> {
    for (of, committed) in all.iter().zip(log.committed(group, all, false)?) {
        let ends = log.watermarks(of)?;
        end(of, ends.high);
        let position = committed.map_or(ends.low, |committed| committed.position);
        metrics::lag(&of.topic, of.partition, (ends.high - position).max(0));
    }
    Ok(())
}
