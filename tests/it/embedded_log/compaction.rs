//! Compaction against a model, by seeds (C1 to C4).

use std::collections::BTreeMap;

use super::*;

fn compacting(path: &Path, compact_keys: usize) -> EmbeddedLog {
    let options = EmbeddedOptions { sync: false, compact_keys, ..EmbeddedOptions::default() };
    EmbeddedLog::open(path, options).expect("the log opens")
}

/// What a reader of the whole log holds in the end, and which offsets it may never miss.
fn fold(all: &[Record]) -> BTreeMap<String, Option<String>> {
    all.iter().map(|record| (text(&record.key), record.value.is_some().then(|| text(&record.value)))).collect()
}

fn put(key: u32, value: Option<u32>) -> NewRecord {
    let value = value.map(|value| Bytes::from(value.to_string()));
    NewRecord {
        key: Some(Bytes::from(format!("k{key}"))),
        value,
        headers: vec![("h".into(), Bytes::from(key.to_string()))],
    }
}

/// C1: the same fold at every moment, offsets unchanged, nothing superseded left below the last
/// stable offset, everything left above it.
#[test]
fn compaction_changes_nothing_that_a_reader_ends_with() {
    for seed in 0..12 {
        let mut random = fastrand::Rng::with_seed(seed);
        let folder = tempfile::tempdir().unwrap();
        let keys = [3, 20, 1_000_000][seed as usize % 3];
        let mut log = compacting(folder.path(), keys);
        create(&log, "c", 1, &[("cleanup.policy", "compact")]);
        let of = at("c", 0);
        let mut written: BTreeMap<i64, (String, String)> = BTreeMap::new();
        let mut open: Vec<u64> = Vec::new();
        let mut counter = 0;
        for step in 0..120 {
            let records: Vec<NewRecord> = (0..1 + random.u32(..6))
                .map(|_| {
                    counter += 1;
                    put(random.u32(..12), (random.u8(..5) > 0).then_some(counter))
                })
                .collect();
            let new = Append { to: of.clone(), records: records.clone() };
            let offsets = match random.u8(..10) {
                0 if open.len() < 2 => {
                    let number = log.begin(&format!("p{step}")).unwrap();
                    open.push(number);
                    log.append_in(number, &new).unwrap()
                }
                1 if !open.is_empty() => log.append_in(open[0], &new).unwrap(),
                2 | 3 if !open.is_empty() => {
                    log.decide(open.swap_remove(random.usize(..open.len())), random.bool()).unwrap();
                    log.append(new).unwrap()
                }
                _ => log.append(new).unwrap(),
            };
            for (offset, record) in offsets.iter().zip(&records) {
                written.insert(*offset, (text(&record.key), text(&record.value)));
            }
            if random.u8(..8) == 0 {
                let (before, high) = (read(&log, &of, 0, COMMITTED), log.watermarks(&of).unwrap());
                log.compact_now("c").unwrap();
                let after = read(&log, &of, 0, COMMITTED);
                assert_eq!(fold(&after), fold(&before), "seed {seed} step {step}");
                let distinct: std::collections::BTreeSet<_> = after.iter().map(|record| &record.key).collect();
                assert_eq!(distinct.len(), after.len(), "seed {seed} step {step}: a superseded record is left");
                assert_eq!(log.watermarks(&of).unwrap(), high);
                for record in &after {
                    assert_eq!(
                        written[&record.offset],
                        (text(&record.key), text(&record.value)),
                        "seed {seed} step {step}"
                    );
                    assert_eq!(record.headers.len(), 1);
                }
            }
            if random.u8(..20) == 0 {
                drop(log);
                log = compacting(folder.path(), keys);
            }
        }
        open.drain(..).for_each(|number| log.decide(number, false).unwrap());
        let before = read(&log, &of, 0, COMMITTED);
        log.compact_now("c").unwrap();
        assert_eq!(fold(&read(&log, &of, 0, COMMITTED)), fold(&before), "seed {seed}");
        assert_eq!(fold(&read(&log, &of, 0, UNCOMMITTED)), fold(&before), "seed {seed}: aborted records are gone");
    }
}

