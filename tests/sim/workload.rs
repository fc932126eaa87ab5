//! Events with scripts, what a handler makes of them, and what one thread with one queue leaves behind.
//!
//! A script is a number in the payload; everything that follows from it is drawn from that number, so
//! the handler is deterministic and its cascade is known beforehand.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tidegate::cause::Cause;
use tidegate::config::{Cascade, StampSource};
use tidegate::event::{Action, Event, MAX_KEY_BYTES, StampedEvent};
use tidegate::handler::{Failure, Outcome};
use tidegate::log::NewRecord;
use tidegate::reference::{self, Held};
use tidegate::sequencer::format;
use tidegate::sequencer::stamps::{MARK, SEQUENCE};
use tidegate::stamp::{Path, Stamp};

use super::sometimes::{self, reached};

/// Tries in all.
pub const ATTEMPTS: u32 = 3;

/// Scripts of one seed.
#[derive(Clone, Debug)]
pub struct Scripts {
    /// Children go to one of so many keys.
    pub keys: u32,
    /// Bounds of a cascade.
    pub cascade: Cascade,
    /// Of a hundred events so many have children.
    pub parents: u32,
}

fn hot(number: u32) -> Bytes {
    Bytes::from(format!("k{number}"))
}

fn action(rng: &mut Rng) -> Action {
    if rng.u32(..10) < 3 { Action::Remove } else { Action::Add }
}

impl Scripts {
    /// What try number `attempt` of an event comes to. It is the same for a superseded one; by the time that dead letters
    /// are retried most of what makes events fail is mended.
    pub fn verdict(&self, event: &Event, attempt: u32, is_retry: bool) -> Result<Outcome, Failure> {
        let text = event.payload.as_ref().map(|payload| std::str::from_utf8(payload).expect("a number"));
        let script = match text {
            Some(text) => text.parse().expect("a number"),
            None => event.key.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(*byte)),
        };
        let rng = &mut Rng::with_seed(script);
        let after = rng.bool().then(|| Duration::from_millis(rng.u64(..40)));
        let again = |reason: &str| Err(Failure::Retry { reason: reason.to_owned(), after });
        match rng.u32(..100) {
            0..13 if is_retry => {}
            0..4 => return Err(Failure::Reject { code: "no".into(), message: "it is rejected".into() }),
            4..7 => return again("it never works"),
            7..10 if attempt < ATTEMPTS => return again("the handler panicked: boom"),
            10..13 if attempt == 1 => return again("not done within its time"),
            13 => return Ok(self.outcome(rng, self.cascade.max_children + 1)),
            14 => {
                let mut outcome = self.outcome(rng, 2);
                outcome.children[1].key = if rng.bool() { Bytes::new() } else { vec![b'k'; MAX_KEY_BYTES + 1].into() };
                return Ok(outcome);
            }
            _ => {}
        }
        let children = if rng.u32(..100) < self.parents { rng.usize(1..=self.cascade.max_children.min(3)) } else { 0 };
        Ok(self.outcome(rng, children))
    }

    fn outcome(&self, rng: &mut Rng, children: usize) -> Outcome {
        let value = (rng.u32(..10) > 0).then(|| Bytes::from(format!("value {}", rng.u32(..))));
        let child = |_| Event {
            key: hot(rng.u32(..self.keys)),
            action: action(rng),
            payload: (rng.u32(..10) > 0).then(|| Bytes::from(rng.u64(..).to_string())),
        };
        Outcome { value, children: (0..children).map(child).collect() }
    }

    /// What the last try of an event comes to; `None` = it is a dead letter.
    pub fn in_the_end(&self, event: &Event) -> Option<Outcome> {
        self.verdict(event, ATTEMPTS, false).ok().filter(|_| self.failure(event, false).is_none())
    }

    /// Why an event that ends like this is a dead letter.
    pub fn failure(&self, event: &Event, is_retry: bool) -> Option<Cause> {
        match self.verdict(event, ATTEMPTS, is_retry) {
            Err(Failure::Reject { .. }) => Some(Cause::Rejected),
            Err(Failure::Retry { .. }) => Some(Cause::Exhausted),
            Ok(outcome) if outcome.children.len() > self.cascade.max_children => Some(Cause::TooManyChildren),
            Ok(outcome) => {
                let is_bad = |child: &Event| child.key.is_empty() || child.key.len() > MAX_KEY_BYTES;
                outcome.children.iter().any(is_bad).then_some(Cause::BadChild)
            }
        }
    }
}

