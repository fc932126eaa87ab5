//! When a transaction is composed and what follows from its end.
//!
//! One transaction is composed while at most one other is under way.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Accepted, Effect, Engine, Flush};
use crate::clock;
use crate::instance::calls::Calls;
use crate::instance::commit::{Ended, Mark, Work};
use crate::instance::view::Totals;
use crate::log::outbox::Outbox;
use crate::log::{Membership, OffsetCommit, TopicPartition};
use crate::metrics::{self, Outcome};
use crate::planted::{self, Bug};
use crate::proto::Origin;
use crate::retry::Retry;
use crate::store::schema::Checkpoint;
use crate::task::Task;
use crate::task::queue::Queued;

use prost::Message;
use tokio::sync::oneshot;

/// Committed entries wait at most about this long for their way into the store.
const FLUSH_INTERVAL: Duration = Duration::from_secs(10);

/// For so many keys that a store holds one record may wait for its way into it, and so many in any case: they are what a
/// restart after a kill reads again, with what comes until they are written.
const KEYS_PER_WAITING: u64 = 200;
const WAITING: u64 = 1000;

/// But a store takes what waits no more often than this: under a high load the same keys come again and again, and
/// what a second brings is read again in a fraction of one. One with many keys takes it eight times as often: there few
/// come again.
const APART: Duration = Duration::from_secs(1);

/// So many are many keys.
const MANY_KEYS: u64 = 100_000;

/// A composition of this size is committed before its interval is over.
const LARGE: usize = 32 << 20;

/// How often giving back is tried before it is done without the note that says so.
const RELEASES: u32 = 3;

/// So many transactions that are aborted one after the other are told as a trouble.
const ABORTS: u32 = 5;

/// One of so many events is measured from its source record's time to its commit.
const SAMPLE: u64 = 256;

/// What the next transaction will have.
#[derive(Debug)]
pub(super) struct Composition {
    pub(super) outbox: Outbox,
    /// Captured before the first outcome was taken in (protocol P2).
    pub(super) membership: Option<Membership>,
    outcomes: [u64; 4],
    depths: BTreeMap<usize, usize>,
    sampled: Vec<i64>,
    events: u64,
    /// Source records among what was taken in.
    pub(super) sequenced: u64,
    /// Markers that it deletes.
    pub(super) buried: usize,
    /// Retries of dead letters, and who is told when they are committed.
    pub(super) accepted: Vec<(Vec<Retry>, oneshot::Sender<Accepted>)>,
}

impl Composition {
    pub(super) fn new(partitions: i32) -> Composition {
        let (outcomes, depths) = ([0; 4], BTreeMap::new());
        Composition {
            outbox: Outbox::new(partitions),
            membership: None,
            outcomes,
            depths,
            sampled: Vec::new(),
            events: 0,
            sequenced: 0,
            buried: 0,
            accepted: Vec::new(),
        }
    }

    /// Something is about to be taken in.
    pub(super) fn touch(&mut self, membership: &Option<Membership>) {
        if self.membership.is_none() {
            self.membership.clone_from(membership);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.membership.is_none()
    }

    pub(super) fn completed(&mut self, queued: &Queued, outcome: Outcome) {
        self.outcomes[outcome as usize] += 1;
        self.events += 1;
        *self.depths.entry(queued.event.stamp.depth()).or_default() += 1;
        if self.events.is_multiple_of(SAMPLE) || self.events == 1 {
            let origin = Origin::decode(queued.event.origin.clone()).unwrap_or_default();
            self.sampled.push(origin.timestamp_ms);
        }
    }

    fn tell(self) {
        for (retries, answer) in self.accepted {
            metrics::dead_letters_retried(retries.len() as u64);
            let _ = answer.send(Accepted::Committed(retries));
        }
        for outcome in [Outcome::Applied, Outcome::Superseded, Outcome::Duplicate, Outcome::Rejected] {
            metrics::events_processed(outcome, self.outcomes[outcome as usize]);
        }
        for (depth, n) in self.depths {
            metrics::cascade_depth(depth, n);
        }
        let now = clock::wall_ms();
        for received in self.sampled {
            metrics::end_to_end_latency(Duration::from_millis(now.saturating_sub(received).max(0) as u64), 1);
        }
    }
}

/// The transaction under way.
#[derive(Debug)]
pub(super) struct Committing {
    pub(super) bytes: usize,
    begun: Instant,
    composition: Composition,
    children: u64,
    entries: usize,
    causes: Vec<crate::cause::Cause>,
    /// The positions that it commits.
    tasks: Vec<(i32, u64, i64, Option<Bytes>)>,
    sources: Vec<(TopicPartition, u64, i64)>,
    releases: bool,
    /// How many pauses there were when it began (protocol P8).
    pauses: u64,
}

impl Committing {
    /// Whether something of a task is in it.
    pub(super) fn has(&self, partition: i32) -> bool {
        self.tasks.iter().any(|(committing, ..)| *committing == partition)
    }
}

impl<C: Calls> Engine<C> {
    pub(super) fn commit_if_due(&mut self, now: Instant) {
        if self.committing.is_some() {
            return;
        }
        self.flush_if_due(now);
        self.renew_positions_if_due(now);
        self.commit_in_doubt();
        let waited = now.saturating_duration_since(self.last_commit);
        let due = waited >= self.setting.config.processing.commit_interval || self.composing.outbox.bytes > LARGE;
        let releases = self.revoking.is_some();
        if releases || (due && !self.composing.is_empty()) {
            self.commit(releases, now);
        }
    }

