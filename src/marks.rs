//! Marks: with `source.stamp = "header"`, what can no longer come.
//!
//! A mark says that all sequences up to it have been sent or never will be. What has been sent lies below the ends that
//! the source partitions have when the mark is read; so they are told together, in `<app>-progress`, in the transaction
//! that commits the position behind the mark.
//!
//! V1: a mark counts where every partition that it names was sequenced to its end, by somebody who knew of the mark
//!     ([`proto::SourcePosition::mark`], the acknowledgement).
//! V2: whoever sequences a partition knows every mark that its positions acknowledge: it takes a partition only when it
//!     has read all that was told before. Of what lies at or behind the end of a mark that it knows, nothing at or
//!     below the mark becomes an event, unless it is of a higher generation: the record is held until it is known
//!     whether the sequence came before (then it is a copy, and passed over), or the mark has counted (then it is
//!     too late, and a dead letter).
//! V3: so when a mark counts, all sequences up to it that will ever come have come: in the transactions up to there.
//!     For the acknowledging position at or behind the end is in one of these; what its partition brings later lies
//!     behind it, and V2 holds.
//! V4: marks that have not counted ascend, and so do their ends: an end is at least that of the mark told before. So of
//!     two records that are held, in two partitions, each waits for a mark that the other does not hold up. A record
//!     whose mark is forgotten is held no more: it lies below the ends of those that are left, which wait for it.
//! V5: a mark that names a partition which nobody reads any more would never count: it is forgotten when one is told
//!     that does not name it, and neither honoured nor acknowledged by who does not read the topic.
//! V6: an acknowledgement is of the epoch of its position, and so is that position: those of a lower epoch say nothing,
//!     the topic may have been another.
//!
//! Later ends are always safe, so are fewer marks; and a mark at or below one told before says nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::proto;
use crate::stamp::SEQUENCE_LIMIT;

/// So many may wait to count; beyond, every second one is forgotten.
const MANY: usize = 64;

/// Ends by topic and partition.
type Ends = BTreeMap<(Arc<str>, i32), i64>;

/// What is known of the marks of one epoch, the highest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    epoch: u8,
    counted: Option<u64>,
    /// Those that have not counted (V4).
    pending: VecDeque<Pending>,
}

/// What an engine hears of progress: all that was told below a position.
#[derive(Clone, Debug)]
pub struct Known {
    /// The position.
    pub position: i64,
    /// What can no longer come.
    pub marks: Marks,
    /// The greatest sequence received, with the epoch.
    pub received: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pending {
    sequence: u64,
    ends: Arc<Ends>,
}

/// Which of the sequences from `first` to `last` came; none of the others ever becomes an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The first of them, with the epoch.
    pub first: u64,
    /// The last of them.
    pub last: u64,
    /// Those that came, as runs of first and behind the last; of very old ones that may not be known any more.
    pub came: Vec<(u64, u64)>,
}

impl Finding {
    /// Whether this one, of those from `first` to `last`, came.
    pub fn has(&self, sequence: u64) -> bool {
        let at = self.came.partition_point(|(_, end)| *end <= sequence);
        self.came.get(at).is_some_and(|(first, _)| *first <= sequence)
    }
}

impl Marks {
    /// Takes one that was told.
    pub fn take(&mut self, mark: &proto::Mark) {
        _ = self.begin(mark.epoch);
        if u32::from(self.epoch) != mark.epoch || mark.sequence >= SEQUENCE_LIMIT {
            return;
        }
        let mut ends: Ends =
            mark.ends.iter().map(|end| ((end.topic.as_str().into(), end.partition), end.end)).collect();
        if let Some(before) = self.pending.back() {
            for (of, end) in &mut ends {
                *end = before.ends.get(of).copied().unwrap_or(0).max(*end);
            }
        }
        // V5: also for one that repeats the number of the one whose place it takes.
        self.pending.retain(|before| before.ends.keys().all(|of| ends.contains_key(of)));
        if self.greatest(self.epoch).is_some_and(|greatest| mark.sequence <= greatest) {
            return;
        }
        if self.pending.len() == MANY {
            let mut number = 0;
            self.pending.retain(|_| {
                number += 1;
                number % 2 == 1
            });
        }
        self.pending.push_back(Pending { sequence: mark.sequence, ends: Arc::new(ends) });
    }

