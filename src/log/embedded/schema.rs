//! Every key and every small value of the embedded log's RocksDB, on one screen.
//!
//! | key                                         | value                                              |
//! | ------------------------------------------- | -------------------------------------------------- |
//! | `c`                                         | the last topic number given, 8 bytes               |
//! | `m`                                         | [`MetaRow`]: format version, the log's own id      |
//! | `n`                                         | the last transaction number given, 8 bytes         |
//! | `o` group length, group, topic, partition   | position, 8 bytes, then its metadata               |
//! | `p` topic, partition                        | [`PartitionRow`]: low watermark, end of clean part |
//! | `r` topic, partition, base offset           | a batch of records, see `batch.rs`                 |
//! | `t` topic's name                            | [`TopicRow`]                                       |
//! | `x` transaction number                      | [`TransactionRow`]: undecided or aborted           |
//!
//! E1: all numbers in keys are big endian, so that a partition's batches are neighbours, in the
//!     order of their offsets.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::log::Committed;

/// The layout of this file and of `batch.rs`; a folder with another one is refused.
pub(super) const FORMAT: u32 = 1;

/// A partition's place in the keys: its topic's number and its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Slot {
    pub topic: u32,
    pub partition: u32,
}

/// Which log this is.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct MetaRow {
    pub format: u32,
    pub id: String,
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TopicRow {
    /// Never given again, also not to a topic of the same name.
    pub number: u32,
    pub id: String,
    pub partitions: u32,
    pub settings: Vec<(String, String)>,
}

/// What a partition knows beside its batches; absent while all of it is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PartitionRow {
    /// The first offset that may be read.
    pub low: i64,
    /// Up to here compaction has been.
    pub clean: i64,
}

/// A transaction's records in one partition: they lie between the two, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Span {
    pub slot: Slot,
    pub first: i64,
    pub last: i64,
}

/// A position that becomes the group's when the transaction is committed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PendingOffset {
    pub group: String,
    pub slot: Slot,
    pub position: i64,
    pub metadata: String,
}

/// A transaction that is undecided, or aborted with records that are still there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TransactionRow {
    /// The transactional id that began it.
    pub id: String,
    pub aborted: bool,
    pub spans: Vec<Span>,
    pub offsets: Vec<PendingOffset>,
}

pub(super) const LAST_TOPIC: &[u8] = b"c";
pub(super) const META: &[u8] = b"m";
pub(super) const LAST_TRANSACTION: &[u8] = b"n";
pub(super) const TOPICS: &[u8] = b"t";
pub(super) const TRANSACTIONS: &[u8] = b"x";
pub(super) const OFFSETS: &[u8] = b"o";

pub(super) fn topic(name: &str) -> Vec<u8> {
    [TOPICS, name.as_bytes()].concat()
}

pub(super) fn transaction(number: u64) -> [u8; 9] {
    let mut key = [b'x'; 9];
    key[1..].copy_from_slice(&number.to_be_bytes());
    key
}

pub(super) fn partition(slot: Slot) -> [u8; 9] {
    slot_key(b'p', slot)
}

pub(super) fn batch(slot: Slot, base: i64) -> [u8; 17] {
    let mut key = [0; 17];
    key[..9].copy_from_slice(&slot_key(b'r', slot));
    key[9..].copy_from_slice(&base.to_be_bytes());
    key
}

/// The first key behind a partition's batches.
pub(super) fn batches_end(slot: Slot) -> [u8; 17] {
    let mut key = [0xff; 17];
    key[..9].copy_from_slice(&slot_key(b'r', slot));
    key
}

/// The base offset in a batch's key, if it is one of the partition.
pub(super) fn base_of(key: &[u8], slot: Slot) -> Option<i64> {
    let base = key.strip_prefix(&slot_key(b'r', slot))?;
    Some(i64::from_be_bytes(base.try_into().ok()?))
}

/// The prefix of all keys made by [`offset`] for a group, and of no other's.
pub(super) fn offsets_of(group: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(group.len() + 13);
    key.extend_from_slice(OFFSETS);
    key.extend_from_slice(&(group.len() as u32).to_be_bytes());
    key.extend_from_slice(group.as_bytes());
    key
}

