//! P9, P23, Y1, Y2: what an application knows of its past when the group's positions, or topics of its own, are gone.

use std::path::Path;
use std::sync::Arc;

use tempfile::{TempDir, tempdir};
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use tidegate::log::{Log, TopicPartition};

use crate::running::{Running, run, tidegate};

const CONFIG: [&str; 4] = ["--set", "processing.partitions=4", "--set", "application.instance_id=one"];
const NO_PURGE: [&str; 2] = ["--set", "processing.repartition_purge=off"];

fn open(folder: &Path) -> EmbeddedLog {
    EmbeddedLog::open(folder.join("tidegate-data/log"), EmbeddedOptions::default()).expect("nobody else has it")
}

/// Events that supersede each other, with children that do so, too: run again they would have children again.
fn ended(in_order: bool) -> TempDir {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &NO_PURGE);
    let child = |n: usize| format!(r#"{{"key":"c{}","action":"ADD","payload":{{"value":"{n}"}}}}"#, n % 7);
    let line = |n: usize| {
        format!(r#"{{"key":"k{}","action":"ADD","payload":{{"value":"{n}","spawn":[{}]}}}}"#, n % 11, child(n))
    };
    instance.send(&(0..100).map(line).collect::<Vec<_>>().join("\n"));
    instance.holds("c6", "ADD");
    instance.drained();
    assert_eq!(processed(&instance), 200);
    match in_order {
        true => {
            instance.signal("TERM");
            assert_eq!(instance.ended(), Some(0));
        }
        false => instance.kill(),
    }
    folder
}

/// How many events an instance has processed since its start.
fn processed(instance: &Running) -> u64 {
    let (_, page) = instance.get_text("/metrics");
    let of =
        |line: &str| line.strip_prefix("tidegate_events_processed_total{")?.split_once("} ")?.1.parse::<u64>().ok();
    page.lines().filter_map(of).sum()
}

fn appended(folder: &Path) -> i64 {
    let of = |partition| TopicPartition::new(&Arc::from("tidegate-events-repartition"), partition);
    let log = open(folder);
    (0..4).map(|partition| log.watermarks(&of(partition)).unwrap().high).sum()
}

/// P9, P23: also after a kill, also when only a part was purged.
#[test]
fn nothing_runs_twice_when_the_positions_of_the_group_have_expired() {
    for (in_order, purged) in [(true, false), (true, true), (false, false)] {
        let folder = ended(in_order);
        let folder = folder.path();
        if purged {
            run(folder, &[&["topics", "purge"], &CONFIG[..2]].concat()).ok();
        }
        let before = appended(folder);
        open(folder).delete_group("tidegate").unwrap();
        // Its bookkeeping is in the changelog, not in the folder of its state.
        std::fs::remove_dir_all(folder.join("tidegate-data/state")).unwrap();
        let instance = Running::start(folder, &NO_PURGE);
        instance.drained();
        instance.send(r#"{"key":"new","action":"ADD"}"#);
        instance.holds("new", "ADD");
        instance.drained();
        assert_eq!(processed(&instance), 1, "in order {in_order}, purged {purged}");
        instance.signal("TERM");
        assert_eq!(instance.ended(), Some(0));
        assert_eq!(appended(folder), before + 1);
        if !purged {
            run(folder, &[&["verify", "--set", "handler.kind=scripted"], &CONFIG[..]].concat()).ok();
        }
    }
}

/// Starts an instance that has to end by itself; what it said.
fn refused(folder: &Path) -> String {
    let mut command = tidegate(folder);
    command.args(["run", "--handler", "scripted", "--listen", "127.0.0.1:0"]).args(CONFIG);
    crate::running::Ended::from(command.output().unwrap()).failed(2)
}

/// Y1, Y2.
#[test]
fn a_topic_that_was_deleted_is_no_empty_one() {
    for (topic, what) in
        [("state-changelog", "the state"), ("events-repartition", "on their way"), ("progress", "how far")]
    {
        let folder = ended(true);
        let folder = folder.path();
        let name = format!("tidegate-{topic}");
        open(folder).delete_topics(&[&name]).unwrap();
        for _ in 0..2 {
            let said = refused(folder);
            assert!(said.contains(&name) && said.contains(what) && said.contains("tidegate reset"), "{said}");
        }
        // By hand, in good faith.
        run(folder, &[&["topics", "create"], &CONFIG[..2]].concat()).ok();
        let said = refused(folder);
        assert!(said.contains(&name) && said.contains(what) && said.contains("tidegate reset"), "{said}");
        // The next step that it names.
        run(folder, &[&["reset", "--execute"], &CONFIG[..]].concat()).ok();
        let instance = Running::start(folder, &[]);
        instance.holds("c6", "ADD");
        instance.drained();
        assert_eq!(processed(&instance), 200);
    }
}

/// Where nothing has run nothing can be lost.
#[test]
fn an_application_that_has_received_nothing_takes_new_topics() {
    let folder = tempdir().unwrap();
    let folder = folder.path();
    for topic in ["state-changelog", "events-repartition", "dead-letter", "progress"] {
        let instance = Running::start(folder, &[]);
        instance.signal("TERM");
        assert_eq!(instance.ended(), Some(0));
        open(folder).delete_topics(&[&format!("tidegate-{topic}")]).unwrap();
    }
    let instance = Running::start(folder, &[]);
    instance.send(r#"{"key":"k","action":"ADD"}"#);
    instance.holds("k", "ADD");
}
