//! A set of sequences, as runs.
//!
//! I1: runs are ascending, not empty, and do not touch each other.

use std::collections::BTreeMap;

/// The most runs that are kept: about 50 MB. Of what lies below the lowest kept nothing is known.
const MANY: usize = 1 << 20;

/// Sequences as runs, by first, with the sequence behind the last.
#[derive(Debug, Default)]
pub(super) struct Runs {
    runs: BTreeMap<u64, u64>,
    /// Below this one runs were forgotten.
    floor: u64,
}

impl Runs {
    /// Adds the `length` sequences from `first` on.
    pub(super) fn add(&mut self, first: u64, length: u64) {
        let (mut first, mut end) = (first, first.saturating_add(length));
        if first == end {
            return;
        }
        while let Some((&known, &known_end)) = self.runs.range(..=end).next_back().filter(|(_, last)| **last >= first) {
            first = first.min(known);
            end = end.max(known_end);
            self.runs.remove(&known);
        }
        self.runs.insert(first, end);
        if self.runs.len() > MANY
            && let Some((_, end)) = self.runs.pop_first()
        {
            self.floor = self.floor.max(end);
        }
    }

    /// Nothing is known of what lies below.
    pub(super) fn forget_below(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
    }

    /// The runs, first and behind the last, and the sequence below which nothing is known.
    pub(super) fn told(&self) -> (impl Iterator<Item = (u64, u64)>, u64) {
        (self.runs.iter().map(|(first, end)| (*first, *end)), self.floor)
    }

    /// How many runs there are.
    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether it holds `sequence`; `None` = it is not known any more.
    pub(super) fn holds(&self, sequence: u64) -> Option<bool> {
        let holds = self.run_of(sequence).is_some();
        (holds || sequence >= self.floor).then_some(holds)
    }

    /// The run that `sequence` is in, first and behind the last.
    pub(super) fn run_of(&self, sequence: u64) -> Option<(u64, u64)> {
        let run = self.runs.range(..=sequence).next_back().map(|(first, end)| (*first, *end));
        run.filter(|(_, end)| sequence < *end)
    }

    /// The runs that begin in these sequences, `end` not included.
    pub(super) fn within(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        self.runs.range(first..end.max(first)).map(|(first, end)| (*first, *end))
    }

    /// Those of these sequences that it does not hold, `end` not included, as runs; not those that are forgotten.
    pub(super) fn gaps(&self, first: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        let mut at = first;
        std::iter::from_fn(move || {
            let gap = self.first_missing(at, end.checked_sub(1)?)?;
            at = self.runs.range(gap..end).next().map_or(end, |(next, _)| *next);
            Some((gap, at))
        })
    }

    /// The first of these sequences that it does not hold.
    pub(super) fn first_missing(&self, first: u64, last: u64) -> Option<u64> {
        let mut at = first.max(self.floor);
        while at <= last {
            match self.runs.range(..=at).next_back().filter(|(_, end)| at < **end) {
                Some((_, end)) => at = *end,
                None => return Some(at),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_holds_what_was_added(added in prop::collection::vec((0u64..50, 0u64..6), 0..40), first in 0u64..50, more in 0u64..10) {
            let mut runs = Runs::default();
            let mut single = BTreeSet::new();
            for (first, length) in added {
                runs.add(first, length);
                single.extend(first..first + length);
            }
            for sequence in 0..60 {
                prop_assert_eq!(runs.holds(sequence), Some(single.contains(&sequence)));
            }
            let missing = (first..=first + more).find(|sequence| !single.contains(sequence));
            prop_assert_eq!(runs.first_missing(first, first + more), missing);
            let gaps: Vec<u64> = runs.gaps(first, first + more).flat_map(|(first, end)| first..end).collect();
            let expected: Vec<u64> = (first..first + more).filter(|sequence| !single.contains(sequence)).collect();
            prop_assert_eq!(gaps, expected);
            let touching = runs.runs.iter().zip(runs.runs.iter().skip(1)).any(|((_, end), (next, _))| end >= next);
            prop_assert!(!touching, "I1");
        }
    }
}
