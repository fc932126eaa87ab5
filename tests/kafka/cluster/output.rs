//! The output topic, as a read_committed consumer sees it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use serde_json::{Value, json};
use tidegate::entry::Entry;
use tidegate::event::Action;
use tidegate::log::{Append, Log, NewRecord, TopicPartition};
use tidegate::proto;
use tidegate::reference::Held;
use tidegate::topics::partition_of;

use super::app::App;
use super::check;
use super::load::Load;
use crate::broker;
use crate::kit;

/// The topic is there, not compacted, with partitions of its own: it is taken as it is, with one warning.
#[test]
fn an_output_topic_that_is_there_is_taken_as_it_is() {
    let log = kit::log();
    let output = kit::topic(&log, "output", 5, &[("cleanup.policy", "delete")]);
    let app = App::new(broker::shared(), "out-json").with(&[("output.topic", &output)]);
    let warnings = run(&app, &output, 5, from_json);
    assert_eq!(warnings, 1, "one line says that it is not compacted:\n{}", app.logs());
    let checked = app.tool(&["topics", "check"]);
    assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stderr));
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(said.contains(&format!("{output}: cleanup.policy is delete")), "{said}");
}

#[test]
fn an_output_topic_that_is_missing_is_created_compacted() {
    let output: Arc<str> = kit::unique("created-output").into();
    let app =
        App::new(broker::shared(), "out-protobuf").with(&[("output.topic", &output), ("output.format", "protobuf")]);
    assert_eq!(run(&app, &output, super::PARTITIONS, from_protobuf), 0, "{}", app.logs());
    let listed = app.tool(&["--output", "json", "topics", "list"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    let found = listed["topics"].as_array().and_then(|all| all.iter().find(|topic| topic["topic"] == *output));
    let found = found.unwrap_or_else(|| panic!("{listed}"));
    assert_eq!((&found["role"], &found["cleanup_policy"]), (&"output".into(), &"compact".into()), "{found}");
}

#[test]
fn an_output_topic_that_takes_too_small_records_is_refused() {
    let output = kit::topic(&kit::log(), "small-output", 1, &[("max.message.bytes", "100000")]);
    let app = App::new(broker::shared(), "out-small").with(&[("output.topic", &output)]);
    let instance = app.start("refused");
    assert_eq!(instance.ended(), Some(2), "{}", app.logs());
    let said = instance.said();
    assert!(said.contains(&*output) && said.contains("max.message.bytes"), "{said}");
}

/// Y2: what is a seventh of the changelog's limit is above that of the output topic, as six bytes for each.
#[test]
fn a_record_at_the_limit_is_committed_and_one_above_it_is_a_dead_letter() {
    let output: Arc<str> = kit::unique("large-output").into();
    let app = App::new(broker::shared(), "out-large").with(&[("output.topic", &output), ("handler.kind", "echo")]);
    let instance = app.start("one");
    app.until("it owns all", || instance.owns() == 6);
    let event = |key: &str, length: usize| NewRecord {
        value: Some(json!({ "key": key, "action": "ADD", "payload": "\u{1}".repeat(length) }).to_string().into()),
        ..NewRecord::default()
    };
    let records = vec![event("fits", 161_000), event("large", 165_000), event("after", 1)];
    app.log.append(Append { to: TopicPartition::new(&app.source, 0), records }).expect("append");
    check::settled(&app);
    let told = app.partitions(&output).into_iter().flat_map(|of| check::records(&app.log, &of, false));
    let told: BTreeMap<Bytes, Held> = told.map(|record| from_json(&record.value.expect("a value"))).collect();
    assert_eq!(told.keys().collect::<Vec<_>>(), ["after", "fits"]);
    assert_eq!(told[&b"fits"[..]].2.as_ref().map(Bytes::len), Some(161_000));
    let dead = app.partitions(&app.topics.dead_letter).into_iter().flat_map(|of| check::records(&app.log, &of, true));
    let dead: Vec<_> = dead.collect();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].key.as_deref(), Some(&b"large"[..]));
    assert!(dead[0].headers.contains(&("tidegate_cause".into(), "too_large".into())), "{:?}", dead[0].headers);
    let verified = app.tool(&["verify"]);
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stderr));
}

/// Two instances under load, one dies; how often a warning about the topic's policy was logged by the first.
fn run(app: &App, output: &Arc<str>, partitions: i32, read: fn(&[u8]) -> (Bytes, Held)) -> usize {
    let (one, two) = (app.start("one"), app.start("two"));
    app.until("two share", || one.owns() + two.owns() == 6 && two.owns() > 0);
    let load = Load::begin(app, 11);
    app.until("events flow", || load.sent() >= 500);
    two.kill();
    app.until("the first owns all", || one.owns() == 6);
    let sent = load.sent();
    app.until("events flow again", || load.sent() >= sent + 300);
    load.end();
    check::all(app);
    let mut told: BTreeMap<Bytes, Vec<Held>> = BTreeMap::new();
    for partition in 0..partitions {
        for record in check::records(&app.log, &TopicPartition::new(output, partition), true) {
            assert!(record.headers.is_empty(), "{:?}", record.headers);
            let (key, held) = read(&record.value.expect("no marker goes in this version"));
            assert_eq!(record.key, Some(key.clone()));
            assert_eq!(partition_of(&key, partitions), partition, "the partition of {key:?}");
            told.entry(key).or_default().push(held);
        }
    }
    let mut entries: BTreeMap<Bytes, Vec<Held>> = BTreeMap::new();
    for (key, Entry { stamp, action, value, .. }) in check::changelog(app) {
        entries.entry(key).or_default().push((stamp, action, value));
    }
    assert!(told.len() > 100, "the load has hundreds of keys: {}", told.len());
    assert_eq!(told, entries, "the output topic tells what the changelog does");
    assert_eq!(one.terminate(), Some(0), "{}", app.logs());
    one.said().matches("cleanup.policy").count()
}

/// What a record of the output topic says.
pub fn from_json(value: &[u8]) -> (Bytes, Held) {
    let change: Value = serde_json::from_slice(value).expect("JSON");
    let text = |name: &str| change[name].as_str().map(|text| Bytes::copy_from_slice(text.as_bytes()));
    let action = Action::parse(&text("action").expect("an action")).expect("an action");
    let stamp = change["stamp"].as_str().and_then(|stamp| stamp.parse().ok()).expect("a stamp");
    (text("key").expect("a key"), (stamp, action, text("value")))
}

fn from_protobuf(value: &[u8]) -> (Bytes, Held) {
    let change = proto::StateChange::decode(value).expect("a StateChange");
    let action = if change.action == proto::Action::Add as i32 { Action::Add } else { Action::Remove };
    (change.key, (change.stamp.expect("a stamp").into(), action, change.value))
}
