//! Transactions: whole or not at all, undecided, aborted, fenced.

use tidegate::log::CommitError;

use super::groups::Engine;
use super::*;

/// L2, and what the receipt tells (protocol P11).
#[test]
fn a_transaction_is_there_as_a_whole_with_its_positions() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 2, &[]);
    let (a, b) = (at("t", 0), at("t", 1));
    let engine = Engine::join(&log, "group", &["t"]);
    let membership = engine.settled(2);
    let mut producer = log.producer("p").unwrap();
    let receipt = producer
        .commit(&Transaction {
            appends: vec![append(&a, &["1", "2"]), append(&b, &["3"]), append(&a, &["4"])],
            offsets: vec![commit_of(&a, 7, "mine 1"), commit_of(&b, 0, "")],
            membership: membership.clone(),
            ends_of: vec![b.clone(), a.clone(), at("none", 0)],
        })
        .unwrap();
    assert_eq!(receipt.ends, [(b.clone(), 1), (a.clone(), 3)]);
    let check = |log: &EmbeddedLog| {
        assert_eq!((values(log, &a, COMMITTED), values(log, &b, COMMITTED)), ("1 2 4".into(), "3".into()));
        let committed = log.committed("group", &[a.clone(), b.clone()], true).unwrap();
        let told: Vec<_> = committed.into_iter().flatten().map(|c| (c.position, c.metadata)).collect();
        assert_eq!(told, [(7, "mine 1".to_owned()), (0, String::new())]);
        assert_eq!(log.committed("other", std::slice::from_ref(&a), true).unwrap(), [None]);
    };
    check(&log);
    let refused = producer.commit(&Transaction {
        appends: vec![append(&a, &["never"]), append(&at("none", 0), &["never"])],
        ..plain(Vec::new())
    });
    assert!(matches!(refused, Err(CommitError::Aborted(_))));
    let negative =
        Transaction { offsets: vec![commit_of(&a, -1, "")], membership, ..plain(vec![append(&a, &["never"])]) };
    assert!(matches!(producer.commit(&negative), Err(CommitError::Aborted(_))));
    check(&log);
    engine.leave();
    drop((producer, engine, log));
    check(&open(folder.path()));
}

/// X1: readers stop at the first undecided record, and aborted ones are passed over.
#[test]
fn undecided_records_hold_committed_readers_up() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 1, &[]);
    let of = at("t", 0);
    log.append(append(&of, &["a"])).unwrap();
    let (first, second) = (log.begin("p").unwrap(), log.begin("q").unwrap());
    assert_eq!(log.append_in(first, &append(&of, &["P"])).unwrap(), [1]);
    log.append(append(&of, &["b"])).unwrap();
    assert_eq!(log.append_in(second, &append(&of, &["Q", "Q"])).unwrap(), [3, 4]);
    log.append(append(&of, &["c"])).unwrap();
    let mut reader = log.reader(&of, 0, COMMITTED, false).unwrap();
    assert_eq!(reader.next(LONG).unwrap().len(), 1);
    assert!(reader.next(Duration::from_millis(5)).unwrap().is_empty());
    assert_eq!((reader.position(), log.watermarks(&of).unwrap().high), (1, 6));
    assert_eq!(values(&log, &of, UNCOMMITTED), "a P b Q Q c");
    log.decide(first, false).unwrap();
    assert_eq!(values(&log, &of, COMMITTED), "a b", "the second one is still undecided");
    log.decide(second, true).unwrap();
    assert_eq!(values(&log, &of, COMMITTED), "a b Q Q c");
    assert_eq!(values(&log, &of, UNCOMMITTED), "a P b Q Q c");
    assert_eq!(reader.next(LONG).unwrap().len(), 4);
    let high = log.watermarks(&of).unwrap().high;
    assert_eq!((reader.next(Duration::ZERO).unwrap().len(), reader.position(), high), (0, 8, 8), "markers are passed");
    assert!(matches!(log.decide(first, true), Err(LogError::Migrated(_))));
    assert!(matches!(log.append_in(second, &append(&of, &["x"])), Err(LogError::Migrated(_))));
}

/// X1, X2, X3: the same when the process ends at any moment.
#[test]
fn undecided_and_aborted_transactions_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let of = at("t", 0);
    let log = open(folder.path());
    create(&log, "t", 1, &[]);
    let (aborted, open_one) = (log.begin("p").unwrap(), log.begin("q").unwrap());
    log.append_in(aborted, &append(&of, &["P"])).unwrap();
    log.append_in(open_one, &append(&of, &["Q"])).unwrap();
    log.decide(aborted, false).unwrap();
    log.append(append(&of, &["a"])).unwrap();
    drop(log);
    let log = open(folder.path());
    assert_eq!(values(&log, &of, COMMITTED), "");
    assert_eq!(values(&log, &of, UNCOMMITTED), "P Q a");
    let next = log.begin("r").unwrap();
    assert!(next > aborted && next > open_one);
    log.decide(open_one, true).unwrap();
    assert_eq!(values(&log, &of, COMMITTED), "Q a");
    drop(log);
    let log = open(folder.path());
    assert_eq!(values(&log, &of, COMMITTED), "Q a");
    log.purge(&[(of.clone(), log.watermarks(&of).unwrap().high)]).unwrap();
    drop(log);
    assert_eq!(open(folder.path()).append(append(&of, &["b"])).unwrap(), [5]);
}

