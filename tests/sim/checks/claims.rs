//! A claim ends what the last owners have left, and bears the claimer's mark (protocol P6).

use tidegate::instance::commit::Mark;
use tidegate::log::embedded::EmbeddedLog;
use tidegate::log::{Log, TopicPartition};

use crate::faults::Shared;
use crate::node::Node;

/// A claim that is about to be made.
pub struct Claim {
    name: String,
    group: String,
    partitions: Vec<TopicPartition>,
    /// Who owned them, and has not given them back.
    owners: Vec<String>,
}

fn marks(log: &EmbeddedLog, group: &str, partitions: &[TopicPartition]) -> Vec<Option<Mark>> {
    let committed = log.committed(group, partitions, false).expect("the partitions are there");
    committed.into_iter().map(|committed| Mark::parse(&committed?.metadata)).collect()
}

impl Claim {
    /// The next claim of `node`.
    pub fn before(log: &EmbeddedLog, group: &str, node: &Node) -> Claim {
        let (partitions, _) = node.claims.front().expect("asked when there is one");
        let partitions: Vec<_> = partitions.iter().map(|(of, _)| of.clone()).collect();
        let others = marks(log, group, &partitions).into_iter().flatten();
        let others = others.filter(|mark| !mark.released && mark.producer != node.name);
        let owners = others.map(|mark| mark.producer).collect();
        Claim { name: node.name.clone(), group: group.to_owned(), partitions, owners }
    }

    /// It is made.
    pub fn check(self, log: &EmbeddedLog, shared: &Shared) {
        let Claim { name, group, partitions, owners } = self;
        for owner in owners {
            if let Some(transaction) = shared.take_abandoned(&owner) {
                let is_undecided = log.decide(transaction, false).is_ok();
                assert!(!is_undecided, "P6a: {name} takes over from {owner}, whose transaction {transaction} is open");
            }
        }
        let stable = log.committed(&group, &partitions, true);
        assert!(stable.is_ok(), "P6b: {name} takes positions that an undecided transaction moves: {stable:?}");
        for (of, mark) in partitions.iter().zip(marks(log, &group, &partitions)) {
            let owner = mark.map(|mark| mark.producer);
            assert_eq!(owner.as_ref(), Some(&name), "P6c, A1: {of} is not claimed by who works on it");
        }
    }
}
