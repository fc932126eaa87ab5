//! What keeps the flow even: places for handler calls, retries, and pausing what is read.
//!
//! F1: producing never waits for consuming: a full engine stops reading, not finishing.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Engine;
use crate::instance::calls::Calls;
use crate::log::TopicPartition;
use crate::task::Task;
use crate::task::done::MAX_RUNS;

impl<C: Calls> Engine<C> {
    pub(super) fn serve_line(&mut self, now: Instant) {
        for _ in 0..self.line.len() {
            if self.running >= self.setting.max_in_flight {
                return;
            }
            let Some((partition, incarnation, key)) = self.line.pop_front() else { return };
            if self.tasks.get(&partition).is_some_and(|task| task.incarnation == incarnation && !task.closing) {
                self.proceed(partition, key, now);
            }
        }
    }

    /// The key's next events, until one holds it or none is left.
    pub(super) fn proceed(&mut self, partition: i32, key: Bytes, now: Instant) {
        loop {
            let full = self.running >= self.setting.max_in_flight;
            let Some(task) = self.tasks.get_mut(&partition).filter(|task| !task.closing) else { return };
            if full {
                self.line.push_back((partition, task.incarnation, key));
                return;
            }
            let Some(queued) = task.queue.next(&key) else {
                task.queue.tidy(&key);
                return;
            };
            if self.begin(partition, queued, now) {
                return;
            }
        }
    }

    pub(super) fn retry_due(&mut self, now: Instant) {
        while self.retries.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            let Some(Reverse((_, partition, incarnation, key))) = self.retries.pop() else { return };
            let current = |task: &&mut Task| task.incarnation == incarnation && !task.closing;
            let Some(task) = self.tasks.get_mut(&partition).filter(current) else { continue };
            // The event goes back among the waiting ones of its key: an older one may have come meanwhile.
            if let Some(queued) = task.queue.release(&key) {
                task.queue.wait(queued);
                self.line.push_back((partition, incarnation, key));
            }
        }
    }

    /// Before the try after number `attempts`: grows by the factor up to the longest, with jitter.
    pub(super) fn backoff(&self, attempts: u32) -> Duration {
        let retry = &self.setting.config.handler.retry;
        let grown = retry.initial.as_secs_f64() * retry.factor.powi(attempts.saturating_sub(1).min(1000) as i32);
        let longest = grown.min(retry.max.as_secs_f64());
        Duration::from_secs_f64(longest * (0.5 + 0.5 * fastrand::f64()))
    }

    /// Pauses delivery while too much is read and not committed, and resumes it when that is over.
    pub(super) fn adjust_flow(&mut self) {
        let limit = self.setting.max_buffered;
        let committing = self.committing.as_ref().map_or(0, |committing| committing.bytes);
        let used = self.buffered + self.composing.outbox.bytes + committing;
        // Commits go on while a disk stalls, and what they leave above the stores must not grow for ever.
        let above: usize = self.tasks.values().map(|task| task.overlay.committed_bytes()).sum();
        let stalled = self.disk.is_stuck() || above > 4 * self.setting.overlay_bytes;
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        let repartition = &self.setting.topics.repartition;
        for task in self.tasks.values_mut() {
            let records = task.queue.len() + task.beginning.len() + task.done.runs();
            let over = |share: usize| stalled || used > limit * share / 100 || records > MAX_RUNS * share / 100;
            let list = if task.paused { &mut resume } else { &mut pause };
            if over(if task.paused { 70 } else { 100 }) != task.paused {
                task.paused = !task.paused;
                list.push(TopicPartition::new(repartition, task.partition));
            }
        }
        // The sources stop earlier, so that what they add never keeps the tasks from finishing.
        for (of, slot) in &mut self.sources {
            let share = if slot.paused { 35 } else { 50 };
            if (stalled || self.crowded || used > limit * share / 100) != slot.paused {
                let list = if slot.paused { &mut resume } else { &mut pause };
                slot.paused = !slot.paused;
                list.push(of.clone());
            }
        }
        if !pause.is_empty() {
            self.member.pause(pause);
        }
        if !resume.is_empty() {
            self.member.resume(resume);
        }
    }
}
