//! What is final: the frontier, single roots, and waiting for them.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};
use tempfile::tempdir;
use tidegate::log::Log;
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};

use crate::running::{Running, eventually, tidegate};

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
    let done = json!({ "sequence": 0, "settled": true, "pending": {}, "dead_letters": 0, "retries": [],
                       "places": [], "unplaced": 0, "silent": [] });
    assert_eq!(root, done);
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
    let places = root["places"].as_array().unwrap().len() as u64 + root["unplaced"].as_u64().unwrap();
    assert_eq!((places, &root["silent"]), (1, &json!([])), "{root}");

    // Whoever waits too shortly is told what is missing; what was sent is accepted all the same.
    let (status, answer) = instance.post_to("/api/v1/events?wait=settled&timeout=50ms", JSON, cascade("b", 400, "x"));
    assert_eq!(
        (status, &answer["error"]["code"], &answer["pending"]),
        (504, &json!("not_settled"), &json!([2])),
        "{answer}"
    );
    assert_eq!((&answer["accepted"], &answer["ranges"]), (&json!(1), &json!([[2, 2]])), "{answer}");
    assert!(answer["error"]["hint"].as_str().unwrap().contains("/api/v1/roots/2 "), "where to look: {answer}");
    assert_eq!(instance.get("/api/v1/keys/slow-last?wait=settled&timeout=1ms").1["error"]["code"], "not_settled");

    let (status, held) = instance.get("/api/v1/keys/slow-last?wait=settled&timeout=20s");
    assert_eq!((status, &held["value"], &held["settled"]), (200, &json!("late"), &json!(true)), "{held}");
    assert_eq!(instance.get("/api/v1/keys/b-last").1["value"], "x", "all that was received is settled");
    let (_, standing) = instance.get("/api/v1/frontier");
    assert_eq!((&standing["frontier"], &standing["unsettled"]), (&json!(2), &json!(0)), "{standing}");
}

#[test]
fn settled_is_not_succeeded() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "handler.retry.attempts=1"]);
    let fail = json!({ "fail": { "times": 9, "how": "reject" } });
    let child = |key: &str| json!({ "key": key, "action": "ADD", "payload": fail });
    let parent = json!({ "key": "p", "action": "ADD", "payload": { "spawn": [child("x"), child("y")] } });
    let lines = format!("{}\n{parent}\n{}\n", cascade("a", 0, "x"), child("z"));
    let (status, answer) = instance.post_to("/api/v1/events?wait=settled", "application/x-ndjson", lines);
    let told = (status, &answer["dead_letters"], &answer["failed"]);
    assert_eq!(told, (200, &json!(3), &json!([1, 2])), "{answer}");
    let dead = |n| instance.get(&format!("/api/v1/roots/{n}")).1["dead_letters"].clone();
    assert_eq!((dead(0), dead(1), dead(2)), (json!(0), json!(2), json!(1)));

    let (_, answer) = instance.post_to("/api/v1/events?wait=settled", JSON, cascade("b", 0, "x"));
    assert_eq!((&answer["dead_letters"], &answer["failed"]), (&json!(0), &json!([])), "{answer}");
    // What the command line makes of it.
    let ended = instance.command_with(&["send", "--file", "-", "--wait"], &parent.to_string());
    assert_eq!(ended.out, "accepted 1 event, sequence 4, settled\n");
    let said = ended.failed(4);
    assert!(said.contains("2 dead letters in the cascades of what was sent: sequences 4"), "{said}");
    let told = instance.command_with(&["--output", "json", "send", "--file", "-", "--wait"], &parent.to_string());
    let told: Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!((&told["dead_letters"], &told["failed"]), (&json!(2), &json!([5])));
    assert_eq!(instance.command(&["send", "--wait", "1:ADD"]).ok(), "accepted 1 event, sequence 6, settled\n");
    let told = instance.command(&["frontier", "--root", "1"]).ok();
    assert_eq!(told, "root 1: settled, 0 pending, dead letters: 2\n");
    instance.kill();
    let instance = Running::start(folder.path(), &[]);
    eventually("known again", || (instance.get("/api/v1/frontier").1["frontier"] == 6).then_some(()));
    assert_eq!(instance.get("/api/v1/roots/1").1["dead_letters"], 2);
}

