//! Wakes those who wait for the log to change: readers at the end, members' threads.
//!
//! E3: who takes the count before it looks, and then waits for another, misses nothing.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

use crate::clock;

/// Counts the changes.
#[derive(Default)]
pub(super) struct Bell {
    count: Mutex<u64>,
    changed: Condvar,
}

impl Bell {
    /// Something changed.
    pub(super) fn ring(&self) {
        *self.locked() += 1;
        self.changed.notify_all();
    }

    /// To be taken before looking at what may have changed.
    pub(super) fn count(&self) -> u64 {
        *self.locked()
    }

    /// Returns once the count is not `seen` any more.
    pub(super) fn wait(&self, seen: u64) {
        let waited = self.changed.wait_while(self.locked(), |count| *count == seen);
        drop(waited.expect("counting does not panic"));
    }

    /// As [`Bell::wait`], but returns false at `deadline`.
    pub(super) fn wait_until(&self, seen: u64, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(clock::now());
        if clock::is_simulated() {
            clock::sleep(left);
            return *self.locked() != seen;
        }
        let waited = self.changed.wait_timeout_while(self.locked(), left, |count| *count == seen);
        let (count, _) = waited.expect("counting does not panic");
        *count != seen
    }

    fn locked(&self) -> MutexGuard<'_, u64> {
        self.count.lock().expect("counting does not panic")
    }
}
