//! When sequences were received, roughly: a root that holds the frontier has an age.

use std::collections::VecDeque;

/// Notes, ascending: the sequence behind the last received, and milliseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Times(VecDeque<(u64, i64)>);

impl Times {
    /// Two notes are so far apart, in milliseconds, and farther where there are many.
    const APART: i64 = 1000;

    /// So many are kept.
    const MANY: usize = 4096;

    /// Sequences below `end` are received as of `at_ms`.
    pub(super) fn note(&mut self, end: u64, at_ms: i64) {
        if self.0.back().is_some_and(|(known, at)| end <= *known || at_ms < at.saturating_add(Times::APART)) {
            return;
        }
        if self.0.len() == Times::MANY {
            let mut number = 0;
            self.0.retain(|_| {
                number += 1;
                number % 2 == 1
            });
        }
        self.0.push_back((end, at_ms));
    }

    /// All notes, in order.
    pub(super) fn told(&self) -> impl Iterator<Item = (u64, i64)> {
        self.0.iter().copied()
    }

    /// When `sequence` was known to be received.
    pub(super) fn of(&self, sequence: u64) -> Option<i64> {
        let behind = self.0.partition_point(|(end, _)| *end <= sequence);
        self.0.get(behind).or(self.0.back()).map(|(_, at)| *at)
    }

    /// Nobody asks any more for what lies below.
    pub(super) fn forget_below(&mut self, sequence: Option<u64>) {
        while self.0.len() > 1 && sequence.is_none_or(|sequence| self.0[0].0 <= sequence) {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_as_old_as_the_note_that_knew_it() {
        let mut times = Times::default();
        (0..10_000i64).for_each(|n| times.note(n as u64 * 10 + 10, n * 1000));
        assert!(times.0.len() <= Times::MANY);
        let age = times.of(50_000).unwrap();
        assert!((5_000_000..5_020_000).contains(&age), "late by at most some notes: {age}");
        times.forget_below(Some(90_000));
        assert_eq!(times.of(99_999), Some(9_999_000));
        times.forget_below(None);
        assert_eq!(times.0.len(), 1);
        // What a snapshot says may be anything.
        (1..4).for_each(|n| times.note(u64::MAX - n, i64::MAX));
        assert_eq!(times.of(u64::MAX), Some(i64::MAX));
    }
}