/// Protocol P6a, P15: a position that an undecided transaction carries is not stable.
#[test]
fn pending_positions_are_unstable_until_decided() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 2, &[]);
    let (a, b) = (at("t", 0), at("t", 1));
    let engine = Engine::join(&log, "group", &["t"]);
    let membership = engine.settled(2);
    engine.member.commit(&[commit_of(&a, 1, "plain")], &membership).unwrap();
    let position =
        |stable| log.committed("group", std::slice::from_ref(&a), stable).map(|all| all[0].as_ref().unwrap().position);
    let number = log.begin("p").unwrap();
    log.offsets_in(number, &[commit_of(&a, 2, "")], &membership).unwrap();
    assert!(matches!(position(true), Err(LogError::Unstable(of)) if of == a));
    assert_eq!(position(false).unwrap(), 1, "the last decided state");
    assert_eq!(log.committed("group", &[b], true).unwrap(), [None]);
    log.decide(number, false).unwrap();
    assert_eq!(position(true).unwrap(), 1);
    let number = log.begin("p").unwrap();
    log.offsets_in(number, &[commit_of(&a, 3, "")], &membership).unwrap();
    log.decide(number, true).unwrap();
    assert_eq!(position(true).unwrap(), 3);
    engine.leave();
    let late = log.begin("p").unwrap();
    assert!(matches!(log.offsets_in(late, &[commit_of(&a, 4, "")], &membership), Err(LogError::Migrated(_))));
}

/// X2, protocol P6a: whoever takes the id over decides what its dead holder left.
#[test]
fn taking_an_id_over_aborts_its_open_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 1, &[]);
    let of = at("t", 0);
    let mut producer = log.producer("p").unwrap();
    let leave_open = || {
        let number = log.begin("p").unwrap();
        log.append_in(number, &append(&of, &["never"])).unwrap();
        log.append(append(&of, &["a"])).unwrap();
        assert!(log.begin("p").is_err(), "one at a time");
        number
    };
    let mut seen = 0;
    for way in 0..3 {
        let number = leave_open();
        assert_eq!(read(&log, &of, 0, COMMITTED).len(), seen);
        match way {
            0 => log.fence("p").unwrap(),
            1 => producer.recover().unwrap(),
            _ => drop(log.producer("p").unwrap()),
        }
        seen += 1;
        assert_eq!(read(&log, &of, 0, COMMITTED).len(), seen);
        assert!(matches!(log.append_in(number, &append(&of, &["zombie"])), Err(LogError::Migrated(_))));
        assert!(log.decide(number, true).is_err());
    }
    log.fence("nobody").unwrap();
}

/// X4.
#[test]
fn an_old_producer_is_fenced_until_it_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 1, &[]);
    let of = at("t", 0);
    let mut old = log.producer("p").unwrap();
    let mut other = log.producer("q").unwrap();
    old.commit(&plain(vec![append(&of, &["1"])])).unwrap();
    let mut new = log.producer("p").unwrap();
    assert!(matches!(old.commit(&plain(vec![append(&of, &["zombie"])])), Err(CommitError::Fenced(_))));
    new.commit(&plain(vec![append(&of, &["2"])])).unwrap();
    other.commit(&plain(vec![append(&of, &["3"])])).unwrap();
    log.fence("p").unwrap();
    assert!(matches!(new.commit(&plain(vec![append(&of, &["zombie"])])), Err(CommitError::Fenced(_))));
    old.recover().unwrap();
    old.commit(&plain(vec![append(&of, &["4"])])).unwrap();
    assert!(matches!(new.commit(&plain(vec![append(&of, &["zombie"])])), Err(CommitError::Fenced(_))));
    assert_eq!(values(&log, &of, COMMITTED), "1 2 3 4");
}

/// Protocol P2: a membership of an earlier generation, or of one who has left, commits nothing.
#[test]
fn a_stale_membership_commits_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 4, &[]);
    let of = at("t", 0);
    let mut producer = log.producer("p").unwrap();
    let mut commit = |membership: &Membership| {
        let offsets = vec![commit_of(&of, 1, "")];
        producer.commit(&Transaction { offsets, membership: membership.clone(), ..plain(vec![append(&of, &["x"])]) })
    };
    let one = Engine::join(&log, "group", &["t"]);
    let alone = one.settled(4);
    commit(&alone).unwrap();
    let two = Engine::join(&log, "group", &["t"]);
    let (first, second) = (one.settled(2), two.settled(2));
    assert!(matches!(commit(&alone), Err(CommitError::Aborted(_))));
    assert!(matches!(one.member.commit(&[commit_of(&of, 9, "")], &alone), Err(LogError::Migrated(_))));
    commit(&first).unwrap();
    commit(&second).unwrap();
    two.leave();
    one.settled(4);
    assert!(matches!(commit(&second), Err(CommitError::Aborted(_))));
    assert!(matches!(commit(&first), Err(CommitError::Aborted(_))));
    assert!(matches!(commit(&Membership(Bytes::from_static(b"{}"))), Err(CommitError::Aborted(_))));
    assert_eq!(values(&log, &of, COMMITTED), "x x x");
    assert_eq!(log.committed("group", std::slice::from_ref(&of), true).unwrap()[0].as_ref().unwrap().position, 1);
    one.leave();
}
