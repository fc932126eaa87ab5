//! Which partitions' stores are open in this process, and which of them are known to be damaged.
//!
//! R4: a store is open once at a time: a partition that moves from one engine thread of an instance to
//!     another is opened by the new one only when the old one, its flushes and its readers are through.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The partitions whose stores are open, and those whose store is damaged.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases(Arc<Mutex<Known>>);

#[derive(Debug, Default)]
struct Known {
    open: BTreeSet<i32>,
    /// Why the store of a partition is not to be used, until another has taken its place (R5).
    damaged: BTreeMap<i32, String>,
}

/// The right to have a partition's store open; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    partition: i32,
    leases: Leases,
}

impl Leases {
    /// The lease of a partition; `None` while another has it.
    pub(super) fn take(&self, partition: i32) -> Option<Lease> {
        let free = self.known().open.insert(partition);
        free.then(|| Lease { partition, leases: self.clone() })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// The store is not to be used any more; the first reason stays.
    pub(super) fn condemn(&self, reason: &str) {
        self.leases.known().damaged.entry(self.partition).or_insert_with(|| reason.to_owned());
    }

    /// Why the store is not to be used.
    pub(super) fn damage(&self) -> Option<String> {
        self.leases.known().damaged.get(&self.partition).cloned()
    }

    /// Another store has taken its place.
    pub(super) fn absolve(&self) {
        self.leases.known().damaged.remove(&self.partition);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.known().open.remove(&self.partition);
    }
}
