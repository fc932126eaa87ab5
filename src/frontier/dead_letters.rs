//! How many events of each root became dead letters.
//!
//! J1: what is told of a root is the sum of all that was told, or nothing: never a part of it.
//! J2: what is kept is bounded, and what is forgotten depends on the records alone, so that snapshots are a function of
//!     a prefix (protocol P21).

use std::collections::BTreeMap;

use crate::counts::expand_runs;
use crate::proto;

/// The most cascades with dead letters that are kept, about 8 MB. Of roots below the lowest kept nothing is known.
const MANY: usize = if cfg!(test) { 12 } else { 100_000 };

/// Runs of roots, first and behind the last, by (generation, retry, number of dead letters).
pub(super) type Shapes = BTreeMap<(u32, u32, u32), Vec<(u64, u64)>>;

/// Dead letters by root.
#[derive(Debug, Default)]
pub(super) struct DeadLetters {
    /// By (sequence, generation, retry).
    known: BTreeMap<(u64, u32, u32), u32>,
    /// Those of roots below this one were forgotten.
    floor: u64,
}

impl DeadLetters {
    /// Takes what a record tells.
    pub(super) fn add(&mut self, letters: &proto::DeadLetters) {
        let roots = expand_runs(&letters.runs).flat_map(|(first, length)| first..first + length);
        for sequence in roots {
            if sequence < self.floor {
                continue;
            }
            let number = self.known.entry((sequence, letters.generation, letters.retry)).or_default();
            *number = number.saturating_add(letters.number);
            if self.known.len() > MANY
                && let Some(((lowest, ..), _)) = self.known.pop_first()
            {
                self.forget_below(lowest + 1);
            }
        }
    }

    /// Nothing is known of roots below.
    pub(super) fn forget_below(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
        while self.known.first_key_value().is_some_and(|((lowest, ..), _)| *lowest < self.floor) {
            self.known.pop_first();
        }
    }

    /// Those of a root's generation 0 by retry, where there are some; `None` = it is not known any more.
    pub(super) fn of(&self, sequence: u64) -> Option<BTreeMap<u32, u32>> {
        let known = self.known.range((sequence, 0, 0)..=(sequence, 0, u32::MAX));
        (sequence >= self.floor).then(|| known.map(|((.., retry), number)| (*retry, *number)).collect())
    }

    /// The roots from `first` to `last` whose original cascades have some, and how many; `None` = it is not known any
    /// more.
    pub(super) fn within(&self, first: u64, last: u64) -> Option<Vec<(u64, u32)>> {
        let known = self.known.range((first, 0, 0)..=(last.max(first), u32::MAX, u32::MAX));
        let originals = known.filter(|((_, generation, retry), _)| (*generation, *retry) == (0, 0));
        (first >= self.floor).then(|| originals.map(|((sequence, ..), number)| (*sequence, *number)).collect())
    }

    /// How many cascades have some.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// All that is known, and the root below which nothing is.
    pub(super) fn told(&self) -> (Shapes, u64) {
        let mut shapes = Shapes::new();
        for ((sequence, generation, retry), number) in &self.known {
            shapes.entry((*generation, *retry, *number)).or_default().push((*sequence, sequence.saturating_add(1)));
        }
        (shapes, self.floor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::counts::dead_letters::one;
    use crate::stamp::Stamp;

    proptest! {
        #[test]
        fn it_tells_all_of_a_root_or_nothing(told in prop::collection::vec((0u64..30, 0u32..2, 0u32..3), 0..60)) {
            let (mut kept, mut all) = (DeadLetters::default(), BTreeMap::<(u64, u32, u32), u32>::new());
            let mut most = 0;
            for (sequence, generation, retry) in told {
                kept.add(&one(&Stamp { generation, ..Stamp::root(0, sequence) }, retry));
                *all.entry((sequence, generation, retry)).or_default() += 1;
                prop_assert!(kept.len() <= MANY, "J2");
                for root in 0..31 {
                    let of = |root: u64| all.range((root, 0, 0)..(root, 1, 0));
                    let expected: BTreeMap<u32, u32> = of(root).map(|((.., retry), number)| (*retry, *number)).collect();
                    prop_assert_eq!(kept.of(root), (root >= kept.floor).then_some(expected), "J1");
                    let originals = (root..=30).filter_map(|n| Some((n, *all.get(&(n, 0, 0))?))).collect();
                    prop_assert_eq!(kept.within(root, 30), (root >= kept.floor).then_some(originals), "J1");
                }
                most = most.max(all.len());
            }
            prop_assert!(most > MANY || kept.floor == 0, "nothing is forgotten without need");
        }
    }
}
