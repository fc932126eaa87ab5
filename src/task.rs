//! One partition of the repartition topic with its state: what one owner works on.
//!
//! T1: `position` never goes back within an incarnation; what lies between two records (control
//!     records, compaction, purge) is complete.
//! T2: an outcome counts only under the incarnation that it was called in (protocol P4).

pub mod done;
pub mod execute;
pub mod gate;
pub mod overlay;
pub mod queue;
pub mod restore;
pub mod sweep;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::bookkeeping;
use crate::event::StampedEvent;
use crate::log::Record;
use crate::planted::{self, Bug};
use crate::retry::Retry;
use crate::store::Store;
use done::DoneSet;
use overlay::Overlay;
use queue::{KeyedQueue, Queued};
use sweep::Sweep;

/// One partition at work.
#[derive(Debug)]
pub struct Task {
    /// Its number.
    pub partition: i32,
    /// Unique for each time that this thread opens the partition; also the log's epoch.
    pub incarnation: u64,
    /// Events read and not done.
    pub queue: KeyedQueue,
    /// Events that begin a retry of which is not known yet whether it counts, by the offset of their record.
    pub beginning: BTreeMap<i64, (Queued, Retry)>,
    /// Records complete.
    pub done: DoneSet,
    /// The next offset to take in.
    pub position: i64,
    /// The position last committed.
    pub committed: i64,
    /// The state.
    pub overlay: Overlay,
    /// Something of it is in the transaction being composed.
    pub touched: bool,
    /// When what was read and is not complete was read: (offset behind the batch, time), ascending.
    reads: VecDeque<(i64, Instant)>,
    /// Delivery is paused.
    pub paused: bool,
    /// It is being given back: nothing new begins.
    pub closing: bool,
    /// Its committed entries are to go into the store with the next commit.
    pub wants_flush: bool,
    /// When they went there last.
    pub last_flush: Option<Instant>,
    /// Committed bookkeeping that the store does not have yet.
    pub unflushed_bookkeeping: Option<Bytes>,
    /// Its markers may be deleted up to here. It stands in the changelog with the first that is (V4).
    pub horizon: Option<u64>,
    /// The search for them.
    pub sweep: Sweep,
    /// Position, done-set and horizon as this incarnation has written them last.
    written: Option<(i64, Vec<u64>, Option<u64>)>,
}

impl Task {
    /// Work goes on at `position` with what `done` says is complete beyond it.
    pub fn new(partition: i32, incarnation: u64, store: Arc<Store>, done: DoneSet, horizon: Option<u64>) -> Task {
        let position = done.low();
        Task {
            partition,
            incarnation,
            queue: KeyedQueue::default(),
            beginning: BTreeMap::new(),
            done,
            position,
            committed: position,
            overlay: Overlay::new(store),
            touched: false,
            reads: VecDeque::new(),
            paused: false,
            closing: false,
            wants_flush: false,
            last_flush: None,
            unflushed_bookkeeping: None,
            horizon,
            sweep: Sweep::default(),
            written: None,
        }
    }

    /// Takes note of a delivered record (T1). False when it is complete already.
    pub fn arrives(&mut self, record: &Record) -> bool {
        if record.offset < self.position {
            return false;
        }
        self.done.complete(self.position, record.offset);
        self.position = record.offset + 1;
        !self.done.contains(record.offset)
    }

    /// A batch that ends before offset `end` has been read.
    pub fn batch_read(&mut self, end: i64, now: Instant) {
        while self.reads.front().is_some_and(|(end, _)| *end <= self.done.low()) {
            self.reads.pop_front();
        }
        self.reads.push_back((end, now));
    }

    /// When the oldest record that is not complete was read.
    pub fn oldest(&self) -> Option<Instant> {
        let batch = self.reads.iter().find(|(end, _)| *end > self.done.low());
        batch.filter(|_| !self.queue.is_empty() || !self.beginning.is_empty()).map(|(_, read_at)| *read_at)
    }

    /// What its events that are read and not done take in memory, in bytes, roughly.
    pub fn weight(&self) -> usize {
        let beginning = self.beginning.values().map(|(queued, _)| queued.event.weight());
        self.queue.weight() + beginning.sum::<usize>()
    }

    /// The record is done.
    pub fn complete(&mut self, offset: i64) {
        self.done.complete(offset, offset + 1);
        self.touched = true;
    }

    /// Whether an event of this sequence comes too late for its place in the order: what was removed before may be
    /// forgotten. One of a retry is not (protocol P20).
    pub fn is_before_horizon(&self, event: &StampedEvent) -> bool {
        event.retry == 0 && self.horizon >= Some(event.stamp.sequence)
    }

    /// The bookkeeping to write with the next commit: position, done-set and horizon, when they changed since they were
    /// written (protocol P9). Every commit that moves the position has it, so that nothing runs twice when the group's
    /// own positions have expired (protocol P23); beside a commit's entries it is one small record of a partition.
    pub fn bookkeeping(&mut self) -> Option<Bytes> {
        let now = (self.done.low(), self.done.encode(), self.horizon);
        let same = |written: &(i64, _, _)| *written == now || (planted::is(Bug::DoneSetStale) && written.0 == now.0);
        if self.written.as_ref().is_some_and(same) {
            return None;
        }
        let (low, runs, horizon) = self.written.insert(now);
        Some(bookkeeping::encode(*low, *low, runs, *horizon))
    }
}
