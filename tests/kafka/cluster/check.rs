//! What is left behind, against the serial reference: state, events, dead letters and progress, each exactly.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message;
use tidegate::config::{self, Format, HandlerKind};
use tidegate::counts::expand_runs;
use tidegate::entry::Entry;
use tidegate::event::{Action, StampedEvent, encode_origin};
use tidegate::handler::builtin;
use tidegate::log::kafka::KafkaLog;
use tidegate::log::{Isolation, Log, Reader, Record, TopicPartition};
use tidegate::proto;
use tidegate::reference::{self, Held};
use tidegate::sequencer::format;
use tidegate::stamp::Stamp;

use super::app::App;

/// How long a partition may take until it is read to its end.
const PATIENCE: Duration = Duration::from_secs(30);

type Content = (Bytes, Action, Option<Bytes>);

/// All committed records that a partition holds.
pub fn records(log: &KafkaLog, of: &TopicPartition, headers: bool) -> Vec<Record> {
    let ends = crate::kit::patiently("watermarks", || log.watermarks(of));
    let mut reader = log.reader(of, ends.low, Isolation::ReadCommitted, headers).expect("a reader");
    let (mut all, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while reader.position() < ends.high {
        let at = reader.position();
        assert!(Instant::now() < deadline, "{of} gives nothing from {at} to {}: an undecided transaction?", ends.high);
        all.extend(reader.next(Duration::from_millis(100)).expect("read"));
    }
    all
}

/// The events on the repartition topic, by stamp; fails when one stands there twice.
pub fn events(app: &App) -> BTreeMap<Stamp, Content> {
    let (events, doubled) = events_and_doubles(app);
    assert!(doubled.is_empty(), "twice: {doubled:?}\n{}", app.logs());
    events
}

/// The events on the repartition topic, by stamp, and where one stands there again.
fn events_and_doubles(app: &App) -> (BTreeMap<Stamp, Content>, Vec<String>) {
    let (mut events, mut doubled) = (BTreeMap::new(), Vec::new());
    for of in app.partitions(&app.topics.repartition) {
        for record in records(&app.log, &of, false) {
            let offset = record.offset;
            let event = StampedEvent::decode(record.key.expect("a key"), record.value.expect("a value"));
            let StampedEvent { event, stamp, .. } = event.expect("an event");
            let content = (event.key, event.action, event.payload);
            if let Some(first) = events.insert(stamp.clone(), content.clone()) {
                assert_eq!(first, content, "{stamp} at {of}, offset {offset} is another event\n{}", app.logs());
                doubled.push(format!("{stamp} at {of}, offset {offset}"));
            }
        }
    }
    (events, doubled)
}

/// The primary events on the source topic, and the offsets of what is none.
pub fn primaries(app: &App) -> (Vec<StampedEvent>, BTreeSet<i64>) {
    let (mut primaries, mut undecodable) = (Vec::new(), BTreeSet::new());
    for record in records(&app.log, &TopicPartition::new(&app.source, 0), false) {
        match format::decode(Format::Auto, record.key.as_ref(), record.value.as_ref()) {
            Ok(event) => primaries.push(StampedEvent {
                event,
                stamp: Stamp::root(0, record.offset as u64),
                origin: encode_origin(&app.source, 0, record.offset, record.timestamp_ms),
                retry: 0,
            }),
            Err(_) => drop(undecodable.insert(record.offset)),
        }
    }
    (primaries, undecodable)
}

/// Sums of `<app>-progress` as it is read.
pub struct Progress {
    reader: Box<dyn Reader>,
    of: TopicPartition,
    pending: HashMap<(u32, u64, u32), i64>,
    roots: BTreeSet<u64>,
}

impl Progress {
    pub fn begin(app: &App) -> Progress {
        let of = TopicPartition::new(&app.topics.progress, 0);
        let reader = app.log.reader(&of, 0, Isolation::ReadCommitted, false).expect("a reader");
        Progress { reader, of, pending: HashMap::new(), roots: BTreeSet::new() }
    }

    /// Reads on; no prefix may have a negative sum (protocol P16).
    pub fn read_on(&mut self, app: &App) {
        for record in self.reader.next(Duration::from_millis(300)).unwrap_or_default() {
            let progress = proto::Progress::decode(record.value.expect("a value")).expect("progress");
            for counts in progress.counts {
                assert_eq!((counts.generation, counts.retry), (0, 0));
                let numbers: Vec<u64> =
                    expand_runs(&counts.runs).flat_map(|(first, length)| first..first + length).collect();
                for (sequence, (depth, delta)) in
                    numbers.iter().flat_map(|n| (counts.first_depth..).zip(&counts.deltas).map(move |at| (*n, at)))
                {
                    self.roots.insert(sequence);
                    let sum = self.pending.entry((0, sequence, depth)).or_default();
                    *sum += delta;
                    let (sum, offset) = (*sum, record.offset);
                    assert!(sum >= 0, "{sequence} at depth {depth}: {sum} by offset {offset}\n{}", app.logs());
                    if sum == 0 {
                        self.pending.remove(&(0, sequence, depth));
                    }
                }
            }
        }
    }

    /// Whether this many roots were sequenced and all of them are settled.
    pub fn is_settled(&self, roots: usize) -> bool {
        self.roots.len() == roots && self.pending.is_empty()
    }

    /// How many roots were sequenced.
    pub fn roots(&self) -> usize {
        self.roots.len()
    }
}

/// Waits until every event on the source topic is settled.
pub fn settled(app: &App) -> Progress {
    let roots = primaries(app).0.len();
    let mut progress = Progress::begin(app);
    let begun = Instant::now();
    while !progress.is_settled(roots) {
        progress.read_on(app);
        let (pending, of) = (&progress.pending, &progress.of);
        let some: Vec<_> = pending.iter().take(5).collect();
        let (known, open) = (progress.roots(), pending.len());
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{of}: {known} of {roots} roots are known, {open} sums are not zero, such as {some:?}\n{}",
            app.logs()
        );
    }
    eprintln!("{}: {roots} roots settled {:.1} s after the last", app.id, begun.elapsed().as_secs_f64());
    progress
}

