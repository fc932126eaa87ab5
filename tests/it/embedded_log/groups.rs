//! Groups: who owns what, and what members are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, OnceLock};

use crossbeam_channel::{Receiver, Sender};
use tidegate::log::{Fetched, Join, Member, MemberEvent};

use super::*;

/// Who owns which partition, over all engines of a test: no two may at once (L3).
type Owners = Arc<Mutex<BTreeMap<TopicPartition, usize>>>;

/// A member with an engine that does what it has to and notes what it is told.
pub(super) struct Engine {
    pub member: Arc<dyn Member>,
    told: Arc<Told>,
    pub fetched: Receiver<Fetched>,
}

#[derive(Default)]
struct Told {
    state: Mutex<State>,
    changed: Condvar,
    member: OnceLock<Arc<dyn Member>>,
}

#[derive(Default)]
struct State {
    owned: BTreeSet<TopicPartition>,
    membership: Option<Membership>,
    lost: usize,
    assigned: usize,
    /// The last that it was told of its partitions was an assignment.
    settled: bool,
    epoch: u64,
    troubles: Vec<String>,
}

impl Engine {
    pub(super) fn join(log: &EmbeddedLog, group: &str, topics: &[&str]) -> Engine {
        Engine::join_as(log, group, topics, 0, &Owners::default())
    }

    fn join_as(log: &EmbeddedLog, group: &str, topics: &[&str], number: usize, owners: &Owners) -> Engine {
        let (told, (sender, fetched)) = (Arc::new(Told::default()), crossbeam_channel::unbounded());
        let sink = {
            let (told, owners) = (Arc::clone(&told), Arc::clone(owners));
            move |event| told.take(event, number, &owners, &sender)
        };
        let join = Join {
            group: group.to_owned(),
            client_id: format!("engine-{number}"),
            topics: topics.iter().map(|topic| Arc::from(*topic)).collect(),
            unshared: Vec::new(),
            with_headers: Vec::new(),
        };
        let member = log.join(join, Box::new(sink)).expect("joined");
        told.member.set(Arc::clone(&member)).ok();
        Engine { member, told, fetched }
    }

    fn wait(&self, what: &str, until: impl Fn(&State) -> bool) -> std::sync::MutexGuard<'_, State> {
        let waited = self.told.changed.wait_timeout_while(self.told.state.lock().unwrap(), LONG, |state| !until(state));
        let (state, timeout) = waited.unwrap();
        assert!(!timeout.timed_out(), "{what} did not happen; owned: {:?}", state.owned);
        state
    }

    /// Waits until it owns so many; its membership then.
    pub(super) fn settled(&self, count: usize) -> Membership {
        self.wait("the assignment", |state| state.settled && state.owned.len() == count).membership.clone().unwrap()
    }

    fn owned(&self) -> BTreeSet<TopicPartition> {
        self.told.state.lock().unwrap().owned.clone()
    }

    pub(super) fn leave(&self) {
        self.member.leave();
    }
}

impl Told {
    fn take(&self, event: MemberEvent, number: usize, owners: &Owners, fetched: &Sender<Fetched>) {
        let mut state = self.state.lock().unwrap();
        match event {
            MemberEvent::Assigned { partitions, membership } => {
                for partition in partitions {
                    let other = owners.lock().unwrap().insert(partition.clone(), number);
                    assert_eq!(other, None, "L3: {partition} has two owners");
                    state.owned.insert(partition);
                }
                state.membership = Some(membership);
                state.assigned += 1;
                state.settled = true;
            }
            MemberEvent::Revoked { partitions, lost, done } => {
                for partition in &partitions {
                    assert!(state.owned.remove(partition));
                    let mut owners = owners.lock().unwrap();
                    if !lost {
                        assert_eq!(owners.remove(partition), Some(number));
                    } else if owners.get(partition) == Some(&number) {
                        owners.remove(partition);
                    }
                }
                state.lost += usize::from(lost);
                state.settled = false;
                drop(done);
            }
            MemberEvent::Fetched(some) => {
                assert!(some.epoch <= state.epoch || state.epoch == 0);
                fetched.send(some).ok();
            }
            MemberEvent::Trouble(trouble) => state.troubles.push(trouble),
            MemberEvent::Failed(error) => state.troubles.push(error.to_string()),
        }
        self.changed.notify_all();
    }
}

