//! The horizon: the sequence up to which REMOVE markers are deleted, and what the frontier was in the past.
//!
//! It is announced in `<app>-progress`, and its order decides (protocol P19): whoever has read the same prefix knows the
//! same horizon.
//!
//! V1: it never goes back and is never above the frontier: nothing older can come, but on purpose.
//! V2: an announcement at or above a retry or replay that is open where it stands is void: no cascade is cut in half.
//! V3: what the frontier was is told late at most, never early; the last word about it is never lost.

use std::collections::VecDeque;

/// The greatest horizon that is not void where the frontier is `frontier` and the oldest retry or replay that is open
/// belongs to the root `oldest_open`.
pub(super) fn limit(frontier: Option<u64>, oldest_open: Option<u64>) -> Option<u64> {
    match oldest_open {
        None => frontier,
        Some(open) => frontier.min(open.checked_sub(1)),
    }
}

/// The horizon after an announcement, if there is one (V1, V2).
pub(super) fn after(known: Option<u64>, announced: Option<u64>, limit: Option<u64>) -> Option<u64> {
    if announced <= limit { known.max(announced) } else { known }
}

/// What the frontier was, ascending: the frontier, and since when, in milliseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Samples(VecDeque<(u64, i64)>);

impl Samples {
    /// Three samples take at least so long, in milliseconds, …
    const APART: i64 = 1000;

    /// … and at least this part of the time that all of them tell of. So there are a few thousand at most.
    const PART: i64 = 256;

    /// The frontier is this as of `at_ms`. What a horizon has passed is of no use any more.
    pub(super) fn note(&mut self, frontier: Option<u64>, horizon: Option<u64>, at_ms: i64) {
        while self.0.front().is_some_and(|(known, _)| Some(*known) <= horizon) {
            self.0.pop_front();
        }
        match frontier.filter(|_| frontier > horizon) {
            Some(frontier) if self.0.back().is_none_or(|(known, _)| *known < frontier) => self.add(frontier, at_ms),
            _ => {}
        }
    }

    /// The next one. It takes the place of the last, where that stands too close to the one before (V3).
    pub(super) fn add(&mut self, frontier: u64, at_ms: i64) {
        // Records are stamped by clocks of several machines.
        let at_ms = self.0.back().map_or(at_ms, |(_, last)| at_ms.max(*last));
        let span = self.0.front().map_or(0, |(_, first)| at_ms - first);
        let before = self.0.len().checked_sub(2).map(|before| self.0[before].1);
        if before.is_some_and(|before| at_ms - before < Samples::APART.max(span / Samples::PART)) {
            self.0.pop_back();
        }
        self.0.push_back((frontier, at_ms));
    }

    /// What the frontier was at `at_ms`; `None` = it is not known, or was passed by the horizon.
    pub(super) fn as_of(&self, at_ms: i64) -> Option<u64> {
        let behind = self.0.partition_point(|(_, at)| *at <= at_ms);
        behind.checked_sub(1).map(|last| self.0[last].0)
    }

    /// All of them, in order.
    pub(super) fn told(&self) -> impl Iterator<Item = (u64, i64)> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_open_or_not_settled_makes_an_announcement_void() {
        assert_eq!(limit(Some(9), None), Some(9));
        assert_eq!(limit(Some(9), Some(7)), Some(6));
        assert_eq!(limit(Some(9), Some(20)), Some(9));
        assert_eq!((limit(Some(9), Some(0)), limit(None, Some(3))), (None, None));
        assert_eq!(after(Some(3), Some(5), Some(6)), Some(5));
        assert_eq!(after(Some(3), Some(7), Some(6)), Some(3), "V1, V2");
        assert_eq!(after(Some(3), Some(2), Some(6)), Some(3), "V1");
        assert_eq!(after(None, Some(0), None), None);
        assert_eq!(after(Some(3), None, Some(6)), Some(3));
    }

    proptest! {
        /// V3: never early; late by no more than two samples may be apart; and in the end all is known.
        #[test]
        fn the_past_is_told_late_at_most(
            moves in prop::collection::vec((0u64..5, 0i64..4000), 1..300),
            asked in prop::collection::vec(0u32..1000, 20),
        ) {
            let (mut samples, mut frontier, mut now) = (Samples::default(), 0, 0);
            let mut truth = Vec::new();
            for (forward, pause) in moves {
                (frontier, now) = (frontier + forward, now + pause);
                samples.note(Some(frontier), None, now);
                truth.push((frontier, now));
            }
            let was = |at: i64| truth.iter().rev().find(|(_, since)| *since <= at).map(|(frontier, _)| *frontier);
            let apart = Samples::APART.max(now / Samples::PART);
            for share in asked {
                let at = now * i64::from(share) / 1000;
                let told = samples.as_of(at);
                prop_assert!(told <= was(at), "at {}: {:?} above {:?}", at, told, was(at));
                prop_assert!(told >= was(at - apart), "at {}: {:?} below {:?}", at, told, was(at - apart));
            }
            prop_assert_eq!(samples.as_of(now), was(now));
        }
    }

    #[test]
    fn there_are_never_many_and_what_the_horizon_has_passed_goes() {
        let mut samples = Samples::default();
        let month = 30 * 24 * 3600;
        (0..month).for_each(|second| samples.note(Some(second as u64), None, second * 1000));
        assert!(samples.0.len() < 6000, "{}", samples.0.len());
        samples.note(Some(month as u64), Some(month as u64 - 100_000), month * 1000);
        assert!(samples.0.front().unwrap().0 > month as u64 - 100_000);
        samples.note(Some(month as u64), Some(month as u64), month * 1000);
        assert!(samples.0.is_empty());
    }
}
