//! What observers say is settled, against the truth, at every moment.
//!
//! They look between any two steps, by a random number generator of their own: whatever else happens in a seed happens
//! without them, too.

use std::cell::RefCell;
use std::collections::BTreeMap;

use bytes::Bytes;
use fastrand::Rng;
use tidegate::config::{Guarantee, StampSource};
use tidegate::frontier::{Standing, Unavailable};
use tidegate::instance::settling::Judging;
use tidegate::log::{Log, LogError, TopicPartition};
use tidegate::stamp::Stamp;

use crate::bugs::Bug;
use crate::marking;
use crate::node::Node;
use crate::sometimes::{self, reached};
use crate::timeline::note;
use crate::world::World;

/// So many looks are enough for an observer that has nothing to wait for.
const MOST_LOOKS: usize = 20_000;

/// What observers have told so far.
#[derive(Debug)]
pub struct Settled {
    rng: Rng,
    /// Between two steps one of them looks, once in so many times.
    seldom: u32,
    /// An observer begins anew, once in so many looks.
    restarts: u32,
    /// Of those who have read up to the same position.
    told: BTreeMap<i64, Standing>,
    /// The greatest frontier of all.
    frontier: Option<u64>,
    /// Nobody looks: what the test appends by itself is not counted.
    pub is_off: bool,
}

impl Settled {
    /// Nothing was told. What `rng` gives to others stays the same.
    pub fn new(rng: &Rng) -> Settled {
        let mut rng = Rng::with_seed(rng.clone().u64(..) ^ 0x5e77_1ed0);
        let (seldom, restarts) = ([1, 2, 4, 16, 64, 200][rng.usize(..6)], [50, 300][rng.usize(..2)]);
        Settled { rng, seldom, restarts, told: BTreeMap::new(), frontier: None, is_off: false }
    }

    /// What an observer begins with.
    pub fn seed(&mut self) -> u64 {
        self.rng.u64(..)
    }

    /// The greatest frontier that anybody has told.
    pub fn frontier(&self) -> Option<u64> {
        self.frontier
    }
}

/// After each step: perhaps somebody looks, and what was told has to hold.
pub fn look(world: &mut World) {
    let waits = marking::takes_marks(world);
    let settled = &mut world.settled;
    if settled.is_off {
        return;
    }
    // Engines wait for what is told of marks.
    let seldom = if waits { settled.seldom.min(64) } else { settled.seldom };
    if settled.rng.u32(..seldom) == 0 && !world.nodes.is_empty() {
        let place = settled.rng.usize(..world.nodes.len());
        if world.nodes[place].frozen.is_none() {
            one_look(world, place);
        }
    }
    // F1. Also for records that come later, and of sequences that are given later.
    let first = world.shared.truth(|truth| truth.unsettled().next());
    let frontier = world.settled.frontier;
    let holds = first.is_none_or(|first| frontier < Some(first));
    assert!(holds, "F1: the frontier was said to be {frontier:?}, and {first:?} is not settled");
}

/// The observer of one engine looks.
pub fn one_look(world: &mut World, place: usize) {
    let World { nodes, settled, shared, log, .. } = world;
    let (node, log) = (&mut nodes[place], log.as_ref().expect("open but for a moment"));
    let name = node.name.clone();
    if settled.rng.u32(..settled.restarts) == 0 {
        if node.observing.position() > 0 {
            reached(sometimes::OBSERVER_RESTARTED);
        }
        note(format!("{name} observes from the start"));
        node.observes_anew(settled.seed());
    }
    let before = (node.observing.position(), node.observing.standing().frontier);
    let told = RefCell::new(None);
    let looked = node.observing.look(log, &node.planted, &|known| _ = told.replace(Some(known)));
    told.into_inner().into_iter().for_each(|known| node.learn(known));
    let (name, observing) = (&node.name, &node.observing);
    match looked {
        Ok(()) | Err(LogError::Unauthorized(_)) => {}
        // Others have deleted what it was about to read.
        Err(LogError::OutOfRange(..)) => reached(sometimes::OBSERVER_OVERTAKEN),
        Err(LogError::Retriable(text)) => {
            note(format!("{name} observes no more: {text}"));
            node.observes_anew(settled.seed());
            return;
        }
        Err(error) => panic!("{name} cannot observe: {error}"),
    }
    let (position, standing) = (observing.position(), observing.standing());
    if position == before.0 {
        return;
    }
    note(format!("{name} knows what is settled below {position}: {standing:?}"));
    assert!(standing.frontier >= before.1, "W1: the frontier of {name} goes back from {:?}: {standing:?}", before.1);
    let known = settled.told.entry(position).or_insert_with(|| standing.clone());
    assert_eq!(*known, standing, "P21, Z2: {name} and somebody else have read what lies below {position}");
    settled.frontier = settled.frontier.max(standing.frontier);
    // Roots in between are settled.
    if standing.frontier.is_some_and(|frontier| standing.received > Some(frontier + standing.unsettled)) {
        reached(sometimes::FRONTIER_HELD);
    }
    let book = observing.book();
    shared.truth(|truth| {
        for root in truth.unsettled() {
            let told = book.root(root).and_then(|root| root.settled);
            assert!(told != Some(true), "{name} says that {root} is settled");
            assert!(book.is_settled(root, 0) != Some(true), "{name} takes {root} for settled");
            assert!(book.first_unsettled(&[(root, root)]).is_some(), "{name} does not wait for {root}");
        }
    });
}

