//! `<app>-progress` as far as it was read.
//!
//! F1: the frontier is never above what is settled and never goes back: below the next sequence that can come, the
//!     first root with anything pending holds it.
//!     Under `header` the next sequence that can come is the one behind the mark that has counted ([`crate::marks`]).
//! F2: what an application did without counting (`at_least_once`) makes every later claim void.

use std::collections::BTreeMap;
use std::time::Duration;

use super::came::last_below;
use super::cascades::{self, Cascades, Pending};
use super::dead_letters::DeadLetters;
use super::horizon::{self, Samples};
use super::retries::{Retries, Verdict};
use super::runs::Runs;
use super::times::Times;
use crate::config::StampSource;
use crate::counts::expand_runs;
use crate::marks::Marks;
use crate::planted::{self, Bug};
use crate::proto;
use crate::retry::{Letter, Retry};

/// The bits of a sequence below its epoch.
pub(super) const EPOCH_SHIFT: u32 = 56;

/// Why nothing can be said of what is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The application runs, or has run, with `processing.guarantee = "at_least_once"`: nothing is counted.
    NeedsExactlyOnce,
    /// With `source.stamp = "header"` it is not known which sequences can still come: no mark has counted.
    NeedsMark,
}

impl Unavailable {
    /// As the doors show it.
    pub fn as_str(self) -> &'static str {
        match self {
            Unavailable::NeedsExactlyOnce => "needs_exactly_once",
            Unavailable::NeedsMark => "needs_mark",
        }
    }
}

/// How far the application is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The greatest sequence such that it and all below it are settled.
    pub frontier: Option<u64>,
    /// The greatest sequence received.
    pub received: Option<u64>,
    /// Roots received and not settled.
    pub unsettled: u64,
    /// The least sequence of those.
    pub oldest_unsettled: Option<u64>,
    /// When that one was received, in milliseconds since 1970; late by at most some seconds.
    pub oldest_since_ms: Option<i64>,
    /// Why the frontier is not known.
    pub unavailable: Option<Unavailable>,
    /// How many entries all that is known takes: memory grows with them.
    pub entries: usize,
    /// The sequence up to which REMOVE markers are deleted.
    pub horizon: Option<u64>,
}

/// What is known of one root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Root {
    /// Whether its whole cascade is done; `None` where that cannot be known.
    pub settled: Option<bool>,
    /// Pending events, by depth, of the original cascade.
    pub pending: BTreeMap<u8, i32>,
    /// What is pending of the retries of its dead letters, by number, each a cascade of its own; nothing of those that
    /// are settled.
    pub retries: BTreeMap<u32, BTreeMap<u8, i32>>,
    /// Events that became dead letters, where some did, by retry; 0 is the original cascade. `None` where that is not
    /// known.
    pub dead_letters: Option<BTreeMap<u32, u32>>,
}

/// The fold over `<app>-progress`.
#[derive(Debug, Default)]
pub struct Book {
    /// The cascades of generation 0 as they were spawned first.
    pub(super) originals: Cascades,
    /// Retries and replays, by (sequence, generation, retry).
    pub(super) others: BTreeMap<(u64, u32, u32), Pending>,
    /// What became a dead letter.
    pub(super) dead_letters: DeadLetters,
    /// By epoch: the sequence behind the greatest that was received, and where its sequences are from.
    pub(super) epochs: BTreeMap<u8, Epoch>,
    /// With `header`: the sequences that came, as runs. Where they come in order they are all those below the end.
    pub(super) came: Runs,
    /// With `header`: those of them that came as records that are no events, before any event with their sequence.
    pub(super) broken: Runs,
    /// The last word about each source partition.
    pub(super) positions: BTreeMap<(String, i32), proto::SourcePosition>,
    /// The ids of the application's own topics, by name.
    pub(super) topic_ids: BTreeMap<String, String>,
    /// With `header`: what can no longer come.
    pub(super) marks: Marks,
    /// Since when sequences up to here were known, in milliseconds since 1970.
    pub(super) times: Times,
    /// The horizon that was announced last and is not void.
    pub(super) horizon: Option<u64>,
    /// What the frontier was.
    pub(super) samples: Samples,
    pub(super) uncounted: bool,
    /// The retries of dead letters.
    pub(super) retries: Retries,
}

