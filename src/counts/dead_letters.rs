//! Which roots' events became dead letters, as it stands in `<app>-progress`.

use std::collections::BTreeMap;

use super::expand_runs;
use crate::proto;
use crate::stamp::Stamp;

/// An event of this stamp became a dead letter.
pub fn one(stamp: &Stamp, retry: u32) -> proto::DeadLetters {
    proto::DeadLetters { generation: stamp.generation, retry, number: 1, runs: vec![stamp.sequence, 1] }
}

/// Roots, ascending, by (generation, retry, number of dead letters); what was told of one of them several times is
/// summed.
pub(super) fn summed(told: &[proto::DeadLetters]) -> BTreeMap<(u32, u32, u32), Vec<u64>> {
    let mut sums: BTreeMap<(u32, u32, u64), u32> = BTreeMap::new();
    for letters in told {
        for sequence in expand_runs(&letters.runs).flat_map(|(first, length)| first..first + length) {
            let sum = sums.entry((letters.generation, letters.retry, sequence)).or_default();
            *sum = sum.saturating_add(letters.number);
        }
    }
    let mut shapes: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for ((generation, retry, sequence), number) in sums {
        shapes.entry((generation, retry, number)).or_default().push(sequence);
    }
    shapes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::{Count, ROOTS_PER_RECORD, records};

    #[test]
    fn dead_letters_are_summed_and_told_before_what_is_done() {
        let roots = 3..ROOTS_PER_RECORD as u64 + 3;
        let stamps: Vec<Stamp> = roots.clone().map(|sequence| Stamp::root(0, sequence)).collect();
        let counts = stamps.iter().map(|stamp| Count::consumed(stamp, 0)).collect();
        let twice = stamps.iter().chain([&stamps[4]]).map(|stamp| one(stamp, 0));
        let told = proto::Progress { dead_letters: twice.chain([one(&stamps[4], 2)]).collect(), ..Default::default() };
        let records = records(counts, told);
        let told: Vec<_> = records.iter().flat_map(|record| &record.dead_letters).collect();
        let as_told: Vec<_> = told.iter().map(|it| (it.retry, it.number, &it.runs[..])).collect();
        let end = ROOTS_PER_RECORD as u64 - 5;
        assert_eq!(as_told, [(0, 1, &[3, 4, 1, end][..]), (0, 2, &[7, 1]), (2, 1, &[7, 1])]);
        let first_done = records.iter().position(|record| !record.counts.is_empty()).unwrap();
        assert!(records.len() > 2 && records[first_done + 1..].iter().all(|record| record.dead_letters.is_empty()));
    }
}