/// A record of the source topic, and what it is.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Where it is appended.
    pub partition: i32,
    /// Its offset there, once it is appended.
    pub offset: i64,
    /// The record.
    pub record: NewRecord,
    /// The event, or why it is none.
    what: Result<Event, Cause>,
    /// What its header says, with `stamp = "header"`.
    pub sequence: Option<u64>,
    /// It is a mark, up to here.
    pub mark: Option<u64>,
    /// It comes after a promise that it does not, and nothing sound came before: it is too late, or in time all the same.
    pub breaks: bool,
}

impl Draft {
    /// Whether it is an event.
    pub fn is_event(&self) -> bool {
        self.what.is_ok()
    }
}

/// What is right in the end.
#[derive(Debug, Default)]
pub struct Expected {
    /// What every key holds.
    pub state: BTreeMap<Bytes, Held>,
    /// Every event that is on the repartition topic once, in stamp order.
    pub events: Vec<Stamp>,
    /// Every dead letter, as text, sorted.
    pub dead_letters: Vec<String>,
}

/// What the source topic gets.
#[derive(Debug)]
pub struct Workload {
    /// Records in the order in which they are appended.
    pub records: Vec<Draft>,
    /// What is right in the end; known once all is appended and, with `arrival`, sequenced.
    pub expected: Expected,
    /// How often dead letters of an event were retried; known at the end.
    pub retried: BTreeMap<Stamp, u32>,
    /// The events of retries that the horizon had overtaken.
    pub overtaken: Vec<Stamp>,
    /// Some of them were, although they had been before: then what they lead to is there more than once.
    pub forced: bool,
    /// So many records are appended at once, at most.
    pub burst: usize,
    /// `source.max_disorder`
    pub max_disorder: Option<u64>,
    stamp: StampSource,
}

impl Workload {
    /// The record at a place of the source.
    pub fn record(&self, partition: i32, offset: i64) -> &NewRecord {
        let found = self.records.iter().find(|draft| (draft.partition, draft.offset) == (partition, offset));
        &found.expect("no other record was appended").record
    }

    /// The greatest mark, or what the greatest sequence promises.
    pub fn marked(&self) -> Option<u64> {
        let greatest = self.records.iter().filter_map(sequence_of).max();
        let disorder = self.max_disorder.and_then(|disorder| greatest?.checked_sub(disorder)?.checked_sub(1));
        self.records.iter().filter_map(|draft| draft.mark).max().max(disorder)
    }

    /// The end of each source partition that has records.
    pub fn ends(&self) -> BTreeMap<i32, i64> {
        let mut ends = BTreeMap::new();
        for draft in &self.records {
            let end = ends.entry(draft.partition).or_default();
            *end = draft.offset.max(*end - 1) + 1;
        }
        ends
    }

    /// With `header` the same event can stand in the source twice: then what it leads to is there once or twice.
    pub fn forgive_doubles<T: PartialEq>(&self, found: &mut Vec<T>) {
        if self.stamp == StampSource::Header || self.forced {
            found.dedup();
        }
    }

