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
        let (positions, epoch) = (&self.positions, u32::from(self.marks.epoch()));
        self.marks.count(|topic, partition, end, mark| {
            let at = positions.get(&(topic.to_owned(), partition)).filter(|at| at.epoch == epoch);
            at.is_some_and(|at| at.position >= end && at.mark >= Some(mark))
        });
    }

    /// Whether a root was received; `None` where that is not known any more.
    pub fn is_received(&self, sequence: u64) -> Option<bool> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::{self, Count};
    use crate::proto;
    use crate::stamp::Stamp;

    /// V6 of `marks`: where the topic was created anew, its positions of before may lie above all ends.
    #[test]
    fn an_acknowledgement_under_a_lower_epoch_says_nothing() {
        let mut book = Book::default();
        let tell = |book: &mut Book, partition, position, epoch, mark, roots: &[u64]| {
            let root = |n: &u64| {
                [Count::produced(&Stamp::root(epoch as u8, *n), 0), Count::consumed(&Stamp::root(epoch as u8, *n), 0)]
            };
            let at = proto::SourcePosition {
                topic: "t".into(),
                partition,
                position,
                epoch,
                stamp: "header".into(),
                greatest: Some(2),
                mark,
                ..Default::default()
            };
            let told = proto::Progress { source_positions: vec![at], ..Default::default() };
            counts::records(roots.iter().flat_map(root).collect(), told).iter().for_each(|record| book.take(record, 1));
        };
        let mark = |epoch, sequence, ends: [i64; 2]| {
            let end = |(partition, end)| proto::End { topic: "t".into(), partition, end };
            let mark = proto::Mark { epoch, sequence, ends: (0..).zip(ends).map(end).collect() };
            proto::Progress { marks: vec![mark], ..Default::default() }
        };
        book.take(&mark(0, 900, [5, 5]), 1);
        tell(&mut book, 0, 5, 0, Some(900), &[0]);
        tell(&mut book, 1, 5, 0, Some(900), &[1]);
        assert_eq!(book.standing().frontier, Some(900));
        tell(&mut book, 0, 2, 1, None, &[1]);
        book.take(&mark(1, 3, [2, 1]), 1);
        tell(&mut book, 0, 2, 1, Some(3), &[]);
        assert_eq!((book.standing().frontier, book.known((1 << 56) | 2)), (Some(900), None), "2 stands in the other");
        tell(&mut book, 1, 1, 1, Some(3), &[2]);
        assert_eq!(book.standing().frontier, Some((1 << 56) | 3));
    }
}
