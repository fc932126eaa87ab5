//! Step 1 of 8: the sequencer gives the primary event its stamp and routes it by key.
//!
//! Q1: a source partition is sequenced in the order of its offsets, each record once per commit: its
//!     position and what became of its records are in the same transaction.
//! Q2: a record that is no event is a dead letter with its original bytes; it never stops the partition.
//! Q3: a record whose sequence may be a mistake ([`stamps::Beyond`]) stops its partition until it is judged
//!     (protocol P18); nothing behind it is taken.

pub mod format;
pub mod order;
pub mod stamps;

use std::sync::Arc;

use crate::cause::Cause;
use crate::config;
use crate::counts::Count;
use crate::dead_letter::Reason;
use crate::event::{Event, StampedEvent, encode_origin};
use crate::log::outbox::{MAX_VALUE, Outbox};
use crate::log::{Record, TopicPartition};
use crate::proto;
use crate::stamp::{SEQUENCE_LIMIT, Stamp};
use order::Runs;
use stamps::{Beyond, Header};

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
    /// The greatest sequence met in it, without the epoch.
    greatest: Option<u64>,
}

impl Source {
    /// A partition whose next record is at `position`.
    pub fn new(of: TopicPartition, topic_id: Arc<str>, position: i64) -> Source {
        Source { of, topic_id, position, committed: position, greatest: None }
    }
}

/// Stamps what an engine thread reads of the source topics.
#[derive(Debug)]
pub struct Sequencer {
    config: config::Source,
    /// With `header`: what a sequence is measured by.
    header: Header,
    /// With `arrival`: the order received.
    runs: Runs,
}

impl Sequencer {
    /// A sequencer that has met nothing yet.
    pub fn new(config: &config::Source) -> Sequencer {
        Sequencer { config: config.clone(), header: Header::new(config.max_jump), runs: Runs::default() }
    }

    /// What a record beyond the greatest sequence is measured by.
    pub fn header(&mut self) -> &mut Header {
        &mut self.header
    }

    /// The order received, with `arrival`.
    pub fn runs(&mut self) -> &mut Runs {
        &mut self.runs
    }

    /// Stamps the records and puts them, or their dead letters, into `outbox`. Gives how many it took, and the record
    /// that has to be judged first, if there is one: the source stands at it (Q3).
    pub fn sequence(
        &mut self,
        source: &mut Source,
        records: Vec<Record>,
        outbox: &mut Outbox,
    ) -> (u64, Option<Beyond>) {
        let mut taken = 0;
        for record in records {
            if record.offset < source.position {
                continue;
            }
            match self.stamp(source, &record) {
                Ok(Some(stamp)) => match self.decode(&record) {
                    Ok(event) => route(source, event, stamp, record, outbox),
                    Err(reason) => {
                        refuse(source, record, &reason, outbox);
                        outbox.is_dead(&stamp, 0);
                    }
                },
                Ok(None) => source.position = record.offset + 1,
                Err(Stop::Refused(reason)) => refuse(source, record, &reason, outbox),
                Err(Stop::Beyond(beyond)) => return (taken, Some(beyond)),
            }
            taken += 1;
        }
        (taken, None)
    }

    /// How far a partition is sequenced, for `<app>-progress`.
    pub fn progress(&self, source: &Source) -> proto::SourcePosition {
        proto::SourcePosition {
            topic: source.of.topic.to_string(),
            topic_id: source.topic_id.to_string(),
            partition: source.of.partition,
            position: source.position,
            epoch: u32::from(self.config.epoch),
            stamp: self.config.stamp.as_str().to_owned(),
            greatest: source.greatest,
        }
    }

    /// The record's place in the serial order; `None` for a record that is no event at all.
    fn stamp(&mut self, source: &mut Source, record: &Record) -> Result<Option<Stamp>, Stop> {
        let offset = record.offset as u64;
        let (sequence, generation) = match self.config.stamp {
            config::StampSource::Offset if offset < SEQUENCE_LIMIT => (offset, 0),
            config::StampSource::Offset => {
                return Err(Stop::Refused(Reason::new(Cause::NoSequence, "the offset is not below 2^56")));
            }
            config::StampSource::Header => {
                if stamps::is_mark(record) {
                    return Ok(None);
                }
                let (sequence, generation) = stamps::of_headers(&record.headers).map_err(Stop::Refused)?;
                self.header.admit(&source.of, record.offset, sequence)?;
                source.greatest = source.greatest.max(Some(sequence));
                (sequence, generation)
            }
            config::StampSource::Arrival => {
                let sequence = self.runs.next(&source.of, record.offset);
                source.greatest = Some(sequence);
                (sequence, 0)
            }
        };
        Ok(Some(Stamp { generation, ..Stamp::root(self.config.epoch, sequence) }))
    }

    fn decode(&self, record: &Record) -> Result<Event, Reason> {
        format::decode(self.config.format, record.key.as_ref(), record.value.as_ref())
            .map_err(|undecodable| Reason::new(undecodable.cause, undecodable.message))
    }
}

/// Why a record is not stamped.
pub enum Stop {
    /// It never will be.
    Refused(Reason),
    /// Not before it is judged.
    Beyond(Beyond),
}

fn route(source: &mut Source, event: Event, stamp: Stamp, record: Record, outbox: &mut Outbox) {
    let origin = encode_origin(&source.of.topic, source.of.partition, record.offset, record.timestamp_ms);
    let stamped = StampedEvent { event, stamp, origin, retry: 0 };
    let value = outbox.encode(&stamped);
    if value.len() > MAX_VALUE {
        let message = format!("{} bytes with its stamp; at most {MAX_VALUE} fit", value.len());
        outbox.is_dead(&stamped.stamp, 0);
        return refuse(source, record, &Reason::new(Cause::TooLarge, message), outbox);
    }
    source.position = record.offset + 1;
    outbox.counts.push(Count::produced(&stamped.stamp, 0));
    outbox.route(stamped.event.key, value);
}

fn refuse(source: &mut Source, record: Record, reason: &Reason, outbox: &mut Outbox) {
    source.position = record.offset + 1;
    let origin = proto::Origin {
        topic: source.of.topic.to_string(),
        partition: source.of.partition,
        offset: record.offset,
        timestamp_ms: record.timestamp_ms,
    };
    outbox.refuse_record(record.key, record.value, reason, &origin);
}
