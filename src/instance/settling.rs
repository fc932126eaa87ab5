//! What an instance answers about what is final, and those who wait for it.
//!
//! T1: `settled` beside what a key holds means that the answer is not older than the cascade's end: it is
//!     decided before the key is looked up, or the key is looked up once more.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::engine::Question;
use super::observer::Observer;
use super::topology::describe_sources;
use super::view::{Lookup, Places};
use super::{Instance, from_log};
use crate::frontier::{Book, Root, Standing};
use crate::log::{Isolation, Log, LogError, TopicPartition};
use crate::stamp::Stamp;

/// How often a key is looked up again because it has changed in between; beyond that, not settled is the answer.
const LOOKUPS: usize = 3;

/// How long a source partition may look unread before the rest of it is looked at.
const PATIENCE: Duration = Duration::from_millis(500);

/// Runs of sequences, first and last each.
pub type Ranges = Vec<(u64, u64)>;

impl Instance {
    /// How far the application is, as far as this instance knows.
    pub fn standing(&self) -> Standing {
        self.observer().standing()
    }

    /// What is known of one root; `None` = it was never received.
    pub fn root(&self, sequence: u64) -> Option<Root> {
        self.observer().root(sequence)
    }

    /// Where the pending events of a root's cascades are on this instance, at most `limit` of them.
    pub async fn places(&self, sequence: u64, limit: usize) -> Places {
        let found = self.ask(|answer| Question::Places(sequence, limit, answer)).await.unwrap_or_default();
        found.into_iter().fold(Places::default(), |all, more| all.and(more, limit))
    }

    /// Of these sequences, first and last each, those whose cascades have dead letters, and how many; `None` where that
    /// is not known of all of them.
    pub fn with_dead_letters(&self, ranges: &[(u64, u64)]) -> Option<Vec<(u64, u32)>> {
        self.observer().book().with_dead_letters(ranges)
    }

    /// Of these sequences those that were not received: refused, where [`Instance::taken`] has seen them read. `None`
    /// where that is not known of all of them.
    pub fn not_received(&self, sequences: &[u64]) -> Option<Vec<u64>> {
        let book = self.observer().book();
        let judged: Option<Vec<_>> =
            sequences.iter().map(|sequence| Some((*sequence, book.is_received(*sequence)?))).collect();
        judged.map(|judged| judged.into_iter().filter(|(_, came)| !came).map(|(sequence, _)| sequence).collect())
    }

    fn observer(&self) -> &Observer {
        &self.shared.observer
    }

    /// What a key holds, and whether the cascade that made it so is settled. `known` is a frontier that another
    /// instance has told: the answer is of that or later.
    pub async fn lookup_settled(&self, key: Bytes, known: Option<u64>) -> (Lookup, Option<bool>) {
        let mut judging = Judging::begin(self.standing().frontier.max(known));
        for _ in 0..LOOKUPS {
            let found = self.lookup(key.clone()).await;
            let Lookup::Here { entry: Some(entry), .. } = &found else { return (found, None) };
            if let Some(judged) = judging.found(&self.observer().book(), &entry.stamp) {
                return (found, judged.settled);
            }
        }
        (self.lookup(key).await, Some(false))
    }

    /// Whether the cascade of a stamp is settled, where that can be told of an answer that is not older than
    /// `frontier` (T1).
    pub fn settled_as_of(&self, frontier: Option<u64>, stamp: &Stamp) -> Option<bool> {
        as_of(&self.observer().book(), frontier, stamp)
    }

    /// Resolves when all of these sequences are settled.
    pub async fn settled(&self, ranges: &[(u64, u64)]) {
        self.observer().wait(|book| book.first_unsettled(ranges).is_none()).await;
    }

    /// The least of these sequences that is not settled.
    pub fn first_unsettled(&self, ranges: &[(u64, u64)]) -> Option<u64> {
        self.observer().book().first_unsettled(ranges)
    }

