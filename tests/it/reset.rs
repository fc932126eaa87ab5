//! `tidegate reset` on the embedded log: previewed, refused, carried out, and carried on.

use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;
use tidegate::log::Log;
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};

use crate::running::{Running, run};

const CONFIG: [&str; 4] = ["--set", "processing.partitions=4", "--set", "application.instance_id=one"];

fn reset(folder: &Path, more: &[&str]) -> crate::running::Ended {
    run(folder, &[&["reset"], &CONFIG[..], more].concat())
}

fn preview(folder: &Path) -> Value {
    serde_json::from_str(&reset(folder, &["--output", "json"]).ok()).unwrap()
}

fn verified(folder: &Path) {
    run(folder, &[&["verify", "--set", "handler.kind=scripted"], &CONFIG[..]].concat()).ok();
}

fn stop(instance: Running) {
    instance.signal("TERM");
    assert_eq!(instance.ended(), Some(0));
}

/// Cascades, a rejected event and a removed key.
fn load(instance: &Running) {
    send(instance);
    instance.drained();
}

/// What is held of a key once that is final.
fn settled(instance: &Running, key: &str) -> Value {
    let (status, held) = instance.get(&format!("/api/v1/keys/{key}?wait=settled"));
    assert_eq!((status, &held["settled"]), (200, &true.into()), "{held}");
    held
}

fn send(instance: &Running) {
    let lines: Vec<String> = (0..50)
        .map(|n| {
            let child = format!(r#"{{"key":"c{n}","action":"ADD","payload":{{"value":"child"}}}}"#);
            format!(r#"{{"key":"k{}","action":"ADD","payload":{{"value":"{n}","spawn":[{child}]}}}}"#, n % 20)
        })
        .collect();
    instance.send(&lines.join("\n"));
    instance
        .send("{\"key\":\"k1\",\"action\":\"REMOVE\"}\n{\"key\":\"bad\",\"action\":\"ADD\",\"payload\":\"no script\"}");
    instance.holds("c49", "ADD");
    instance.holds("k1", "REMOVE");
}

#[test]
fn an_application_that_was_reset_starts_from_the_beginning() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    let instance = Running::start(folder, &[]);
    load(&instance);
    let said = reset(folder, &[]).ok();
    assert!(said.contains("would be refused") && said.contains("in use"), "{said}");
    let said = reset(folder, &["--execute"]).failed(1);
    assert!(said.contains("in use by process") && said.contains("stop the instance"), "{said}");
    let before = settled(&instance, "c7");
    stop(instance);

    let planned = preview(folder);
    assert_eq!(planned, preview(folder), "a preview changes nothing");
    assert_eq!((&planned["executed"], &planned["obstacle"]), (&false.into(), &Value::Null));
    let topics: Vec<_> = planned["delete"]["topics"].as_array().unwrap().iter().map(|topic| &topic["topic"]).collect();
    assert_eq!(
        (topics[0], topics[topics.len() - 1]),
        (&"tidegate-progress".into(), &"tidegate-events-repartition".into())
    );
    assert!(topics.contains(&&"tidegate-state-changelog".into()) && !topics.contains(&&"events".into()), "{topics:?}");
    let committed = planned["delete"]["offsets"].as_array().unwrap();
    assert!(committed.iter().any(|of| of["topic"] == "events" && of["position"] == 52), "{planned}");
    assert_eq!(planned["keep"]["sources"][0]["topic"], "events");
    assert!(planned["delete"]["state"][0].as_str().unwrap().ends_with("state/one"), "{planned}");
    verified(folder);

    let said = reset(folder, &["--execute"]).ok();
    assert!(said.contains("starts from the beginning"), "{said}");
    assert!(!folder.join("tidegate-data/state/one").exists());
    let listed = run(folder, &[&["topics", "list", "--output", "json"], &CONFIG[..]].concat()).ok();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    for topic in listed["topics"].as_array().unwrap() {
        assert_eq!(topic["exists"], topic["role"] == "source", "{topic}");
    }
    assert_eq!(listed["topics"][0]["offsets"], 52, "the source is as it was");
    let left = preview(folder);
    for what in ["offsets", "topics", "state"] {
        assert!(left["delete"][what].as_array().unwrap().is_empty(), "{left}");
    }
    reset(folder, &["--execute"]).ok();

    let instance = Running::start(folder, &[]);
    instance.holds("c7", "ADD");
    assert_eq!(settled(&instance, "c7"), before);
    instance.holds("k1", "REMOVE");
    instance.drained();
    verified(folder);
    assert_eq!(instance.get("/api/v1/dead-letters").1["dead_letters"].as_array().unwrap().len(), 1);
}

#[test]
fn z3_a_reset_that_ended_halfway_leaves_a_whole_and_is_carried_on() {
    let topics =
        ["tidegate-progress", "tidegate-dead-letter", "tidegate-state-changelog", "tidegate-events-repartition"];
    for done in 0..=topics.len() {
        let folder = tempdir().unwrap();
        let folder = folder.path();
        // One event waits for its retry: what is done behind it stands in the changelog's done-set.
        let instance =
            Running::start(folder, &["--set", "handler.retry.initial=60s", "--set", "handler.retry.max=60s"]);
        instance.send(r#"{"key":"waits","action":"ADD","payload":{"value":"late","fail":{"times":1,"how":"retry"}}}"#);
        send(&instance);
        instance.kill();
        {
            let log = EmbeddedLog::open(folder.join("tidegate-data/log"), EmbeddedOptions::default()).unwrap();
            log.delete_group("tidegate").unwrap();
            log.delete_topics(&topics[..done]).unwrap();
        }
        let instance = Running::start(folder, &[]);
        instance.holds("c49", "ADD");
        assert_eq!(instance.holds("waits", "ADD")["value"], "late", "{done} topics deleted");
        instance.drained();
        verified(folder);
        stop(instance);
        reset(folder, &["--execute"]).ok();
        let instance = Running::start(folder, &[]);
        instance.holds("c49", "ADD");
        instance.drained();
        verified(folder);
    }
}

#[test]
fn where_there_is_nothing_it_says_so() {
    let folder = tempdir().unwrap();
    let said = reset(folder.path(), &["--execute"]).failed(1);
    assert!(said.contains("there is no log") && said.contains("log.path"), "{said}");
    assert!(!folder.path().join("tidegate-data").exists(), "and makes none");
}
