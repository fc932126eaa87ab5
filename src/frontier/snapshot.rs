//! What all records of `<app>-progress` below a position come to, so that nobody has to read them again.
//!
//! A snapshot is a function of a prefix: whoever has read it writes the same, and a second one does no harm.
//!
//! Z1: a snapshot counts when all its parts are there; what a writer left halfway is passed over (protocol P21).
//! Z2: what was read from a snapshot and the records from its position on is what all records come to.

use std::collections::BTreeMap;

use super::book::{Book, Epoch};
use crate::counts::expand_runs;
use crate::proto;

/// So many runs go into one part: its record stays far below any broker's limit.
pub const RUNS_PER_PART: usize = 30_000;

/// The same for retries of dead letters.
const RETRIES_PER_PART: usize = 10_000;

/// The snapshot of a book that has read all below `position`, in parts of at most `runs_per_part` runs (1 or more).
pub fn write(book: &Book, position: i64, writer: &str, runs_per_part: usize) -> Vec<proto::Snapshot> {
    let mut parts = Parts { parts: vec![proto::Snapshot::default()], runs_per_part, room: runs_per_part };
    // Roots of which the same is pending share one message, as in counts.
    let mut shapes: BTreeMap<_, Vec<(u64, u64)>> = BTreeMap::new();
    for (first, end, pending) in book.originals.iter() {
        shapes.entry((0u32, 0u32, pending)).or_default().push((first, end));
    }
    for ((sequence, generation, retry), pending) in &book.others {
        let runs = shapes.entry((*generation, *retry, &pending[..])).or_default();
        runs.push((*sequence, sequence.saturating_add(1)));
    }
    for ((generation, retry, pending), runs) in shapes {
        let deltas: Vec<i64> = pending.iter().map(|number| i64::from(*number)).collect();
        parts.place(&runs, 1 + deltas.len(), |part, runs| {
            part.counts.push(proto::Counts { generation, retry, first_depth: 0, deltas: deltas.clone(), runs });
        });
    }
    let (came, came_from) = book.came.told();
    let came: Vec<(u64, u64)> = came.collect();
    parts.place(&came, 0, |part, runs| part.came_runs.extend(runs));
    let (broken, broken_from) = book.broken.told();
    let broken: Vec<(u64, u64)> = broken.collect();
    parts.place(&broken, 0, |part, runs| part.broken_runs.extend(runs));
    let (dead_letters, known_from) = book.dead_letters.told();
    for ((generation, retry, number), runs) in dead_letters {
        parts.place(&runs, 1, |part, runs| {
            let letters = proto::DeadLetters { generation, retry, number, runs };
            part.dead_letters.get_or_insert_default().roots.push(letters);
        });
    }
    let epoch = |(number, epoch): (&u8, &Epoch)| proto::Epoch {
        epoch: u32::from(*number),
        end: epoch.end,
        is_ordered: epoch.is_ordered,
    };
    for retries in book.retries.write(RETRIES_PER_PART) {
        parts.parts.push(proto::Snapshot { retries: Some(retries), ..proto::Snapshot::default() });
    }
    let mut parts = parts.parts;
    parts[0].epochs = book.epochs.iter().map(epoch).collect();
    let topic = |(name, id): (&String, &String)| proto::TopicId { topic: name.clone(), topic_id: id.clone() };
    parts[0].topics = book.topic_ids.iter().map(topic).collect();
    parts[0].source_positions = book.positions.values().cloned().collect();
    parts[0].marks = book.marks.told();
    parts[0].times = book.times.told().flat_map(|(end, at_ms)| [end, at_ms.max(0) as u64]).collect();
    parts[0].dead_letters.get_or_insert_default().from = known_from;
    parts[0].horizon = book.horizon;
    parts[0].frontiers = book.samples.told().flat_map(|(frontier, at_ms)| [frontier, at_ms.max(0) as u64]).collect();
    let count = parts.len() as u32;
    for (number, part) in (0..).zip(&mut parts) {
        (part.position, part.writer, part.part, part.parts) = (position, writer.to_owned(), number, count);
        (part.uncounted, part.came_from, part.broken_from) = (book.uncounted, came_from, broken_from);
    }
    parts
}

