//! Dead letters, browsed over HTTP and from the command line.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::tempdir;
use tidegate::event::StampedEvent;
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use tidegate::log::{Append, Log, NewRecord, NewTopic, TopicPartition};

use crate::running::{Running, eventually};

/// A rejected event of each of these keys, one that is exhausted, and a child with a bad key.
fn some(instance: &Running) {
    let mut lines: Vec<String> = (0..10)
        .map(|n| format!(r#"{{"key":"bad-{n}","action":"ADD","payload":{{"fail":{{"times":9,"how":"reject"}}}}}}"#))
        .collect();
    lines.push(r#"{"key_base64":"/wA6","action":"REMOVE","payload_base64":"/wA6"}"#.into());
    lines.push(r#"{"key":"tired","action":"ADD","payload":{"fail":{"times":9,"how":"retry"}}}"#.into());
    lines.push(r#"{"key":"good","action":"ADD","payload":{"value":"fine"}}"#.into());
    instance.send(&lines.join("\n"));
    instance.holds("good", "ADD");
    eventually("all twelve are there", || (list(instance, "?limit=1000").len() == 12).then_some(()));
}

const TRIES: [&str; 4] = ["--set", "handler.retry.attempts=2", "--set", "handler.retry.initial=1ms"];

fn list(instance: &Running, query: &str) -> Vec<Value> {
    let (status, answer) = instance.get(&format!("/api/v1/dead-letters{query}"));
    assert_eq!(status, 200, "{answer}");
    answer["dead_letters"].as_array().unwrap().clone()
}

fn place(letter: &Value) -> (i64, i64) {
    (letter["partition"].as_i64().unwrap(), letter["offset"].as_i64().unwrap())
}

fn bytes(object: &Value, name: &str) -> Option<Vec<u8>> {
    match object[name].as_str() {
        Some(text) => Some(text.as_bytes().to_vec()),
        None => object[format!("{name}_base64")].as_str().map(|text| STANDARD.decode(text).unwrap()),
    }
}

#[test]
fn they_are_listed_in_pages_in_order_with_all_that_is_known() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &TRIES);
    assert_eq!(instance.get("/api/v1/dead-letters"), (200, json!({"dead_letters": [], "next": null})));
    some(&instance);

    let all = list(&instance, "?limit=1000");
    let places: Vec<_> = all.iter().map(place).collect();
    assert!(places.is_sorted() && places.first() < places.last(), "{places:?}");
    let (mut paged, mut after) = (Vec::new(), String::new());
    loop {
        let (status, page) = instance.get(&format!("/api/v1/dead-letters?limit=5{after}"));
        assert_eq!(status, 200, "{page}");
        paged.extend(page["dead_letters"].as_array().unwrap().iter().map(place));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(paged, places);

    let letter = all.iter().find(|letter| letter["key"] == "bad-3").unwrap();
    let expected = json!({
        "kind": "event", "action": "ADD", "stamp": "3", "cause": "rejected", "exception": letter["exception"],
        "message": letter["message"], "attempts": 1, "retried": false, "key": "bad-3",
        "origin": {"topic": "events", "partition": 0, "offset": 3},
        "value": r#"{"fail":{"times":9,"how":"reject"}}"#,
        "partition": letter["partition"], "offset": letter["offset"], "timestamp_ms": letter["timestamp_ms"],
    });
    assert_eq!(letter, &expected);
    let tired = list(&instance, "?cause=exhausted");
    assert_eq!((tired.len(), &tired[0]["key"], &tired[0]["attempts"]), (1, &"tired".into(), &2.into()));
    let binary = all.iter().find(|letter| letter["key_base64"] == "/wA6").unwrap();
    assert_eq!((&binary["value_base64"], &binary["action"]), (&"/wA6".into(), &"REMOVE".into()));
}

#[test]
fn one_is_told_with_its_record_and_what_is_not_there_is_refused() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &TRIES);
    some(&instance);
    let listed = list(&instance, "?cause=exhausted").remove(0);
    let (partition, offset) = place(&listed);
    let (status, mut one) = instance.get(&format!("/api/v1/dead-letters/{partition}/{offset}"));
    assert_eq!(status, 200, "{one}");
    let record = one.as_object_mut().unwrap().remove("record").unwrap();
    assert_eq!(one, listed, "the same fields as in the list");
    let (key, value) = (bytes(&record, "key").unwrap(), bytes(&record, "value").unwrap());
    let event = StampedEvent::decode(key.into(), value.into()).unwrap();
    assert_eq!((&event.event.key[..], event.stamp.to_string()), (&b"tired"[..], "11".into()));

    let refused = |path: &str, status: u16, code: &str| {
        let (told, answer) = instance.get(&format!("/api/v1/dead-letters{path}"));
        assert_eq!((told, &answer["error"]["code"]), (status, &code.into()), "{path}: {answer}");
        answer["error"]["hint"].as_str().unwrap().to_owned()
    };
    for path in ["?limit=0", "?limit=1001", "?after=x", "?after=-1:3", "?color=red", "?full=maybe", "/a/b"] {
        refused(path, 400, "bad_parameter");
    }
    assert!(refused("?cause=sadness", 400, "bad_parameter").contains("rejected"));
    for path in ["/0/999", "/99/0", "/-1/0", "/0/-1"] {
        refused(path, 404, "unknown_dead_letter");
    }
}

#[test]
fn the_command_line_lists_shows_and_exports_all_of_it() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &TRIES);
    assert_eq!(instance.command(&["dead-letters", "list"]).ok().trim(), "no dead letters");
    some(&instance);

    let said = instance.command(&["dead-letters", "list", "--cause", "exhausted"]).ok();
    assert!(said.contains("tired") && said.contains("exhausted") && !said.contains("bad-"), "{said}");
    let said = instance.command(&["dead-letters", "list", "--limit", "3"]).ok();
    let after = said.split("--after ").nth(1).expect("there are more").trim();
    let rest = instance.command(&["dead-letters", "list", "--after", after, "--output", "json"]).ok();
    let rest: Value = serde_json::from_str(&rest).unwrap();
    assert_eq!((rest["dead_letters"].as_array().unwrap().len(), &rest["next"]), (9, &Value::Null));

    let binary = list(&instance, "?limit=1000").into_iter().find(|letter| letter["key_base64"] == "/wA6").unwrap();
    let (partition, offset) = place(&binary);
    let show = ["--encoding", "hex", "dead-letters", "show", &partition.to_string(), &offset.to_string()];
    let said = instance.command(&show).ok();
    assert!(
        said.contains("ff003a") && said.contains("tidegate_cause") && said.contains("events-0 offset 10"),
        "{said}"
    );

    let file = folder.path().join("letters.ndjson");
    let said = instance.command(&["dead-letters", "export", "--file", file.to_str().unwrap()]).ok();
    assert!(said.contains("12 dead letters"), "{said}");
    let written = std::fs::read_to_string(&file).unwrap();
    assert_eq!(instance.command(&["dead-letters", "export"]).ok(), written, "the same on standard output");
    let mut keys = BTreeMap::new();
    for line in written.lines() {
        let record = &serde_json::from_str::<Value>(line).unwrap()["record"];
        let (key, value) = (bytes(record, "key").unwrap(), bytes(record, "value").unwrap());
        let names: Vec<_> = record["headers"].as_array().unwrap().iter().map(|header| &header["name"]).collect();
        assert!(names.len() == 9 && names.contains(&&"__streams.errors.exception".into()), "{names:?}");
        let event = StampedEvent::decode(Bytes::from(key.clone()), value.into()).unwrap();
        keys.insert(key, event.stamp.to_string());
    }
    assert_eq!((keys.len(), &keys[&b"\xff\0:"[..]]), (12, &"10".into()));
    let said = instance.command(&["dead-letters", "export", "--cause", "exhausted"]).ok();
    assert_eq!(said.lines().count(), 1);

    let said = instance.command(&["dead-letters", "show", "0", "999"]).failed(1);
    assert!(said.contains("unknown_dead_letter") && said.contains("hint"), "{said}");
    let said = instance.command(&["dead-letters", "list", "--cause", "sadness"]).failed(2);
    assert!(said.contains("sadness"), "{said}");
}

