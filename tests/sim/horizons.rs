//! What engines hear of the horizon, and who announces it.
//!
//! Each engine reads `<app>-progress` by itself, in portions, and some announce: also late, also twice, also from one that
//! owns nothing (W4). Where no dead letters are retried some retry is open for a while now
//! and then. All of it is drawn from numbers of its own.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use tidegate::clock;
use tidegate::counts::{self, Count};
use tidegate::event::Action;
use tidegate::frontier::Book;
use tidegate::instance::engine::Input;
use tidegate::log::{Append, Isolation, Log, TopicPartition};
use tidegate::progress::{self, Told, counts_record};
use tidegate::proto;
use tidegate::stamp::Stamp;

use super::checks;
use super::sometimes::{self, reached};
use super::timeline::note;
use super::world::World;

/// Of an engine.
#[derive(Debug, Default)]
pub struct Watch {
    book: Book,
    position: i64,
}

/// Of a seed.
#[derive(Debug)]
pub struct Horizons {
    rng: Rng,
    /// `state.marker_retention`
    retention: Duration,
    /// Between two steps somebody looks, once in so many times.
    seldom: u32,
    /// Announcements on their way.
    late: Vec<u64>,
    /// Retries that are open: the sequence and the number.
    open: Vec<(u64, u32)>,
    retries: u32,
    /// The greatest horizon that was ever valid.
    pub greatest: Option<u64>,
    model: Model,
}

/// What the rules say of announcements, in few words (V1, V2).
#[derive(Debug, Default)]
pub struct Model {
    position: i64,
    open: BTreeMap<(u64, u32), i64>,
    /// From which position on which horizon is valid.
    valid: BTreeMap<i64, u64>,
}

impl Model {
    /// Takes the next record.
    pub fn take(&mut self, offset: i64, progress: &proto::Progress) {
        for counts in progress.counts.iter().filter(|counts| counts.retry > 0) {
            for (first, length) in counts::expand_runs(&counts.runs) {
                for root in first..first + length {
                    *self.open.entry((root, counts.retry)).or_default() += counts.deltas.iter().sum::<i64>();
                }
            }
        }
        self.open.retain(|_, pending| *pending != 0);
        let Some(announced) = progress.horizon else { return };
        let is_open = self.open.keys().any(|(root, _)| *root <= announced);
        if is_open {
            reached(sometimes::HORIZON_VOID);
        } else if self.at(offset) < Some(announced) {
            self.valid.insert(offset + 1, announced);
        }
    }

    /// The horizon that everything below a position leads to.
    pub fn at(&self, position: i64) -> Option<u64> {
        self.valid.range(..=position).next_back().map(|(_, horizon)| *horizon)
    }
}

impl Horizons {
    /// What `rng` gives to others stays the same.
    pub fn new(rng: &Rng, retention: Duration) -> Horizons {
        let mut rng = Rng::with_seed(rng.clone().u64(..) ^ 0x0407_1203);
        let seldom = [1, 4, 20][rng.usize(..3)];
        let (late, open) = (Vec::new(), Vec::new());
        Horizons { rng, retention, seldom, late, open, retries: 0, greatest: None, model: Model::default() }
    }
}

/// After each step: perhaps somebody reads on, announces, or opens a retry.
pub fn look(world: &mut World) {
    let Some(horizons) = &mut world.horizons else { return };
    if horizons.rng.u32(..horizons.seldom) > 0 || world.nodes.is_empty() {
        return;
    }
    let place = horizons.rng.usize(..world.nodes.len());
    if world.nodes[place].frozen.is_none() {
        read_on(world, place);
    }
    let has_retries = world.has_retries;
    let Some(horizons) = &mut world.horizons else { return };
    match horizons.rng.u32(..40) {
        0..8 => announce(world, place),
        8..12 if !horizons.late.is_empty() => {
            let announced = horizons.late.swap_remove(horizons.rng.usize(..horizons.late.len()));
            append_horizon(world, announced);
        }
        12 if horizons.retries < 5 && !has_retries => open(world, place),
        13..15 if !horizons.open.is_empty() => close(world),
        _ => {}
    }
}

fn of(world: &World) -> TopicPartition {
    TopicPartition::new(&world.plan.topics.progress, 0)
}

fn append(world: &World, told: &[proto::Progress]) {
    let records = told.iter().map(counts_record).collect();
    world.log().inner.append(Append { to: of(world), records }).unwrap();
}

