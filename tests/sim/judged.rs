//! P5, B2: a source partition that has come to stand at a record to be judged is given back where it was committed.

use bytes::Bytes;
use tidegate::clock;
use tidegate::config::StampSource;
use tidegate::instance::commit::Ended;
use tidegate::instance::engine::Input;
use tidegate::log::embedded::Turn;
use tidegate::log::{Append, Log, MemberEvent, NewRecord, TopicPartition};
use tidegate::sequencer::stamps::SEQUENCE;

use super::asleep::{at_rest, decide, hand_out};
use super::world::World;

fn source(world: &World) -> TopicPartition {
    TopicPartition::new(&world.plan.topics.sources[0], 0)
}

/// The engine gets a record of this sequence; the position behind it.
fn gets(world: &mut World, sequence: u64) -> i64 {
    let headers = vec![(SEQUENCE.to_owned(), Bytes::from(sequence.to_string()))];
    let record = NewRecord { key: Some("k1".into()), value: Some("ADD".into()), headers };
    let to = source(world);
    let offset = world.log().append(Append { to, records: vec![record] }).unwrap()[0];
    let node = &mut world.nodes[0];
    assert_eq!(node.turn(), Turn::Done);
    let fetched = node.inbox.next_records(&mut fastrand::Rng::with_seed(1)).expect("the record is read");
    node.step(Input::Member(MemberEvent::Fetched(fetched)), clock::now());
    offset + 1
}

#[test]
fn what_was_committed_while_it_came_to_stand_there_is_not_given_back() {
    let mut world = at_rest(StampSource::Header);
    let of = source(&world);
    // 1. A commit is on its way when the partition comes to stand at a record far above all others.
    let position = gets(&mut world, 1_000_000);
    hand_out(&mut world);
    gets(&mut world, 1 << 50);
    decide(&mut world);
    // 2. The next commit is aborted while the partition is asked back.
    hand_out(&mut world);
    assert!(world.nodes[0].work.take().is_some(), "a commit that has nothing of the source, or its old position");
    let (done, answered) = crossbeam_channel::bounded(1);
    let (node, now) = (&mut world.nodes[0], clock::now());
    node.step(Input::Member(MemberEvent::Revoked { partitions: vec![of.clone()], lost: false, done }), now);
    node.step(Input::Ended(Ended::Aborted("by the test".into())), now);
    node.take_effects(now);
    // 3. It is given back where it was committed.
    let (work, _) = node.work.as_ref().expect("what goes is given back");
    let released = work.offsets.iter().find(|offset| offset.of == of).expect("with its position");
    assert_eq!((released.position, released.metadata.ends_with("released")), (position, true));
    decide(&mut world);
    assert_eq!(answered.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected));
}