    /// Events of this epoch are sequenced: marks of lower ones say nothing any more. The epoch before and its mark that
    /// has counted, where this ends it.
    pub fn begin(&mut self, epoch: u32) -> Option<(u8, u64)> {
        let epoch = u8::try_from(epoch).ok().filter(|epoch| *epoch > self.epoch)?;
        let before = std::mem::replace(self, Marks { epoch, ..Marks::default() });
        before.counted.map(|counted| (before.epoch, counted))
    }

    /// The epoch whose marks these are.
    pub fn epoch(&self) -> u8 {
        self.epoch
    }

    /// Forgets those that wait for a topic that is not read (V5).
    pub fn forget_unread(&mut self, is_read: impl Fn(&str) -> bool) {
        self.pending.retain(|mark| mark.ends.keys().all(|(topic, _)| is_read(topic)));
    }

    /// Lets the greatest one count of which all ends are reached: `is_reached` says so of a partition, an end, and the
    /// mark to be acknowledged (V1).
    pub fn count(&mut self, mut is_reached: impl FnMut(&str, i32, i64, u64) -> bool) {
        let mut reached = |mark: &Pending| {
            mark.ends.iter().all(|((topic, partition), end)| is_reached(topic, *partition, *end, mark.sequence))
        };
        if let Some(place) = self.pending.iter().rposition(&mut reached) {
            self.counted = self.pending.drain(..=place).next_back().map(|mark| mark.sequence);
        }
    }

    /// The greatest that has counted, without the epoch.
    pub fn counted(&self, epoch: u8) -> Option<u64> {
        self.counted.filter(|_| epoch == self.epoch)
    }

    /// The greatest that was told, without the epoch.
    pub fn greatest(&self, epoch: u8) -> Option<u64> {
        let pending = self.pending.back().map(|mark| mark.sequence);
        pending.or(self.counted).filter(|_| epoch == self.epoch)
    }

    /// Whether a mark says of the record at `offset` that it does not come: it lies at or behind the mark's end, and its
    /// sequence at or below the mark (V2).
    pub fn exclude(&self, epoch: u8, topic: &Arc<str>, partition: i32, offset: i64, sequence: u64) -> bool {
        if self.counted(epoch).is_some_and(|counted| sequence <= counted) {
            return true;
        }
        if self.greatest(epoch).is_none_or(|greatest| sequence > greatest) {
            return false;
        }
        let first = self.pending.partition_point(|mark| mark.sequence < sequence);
        let of = (Arc::clone(topic), partition);
        self.pending.get(first).is_some_and(|mark| offset >= mark.ends.get(&of).copied().unwrap_or(0))
    }

    /// The greatest end that a mark waits for in a partition.
    pub fn end(&self, topic: &Arc<str>, partition: i32) -> Option<i64> {
        self.pending.back().and_then(|mark| mark.ends.get(&(Arc::clone(topic), partition)).copied())
    }

