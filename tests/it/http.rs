//! The HTTP API through the binary.

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::running::{Running, eventually};

const JSON: &str = "application/json";
const LINES: &str = "application/x-ndjson";

#[track_caller]
fn refused((status, answer): (u16, Value), expected: u16, code: &str) -> Value {
    assert_eq!((status, &answer["error"]["code"]), (expected, &code.into()), "{answer}");
    assert!(answer["error"]["message"].is_string() && answer["error"]["hint"].is_string(), "{answer}");
    answer
}

#[test]
fn events_are_accepted_with_their_sequences() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let (status, answer) = instance.post(JSON, r#"{"key":"1","action":"ADD","payload":{"value":"one"}}"#);
    assert_eq!(status, 202);
    assert_eq!(answer, json!({"accepted": 1, "first_sequence": 0, "last_sequence": 0, "ranges": [[0, 0]]}));
    let answer = instance.send("{\"key\":\"2\",\"action\":\"add\"}\n\n{\"key\":\"3\",\"action\":\"REMOVE\"}\r\n");
    assert_eq!(answer, json!({"accepted": 2, "first_sequence": 1, "last_sequence": 2, "ranges": [[1, 2]]}));

    let held = instance.holds("1", "ADD");
    assert_eq!((&held["key"], &held["value"], &held["stamp"]), (&"1".into(), &"one".into(), &"0".into()));
    assert!(held["settled"].is_boolean(), "{held}");
    assert_eq!(held["instance"], "one");
    assert!(held["partition"].is_number());
    assert_eq!(instance.holds("3", "REMOVE")["value"], Value::Null);
}

