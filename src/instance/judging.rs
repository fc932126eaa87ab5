//! Judges a record whose sequence lies so far above the others that it may be a mistake (protocol P18).
//!
//! J2: a record is judged when every other source partition has been read to its end, against the greatest
//!     sequence of the whole application; so it does not matter who reads which partition, and when.
//! J3: partitions that are held at such a record themselves would wait for each other: what stands behind it is not
//!     waited for, and of the held records the one with the least sequence is judged first.

use std::sync::Arc;
use std::time::Duration;

use super::topology::source_partitions;
use crate::config;
use crate::log::{Isolation, Log, LogError, Record, TopicPartition};
use crate::progress::{History, Until};
use crate::sequencer::stamps::{self, Beyond, Judgement};
use crate::topics::Topics;

/// The pause between looks.
const PAUSE: Duration = Duration::from_millis(200);

/// How long one look waits for a record that stands in the log.
const POLL: Duration = Duration::from_millis(100);

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
}

impl Judge {
    /// Looks until it can judge; `None` when nobody waits any more.
    pub fn wait(&self, held: &Beyond, valid: &dyn Fn() -> bool) -> Option<Judgement> {
        while valid() {
            match self.look(held) {
                Ok(Some(judgement)) => return Some(judgement),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, of = %held.of, "cannot judge a record yet"),
            }
            std::thread::sleep(PAUSE);
        }
        None
    }

    /// The judgement, if all that it depends on has been read.
    ///
    /// # Errors
    /// What the log says; it may be asked again.
    pub fn look(&self, held: &Beyond) -> Result<Option<Judgement>, LogError> {
        let log = self.log.as_ref();
        let partitions = source_partitions(log, &self.topics)?;
        // 1. How far all partitions are sequenced and committed.
        let committed = log.committed(&self.group, &partitions, true)?;
        // 2. The greatest sequence: what lies below those positions is told in the same transactions.
        let progress = TopicPartition::new(&self.topics.progress, 0);
        let history = History::read(log, &progress, Until::End)?;
        let greatest = history.greatest(self.source.epoch).max(held.greatest);
        let beyond =
            |sequence: u64| greatest.is_none_or(|greatest| sequence > greatest.saturating_add(self.source.max_jump));
        if !beyond(held.sequence) {
            return Ok(Some(Judgement { greatest }));
        }
        // 3. What stands at the positions of the others (J2, J3).
        for (of, committed) in partitions.iter().zip(committed).filter(|(of, _)| **of != held.of) {
            let Some(head) = self.head(of, committed.map(|committed| committed.position))? else { continue };
            let sequence = stamps::of_headers(&head.headers).map(|(sequence, _)| sequence).ok();
            let is_held = sequence.filter(|sequence| beyond(*sequence));
            if is_held.is_none_or(|sequence| (sequence, of) < (held.sequence, &held.of)) {
                return Ok(None);
            }
        }
        Ok(Some(Judgement { greatest }))
    }

    /// The first record that is not sequenced, as of now.
    fn head(&self, of: &TopicPartition, position: Option<i64>) -> Result<Option<Record>, LogError> {
        let ends = self.log.watermarks(of)?;
        let from = position.unwrap_or(ends.low).max(ends.low);
        if from >= ends.high {
            return Ok(None);
        }
        let mut reader = self.log.reader(of, from, Isolation::ReadCommitted, true)?;
        while reader.position() < ends.high {
            if let Some(record) = reader.next(POLL)?.into_iter().next() {
                return Ok(Some(record).filter(|record| record.offset < ends.high));
            }
        }
        Ok(None)
    }
}