/// What was received under one `source.epoch`.
#[derive(Debug, Default)]
pub(super) struct Epoch {
    /// The sequence behind the greatest received, with the epoch.
    pub(super) end: u64,
    /// Nothing below `end` can come any more.
    pub(super) is_ordered: bool,
}

impl Book {
    /// Takes the next record, which was written at `at_ms` (milliseconds since 1970).
    pub fn take(&mut self, progress: &proto::Progress, at_ms: i64) {
        self.uncounted |= progress.uncounted;
        for counts in &progress.counts {
            let depth = u8::try_from(counts.first_depth).unwrap_or(u8::MAX);
            for (first, length) in expand_runs(&counts.runs) {
                if (counts.generation, counts.retry) == (0, 0) {
                    if depth == 0 && counts.deltas.first().is_some_and(|delta| *delta > 0) {
                        self.came.add(first, length);
                    }
                    self.originals.add(first, length, depth, &counts.deltas);
                } else {
                    self.add_others(first, length, counts, depth);
                }
            }
        }
        for letters in &progress.dead_letters {
            // A source record that is no event has come, too.
            if (letters.generation, letters.retry) == (0, 0) {
                expand_runs(&letters.runs).for_each(|(first, length)| self.refused(first, length));
            }
            self.dead_letters.add(letters);
        }
        progress.source_positions.iter().for_each(|at| self.received(at, at_ms));
        progress.marks.iter().for_each(|mark| self.marks.take(mark));
        self.count_marks();
        let topics = progress.topics.iter();
        self.topic_ids.extend(topics.map(|topic| (topic.topic.clone(), topic.topic_id.clone())));
        self.times.forget_below(self.originals.first());
        if self.epochs.last_key_value().is_some_and(|(_, epoch)| epoch.is_ordered) {
            (self.came, self.broken) = (Runs::default(), Runs::default());
        }
        self.horizon = horizon::after(self.horizon, progress.horizon, self.horizon_limit());
        self.retries.take(&progress.retries, self.horizon, &self.others);
        self.samples.note(self.frontier_known(), self.horizon, at_ms);
    }

    fn add_others(&mut self, first: u64, length: u64, counts: &proto::Counts, depth: u8) {
        for sequence in first..first.saturating_add(length) {
            self.add_other((sequence, counts.generation, counts.retry), depth, &counts.deltas);
        }
    }

    pub(super) fn add_other(&mut self, id: (u64, u32, u32), first_depth: u8, deltas: &[i64]) {
        let pending = self.others.entry(id).or_default();
        cascades::add(pending, first_depth, deltas);
        if pending.is_empty() {
            self.others.remove(&id);
        }
    }

    fn received(&mut self, at: &proto::SourcePosition, at_ms: i64) {
        let Ok(number) = u8::try_from(at.epoch) else { return };
        let stamp = [StampSource::Header, StampSource::Arrival].into_iter().find(|stamp| stamp.as_str() == at.stamp);
        let stamp = stamp.unwrap_or(StampSource::Offset);
        let end = match stamp {
            StampSource::Offset => u64::try_from(at.position).unwrap_or(0),
            StampSource::Header | StampSource::Arrival => at.greatest.map_or(0, |greatest| greatest.saturating_add(1)),
        };
        let epoch = self.epochs.entry(number).or_default();
        epoch.end = epoch.end.max((u64::from(number) << EPOCH_SHIFT).saturating_add(end));
        epoch.is_ordered = stamp != StampSource::Header;
        self.times.note(epoch.end, at_ms);
        if let Some((number, counted)) = self.marks.begin(at.epoch) {
            let end = ((u64::from(number) << EPOCH_SHIFT) | counted).saturating_add(1);
            self.epochs.entry(number).and_modify(|epoch| epoch.end = epoch.end.max(end));
        }
        self.positions.insert((at.topic.clone(), at.partition), at.clone());
    }

