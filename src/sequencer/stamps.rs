//! Sequences that come in a record's header, and how far one may lie above those before it.
//!
//! J1: the greatest sequence known here is at most the application's, so nothing is admitted that the
//!     application's greatest would not admit (protocol P18).

use bytes::Bytes;

use super::{Held, Stop};
use crate::cause::Cause;
use crate::dead_letter::Reason;
use crate::log::{Headers, Record, TopicPartition};
use crate::stamp::SEQUENCE_LIMIT;

/// The header with a record's sequence, decimal ASCII.
pub const SEQUENCE: &str = "global_offset";

/// The header with a record's generation, decimal ASCII; 0 when absent.
pub const GENERATION: &str = "replay_generation";

/// The header of a mark: a record without key and value that promises what can no longer come.
pub const MARK: &str = "tidegate_mark";

/// A record that lies so far above the greatest sequence known that it may be a mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// Where it stands.
    pub of: TopicPartition,
    /// Its offset.
    pub offset: i64,
    /// Its sequence, without the epoch.
    pub sequence: u64,
    /// The greatest sequence known here.
    pub greatest: Option<u64>,
}

/// A record that a mark says does not come ([`crate::marks`], V2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excluded {
    /// Where it stands.
    pub of: TopicPartition,
    /// Its offset.
    pub offset: i64,
    /// Its sequence, with the epoch.
    pub sequence: u64,
}

/// What has been decided about a [`Beyond`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The application's greatest sequence once all other partitions were read to their ends; `None` = this
    /// record is the first ever.
    pub greatest: Option<u64>,
}

/// What sequences are measured by.
#[derive(Debug)]
pub struct Header {
    max_jump: u64,
    greatest: Option<u64>,
    /// Records that were judged and not met again yet.
    judged: Vec<(TopicPartition, i64, Judgement)>,
}

impl Header {
    /// Nothing is known yet.
    pub fn new(max_jump: u64) -> Header {
        Header { max_jump, greatest: None, judged: Vec::new() }
    }

    /// The record was judged: when it is read again it is admitted or refused.
    pub fn judged(&mut self, of: &TopicPartition, offset: i64, judgement: Judgement) {
        self.greatest = self.greatest.max(judgement.greatest);
        self.judged.retain(|(other, ..)| other != of);
        self.judged.push((of.clone(), offset, judgement));
    }

    /// The greatest sequence known here, without the epoch.
    pub fn greatest(&self) -> Option<u64> {
        self.greatest
    }

    /// Admits a sequence that is not too far above the greatest, or that was judged.
    pub(super) fn admit(&mut self, of: &TopicPartition, offset: i64, sequence: u64) -> Result<(), Stop> {
        if !self.greatest.is_some_and(|greatest| self.is_within(sequence, greatest))
            && let Some(greatest) = self.judgement(of, offset, sequence)?.greatest
        {
            return Err(self.refused(SEQUENCE, sequence, greatest));
        }
        self.greatest = self.greatest.max(Some(sequence));
        Ok(())
    }

    /// Admits a mark that is not too far above the greatest sequence, or 0 where there is none: what it excludes by
    /// mistake would never become an event.
    pub(super) fn admit_mark(&mut self, of: &TopicPartition, offset: i64, mark: u64) -> Result<(), Stop> {
        if self.is_within(mark, self.greatest.unwrap_or(0)) {
            return Ok(());
        }
        let greatest = self.judgement(of, offset, mark)?.greatest.unwrap_or(0);
        if self.is_within(mark, greatest) { Ok(()) } else { Err(self.refused(MARK, mark, greatest)) }
    }

    fn is_within(&self, sequence: u64, greatest: u64) -> bool {
        sequence <= greatest.saturating_add(self.max_jump)
    }

