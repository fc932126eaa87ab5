//! Members of a group: delivery from a position, epochs, rebalances.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidegate::log::*;

use crate::kit::*;

#[test]
fn l1_records_come_from_the_start_position_and_epochs_are_exact() {
    let log = log();
    let source = topic(&log, "epochs", 1, &[]);
    let of = TopicPartition::new(&source, 0);
    log.append(Append { to: of.clone(), records: numbered(0..50_000) }).expect("append");
    let joined = join(&log, &unique("group"), std::slice::from_ref(&source), &[]);
    let (partitions, _) = joined.assigned();
    assert_eq!(partitions, vec![of.clone()]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(joined.events.is_empty(), "nothing is delivered before the start");
    // Restarts forward and backward while records are on their way; L1: each epoch begins exactly at its position.
    let positions = [30_000, 100, 49_990, 0, 25_000, 7];
    for (epoch, position) in (1..).zip(positions) {
        joined.member.start(of.clone(), position, epoch);
        let count = if position > 49_000 { 10 } else { 5_000 };
        let mut expected = position;
        let mut seen = 0;
        while seen < count {
            let MemberEvent::Fetched(fetched) = joined.next() else { panic!("only records come") };
            assert!(fetched.epoch <= epoch, "epochs never go back");
            if fetched.epoch < epoch {
                assert_eq!(seen, 0, "an older epoch after the newer one");
                continue;
            }
            for record in &fetched.records {
                assert_eq!(record.offset, expected, "epoch {epoch}");
                assert!(record.headers.is_empty());
                expected += 1;
                seen += 1;
            }
        }
    }
    joined.leave();
}

#[test]
fn pause_skips_nothing_and_headers_come_where_asked() {
    let log = log();
    let (plain, headed) = (topic(&log, "plain", 1, &[]), topic(&log, "headed", 1, &[]));
    let (p, h) = (TopicPartition::new(&plain, 0), TopicPartition::new(&headed, 0));
    let with =
        |n: usize| NewRecord { headers: vec![("n".into(), Bytes::from(n.to_string()))], ..record("k", &n.to_string()) };
    for to in [&p, &h] {
        log.append(Append { to: to.clone(), records: (0..20_000).map(with).collect() }).expect("append");
    }
    let joined = join(&log, &unique("group"), &[plain.clone(), headed.clone()], std::slice::from_ref(&headed));
    assert_eq!(joined.assigned().0.len(), 2);
    joined.member.start(p.clone(), 0, 1);
    joined.member.start(h.clone(), 0, 1);
    let mut next: HashMap<TopicPartition, i64> = HashMap::new();
    let mut turn = 0;
    while next.values().sum::<i64>() < 40_000 {
        let MemberEvent::Fetched(fetched) = joined.next() else { panic!("only records come") };
        let expected = next.entry(fetched.of.clone()).or_default();
        for record in &fetched.records {
            assert_eq!(record.offset, *expected, "{}", fetched.of);
            assert_eq!(record.headers.len(), usize::from(fetched.of == h));
            *expected += 1;
        }
        turn += 1;
        if turn % 3 == 0 {
            joined.member.pause(vec![p.clone(), h.clone()]);
            std::thread::sleep(Duration::from_millis(5));
            joined.member.resume(vec![p.clone(), h.clone()]);
        }
    }
    joined.leave();
}

#[test]
fn out_of_range_stops_the_partition_and_is_told() {
    let log = log();
    let source = topic(&log, "gone", 1, &[]);
    let of = TopicPartition::new(&source, 0);
    log.append(Append { to: of.clone(), records: numbered(0..10) }).expect("append");
    log.purge(&[(of.clone(), 5)]).expect("purge");
    let joined = join(&log, &unique("group"), std::slice::from_ref(&source), &[]);
    joined.assigned();
    joined.member.start(of.clone(), 2, 1);
    match joined.next() {
        MemberEvent::Failed(LogError::OutOfRange(which, 5)) => assert_eq!(which, of),
        other => panic!("{}", told(&other)),
    }
    joined.member.start(of.clone(), 5, 2);
    assert_eq!(texts(&joined.fetch(&of, 2, 5)), ["5", "6", "7", "8", "9"]);
    joined.leave();
}

/// Who owns what, by what the members were told.
#[derive(Default)]
struct Owners {
    of: HashMap<TopicPartition, usize>,
    memberships: HashMap<usize, Membership>,
    violations: Vec<String>,
}

fn watched(
    log: &kafka::KafkaLog,
    group: &str,
    topic: &Arc<str>,
    me: usize,
    owners: &Arc<Mutex<Owners>>,
) -> Arc<dyn Member> {
    let owners = Arc::clone(owners);
    let join = Join {
        group: group.to_owned(),
        client_id: format!("{group}-{me}"),
        topics: vec![Arc::clone(topic)],
        unshared: Vec::new(),
        with_headers: Vec::new(),
    };
    let sink = move |event: MemberEvent| match event {
        MemberEvent::Assigned { partitions, membership } => {
            let mut owners = owners.lock().expect("no panic");
            for of in partitions {
                if let Some(other) = owners.of.insert(of.clone(), me) {
                    owners.violations.push(format!("{of} went to {me} while {other} had it"));
                }
            }
            owners.memberships.insert(me, membership);
        }
        MemberEvent::Revoked { partitions, done, .. } => {
            // Long enough for a rebalance that does not wait to give them away.
            std::thread::sleep(Duration::from_millis(300));
            let mut owners = owners.lock().expect("no panic");
            for of in partitions {
                owners.of.remove(&of);
            }
            drop(done);
        }
        MemberEvent::Failed(error) => owners.lock().expect("no panic").violations.push(error.to_string()),
        _ => {}
    };
    log.join(join, Box::new(sink)).expect("join")
}

#[test]
fn l3_no_partition_has_two_owners_and_memberships_are_current() {
    let log = log();
    let source = topic(&log, "shared", 12, &[]);
    let out = TopicPartition::new(&topic(&log, "shared-out", 1, &[]), 0);
    let group = unique("group");
    let owners = Arc::new(Mutex::new(Owners::default()));
    let settled = |count: usize| {
        eventually(&format!("{count} owners of 12 partitions"), || {
            let owners = owners.lock().expect("no panic");
            let distinct: HashSet<usize> = owners.of.values().copied().collect();
            owners.of.len() == 12 && distinct.len() == count
        });
        // Every member can commit what it owns under the membership that it was told last.
        let mut pending: Vec<usize> = (0..3).collect();
        eventually("every owner commits", || {
            let (of, memberships) = {
                let owners = owners.lock().expect("no panic");
                (owners.of.clone(), owners.memberships.clone())
            };
            pending.retain(|me| {
                let mine = of.iter().filter(|(_, owner)| *owner == me).map(|(of, _)| offset(of, 1, "mine"));
                let mut transaction = transaction(&out, numbered(0..1));
                transaction.offsets = mine.collect();
                if transaction.offsets.is_empty() {
                    return false;
                }
                transaction.membership = memberships[me].clone();
                let mut producer = log.producer(&format!("{group}-tx-{me}")).expect("producer");
                match producer.commit(&transaction) {
                    Ok(_) => false,
                    Err(CommitError::Aborted(_) | CommitError::Stale(_)) => true,
                    Err(other) => panic!("{other}"),
                }
            });
            pending.is_empty()
        });
    };
    let first = watched(&log, &group, &source, 0, &owners);
    settled(1);
    let second = watched(&log, &group, &source, 1, &owners);
    settled(2);
    let third = watched(&log, &group, &source, 2, &owners);
    settled(3);
    first.leave();
    settled(2);
    third.leave();
    settled(1);
    second.leave();
    let owners = owners.lock().expect("no panic");
    assert!(owners.of.is_empty(), "leaving tells Revoked first");
    assert_eq!(owners.violations, Vec::<String>::new());
}

#[test]
fn g2_a_revoke_can_still_commit_what_goes() {
    let log = log();
    let source = topic(&log, "release", 4, &[]);
    let group = unique("group");
    let first = join(&log, &group, std::slice::from_ref(&source), &[]);
    let (_, mut membership) = first.assigned();
    let second = join(&log, &group, std::slice::from_ref(&source), &[]);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        assert!(Instant::now() < deadline);
        match first.next() {
            MemberEvent::Assigned { membership: newer, .. } => membership = newer,
            MemberEvent::Revoked { partitions, lost, done } => {
                assert!(!lost && !partitions.is_empty());
                let mut released = transaction(&TopicPartition::new(&source, 0), Vec::new());
                released.offsets = partitions.iter().map(|of| offset(of, 2, "released")).collect();
                released.membership = membership.clone();
                let mut producer = log.producer(&unique("tx")).expect("producer");
                producer.commit(&released).expect("what goes can be committed until the revoke is answered");
                first.member.commit(&released.offsets, &membership).expect("also without a transaction");
                drop(done);
                let (theirs, _) = second.assigned();
                let (mut a, mut b) = (partitions, theirs);
                a.sort();
                b.sort();
                assert_eq!(a, b);
                let stale = first.member.commit(&released.offsets, &membership);
                assert!(matches!(stale, Err(LogError::Migrated(_))), "{stale:?}");
                break;
            }
            other => panic!("{}", told(&other)),
        }
    }
    first.leave();
    second.leave();
}