    /// How far the application is.
    pub fn standing(&self) -> Standing {
        let received = self.received_last();
        let unsettled = self.originals.roots();
        if self.uncounted {
            let unavailable = Some(Unavailable::NeedsExactlyOnce);
            return Standing { received, unavailable, horizon: self.horizon, ..Standing::default() };
        }
        let oldest_unsettled = self.originals.first();
        let oldest_since_ms = oldest_unsettled.and_then(|oldest| self.times.of(oldest));
        let (entries, horizon) = (self.entries(), self.horizon);
        let frontier = self.frontier();
        let is_open = self.epochs.last_key_value().is_some_and(|(number, _)| self.marked(*number).is_none());
        let unavailable = (is_open && frontier.is_none()).then_some(Unavailable::NeedsMark);
        Standing { frontier, received, unsettled, oldest_unsettled, oldest_since_ms, unavailable, entries, horizon }
    }

    /// F1. What lies between the end of an epoch and the next epoch is not waited for.
    fn frontier(&self) -> Option<u64> {
        let (highest, _) = self.epochs.last_key_value()?;
        let end = self.marked(*highest).unwrap_or(u64::from(*highest) << EPOCH_SHIFT);
        let limit = self.originals.first().map_or(end, |first| first.min(end));
        let number = (limit >> EPOCH_SHIFT) as u8;
        let below = || self.epochs.range(..number).rev().find_map(|(number, epoch)| last_below(*number, epoch.end));
        last_below(number, limit).or_else(below)
    }

    /// The frontier, where it can be told.
    fn frontier_known(&self) -> Option<u64> {
        if planted::is(Bug::HorizonUnsettled) {
            return self.standing().received;
        }
        if self.uncounted { None } else { self.frontier() }
    }

    /// The greatest horizon that is not void here.
    fn horizon_limit(&self) -> Option<u64> {
        let oldest_open = self.others.first_key_value().map(|((sequence, ..), _)| *sequence);
        horizon::limit(self.frontier_known(), oldest_open.filter(|_| !planted::is(Bug::RetriesPassed)))
    }

    /// The horizon: REMOVE markers at or below it are deleted. `None` = none is.
    pub fn horizon(&self) -> Option<u64> {
        self.horizon
    }

    /// The horizon to announce at `now_ms` (milliseconds since 1970), where it is above the last one: the frontier as it
    /// was `retention` ago.
    pub fn horizon_due(&self, now_ms: i64, retention: Duration) -> Option<u64> {
        let frontier = match i64::try_from(retention.as_millis()).unwrap_or(i64::MAX) {
            0 => self.frontier_known(),
            retention => self.samples.as_of(now_ms.saturating_sub(retention)),
        };
        frontier.min(self.horizon_limit()).filter(|due| Some(*due) > self.horizon)
    }

    /// What is known of a root; `None` when it was never received.
    pub fn root(&self, sequence: u64) -> Option<Root> {
        let received = self.is_received(sequence);
        if received == Some(false) {
            return None;
        }
        let pending = by_depth(self.originals.pending(sequence));
        let settled = if pending.is_empty() { received } else { Some(false) }.filter(|_| !self.uncounted);
        let mut retries: BTreeMap<_, _> =
            self.retries.of(sequence, 0).map(|retry| (retry.number, BTreeMap::new())).collect();
        let open = self.others.range((sequence, 0, 1)..=(sequence, 0, u32::MAX));
        retries.extend(open.map(|((_, _, retry), pending)| (*retry, by_depth(pending))));
        let dead_letters = self.dead_letters.of(sequence).filter(|_| !self.uncounted);
        Some(Root { settled, pending, retries, dead_letters })
    }

    /// Of these sequences, first and last each, those whose original cascades have dead letters, and how many; `None`
    /// where that is not known of all of them.
    pub fn with_dead_letters(&self, ranges: &[(u64, u64)]) -> Option<Vec<(u64, u32)>> {
        if self.uncounted {
            return None;
        }
        let within = ranges.iter().map(|&(first, last)| self.dead_letters.within(first, last));
        within.collect::<Option<Vec<_>>>().map(|found| found.concat())
    }

    fn entries(&self) -> usize {
        self.originals.runs() + self.others.len() + self.came.len() + self.broken.len() + self.dead_letters.len()
    }

    /// What becomes of a retry; `None` = its open record was not read yet.
    pub fn verdict(&self, retry: &Retry) -> Option<Verdict> {
        self.retries.verdict(retry)
    }

