//! At the member: what is committed outside of any transaction.

use std::sync::Arc;

use tidegate::log::{LogError, Member, Membership, OffsetCommit, TopicPartition};

/// Proves that it is a member, and claims nothing.
pub(super) struct ClaimsNothing(pub(super) Arc<dyn Member>);

impl Member for ClaimsNothing {
    fn start(&self, of: TopicPartition, position: i64, epoch: u64) {
        self.0.start(of, position, epoch);
    }

    fn stop(&self, partitions: Vec<TopicPartition>) {
        self.0.stop(partitions);
    }

    fn pause(&self, partitions: Vec<TopicPartition>) {
        self.0.pause(partitions);
    }

    fn resume(&self, partitions: Vec<TopicPartition>) {
        self.0.resume(partitions);
    }

    fn commit(&self, _: &[OffsetCommit], membership: &Membership) -> Result<(), LogError> {
        self.0.commit(&[], membership)
    }

    fn leave(&self) {
        self.0.leave();
    }
}
