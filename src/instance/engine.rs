//! The core of an engine thread: a state machine that is stepped with inputs and leaves effects.
//!
//! It waits for nothing: not for a handler, the log or a disk. What it wants done it leaves as an
//! [`Effect`]; what came of it returns as an [`Input`]. So a test steps the very same code with a seed.
//!
//! E1: a record is taken in only under the epoch of its partition's latest start.
//! E2: state, children, dead letters, counts and positions of an event go into the same commit, which is one
//!     transaction or, with `at_least_once`, one that may be there in part when it fails.
//! E3: after a commit that failed every task begins anew from the log (protocol P1).

mod assignment;
mod awake;
mod committing;
mod disk;
mod flow;
mod horizon;
mod marks;
mod questions;
mod retries;
mod setting;
mod sources;
mod writing;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::calls::{CallId, Calls, Failed, Finished, Verdict};
use super::commit::{Ended, Work};
use super::opening::OpenError;
use super::view::Totals;
use crate::cause::Cause;
use crate::dead_letter::Reason;
use crate::entry::Entry;
use crate::event::DecodeError;
use crate::frontier;
use crate::handler::Failure;
use crate::log::{Fetched, Member, MemberEvent, Membership, Record, TopicPartition};
use crate::marks::{Finding, Known};
use crate::metrics::{self, Outcome};
use crate::planted::{self, Bug};
use crate::proto::Origin;
use crate::sequencer::stamps::{Beyond, Excluded, Judgement};
use crate::sequencer::{Held, Sequencer};
use crate::store::StoreError;
use crate::store::markers::Found;
use crate::task::Task;
use crate::task::execute::{self, Executed};
use crate::task::gate::{self, Decision};
use crate::task::queue::Queued;
pub use assignment::Opened;
use assignment::Revoking;
use awake::Awake;
use committing::{Committing, Composition};
use disk::Disk;
use marks::Marking;
pub use marks::Rest;
pub use questions::{Answered, Listing, Question, ThreadStatus};
pub use retries::{Accepted, Awaiting, Wish};
pub use setting::Setting;
use sources::SourceSlot;
pub use writing::{Flush, Sweep};

/// The longest wait for a retry that a handler can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// What an engine thread is told.
pub enum Input {
    /// By the group.
    Member(MemberEvent),
    /// A handler call ended.
    Finished(Finished),
    /// The transaction under way is decided.
    Ended(Ended),
    /// A partition is claimed.
    Claimed {
        /// Which one.
        of: TopicPartition,
        /// The epoch under which it was asked for.
        epoch: u64,
        /// Its committed position.
        position: i64,
    },
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
    /// REMOVE markers at or below this sequence are to be deleted: it is announced, and not void (protocol P19).
    Horizon(u64),
    /// A search for markers ended.
    Swept {
        /// The task's partition.
        partition: i32,
        /// The task's incarnation.
        incarnation: u64,
        /// What it has found.
        result: Result<Found, StoreError>,
    },
    /// How many changelog records an opening partition still misses.
    Remaining(i32, i64),
    /// A record that a source partition stands at was judged; the epoch is that of [`Effect::Judge`].
    Judged(Beyond, u64, Judgement),
    /// What becomes of an event that begins a retry, and the greatest number of a retry of its sequence and generation.
    Decided(Awaiting, frontier::Verdict, u32),
    /// It was found out what came of the sequences around an excluded record; the epoch is that of [`Effect::Judge`].
    Found(Excluded, u64, Finding),
    /// What the instance has read of progress so far.
    Known(Known),
    /// Nothing stands there ([`Effect::Rest`]).
    Passed(Rest),
    /// The source topics have these partitions now.
    Sources(Vec<TopicPartition>),
    /// Something about a part of the work is wrong, or (`None`) is well again.
    Trouble(String, Option<String>),
    /// Whether too many roots are unsettled: the sources pause until it is over.
    Crowded(bool),
    /// A door wants to know something; an [`Input::Awake`] goes before it.
    Question(Question),
    /// The loop is at work at this moment of the clock that runs during suspends ([`crate::clock::boot`]).
    Awake(Duration),
    /// Time has passed.
    Tick,
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
    /// Look for markers in a store, not at the same time as a [`Effect::Flush`] (R8); answer by [`Input::Swept`].
    Sweep(Sweep),
    /// Judge this record, while the epoch is waited for; answer by [`Input::Judged`] or [`Input::Found`].
    Judge(Held, u64),
    /// Look whether anything stands there; if not, answer by [`Input::Passed`].
    Rest(Rest),
    /// Tell what becomes of this retry once its open record was read; answer by [`Input::Decided`].
    Await(Awaiting),
    /// The engine cannot go on, for this reason.
    Fail(String),
}