    /// Resolves when all that the source topics hold at this moment has been received; all received then.
    ///
    /// # Errors
    /// What the log says.
    pub async fn received(&self) -> Result<Ranges, LogError> {
        let shared = Arc::clone(&self.shared);
        let ends = move || {
            let mut ends = Vec::new();
            for (name, found) in shared.topics.sources.iter().zip(describe_sources(&*shared.log, &shared.topics)?) {
                for partition in 0..found.partitions {
                    let of = TopicPartition::new(name, partition);
                    let end = shared.log.watermarks(&of)?.high;
                    ends.push((of, found.id.clone(), end));
                }
            }
            Ok(ends)
        };
        for (of, id, end) in from_log(ends).await? {
            self.read_up_to(&of, &id, end).await?;
        }
        Ok(self.observer().book().all())
    }

    /// Resolves when what [`Instance::append`] has put below `end` has been received, or refused.
    ///
    /// # Errors
    /// What the log says.
    pub async fn taken(&self, end: i64) -> Result<(), LogError> {
        let shared = Arc::clone(&self.shared);
        let id = from_log(move || describe_sources(&*shared.log, &shared.topics)).await?.swap_remove(0).id;
        self.read_up_to(&self.first_source(), &id, end).await
    }

    /// Resolves when a source partition has been read to `end`, as progress tells.
    async fn read_up_to(&self, of: &TopicPartition, topic_id: &str, end: i64) -> Result<(), LogError> {
        loop {
            let position = |book: &Book| book.position(&of.topic, of.partition, topic_id);
            let is_read = |book: &Book| position(book) >= end;
            if tokio::time::timeout(PATIENCE, self.observer().wait(is_read)).await.is_ok() {
                return Ok(());
            }
            // What is left may be no records at all, but the marks of transactions.
            let position = position(&self.observer().book());
            let (log, rest) = (Arc::clone(self.log()), of.clone());
            if from_log(move || is_empty(log.as_ref(), &rest, position, end)).await? {
                return Ok(());
            }
        }
    }
}

/// See [`Instance::settled_as_of`].
fn as_of(book: &Book, frontier: Option<u64>, stamp: &Stamp) -> Option<bool> {
    if stamp.generation == 0 && frontier.is_some_and(|frontier| stamp.sequence <= frontier) {
        return Some(true);
    }
    book.is_settled(stamp.sequence, stamp.generation).filter(|settled| !settled)
}

/// Finds out whether what a key holds is settled, which may take several lookups (T1).
#[derive(Debug)]
pub struct Judging {
    /// As it was before the first of them.
    frontier: Option<u64>,
    /// What was found by the last one, settled by then.
    before: Option<Stamp>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// Whether what was found last is settled; `None` where that cannot be known.
    pub settled: Option<bool>,
}

impl Judging {
    /// Nothing was looked up yet; `frontier` is known.
    pub fn begin(frontier: Option<u64>) -> Judging {
        Judging { frontier, before: None }
    }

    /// A lookup has found `stamp`; `None` = the key is to be looked up once more.
    pub fn found(&mut self, book: &Book, stamp: &Stamp) -> Option<Judged> {
        if let Some(settled) = as_of(book, self.frontier, stamp) {
            return Some(Judged { settled: Some(settled) });
        }
        let is_same = self.before.as_ref() == Some(stamp);
        match book.is_settled(stamp.sequence, stamp.generation) {
            Some(true) if !is_same => {
                self.before = Some(stamp.clone());
                None
            }
            settled => Some(Judged { settled }),
        }
    }
}

/// Whether no committed record stands between two offsets.
pub(super) fn is_empty(log: &dyn Log, of: &TopicPartition, from: i64, end: i64) -> Result<bool, LogError> {
    let from = log.watermarks(of)?.low.max(from);
    let mut reader = log.reader(of, from, Isolation::ReadCommitted, false)?;
    while reader.position() < end {
        match reader.next(PATIENCE)?.first() {
            Some(record) => return Ok(record.offset >= end),
            None if reader.position() < end => return Ok(false),
            None => {}
        }
    }
    Ok(true)
}
