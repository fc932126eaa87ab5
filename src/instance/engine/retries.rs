//! Retries of dead letters: accepted here, and begun once the order of progress has decided that they count
//! (protocol P20).
//!
//! ```text
//!     asked -> in a transaction -> on the repartition topic -> awaiting -> handled like any other
//!                                        ^                        |
//!                                        |  its number is taken   +-----> done without a trace, or a dead letter again
//!                                        +------------------------+
//! ```
//!
//! R1: event, count, open record and the partition's position are one transaction; whoever asked is told when it is
//!     committed, and hears nothing when it is not.
//! R2: an event that begins a retry waits beside the queue, and holds neither its key nor its partition, until this
//!     instance has read its open record.

use std::time::Instant;

use tokio::sync::oneshot;

use super::{Effect, Engine};
use crate::cause::Cause;
use crate::config::Guarantee;
use crate::counts::Count;
use crate::dead_letter::Reason;
use crate::event::{DecodeError, StampedEvent};
use crate::frontier::Verdict;
use crate::instance::calls::Calls;
use crate::log::{Record, TopicPartition};
use crate::metrics::Outcome;
use crate::planted::{self, Bug};
use crate::retry::{Letter, Retry};
use crate::task::execute;
use crate::task::queue::Queued;

/// So many retries at most begin in one transaction: what tells of them has to fit into a record of progress.
const MOST: usize = 5_000;

/// A dead letter that is to be sent again.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The dead letter.
    pub letter: Letter,
    /// Its event; `None` where that was sent as a new one already, and the dead letter is only to be marked.
    pub event: Option<StampedEvent>,
    /// Also where it has been retried before.
    pub forced: bool,
    /// The greatest number of a retry of this sequence and generation that is known.
    pub known: u32,
}

/// What came of asking for retries.
#[derive(Debug)]
pub enum Accepted {
    /// They are committed, in the order asked for.
    Committed(Vec<Retry>),
    /// The partition is being opened or given back, or the engine may not answer now; the reason.
    NotReady(String),
    /// The partition is not here.
    NotHere,
}

/// Where an event that begins a retry waits.
#[derive(Clone, Copy, Debug)]
pub struct Awaiting {
    /// What is to be told of it.
    pub retry: Retry,
    /// The task's partition.
    pub partition: i32,
    /// The task's incarnation.
    pub incarnation: u64,
    /// The event's record.
    pub offset: i64,
}

/// The event of a record of the repartition topic, and the retry that it begins, if it begins one.
pub(super) fn decode(record: &Record) -> Result<(StampedEvent, Option<Retry>), DecodeError> {
    let (Some(key), Some(value)) = (record.key.clone(), record.value.clone()) else {
        return Err(DecodeError::Malformed("a record without key or value".into()));
    };
    let event = StampedEvent::decode(key, value.clone())?;
    let begun = Retry::begun_by(&event, value)?;
    Ok((event, begun))
}

impl<C: Calls> Engine<C> {
    /// R1. All wishes are of one partition.
    pub(super) fn accept(&mut self, partition: i32, wishes: Vec<Wish>, answer: oneshot::Sender<Accepted>) {
        if let Err(refusal) = self.may_accept(partition) {
            return drop(answer.send(refusal));
        }
        // Numbers that nobody has to be told apart from any more.
        let is_idle = self.composing.accepted.is_empty() && self.committing.is_none();
        if is_idle && self.tasks.values().all(|task| task.beginning.is_empty()) {
            self.retry_numbers.clear();
        }
        self.composing.touch(&self.membership);
        let retries = wishes.into_iter().map(|wish| self.open(wish)).collect();
        if let Some(task) = self.tasks.get_mut(&partition) {
            task.touched = true; // protocol P3
        }
        self.composing.accepted.push((retries, answer));
    }

    fn may_accept(&self, partition: i32) -> Result<(), Accepted> {
        let of = TopicPartition::new(&self.setting.topics.repartition, partition);
        match self.tasks.get(&partition) {
            None if self.opening.contains_key(&of) => Err(Accepted::NotReady("it is being restored".into())),
            None => Err(Accepted::NotHere),
            Some(task) if task.closing => Err(Accepted::NotReady("it is being given back".into())),
            Some(_) => self.awake.doubt().map_or(Ok(()), |reason| Err(Accepted::NotReady(reason))),
        }
    }

