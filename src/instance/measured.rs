//! What housekeeping has measured: the ends of the partitions, and what flowed in the last seconds.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::view::{Flow, TaskStatus, Totals};
use crate::log::TopicPartition;

/// Rates are told of about this time.
const WINDOW: Duration = Duration::from_secs(5);

/// So often a sample is kept.
const SAMPLE: Duration = Duration::from_millis(500);

/// The measurements of one instance.
#[derive(Debug, Default)]
pub(super) struct Measured {
    ends: BTreeMap<TopicPartition, i64>,
    totals: Totals,
    samples: VecDeque<(Instant, Totals)>,
}

impl Measured {
    /// The partition ended here.
    pub(super) fn end(&mut self, of: &TopicPartition, end: i64) {
        self.ends.insert(of.clone(), end);
    }

    /// The totals are these now.
    pub(super) fn totals(&mut self, totals: Totals, now: Instant) {
        self.totals = totals;
        if self.samples.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= SAMPLE) {
            self.samples.push_back((now, totals));
        }
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.samples.pop_front();
        }
    }

    /// Since the start, and lately.
    pub(super) fn flow(&self, now: Instant) -> Flow {
        let before = self.samples.front().map(|(at, totals)| (*totals, now.saturating_duration_since(*at)));
        Flow { totals: self.totals, before: before.filter(|(_, passed)| *passed >= SAMPLE) }
    }

    /// Records between the committed position and the end; an end that was measured before the position
    /// moved past it says that there is none.
    pub(super) fn lag(&self, task: &TaskStatus) -> Option<i64> {
        let of = TopicPartition::new(&task.topic, task.partition);
        self.ends.get(&of).map(|end| (end - task.committed).max(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_last_seconds() {
        let mut measured = Measured::default();
        let start = crate::clock::now();
        let of = |processed| Totals { processed, ..Totals::default() };
        measured.totals(of(0), start);
        assert!(measured.flow(start).before.is_none());
        for tenth in 1..=200_u64 {
            measured.totals(of(10 * tenth), start + Duration::from_millis(100 * tenth));
        }
        let flow = measured.flow(start + Duration::from_secs(20));
        let (before, passed) = flow.before.unwrap();
        assert_eq!(flow.totals, of(2000));
        assert!((WINDOW..WINDOW + 2 * SAMPLE).contains(&passed), "{passed:?}");
        let rate = (flow.totals.processed - before.processed) as f64 / passed.as_secs_f64();
        assert!((rate - 100.0).abs() < 1.0, "{rate}");
    }
}