#[test]
fn a_source_record_that_cannot_be_decoded_keeps_its_bytes() {
    let folder = tempdir().unwrap();
    {
        let log = EmbeddedLog::open(folder.path().join("tidegate-data/log"), EmbeddedOptions::default()).unwrap();
        let name: Arc<str> = "events".into();
        log.create(&[NewTopic { name: name.to_string(), partitions: 1, replication_factor: None, settings: vec![] }])
            .unwrap();
        let key = Some(Bytes::from_static(b"\xff\0:"));
        let bad = NewRecord { key, value: Some(Bytes::from_static(b"\xfe\xfd")), headers: vec![] };
        log.append(Append { to: TopicPartition::new(&name, 0), records: vec![bad] }).unwrap();
    }
    let instance = Running::start(folder.path(), &[]);
    let letter = eventually("it is there", || list(&instance, "").pop());
    let told = ["kind", "key_base64", "value_base64", "stamp", "attempts"].map(|field| letter[field].clone());
    assert_eq!(told, ["record".into(), "/wA6".into(), "/v0=".into(), Value::Null, 0.into()]);
    assert_eq!(letter["origin"], json!({"topic": "events", "partition": 0, "offset": 0}));
    assert_eq!(list(&instance, &format!("?cause={}", letter["cause"].as_str().unwrap())).len(), 1);
    for more in ["", "?force=true", "?as=new"] {
        let path = format!("/api/v1/dead-letters/{}/{}/retry{more}", letter["partition"], letter["offset"]);
        let (status, answer) = instance.post_to(&path, "application/json", "");
        assert_eq!((status, &answer["error"]["code"]), (409, &"not_an_event".into()), "{answer}");
    }
    let (status, answer) = instance.post_to("/api/v1/dead-letters/retry", "application/json", "");
    assert_eq!((status, &answer["not_an_event"], &answer["accepted"]), (202, &1.into(), &0.into()), "{answer}");
    let said = instance.command(&["dead-letters", "export"]).ok();
    let record = &serde_json::from_str::<Value>(&said).unwrap()["record"];
    assert_eq!((&record["key_base64"], &record["value_base64"]), (&"/wA6".into(), &"/v0=".into()));
}
