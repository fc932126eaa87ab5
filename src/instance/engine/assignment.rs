//! Partitions that come and go.
//!
//! ```text
//!     assigned -> opening -> at work -> closing -> gone
//!                    ^          |
//!                    +----------+  (after an abort, or a store that failed)
//! ```
//!
//! G1: a revoked partition is answered for only when every transaction that touches it is decided
//!     (protocol P4), so its next owner cannot overlap with this one.
//! G2: a lost partition is dropped at once: nothing can be committed for it any more. A revoke that is not answered
//!     in time ends as a loss.

use std::collections::BTreeSet;

use crossbeam_channel::Sender;

use super::{Effect, Engine};
use crate::instance::calls::Calls;
use crate::instance::opening::OpenError;
use crate::log::{MemberEvent, Membership, TopicPartition};
use crate::metrics;
use crate::planted::{self, Bug};
use crate::task::Task;
use crate::task::restore::Restored;

/// The sequencer of `arrival` is the member that owns this partition of the repartition topic (protocol P22).
pub(super) const SEQUENCERS_PARTITION: i32 = 0;

/// A partition that is ready to be started.
#[derive(Debug)]
pub struct Opened {
    /// Its committed position.
    pub position: i64,
    /// The state of a task; `None` for a source partition.
    pub restored: Option<Restored>,
    /// With `arrival`, for a source partition: the sequence that the next record received gets.
    pub next_sequence: Option<u64>,
    /// For a source partition: the end of progress when it was claimed.
    pub progress: i64,
}

/// A partition that is being claimed and restored.
#[derive(Debug)]
pub(super) struct Opening {
    epoch: u64,
    /// The membership that the claim was asked under; `None` = to be asked.
    asked: Option<Membership>,
    pub(super) remaining: Option<i64>,
    /// Why it is opened again, where its store failed.
    pub(super) why: Option<String>,
    /// The position that this thread committed last, where it has claimed the partition or had it at work before.
    held: Option<i64>,
}

/// Partitions on their way out.
#[derive(Debug)]
pub(super) struct Revoking {
    pub(super) partitions: Vec<TopicPartition>,
    /// Those of them that are claimed and not at work, or whose work was dropped after an abort, with the positions
    /// last committed: they are given back in good order all the same, or the next owner would fence this living
    /// producer.
    pub(super) dropped: Vec<(TopicPartition, i64)>,
    /// Transactions for it that were aborted.
    pub(super) aborts: u32,
    /// Dropping it lets the group go on.
    _done: Sender<()>,
}

impl<C: Calls> Engine<C> {
    pub(super) fn member_event(&mut self, event: MemberEvent) {
        match event {
            MemberEvent::Fetched(_) => {}
            MemberEvent::Assigned { partitions, membership } => self.assigned(partitions, membership),
            MemberEvent::Revoked { partitions, lost: true, .. } => self.lost(&partitions),
            MemberEvent::Revoked { partitions, lost: false, done } => self.revoked(partitions, done),
            MemberEvent::Trouble(text) => self.trouble("group", (!text.is_empty()).then_some(text)),
            MemberEvent::Failed(error) => self.effects.push(Effect::Fail(error.to_string())),
        }
    }

    fn assigned(&mut self, partitions: Vec<TopicPartition>, membership: Membership) {
        metrics::rebalanced("assigned");
        tracing::info!(thread = self.setting.thread, partitions = ?names(&partitions), "assigned");
        self.trouble("group", None);
        // The events come in order: what is still owned here was owned through the new generation, too,
        // or its loss would have been told before. So the open composition may go on under it (P2).
        if self.composing.membership.is_some() {
            self.composing.membership = Some(membership.clone());
        }
        self.membership = Some(membership);
        for of in partitions {
            self.opens(of, None);
        }
        self.ask_to_open();
    }

    /// The partition is to be claimed; `held` is the position that this thread committed last.
    pub(super) fn opens(&mut self, of: TopicPartition, held: Option<i64>) {
        self.epochs += 1;
        self.opening.insert(of, Opening { epoch: self.epochs, asked: None, remaining: None, why: None, held });
    }

