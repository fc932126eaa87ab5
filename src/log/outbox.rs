//! Records on their way into the next transaction, grouped by partition as the log wants them.

use bytes::{Bytes, BytesMut};

use super::{Append, Headers, NewRecord, TopicPartition};
use crate::cause::Cause;
use crate::counts::{Count, dead_letters};
use crate::dead_letter::{self, Reason};
use crate::event::StampedEvent;
use crate::proto::{self, Origin};
use crate::stamp::Stamp;
use crate::topics::{Topics, partition_of};

/// How much memory the encoded values share at a time.
const CHUNK: usize = 64 << 10;

/// The longest value of a record of an internal topic, in bytes: with key and headers it stays below
/// the default limit of brokers and clients (1,000,000).
pub const MAX_VALUE: usize = 950_000;

/// The longest original value that a dead letter carries, in bytes; a longer one is cut, and a header says
/// how long it was. A source topic may hold records that are larger than what can be appended here.
const MAX_ORIGINAL: usize = 900_000;

/// The same for keys.
const MAX_ORIGINAL_KEY: usize = 50_000;

/// What the next transaction appends, except for the changelog, whose last entry per key is known
/// only when it is sent.
#[derive(Debug, Default)]
pub struct Outbox {
    repartition: Vec<Vec<NewRecord>>,
    dead_letters: Vec<Vec<NewRecord>>,
    arena: BytesMut,
    /// Per root and depth.
    pub counts: Vec<Count>,
    /// What the transaction tells in `<app>-progress` beside its counts.
    pub told: proto::Progress,
    /// Dead letters by cause, for the metrics after the commit.
    pub causes: Vec<Cause>,
    /// What the records take in memory, in bytes, roughly.
    pub bytes: usize,
    /// Children among the records.
    pub children: u64,
}

impl Outbox {
    /// An empty one for internal topics of `partitions` partitions.
    pub fn new(partitions: i32) -> Outbox {
        let empty = || vec![Vec::new(); partitions as usize];
        Outbox { repartition: empty(), dead_letters: empty(), ..Outbox::default() }
    }

    /// Encodes an event in the shared memory.
    pub fn encode(&mut self, event: &StampedEvent) -> Bytes {
        let expected = event.weight();
        if self.arena.capacity() - self.arena.len() < expected {
            self.arena = BytesMut::with_capacity(CHUNK.max(expected));
        }
        event.encode(&mut self.arena);
        self.arena.split().freeze()
    }

    /// Appends an encoded event to the partition that owns its key.
    pub fn route(&mut self, key: Bytes, value: Bytes) {
        let partition = partition_of(&key, self.repartition.len() as i32);
        self.bytes += key.len() + value.len() + 100;
        self.repartition[partition as usize].push(NewRecord {
            key: Some(key),
            value: Some(value),
            headers: Headers::new(),
        });
    }

    /// Appends a source record that is no event, with its original bytes. One that has a place in the order is told of
    /// by [`Outbox::is_dead`], too.
    pub fn refuse_record(&mut self, key: Option<Bytes>, value: Option<Bytes>, reason: &Reason, origin: &Origin) {
        let mut headers = dead_letter::headers(reason, origin, None);
        let value = value.map(|value| {
            if value.len() <= MAX_ORIGINAL {
                return value;
            }
            headers.push(("tidegate_cut_from_bytes".into(), Bytes::from(value.len().to_string())));
            value.slice(..MAX_ORIGINAL)
        });
        // A key that long is cut like a value: what cannot be written would stop the partition for good.
        let key = key.map(|key| if key.len() <= MAX_ORIGINAL_KEY { key } else { key.slice(..MAX_ORIGINAL_KEY) });
        self.put_dead_letter(NewRecord { key, value, headers }, reason.cause);
    }

    /// Appends an event that cannot be handled.
    pub fn refuse_event(&mut self, event: &StampedEvent, attempts: u32, reason: &Reason, origin: &Origin) {
        let value = self.encode(event);
        let headers = dead_letter::headers(reason, origin, Some((&event.stamp, attempts)));
        let record = NewRecord { key: Some(event.event.key.clone()), value: Some(value), headers };
        self.put_dead_letter(record, reason.cause);
        self.is_dead(&event.stamp, event.retry);
    }

    /// Tells in `<app>-progress` that what has this stamp became a dead letter.
    pub fn is_dead(&mut self, stamp: &Stamp, retry: u32) {
        self.told.dead_letters.push(dead_letters::one(stamp, retry));
    }

    fn put_dead_letter(&mut self, record: NewRecord, cause: Cause) {
        let partition = record.key.as_ref().map_or(0, |key| partition_of(key, self.dead_letters.len() as i32));
        self.bytes += record.value.as_ref().map_or(0, Bytes::len) + 600;
        self.causes.push(cause);
        self.dead_letters[partition as usize].push(record);
    }

    /// Whether a transaction would have nothing of it.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty() && self.bytes == 0 && self.told == proto::Progress::default()
    }

    /// The records, each partition's in the order in which they were put.
    pub fn into_appends(self, topics: &Topics) -> Vec<Append> {
        let of =
            |topic, lists: Vec<Vec<NewRecord>>| {
                lists.into_iter().enumerate().filter(|(_, records)| !records.is_empty()).map(
                    move |(partition, records)| Append { to: TopicPartition::new(topic, partition as i32), records },
                )
            };
        of(&topics.repartition, self.repartition).chain(of(&topics.dead_letter, self.dead_letters)).collect()
    }
}
