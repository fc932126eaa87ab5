//! What a build does with formats that it does not know: a newer record is refused by everyone who reads it, nothing
//! is lost; a store of another version is rebuilt; an embedded log of a newer one is left as it is.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use prost::Message;
use rocksdb::DB;
use tempfile::TempDir;
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use tidegate::log::{
    Append, Headers, Isolation, Join, Log, Member, MemberEvent, Membership, NewRecord, OffsetCommit, TopicPartition,
    Transaction,
};
use tidegate::proto;
use tidegate::store::schema;
use tidegate::topics::partition_of;

use super::running::{Running, eventually, run, tidegate};

const SETTINGS: [&str; 4] = ["--set", "processing.partitions=4", "--set", "handler.kind=scripted"];
const NEWER: &str = "format version 1 is newer than this build reads (0): use the version that wrote it";

fn at(topic: &str, partition: i32) -> TopicPartition {
    TopicPartition::new(&Arc::from(format!("tidegate-{topic}")), partition)
}

fn open(folder: &Path) -> EmbeddedLog {
    EmbeddedLog::open(folder.join("tidegate-data/log"), EmbeddedOptions::default()).expect("nobody else has it")
}

/// Appends one record, as a newer version would have; its offset.
fn append(folder: &Path, to: &TopicPartition, key: &str, value: Vec<u8>, headers: &[(&str, &str)]) -> i64 {
    let header = |(name, value): &(&str, &str)| ((*name).to_owned(), Bytes::copy_from_slice(value.as_bytes()));
    let headers: Headers = headers.iter().map(header).collect();
    let record = NewRecord { key: Some(Bytes::copy_from_slice(key.as_bytes())), value: Some(value.into()), headers };
    open(folder).append(Append { to: to.clone(), records: vec![record] }).expect("appended")[0]
}

