//! Partitions that are being restored: what is told of them, the others serve meanwhile, and a transaction that nobody
//! decides is named.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde_json::Value;
use tidegate::changelog;
use tidegate::config::{Config, HandlerKind};
use tidegate::entry::Entry;
use tidegate::event::Action;
use tidegate::handler::builtin;
use tidegate::instance::topology;
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use tidegate::log::{Append, Log, NewRecord, TopicPartition};
use tidegate::server::bind::bind;
use tidegate::server::process::Process;
use tidegate::stamp::Stamp;
use tidegate::topics::{Topics, partition_of};

use crate::running::eventually;

const PARTITIONS: i32 = 4;

fn key_in(partition: i32) -> Bytes {
    let keys = (0..).map(|n| Bytes::from(format!("k{n}")));
    keys.into_iter().find(|key| partition_of(key, PARTITIONS) == partition).unwrap()
}

fn put(key: &Bytes, sequence: u64) -> NewRecord {
    let value = Some(Bytes::from(sequence.to_string()));
    let mut out = BytesMut::new();
    let origin = Bytes::new();
    Entry { stamp: Stamp::root(0, sequence), action: Action::Add, value, origin }.encode(&mut out);
    changelog::entry_record(key, out.freeze())
}

/// P14.
#[test]
fn a_restore_that_a_transaction_holds_up_is_told_and_the_other_partitions_serve() {
    let folder = tempfile::tempdir().unwrap();
    let options = EmbeddedOptions { sync: false, ..EmbeddedOptions::default() };
    let log = Arc::new(EmbeddedLog::open(folder.path().join("log"), options).unwrap());
    let mut config = Config::default();
    config.application.instance_id = "one".into();
    config.processing.partitions = PARTITIONS;
    config.state.dir = folder.path().join("state");
    config.server.listen = "127.0.0.1:0".into();
    config.handler.kind = HandlerKind::Scripted;
    let topics = Topics::new(&config.application.id, &config.source.topics);
    topology::ensure(&*log, &config, &topics).unwrap();
    let changelog = |partition| TopicPartition::new(&topics.changelog, partition);
    for partition in [1, 2] {
        log.append(Append { to: changelog(partition), records: vec![put(&key_in(partition), 1)] }).unwrap();
    }
    let forgotten = log.begin("forgotten").unwrap();
    log.append_in(forgotten, &Append { to: changelog(2), records: vec![put(&key_in(2), 2)] }).unwrap();

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let handler = builtin::from_config(&config.handler, false).unwrap();
    let process = runtime.block_on(async {
        let bound = bind(&config.server, false).await.unwrap();
        Process::start(config, bound, Arc::<EmbeddedLog>::clone(&log), handler, tidegate::api::routes()).unwrap()
    });
    let agent = crate::running::Caller::default().agent();
    let get = |path: &str| -> (u16, Value) {
        let mut answer = agent.get(format!("{}{path}", process.url())).call().unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        (answer.status().as_u16(), serde_json::from_str(&text).unwrap())
    };
    let state_of = |partition: i32| {
        let (_, answer) = get("/api/v1/tasks");
        let tasks = answer["tasks"].as_array().cloned().unwrap_or_default();
        tasks.into_iter().find(|task| task["role"] == "task" && task["partition"] == partition)
    };
    eventually("the others run", || {
        let runs = |partition: &i32| state_of(*partition).is_some_and(|task| task["state"] == "running");
        [0, 1, 3].iter().all(runs).then_some(())
    });
    let (status, answer) = get(&format!("/api/v1/keys/{}", String::from_utf8_lossy(&key_in(1))));
    assert_eq!((status, &answer["value"]), (200, &"1".into()), "it serves as soon as it is ready");
    assert_eq!(get(&format!("/api/v1/keys/{}", String::from_utf8_lossy(&key_in(2)))).0, 503);
    let restore = eventually("its length is known", || {
        let restore = get("/api/v1/status").1["restore"].clone();
        (restore["remaining_records"].as_i64() > Some(0)).then_some(restore)
    });
    assert_eq!((&restore["partitions"], &restore["eta_seconds"]), (&1.into(), &Value::Null), "{restore}");
    let task = state_of(2).unwrap();
    assert_eq!((&task["state"], task["restore_remaining"].as_i64() > Some(0)), (&"restoring".into(), true), "{task}");
    assert_eq!(get("/api/v1/status").1["state"], "restoring");
    let (status, ready) = get("/readyz");
    let message = ready["error"]["message"].as_str().unwrap_or_default().to_owned();
    assert_eq!(status, 503, "{ready}");
    assert!(message.contains("restoring: 1 partitions, "), "{message}");

    let trouble = eventually("the transaction is told", || {
        let troubles = get("/api/v1/status").1["troubles"].as_array().cloned().unwrap_or_default();
        troubles.into_iter().find(|trouble| trouble.as_str().is_some_and(|text| text.contains("undecided")))
    });
    for words in ["tidegate-state-changelog-2", "kafka-transactions.sh abort", "--partition 2"] {
        assert!(trouble.as_str().unwrap().contains(words), "{words}: {trouble}");
    }
    log.decide(forgotten, true).unwrap();
    eventually("all is well", || {
        let (_, status) = get("/api/v1/status");
        let is_well = status["state"] == "running" && status["troubles"] == serde_json::json!([]);
        (is_well && status["restore"].is_null()).then_some(())
    });
    let (_, answer) = get(&format!("/api/v1/keys/{}", String::from_utf8_lossy(&key_in(2))));
    assert_eq!(answer["value"], "2", "{answer}");
    runtime.block_on(process.stop()).unwrap();
}