    /// What one thread with one queue makes of it. `received` gives the place of the record at (partition, offset) in
    /// the order received, where that decides.
    /// Those in `late`, by partition and offset, were too late: only such as break a promise can be.
    pub fn expect(&mut self, scripts: &Scripts, late: &BTreeSet<(i32, i64)>, received: impl Fn(i32, i64) -> u64) {
        let (mut primaries, mut dead_letters) = (Vec::new(), Vec::new());
        for draft in self.records.iter().filter(|draft| draft.mark.is_none()) {
            if late.contains(&(draft.partition, draft.offset)) {
                assert!(draft.breaks, "{draft:?} breaks no promise");
                dead_letters.push(format!("record {}-{} {}", draft.partition, draft.offset, Cause::TooLate));
                continue;
            }
            if draft.breaks && draft.what.is_ok() {
                reached(sometimes::IN_TIME);
            }
            let sequence = match self.stamp {
                StampSource::Offset => draft.offset as u64,
                StampSource::Header => draft.sequence.unwrap_or_default(),
                StampSource::Arrival => received(draft.partition, draft.offset),
            };
            match &draft.what {
                Ok(event) => {
                    let (event, stamp) = (event.clone(), Stamp::root(0, sequence));
                    primaries.push(StampedEvent { event, stamp, origin: Bytes::new(), retry: 0 });
                }
                Err(cause) => dead_letters.push(format!("record {}-{} {cause}", draft.partition, draft.offset)),
            }
        }
        primaries.sort_by(|a, b| a.stamp.cmp(&b.stamp));
        primaries.dedup_by(|a, b| a.stamp == b.stamp);
        let mut events = Vec::new();
        let reference = reference::run(primaries, &scripts.cascade, |event| {
            events.push(event.stamp.clone());
            let retries = |stamp: &Stamp| self.retried.get(stamp).copied().unwrap_or_default();
            let above = (0..event.stamp.depth()).map(|depth| &event.stamp.path[..depth]);
            let above = above.map(|path| Stamp { path: Path::from_slice(path), ..event.stamp });
            let is_of_retry = above.into_iter().any(|stamp| retries(&stamp) > 0);
            // First as it came, then each retry; all of them come to the same.
            let retried = retries(&event.stamp);
            let processed = std::iter::once(is_of_retry).chain((0..retried).map(|_| true));
            let failures: Vec<Cause> =
                processed.filter_map(|is_retry| scripts.failure(&event.event, is_retry)).collect();
            dead_letters.extend(failures.iter().map(|cause| format!("event {} {cause}", event.stamp)));
            let is_retry = is_of_retry || retried > 0;
            if scripts.failure(&event.event, is_retry).is_some() {
                return None;
            }
            let outcome = scripts.verdict(&event.event, ATTEMPTS, is_retry).ok()?;
            if event.stamp.depth() == scripts.cascade.max_depth {
                let too_deep = (0..outcome.children.len()).map(|index| event.stamp.child(index as u32));
                // It is as deep when it is retried.
                let each = too_deep.flat_map(|stamp| (0..=retries(&stamp)).map(move |_| stamp.clone()));
                dead_letters.extend(each.map(|stamp| format!("event {stamp} {}", Cause::TooDeep)));
            }
            Some(outcome)
        });
        assert_eq!(reference.events as usize, events.len());
        assert!(events.is_sorted(), "S1: the reference takes events in the order of their stamps");
        let overtaken = self.overtaken.iter().map(|stamp| format!("event {stamp} {}", Cause::BeforeHorizon));
        dead_letters.extend(overtaken);
        dead_letters.sort();
        self.forgive_doubles(&mut dead_letters);
        self.expected = Expected { state: reference.state, events, dead_letters };
    }
}

fn record(key: Option<&[u8]>, value: Option<&[u8]>) -> NewRecord {
    NewRecord { key: key.map(Bytes::copy_from_slice), value: value.map(Bytes::copy_from_slice), headers: Vec::new() }
}

/// A record that is no event.
fn broken(rng: &mut Rng) -> (NewRecord, Cause) {
    match rng.u32(..6) {
        0 => (record(None, Some(b"nonsense")), Cause::Undecodable),
        1 => (record(Some(b"k1"), Some(b"{\"key\":")), Cause::Undecodable),
        2 => (record(Some(b"k1"), Some(b"UPDATE")), Cause::UnknownAction),
        3 => (record(Some(b""), Some(b"ADD")), Cause::EmptyKey),
        4 => (record(Some(b"k1"), Some(b"k2:ADD")), Cause::KeyMismatch),
        _ => (record(Some(&[b'k'; MAX_KEY_BYTES + 1]), Some(b"ADD")), Cause::KeyTooLong),
    }
}

