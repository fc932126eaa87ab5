//! What is final: the frontier, single roots, and waiting for them.

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::running::{Running, eventually};

const JSON: &str = "application/json";

/// An event whose cascade takes `work_ms` at each of three depths and leaves `end` at its last key.
fn cascade(key: &str, work_ms: u32, end: &str) -> String {
    let last =
        json!({ "key": format!("{key}-last"), "action": "ADD", "payload": { "work_ms": work_ms, "value": end } });
    let middle =
        json!({ "key": format!("{key}-middle"), "action": "ADD", "payload": { "work_ms": work_ms, "spawn": [last] } });
    json!({ "key": key, "action": "ADD", "payload": { "work_ms": work_ms, "spawn": [middle] } }).to_string()
}

#[test]
fn waiting_ends_with_the_whole_cascade() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let (_, nothing) = instance.get("/api/v1/frontier");
    let expected = json!({ "frontier": null, "received": null, "unsettled": 0, "oldest_unsettled": null,
                           "horizon": null, "unavailable": null });
    assert_eq!(nothing, expected);

    let (status, answer) = instance.post_to("/api/v1/events?wait=settled", JSON, cascade("a", 150, "done"));
    assert_eq!((status, &answer["ranges"]), (200, &json!([[0, 0]])), "{answer}");
    // At once, without waiting for anything more.
    let (_, held) = instance.get("/api/v1/keys/a-last");
    assert_eq!((&held["value"], &held["stamp"], &held["settled"]), (&json!("done"), &json!("0/0/0"), &json!(true)));
    let (_, standing) = instance.get("/api/v1/frontier");
    assert_eq!((&standing["frontier"], &standing["unsettled"]), (&json!(0), &json!(0)), "{standing}");
    assert_eq!(instance.get("/api/v1/status").1["frontier"], 0);
    let (_, root) = instance.get("/api/v1/roots/0");
    assert_eq!(root, json!({ "sequence": 0, "settled": true, "pending": {}, "retries": [] }));
    assert_eq!(instance.get("/api/v1/roots/1").1["error"]["code"], "unknown_root");
}

#[test]
fn a_root_that_is_pending_holds_the_frontier_and_those_who_wait() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    instance.send(&cascade("slow", 700, "late"));
    let (status, answer) =
        instance.post_to("/api/v1/events?wait=settled&timeout=10s", JSON, cascade("fast", 0, "early"));
    assert_eq!(status, 200, "{answer}");
    let (_, standing) = instance.get("/api/v1/frontier");
    assert_eq!(
        (&standing["frontier"], &standing["received"], &standing["oldest_unsettled"]),
        (&Value::Null, &json!(1), &json!(0)),
        "{standing}"
    );
    assert_eq!(instance.get("/api/v1/roots/1").1["settled"], true, "settled above the frontier");
    assert_eq!(instance.get("/api/v1/keys/fast-last").1["settled"], true);
    let (_, root) = instance.get("/api/v1/roots/0");
    assert_eq!(root["settled"], false, "{root}");
    assert_eq!(root["pending"].as_object().unwrap().values().map(|n| n.as_i64().unwrap()).sum::<i64>(), 1, "{root}");

    // Whoever waits too shortly is told what is missing; what was sent is accepted all the same.
    let (status, answer) = instance.post_to("/api/v1/events?wait=settled&timeout=50ms", JSON, cascade("b", 400, "x"));
    assert_eq!(
        (status, &answer["error"]["code"], &answer["pending"]),
        (504, &json!("not_settled"), &json!([2])),
        "{answer}"
    );
    assert_eq!((&answer["accepted"], &answer["ranges"]), (&json!(1), &json!([[2, 2]])), "{answer}");
    assert_eq!(instance.get("/api/v1/keys/slow-last?wait=settled&timeout=1ms").1["error"]["code"], "not_settled");

    let (status, held) = instance.get("/api/v1/keys/slow-last?wait=settled&timeout=20s");
    assert_eq!((status, &held["value"], &held["settled"]), (200, &json!("late"), &json!(true)), "{held}");
    assert_eq!(instance.get("/api/v1/keys/b-last").1["value"], "x", "all that was received is settled");
    let (_, standing) = instance.get("/api/v1/frontier");
    assert_eq!((&standing["frontier"], &standing["unsettled"]), (&json!(2), &json!(0)), "{standing}");
}