fn append_horizon(world: &World, announced: u64) {
    note(format!("the horizon {announced} is announced"));
    append(world, &[proto::Progress { horizon: Some(announced), last: true, ..proto::Progress::default() }]);
}

/// The engine's observer reads some records; the engine hears of the horizon when it has moved.
fn read_on(world: &mut World, place: usize) {
    let (of, log) = (of(world), std::sync::Arc::clone(&world.log().inner));
    if world.nodes[place].watch.position == 0 {
        // A log that was torn may go on in another way.
        world.horizons.as_mut().expect("asked by them").model = Model::default();
    }
    let World { nodes, horizons: Some(horizons), .. } = world else { return };
    for record in checks::read(&log, &of, horizons.model.position) {
        let offset = record.offset;
        if let Told::Counts(progress) = progress::read(&of, record).unwrap() {
            horizons.model.take(offset, &progress);
        }
        horizons.model.position = offset + 1;
    }
    horizons.greatest = horizons.greatest.max(horizons.model.at(i64::MAX));
    let node = &mut nodes[place];
    let mut reader = log.reader(&of, node.watch.position, Isolation::ReadCommitted, true).unwrap();
    let mut records = reader.next(Duration::ZERO).unwrap();
    let all = records.len();
    if all > 0 && horizons.rng.bool() {
        records.truncate(horizons.rng.usize(1..=all));
    }
    let is_whole = records.len() == all;
    let before = node.watch.book.horizon();
    for record in records {
        let (offset, at_ms) = (record.offset, record.timestamp_ms);
        if let Told::Counts(progress) = progress::read(&of, record).unwrap() {
            node.watch.book.take(&progress, at_ms);
        }
        node.watch.position = offset + 1;
    }
    if is_whole {
        // Behind the last record there may be ends of transactions.
        node.watch.position = reader.position();
    }
    let horizon = node.watch.book.horizon();
    assert_eq!(horizon, horizons.model.at(node.watch.position), "P19: the horizon of {}", node.name);
    if let Some(horizon) = horizon.filter(|_| horizon > before) {
        note(format!("{} hears of the horizon {horizon}", node.name));
        node.step(Input::Horizon(horizon), clock::now());
    }
}

fn announce(world: &mut World, place: usize) {
    let World { nodes, horizons: Some(horizons), .. } = world else { return };
    let Some(due) = nodes[place].watch.book.horizon_due(clock::wall_ms(), horizons.retention) else { return };
    if horizons.rng.bool() {
        return append_horizon(world, due);
    }
    horizons.late.push(due);
}

/// A retry of some root that no horizon has passed as far as the engine knows; when it stands in the log one may have.
fn open(world: &mut World, place: usize) {
    let World { nodes, horizons: Some(horizons), .. } = world else { return };
    let standing = nodes[place].watch.book.standing();
    let Some(frontier) = standing.frontier.filter(|frontier| standing.horizon < Some(*frontier)) else { return };
    horizons.retries += 1;
    let (first, number) = (standing.horizon.map_or(0, |horizon| horizon + 1), horizons.retries);
    let root = horizons.rng.u64(first..=frontier);
    horizons.open.push((root, number));
    note(format!("retry {number} of {root} is open"));
    append(world, &counts::records(vec![Count::produced(&Stamp::root(0, root), number)], proto::Progress::default()));
}

fn close(world: &mut World) {
    let World { horizons: Some(horizons), .. } = world else { return };
    let (root, number) = horizons.open.swap_remove(horizons.rng.usize(..horizons.open.len()));
    note(format!("retry {number} of {root} is done"));
    append(world, &counts::records(vec![Count::consumed(&Stamp::root(0, root), number)], proto::Progress::default()));
}

/// Whether the horizon has got to where it can, everybody has heard of it, and every marker that it has passed is gone.
pub fn is_done(world: &mut World) -> bool {
    let Some(horizons) = &mut world.horizons else { return true };
    if !horizons.open.is_empty() {
        close(world);
        return false;
    }
    let end = world.log().watermarks(&of(world)).unwrap().high;
    let is_told = |node: &super::node::Node| {
        let standing = node.watch.book.standing();
        node.watch.position >= end && standing.horizon == standing.frontier
    };
    if !world.nodes.iter().all(is_told) {
        return false;
    }
    let horizon = checks::horizon(world);
    let left = checks::held_by_changelog(world)
        .into_values()
        .filter(|held| held.1 == Action::Remove && Some(held.0.sequence) <= horizon);
    left.count() == 0
}
