//! G2: a revoke that cannot be answered in time, because a transaction is not decided, ends as a loss.

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use tidegate::clock;
use tidegate::config::StampSource;
use tidegate::instance::commit::Ended;
use tidegate::instance::engine::Input;
use tidegate::log::{MemberEvent, SESSION_TIMEOUT, TopicPartition};

use super::asleep::{Said, ask, at_rest, awake, hand_out};
use super::world::World;

fn all(world: &World) -> Vec<TopicPartition> {
    let topics = &world.plan.topics;
    let tasks = (0..2).map(|partition| TopicPartition::new(&topics.repartition, partition));
    tasks.chain([TopicPartition::new(&topics.sources[0], 0)]).collect()
}

fn revoke(world: &mut World, lost: bool) -> Receiver<()> {
    let (done, answered) = bounded(1);
    let event = MemberEvent::Revoked { partitions: all(world), lost, done };
    let now = clock::now();
    world.nodes[0].step(Input::Member(event), now);
    answered
}

#[test]
fn a_revoke_that_waits_for_a_transaction_ends_as_a_loss() {
    let mut world = at_rest(StampSource::Offset);
    // Something to commit: the confirmation after a pause.
    awake(&mut world, clock::boot() + SESSION_TIMEOUT);
    hand_out(&mut world);
    assert!(world.nodes[0].work.is_some(), "a transaction is under way");
    let answered = revoke(&mut world, false);
    hand_out(&mut world);
    assert_eq!(answered.try_recv(), Err(TryRecvError::Empty), "P4: not before it is decided");
    assert_eq!(ask(&mut world), Said::NotReady);

    let lost = revoke(&mut world, true);
    assert_eq!(answered.try_recv(), Err(TryRecvError::Disconnected), "nobody waits for it any more");
    assert_eq!(lost.try_recv(), Err(TryRecvError::Disconnected), "a loss needs no transaction");
    assert_eq!(ask(&mut world), Said::NotHere);
    // The transaction that was under way is decided later, and nothing comes of it.
    let (now, node) = (clock::now(), &mut world.nodes[0]);
    node.work = None;
    node.step(Input::Ended(Ended::Aborted("fenced by the next owner".into())), now);
    hand_out(&mut world);
    assert!(world.nodes[0].work.is_none() && world.nodes[0].engine.is_idle(), "nothing is owned or to be committed");
}