/// A lookup has found `stamp` under the key, when the frontier was `known`. Some time after it a door tells what was
/// found and that it is settled, or looks the key up once more; what is told now of what was found before.
pub fn judge(node: &mut Node, known: Option<u64>, key: &Bytes, stamp: Option<&Stamp>) -> Option<Stamp> {
    let is_once = node.planted.is(Bug::LookedUpOnce);
    let observing = &mut node.observing;
    let (mut told, mut again) = (None, None);
    if let Some((mut judging, found)) = observing.found.remove(key) {
        match judging.found(&observing.book(), &found) {
            Some(judged) => told = Some(found).filter(|_| judged.settled == Some(true)),
            None if is_once => told = Some(found),
            None => again = Some(judging),
        }
    }
    let judging = again.unwrap_or_else(|| Judging::begin(known));
    observing.found.extend(stamp.map(|stamp| (key.clone(), (judging, stamp.clone()))));
    told
}

/// What is left to be told when everything is processed: the frontier, at least, and why there is none.
fn end(world: &World) -> (Option<u64>, Option<Unavailable>) {
    let config = &world.plan.config;
    match (config.processing.guarantee, config.source.stamp) {
        (Guarantee::AtLeastOnce, _) => (None, Some(Unavailable::NeedsExactlyOnce)),
        (_, StampSource::Header) => {
            let marked = world.workload.marked();
            (marked, marked.is_none().then_some(Unavailable::NeedsMark))
        }
        (_, StampSource::Offset | StampSource::Arrival) => (world.shared.truth(|truth| truth.last()), None),
    }
}

/// Everything is processed: every observer gets to know so.
pub fn at_the_end(world: &mut World) {
    let of = TopicPartition::new(&world.plan.topics.progress, 0);
    let high = world.log().watermarks(&of).unwrap().high;
    for place in 0..world.nodes.len() {
        let mut looks = 0;
        while world.nodes[place].observing.position() < high {
            looks += 1;
            assert!(looks < MOST_LOOKS, "{} does not get to the end of {of}, {high}", world.nodes[place].name);
            one_look(world, place);
        }
        let (node, (last, unavailable)) = (&world.nodes[place], end(world));
        let standing = node.observing.standing();
        assert_eq!((standing.unsettled, standing.oldest_unsettled), (0, None), "{}: {standing:?}", node.name);
        assert_eq!(standing.unavailable, unavailable, "{}: {standing:?}", node.name);
        let is_end = match (last, world.plan.config.source.stamp) {
            (Some(_), StampSource::Header) | (None, _) => standing.frontier == last,
            (Some(_), _) => standing.frontier >= last && standing.frontier == standing.received,
        };
        assert!(is_end, "{} has {standing:?}, at the end {last:?}", node.name);
        if last.is_some() {
            reached(sometimes::FRONTIER_END);
        }
        if unavailable == Some(Unavailable::NeedsExactlyOnce) {
            continue;
        }
        let book = node.observing.book();
        for root in world.shared.truth(|truth| truth.roots().collect::<Vec<_>>()) {
            let settled = book.root(root).and_then(|root| root.settled);
            assert_eq!(settled, Some(true), "{} says of {root}", node.name);
        }
    }
}
