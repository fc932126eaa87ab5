//! Records, topics, ends, purging, and who may open the folder.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn records_come_back_as_they_went_in() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 2, &[]);
    let of = at("t", 1);
    let headers = vec![("a".to_owned(), Bytes::from_static(b"1")), ("a".to_owned(), Bytes::new())];
    let odd = NewRecord { key: None, value: Some(Bytes::new()), headers: headers.clone() };
    let tombstone = NewRecord { key: Some(Bytes::new()), value: None, headers: Vec::new() };
    assert_eq!(log.append(Append { to: of.clone(), records: vec![odd, tombstone] }).unwrap(), [0, 1]);
    assert_eq!(log.append(append(&of, &["x"])).unwrap(), [2]);
    assert!(log.append(append(&of, &[])).unwrap().is_empty());
    let check = |log: &EmbeddedLog| {
        let all = read(log, &of, 0, COMMITTED);
        assert_eq!(all.iter().map(|record| record.offset).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!((&all[0].key, &all[0].value, &all[0].headers), (&None, &Some(Bytes::new()), &headers));
        assert_eq!((&all[1].key, &all[1].value), (&Some(Bytes::new()), &None));
        assert!((tidegate::clock::wall_ms() - all[0].timestamp_ms).abs() < 60_000);
        assert_eq!(read(log, &at("t", 0), 0, COMMITTED).len(), 0);
        assert_eq!(read(log, &of, 2, COMMITTED).len(), 1);
        let mut without = log.reader(&of, 0, COMMITTED, false).unwrap();
        assert!(without.next(LONG).unwrap()[0].headers.is_empty());
        assert_eq!(log.watermarks(&of).unwrap(), tidegate::log::Watermarks { low: 0, high: 3 });
    };
    check(&log);
    drop(log);
    let log = open(folder.path());
    check(&log);
    assert_eq!(log.append(append(&of, &["y"])).unwrap(), [3]);
}

/// E2, E10: many records and big ones, in several batches, whole and from any offset.
#[test]
fn long_runs_are_split_and_read_from_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 1, &[]);
    let of = at("t", 0);
    let small = (0..10_000).map(|number| record("k", &number.to_string()));
    let big = (0..5).map(|_| record("k", &"b".repeat(700_000)));
    let records: Vec<NewRecord> = small.chain(big).collect();
    let offsets = log.append(Append { to: of.clone(), records }).unwrap();
    assert_eq!(offsets, (0..10_005).collect::<Vec<_>>());
    for from in [0, 1, 4_095, 4_096, 4_097, 9_999, 10_001, 10_004, 10_005] {
        let all = read(&log, &of, from, COMMITTED);
        assert_eq!(all.iter().map(|record| record.offset).collect::<Vec<_>>(), (from..10_005).collect::<Vec<_>>());
        assert!(
            all.iter()
                .filter(|record| record.offset < 10_000)
                .all(|record| text(&record.value) == record.offset.to_string())
        );
    }
    let mut reader = log.reader(&of, 0, COMMITTED, false).unwrap();
    while reader.position() < 10_005 {
        let some = reader.next(LONG).unwrap();
        let bytes: usize = some.iter().map(|record| record.value.as_ref().map_or(0, Bytes::len)).sum();
        assert!(some.len() <= 4_096 && bytes <= 3 << 20, "{} records of {bytes} bytes at once", some.len());
    }
}

#[test]
fn what_the_log_never_takes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 1, &[("max.message.bytes", "1000")]);
    create(&log, "c", 1, &[("cleanup.policy", "compact")]);
    let too_big = log.append(append(&at("t", 0), &[&"x".repeat(1001)])).unwrap_err();
    assert!(matches!(&too_big, LogError::Refused(reason) if reason.contains("max.message.bytes")), "{too_big}");
    let keyless = Append { to: at("c", 0), records: vec![NewRecord::default()] };
    assert!(matches!(log.append(keyless), Err(LogError::Refused(_))));
    for of in [at("t", 1), at("t", -1), at("u", 0)] {
        assert!(matches!(log.append(append(&of, &["x"])), Err(LogError::UnknownTopic(_))));
        assert!(matches!(log.watermarks(&of), Err(LogError::UnknownTopic(_))));
        assert!(matches!(log.reader(&of, 0, COMMITTED, false), Err(LogError::UnknownTopic(_))));
    }
    for (name, partitions, settings) in [
        ("", 1, vec![]),
        ("a b", 1, vec![]),
        ("d", 0, vec![]),
        ("d", 1, vec![("cleanup.policy".to_owned(), "keep".to_owned())]),
    ] {
        let new = NewTopic { name: name.to_owned(), partitions, replication_factor: None, settings };
        assert!(matches!(log.create(&[new]), Err(LogError::Refused(_))));
    }
    assert_eq!(log.watermarks(&at("t", 0)).unwrap().high, 0);
}

