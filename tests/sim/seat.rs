//! B1, U1, P22, P23: the sequencer's seat goes and comes back; positions that stand still are renewed.

use std::time::Duration;

use tidegate::clock;
use tidegate::config::StampSource;
use tidegate::instance::engine::Input;
use tidegate::log::embedded::Turn;
use tidegate::log::{Append, Log, MemberEvent, Membership, NewRecord, TopicPartition};
use tidegate::proto;
use tidegate::sequencer::order;

use super::asleep::at_rest;
use super::world::World;

/// Lets half a day and more pass, and carries out what the engine then hands out.
fn renewed(world: &mut World) -> (Membership, Vec<TopicPartition>) {
    clock::sleep(Duration::from_secs(13 * 3600));
    let now = clock::now();
    let node = &mut world.nodes[0];
    node.step(Input::Tick, now);
    node.take_effects(now);
    let (work, _) = node.work.as_ref().expect("P23: a commit of positions");
    assert!(work.changes.iter().all(|(_, entries, _)| entries.is_empty()));
    let told = (work.membership.clone(), work.offsets.iter().map(|offset| offset.of.clone()).collect());
    decide(world);
    told
}

fn decide(world: &mut World) {
    let now = clock::now();
    let node = &mut world.nodes[0];
    node.carry_out();
    let ended = node.ended.take().expect("carried out");
    node.step(Input::Ended(ended), now);
}

#[test]
fn positions_that_stand_still_are_committed_again() {
    for stamp in [StampSource::Offset, StampSource::Arrival] {
        let mut world = at_rest(stamp);
        let source = TopicPartition::new(&world.plan.topics.sources[0], 0);
        let seat = TopicPartition::new(&world.plan.topics.repartition, 0);
        let (_, renewed) = renewed(&mut world);
        assert!(renewed.contains(&source) && renewed.contains(&seat), "{stamp:?}: {renewed:?}");
    }
}

#[test]
fn a_sequencer_that_had_the_seat_before_counts_on_behind_others() {
    let mut world = at_rest(StampSource::Arrival);
    let (membership, _) = renewed(&mut world);
    let seat = TopicPartition::new(&world.plan.topics.repartition, 0);
    let of = TopicPartition::new(&world.plan.topics.order, 0);
    // 1. The seat goes in good order.
    let now = clock::now();
    let (done, answered) = crossbeam_channel::bounded(1);
    let node = &mut world.nodes[0];
    node.step(Input::Member(MemberEvent::Revoked { partitions: vec![seat.clone()], lost: false, done }), now);
    node.take_effects(now);
    let released = node.work.as_ref().expect("what goes is given back").0.offsets.iter();
    assert!(released.into_iter().all(|offset| offset.metadata.ends_with("released")), "the sources go with the seat");
    // What is read by hand meanwhile belongs to whoever gets the seat.
    let record = NewRecord { key: Some("k".into()), value: Some("ADD".into()), headers: Vec::new() };
    let source = TopicPartition::new(&world.plan.topics.sources[0], 0);
    world.log().append(Append { to: source, records: vec![record] }).unwrap();
    let node = &mut world.nodes[0];
    assert_eq!(node.turn(), Turn::Done);
    let fetched = node.inbox.next_records(&mut fastrand::Rng::with_seed(1)).expect("the record is read");
    node.step(Input::Member(MemberEvent::Fetched(fetched)), now);
    decide(&mut world);
    let World { nodes, shared, .. } = &mut world;
    nodes[0].take_effects(now);
    while !nodes[0].flushes.is_empty() {
        nodes[0].flush(shared);
    }
    // The next commit has the positions of the other task.
    clock::sleep(Duration::from_secs(13 * 3600));
    let later = clock::now();
    world.nodes[0].take_effects(later);
    let (work, _) = world.nodes[0].work.as_ref().expect("P23");
    assert!(work.runs.is_empty() && work.outbox.is_empty(), "B1: nothing of the sources is committed without the seat");
    decide(&mut world);
    assert!(answered.try_recv() == Err(crossbeam_channel::TryRecvError::Disconnected));
    // 2. Somebody else counts on.
    let mut end = 0;
    order::read(world.log().as_ref(), &of, |run| end = run.first_sequence + run.count).unwrap();
    let others = proto::Run { first_sequence: end, topic: "others".into(), count: 7, ..proto::Run::default() };
    world.log().append(Append { to: of.clone(), records: order::records(vec![others]) }).unwrap();
    // 3. It comes back, and another record is received. So much later the store is not continued (Z2).
    world.checkpoints.clear();
    let now = clock::now();
    world.nodes[0].step(Input::Member(MemberEvent::Assigned { partitions: vec![seat], membership }), now);
    world.run(&[], 0, 1);
    let record = NewRecord { key: Some("k".into()), value: Some("REMOVE".into()), headers: Vec::new() };
    let to = TopicPartition::new(&world.plan.topics.sources[0], 0);
    world.log().append(Append { to, records: vec![record] }).unwrap();
    world.run(&[], 0, 1);
    let mut next = 0;
    order::read(world.log().as_ref(), &of, |run| {
        assert_eq!(run.first_sequence, next, "U1: no sequence is given twice, none is left out");
        next += run.count;
    })
    .unwrap();
    assert_eq!(next, end + 7 + 2, "the two records that came after the others'");
}
