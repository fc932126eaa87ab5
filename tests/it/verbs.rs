//! Every verb: its help, its most usual errors with cause, next step and exit code, and what no other file here tries.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::Value;
use tempfile::tempdir;

use crate::running::{Running, run, signal, tidegate};

/// The verbs below `path`, as its help lists them.
fn verbs(path: &[String]) -> Vec<Vec<String>> {
    let folder = tempdir().unwrap();
    let mut arguments: Vec<&str> = path.iter().map(String::as_str).collect();
    arguments.push("--help");
    let said = run(folder.path(), &arguments).ok();
    assert!(said.contains(&format!("Usage: tidegate {}", path.join(" ")).trim_end().to_owned()), "{path:?}: {said}");
    let listed = said.split("Commands:\n").nth(1).unwrap_or_default().lines().take_while(|line| !line.is_empty());
    listed.map(|line| [path, &[line.split_whitespace().next().unwrap().to_owned()]].concat()).collect()
}

#[test]
fn every_verb_has_help_and_one_line_about_itself() {
    let mut seen = Vec::new();
    let mut left = vec![Vec::new()];
    while let Some(path) = left.pop() {
        left.extend(verbs(&path));
        seen.push(path.join(" "));
    }
    for verb in ["run", "send", "get", "list", "tasks", "watch", "topology", "topics purge", "reset", "verify", "demo"]
    {
        assert!(seen.iter().any(|path| path == verb), "{verb}: {seen:?}");
    }
    for verb in
        ["dead-letters list", "dead-letters show", "dead-letters export", "config check", "completions", "bench"]
    {
        assert!(seen.iter().any(|path| path == verb), "{verb}: {seen:?}");
    }
}

#[test]
fn where_no_instance_runs_the_next_step_is_named() {
    let folder = tempdir().unwrap();
    for verb in [
        &["send", "1:ADD"][..],
        &["get", "1"],
        &["list"],
        &["tasks"],
        &["watch"],
        &["dead-letters", "list"],
        &["dead-letters", "show", "0", "0"],
        &["dead-letters", "export"],
    ] {
        let said = run(folder.path(), &[&["--server", "http://127.0.0.1:1"], verb].concat()).failed(1);
        assert!(
            said.contains("no answer from http://127.0.0.1:1") && said.contains("`tidegate run`"),
            "{verb:?}: {said}"
        );
    }
    for verb in [&["topics", "list"][..], &["topics", "check"], &["topics", "purge"], &["reset"], &["verify"]] {
        let said = run(folder.path(), verb).failed(1);
        assert!(said.contains("there is no log") && said.contains("log.path"), "{verb:?}: {said}");
        let nowhere = [verb, &["--set", "log.kind=kafka"]].concat();
        let said = run(folder.path(), &nowhere).failed(2);
        assert!(said.contains("kafka.bootstrap_servers"), "{verb:?}: {said}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "none of them makes anything");
}

#[test]
fn bad_arguments_are_exit_code_2_and_named() {
    let folder = tempdir().unwrap();
    for (arguments, named) in [
        (&["fly"][..], "fly"),
        (&["get"], "<KEY>"),
        (&["get", "1", "--color"], "--color"),
        (&["send"], "KEY:ACTION"),
        (&["send", "1:PUT"], "KEY:ADD or KEY:REMOVE"),
        (&["--encoding", "hex", "get", "xyz"], "hexadecimal"),
        (&["--encoding", "base64", "list", "--prefix", "?"], "base64"),
        (&["--server", "ftp://x", "tasks"], "ftp://x"),
        (&["list", "--limit", "many"], "many"),
        (&["dead-letters", "show", "a", "0"], "<PARTITION>"),
        (&["dead-letters", "list", "--cause", "reject"], "rejected"),
        (&["dead-letters", "list", "--limit", "0"], "--limit"),
        (&["watch", "--every", "0s"], "--every"),
        (&["watch", "--for", "ever"], "ever"),
        (&["topology", "--format", "pdf"], "mermaid"),
        (&["topology", "--set", "source.topics=[]"], "source.topics"),
        (&["completions", "tcl"], "bash"),
        (&["run", "--set", "processing.partitions=0"], "1 to 10000"),
        (&["verify", "--config", "missing.toml"], "missing.toml"),
        (&["reset", "--set", "application.id=a/b"], "application.id"),
        (&["config", "check", "--set", "handler.kind=rules"], "rules.toml"),
    ] {
        let said = run(folder.path(), arguments).failed(2);
        assert!(said.contains(named), "{arguments:?}: {named} is not in {said}");
    }
}

#[test]
fn config_check_tells_every_problem_and_show_speaks_json() {
    let folder = tempdir().unwrap();
    std::fs::write(folder.path().join("bad.toml"), "[source]\nstamp = \"clock\"\n[processing]\npartitons = 4\n")
        .unwrap();
    let check = ["config", "check", "--config", "bad.toml", "--set", "state.cache=-1"];
    let said = run(folder.path(), &check).failed(2);
    for problem in ["stamp", "did you mean processing.partitions", "state.cache"] {
        assert!(said.contains(problem), "{problem}: {said}");
    }
    let two = ["config", "check", "--set", "cascade.max_depth=999", "--set", "handler.retry.attempts=0"];
    let said = run(folder.path(), &two).failed(2);
    assert!(said.contains("1 to 255") && said.contains("handler.retry.attempts"), "{said}");
    assert_eq!(run(folder.path(), &["config", "check", "--output", "json"]).ok().trim(), "{\n  \"valid\": true\n}");
    let secret = ["--set", "kafka.properties.sasl.password=hidden", "--set", "processing.partitions=5"];
    let shown = run(folder.path(), &[&["config", "show", "--output", "json"], &secret[..]].concat()).ok();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["processing.partitions"], serde_json::json!({"value": 5, "origin": "--set"}));
    assert_eq!(shown["kafka.properties.sasl.password"]["value"], "********");
    assert_eq!(shown["log.kind"]["origin"], "default");
}

#[test]
fn bench_speaks_json() {
    let folder = tempdir().unwrap();
    let bench = ["bench", "--events", "500", "--keys", "50", "--set", "processing.partitions=2", "--output", "json"];
    let told: Value = serde_json::from_str(&run(folder.path(), &bench).ok()).unwrap();
    assert_eq!((&told["primaries"], &told["events"], &told["differences"]), (&500.into(), &1000.into(), &0.into()));
}

#[test]
fn completions_are_scripts_that_know_every_verb() {
    let folder = tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(folder.path(), &["completions", shell]).ok();
        assert!(script.contains("dead-letters") && script.contains("topology"), "{shell}");
    }
    let script = folder.path().join("tidegate.bash");
    std::fs::write(&script, run(folder.path(), &["completions", "bash"]).ok()).unwrap();
    assert!(std::process::Command::new("bash").arg("-n").arg(&script).status().unwrap().success());
}

