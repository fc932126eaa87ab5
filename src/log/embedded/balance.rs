//! Who gets which partition: balanced per topic, moving as few as possible.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::log::TopicPartition;

/// What a member asks for and has.
pub(super) struct Claim<'a> {
    pub topics: &'a [Arc<str>],
    /// What it can keep.
    pub owned: BTreeSet<TopicPartition>,
}

/// The partitions that each member is to have. Per topic no two subscribers differ by more than one;
/// a member keeps what it has up to its share.
pub(super) fn balance(
    claims: &BTreeMap<String, Claim<'_>>,
    partitions: &dyn Fn(&str) -> i32,
) -> BTreeMap<String, BTreeSet<TopicPartition>> {
    let mut shares: BTreeMap<String, BTreeSet<TopicPartition>> =
        claims.keys().map(|member| (member.clone(), BTreeSet::new())).collect();
    let topics: BTreeSet<&Arc<str>> = claims.values().flat_map(|claim| claim.topics).collect();
    for topic in topics {
        let subscribers = claims.iter().filter(|(_, claim)| claim.topics.contains(topic));
        let mut subscribers: Vec<(&String, Vec<&TopicPartition>)> = subscribers
            .map(|(member, claim)| (member, claim.owned.iter().filter(|owned| owned.topic == *topic).collect()))
            .collect();
        // Who has most gets the odd ones, so that they need not move; then who has least of other topics.
        subscribers.sort_by_key(|(member, owned)| (usize::MAX - owned.len(), shares[*member].len()));
        let count = usize::try_from(partitions(topic)).unwrap_or(0);
        let (each, odd) = (count / subscribers.len(), count % subscribers.len());
        let quota = |place: usize| each + usize::from(place < odd);
        let mut free: BTreeSet<TopicPartition> =
            (0..count).map(|partition| TopicPartition::new(topic, partition as i32)).collect();
        for (place, (member, owned)) in subscribers.iter().enumerate() {
            for kept in owned.iter().filter(|kept| (kept.partition as usize) < count).take(quota(place)) {
                free.remove(*kept);
                shares.entry((*member).clone()).or_default().insert((*kept).clone());
            }
        }
        for (place, (member, owned)) in subscribers.iter().enumerate() {
            let share = shares.entry((*member).clone()).or_default();
            for _ in owned.len().min(quota(place))..quota(place) {
                share.extend(free.pop_first());
            }
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Members come and go at random; every partition has exactly one owner, shares differ by one
        /// at most, and a single change moves no more than it has to.
        #[test]
        fn shares_are_even_and_sticky(counts in proptest::collection::vec(0..13i32, 1..4),
                                      steps in proptest::collection::vec((any::<bool>(), 0..6usize), 1..20)) {
            let topics: Vec<Arc<str>> = (0..counts.len()).map(|topic| format!("t{topic}").into()).collect();
            let count = |name: &str| counts[name[1..].parse::<usize>().unwrap()];
            let mut owned: BTreeMap<String, BTreeSet<TopicPartition>> = BTreeMap::new();
            for (comes, member) in steps {
                let member = format!("m{member}");
                if comes { owned.entry(member).or_default(); } else { owned.remove(&member); }
                if owned.is_empty() { continue }
                let claims = owned.iter().map(|(member, owned)| (member.clone(), Claim { topics: &topics, owned: owned.clone() }));
                let shares = balance(&claims.collect(), &count);
                for topic in &topics {
                    let sizes: Vec<usize> = shares.values().map(|share| share.iter().filter(|p| p.topic == *topic).count()).collect();
                    prop_assert_eq!(sizes.iter().sum::<usize>(), count(topic) as usize);
                    prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
                    // Nothing leaves a member that is not above its fair share, rounded up.
                    let fair = (count(topic) as usize) / owned.len();
                    for (member, had) in &owned {
                        let had: BTreeSet<_> = had.iter().filter(|p| p.topic == *topic).collect();
                        let kept = had.iter().filter(|p| shares[member].contains(**p)).count();
                        prop_assert!(kept >= had.len().min(fair));
                    }
                }
                let all: BTreeSet<_> = shares.values().flatten().collect();
                prop_assert_eq!(all.len(), shares.values().map(BTreeSet::len).sum::<usize>());
                owned = shares;
            }
        }
    }
}