    /// What was decided about a record, once; it is held until then.
    fn judgement(&mut self, of: &TopicPartition, offset: i64, sequence: u64) -> Result<Judgement, Stop> {
        let judged = self.judged.iter().position(|(other, at, _)| other == of && *at == offset);
        let greatest = self.greatest;
        let held = || Stop::Held(Held::Beyond(Beyond { of: of.clone(), offset, sequence, greatest }));
        judged.map(|place| self.judged.swap_remove(place).2).ok_or_else(held)
    }

    fn refused(&self, header: &str, sequence: u64, greatest: u64) -> Stop {
        let message = format!(
            "{header} {sequence} is more than source.max_jump = {} above {greatest}, the greatest so far",
            self.max_jump
        );
        Stop::Refused(Reason::new(Cause::SequenceJump, message))
    }
}

/// Whether a record is a mark, which is no event.
pub fn is_mark(record: &Record) -> bool {
    record.key.is_none() && record.value.is_none() && record.headers.iter().any(|(name, _)| name == MARK)
}

/// What a mark says, where the record is one: no sequence up to this one can still come.
///
/// # Errors
/// `no_sequence`, where it is malformed.
pub fn mark_of(record: &Record) -> Result<Option<u64>, Reason> {
    let Some(text) = value(&record.headers, MARK).filter(|_| is_mark(record)) else { return Ok(None) };
    sequence_in(MARK, text).map(Some)
}

/// The sequence that a record or a mark speaks of; `None` where it is neither, or malformed.
pub fn height_of(record: &Record) -> Option<u64> {
    match mark_of(record) {
        Ok(Some(mark)) => Some(mark),
        Ok(None) => of_headers(&record.headers).ok().map(|(sequence, _)| sequence),
        Err(_) => None,
    }
}

fn value<'a>(headers: &'a Headers, name: &str) -> Option<&'a Bytes> {
    headers.iter().rev().find(|(header, _)| header == name).map(|(_, value)| value)
}

fn sequence_in(header: &str, text: &Bytes) -> Result<u64, Reason> {
    decimal(text).filter(|sequence| *sequence < SEQUENCE_LIMIT).ok_or_else(|| {
        let message = format!("the header {header} is {}: expected decimal digits, below 2^56", shown(text));
        Reason::new(Cause::NoSequence, message)
    })
}

/// Sequence and generation of a record, from its headers.
///
/// # Errors
/// `no_sequence`, where they are missing or malformed.
pub fn of_headers(headers: &Headers) -> Result<(u64, u32), Reason> {
    let refuse = |message: String| Reason::new(Cause::NoSequence, message);
    let sequence = value(headers, SEQUENCE).ok_or_else(|| refuse(format!("the header {SEQUENCE} is missing")))?;
    let sequence = sequence_in(SEQUENCE, sequence)?;
    let generation = match value(headers, GENERATION) {
        None => 0,
        Some(text) => decimal(text).and_then(|generation| u32::try_from(generation).ok()).ok_or_else(|| {
            refuse(format!("the header {GENERATION} is {}: expected decimal digits, below 2^32", shown(text)))
        })?,
    };
    Ok((sequence, generation))
}

fn decimal(text: &Bytes) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    // `parse` would take a sign, too.
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok()).flatten()
}

