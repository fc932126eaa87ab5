//! Several source partitions: sequences in headers, and the order of arrival, with instances that die.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tidegate::log::{Append, Log, NewRecord, TopicPartition};
use tidegate::sequencer::order;
use tidegate::sequencer::stamps::SEQUENCE;

use super::app::{App, Instance};
use super::{check, load};
use crate::{broker, kit};

const SOURCES: i32 = 4;

fn app(name: &str, stamp: &str) -> App {
    let servers = broker::shared().servers();
    let log = kit::connect(&servers);
    let source = kit::topic(&log, &format!("{name}-source"), SOURCES, &[]);
    let mut app = App::on(servers, source, log, name);
    app.settings = vec![format!("source.stamp={stamp}")];
    app
}

/// A stream over all source partitions; the last of them lags behind.
struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Stream {
    fn begin(app: &App, seed: u64, headers: bool) -> Stream {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let (log, source) = (kit::connect(&app.servers), Arc::clone(&app.source));
        let mut random = fastrand::Rng::with_seed(seed);
        let send = move || {
            let append = |partition: i32, records: Vec<NewRecord>| {
                if !records.is_empty() {
                    let to = TopicPartition::new(&source, partition);
                    kit::patiently("append", || log.append(Append { to: to.clone(), records: records.clone() }));
                }
            };
            let (mut next, mut late, mut rounds) = (1u64, Vec::new(), 0);
            while !stopped.load(Ordering::SeqCst) {
                let mut batches: Vec<Vec<NewRecord>> = vec![Vec::new(); SOURCES as usize];
                for _ in 0..20 {
                    next += random.u64(1..=3);
                    let mut record = load::primary(&mut random);
                    if headers {
                        record.headers = vec![(SEQUENCE.to_owned(), Bytes::from(next.to_string()))];
                    }
                    let doubled = headers && random.u8(..20) == 0;
                    for _ in 0..=usize::from(doubled) {
                        batches[random.usize(..SOURCES as usize)].push(record.clone());
                    }
                }
                for (partition, mut records) in (0..).zip(batches) {
                    random.shuffle(&mut records);
                    if partition == SOURCES - 1 { late.extend(records) } else { append(partition, records) }
                }
                rounds += 1;
                if rounds % 15 == 0 {
                    append(SOURCES - 1, std::mem::take(&mut late));
                }
                count.fetch_add(20, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(40));
            }
            append(SOURCES - 1, late);
        };
        Stream { stop, sent, thread: std::thread::spawn(send) }
    }

    fn sent(&self) -> usize {
        self.sent.load(Ordering::SeqCst)
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("everything could be sent");
    }
}

fn verified(app: &App) {
    let output = app.tool(&["verify"]);
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}\n{}", app.logs());
}

/// P17, P18: whoever reads which partition, and when; a sequence that is a mistake is a dead letter.
#[test]
fn sequences_in_headers_over_four_partitions() {
    let app = app("header", "header");
    let (one, two) = (app.start("one"), app.start("two"));
    app.until("two share", || one.owns() > 0 && two.owns() > 0 && one.owns() + two.owns() == 6);
    let stream = Stream::begin(&app, 5, true);
    app.until("events flow", || stream.sent() >= 400);
    let mistake = NewRecord {
        key: Some("mistake".into()),
        value: Some("ADD".into()),
        headers: vec![(SEQUENCE.to_owned(), Bytes::from((1u64 << 50).to_string()))],
    };
    let of = TopicPartition::new(&app.source, 1);
    app.log.append(Append { to: of, records: vec![mistake] }).expect("append");
    two.kill();
    let sent = stream.sent();
    let three = app.start("three");
    app.until("the heirs work", || three.owns() > 0 && one.owns() + three.owns() == 6);
    app.until("events flow again", || stream.sent() >= sent + 400);
    stream.end();
    verified(&app);
    let letters = app.partitions(&app.topics.dead_letter).into_iter();
    let letters: Vec<_> = letters.flat_map(|of| check::records(&app.log, &of, true)).collect();
    let count = |cause: &str| {
        let is_it = |(name, value): &&(String, Bytes)| name == "tidegate_cause" && value[..] == *cause.as_bytes();
        letters.iter().flat_map(|letter| &letter.headers).filter(is_it).count()
    };
    assert_eq!((count("sequence_jump"), count("no_sequence")), (1, 0), "{letters:?}");
}

/// U1, P22: the order goes on where the last transaction of the dead sequencer left it.
#[test]
fn the_order_of_arrival_goes_on_when_the_sequencer_dies() {
    let app = app("arrival", "arrival");
    let instances = [app.start("one"), app.start("two"), app.start("three")];
    let owned = |but: Option<usize>| -> usize {
        let counted = instances.iter().enumerate().filter(|(place, _)| Some(*place) != but);
        counted.map(|(_, instance)| instance.owns()).sum()
    };
    app.until("three share", || owned(None) == 6 && instances.iter().all(|instance| instance.owns() == 2));
    let stream = Stream::begin(&app, 6, false);
    app.until("events flow", || stream.sent() >= 400);
    let sequencer = instances.iter().position(|instance: &Instance<'_>| instance.partitions().contains(&0));
    let sequencer = sequencer.expect("somebody owns partition 0");
    instances[sequencer].kill();
    app.until("the heirs work", || owned(Some(sequencer)) == 6);
    let sent = stream.sent();
    app.until("events flow again", || stream.sent() >= sent + 400);
    stream.end();
    verified(&app);
    let (mut next, mut places) = (0, BTreeSet::new());
    order::read(&app.log, &TopicPartition::new(&app.topics.order, 0), |run| {
        assert_eq!(run.first_sequence, next, "U1: no gap, nothing twice");
        next += run.count;
        for offset in run.first_offset..run.first_offset + run.count as i64 {
            assert!(places.insert((run.partition, offset)), "U1: {offset} of {} has two places", run.partition);
        }
    })
    .expect("the order can be read");
    let records: usize = (0..SOURCES)
        .map(|partition| check::records(&app.log, &TopicPartition::new(&app.source, partition), false).len())
        .sum();
    assert_eq!(places.len(), records, "every record has its place");
}
