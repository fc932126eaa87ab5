//! The coordinator of a group: who owns which partition, in which generation. No I/O, no threads.
//!
//! ```text
//!     stable --join, leave, expel, new topic--> partitions that move are revoked from their owners
//!       ^                                              |
//!       '---- generation + 1, all are assigned <-- all of them are given back
//! ```
//!
//! G1: a partition is assigned only when no member owns it; it is free when its owner has given it
//!     back, has left or was expelled (L3).
//! G2: orders reach a member one after the other. Its generation is the one of the last `Assign` that
//!     it took; until then it goes on with the one before, in which it owned the same or less.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::balance::{Claim, balance};
use super::schema::MembershipRow;
use crate::log::TopicPartition;

/// What a member has to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Give these back and say so.
    Revoke(Vec<TopicPartition>),
    /// Take these, in this generation.
    Assign(Vec<TopicPartition>, i32),
}

/// A group.
#[derive(Default)]
pub(super) struct Group {
    generation: i32,
    seats: BTreeMap<String, Seat>,
    /// A rebalance waits for partitions to be given back.
    moving: bool,
}

struct Seat {
    topics: Vec<Arc<str>>,
    /// From the moment when the order to take it is given to the moment when it is given back.
    owned: BTreeSet<TopicPartition>,
    /// Those of `owned` that are ordered back.
    going: BTreeSet<TopicPartition>,
    orders: VecDeque<Order>,
    generation: i32,
}

impl Group {
    pub(super) fn join(&mut self, member: String, topics: Vec<Arc<str>>, partitions: &dyn Fn(&str) -> i32) {
        let seat =
            Seat { topics, owned: BTreeSet::new(), going: BTreeSet::new(), orders: VecDeque::new(), generation: -1 };
        self.seats.insert(member, seat);
        self.rebalance(partitions);
    }

    /// The member has given everything back, or has lost it.
    pub(super) fn remove(&mut self, member: &str, partitions: &dyn Fn(&str) -> i32) {
        if self.seats.remove(member).is_some() {
            self.rebalance(partitions);
        }
    }

    pub(super) fn has(&self, member: &str) -> bool {
        self.seats.contains_key(member)
    }

    pub(super) fn members(&self) -> Vec<String> {
        self.seats.keys().cloned().collect()
    }

    pub(super) fn subscribes(&self, topic: &str) -> bool {
        self.seats.values().any(|seat| seat.topics.iter().any(|name| &**name == topic))
    }

    /// What the member has to do next; taking an `Assign` is what raises its generation (G2).
    pub(super) fn next_order(&mut self, member: &str) -> Option<Order> {
        let seat = self.seats.get_mut(member)?;
        let order = seat.orders.pop_front()?;
        if let Order::Assign(_, generation) = &order {
            seat.generation = *generation;
        }
        Some(order)
    }

    /// The member has carried out [`Order::Revoke`].
    pub(super) fn given_back(&mut self, member: &str, partitions: &[TopicPartition]) {
        if let Some(seat) = self.seats.get_mut(member) {
            for partition in partitions {
                seat.owned.remove(partition);
                seat.going.remove(partition);
            }
        }
    }

    /// Starts a rebalance, or goes on with one when something was given back.
    pub(super) fn rebalance(&mut self, partitions: &dyn Fn(&str) -> i32) {
        self.moving = true;
        let target = self.target(partitions);
        for (member, seat) in &mut self.seats {
            let extra: Vec<TopicPartition> =
                seat.owned.iter().filter(|p| !seat.going.contains(p) && !target[member].contains(p)).cloned().collect();
            if !extra.is_empty() {
                seat.going.extend(extra.iter().cloned());
                seat.orders.push_back(Order::Revoke(extra));
            }
        }
        self.settle(partitions);
    }

    /// Assigns, once nothing is on its way back.
    pub(super) fn settle(&mut self, partitions: &dyn Fn(&str) -> i32) {
        if !self.moving || self.seats.values().any(|seat| !seat.going.is_empty()) {
            return;
        }
        self.moving = false;
        self.generation += 1;
        let target = self.target(partitions);
        for (member, seat) in &mut self.seats {
            let added: Vec<TopicPartition> = target[member].difference(&seat.owned).cloned().collect();
            seat.owned.extend(added.iter().cloned());
            seat.orders.push_back(Order::Assign(added, self.generation));
        }
        self.assert_one_owner_each();
    }

    /// Why the membership does not hold, if it does not.
    pub(super) fn refuses(&self, membership: &MembershipRow) -> Option<String> {
        let MembershipRow { group, member, generation } = membership;
        match self.seats.get(member) {
            None => Some(format!("{member} is not a member of the group {group} any more")),
            Some(seat) if seat.generation != *generation => Some(format!(
                "generation {generation} of the group {group} is over: {member} is in {}",
                seat.generation
            )),
            Some(_) => None,
        }
    }

    fn target(&self, partitions: &dyn Fn(&str) -> i32) -> BTreeMap<String, BTreeSet<TopicPartition>> {
        let claims = self.seats.iter().map(|(member, seat)| {
            (
                member.clone(),
                Claim { topics: &seat.topics, owned: seat.owned.difference(&seat.going).cloned().collect() },
            )
        });
        balance(&claims.collect(), partitions)
    }

    fn assert_one_owner_each(&self) {
        let mut seen = BTreeSet::new();
        let once = self.seats.values().flat_map(|seat| &seat.owned).all(|partition| seen.insert(partition));
        assert!(once, "G1: a partition has two owners");
    }
}