    /// Those that matter, as a snapshot tells them: whoever takes them, in this order, knows the same.
    pub fn told(&self) -> Vec<proto::Mark> {
        let epoch = u32::from(self.epoch);
        let counted = self.counted.map(|sequence| proto::Mark { epoch, sequence, ends: Vec::new() });
        let end = |((topic, partition), end): (&(Arc<str>, i32), &i64)| proto::End {
            topic: topic.to_string(),
            partition: *partition,
            end: *end,
        };
        let pending = self.pending.iter().map(|mark| proto::Mark {
            epoch,
            sequence: mark.sequence,
            ends: mark.ends.iter().map(end).collect(),
        });
        counted.into_iter().chain(pending).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(epoch: u32, sequence: u64, ends: &[i64]) -> proto::Mark {
        let end = |(partition, end): (i32, &i64)| proto::End { topic: "t".into(), partition, end: *end };
        proto::Mark { epoch, sequence, ends: (0..).zip(ends).map(end).collect() }
    }

    /// The position of each partition, and the mark that it acknowledges.
    fn count(marks: &mut Marks, at: &[(i64, u64)]) {
        marks.count(|_, partition, end, mark| {
            let (position, known) = at[partition as usize];
            position >= end && known >= mark
        });
    }

    #[test]
    fn one_counts_when_all_partitions_have_reached_its_end_and_know_it() {
        let mut marks = Marks::default();
        marks.take(&mark(0, 10, &[5, 7]));
        for at in [[(5, 10), (6, 10)], [(4, 10), (7, 10)], [(5, 10), (7, 9)]] {
            count(&mut marks, &at);
            assert_eq!((marks.counted(0), marks.greatest(0)), (None, Some(10)), "{at:?}");
        }
        count(&mut marks, &[(5, 10), (7, 12)]);
        assert_eq!((marks.counted(0), marks.greatest(0), marks.counted(1)), (Some(10), Some(10), None));
        marks.take(&mark(0, 9, &[0, 0]));
        assert_eq!(marks.greatest(0), Some(10), "one below says nothing");
    }

    #[test]
    fn what_lies_behind_an_end_is_excluded() {
        let (mut marks, topic) = (Marks::default(), Arc::from("t"));
        marks.take(&mark(0, 10, &[5, 7]));
        marks.take(&mark(0, 20, &[9, 3]));
        let excludes =
            |marks: &Marks, partition, offset, sequence| marks.exclude(0, &topic, partition, offset, sequence);
        assert!(excludes(&marks, 0, 5, 10) && !excludes(&marks, 0, 4, 10));
        assert!(!excludes(&marks, 0, 8, 11) && excludes(&marks, 0, 9, 11));
        assert!(!excludes(&marks, 1, 6, 20), "V4: the end is 7, as it was told before");
        assert!(excludes(&marks, 1, 7, 20) && !excludes(&marks, 1, 70, 21));
        assert!(excludes(&marks, 2, 0, 20), "a partition that is new since");
        count(&mut marks, &[(9, 20), (7, 20)]);
        assert!(excludes(&marks, 0, 0, 20) && !excludes(&marks, 0, 100, 21));
        assert_eq!(marks.begin(1), Some((0, 20)));
        assert_eq!((marks.greatest(0), marks.greatest(1)), (None, None));
        marks.take(&mark(0, 99, &[0, 0]));
        assert_eq!(marks, Marks { epoch: 1, ..Marks::default() }, "of a lower epoch");
    }

    #[test]
    fn one_that_waits_for_what_nobody_reads_is_replaced_by_its_like() {
        let mut marks = Marks::default();
        marks.take(&mark(0, 5, &[3, 9]));
        marks.take(&mark(0, 5, &[4]));
        count(&mut marks, &[(4, 5)]);
        assert_eq!(marks.counted(0), Some(5), "V5");
    }

    #[test]
    fn those_that_wait_are_bounded_and_stay_in_order() {
        let mut marks = Marks::default();
        (1..1000).for_each(|n| marks.take(&mark(0, n, &[n as i64, 1000 - n as i64])));
        assert!(marks.pending.len() <= MANY);
        assert_eq!((marks.pending[0].sequence, marks.greatest(0)), (1, Some(999)));
        let ends: Vec<Vec<i64>> = marks.pending.iter().map(|mark| mark.ends.values().copied().collect()).collect();
        assert!(ends.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][1] <= pair[1][1]), "V4");
        let mut again = Marks::default();
        marks.told().iter().for_each(|mark| again.take(mark));
        assert_eq!(again, marks);
    }
}
