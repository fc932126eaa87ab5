//! How far the restores of an instance are, and how long they will take.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::view::{Restores, TaskState, TaskStatus};

/// The rate is that of about this time.
const WINDOW: Duration = Duration::from_secs(5);

/// From less than this nothing is told.
const LEAST: Duration = Duration::from_secs(1);

/// What was seen of the restores that are under way.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// By partition what was left when it was looked at last.
    left: BTreeMap<i32, i64>,
    /// Records restored since the first of them began.
    restored: i64,
    samples: VecDeque<(Instant, i64)>,
}

impl Pace {
    /// Looks at the tasks; `None` when nothing is restored.
    pub(super) fn look(&mut self, tasks: &[TaskStatus], now: Instant) -> Option<Restores> {
        let restoring = tasks.iter().filter(|task| task.role == "task" && task.state == TaskState::Restoring);
        let restoring: BTreeMap<i32, Option<i64>> =
            restoring.map(|task| (task.partition, task.restore_remaining)).collect();
        if restoring.is_empty() {
            *self = Pace::default();
            return None;
        }
        for (partition, before) in std::mem::take(&mut self.left) {
            // One that is not there any more has been restored to its end.
            let left = restoring.get(&partition).map_or(Some(0), |left| *left);
            self.restored += (before - left.unwrap_or(before)).max(0);
        }
        self.left = restoring.iter().filter_map(|(partition, left)| Some((*partition, (*left)?))).collect();
        let remaining: i64 = self.left.values().sum();
        // Until the first records are read there is no rate.
        if self.restored > 0 || !self.samples.is_empty() {
            self.samples.push_back((now, self.restored));
        }
        while self.samples.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.samples.pop_front();
        }
        let measured =
            self.samples.front().map(|(at, then)| (now.saturating_duration_since(*at), self.restored - then));
        let per_second = measured.filter(|(passed, _)| *passed >= LEAST);
        let per_second = per_second.map(|(passed, records)| records as f64 / passed.as_secs_f64());
        let is_known = self.left.len() == restoring.len() && remaining > 0;
        let eta = per_second.filter(|rate| is_known && *rate >= 1.0);
        // The end takes a moment for itself: what is read is made into files.
        let eta = eta.map(|rate| Duration::from_secs((remaining as f64 / rate).ceil() as u64 + 1));
        let per_second = per_second.map(|rate| rate as u64);
        Some(Restores { partitions: restoring.len(), restored: self.restored, remaining, per_second, eta })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn task(partition: i32, state: TaskState, restore_remaining: Option<i64>) -> TaskStatus {
        TaskStatus { restore_remaining, ..TaskStatus::new("task", Arc::from("t"), partition, state) }
    }

    #[test]
    fn the_time_is_told_when_all_lengths_and_a_rate_are_known() {
        let (mut pace, start) = (Pace::default(), crate::clock::now());
        let restoring = |partition, left| task(partition, TaskState::Restoring, left);
        let at = |ms| start + Duration::from_millis(ms);
        let told = |restores: Option<Restores>| {
            let Restores { partitions, restored, remaining, per_second, eta } = restores.unwrap();
            (partitions, restored, remaining, per_second, eta.map(|eta| eta.as_secs()))
        };
        let look = pace.look(&[restoring(0, None), restoring(1, Some(5_000))], at(0));
        assert_eq!(told(look), (2, 0, 5_000, None, None));
        let look = pace.look(&[restoring(0, Some(10_000)), restoring(1, Some(5_000))], at(100));
        assert_eq!(told(look), (2, 0, 15_000, None, None), "nothing is read yet");
        let look = pace.look(&[restoring(0, Some(9_000)), restoring(1, Some(5_000))], at(200));
        assert_eq!(told(look), (2, 1_000, 14_000, None, None), "a rate of so short a time is none");
        // The second has ended, and the first goes on.
        let look = pace.look(&[restoring(0, Some(8_000)), task(1, TaskState::Running, None)], at(2_200));
        assert_eq!(told(look), (1, 7_000, 8_000, Some(3_000), Some(4)));
        let look = pace.look(&[restoring(0, Some(8_000)), restoring(2, None)], at(3_200));
        assert_eq!(told(look), (2, 7_000, 8_000, Some(2_000), None), "the length of one is not known");
        // It stands still.
        let look = pace.look(&[restoring(0, Some(8_000))], at(60_000));
        let look = pace.look(&[restoring(0, Some(8_000))], at(70_000)).or(look);
        assert_eq!(told(look), (1, 7_000, 8_000, Some(0), None), "no time is better than a silly one");
        assert!(pace.look(&[task(0, TaskState::Running, None)], at(71_000)).is_none());
        let look = pace.look(&[restoring(0, Some(10))], at(72_000));
        assert_eq!(told(look), (1, 0, 10, None, None), "another restore begins anew");
    }
}