/// The parts of a snapshot that is being written.
struct Parts {
    parts: Vec<proto::Snapshot>,
    runs_per_part: usize,
    /// So many runs go into the last one.
    room: usize,
}

impl Parts {
    /// Gives `put` a part and the runs that there is room for in it, as pairs (gap, length), until all are placed. What
    /// is put beside the runs takes the room of so many of them as `weight` says.
    fn place(&mut self, mut runs: &[(u64, u64)], weight: usize, mut put: impl FnMut(&mut proto::Snapshot, Vec<u64>)) {
        while !runs.is_empty() {
            if self.room <= weight {
                self.parts.push(proto::Snapshot::default());
                self.room = self.runs_per_part.max(weight + 1);
            }
            self.room -= weight;
            let (now, later) = runs.split_at(self.room.min(runs.len()));
            (self.room, runs) = (self.room - now.len(), later);
            let ends = std::iter::once(0).chain(now.iter().map(|(_, end)| *end));
            let pairs = now.iter().zip(ends).flat_map(|((first, end), before)| [first - before, end - first]);
            put(self.parts.last_mut().expect("begins with one"), pairs.collect());
        }
    }
}

/// Puts parts together.
#[derive(Debug, Default)]
pub struct Assembly {
    parts: BTreeMap<(i64, String), BTreeMap<u32, proto::Snapshot>>,
}

impl Assembly {
    /// Takes a part; the position and the parts of the snapshot when it is complete (Z1).
    pub fn take(&mut self, part: proto::Snapshot) -> Option<(i64, Vec<proto::Snapshot>)> {
        let id = (part.position, part.writer.clone());
        let count = part.parts;
        let parts = self.parts.entry(id.clone()).or_default();
        parts.insert(part.part, part);
        if parts.len() < count as usize {
            return None;
        }
        let parts = self.parts.remove(&id)?;
        // What is older and not complete never will be, or is of no use.
        self.parts.retain(|(position, _), _| *position > id.0);
        Some((id.0, parts.into_values().collect()))
    }
}

