//! Keys that were added and removed leave nothing behind: not in the stores, and, once Kafka has compacted it, not in the
//! changelog. While they are removed slow parents of before bring the same keys once more, and an instance dies.
//!
//! The long run: `make markers MARKERS=keys`.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;
use tidegate::entry::Entry;
use tidegate::event::Action;
use tidegate::log::{Append, Log, NewRecord, NewTopic, TopicPartition};

use crate::broker::{self, Broker};
use crate::cluster::app::{App, Instance};
use crate::cluster::check;
use crate::kit;

const TASKS: usize = 6;
const INSTANCES: usize = 3;
/// One key of so many is not removed.
const KEPT: usize = 100;
/// One REMOVE of so many has a slow parent before it that adds its key once more.
const LATE: usize = 200;
/// Records of one append.
const BATCH: usize = 5000;
/// Kafka compacts when new records have closed a segment, and forgets tombstones one pass later.
const COMPACTED: Duration = Duration::from_secs(300);

/// Compacts as soon as it can.
const SOON: [(&str, &str); 7] = [
    ("cleanup.policy", "compact"),
    ("segment.ms", "1000"),
    ("segment.bytes", "8388608"),
    ("min.cleanable.dirty.ratio", "0.001"),
    ("min.compaction.lag.ms", "0"),
    ("max.compaction.lag.ms", "1000"),
    ("delete.retention.ms", "100"),
];

fn key(number: usize) -> String {
    format!("key-{number:07}")
}

fn is_kept(number: usize) -> bool {
    number.is_multiple_of(KEPT)
}

fn event(key: &str, action: &str) -> NewRecord {
    let value = json!({ "key": key, "action": action, "payload": { "value": "of some length, as values are" } });
    NewRecord { key: None, value: Some(value.to_string().into()), headers: Vec::new() }
}

/// Its child is older than the REMOVE behind it, and comes long after that.
fn slow_parent(number: usize) -> NewRecord {
    let spawn = json!([{ "key": key(number), "action": "ADD" }]);
    let payload = json!({ "work_ms": 200 + number * 7 % 2000, "spawn": spawn });
    let value = json!({ "key": format!("slow-{number:07}"), "action": "REMOVE", "payload": payload });
    NewRecord { key: None, value: Some(value.to_string().into()), headers: Vec::new() }
}

fn removal(number: usize) -> Vec<NewRecord> {
    let parent = (number % LATE == 1).then(|| slow_parent(number));
    let remove = (!is_kept(number)).then(|| event(&key(number), "REMOVE"));
    parent.into_iter().chain(remove).collect()
}

fn send(app: &App, mut records: impl Iterator<Item = NewRecord>) {
    let to = TopicPartition::new(&app.source, 0);
    loop {
        let batch: Vec<NewRecord> = records.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            return;
        }
        kit::patiently("append", || app.log.append(Append { to: to.clone(), records: batch.clone() }));
    }
}

/// Waits as long as something moves.
fn until_settled(app: &App, nodes: &[Instance<'_>], horizon: bool) {
    let told = || -> Vec<_> { nodes.iter().map(|node| node.get("/api/v1/frontier").unwrap_or_default()).collect() };
    let end = kit::patiently("watermarks", || app.log.watermarks(&TopicPartition::new(&app.source, 0))).high - 1;
    let mut before = Vec::new();
    while before.is_empty() || !before.iter().all(|told: &serde_json::Value| told["frontier"] == end) {
        app.until("the frontier goes on", || std::mem::replace(&mut before, told()) != told());
        std::thread::sleep(Duration::from_millis(200));
    }
    if horizon {
        app.until("the horizon follows", || told().iter().all(|told| told["horizon"] == told["frontier"]));
    }
}

#[derive(Debug)]
struct Size {
    /// As the stores estimate it.
    store_entries: u64,
    store_bytes: u64,
    changelog_records: usize,
    changelog_bytes: u64,
}

impl Size {
    fn now(broker: &Broker, app: &App, nodes: &[Instance<'_>]) -> Size {
        let metric = |name: &str| -> u64 {
            let of = |node: &Instance<'_>| {
                let (_, page) = node.page("/metrics").expect("an answer");
                let value =
                    page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok());
                value.unwrap_or_else(|| panic!("no {name}")) as u64
            };
            nodes.iter().map(of).sum()
        };
        let changelog = app.partitions(&app.topics.changelog);
        Size {
            store_entries: metric("tidegate_store_entries"),
            store_bytes: metric("tidegate_store_bytes"),
            changelog_records: changelog.iter().map(|of| check::records(&app.log, of, false).len()).sum(),
            changelog_bytes: changelog.iter().map(|of| broker.bytes_of(&of.topic, of.partition)).sum(),
        }
    }
}

