//! What is settled in truth, by the transactions that are committed, whether their markers stand yet or not.
//!
//! A cascade is done when the repartition topic held every event that the scripts make of its root, and each of them
//! is done by the committed positions and done-sets. What the transactions count is not looked at.

use std::collections::{BTreeMap, BTreeSet};

use tidegate::bookkeeping;
use tidegate::config::{StampSource, Superseded};
use tidegate::event::StampedEvent;
use tidegate::log::{OffsetCommit, TopicPartition, Transaction};
use tidegate::proto;
use tidegate::reference;
use tidegate::sequencer::order;
use tidegate::stamp::Stamp;

use crate::node::Plan;
use crate::workload::{Draft, Scripts};

/// A partition and an offset in it.
type At = (i32, i64);

/// What a transaction says of the progress of cascades.
#[derive(Debug)]
pub struct Facts {
    /// Records of the repartition topic.
    events: Vec<(At, StampedEvent)>,
    /// Records of the repartition topic that are done: partition, first and behind the last.
    done: Vec<(i32, i64, i64)>,
    /// How far source partitions are sequenced.
    received: Vec<At>,
    /// With `arrival`: the order received.
    runs: Vec<proto::Run>,
    /// One of its positions: it is committed when the group has that.
    mark: Option<OffsetCommit>,
}

impl Facts {
    /// `end` is where partitions end before anything of it is appended.
    pub fn of(transaction: &Transaction, end: impl Fn(&TopicPartition) -> i64) -> Facts {
        let (mut events, mut done, mut received, mut runs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for append in &transaction.appends {
            let partition = append.to.partition;
            let values = append.records.iter().filter_map(|record| Some((record.key.clone(), record.value.clone()?)));
            if append.to.topic.ends_with("-events-repartition") {
                let first = end(&append.to);
                let decode = |(key, value): (Option<_>, _)| StampedEvent::decode(key.unwrap(), value).unwrap();
                events.extend((first..).map(|offset| (partition, offset)).zip(values.map(decode)));
            } else if append.to.topic.ends_with("-state-changelog") {
                for (_, value) in values.filter(|(key, _)| key.as_ref().is_some_and(|key| key.is_empty())) {
                    let books = bookkeeping::decode(value).unwrap();
                    let mut at = books.done_base;
                    for [gap, length] in books.done_runs.as_chunks::<2>().0 {
                        let first = at + *gap as i64;
                        at = first + *length as i64;
                        done.push((partition, first, at));
                    }
                }
            } else if append.to.topic.ends_with("-order") {
                runs.extend(values.flat_map(|(_, value)| order::decode(Some(value)).unwrap()));
            }
        }
        for OffsetCommit { of, position, .. } in &transaction.offsets {
            match of.topic.ends_with("-events-repartition") {
                true => done.push((of.partition, 0, *position)),
                false => received.push((of.partition, *position)),
            }
        }
        Facts { events, done, received, runs, mark: transaction.offsets.first().cloned() }
    }

    /// One of its positions.
    pub fn mark(&self) -> Option<&OffsetCommit> {
        self.mark.as_ref()
    }
}

/// The cascade of a root.
#[derive(Debug, Default)]
struct Cascade {
    /// How many events it has; `None` where timing decides about that.
    events: Option<usize>,
    /// Those that are done.
    done: BTreeSet<Stamp>,
    /// Its records that are not done.
    open: usize,
    /// It was done once. A copy of the same root that comes later changes nothing.
    is_settled: bool,
}

/// What is settled.
#[derive(Debug)]
pub struct Truth {
    scripts: Scripts,
    stamp: StampSource,
    drops: bool,
    /// Records of the repartition topic that are not done.
    open: BTreeMap<At, Stamp>,
    cascades: BTreeMap<u64, Cascade>,
    /// Source records that are no events and that nobody has come by, with their sequences.
    broken: BTreeMap<At, Option<u64>>,
    /// The sequences of source records that stand in the log and are not settled.
    unsettled: BTreeSet<u64>,
    /// The greatest sequence.
    last: Option<u64>,
}

impl Truth {
    /// Nothing has happened.
    pub fn new(plan: &Plan) -> Truth {
        Truth {
            scripts: plan.scripts.clone(),
            stamp: plan.config.source.stamp,
            drops: plan.config.processing.superseded == Superseded::Drop,
            open: BTreeMap::new(),
            cascades: BTreeMap::new(),
            broken: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            last: None,
        }
    }