    /// Whether a dead letter was sent again, with its original stamp or as a new event.
    pub fn is_retried(&self, letter: Letter) -> bool {
        self.retries.holds(letter)
    }

    /// Whether a dead letter was sent again with its original stamp.
    pub fn is_retried_in_place(&self, letter: Letter) -> bool {
        self.retries.is_retried(letter)
    }

    /// How many retries of dead letters were told in what was read since the last snapshot.
    pub fn retries_told(&self) -> u64 {
        self.retries.told()
    }

    /// Whether a retry of a dead letter is not settled.
    pub fn has_open_retries(&self) -> bool {
        self.others.keys().any(|(_, _, retry)| *retry > 0)
    }

    /// The retries of dead letters of this sequence and generation that count, in the order of their numbers, as far as
    /// the horizon has not passed them.
    pub fn retries(&self, sequence: u64, generation: u32) -> impl DoubleEndedIterator<Item = &Retry> {
        self.retries.of(sequence, generation)
    }

    /// Whether the cascade of a root is settled, its retries included: one that was not received as far as this was
    /// read is not. `None` where that cannot be known.
    pub fn is_settled(&self, sequence: u64, generation: u32) -> Option<bool> {
        let mut others = self.others.range((sequence, generation, 0)..=(sequence, generation, u32::MAX));
        let is_pending = others.next().is_some() || (generation == 0 && !self.originals.pending(sequence).is_empty());
        let received = match generation {
            _ if planted::is(Bug::UnreadSettled) => Some(true),
            0 => self.is_received(sequence),
            // Whether a replay was read is not kept: one of which nothing is pending may not have been.
            _ => None,
        };
        if is_pending { Some(false) } else { received }.filter(|_| !self.uncounted)
    }

    /// The next offset to be read of a source partition, of the topic with this id: of one that was deleted since and
    /// created anew its positions say nothing. An empty id is any.
    pub fn position(&self, topic: &str, partition: i32, topic_id: &str) -> i64 {
        let is_same =
            |at: &&proto::SourcePosition| at.topic_id == topic_id || at.topic_id.is_empty() || topic_id.is_empty();
        self.positions.get(&(topic.to_owned(), partition)).filter(is_same).map_or(0, |at| at.position)
    }

    /// Whether everything of these sequences, first and last each, was received and is settled. The first that is
    /// not, if there is one: the very first where nothing is counted.
    pub fn first_unsettled(&self, ranges: &[(u64, u64)]) -> Option<u64> {
        if self.uncounted {
            return ranges.first().map(|(first, _)| *first);
        }
        ranges.iter().find_map(|&(first, last)| {
            let missing = self.first_missing(first, last);
            self.originals.first_within(first, last).into_iter().chain(missing).min()
        })
    }
}