/// What the changelog holds in the end: the keys with an entry, removed ones among them.
fn held(app: &App) -> (BTreeSet<Bytes>, BTreeSet<Bytes>) {
    let (mut added, mut removed) = (BTreeSet::new(), BTreeSet::new());
    for of in app.partitions(&app.topics.changelog) {
        let records = check::records(&app.log, &of, false);
        let last: HashMap<_, _> =
            records.into_iter().map(|record| (record.key.expect("a key"), record.value)).collect();
        for (key, value) in last.into_iter().filter(|(key, _)| !key.is_empty()) {
            match value.map(|value| Entry::decode(value).expect("an entry").action) {
                Some(Action::Add) => _ = added.insert(key),
                Some(Action::Remove) => _ = removed.insert(key),
                None => {}
            }
        }
    }
    (added, removed)
}

/// What the instances list, removed keys included.
fn listed(app: &App, node: &Instance<'_>) -> usize {
    let (mut count, mut after) = (0, String::new());
    loop {
        let page = format!("/api/v1/keys?removed=true&limit=1000{after}");
        let mut told = serde_json::Value::Null;
        app.until("a page of keys", || {
            told = node.get(&page).unwrap_or_default();
            told["entries"].is_array()
        });
        count += told["entries"].as_array().map_or(0, Vec::len);
        match told["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return count,
        }
    }
}

fn add_and_remove(broker: &Broker, keys: usize) {
    let app = App::new(broker, "markers").of(TASKS as i32);
    let app = app.with(&[("state.marker_retention", "0s"), ("processing.repartition_purge", "1s")]);
    let settings = SOON.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let name = app.topics.changelog.to_string();
    app.log.create(&[NewTopic { name, partitions: app.tasks, replication_factor: None, settings }]).expect("create");
    let start = |slot: usize| app.start(&format!("node-{slot}"));
    let mut nodes: Vec<Instance<'_>> = (0..INSTANCES).map(start).collect();
    let are_at_work = |nodes: &[Instance<'_>]| nodes.iter().map(Instance::owns).sum::<usize>() == TASKS;
    app.until("all share the work", || are_at_work(&nodes));

    send(&app, (0..keys).map(|number| event(&key(number), "ADD")));
    until_settled(&app, &nodes, true);
    let before = Size::now(broker, &app, &nodes);

    let begun = Instant::now();
    send(&app, (0..keys / 2).flat_map(removal));
    nodes[0].kill();
    nodes[0] = start(0);
    send(&app, (keys / 2..keys).flat_map(removal));
    app.until("it is back", || are_at_work(&nodes));
    until_settled(&app, &nodes, true);
    let kept: BTreeSet<Bytes> = (0..keys).filter(|number| is_kept(*number)).map(|number| key(number).into()).collect();
    app.until("all markers are deleted", || held(&app).1.is_empty());
    let gone = begun.elapsed();
    let resurrected: Vec<_> = held(&app).0.difference(&kept).cloned().collect();
    assert!(resurrected.is_empty(), "{} keys are back, such as {:?}", resurrected.len(), resurrected.first());
    assert_eq!(held(&app).0, kept);
    assert_eq!(listed(&app, &nodes[1]), kept.len(), "the stores hold what the changelog holds");

    // What remains is written anew from time to time: that closes segments.
    let mut size = Size::now(broker, &app, &nodes);
    let deadline = Instant::now() + COMPACTED;
    let remain = kept.len();
    let is_small = |size: &Size| {
        let bytes = 500 * remain as u64 + (64 << 10) * TASKS as u64;
        let records = 2 * remain + 100 * TASKS;
        size.changelog_records.max(size.store_entries as usize) <= records
            && size.changelog_bytes.max(size.store_bytes) <= bytes
    };
    while !is_small(&size) {
        assert!(Instant::now() < deadline, "not within {COMPACTED:?}: {size:?}, before {before:?}\n{}", app.logs());
        send(&app, (0..keys).step_by(KEPT).take(20 * TASKS).map(|number| event(&key(number), "ADD")));
        std::thread::sleep(Duration::from_secs(1));
        size = Size::now(broker, &app, &nodes);
    }
    let late = (0..keys).filter(|number| number % LATE == 1).count();
    eprintln!("{keys} keys added: {before:?}");
    eprintln!("all but {} removed, {late} late children: {size:?}; markers gone after {gone:.1?}", kept.len());
    let verified = app.tool(&["verify"]);
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stderr));
}

#[test]
fn removed_keys_leave_the_size_of_what_remains() {
    add_and_remove(broker::shared(), 20_000);
}

#[test]
#[ignore = "takes as long as its number says: TIDEGATE_MARKERS"]
fn long() {
    let keys = std::env::var("TIDEGATE_MARKERS").ok().filter(|text| !text.is_empty());
    let keys = keys.map_or(1_000_000, |text| text.parse().expect("TIDEGATE_MARKERS is a number"));
    add_and_remove(&Broker::start().expect("broker"), keys);
}
