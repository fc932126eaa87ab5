//! The state of one partition, newest layer first: entries of the transaction being composed, of the
//! one being committed, committed ones not yet in the store, those on their way into it, the store.
//!
//! O1: an entry reaches `committed`, and so the store and any reader, only after its transaction.
//! O2: what is taken for the store is everything committed, so the position asked from the log at
//!     that moment covers it (protocol P11).

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use hashbrown::HashMap;

use crate::entry::Entry;
use crate::planted::{self, Bug};
use crate::store::{Store, StoreError};

/// Entries by key.
pub type Entries = HashMap<Bytes, Entry>;

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
}

impl Overlay {
    /// Nothing above the store.
    pub fn new(store: Arc<Store>) -> Overlay {
        let (open, committed) = (Entries::new(), Entries::new());
        Overlay { open, committing: None, committed, flushing: None, store, committed_bytes: 0, committed_records: 0 }
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
            return Ok(read(Some(entry)));
        }
        self.committed(key, read)
    }

    fn committed<T>(&self, key: &Bytes, read: impl FnOnce(Option<&Entry>) -> T) -> Result<T, StoreError> {
        match self.committed_above(key) {
            Some(entry) => Ok(read(Some(entry))),
            None => self.store.get(key).map(|entry| read(entry.as_ref())),
        }
    }

    /// What the key holds, committed, if the store may not have it yet.
    pub fn committed_above(&self, key: &Bytes) -> Option<&Entry> {
        self.committed.get(key).or_else(|| self.flushing.as_deref().and_then(|entries| entries.get(key)))
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
        self.open.insert(key, entry);
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
        self.committed_bytes += entries.iter().map(|(key, entry)| key.len() + entry.weight()).sum::<usize>();
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
        (self.committed_bytes, self.committed_records) = (0, 0);
        let entries = Arc::new(std::mem::take(&mut self.committed));
        self.flushing = Some(Arc::clone(&entries));
        Some(entries)
    }

    /// The store has it.
    pub fn flush_ends(&mut self) {
        self.flushing = None;
    }

    /// Whether a flush is under way.
    pub fn is_flushing(&self) -> bool {
        self.flushing.is_some()
    }

    /// The first `at_most` of the committed entries above the store that match, in byte order of keys:
    /// no more is copied than a page needs.
    pub fn first_above_store(&self, at_most: usize, matches: impl Fn(&Bytes) -> bool) -> BTreeMap<Bytes, Entry> {
        let flushing = self.flushing.iter().flat_map(|entries| entries.iter());
        let newest_last = flushing.chain(self.committed.iter());
        let mut first: BTreeMap<&Bytes, &Entry> = BTreeMap::new();
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
