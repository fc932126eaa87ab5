//! Judges a record whose sequence lies so far above the others that it may be a mistake (protocol P18).
//!
//! J2: a record is judged when every other source partition has been read to the end that it had when the record was
//!     met (a later one would recede for ever under a steady stream), against the greatest
//!     sequence of the whole application; so it does not matter who reads which partition, and when.
//! J3: partitions that are held at such a record themselves would wait for each other: what stands behind it is not
//!     waited for, and of the held records the one with the least sequence is judged first. Nor is one waited for at
//!     which a partition is held for a mark: it waits for that mark to count, and so for this partition.

use std::sync::Arc;
use std::time::Duration;

use super::observer::Observer;
use super::topology::source_partitions;
use crate::clock;
use crate::config;
use crate::log::whole::Until;
use crate::log::{Isolation, Log, LogError, Record, TopicPartition};
use crate::marks::Finding;
use crate::progress::History;
use crate::sequencer::stamps::{self, Beyond, Excluded, Judgement};
use crate::stamp::Stamp;
use crate::topics::Topics;

/// The pause between looks.
const PAUSE: Duration = Duration::from_millis(200);

/// How long one look waits for a record that stands in the log.
const POLL: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(10);

/// A partition that stands for so long is told.
const TOLD_AFTER: Duration = Duration::from_secs(5);

/// What a judge needs to know.
#[derive(Clone)]
pub struct Judge {
    /// The log.
    pub log: Arc<dyn Log>,
    /// Names.
    pub topics: Topics,
    /// The group: the application's id.
    pub group: String,
    /// How primary events get their place.
    pub source: config::Source,
    /// What the instance knows of progress.
    pub observer: Arc<Observer>,
}

/// One record being judged: the ends of the other partitions as they were when it was met.
pub struct Case {
    held: Beyond,
    ends: Option<Vec<(TopicPartition, i64)>>,
}

impl Case {
    /// A record that was just met.
    pub fn new(held: Beyond) -> Case {
        Case { held, ends: None }
    }

    /// The record.
    pub fn held(&self) -> &Beyond {
        &self.held
    }
}

impl Judge {
    /// Looks until it can judge; `None` when nobody waits any more. `report` is told what takes long.
    pub fn wait(&self, held: &Beyond, valid: &dyn Fn() -> bool, report: &dyn Fn(Option<String>)) -> Option<Judgement> {
        let mut case = Case::new(held.clone());
        let (of, offset, sequence) = (&held.of, held.offset, held.sequence);
        let what =
            format!("{of} stands at offset {offset}: its sequence {sequence} is far above all others, and to judge it");
        let look = || match self.look(&mut case) {
            Ok(found) => found.ok_or_else(|| format!("{what} the other source partitions are read first")),
            Err(error) => Err(format!("{what} {error}")),
        };
        insist(look, valid, report)
    }

    /// Looks until it is known what came of the sequences around an excluded record; as [`Judge::wait`].
    pub fn wait_for_finding(
        &self,
        held: &Excluded,
        valid: &dyn Fn() -> bool,
        report: &dyn Fn(Option<String>),
    ) -> Option<Finding> {
        let (of, offset) = (&held.of, held.offset);
        let look = || {
            self.find(held).ok_or_else(|| {
                format!(
                    "{of} stands at offset {offset}: a mark says that its sequence does not come any more, and whether it \
                     came before is known when all source partitions are read up to where they ended at the mark"
                )
            })
        };
        insist(look, valid, report)
    }

    /// What came of the sequences around an excluded record, if it is known.
    pub fn find(&self, excluded: &Excluded) -> Option<Finding> {
        self.observer.book().known(excluded.sequence)
    }

