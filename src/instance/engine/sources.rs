//! The source partitions of an engine thread: shared out by the group, or read by hand by the sequencer.
//!
//! B1: with `arrival` the sources are opened after the task that the sequencer sits by, go with it, and each of their
//!     transactions has that task's position, which is what fences it (protocol P3, P22).
//! B2: a partition that stands at a record to be judged delivers nothing until that is done (Q3).

use std::time::{Duration, Instant};

use super::assignment::SEQUENCERS_PARTITION;
use super::{Effect, Engine};
use crate::config::StampSource;
use crate::instance::calls::Calls;
use crate::log::{Fetched, TopicPartition};
use crate::metrics;
use crate::sequencer::stamps::{Beyond, Judgement};
use crate::sequencer::{Held, Source};

/// Positions that do not move are committed again this often: the broker forgets those of topics that nobody
/// subscribes to, by default after 7 days (protocol P23).
const RENEWAL: Duration = Duration::from_secs(12 * 3600);

/// A source partition at work.
#[derive(Debug)]
pub(super) struct SourceSlot {
    pub(super) source: Source,
    /// The epoch under which it was opened.
    pub(super) incarnation: u64,
    /// The epoch of its latest start: a newer one once it has stood at a record to be judged (B2).
    pub(super) epoch: u64,
    pub(super) touched: bool,
    pub(super) paused: bool,
    /// The record that is being judged, where it stands at one; its epoch is not started.
    judging: Option<Held>,
}

impl SourceSlot {
    /// Whether it stands at a record under this epoch.
    pub(super) fn is_held(&self, epoch: u64) -> bool {
        self.judging.is_some() && self.epoch == epoch
    }
}

impl<C: Calls> Engine<C> {
    /// Whether this member reads the sources without their being assigned to it.
    pub(super) fn reads_by_hand(&self) -> bool {
        self.setting.config.source.stamp == StampSource::Arrival
    }

    /// Step 1 of the records of a source partition.
    pub(super) fn sequence(&mut self, fetched: Fetched) {
        // What is read by hand comes on while it is given back, and nothing would fence a transaction with it (B1).
        if self.revoking.as_ref().is_some_and(|revoking| revoking.partitions.contains(&fetched.of)) {
            return;
        }
        let Some(slot) = self.sources.get_mut(&fetched.of).filter(|slot| slot.epoch == fetched.epoch) else { return };
        self.composing.touch(&self.membership);
        slot.touched = true;
        let sequencer = &mut self.sequencer;
        let (taken, held) = sequencer.sequence(&mut slot.source, fetched.records, &mut self.composing.outbox);
        metrics::events_received(&fetched.of.topic, taken);
        self.composing.sequenced += taken;
        if let Some(held) = held {
            // What was delivered behind the record comes again after the judgement, under this epoch (B2).
            self.epochs += 1;
            (slot.epoch, slot.judging) = (self.epochs, Some(held.clone()));
            self.effects.push(Effect::Judge(held, slot.epoch));
            self.member.pause(vec![fetched.of]);
        }
        if self.reads_by_hand()
            && let Some(task) = self.tasks.get_mut(&SEQUENCERS_PARTITION)
        {
            task.touched = true; // B1
        }
    }

    /// The record that a partition stands at was judged: it is read again from there.
    pub(super) fn judged(&mut self, beyond: &Beyond, epoch: u64, judgement: Judgement) {
        if self.sources.get(&beyond.of).is_some_and(|slot| slot.is_held(epoch)) {
            self.sequencer.header().judged(&beyond.of, beyond.offset, judgement);
            self.goes_on(&beyond.of, epoch);
        }
    }

    /// Records that were held for marks that are forgotten are read again.
    pub(super) fn let_go(&mut self) {
        let is_free = |held: &Held| matches!(held, Held::Excluded(excluded) if !self.sequencer.holds(excluded));
        let free = self.sources.iter().filter(|(_, slot)| slot.judging.as_ref().is_some_and(is_free));
        let free: Vec<_> = free.map(|(of, slot)| (of.clone(), slot.epoch)).collect();
        free.iter().for_each(|(of, epoch)| self.goes_on(of, *epoch));
    }

    /// It is read on from the record at which it stood.
    pub(super) fn goes_on(&mut self, of: &TopicPartition, epoch: u64) {
        let Some(slot) = self.sources.get_mut(of) else { return };
        (slot.judging, slot.paused) = (None, false);
        self.member.start(of.clone(), slot.source.position, epoch);
    }

    pub(super) fn judging_epochs(&self) -> impl Iterator<Item = u64> + '_ {
        self.sources.values().filter(|slot| slot.judging.is_some()).map(|slot| slot.epoch)
    }

    /// A source partition is claimed.
    pub(super) fn start_source(&mut self, of: &TopicPartition, epoch: u64, position: i64, next_sequence: Option<u64>) {
        tracing::info!(source = %of, position, "source running");
        if let Some(next) = next_sequence {
            self.sequencer.runs().begin(next);
        }
        let topic_id = self.setting.topic_ids.get(&of.topic).cloned().unwrap_or_default();
        let source = Source::new(of.clone(), topic_id, position);
        let slot = SourceSlot { source, incarnation: epoch, epoch, touched: false, paused: false, judging: None };
        self.sources.insert(of.clone(), slot);
        self.acknowledge_at_start(of);
    }

    /// The task that the sequencer sits by is at work: all sources are opened (B1).
    pub(super) fn open_sources(&mut self) {
        for of in self.setting.source_partitions.clone() {
            if !self.sources.contains_key(&of) && !self.opening.contains_key(&of) {
                self.opens(of, None);
            }
        }
        self.ask_to_open();
    }

    /// The source topics have been looked at; what they were given is read, too.
    pub(super) fn sources_are(&mut self, partitions: Vec<TopicPartition>) {
        self.setting.source_partitions = partitions;
        let sits_here = self.tasks.get(&SEQUENCERS_PARTITION).is_some_and(|task| !task.closing);
        if self.reads_by_hand() && sits_here {
            self.open_sources();
        }
    }

    /// The source partitions that go when `partitions` go (B1).
    pub(super) fn go_with(&self, partitions: &[TopicPartition]) -> Vec<TopicPartition> {
        let repartition = &self.setting.topics.repartition;
        let seat = TopicPartition::new(repartition, SEQUENCERS_PARTITION);
        if !self.reads_by_hand() || !partitions.contains(&seat) {
            return Vec::new();
        }
        let opening = self.opening.keys().filter(|of| of.topic != *repartition);
        self.sources.keys().chain(opening).cloned().collect()
    }

    /// Positions that stand still are committed again before the broker forgets them.
    pub(super) fn renew_positions_if_due(&mut self, now: Instant) {
        if now.saturating_duration_since(self.last_renewal) < RENEWAL {
            return;
        }
        self.last_renewal = now;
        if self.sources.is_empty() && self.tasks.is_empty() {
            return;
        }
        self.composing.touch(&self.membership);
        self.sources.values_mut().for_each(|slot| slot.touched = true);
        self.tasks.values_mut().for_each(|task| task.touched = true);
    }
}