#[test]
fn a_request_is_taken_whole_or_not_at_all() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let lines = "{\"key\":\"1\",\"action\":\"ADD\"}\n\n{\"key\":\"2\",\"action\":\"PUT\"}\n";
    let answer = refused(instance.post(LINES, lines), 400, "bad_event");
    assert!(answer["error"]["message"].as_str().unwrap().contains("line 3"), "{answer}");
    let answer = instance.send(r#"{"key":"9","action":"ADD"}"#);
    assert_eq!(answer["first_sequence"], 0, "nothing was appended before");

    refused(instance.post(JSON, "{"), 400, "bad_event");
    refused(instance.post(JSON, r#"{"key":"","action":"ADD"}"#), 400, "bad_event");
    refused(instance.post(JSON, format!(r#"{{"key":"{}","action":"ADD"}}"#, "k".repeat(1025))), 400, "bad_event");
    refused(instance.post(LINES, "\n"), 400, "bad_event");
    refused(instance.post("text/plain", "1:ADD"), 415, "unsupported_media_type");
    refused(instance.post(JSON, vec![b' '; (8 << 20) + 1]), 413, "too_large");
    refused(instance.post_to("/api/v1/events?wait=later", JSON, "{}"), 400, "bad_parameter");
}

#[test]
fn errors_are_json_everywhere() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    refused(instance.get("/no/such/path"), 404, "not_found");
    refused(instance.get("/api/v1/events"), 405, "method_not_allowed");
    refused(instance.post_to("/api/v1/status", JSON, "{}"), 405, "method_not_allowed");
    refused(instance.get("/api/v1/keys/nobody"), 404, "unknown_key");
    refused(instance.get("/api/v1/keys?limit=1001"), 400, "bad_parameter");
    refused(instance.get("/api/v1/keys?limit=0"), 400, "bad_parameter");
    refused(instance.get("/api/v1/keys?color=red"), 400, "bad_parameter");
    refused(instance.get(&format!("/api/v1/keys/{}", "k".repeat(1025))), 400, "bad_key");
}

#[test]
fn keys_are_bytes() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    instance.send(
        "{\"key\":\"a/b c\",\"action\":\"ADD\"}\n{\"key_base64\":\"/wA=\",\"action\":\"ADD\"}\n{\"key\":\"é\",\"action\":\"ADD\"}",
    );
    assert_eq!(instance.holds("a%2Fb%20c", "ADD")["key"], "a/b c");
    assert_eq!(instance.holds("%FF%00", "ADD")["key_base64"], "/wA=");
    assert_eq!(instance.holds("%C3%A9", "ADD")["key"], "é");
}

#[test]
fn pages_are_in_byte_order_over_all_partitions() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let lines: Vec<String> = (0..25).map(|n| format!(r#"{{"key":"p{n:02}","action":"ADD"}}"#)).collect();
    instance.send(&lines.join("\n"));
    instance.send("{\"key\":\"q\",\"action\":\"ADD\"}\n{\"key\":\"p99\",\"action\":\"REMOVE\"}");
    instance.drained();
    let mut seen = Vec::new();
    let mut after = String::new();
    loop {
        let (status, page) = instance.get(&format!("/api/v1/keys?prefix=p&limit=10{after}"));
        assert_eq!(status, 200, "{page}");
        seen.extend(page["entries"].as_array().unwrap().iter().map(|entry| entry["key"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert_eq!(seen, (0..25).map(|n| format!("p{n:02}")).collect::<Vec<_>>());
    let (_, page) = instance.get("/api/v1/keys?prefix=p9&removed=true");
    assert_eq!(page["entries"][0]["action"], "REMOVE");
}

#[test]
fn a_late_child_is_superseded() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    instance.send(r#"{"key":"123","action":"ADD","payload":{"work_ms":1100,"spawn":[{"key":"234","action":"REMOVE","payload":{"spawn":[{"key":"345","action":"ADD"}]}}]}}"#);
    instance.send(r#"{"key":"234","action":"ADD","payload":{"value":"stays"}}"#);
    instance.holds("123", "ADD");
    assert_eq!(instance.holds("345", "ADD")["stamp"], "0/0/0", "the late child still spawns");
    let held = instance.holds("234", "ADD");
    assert_eq!((&held["stamp"], &held["value"]), (&"1".into(), &"stays".into()));
}

#[test]
fn health_status_and_metrics() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    for path in ["/livez", "/readyz", "/startupz"] {
        assert_eq!(instance.get(path), (200, json!({"status": "ok"})));
        let (_, verbose) = instance.get(&format!("{path}?verbose"));
        assert!(verbose["checks"].as_array().is_some_and(|checks| !checks.is_empty()), "{verbose}");
    }
    let (_, status) = instance.get("/api/v1/status");
    assert_eq!((&status["application"], &status["instance"]), (&"tidegate".into(), &"one".into()));
    assert_eq!((&status["state"], &status["guarantee"]), (&"running".into(), &"exactly_once".into()));
    assert_eq!(status["partitions"], json!([0, 1, 2, 3]));
    // A call that is ready at once is not measured; this one waits.
    instance.send(r#"{"key":"1","action":"ADD","payload":{"work_ms":5}}"#);
    instance.drained();
    let (_, tasks) = instance.get("/api/v1/tasks");
    assert!(tasks["tasks"].as_array().unwrap().iter().any(|task| task["role"] == "task"), "{tasks}");
    let (status, page) = instance.get_text("/metrics");
    assert_eq!(status, 200);
    for line in [
        "tidegate_events_received_total{topic=\"events\"} 1",
        "tidegate_events_processed_total{outcome=\"applied\"} 1",
        "tidegate_handler_duration_seconds_count 1",
        "# TYPE tidegate_commit_duration_seconds histogram",
        "tidegate_build_info{version=",
        "process_resident_memory_bytes",
    ] {
        assert!(page.contains(line), "{line} is not in\n{page}");
    }
}

#[test]
fn in_flight_tells_what_failed() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "handler.retry.initial=10s"]);
    instance.send(r#"{"key":"bad","action":"ADD","payload":{"fail":{"times":3,"how":"retry"}}}"#);
    let event = crate::running::eventually("it waits for its retry", || {
        let (_, answer) = instance.get("/api/v1/in-flight");
        answer["in_flight"].get(0).filter(|event| event["last_error"].is_string()).cloned()
    });
    assert_eq!((&event["key"], &event["stamp"]), (&"bad".into(), &"0".into()));
    assert!(event["age_ms"].is_number() && event["attempt"].is_number(), "{event}");
}

#[test]
fn what_is_dropped_spawns_nothing_and_is_counted_as_superseded() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "processing.superseded=drop"]);
    let late = json!({ "key": "234", "action": "REMOVE", "payload": { "spawn": [{ "key": "345", "action": "ADD" }] } });
    let first = json!({ "key": "123", "action": "ADD", "payload": { "work_ms": 500, "spawn": [late] } });
    instance.send(&format!("{first}\n{}", json!({ "key": "234", "action": "ADD" })));
    instance.holds("123", "ADD");
    instance.drained();
    assert_eq!(instance.holds("234", "ADD")["stamp"], "1");
    assert_eq!(instance.get("/api/v1/keys/345").0, 404);
    let (_, metrics) = instance.get_text("/metrics");
    let count =
        metrics.lines().find(|line| line.starts_with("tidegate_events_processed_total{outcome=\"superseded\"}"));
    assert_eq!(count.and_then(|line| line.rsplit(' ').next()), Some("1"), "{metrics}");
}

#[test]
fn with_header_every_event_brings_its_sequence() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "source.stamp=header"]);
    let event = |key: &str, sequence: u64| format!(r#"{{"key":"{key}","action":"ADD","global_offset":{sequence}}}"#);
    let none = r#"{"key":"1","action":"ADD"}"#;
    refused(instance.post("application/json", none), 409, "no_sequence");
    let error =
        refused(instance.post("application/x-ndjson", format!("{}\n{none}", event("1", 7))), 409, "no_sequence");
    assert_eq!(error["line"], 2, "{error}");
    let answer = instance.send(&[event("1", 12), event("2", 10), event("3", 11), event("1", 5)].join("\n"));
    assert_eq!(
        answer,
        json!({ "accepted": 4, "first_sequence": 12, "last_sequence": 5, "ranges": [[12, 12], [10, 11], [5, 5]] })
    );
    for (key, stamp) in [("1", "12"), ("2", "10"), ("3", "11")] {
        assert_eq!(instance.holds(key, "ADD")["stamp"], stamp);
    }
    instance.drained();
    assert_eq!(instance.holds("1", "ADD")["stamp"], "12", "5 came later and is older; 7 was not appended");
    assert_eq!(received(&instance), 4);
}

#[test]
fn with_arrival_the_sequence_is_given_when_an_event_is_read() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "source.stamp=arrival"]);
    let event = |key: &str| format!(r#"{{"key":"{key}","action":"ADD","global_offset":9}}"#);
    let answer = instance.send(&[event("1"), event("2"), event("1")].join("\n"));
    assert_eq!(answer, json!({ "accepted": 3, "first_sequence": null, "last_sequence": null, "ranges": [] }));
    instance.holds("2", "ADD");
    instance.drained();
    let mut given: Vec<u64> =
        ["1", "2"].map(|key| instance.holds(key, "ADD")["stamp"].as_str().unwrap().parse().unwrap()).into();
    given.sort_unstable();
    assert!(given[0] < given[1] && given[1] <= 2, "0 to 2, whatever the events say themselves: {given:?}");
}

/// What the instance has counted of its source topics.
fn received(instance: &Running) -> u64 {
    let metrics = instance.get_text("/metrics").1;
    let counts = metrics.lines().filter(|line| line.starts_with("tidegate_events_received_total{"));
    counts.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn what_stands_behind_a_record_that_is_judged_is_received_once() {
    let folder = tempdir().unwrap();
    let settings = ["source.stamp=header", "source.max_jump=100"];
    let instance = Running::start(folder.path(), &["--set", settings[0], "--set", settings[1]]);
    // One key: all of them stand in one partition, behind the one that is beyond all others.
    let event = |sequence: u64| format!(r#"{{"key":"1","action":"ADD","global_offset":{sequence}}}"#);
    instance.send(&event(1));
    instance.holds("1", "ADD");
    instance.send(&[2, 5000, 3, 4, 5].map(event).join("\n"));
    eventually("5 is the last", || (instance.holds("1", "ADD")["stamp"] == "5").then_some(()));
    assert_eq!(instance.get("/api/v1/dead-letters").1["dead_letters"][0]["cause"], "sequence_jump");
    assert_eq!(received(&instance), 6);
}
