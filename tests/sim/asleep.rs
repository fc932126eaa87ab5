//! P8: an engine that stood still answers for its keys only when the group has confirmed that they are its own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tidegate::clock;
use tidegate::config::{Cascade, Config, StampSource};
use tidegate::instance::engine::{Answered, Input, Question};
use tidegate::instance::topology;
use tidegate::instance::view::ListQuery;
use tidegate::log::embedded::Turn;
use tidegate::log::{MemberEvent, SESSION_TIMEOUT};
use tidegate::topics::Topics;
use tokio::sync::oneshot;

use super::faults::Shared;
use super::node::Plan;
use super::workload::{self, Scripts};
use super::world::{self, World};

/// Just long enough that others may have taken everything over, if its last heartbeats were lost, too.
const PAUSE: Duration = SHORT.saturating_add(Duration::from_millis(10));

/// Not long enough for that.
const SHORT: Duration = SESSION_TIMEOUT.checked_div(2).expect("two is not zero");

/// An engine that has processed everything and owns all.
pub fn at_rest(stamp: StampSource) -> World {
    let mut world = joined(stamp);
    world.run(&[], 0, 1);
    // From one partition they arrive in its order.
    let scripts = world.plan.scripts.clone();
    world.workload.expect(&scripts, &Default::default(), |_, offset| offset as u64);
    world
}

/// An engine that has joined and heard nothing yet.
pub fn joined(stamp: StampSource) -> World {
    clock::simulate(true);
    let mut rng = Rng::with_seed(7);
    let mut config = Config::default();
    config.application.id = "t".into();
    config.processing.partitions = 2;
    config.source.stamp = stamp;
    let topics = Topics::new(&config.application.id, &config.source.topics);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let log = world::open_log(path.clone(), &Shared::new(1, 0, 0, path));
    let topology = topology::ensure(log.as_ref(), &config, &topics).unwrap();
    config.cascade = Cascade { max_depth: 3, max_children: 4 };
    let scripts = Scripts { keys: 10, cascade: config.cascade.clone(), parents: 30 };
    let workload = workload::draw(&mut rng, &scripts, 50, stamp, 1);
    config.source.max_disorder = workload.max_disorder;
    let (at_once, overlay_bytes, bug) = (50, 1 << 20, None);
    let plan = Plan { config: Arc::new(config), topics, topology, scripts, at_once, overlay_bytes, bug };
    let mut world = World::new(plan, workload, folder, log, rng);
    let folder = world.free_folder();
    world.join(folder);
    world
}

#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Held,
    NotReady,
    NotHere,
}

/// What the first engine says of a key that it holds, and of the listing.
pub fn ask(world: &mut World) -> Said {
    let key: Bytes = world.workload.expected.state.keys().next().unwrap().clone();
    let (now, node) = (clock::now(), &mut world.nodes[0]);
    let (answer, mut listings) = oneshot::channel();
    node.step(Input::Question(Question::List(ListQuery { limit: 9, ..ListQuery::default() }, answer)), now);
    let listed = listings.try_recv().unwrap().is_ok_and(|listings| !listings.is_empty());
    let (answer, mut answered) = oneshot::channel();
    node.step(Input::Question(Question::Lookup(key, answer)), now);
    let said = match answered.try_recv().unwrap() {
        Answered::Entry(_) | Answered::AskStore(_) => Said::Held,
        Answered::NotReady(_) => Said::NotReady,
        Answered::NotHere => Said::NotHere,
    };
    assert_eq!(listed, said == Said::Held, "a listing answers when a lookup does");
    said
}

/// The clock that runs during suspends says so; the engine's own has stood still.
pub fn awake(world: &mut World, boot: Duration) {
    world.nodes[0].step(Input::Awake(boot), clock::now());
}

/// Until the engine hands a transaction out, without carrying it out.
pub fn hand_out(world: &mut World) {
    clock::sleep(Duration::from_secs(1));
    let now = clock::now();
    world.nodes[0].step(Input::Tick, now);
    world.nodes[0].take_effects(now);
}

pub fn decide(world: &mut World) {
    let now = clock::now();
    let node = &mut world.nodes[0];
    node.carry_out();
    let ended = node.ended.take().unwrap();
    node.step(Input::Ended(ended), now);
}

#[test]
fn after_a_pause_the_group_is_asked_first() {
    let mut world = at_rest(StampSource::Offset);
    let mut boot = clock::boot();
    awake(&mut world, boot);
    assert_eq!(ask(&mut world), Said::Held);
    boot += SHORT;
    awake(&mut world, boot);
    assert_eq!(ask(&mut world), Said::Held, "within the session");
    hand_out(&mut world);
    assert!(world.nodes[0].work.is_none(), "nothing to commit");

    boot += PAUSE;
    awake(&mut world, boot);
    assert_eq!(ask(&mut world), Said::NotReady);
    awake(&mut world, boot + Duration::from_millis(10));
    assert_eq!(ask(&mut world), Said::NotReady, "being awake again proves nothing");
    hand_out(&mut world);
    let (work, _) = world.nodes[0].work.as_ref().expect("a commit of positions alone");
    assert!(work.changes.iter().all(|(_, entries, _)| entries.is_empty()) && !work.offsets.is_empty());
    assert_eq!(ask(&mut world), Said::NotReady, "not decided yet");
    decide(&mut world);
    assert_eq!(ask(&mut world), Said::Held, "the group has taken it");
    hand_out(&mut world);
    assert!(world.nodes[0].work.is_none(), "one is enough");
}

#[test]
fn a_commit_from_before_a_pause_confirms_nothing() {
    let mut world = at_rest(StampSource::Offset);
    let boot = clock::boot();
    awake(&mut world, boot + PAUSE);
    hand_out(&mut world);
    awake(&mut world, boot + 2 * PAUSE);
    decide(&mut world);
    assert_eq!(ask(&mut world), Said::NotReady);
    hand_out(&mut world);
    decide(&mut world);
    assert_eq!(ask(&mut world), Said::Held);
}

#[test]
fn a_woken_engine_that_was_expelled_answers_nothing() {
    let mut world = at_rest(StampSource::Offset);
    let (group, name) = (world.plan.config.application.id.clone(), format!("{}-", world.nodes[0].name));
    let log = &world.log().inner;
    log.members(&group).iter().filter(|id| id.starts_with(&name)).for_each(|id| log.expel(&group, id));
    let folder = world.free_folder();
    world.join(folder);
    let boot = clock::boot();
    awake(&mut world, boot + PAUSE);
    assert_eq!(ask(&mut world), Said::NotReady, "before it has heard of its loss");
    hand_out(&mut world);
    decide(&mut world);
    assert_eq!(ask(&mut world), Said::NotReady, "the group has not taken its commit");
    // Now it hears of it.
    let now = clock::now();
    loop {
        let node = &mut world.nodes[0];
        let Some(event) = node.inbox.next_control() else {
            assert_eq!(node.turn(), Turn::Waits, "no loss was told");
            continue;
        };
        let lost = matches!(&event, MemberEvent::Revoked { lost: true, .. });
        node.step(Input::Member(event), now);
        if lost {
            break;
        }
    }
    assert_eq!(ask(&mut world), Said::NotHere);
}
