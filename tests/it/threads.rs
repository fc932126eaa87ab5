//! Several engine threads in one instance: Y1 to Y3, and R4 while partitions move between them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::tempdir;
use tidegate::config::{Config, HandlerKind};
use tidegate::event::{Action, Event};
use tidegate::handler::builtin;
use tidegate::instance::Instance;
use tidegate::instance::view::{Lookup, TaskState};
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use tidegate::log::{Log, TopicPartition};

use crate::running::{Running, eventually, run};

const THREADS: [&str; 2] = ["--set", "processing.threads=3"];

/// An event whose handler works a while and spawns two more.
fn scripted(n: usize) -> Value {
    let child = |key: String| json!({ "key": key, "action": "ADD", "payload": { "value": format!("of {n}") } });
    let spawn = [child(format!("k{}", (n * 7 + 1) % 40)), child(format!("k{}", (n * 11 + 3) % 40))];
    json!({ "work_ms": n % 5, "value": format!("{n}"), "spawn": spawn })
}

fn lines(numbers: std::ops::Range<usize>) -> String {
    let line = |n: usize| json!({ "key": format!("k{}", n % 40), "action": "ADD", "payload": scripted(n) }).to_string();
    numbers.map(line).collect::<Vec<_>>().join("\n")
}

/// The threads that have a running task.
fn at_work(instance: &Running) -> BTreeSet<u64> {
    let (_, answer) = instance.get("/api/v1/tasks");
    let tasks = answer["tasks"].as_array().unwrap().clone();
    let running = tasks.iter().filter(|task| task["role"] == "task" && task["state"] == "running");
    running.map(|task| task["thread"].as_u64().unwrap()).collect()
}

fn verify(folder: &Path, more: &[&str]) {
    let settings = ["verify", "--set", "handler.kind=scripted", "--set", "processing.partitions=4"];
    run(folder, &[&settings[..], more].concat()).ok();
}

#[test]
fn an_instance_of_three_threads_is_one_to_its_doors() {
    let folder = tempdir().unwrap();
    let instance = Running::start(folder.path(), &THREADS);
    eventually("all threads work", || (at_work(&instance).len() == 3).then_some(()));
    assert_eq!(instance.get("/api/v1/status").1["partitions"], json!([0, 1, 2, 3]));
    instance.send(&lines(0..400));
    for n in 0..40 {
        instance.holds(&format!("k{n}"), "ADD");
    }
    let slow = |key: &str| json!({ "key": key, "action": "ADD", "payload": { "work_ms": 60_000 } }).to_string();
    let keys: Vec<String> = (0..12).map(|n| format!("slow{n}")).collect();
    instance.send(&keys.iter().map(|key| slow(key)).collect::<Vec<_>>().join("\n"));
    let in_flight = |limit: usize| {
        let (_, answer) = instance.get(&format!("/api/v1/in-flight?limit={limit}"));
        answer["in_flight"].as_array().unwrap().clone()
    };
    eventually("all threads' calls are told", || (in_flight(100).len() == 12).then_some(()));
    assert_eq!(in_flight(5).len(), 5);
    let ages: Vec<u64> = in_flight(100).iter().map(|event| event["age_ms"].as_u64().unwrap()).collect();
    assert!(ages.is_sorted_by(|a, b| a >= b), "oldest first: {ages:?}");
    let (_, page) = instance.get("/api/v1/keys?prefix=k&limit=1000");
    assert_eq!(page["entries"].as_array().unwrap().len(), 40, "a listing is of all threads");
    eventually("the gauge is of all threads", || {
        let (_, metrics) = instance.get_text("/metrics");
        metrics.lines().any(|line| line == "tidegate_in_flight_events 12").then_some(())
    });
    instance.signal("TERM");
    assert_eq!(instance.ended(), Some(0));
}

