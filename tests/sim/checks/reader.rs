//! A reader of committed records beside everything else: what it has seen stays, and nothing appears before it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tidegate::log::{Isolation, Log, Record, TopicPartition};

use super::{partitions, progress_records, read};
use crate::world::World;

/// What it has seen of a partition.
#[derive(Debug, Default)]
struct Seen {
    position: i64,
    records: Vec<(i64, Option<Bytes>, Option<Bytes>)>,
}

/// What it has seen of all.
#[derive(Debug, Default)]
pub struct Look(BTreeMap<TopicPartition, Seen>);

fn watched(world: &World) -> Vec<TopicPartition> {
    let topics = &world.plan.topics;
    let mut all = partitions(world, &topics.changelog);
    all.extend(partitions(world, &topics.repartition));
    all.push(TopicPartition::new(&topics.progress, 0));
    let output = world.plan.topology.output.iter();
    all.extend(output.flat_map(|output| (0..output.partitions).map(|place| TopicPartition::new(&output.topic, place))));
    all
}

fn tuple(record: Record) -> (i64, Option<Bytes>, Option<Bytes>) {
    (record.offset, record.key, record.value)
}

/// Reads on where it stood, in some partition.
pub fn look(world: &mut World) {
    let all = watched(world);
    let of = all[world.rng.usize(..all.len())].clone();
    let log = std::sync::Arc::clone(&world.log().inner);
    let low = log.watermarks(&of).unwrap().low;
    let seen = world.look.0.entry(of.clone()).or_default();
    if seen.position < low {
        // It is deleted because everybody may do without it.
        let gone = world.shared.gone().into_iter().filter(|record| record.offset >= seen.position);
        seen.records.extend(gone.map(tuple));
        seen.position = low;
    }
    let mut reader = log.reader(&of, seen.position, Isolation::ReadCommitted, false).unwrap();
    seen.records.extend(reader.next(Duration::ZERO).unwrap().into_iter().map(tuple));
    seen.position = reader.position();
}

/// At the end the same records stand where it has read them.
pub fn has_seen_all(world: &World) {
    for (of, seen) in &world.look.0 {
        let all = match of.topic == world.plan.topics.progress {
            true => progress_records(world),
            false => read(&world.log().inner, of, 0),
        };
        let now: Vec<_> = all.into_iter().map(tuple).take_while(|record| record.0 < seen.position).collect();
        assert_eq!(now, seen.records, "{of} below {}", seen.position);
    }
}