#[test]
fn a_restart_knows_the_frontier_again() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let (status, _) = instance.post_to("/api/v1/events?wait=settled", JSON, cascade("a", 0, "x"));
    assert_eq!(status, 200);
    // A root that is never done while this process lives.
    instance.send(&json!({ "key": "stuck", "action": "ADD", "payload": { "work_ms": 20_000 } }).to_string());
    eventually("received", || (instance.get("/api/v1/frontier").1["received"] == 1).then_some(()));
    instance.kill();
    let instance = Running::start(folder.path(), &[]);
    let standing = eventually("the frontier", || {
        Some(instance.get("/api/v1/frontier").1).filter(|standing| standing["received"] == 1)
    });
    assert_eq!((&standing["frontier"], &standing["oldest_unsettled"]), (&json!(0), &json!(1)), "{standing}");
}

#[test]
fn the_command_line_waits_and_tells() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let told = instance.command(&["send", "--wait", "1:ADD", "2:ADD"]).ok();
    assert_eq!(told, "accepted 2 events, sequences 0 to 1, settled\n");
    assert_eq!(instance.command(&["frontier"]).ok(), "frontier 1   received 1   unsettled 0\n");
    let file = cascade("a", 100, "x");
    instance.command_with(&["send", "--file", "-"], &file).ok();
    let held = instance.command(&["--output", "json", "get", "a-last", "--wait"]).ok();
    assert!(held.contains("\"settled\": true"), "{held}");
    let slow = cascade("b", 5_000, "x");
    let said = instance.command_with(&["send", "--file", "-", "--wait", "--timeout", "50ms"], &slow).failed(1);
    assert!(said.contains("not_settled"), "{said}");
}

#[test]
fn what_is_not_counted_is_not_guessed() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "processing.guarantee=at_least_once"]);
    instance.send(r#"{"key":"1","action":"ADD"}"#);
    eventually("known", || (instance.get("/api/v1/frontier").1["unavailable"] == "needs_exactly_once").then_some(()));
    assert_eq!(instance.holds("1", "ADD")["settled"], Value::Null);
    let (status, answer) = instance.post_to("/api/v1/events?wait=settled", JSON, r#"{"key":"2","action":"ADD"}"#);
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("needs_exactly_once")), "{answer}");
    assert_eq!(instance.get("/api/v1/keys/1?wait=settled").0, 409);
    assert_eq!(instance.get("/api/v1/keys/2").0, 404, "nothing was appended");
}

#[test]
fn with_sequences_of_their_own_single_roots_are_known_but_no_frontier() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "source.stamp=header"]);
    let event = r#"{"key":"1","action":"ADD","global_offset":70}"#;
    let (status, answer) = instance.post_to("/api/v1/events?wait=settled", JSON, event);
    assert_eq!((status, &answer["ranges"]), (200, &json!([[70, 70]])), "{answer}");
    let (_, standing) = instance.get("/api/v1/frontier");
    assert_eq!(
        (&standing["frontier"], &standing["received"], &standing["unavailable"]),
        (&Value::Null, &json!(70), &json!("needs_mark")),
        "{standing}"
    );
    assert_eq!(instance.get("/api/v1/keys/1").1["settled"], true);
    assert_eq!(instance.get("/api/v1/roots/70").1["settled"], true);
    assert_eq!(instance.get("/api/v1/roots/69").1["error"]["code"], "unknown_root");
}

#[test]
fn sequences_given_when_read_are_waited_for() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "source.stamp=arrival"]);
    let (status, answer) = instance.post_to("/api/v1/events?wait=settled", JSON, cascade("a", 100, "x"));
    assert_eq!((status, &answer["ranges"]), (200, &json!([])), "{answer}");
    assert_eq!(instance.get("/api/v1/keys/a-last").1["settled"], true);
    assert_eq!(instance.get("/api/v1/frontier").1["frontier"], 0);
}
