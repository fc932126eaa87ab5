//! What `<app>-progress` says about the past: how far source partitions were sequenced, under which settings, and to
//! which topics.
//!
//! H1: only the application's own records tell whether it starts for the first time; the group's positions
//!     expire (protocol P17, P23).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use crate::config;
use crate::counts::{self, COUNTS};
use crate::event::{DecodeError, check_version, unless_newer};
use crate::log::whole::{self, Until};
use crate::log::{Log, LogError, NewRecord, Record, TopicPartition};
use crate::proto;
use crate::stamp::SEQUENCE_LIMIT;
use crate::topics::KIND;

/// What was told of the source partitions so far.
#[derive(Debug, Default)]
pub struct History {
    /// The last word about each.
    positions: BTreeMap<(String, i32), proto::SourcePosition>,
    /// The greatest sequence of each epoch, with `stamp = "header"`.
    greatest: BTreeMap<u32, u64>,
    /// Every epoch that was sequenced under.
    epochs: BTreeSet<u32>,
    /// The last word about the ids of the application's own topics, by name.
    topic_ids: BTreeMap<String, String>,
    /// There is no record at all.
    empty: bool,
}

/// Why the past does not go with the configuration. The message names the key and the next step.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Break(pub String);

/// What the header `tidegate_kind` says of parts of snapshots.
const SNAPSHOT: &[u8] = b"snapshot";

/// The record that tells what a transaction has counted.
pub fn counts_record(progress: &proto::Progress) -> NewRecord {
    of_kind(COUNTS, progress)
}

/// The record of a part of a snapshot.
pub fn snapshot_record(part: &proto::Snapshot) -> NewRecord {
    of_kind(SNAPSHOT, part)
}

fn of_kind(kind: &'static [u8], message: &impl Message) -> NewRecord {
    let headers = vec![(KIND.to_owned(), Bytes::from_static(kind))];
    NewRecord { key: None, value: Some(message.encode_to_vec().into()), headers }
}

/// What a record of `<app>-progress` tells.
#[derive(Debug)]
pub enum Told {
    /// What a transaction has counted.
    Counts(proto::Progress),
    /// A part of what all records below a position come to.
    Snapshot(Box<proto::Snapshot>),
    /// Something of a later version.
    Else,
}

/// Reads a record of `<app>-progress`.
///
/// # Errors
/// [`LogError::Fatal`] for one that cannot be read: whoever misses one miscounts.
pub fn read(of: &TopicPartition, record: Record) -> Result<Told, LogError> {
    let kind = record.headers.iter().find(|(name, _)| name == KIND).map(|(_, kind)| kind);
    let told = match kind {
        Some(kind) if kind == COUNTS => value(record.value).and_then(counts::decode).map(Told::Counts),
        Some(kind) if kind == SNAPSHOT => {
            value(record.value).and_then(decode_snapshot).map(|part| Told::Snapshot(Box::new(part)))
        }
        _ => Ok(Told::Else),
    };
    told.map_err(|error| LogError::Fatal(format!("{of} at offset {}: {error}", record.offset)))
}

fn value(value: Option<Bytes>) -> Result<Bytes, DecodeError> {
    value.ok_or_else(|| DecodeError::Malformed("a record without value".into()))
}

fn decode_snapshot(value: Bytes) -> Result<proto::Snapshot, DecodeError> {
    let snapshot = proto::Snapshot::decode(value.clone()).map_err(|error| unless_newer(error.into(), value))?;
    check_version(u64::from(snapshot.format_version))?;
    Ok(snapshot)
}

impl History {
    /// Reads the whole topic.
    ///
    /// # Errors
    /// What the log says; [`LogError::Fatal`] for a record that cannot be read.
    pub fn read(log: &dyn Log, of: &TopicPartition, until: Until) -> Result<History, LogError> {
        let mut history = History { empty: true, ..History::default() };
        whole::read(log, of, true, until, |record| {
            history.empty = false;
            match read(of, record)? {
                Told::Counts(progress) => {
                    progress.source_positions.into_iter().for_each(|at| history.take(at));
                    history.topic_ids.extend(progress.topics.into_iter().map(|topic| (topic.topic, topic.topic_id)));
                }
                // What it tells may be older than what was read before it.
                Told::Snapshot(snapshot) => {
                    history.epochs.extend(snapshot.epochs.iter().map(|epoch| epoch.epoch));
                    for epoch in snapshot.epochs.iter().filter(|epoch| !epoch.is_ordered) {
                        history.greatest_is(epoch.epoch, (epoch.end & (SEQUENCE_LIMIT - 1)).checked_sub(1));
                    }
                    snapshot.source_positions.into_iter().for_each(|at| history.take(at));
                    for topic in snapshot.topics {
                        history.topic_ids.entry(topic.topic).or_insert(topic.topic_id);
                    }
                }
                Told::Else => {}
            }
            Ok(())
        })?;
        Ok(history)
    }

