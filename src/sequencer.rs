//! Step 1 of 8: the sequencer gives the primary event its stamp and routes it by key.
//!
//! Q1: a source partition is sequenced in the order of its offsets, each record once per commit: its
//!     position and what became of its records are in the same transaction.
//! Q2: a record that is no event is a dead letter with its original bytes; it never stops the partition.
//! Q3: a record whose sequence may be a mistake ([`stamps::Beyond`]), or that a mark says does not come
//!     ([`stamps::Excluded`]), stops its partition until it is judged (protocol P18, P17); nothing behind it is taken.
//! Q4: a mark is told in the transaction that commits the position behind it.

mod excluded;
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
use crate::marks::{Finding, Marks};
use crate::proto;
use crate::stamp::{SEQUENCE_LIMIT, Stamp};
use excluded::Exclusion;
use order::Runs;
use stamps::{Beyond, Excluded, Header};

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
    /// With `header`: what can no longer come.
    exclusion: Exclusion,
    /// With `arrival`: the order received.
    runs: Runs,
}

impl Sequencer {
    /// A sequencer that has met nothing yet.
    pub fn new(config: &config::Source) -> Sequencer {
        let (header, exclusion) = (Header::new(config.max_jump), Exclusion::new(config));
        Sequencer { config: config.clone(), header, exclusion, runs: Runs::default() }
    }

    /// What a record beyond the greatest sequence is measured by.
    pub fn header(&mut self) -> &mut Header {
        &mut self.header
    }

    /// What is known of marks.
    pub fn marks(&self) -> &Marks {
        self.exclusion.marks()
    }

    /// From here on these are known, and positions acknowledge them. Whether there is a greater one among them.
    pub fn know(&mut self, marks: Marks) -> bool {
        self.exclusion.know(marks)
    }

    /// Whether a mark still says of a record that was held that it does not come.
    pub fn holds(&self, held: &Excluded) -> bool {
        self.exclusion.holds(held)
    }

    /// It was found out what came: excluded records are judged by it when they are read again.
    pub fn found(&mut self, finding: Finding) {
        self.exclusion.found(finding);
    }

    /// The order received, with `arrival`.
    pub fn runs(&mut self) -> &mut Runs {
        &mut self.runs
    }

    /// Stamps the records and puts them, or their dead letters, into `outbox`. Gives how many it took, and the record
    /// that has to be judged first, if there is one: the source stands at it (Q3).
    pub fn sequence(&mut self, source: &mut Source, records: Vec<Record>, outbox: &mut Outbox) -> (u64, Option<Held>) {
        let mut taken = 0;
        for record in records {
            if record.offset < source.position {
                continue;
            }
            match self.stamp(source, &record) {
                Ok(Place::Event(stamp)) => match self.decode(&record) {
                    Ok(event) => route(source, event, stamp, record, outbox),
                    Err(reason) => {
                        refuse(source, record, &reason, outbox);
                        outbox.is_dead(&stamp, 0);
                    }
                },
                Ok(Place::Mark(mark)) => {
                    source.position = record.offset + 1;
                    self.tell_mark(mark, outbox);
                }
                Ok(Place::Copy) => source.position = record.offset + 1,
                Err(Stop::Refused(reason)) => refuse(source, record, &reason, outbox),
                Err(Stop::Held(held)) => {
                    // All before it is done: what lies between was no record. A mark's end may lie there.
                    source.position = record.offset;
                    return (taken, Some(held));
                }
            }
            taken += 1;
        }
        (taken, None)
    }

    /// Nothing up to `mark` can still come: to be told, by the committer with the ends that the source partitions then
    /// have. Of several in one transaction the greatest says all.
    pub fn tell_mark(&self, mark: u64, outbox: &mut Outbox) {
        if self.marks().greatest(self.config.epoch).is_some_and(|known| mark <= known) {
            return;
        }
        let known = outbox.told.marks.pop().map_or(0, |known| known.sequence);
        let (epoch, sequence) = (u32::from(self.config.epoch), known.max(mark));
        outbox.told.marks.push(proto::Mark { epoch, sequence, ends: Vec::new() });
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
            mark: self.marks().greatest(self.config.epoch),
        }
    }

    /// What the record is, and its place in the serial order if it has one.
    fn stamp(&mut self, source: &mut Source, record: &Record) -> Result<Place, Stop> {
        let offset = record.offset as u64;
        let (sequence, generation) = match self.config.stamp {
            config::StampSource::Offset if offset < SEQUENCE_LIMIT => (offset, 0),
            config::StampSource::Offset => {
                return Err(Stop::Refused(Reason::new(Cause::NoSequence, "the offset is not below 2^56")));
            }
            config::StampSource::Header => {
                if let Some(mark) = stamps::mark_of(record).map_err(Stop::Refused)? {
                    self.header.admit_mark(&source.of, record.offset, mark)?;
                    return Ok(Place::Mark(mark));
                }
                let (sequence, generation) = stamps::of_headers(&record.headers).map_err(Stop::Refused)?;
                if generation == 0 && self.exclusion.is_copy(&source.of, record.offset, sequence)? {
                    return Ok(Place::Copy);
                }
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
        Ok(Place::Event(Stamp { generation, ..Stamp::root(self.config.epoch, sequence) }))
    }

    fn decode(&self, record: &Record) -> Result<Event, Reason> {
        format::decode(self.config.format, record.key.as_ref(), record.value.as_ref())
            .map_err(|undecodable| Reason::new(undecodable.cause, undecodable.message))
    }
}

/// What a record is.
enum Place {
    /// An event with this place in the serial order.
    Event(Stamp),
    /// A promise: nothing up to this sequence can still come.
    Mark(u64),
    /// An event that came before, and that nobody waits for any more: it may be settled.
    Copy,
}

/// Why a record is not taken.
enum Stop {
    /// It is a dead letter.
    Refused(Reason),
    /// Not before it is judged.
    Held(Held),
}

/// A record that its partition stands at (Q3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// Its sequence may be a mistake.
    Beyond(Beyond),
    /// A mark says that it does not come.
    Excluded(Excluded),
}

impl Held {
    /// The partition.
    pub fn of(&self) -> &TopicPartition {
        match self {
            Held::Beyond(beyond) => &beyond.of,
            Held::Excluded(excluded) => &excluded.of,
        }
    }
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
