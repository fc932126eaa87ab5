//! V6: what the horizon has passed is refused, and leaves nothing behind.

use bytes::{Bytes, BytesMut};
use tidegate::clock;
use tidegate::config::StampSource;
use tidegate::event::{Action, Event, StampedEvent};
use tidegate::instance::engine::Input;
use tidegate::log::{Append, Log, MemberEvent, NewRecord, TopicPartition};
use tidegate::stamp::Stamp;
use tidegate::topics::partition_of;

use super::asleep::at_rest;
use super::checks::{held_by_changelog, read};
use super::world::World;

/// The script of an event that succeeds at once and has children.
fn script(world: &World) -> Bytes {
    let spawns = |script: &Bytes| {
        let event = Event { key: Bytes::new(), action: Action::Add, payload: Some(script.clone()) };
        let scripts = &world.plan.scripts;
        scripts.failure(&event, false).is_none()
            && scripts.verdict(&event, 1, false).is_ok_and(|outcome| !outcome.children.is_empty())
    };
    (0..).map(|number: u32| Bytes::from(number.to_string())).find(spawns).expect("many do")
}

/// Appends an event as a sequencer does that has read a record of long ago once more.
fn comes_again(world: &World, key: &str, sequence: u64, retry: u32) {
    let event =
        Event { key: Bytes::copy_from_slice(key.as_bytes()), action: Action::Add, payload: Some(script(world)) };
    let event = StampedEvent { event, stamp: Stamp::root(0, sequence), origin: Bytes::new(), retry };
    let mut value = BytesMut::new();
    event.encode(&mut value);
    let key = event.event.key;
    let partition = partition_of(&key, world.plan.config.processing.partitions);
    let to = TopicPartition::new(&world.plan.topics.repartition, partition);
    let record = NewRecord { key: Some(key), value: Some(value.freeze()), headers: Vec::new() };
    world.log().append(Append { to, records: vec![record] }).unwrap();
}

/// The keys of events that were refused for the horizon, with the tries that they had.
fn refused(world: &World) -> Vec<(Bytes, String)> {
    let mut refused = Vec::new();
    for partition in 0..world.plan.config.processing.partitions {
        for record in read(&world.log().inner, &TopicPartition::new(&world.plan.topics.dead_letter, partition), 0) {
            let header =
                |name: &str| record.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
            if header("tidegate_cause").is_some_and(|cause| cause == "before_horizon") {
                let attempts = header("tidegate_attempts").unwrap();
                refused.push((record.key.clone().unwrap(), String::from_utf8(attempts.to_vec()).unwrap()));
            }
        }
    }
    refused.sort();
    refused
}

fn events(world: &World) -> usize {
    let of = |partition| TopicPartition::new(&world.plan.topics.repartition, partition);
    (0..world.plan.config.processing.partitions)
        .map(|partition| read(&world.log().inner, &of(partition), 0).len())
        .sum()
}

#[test]
fn what_comes_below_the_horizon_is_refused_before_it_runs() {
    let mut world = at_rest(StampSource::Offset);
    world.settled.is_off = true;
    let before = held_by_changelog(&world);
    world.nodes[0].step(Input::Horizon(20), clock::now());
    comes_again(&world, "new1", 20, 0);
    comes_again(&world, "k1", 0, 0);
    let events_before = events(&world);
    world.run(&[], 0, 1);
    assert_eq!(refused(&world), [("k1".into(), "0".into()), ("new1".into(), "0".into())]);
    assert_eq!(events(&world), events_before, "nothing is spawned");
    let mut after = held_by_changelog(&world);
    after.retain(|key, _| before.contains_key(key));
    let gone: Vec<_> = before.iter().filter(|(key, held)| after.get(*key) != Some(held)).collect();
    assert!(gone.iter().all(|(_, held)| held.1 == Action::Remove && held.0.sequence <= 20), "{gone:?}");
    // A retry is not, nor what lies above.
    comes_again(&world, "new2", 20, 1);
    comes_again(&world, "new3", 21, 0);
    world.run(&[], 0, 1);
    assert_eq!(refused(&world).len(), 2);
    let held = held_by_changelog(&world);
    assert!(held.contains_key(&b"new2"[..]) && held.contains_key(&b"new3"[..]), "{held:?}");
}

#[test]
fn what_runs_while_the_horizon_passes_it_is_refused_with_its_outcome() {
    let mut world = at_rest(StampSource::Offset);
    world.settled.is_off = true;
    (0..20).for_each(|number| comes_again(&world, &format!("new{number}"), 20, 0));
    let (now, mut rng) = (clock::now(), fastrand::Rng::with_seed(1));
    let node = &mut world.nodes[0];
    while node.desk.borrow().pending.len() < 3 {
        node.turn();
        while node.inbox.len().1 > 0 {
            let Some(fetched) = node.inbox.next_records(&mut rng) else { break };
            node.step(Input::Member(MemberEvent::Fetched(fetched)), now);
        }
    }
    let running: Vec<Bytes> = node.desk.borrow().pending.iter().map(|call| call.call.key.clone()).collect();
    node.step(Input::Horizon(20), now);
    world.run(&[], 0, 1);
    let refused = refused(&world);
    assert!(running.iter().all(|key| refused.contains(&(key.clone(), "1".into()))), "{running:?}: {refused:?}");
    let held = held_by_changelog(&world);
    assert!(running.iter().all(|key| !held.contains_key(key)), "{held:?}");
}
