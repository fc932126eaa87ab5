//! A restore that goes on no more although something is left: it waits for a transaction that nobody decides
//! (protocol P14).

use std::time::Instant;

use super::DECIDED_WITHIN;

/// How long it has been standing still.
#[derive(Debug, Default)]
pub(super) struct Standstill {
    /// What was left when it moved last, and when that was seen first.
    since: Option<(i64, Instant)>,
    told: bool,
}

impl Standstill {
    /// So many records are left: whether it stands still, where that is news.
    pub(super) fn look(&mut self, left: i64, now: Instant) -> Option<bool> {
        let (before, since) = *self.since.get_or_insert((left, now));
        if before != left {
            self.since = Some((left, now));
        }
        let stands = left > 0 && before == left && now.saturating_duration_since(since) >= DECIDED_WITHIN;
        let is_news = stands != self.told;
        self.told = stands;
        is_news.then_some(stands)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_standstill_is_told_once_and_so_is_its_end() {
        let (mut standstill, start) = (Standstill::default(), crate::clock::now());
        let mut look = |left, seconds| standstill.look(left, start + Duration::from_secs(seconds));
        assert_eq!([look(9, 0), look(9, 21), look(8, 22), look(8, 43)], [None; 4], "it moved");
        assert_eq!([look(8, 44), look(8, 50)], [Some(true), None]);
        assert_eq!([look(3, 60), look(3, 61)], [Some(false), None]);
        assert_eq!([look(0, 62), look(0, 600)], [None; 2], "nothing is left");
    }
}
