//! The core of an engine thread: a state machine that is stepped with inputs and leaves effects.
//!
//! It waits for nothing: not for a handler, the log or a disk. What it wants done it leaves as an
//! [`Effect`]; what came of it returns as an [`Input`]. So a test steps the very same code with a seed.
//!
//! E1: a record is taken in only under the epoch of its partition's latest start.
//! E2: state, children, dead letters, counts and positions of an event go into the same transaction.
//! E3: after a transaction that is not committed every task begins anew from the log (protocol P1).

mod assignment;
mod committing;
mod questions;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::calls::{CallId, Calls, Finished, Verdict};
use super::commit::{Ended, Work};
use super::opening::OpenError;
use crate::cause::Cause;
use crate::config::Config;
use crate::dead_letter::Reason;
use crate::event::{DecodeError, StampedEvent};
use crate::handler::Failure;
use crate::log::{Fetched, Member, MemberEvent, Membership, Record, TopicPartition};
use crate::metrics::{self, Outcome};
use crate::proto::Origin;
use crate::sequencer::Source;
use crate::store::{Store, StoreError};
use crate::store::schema::Checkpoint;
use crate::task::execute::{self, Executed};
use crate::task::gate::{self, Decision};
use crate::task::overlay::Entries;
use crate::task::queue::Queued;
use crate::task::restore::Restored;
use crate::task::Task;
use crate::topics::Topics;
use assignment::Revoking;
use committing::{Committing, Composition};
pub use questions::{Answered, Listing, Question, ThreadStatus};

/// What an engine thread is told.
pub enum Input {
    /// By the group.
    Member(MemberEvent),
    /// A handler call ended.
    Finished(Finished),
    /// The transaction under way is decided.
    Ended(Ended),
    /// A partition is claimed and, if it is a task's, restored.
    Opened {
        /// Which one.
        of: TopicPartition,
        /// The epoch under which it was asked for.
        epoch: u64,
        /// Its committed position, and its state if it is a task's.
        opened: Result<Opened, OpenError>,
    },
    /// A flush into the store ended.
    Flushed {
        /// The task's partition.
        partition: i32,
        /// The task's incarnation.
        incarnation: u64,
        /// What came of it.
        result: Result<(), StoreError>,
    },
    /// How many changelog records an opening partition still misses.
    Remaining(i32, i64),
    /// Something about a part of the work is wrong, or (`None`) is well again.
    Trouble(String, Option<String>),
    /// A door wants to know something.
    Question(Question),
    /// Time has passed.
    Tick,
}

/// A partition that is ready to be started.
#[derive(Debug)]
pub struct Opened {
    /// Its committed position.
    pub position: i64,
    /// The state of a task; `None` for a source partition.
    pub restored: Option<Restored>,
}

/// What an engine thread wants done. None of it may block the engine.
#[derive(Debug)]
pub enum Effect {
    /// Claim these partitions and restore them; answer each by [`Input::Opened`].
    Open(Vec<(TopicPartition, u64)>, Membership),
    /// Carry out this transaction; answer by [`Input::Ended`].
    Commit(Box<Work>),
    /// Write this into a store; answer by [`Input::Flushed`].
    Flush(Flush),
    /// The engine cannot go on, for this reason.
    Fail(String),
}

/// What is to be written into a store.
#[derive(Debug)]
pub struct Flush {
    /// The task's partition.
    pub partition: i32,
    /// The task's incarnation.
    pub incarnation: u64,
    /// The store.
    pub store: Arc<Store>,
    /// Committed entries.
    pub entries: Arc<Entries>,
    /// The bookkeeping, when it changed.
    pub bookkeeping: Option<Bytes>,
    /// The place in the changelog that all this covers.
    pub checkpoint: Checkpoint,
    /// Also onto the disk: the partition is given back.
    pub durable: bool,
}

/// A source partition at work.
#[derive(Debug)]
struct SourceSlot {
    source: Source,
    epoch: u64,
    touched: bool,
    paused: bool,
}

/// What an engine works with.
pub struct Setting {
    /// The configuration.
    pub config: Arc<Config>,
    /// Names.
    pub topics: Topics,
    /// The id of each source topic, by name.
    pub topic_ids: BTreeMap<Arc<str>, Arc<str>>,
    /// The transactional id of this thread's producer.
    pub producer_id: String,
    /// Where this instance's HTTP answers.
    pub address: String,
    /// The bytes of committed entries that may wait above the stores.
    pub overlay_bytes: usize,
}

