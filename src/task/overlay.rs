//! The state of one partition, newest layer first: entries of the transaction being composed, of the
//! one being committed, committed ones not yet in the store, those on their way into it, the store.
//!
//! O1: an entry reaches `committed`, and so the store and any reader, only after its transaction.
//! O2: what is taken for the store is everything committed, so the position asked from the log at
//!     that moment covers it (protocol P11).
//! O3: a tombstone is written only for a marker that is committed, while nothing newer of its key is under way; in
//!     every layer it hides what lies below.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use crate::entry::Entry;
use crate::event::Action;
use crate::planted::{self, Bug};
use crate::store::{Store, StoreError};

/// What keys hold from now on; `None` is a tombstone: nothing any more.
pub type Entries = HashMap<Bytes, Option<Entry>>;

/// What a tombstone takes in memory beside its key, in bytes, roughly.
const TOMBSTONE: usize = 64;

/// The layers of one partition's state.
#[derive(Debug)]
pub struct Overlay {
    open: Entries,
    committing: Option<Arc<Entries>>,
    committed: Entries,
    flushing: Option<Arc<Entries>>,
    store: Arc<Store>,
    committed_bytes: usize,
    committed_records: u64,
    /// Markers and tombstones in `committed`, at most.
    removals: u64,
    /// The least sequence of the markers in `committed` and in `flushing`.
    markers: [Option<u64>; 2],
}

impl Overlay {
    /// Nothing above the store.
    pub fn new(store: Arc<Store>) -> Overlay {
        let (open, committed) = (Entries::new(), Entries::new());
        Overlay {
            open,
            committing: None,
            committed,
            flushing: None,
            store,
            committed_bytes: 0,
            committed_records: 0,
            removals: 0,
            markers: [None; 2],
        }
    }

    /// The store below.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// What the key holds as the engine sees it, uncommitted entries included: calls `read` with it.
    pub fn held<T>(&self, key: &Bytes, read: impl FnOnce(Option<&Entry>) -> T) -> Result<T, StoreError> {
        let committing = self.committing.as_deref().filter(|_| !planted::is(Bug::GateBlind));
        let committing = committing.and_then(|entries| entries.get(key));
        if let Some(entry) = self.open.get(key).or(committing) {
            return Ok(read(entry.as_ref()));
        }
        self.committed(key, read)
    }

    fn committed<T>(&self, key: &Bytes, read: impl FnOnce(Option<&Entry>) -> T) -> Result<T, StoreError> {
        match self.committed_above(key) {
            Some(entry) => Ok(read(entry)),
            None => self.store.get(key).map(|entry| read(entry.as_ref())),
        }
    }

    /// What the key holds, committed, if the store may not have it yet; `Some(None)` is a tombstone.
    pub fn committed_above(&self, key: &Bytes) -> Option<Option<&Entry>> {
        let flushing = || self.flushing.as_deref().and_then(|entries| entries.get(key));
        self.committed.get(key).or_else(flushing).map(Option::as_ref)
    }

    /// Whether the transaction under way may change what a committed reader sees of keys that match: its outcome
    /// may be known elsewhere already.
    pub fn is_undecided(&self, matches: impl Fn(&Bytes) -> bool) -> bool {
        self.committing.iter().any(|entries| entries.keys().any(&matches))
    }

    /// The same of one key.
    pub fn is_key_undecided(&self, key: &Bytes) -> bool {
        self.committing.as_ref().is_some_and(|entries| entries.contains_key(key))
    }

    /// Writes an entry into the transaction being composed.
    pub fn put(&mut self, key: Bytes, entry: Entry) {
        self.open.insert(key, Some(entry));
    }

