//! What engines answer while everything goes on: only what is or will be in the committed changelog, never less than
//! before, and nothing after a long pause (protocol P8).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidegate::clock;
use tidegate::event::Action;
use tidegate::instance::engine::{Answered, Input, Question};
use tidegate::instance::view::ListQuery;
use tidegate::reference::Held;
use tidegate::stamp::Stamp;
use tokio::sync::oneshot;

use super::{held, settled};
use crate::node::Node;
use crate::sometimes::{self, reached};
use crate::world::World;

/// What was answered so far.
#[derive(Debug, Default)]
pub struct Answers {
    last: BTreeMap<Bytes, (Stamp, Action)>,
    all: Vec<(Bytes, Held)>,
    /// What a key was said to hold, when the frontier was known to be here, and whether the root of that was said to be
    /// settled.
    told: BTreeMap<(Bytes, Option<Stamp>), (Option<u64>, bool)>,
    /// Keys of which nothing was known any more, with what was told before.
    gone: BTreeSet<(Bytes, Stamp)>,
}

/// What an engine says that a key holds; `None` = it does not answer for it, or not yet: what the transaction under way
/// may have changed is told once that is decided (D1).
fn lookup(node: &mut Node, key: &Bytes) -> Option<Option<Held>> {
    let (answer, mut answered) = oneshot::channel();
    node.step(Input::Question(Question::Lookup(key.clone(), answer)), clock::now());
    match answered.try_recv().ok()? {
        Answered::Entry(entry) => Some(entry.map(held)),
        // A damaged store may be found to be so here; then it says nothing.
        Answered::AskStore(store) => store.get(key).ok().map(|entry| entry.map(held)),
        Answered::NotReady(_) | Answered::NotHere => None,
    }
}

/// Asks everybody for some key. Who has been expelled and could not know it yet may tell what was true before.
pub fn ask(world: &mut World) {
    let key = Bytes::from(format!("k{}", world.rng.u32(..world.plan.scripts.keys)));
    let horizon = super::horizon(world);
    let World { nodes, answers, settled, shared, .. } = world;
    // That of any observer: a door may be told it by another instance.
    let known = settled.frontier();
    for node in nodes.iter_mut().filter(|node| node.frozen.is_none()) {
        let Some(answer) = lookup(node, &key) else {
            node.observing.found.remove(&key);
            continue;
        };
        reached(sometimes::ANSWERED);
        if !node.expelled {
            let now = answer.as_ref().map(|(stamp, action, _)| (stamp.clone(), *action));
            let last = answers.last.get(&key);
            let is_gone = now.is_none() && last.is_some_and(|(stamp, _)| Some(stamp.sequence) <= horizon);
            if is_gone {
                answers.gone.extend(last.map(|(stamp, _)| (key.clone(), stamp.clone())));
            }
            let goes_back = now.as_ref().map(|(stamp, _)| stamp) < last.map(|(stamp, _)| stamp);
            assert!(is_gone || !goes_back, "{} says of {key:?} {now:?}, and {last:?} was told before", node.name);
            let stamp = now.as_ref().map(|(stamp, _)| stamp.clone());
            answers.last.extend(now.map(|now| (key.clone(), now)));
            let told = answers.told.entry((key.clone(), stamp.clone())).or_default();
            told.0 = told.0.max(known);
            if let Some(stamp) = settled::judge(node, known, &key, stamp.as_ref()) {
                reached(sometimes::ANSWERED_SETTLED);
                let truth = shared.truth(|truth| truth.is_settled(stamp.sequence));
                assert!(truth, "T1: {} says that {stamp} of {key:?} is settled", node.name);
                answers.told.entry((key.clone(), Some(stamp))).or_default().1 = true;
            }
        }
        answers.all.extend(answer.map(|held| (key.clone(), held)));
    }
}

/// P8: an engine that stood still for longer than its session says nothing.
pub fn refuses(world: &mut World, place: usize) {
    let keys = world.plan.scripts.keys;
    let node = &mut world.nodes[place];
    for key in (0..keys).map(|number| Bytes::from(format!("k{number}"))) {
        assert_eq!(lookup(node, &key), None, "P8: {} answers for {key:?}", node.name);
    }
    let (answer, mut listings) = oneshot::channel();
    let query = ListQuery { limit: 9, ..ListQuery::default() };
    node.step(Input::Question(Question::List(query, answer)), clock::now());
    let listed = listings.try_recv().is_ok_and(|told| told.is_ok_and(|listings| !listings.is_empty()));
    assert!(!listed, "P8: {} lists", node.name);
}

/// Nothing was told that was not committed; where nothing was told a tombstone is.
pub fn were_committed(world: &World) {
    let entries = super::entries(world);
    for (key, told) in &world.answers.all {
        let committed = entries.get(key).is_some_and(|entries| entries.contains(&Some(told.clone())));
        assert!(committed, "{key:?} was said to hold {told:?}, which was never committed");
    }
    // What was retried has its old place, wherever the frontier is.
    let retried: BTreeSet<u64> = world.workload.retried.keys().map(|stamp| stamp.sequence).collect();
    // A key that holds nothing may have held something that was removed and forgotten.
    let told = world.answers.told.iter().filter(|((_, told), _)| told.is_some() || world.horizons.is_none());
    for ((key, told), (frontier, is_settled)) in told {
        let later = entries.get(key).into_iter().flatten().flatten().map(|(stamp, ..)| stamp);
        let later = later.filter(|later| !retried.contains(&later.sequence));
        for later in later.filter(|later| Some(*later) > told.as_ref()) {
            let sequence = Some(later.sequence);
            assert!(
                sequence > *frontier,
                "D1: {key:?} was said to hold {told:?} at frontier {frontier:?}, then {later}"
            );
            let is_same = told.as_ref().map(|told| told.sequence) == sequence;
            assert!(!(*is_settled && is_same), "T1: {key:?} was said to hold {told:?}, settled, then {later}");
        }
    }
    for (key, before) in &world.answers.gone {
        let later = entries[key].iter().skip_while(|held| held.as_ref().is_none_or(|(stamp, ..)| stamp != before));
        assert!(later.into_iter().any(Option::is_none), "{key:?} was said to be gone behind {before}, and was not");
    }
}