/// One engine thread's tasks and all that it does with them.
pub struct Engine<C> {
    setting: Setting,
    calls: C,
    member: Arc<dyn Member>,
    membership: Option<Membership>,
    tasks: BTreeMap<i32, Task>,
    sources: BTreeMap<TopicPartition, SourceSlot>,
    opening: BTreeMap<TopicPartition, assignment::Opening>,
    revoking: Option<Revoking>,
    composing: Composition,
    committing: Option<Committing>,
    commits: u64,
    last_commit: Instant,
    last_flush: Instant,
    epochs: u64,
    running: usize,
    buffered: usize,
    /// Keys that have events waiting and that nothing but `max_in_flight` holds.
    line: VecDeque<(i32, u64, Bytes)>,
    /// Retries by the time at which they are due.
    retries: BinaryHeap<Reverse<(Instant, i32, u64, Bytes)>>,
    troubles: BTreeMap<String, String>,
    effects: Vec<Effect>,
}

impl<C: Calls> Engine<C> {
    /// An engine without any partition; `member` is where it asks for them to be delivered.
    pub fn new(setting: Setting, calls: C, member: Arc<dyn Member>, now: Instant) -> Engine<C> {
        let composing = Composition::new(setting.config.processing.partitions);
        Engine {
            setting,
            calls,
            member,
            membership: None,
            tasks: BTreeMap::new(),
            sources: BTreeMap::new(),
            opening: BTreeMap::new(),
            revoking: None,
            composing,
            committing: None,
            commits: 0,
            last_commit: now,
            last_flush: now,
            epochs: 0,
            running: 0,
            buffered: 0,
            line: VecDeque::new(),
            retries: BinaryHeap::new(),
            troubles: BTreeMap::new(),
            effects: Vec::new(),
        }
    }

    /// Takes one input. What it wants done is in [`Engine::effects`] afterwards.
    pub fn step(&mut self, input: Input, now: Instant) {
        match input {
            Input::Member(MemberEvent::Fetched(fetched)) => self.fetched(fetched, now),
            Input::Member(event) => self.member_event(event),
            Input::Finished(finished) => self.finished(finished, now),
            Input::Ended(ended) => self.ended(ended, now),
            Input::Opened { of, epoch, opened } => self.opened(of, epoch, opened),
            Input::Flushed { partition, incarnation, result } => self.flushed(partition, incarnation, result),
            Input::Remaining(partition, records) => self.remaining(partition, records),
            Input::Trouble(what, text) => self.trouble(&what, text),
            Input::Question(question) => self.question(question, now),
            Input::Tick => self.retry_due(now),
        }
    }

    /// Once after each round of inputs: begins what has a free place, commits what is due, adjusts the
    /// flow, and hands out what is to be done.
    pub fn effects(&mut self, now: Instant) -> Vec<Effect> {
        self.serve_line(now);
        self.commit_if_due(now);
        self.adjust_flow();
        std::mem::take(&mut self.effects)
    }

    /// When the next [`Input::Tick`] is needed at the latest.
    pub fn next_tick(&self, now: Instant) -> Instant {
        let idle = now + Duration::from_millis(100);
        let retry = self.retries.peek().map_or(idle, |Reverse((due, ..))| *due);
        let commit = match (&self.committing, self.composing.is_empty()) {
            (None, false) => self.last_commit + self.setting.config.processing.commit_interval,
            _ => idle,
        };
        idle.min(retry).min(commit)
    }

    fn fetched(&mut self, fetched: Fetched, now: Instant) {
        if let Some(slot) = self.sources.get_mut(&fetched.of) {
            if slot.epoch == fetched.epoch {
                metrics::events_received(&fetched.of.topic, fetched.records.len() as u64);
                self.composing.touch(&self.membership);
                slot.touched = true;
                slot.source.sequence(fetched.records, &mut self.composing.outbox);
            }
            return;
        }
        let partition = fetched.of.partition;
        let is_current = |task: &Task| task.incarnation == fetched.epoch && !task.closing;
        if fetched.of.topic != self.setting.topics.repartition || !self.tasks.get(&partition).is_some_and(is_current) {
            return; // E1
        }
        for record in fetched.records {
            self.arrives(partition, record, now);
        }
    }

