//! How many events of each root are pending, by depth.
//!
//! Roots of neighbouring sequences with the same numbers are one run: a backlog of a million roots that nobody has
//! begun yet takes as much room as one of them.
//!
//! G1: runs are ascending and do not overlap, none is empty, and none has nothing pending: what is settled is not here.

use std::collections::BTreeMap;

use smallvec::SmallVec;

/// The pending events of one root, by depth from 0 on; the last is never 0.
pub(super) type Pending = SmallVec<[i32; 4]>;

/// No event is deeper than this.
const DEEPEST: usize = u8::MAX as usize;

/// Adds `deltas` from `first_depth` on; what says that it is deeper than anything can be is left out.
pub(super) fn add(pending: &mut Pending, first_depth: u8, deltas: &[i64]) {
    let first = usize::from(first_depth);
    let deltas = &deltas[..deltas.len().min(DEEPEST + 1 - first)];
    if pending.len() < first + deltas.len() {
        pending.resize(first + deltas.len(), 0);
    }
    for (number, delta) in pending[first..].iter_mut().zip(deltas) {
        *number = number.saturating_add(i32::try_from(*delta).unwrap_or(if *delta < 0 { i32::MIN } else { i32::MAX }));
    }
    while pending.last() == Some(&0) {
        pending.pop();
    }
}

#[derive(Debug)]
struct Run {
    /// The sequence behind the last.
    end: u64,
    pending: Pending,
}

/// The roots that have something pending.
#[derive(Debug, Default)]
pub(super) struct Cascades {
    /// By their first sequence.
    runs: BTreeMap<u64, Run>,
    roots: u64,
}

impl Cascades {
    /// Adds `deltas`, from `first_depth` on, to the `length` roots from `first` on.
    pub(super) fn add(&mut self, first: u64, length: u64, first_depth: u8, deltas: &[i64]) {
        let end = first.saturating_add(length);
        let mut at = first;
        self.split(first);
        self.split(end);
        while at < end {
            let next = self.runs.range(at..end).next().map(|(first, run)| (*first, run.end));
            let (until, mut pending) = match next {
                Some((first, until)) if first == at => {
                    self.roots -= until - at;
                    (until, self.runs.remove(&at).map(|run| run.pending).unwrap_or_default())
                }
                Some((first, _)) => (first, Pending::new()),
                None => (end, Pending::new()),
            };
            add(&mut pending, first_depth, deltas);
            self.put(at, Run { end: until, pending });
            at = until;
        }
        self.join(end);
    }

    /// What is pending of a root.
    pub(super) fn pending(&self, sequence: u64) -> &[i32] {
        let run = self.runs.range(..=sequence).next_back().filter(|(_, run)| sequence < run.end);
        run.map_or(&[], |(_, run)| &run.pending)
    }

    /// The least sequence of those that have something pending.
    pub(super) fn first(&self) -> Option<u64> {
        self.runs.first_key_value().map(|(first, _)| *first)
    }

    /// The least sequence of those at or above `from`, up to and including `last`, that have something pending.
    pub(super) fn first_within(&self, from: u64, last: u64) -> Option<u64> {
        if !self.pending(from).is_empty() {
            return Some(from);
        }
        self.runs.range(from..=last.max(from)).next().map(|(first, _)| *first)
    }

