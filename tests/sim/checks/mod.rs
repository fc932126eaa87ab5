//! What must be true at the end of every seed; `answers.rs` and `reader.rs` look while it runs.

pub mod answers;
pub mod claims;
pub mod reader;
pub mod settled;
pub mod truth;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tidegate::clock;
use tidegate::config::{Guarantee, OutputFormat};
use tidegate::counts;
use tidegate::entry::Entry;
use tidegate::event::{Action, StampedEvent};
use tidegate::instance::engine::{Answered, Input, Question};
use tidegate::instance::view::TaskState;
use tidegate::log::embedded::EmbeddedLog;
use tidegate::log::{Isolation, Log, Record, TopicPartition};
use tidegate::proto;
use tidegate::reference::Held;
use tidegate::stamp::Stamp;
use tidegate::topics::partition_of;
use tokio::sync::oneshot;

use super::observing::is_snapshot;
use super::retrying::begun;
use super::sometimes::{self, reached};
use super::workload::ATTEMPTS;
use super::world::World;

/// All committed records that ever stood in `<app>-progress`, those below a snapshot included.
pub fn progress_records(world: &World) -> Vec<Record> {
    let of = TopicPartition::new(&world.plan.topics.progress, 0);
    let low = world.log().watermarks(&of).unwrap().low;
    let mut all = world.shared.gone();
    all.extend(read(&world.log().inner, &of, low));
    all
}

/// All committed records from `position` on.
pub fn read(log: &EmbeddedLog, of: &TopicPartition, position: i64) -> Vec<Record> {
    let end = log.watermarks(of).unwrap().high;
    let mut reader = log.reader(of, position, Isolation::ReadCommitted, true).unwrap();
    let mut all = Vec::new();
    while reader.position() < end {
        let before = reader.position();
        all.extend(reader.next(Duration::ZERO).unwrap());
        if reader.position() == before {
            break; // The rest is undecided.
        }
    }
    all
}

pub fn partitions(world: &World, topic: &std::sync::Arc<str>) -> Vec<TopicPartition> {
    (0..world.plan.config.processing.partitions).map(|partition| TopicPartition::new(topic, partition)).collect()
}

/// Every partition runs somewhere and its committed position is its end.
pub fn all_is_committed(world: &mut World) -> bool {
    let all = world.plan.config.processing.partitions as usize + world.plan.topology.source_partitions.len();
    running(world) == all && lags(world).is_empty()
}

/// What is not committed of each partition that the group reads.
pub fn lags(world: &World) -> Vec<(TopicPartition, usize)> {
    let mut all = partitions(world, &world.plan.topics.repartition);
    all.extend(world.plan.topology.source_partitions.iter().cloned());
    let log = world.log();
    let committed = log.committed(&world.plan.config.application.id, &all, true).unwrap();
    let lag = |(of, committed): (TopicPartition, Option<tidegate::log::Committed>)| {
        let position = committed.map_or(0, |committed| committed.position);
        let lag = read(&log.inner, &of, position).len();
        (lag > 0).then_some((of, lag))
    };
    all.into_iter().zip(committed).filter_map(lag).collect()
}

/// What is wrong where nothing goes on any more.
pub fn stalled(world: &mut World) -> &'static str {
    let all = world.plan.config.processing.partitions as usize + world.plan.topology.source_partitions.len();
    let is_quiet = world.nodes.iter().all(crate::node::Node::is_quiet);
    if is_quiet && running(world) == all && !lags(world).is_empty() {
        return "C6, P9: all is done, and the positions do not say so";
    }
    "nothing goes on"
}

fn running(world: &mut World) -> usize {
    let now = clock::now();
    let count = |node: &mut crate::node::Node| {
        let (answer, mut status) = oneshot::channel();
        node.step(Input::Question(Question::Status(answer)), now);
        let status = status.try_recv().expect("answered at once");
        node.last_status = format!("{status:?}");
        // What chance does to commits it can do often. A disk that fails is told as long as it does: not for ever.
        let is_of_disk = |text: &&String| text.contains("cannot be written");
        let unexpected = status
            .troubles
            .iter()
            .find(|text| !text.contains("transactions in a row were refused") && !is_of_disk(text));
        assert_eq!(unexpected, None, "{}", node.name);
        if status.troubles.iter().any(|text| is_of_disk(&text)) {
            return 0;
        }
        status.tasks.iter().filter(|task| task.state == TaskState::Running).count()
    };
    world.nodes.iter_mut().map(count).sum()
}

