//! Reads whole topics, committed records only.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;

use super::VerifyError;
use crate::bookkeeping;
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

/// Whether it is an event that came again or far too late: what came of it at its time is not what this says.
fn is_before_horizon(dead_letter: &Record) -> bool {
    header(dead_letter, "tidegate_cause") == Some(Cause::BeforeHorizon.as_str())
}

/// The place of the source record, where the dead letter is one, or a primary event whose record came too late to be
/// one.
fn refused_record(dead_letter: &Record) -> Option<(TopicPartition, i64)> {
    let stamp = || header(dead_letter, "tidegate_stamp").and_then(|stamp| stamp.parse::<Stamp>().ok());
    let is_root = || stamp().is_some_and(|stamp| stamp.depth() == 0);
    let is_late = || is_before_horizon(dead_letter) && is_root() && retry_of(dead_letter).is_ok_and(|retry| retry == 0);
    if header(dead_letter, "tidegate_dead_letter") != Some("record") && !is_late() {
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
    let retry = retry_of(dead_letter)?;
    let is_late = is_before_horizon(dead_letter);
    // What comes too late to be an event was none: it does not fail one that was before it.
    if is_late && retry == 0 {
        return Ok(None);
    }
    Ok(stamp.map(|stamp| (stamp, Failure { letter, retry, is_overtaken: is_late })))
}

/// The retry number of the event that a dead letter holds; 0 where that cannot be told, since an event may have a key
/// that no event can have (a bad child).
fn retry_of(dead_letter: &Record) -> Result<u32, DecodeError> {
    let (Some(key), Some(value)) = (dead_letter.key.clone(), dead_letter.value.clone()) else { return Ok(0) };
    match StampedEvent::decode(key, value) {
        Err(error @ DecodeError::Newer(_)) => Err(error),
        Ok(event) => Ok(event.retry),
        Err(DecodeError::Malformed(_)) => Ok(0),
    }
}

fn refused(of: &TopicPartition, offset: i64, error: &DecodeError) -> VerifyError {
    VerifyError::Failed(format!("{of} at offset {offset}: {error}"))
}

/// What the changelog says.
#[derive(Debug, Default)]
pub struct State {
    /// What every key holds.
    pub entries: BTreeMap<Bytes, Entry>,
    /// Keys that hold nothing any more.
    pub removed: HashSet<Bytes>,
    /// By partition, up to where its markers may be deleted.
    pub horizons: Vec<Option<u64>>,
}

/// Reads the changelog.
pub fn state(log: &dyn Log, partitions: &[TopicPartition]) -> Result<State, VerifyError> {
    let mut state = State { horizons: vec![None; partitions.len()], ..State::default() };
    for (place, partition) in partitions.iter().enumerate() {
        for record in all(log, partition, false)? {
            let record = record?;
            let offset = record.offset;
            state.apply(place, record).map_err(|error| refused(partition, offset, &error))?;
        }
    }
    Ok(state)
}

impl State {
    /// The next record of a partition: the greatest stamp wins, a tombstone is absence, the empty key is not an
    /// entity's.
    pub fn apply(&mut self, partition: usize, record: Record) -> Result<(), DecodeError> {
        let key = record.key.unwrap_or_default();
        match record.value {
            Some(bookkeeping) if key.is_empty() => {
                self.horizons[partition] = bookkeeping::decode(bookkeeping)?.horizon.max(self.horizons[partition]);
            }
            Some(value) => {
                let entry = Entry::decode(value)?;
                self.removed.remove(&key);
                if self.entries.get(&key).is_none_or(|held| held.stamp <= entry.stamp) {
                    self.entries.insert(key, entry);
                }
            }
            None => {
                self.entries.remove(&key);
                self.removed.insert(key);
            }
        }
        Ok(())
    }
}
