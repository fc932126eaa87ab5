//! Which events have failed in the reference: what dead letters prove, and what their retries have made of it.
//!
//! D1: of several dead letters of one event that of the last processing decides, unless it was retried itself. One that
//!     the horizon had overtaken was no processing.
//! D2: what is told is of one moment: nothing of a retry has moved while letters and state were read.

use std::collections::HashMap;

use super::VerifyError;
use super::read::{self, Ends, Failure, Letters};
use crate::frontier::Book;
use crate::frontier::snapshot::{self, Assembly};
use crate::log::{Log, TopicPartition};
use crate::progress::{self, Told};
use crate::retry::Letter;
use crate::stamp::{Path, Stamp};

/// What is known of the events that have failed at least once.
#[derive(Debug, Default)]
pub struct Decided(HashMap<Stamp, Fate>);

/// What became of an event that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Failed,
    /// It, and all that it led to, is of this retry.
    Succeeded(u32),
}

impl Decided {
    /// What the dead letters come to.
    pub fn new(letters: &Letters, book: &Book) -> Decided {
        Decided(letters.failures.iter().map(|(stamp, failures)| (stamp.clone(), fate(stamp, failures, book))).collect())
    }

    /// Whether the event fails in the reference.
    pub fn fails(&self, stamp: &Stamp) -> bool {
        self.0.get(stamp) == Some(&Fate::Failed)
    }

    /// The number of the retry that an event is of: that of the nearest event above it, or its own; 0 = of none.
    pub fn retry(&self, stamp: &Stamp) -> u32 {
        if self.0.is_empty() {
            return 0;
        }
        let of = |depth: usize| {
            let above = Stamp { path: Path::from_slice(&stamp.path[..depth]), ..*stamp };
            match self.0.get(&above) {
                Some(Fate::Succeeded(retry)) => Some(*retry),
                Some(Fate::Failed) | None => None,
            }
        };
        (0..=stamp.depth()).rev().find_map(of).unwrap_or(0)
    }
}

/// D1.
fn fate(stamp: &Stamp, failures: &[Failure], book: &Book) -> Fate {
    let processed = failures.iter().filter(|failure| failure.retry == 0 || !failure.is_overtaken);
    let Some(last) = processed.max_by_key(|failure| (failure.retry, failure.letter)) else { return Fate::Failed };
    let is_of_it = |letter: Letter| failures.iter().any(|failure| failure.letter == letter);
    let retries = book.retries(stamp.sequence, stamp.generation).filter(|retry| is_of_it(retry.letter));
    let last_retry = retries.map(|retry| retry.number).max().unwrap_or(0);
    match last_retry > last.retry || book.is_retried_in_place(last.letter) {
        true => Fate::Succeeded(last_retry.max(last.retry + 1)),
        false => Fate::Failed,
    }
}

/// Reads all that `<app>-progress` tells now.
///
/// # Errors
/// [`VerifyError`] where the log does not answer, or the topic has lost its beginning.
pub fn book(log: &dyn Log, of: &TopicPartition) -> Result<Book, VerifyError> {
    let ends = log.watermarks(of)?;
    let (mut book, mut from) = (Book::default(), ends.low);
    if ends.low > 0 {
        let (position, parts) = snapshot(log, of, Ends { low: ends.low, high: ends.high })?;
        (book, from) = (snapshot::read(&parts), position);
    }
    for record in read::records(log, of, Ends { low: from, high: ends.high }, true)? {
        let record = record?;
        let at_ms = record.timestamp_ms;
        if let Told::Counts(progress) = progress::read(of, record)? {
            book.take(&progress, at_ms);
        }
    }
    Ok(book)
}

/// The first whole snapshot of what lies below the topic's beginning.
fn snapshot(log: &dyn Log, of: &TopicPartition, ends: Ends) -> Result<(i64, Vec<crate::proto::Snapshot>), VerifyError> {
    let mut assembly = Assembly::default();
    for record in read::records(log, of, ends, true)? {
        let Told::Snapshot(part) = progress::read(of, record?)? else { continue };
        if let Some(found) = assembly.take(*part).filter(|(position, _)| *position >= ends.low) {
            return Ok(found);
        }
    }
    let low = ends.low;
    Err(VerifyError::Failed(format!("{of} begins at {low} and holds no snapshot of what was before")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;
    use crate::retry::Retry;

    fn told(offset: i64, number: u32) -> proto::Retry {
        let letter = Letter { partition: 0, offset };
        (&Retry { letter, nonce: u64::from(number), forced: true, sequence: 5, generation: 0, number }).into()
    }

    fn failure(offset: i64, retry: u32) -> Failure {
        Failure { letter: Letter { partition: 0, offset }, retry, is_overtaken: false }
    }

    #[test]
    fn of_several_dead_letters_of_one_event_the_last_decides() {
        let stamp: Stamp = "5/0".parse().unwrap();
        let decide = |retries: &[proto::Retry], failures: &[Failure]| {
            let mut book = Book::default();
            book.take(&proto::Progress { retries: retries.to_vec(), ..Default::default() }, 0);
            let letters =
                Letters { failures: HashMap::from([(stamp.clone(), failures.to_vec())]), ..Letters::default() };
            Decided::new(&letters, &book)
        };
        let fails = |retries: &[proto::Retry], failures: &[Failure]| decide(retries, failures).fails(&stamp);
        assert!(fails(&[], &[failure(1, 0)]));
        assert!(!fails(&[told(1, 1)], &[failure(1, 0)]));
        assert!(fails(&[told(1, 1)], &[failure(1, 0), failure(2, 1)]), "it failed again");
        assert!(!fails(&[told(1, 1), told(2, 2)], &[failure(1, 0), failure(2, 1)]));
        assert!(!fails(&[told(1, 1), told(1, 2)], &[failure(1, 0), failure(2, 1)]), "the first one was forced");
        let overtaken = Failure { is_overtaken: true, ..failure(2, 2) };
        assert!(!fails(&[told(1, 1)], &[failure(1, 0), overtaken]), "it had succeeded before");
        assert!(fails(&[told(1, 0)], &[failure(1, 0)]), "a new event is another one");
        let decided = decide(&[told(1, 3)], &[failure(1, 0)]);
        let retry = |stamp: &str| decided.retry(&stamp.parse().unwrap());
        assert_eq!([retry("5"), retry("5/0"), retry("5/0/2"), retry("5/1"), retry("6/0")], [0, 3, 3, 0, 0]);
    }
}