/// Nothing is left in the engines' books of what they have taken in (stalls come from there).
pub fn books(world: &mut World) {
    let now = clock::now();
    for node in &mut world.nodes {
        let (answer, mut status) = oneshot::channel();
        node.step(Input::Question(Question::Status(answer)), now);
        let status = status.try_recv().expect("answered at once");
        assert_eq!(
            (status.running, status.buffered_bytes),
            (0, 0),
            "{} has calls or bytes that are not there",
            node.name
        );
    }
}

/// U1: each record received has one place in the order, and no place is given twice. What is right in the end follows
/// from that order.
pub fn order(world: &mut World) {
    let mut places = BTreeMap::new();
    let mut next = 0;
    let of = TopicPartition::new(&world.plan.topics.order, 0);
    tidegate::sequencer::order::read(world.log().inner.as_ref(), &of, |run| {
        assert_eq!(run.first_sequence, next, "U1: the order has no gap and nothing twice");
        for (offset, sequence) in (run.first_offset..).zip(next..next + run.count) {
            assert_eq!(places.insert((run.partition, offset), sequence), None, "U1: a record has two places");
        }
        next += run.count;
    })
    .unwrap();
    let scripts = world.plan.scripts.clone();
    world.workload.expect(&scripts, &Default::default(), |partition, offset| places[&(partition, offset)]);
}

fn held(entry: Entry) -> Held {
    (entry.stamp, entry.action, entry.value)
}

/// What each key has held, one after the other, by the committed changelog; `None` is a tombstone.
fn entries(world: &World) -> BTreeMap<Bytes, Vec<Option<Held>>> {
    let mut all: BTreeMap<Bytes, Vec<Option<Held>>> = BTreeMap::new();
    for of in partitions(world, &world.plan.topics.changelog) {
        for record in read(&world.log().inner, &of, 0) {
            let key = record.key.expect("entries and bookkeeping have keys");
            if !key.is_empty() {
                all.entry(key).or_default().push(record.value.map(|value| held(Entry::decode(value).unwrap())));
            }
        }
    }
    all
}

/// What each key holds by the committed changelog.
pub fn held_by_changelog(world: &World) -> BTreeMap<Bytes, Held> {
    entries(world).into_iter().filter_map(|(key, held)| Some((key, held.last()?.clone()?))).collect()
}

/// The greatest horizon that was announced and is not void.
pub fn horizon(world: &World) -> Option<u64> {
    world.horizons.as_ref().and_then(|horizons| horizons.greatest)
}

/// A REMOVE at or below the horizon equals absence.
fn lasting(world: &World, state: &BTreeMap<Bytes, Held>) -> BTreeMap<Bytes, Held> {
    let horizon = horizon(world);
    let lasts = |(_, held): &(&Bytes, &Held)| held.1 == Action::Add || horizon < Some(held.0.sequence);
    state.iter().filter(lasts).map(|(key, held)| (key.clone(), held.clone())).collect()
}

/// Y1: on the output topic each key has one partition, its stamps only rise, and its records are its
/// changelog entries, one for one; the last is the final state.
pub fn output(world: &World) {
    let Some(output) = &world.plan.topology.output else { return };
    let mut told: BTreeMap<Bytes, Vec<Option<Held>>> = BTreeMap::new();
    for partition in 0..output.partitions {
        for record in read(&world.log().inner, &TopicPartition::new(&output.topic, partition), 0) {
            let key = record.key.expect("a key");
            assert_eq!(partition_of(&key, output.partitions), partition, "the partition of {key:?}");
            let Some(value) = record.value else {
                told.entry(key).or_default().push(None);
                continue;
            };
            let (of_value, held) = match output.format {
                OutputFormat::Json => state_change_in_json(&value),
                OutputFormat::Protobuf => state_change(value),
            };
            assert_eq!(of_value, key);
            told.entry(key).or_default().push(Some(held));
        }
    }
    let last = told.iter().filter_map(|(key, held)| Some((key.clone(), held.last()?.clone()?))).collect();
    same_state(world, "the output topic", &last);
    if may_double(world) {
        return;
    }
    for (key, held) in &told {
        let held: Vec<&Held> = held.iter().flatten().collect();
        let falls = held.windows(2).find(|two| two[0].0 >= two[1].0);
        assert!(falls.is_none(), "the stamp of {key:?} does not rise on the output topic: {falls:?}");
    }
    assert_eq!(told, entries(world), "the output topic tells what the changelog does");
}