#[test]
fn the_number_of_threads_can_change_from_run_to_run_and_a_kill_costs_nothing() {
    let folder = tempdir().unwrap();
    let mut sent = 0;
    for threads in [3, 1, 4, 2] {
        let setting = format!("processing.threads={threads}");
        let instance = Running::start(folder.path(), &["--set", &setting]);
        eventually("its threads work", || (at_work(&instance).len() == threads).then_some(()));
        instance.send(&lines(sent..sent + 200));
        sent += 200;
        instance.kill();
    }
    let instance = Running::start(folder.path(), &THREADS);
    verify(folder.path(), &[]);
    instance.signal("TERM");
    assert_eq!(instance.ended(), Some(0));
}

fn config(folder: &Path, name: &str, threads: usize) -> Arc<Config> {
    let mut config = Config::default();
    config.application.instance_id = name.into();
    config.log.path = folder.join("log");
    config.state.dir = folder.join("state");
    config.handler.kind = HandlerKind::Scripted;
    config.processing.partitions = 8;
    config.processing.threads = threads;
    Arc::new(config)
}

fn running(instance: &Instance) -> Vec<(i32, usize)> {
    let status = instance.status();
    let running = status.tasks.iter().filter(|task| task.role == "task" && task.state == TaskState::Running);
    running.map(|task| (task.partition, task.thread)).collect()
}

async fn until(what: &str, check: impl Fn() -> bool) {
    let patience = tokio::time::timeout(std::time::Duration::from_secs(30), async {
        while !check() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    });
    patience.await.unwrap_or_else(|_| panic!("in vain: {what}"));
}

async fn append(instance: &Instance, numbers: std::ops::Range<usize>) {
    let event = |n: usize| Event {
        key: Bytes::from(format!("k{}", n % 40)),
        action: Action::Add,
        payload: Some(scripted(n).to_string().into()),
    };
    instance.append(numbers.map(event).collect(), Vec::new()).await.unwrap();
}

/// R4, G1: members of one process and of another come and go; whoever opens a store finds it free or waits.
#[test]
fn partitions_move_between_threads_of_one_instance_and_of_others() {
    let folder = tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let options = EmbeddedOptions { sync: false, ..EmbeddedOptions::default() };
        let log: Arc<dyn Log> = Arc::new(EmbeddedLog::open(folder.path().join("log"), options).unwrap());
        let start = |name: &str, threads| {
            let config = config(folder.path(), name, threads);
            let handler = builtin::from_config(&config.handler, false).unwrap();
            Instance::start(config, Arc::clone(&log), handler, String::new()).unwrap()
        };
        let one = start("one", 3);
        let distinct =
            |instance: &Instance| running(instance).iter().map(|(_, thread)| *thread).collect::<BTreeSet<_>>();
        until("three threads share", || running(&one).len() == 8 && distinct(&one).len() == 3).await;
        let mut sent = 0;
        for _ in 0..4 {
            append(&one, sent..sent + 150).await;
            let two = start("two", 2);
            let all = || (running(&one), running(&two));
            until("five threads share", || {
                let (one, two) = all();
                one.len() + two.len() == 8 && two.len() >= 2
            })
            .await;
            append(&two, sent + 150..sent + 300).await;
            sent += 300;
            two.shutdown().await;
            until("the first has all again", || running(&one).len() == 8 && distinct(&one).len() == 3).await;
        }
        assert!(one.status().troubles.is_empty(), "{:?}", one.status().troubles);
        for n in 0..40 {
            let answer = one.lookup(Bytes::from(format!("k{n}"))).await;
            assert!(matches!(answer, Lookup::Here { entry: Some(_), .. }), "k{n}: {answer:?}");
        }
        let of: Vec<_> = (0..8).map(|n| TopicPartition::new(&Arc::from("tidegate-events-repartition"), n)).collect();
        until("all is committed", || {
            let committed = log.committed("tidegate", &of, true).unwrap();
            of.iter().zip(committed).all(|(of, at)| at.map_or(0, |at| at.position) == log.watermarks(of).unwrap().high)
        })
        .await;
        one.shutdown().await;
    });
    drop(runtime);
    let path = |name: &str| format!("{name}={}", folder.path().join(name.split('.').next().unwrap()).display());
    verify(folder.path(), &["--set", "processing.partitions=8", "--set", &path("log.path")]);
}
