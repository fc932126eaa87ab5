//! Topics: made, described, purged, deleted; and what groups have committed for them, deleted.
//!
//! T1: a topic's number and id are never given again, so that what is left of a deleted topic is
//!     never taken for its namesake's.

use std::sync::atomic::Ordering;

use rocksdb::ReadOptions;

use super::batch::Header;
use super::failed;
use super::group::Group;
use super::schema::{self, TopicRow};
use super::state::{Partition, Shared, Topic};
use super::write::Staged;
use crate::log::{LogError, NewTopic, TopicDescription, TopicPartition};

/// The most partitions of a topic.
const MAX_PARTITIONS: i32 = 10_000;
/// Up to here batches are deleted one by one: RocksDB goes through all range deletions of late for
/// every read, and a quiet partition would pile them up.
const FEW_BATCHES: usize = 64;
const POLICIES: [&str; 4] = ["delete", "compact", "compact,delete", "delete,compact"];

impl Shared {
    pub(super) fn create_topics(&self, topics: &[NewTopic]) -> Result<(), LogError> {
        self.writable()?;
        topics.iter().try_for_each(check)?;
        let mut core = self.core();
        for new in topics {
            if self.topic(&new.name).is_some() {
                continue;
            }
            let row = TopicRow {
                number: core.last_topic + 1,
                id: uuid::Uuid::new_v4().to_string(),
                partitions: new.partitions as u32,
                settings: new.settings.clone(),
            };
            let mut staged = Staged::default();
            staged.write.put(schema::LAST_TOPIC, u64::from(row.number).to_be_bytes());
            staged.write.put(schema::topic(&new.name), schema::encode_row(&row));
            self.carry_out(&core, staged)?;
            core.last_topic = row.number;
            self.add_topic(Topic::new(new.name.as_str().into(), row));
            for group in core.groups.values_mut().filter(|group| group.subscribes(&new.name)) {
                group.rebalance(&|topic| self.partition_count(topic));
            }
        }
        self.group_changed();
        Ok(())
    }

    /// Deletes a topic with its records and with what groups have committed for it.
    pub(super) fn delete_topic(&self, name: &str) -> Result<(), LogError> {
        self.writable()?;
        let mut core = self.core();
        let topic = self.topic(name).ok_or_else(|| LogError::UnknownTopic(name.to_owned()))?;
        let mut staged = Staged::default();
        staged.write.delete(schema::topic(name));
        for partition in &topic.partitions {
            staged.write.delete(schema::partition(partition.slot));
            staged.write.delete_range(schema::batch(partition.slot, 0), schema::batches_end(partition.slot));
        }
        self.scan(schema::OFFSETS, |key, _| {
            if schema::topic_of_offset(key)? == topic.row.number {
                staged.write.delete([schema::OFFSETS, key].concat());
            }
            Some(())
        })?;
        let others = self.all_topics().into_iter().map(|other| other.row.number);
        self.forget_topics_but(&others.filter(|number| *number != topic.row.number).collect());
        self.carry_out(&core, staged)?;
        for group in core.groups.values_mut().filter(|group| group.subscribes(name)) {
            group.rebalance(&|topic| self.partition_count(topic));
        }
        self.group_changed();
        Ok(())
    }

    /// Deletes what a group without members has committed.
    pub(super) fn delete_group(&self, name: &str) -> Result<(), LogError> {
        self.writable()?;
        let core = self.core();
        let members = core.groups.get(name).map_or_else(Vec::new, Group::members);
        if !members.is_empty() {
            return Err(LogError::Refused(format!("the group {name} has members: {}", members.join(", "))));
        }
        let of_group = schema::offsets_of(name);
        let mut staged = Staged::default();
        self.scan(&of_group, |key, _| {
            staged.write.delete([&of_group, key].concat());
            Some(())
        })?;
        self.carry_out(&core, staged)
    }

    pub(super) fn describe_topic(&self, name: &str) -> Option<TopicDescription> {
        let topic = self.topic(name)?;
        Some(TopicDescription {
            name: name.to_owned(),
            id: topic.row.id.clone(),
            partitions: topic.partitions.len() as i32,
            cleanup_policy: topic.policy().to_owned(),
            delete_retention_ms: topic.delete_retention_ms,
            max_message_bytes: topic.max_message_bytes,
        })
    }