fn generation(membership: &Membership) -> i64 {
    let row: serde_json::Value = serde_json::from_slice(&membership.0).unwrap();
    row["generation"].as_i64().unwrap()
}

/// G1, G2, L3: balanced, sticky, never two owners; each rebalance has a higher generation.
#[test]
fn partitions_are_shared_as_members_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "a", 6, &[]);
    create(&log, "b", 4, &[]);
    let owners = Owners::default();
    let join = |number| Engine::join_as(&log, "group", &["a", "b"], number, &owners);
    let one = join(1);
    let first = generation(&one.settled(10));
    let before = one.owned();
    let two = join(2);
    let (second, same) = (generation(&one.settled(5)), generation(&two.settled(5)));
    assert!(second > first && second == same, "{first} {second} {same}");
    assert!(one.owned().is_subset(&before), "it keeps what it can");
    assert!(one.told.state.lock().unwrap().lost == 0);
    let three = join(3);
    drop(three.wait("its share", |state| state.owned.iter().filter(|of| &*of.topic == "a").count() == 2));
    for engine in [&one, &two, &three] {
        let state = engine
            .wait("the third generation", |state| state.membership.as_ref().is_some_and(|m| generation(m) > second));
        let of_b = state.owned.iter().filter(|of| &*of.topic == "b").count();
        assert!((1..=2).contains(&of_b) && state.owned.len() - of_b == 2, "{:?}", state.owned);
    }
    let kept = two.owned();
    one.leave();
    assert!(one.owned().is_empty());
    two.settled(5);
    three.settled(5);
    assert!(kept.is_subset(&two.owned()));
    create(&log, "c", 1, &[]);
    two.leave();
    three.settled(10);
    three.leave();
    assert!(owners.lock().unwrap().is_empty());
    assert!(log.members("group").is_empty());
}

/// L3 under a storm of joins and leaves.
#[test]
fn no_partition_has_two_owners_in_a_storm() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 7, &[]);
    let owners = Owners::default();
    let mut random = fastrand::Rng::with_seed(7);
    let mut engines: Vec<Engine> = Vec::new();
    for number in 0..60 {
        if engines.len() < 3 && (engines.is_empty() || random.bool()) {
            engines.push(Engine::join_as(&log, "group", &["t"], number, &owners));
        } else {
            engines.swap_remove(random.usize(..engines.len())).leave();
        }
        if random.u8(..4) == 0 {
            std::thread::sleep(Duration::from_millis(random.u64(..3)));
        }
    }
    while engines.len() > 1 {
        engines.pop().unwrap().leave();
    }
    engines.extend((engines.is_empty()).then(|| Engine::join_as(&log, "group", &["t"], 99, &owners)));
    engines[0].settled(7);
    assert_eq!(owners.lock().unwrap().len(), 7);
    engines[0].leave();
}

/// M2: the next owner waits until the engine has answered.
#[test]
fn a_revoked_partition_moves_only_after_the_answer() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 2, &[]);
    let (sender, events) = crossbeam_channel::unbounded();
    let join = |client: &str, sink| {
        let topics = vec![Arc::from("t")];
        log.join(
            Join {
                group: "g".into(),
                client_id: client.into(),
                topics,
                unshared: Vec::new(),
                with_headers: Vec::new(),
            },
            sink,
        )
        .unwrap()
    };
    let slow = join("slow", Box::new(move |event| drop(sender.send(event))));
    let MemberEvent::Assigned { partitions, membership } = events.recv_timeout(LONG).unwrap() else { panic!() };
    assert_eq!(partitions.len(), 2);
    let next = Engine::join(&log, "g", &["t"]);
    let MemberEvent::Revoked { partitions, lost: false, done } = events.recv_timeout(LONG).unwrap() else { panic!() };
    assert_eq!(partitions.len(), 1);
    std::thread::sleep(Duration::from_millis(50));
    assert!(next.owned().is_empty());
    slow.commit(&[commit_of(&partitions[0], 5, "last")], &membership).expect("until the answer it is the owner");
    drop(done);
    next.settled(1);
    assert_eq!(next.owned().first(), partitions.first());
    let MemberEvent::Assigned { partitions, .. } = events.recv_timeout(LONG).unwrap() else { panic!() };
    assert!(partitions.is_empty());
    drop((slow, events));
    next.settled(2);
    next.leave();
}

