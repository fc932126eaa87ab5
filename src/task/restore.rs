//! The side path: what the changelog holds and the local store does not is restored before a task runs.
//!
//! Z1: the end is asked after the partition's offsets are stable and claimed, as a high watermark that
//!     counts undecided records too, and restoring is done when the committed position has reached it
//!     (protocol P12).
//! Z2: a store that may have missed a tombstone, or that claims more than the changelog holds, is
//!     rebuilt (protocol P13).

use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use super::done::DoneSet;
use crate::bookkeeping;
use crate::changelog::{self, Change, ReadError};
use crate::clock;
use crate::entry::Entry;
use crate::log::{Log, LogError, TopicPartition, Watermarks};
use crate::store::schema::{Checkpoint, Identity};
use crate::store::{Store, StoreError, Stores};

/// Changes are written to the store in batches of about this many bytes.
const BATCH: usize = 16 << 20;

/// What a task begins with.
#[derive(Debug)]
pub struct Restored {
    /// Its store, at the changelog's end.
    pub store: Arc<Store>,
    /// What is complete, from the committed position on, or from beyond it where the bookkeeping knows more.
    pub done: DoneSet,
    /// The group's committed position of the task's partition.
    pub committed: i64,
    /// How many records were read.
    pub records: u64,
    /// Why an earlier store was not used.
    pub rebuilt: Option<String>,
}

/// Why a restore did not end.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// What the changelog said.
    #[error(transparent)]
    Changelog(#[from] ReadError),
    /// What the store said.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody waits for it any more: the partition has moved.
    #[error("the partition has moved")]
    Unwanted,
    /// The bookkeeping cannot be read: without it records would run again (protocol P9).
    #[error("the bookkeeping of {0} cannot be read: {1}")]
    Bookkeeping(TopicPartition, String),
}

impl RestoreError {
    /// Whether trying again can help without anyone's doing.
    pub fn is_fatal(&self) -> bool {
        match self {
            RestoreError::Changelog(ReadError::Log(LogError::Fatal(_) | LogError::Refused(_))) => true,
            RestoreError::Changelog(ReadError::Record { .. } | ReadError::Newer { .. }) => true,
            RestoreError::Bookkeeping(..) => true,
            RestoreError::Changelog(ReadError::Log(_)) | RestoreError::Store(_) | RestoreError::Unwanted => false,
        }
    }
}

/// Where a partition's state is restored from.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The partition of the changelog.
    pub changelog: TopicPartition,
    /// Whose store it is.
    pub identity: &'a Identity,
    /// `delete.retention.ms` of the changelog, in milliseconds.
    pub delete_retention_ms: i64,
    /// The group's committed position of the task's partition.
    pub committed: i64,
}

/// Brings the partition's store to the changelog's end. `remaining` is told how many records are left, and
/// says whether anybody still waits for it.
pub fn restore(
    log: &dyn Log,
    stores: &Stores,
    plan: &Plan<'_>,
    remaining: impl Fn(i64) -> bool,
) -> Result<Restored, RestoreError> {
    // 1. The end, before anything is read (Z1).
    let ends = log.watermarks(&plan.changelog).map_err(ReadError::Log)?;
    // 2. A store that can be continued, or an empty one.
    let (mut store, mut rebuilt) = stores.open(plan.identity)?;
    let mut checkpoint = store.checkpoint()?.unwrap_or(Checkpoint { position: 0, at_end_ms: i64::MAX });
    if let Some(reason) = unusable(&checkpoint, ends, plan.delete_retention_ms) {
        drop(store);
        stores.wipe(plan.identity.partition)?;
        (store, _) = stores.open(plan.identity)?;
        checkpoint = Checkpoint { position: 0, at_end_ms: i64::MAX };
        rebuilt = Some(reason);
    }
    // 3. The missing tail. A first restore that is interrupted counts from its beginning (Z2).
    let begun = clock::wall_ms();
    let from = checkpoint.position.max(ends.low);
    remaining((ends.high - from).max(0));
    let mut tail = Tail::default();
    let reached = changelog::read(log, &plan.changelog, from, ends.high, |changes, position| {
        tail.take(changes);
        if tail.bytes >= BATCH {
            tail.write(&store, Checkpoint { position, at_end_ms: checkpoint.at_end_ms.min(begun) })?;
        }
        if remaining((ends.high - position).max(0)) { Ok(()) } else { Err(RestoreError::Unwanted) }
    })?;
    // A crash before this write restores from the last checkpoint on; after it, from the end.
    tail.write(&store, Checkpoint { position: reached.max(from), at_end_ms: clock::wall_ms() })?;
    let done = done_set(&store, plan)?;
    Ok(Restored { store: Arc::new(store), done, committed: plan.committed, records: tail.records, rebuilt })
}

/// Why a store of this checkpoint cannot be continued (Z2).
fn unusable(checkpoint: &Checkpoint, ends: Watermarks, delete_retention_ms: i64) -> Option<String> {
    if checkpoint.position == 0 {
        return None;
    }
    if checkpoint.position > ends.high {
        return Some(format!("it holds the changelog up to {}, which ends at {}", checkpoint.position, ends.high));
    }
    if checkpoint.position < ends.low {
        return Some(format!("it holds the changelog up to {}, which begins at {}", checkpoint.position, ends.low));
    }
    let age = clock::wall_ms().saturating_sub(checkpoint.at_end_ms);
    (age > delete_retention_ms / 2)
        .then(|| format!("it was last complete {} s ago and may have missed a deletion", age / 1000))
}

fn done_set(store: &Store, plan: &Plan<'_>) -> Result<DoneSet, RestoreError> {
    let Some(bytes) = store.bookkeeping()? else { return Ok(DoneSet::new(plan.committed)) };
    let failed = |reason: String| RestoreError::Bookkeeping(plan.changelog.clone(), reason);
    let snapshot = bookkeeping::decode(bytes).map_err(|error| failed(error.to_string()))?;
    // A group's offsets expire (P23), and without transactions a commit may have ended between the two (C6).
    DoneSet::decode(plan.committed.max(snapshot.position), snapshot.done_base, &snapshot.done_runs)
        .ok_or_else(|| failed("its runs are not in order".into()))
}

/// Changes that are read and not written: of each key the last, which has the greatest stamp, because
/// the only writer of the partition writes a key's entries with rising stamps.
#[derive(Default)]
struct Tail {
    entries: HashMap<Bytes, Option<Entry>>,
    bookkeeping: Option<Bytes>,
    bytes: usize,
    records: u64,
}

impl Tail {
    fn take(&mut self, changes: Vec<Change>) {
        self.records += changes.len() as u64;
        for change in changes {
            match change {
                Change::Bookkeeping(bytes) => self.bookkeeping = Some(bytes),
                Change::Delete(key) => {
                    self.bytes += key.len() + 64;
                    self.entries.insert(key, None);
                }
                Change::Put(key, entry) => {
                    self.bytes += key.len() + entry.weight();
                    let older = |held: &Option<Entry>| held.as_ref().is_some_and(|held| held.stamp > entry.stamp);
                    if !self.entries.get(&key).is_some_and(older) {
                        self.entries.insert(key, Some(entry));
                    }
                }
            }
        }
    }

    fn write(&mut self, store: &Store, checkpoint: Checkpoint) -> Result<(), StoreError> {
        let mut entries: Vec<_> = self.entries.drain().collect();
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let bookkeeping = self.bookkeeping.take();
        self.bytes = 0;
        store.write(entries.iter().map(|(key, entry)| (key, entry.as_ref())), bookkeeping.as_ref(), checkpoint)
    }
}