#[test]
fn l3_a_revoke_that_is_not_answered_ends_as_a_loss() {
    let log = log();
    let source = topic(&log, "stuck", 4, &[]);
    let group = unique("group");
    let first = join(&log, &group, std::slice::from_ref(&source), &[]);
    let (_, membership) = first.assigned();
    let second = join(&log, &group, std::slice::from_ref(&source), &[]);
    let mut asked = None;
    let lost = loop {
        match first.next() {
            MemberEvent::Assigned { .. } => {}
            MemberEvent::Revoked { partitions, lost: false, done } => {
                assert!(asked.is_none(), "once");
                asked = Some((partitions, done));
            }
            MemberEvent::Revoked { partitions, lost: true, .. } => break partitions,
            other => panic!("{}", told(&other)),
        }
    };
    let (revoked, done) = asked.expect("it is asked first");
    assert_eq!(revoked, lost);
    // The group goes on, although there is still no answer.
    let (mut theirs, _) = second.assigned();
    let mut lost = lost;
    theirs.sort();
    lost.sort();
    assert_eq!(theirs, lost);
    let late = first.member.commit(&[offset(&lost[0], 1, "late")], &membership);
    assert!(matches!(late, Err(LogError::Migrated(_))), "{late:?}");
    drop(done);
    first.leave();
    second.leave();
}