/// The book that a complete snapshot tells (Z2).
pub fn read(parts: &[proto::Snapshot]) -> Book {
    let mut book = Book::default();
    for part in parts {
        book.uncounted |= part.uncounted;
        part.retries.iter().for_each(|retries| book.retries.read(retries));
        for epoch in &part.epochs {
            let known = Epoch { end: epoch.end, is_ordered: epoch.is_ordered };
            book.epochs.insert(u8::try_from(epoch.epoch).unwrap_or(u8::MAX), known);
        }
        for at in &part.source_positions {
            _ = book.marks.begin(at.epoch);
            book.positions.insert((at.topic.clone(), at.partition), at.clone());
        }
        let topics = part.topics.iter();
        book.topic_ids.extend(topics.map(|topic| (topic.topic.clone(), topic.topic_id.clone())));
        // The first has counted: it names no ends.
        for mark in &part.marks {
            book.marks.take(mark);
            book.count_marks();
        }
        for [end, at_ms] in part.times.as_chunks::<2>().0 {
            book.times.note(*end, i64::try_from(*at_ms).unwrap_or(i64::MAX));
        }
        book.horizon = book.horizon.max(part.horizon);
        for [frontier, at_ms] in part.frontiers.as_chunks::<2>().0 {
            book.samples.add(*frontier, i64::try_from(*at_ms).unwrap_or(i64::MAX));
        }
        for counts in &part.counts {
            for (first, length) in expand_runs(&counts.runs) {
                if (counts.generation, counts.retry) == (0, 0) {
                    book.originals.add(first, length, 0, &counts.deltas);
                } else {
                    book.add_other((first, counts.generation, counts.retry), 0, &counts.deltas);
                }
            }
        }
        expand_runs(&part.came_runs).for_each(|(first, length)| book.came.add(first, length));
        book.came.forget_below(part.came_from);
        expand_runs(&part.broken_runs).for_each(|(first, length)| book.broken.add(first, length));
        book.broken.forget_below(part.broken_from);
        if let Some(known) = &part.dead_letters {
            book.dead_letters.forget_below(known.from);
            known.roots.iter().for_each(|letters| book.dead_letters.add(letters));
        }
    }
    book
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::counts::{self, Count, dead_letters};
    use crate::retry::{Letter, Retry};
    use crate::stamp::Stamp;

    /// Of every fourth sequence it is the same dead letter.
    fn retry(epoch: u8, sequence: u64, number: u32, position: i64) -> Retry {
        let letter = Letter { partition: i32::from(epoch), offset: sequence as i64 / 4 };
        let sequence = Stamp::root(epoch % 2, sequence).sequence;
        Retry { letter, nonce: position as u64, forced: position % 2 == 1, sequence, generation: 0, number }
    }

    fn progress(changes: &[(u8, u64, u32, i8)], position: i64, stamp: &str) -> Vec<proto::Progress> {
        let counts = changes.iter().flat_map(|&(epoch, sequence, retry, change)| {
            let stamp = Stamp::root(epoch % 2, sequence);
            let count = match change {
                0 => Count::produced(&stamp, retry),
                1 => Count::consumed(&stamp, retry),
                n => Count::spawned(&stamp, retry, n as usize),
            };
            [count]
        });
        let at = proto::SourcePosition {
            topic: "t".into(),
            position,
            epoch: 1,
            stamp: stamp.into(),
            greatest: Some(position as u64),
            mark: Some(position as u64 / 2),
            ..Default::default()
        };
        // One mark that counts, and one that waits.
        let mark = |part: i64| {
            let end = proto::End { topic: "t".into(), partition: 0, end: position + part };
            proto::Mark { epoch: 1, sequence: (position / 2 + part) as u64, ends: vec![end] }
        };
        let dead = changes.iter().filter(|(.., change)| *change > 1);
        let dead = dead.map(|&(epoch, sequence, retry, _)| dead_letters::one(&Stamp::root(epoch % 2, sequence), retry));
        let retried = changes.iter().filter(|(.., retry, change)| *retry > 0 && *change == 0);
        let retries = retried.map(|&(epoch, sequence, number, _)| retry(epoch, sequence, number, position));
        let told = proto::Progress {
            source_positions: vec![at],
            marks: vec![mark(0), mark(4)],
            dead_letters: dead.collect(),
            retries: retries.map(|it| (&it).into()).collect(),
            ..Default::default()
        };
        counts::records(counts.collect(), told)
    }

    /// Records that tell that roots are settled one by one, and announcements of horizons, one each 400 ms.
    fn horizons(told: &[(u64, Option<u64>)]) -> Vec<(proto::Progress, i64)> {
        let mut end = 0;
        let tell = |(place, (more, horizon)): (usize, &(u64, Option<u64>))| {
            end += more;
            let at = proto::SourcePosition { topic: "t".into(), position: end as i64, epoch: 1, ..Default::default() };
            let horizon = horizon.map(|horizon| (1 << 56) | horizon);
            let progress = proto::Progress { source_positions: vec![at], horizon, ..Default::default() };
            (progress, place as i64 * 400)
        };
        told.iter().enumerate().map(tell).collect()
    }

    proptest! {
        #[test]
        fn a_snapshot_and_the_rest_are_the_whole(
            before in prop::collection::vec((0u8..2, 0u64..30, 0u32..3, 0i8..4), 0..40),
            after in prop::collection::vec((0u8..2, 0u64..30, 0u32..3, 0i8..4), 0..40),
            is_header: bool,
            runs_per_part in 1usize..9,
        ) {
            let stamp = if is_header { "header" } else { "offset" };
            let mut whole = Book::default();
            progress(&before, 20, stamp).iter().for_each(|record| whole.take(record, 5000));
            let parts = write(&whole, 7, "me", runs_per_part);
            let mut assembly = Assembly::default();
            let complete: Vec<_> = parts.into_iter().rev().filter_map(|part| assembly.take(part)).collect();
            prop_assert_eq!(complete.len(), 1);
            prop_assert_eq!(complete[0].0, 7);
            let mut rest = read(&complete[0].1);
            for _ in 0..2 {
                prop_assert_eq!(rest.standing(), whole.standing());
                for epoch in 0..2u64 {
                    for sequence in 0..40u64 {
                        prop_assert_eq!(rest.root((epoch << 56) | sequence), whole.root((epoch << 56) | sequence));
                    }
                }
                prop_assert_eq!(rest.with_dead_letters(&[(0, 40), (1 << 56, u64::MAX)]), whole.with_dead_letters(&[(0, 40), (1 << 56, u64::MAX)]));
                prop_assert_eq!(rest.position("t", 0, ""), whole.position("t", 0, ""));
                for &(epoch, sequence, number, _) in before.iter().chain(&after) {
                    for position in [20, 25] {
                        let retry = retry(epoch, sequence, number, position);
                        prop_assert_eq!(rest.verdict(&retry), whole.verdict(&retry));
                        prop_assert_eq!(rest.is_retried(retry.letter), whole.is_retried(retry.letter));
                    }
                }
                prop_assert_eq!(rest.marks(), whole.marks());
                for sequence in 0..40u64 {
                    prop_assert_eq!(rest.known((1 << 56) | sequence), whole.known((1 << 56) | sequence));
                }
                for record in progress(&after, 25, stamp) {
                    whole.take(&record, 9000);
                    rest.take(&record, 9000);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_snapshot_knows_the_horizon_and_what_the_frontier_was(
            told in prop::collection::vec((0u64..4, prop::option::of(0u64..60)), 0..60),
            cut in 0usize..60,
            open in prop::option::of(0u64..40),
        ) {
            let mut whole = Book::default();
            let retry = open.map(|root| Count::produced(&Stamp::root(1, root), 1));
            counts::records(retry.into_iter().collect(), Default::default()).iter().for_each(|record| whole.take(record, 0));
            let records = horizons(&told);
            let (before, after) = records.split_at(cut.min(records.len()));
            before.iter().for_each(|(record, at_ms)| whole.take(record, *at_ms));
            let mut rest = read(&write(&whole, 7, "me", RUNS_PER_PART));
            for (record, at_ms) in [(&proto::Progress::default(), 0)].into_iter().chain(after.iter().map(|(r, at)| (r, *at))) {
                whole.take(record, at_ms);
                rest.take(record, at_ms);
                prop_assert_eq!(rest.standing(), whole.standing());
                prop_assert_eq!(rest.samples.told().collect::<Vec<_>>(), whole.samples.told().collect::<Vec<_>>());
                for now in (0..40_000).step_by(900) {
                    let due = |book: &Book| book.horizon_due(now, std::time::Duration::from_secs(3));
                    prop_assert_eq!(due(&rest), due(&whole));
                    let holds = due(&whole).is_none_or(|due| Some(due) <= whole.standing().frontier);
                    prop_assert!(holds && open.is_none_or(|open| due(&whole) < Some((1 << 56) | open)), "V1, V2");
                }
                prop_assert!(open.is_none_or(|open| whole.horizon() < Some((1 << 56) | open)), "V2");
            }
        }
    }

    #[test]
    fn a_large_one_has_parts_of_which_none_counts_alone() {
        let mut whole = Book::default();
        // Beside the runs stands what is pending of them, once in each part.
        let roots = (30_000u64 - 2) * 2;
        for sequence in 0..roots {
            whole.originals.add(sequence * 2, 1, 0, &[1]);
        }
        let parts = write(&whole, 9, "me", 30_000);
        assert_eq!(parts.len(), 2);
        let mut assembly = Assembly::default();
        assert!(assembly.take(parts[1].clone()).is_none());
        assert!(assembly.take(parts[1].clone()).is_none());
        assert!(assembly.take(proto::Snapshot { writer: "another".into(), ..parts[0].clone() }).is_none());
        let (_, complete) = assembly.take(parts[0].clone()).unwrap();
        let read = read(&complete);
        assert_eq!((read.standing().unsettled, read.standing().oldest_unsettled), (roots, Some(0)));
    }
}
