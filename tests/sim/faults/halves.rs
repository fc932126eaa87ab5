//! What a frozen engine has left in the log of the transaction that it was at: records and positions, undecided.
//!
//! The engine's own transaction is carried out as a whole when it goes on. This one stands for its first half, and has
//! what may never be seen: whoever takes over has to end it (protocol P6).

use bytes::Bytes;
use tidegate::instance::commit::{Mark, Work};
use tidegate::log::embedded::EmbeddedLog;
use tidegate::log::{Append, Log, NewRecord, OffsetCommit, TopicPartition};

use crate::sometimes::{self, reached};
use crate::timeline::note;
use crate::world::World;

/// An undecided transaction of an engine that stands still.
pub struct HalfDone {
    number: u64,
    producer: String,
    offsets: Vec<OffsetCommit>,
}

impl HalfDone {
    /// Begins one with the positions of `work`, unless they are refused.
    pub fn begin(log: &EmbeddedLog, producer: &str, work: &Work, changelog: &std::sync::Arc<str>) -> Option<HalfDone> {
        let number = log.begin(producer).ok()?;
        let changed = work.changes.iter().map(|(partition, ..)| TopicPartition::new(changelog, *partition));
        for to in changed.chain(work.offsets.iter().map(|offset| offset.of.clone())) {
            let (key, value) = (Some(Bytes::from_static(b"k1")), Some(Bytes::from_static(b"half done")));
            log.append_in(number, &Append { to, records: vec![NewRecord { key, value, headers: Vec::new() }] }).ok()?;
        }
        if log.offsets_in(number, &work.offsets, &work.membership).is_err() {
            log.decide(number, false).expect("it is undecided");
            return None;
        }
        note(format!("{producer} has transaction {number} half done"));
        Some(HalfDone { number, producer: producer.to_owned(), offsets: work.offsets.clone() })
    }

    /// The engine goes on. Where others have claimed a partition of it, they have ended it before.
    pub fn end(self, world: &World) {
        let HalfDone { number, producer, offsets } = self;
        let log = &world.log().inner;
        let group = &world.plan.config.application.id;
        let partitions: Vec<_> = offsets.into_iter().map(|offset| offset.of).collect();
        let committed = log.committed(group, &partitions, false).expect("they are there");
        let marks = committed.iter().flatten().filter_map(|committed| Mark::parse(&committed.metadata));
        let moved = marks.into_iter().any(|mark| mark.producer != producer);
        let undecided = log.decide(number, false).is_ok();
        assert!(
            !(moved && undecided),
            "P6: {producer} could still commit transaction {number}, others own {partitions:?}"
        );
        if moved {
            reached(sometimes::FROZEN_HALF);
        }
    }
}
