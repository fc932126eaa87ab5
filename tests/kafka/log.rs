//! Transactions, readers and administration on a healthy broker.

use std::time::Duration;

use bytes::Bytes;
use tidegate::log::kafka::check_properties;
use tidegate::log::*;

use crate::broker;
use crate::kit::*;

#[test]
fn l2_a_transaction_is_visible_as_a_whole_and_ends_are_told() {
    let log = log();
    let (a, b) = (topic(&log, "whole-a", 2, &[]), topic(&log, "whole-b", 1, &[]));
    let (a1, b0) = (TopicPartition::new(&a, 1), TopicPartition::new(&b, 0));
    let mut producer = log.producer(&unique("tx")).expect("producer");
    let headed = NewRecord {
        headers: vec![("stamp".into(), Bytes::from_static(b"7")), ("empty".into(), Bytes::new())],
        ..record("", "headed")
    };
    let mut first = transaction(
        &a1,
        vec![record("k", "one"), headed, NewRecord { key: Some(Bytes::new()), value: None, headers: Vec::new() }],
    );
    first.appends[0].records.push(NewRecord { key: None, value: Some(Bytes::new()), headers: Vec::new() });
    first.appends.push(Append { to: b0.clone(), records: numbered(0..3) });
    first.ends_of = vec![b0.clone(), a1.clone()];
    let receipt = producer.commit(&first).expect("commit");
    // P12: the marker may stand there or not yet.
    let ends: Vec<&TopicPartition> = receipt.ends.iter().map(|(of, _)| of).collect();
    assert_eq!(ends, [&b0, &a1]);
    assert!([3, 4].contains(&receipt.ends[0].1) && [4, 5].contains(&receipt.ends[1].1), "{receipt:?}");
    let mut reader = log.reader(&a1, 0, Isolation::ReadCommitted, true).expect("reader");
    let records = read_to(&mut *reader, 5);
    assert_eq!(texts(&records), ["one", "headed", "", ""]);
    assert_eq!(
        records[1].headers,
        vec![("stamp".to_owned(), Bytes::from_static(b"7")), ("empty".to_owned(), Bytes::new())]
    );
    assert_eq!(records[1].key.as_deref(), Some(&b""[..]), "an empty key is a key");
    assert_eq!((records[2].key.as_deref(), records[2].value.as_deref()), (Some(&b""[..]), None), "a tombstone");
    assert_eq!(
        (records[3].key.as_deref(), records[3].value.as_deref()),
        (None, Some(&b""[..])),
        "an empty value is a value"
    );
    let mut reader = log.reader(&b0, 1, Isolation::ReadCommitted, false).expect("reader");
    assert_eq!(texts(&read_to(&mut *reader, 4)), ["1", "2"]);
}

#[test]
fn l2_what_is_aborted_stays_invisible_and_too_large_is_named() {
    let log = log();
    let topic = topic(&log, "aborted", 2, &[("max.message.bytes", "20000")]);
    let (small, large) = (TopicPartition::new(&topic, 0), TopicPartition::new(&topic, 1));
    let mut producer = log.producer(&unique("tx")).expect("producer");
    let mut refused = transaction(&small, numbered(0..10));
    refused.appends.push(Append { to: large.clone(), records: vec![record("big", &"x".repeat(30_000))] });
    match producer.commit(&refused) {
        Err(CommitError::Aborted(why)) => {
            assert!(why.contains("too large") && why.contains(&large.to_string()), "{why}")
        }
        other => panic!("{other:?}"),
    }
    // The producer goes on; position passes what was aborted.
    producer.commit(&transaction(&small, numbered(10..12))).expect("the producer is usable");
    let high = settled_end(&log, &small);
    let mut reader = log.reader(&small, 0, Isolation::ReadCommitted, false).expect("reader");
    assert_eq!(texts(&read_to(&mut *reader, high)), ["10", "11"]);
    let mut all = log.reader(&small, 0, Isolation::ReadUncommitted, false).expect("reader");
    assert!(read_to(&mut *all, high).len() >= 2);
    match producer.commit(&transaction(&TopicPartition::new(&topic, 7), numbered(0..1))) {
        Err(CommitError::Aborted(why)) => assert!(why.contains("does not exist"), "{why}"),
        other => panic!("{other:?}"),
    }
    producer.commit(&transaction(&large, numbered(0..1))).expect("the producer is usable");
}

#[test]
fn a_fenced_producer_is_told_and_recovers() {
    let log = log();
    let of = TopicPartition::new(&topic(&log, "fenced", 1, &[]), 0);
    let id = unique("tx");
    let mut old = log.producer(&id).expect("producer");
    old.commit(&transaction(&of, numbered(0..1))).expect("commit");
    let mut new = log.producer(&id).expect("producer");
    match old.commit(&transaction(&of, numbered(1..2))) {
        Err(CommitError::Fenced(why)) => eprintln!("fenced: {why}"),
        other => panic!("{other:?}"),
    }
    assert!(
        matches!(old.commit(&transaction(&of, numbered(1..2))), Err(CommitError::Fenced(_))),
        "recover comes first"
    );
    new.commit(&transaction(&of, numbered(2..3))).expect("the new holder");
    old.recover().expect("recover");
    old.commit(&transaction(&of, numbered(3..4))).expect("after recover");
    let high = settled_end(&log, &of);
    let mut reader = log.reader(&of, 0, Isolation::ReadCommitted, false).expect("reader");
    assert_eq!(texts(&read_to(&mut *reader, high)), ["0", "2", "3"]);
}

