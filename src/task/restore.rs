//! The side path: what the changelog holds and the local store does not is restored before a task runs.
//!
//! Z1: the end is asked after the partition's offsets are stable and claimed, as a high watermark that
//!     counts undecided records too, and restoring is done when the committed position has reached it
//!     (protocol P12).
//! Z2: a store that may have missed a tombstone, or that claims more than the changelog holds, is
//!     rebuilt (protocol P13).
//! Z3: of a key the greatest stamp is kept that followed its last tombstone, in whatever order the changelog has them.

mod tail;

use std::sync::Arc;

use super::done::DoneSet;
use crate::bookkeeping;
use crate::changelog::{self, Change, ReadError};
use crate::clock;
use crate::log::{Log, LogError, TopicPartition, Watermarks};
use crate::metrics;
use crate::store::schema::{Checkpoint, Identity};
use crate::store::{Store, StoreError, Stores, Turn};
use tail::Tail;

/// A restore of at most so many records goes at once, where a longer one waits until the shorter ones are through.
const SHORT: i64 = 10_000;

/// What a task begins with.
#[derive(Debug)]
pub struct Restored {
    /// Its store, at the changelog's end.
    pub store: Arc<Store>,
    /// What is complete, from the committed position on, or from beyond it where the bookkeeping knows more.
    pub done: DoneSet,
    /// Up to where markers may have been deleted.
    pub horizon: Option<u64>,
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

/// Brings the partition's store to the changelog's end, when it is its turn. `remaining` is told how many records are
/// left, once that is known, and says whether anybody still waits for it.
pub fn restore(
    log: &dyn Log,
    stores: &Stores,
    plan: &Plan<'_>,
    remaining: impl Fn(Option<i64>) -> bool,
) -> Result<Restored, RestoreError> {
    let look = stores.turn(0, || remaining(None)).ok_or(RestoreError::Unwanted)?;
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
        metrics::store_rebuilt();
        tracing::warn!(partition = plan.identity.partition, reason, "the local store is out of date and rebuilt");
        rebuilt = Some(reason);
    }
    // 3. The missing tail, or all of it.
    let from = checkpoint.position.max(ends.low);
    let left = (ends.high - from).max(0);
    if !remaining(Some(left)) {
        return Err(RestoreError::Unwanted);
    }
    let turn = if left <= SHORT {
        look
    } else {
        drop(look);
        stores.turn(left as u64, || remaining(None)).ok_or(RestoreError::Unwanted)?
    };
    let missing = Missing { log, of: &plan.changelog, from, end: ends.high, remaining: &remaining };
    let records = if checkpoint.position == 0 {
        missing.fill(stores, &store, &turn)?
    } else {
        missing.follow(&store, checkpoint)?
    };
    drop(turn);
    let (done, horizon) = books(&store, plan)?;
    Ok(Restored { store: Arc::new(store), done, horizon, committed: plan.committed, records, rebuilt })
}

/// What a store lacks of its changelog.
struct Missing<'a> {
    log: &'a dyn Log,
    of: &'a TopicPartition,
    from: i64,
    end: i64,
    remaining: &'a dyn Fn(Option<i64>) -> bool,
}

impl Missing<'_> {
    /// Reads it to the end; `take` gets it with the position behind it. The position reached and the records read.
    fn read(
        &self,
        mut take: impl FnMut(Vec<Change>, i64) -> Result<(), RestoreError>,
    ) -> Result<(i64, u64), RestoreError> {
        let mut records = 0;
        let reached = changelog::read(self.log, self.of, self.from, self.end, |changes, position| {
            records += changes.len() as u64;
            metrics::restored(changes.len() as u64);
            take(changes, position)?;
            let left = (self.end - position).max(0);
            if (self.remaining)(Some(left)) { Ok(()) } else { Err(RestoreError::Unwanted) }
        })?;
        Ok((reached.max(self.from), records))
    }

    /// Into an empty store, in one step at the end. A crash before it begins anew.
    fn fill(&self, stores: &Stores, store: &Store, turn: &Turn) -> Result<u64, RestoreError> {
        let (mut bulk, mut bookkeeping) = (stores.fill(store, turn), None);
        let (position, records) = self.read(|changes, _| {
            for change in changes {
                match change {
                    Change::Put(key, entry) => bulk.put(&key, &entry)?,
                    Change::Delete(key) => bulk.delete(&key)?,
                    Change::Bookkeeping(bytes) => bookkeeping = Some(bytes),
                }
            }
            Ok(())
        })?;
        bulk.finish(store, bookkeeping.as_ref(), Checkpoint { position, at_end_ms: clock::wall_ms() })?;
        Ok(records)
    }

    /// Into a store that holds what came before.
    fn follow(&self, store: &Store, checkpoint: Checkpoint) -> Result<u64, RestoreError> {
        let mut tail = Tail::new(store);
        let (position, records) = self.read(|changes, position| {
            tail.take(changes);
            // A crash after it restores from there on; until the end is reached the store is as old as it was (Z2).
            Ok(tail.write_if_large(Checkpoint { position, ..checkpoint })?)
        })?;
        tail.write(Checkpoint { position, at_end_ms: clock::wall_ms() })?;
        Ok(records)
    }
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

/// The done-set and the horizon.
fn books(store: &Store, plan: &Plan<'_>) -> Result<(DoneSet, Option<u64>), RestoreError> {
    let Some(bytes) = store.bookkeeping()? else {
        return Ok((DoneSet::new(plan.committed), None));
    };
    let failed = |reason: String| RestoreError::Bookkeeping(plan.changelog.clone(), reason);
    let snapshot = bookkeeping::decode(bytes).map_err(|error| failed(error.to_string()))?;
    // A group's offsets expire (P23), and without transactions a commit may have ended between the two (C6).
    let done = DoneSet::decode(plan.committed.max(snapshot.position), snapshot.done_base, &snapshot.done_runs)
        .ok_or_else(|| failed("its runs are not in order".into()))?;
    Ok((done, snapshot.horizon))
}
