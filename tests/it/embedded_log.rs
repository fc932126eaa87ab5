//! The embedded log against the port's contract (L1 to L4) and its own invariants, from outside.

mod compaction;
mod crash;
mod groups;
mod records;
mod speed;
mod transactions;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use tidegate::log::{
    Append, Isolation, Log, LogError, Membership, NewRecord, NewTopic, OffsetCommit, Record, TopicPartition,
    Transaction,
};

const COMMITTED: Isolation = Isolation::ReadCommitted;
const UNCOMMITTED: Isolation = Isolation::ReadUncommitted;
/// Longer than anything takes; a test that waits this long has failed.
const LONG: Duration = Duration::from_secs(10);

fn open(path: &Path) -> EmbeddedLog {
    EmbeddedLog::open(path, EmbeddedOptions { sync: false, ..EmbeddedOptions::default() }).expect("the log opens")
}

fn create(log: &EmbeddedLog, name: &str, partitions: i32, settings: &[(&str, &str)]) {
    let settings = settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    log.create(&[NewTopic { name: name.to_owned(), partitions, replication_factor: None, settings }]).expect("created");
}

fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition::new(&Arc::from(topic), partition)
}

fn record(key: &str, value: &str) -> NewRecord {
    let bytes = |text: &str| Some(Bytes::copy_from_slice(text.as_bytes()));
    NewRecord { key: bytes(key), value: bytes(value), headers: Vec::new() }
}

fn records(values: &[&str]) -> Vec<NewRecord> {
    values.iter().map(|value| record("k", value)).collect()
}

fn append(to: &TopicPartition, values: &[&str]) -> Append {
    Append { to: to.clone(), records: records(values) }
}

fn commit_of(of: &TopicPartition, position: i64, metadata: &str) -> OffsetCommit {
    OffsetCommit { of: of.clone(), position, metadata: metadata.to_owned() }
}

/// A transaction of records alone.
fn plain(appends: Vec<Append>) -> Transaction {
    Transaction { appends, offsets: Vec::new(), membership: Membership(Bytes::new()), ends_of: Vec::new() }
}

/// All records from `position` on.
fn read(log: &EmbeddedLog, of: &TopicPartition, position: i64, isolation: Isolation) -> Vec<Record> {
    let mut reader = log.reader(of, position, isolation, true).expect("the partition is there");
    let mut all = Vec::new();
    loop {
        let before = reader.position();
        let some = reader.next(Duration::ZERO).expect("readable");
        if some.is_empty() && reader.position() == before {
            return all;
        }
        all.extend(some);
    }
}

fn text(bytes: &Option<Bytes>) -> String {
    bytes.as_ref().map_or("null".to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned())
}

/// The values from offset 0 on, with a space in between.
fn values(log: &EmbeddedLog, of: &TopicPartition, isolation: Isolation) -> String {
    let all = read(log, of, 0, isolation);
    all.iter().map(|record| text(&record.value)).collect::<Vec<_>>().join(" ")
}

fn message(error: LogError) -> String {
    error.to_string()
}
