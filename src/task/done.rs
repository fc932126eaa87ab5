//! Which records of a partition are complete, beyond those below the committed position.
//!
//! D1: `low` is the first offset that is not complete; all below it are.
//! D2: runs lie strictly above `low`, do not touch each other and are not empty.

use std::collections::BTreeMap;

/// The most runs that a task lets arise: encoded they stay far below 512 KiB (protocol P10).
pub const MAX_RUNS: usize = 25_000;

/// The complete records of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DoneSet {
    low: i64,
    runs: BTreeMap<i64, i64>,
}

impl DoneSet {
    /// All below `low` is complete, nothing else.
    pub fn new(low: i64) -> DoneSet {
        DoneSet { low, runs: BTreeMap::new() }
    }

    /// The first offset that is not complete: the position to commit.
    pub fn low(&self) -> i64 {
        self.low
    }

    /// How many runs lie beyond `low`.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Whether the record at `offset` is complete.
    pub fn contains(&self, offset: i64) -> bool {
        offset < self.low || self.runs.range(..=offset).next_back().is_some_and(|(_, end)| offset < *end)
    }

    /// The records of `start..end` are complete.
    pub fn complete(&mut self, start: i64, end: i64) {
        if start >= end || end <= self.low {
            return;
        }
        let (mut start, mut end) = (start.max(self.low), end);
        while let Some((&first, &last)) = self.runs.range(..=end).next_back() {
            if last < start {
                break;
            }
            start = start.min(first);
            end = end.max(last);
            self.runs.remove(&first);
        }
        if start == self.low {
            self.low = end;
        } else {
            self.runs.insert(start, end);
        }
    }

    /// The runs as pairs (gap, length), the first gap counted from `low`.
    pub fn encode(&self) -> Vec<u64> {
        let mut end = self.low;
        let mut pairs = Vec::with_capacity(2 * self.runs.len());
        for (&start, &last) in &self.runs {
            pairs.extend([(start - end) as u64, (last - start) as u64]);
            end = last;
        }
        pairs
    }

    /// Reads what [`DoneSet::encode`] wrote with `base` as `low`, for a partition whose committed
    /// position is `position`; `None` when the pairs cannot be such a set.
    pub fn decode(position: i64, base: i64, pairs: &[u64]) -> Option<DoneSet> {
        let mut done = DoneSet::new(position);
        let mut end = base;
        let (pairs, []) = pairs.as_chunks::<2>() else { return None };
        for [gap, length] in pairs {
            let start = end.checked_add(i64::try_from(*gap).ok()?)?;
            end = start.checked_add(i64::try_from(*length).ok()?)?;
            done.complete(start, end);
        }
        Some(done)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// D1, D2 against a plain set of offsets; a decoded copy is the same set.
        #[test]
        fn it_is_a_set_of_offsets(ranges in prop::collection::vec((0i64..60, 0i64..6), 0..40)) {
            let (mut done, mut model) = (DoneSet::new(5), BTreeSet::from_iter(0..5));
            for (start, length) in ranges {
                done.complete(start, start + length);
                model.extend(start..start + length);
                for offset in 0..70 {
                    prop_assert_eq!(done.contains(offset), model.contains(&offset), "{}", offset);
                }
                prop_assert!(!model.contains(&done.low()));
                let mut last = done.low;
                for (start, end) in &done.runs {
                    prop_assert!(*start > last && end > start);
                    last = *end;
                }
                prop_assert_eq!(DoneSet::decode(done.low(), done.low(), &done.encode()), Some(done.clone()));
            }
        }
    }

    #[test]
    fn what_is_no_set_is_not_guessed() {
        assert_eq!(DoneSet::decode(0, 0, &[1]), None);
        assert_eq!(DoneSet::decode(0, i64::MAX, &[1, 1]), None);
    }
}
