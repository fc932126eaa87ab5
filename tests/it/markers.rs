//! REMOVE markers that the horizon has passed are deleted everywhere, and nothing comes back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::tempdir;
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use tidegate::log::{Isolation, Log, TopicPartition};

use crate::running::{Running, eventually, run};

const AT_ONCE: [&str; 2] = ["--set", "state.marker_retention=0s"];

/// The last value of each key on a topic, committed; `None` is a tombstone. How many keys have no value at all.
fn last(folder: &Path, topic: &str, partitions: i32) -> BTreeMap<Bytes, Option<Bytes>> {
    let log = EmbeddedLog::open(folder.join("tidegate-data/log"), EmbeddedOptions::default()).expect("it has ended");
    let mut last = BTreeMap::new();
    for partition in 0..partitions {
        let of = TopicPartition::new(&Arc::from(topic), partition);
        let end = log.watermarks(&of).unwrap();
        let mut reader = log.reader(&of, end.low, Isolation::ReadCommitted, false).unwrap();
        while reader.position() < end.high {
            for record in reader.next(Duration::from_secs(5)).unwrap() {
                last.insert(record.key.unwrap(), record.value);
            }
        }
    }
    last.remove(&Bytes::new());
    last
}

fn lines(keys: std::ops::Range<u32>, action: &str) -> String {
    keys.map(|key| format!("{}\n", json!({ "key": format!("k{key}"), "action": action }))).collect()
}

/// What the instance lists, removed keys included.
fn listed(instance: &Running) -> Vec<String> {
    let (_, page) = instance.get("/api/v1/keys?removed=true&limit=1000");
    page["entries"].as_array().unwrap().iter().map(|entry| entry["key"].as_str().unwrap().to_owned()).collect()
}

fn verify(folder: &Path) {
    run(folder, &["verify", "--set", "handler.kind=scripted", "--set", "processing.partitions=4"]).ok();
}

fn without_anything(folder: &Path, instance: &Running) {
    eventually("all markers are deleted", || listed(instance).is_empty().then_some(()));
    let (status, answer) = instance.get("/api/v1/keys/k7");
    assert_eq!((status, &answer["error"]["code"]), (404, &json!("unknown_key")));
    verify(folder);
}

fn the_store_says_so(instance: &Running) {
    eventually("the store says so", || {
        let (_, page) = instance.get_text("/metrics");
        // What a store says of itself counts, too.
        let entries = page.lines().find_map(|line| line.strip_prefix("tidegate_store_entries ")?.parse().ok());
        entries.filter(|entries: &f64| *entries < 30.0)
    });
}

#[test]
fn keys_that_were_added_and_removed_leave_nothing() {
    let folder = tempdir().unwrap();
    let with_output = [&AT_ONCE[..], &["--set", "output.topic=out"]].concat();
    let instance = Running::start(folder.path(), &with_output);
    instance.send(&lines(0..300, "ADD"));
    let (status, _) = instance.post_to("/api/v1/events?wait=settled", "application/x-ndjson", lines(0..300, "REMOVE"));
    assert_eq!(status, 200);
    without_anything(folder.path(), &instance);
    let standing = instance.get("/api/v1/frontier").1;
    assert_eq!((&standing["frontier"], &standing["horizon"]), (&json!(599), &json!(599)), "{standing}");
    let told = "frontier 599   received 599   unsettled 0   horizon 599\n";
    assert_eq!(instance.command(&["frontier"]).ok(), told);
    let (_, page) = instance.get_text("/metrics");
    assert!(page.contains("tidegate_horizon_sequence 599"), "{page}");
    the_store_says_so(&instance);

    // The same after a kill, from the store; after another one, from the changelog; and a key can come again.
    instance.kill();
    let instance = Running::start(folder.path(), &with_output);
    without_anything(folder.path(), &instance);
    instance.kill();
    std::fs::remove_dir_all(folder.path().join("tidegate-data/state")).unwrap();
    let instance = Running::start(folder.path(), &with_output);
    without_anything(folder.path(), &instance);
    instance.send(&lines(7..8, "ADD"));
    assert_eq!(instance.holds("k7", "ADD")["stamp"], json!("600"));
    the_store_says_so(&instance);
    instance.kill();
    for topic in ["tidegate-state-changelog", "out"] {
        let mut last = last(folder.path(), topic, 4);
        assert!(last.remove(&b"k7"[..]).unwrap().is_some(), "{topic}");
        assert_eq!(last.len(), 299, "{topic}");
        assert!(last.values().all(Option::is_none), "{topic} ends with tombstones");
    }
}

/// The story of the README, many times over: the slow parent's REMOVE comes after the later ADD, and its ADD comes after
/// the later REMOVE.
#[test]
fn late_children_of_old_roots_bring_nothing_back() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &AT_ONCE);
    let slow = |number: u32, action: &str| {
        let spawn = json!([{ "key": format!("k{number}"), "action": action }]);
        let payload = json!({ "work_ms": 20 + number * 7 % 400, "spawn": spawn });
        format!("{}\n", json!({ "key": format!("slow{number}"), "action": "REMOVE", "payload": payload }))
    };
    for round in 0..10 {
        let numbers = round * 20..round * 20 + 20;
        let parents: String = numbers.clone().map(|number| slow(number, "ADD")).collect();
        instance.send(&(parents + &lines(numbers.clone(), "ADD") + &lines(numbers, "REMOVE")));
    }
    instance.drained();
    without_anything(folder.path(), &instance);
}

/// A marker stays as long as it is to; a shorter retention takes it at the next start.
#[test]
fn markers_stay_until_their_time_has_come() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "state.marker_retention=1h"]);
    let both = lines(0..5, "ADD") + &lines(0..5, "REMOVE");
    assert_eq!(instance.post_to("/api/v1/events?wait=settled", "application/x-ndjson", both).0, 200);
    instance.drained();
    assert_eq!(listed(&instance).len(), 5);
    assert_eq!(instance.get("/api/v1/frontier").1["horizon"], Value::Null);
    instance.kill();
    verify(folder.path());
    let instance = Running::start(folder.path(), &["--set", "state.marker_retention=100ms"]);
    eventually("all markers are deleted", || listed(&instance).is_empty().then_some(()));
    verify(folder.path());
}

#[test]
fn without_transactions_no_marker_is_ever_deleted() {
    let folder = tempdir().unwrap();
    let plain = [&AT_ONCE[..], &["--set", "processing.guarantee=at_least_once"]].concat();
    let instance = Running::start(folder.path(), &plain);
    instance.send(&(lines(0..5, "ADD") + &lines(0..5, "REMOVE")));
    instance.drained();
    assert_eq!(listed(&instance).len(), 5);
    assert_eq!(instance.get("/api/v1/frontier").1["horizon"], Value::Null);
}