fn take(engine: &Engine, count: usize) -> Vec<(u64, i64, String)> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let some = engine.fetched.recv_timeout(LONG).expect("records");
        taken.extend(some.records.iter().map(|record| (some.epoch, record.offset, text(&record.value))));
    }
    taken
}

/// L1, L4, M1: from the position, in order, once per start, with the epoch; paused and resumed.
#[test]
fn members_are_handed_committed_records_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 1, &[]);
    let of = at("t", 0);
    log.append(append(&of, &["a", "b"])).unwrap();
    let engine = Engine::join(&log, "g", &["t"]);
    engine.settled(1);
    let quiet = |millis| assert!(engine.fetched.recv_timeout(Duration::from_millis(millis)).is_err());
    quiet(20);
    let start = |position, epoch| {
        engine.told.state.lock().unwrap().epoch = epoch;
        engine.member.start(of.clone(), position, epoch);
    };
    start(1, 1);
    assert_eq!(take(&engine, 1), [(1, 1, "b".into())]);
    let number = log.begin("p").unwrap();
    log.append_in(number, &append(&of, &["c"])).unwrap();
    let aborted = log.begin("q").unwrap();
    log.append_in(aborted, &append(&of, &["never"])).unwrap();
    log.append(append(&of, &["d"])).unwrap();
    quiet(20);
    log.decide(aborted, false).unwrap();
    quiet(20);
    log.decide(number, true).unwrap();
    assert_eq!(take(&engine, 2), [(1, 2, "c".into()), (1, 4, "d".into())]);
    engine.member.pause(vec![of.clone()]);
    std::thread::sleep(Duration::from_millis(20));
    log.append(append(&of, &["e"])).unwrap();
    quiet(20);
    engine.member.resume(vec![of.clone()]);
    assert_eq!(take(&engine, 1)[0].2, "e");
    start(0, 2);
    assert_eq!(
        take(&engine, 5).iter().map(|(epoch, _, value)| format!("{epoch}{value}")).collect::<String>(),
        "2a2b2c2d2e"
    );
    engine.leave();
    assert!(engine.fetched.try_recv().is_err());
}

/// E7: a start below what is left is not skipped over.
#[test]
fn a_member_is_told_that_its_position_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 2, &[]);
    let of = at("t", 0);
    log.append(append(&of, &["a", "b"])).unwrap();
    log.purge(&[(of.clone(), 1)]).unwrap();
    let engine = Engine::join(&log, "g", &["t"]);
    engine.settled(2);
    engine.member.start(of.clone(), 0, 1);
    drop(engine.wait("the failure", |state| state.troubles.iter().any(|text| text.contains("begins at 1"))));
    log.append(append(&at("t", 1), &["x"])).unwrap();
    engine.member.start(at("t", 1), 0, 1);
    assert_eq!(take(&engine, 1)[0].2, "x", "the others go on");
    engine.leave();
}