#[test]
fn a_root_that_hangs_is_found() {
    let folder = tempdir().unwrap();
    let retries = ["--set", "handler.retry.initial=60s", "--set", "handler.retry.max=60s"];
    let instance = Running::start(folder.path(), &retries);
    let fail = json!({ "key": "hangs", "action": "ADD", "payload": { "fail": { "times": 1, "how": "retry" } } });
    let behind = json!({ "key": "hangs", "action": "REMOVE" });
    let works = json!({ "key": "works", "action": "ADD", "payload": { "work_ms": 20_000 } });
    let spawn = json!({ "key": "p", "action": "ADD", "payload": { "spawn": [behind, works, fail] } });
    instance.send(&format!("{fail}\n{spawn}"));
    let root = eventually("all of it is read", || {
        let (_, root) = instance.get("/api/v1/roots/1");
        (root["pending"] == json!({ "1": 3 }) && root["unplaced"] == 0).then_some(root)
    });
    let told = |place: &Value| ["state", "stamp", "key"].map(|name| place[name].as_str().unwrap().to_owned()).join(" ");
    let places: Vec<String> = root["places"].as_array().unwrap().iter().map(told).collect();
    assert_eq!(places, ["running 1/1 works", "waiting 1/0 hangs", "waiting 1/2 hangs"], "{root}");
    let (_, root) = instance.get("/api/v1/roots/0");
    let place = &root["places"][0];
    assert_eq!(
        (&place["state"], &place["attempt"], &place["depth"]),
        (&json!("retrying"), &json!(2), &json!(0)),
        "{root}"
    );
    assert_eq!((&place["instance"], &place["retry"]), (&json!("one"), &json!(0)), "{root}");
    assert!(place["last_error"].as_str().unwrap().contains("the script fails try 1"), "{root}");
    // The command line leads there.
    let told = instance.command(&["frontier"]).ok();
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with("frontier -   received 1   unsettled 2   oldest 0"), "{told}");
    assert_eq!(lines[1], "root 0: not settled, 1 pending", "{told}");
    assert!(
        lines[3].contains("hangs") && lines[3].contains("retrying") && lines[3].contains("the script fails"),
        "{told}"
    );
    let all: Value =
        serde_json::from_str(&instance.command(&["--output", "json", "frontier", "--root", "1"]).ok()).unwrap();
    assert_eq!(all["places"].as_array().unwrap().len(), 3);
    assert!(instance.command(&["frontier", "--root", "7"]).failed(1).contains("unknown_root"));
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
    let nothing = instance.command(&["send", "--wait"]).failed(2);
    assert!(nothing.contains("<KEY:ACTION|--file <FILE>>"), "{nothing}");
    let slow = cascade("b", 5_000, "x");
    let said = instance.command_with(&["send", "--file", "-", "--wait", "--timeout", "50ms"], &slow).failed(1);
    assert!(said.contains("not_settled"), "{said}");
}

#[test]
fn who_follows_waits_for_an_instance_that_is_away() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let follow = |url: &str| {
        let mut command = tidegate(folder.path());
        command.args(["--server", url, "--output", "json", "frontier", "--follow"]);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut follower = follow(&instance.url);
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().expect("it goes on").unwrap()).unwrap() };
    assert_eq!(next()["frontier"], Value::Null);
    let url = instance.url.clone();
    instance.kill();
    assert!(next()["error"].as_str().unwrap().contains(url.trim_start_matches("http://")));
    // At the same address.
    let mut again = tidegate(folder.path());
    again.args(["run", "--handler", "scripted", "--listen", url.trim_start_matches("http://")]);
    again.args(["--set", "processing.partitions=4", "--set", "application.instance_id=one"]);
    let mut again = again.stderr(Stdio::null()).spawn().unwrap();
    eventually("told again", || (next()["unsettled"] == 0).then_some(()));
    for process in [&mut follower, &mut again] {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    assert_eq!(follow(&url).wait().unwrap().code(), Some(1), "one that never answered");
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
    assert_eq!(
        (&answer["dead_letters"], instance.get("/api/v1/roots/70").1["settled"].clone()),
        (&json!(0), json!(true))
    );
    assert_eq!(instance.get("/api/v1/roots/69").1["error"]["code"], "unknown_root");
}