/// No key's stamp falls, in no partition of the changelog; gives the entries in order.
pub fn changelog(app: &App) -> Vec<(Bytes, Entry)> {
    let mut entries: Vec<(Bytes, Entry)> = Vec::new();
    for of in app.partitions(&app.topics.changelog) {
        let mut held: HashMap<Bytes, Stamp> = HashMap::new();
        for record in records(&app.log, &of, false) {
            let (Some(key), Some(value)) = (record.key.filter(|key| !key.is_empty()), record.value) else { continue };
            let entry = Entry::decode(value).expect("an entry");
            let last = held.insert(key.clone(), entry.stamp.clone());
            let (stamp, offset) = (&entry.stamp, record.offset);
            assert!(last.as_ref() < Some(stamp), "{key:?} falls from {last:?} to {stamp} at {of}, offset {offset}");
            entries.push((key, entry));
        }
    }
    entries
}

/// Everything, once all is settled; gives the state as the reference has it.
pub fn all(app: &App) -> BTreeMap<Bytes, Held> {
    let mut progress = settled(app);
    verified(app);
    let (count, state) = left_behind(app, false);
    progress.read_on(app);
    assert!(progress.is_settled(count), "progress goes on after everything was settled\n{}", app.logs());
    state
}

/// Everything but what may be there twice without transactions: nothing is counted, so `verify` waits.
pub fn at_least_once(app: &App) {
    verified(app);
    left_behind(app, true);
}

/// The product's own judgement; it waits until all is processed.
fn verified(app: &App) {
    let verified = app.tool(&["verify"]);
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let words = said(&verified.stdout) + &said(&verified.stderr);
    assert_eq!(verified.status.code(), Some(0), "verify: {words}\n{}", app.logs());
}

/// Events, dead letters and entries against the reference; how many primaries there were, and the state that they lead
/// to.
fn left_behind(app: &App, may_double: bool) -> (usize, BTreeMap<Bytes, Held>) {
    // 1. Its events, one by one.
    let (primaries, undecodable) = primaries(app);
    let settings = config::Handler { kind: HandlerKind::Scripted, ..config::Handler::default() };
    let handler = builtin::from_config(&settings, true).expect("a handler");
    let (mut expected, mut failed) = (BTreeMap::new(), BTreeSet::new());
    let count = primaries.len();
    let reference = reference::run(primaries, &config::Cascade::default(), |event| {
        let content = (event.event.key.clone(), event.event.action, event.event.payload.clone());
        expected.insert(event.stamp.clone(), content);
        let outcome = reference::call(&handler, event, settings.retry.attempts);
        if outcome.is_none() {
            failed.insert(event.stamp.clone());
        }
        outcome
    });
    let (events, doubled) = events_and_doubles(app);
    assert!(may_double || doubled.is_empty(), "twice: {doubled:?}\n{}", app.logs());
    let missing: Vec<_> = expected.keys().filter(|stamp| !events.contains_key(stamp)).take(5).collect();
    let surplus: Vec<_> = events.keys().filter(|stamp| !expected.contains_key(stamp)).take(5).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "missing {missing:?}, surplus {surplus:?}\n{}", app.logs());
    assert_eq!(events, expected, "each event as its parent said it");
    // 2. Dead letters.
    let (mut dead, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for record in app.partitions(&app.topics.dead_letter).iter().flat_map(|of| records(&app.log, of, true)) {
        let header = |name: &str| {
            let value = record.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.clone());
            String::from_utf8(value.unwrap_or_else(|| panic!("no header {name}")).into()).expect("text")
        };
        let new = match header("tidegate_dead_letter").as_str() {
            "event" => dead.insert(header("tidegate_stamp").parse::<Stamp>().expect("a stamp")),
            _ => refused.insert(header("__streams.errors.offset").parse::<i64>().expect("an offset")),
        };
        assert!(new || may_double, "twice: {:?}\n{}", record.headers, app.logs());
    }
    assert_eq!(dead, failed, "dead letters are the reference's failures");
    assert_eq!(refused, undecodable, "and the records that are no events");
    // 3. The changelog: both ways, as it has all keys and no others.
    let entries = changelog(app).into_iter().map(|(key, entry)| (key, (entry.stamp, entry.action, entry.value)));
    let held: BTreeMap<Bytes, Held> = entries.collect();
    assert_eq!(held, reference.state, "the state is the reference's\n{}", app.logs());
    let (events, doubled, dead) = (events.len(), doubled.len(), dead.len() + refused.len());
    eprintln!("{}: {count} primaries, {events} events, {doubled} of them again, {dead} dead letters", app.id);
    (count, reference.state)
}