    fn take(&mut self, at: proto::SourcePosition) {
        self.epochs.insert(at.epoch);
        self.greatest_is(at.epoch, at.greatest);
        let key = (at.topic.clone(), at.partition);
        let place = |at: &proto::SourcePosition| (at.epoch, at.position);
        // A snapshot may tell of a topic that was created anew since, under a higher epoch.
        let is_older = |known: &proto::SourcePosition| {
            known.epoch > at.epoch || (known.topic_id == at.topic_id && place(known) > place(&at))
        };
        if !self.positions.get(&key).is_some_and(is_older) {
            self.positions.insert(key, at);
        }
    }

    fn greatest_is(&mut self, epoch: u32, greatest: Option<u64>) {
        if let Some(sequence) = greatest {
            let greatest = self.greatest.entry(epoch).or_default();
            *greatest = sequence.max(*greatest);
        }
    }

    /// The greatest sequence of an epoch, without the epoch.
    pub fn greatest(&self, epoch: u8) -> Option<u64> {
        self.greatest.get(&u32::from(epoch)).copied().filter(|sequence| *sequence < SEQUENCE_LIMIT)
    }

    /// Where a partition is to be read on, if it was ever read; 0 for a topic that was created anew under a
    /// higher epoch. `topic_id` is that of the topic now.
    pub fn position(&self, of: &TopicPartition, topic_id: &str) -> Option<i64> {
        let at = self.positions.get(&(of.topic.to_string(), of.partition))?;
        Some(if at.topic_id == topic_id { at.position } else { 0 })
    }

    /// Whether the topic of a partition is another one than when it was read last.
    pub fn is_renewed(&self, of: &TopicPartition, topic_id: &str) -> bool {
        let at = self.positions.get(&(of.topic.to_string(), of.partition));
        at.is_some_and(|at| !at.topic_id.is_empty() && at.topic_id != topic_id)
    }

    /// Whether nothing was ever told, not even at a start.
    pub fn is_empty(&self) -> bool {
        self.empty
    }

    /// Whether events were sequenced.
    pub fn has_run(&self) -> bool {
        !self.positions.is_empty()
    }

    /// The id of one of the application's own topics, as it was at the last start that told it.
    pub fn topic_id(&self, topic: &str) -> Option<&str> {
        self.topic_ids.get(topic).map(String::as_str)
    }

    /// Whether events were sequenced under another epoch than this one.
    pub fn has_other_epochs(&self, epoch: u8) -> bool {
        self.epochs.iter().any(|other| *other != u32::from(epoch))
    }