/// An application that has processed some events and has ended in good order.
pub fn ended() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let running = Running::start(folder.path(), &[]);
    let lines: Vec<String> =
        (0..40).map(|n| format!(r#"{{"key":"k{n}","action":"ADD","payload":{{"value":"{n}"}}}}"#)).collect();
    running.send(&lines.join("\n"));
    running.holds("k39", "ADD");
    running.drained();
    running.signal("TERM");
    assert_eq!(running.ended(), Some(0));
    folder
}

/// Starts it again: it holds all that it held, and ends. What it said.
pub fn again(folder: &Path) -> Vec<String> {
    let running = Running::start(folder, &[]);
    for n in 0..40 {
        assert_eq!(running.holds(&format!("k{n}"), "ADD")["value"], n.to_string());
    }
    running.signal("TERM");
    let lines = eventually("it has said that it ends", || {
        let lines = running.logged();
        (!lines.is_empty()).then_some(lines)
    });
    assert_eq!(running.ended(), Some(0));
    lines
}

/// Starts an instance that has to end by itself with exit code 1; what it said.
fn refused(folder: &Path) -> String {
    let mut command = tidegate(folder);
    command.args(["run", "--listen", "127.0.0.1:0", "--set", "application.instance_id=one"]).args(SETTINGS);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    let status = eventually("it ends by itself", || child.try_wait().expect("our own child"));
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert_eq!(status.code(), Some(1), "{said}");
    said
}

/// The instance says why, once, names the record, and says it again when it is started again.
fn refused_by_name(folder: &Path, of: &TopicPartition, offset: i64) {
    let expected = format!("{of} at offset {offset}: {NEWER}");
    for _ in 0..2 {
        let said = refused(folder);
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
        assert!(errors.len() == 1 && errors[0].contains(&expected), "{expected:?} is not the error in:\n{said}");
    }
}

fn verify_refuses(folder: &Path, of: &TopicPartition, offset: i64) {
    let said = run(folder, &[&["verify"][..], &SETTINGS].concat()).failed(1);
    assert!(said.contains(&format!("{of} at offset {offset}: {NEWER}")), "{said}");
}

fn stamp(sequence: u64) -> Option<proto::Stamp> {
    Some(proto::Stamp { sequence, ..Default::default() })
}

#[test]
fn a_newer_event_is_refused_and_kept() {
    let folder = ended();
    let of = at("events-repartition", partition_of(b"k1", 4));
    let versioned = proto::StampedEvent { stamp: stamp(99), action: 1, format_version: 1, ..Default::default() };
    let offset = append(folder.path(), &of, "k1", versioned.encode_to_vec(), &[]);
    refused_by_name(folder.path(), &of, offset);
    let log = open(folder.path());
    let committed = log.committed("tidegate", std::slice::from_ref(&of), true).unwrap()[0].clone();
    assert!(committed.is_some_and(|committed| committed.position <= offset), "it is not done");
    let mut reader = log.reader(&of, offset, Isolation::ReadCommitted, false).unwrap();
    let kept = reader.next(Duration::from_secs(1)).unwrap();
    assert_eq!(kept[0].value.as_deref(), Some(&versioned.encode_to_vec()[..]), "it is still there");
    let letters = (0..4).map(|partition| log.watermarks(&at("dead-letter", partition)).unwrap().high).sum::<i64>();
    assert_eq!(letters, 0, "it is no dead letter");
    drop((reader, log));
    // Also where nothing else of it can be read.
    let folder = ended();
    let mut unreadable = proto::Event { key: "no stamp".into(), ..Default::default() }.encode_to_vec();
    prost::encoding::uint32::encode(15, &1, &mut unreadable);
    let offset = append(folder.path(), &of, "k1", unreadable, &[]);
    refused_by_name(folder.path(), &of, offset);
}

#[test]
fn a_newer_entry_is_refused_by_restore_and_verify() {
    let folder = ended();
    let of = at("state-changelog", partition_of(b"k1", 4));
    let entry = proto::Entry { stamp: stamp(99), action: 1, format_version: 1, ..Default::default() };
    let offset = append(folder.path(), &of, "k1", entry.encode_to_vec(), &[]);
    refused_by_name(folder.path(), &of, offset);
    verify_refuses(folder.path(), &of, offset);
}

#[test]
fn newer_bookkeeping_is_refused() {
    let folder = ended();
    let of = at("state-changelog", 2);
    let snapshot = proto::Bookkeeping { format_version: 1, ..Default::default() };
    let offset = append(folder.path(), &of, "", snapshot.encode_to_vec(), &[("tidegate_kind", "bookkeeping")]);
    refused_by_name(folder.path(), &of, offset);
}

#[test]
fn newer_counts_are_refused_where_they_are_needed_and_other_kinds_are_passed_over() {
    let folder = tempfile::tempdir().expect("a folder");
    run(folder.path(), &[&["topics", "create"][..], &SETTINGS].concat()).ok();
    let of = at("progress", 0);
    let newer = proto::Progress { format_version: 1, ..Default::default() };
    append(folder.path(), &of, "", newer.encode_to_vec(), &[("tidegate_kind", "of a later version")]);
    // Passed over.
    let running = Running::start(folder.path(), &[]);
    running.signal("TERM");
    assert_eq!(running.ended(), Some(0));
    let folder = tempfile::tempdir().expect("a folder");
    run(folder.path(), &[&["topics", "create"][..], &SETTINGS].concat()).ok();
    let offset = append(folder.path(), &of, "", newer.encode_to_vec(), &[("tidegate_kind", "counts")]);
    refused_by_name(folder.path(), &of, offset);
}

#[test]
fn a_newer_dead_letter_is_refused_by_verify() {
    let folder = ended();
    let of = at("dead-letter", 1);
    let event = proto::StampedEvent { stamp: stamp(3), action: 1, format_version: 1, ..Default::default() };
    let headers = [("tidegate_dead_letter", "event"), ("tidegate_stamp", "3")];
    let offset = append(folder.path(), &of, "k3", event.encode_to_vec(), &headers);
    verify_refuses(folder.path(), &of, offset);
}

#[test]
fn a_position_committed_by_a_newer_version_is_refused() {
    let folder = ended();
    let of = at("events-repartition", 0);
    let log = open(folder.path());
    let (events_in, events) = crossbeam_channel::unbounded();
    let topics = vec![Arc::from("events"), Arc::clone(&of.topic)];
    let join =
        Join { group: "tidegate".into(), client_id: "newer".into(), topics, unshared: vec![], with_headers: vec![] };
    let member: Arc<dyn Member> = log.join(join, Box::new(move |event| drop(events_in.send(event)))).unwrap();
    let membership: Membership = loop {
        match events.recv_timeout(Duration::from_secs(10)).expect("it is assigned something") {
            MemberEvent::Assigned { partitions, membership } if !partitions.is_empty() => break membership,
            _ => {}
        }
    };
    let position = log.committed("tidegate", std::slice::from_ref(&of), true).unwrap()[0].clone().unwrap().position;
    let metadata = "tidegate-x 7 127.0.0.1:1 format=1".to_owned();
    let offsets = vec![OffsetCommit { of: of.clone(), position, metadata }];
    let transaction = Transaction { appends: Vec::new(), offsets, membership, ends_of: Vec::new() };
    log.producer("newer").unwrap().commit(&transaction).unwrap();
    drop(events);
    member.leave();
    drop((member, log));
    let said = refused(folder.path());
    assert!(
        said.contains(&format!("{of}: the group's position {position} was committed with metadata of format 1")),
        "{said}"
    );
    assert!(said.contains("use the version that wrote it"), "{said}");
}

#[test]
fn a_store_of_another_version_is_rebuilt_with_one_line_that_says_why() {
    let folder = ended();
    let ours = schema::VERSION;
    for (partition, version) in [(0, ours + 1), (1, 0)] {
        let path = folder.path().join(format!("tidegate-data/state/one/partition-{partition}"));
        let store = DB::open_default(path).expect("the store");
        let mut identity = store.get(b"midentity").unwrap().expect("it says whose it is");
        identity[0] = version;
        store.put(b"midentity", identity).unwrap();
    }
    let lines = again(folder.path());
    for (partition, version) in [(0, ours + 1), (1, 0)] {
        let reason = format!("it has format {version}, this version reads {ours}");
        let of_partition = format!("partition={partition} ");
        let told = lines.iter().filter(|line| line.contains("set aside and rebuilt") && line.contains(&of_partition));
        let told: Vec<_> = told.collect();
        assert!(told.len() == 1 && told[0].contains(&reason), "{partition}: {told:?} in {lines:#?}");
    }
    assert_eq!(lines.iter().filter(|line| line.contains("set aside")).count(), 2, "{lines:#?}");
}

/// Every file below a folder, with its length and the time of its last change.
fn files(folder: &Path, into: &mut BTreeMap<String, (u64, SystemTime)>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (path, found) = (entry.path(), entry.metadata().unwrap());
        if found.is_dir() {
            files(&path, into);
        } else if path.file_name().is_some_and(|name| name != "owner.lock") {
            into.insert(path.display().to_string(), (found.len(), found.modified().unwrap()));
        }
    }
}

