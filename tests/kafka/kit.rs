//! Small things that the tests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use tidegate::log::kafka::{KafkaLog, KafkaOptions};
use tidegate::log::*;

use crate::broker;

pub fn log() -> KafkaLog {
    connect(&broker::shared().servers())
}

pub fn connect(servers: &str) -> KafkaLog {
    KafkaLog::connect(KafkaOptions::new(servers)).expect("options are good")
}

/// A name that no other test uses.
pub fn unique(name: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{name}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst))
}

/// A new topic; waits until it has leaders.
pub fn topic(log: &KafkaLog, name: &str, partitions: i32, settings: &[(&str, &str)]) -> Arc<str> {
    let name = unique(name);
    let settings = settings.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
    log.create(&[NewTopic { name: name.clone(), partitions, replication_factor: None, settings }]).expect("create");
    let topic: Arc<str> = name.into();
    for partition in 0..partitions {
        patiently("the topic has leaders", || log.watermarks(&TopicPartition::new(&topic, partition)));
    }
    topic
}

pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !check() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The result of a call that may fail for a while.
pub fn patiently<T>(what: &str, mut call: impl FnMut() -> Result<T, LogError>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match call() {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < deadline, "not within 30 s: {what}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn record(key: &str, value: &str) -> NewRecord {
    NewRecord {
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Some(Bytes::copy_from_slice(value.as_bytes())),
        headers: Vec::new(),
    }
}

pub fn numbered(range: std::ops::Range<usize>) -> Vec<NewRecord> {
    range.map(|n| record(&format!("k{n}"), &n.to_string())).collect()
}

pub fn texts(records: &[Record]) -> Vec<String> {
    records.iter().map(|r| String::from_utf8_lossy(r.value.as_deref().unwrap_or_default()).into_owned()).collect()
}

/// Reads until the position has reached `end`.
pub fn read_to(reader: &mut dyn Reader, end: i64) -> Vec<Record> {
    let mut all = Vec::new();
    eventually(&format!("position {end}"), || {
        all.extend(reader.next(Duration::from_millis(100)).expect("read"));
        reader.position() >= end
    });
    assert_eq!(reader.position(), end);
    all
}

/// The end of a partition once the markers of what was decided stand there: it does not move any more.
pub fn settled_end(log: &KafkaLog, of: &TopicPartition) -> i64 {
    let mut last = -1;
    eventually("markers", || {
        std::thread::sleep(Duration::from_millis(100));
        let high = log.watermarks(of).expect("watermarks").high;
        std::mem::replace(&mut last, high) == high
    });
    last
}

/// A member whose events are taken by the test.
pub struct Joined {
    pub member: Arc<dyn Member>,
    pub events: Receiver<MemberEvent>,
}

pub fn join(log: &KafkaLog, group: &str, topics: &[Arc<str>], with_headers: &[Arc<str>]) -> Joined {
    let (sender, events): (Sender<MemberEvent>, _) = unbounded();
    let join = Join {
        group: group.to_owned(),
        client_id: unique("member"),
        topics: topics.to_vec(),
        unshared: Vec::new(),
        with_headers: with_headers.to_vec(),
    };
    // A test that has ended takes no events any more.
    let member = log.join(join, Box::new(move |event| drop(sender.send(event)))).expect("join");
    Joined { member, events }
}

impl Joined {
    pub fn next(&self) -> MemberEvent {
        loop {
            match self.events.recv_timeout(Duration::from_secs(30)).expect("an event within 30 s") {
                MemberEvent::Trouble(text) => eprintln!("trouble: {text}"),
                event => return event,
            }
        }
    }

    /// Waits for an assignment with partitions.
    pub fn assigned(&self) -> (Vec<TopicPartition>, Membership) {
        loop {
            match self.next() {
                MemberEvent::Assigned { partitions, membership } if !partitions.is_empty() => {
                    return (partitions, membership);
                }
                MemberEvent::Assigned { .. } => {}
                other => panic!("{}", told(&other)),
            }
        }
    }

    /// Collects this many records of a partition that belong to the epoch.
    pub fn fetch(&self, of: &TopicPartition, epoch: u64, count: usize) -> Vec<Record> {
        let mut all: Vec<Record> = Vec::new();
        while all.len() < count {
            match self.next() {
                MemberEvent::Fetched(fetched) if fetched.of == *of && fetched.epoch == epoch => {
                    all.extend(fetched.records)
                }
                MemberEvent::Fetched(_) => {}
                other => panic!("{}", told(&other)),
            }
        }
        assert!(all.windows(2).all(|pair| pair[0].offset < pair[1].offset), "L1: ascending offsets");
        all
    }

    /// Leaves while the events go to nobody, so that a revoke is answered at once.
    pub fn leave(self) {
        let Joined { member, events } = self;
        drop(events);
        member.leave();
    }
}

pub fn told(event: &MemberEvent) -> String {
    match event {
        MemberEvent::Fetched(fetched) => {
            format!("fetched {} records of {} in epoch {}", fetched.records.len(), fetched.of, fetched.epoch)
        }
        MemberEvent::Assigned { partitions, .. } => format!("assigned {partitions:?}"),
        MemberEvent::Revoked { partitions, lost, .. } => format!("revoked {partitions:?}, lost: {lost}"),
        MemberEvent::Trouble(text) => format!("trouble: {text}"),
        MemberEvent::Failed(error) => format!("failed: {error}"),
    }
}

pub fn no_member() -> Membership {
    Membership(Bytes::new())
}

pub fn transaction(to: &TopicPartition, records: Vec<NewRecord>) -> Transaction {
    let appends = vec![Append { to: to.clone(), records }];
    Transaction { appends, offsets: Vec::new(), membership: no_member(), ends_of: Vec::new() }
}

pub fn offset(of: &TopicPartition, position: i64, metadata: &str) -> OffsetCommit {
    OffsetCommit { of: of.clone(), position, metadata: metadata.to_owned() }
}
