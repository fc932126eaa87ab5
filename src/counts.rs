//! What a transaction consumed and produced, per root and depth, as it stands in `<app>-progress`.
//!
//! N1: one transaction's counts are summed per root and depth before they are written, and all of a
//!     root stand in one record (protocol P16); what sums to zero is left out.
//! N2: what became a dead letter is told no later than that it is done: whoever sees a root as settled knows all of its
//!     dead letters.

pub mod dead_letters;

use bytes::Bytes;
use prost::Message;

use crate::event::{DecodeError, check_version, unless_newer};
use crate::proto;
use crate::stamp::Stamp;

/// What the header `tidegate_kind` says of the records here.
pub const COUNTS: &[u8] = b"counts";

/// The most roots that one progress record tells of, so that it stays far below any broker's limit.
const ROOTS_PER_RECORD: usize = 50_000;

/// A change of the number of pending events of one root at one depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count {
    generation: u32,
    retry: u32,
    sequence: u64,
    depth: u8,
    delta: i64,
}

impl Count {
    /// One event of this stamp was appended to the repartition topic.
    pub fn produced(stamp: &Stamp, retry: u32) -> Count {
        Count::new(stamp, retry, 1)
    }

    /// One event of this stamp is done: applied, superseded, a duplicate record or a dead letter.
    pub fn consumed(stamp: &Stamp, retry: u32) -> Count {
        Count::new(stamp, retry, -1)
    }

    /// `n` children of an event of this stamp were appended.
    pub fn spawned(parent: &Stamp, retry: u32, n: usize) -> Count {
        let count = Count::new(parent, retry, n as i64);
        Count { depth: count.depth.saturating_add(1), ..count }
    }

    fn new(stamp: &Stamp, retry: u32, delta: i64) -> Count {
        let (sequence, generation) = (stamp.sequence, stamp.generation);
        Count { generation, retry, sequence, depth: stamp.depth() as u8, delta }
    }
}

/// Sums `counts` and writes them as records; the last one is flagged and carries what else the transaction tells, but
/// for its dead letters, which are summed, too, and come first (N2). Empty when there is nothing to tell.
pub fn records(mut counts: Vec<Count>, mut told: proto::Progress) -> Vec<proto::Progress> {
    counts.sort_unstable();
    // The sums of one root, as (first depth, deltas); roots of equal sums share one message.
    let mut shapes: std::collections::BTreeMap<(u32, u32, u8, Vec<i64>), Vec<u64>> = Default::default();
    for root in counts.chunk_by(|a, b| (a.generation, a.retry, a.sequence) == (b.generation, b.retry, b.sequence)) {
        let first_depth = root[0].depth;
        let mut deltas = vec![0i64; usize::from(root[root.len() - 1].depth - first_depth) + 1];
        for count in root {
            deltas[usize::from(count.depth - first_depth)] += count.delta;
        }
        let Some(skip) = deltas.iter().position(|delta| *delta != 0) else { continue };
        while deltas.last() == Some(&0) {
            deltas.pop();
        }
        deltas.drain(..skip);
        let shape = (root[0].generation, root[0].retry, first_depth + skip as u8, deltas);
        shapes.entry(shape).or_default().push(root[0].sequence);
    }
    let mut records = Records { records: vec![proto::Progress::default()], room: ROOTS_PER_RECORD };
    for ((generation, retry, number), roots) in dead_letters::summed(&std::mem::take(&mut told.dead_letters)) {
        records.place(&roots, 1, |record, runs| {
            record.dead_letters.push(proto::DeadLetters { generation, retry, number, runs });
        });
    }
    for ((generation, retry, first_depth, deltas), roots) in shapes {
        let first_depth = u32::from(first_depth);
        records.place(&roots, 1 + deltas.len(), |record, runs| {
            record.counts.push(proto::Counts { generation, retry, first_depth, deltas: deltas.clone(), runs });
        });
    }
    let mut records = records.records;
    let is_told = told != proto::Progress::default();
    let last = records.last_mut().expect("begins with one");
    let (counts, dead_letters) = (std::mem::take(&mut last.counts), std::mem::take(&mut last.dead_letters));
    *last = proto::Progress { counts, dead_letters, last: true, ..told };
    records.retain(|record| !record.counts.is_empty() || !record.dead_letters.is_empty() || is_told);
    records
}

/// Records that are being written.
struct Records {
    records: Vec<proto::Progress>,
    /// So many roots go into the last one.
    room: usize,
}

