//! Step 1 of 8: the sequencer gives the primary event its stamp and routes it by key.
//!
//! Q1: a source partition is sequenced in the order of its offsets, each record once per commit: its
//!     position and what became of its records are in the same transaction.
//! Q2: a record that is no event is a dead letter with its original bytes; it never stops the partition.

pub mod format;

use std::sync::Arc;

use crate::cause::Cause;
use crate::config::Format;
use crate::counts::Count;
use crate::dead_letter::Reason;
use crate::event::{Event, StampedEvent, encode_origin};
use crate::log::outbox::{MAX_VALUE, Outbox};
use crate::log::{Record, TopicPartition};
use crate::proto;
use crate::stamp::{SEQUENCE_LIMIT, Stamp};

/// One source partition that this member reads.
#[derive(Debug)]
pub struct Source {
    /// Which one.
    pub of: TopicPartition,
    /// Tells the topic from a later one of the same name.
    pub topic_id: Arc<str>,
    /// The next offset to sequence.
    pub position: i64,
    /// The position last committed.
    pub committed: i64,
    /// How records are read.
    pub format: Format,
    /// The upper 8 bits of every sequence.
    pub epoch: u8,
}

impl Source {
    /// Stamps the records and puts them, or their dead letters, into `outbox`.
    pub fn sequence(&mut self, records: Vec<Record>, outbox: &mut Outbox) {
        for record in records {
            if record.offset < self.position {
                continue;
            }
            self.position = record.offset + 1;
            match self.decode(&record) {
                Ok(event) => self.route(event, record, outbox),
                Err(reason) => self.refuse(record, &reason, outbox),
            }
        }
    }

    /// How far this partition is sequenced, for `<app>-progress`.
    pub fn progress(&self) -> proto::SourcePosition {
        proto::SourcePosition {
            topic: self.of.topic.to_string(),
            topic_id: self.topic_id.to_string(),
            partition: self.of.partition,
            position: self.position,
        }
    }

    fn decode(&self, record: &Record) -> Result<Event, Reason> {
        if record.offset as u64 >= SEQUENCE_LIMIT {
            return Err(Reason::new(Cause::NoSequence, "the offset is not below 2^56"));
        }
        format::decode(self.format, record.key.as_ref(), record.value.as_ref())
            .map_err(|undecodable| Reason::new(undecodable.cause, undecodable.message))
    }

    fn route(&self, event: Event, record: Record, outbox: &mut Outbox) {
        let stamp = Stamp::root(self.epoch, record.offset as u64);
        let origin = encode_origin(&self.of.topic, self.of.partition, record.offset, record.timestamp_ms);
        let stamped = StampedEvent { event, stamp, origin, retry: 0 };
        let value = outbox.encode(&stamped);
        if value.len() > MAX_VALUE {
            let message = format!("{} bytes with its stamp; at most {MAX_VALUE} fit", value.len());
            return self.refuse(record, &Reason::new(Cause::TooLarge, message), outbox);
        }
        outbox.counts.push(Count::produced(&stamped.stamp, 0));
        outbox.route(stamped.event.key, value);
    }

    fn refuse(&self, record: Record, reason: &Reason, outbox: &mut Outbox) {
        let origin = proto::Origin {
            topic: self.of.topic.to_string(),
            partition: self.of.partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
        };
        outbox.refuse_record(record.key, record.value, reason, &origin);
    }
}