/// One engine thread's tasks and all that it does with them.
pub struct Engine<C> {
    setting: Setting,
    calls: C,
    member: Arc<dyn Member>,
    membership: Option<Membership>,
    tasks: BTreeMap<i32, Task>,
    sources: BTreeMap<TopicPartition, SourceSlot>,
    sequencer: Sequencer,
    opening: BTreeMap<TopicPartition, assignment::Opening>,
    revoking: Option<Revoking>,
    composing: Composition,
    committing: Option<Committing>,
    commits: u64,
    /// Transactions aborted since the last that was committed.
    aborts: u32,
    last_commit: Instant,
    last_flush: Instant,
    last_renewal: Instant,
    epochs: u64,
    running: usize,
    buffered: usize,
    /// Keys that have events waiting and that nothing but `max_in_flight` holds.
    line: VecDeque<(i32, u64, Bytes)>,
    /// Retries by the time at which they are due.
    retries: BinaryHeap<Reverse<(Instant, i32, u64, Bytes)>>,
    /// The greatest number that was given to a retry of a dead letter, by sequence and generation.
    retry_numbers: BTreeMap<(u64, u32), u32>,
    troubles: BTreeMap<String, String>,
    disk: Disk,
    /// The horizon as far as it was read.
    horizon: Option<u64>,
    marking: Marking,
    awake: Awake,
    /// Too many roots are unsettled.
    crowded: bool,
    /// Questions that wait for the transaction under way.
    parked: Vec<Question>,
    totals: Totals,
    effects: Vec<Effect>,
}

impl<C: Calls> Engine<C> {
    /// An engine without any partition; `member` is where it asks for them to be delivered.
    pub fn new(setting: Setting, calls: C, member: Arc<dyn Member>, now: Instant) -> Engine<C> {
        let composing = Composition::new(setting.config.processing.partitions);
        let sequencer = Sequencer::new(&setting.config.source);
        Engine {
            setting,
            calls,
            member,
            membership: None,
            tasks: BTreeMap::new(),
            sources: BTreeMap::new(),
            sequencer,
            opening: BTreeMap::new(),
            revoking: None,
            composing,
            committing: None,
            commits: 0,
            aborts: 0,
            last_commit: now,
            last_flush: now,
            last_renewal: now,
            epochs: 0,
            running: 0,
            buffered: 0,
            line: VecDeque::new(),
            retries: BinaryHeap::new(),
            retry_numbers: BTreeMap::new(),
            troubles: BTreeMap::new(),
            disk: Disk::default(),
            horizon: None,
            marking: Marking::default(),
            awake: Awake::default(),
            crowded: false,
            parked: Vec::new(),
            totals: Totals::default(),
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
            Input::Claimed { of, epoch, position } => self.claimed(&of, epoch, position),
            Input::Opened { of, epoch, opened } => self.opened(of, epoch, opened),
            Input::Flushed { partition, incarnation, result } => self.flushed(partition, incarnation, result, now),
            Input::Horizon(horizon) => self.horizon_is(horizon),
            Input::Swept { partition, incarnation, result } => self.swept(partition, incarnation, result),
            Input::Remaining(partition, records) => self.remaining(partition, records),
            Input::Judged(beyond, epoch, judgement) => self.judged(&beyond, epoch, judgement),
            Input::Decided(of, verdict, known) => self.decided(of, verdict, known, now),
            Input::Found(excluded, epoch, finding) => self.found(&excluded, epoch, finding),
            Input::Known(known) => self.hear(known),
            Input::Passed(rest) => self.passed(&rest),
            Input::Sources(partitions) => self.sources_are(partitions),
            Input::Trouble(what, text) => self.trouble(&what, text),
            Input::Crowded(is_crowded) => self.crowded = is_crowded,
            Input::Question(question) => self.question(question, now),
            Input::Awake(boot) => self.awake.seen(boot),
            Input::Tick => self.retry_due(now),
        }
    }