fn by_depth(pending: &[i32]) -> BTreeMap<u8, i32> {
    (0u8..=u8::MAX).zip(pending).filter(|(_, number)| **number != 0).map(|(depth, number)| (depth, *number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::{self, Count};
    use crate::stamp::Stamp;

    fn at(position: i64, epoch: u32) -> proto::SourcePosition {
        proto::SourcePosition { topic: "t".into(), position, epoch, stamp: "offset".into(), ..Default::default() }
    }

    fn take(book: &mut Book, counts: Vec<Count>, at: Option<proto::SourcePosition>) {
        let told = proto::Progress { source_positions: at.into_iter().collect(), ..Default::default() };
        counts::records(counts, told).iter().for_each(|record| book.take(record, 1));
    }

    fn root(epoch: u8, sequence: u64) -> Stamp {
        Stamp::root(epoch, sequence)
    }

    #[test]
    fn the_first_root_with_anything_pending_holds_the_frontier() {
        let mut book = Book::default();
        assert_eq!(book.standing(), Standing::default());
        take(&mut book, (0..10).map(|n| Count::produced(&root(0, n), 0)).collect(), Some(at(12, 0)));
        let standing = book.standing();
        assert_eq!((standing.frontier, standing.received, standing.unsettled), (None, Some(11), 10));
        // 4 spawns two children and is done; so are all others.
        take(&mut book, vec![Count::spawned(&root(0, 4), 0, 2)], None);
        take(&mut book, (0..10).map(|n| Count::consumed(&root(0, n), 0)).collect(), None);
        let standing = book.standing();
        assert_eq!((standing.frontier, standing.oldest_unsettled, standing.unsettled), (Some(3), Some(4), 1));
        assert_eq!(
            book.root(4).unwrap(),
            Root { settled: Some(false), pending: [(1, 2)].into(), dead_letters: Some([].into()), ..Root::default() }
        );
        assert_eq!(book.root(5).unwrap().settled, Some(true));
        assert_eq!(book.root(12), None);
        assert_eq!(book.first_unsettled(&[(0, 3), (5, 9)]), None);
        assert_eq!(book.first_unsettled(&[(0, 3), (3, 9)]), Some(4));
        assert_eq!(book.first_unsettled(&[(8, 20)]), Some(12));
        let child = root(0, 4).child(0);
        take(&mut book, vec![Count::consumed(&child, 0), Count::consumed(&child, 0)], None);
        assert_eq!(book.standing().frontier, Some(11), "offsets that never were are not waited for");
    }

    #[test]
    fn a_higher_epoch_goes_on_once_the_lower_one_is_settled() {
        let mut book = Book::default();
        take(&mut book, vec![Count::produced(&root(0, 7), 0)], Some(at(8, 0)));
        take(&mut book, Vec::new(), Some(at(0, 1)));
        assert_eq!((book.standing().frontier, book.standing().received), (Some(6), Some(7)));
        take(&mut book, vec![Count::consumed(&root(0, 7), 0)], None);
        assert_eq!(book.standing().frontier, Some(7), "nothing of epoch 1 was received");
        take(&mut book, vec![Count::produced(&root(1, 0), 0)], Some(at(1, 1)));
        assert_eq!((book.standing().frontier, book.standing().received), (Some(7), Some(1 << 56)));
        take(&mut book, vec![Count::consumed(&root(1, 0), 0)], None);
        assert_eq!(book.standing().frontier, Some(1 << 56));
    }

    #[test]
    fn what_was_not_read_yet_is_not_settled() {
        let mut book = Book::default();
        assert_eq!(book.is_settled(0, 0), Some(false), "its key may hold it, and its children be pending");
        take(&mut book, vec![Count::produced(&root(0, 0), 0), Count::consumed(&root(0, 0), 0)], Some(at(1, 0)));
        assert_eq!((book.is_settled(0, 0), book.is_settled(1, 0)), (Some(true), Some(false)));
    }

    #[test]
    fn a_mark_that_has_counted_stays_through_a_change_of_epochs() {
        let mut book = Book::default();
        let header =
            |epoch, mark| proto::SourcePosition { stamp: "header".into(), greatest: Some(7), mark, ..at(8, epoch) };
        let mark = proto::Mark { epoch: 0, sequence: 20, ends: Vec::new() };
        book.take(&proto::Progress { marks: vec![mark], ..Default::default() }, 1);
        take(&mut book, vec![Count::produced(&root(0, 7), 0)], Some(header(0, Some(20))));
        assert_eq!((book.standing().frontier, book.first_unsettled(&[(8, 30)])), (Some(6), Some(21)));
        take(&mut book, vec![Count::consumed(&root(0, 7), 0)], None);
        assert_eq!((book.standing().frontier, book.standing().received), (Some(20), Some(7)));
        take(&mut book, vec![Count::produced(&root(1, 7), 0)], Some(header(1, None)));
        assert_eq!((book.standing().frontier, book.standing().unavailable), (Some(20), None));
        assert_eq!(book.first_unsettled(&[(0, 20)]), None, "what never came is not waited for");
    }

    #[test]
    fn what_came_and_was_no_event_is_nothing_that_a_copy_could_be_of() {
        let mut book = Book::default();
        let told = proto::Progress {
            dead_letters: [3, 5].map(|n| counts::dead_letters::one(&root(0, n), 0)).into(),
            source_positions: vec![proto::SourcePosition { stamp: "header".into(), greatest: Some(5), ..at(9, 0) }],
            ..Default::default()
        };
        counts::records(vec![Count::produced(&root(0, 4), 0), Count::produced(&root(0, 5), 0)], told)
            .iter()
            .for_each(|record| book.take(record, 1));
        assert_eq!(book.first_unsettled(&[(3, 3)]), None, "it was received, and nothing comes of it");
        assert!(book.known(4).unwrap().has(4) && book.known(5).unwrap().has(5));
        assert_eq!(book.known(3), None, "it may still be sent once more, sound");
        let mark = proto::Mark { epoch: 0, sequence: 5, ends: Vec::new() };
        book.take(&proto::Progress { marks: vec![mark], ..Default::default() }, 1);
        let known = book.known(2).unwrap();
        assert_eq!([2, 3, 4, 5].map(|n| known.has(n)), [false, false, true, true]);
        assert!(!book.known(3).unwrap().has(3), "now it is too late, and told so");
    }

    #[test]
    fn retries_are_cascades_of_their_own() {
        let mut book = Book::default();
        take(&mut book, vec![Count::produced(&root(0, 0), 0), Count::consumed(&root(0, 0), 0)], Some(at(1, 0)));
        take(&mut book, vec![Count::produced(&root(0, 0), 1)], None);
        assert_eq!(book.standing().frontier, Some(0));
        assert_eq!(book.root(0).unwrap().retries, [(1, [(0, 1)].into())].into());
        take(&mut book, vec![Count::consumed(&root(0, 0), 1)], None);
        assert_eq!(book.root(0).unwrap().retries, [].into());
    }

    #[test]
    fn a_settled_root_tells_its_dead_letters() {
        let mut book = Book::default();
        let dead = |n: u64, retry| counts::dead_letters::one(&root(0, n), retry);
        let mut fail = |counts, dead_letters| {
            let told = proto::Progress { dead_letters, source_positions: vec![at(9, 0)], ..Default::default() };
            counts::records(counts, told).iter().for_each(|record| book.take(record, 1));
        };
        fail((1..4).map(|n| Count::produced(&root(0, n), 0)).collect(), vec![dead(0, 0)]);
        fail((1..4).map(|n| Count::consumed(&root(0, n), 0)).collect(), vec![dead(2, 0), dead(2, 0), dead(3, 1)]);
        assert_eq!(book.standing().frontier, Some(8), "what failed is done");
        let told = |n| book.root(n).unwrap().dead_letters.unwrap();
        assert_eq!(
            (told(0), told(1), told(2), told(3)),
            ([(0, 1)].into(), [].into(), [(0, 2)].into(), [(1, 1)].into())
        );
        assert_eq!(book.with_dead_letters(&[(0, 1), (2, 8)]), Some(vec![(0, 1), (2, 2)]), "retries are on their own");
        assert_eq!(book.with_dead_letters(&[(1, 1), (3, 8)]), Some(vec![]));
    }

    #[test]
    fn what_cannot_be_known_is_not_guessed() {
        let mut book = Book::default();
        let header = proto::SourcePosition { stamp: "header".into(), greatest: Some(9), ..at(4, 0) };
        take(&mut book, vec![Count::produced(&root(0, 9), 0)], Some(header));
        let standing = book.standing();
        assert_eq!((standing.frontier, standing.unavailable), (None, Some(Unavailable::NeedsMark)));
        assert_eq!((book.root(9).unwrap().settled, book.root(8)), (Some(false), None));
        assert_eq!(book.all(), [(9, 9)], "nobody waits for what may never come");
        assert_eq!((book.first_unsettled(&[(8, 9)]), book.first_unsettled(&[(9, 9)])), (Some(8), Some(9)));
        take(&mut book, vec![Count::consumed(&root(0, 9), 0)], None);
        assert_eq!((book.root(9).unwrap().settled, book.first_unsettled(&[(9, 9)])), (Some(true), None));
        book.take(&proto::Progress { uncounted: true, ..Default::default() }, 1);
        assert_eq!(book.standing().unavailable, Some(Unavailable::NeedsExactlyOnce));
        assert_eq!((book.root(9).unwrap().settled, book.is_settled(9, 0)), (None, None));
        assert_eq!(book.first_unsettled(&[(9, 9)]), Some(9), "who waits for it is not told that it is settled");
    }
}
