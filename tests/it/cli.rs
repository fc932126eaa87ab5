//! The command line: what it prints, what it refuses, and what it ends with.

use std::net::TcpListener;
use std::path::Path;

use tempfile::tempdir;

use crate::running::{Running, eventually, run};

#[test]
fn send_get_list_tasks_verify() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let said = instance.command(&["send", "123:ADD", "a:b:ADD", "234:REMOVE"]).ok();
    assert_eq!(said.trim(), "accepted 3 events, sequences 0 to 2");
    instance.holds("123", "ADD");
    instance.holds("a:b", "ADD");
    instance.holds("234", "REMOVE");

    let said = instance.command(&["get", "a:b"]).ok();
    assert!(said.contains("a:b") && said.contains("ADD"), "{said}");
    let held: serde_json::Value =
        serde_json::from_str(&instance.command(&["get", "123", "--output", "json"]).ok()).unwrap();
    assert_eq!((&held["key"], &held["stamp"]), (&"123".into(), &"0".into()));
    let said = instance.command(&["get", "nobody"]).failed(1);
    assert!(said.contains("unknown_key") && said.contains("hint"), "{said}");

    let keys = |arguments: &[&str]| {
        let answer: serde_json::Value = serde_json::from_str(&instance.command(arguments).ok()).unwrap();
        let entries = answer["entries"].as_array().unwrap();
        entries.iter().map(|entry| entry["key"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(keys(&["list", "--output", "json"]), ["123", "a:b"]);
    assert_eq!(keys(&["list", "--output", "json", "--removed"]), ["123", "234", "a:b"]);
    assert_eq!(keys(&["list", "--output", "json", "--prefix", "a"]), ["a:b"]);
    assert_eq!(keys(&["list", "--output", "json", "--limit", "1"]), ["123"]);

    let said = instance.command(&["tasks"]).ok();
    assert!(said.contains("task") && said.contains("running"), "{said}");
    instance.drained();
    run(folder.path(), &["verify", "--set", "handler.kind=scripted", "--set", "processing.partitions=4"]).ok();
}

#[test]
fn send_reads_lines_and_json_from_standard_input() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let input = "1:ADD\n\n{\"key\":\"2\",\"action\":\"ADD\",\"payload\":{\"value\":\"two\"}}\n";
    let said = instance.command_with(&["send", "--file", "-"], input).ok();
    assert!(said.contains("accepted 2 events"), "{said}");
    assert_eq!(instance.holds("2", "ADD")["value"], "two");
    let said = instance.command_with(&["send", "--file", "-"], "3:ADD\n3:PUT\n").failed(1);
    assert!(said.contains("line 2"), "{said}");
    assert_eq!(instance.get("/api/v1/keys/3").0, 404, "nothing was sent");
    instance.command(&["--encoding", "hex", "send", "ff00:ADD"]).ok();
    assert_eq!(instance.holds("%ff%00", "ADD")["key_base64"], "/wA=");
    let said = instance.command(&["--encoding", "hex", "get", "ff00"]).ok();
    assert!(said.contains("ff00"), "{said}");
}

#[test]
fn a_wrong_configuration_is_refused_with_a_suggestion() {
    let folder = tempdir().unwrap();
    let said = run(folder.path(), &["run", "--set", "procesing.partitions=4"]).failed(2);
    assert!(said.contains("procesing") && said.contains("processing"), "{said}");
    std::fs::write(folder.path().join("bad.toml"), "[source]\nstamp = \"clock\"\n").unwrap();
    let said = run(folder.path(), &["config", "check", "--config", "bad.toml"]).failed(2);
    assert!(said.contains("stamp"), "{said}");
    let said = run(folder.path(), &["run", "--config", "missing.toml"]).failed(2);
    assert!(said.contains("missing.toml"), "{said}");
    let said = run(folder.path(), &["run", "--listen", "0.0.0.0:0"]).failed(2);
    assert!(said.contains("--insecure"), "{said}");
    run(folder.path(), &["run", "--no-such-option"]).failed(2);
    run(folder.path(), &["config", "check"]).ok();
    let shown = run(folder.path(), &["config", "show", "--set", "processing.partitions=5"]).ok();
    assert!(shown.contains("partitions") && shown.contains('5'), "{shown}");
}

#[test]
fn a_port_in_use_is_named() {
    let folder = tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = run(folder.path(), &["run", "--listen", &address]).failed(1);
    assert!(said.contains(&address) && said.contains("server.listen"), "{said}");
}

#[test]
fn a_folder_in_use_is_named() {
    let folder = tempdir().unwrap();
    let _owner = Running::start(folder.path(), &[]);
    let said = run(folder.path(), &["run", "--listen", "127.0.0.1:0"]).failed(1);
    assert!(said.contains("tidegate-data"), "{said}");
}

#[test]
fn no_instance_and_no_log() {
    let folder = tempdir().unwrap();
    let said = run(folder.path(), &["--server", "http://127.0.0.1:1", "get", "1"]).failed(1);
    assert!(said.contains("127.0.0.1:1") && said.contains("tidegate run"), "{said}");
    run(folder.path(), &["topics", "list"]).failed(1);
    run(folder.path(), &["verify"]).failed(1);
}

#[test]
fn sigterm_finishes_what_is_in_flight_and_exits_0() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    instance.send(r#"{"key":"slow","action":"ADD","payload":{"work_ms":300,"value":"done"}}"#);
    eventually("it runs", || {
        let (_, answer) = instance.get("/api/v1/in-flight");
        answer["in_flight"].as_array().is_some_and(|events| !events.is_empty()).then_some(())
    });
    instance.signal("TERM");
    assert_eq!(instance.ended(), Some(0));
    let instance = Running::start(folder.path(), &[]);
    assert_eq!(instance.holds("slow", "ADD")["value"], "done");
    instance.signal("INT");
    assert_eq!(instance.ended(), Some(0));
}

#[test]
fn state_survives_kill_9() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let lines: Vec<String> = (0..500)
        .map(|n| format!(r#"{{"key":"k{n}","action":"ADD","payload":{{"value":"{n}","spawn":[{{"key":"c{n}","action":"ADD"}}]}}}}"#))
        .collect();
    instance.send(&lines.join("\n"));
    instance.holds("k0", "ADD");
    instance.kill();
    let instance = Running::start(folder.path(), &[]);
    for n in [0, 250, 499] {
        assert_eq!(instance.holds(&format!("k{n}"), "ADD")["value"], n.to_string());
        assert_eq!(instance.holds(&format!("c{n}"), "ADD")["stamp"], format!("{n}/0"));
    }
    instance.drained();
    verified(folder.path());
    assert!(!instance.logged().is_empty());
}

fn verified(folder: &Path) {
    run(folder, &["verify", "--set", "handler.kind=scripted", "--set", "processing.partitions=4"]).ok();
}

#[test]
fn topics_fit() {
    let folder = tempdir().unwrap();
    let _instance = Running::start(folder.path(), &[]);
    let said = run(folder.path(), &["topics", "list", "--set", "processing.partitions=4"]).ok();
    assert!(said.contains("tidegate-state-changelog") && said.contains("compact"), "{said}");
    run(folder.path(), &["topics", "check", "--set", "processing.partitions=4"]).ok();
    let said = run(folder.path(), &["topics", "check", "--set", "processing.partitions=5"]).failed(2);
    assert!(said.contains("tidegate-events-repartition"), "{said}");
}

#[test]
fn the_demo_shows_that_234_is_added() {
    let folder = tempdir().unwrap();
    let said = run(folder.path(), &["demo", "--seconds", "1"]).ok();
    assert!(said.contains("in the end             234 = ADDED"), "{said}");
    assert!(said.contains("superseded") && said.contains("keys are equal"), "{said}");
    assert!(!said.contains('\x1b'), "no colours where nobody sees them");
}

#[test]
fn verify_has_no_reference_for_what_is_dropped() {
    let folder = tempdir().unwrap();
    let drop = ["--set", "processing.superseded=drop"];
    let instance = Running::start(folder.path(), &drop);
    instance.command(&["send", "123:ADD"]).ok();
    instance.holds("123", "ADD");
    let scripted = ["verify", "--set", "handler.kind=scripted", "--set", "processing.partitions=4"];
    let said = run(folder.path(), &[&scripted[..], &drop].concat()).failed(2);
    assert!(said.contains("processing.superseded = \"drop\"") && said.contains("timing"), "{said}");
    let said = run(folder.path(), &["bench", "--events", "10", drop[0], drop[1]]).failed(2);
    assert!(said.contains("timing") && said.contains("--no-check"), "{said}");
}
