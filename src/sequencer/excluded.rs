//! Records that a mark says do not come ([`crate::marks`], V2).
//!
//! D1: such a record never becomes an event: it is held until a [`Finding`] covers its sequence, and then it is a copy
//!     of what came, or too late.

use super::stamps::{Excluded, MARK, SEQUENCE};
use super::{Held, Stop};
use crate::cause::Cause;
use crate::config;
use crate::dead_letter::Reason;
use crate::log::TopicPartition;
use crate::marks::{Finding, Marks};
use crate::stamp::{SEQUENCE_LIMIT, Stamp};

/// So many findings are remembered.
const REMEMBERED: usize = 64;

/// What a sequencer knows of what can no longer come.
#[derive(Debug)]
pub(super) struct Exclusion {
    epoch: u8,
    /// The source topics.
    topics: Vec<String>,
    marks: Marks,
    /// The last ones: final, whenever they were found.
    findings: Vec<Finding>,
}

impl Exclusion {
    /// Nothing is known yet.
    pub(super) fn new(config: &config::Source) -> Exclusion {
        let (epoch, topics) = (config.epoch, config.topics.clone());
        Exclusion { epoch, topics, marks: Marks::default(), findings: Vec::new() }
    }

    pub(super) fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Whether there is a greater mark now.
    pub(super) fn know(&mut self, marks: Marks) -> bool {
        let before = self.marks.greatest(self.epoch);
        self.marks = marks;
        self.marks.forget_unread(|topic| self.topics.iter().any(|read| read == topic));
        self.marks.greatest(self.epoch) > before
    }

    pub(super) fn found(&mut self, finding: Finding) {
        if self.findings.len() == REMEMBERED {
            self.findings.remove(0);
        }
        self.findings.push(finding);
    }

    /// Whether a mark still says of a record that was held that it does not come.
    pub(super) fn holds(&self, held: &Excluded) -> bool {
        let Excluded { of, offset, sequence } = held;
        self.marks.exclude(self.epoch, &of.topic, of.partition, *offset, sequence % SEQUENCE_LIMIT)
    }

    /// Whether the record, of generation 0, is a copy of one that came; false where no mark speaks of it.
    pub(super) fn is_copy(&self, of: &TopicPartition, offset: i64, sequence: u64) -> Result<bool, Stop> {
        if !self.marks.exclude(self.epoch, &of.topic, of.partition, offset, sequence) {
            return Ok(false);
        }
        let id = Stamp::root(self.epoch, sequence).sequence;
        let finding = self.findings.iter().rev().find(|finding| (finding.first..=finding.last).contains(&id));
        let Some(finding) = finding else {
            return Err(Stop::Held(Held::Excluded(Excluded { of: of.clone(), offset, sequence: id })));
        };
        if finding.has(id) {
            return Ok(true);
        }
        let known = self.marks.greatest(self.epoch).unwrap_or(sequence);
        let message = format!(
            "{SEQUENCE} {sequence} comes after the promise that nothing up to {known} still comes ({MARK}, or \
             source.max_disorder), and others were told that it is final"
        );
        Err(Stop::Refused(Reason::new(Cause::TooLate, message)))
    }
}