    /// Entries that wait long without another commit get one that only asks for the changelog's end.
    fn flush_if_due(&mut self, now: Instant) {
        if now.saturating_duration_since(self.last_flush) < FLUSH_INTERVAL {
            return;
        }
        self.last_flush = now;
        for task in self.tasks.values_mut().filter(|task| task.overlay.committed_bytes() > 0) {
            self.composing.touch(&self.membership);
            task.touched = true;
            task.wants_flush = true;
        }
    }

    fn commit(&mut self, releases: bool, now: Instant) {
        let membership = self.composing.membership.clone().or_else(|| self.membership.clone());
        let Some(membership) = membership else { return self.finish_revoke() };
        let fresh = Composition::new(self.setting.config.processing.partitions);
        let mut composition = std::mem::replace(&mut self.composing, fresh);
        self.commits += 1;
        let number = self.commits;
        let mut work = Work {
            number,
            outbox: std::mem::take(&mut composition.outbox),
            changes: Vec::new(),
            sources: Vec::new(),
            runs: self.sequencer.runs().take(),
            offsets: Vec::new(),
            membership,
            ends_of: Vec::new(),
        };
        let (mut tasks, mut sources) = (Vec::new(), Vec::new());
        let released: &[TopicPartition] = self.revoking.as_ref().map_or(&[], |revoking| &revoking.partitions);
        let mark = |of: &TopicPartition| {
            let producer = self.setting.producer_id.clone();
            Mark { producer, number, address: self.setting.address.clone(), released: released.contains(of) }
                .to_string()
        };
        let share = self.setting.overlay_bytes / self.tasks.len().max(1);
        for (partition, task) in &mut self.tasks {
            let of = TopicPartition::new(&self.setting.topics.repartition, *partition);
            let goes = released.contains(&of);
            if !task.touched && !goes {
                continue;
            }
            task.touched = false;
            let entries = task.overlay.commit_begins();
            let bookkeeping = task.bookkeeping();
            let position = task.done.low();
            task.wants_flush |= goes || task.overlay.committed_bytes() > share || waits_for_its_store(task, now);
            if task.wants_flush && !task.overlay.is_flushing() {
                work.ends_of.push(TopicPartition::new(&self.setting.topics.changelog, *partition));
            }
            work.changes.push((*partition, entries, bookkeeping.clone()));
            work.offsets.push(OffsetCommit { of: of.clone(), position, metadata: mark(&of) });
            tasks.push((*partition, task.incarnation, position, bookkeeping));
        }
        for (of, slot) in &mut self.sources {
            if !slot.touched && !released.contains(of) {
                continue;
            }
            if slot.touched {
                work.sources.push(self.sequencer.progress(&slot.source));
            }
            slot.touched = false;
            work.offsets.push(OffsetCommit { of: of.clone(), position: slot.source.position, metadata: mark(of) });
            sources.push((of.clone(), slot.incarnation, slot.source.position));
        }
        for (of, position) in self.revoking.iter().flat_map(|revoking| &revoking.dropped) {
            work.offsets.push(OffsetCommit { of: of.clone(), position: *position, metadata: mark(of) });
        }
        if work.offsets.is_empty() {
            return self.finish_revoke();
        }
        self.last_commit = now;
        let (children, causes) = (work.outbox.children, std::mem::take(&mut work.outbox.causes));
        let (bytes, pauses) = (work.outbox.bytes, self.awake.pauses());
        let entries = work.changes.iter().map(|(_, entries, _)| entries.len()).sum();
        self.committing = Some(Committing {
            bytes,
            begun: now,
            composition,
            children,
            entries,
            causes,
            tasks,
            sources,
            releases,
            pauses,
        });
        self.effects.push(Effect::Commit(Box::new(work)));
    }