/// Opens a transaction that its owner never ends; the handle is leaked, as a dead process's would be.
fn dead_owner(id: &str, of: &TopicPartition, group: Option<(&str, &TopicPartition)>) {
    use rdkafka::config::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker::shared().servers());
    let producer: BaseProducer = config
        .clone()
        .set("transactional.id", id)
        .set("transaction.timeout.ms", "60000")
        .create()
        .expect("raw producer");
    let timeout = Duration::from_secs(10);
    producer.init_transactions(timeout).expect("init");
    producer.begin_transaction().expect("begin");
    let record = BaseRecord::to(&of.topic).partition(of.partition).key("k").payload("open");
    producer.send(record).map_err(|(error, _)| error).expect("send");
    producer.flush(timeout).expect("flush");
    if let Some((group, source)) = group {
        let consumer: BaseConsumer = config.set("group.id", group).create().expect("raw consumer");
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(&source.topic, source.partition, rdkafka::Offset::Offset(9)).expect("list");
        let metadata = consumer.group_metadata().expect("metadata");
        producer.send_offsets_to_transaction(&list, &metadata, timeout).expect("offsets");
    }
    std::mem::forget(producer);
}

#[test]
fn p6_fence_ends_a_dead_owners_transaction() {
    let log = log();
    let of = TopicPartition::new(&topic(&log, "dead", 1, &[]), 0);
    let id = unique("tx");
    dead_owner(&id, &of, None);
    assert_eq!(log.watermarks(&of).expect("watermarks").high, 1, "P12: undecided records count");
    let mut reader = log.reader(&of, 0, Isolation::ReadCommitted, false).expect("reader");
    for _ in 0..5 {
        assert!(reader.next(Duration::from_millis(100)).expect("read").is_empty());
    }
    assert_eq!(reader.position(), 0, "the open transaction blocks");
    log.fence(&id).expect("fence");
    assert!(read_to(&mut *reader, 2).is_empty());
}

#[test]
fn p15_committed_positions_carry_metadata_and_may_be_unstable() {
    let log = log();
    let source = topic(&log, "committed", 3, &[]);
    let out = TopicPartition::new(&topic(&log, "committed-out", 1, &[]), 0);
    let of: Vec<TopicPartition> = (0..3).map(|p| TopicPartition::new(&source, p)).collect();
    let group = unique("group");
    assert_eq!(log.committed(&group, &of, true).expect("none yet"), vec![None, None, None]);
    let joined = join(&log, &group, std::slice::from_ref(&source), &[]);
    let (_, membership) = joined.assigned();
    let mut producer = log.producer(&unique("tx")).expect("producer");
    let mut first = transaction(&out, numbered(0..1));
    first.offsets = vec![offset(&of[0], 5, "tx-1 17 127.0.0.1:80"), offset(&of[2], 0, "")];
    first.membership = membership.clone();
    producer.commit(&first).expect("commit");
    let committed = |position, metadata: &str| Some(Committed { position, metadata: metadata.to_owned() });
    let expected = vec![committed(5, "tx-1 17 127.0.0.1:80"), None, committed(0, "")];
    assert_eq!(patiently("stable", || log.committed(&group, &of, true)), expected);
    joined.member.commit(&[offset(&of[1], 3, "claimed")], &membership).expect("plain commit");
    assert_eq!(log.committed(&group, &of[1..2], false).expect("committed"), vec![committed(3, "claimed")]);
    let stale = Membership(Bytes::from_static(b"stale"));
    assert!(matches!(joined.member.commit(&[offset(&of[1], 4, "")], &stale), Err(LogError::Migrated(_))));
    joined.leave();
    // A dead owner's offsets are undecided until it is fenced.
    let id = unique("tx");
    dead_owner(&id, &out, Some((&group, &of[0])));
    match log.committed(&group, &of, true) {
        Err(LogError::Unstable(which)) => assert_eq!(which, of[0]),
        other => panic!("{other:?}"),
    }
    assert_eq!(log.committed(&group, &of[..1], false).expect("unstable is asked for"), expected[..1]);
    log.fence(&id).expect("fence");
    assert_eq!(patiently("stable again", || log.committed(&group, &of[..1], true)), expected[..1]);
}

