//! `verify`: compares every key with the serial reference.
//!
//! V1: nothing is compared before all that stood on the source at the start is processed and committed.
//! V2: an event is left out of the reference only where a dead letter proves that it failed.
//! V3: both ways: a key that only one side has is a difference.

mod compare;
mod quiescence;
mod read;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::Config;
use crate::event::{StampedEvent, encode_origin};
use crate::handler::DynHandler;
use crate::log::{Log, LogError, TopicPartition};
use crate::reference::{self, Held, Reference};
use crate::sequencer::format;
use crate::stamp::Stamp;
use crate::topics::Topics;
use read::Ends;

/// What was compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Keys compared, of both sides.
    pub keys: u64,
    /// Events that the reference processed.
    pub events: u64,
    /// In the order of their keys; empty = the state is that of the reference.
    pub differences: Vec<Difference>,
}

/// A key whose state is not that of the reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key.
    pub key: Bytes,
    /// What the reference has; `None` = it does not know the key.
    pub expected: Option<Held>,
    /// What the changelog has; `None` = it does not know the key.
    pub actual: Option<Held>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The configuration does not fit to the log: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// It could not be carried out, or no reference exists: exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl From<LogError> for VerifyError {
    fn from(error: LogError) -> VerifyError {
        match error {
            LogError::UnknownTopic(_) => VerifyError::Usage(error.to_string()),
            error => VerifyError::Failed(error.to_string()),
        }
    }
}

/// The partitions that `verify` looks at.
struct Subject {
    source: TopicPartition,
    repartition: Vec<TopicPartition>,
    changelog: Vec<TopicPartition>,
    dead_letter: Vec<TopicPartition>,
}

/// Verifies the application of `config`. `handler` is the configured one without its waits. Works
/// beside running instances; gives up when they have not processed all within `timeout`.
///
/// # Errors
/// [`VerifyError`] where the topics do not fit, no reference exists, or `timeout` has passed.
pub fn verify(
    log: &dyn Log,
    config: &Config,
    handler: &Arc<dyn DynHandler>,
    timeout: Duration,
) -> Result<Report, VerifyError> {
    let subject = find(log, config)?;
    let source = log.watermarks(&subject.source)?;
    let group = &config.application.id;
    let begun = log.committed(group, std::slice::from_ref(&subject.source), false)?;
    if source.low > 0 && begun.iter().any(Option::is_some) {
        return Err(VerifyError::Failed(format!(
            "{} begins at offset {} by now: what stood before it is gone, so there is no reference to compare with",
            subject.source, source.low
        )));
    }
    quiescence::wait(log, group, &subject, source, timeout)?;
    let failed = read::failed(log, &subject.dead_letter)?;
    let primaries = read::records(log, &subject.source, Ends { low: source.low, high: source.high }, false)?;
    let mut broken = None;
    let primaries = primaries.map_while(|record| record.map_err(|error| broken = Some(error)).ok());
    let primaries = primaries.filter_map(|record| {
        let event = format::decode(config.source.format, record.key.as_ref(), record.value.as_ref()).ok()?;
        let sequence = u64::try_from(record.offset).expect("offsets are not negative");
        let (topic, partition) = (&subject.source.topic, subject.source.partition);
        Some(StampedEvent {
            event,
            stamp: Stamp::root(config.source.epoch, sequence),
            origin: encode_origin(topic, partition, record.offset, record.timestamp_ms),
            retry: 0,
        })
    });
    let reference = run(primaries, config, handler, &failed);
    if let Some(error) = broken {
        return Err(error);
    }
    let actual = read::state(log, &subject.changelog)?;
    let end = u64::try_from(source.high).expect("offsets are not negative");
    let end = (u64::from(config.source.epoch) << 56) | end;
    Ok(compare::compare(reference, actual, end))
}

/// Whether all that stands on the source, and all that it led to, is processed and committed.
///
/// # Errors
/// [`VerifyError`] where the topics do not fit.
pub fn is_quiescent(log: &dyn Log, config: &Config) -> Result<bool, VerifyError> {
    let subject = find(log, config)?;
    let source = log.watermarks(&subject.source)?;
    Ok(quiescence::busy(log, &config.application.id, &subject, source)?.is_none())
}

/// The reference over `primaries`; the events of `failed` fail in it, too (V2).
fn run(
    primaries: impl Iterator<Item = StampedEvent>,
    config: &Config,
    handler: &Arc<dyn DynHandler>,
    failed: &HashSet<Stamp>,
) -> Reference {
    reference::run(primaries, &config.cascade, |event| {
        if failed.contains(&event.stamp) {
            None
        } else {
            reference::call(handler, event, config.handler.retry.attempts)
        }
    })
}

/// The topics have to be there and to fit to the configuration.
fn find(log: &dyn Log, config: &Config) -> Result<Subject, VerifyError> {
    let topics = Topics::new(&config.application.id, &config.source.topics);
    let [source] = &topics.sources[..] else {
        return Err(VerifyError::Usage("source.stamp = \"offset\" takes exactly one source topic".into()));
    };
    let names = [source, &topics.repartition, &topics.changelog, &topics.dead_letter];
    let described = log.describe(&names.map(|name| &**name))?;
    let mut found = Vec::new();
    for (name, description) in names.into_iter().zip(described) {
        let Some(description) = description else {
            let id = &config.application.id;
            return Err(VerifyError::Usage(format!("there is no topic {name}; has the application {id:?} ever run?")));
        };
        found.push((0..description.partitions).map(|partition| TopicPartition::new(name, partition)).collect());
    }
    let [sources, repartition, changelog, dead_letter]: [Vec<TopicPartition>; 4] =
        found.try_into().expect("as many as names");
    let [source] = <[TopicPartition; 1]>::try_from(sources).map_err(|sources| {
        let count = sources.len();
        VerifyError::Usage(format!("{source} has {count} partitions; source.stamp = \"offset\" takes exactly one"))
    })?;
    for (name, partitions) in [(&topics.repartition, repartition.len()), (&topics.changelog, changelog.len())] {
        let configured = config.processing.partitions;
        if usize::try_from(configured) != Ok(partitions) {
            return Err(VerifyError::Usage(format!(
                "{name} has {partitions} partitions, but processing.partitions = {configured}"
            )));
        }
    }
    Ok(Subject { source, repartition, changelog, dead_letter })
}
