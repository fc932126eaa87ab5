//! `verify`: compares every key with the serial reference.
//!
//! V1: nothing is compared before all that stood on the source at the start is processed and committed.
//! V2: an event is left out of the reference only where a dead letter proves that it failed.
//! V3: both ways: a key that only one side has is a difference.

mod compare;
mod decided;
mod primaries;
mod quiescence;
mod read;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::clock;
use crate::config::{Config, StampSource, Superseded};
use crate::event::StampedEvent;
use crate::handler::DynHandler;
use crate::log::whole::Until;
use crate::log::{Log, LogError, TopicPartition, Watermarks};
use crate::progress::History;
use crate::reference::{self, Held, Reference};
use crate::topics::Topics;
use decided::Decided;

/// Between two looks while dead letters are being retried.
const RETRIES: Duration = Duration::from_millis(250);

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
    /// The log does not answer as it should: exit code 1.
    #[error(transparent)]
    Log(LogError),
}

impl From<LogError> for VerifyError {
    fn from(error: LogError) -> VerifyError {
        match error {
            LogError::UnknownTopic(_) => VerifyError::Usage(error.to_string()),
            error => VerifyError::Log(error),
        }
    }
}

/// The partitions that `verify` looks at.
struct Subject {
    sources: Vec<TopicPartition>,
    /// Only with `source.stamp = "arrival"`.
    order: Option<TopicPartition>,
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
    has_reference(config)?;
    let subject = find(log, config)?;
    let ends = ends(log, &subject)?;
    let group = &config.application.id;
    let begun = log.committed(group, &subject.sources, false)?;
    for ((of, ends), begun) in subject.sources.iter().zip(&ends).zip(begun) {
        if ends.low > 0 && begun.is_some() {
            return Err(VerifyError::Failed(format!(
                "{of} begins at offset {} by now: what stood before it is gone, so there is no reference to compare with",
                ends.low
            )));
        }
    }
    let progress = TopicPartition::new(&Topics::new(group, &[]).progress, 0);
    if History::read(log, &progress, Until::Stable)?.has_other_epochs(config.source.epoch) {
        return Err(VerifyError::Failed(format!(
            "events were received under another source.epoch than {}, too, and the records do not tell which were: there \
             is no reference to compare with",
            config.source.epoch
        )));
    }
    let deadline = clock::now() + timeout;
    let (letters, decided, actual) = loop {
        quiescence::wait(log, group, &subject, &ends, deadline.saturating_duration_since(clock::now()))?;
        let before = decided::book(log, &progress)?;
        let letters = read::letters(log, &subject.dead_letter)?;
        let actual = read::state(log, &subject.changelog)?;
        // D2: retries come beside the source, so they are not waited for as that is.
        let after = decided::book(log, &progress)?;
        let is_open = before.has_open_retries() || after.has_open_retries();
        if !is_open && before.retries_told() == after.retries_told() {
            let decided = Decided::new(&letters, &before);
            break (letters, decided, actual);
        }
        if clock::now() >= deadline {
            let timeout = humantime::format_duration(timeout);
            return Err(VerifyError::Failed(format!(
                "dead letters are being retried, and that has not ended after {timeout}"
            )));
        }
        std::thread::sleep(RETRIES);
    };
    let primaries = primaries::primaries(log, config, &subject, &ends, &letters)?;
    let mut broken = None;
    let events = primaries.events.map_while(|event| event.map_err(|error| broken = Some(error)).ok());
    let reference = run(events, config, handler, &decided);
    if let Some(error) = broken {
        return Err(error);
    }
    Ok(compare::compare(reference, actual, &primaries.covered))
}

fn ends(log: &dyn Log, subject: &Subject) -> Result<Vec<Watermarks>, LogError> {
    subject.sources.iter().map(|of| log.watermarks(of)).collect()
}

/// Whether the configuration leads to a state that the serial reference can tell beforehand.
///
/// # Errors
/// [`VerifyError::Usage`] with the reason where it does not.
pub fn has_reference(config: &Config) -> Result<(), VerifyError> {
    match config.processing.superseded {
        Superseded::Expand => Ok(()),
        Superseded::Drop => Err(VerifyError::Usage(
            "processing.superseded = \"drop\": whether an event comes too late, and its children do not exist, is a matter \
             of timing, so there is no reference to compare with; only \"expand\" has one"
                .into(),
        )),
    }
}

/// Whether all that stands on the source, and all that it led to, is processed and committed.
///
/// # Errors
/// [`VerifyError`] where the topics do not fit.
pub fn is_quiescent(log: &dyn Log, config: &Config) -> Result<bool, VerifyError> {
    let subject = find(log, config)?;
    let ends = ends(log, &subject)?;
    Ok(quiescence::busy(log, &config.application.id, &subject, &ends)?.is_none())
}

/// The reference over `primaries`; what has failed by `decided` fails in it, too (V2).
fn run(
    primaries: impl Iterator<Item = StampedEvent>,
    config: &Config,
    handler: &Arc<dyn DynHandler>,
    decided: &Decided,
) -> Reference {
    reference::run(primaries, &config.cascade, |event| {
        if decided.fails(&event.stamp) {
            return None;
        }
        let event = StampedEvent { retry: decided.retry(&event.stamp), ..event.clone() };
        reference::call(handler, &event, config.handler.retry.attempts)
    })
}

/// The topics have to be there and to fit to the configuration.
fn find(log: &dyn Log, config: &Config) -> Result<Subject, VerifyError> {
    let topics = Topics::new(&config.application.id, &config.source.topics);
    let internal = [&topics.repartition, &topics.changelog, &topics.dead_letter];
    let arrival = config.source.stamp == StampSource::Arrival;
    let order = Some(&topics.order).filter(|_| arrival);
    let names: Vec<&Arc<str>> = internal.into_iter().chain(order).chain(&topics.sources).collect();
    let described = log.describe(&names.iter().map(|name| &***name).collect::<Vec<_>>())?;
    let mut found: Vec<Vec<TopicPartition>> = Vec::new();
    for (name, description) in names.into_iter().zip(described) {
        let Some(description) = description else {
            let id = &config.application.id;
            return Err(VerifyError::Usage(format!("there is no topic {name}; has the application {id:?} ever run?")));
        };
        found.push((0..description.partitions).map(|partition| TopicPartition::new(name, partition)).collect());
    }
    let mut found = found.into_iter();
    let mut next = || found.next().expect("as many as names");
    let (repartition, changelog, dead_letter) = (next(), next(), next());
    let order = order.and_then(|_| next().into_iter().next());
    let sources: Vec<TopicPartition> = found.flatten().collect();
    if config.source.stamp == StampSource::Offset && sources.len() != 1 {
        let count = sources.len();
        return Err(VerifyError::Usage(format!(
            "source.stamp = \"offset\" takes one topic with one partition, and there are {count} source partitions"
        )));
    }
    for (name, partitions) in [(&topics.repartition, repartition.len()), (&topics.changelog, changelog.len())] {
        let configured = config.processing.partitions;
        if usize::try_from(configured) != Ok(partitions) {
            return Err(VerifyError::Usage(format!(
                "{name} has {partitions} partitions, but processing.partitions = {configured}"
            )));
        }
    }
    Ok(Subject { sources, order, repartition, changelog, dead_letter })
}
