//! Deletions get from a store's memory into its files.
//!
//! What is deleted takes its space until the deletion is in a file; from there RocksDB compacts both away. A store that
//! takes little otherwise would keep them in memory for ever, and count them as entries.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::engine::Flush;
use crate::store::Store;

/// So long after the first deletion all of them are written to a file.
const REST: Duration = Duration::from_secs(5);

/// The stores with deletions in memory, by partition, and since when.
#[derive(Default)]
pub(super) struct Forgetting(BTreeMap<i32, (Instant, Weak<Store>)>);

impl Forgetting {
    /// This goes into its store now.
    pub(super) fn begins(&mut self, flush: &Flush, now: Instant) {
        let is_of_another = |(_, store): &(Instant, Weak<Store>)| store.as_ptr() != Arc::as_ptr(&flush.store);
        if self.0.get(&flush.partition).is_some_and(is_of_another) {
            self.0.remove(&flush.partition);
        }
        if flush.entries.values().any(Option::is_none) {
            self.0.entry(flush.partition).or_insert_with(|| (now, Arc::downgrade(&flush.store)));
        }
    }

    /// Writes those to files that have rested for long enough. Where that fails the next write into the store says why.
    pub(super) fn go_on(&mut self, now: Instant) {
        let due = self.0.extract_if(.., |_, (since, _)| now.saturating_duration_since(*since) >= REST);
        due.filter_map(|(_, (_, store))| store.upgrade()).for_each(|store| _ = store.flush());
    }
}
