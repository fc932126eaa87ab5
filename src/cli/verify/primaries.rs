//! The primary events of the reference, in the order received.

use std::collections::{BTreeMap, HashSet};

use super::read::{self, Ends, Letters};
use super::{Subject, VerifyError};
use crate::config::{self, Config, StampSource};
use crate::event::{StampedEvent, encode_origin};
use crate::log::{Log, Record, TopicPartition, Watermarks};
use crate::sequencer::{format, order, stamps};
use crate::stamp::Stamp;

/// Which roots the reference covers; what keys hold from others came later.
#[derive(Debug)]
pub enum Covered {
    /// Those below this sequence, which has its epoch.
    Below(u64),
    /// Those of these sequences, with their epochs.
    These(HashSet<u64>),
}

impl Covered {
    /// Whether the stamp's root is covered.
    pub fn has(&self, stamp: &Stamp) -> bool {
        match self {
            Covered::Below(end) => stamp.sequence < *end,
            Covered::These(sequences) => sequences.contains(&stamp.sequence),
        }
    }
}

/// Primary events in the order of their stamps, and what they cover.
pub struct Primaries<'a> {
    /// An error ends them.
    pub events: Box<dyn Iterator<Item = Result<StampedEvent, VerifyError>> + 'a>,
    /// Their roots.
    pub covered: Covered,
}

/// Reads the sources up to `ends`. With `offset` they are read as they are needed; with `header` and `arrival` they are
/// all held in memory, because they have to be put in order.
pub fn primaries<'a>(
    log: &'a dyn Log,
    config: &'a Config,
    subject: &Subject,
    ends: &[Watermarks],
    letters: &Letters,
) -> Result<Primaries<'a>, VerifyError> {
    let source = &config.source;
    let sources = subject.sources.iter().zip(ends);
    if source.stamp == StampSource::Offset {
        let (of, ends) = sources.into_iter().next().expect("one source partition, as was checked");
        let of = of.clone();
        let records = read::records(log, &of, Ends { low: ends.low, high: ends.high }, false)?;
        let events = records.filter_map(move |record| {
            record.map(|record| event(source, &of, &record, record.offset as u64, 0)).transpose()
        });
        let end = Stamp::root(source.epoch, ends.high as u64).sequence;
        return Ok(Primaries { events: Box::new(events), covered: Covered::Below(end) });
    }
    let order = if source.stamp == StampSource::Arrival { Some(Order::read(log, subject)?) } else { None };
    let mut events = Vec::new();
    for (of, ends) in sources {
        let headers = source.stamp == StampSource::Header;
        for record in read::records(log, of, Ends { low: ends.low, high: ends.high }, headers)? {
            let record = record?;
            let place = match &order {
                Some(order) => order.sequence(of, record.offset)?.map(|sequence| (sequence, 0)),
                None => stamps::of_headers(&record.headers).ok(),
            };
            // A mark is no event, and a dead letter proves what was refused.
            let refused = stamps::is_mark(&record) || letters.records.contains(&(of.clone(), record.offset));
            if let Some((sequence, generation)) = place.filter(|_| !refused) {
                events.extend(event(source, of, &record, sequence, generation));
            }
        }
    }
    events.sort_by(|a, b| a.stamp.cmp(&b.stamp));
    // The same record twice is the same event.
    events.dedup_by(|a, b| a.stamp == b.stamp);
    let covered = Covered::These(events.iter().map(|event| event.stamp.sequence).collect());
    Ok(Primaries { events: Box::new(events.into_iter().map(Ok)), covered })
}

fn event(
    config: &config::Source,
    of: &TopicPartition,
    record: &Record,
    sequence: u64,
    generation: u32,
) -> Option<StampedEvent> {
    let event = format::decode(config.format, record.key.as_ref(), record.value.as_ref()).ok()?;
    let stamp = Stamp { generation, ..Stamp::root(config.epoch, sequence) };
    let origin = encode_origin(&of.topic, of.partition, record.offset, record.timestamp_ms);
    Some(StampedEvent { event, stamp, origin, retry: 0 })
}

/// The order received: of each partition the runs by their first offset, with first sequence and count.
struct Order(BTreeMap<(String, i32), BTreeMap<i64, (u64, u64)>>);

impl Order {
    fn read(log: &dyn Log, subject: &Subject) -> Result<Order, VerifyError> {
        let of = subject.order.as_ref().expect("found with stamp = arrival");
        let mut runs: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        let (mut end, mut twice) = (0, None);
        order::read(log, of, |run| {
            if run.first_sequence < end {
                twice.get_or_insert(run.first_sequence);
            }
            end = run.first_sequence + run.count;
            let place = runs.entry((run.topic, run.partition)).or_default();
            place.insert(run.first_offset, (run.first_sequence, run.count));
        })?;
        if let Some(sequence) = twice {
            return Err(VerifyError::Failed(format!(
                "{of} gives the sequence {sequence} to two records: the order received is broken, please report this"
            )));
        }
        Ok(Order(runs))
    }

    /// The sequence of a record; `None` where the application began behind it.
    fn sequence(&self, of: &TopicPartition, offset: i64) -> Result<Option<u64>, VerifyError> {
        let runs = self.0.get(&(of.topic.to_string(), of.partition));
        let before = runs.and_then(|runs| runs.range(..=offset).next_back());
        let found = before.map(|(first, (sequence, count))| (offset.abs_diff(*first), sequence, count));
        match found.filter(|(distance, _, count)| distance < *count) {
            Some((distance, sequence, _)) => Ok(Some(sequence + distance)),
            None if before.is_none() && runs.is_some() => Ok(None),
            None => Err(VerifyError::Failed(format!(
                "{of} has a record at offset {offset} that stands in no run of the order received, and is committed as \
                 read; was the topic of the order cut?"
            ))),
        }
    }
}
