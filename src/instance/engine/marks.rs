//! What an engine thread does about marks: it learns them from the observer of its instance, acknowledges them in the
//! positions of its source partitions, and makes those that `source.max_disorder` promises ([`crate::marks`]).
//!
//! M1: a source partition is started when the observer has read what stood in progress when it was claimed: then every
//!     mark is known that a former owner has acknowledged (V2).
//! M2: a mark is acknowledged by every partition, also one that stands still, and where only the ends of transactions
//!     are left up to a mark's end, the position passes them.
//! M3: what is held for a mark is held as long as that mark is known ([`crate::marks`], V4, V5).
//! M4: nothing is begun under an epoch that is over, as far as progress tells: its order would turn around.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Effect, Engine, Opened};
use crate::config::{Guarantee, StampSource};
use crate::instance::calls::Calls;
use crate::log::TopicPartition;
use crate::marks::{Finding, Known};
use crate::sequencer::stamps::Excluded;
use crate::stamp::SEQUENCE_LIMIT;

/// So long it is at least from one promise of `source.max_disorder` to the next, and from one look for what keeps a mark
/// from counting to the next.
const APART: Duration = Duration::from_secs(1);

/// What is known of progress, and what follows from it.
#[derive(Debug, Default)]
pub(super) struct Marking {
    /// All below it is known.
    position: i64,
    /// The greatest sequence that was told there, with the epoch.
    received: Option<u64>,
    /// Source partitions that are claimed and not started yet (M1).
    claimed: BTreeMap<TopicPartition, (u64, Opened)>,
    /// The last promise that was made of `source.max_disorder`, and when.
    promised: Option<u64>,
    looked: Option<Instant>,
    /// Where partitions stood at the last look.
    stood: BTreeMap<TopicPartition, i64>,
}

/// Records of a source partition that may be none at all, but the ends of transactions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Which partition.
    pub of: TopicPartition,
    /// The position.
    pub from: i64,
    /// The end that a mark waits for.
    pub to: i64,
    /// The epoch of the partition's start.
    pub epoch: u64,
}

impl<C: Calls> Engine<C> {
    /// Whether sequences are such that it takes marks to know what can no longer come, and all is counted.
    fn takes_marks(&self) -> bool {
        let config = &self.setting.config;
        (config.source.stamp, config.processing.guarantee) == (StampSource::Header, Guarantee::ExactlyOnce)
    }

    /// Keeps a claimed source partition for when enough is known (M1).
    pub(super) fn is_early(&mut self, of: &TopicPartition, epoch: u64, opened: Opened) -> Option<Opened> {
        if !self.takes_marks() || opened.progress <= self.marking.position || opened.restored.is_some() {
            return Some(opened);
        }
        self.marking.claimed.insert(of.clone(), (epoch, opened));
        None
    }

    /// The observer has read all below `position`.
    pub(super) fn hear(&mut self, known: Known) {
        let epoch = u64::from(self.setting.config.source.epoch);
        if let Some(higher) = known.received.map(|received| received / SEQUENCE_LIMIT).filter(|higher| *higher > epoch)
        {
            return self.effects.push(Effect::Fail(format!(
                "source.epoch = {epoch}, but another instance has received events of epoch {higher}: what is received here \
                 would be older than the state; set source.epoch = {higher} for all instances"
            ))); // M4
        }
        if !self.takes_marks() {
            return;
        }
        (self.marking.position, self.marking.received) = (known.position, known.received);
        if self.sequencer.know(known.marks) {
            self.acknowledge();
        }
        self.let_go();
        for (of, (epoch, opened)) in std::mem::take(&mut self.marking.claimed) {
            self.opened(of, epoch, Ok(opened));
        }
    }

    /// M2
    fn acknowledge(&mut self) {
        if !self.sources.is_empty() {
            self.composing.touch(&self.membership);
            self.sources.values_mut().for_each(|slot| slot.touched = true);
        }
    }

    /// A source partition was started: somebody may wait for its acknowledgement.
    pub(super) fn acknowledge_at_start(&mut self, of: &TopicPartition) {
        if self.takes_marks()
            && self.sequencer.marks().end(&of.topic, of.partition).is_some()
            && let Some(slot) = self.sources.get_mut(of)
        {
            self.composing.touch(&self.membership);
            slot.touched = true;
        }
    }

    /// It was found out what came of the sequences around an excluded record.
    pub(super) fn found(&mut self, excluded: &Excluded, epoch: u64, finding: Finding) {
        let is_held = self.sources.get(&excluded.of).is_some_and(|slot| slot.is_held(epoch));
        if is_held {
            self.sequencer.found(finding);
            self.goes_on(&excluded.of, epoch);
        }
    }

    /// Nothing but ends of transactions stands there.
    pub(super) fn passed(&mut self, rest: &Rest) {
        let Some(slot) = self.sources.get_mut(&rest.of).filter(|slot| slot.epoch == rest.epoch) else { return };
        if slot.source.position == rest.from {
            slot.source.position = rest.to;
            slot.touched = true;
            self.composing.touch(&self.membership);
        }
    }

    pub(super) fn mind_marks(&mut self, now: Instant) {
        let is_due = self.marking.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= APART);
        if !is_due || !self.takes_marks() {
            return;
        }
        self.marking.looked = Some(now);
        self.promise();
        self.look_for_rests();
    }

    /// Of what was read it follows that nothing below can still come. It goes into a transaction that is made anyway, or,
    /// at the end of a burst, into one of its own.
    fn promise(&mut self) {
        let source = &self.setting.config.source;
        let Some(disorder) = source.max_disorder else { return };
        // Others may have read a greater one, or this one has, before its last start.
        let told = self.marking.received.filter(|told| told / SEQUENCE_LIMIT == u64::from(source.epoch));
        let greatest = self.sequencer.header().greatest().max(told.map(|told| told % SEQUENCE_LIMIT));
        let promise = greatest.and_then(|greatest| greatest.checked_sub(disorder));
        let known = self.sequencer.marks().greatest(source.epoch).max(self.marking.promised);
        let Some(promise) = promise.and_then(|behind| behind.checked_sub(1)).filter(|promise| Some(*promise) > known)
        else {
            return;
        };
        // Its position fences what is told.
        let Some(slot) = self.sources.values_mut().next() else { return };
        slot.touched = true;
        self.composing.touch(&self.membership);
        self.sequencer.tell_mark(promise, &mut self.composing.outbox);
        self.marking.promised = Some(promise);
    }

    /// What was composed is void.
    pub(super) fn forget_promise(&mut self) {
        self.marking.promised = None;
    }

    fn look_for_rests(&mut self) {
        let marks = self.sequencer.marks();
        let mut stood = BTreeMap::new();
        for (of, slot) in self.sources.iter().filter(|(_, slot)| !slot.is_held(slot.epoch)) {
            let from = slot.source.position;
            let Some(to) = marks.end(&of.topic, of.partition).filter(|end| from < *end) else { continue };
            if self.marking.stood.get(of) == Some(&from) {
                self.effects.push(Effect::Rest(Rest { of: of.clone(), from, to, epoch: slot.epoch }));
            }
            stood.insert(of.clone(), from);
        }
        self.marking.stood = stood;
    }
}
