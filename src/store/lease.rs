//! Which partitions' stores are open in this process.
//!
//! R4: a store is open once at a time: a partition that moves from one engine thread of an instance to
//!     another is opened by the new one only when the old one, its flushes and its readers are through.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The partitions whose stores are open.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases(Arc<Mutex<BTreeSet<i32>>>);

/// The right to have a partition's store open; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    partition: i32,
    leases: Leases,
}

impl Leases {
    /// The lease of a partition; `None` while another has it.
    pub(super) fn take(&self, partition: i32) -> Option<Lease> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(partition);
        free.then(|| Lease { partition, leases: self.clone() })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.partition);
    }
}