fn state_change(value: Bytes) -> (Bytes, Held) {
    let proto::StateChange { key, action, value, stamp, .. } = proto::StateChange::decode(value).unwrap();
    let action = if action == proto::Action::Add as i32 { Action::Add } else { Action::Remove };
    (key, (stamp.unwrap().into(), action, value))
}

fn state_change_in_json(value: &[u8]) -> (Bytes, Held) {
    let change: serde_json::Value = serde_json::from_slice(value).unwrap();
    let text = |name: &str| change[name].as_str().map(|text| Bytes::copy_from_slice(text.as_bytes()));
    let action = Action::parse(&text("action").unwrap()).unwrap();
    (text("key").unwrap(), (change["stamp"].as_str().unwrap().parse().unwrap(), action, text("value")))
}

/// The committed changelog leads to the reference's state.
pub fn changelog(world: &World) {
    same_state(world, "the changelog", &state(world));
}

/// What the committed changelog leads to; a key's stamps only rise, also behind a tombstone, and that is of a marker
/// which the horizon has passed, as the bookkeeping tells (V4).
fn state(world: &World) -> BTreeMap<Bytes, Held> {
    let (mut last, horizon): (BTreeMap<Bytes, (Held, bool)>, _) = (BTreeMap::new(), horizon(world));
    for of in partitions(world, &world.plan.topics.changelog) {
        let (mut told, mut needed) = (None, None);
        for record in read(&world.log().inner, &of, 0) {
            let key = record.key.expect("entries and bookkeeping have keys");
            let Some(value) = record.value else {
                let (held, is_gone) = last.get_mut(&key).expect("a tombstone is of a key that held something");
                assert!(!*is_gone && held.1 == Action::Remove, "{of}: {key:?} is forgotten with {held:?}");
                assert!(Some(held.0.sequence) <= horizon, "{of}: {key:?} is forgotten above the horizon: {held:?}");
                needed = needed.max(Some(held.0.sequence));
                *is_gone = true;
                reached(sometimes::BURIED);
                continue;
            };
            if key.is_empty() {
                told = tidegate::bookkeeping::decode(value).unwrap().horizon.max(told);
                assert!(needed <= told, "V4: {of} has forgotten up to {needed:?} and says {told:?}");
                continue;
            }
            let entry = Entry::decode(value).unwrap();
            let next = entry.stamp.clone();
            if let Some(((before, ..), is_gone)) = last.insert(key.clone(), (held(entry), false)) {
                assert!(before < next, "{of} at {}: the stamp of {key:?} goes from {before} to {next}", record.offset);
                if is_gone {
                    reached(sometimes::REVIVED);
                }
            }
        }
        assert!(needed <= told, "V4: {of} has forgotten up to {needed:?} and says {told:?}");
    }
    last.into_iter().filter(|(_, (_, is_gone))| !is_gone).map(|(key, (held, _))| (key, held)).collect()
}

/// What is left where `superseded = "drop"` lets timing decide which events there are: each is on the
/// repartition topic once, a key holds the last of those that can succeed, the holder's children exist,
/// and what was dropped is counted as consumed.
pub fn dropped(world: &World) {
    let events = found_events(world);
    let scripts = &world.plan.scripts;
    let mut expected: BTreeMap<Bytes, StampedEvent> = BTreeMap::new();
    for event in &events {
        assert!(world.workload.expected.events.contains(&event.stamp), "{} has no place in the reference", event.stamp);
        if scripts.failure(&event.event, false).is_none() {
            let held = expected.entry(event.event.key.clone()).or_insert_with(|| event.clone());
            if event.stamp > held.stamp {
                *held = event.clone();
            }
        }
    }
    let stamps: Vec<&Stamp> = events.iter().map(|event| &event.stamp).collect();
    assert!(stamps.is_sorted_by(|a, b| a < b), "an event stands on the repartition topic twice");
    let state = state(world);
    assert!(state.keys().eq(expected.keys()), "the keys that hold something are those of the events that succeed");
    for (key, event) in expected {
        assert_eq!(state[&key].0, event.stamp, "{key:?} holds the last of its events");
        let outcome = scripts.verdict(&event.event, ATTEMPTS, false).expect("it succeeds");
        if event.stamp.depth() < scripts.cascade.max_depth {
            for index in 0..outcome.children.len() {
                let child = event.stamp.child(index as u32);
                assert!(stamps.binary_search(&&child).is_ok(), "the child {child} of what {key:?} holds is lost");
            }
        }
    }
    progress(world);
}