    /// Whether the application may go on with this configuration. `topic_ids` are those of the source topics now.
    ///
    /// # Errors
    /// [`Break`], where its order would turn around: epoch or stamp source going back, or a source topic that
    /// was created anew and starts its offsets over.
    pub fn allows(&self, config: &config::Source, topic_ids: &BTreeMap<Arc<str>, Arc<str>>) -> Result<(), Break> {
        let epoch = u32::from(config.epoch);
        let highest = self.positions.values().map(|at| at.epoch).max().unwrap_or(epoch);
        if epoch < highest {
            return Err(Break(format!(
                "source.epoch = {epoch}, but this application has already received events of epoch {highest}: every new \
                 event would be older than the state; set source.epoch = {highest} or higher"
            )));
        }
        for at in self.positions.values().filter(|at| at.epoch == epoch) {
            let elsewhere = !config.topics.contains(&at.topic);
            if elsewhere && config.stamp == config::StampSource::Offset {
                return Err(Break(format!(
                    "source.topics = {:?}, but this application's events have their order from the offsets of {:?} so \
                     far, and offsets of two topics cannot be compared; to read the other one as later than all that \
                     was, raise source.epoch (now {epoch}); or use another application.id",
                    config.topics, at.topic
                )));
            }
            let stamp = if at.stamp.is_empty() { "offset" } else { &at.stamp };
            if stamp != config.stamp.as_str() {
                return Err(Break(format!(
                    "source.stamp = {:?}, but this application's events have their order from {stamp:?} so far, and the \
                     two orders cannot be compared; set source.stamp = {stamp:?}, or raise source.epoch (now {epoch}) so \
                     that all that comes counts as later than all that was",
                    config.stamp.as_str()
                )));
            }
            let renewed = topic_ids.get(at.topic.as_str()).is_some_and(|id| **id != *at.topic_id);
            if renewed && !at.topic_id.is_empty() {
                return Err(Break(format!(
                    "source topic {:?} is not the one that this application has read: it was deleted and created again, \
                     and its offsets start over; to read the new one from its beginning, as later than all that was, \
                     raise source.epoch (now {epoch}); or use another application.id",
                    at.topic
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StampSource;

    fn at(partition: i32, position: i64, epoch: u32, id: &str) -> proto::SourcePosition {
        proto::SourcePosition {
            topic: "t".into(),
            topic_id: id.into(),
            partition,
            position,
            epoch,
            stamp: "header".into(),
            greatest: Some(position as u64 * 10),
            mark: None,
        }
    }

    fn history(all: Vec<proto::SourcePosition>) -> History {
        let mut history = History::default();
        all.into_iter().for_each(|at| history.take(at));
        history
    }

    fn source(stamp: StampSource, epoch: u8) -> config::Source {
        config::Source { topics: vec!["t".into()], stamp, epoch, ..config::Source::default() }
    }

    #[test]
    fn what_would_turn_the_order_around_is_refused_unless_the_epoch_rises() {
        let ids = |id: &str| BTreeMap::from([(Arc::from("t"), Arc::from(id))]);
        let history = history(vec![at(0, 5, 1, "a"), at(1, 9, 1, "a"), at(0, 6, 1, "a")]);
        let says = |config: &config::Source, id: &str| history.allows(config, &ids(id)).map_err(|error| error.0);
        assert_eq!(says(&source(StampSource::Header, 1), "a"), Ok(()));
        assert_eq!(says(&source(StampSource::Header, 2), "a"), Ok(()));
        assert_eq!(says(&source(StampSource::Offset, 2), "b"), Ok(()), "all that comes is later");
        assert!(says(&source(StampSource::Header, 0), "a").unwrap_err().contains("source.epoch = 0"));
        assert!(says(&source(StampSource::Offset, 1), "a").unwrap_err().contains("source.stamp = \"offset\""));
        assert!(says(&source(StampSource::Header, 1), "b").unwrap_err().contains("created again"));
        let other = |stamp| config::Source { topics: vec!["u".into()], ..source(stamp, 1) };
        assert_eq!(says(&other(StampSource::Header), "a"), Ok(()), "sequences of all topics are of one kind");
    }

    #[test]
    fn offsets_of_another_topic_are_no_order() {
        let history = history(vec![proto::SourcePosition { stamp: String::new(), ..at(0, 5, 0, "a") }]);
        let says = |topic: &str, epoch| {
            let config = config::Source { topics: vec![topic.into()], epoch, ..config::Source::default() };
            history.allows(&config, &BTreeMap::new()).map_err(|error| error.0)
        };
        assert_eq!(says("t", 0), Ok(()));
        assert!(says("u", 0).unwrap_err().contains("cannot be compared"));
        assert_eq!(says("u", 1), Ok(()));
    }

    #[test]
    fn positions_are_the_last_and_a_new_topic_begins_at_its_beginning() {
        let history = history(vec![at(0, 5, 0, "a"), at(0, 7, 0, "a"), at(1, 3, 0, "a")]);
        let of = |partition| TopicPartition::new(&Arc::from("t"), partition);
        assert_eq!(history.position(&of(0), "a"), Some(7));
        assert_eq!(history.position(&of(0), "b"), Some(0));
        assert_eq!(history.position(&of(2), "a"), None);
        assert_eq!((history.greatest(0), history.greatest(1)), (Some(70), None));
    }

    #[test]
    fn what_is_told_late_of_a_lower_epoch_is_older() {
        let history = history(vec![at(0, 1000, 0, "a"), at(0, 10, 1, "b"), at(0, 1000, 0, "a")]);
        assert_eq!(history.position(&TopicPartition::new(&Arc::from("t"), 0), "b"), Some(10));
    }
}
