//! At the producer and at the observer's log: what transactions and snapshots tell in `<app>-progress`.

use bytes::Bytes;
use prost::Message;
use tidegate::counts;
use tidegate::dead_letter;
use tidegate::log::{Append, NewRecord, Transaction};
use tidegate::progress::{counts_record, snapshot_record};
use tidegate::proto;
use tidegate::stamp::Stamp;

use super::{Bug, Planted};

/// The same counts without the deltas of which `keep` says no, by depth.
fn only(counts: &[proto::Counts], keep: impl Fn(u32, i64) -> bool) -> Vec<proto::Counts> {
    let kept = |counts: &proto::Counts| {
        let deltas = (counts.first_depth..).zip(&counts.deltas);
        let deltas = deltas.map(|(depth, delta)| if keep(depth, *delta) { *delta } else { 0 }).collect();
        proto::Counts { deltas, ..counts.clone() }
    };
    counts.iter().map(kept).collect()
}

impl Planted {
    /// Whether something else is told than a transaction has.
    pub(super) fn miscounts(&self) -> bool {
        use Bug::*;
        let bug = self.bug;
        matches!(bug, Some(ChildrenCountedLater | CountsSplit | PositionsToldFirst | DeadCountedTwice))
    }

    /// Changes what a transaction tells.
    pub(super) fn miscount(&self, transaction: &mut Transaction) {
        let dead = transaction.appends.iter().filter(|append| append.to.topic == self.topics.dead_letter);
        let dead: Vec<_> = dead.flat_map(|append| &append.records).filter_map(counted_once).collect();
        let progress = transaction.appends.iter_mut().find(|append| append.to.topic == self.topics.progress);
        let Some(append) = progress else { return };
        let records = append.records.iter().filter_map(|record| counts::decode(record.value.clone()?).ok());
        let mut told: Vec<proto::Progress> = records.collect();
        let Some(mut last) = told.pop() else { return };
        match self.bug {
            Some(Bug::ChildrenCountedLater) => {
                let later = only(&last.counts, |depth, delta| depth > 0 && delta > 0);
                last.counts = only(&last.counts, |depth, delta| depth == 0 || delta < 0);
                last.counts.extend(std::mem::replace(&mut self.state().counted_later, later));
            }
            Some(Bug::CountsSplit) => {
                told.push(proto::Progress { counts: only(&last.counts, |_, delta| delta < 0), ..Default::default() });
                last.counts = only(&last.counts, |_, delta| delta > 0);
            }
            Some(Bug::PositionsToldFirst) => {
                let source_positions = std::mem::take(&mut last.source_positions);
                told.insert(0, proto::Progress { source_positions, ..Default::default() });
            }
            Some(Bug::DeadCountedTwice) => last.counts.extend(dead),
            _ => return,
        }
        append.records = told.iter().chain([&last]).map(counts_record).collect();
    }

    /// Changes what a snapshot tells; its position as it was.
    pub(super) fn misread(&self, append: &mut Append) -> i64 {
        let mut position = 0;
        for record in &mut append.records {
            let value: Bytes = record.value.take().expect("a snapshot has a value");
            let mut part = proto::Snapshot::decode(value).expect("it was just encoded");
            position = part.position;
            match self.bug {
                Some(Bug::SnapshotTooHigh) => part.position += 1,
                Some(Bug::SnapshotTooLow) => part.position -= 1,
                Some(Bug::PartCountsAlone) => part.parts = 1,
                _ => {}
            }
            *record = snapshot_record(&part);
        }
        position
    }
}

/// What is counted of an event that became a dead letter.
fn counted_once(record: &NewRecord) -> Option<proto::Counts> {
    let stamp: Stamp = dead_letter::read(&record.headers).stamp?.parse().ok()?;
    let first_depth = stamp.depth() as u32;
    let (generation, runs) = (stamp.generation, vec![stamp.sequence, 1]);
    Some(proto::Counts { generation, retry: 0, first_depth, deltas: vec![-1], runs })
}
