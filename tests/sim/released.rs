//! P5, P6: what is given back before it was at work says so, or its heir would fence a living producer.

use tidegate::clock;
use tidegate::config::StampSource;
use tidegate::instance::commit::Mark;
use tidegate::instance::engine::Input;
use tidegate::log::embedded::Turn;
use tidegate::log::{Log, MemberEvent};

use super::asleep::joined;

#[test]
fn a_partition_that_is_revoked_while_it_is_opened_is_released() {
    let mut world = joined(StampSource::Offset);
    let (now, log) = (clock::now(), std::sync::Arc::clone(world.log()));
    let repartition = world.plan.topics.repartition.clone();
    let node = &mut world.nodes[0];
    while node.claims.is_empty() {
        assert_ne!(node.turn(), Turn::Idle, "nothing is assigned");
        if let Some(event) = node.inbox.next_control() {
            node.step(Input::Member(event), now);
        }
        node.take_effects(now);
    }
    let claimed: Vec<_> = node.claims.iter().flat_map(|(partitions, _)| partitions.clone()).map(|(of, _)| of).collect();
    node.claim(&repartition);
    while let Some(input) = node.opened.pop_front() {
        node.step(input, now);
    }
    assert!(!node.restores.is_empty(), "the tasks are being restored");
    let (done, answered) = crossbeam_channel::bounded(1);
    node.step(Input::Member(MemberEvent::Revoked { partitions: claimed.clone(), lost: false, done }), now);
    node.take_effects(now);
    node.carry_out();
    let ended = node.ended.take().expect("carried out");
    node.step(Input::Ended(ended), now);
    assert_eq!(answered.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected));
    let committed = log.committed(&world.plan.config.application.id, &claimed, true).unwrap();
    for (of, committed) in claimed.iter().zip(committed) {
        let mark = Mark::parse(&committed.expect("claimed").metadata).expect("a mark");
        assert!(mark.released, "{of}: {mark}");
    }
}