/// Exactly the keys of the reference with exactly the same stamps, actions and values.
pub fn same_state(world: &World, what: &str, found: &BTreeMap<Bytes, Held>) {
    let (found, expected) = (lasting(world, found), lasting(world, &world.workload.expected.state));
    for (key, expected) in &expected {
        assert_eq!(found.get(key), Some(expected), "{what}: the key {key:?}");
    }
    let more: Vec<_> = found.keys().filter(|key| !expected.contains_key(*key)).collect();
    assert!(more.is_empty(), "{what} has keys that no event has succeeded on: {more:?}");
}

/// Asks the engines, as a door does: through the overlay, then the store.
pub fn lookups(world: &mut World) {
    let now = clock::now();
    let keys: Vec<Bytes> =
        world.workload.expected.state.keys().cloned().chain([Bytes::from_static(b"never")]).collect();
    let mut found = BTreeMap::new();
    for key in keys {
        let mut owners = 0;
        for node in &mut world.nodes {
            let (answer, mut answered) = oneshot::channel();
            node.step(Input::Question(Question::Lookup(key.clone(), answer)), now);
            let entry = match answered.try_recv().expect("answered at once") {
                Answered::Entry(entry) => entry,
                Answered::AskStore(store) => match store.get(&key) {
                    Ok(entry) => entry,
                    // A block that was damaged and not read until now: it says nothing.
                    Err(error) => return assert!(world.damaged.contains(&node.folder), "{error}"),
                },
                Answered::NotReady(reason) => panic!("{key:?} is not ready at {}: {reason}", node.name),
                Answered::NotHere => continue,
            };
            owners += 1;
            if let Some(entry) = entry {
                found.insert(key.clone(), held(entry));
            }
        }
        assert_eq!(owners, 1, "{key:?} is answered for by so many engines");
    }
    same_state(world, "the answers", &found);
}

/// Without transactions events and dead letters may stand there more than once; never less.
fn may_double(world: &World) -> bool {
    world.plan.config.processing.guarantee == Guarantee::AtLeastOnce
}

fn forgive_doubles<T: PartialEq>(world: &World, found: &mut Vec<T>) {
    world.workload.forgive_doubles(found);
    if may_double(world) {
        let before = found.len();
        found.dedup();
        if found.len() < before {
            reached(sometimes::TWICE);
        }
    }
}

/// Every event of the reference is on the repartition topic once, and nothing else is.
pub fn events(world: &World) {
    let mut found: Vec<Stamp> = found_events(world).into_iter().map(|event| event.stamp).collect();
    forgive_doubles(world, &mut found);
    assert_eq!(found, world.workload.expected.events, "events on the repartition topic");
}

/// The events on the repartition topic, in stamp order.
fn found_events(world: &World) -> Vec<StampedEvent> {
    let mut found: Vec<StampedEvent> = Vec::new();
    for of in partitions(world, &world.plan.topics.repartition) {
        let records = read(&world.log().inner, &of, 0);
        // What begins a retry stands there in addition.
        let records = records.into_iter().filter(|record| begun(record).is_none());
        let decode = |record: Record| StampedEvent::decode(record.key.unwrap(), record.value.unwrap()).unwrap();
        found.extend(records.map(decode));
    }
    found.sort_by(|a, b| a.stamp.cmp(&b.stamp));
    found
}