#[test]
fn topics_keep_what_they_were_made_with() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "a", 3, &[("cleanup.policy", "compact"), ("delete.retention.ms", "5"), ("segment.ms", "7")]);
    create(&log, "b", 1, &[]);
    let before = log.describe(&["a", "none", "b"]).unwrap();
    create(&log, "a", 9, &[]);
    assert_eq!(log.describe(&["a", "none", "b"]).unwrap(), before, "one that exists is left as it is");
    drop(log);
    let log = open(folder.path());
    assert_eq!(log.describe(&["a", "none", "b"]).unwrap(), before);
    let [Some(a), None, Some(b)] = &before[..] else { panic!("{before:?}") };
    assert_eq!((a.partitions, &*a.cleanup_policy, a.delete_retention_ms), (3, "compact", 5));
    assert_eq!((b.partitions, &*b.cleanup_policy, b.delete_retention_ms), (1, "delete", 86_400_000));
    assert_eq!((b.max_message_bytes, a.id == b.id), (1_048_588, false));
}

/// T1.
#[test]
fn a_topic_made_again_is_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 1, &[]);
    let of = at("t", 0);
    log.append(append(&of, &["old", "old"])).unwrap();
    let mut reader = log.reader(&of, 0, COMMITTED, false).unwrap();
    let first = log.describe(&["t"]).unwrap();
    log.delete_topic("t").unwrap();
    assert_eq!(log.describe(&["t"]).unwrap(), [None]);
    drop(reader.next(LONG).unwrap_err());
    drop((reader, log));
    let log = open(folder.path());
    create(&log, "t", 1, &[]);
    assert_ne!(log.describe(&["t"]).unwrap()[0].as_ref().unwrap().id, first[0].as_ref().unwrap().id);
    assert_eq!(log.append(append(&of, &["new"])).unwrap(), [0]);
    assert_eq!(values(&log, &of, COMMITTED), "new");
}

/// E6, E7, E10.
#[test]
fn purging_is_for_good_and_never_skipped_silently() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 1, &[]);
    let of = at("t", 0);
    for batch in ["a", "b", "c"] {
        log.append(append(&of, &[batch, batch, batch])).unwrap();
    }
    let mut late = log.reader(&of, 2, COMMITTED, false).unwrap();
    log.purge(&[(of.clone(), 4)]).unwrap();
    log.purge(&[(of.clone(), 2)]).unwrap();
    assert!(matches!(late.next(LONG), Err(LogError::OutOfRange(_, 4))));
    assert!(matches!(log.purge(&[(of.clone(), 10)]), Err(LogError::OutOfRange(_, 4))));
    let check = |log: &EmbeddedLog, low| {
        assert_eq!(log.watermarks(&of).unwrap(), tidegate::log::Watermarks { low, high: 9 });
        let below = log.reader(&of, low - 1, COMMITTED, false).and_then(|mut reader| reader.next(LONG));
        assert!(matches!(below, Err(LogError::OutOfRange(_, at)) if at == low));
        let above = log.reader(&of, 10, COMMITTED, false).and_then(|mut reader| reader.next(LONG));
        assert!(matches!(above, Err(LogError::OutOfRange(..))));
        assert_eq!(read(log, &of, low, COMMITTED).len() as i64, 9 - low);
    };
    check(&log, 4);
    drop((late, log));
    let log = open(folder.path());
    check(&log, 4);
    log.purge(&[(of.clone(), 9)]).unwrap();
    check(&log, 9);
    drop(log);
    let log = open(folder.path());
    check(&log, 9);
    assert_eq!(log.append(append(&of, &["d"])).unwrap(), [9]);
}

/// E7: a reader that races with purging either has all records or is told.
#[test]
fn a_reader_that_races_with_purging_misses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 1, &[]);
    let of = at("t", 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..2_000 {
                log.append(append(&of, &["x", "y"])).unwrap();
                log.purge(&[(of.clone(), round)]).unwrap();
            }
        });
        let (mut position, mut seen, mut told) = (0, 0, 0);
        while position < 4_000 {
            let mut reader = log.reader(&of, position, COMMITTED, false).unwrap();
            match reader.next(Duration::from_millis(1)) {
                Ok(records) => {
                    for record in records {
                        assert_eq!(record.offset, position, "a record was skipped");
                        position += 1;
                        seen += 1;
                    }
                }
                Err(LogError::OutOfRange(_, low)) => {
                    assert!(low > position);
                    position = low;
                    told += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(seen > 0, "{told}");
    });
}