fn shown(value: &Bytes) -> String {
    format!("{:?}", String::from_utf8_lossy(&value[..value.len().min(40)]))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn headers(pairs: &[(&str, &'static str)]) -> Headers {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), Bytes::from(*value))).collect()
    }

    #[test]
    fn sequence_and_generation_are_decimal_and_bounded() {
        assert_eq!(of_headers(&headers(&[("x", "1"), (SEQUENCE, "57")])).unwrap(), (57, 0));
        assert_eq!(of_headers(&headers(&[(SEQUENCE, "0007"), (GENERATION, "2")])).unwrap(), (7, 2));
        assert_eq!(of_headers(&headers(&[(SEQUENCE, "72057594037927935")])).unwrap().0, SEQUENCE_LIMIT - 1);
        for wrong in ["", "+5", "-1", "5 ", "0x5", "72057594037927936", "99999999999999999999", "５"] {
            let reason = of_headers(&headers(&[(SEQUENCE, wrong)])).unwrap_err();
            assert_eq!(reason.cause, Cause::NoSequence, "{wrong:?}");
        }
        assert!(of_headers(&headers(&[])).is_err());
        assert!(of_headers(&headers(&[(SEQUENCE, "1"), (GENERATION, "4294967296")])).is_err());
        assert!(of_headers(&headers(&[(SEQUENCE, "1"), (GENERATION, "x")])).is_err());
    }

    #[test]
    fn a_mark_is_a_record_without_key_and_value() {
        let record = |key: Option<&'static str>, text: &'static str| Record {
            offset: 0,
            timestamp_ms: 0,
            key: key.map(Bytes::from),
            value: None,
            headers: headers(&[(MARK, text)]),
        };
        assert_eq!((mark_of(&record(None, "57")).unwrap(), height_of(&record(None, "57"))), (Some(57), Some(57)));
        assert_eq!(mark_of(&record(Some("k"), "57")).unwrap(), None, "an event with a header too many");
        for wrong in ["", "+5", "x", "72057594037927936"] {
            assert_eq!(mark_of(&record(None, wrong)).unwrap_err().cause, Cause::NoSequence, "{wrong:?}");
        }
    }

    /// P17.
    #[test]
    fn a_mark_far_above_all_records_is_refused() {
        let of = TopicPartition::new(&Arc::from("t"), 0);
        let mut header = Header::new(10);
        assert!(header.admit_mark(&of, 0, 10).is_ok(), "it says nothing of importance");
        assert!(matches!(header.admit_mark(&of, 1, 11), Err(Stop::Held(_))));
        header.judged(&of, 1, Judgement { greatest: None });
        let Err(Stop::Refused(reason)) = header.admit_mark(&of, 1, 11) else { panic!("no record was received yet") };
        assert_eq!((reason.cause, header.greatest()), (Cause::SequenceJump, None));
        assert!(matches!(header.admit_mark(&of, 2, 30), Err(Stop::Held(_))));
        header.judged(&of, 2, Judgement { greatest: Some(20) });
        assert!(header.admit_mark(&of, 2, 30).is_ok(), "another partition had 20");
        assert!(matches!(header.admit_mark(&of, 3, 31), Err(Stop::Held(_))), "a mark is not the greatest sequence");
    }

    /// J1, P18.
    #[test]
    fn what_lies_far_above_is_held_until_it_is_judged() {
        let of = TopicPartition::new(&Arc::from("t"), 0);
        let mut header = Header::new(10);
        let beyond = |result: Result<(), Stop>| match result {
            Err(Stop::Held(Held::Beyond(beyond))) => (beyond.sequence, beyond.greatest),
            _ => panic!("has to be held"),
        };
        assert_eq!(beyond(header.admit(&of, 3, 5)), (5, None), "nothing is known yet");
        header.judged(&of, 3, Judgement { greatest: None });
        assert!(header.admit(&of, 3, 5).is_ok(), "the first ever is exempt");
        assert!(header.admit(&of, 4, 15).is_ok(), "15 is 10 above 5");
        assert!(header.admit(&of, 5, 2).is_ok(), "below is always possible");
        assert_eq!(beyond(header.admit(&of, 6, 26)), (26, Some(15)));
        header.judged(&of, 6, Judgement { greatest: Some(16) });
        assert!(header.admit(&of, 6, 26).is_ok(), "another partition had 16");
        assert_eq!(beyond(header.admit(&of, 7, 1000)), (1000, Some(26)));
        header.judged(&of, 7, Judgement { greatest: Some(26) });
        let Err(Stop::Refused(reason)) = header.admit(&of, 7, 1000) else { panic!("has to be refused") };
        assert_eq!(reason.cause, Cause::SequenceJump);
        assert!(header.admit(&of, 8, 36).is_ok(), "what was refused is not the greatest");
    }
}