    /// Steps 3 to 6 of one record, as far as they go at once.
    fn arrives(&mut self, partition: i32, record: Record, now: Instant) {
        let Some(task) = self.tasks.get_mut(&partition) else { return };
        if !task.arrives(&record) {
            return;
        }
        let offset = record.offset;
        let decoded = match (record.key.clone(), record.value.clone()) {
            (Some(key), Some(value)) => StampedEvent::decode(key, value),
            _ => Err(DecodeError::Malformed("a record without key or value".into())),
        };
        match decoded {
            Ok(event) => {
                self.buffered += event.weight();
                let queued = Queued { event, offset, attempt: 1, read_at: now, last_error: None };
                self.admit(partition, queued, now);
            }
            Err(DecodeError::Malformed(message)) => self.refuse_record(partition, record, &message),
            Err(error @ DecodeError::Newer(_)) => {
                let topic = &self.setting.topics.repartition;
                self.effects.push(Effect::Fail(format!("{topic}-{partition} at offset {offset}: {error}")));
            }
        }
    }

    /// Something that no Tidegate wrote stands on the repartition topic.
    fn refuse_record(&mut self, partition: i32, record: Record, message: &str) {
        let topic = self.setting.topics.repartition.to_string();
        let origin = Origin { topic, partition, offset: record.offset, timestamp_ms: record.timestamp_ms };
        let reason = Reason::new(Cause::Undecodable, message);
        self.composing.touch(&self.membership);
        self.composing.outbox.refuse_record(record.key, record.value, &reason, &origin);
        if let Some(task) = self.tasks.get_mut(&partition) {
            task.complete(record.offset);
        }
    }

    /// Lets an event begin, or wait for its key or for a free place.
    fn admit(&mut self, partition: i32, queued: Queued, now: Instant) {
        let full = self.running >= self.setting.config.processing.max_in_flight;
        let Some(task) = self.tasks.get_mut(&partition) else { return };
        if full || task.queue.holds(&queued.event.event.key) {
            let queued = Queued { event: queued.event.detached(), ..queued };
            let key = queued.event.event.key.clone();
            if task.queue.wait(queued) {
                self.line.push_back((partition, task.incarnation, key));
            }
            return;
        }
        self.begin(partition, queued, now);
    }

    /// Steps 4 and 5: asks the gate and calls the handler. True when the event holds its key afterwards.
    fn begin(&mut self, partition: i32, queued: Queued, now: Instant) -> bool {
        let Some(task) = self.tasks.get_mut(&partition) else { return false };
        let event = &queued.event;
        let decision = task.overlay.held(&event.event.key, |held| gate::decide(&event.stamp, held.map(|held| &held.stamp)));
        let superseded = match decision {
            Ok(Decision::Apply) => false,
            Ok(Decision::Expand) => true,
            Ok(Decision::Duplicate) => {
                self.composing.touch(&self.membership);
                execute::skip(event, &mut self.composing.outbox);
                self.complete(partition, &queued, Outcome::Duplicate);
                return false;
            }
            Err(error) => {
                self.store_failed(partition, &error); // The event is complete nowhere.
                return false;
            }
        };
        let incarnation = task.incarnation;
        let id = || CallId { partition, incarnation, key: queued.event.event.key.clone(), offset: queued.offset };
        match self.calls.begin(id, &queued, superseded) {
            Some(verdict) => self.settle(partition, queued, superseded, verdict, now),
            None => {
                self.running += 1;
                task.queue.run(Queued { event: queued.event.detached(), ..queued });
                true
            }
        }
    }

    /// A call that took its time has ended (T2).
    fn finished(&mut self, finished: Finished, now: Instant) {
        let CallId { partition, incarnation, key, offset } = finished.call;
        let Some(task) = self.tasks.get_mut(&partition).filter(|task| task.incarnation == incarnation) else { return };
        let Some(queued) = task.queue.release(&key) else { return };
        assert_eq!(queued.offset, offset, "K1: the event that holds the key is the one that ran");
        self.running -= 1;
        let event = &queued.event;
        if task.closing {
            self.buffered = self.buffered.saturating_sub(event.weight());
            return; // Given back: its next owner runs it.
        }
        let held = task.overlay.held(&key, |held| gate::decide(&event.stamp, held.map(|held| &held.stamp)));
        match held {
            Ok(decision) => {
                let superseded = decision != Decision::Apply;
                if !self.settle(partition, queued, superseded, finished.verdict, now) {
                    self.proceed(partition, key, now);
                }
            }
            Err(error) => self.store_failed(partition, &error),
        }
    }

