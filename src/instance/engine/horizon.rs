//! The horizon at an engine thread: markers that it has passed are deleted, events that it has passed are refused.
//!
//! V4: a marker is deleted only in a transaction that has, or follows one that has, its partition's horizon in the
//!     bookkeeping: whoever opens the partition after it knows up to where something may be missing.
//! V6: an event at or below the horizon neither writes nor spawns, also when it was taken in before: what it would have
//!     to be compared with may be gone.
//! V7: deletions go the way of entries (O1 to O3): in a transaction with the partition's position (protocol P3), then
//!     into the store. With `at_least_once` there are none.

use std::sync::Arc;
use std::time::Instant;

use super::committing::is_rested;
use super::{Effect, Engine, Sweep};
use crate::cause::Cause;
use crate::config::Guarantee;
use crate::dead_letter::Reason;
use crate::instance::calls::Calls;
use crate::metrics::Outcome;
use crate::stamp::SequenceText;
use crate::store::StoreError;
use crate::store::markers::Found;
use crate::task::queue::Queued;
use crate::task::{Task, execute};

/// A transaction deletes about so many markers, at most twice as many.
const BATCH: usize = 10_000;

impl<C: Calls> Engine<C> {
    /// It never goes back.
    pub(super) fn horizon_is(&mut self, horizon: u64) {
        if self.horizon >= Some(horizon) {
            return;
        }
        self.horizon = Some(horizon);
        for task in self.tasks.values_mut() {
            task.horizon = task.horizon.max(self.horizon);
            task.sweep.want();
        }
    }

    /// Looks for markers where there may be some; what is above a store goes into it first.
    pub(super) fn sweep_if_due(&mut self, now: Instant) {
        let deletes = self.setting.config.processing.guarantee == Guarantee::ExactlyOnce; // V7
        if !deletes || self.disk.is_stuck() {
            return;
        }
        let at_most = (BATCH / self.tasks.len().max(1)).max(1);
        for task in self.tasks.values_mut().filter(|task| !task.closing) {
            let Some(horizon) = task.horizon else { continue };
            if task.sweep.waits() && !task.overlay.is_flushing() {
                if !task.overlay.has_removals() {
                    task.sweep.begin();
                } else if is_rested(task, now) && !task.wants_flush {
                    self.composing.touch(&self.membership);
                    (task.touched, task.wants_flush) = (true, true);
                }
            }
            if self.composing.buried < BATCH
                && let Some(after) = task.sweep.take_next()
            {
                let (partition, incarnation) = (task.partition, task.incarnation);
                let store = Arc::clone(task.overlay.store());
                self.effects.push(Effect::Sweep(Sweep { partition, incarnation, store, horizon, after, at_most }));
            }
        }
    }

    /// Writes tombstones for the markers that were found, as far as they are still there (O3).
    pub(super) fn swept(&mut self, partition: i32, incarnation: u64, result: Result<Found, StoreError>) {
        let current = |task: &&mut Task| task.incarnation == incarnation && !task.closing;
        let Some(task) = self.tasks.get_mut(&partition).filter(current) else { return };
        let found = match result {
            Ok(found) => found,
            Err(error) => {
                task.sweep.ended(None);
                if matches!(error, StoreError::Corrupted(..)) {
                    self.store_failed(partition, &error);
                }
                return;
            }
        };
        task.sweep.ended(found.last);
        let Some(horizon) = task.horizon else { return };
        for key in found.keys {
            match task.overlay.bury(&key, horizon) {
                Ok(true) => {
                    self.composing.touch(&self.membership);
                    self.composing.buried += 1;
                    task.touched = true;
                }
                Ok(false) => {}
                Err(error) => return self.store_failed(partition, &error),
            }
        }
    }

    /// The event is done after so many tries, as a dead letter (V6).
    pub(super) fn refuse_before_horizon(&mut self, partition: i32, queued: &Queued, attempts: u32) {
        let sequence = SequenceText(queued.event.stamp.sequence);
        let message = format!(
            "its sequence {sequence} lies at or below the horizon: removed keys are forgotten up to there, so its place \
             in the order cannot be told any more; send it as a new event"
        );
        let reason = Reason::new(Cause::BeforeHorizon, message);
        self.composing.touch(&self.membership);
        execute::refuse(&queued.event, attempts, &reason, &mut self.composing.outbox);
        self.complete(partition, queued, Outcome::Rejected);
    }
}