    /// Writes a tombstone into the transaction being composed, if the key holds a marker at or below `horizon` (O3).
    pub fn bury(&mut self, key: &Bytes, horizon: u64) -> Result<bool, StoreError> {
        let is_under_way = self.open.contains_key(key) || self.is_key_undecided(key);
        if is_under_way && !planted::is(Bug::BuriedBlindly) {
            return Ok(false);
        }
        let is_over = |entry: &Entry| entry.action == Action::Remove && entry.stamp.sequence <= horizon;
        let goes = self.committed(key, |held| held.is_some_and(is_over))?;
        if goes {
            self.open.insert(key.clone(), None);
        }
        Ok(goes)
    }

    /// Hands the composed entries to a transaction.
    pub fn commit_begins(&mut self) -> Arc<Entries> {
        assert!(self.committing.is_none(), "O1: one transaction is under way at a time");
        let entries = Arc::new(std::mem::take(&mut self.open));
        self.committing = Some(Arc::clone(&entries));
        entries
    }

    /// The transaction is committed.
    pub fn commit_ends(&mut self) {
        let Some(entries) = self.committing.take() else { return };
        // The committer has dropped its share before it tells; a copy is only the slower way.
        let entries = Arc::try_unwrap(entries).unwrap_or_else(|shared| (*shared).clone());
        self.committed_records += entries.len() as u64;
        for (key, entry) in &entries {
            self.committed_bytes += key.len() + entry.as_ref().map_or(TOMBSTONE, Entry::weight);
            if let Some(marker) = entry.as_ref().filter(|entry| entry.action == Action::Remove) {
                let least = self.markers[0].unwrap_or(u64::MAX);
                self.markers[0] = Some(least.min(marker.stamp.sequence));
            }
            self.removals += u64::from(entry.as_ref().is_none_or(|entry| entry.action == Action::Remove));
        }
        if self.committed.is_empty() {
            self.committed = entries;
        } else {
            self.committed.extend(entries);
        }
    }

    /// Bytes that are committed and not on their way into the store, roughly (an upper bound).
    pub fn committed_bytes(&self) -> usize {
        self.committed_bytes
    }

    /// Changelog records of what is committed and not on its way into the store: after a kill they are read again.
    pub fn committed_records(&self) -> u64 {
        self.committed_records
    }

    /// Takes everything committed for the store (O2); `None` while an earlier flush is under way.
    pub fn flush_begins(&mut self) -> Option<Arc<Entries>> {
        if self.flushing.is_some() {
            return None;
        }
        (self.committed_bytes, self.committed_records, self.removals) = (0, 0, 0);
        self.markers = [None, self.markers[0]];
        let entries = Arc::new(std::mem::take(&mut self.committed));
        self.flushing = Some(Arc::clone(&entries));
        Some(entries)
    }

    /// The store has it; the least sequence of the markers among it.
    pub fn flush_ends(&mut self) -> Option<u64> {
        self.flushing = None;
        self.markers[1].take()
    }

    /// Whether the store lacks committed markers, or tombstones.
    pub fn has_removals(&self) -> bool {
        self.removals > 0
    }

    /// Whether a flush is under way.
    pub fn is_flushing(&self) -> bool {
        self.flushing.is_some()
    }

    /// The first `at_most` of the committed entries above the store that match, in byte order of keys:
    /// no more is copied than a page needs.
    pub fn first_above_store(
        &self,
        at_most: usize,
        matches: impl Fn(&Bytes) -> bool,
    ) -> BTreeMap<Bytes, Option<Entry>> {
        let flushing = self.flushing.iter().flat_map(|entries| entries.iter());
        let newest_last = flushing.chain(self.committed.iter());
        let mut first: BTreeMap<&Bytes, &Option<Entry>> = BTreeMap::new();
        for (key, entry) in newest_last.filter(|(key, _)| matches(key)) {
            let beyond = first.len() >= at_most && first.last_key_value().is_some_and(|(last, _)| key > last);
            if beyond {
                continue;
            }
            first.insert(key, entry);
            if first.len() > at_most {
                first.pop_last();
            }
        }
        first.into_iter().map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }
}
