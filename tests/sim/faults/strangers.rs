//! What others leave in the topics: transactions that are aborted, at once or after a while.

use bytes::Bytes;
use tidegate::log::{Append, NewRecord, TopicPartition};

use crate::sometimes::{self, reached};
use crate::timeline::note;
use crate::world::World;

impl World {
    /// Nobody may ever see any of it; what stands behind it waits until it is decided.
    pub(super) fn stranger(&mut self) {
        let topics = &self.plan.topics;
        let internal = [&topics.repartition, &topics.changelog, &topics.dead_letter];
        let mut all: Vec<TopicPartition> = internal
            .into_iter()
            .flat_map(|topic| {
                (0..self.plan.config.processing.partitions).map(|partition| TopicPartition::new(topic, partition))
            })
            .collect();
        all.extend(self.plan.topology.source_partitions.iter().cloned());
        all.push(TopicPartition::new(&topics.progress, 0));
        self.strangers += 1;
        let id = format!("stranger{}", self.strangers);
        let log = std::sync::Arc::clone(&self.log().inner);
        let number = log.begin(&id).unwrap();
        for _ in 0..self.rng.usize(1..4) {
            let to = all[self.rng.usize(..all.len())].clone();
            let record = NewRecord {
                key: Some(Bytes::from_static(b"k1")),
                value: Some(Bytes::from_static(b"never to be seen")),
                headers: Vec::new(),
            };
            log.append_in(number, &Append { to: to.clone(), records: vec![record] }).unwrap();
            note(format!("{id} leaves a record in {to}"));
        }
        if self.rng.bool() {
            reached(sometimes::STRANGER_ABORTED);
            log.decide(number, false).unwrap();
        } else {
            reached(sometimes::STRANGER_OPEN);
            self.shared.comes_late(&id, number, false, false);
        }
    }
}