impl Records {
    /// Gives `put` a record and the runs of those roots that there is room for in it, until all are placed. What is put
    /// beside the runs takes the room of so many roots as `weight` says.
    fn place(&mut self, mut roots: &[u64], weight: usize, mut put: impl FnMut(&mut proto::Progress, Vec<u64>)) {
        while !roots.is_empty() {
            if self.room <= weight {
                self.records.push(proto::Progress::default());
                self.room = ROOTS_PER_RECORD;
            }
            self.room -= weight;
            let (now, later) = roots.split_at(self.room.min(roots.len()));
            (self.room, roots) = (self.room - now.len(), later);
            put(self.records.last_mut().expect("begins with one"), runs_of(now));
        }
    }
}

/// Reads one of [`records`].
///
/// # Errors
/// [`DecodeError`]: whoever misses one miscounts.
pub fn decode(value: Bytes) -> Result<proto::Progress, DecodeError> {
    let progress = proto::Progress::decode(value.clone()).map_err(|error| unless_newer(error.into(), value))?;
    check_version(u64::from(progress.format_version))?;
    Ok(progress)
}

/// Ascending numbers as pairs (gap, length).
fn runs_of(numbers: &[u64]) -> Vec<u64> {
    let (mut runs, mut end) = (Vec::new(), 0);
    for run in numbers.chunk_by(|a, b| a + 1 == *b) {
        runs.extend([run[0] - end, run.len() as u64]);
        end = run[0] + run.len() as u64;
    }
    runs
}

/// The numbers of pairs (gap, length), as (first, length).
pub fn expand_runs(runs: &[u64]) -> impl Iterator<Item = (u64, u64)> + '_ {
    runs.as_chunks::<2>().0.iter().scan(0u64, |end, [gap, length]| {
        let first = end.checked_add(*gap)?;
        *end = first.checked_add(*length)?;
        Some((first, *length))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_roots_is_one_run_and_zero_sums_are_left_out() {
        let root = |n| Stamp::root(0, n);
        let mut counts: Vec<Count> = (10..20).map(|n| Count::produced(&root(n), 0)).collect();
        counts.extend([Count::consumed(&root(15), 0), Count::produced(&root(30), 0), Count::consumed(&root(30), 0)]);
        let records = records(counts, proto::Progress::default());
        assert_eq!(records.len(), 1);
        assert!(records[0].last);
        assert_eq!(records[0].counts.len(), 1);
        assert_eq!(records[0].counts[0].deltas, [1]);
        assert_eq!(expand_runs(&records[0].counts[0].runs).collect::<Vec<_>>(), [(10, 5), (16, 4)]);
    }

    #[test]
    fn a_parent_and_its_children_share_a_shape() {
        let root = Stamp::root(0, 7);
        let counts = vec![Count::spawned(&root, 0, 3), Count::consumed(&root, 0)];
        let records = records(counts, proto::Progress::default());
        assert_eq!(records[0].counts[0].first_depth, 0);
        assert_eq!(records[0].counts[0].deltas, [-1, 3]);
    }

    /// However much its roots differ: a transaction that does not fit would never be committed.
    #[test]
    fn records_stay_far_below_a_brokers_limit() {
        let roots = |n: u64| Stamp::root(0, n << 30);
        let counts = (0..40_000).map(|n| Count::spawned(&roots(n), 0, n as usize + 1));
        let counts = counts.chain((0..40_000).map(|n| Count::spawned(&roots(n).child(0).child(1), 0, n as usize + 1)));
        let dead = (0..40_000).map(|n| dead_letters::one(&roots(n), n as u32 % 7));
        let told = proto::Progress { dead_letters: dead.collect(), ..Default::default() };
        let records = records(counts.collect(), told);
        let largest = records.iter().map(Message::encoded_len).max().unwrap();
        assert!(records.len() > 3 && largest < 600_000, "{} records, the largest {largest}", records.len());
        let told = records.iter().flat_map(|record| &record.counts).map(|counts| expand_runs(&counts.runs).count());
        assert_eq!(told.sum::<usize>(), 40_000);
    }

    #[test]
    fn nothing_to_tell_is_no_record() {
        let (root, told) = (Stamp::root(0, 7), proto::Progress::default());
        assert!(records(vec![Count::produced(&root, 0), Count::consumed(&root, 0)], told).is_empty());
    }
}