#[test]
fn topology_is_drawn_with_and_without_an_instance() {
    let folder = tempdir().unwrap();
    let alone = ["--server", "http://127.0.0.1:1", "topology", "--set", "source.topics=[\"orders\"]"];
    let said = run(folder.path(), &alone).ok();
    assert!(said.contains("orders  (source)") && said.contains("-> tidegate-events-repartition"), "{said}");
    let said = run(folder.path(), &[&alone[..], &["--format", "dot"]].concat()).ok();
    assert!(said.starts_with("digraph") && said.contains(r#""orders" -> "sequencer""#), "{said}");
    let said = run(folder.path(), &[&alone[..], &["--format", "mermaid"]].concat()).ok();
    assert!(said.starts_with("flowchart LR") && said.contains(r#"[("orders")]"#), "{said}");
    let said = run(folder.path(), &alone).err;
    assert!(said.starts_with("without rates: no answer from") && said.contains("--server"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");

    let instance = Running::start(folder.path(), &[]);
    let said = instance.command(&["topology", "--set", "application.id=other"]);
    assert!(said.err.contains("the instance runs the application tidegate, and this is other"), "{said:?}");
    said.ok();
    assert_eq!(instance.command(&["topology"]).err, "", "with rates");
    let graph: Value = serde_json::from_str(&instance.command(&["topology", "--output", "json"]).ok()).unwrap();
    let nodes: Vec<_> = graph["nodes"].as_array().unwrap().iter().map(|node| node["kind"].as_str().unwrap()).collect();
    assert_eq!(nodes, ["source", "sequencer", "repartition", "task", "changelog", "dead_letter", "progress"]);
}

#[test]
fn watch_prints_lines_where_there_is_no_terminal_and_ends_in_time() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    instance.send("{\"key\":\"1\",\"action\":\"ADD\"}\n{\"key\":\"2\",\"action\":\"ADD\"}");
    instance.drained();
    let said = instance.command(&["watch", "--for", "1s", "--every", "200ms"]).ok();
    assert!((3..=7).contains(&said.lines().count()), "{said}");
    assert!(said.lines().all(|line| line.contains("running  received 2") && !line.contains('\x1b')), "{said}");
    let said = instance.command(&["watch", "--for", "300ms", "--every", "100ms", "--output", "json"]).ok();
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!((&last["processed"], &last["processed_per_second"]), (&2.into(), &0.into()));
}

#[test]
fn watch_goes_on_without_its_instance_and_ends_on_ctrl_c() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &[]);
    let mut watch = tidegate(folder.path());
    watch.args(["--server", &instance.url, "watch", "--every", "50ms"]).stdout(Stdio::piped());
    let mut watch = watch.spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("running")));
    instance.kill();
    assert!(lines.any(|line| line.contains("no answer from")));
    signal(&watch, "INT");
    // What it still prints is taken until it has ended.
    drop(lines.last());
    assert_eq!(watch.wait().unwrap().code(), Some(130));
}

#[test]
fn keys_and_values_that_are_not_utf8_pass_every_door() {
    let folder = tempdir().unwrap();
    let echo = ["--set", "handler.kind=echo"];
    let instance = Running::start(folder.path(), &echo);
    // In: hexadecimal, base64, raw bytes in a file, JSON in a file, JSON over HTTP.
    instance.command(&["--encoding", "hex", "send", "ff003a:ADD"]).ok();
    instance.command(&["--encoding", "base64", "send", "/wA6AA==:ADD"]).ok();
    let file = folder.path().join("events");
    std::fs::write(
        &file,
        b"\xff\0:\x01:ADD\n{\"key_base64\":\"/wA6Ag==\",\"action\":\"ADD\",\"payload_base64\":\"/wA6\"}\n",
    )
    .unwrap();
    instance.command(&["send", "--file", file.to_str().unwrap()]).ok();
    instance.send(r#"{"key_base64":"/wA6Aw==","action":"REMOVE","payload_base64":"/wA6"}"#);
    // Out: a path, JSON, tables.
    assert_eq!(instance.holds("%FF%00%3A", "ADD")["key_base64"], "/wA6");
    let held = instance.holds("%ff%00%3a%02", "ADD");
    assert_eq!((&held["key_base64"], &held["value_base64"]), (&"/wA6Ag==".into(), &"/wA6".into()));
    assert_eq!(instance.holds("%ff%00%3a%03", "REMOVE")["value"], Value::Null);
    instance.holds("%ff%00%3a%01", "ADD");
    instance.holds("%ff%00%3a%00", "ADD");
    let said = instance.command(&["--encoding", "hex", "get", "ff003a02"]).ok();
    assert!(said.contains("ff003a02") && said.lines().last().unwrap().contains(" ff003a "), "{said}");
    let said = instance.command(&["--encoding", "base64", "get", "/wA6Ag=="]).ok();
    assert!(said.contains("/wA6Ag==") && said.contains("/wA6 "), "{said}");
    let said = instance.command(&["--encoding", "hex", "get", "ff003a", "--output", "json"]).ok();
    assert!(said.contains(r#""key_base64": "/wA6""#), "{said}");
    // Pages: a prefix, and going on behind a key.
    let (mut seen, mut after) = (Vec::new(), Vec::new());
    loop {
        let list = ["--encoding", "hex", "list", "--prefix", "ff003a", "--limit", "1", "--removed"];
        let more: Vec<&str> = after.iter().map(String::as_str).collect();
        let said = instance.command(&[&list[..], &more].concat()).ok();
        seen.extend(said.lines().nth(1).and_then(|line| line.split_whitespace().next()).map(str::to_owned));
        let Some((_, next)) = said.split_once("--after ") else { break };
        after = vec!["--after".to_owned(), next.trim().to_owned()];
    }
    assert_eq!(seen, ["ff003a", "ff003a00", "ff003a01", "ff003a02", "ff003a03"]);
    let (_, page) = instance.get("/api/v1/keys?prefix=%ff%00&limit=2&after_base64=%2FwA6");
    assert_eq!((&page["entries"][0]["key_base64"], &page["next_base64"]), (&"/wA6AA==".into(), &"/wA6AQ==".into()));
    instance.drained();
    let said = run(folder.path(), &[&["verify", "--set", "processing.partitions=4"], &echo[..]].concat()).ok();
    assert!(said.contains("all 5 keys"), "{said}");
}
