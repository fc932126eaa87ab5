//! `processing.guarantee = "at_least_once"` through the binary, on the embedded log.

use serde_json::json;
use tempfile::tempdir;

use crate::running::{Running, run};

/// An event with two levels of children.
fn line(n: usize) -> String {
    let leaf = |key: usize| json!({ "key": format!("k{}", key % 50), "action": "ADD", "payload": { "value": format!("{n}") } });
    let child =
        json!({ "key": format!("k{}", (n * 7) % 50), "action": "REMOVE", "payload": { "spawn": [leaf(n * 3 + 1)] } });
    let script = json!({ "work_ms": n % 4, "value": "v", "spawn": [child, leaf(n * 5 + 2)] });
    json!({ "key": format!("k{}", n % 50), "action": "ADD", "payload": script }).to_string()
}

/// Killed again and again under either guarantee: the state is the reference's all the same.
#[test]
fn kills_and_changes_of_the_guarantee_leave_the_state_of_the_reference() {
    let folder = tempdir().unwrap();
    let mut sent = 0;
    for guarantee in ["at_least_once", "at_least_once", "exactly_once", "at_least_once"] {
        let setting = format!("processing.guarantee={guarantee}");
        let instance = Running::start(folder.path(), &["--set", &setting, "--set", "processing.threads=2"]);
        assert_eq!(instance.get("/api/v1/status").1["guarantee"], guarantee);
        for _ in 0..4 {
            instance.send(&(sent..sent + 60).map(line).collect::<Vec<_>>().join("\n"));
            sent += 60;
        }
        instance.kill();
    }
    let instance = Running::start(folder.path(), &["--set", "processing.guarantee=at_least_once"]);
    let said =
        run(folder.path(), &["verify", "--set", "handler.kind=scripted", "--set", "processing.partitions=4"]).ok();
    assert!(said.contains("all 50 keys"), "{said}");
    instance.signal("TERM");
    assert_eq!(instance.ended(), Some(0));
}
