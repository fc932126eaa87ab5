//! What the engine does when a store fails.
//!
//! S1: a task whose store is damaged begins nothing more. What of it is done is committed with all else; then it alone
//!     is opened again, which rebuilds its store. The event that met the damage is read again afterwards.
//! S2: while a store cannot be written its task goes on as far as it has read: what is committed waits above the store,
//!     is answered from there, and is tried again until it is written (its place in the changelog stays true).
//! S3: meanwhile nothing is delivered to this thread, so what waits in memory is no more than what came of
//!     `processing.max_buffered`.
//! S4: a full disk keeps the store open, RocksDB gets over it by itself; from any other failure to write it does not
//!     recover, so after [`PATIENCE`] the task is opened again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::assignment::SEQUENCERS_PARTITION;
use super::{Effect, Engine, Flush};
use crate::instance::calls::Calls;
use crate::log::TopicPartition;
use crate::store::StoreError;

/// The pause between tries to write.
const AGAIN: Duration = Duration::from_secs(1);

/// So long a store that cannot be written is left open (S4).
const PATIENCE: Duration = Duration::from_secs(10);

/// The name of the trouble.
const TROUBLE: &str = "disk";

/// What is on its way into the stores, and what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct Disk {
    /// Tasks that begin nothing more, and why (S1).
    failing: BTreeMap<i32, String>,
    /// Flushes under way.
    flushes: BTreeMap<i32, Flush>,
    /// Those of them that have failed (S2): since when, and when the next try is; `None` while one is under way, or the
    /// answer to it would be taken for that of the next flush.
    unwritten: BTreeMap<i32, (Instant, Option<Instant>)>,
}

impl Disk {
    /// Why the task is opened again.
    pub(super) fn why(&self, partition: i32) -> Option<&String> {
        self.failing.get(&partition)
    }

    /// Whether a store cannot be written (S3).
    pub(super) fn is_stuck(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// A flush begins.
    pub(super) fn begins(&mut self, flush: Flush) -> Effect {
        self.flushes.insert(flush.partition, flush.clone());
        Effect::Flush(flush)
    }

    /// The task is gone, and with it all that was to become of its store.
    pub(super) fn forget(&mut self, partition: i32) {
        self.failing.remove(&partition);
        self.flushes.remove(&partition);
        self.unwritten.remove(&partition);
    }
}

impl<C: Calls> Engine<C> {
    pub(super) fn flushed(&mut self, partition: i32, incarnation: u64, result: Result<(), StoreError>, now: Instant) {
        let Some(task) = self.tasks.get_mut(&partition).filter(|task| task.incarnation == incarnation) else { return };
        let error = match result {
            Ok(()) => {
                let markers = task.overlay.flush_ends();
                if markers.is_some() && markers <= task.horizon {
                    task.sweep.want();
                }
                task.sweep.begin();
                self.disk.flushes.remove(&partition);
                self.disk.unwritten.remove(&partition);
                return;
            }
            Err(error) => error,
        };
        let (since, due) = self.disk.unwritten.entry(partition).or_insert((now, None));
        *due = Some(now + AGAIN);
        let heals = matches!(error, StoreError::Full(..));
        if matches!(error, StoreError::Corrupted(..)) || (!heals && now.saturating_duration_since(*since) >= PATIENCE) {
            return self.store_failed(partition, &error);
        }
        let text = format!("nothing new is read, because what is committed cannot be written: {error}");
        self.trouble(TROUBLE, Some(text));
    }

    /// The store of a task cannot be used any more (S1).
    pub(super) fn store_failed(&mut self, partition: i32, error: &StoreError) {
        let Some(task) = self.tasks.get_mut(&partition) else { return };
        if self.disk.failing.contains_key(&partition) {
            return;
        }
        tracing::error!(partition, %error, "the store failed; the task is opened again");
        self.disk.failing.insert(partition, error.to_string());
        task.closing = true;
        if partition == SEQUENCERS_PARTITION && self.reads_by_hand() {
            // The sources sit by it and go with it.
            self.begin_anew();
        }
    }

    /// Looks for damage that others have found, opens again what is to be, and tries again what could not be written.
    pub(super) fn mind_stores(&mut self, now: Instant) {
        let damaged = self.tasks.iter().filter(|(_, task)| task.overlay.store().damage().is_some());
        let damaged: Vec<i32> = damaged.map(|(partition, _)| *partition).collect();
        for partition in damaged {
            let store = self.tasks.get(&partition).map(|task| task.overlay.store());
            if let Some(Err(error)) = store.map(|store| store.is_intact()) {
                self.store_failed(partition, &error);
            }
        }
        let ended: Vec<i32> =
            self.disk.failing.keys().copied().filter(|partition| self.has_ended(*partition)).collect();
        for partition in &ended {
            self.reopen(TopicPartition::new(&self.setting.topics.repartition, *partition));
        }
        if !ended.is_empty() {
            self.ask_to_open();
        }
        for (partition, (_, due)) in &mut self.disk.unwritten {
            if due.take_if(|due| *due <= now).is_some() {
                self.effects.extend(self.disk.flushes.get(partition).cloned().map(Effect::Flush));
            }
        }
        if !self.disk.is_stuck() {
            self.trouble(TROUBLE, None);
        }
    }

    /// Whether nothing of a failing task is in a transaction any more. One that is given back goes with the revoke.
    fn has_ended(&self, partition: i32) -> bool {
        let of = TopicPartition::new(&self.setting.topics.repartition, partition);
        let is_revoked = self.revoking.as_ref().is_some_and(|revoking| revoking.partitions.contains(&of));
        let commits = self.committing.as_ref().is_some_and(|committing| committing.has(partition));
        let is_touched = self.tasks.get(&partition).is_some_and(|task| task.touched);
        !is_revoked && !commits && !is_touched
    }
}