    /// Deletes whole batches below the offset; a batch that reaches over it stays, unseen below it.
    pub(super) fn purge(&self, of: &TopicPartition, before: i64) -> Result<(), LogError> {
        self.writable()?;
        let place = self.place(of)?;
        let partition = place.get();
        let mut core = self.core();
        if before > partition.end() || before < 0 {
            return Err(LogError::OutOfRange(of.clone(), partition.low()));
        }
        // What is undecided stays: its transaction still points to it.
        let before = before.min(partition.stable());
        let old = partition.row();
        if before <= old.low {
            return Ok(());
        }
        let (gone, below) = self.batches_below(partition, before)?;
        let mut staged = Staged::default();
        staged.partition(partition.slot, schema::PartitionRow { low: before, clean: old.clean.max(before) });
        match (gone.first(), gone.len() > FEW_BATCHES) {
            (Some(first), true) => {
                staged.write.delete_range(schema::batch(partition.slot, *first), schema::batch(partition.slot, below));
            }
            _ => gone.iter().for_each(|base| staged.write.delete(schema::batch(partition.slot, *base))),
        }
        partition.low.store(before, Ordering::SeqCst);
        if let Err(error) = self.carry_out(&core, staged) {
            partition.low.store(old.low, Ordering::SeqCst);
            return Err(error);
        }
        partition.clean.fetch_max(before, Ordering::SeqCst);
        self.trim_aborted(&mut core, partition.slot, below)
    }
}

impl Shared {
    /// The bases of the batches that lie below `before` as a whole, or of the first few of them, and
    /// the offset that all of them lie below.
    fn batches_below(&self, partition: &Partition, before: i64) -> Result<(Vec<i64>, i64), LogError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(schema::batch(partition.slot, before));
        let mut batches = self.db.raw_iterator_opt(options);
        let mut below = before;
        batches.seek_for_prev(schema::batch(partition.slot, before));
        if let Some((key, value)) = batches.item()
            && let Some(base) = schema::base_of(key, partition.slot)
        {
            let header = Header::read(value).map_err(|_| self.corrupt("batch"))?;
            if base + i64::from(header.last_delta) >= before {
                below = base;
            }
        }
        // The last purge may have left a batch that reaches over the low watermark.
        let from = schema::batch(partition.slot, partition.low());
        batches.seek_for_prev(from);
        if batches.key().and_then(|key| schema::base_of(key, partition.slot)).is_none() {
            batches.seek(from);
        }
        let mut gone = Vec::new();
        while let Some(base) = batches.key().and_then(|key| schema::base_of(key, partition.slot)) {
            if base >= below || gone.len() > FEW_BATCHES {
                break;
            }
            gone.push(base);
            batches.next();
        }
        batches.status().map_err(failed)?;
        Ok((gone, below))
    }
}

fn check(new: &NewTopic) -> Result<(), LogError> {
    let refused = |reason: String| Err(LogError::Refused(format!("topic {:?}: {reason}", new.name)));
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '_' | '-');
    if new.name.is_empty() || new.name.len() > 249 || !new.name.chars().all(allowed) || matches!(&*new.name, "." | "..")
    {
        return refused("a name has 1 to 249 letters, digits, '.', '_' or '-'".to_owned());
    }
    if !(1..=MAX_PARTITIONS).contains(&new.partitions) {
        return refused(format!("{} partitions; 1 to {MAX_PARTITIONS} are possible", new.partitions));
    }
    for (key, value) in &new.settings {
        let fits = match key.as_str() {
            "cleanup.policy" => POLICIES.contains(&value.as_str()),
            "delete.retention.ms" => value.parse::<i64>().is_ok_and(|number| number >= 0),
            "max.message.bytes" => value.parse::<i64>().is_ok_and(|number| (0..=i64::from(i32::MAX)).contains(&number)),
            _ => true,
        };
        if !fits {
            return refused(format!("{key} = {value:?} is not possible"));
        }
    }
    Ok(())
}