    /// Step 6: what the verdict leads to. True when the event holds its key and waits for its retry.
    fn settle(&mut self, partition: i32, mut queued: Queued, superseded: bool, verdict: Verdict, now: Instant) -> bool {
        let config = &self.setting.config;
        let attempts = queued.attempt;
        let executed = match verdict {
            Ok(outcome) => {
                self.composing.touch(&self.membership);
                let outbox = &mut self.composing.outbox;
                execute::succeed(&queued.event, superseded, outcome, attempts, &config.cascade, outbox)
            }
            Err(Failure::Retry { reason, after }) if attempts < config.handler.retry.attempts => {
                metrics::handler_retried("failure");
                let due = now + after.unwrap_or_default().max(self.backoff(attempts));
                let Some(task) = self.tasks.get_mut(&partition) else { return false };
                self.retries.push(Reverse((due, partition, task.incarnation, queued.event.event.key.clone())));
                queued.attempt += 1;
                queued.last_error = Some(reason);
                task.queue.back_off(Queued { event: queued.event.detached(), ..queued });
                return true;
            }
            Err(failure) => {
                let reason = match failure {
                    Failure::Retry { reason, .. } => Reason::new(Cause::Exhausted, reason),
                    Failure::Reject { code, message } => Reason { cause: Cause::Rejected, exception: code, message },
                };
                self.composing.touch(&self.membership);
                execute::refuse(&queued.event, attempts, &reason, &mut self.composing.outbox)
            }
        };
        let outcome = match executed {
            Executed::Applied(entry) => {
                if let Some(task) = self.tasks.get_mut(&partition) {
                    task.overlay.put(queued.event.event.key.clone(), entry);
                }
                Outcome::Applied
            }
            Executed::Expanded => Outcome::Superseded,
            Executed::Refused => Outcome::Rejected,
        };
        self.complete(partition, &queued, outcome);
        false
    }

    fn complete(&mut self, partition: i32, queued: &Queued, outcome: Outcome) {
        self.buffered = self.buffered.saturating_sub(queued.event.weight());
        self.composing.completed(queued, outcome);
        if let Some(task) = self.tasks.get_mut(&partition) {
            task.complete(queued.offset);
        }
    }

    /// The key's next events, until one holds it or none is left.
    fn proceed(&mut self, partition: i32, key: Bytes, now: Instant) {
        loop {
            let full = self.running >= self.setting.config.processing.max_in_flight;
            let Some(task) = self.tasks.get_mut(&partition) else { return };
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

    fn serve_line(&mut self, now: Instant) {
        for _ in 0..self.line.len() {
            if self.running >= self.setting.config.processing.max_in_flight {
                return;
            }
            let Some((partition, incarnation, key)) = self.line.pop_front() else { return };
            if self.tasks.get(&partition).is_some_and(|task| task.incarnation == incarnation && !task.closing) {
                self.proceed(partition, key, now);
            }
        }
    }

    fn retry_due(&mut self, now: Instant) {
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
    fn backoff(&self, attempts: u32) -> Duration {
        let retry = &self.setting.config.handler.retry;
        let grown = retry.initial.as_secs_f64() * retry.factor.powi(attempts.saturating_sub(1).min(1000) as i32);
        let longest = grown.min(retry.max.as_secs_f64());
        Duration::from_secs_f64(longest * (0.5 + 0.5 * fastrand::f64()))
    }

    /// Pauses delivery while too much is read and not committed, and resumes it when that is over.
    fn adjust_flow(&mut self) {
        let limit = self.setting.config.processing.max_buffered;
        let committing = self.committing.as_ref().map_or(0, |committing| committing.bytes);
        let used = self.buffered + self.composing.outbox.bytes + committing;
        let (mut pause, mut resume) = (Vec::new(), Vec::new());
        let repartition = &self.setting.topics.repartition;
        for task in self.tasks.values_mut() {
            let records = task.queue.len() + task.done.runs();
            let over = |share: usize| used > limit * share / 100 || records > crate::task::done::MAX_RUNS * share / 100;
            let list = if task.paused { &mut resume } else { &mut pause };
            if over(if task.paused { 70 } else { 100 }) != task.paused {
                task.paused = !task.paused;
                list.push(TopicPartition::new(repartition, task.partition));
            }
        }
        // The sources stop earlier, so that what they add never keeps the tasks from finishing.
        for (of, slot) in &mut self.sources {
            let share = if slot.paused { 35 } else { 50 };
            if (used > limit * share / 100) != slot.paused {
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
