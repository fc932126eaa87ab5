//! V1: while too much is unsettled the sources pause, and only they.

use tidegate::clock;
use tidegate::config::StampSource;
use tidegate::instance::engine::Input;
use tidegate::log::{Append, Log, NewRecord, TopicPartition};

use super::asleep::at_rest;

#[test]
fn sources_pause_while_too_much_is_unsettled() {
    let mut world = at_rest(StampSource::Offset);
    let node = &mut world.nodes[0];
    let mut paused = |crowded: bool| {
        node.step(Input::Crowded(crowded), clock::now());
        node.take_effects(clock::now());
        node.member.paused()
    };
    let source = TopicPartition::new(&world.plan.topics.sources[0], 0);
    assert_eq!((paused(true), paused(true)), (vec![source.clone()], vec![source.clone()]));
    assert_eq!(paused(false), []);
    let record = NewRecord { key: Some("k".into()), value: Some("ADD".into()), headers: Vec::new() };
    let before = world.log().watermarks(&source).unwrap().high;
    world.log().append(Append { to: source.clone(), records: vec![record] }).unwrap();
    world.run(&[], 0, 1);
    let committed = world.log().committed(&world.plan.config.application.id, &[source], true).unwrap();
    assert_eq!(committed[0].as_ref().map(|committed| committed.position), Some(before + 1), "and is read again");
}