    /// Once after each round of inputs: begins what has a free place, commits what is due, adjusts the
    /// flow, and hands out what is to be done.
    pub fn effects(&mut self, now: Instant) -> Vec<Effect> {
        self.serve_line(now);
        self.mind_stores(now);
        self.sweep_if_due(now);
        self.mind_marks(now);
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
        if self.sources.contains_key(&fetched.of) {
            return self.sequence(fetched);
        }
        let partition = fetched.of.partition;
        let is_current = |task: &Task| task.incarnation == fetched.epoch && !task.closing;
        if fetched.of.topic != self.setting.topics.repartition || !self.tasks.get(&partition).is_some_and(is_current) {
            return; // E1
        }
        if let (Some(task), Some(last)) = (self.tasks.get_mut(&partition), fetched.records.last()) {
            task.batch_read(last.offset + 1, now);
        }
        for record in fetched.records {
            self.arrives(partition, record, now);
        }
    }

    /// Steps 3 to 6 of one record, as far as they go at once.
    fn arrives(&mut self, partition: i32, record: Record, now: Instant) {
        // A store may fail in the middle of a batch.
        let Some(task) = self.tasks.get_mut(&partition).filter(|task| !task.closing) else { return };
        if !task.arrives(&record) {
            return;
        }
        let offset = record.offset;
        match retries::decode(&record) {
            Ok((event, begun)) => {
                self.buffered += event.weight();
                let queued = Queued { event, offset, attempt: 1, read_at: now, last_error: None };
                match begun {
                    None => self.admit(partition, queued, now),
                    Some(retry) => self.awaits(partition, queued, retry),
                }
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
        let full = self.running >= self.setting.max_in_flight;
        let Some(task) = self.tasks.get_mut(&partition) else { return };
        let key = &queued.event.event.key;
        if full || task.queue.holds(key) {
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
        if task.is_before_horizon(&queued.event) {
            let attempts = queued.attempt - 1;
            self.refuse_before_horizon(partition, &queued, attempts);
            return false;
        }
        let event = &queued.event;
        let policy = self.setting.config.processing.superseded;
        let decide = |held: Option<&Entry>| gate::decide(&event.stamp, held.map(|held| &held.stamp), policy);
        let decision = task.overlay.held(&event.event.key, decide);
        let superseded = match decision {
            Ok(Decision::Apply) => false,
            Ok(Decision::Expand) => true,
            Ok(skipped @ (Decision::Duplicate | Decision::Drop)) => {
                self.composing.touch(&self.membership);
                execute::skip(event, &mut self.composing.outbox);
                let outcome = if skipped == Decision::Drop { Outcome::Superseded } else { Outcome::Duplicate };
                self.complete(partition, &queued, outcome);
                return false;
            }
            Err(error) => {
                // The event stays complete nowhere: it is read again when the task is opened again.
                self.buffered = self.buffered.saturating_sub(event.weight());
                self.store_failed(partition, &error);
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
        if task.closing && !planted::is(Bug::ClosingFinishes) {
            // Given back: its next owner runs it.
            self.buffered = self.buffered.saturating_sub(queued.event.weight());
            return;
        }
        if task.is_before_horizon(&queued.event) {
            // It was read before the horizon has passed it.
            let attempts = queued.attempt;
            self.refuse_before_horizon(partition, &queued, attempts);
            return self.proceed(partition, key, now);
        }
        let event = &queued.event;
        // It ran, so it is not dropped any more (and K1 lets nothing newer pass it).
        let newer = |held: Option<&Entry>| held.is_none_or(|held| event.stamp > held.stamp);
        let held = task.overlay.held(&key, newer);
        match held {
            Ok(newer) => {
                let superseded = !newer;
                if !self.settle(partition, queued, superseded, finished.verdict, now) {
                    self.proceed(partition, key, now);
                }
            }
            Err(error) => {
                self.buffered = self.buffered.saturating_sub(event.weight());
                self.store_failed(partition, &error);
            }
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
                execute::succeed(&queued.event, superseded, outcome, attempts, config, outbox)
            }
            Err(Failed { cause, failure: Failure::Retry { reason, after } })
                if attempts < config.handler.retry.attempts =>
            {
                metrics::handler_retried(cause);
                let due = now + after.unwrap_or_default().min(LONGEST_WAIT).max(self.backoff(attempts));
                let Some(task) = self.tasks.get_mut(&partition) else { return false };
                self.retries.push(Reverse((due, partition, task.incarnation, queued.event.event.key.clone())));
                queued.attempt += 1;
                queued.last_error = Some(reason);
                task.queue.back_off(Queued { event: queued.event.detached(), ..queued });
                return true;
            }
            Err(failed) => {
                let reason = match failed.failure {
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
}
