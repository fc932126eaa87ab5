//! Reads a partition's records, for readers and members alike.
//!
//! E7: a read never passes over records silently: what was purged below the asked offset is
//!     [`LogError::OutOfRange`], also when it is purged at the same moment (E6).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use rocksdb::ReadOptions;

use super::batch::{self, Header, Kind};
use super::failed;
use super::schema;
use super::state::{Place, Shared};
use crate::clock;
use crate::log::{Isolation, LogError, Reader, Record};

/// A read ends once it has this many records or bytes.
const ENOUGH_RECORDS: usize = 4096;
const ENOUGH_BYTES: usize = 1 << 20;
/// How often a reader beside a writer looks for news: nothing wakes it across processes.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Some records, and where to go on.
pub(super) struct Portion {
    pub records: Vec<Record>,
    pub next: i64,
}

/// The records from `position` on, at most about 4,096 or 1 MiB, in whole batches.
pub(super) fn read(
    shared: &Shared,
    place: &Place,
    position: i64,
    isolation: Isolation,
    with_headers: bool,
) -> Result<Portion, LogError> {
    let partition = place.get();
    // Beside a writer, the view must not move on while it is read.
    let _still = shared.beside.then(|| shared.core());
    let limit = match isolation {
        Isolation::ReadCommitted => partition.stable(),
        Isolation::ReadUncommitted => partition.end(),
    };
    let mut portion = Portion { records: Vec::new(), next: position };
    if position > partition.end() || position < partition.low() {
        return Err(LogError::OutOfRange(place.name(), partition.low()));
    }
    if position >= limit {
        return Ok(portion);
    }
    let aborted = match isolation {
        Isolation::ReadCommitted => shared.aborted(),
        Isolation::ReadUncommitted => Arc::default(),
    };
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(schema::batch(partition.slot, limit));
    let mut batches = shared.db.raw_iterator_opt(options);
    if place.topic.deleted.load(Ordering::SeqCst) {
        return Err(LogError::UnknownTopic(format!("{}, which was deleted", place.name())));
    }
    if position < partition.low() {
        return Err(LogError::OutOfRange(place.name(), partition.low()));
    }
    batches.seek(schema::batch(partition.slot, position));
    let exact = batches.key().and_then(|key| schema::base_of(key, partition.slot)) == Some(position);
    if !exact {
        batches.seek_for_prev(schema::batch(partition.slot, position));
        if batches.key().and_then(|key| schema::base_of(key, partition.slot)).is_none() {
            batches.seek(schema::batch(partition.slot, position));
        }
    }
    let mut bytes = 0;
    loop {
        let Some((key, value)) = batches.item() else {
            batches.status().map_err(failed)?;
            portion.next = limit;
            return Ok(portion);
        };
        let base = schema::base_of(key, partition.slot).ok_or_else(|| shared.corrupt("key"))?;
        let header = Header::read(value).map_err(|_| damaged(place, base))?;
        let last = base + i64::from(header.last_delta);
        if last >= position && shows(&header, &aborted) {
            let full = portion.records.len() + header.records as usize > ENOUGH_RECORDS
                || bytes + value.len() > ENOUGH_BYTES + ENOUGH_BYTES / 4;
            if full && !portion.records.is_empty() {
                return Ok(portion);
            }
            bytes += value.len();
            batch::decode(&Bytes::copy_from_slice(value), &header, base, position, with_headers, &mut portion.records)
                .map_err(|_| damaged(place, base))?;
        }
        portion.next = portion.next.max(last + 1);
        batches.next();
    }
}

fn shows(header: &Header, aborted: &HashSet<u64>) -> bool {
    header.kind == Kind::Records
        && header.records > 0
        && !(header.transaction > 0 && aborted.contains(&header.transaction))
}

pub(super) fn damaged(place: &Place, base: i64) -> LogError {
    LogError::Fatal(format!("the batch at offset {base} of {} is damaged", place.name()))
}

/// A [`Reader`] of one partition.
pub(super) struct PartitionReader {
    pub shared: Arc<Shared>,
    pub place: Place,
    pub position: i64,
    pub isolation: Isolation,
    pub with_headers: bool,
}

impl PartitionReader {
    fn read(&mut self) -> Result<Vec<Record>, LogError> {
        let portion = read(&self.shared, &self.place, self.position, self.isolation, self.with_headers)?;
        self.position = portion.next;
        Ok(portion.records)
    }
}

impl Reader for PartitionReader {
    fn next(&mut self, timeout: Duration) -> Result<Vec<Record>, LogError> {
        let deadline = clock::now() + timeout;
        loop {
            let seen = self.shared.bell.count();
            let mut records = self.read()?;
            if records.is_empty() && self.shared.beside {
                self.shared.catch_up()?;
                records = self.read()?;
            }
            if !records.is_empty() || clock::now() >= deadline {
                return Ok(records);
            }
            let until = if self.shared.beside { deadline.min(clock::now() + LOOK_AGAIN) } else { deadline };
            if !self.shared.bell.wait_until(seen, until) && until == deadline {
                return self.read();
            }
        }
    }

    fn position(&self) -> i64 {
        self.position
    }
}
