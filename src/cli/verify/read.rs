//! Reads whole topics, committed records only.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;

use super::VerifyError;
use crate::cause::Cause;
use crate::clock;
use crate::entry::Entry;
use crate::event::{DecodeError, StampedEvent};
use crate::log::{Isolation, Log, LogError, Reader, Record, TopicPartition};
use crate::retry::Letter;
use crate::stamp::Stamp;

/// How long a partition may give nothing before its end is reached.
const PATIENCE: Duration = Duration::from_secs(60);

/// The part of a partition that is read.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// The first offset.
    pub low: i64,
    /// The first offset that is not read any more.
    pub high: i64,
}

/// The records of a part of a partition, in order. Offsets that hold no committed record are passed.
pub struct Records {
    of: TopicPartition,
    reader: Box<dyn Reader>,
    high: i64,
    patience: Duration,
    fetched: std::vec::IntoIter<Record>,
}

/// Reads a part of a partition.
pub fn records(log: &dyn Log, of: &TopicPartition, ends: Ends, headers: bool) -> Result<Records, VerifyError> {
    let reader = log.reader(of, ends.low, Isolation::ReadCommitted, headers)?;
    Ok(Records { of: of.clone(), reader, high: ends.high, patience: PATIENCE, fetched: Vec::new().into_iter() })
}

impl Records {
    /// The same with another limit for how long nothing may come.
    pub fn patience(self, patience: Duration) -> Records {
        Records { patience, ..self }
    }

    fn fetch(&mut self) -> Result<Option<Record>, VerifyError> {
        let patience = clock::now() + self.patience;
        loop {
            if let Some(record) = self.fetched.next() {
                return Ok(Some(record).filter(|record| record.offset < self.high));
            }
            if self.reader.position() >= self.high {
                return Ok(None);
            }
            if clock::now() > patience {
                return Err(VerifyError::Failed(format!(
                    "{} gives nothing beyond offset {} of {}: a transaction on it is undecided",
                    self.of,
                    self.reader.position(),
                    self.high
                )));
            }
            match self.reader.next(Duration::from_millis(500)) {
                Ok(records) => self.fetched = records.into_iter(),
                Err(LogError::Retriable(_)) => std::thread::sleep(Duration::from_millis(100)),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Iterator for Records {
    type Item = Result<Record, VerifyError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.fetch().transpose()
    }
}

/// All that a partition holds now.
fn all(log: &dyn Log, of: &TopicPartition, headers: bool) -> Result<Records, VerifyError> {
    let watermarks = log.watermarks(of)?;
    records(log, of, Ends { low: watermarks.low, high: watermarks.high }, headers)
}

/// An event that has become a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The dead letter.
    pub letter: Letter,
    /// The retry in which it failed; 0 = in its first processing.
    pub retry: u32,
    /// It did not run: the horizon had passed it before its retry was told.
    pub is_overtaken: bool,
}

/// What dead letters prove.
#[derive(Debug, Default)]
pub struct Letters {
    /// The failures of events, by their stamps.
    pub failures: HashMap<Stamp, Vec<Failure>>,
    /// Source records that were refused, by partition and offset.
    pub records: HashSet<(TopicPartition, i64)>,
}

/// Reads the dead letters.
pub fn letters(log: &dyn Log, partitions: &[TopicPartition]) -> Result<Letters, VerifyError> {
    let mut letters = Letters::default();
    for partition in partitions {
        for record in all(log, partition, true)? {
            let record = record?;
            let offset = record.offset;
            let letter = Letter { partition: partition.partition, offset };
            let failed = failure(letter, &record).map_err(|error| refused(partition, offset, &error))?;
            if let Some((stamp, failure)) = failed {
                letters.failures.entry(stamp).or_default().push(failure);
            }
            letters.records.extend(refused_record(&record));
        }
    }
    Ok(letters)
}

fn header<'a>(dead_letter: &'a Record, name: &str) -> Option<&'a str> {
    let found = dead_letter.headers.iter().find(|(header, _)| header == name);
    found.and_then(|(_, value)| std::str::from_utf8(value).ok())
}

/// The place of the source record, where the dead letter is one.
fn refused_record(dead_letter: &Record) -> Option<(TopicPartition, i64)> {
    if header(dead_letter, "tidegate_dead_letter") != Some("record") {
        return None;
    }
    let topic = header(dead_letter, "__streams.errors.topic")?;
    let partition = header(dead_letter, "__streams.errors.partition")?.parse().ok()?;
    let offset = header(dead_letter, "__streams.errors.offset")?.parse().ok()?;
    Some((TopicPartition { topic: topic.into(), partition }, offset))
}

/// The stamp of the event that has failed, where the dead letter is an event.
///
/// # Errors
/// The event is of a newer format.
pub fn failure(letter: Letter, dead_letter: &Record) -> Result<Option<(Stamp, Failure)>, DecodeError> {
    if header(dead_letter, "tidegate_dead_letter") != Some("event") {
        return Ok(None);
    }
    let stamp = header(dead_letter, "tidegate_stamp").and_then(|stamp| stamp.parse().ok());
    let (Some(key), Some(value)) = (dead_letter.key.clone(), dead_letter.value.clone()) else { return Ok(None) };
    let retry = match StampedEvent::decode(key, value) {
        Err(error @ DecodeError::Newer(_)) => return Err(error),
        Ok(event) => event.retry,
        // The event may have a key that no event can have (a bad child).
        Err(DecodeError::Malformed(_)) => 0,
    };
    let is_overtaken = retry > 0 && header(dead_letter, "tidegate_cause") == Some(Cause::BeforeHorizon.as_str());
    Ok(stamp.map(|stamp| (stamp, Failure { letter, retry, is_overtaken })))
}

fn refused(of: &TopicPartition, offset: i64, error: &DecodeError) -> VerifyError {
    VerifyError::Failed(format!("{of} at offset {offset}: {error}"))
}

/// What every key holds, by the changelog.
pub fn state(log: &dyn Log, partitions: &[TopicPartition]) -> Result<BTreeMap<Bytes, Entry>, VerifyError> {
    let mut state = BTreeMap::new();
    for partition in partitions {
        for record in all(log, partition, false)? {
            let record = record?;
            let offset = record.offset;
            apply(&mut state, record).map_err(|error| refused(partition, offset, &error))?;
        }
    }
    Ok(state)
}

/// The greatest stamp wins, a tombstone is absence, the empty key is not an entity's.
pub fn apply(state: &mut BTreeMap<Bytes, Entry>, record: Record) -> Result<(), DecodeError> {
    let Some(key) = record.key.filter(|key| !key.is_empty()) else { return Ok(()) };
    let Some(value) = record.value else {
        state.remove(&key);
        return Ok(());
    };
    let entry = Entry::decode(value)?;
    if state.get(&key).is_none_or(|held| held.stamp <= entry.stamp) {
        state.insert(key, entry);
    }
    Ok(())
}
