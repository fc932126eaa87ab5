//! Which sequences have come, and which still can.
//!
//! C1: with `header` what has come is known by sequence, and what no longer can by the mark that has counted
//!     ([`crate::marks`]); otherwise sequences come in order.
//! C2: a record that is no event has come, and nothing is pending of it. A later one of its sequence is no copy of an
//!     event, so that none is passed over which nobody has ever handled.

use super::Book;
use super::book::EPOCH_SHIFT;
use crate::marks::{Finding, Marks};

/// So many runs are told at once of what came.
const KNOWN_AT_ONCE: usize = 1000;

impl Book {
    /// The greatest sequence received, with the epoch.
    pub fn received_last(&self) -> Option<u64> {
        self.epochs.iter().rev().find_map(|(number, epoch)| last_below(*number, epoch.end))
    }

    /// These became dead letters: as events, if they came before (C2).
    pub(super) fn refused(&mut self, first: u64, length: u64) {
        let gaps: Vec<_> = self.came.gaps(first, first.saturating_add(length)).collect();
        gaps.into_iter().for_each(|(first, end)| self.broken.add(first, end - first));
        self.came.add(first, length);
    }

    /// Lets marks count of which nothing is missing any more.
    pub(super) fn count_marks(&mut self) {
        let positions = &self.positions;
        self.marks.count(|topic, partition, end, mark| {
            let at = positions.get(&(topic.to_owned(), partition));
            at.is_some_and(|at| at.position >= end && at.mark >= Some(mark))
        });
    }

    /// Whether a root was received; `None` where that is not known any more.
    pub(super) fn is_received(&self, sequence: u64) -> Option<bool> {
        match self.epochs.get(&((sequence >> EPOCH_SHIFT) as u8)).filter(|epoch| sequence < epoch.end) {
            None => Some(false),
            Some(epoch) if epoch.is_ordered => Some(true),
            Some(_) => self.came.holds(sequence),
        }
    }

    /// What can no longer come, with `header`.
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// What is known for good of `sequence` and of some behind it; `None` as long as it has not come as an event, and
    /// still can.
    pub fn known(&self, sequence: u64) -> Option<Finding> {
        let run = self.came.run_of(sequence).map(|(_, end)| (sequence, end));
        let events = |(first, end): (u64, u64)| self.broken.gaps(first, end);
        if let Some((first, end)) = run.and_then(|run| events(run).next()).filter(|(first, _)| *first == sequence) {
            return Some(Finding { first, last: end - 1, came: vec![(first, end)] });
        }
        let marked = self.marked((sequence >> EPOCH_SHIFT) as u8).filter(|marked| sequence < *marked)?;
        let runs = run.into_iter().chain(self.came.within(sequence.saturating_add(1), marked));
        let mut came: Vec<(u64, u64)> = runs.flat_map(events).take(KNOWN_AT_ONCE + 1).collect();
        let beyond = if came.len() > KNOWN_AT_ONCE { came.pop() } else { None };
        Some(Finding { first: sequence, last: beyond.map_or(marked, |(first, _)| first) - 1, came })
    }

    /// The sequence behind the last that is known to come no more; `None` with `header` as long as no mark has counted
    /// and no higher epoch has begun.
    pub(super) fn marked(&self, number: u8) -> Option<u64> {
        let epoch = self.epochs.get(&number)?;
        let behind = |mark: u64| (u64::from(number) << EPOCH_SHIFT).saturating_add(mark + 1);
        let is_over = self.epochs.last_key_value().is_some_and(|(highest, _)| number < *highest);
        if epoch.is_ordered || is_over { Some(epoch.end) } else { self.marks.counted(number).map(behind) }
    }

    /// Everything received so far, as runs of first and last sequence; what is known never to come may be among it.
    pub fn all(&self) -> Vec<(u64, u64)> {
        let mut all = Vec::new();
        for (number, epoch) in &self.epochs {
            let base = u64::from(*number) << EPOCH_SHIFT;
            // Above what is marked only what came: the rest is not received, and may never be.
            let closed = self.marked(*number).unwrap_or(base);
            let came = self.came.run_of(closed).map(|(_, end)| (closed, end));
            let came = came.into_iter().chain(self.came.within(closed.saturating_add(1), epoch.end));
            let runs = [(base, closed)].into_iter().chain(came.filter(|_| !epoch.is_ordered));
            all.extend(runs.filter(|(first, end)| end > first).map(|(first, end)| (first, end - 1)));
        }
        all
    }

    /// The first of these sequences of one epoch that has not come, and still can.
    pub(super) fn first_missing(&self, first: u64, last: u64) -> Option<u64> {
        let number = (last >> EPOCH_SHIFT) as u8;
        match self.epochs.get(&number) {
            Some(epoch) if epoch.is_ordered => (last >= epoch.end).then(|| first.max(epoch.end)),
            Some(_) => {
                // What never came up to the mark never will.
                let open = self.marked(number).map_or(first, |marked| first.max(marked));
                self.came.first_missing(open, last)
            }
            None => Some(first),
        }
    }
}

/// The sequence below `end` in the epoch `number`, if there is one.
pub(super) fn last_below(number: u8, end: u64) -> Option<u64> {
    (end > u64::from(number) << EPOCH_SHIFT).then(|| end - 1)
}