    /// The runs of roots that have something pending: first, behind the last, and what is pending of each.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64, &[i32])> {
        self.runs.iter().map(|(first, run)| (*first, run.end, &run.pending[..]))
    }

    /// How many runs there are.
    pub(super) fn runs(&self) -> usize {
        self.runs.len()
    }

    /// How many roots have something pending.
    pub(super) fn roots(&self) -> u64 {
        self.roots
    }

    /// Makes `at` a border of runs.
    fn split(&mut self, at: u64) {
        let Some((&first, run)) = self.runs.range_mut(..at).next_back() else { return };
        if at < run.end {
            let above = Run { end: run.end, pending: run.pending.clone() };
            run.end = at;
            debug_assert!(first < at, "G1");
            self.runs.insert(at, above);
        }
    }

    /// Inserts a run, or lengthens the one that ends where it begins.
    fn put(&mut self, first: u64, run: Run) {
        if run.pending.is_empty() {
            return;
        }
        self.roots += run.end - first;
        match self.runs.range_mut(..first).next_back() {
            Some((_, before)) if before.end == first && before.pending == run.pending => before.end = run.end,
            _ => _ = self.runs.insert(first, run),
        }
    }

    /// Makes the runs on both sides of `at` one when they are alike.
    fn join(&mut self, at: u64) {
        let Some(after) = self.runs.remove(&at) else { return };
        match self.runs.range_mut(..at).next_back() {
            Some((_, before)) if before.end == at && before.pending == after.pending => before.end = after.end,
            _ => _ = self.runs.insert(at, after),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn told(cascades: &Cascades) -> Vec<(u64, u64, Vec<i32>)> {
        cascades.runs.iter().map(|(first, run)| (*first, run.end, run.pending.to_vec())).collect()
    }

    #[test]
    fn a_range_is_one_run_until_its_roots_differ() {
        let mut cascades = Cascades::default();
        cascades.add(10, 1_000_000, 0, &[1]);
        assert_eq!((told(&cascades).len(), cascades.roots()), (1, 1_000_000));
        cascades.add(500, 1, 0, &[-1, 3]);
        assert_eq!(told(&cascades)[1], (500, 501, vec![0, 3]));
        cascades.add(500, 1, 1, &[-3]);
        assert_eq!(told(&cascades), [(10, 500, vec![1]), (501, 1_000_010, vec![1])]);
        assert_eq!((cascades.pending(500), cascades.pending(501)), (&[][..], &[1][..]));
        assert_eq!(
            (cascades.first(), cascades.first_within(500, 500), cascades.first_within(500, 900)),
            (Some(10), None, Some(501))
        );
        cascades.add(10, 490, 0, &[-1]);
        cascades.add(501, 999_509, 0, &[-1]);
        assert_eq!((told(&cascades), cascades.roots()), (vec![], 0));
    }

    #[test]
    fn what_cannot_be_takes_no_room() {
        let mut cascades = Cascades::default();
        cascades.add(1, u64::MAX, 250, &[1; 100_000]);
        cascades.add(0, u64::MAX, 0, &[i64::MIN, i64::MAX]);
        assert_eq!((cascades.pending(0).len(), cascades.pending(7).len()), (2, 256));
        assert_eq!(cascades.roots(), u64::MAX);
    }

    proptest! {
        #[test]
        fn it_is_what_single_counters_would_be(
            changes in prop::collection::vec((0u64..40, 1u64..20, 0u8..3, prop::collection::vec(-2i64..3, 1..3)), 0..60)
        ) {
            let mut cascades = Cascades::default();
            let mut single = vec![Pending::new(); 80];
            for (first, length, depth, deltas) in changes {
                cascades.add(first, length, depth, &deltas);
                for pending in &mut single[first as usize..(first + length) as usize] {
                    add(pending, depth, &deltas);
                }
                for (sequence, pending) in single.iter().enumerate() {
                    prop_assert_eq!(cascades.pending(sequence as u64), &pending[..]);
                }
                let unsettled: Vec<u64> = (0u64..).zip(&single).filter(|(_, pending)| !pending.is_empty()).map(|(n, _)| n).collect();
                prop_assert_eq!(cascades.roots(), unsettled.len() as u64);
                prop_assert_eq!(cascades.first(), unsettled.first().copied());
                let within = unsettled.iter().copied().find(|n| (7..=30).contains(n));
                prop_assert_eq!(cascades.first_within(7, 30), within);
                let runs = told(&cascades);
                prop_assert!(runs.windows(2).all(|pair| pair[0].1 < pair[1].0 || (pair[0].1 == pair[1].0 && pair[0].2 != pair[1].2)), "as few runs as can be");
            }
        }
    }
}