/// E3: a reader at the end is woken by an append.
#[test]
fn a_waiting_reader_is_woken() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 1, &[]);
    let of = at("t", 0);
    let mut reader = log.reader(&of, 0, COMMITTED, false).unwrap();
    assert!(reader.next(Duration::from_millis(20)).unwrap().is_empty());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| reader.next(LONG).unwrap());
        std::thread::sleep(Duration::from_millis(50));
        let appended = std::time::Instant::now();
        log.append(append(&of, &["x"])).unwrap();
        assert_eq!(waiting.join().unwrap().len(), 1);
        assert!(appended.elapsed() < Duration::from_secs(2));
    });
}

/// E8.
#[test]
fn a_second_owner_is_refused_and_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep").join("log");
    let log = open(&path);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    let refused = message(EmbeddedLog::open(&path, EmbeddedOptions::default()).err().expect("refused"));
    for part in [&*path.display().to_string(), &std::process::id().to_string(), "log.path", "stop it"] {
        assert!(refused.contains(part), "{part} is missing in: {refused}");
    }
    create(&log, "t", 1, &[]);
    let reader = log.reader(&at("t", 0), 0, COMMITTED, false).unwrap();
    drop(log);
    assert!(EmbeddedLog::open(&path, EmbeddedOptions::default()).is_err(), "a reader still uses it");
    drop(reader);
    open(&path);
}

#[test]
fn folders_that_are_no_log_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("thesis.txt"), "mine").unwrap();
    let foreign = message(EmbeddedLog::open(folder.path(), EmbeddedOptions::default()).err().expect("refused"));
    assert!(foreign.contains("not a Tidegate log"), "{foreign}");
    let file = folder.path().join("thesis.txt").join("log");
    let below_file = message(EmbeddedLog::open(&file, EmbeddedOptions::default()).err().expect("refused"));
    assert!(below_file.contains("thesis.txt") && below_file.contains("log.path"), "{below_file}");
    assert!(EmbeddedLog::open_beside(folder.path()).is_err());
    // A lost database must not look like an empty log.
    let path = folder.path().join("log");
    drop(open(&path));
    std::fs::remove_dir_all(path.join("db")).unwrap();
    assert!(EmbeddedLog::open(&path, EmbeddedOptions::default()).is_err());
}

#[test]
fn a_reader_beside_the_owner_sees_what_is_written_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(folder.path());
    create(&log, "t", 1, &[]);
    let of = at("t", 0);
    log.append(append(&of, &["a"])).unwrap();
    let beside = EmbeddedLog::open_beside(folder.path()).unwrap();
    let mut reader = beside.reader(&of, 0, COMMITTED, false).unwrap();
    assert_eq!(reader.next(LONG).unwrap().len(), 1);
    log.append(append(&of, &["b"])).unwrap();
    assert_eq!(beside.watermarks(&of).unwrap().high, 2);
    assert_eq!(reader.next(LONG).unwrap().len(), 1);
    let number = log.begin("p").unwrap();
    log.append_in(number, &append(&of, &["c"])).unwrap();
    assert_eq!(values(&beside, &of, COMMITTED), "a b");
    assert_eq!(values(&beside, &of, UNCOMMITTED), "a b c");
    log.decide(number, true).unwrap();
    assert_eq!(reader.next(LONG).unwrap().len(), 1);
    create(&log, "later", 1, &[]);
    assert!(beside.describe(&["later"]).unwrap()[0].is_some());
    log.purge(&[(of.clone(), 2)]).unwrap();
    assert_eq!(beside.watermarks(&of).unwrap().low, 2);
    let gone = beside.reader(&of, 0, COMMITTED, false).unwrap().next(LONG);
    assert!(matches!(gone, Err(LogError::OutOfRange(_, 2))));
    assert!(matches!(beside.append(append(&of, &["x"])), Err(LogError::Refused(_))));
    assert!(matches!(beside.producer("p").err(), Some(LogError::Refused(_))));
    assert!(matches!(beside.purge(&[(of.clone(), 3)]), Err(LogError::Refused(_))));
    assert!(matches!(beside.begin("p"), Err(LogError::Refused(_))));
    drop(log);
    assert_eq!(values_from(&beside, &of, 2), "c", "also when there is no owner");
}

fn values_from(log: &EmbeddedLog, of: &TopicPartition, from: i64) -> String {
    read(log, of, from, COMMITTED).iter().map(|record| text(&record.value)).collect()
}
