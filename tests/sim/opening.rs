//! What the openers' and the judges' threads do, in the driver's hands.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tidegate::clock;
use tidegate::instance::engine::{Input, Opened};
use tidegate::instance::opening::OpenError;
use tidegate::log::{Log, LogError, TopicPartition};

use super::checks::read;
use super::faults::points::Point;
use super::node::Node;
use super::sometimes::{self, reached};
use super::timeline::note;
use super::world::World;

/// Enough looks for any restore here, and an end for one that cannot succeed.
const MOST_LOOKS: u32 = 1000;

/// A claim that waits for somebody's undecided transaction is given up after so many looks and tried again later:
/// seconds of the simulated time each, which stores that wait do not outlive for days.
const CLAIM_LOOKS: u32 = 20;

impl World {
    /// Restores a claimed partition; a store is never rebuilt without need, and only its tail is read. Meanwhile the
    /// partition may go.
    pub fn restore(&mut self, place: usize) {
        let now = clock::now();
        let log = Arc::clone(self.log());
        let Self { nodes, rng, checkpoints, damaged, plan, shared, .. } = self;
        let node = &mut nodes[place];
        let next = rng.usize(..node.restores.len());
        let (of, epoch, position) = node.restores.remove(next).expect("within");
        let partition = of.partition;
        if !node.engine.opening_epochs().contains(&epoch) {
            return; // Nobody waits for it any more, and a newer opening may have the store.
        }
        // A store is free only when those who write it and those who were given it are through.
        while node.flushes.iter().any(|flush| flush.partition == partition) {
            let written = node.flush(shared);
            checkpoints.extend(written.map(|(partition, position)| ((node.folder.clone(), partition), position)));
            if shared.is_dead() {
                return;
            }
        }
        while node.sweeps.iter().any(|sweep| sweep.partition == partition) {
            node.sweep();
        }
        let is_of = |input: &Input| matches!(input, Input::Opened { of, .. } if of.partition == partition);
        while let Some(place) = node.opened.iter().position(is_of) {
            let opened = node.opened.remove(place).expect("found");
            node.step(opened, now);
        }
        if !node.engine.opening_epochs().contains(&epoch) {
            return;
        }
        let asked = Cell::new(0);
        let moves = rng.u32(..4) == 0;
        let Node { engine, inbox, current, opener, name, .. } = node;
        let meanwhile = RefCell::new((engine, inbox));
        let changelog = TopicPartition::new(&plan.topics.changelog, partition);
        let end = log.watermarks(&changelog).unwrap().high;
        let valid = || {
            let (engine, inbox) = &mut *meanwhile.borrow_mut();
            // What the group says while it is restored, after its first records.
            if moves && asked.get() > 1 && inbox.len().0 > 0 && inbox.giving_back.is_none() {
                let event = inbox.next_control().expect("there is one");
                note(format!("{name} hears of the group while {partition} is restored"));
                Node::hear(current, &event);
                engine.step(Input::Member(event), now);
            }
            asked.set(asked.get() + 1);
            !shared.is_dead() && asked.get() < MOST_LOOKS && engine.opening_epochs().contains(&epoch)
        };
        let restored = opener.restore(partition, position, &valid, &|_| {});
        if matches!(restored, Err(OpenError::Moved)) && asked.get() < MOST_LOOKS {
            if !shared.is_dead() {
                reached(sometimes::MOVED_RESTORING);
            }
            // How much of it is in the store is not known.
            checkpoints.remove(&(node.folder.clone(), partition));
            node.opened.push_back(Input::Opened { of, epoch, opened: Err(OpenError::Moved) });
            return;
        }
        let restored = restored.unwrap_or_else(|error| panic!("{} restores {partition}: {error}", node.name));
        // A store that was damaged may not even tell.
        if let Ok(Some(reached)) = restored.store.checkpoint() {
            let reached = reached.position;
            assert!(
                reached >= end,
                "Z1, P12: {changelog} is taken for restored at {reached}, its end was {end} before"
            );
        }
        let known = checkpoints.insert((node.folder.clone(), partition), log.watermarks(&changelog).unwrap().high);
        note(format!("{} restores {partition} from {position}: {known:?}, {} records", node.name, restored.records));
        if damaged.contains(&node.folder) {
            reached(sometimes::REBUILT);
        } else if let Some(known) = known {
            assert_eq!(restored.rebuilt, None, "R1: the store is set aside without need");
            let tail = read(&log.inner, &changelog, known).len();
            assert_eq!(restored.records as usize, tail, "restored is the tail from {known} on, no more and no less");
        }
        if shared.dies_at(Point::AfterRestore) {
            return;
        }
        let opened =
            Opened { position: restored.done.low(), restored: Some(restored), next_sequence: None, progress: 0 };
        node.opened.push_back(Input::Opened { of, epoch, opened: Ok(opened) });
    }
}

impl Node {
    /// What the opener's thread does first; false when the partitions have moved.
    pub fn claim(&mut self, repartition: &str) -> bool {
        let (partitions, membership) = self.claims.pop_front().expect("asked when there is one");
        let names: Vec<_> = partitions.iter().map(|(of, _)| of.clone()).collect();
        let asked = AtomicU32::new(0);
        let valid = || asked.fetch_add(1, Ordering::Relaxed) < CLAIM_LOOKS;
        let reads = partitions.iter().any(|(of, _)| &*of.topic != repartition);
        let claimed = self.opener.claim(&names, &membership, &valid).and_then(|positions| {
            let next_sequence = if reads { self.opener.next_sequence(&valid)? } else { None };
            let progress = if reads { self.opener.progress_end(&valid)? } else { 0 };
            Ok((positions, next_sequence, progress))
        });
        let is_claimed = claimed.is_ok();
        match claimed {
            Ok((positions, next_sequence, progress)) => {
                for ((of, epoch), position) in partitions.into_iter().zip(positions) {
                    self.opened.push_back(Input::Claimed { of: of.clone(), epoch, position });
                    if &*of.topic == repartition {
                        self.restores.push_back((of, epoch, position));
                    } else {
                        let opened = Ok(Opened { position, restored: None, next_sequence, progress });
                        self.opened.push_back(Input::Opened { of, epoch, opened });
                    }
                }
            }
            Err(OpenError::Moved) => {
                let moved = |(of, epoch)| Input::Opened { of, epoch, opened: Err(OpenError::Moved) };
                self.opened.extend(partitions.into_iter().map(moved));
            }
            Err(OpenError::Fatal(reason)) => panic!("{}: {reason}", self.name),
        }
        is_claimed
    }

    /// What a judge's thread does with one look; it may have to look again.
    pub fn judge(&mut self) {
        self.find();
        if self.judgements.is_empty() {
            return;
        }
        let (mut case, epoch) = self.judgements.pop_front().expect("asked when there is one");
        // Nobody waits any more.
        if !self.engine.opening_epochs().contains(&epoch) {
            return;
        }
        match self.judge.look(&mut case) {
            Ok(Some(judgement)) => {
                note(format!("{} judges {}: {judgement:?}", self.name, case.held().of));
                self.opened.push_back(Input::Judged(case.held().clone(), epoch, judgement));
            }
            Ok(None) | Err(LogError::Unstable(_) | LogError::Retriable(_)) => {
                self.judgements.push_back((case, epoch));
            }
            Err(error) => panic!("{} judges {:?}: {error}", self.name, case.held()),
        }
    }
}