pub(super) fn offset(group: &str, slot: Slot) -> Vec<u8> {
    let mut key = offsets_of(group);
    key.extend_from_slice(&slot.topic.to_be_bytes());
    key.extend_from_slice(&slot.partition.to_be_bytes());
    key
}

/// The topic's number in a key made by [`offset`].
pub(super) fn topic_of_offset(key: &[u8]) -> Option<u32> {
    let number = key.get(key.len().checked_sub(8)?..key.len() - 4)?;
    Some(u32::from_be_bytes(number.try_into().ok()?))
}

fn slot_key(prefix: u8, slot: Slot) -> [u8; 9] {
    let mut key = [prefix; 9];
    key[1..5].copy_from_slice(&slot.topic.to_be_bytes());
    key[5..].copy_from_slice(&slot.partition.to_be_bytes());
    key
}

pub(super) fn encode_committed(position: i64, metadata: &str) -> Vec<u8> {
    let mut value = position.to_be_bytes().to_vec();
    value.extend_from_slice(metadata.as_bytes());
    value
}

pub(super) fn decode_committed(value: &[u8]) -> Option<Committed> {
    let (position, metadata) = value.split_first_chunk::<8>()?;
    let metadata = String::from_utf8(metadata.to_vec()).ok()?;
    Some(Committed { position: i64::from_be_bytes(*position), metadata })
}

impl PartitionRow {
    pub(super) fn encode(self) -> [u8; 16] {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&self.low.to_be_bytes());
        value[8..].copy_from_slice(&self.clean.to_be_bytes());
        value
    }

    pub(super) fn decode(value: &[u8]) -> Option<PartitionRow> {
        let (low, clean) = value.split_first_chunk::<8>()?;
        Some(PartitionRow { low: i64::from_be_bytes(*low), clean: i64::from_be_bytes(clean.try_into().ok()?) })
    }
}

/// A row of the rare tables; readable in a hex dump.
pub(super) fn encode_row(row: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(row).expect("rows have only strings as map keys")
}

pub(super) fn decode_row<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Option<T> {
    serde_json::from_slice(value).ok()
}

/// What a [`crate::log::Membership`] says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MembershipRow {
    pub group: String,
    pub member: String,
    pub generation: i32,
}

impl MembershipRow {
    pub(super) fn encode(&self) -> Bytes {
        encode_row(self).into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slots() -> impl Strategy<Value = Slot> {
        (any::<u32>(), 0..i32::MAX as u32).prop_map(|(topic, partition)| Slot { topic, partition })
    }

    proptest! {
        /// E1.
        #[test]
        fn batches_sort_by_partition_then_offset(a in slots(), b in slots(), x in 0..i64::MAX, y in 0..i64::MAX) {
            prop_assert_eq!(batch(a, x).cmp(&batch(b, y)), (a, x).cmp(&(b, y)));
            prop_assert!(batch(a, x) < batches_end(a));
            prop_assert_eq!(batches_end(a) < batch(b, y), a < b);
            prop_assert_eq!(base_of(&batch(a, x), a), Some(x));
            prop_assert_eq!(base_of(&batch(a, x), b).is_some(), a == b);
        }

        #[test]
        fn offsets_of_two_groups_never_share_a_key(a in slots(), b in slots(), g in ".{0,20}", h in ".{0,20}") {
            prop_assert_eq!(offset(&g, a) == offset(&h, b), g == h && a == b);
            prop_assert_eq!(offset(&g, a).starts_with(&offsets_of(&h)), g == h);
            prop_assert_eq!(topic_of_offset(&offset(&g, a)), Some(a.topic));
        }

        #[test]
        fn rows_come_back(position in 0..i64::MAX, metadata in "[ -~]{0,40}", low in 0..i64::MAX, clean in 0..i64::MAX) {
            let committed = Committed { position, metadata };
            prop_assert_eq!(decode_committed(&encode_committed(committed.position, &committed.metadata)), Some(committed));
            let row = PartitionRow { low, clean };
            prop_assert_eq!(PartitionRow::decode(&row.encode()), Some(row));
        }
    }
}