/// C1: below the last stable offset only.
#[test]
fn undecided_records_and_what_follows_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let log = compacting(folder.path(), 1000);
    create(&log, "c", 1, &[("cleanup.policy", "compact")]);
    let of = at("c", 0);
    log.append(append(&of, &["1", "2"])).unwrap();
    let number = log.begin("p").unwrap();
    log.append_in(number, &append(&of, &["3"])).unwrap();
    log.append(append(&of, &["4", "5"])).unwrap();
    log.compact_now("c").unwrap();
    assert_eq!(values(&log, &of, UNCOMMITTED), "2 3 4 5");
    log.decide(number, false).unwrap();
    assert_eq!(values(&log, &of, COMMITTED), "2 4 5");
    log.compact_now("c").unwrap();
    assert_eq!(values(&log, &of, UNCOMMITTED), "5");
    assert!(matches!(log.compact_now("none"), Err(LogError::UnknownTopic(_))));
}

/// C2.
#[test]
fn tombstones_stay_for_their_time() {
    let folder = tempfile::tempdir().unwrap();
    let log = compacting(folder.path(), 1000);
    for (topic, retention) in [("long", "86400000"), ("short", "60"), ("none", "0")] {
        create(&log, topic, 1, &[("cleanup.policy", "compact"), ("delete.retention.ms", retention)]);
        log.append(Append { to: at(topic, 0), records: vec![put(1, Some(1)), put(2, Some(2)), put(1, None)] }).unwrap();
        log.compact_now(topic).unwrap();
    }
    assert_eq!(values(&log, &at("none", 0), COMMITTED), "2");
    assert_eq!(values(&log, &at("short", 0), COMMITTED), "2 null");
    std::thread::sleep(Duration::from_millis(80));
    for topic in ["long", "short"] {
        log.compact_now(topic).unwrap();
    }
    assert_eq!(values(&log, &at("short", 0), COMMITTED), "2");
    assert_eq!(values(&log, &at("long", 0), COMMITTED), "2 null");
}

/// C3, E10: the end is not lost with the last record.
#[test]
fn offsets_go_on_where_they_were_after_all_records_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let of = at("c", 0);
    let log = compacting(folder.path(), 1000);
    create(&log, "c", 1, &[("cleanup.policy", "compact"), ("delete.retention.ms", "0")]);
    log.append(Append { to: of.clone(), records: vec![put(1, Some(1))] }).unwrap();
    log.append(Append { to: of.clone(), records: vec![put(1, None)] }).unwrap();
    let number = log.begin("p").unwrap();
    log.append_in(number, &append(&of, &["never"])).unwrap();
    log.decide(number, false).unwrap();
    log.compact_now("c").unwrap();
    assert_eq!(values(&log, &of, UNCOMMITTED), "");
    drop(log);
    let log = compacting(folder.path(), 1000);
    assert_eq!(log.watermarks(&of).unwrap().high, 4);
    assert_eq!(log.append(append(&of, &["x"])).unwrap(), [4]);
    log.compact_now("c").unwrap();
    assert_eq!(values(&log, &of, UNCOMMITTED), "x");
}

/// C4 and the background thread: it keeps a growing partition small while it is written and purged.
#[test]
fn growth_is_compacted_in_the_background() {
    let folder = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { sync: false, compact_after_bytes: 20_000, ..EmbeddedOptions::default() };
    let log = EmbeddedLog::open(folder.path(), options.clone()).unwrap();
    create(&log, "c", 2, &[("cleanup.policy", "compact")]);
    let of = at("c", 1);
    let mut random = fastrand::Rng::with_seed(5);
    let mut model = BTreeMap::new();
    let mut purged = 0;
    for value in 0..3_000u32 {
        let key = random.u32(..40);
        let records = vec![put(key, Some(value)), put(key, Some(value)), put(key, Some(value))];
        let offset = log.append(Append { to: of.clone(), records }).unwrap()[2];
        model.insert(format!("k{key}"), (offset, value.to_string()));
        if value % 500 == 0 {
            purged = offset;
            log.purge(&[(of.clone(), purged)]).unwrap();
        }
    }
    let deadline = std::time::Instant::now() + LONG;
    let mut all = read(&log, &of, purged, COMMITTED);
    while all.len() > 1_000 && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
        all = read(&log, &of, purged, COMMITTED);
    }
    assert!(all.len() <= 1_000, "{} records are left", all.len());
    drop(log);
    let log = EmbeddedLog::open(folder.path(), options).unwrap();
    log.compact_now("c").unwrap();
    let left = read(&log, &of, purged, COMMITTED);
    let left: Vec<_> = left.iter().map(|record| (text(&record.key), (record.offset, text(&record.value)))).collect();
    model.retain(|_, (offset, _)| *offset >= purged);
    assert_eq!(left.into_iter().collect::<BTreeMap<_, _>>(), model);
}
