//! What is made of marks: an engine hears of them from the observer of its instance.

use std::collections::BTreeSet;
use std::time::Duration;

use tidegate::cause::Cause;
use tidegate::clock;
use tidegate::config::{Guarantee, StampSource};
use tidegate::counts::expand_runs;
use tidegate::frontier::Book;
use tidegate::instance::engine::{Input, Rest};
use tidegate::log::{Isolation, Log, TopicPartition};
use tidegate::marks::Known;
use tidegate::progress::{self, Told};

use super::checks::{partitions, progress_records, read, settled};
use super::node::Node;
use super::observing::is_snapshot;
use super::sometimes::{self, reached};
use super::timeline::note;
use super::world::World;

impl Node {
    /// Its observer has read progress up to here. One that has begun anew tells what is known already.
    pub fn learn(&mut self, known: Known) {
        if known.position >= self.known {
            self.known = known.position;
            self.step(Input::Known(known), clock::now());
            self.last_turn = None;
        }
    }

    /// Its observer begins with nothing, as if it were that of another instance.
    pub fn observes_anew(&mut self, seed: u64) {
        self.observing = self.observing.anew(seed);
        self.judge.observer = self.observing.observer();
    }

    /// What is found out about an excluded record.
    pub fn find(&mut self) {
        let Some((excluded, epoch)) = self.excluded.pop_front() else { return };
        if !self.engine.opening_epochs().contains(&epoch) {
            return;
        }
        match self.judge.find(&excluded) {
            Some(finding) => {
                note(format!("{} finds out about {excluded:?}: {finding:?}", self.name));
                self.opened.push_back(Input::Found(excluded, epoch, finding));
            }
            None => self.excluded.push_back((excluded, epoch)),
        }
    }

    /// Whether nothing but ends of transactions stands there.
    pub fn look_at(&mut self, rest: Rest) {
        let mut reader = self.judge.log.reader(&rest.of, rest.from, Isolation::ReadCommitted, false).unwrap();
        if reader.next(Duration::ZERO).unwrap().is_empty() && reader.position() >= rest.to {
            reached(sometimes::REST);
            self.opened.push_back(Input::Passed(rest));
        }
    }
}

/// Whether engines wait for what is told of marks.
pub fn takes_marks(world: &World) -> bool {
    let config = &world.plan.config;
    (config.source.stamp, config.processing.guarantee) == (StampSource::Header, Guarantee::ExactlyOnce)
}

/// Whether every observer has read all of progress but for snapshots, and no mark waits. Who has not looks once more.
pub fn is_done(world: &mut World) -> bool {
    if !takes_marks(world) {
        return true;
    }
    let of = TopicPartition::new(&world.plan.topics.progress, 0);
    let mut all = true;
    for place in 0..world.nodes.len() {
        let (position, log) = (world.nodes[place].observing.position(), &world.log().inner);
        let is_deleted = position < log.watermarks(&of).unwrap().low;
        if is_deleted || read(log, &of, position).iter().any(|record| !is_snapshot(&record.headers)) {
            settled::one_look(world, place);
            all = false;
        }
    }
    let waits = |node: &Node| {
        let book = node.observing.book();
        book.marks().counted(0) < world.workload.marked().max(book.marks().greatest(0))
    };
    all && !world.nodes.iter().any(waits)
}

/// The source records that came too late, by partition and offset.
pub fn late(world: &World) -> BTreeSet<(i32, i64)> {
    let mut late = BTreeSet::new();
    for of in partitions(world, &world.plan.topics.dead_letter) {
        for record in read(&world.log().inner, &of, 0) {
            let header = |name: &str| {
                let value = record.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_vec());
                value.map(|value| String::from_utf8(value).unwrap()).unwrap_or_default()
            };
            if header("tidegate_cause") == Cause::TooLate.as_str() {
                reached(sometimes::TOO_LATE);
                let number = |name: &str| header(name).parse::<i64>().unwrap();
                late.insert((number("__streams.errors.partition") as i32, number("__streams.errors.offset")));
            }
        }
    }
    late
}

/// F1: what some prefix of progress tells as final does not change behind it, and in the end every mark has counted.
/// V2: no position acknowledges a mark that was not told before.
pub fn check(world: &World) {
    if !takes_marks(world) {
        return;
    }
    let of = TopicPartition::new(&world.plan.topics.progress, 0);
    let (mut book, mut last) = (Book::default(), None);
    for record in progress_records(world) {
        let offset = record.offset;
        let Told::Counts(progress) = progress::read(&of, record).unwrap() else { continue };
        for counts in progress.counts.iter().filter(|counts| (counts.generation, counts.retry) == (0, 0)) {
            let first = expand_runs(&counts.runs).next().map(|(first, _)| first);
            assert!(first > last, "F1: at {offset} of progress {first:?} is pending or done, and {last:?} was final");
        }
        let told = book.marks().greatest(0);
        let acknowledged = progress.source_positions.iter().filter_map(|at| at.mark).max();
        assert!(
            acknowledged <= told,
            "V2: at {offset} of progress {acknowledged:?} is acknowledged, told was {told:?}"
        );
        book.take(&progress, 0);
        let frontier = book.standing().frontier;
        assert!(frontier >= last, "W1: the frontier goes back at {offset} of progress from {last:?} to {frontier:?}");
        last = frontier;
    }
    if world.workload.max_disorder.is_some() {
        reached(sometimes::DISORDER);
    }
    assert_eq!(last, book.marks().greatest(0), "every mark counts in the end, and everything is settled");
    if last.is_some() {
        reached(sometimes::MARKED);
    }
}