#[test]
fn an_embedded_log_of_a_newer_version_is_refused_untouched() {
    let folder = ended();
    let log = folder.path().join("tidegate-data/log");
    let id = std::fs::read_to_string(log.join("log.id")).unwrap();
    let (id, format) = id.trim().split_once('\n').expect("two lines");
    assert_eq!(format, "1");
    std::fs::write(log.join("log.id"), format!("{id}\n2\n")).unwrap();
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    files(&log, &mut before);
    let expected = "has format 2, this version reads 1: use the version that wrote it";
    let said = refused(folder.path());
    assert!(said.contains(expected) && said.contains("tidegate-data/log"), "{said}");
    for verb in [&["verify"][..], &["topics", "list"]] {
        let said = run(folder.path(), &[verb, &SETTINGS].concat()).failed(1);
        assert!(said.contains(expected), "{said}");
    }
    files(&log, &mut after);
    assert_eq!(before, after, "not a file of it is changed");
    // The database says so itself, too.
    std::fs::write(log.join("log.id"), format!("{id}\n")).unwrap();
    let db = DB::open_default(log.join("db")).expect("the database");
    let row = String::from_utf8(db.get(b"m").unwrap().expect("its first row")).unwrap();
    db.put(b"m", row.replace("\"format\":1", "\"format\":2")).unwrap();
    drop(db);
    assert!(refused(folder.path()).contains(expected));
}