/// A record passes exactly one engine although members come and go: each owner begins at the committed
/// position, and commits what it took before it answers a revoke.
#[test]
fn nothing_is_lost_or_doubled_over_rebalances() {
    let folder = tempfile::tempdir().unwrap();
    let log = Arc::new(open(folder.path()));
    create(&log, "t", 4, &[]);
    let seen: Arc<Mutex<BTreeMap<TopicPartition, Vec<i64>>>> = Arc::default();
    let join = |number: usize| {
        let member = Arc::new(OnceLock::<Arc<dyn Member>>::new());
        let sink = {
            let (log, seen, member) = (Arc::clone(&log), Arc::clone(&seen), Arc::clone(&member));
            let latest = Mutex::new(None);
            move |event| match event {
                MemberEvent::Assigned { partitions, membership } => {
                    *latest.lock().unwrap() = Some(membership);
                    for of in partitions {
                        let committed = log.committed("g", std::slice::from_ref(&of), true).unwrap()[0].clone();
                        member.wait().start(of, committed.map_or(0, |committed| committed.position), 1);
                    }
                }
                MemberEvent::Fetched(some) => {
                    let position = some.records.last().unwrap().offset + 1;
                    let membership = latest.lock().unwrap().clone().unwrap();
                    member.wait().commit(&[commit_of(&some.of, position, "")], &membership).expect("it is the owner");
                    let offsets = some.records.iter().map(|record| record.offset);
                    seen.lock().unwrap().entry(some.of).or_default().extend(offsets);
                }
                MemberEvent::Revoked { .. } => {}
                MemberEvent::Trouble(reason) => panic!("{reason}"),
                MemberEvent::Failed(error) => panic!("{error}"),
            }
        };
        let topics = vec![Arc::from("t")];
        let join = Join {
            group: "g".into(),
            client_id: format!("m{number}"),
            topics,
            unshared: Vec::new(),
            with_headers: Vec::new(),
        };
        let joined = log.join(join, Box::new(sink)).unwrap();
        member.set(Arc::clone(&joined)).ok();
        joined
    };
    let mut random = fastrand::Rng::with_seed(11);
    let mut members = vec![join(0)];
    let mut next = [0i64; 4];
    for step in 0..3_000 {
        let partition = random.usize(..4);
        let count = random.i64(1..4);
        log.append(append(&at("t", partition as i32), &vec!["x"; count as usize])).unwrap();
        next[partition] += count;
        if step % 100 == 0 {
            match members.len() < 3 && (members.len() == 1 || random.bool()) {
                true => members.push(join(step)),
                false => members.swap_remove(random.usize(..members.len())).leave(),
            }
        }
    }
    let deadline = std::time::Instant::now() + LONG;
    let total: i64 = next.iter().sum();
    while seen.lock().unwrap().values().map(Vec::len).sum::<usize>() < total as usize {
        assert!(std::time::Instant::now() < deadline, "records are missing");
        std::thread::sleep(Duration::from_millis(5));
    }
    members.iter().for_each(|member| member.leave());
    for (of, offsets) in &*seen.lock().unwrap() {
        assert_eq!(*offsets, (0..next[of.partition as usize]).collect::<Vec<_>>(), "{of}");
    }
}

/// An expelled member is told that all is lost, commits nothing any more, and joins anew by itself.
#[test]
fn an_expelled_member_loses_all_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 2, &[]);
    let engine = Engine::join(&log, "g", &["t"]);
    let before = engine.settled(2);
    let id = log.members("g").pop().unwrap();
    log.expel("g", &id);
    let expelled = engine.member.commit(&[commit_of(&at("t", 0), 1, "")], &before);
    assert!(matches!(expelled, Err(LogError::Migrated(_))));
    let state = engine.wait("coming back", |state| state.lost == 1 && state.owned.len() == 2);
    assert_ne!(state.membership.as_ref(), Some(&before));
    assert_eq!(state.assigned, 2);
    drop(state);
    assert_ne!(log.members("g"), [id]);
    engine.leave();
}

/// A new topic is shared as soon as it is made.
#[test]
fn a_topic_that_comes_later_is_assigned() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    let engine = Engine::join(&log, "g", &["later"]);
    drop(engine.wait("the empty assignment", |state| state.assigned == 1));
    create(&log, "later", 3, &[]);
    engine.settled(3);
    log.delete_topic("later").unwrap();
    engine.settled(0);
    engine.leave();
}
