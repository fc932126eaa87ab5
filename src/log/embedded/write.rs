//! Everything that changes the log goes through one [`Staged`] write: it is collected, checked and
//! carried out under the lock on the core (E4), then told to readers (E5).
//!
//! E9: what is in one `Staged` is in the log as a whole or not at all, whenever the process is killed.
//! E10: offsets are given without gaps, in the order of appending, and never twice.

use std::collections::HashMap;

use rocksdb::{WriteBatch, WriteOptions};

use super::batch::{self, BatchWriter};
use super::failed;
use super::schema::{self, PartitionRow, Slot};
use super::state::{Core, Place, Shared};
use crate::clock;
use crate::log::{Append, LogError};

/// Records of one partition, encoded in batches that have no place yet.
pub(super) struct Encoded {
    pub place: Place,
    batches: Vec<(Vec<u8>, u32)>,
    pub records: usize,
}

/// A write being collected.
#[derive(Default)]
pub(super) struct Staged {
    pub write: WriteBatch,
    ends: HashMap<Slot, (Place, i64, u64)>,
}

/// What was written and is still to be told.
pub(super) struct Written(HashMap<Slot, (Place, i64, u64)>);

impl Shared {
    /// Encodes `append`; the costly part of writing, done before the lock is taken.
    pub(super) fn encode(&self, append: &Append, transaction: u64) -> Result<Encoded, LogError> {
        let place = self.place(&append.to)?;
        let now = clock::wall_ms();
        let sizes = append.records.iter().map(batch::record_bytes);
        let mut left: usize = sizes.sum();
        let mut batches = Vec::with_capacity(left / batch::MAX_BATCH_BYTES + 1);
        let capacity = |left: usize, count: usize| (left + 16 * count).min(batch::MAX_BATCH_BYTES + 4096);
        let mut writer = BatchWriter::new(transaction, now, capacity(left, append.records.len()));
        let mut in_batch = 0;
        for record in &append.records {
            let bytes = batch::record_bytes(record);
            if bytes as i64 > place.topic.max_message_bytes {
                return Err(LogError::Refused(format!(
                    "a record of {bytes} bytes for {}: max.message.bytes of the topic is {}",
                    append.to, place.topic.max_message_bytes
                )));
            }
            if place.topic.compacted && record.key.is_none() {
                return Err(LogError::Refused(format!("a record without a key for {}, which is compacted", append.to)));
            }
            if writer.is_full() {
                let next = BatchWriter::new(transaction, now, capacity(left, append.records.len()));
                batches.push((std::mem::replace(&mut writer, next).finish(), in_batch));
                in_batch = 0;
            }
            writer.push(record);
            in_batch += 1;
            left -= bytes;
        }
        if in_batch > 0 {
            batches.push((writer.finish(), in_batch));
        }
        Ok(Encoded { place, batches, records: append.records.len() })
    }

    /// Carries a write out and tells readers. Nothing has changed when it fails.
    pub(super) fn carry_out(&self, core: &Core, staged: Staged) -> Result<(), LogError> {
        let written = self.put(staged)?;
        self.tell(core, written);
        Ok(())
    }

    /// The first half of [`Shared::carry_out`], for those who change the core in between.
    pub(super) fn put(&self, staged: Staged) -> Result<Written, LogError> {
        let mut options = WriteOptions::default();
        options.set_sync(self.options.sync);
        self.db.write_opt(staged.write, &options).map_err(failed)?;
        Ok(Written(staged.ends))
    }

    /// The second half.
    pub(super) fn tell(&self, core: &Core, written: Written) {
        for (place, end, bytes) in written.0.into_values() {
            self.publish_end(core, place.get(), end);
            self.note_growth(&place, bytes);
        }
        self.bell.ring();
    }
}

impl Staged {
    /// Gives the records their offsets; the first of them.
    pub(super) fn records(&mut self, encoded: &Encoded) -> i64 {
        let first = self.end(&encoded.place);
        let mut base = first;
        let mut bytes = 0;
        for (value, records) in &encoded.batches {
            self.write.put(schema::batch(encoded.place.get().slot, base), value);
            base += i64::from(*records);
            bytes += value.len() as u64;
        }
        self.raise(&encoded.place, base, bytes);
        first
    }

    /// Marks the end of `transaction` in the partition.
    pub(super) fn marker(&mut self, place: &Place, transaction: u64) {
        let base = self.end(place);
        self.write.put(schema::batch(place.get().slot, base), batch::marker(transaction, clock::wall_ms()));
        self.raise(place, base + 1, 0);
    }

    /// Makes `position` the group's.
    pub(super) fn offset(&mut self, group: &str, slot: Slot, position: i64, metadata: &str) {
        self.write.put(schema::offset(group, slot), schema::encode_committed(position, metadata));
    }

    pub(super) fn partition(&mut self, slot: Slot, row: PartitionRow) {
        self.write.put(schema::partition(slot), row.encode());
    }

    /// The next offset to be given, this write included.
    pub(super) fn end(&self, place: &Place) -> i64 {
        self.ends.get(&place.get().slot).map_or_else(|| place.get().end(), |(_, end, _)| *end)
    }

    fn raise(&mut self, place: &Place, end: i64, bytes: u64) {
        let entry = self.ends.entry(place.get().slot).or_insert_with(|| (place.clone(), end, 0));
        entry.1 = end;
        entry.2 += bytes;
    }
}