fn sound(rng: &mut Rng, keys: u32) -> (NewRecord, Event) {
    let key = if rng.u32(..5) == 0 { Bytes::from(format!("cold{}", rng.u32(..))) } else { hot(rng.u32(..keys)) };
    let mut event = Event { key, action: action(rng), payload: None };
    let record = match rng.u32(..8) {
        0 => record(Some(&event.key), Some(event.action.as_str().as_bytes())),
        1 => {
            event.action = Action::Remove;
            record(Some(&event.key), None)
        }
        _ => {
            event.payload = Some(Bytes::from(rng.u64(..).to_string()));
            let key = rng.bool().then(|| event.key.clone());
            NewRecord { key, value: Some(format::encode_json(&event)), headers: Vec::new() }
        }
    };
    (record, event)
}

/// How far a sequence jumps that is a mistake; all others lie closer together.
const MISTAKE: u64 = 1 << 40;

/// Draws a workload of `count` records over `partitions` source partitions. With `header` sequences have gaps, records
/// stand out of order and twice, one partition lags behind the others, and some sequences are missing or mistakes.
pub fn draw(rng: &mut Rng, scripts: &Scripts, count: usize, stamp: StampSource, partitions: i32) -> Workload {
    let mut drafts: Vec<Draft> = Vec::new();
    let mut next = 0;
    for place in 0..count {
        next += if rng.u32(..4) == 0 { rng.u64(1..5) } else { 1 };
        let header = |sequence: u64| vec![(SEQUENCE.to_owned(), Bytes::from(sequence.to_string()))];
        let by_header = stamp == StampSource::Header;
        let (mut sequence, mut is_again) = (by_header.then_some(next), false);
        let (mut record, mut what) = match rng.u32(..20) {
            // The first one is sound: before it every sequence would be the first ever.
            0 if place > 0 => {
                let (record, cause) = broken(rng);
                (record, Err(cause))
            }
            // The same record again.
            1..3 if place > 0 => {
                let again = &drafts[rng.usize(..place)];
                (sequence, is_again) = (again.sequence, true);
                (again.record.clone(), again.what.clone())
            }
            _ => {
                let (record, event) = sound(rng, scripts.keys);
                (record, Ok(event))
            }
        };
        if by_header && !is_again {
            record.headers = sequence.map(header).unwrap_or_default();
            match rng.u32(..30) {
                0 if place > 0 => {
                    record.headers =
                        if rng.bool() { Vec::new() } else { vec![(SEQUENCE.to_owned(), Bytes::from("-7"))] };
                    what = Err(Cause::NoSequence);
                }
                1 if place > 0 => {
                    record.headers = header(MISTAKE + next);
                    what = Err(Cause::SequenceJump);
                }
                _ => {}
            }
        }
        drafts.push(Draft { partition: 0, offset: 0, record, what, sequence, mark: None, breaks: false });
    }
    // Each record to a partition; those of the lagging one are appended later, others a little out of order.
    let lagging = rng.i32(0..partitions);
    let mut order: Vec<(usize, Draft)> = Vec::new();
    for (place, mut draft) in drafts.into_iter().enumerate() {
        draft.partition = if place == 0 { 0 } else { rng.i32(0..partitions) };
        let late = if partitions == 1 || place == 0 {
            0
        } else if draft.partition == lagging {
            rng.usize(20..80)
        } else {
            rng.usize(..6)
        };
        order.push((place + late, draft));
    }
    order.sort_by_key(|(place, _)| *place);
    let mut records = order.into_iter().map(|(_, draft)| draft).collect();
    let (mut burst, mut max_disorder) = (20, None);
    if stamp == StampSource::Header && rng.bool() {
        // Where they come slowly marks count while records still come, and copies among them.
        burst = [1, 2, 20][rng.usize(..3)];
        let copies = if burst == 20 { 2 } else { 8 };
        promise(rng, scripts, &mut records, partitions, copies);
    } else if stamp == StampSource::Header && rng.bool() {
        burst = [1, 2, 20][rng.usize(..3)];
        max_disorder = Some(disorder(rng, &mut records));
    }
    Workload {
        records,
        expected: Expected::default(),
        retried: BTreeMap::new(),
        overtaken: Vec::new(),
        forced: false,
        burst,
        max_disorder,
        stamp,
    }
}