    /// Whether a partition waits at this record for a mark to count: it may be a copy. One of which that is known, a
    /// mark, or one of a replay is read on.
    fn is_held(&self, of: &TopicPartition, head: &Record) -> bool {
        let book = self.observer.book();
        match (stamps::mark_of(head), stamps::of_headers(&head.headers)) {
            (Ok(None), Ok((sequence, 0))) => {
                let epoch = self.source.epoch;
                book.marks().exclude(epoch, &of.topic, of.partition, head.offset, sequence)
                    && book.known(Stamp::root(epoch, sequence).sequence).is_none()
            }
            _ => false,
        }
    }

    /// The judgement, if all that it depends on has been read.
    ///
    /// # Errors
    /// What the log says; it may be asked again.
    pub fn look(&self, case: &mut Case) -> Result<Option<Judgement>, LogError> {
        let log = self.log.as_ref();
        let held = &case.held;
        if case.ends.is_none() {
            let others = source_partitions(log, &self.topics)?.into_iter().filter(|of| *of != held.of);
            let ends = others.map(|of| log.watermarks(&of).map(|ends| (of, ends.high)));
            case.ends = Some(ends.collect::<Result<_, _>>()?);
        }
        let others = case.ends.as_deref().unwrap_or_default();
        // 1. How far the other partitions are sequenced and committed.
        let names: Vec<_> = others.iter().map(|(of, _)| of.clone()).collect();
        let committed = log.committed(&self.group, &names, true)?;
        // 2. The greatest sequence: what lies below those positions is told in the same transactions.
        let progress = TopicPartition::new(&self.topics.progress, 0);
        let history = History::read(log, &progress, Until::End)?;
        let greatest = history.greatest(self.source.epoch).max(held.greatest);
        let beyond =
            |sequence: u64| greatest.is_none_or(|greatest| sequence > greatest.saturating_add(self.source.max_jump));
        if !beyond(held.sequence) {
            return Ok(Some(Judgement { greatest }));
        }
        // 3. What stands at the positions of the others, up to the ends that they had (J2, J3).
        for ((of, end), committed) in others.iter().zip(committed) {
            let Some(head) = self.head(of, committed.map(|committed| committed.position), *end)? else { continue };
            let sequence = stamps::height_of(&head);
            if self.is_held(of, &head) {
                continue;
            }
            let is_held = sequence.filter(|sequence| beyond(*sequence));
            if is_held.is_none_or(|sequence| (sequence, of) < (held.sequence, &held.of)) {
                return Ok(None);
            }
        }
        Ok(Some(Judgement { greatest }))
    }

    /// The first record below `end` that is not sequenced.
    fn head(&self, of: &TopicPartition, position: Option<i64>, end: i64) -> Result<Option<Record>, LogError> {
        let low = self.log.watermarks(of)?.low;
        let from = position.unwrap_or(low).max(low);
        if from >= end {
            return Ok(None);
        }
        let mut reader = self.log.reader(of, from, Isolation::ReadCommitted, true)?;
        let begun = clock::now();
        while reader.position() < end {
            if let Some(record) = reader.next(POLL)?.into_iter().next() {
                return Ok(Some(record).filter(|record| record.offset < end));
            }
            if clock::since(begun) > PATIENCE {
                return Err(LogError::Retriable(format!(
                    "{of} gives nothing from {from} on: is a transaction undecided?"
                )));
            }
        }
        Ok(None)
    }
}

/// Looks until something is found; `None` when nobody waits any more. What takes long is told.
fn insist<T>(
    mut look: impl FnMut() -> Result<T, String>,
    valid: &dyn Fn() -> bool,
    report: &dyn Fn(Option<String>),
) -> Option<T> {
    let (begun, mut told) = (clock::now(), false);
    let mut found = None;
    while found.is_none() && valid() {
        match look() {
            Ok(it) => found = Some(it),
            Err(why) => {
                if !told && clock::since(begun) > TOLD_AFTER {
                    told = true;
                    report(Some(why));
                }
                clock::sleep(PAUSE);
            }
        }
    }
    if told {
        report(None);
    }
    found
}
