//! What a member owns, and its part in a rebalance.
//!
//! G1: nobody else can own a partition before its `Revoked` was answered, or told to be lost because that took too
//!     long: only then is it given back (L3). The group does not wait for a member that cannot let go.
//! G2: the membership told is that of a generation in which everything owned is owned; it is told anew before a revoke
//!     of a newer generation, so that what is on its way can still be committed.
//! G3: a plain commit runs under the membership given or not at all: what it covers cannot go meanwhile.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded};

use super::native::{Handle, OnRebalance, Rebalance};
use crate::log::{EventSink, LogError, MemberEvent, Membership, OffsetCommit, TopicPartition};

/// The sink, used by one thread alone.
pub type SharedSink = Arc<Mutex<EventSink>>;

/// A member's view of its group.
pub struct Group {
    topics: HashSet<Arc<str>>,
    /// Whoever owns it reads the unshared topics.
    seat: Option<TopicPartition>,
    /// How long the answer to a revoke may take.
    patience: Duration,
    owned: Mutex<HashMap<TopicPartition, Option<u64>>>,
    membership: Mutex<Membership>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands an event to the sink.
pub fn tell(sink: &SharedSink, event: MemberEvent) {
    lock(sink)(event);
}

impl Group {
    /// A member of nothing yet, for these topics.
    pub fn new(topics: &[Arc<str>], seat: Option<TopicPartition>, session_timeout: Duration) -> Group {
        let membership = Mutex::new(Membership(bytes::Bytes::new()));
        let topics = topics.iter().cloned().collect();
        Group { topics, seat, patience: session_timeout * 2 / 3, owned: Mutex::default(), membership }
    }

    /// The topic's name, shared.
    pub fn name(&self, topic: &str) -> Arc<str> {
        self.topics.get(topic).map_or_else(|| topic.into(), Arc::clone)
    }

    /// The epoch of an owned and started partition.
    pub fn epoch(&self, of: &TopicPartition) -> Option<u64> {
        lock(&self.owned).get(of).copied().flatten()
    }

    /// False when the partition is not owned.
    pub fn set_epoch(&self, of: &TopicPartition, epoch: Option<u64>) -> bool {
        lock(&self.owned).get_mut(of).map(|slot| *slot = epoch).is_some()
    }

    /// Owns a partition that no group assigns.
    pub fn take(&self, of: &TopicPartition) {
        lock(&self.owned).entry(of.clone()).or_default();
    }

    /// Ends that; false when it was not owned.
    pub fn drop_partition(&self, of: &TopicPartition) -> bool {
        lock(&self.owned).remove(of).is_some()
    }

    /// Runs a commit while neither membership nor ownership can change (G3). `by_hand`: some of it is of partitions
    /// that only the owner of the seat reads (protocol P22).
    pub fn while_member(
        &self,
        offsets: &[OffsetCommit],
        by_hand: bool,
        membership: &Membership,
        commit: impl FnOnce() -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let current = lock(&self.membership);
        if *current != *membership || membership.0.is_empty() {
            return Err(LogError::Migrated("the group has a newer generation".to_owned()));
        }
        {
            let owned = lock(&self.owned);
            if by_hand && !self.seat.as_ref().is_some_and(|seat| owned.contains_key(seat)) {
                return Err(LogError::Migrated("the partition that the sequencer sits by is not owned".to_owned()));
            }
            if let Some(o) = offsets.iter().find(|o| self.topics.contains(&o.of.topic) && !owned.contains_key(&o.of)) {
                return Err(LogError::Migrated(format!("{} is not owned", o.of)));
            }
        }
        if let Some(o) = offsets.iter().find(|o| o.position < 0) {
            return Err(LogError::Fatal(format!("position {} of {} would be skipped silently", o.position, o.of)));
        }
        let result = commit();
        drop(current);
        result
    }

    fn partitions(&self, names: &[(String, i32)]) -> Vec<TopicPartition> {
        names.iter().map(|(topic, partition)| TopicPartition::new(&self.name(topic), *partition)).collect()
    }