    /// A record was appended to the source.
    pub fn appended(&mut self, draft: &Draft) {
        let sequence = match self.stamp {
            StampSource::Offset => Some(draft.offset as u64),
            // What breaks a promise may be too late: nobody waits for it before it is an event.
            StampSource::Header => draft.sequence.filter(|_| draft.is_event() && !draft.breaks),
            StampSource::Arrival => None,
        };
        if !draft.is_event() {
            self.broken.insert((draft.partition, draft.offset), sequence);
        }
        sequence.into_iter().for_each(|sequence| self.stands(sequence));
    }

    /// From now on a source record has this sequence.
    fn stands(&mut self, sequence: u64) {
        self.last = self.last.max(Some(sequence));
        if !self.is_settled(sequence) {
            self.unsettled.insert(sequence);
        }
    }

    /// A transaction is committed.
    pub fn committed(&mut self, facts: Facts) {
        for run in &facts.runs {
            for (offset, sequence) in (run.first_offset..).zip(run.first_sequence..run.first_sequence + run.count) {
                self.stands(sequence);
                if let Some(broken) = self.broken.get_mut(&(run.partition, offset)) {
                    *broken = Some(sequence);
                }
            }
        }
        facts.events.into_iter().for_each(|(at, event)| self.produced(at, event));
        for (partition, first, end) in facts.done {
            let done: Vec<At> = self.open.range((partition, first)..(partition, end)).map(|(at, _)| *at).collect();
            done.into_iter().for_each(|at| self.done(at));
        }
        for (partition, position) in facts.received {
            let passed: Vec<At> = self.broken.range((partition, 0)..(partition, position)).map(|(at, _)| *at).collect();
            for sequence in passed.iter().filter_map(|at| self.broken.remove(at).flatten()) {
                self.unsettled.remove(&sequence);
            }
        }
    }

    fn produced(&mut self, at: At, event: StampedEvent) {
        let stamp = event.stamp.clone();
        // Retries and replays are cascades of their own.
        if stamp.generation > 0 || event.retry > 0 {
            return;
        }
        let cascade = self.cascades.entry(stamp.sequence).or_default();
        cascade.open += 1;
        if stamp.path.is_empty() && !self.drops && cascade.events.is_none() {
            let all = reference::run([event], &self.scripts.cascade, |event| self.scripts.in_the_end(&event.event));
            cascade.events = Some(all.events as usize);
        }
        if !cascade.is_settled {
            self.unsettled.insert(stamp.sequence);
        }
        self.open.insert(at, stamp);
    }

    fn done(&mut self, at: At) {
        let stamp = self.open.remove(&at).expect("it is open");
        let sequence = stamp.sequence;
        let cascade = self.cascades.get_mut(&sequence).expect("what is done was produced");
        cascade.open -= 1;
        cascade.done.insert(stamp);
        if cascade.events.map_or(cascade.open == 0, |events| cascade.done.len() == events) {
            cascade.is_settled = true;
            self.unsettled.remove(&sequence);
        }
    }

    /// Whether a root is settled.
    pub fn is_settled(&self, sequence: u64) -> bool {
        self.cascades.get(&sequence).is_some_and(|cascade| cascade.is_settled)
    }

    /// The sequences that stand in the source and are not settled, in order.
    pub fn unsettled(&self) -> impl Iterator<Item = u64> {
        self.unsettled.iter().copied()
    }

    /// All roots that were received.
    pub fn roots(&self) -> impl Iterator<Item = u64> {
        self.cascades.keys().copied()
    }

    /// The greatest sequence of the source.
    pub fn last(&self) -> Option<u64> {
        self.last
    }
}