/// Every failure of the reference is a dead letter once, with its cause, and nothing else is.
pub fn dead_letters(world: &World) {
    let mut found = Vec::new();
    for of in partitions(world, &world.plan.topics.dead_letter) {
        for record in read(&world.log().inner, &of, 0) {
            let header = |name: &str| {
                let value = record.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.to_vec());
                value.map(|value| String::from_utf8(value).unwrap()).unwrap_or_default()
            };
            let (kind, cause) = (header("tidegate_dead_letter"), header("tidegate_cause"));
            if kind == "record" {
                let (partition, offset) = (header("__streams.errors.partition"), header("__streams.errors.offset"));
                let original = world.workload.record(partition.parse().unwrap(), offset.parse().unwrap());
                assert_eq!((&record.key, &record.value), (&original.key, &original.value), "Q2: its original bytes");
                found.push(format!("record {partition}-{offset} {cause}"));
            } else {
                let event = StampedEvent::decode(record.key.clone().unwrap(), record.value.clone().unwrap()).unwrap();
                let stamp = header("tidegate_stamp");
                assert_eq!(event.stamp.to_string(), stamp, "the dead letter is the event that it says");
                found.push(format!("event {stamp} {cause}"));
            }
        }
    }
    found.sort();
    forgive_doubles(world, &mut found);
    assert_eq!(found, world.workload.expected.dead_letters, "dead letters");
}

/// P16: in every prefix of the progress topic no sum of a root and depth is negative; in the end all
/// are zero. The last position told of each source partition is its end. Without transactions nothing is
/// counted, which is told before anything else is, and positions may go back: what was told of a commit that then failed
/// stands all the same (C6), and who starts without the group's positions begins at the greatest that was told.
pub fn progress(world: &World) {
    let mut sums: BTreeMap<(u32, u32, u64, u32), i64> = BTreeMap::new();
    let (mut positions, mut uncounted) = (BTreeMap::<i32, i64>::new(), false);
    for record in progress_records(world).into_iter().filter(|record| !is_snapshot(&record.headers)) {
        let progress = proto::Progress::decode(record.value.unwrap()).unwrap();
        if !progress.topics.is_empty() {
            continue; // What is told at the start.
        }
        if may_double(world) {
            assert!(uncounted || progress.uncounted, "positions are told before it is told that nothing is counted");
            assert!(progress.counts.is_empty(), "counts without transactions: {progress:?}");
            uncounted = true;
        }
        for counts in &progress.counts {
            for (first, length) in counts::expand_runs(&counts.runs) {
                for (root, (depth, delta)) in (first..first + length)
                    .flat_map(|root| (counts.first_depth..).zip(&counts.deltas).map(move |of| (root, of)))
                {
                    *sums.entry((counts.generation, counts.retry, root, depth)).or_default() += delta;
                }
            }
        }
        for at in &progress.source_positions {
            let position = positions.entry(at.partition).or_default();
            let goes_on = at.position >= *position || uncounted;
            assert!(goes_on, "the position of {} goes back at {}", at.partition, record.offset);
            *position = if uncounted { at.position.max(*position) } else { at.position };
        }
        let negative = sums.iter().find(|(_, sum)| **sum < 0);
        assert_eq!(negative, None, "P16: more is done than there was, at offset {}", record.offset);
        sums.retain(|_, sum| *sum != 0);
    }
    assert!(sums.is_empty(), "P16: pending at the end: {sums:?}");
    // Ends of transactions that stand behind the last record may be passed, too (M2 of marks).
    let high = |partition: i32| {
        let of = TopicPartition::new(&world.plan.topics.sources[0], partition);
        world.log().watermarks(&of).unwrap().high
    };
    let ends = world.workload.ends();
    let is_at_end = |(partition, position): (&i32, &i64)| {
        let end = ends.get(partition).copied().unwrap_or(0);
        (end..=high(*partition)).contains(position)
    };
    let all = ends.keys().all(|partition| positions.contains_key(partition));
    assert!(all && positions.iter().all(is_at_end), "the source is sequenced to its end: {positions:?}, {ends:?}");
}

/// What the stores themselves hold, once everything is in them.
pub fn stores(world: &mut World) {
    let now = clock::now();
    let mut found = BTreeMap::new();
    for node in &mut world.nodes {
        let (answer, mut listings) = oneshot::channel();
        let query = tidegate::instance::view::ListQuery { limit: 1000, ..Default::default() };
        node.step(Input::Question(Question::List(query, answer)), now);
        for listing in listings.try_recv().expect("answered at once").expect("nothing stood still") {
            assert!(listing.above.is_empty(), "nothing waits above the stores after a restart");
            let all: Result<Vec<_>, _> = listing.store.scan(b"", false).collect();
            // A block that was damaged and not read until now.
            let Ok(all) = all.inspect_err(|error| assert!(world.damaged.contains(&node.folder), "{error}")) else {
                return;
            };
            found.extend(all.into_iter().map(|(key, entry)| (key, held(entry))));
        }
    }
    same_state(world, "the stores", &found);
}