    fn assigned(&self, handle: &Handle, sink: &SharedSink, partitions: Vec<TopicPartition>) {
        // Positions come with the start; until then the fetcher stands paused at the log's first possible offset.
        let positions: Vec<_> = partitions.iter().map(|of| (of.clone(), 0)).collect();
        // Fails for partitions that librdkafka has not met yet; the second one counts.
        let _ = handle.pause(&positions, true);
        if let Err(failure) = handle.assign_more(&positions) {
            tell(sink, MemberEvent::Failed(LogError::Fatal(format!("assign: {}", failure.text))));
            return;
        }
        if let Err(failure) = handle.pause(&positions, true) {
            tracing::warn!("pause of new partitions: {}", failure.text);
        }
        let membership = Membership(handle.membership());
        {
            let mut current = lock(&self.membership);
            lock(&self.owned).extend(partitions.iter().map(|of| (of.clone(), None)));
            *current = membership.clone();
        }
        tell(sink, MemberEvent::Assigned { partitions, membership });
    }

    fn revoked(&self, handle: &Handle, sink: &SharedSink, partitions: Vec<TopicPartition>, lost: bool) {
        if lost {
            self.lose(&partitions);
        } else {
            self.renew(handle, sink); // G2
            for of in &partitions {
                self.set_epoch(of, None);
            }
        }
        let answered = || {
            let (done, answered) = bounded(1);
            tell(sink, MemberEvent::Revoked { partitions: partitions.clone(), lost, done });
            answered.recv_timeout(self.patience) != Err(RecvTimeoutError::Timeout)
        };
        if !answered() && !lost {
            // What is under way for them is fenced by their next owners (protocol P6a), as that of a dead one would be.
            let within = self.patience.as_secs_f64();
            tracing::warn!(?partitions, "not given back within {within} s: given up, so that the group can go on");
            self.lose(&partitions);
            let (done, _) = bounded(1);
            tell(sink, MemberEvent::Revoked { partitions: partitions.clone(), lost: true, done });
        }
        // G1, G3: from the unassign on they may get another owner.
        let _current = lock(&self.membership);
        lock(&self.owned).retain(|of, _| !partitions.contains(of));
        let positions: Vec<_> = partitions.into_iter().map(|of| (of, -1001)).collect();
        if let Err(failure) = handle.assign_less(&positions) {
            tracing::warn!("unassign: {}", failure.text);
        }
    }

    /// Nothing can be committed for them any more, nor under the membership of now.
    fn lose(&self, partitions: &[TopicPartition]) {
        let mut current = lock(&self.membership);
        lock(&self.owned).retain(|of, _| !partitions.contains(of));
        *current = Membership(bytes::Bytes::new());
    }

    fn renew(&self, handle: &Handle, sink: &SharedSink) {
        let membership = Membership(handle.membership());
        let changed = {
            let mut current = lock(&self.membership);
            let changed = *current != membership && !membership.0.is_empty();
            if changed {
                *current = membership.clone();
            }
            changed
        };
        if changed {
            tell(sink, MemberEvent::Assigned { partitions: Vec::new(), membership });
        }
    }

    fn failed(&self, handle: &Handle, sink: &SharedSink) {
        let all: Vec<TopicPartition> = lock(&self.owned).keys().cloned().collect();
        if !all.is_empty() {
            self.revoked(handle, sink, all, true);
        }
        if let Err(failure) = handle.assign(&[]) {
            tracing::warn!("unassign after a failed rebalance: {}", failure.text);
        }
    }
}

/// The callback of rebalances; it runs on the polling thread.
pub fn on_rebalance(group: Arc<Group>, sink: SharedSink) -> OnRebalance {
    Box::new(move |handle, kind, names| {
        let partitions = group.partitions(&names);
        tracing::debug!(?kind, ?partitions, "rebalance");
        match kind {
            Rebalance::Assign => group.assigned(handle, &sink, partitions),
            Rebalance::Revoke => {
                let lost = handle.assignment_lost();
                group.revoked(handle, &sink, partitions, lost);
            }
            Rebalance::Failed(code) => {
                tell(&sink, MemberEvent::Trouble(format!("the rebalance failed: {code}")));
                group.failed(handle, &sink);
            }
        }
    })
}
