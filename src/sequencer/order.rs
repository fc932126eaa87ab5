//! The order received (`source.stamp = "arrival"`): one counter for all source partitions, and what it
//! gave to which record, as runs on `<app>-order`.
//!
//! U1: a sequence is given once: the runs are in the transaction of the events that have it, and a
//!     successor counts on from the last committed run (protocol P22).

use bytes::Bytes;
use prost::Message;

use crate::event::{DecodeError, check_version, unless_newer};
use crate::log::whole::{self, Until};
use crate::log::{Headers, Log, LogError, NewRecord, TopicPartition};
use crate::planted::{self, Bug};
use crate::proto;
use crate::topics::KIND;

/// Runs in one record: each takes a topic's name and some numbers.
const RUNS_PER_RECORD: usize = 1000;

/// The counter, and the runs of the transaction being composed.
#[derive(Debug, Default)]
pub struct Runs {
    next: Option<u64>,
    runs: Vec<proto::Run>,
}

impl Runs {
    /// The next record gets `next`, unless counting has begun already.
    pub fn begin(&mut self, next: u64) {
        self.next.get_or_insert(next);
    }

    /// Counting begins anew from the log: what was given and not committed was never given.
    pub fn forget(&mut self) {
        *self = if planted::is(Bug::RunsKept) { std::mem::take(self) } else { Runs::default() };
    }

    /// The sequence of the record at `offset`.
    ///
    /// # Panics
    /// When counting has not begun: a source partition is opened together with the counter.
    pub(super) fn next(&mut self, of: &TopicPartition, offset: i64) -> u64 {
        let next = self.next.as_mut().expect("U1: a source is started after the last run is known");
        let sequence = *next;
        *next += 1;
        match self.runs.last_mut().filter(|run| run.partition == of.partition && *run.topic == *of.topic) {
            Some(run) if run.first_offset + run.count as i64 == offset => run.count += 1,
            _ => self.runs.push(proto::Run {
                first_sequence: sequence,
                topic: of.topic.to_string(),
                partition: of.partition,
                first_offset: offset,
                count: 1,
            }),
        }
        sequence
    }

    /// The runs since the last call.
    pub fn take(&mut self) -> Vec<proto::Run> {
        std::mem::take(&mut self.runs)
    }
}

/// The records of `<app>-order` for the runs of one transaction.
pub fn records(runs: Vec<proto::Run>) -> Vec<NewRecord> {
    let record = |runs: &[proto::Run]| {
        let order = proto::Order { runs: runs.to_vec(), ..proto::Order::default() };
        let headers: Headers = vec![(KIND.to_owned(), Bytes::from_static(b"order"))];
        NewRecord { key: None, value: Some(order.encode_to_vec().into()), headers }
    };
    runs.chunks(RUNS_PER_RECORD).map(record).collect()
}

/// Reads a record of `<app>-order`.
///
/// # Errors
/// A record that cannot be read is fatal: a sequence would be given twice.
pub fn decode(value: Option<Bytes>) -> Result<Vec<proto::Run>, DecodeError> {
    let value = value.ok_or_else(|| DecodeError::Malformed("a record without value".into()))?;
    let order = proto::Order::decode(value.clone()).map_err(|error| unless_newer(error.into(), value))?;
    check_version(u64::from(order.format_version))?;
    Ok(order.runs)
}

/// All committed runs, in order, up to the end that the topic has now, undecided transactions included.
///
/// # Errors
/// What the log says; [`LogError::Fatal`] for a record that is none of ours.
pub fn read(log: &dyn Log, of: &TopicPartition, mut take: impl FnMut(proto::Run)) -> Result<(), LogError> {
    whole::read(log, of, false, Until::End, |record| {
        let offset = record.offset;
        let runs =
            decode(record.value).map_err(|error| LogError::Fatal(format!("{of} at offset {offset}: {error}")))?;
        runs.into_iter().for_each(&mut take);
        Ok(())
    })
}

/// The sequence behind the last committed run.
///
/// # Errors
/// As [`read`].
pub fn end(log: &dyn Log, of: &TopicPartition) -> Result<u64, LogError> {
    let mut end = 0;
    read(log, of, |run| end = end.max(run.first_sequence + run.count))?;
    Ok(end)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn neighbours_share_a_run_and_a_gap_begins_another() {
        let topic = Arc::from("t");
        let (a, b) = (TopicPartition::new(&topic, 0), TopicPartition::new(&topic, 1));
        let mut runs = Runs::default();
        runs.begin(5);
        runs.begin(0);
        let given: Vec<u64> =
            [(&a, 10), (&a, 11), (&b, 0), (&a, 12), (&a, 14)].map(|(of, offset)| runs.next(of, offset)).into();
        assert_eq!(given, [5, 6, 7, 8, 9], "U1");
        let taken = runs.take();
        let short: Vec<_> =
            taken.iter().map(|run| (run.first_sequence, run.partition, run.first_offset, run.count)).collect();
        assert_eq!(short, [(5, 0, 10, 2), (7, 1, 0, 1), (8, 0, 12, 1), (9, 0, 14, 1)]);
        let records = records(taken.clone());
        assert_eq!(decode(records[0].value.clone()).unwrap(), taken);
        assert_eq!(runs.next(&a, 15), 10, "what was taken is not counted again");
        runs.forget();
        runs.begin(7);
        assert_eq!(runs.next(&a, 12), 7);
    }
}