    /// Asks for every partition that waits for it, all in one claim; not while a transaction is under
    /// way, which could still move the positions that the claim reads.
    pub(super) fn ask_to_open(&mut self) {
        if self.committing.is_some() {
            return;
        }
        let Some(membership) = &self.membership else { return };
        let mut wanted = Vec::new();
        for (of, opening) in self.opening.iter_mut().filter(|(_, opening)| opening.asked.is_none()) {
            opening.asked = Some(membership.clone());
            wanted.push((of.clone(), opening.epoch));
        }
        if !wanted.is_empty() {
            self.effects.push(Effect::Open(wanted, membership.clone()));
        }
    }

    /// From here on the partition bears this thread's mark, so it is given back when it is revoked.
    pub(super) fn claimed(&mut self, of: &TopicPartition, epoch: u64, position: i64) {
        if let Some(opening) = self.opening.get_mut(of).filter(|opening| opening.epoch == epoch) {
            opening.held = Some(position);
        }
    }

    pub(super) fn opened(&mut self, of: TopicPartition, epoch: u64, opened: Result<Opened, OpenError>) {
        self.troubles.remove(&of.to_string());
        let Some(opening) = self.opening.get_mut(&of).filter(|opening| opening.epoch == epoch) else { return };
        match opened {
            Ok(opened) => {
                if let Some(opened) = self.is_early(&of, epoch, opened) {
                    self.opening.remove(&of);
                    self.start(of, epoch, opened);
                }
            }
            // The claim came under an older generation; the partition is still here, so claim it again.
            Err(OpenError::Moved) => {
                opening.asked = None;
                self.ask_to_open();
            }
            Err(OpenError::Fatal(reason)) => self.effects.push(Effect::Fail(reason)),
        }
    }

    fn start(&mut self, of: TopicPartition, epoch: u64, opened: Opened) {
        let position = opened.position;
        if let Some(restored) = opened.restored {
            tracing::info!(partition = of.partition, position, records = restored.records, "task running");
            metrics::restore_remaining(of.partition, 0);
            let committed = restored.committed;
            let horizon = restored.horizon.max(self.horizon);
            let mut task = Task::new(of.partition, epoch, restored.store, restored.done, horizon);
            task.sweep.want();
            if committed < position {
                // What is done and not committed is committed now: there may be nothing else to commit ever again.
                self.composing.touch(&self.membership);
                (task.committed, task.touched) = (committed, true);
            }
            self.tasks.insert(of.partition, task);
            if of.partition == SEQUENCERS_PARTITION && self.reads_by_hand() {
                // Others may have counted on since this thread had the seat.
                self.sequencer.runs().forget();
                self.open_sources();
            }
        } else {
            self.start_source(&of, epoch, position, opened.next_sequence);
        }
        self.member.start(of, position, epoch);
    }

    fn revoked(&mut self, mut partitions: Vec<TopicPartition>, done: Sender<()>) {
        metrics::rebalanced("revoked");
        tracing::info!(thread = self.setting.thread, partitions = ?names(&partitions), "revoked");
        // The sources that are read by hand go with the task that the sequencer sits by.
        partitions.extend(self.go_with(&partitions));
        let mut dropped = Vec::new();
        for of in &partitions {
            let held = self.opening.remove(of).and_then(|opening| opening.held);
            dropped.extend(held.map(|position| (of.clone(), position)));
            if *of.topic == *self.setting.topics.repartition
                && let Some(task) = self.tasks.get_mut(&of.partition)
            {
                task.closing = true;
            }
        }
        self.revoking = Some(Revoking { partitions, dropped, aborts: 0, _done: done });
    }

    /// The last transaction is decided, or there was none to make (G1).
    pub(super) fn finish_revoke(&mut self) {
        let Some(revoking) = self.revoking.take() else { return };
        for of in &revoking.partitions {
            self.drop_partition(of);
        }
    }

    fn lost(&mut self, partitions: &[TopicPartition]) {
        metrics::rebalanced("lost");
        tracing::warn!(partitions = ?names(partitions), "lost: another instance may own them already");
        self.revoking = None; // G2
        for of in self.go_with(partitions).iter().chain(partitions) {
            self.opening.remove(of);
            self.drop_partition(of);
        }
        // What is composed may be for a lost partition; the rest is read again (P1).
        self.begin_anew();
    }

