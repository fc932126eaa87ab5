//! `tidegate topics`: what there is, what does not fit, what is created and what is purged.

use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::running::{Ended, Running, run};

const FOUR: [&str; 2] = ["--set", "processing.partitions=4"];

fn topics(folder: &Path, verb: &[&str]) -> Ended {
    run(folder, &[&["topics"], verb, &FOUR[..]].concat())
}

fn json(ended: Ended) -> Value {
    serde_json::from_str(&ended.ok()).unwrap()
}

#[test]
fn they_are_created_once_the_source_only_where_it_is_asked_for() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    let said = topics(folder, &["create"]).ok();
    assert!(said.contains("created tidegate-state-changelog (4 partitions)"), "{said}");
    assert!(!said.contains("created events") && !said.contains("\n0 topics"), "{said}");
    assert_eq!(topics(folder, &["create"]).ok().trim(), "0 topics created");
    let said = topics(folder, &["check"]).ok();
    assert!(said.contains("events: not there yet") && said.contains("fit"), "{said}");
    let created = json(topics(folder, &["create", "--source", "--output", "json"]));
    assert_eq!(created, serde_json::json!({"created": [{"topic": "events", "partitions": 1}]}));
    assert_eq!(topics(folder, &["check"]).ok().trim(), "the topics fit the configuration");
    let listed = json(topics(folder, &["list", "--output", "json"]));
    assert!(listed["topics"].as_array().unwrap().iter().all(|topic| topic["exists"] == true), "{listed}");
}

#[test]
fn check_names_everything_that_does_not_fit() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    topics(folder, &["create"]).ok();
    let other = ["topics", "check", "--set", "processing.partitions=5", "--set", "source.topics=[\"tidegate-x\"]"];
    run(folder, &["topics", "create", "--set", "application.id=other", "--set", "processing.partitions=3"]).ok();
    let said = run(folder, &other).failed(2);
    for name in ["tidegate-events-repartition", "tidegate-state-changelog", "tidegate-dead-letter"] {
        assert!(said.contains(name), "{name}: {said}");
    }
    assert!(said.contains("set processing.partitions = 4"), "the next step: {said}");
    let wide =
        ["topics", "check", "--set", "source.topics=[\"other-dead-letter\"]", "--set", "processing.partitions=4"];
    let said = run(folder, &wide).failed(2);
    assert!(said.contains("other-dead-letter") && said.contains("one partition"), "{said}");
    let ended = run(folder, &[&wide[..], &["--output", "json"]].concat());
    let rows: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(ended.code, Some(2));
    assert_eq!(rows["problems"].as_array().unwrap().len(), 1, "{rows}");
    assert!(rows["topics"][0]["problem"].is_string() && rows["topics"][1]["problem"].is_null(), "{rows}");
}

#[test]
fn purge_deletes_what_is_committed_and_nothing_else() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    let off = ["--set", "processing.repartition_purge=off", "--set", "handler.retry.initial=60s"];
    let slow = [&off[..], &["--set", "handler.retry.max=60s"]].concat();
    let instance = Running::start(folder, &slow);
    let lines: Vec<String> = (0..40).map(|n| format!(r#"{{"key":"k{n}","action":"ADD"}}"#)).collect();
    instance.send(&lines.join("\n"));
    instance.drained();
    // It waits for its retry and holds the committed position of its partition; what is behind it is done.
    instance.send(r#"{"key":"waits","action":"ADD","payload":{"value":"late","fail":{"times":1,"how":"retry"}}}"#);
    instance.send(&lines.join("\n").replace("\"ADD\"", "\"REMOVE\""));
    for n in 0..40 {
        instance.holds(&format!("k{n}"), "REMOVE");
    }
    let said = topics(folder, &["purge"]).failed(1);
    assert!(said.contains("in use by process"), "{said}");
    instance.signal("TERM");
    assert_eq!(instance.ended(), Some(0));

    let purged = json(topics(folder, &["purge", "--output", "json"]));
    let of = |row: &Value| row["offsets"].as_i64().unwrap();
    let each: Vec<i64> = purged["purged"].as_array().unwrap().iter().map(of).collect();
    assert_eq!((each.len(), each.iter().sum::<i64>()), (4, purged["offsets"].as_i64().unwrap()));
    let all = 81;
    assert!((41..all).contains(&purged["offsets"].as_i64().unwrap()), "{purged}");
    let again = topics(folder, &["purge"]).ok();
    assert!(again.contains("0 offsets of tidegate-events-repartition deleted"), "{again}");
    let listed = json(topics(folder, &["list", "--output", "json"]));
    let left =
        listed["topics"].as_array().unwrap().iter().find(|topic| topic["topic"] == "tidegate-events-repartition");
    assert_eq!(of(left.unwrap()), all - purged["offsets"].as_i64().unwrap());

    let instance = Running::start(folder, &["--set", "handler.retry.initial=1ms"]);
    assert_eq!(instance.holds("waits", "ADD")["value"], "late");
    instance.drained();
    run(folder, &[&["verify", "--set", "handler.kind=scripted"], &FOUR[..]].concat()).ok();

    let said = run(folder, &["topics", "purge", "--set", "log.path=elsewhere"]).failed(1);
    assert!(said.contains("there is no log") && !folder.join("elsewhere").exists(), "{said}");
}