/// What a header says, where it is a sequence and no mistake.
fn sequence_of(draft: &Draft) -> Option<u64> {
    let is_none = matches!(draft.what, Err(Cause::NoSequence | Cause::SequenceJump));
    draft.sequence.filter(|_| !is_none && draft.mark.is_none())
}

/// How far sequences are behind those before them at most, or half of that: then some records break the promise.
fn disorder(rng: &mut Rng, records: &mut [Draft]) -> u64 {
    let (mut greatest, mut came, mut most) = (0, BTreeSet::new(), 0);
    for sequence in records.iter().filter_map(sequence_of) {
        greatest = greatest.max(sequence);
        if came.insert(sequence) {
            most = most.max(greatest - sequence);
        }
    }
    let disorder = if rng.u32(..3) > 0 { most } else { most / 2 };
    (greatest, came) = (0, BTreeSet::new());
    for draft in records {
        let Some(sequence) = sequence_of(draft) else { continue };
        greatest = greatest.max(sequence);
        draft.breaks = greatest - sequence > disorder && !came.contains(&sequence);
        if draft.what.is_ok() && !draft.breaks {
            came.insert(sequence);
        }
    }
    disorder
}

/// Puts marks between the records, each as high as the records behind it allow, soon after some of them a copy of what
/// came before, and some records that break a promise.
fn promise(rng: &mut Rng, scripts: &Scripts, records: &mut Vec<Draft>, partitions: i32, copies: usize) {
    let all: BTreeSet<u64> = records.iter().filter_map(sequence_of).collect();
    let mut taken = all.clone();
    let mut place = 1;
    while place < records.len() {
        place += rng.usize(1..30);
        let before: BTreeSet<u64> = records.iter().take(place).filter_map(sequence_of).collect();
        let behind = records.iter().skip(place).filter_map(sequence_of).filter(|sequence| !before.contains(sequence));
        let next = behind.min().or(all.last().map(|last| last + 3)).unwrap_or(0);
        let Some(mark) = next.checked_sub(1).filter(|_| place <= records.len()) else { continue };
        let mut record = record(None, None);
        record.headers = vec![(MARK.to_owned(), Bytes::from(mark.to_string()))];
        let partition = rng.i32(0..partitions);
        let what = Err(Cause::NoSequence);
        records.insert(
            place,
            Draft { partition, offset: 0, record, what, sequence: None, mark: Some(mark), breaks: false },
        );
        for _ in 0..rng.usize(..copies) {
            let again = records[rng.usize(..place)].clone();
            let (partition, at) = (rng.i32(0..partitions), rng.usize(place + 1..=records.len().min(place + 4)));
            records.insert(at, Draft { partition, ..again });
        }
        let broken = mark.checked_sub(rng.u64(..8)).filter(|sequence| !taken.contains(sequence));
        if let Some(sequence) = broken.filter(|_| rng.bool()) {
            taken.insert(sequence);
            let (mut record, event) = sound(rng, scripts.keys);
            record.headers = vec![(SEQUENCE.to_owned(), Bytes::from(sequence.to_string()))];
            let (partition, at) = (rng.i32(0..partitions), rng.usize(place + 1..=records.len()));
            let draft = Draft {
                partition,
                offset: 0,
                record,
                what: Ok(event),
                sequence: Some(sequence),
                mark: None,
                breaks: false,
            };
            records.insert(at, draft);
        }
    }
    let (mut promised, mut came) = (None, BTreeSet::new());
    for draft in records {
        promised = promised.max(draft.mark);
        let Some(sequence) = sequence_of(draft) else { continue };
        if Some(sequence) <= promised && !came.contains(&sequence) {
            draft.breaks = true;
        } else if draft.what.is_ok() {
            came.insert(sequence);
        }
    }
}