    /// Drops all that is not committed and opens what is owned again (E3).
    pub(super) fn begin_anew(&mut self) {
        if !planted::is(Bug::CompositionKept) {
            self.composing = super::Composition::new(self.setting.config.processing.partitions);
        }
        let tasks =
            self.tasks.keys().map(|partition| TopicPartition::new(&self.setting.topics.repartition, *partition));
        let owned: Vec<_> = tasks.chain(self.sources.keys().cloned()).collect();
        self.sequencer.runs().forget();
        self.forget_promise();
        for of in owned {
            self.reopen(of);
        }
        if self.reads_by_hand() {
            // They are opened when the task is that the sequencer sits by.
            self.opening.retain(|of, _| of.topic == self.setting.topics.repartition);
        }
        // Also what was in nobody's queue at this moment.
        self.buffered = 0;
        self.ask_to_open();
    }

    pub(super) fn reopen(&mut self, of: TopicPartition) {
        let why = self.disk.why(of.partition).filter(|_| of.topic == self.setting.topics.repartition).cloned();
        let source = self.sources.get(&of).map(|slot| slot.source.committed);
        let held = source.or_else(|| self.tasks.get(&of.partition).map(|task| task.committed));
        self.drop_partition(&of);
        match self.revoking.as_mut().filter(|revoking| revoking.partitions.contains(&of)) {
            Some(revoking) => revoking.dropped.extend(held.map(|position| (of, position))),
            None => {
                self.opens(of.clone(), held);
                self.opening.entry(of).and_modify(|opening| opening.why = why);
            }
        }
    }

    /// A transaction that was under way when its partition was dropped is committed after all: the
    /// partition is given back at the position that this made, not at the one before.
    pub(super) fn moved_while_dropped(&mut self, of: &TopicPartition, position: i64) {
        if let Some(held) = self.opening.get_mut(of).and_then(|opening| opening.held.as_mut()) {
            *held = position;
        }
        let dropped = self.revoking.iter_mut().flat_map(|revoking| &mut revoking.dropped);
        dropped.filter(|(dropped, _)| dropped == of).for_each(|(_, held)| *held = position);
    }

    fn drop_partition(&mut self, of: &TopicPartition) {
        metrics::forget_partition(&of.topic, of.partition);
        if self.sources.remove(of).is_some() && self.reads_by_hand() {
            self.member.stop(vec![of.clone()]);
        }
        if *of.topic != *self.setting.topics.repartition {
            return;
        }
        if let Some(task) = self.tasks.remove(&of.partition) {
            self.calls.forget(of.partition);
            self.disk.forget(of.partition);
            metrics::forget_task(of.partition);
            self.running -= if planted::is(Bug::CallsCounted) { 0 } else { task.queue.running() };
            self.buffered = self.buffered.saturating_sub(task.weight());
        }
    }

    /// How far a restore is.
    pub(super) fn remaining(&mut self, partition: i32, records: i64) {
        let of = TopicPartition::new(&self.setting.topics.repartition, partition);
        if let Some(opening) = self.opening.get_mut(&of) {
            opening.remaining = Some(records);
            metrics::restore_remaining(partition, records);
        }
    }

    pub(super) fn trouble(&mut self, what: &str, text: Option<String>) {
        match text {
            Some(text) => {
                if self.troubles.insert(what.to_owned(), text.clone()).as_ref() != Some(&text) {
                    tracing::warn!("{text}");
                }
            }
            None => {
                self.troubles.remove(what);
            }
        }
    }

    /// The epochs of the openings and judgements that are still waited for.
    pub fn opening_epochs(&self) -> BTreeSet<u64> {
        self.opening.values().map(|opening| opening.epoch).chain(self.judging_epochs()).collect()
    }

    /// Whether nothing is owned, opened or under way any more.
    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.sources.is_empty() && self.opening.is_empty() && self.committing.is_none()
    }
}

fn names(partitions: &[TopicPartition]) -> Vec<String> {
    partitions.iter().map(ToString::to_string).collect()
}