#[test]
fn p2_a_stale_membership_aborts_the_transaction() {
    let log = log();
    let source = topic(&log, "stale", 1, &[]);
    let of = TopicPartition::new(&source, 0);
    let out = TopicPartition::new(&topic(&log, "stale-out", 1, &[]), 0);
    let group = unique("group");
    let first = join(&log, &group, std::slice::from_ref(&source), &[]);
    let (_, old) = first.assigned();
    first.leave();
    let second = join(&log, &group, std::slice::from_ref(&source), &[]);
    let (_, new) = second.assigned();
    assert_ne!(old, new);
    let mut producer = log.producer(&unique("tx")).expect("producer");
    let mut zombie = transaction(&out, numbered(0..5));
    zombie.offsets = vec![offset(&of, 1, "")];
    zombie.membership = old;
    match producer.commit(&zombie) {
        Err(CommitError::Aborted(why)) => eprintln!("aborted: {why}"),
        other => panic!("{other:?}"),
    }
    zombie.membership = new;
    producer.commit(&zombie).expect("with the membership of now");
    let high = settled_end(&log, &out);
    let mut reader = log.reader(&out, 0, Isolation::ReadCommitted, false).expect("reader");
    assert_eq!(texts(&read_to(&mut *reader, high)), ["0", "1", "2", "3", "4"], "only the second attempt");
    second.leave();
}

#[test]
fn topics_are_created_described_and_purged() {
    let log = log();
    let settings = [("cleanup.policy", "compact"), ("delete.retention.ms", "1234567"), ("max.message.bytes", "54321")];
    let name = topic(&log, "described", 4, &settings);
    let missing = unique("missing");
    let found = log.describe(&[&missing, &name]).expect("describe");
    assert_eq!(found[0], None);
    let described = found[1].clone().expect("it is there");
    assert_eq!((described.partitions, &*described.cleanup_policy), (4, "compact"));
    assert_eq!((described.delete_retention_ms, described.max_message_bytes), (1_234_567, 54321));
    assert!(described.id.len() >= 20, "{}", described.id);
    let again = NewTopic { name: name.to_string(), partitions: 9, replication_factor: None, settings: Vec::new() };
    log.create(&[again]).expect("one that is there is left as it is");
    assert_eq!(log.describe(&[&name]).expect("describe")[0].as_ref(), Some(&described));
    let bad = NewTopic {
        name: unique("bad"),
        partitions: 1,
        replication_factor: None,
        settings: vec![("no.such".into(), "1".into())],
    };
    assert!(matches!(log.create(&[bad]), Err(LogError::Refused(_))));

    let of = TopicPartition::new(&topic(&log, "purged", 1, &[]), 0);
    assert_eq!(
        log.append(Append { to: of.clone(), records: numbered(0..10) }).expect("append"),
        (0..10).collect::<Vec<i64>>()
    );
    let headed = NewRecord { headers: vec![("h".into(), Bytes::from_static(b"v"))], ..record("k", "10") };
    assert_eq!(
        log.append(Append { to: of.clone(), records: vec![headed, record("k", "11")] }).expect("append"),
        [10, 11]
    );
    log.purge(&[(of.clone(), 4)]).expect("purge");
    assert_eq!(log.watermarks(&of).expect("watermarks"), Watermarks { low: 4, high: 12 });
    for position in [2, 99] {
        let mut reader = log.reader(&of, position, Isolation::ReadCommitted, false).expect("reader");
        let mut result = Ok(Vec::new());
        eventually("an answer", || {
            result = reader.next(Duration::from_millis(200));
            !matches!(&result, Ok(records) if records.is_empty())
        });
        assert!(matches!(&result, Err(LogError::OutOfRange(which, 4)) if *which == of), "{position}: {result:?}");
    }
    let mut reader = log.reader(&of, 4, Isolation::ReadCommitted, true).expect("reader");
    assert_eq!(texts(&read_to(&mut *reader, 12)).len(), 8);
    assert!(log.purge(&[(of, 50)]).is_err());
}

#[test]
fn unknown_topics_and_refused_records_are_told() {
    let log = log();
    let none: std::sync::Arc<str> = unique("none").into();
    let of = TopicPartition::new(&none, 0);
    assert!(matches!(log.watermarks(&of), Err(LogError::UnknownTopic(_))), "{:?}", log.watermarks(&of));
    let append = Append { to: of, records: numbered(0..1) };
    assert!(matches!(log.append(append.clone()), Err(LogError::UnknownTopic(_))), "{:?}", log.append(append));
    let small = TopicPartition::new(&topic(&log, "small", 1, &[("max.message.bytes", "1000")]), 0);
    let append = Append { to: small.clone(), records: vec![record("k", &"x".repeat(5000))] };
    assert!(matches!(log.append(append), Err(LogError::Refused(_))));
    assert_eq!(log.append(Append { to: small, records: numbered(0..1) }).expect("append").len(), 1);
}

#[test]
fn s1_properties_of_the_product_are_refused_by_name() {
    let with = |name: &str| check_properties(&[(name.to_owned(), "x".into())].into());
    for name in ["isolation.level", "transactional.id", "auto.offset.reset", "group.id", "enable.auto.commit", "acks"] {
        let why = with(name).expect_err("refused");
        assert!(why.contains(name), "{why}");
    }
    for name in ["security.protocol", "sasl.mechanism", "compression.type", "linger.ms", "fetch.min.bytes"] {
        assert_eq!(with(name), Ok(()));
    }
}