#[test]
fn sequences_given_when_read_are_waited_for() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "source.stamp=arrival"]);
    let (status, answer) = instance.post_to("/api/v1/events?wait=settled", JSON, cascade("a", 100, "x"));
    assert_eq!((status, &answer["ranges"]), (200, &json!([])), "{answer}");
    assert_eq!(answer["dead_letters"], 0, "none among all that came meanwhile");
    assert_eq!(instance.get("/api/v1/keys/a-last").1["settled"], true);
    assert_eq!(instance.get("/api/v1/frontier").1["frontier"], 0);
    let rejected = json!({ "key": "b", "action": "ADD", "payload": { "fail": { "how": "reject" } } }).to_string();
    let (status, answer) = instance.post_to("/api/v1/events?wait=settled", JSON, &rejected);
    assert_eq!((status, &answer["dead_letters"]), (200, &Value::Null), "whose they are is not known: {answer}");
    let said = instance.command_with(&["send", "--file", "-", "--wait"], &rejected).failed(4);
    assert!(said.contains("not known"), "{said}");
}

/// Whoever sends a record waits for that one, also where its sequence has come before, or is refused.
#[test]
fn a_copy_and_a_refused_record_are_waited_for() {
    let folder = tempdir().unwrap();
    let header = ["--set", "source.stamp=header", "--set", "source.max_jump=1000", "--set", "handler.retry.attempts=1"];
    let instance = Running::start(folder.path(), &header);
    let send = |payload: Value, sequence: u64| {
        let event = json!({ "key": "d", "action": "ADD", "global_offset": sequence, "payload": payload });
        let (status, answer) = instance.post_to("/api/v1/events?wait=settled", JSON, event.to_string());
        (status, answer["dead_letters"].clone(), answer["failed"].clone())
    };
    assert_eq!(send(json!({ "fail": { "how": "reject" } }), 10), (200, json!(1), json!([10])));
    assert_eq!(send(json!({ "value": "second", "work_ms": 300 }), 10), (200, json!(1), json!([10])));
    assert_eq!(instance.get("/api/v1/keys/d").1["value"], "second");
    assert_eq!(send(json!({ "value": "far" }), 9000), (200, json!(1), json!([9000])), "sequence_jump");
    assert_eq!(send(json!({ "value": "third" }), 11), (200, json!(0), json!([])));
}

/// With a new source topic and a higher epoch positions of before say nothing.
#[test]
fn what_is_sent_to_a_new_topic_is_waited_for() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &["--set", "source.stamp=arrival"]);
    let lines: Vec<String> = (0..20).map(|n| cascade(&format!("b-{n}"), 0, "before")).collect();
    let (status, _) = instance.post_to("/api/v1/events?wait=settled", "application/x-ndjson", lines.join("\n"));
    assert_eq!(status, 200);
    instance.signal("TERM");
    assert_eq!(instance.ended(), Some(0));
    EmbeddedLog::open(folder.path().join("tidegate-data/log"), EmbeddedOptions::default())
        .unwrap()
        .delete_topics(&["events"])
        .unwrap();
    let epoch = ["--set", "source.stamp=arrival", "--set", "source.epoch=1"];
    let instance = Running::start(folder.path(), &epoch);
    let (status, answer) = instance.post_to("/api/v1/events?wait=settled", JSON, cascade("a", 100, "x"));
    assert_eq!((status, &answer["dead_letters"]), (200, &json!(0)), "{answer}");
    let (_, held) = instance.get("/api/v1/keys/a-last");
    assert_eq!((&held["value"], &held["settled"]), (&json!("x"), &json!(true)), "{held}");
}