    /// Whether the next transaction has room for more retries.
    pub(super) fn has_room_for_retries(&self) -> bool {
        self.composing.outbox.told.retries.len() < MOST
    }

    fn open(&mut self, wish: Wish) -> Retry {
        let Wish { letter, event, forced, known } = wish;
        let (sequence, generation) = event.as_ref().map_or((0, 0), |it| (it.stamp.sequence, it.stamp.generation));
        let number = event.as_ref().map_or(0, |event| self.next_number(event, known));
        let retry = Retry { letter, nonce: fastrand::u64(..), forced, sequence, generation, number };
        let outbox = &mut self.composing.outbox;
        if let Some(event) = event {
            let event = StampedEvent { retry: number, ..event };
            outbox.route(event.event.key.clone(), retry.mark(&event));
            let counted = if planted::is(Bug::RetryOnOriginal) { 0 } else { number };
            outbox.counts.push(Count::produced(&event.stamp, counted));
        }
        outbox.told.retries.push((&retry).into());
        retry
    }

    /// Above all numbers known, those that this engine has given included; where others gave the same meanwhile the
    /// order of progress decides whose it is.
    fn next_number(&mut self, event: &StampedEvent, known: u32) -> u32 {
        let given = self.retry_numbers.entry((event.stamp.sequence, event.stamp.generation)).or_default();
        *given = known.max(event.retry).max(*given).saturating_add(1);
        *given
    }

    /// R2.
    pub(super) fn awaits(&mut self, partition: i32, queued: Queued, retry: Retry) {
        let Some(task) = self.tasks.get_mut(&partition) else { return };
        let (incarnation, offset) = (task.incarnation, queued.offset);
        task.beginning.insert(offset, (Queued { event: queued.event.detached(), ..queued }, retry));
        self.effects.push(Effect::Await(Awaiting { retry, partition, incarnation, offset }));
    }

    /// The open record of an event that waits was read. `known` is the greatest number of a retry of its sequence and
    /// generation.
    pub(super) fn decided(&mut self, of: Awaiting, verdict: Verdict, known: u32, now: Instant) {
        let Awaiting { partition, incarnation, offset, .. } = of;
        // Without transactions nothing is told any more, so no other number would ever be decided about.
        let is_told = self.setting.config.processing.guarantee == Guarantee::ExactlyOnce;
        let verdict = if verdict == Verdict::Taken && !is_told { Verdict::Counts } else { verdict };
        let has_room = self.has_room_for_retries();
        let current = |task: &&mut crate::task::Task| task.incarnation == incarnation && !task.closing;
        let Some(task) = self.tasks.get_mut(&partition).filter(current) else { return };
        if verdict == Verdict::Taken && !has_room {
            return self.effects.push(Effect::Await(of));
        }
        let Some((queued, retry)) = task.beginning.remove(&offset) else { return };
        let event = &queued.event;
        let outcome = match verdict {
            Verdict::Counts => {
                let most = self.setting.config.cascade.max_depth;
                if event.stamp.depth() <= most {
                    return self.admit(partition, queued, now);
                }
                let reason = Reason::new(Cause::TooDeep, format!("deeper than cascade.max_depth = {most}"));
                self.composing.touch(&self.membership);
                execute::refuse(event, 0, &reason, &mut self.composing.outbox);
                Outcome::Rejected
            }
            Verdict::Taken => {
                self.composing.touch(&self.membership);
                execute::skip(event, &mut self.composing.outbox);
                let (letter, forced) = (retry.letter, retry.forced);
                self.open(Wish { letter, event: Some(event.clone()), forced, known });
                Outcome::Duplicate
            }
            Verdict::Second => {
                self.composing.touch(&self.membership);
                execute::skip(event, &mut self.composing.outbox);
                Outcome::Duplicate
            }
            Verdict::Overtaken => {
                let message = "the horizon had passed this event before its retry was told";
                let reason = Reason::new(Cause::BeforeHorizon, message);
                self.composing.touch(&self.membership);
                execute::refuse(event, 0, &reason, &mut self.composing.outbox);
                Outcome::Rejected
            }
        };
        self.complete(partition, &queued, outcome);
    }
}