    pub(super) fn ended(&mut self, ended: Ended, now: Instant) {
        let Some(committing) = self.committing.take() else { return };
        let releases = committing.releases;
        match ended {
            Ended::Committed(receipt) => {
                self.awake.confirmed(committing.pauses);
                if std::mem::take(&mut self.aborts) >= ABORTS {
                    self.trouble("commits", None);
                }
                self.committed(committing, &receipt.ends, now);
                if releases {
                    self.finish_revoke();
                }
            }
            Ended::Aborted(reason) => {
                tracing::warn!(%reason, "a transaction was aborted; its work begins anew from the last commit");
                self.aborts += 1;
                if self.aborts >= ABORTS {
                    let n = self.aborts;
                    self.trouble(
                        "commits",
                        Some(format!("{n} transactions in a row were refused, the last: {reason}")),
                    );
                }
                self.begin_anew();
                // What goes is then given back by a transaction of positions alone.
                if let Some(revoking) = self.revoking.as_mut().filter(|_| releases) {
                    revoking.aborts += 1;
                    if revoking.aborts >= RELEASES {
                        self.finish_revoke();
                    }
                }
            }
        }
        self.answer_parked(now);
        self.ask_to_open();
    }

    fn committed(&mut self, committing: Committing, ends: &[(TopicPartition, i64)], now: Instant) {
        metrics::commit(now.saturating_duration_since(committing.begun));
        metrics::children_spawned(committing.children);
        for cause in &committing.causes {
            metrics::dead_letters(cause.as_str(), 1);
        }
        let refused_records = committing.causes.iter().filter(|cause| cause.is_of_record()).count() as u64;
        self.totals.add(&Totals {
            sequenced: committing.composition.sequenced,
            refused_records,
            processed: committing.composition.events,
            refused_events: committing.causes.len() as u64 - refused_records,
            children: committing.children,
            entries: committing.entries as u64,
        });
        committing.composition.tell();
        for (of, incarnation, position) in committing.sources {
            if let Some(slot) = self.sources.get_mut(&of).filter(|slot| slot.incarnation == incarnation) {
                slot.source.committed = position;
            } else {
                self.moved_while_dropped(&of, position);
            }
        }
        for (partition, incarnation, position, bookkeeping) in committing.tasks {
            let Some(task) = self.tasks.get_mut(&partition).filter(|task| task.incarnation == incarnation) else {
                let of = TopicPartition::new(&self.setting.topics.repartition, partition);
                self.moved_while_dropped(&of, position);
                continue;
            };
            task.committed = position;
            task.overlay.commit_ends();
            task.unflushed_bookkeeping =
                bookkeeping.or(task.unflushed_bookkeeping.take().filter(|_| !planted::is(Bug::BookkeepingForgotten)));
            let changelog = TopicPartition::new(&self.setting.topics.changelog, partition);
            let Some((_, end)) = ends.iter().find(|(of, _)| *of == changelog) else { continue };
            let of = TopicPartition::new(&self.setting.topics.repartition, partition);
            let goes = self.revoking.as_ref().is_some_and(|revoking| revoking.partitions.contains(&of));
            if let Some(flush) = flush(task, *end, goes, now) {
                self.effects.push(self.disk.begins(flush));
            }
        }
    }
}

/// Whether so much waits that a restart after a kill would have too much to read.
fn waits_for_its_store(task: &Task, now: Instant) -> bool {
    let records = task.overlay.committed_records();
    if records <= WAITING {
        return false;
    }
    let keys = task.overlay.store().size().0;
    let apart = if keys < MANY_KEYS { APART } else { APART / 8 };
    has_rested(task, apart, now) && records > keys / KEYS_PER_WAITING
}

/// Whether its store has taken nothing for a while.
pub(super) fn is_rested(task: &Task, now: Instant) -> bool {
    has_rested(task, APART, now)
}

fn has_rested(task: &Task, apart: Duration, now: Instant) -> bool {
    task.last_flush.is_none_or(|last| now.saturating_duration_since(last) >= apart)
}

/// Everything committed, with the end of the changelog asked after the commit that made it so (O2).
fn flush(task: &mut Task, end: i64, durable: bool, now: Instant) -> Option<Flush> {
    let entries = task.overlay.flush_begins()?;
    task.wants_flush = false;
    task.last_flush = Some(now);
    let checkpoint = Checkpoint { position: end, at_end_ms: clock::wall_ms() };
    Some(Flush {
        partition: task.partition,
        incarnation: task.incarnation,
        store: std::sync::Arc::clone(task.overlay.store()),
        entries,
        bookkeeping: task.unflushed_bookkeeping.take(),
        checkpoint,
        durable,
    })
}
