//! Events with scripts, what a handler makes of them, and what one thread with one queue leaves behind.
//!
//! A script is a number in the payload; everything that follows from it is drawn from that number, so
//! the handler is deterministic and its cascade is known beforehand.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tidegate::cause::Cause;
use tidegate::config::Cascade;
use tidegate::event::{Action, Event, MAX_KEY_BYTES, StampedEvent};
use tidegate::handler::{Failure, Outcome};
use tidegate::instance::calls::Verdict;
use tidegate::log::NewRecord;
use tidegate::reference::{self, Held};
use tidegate::sequencer::format;
use tidegate::stamp::Stamp;

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
    /// What try number `attempt` of an event comes to. It is the same for a superseded one.
    pub fn verdict(&self, event: &Event, attempt: u32) -> Verdict {
        let text = event.payload.as_ref().map(|payload| std::str::from_utf8(payload).expect("a number"));
        let script = match text {
            Some(text) => text.parse().expect("a number"),
            None => event.key.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(31) + u64::from(*byte)),
        };
        let rng = &mut Rng::with_seed(script);
        let after = rng.bool().then(|| Duration::from_millis(rng.u64(..40)));
        let again = |reason: &str| Err(Failure::Retry { reason: reason.to_owned(), after });
        match rng.u32(..100) {
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

    /// Why an event that ends like this is a dead letter.
    fn failure(&self, event: &Event) -> Option<Cause> {
        match self.verdict(event, ATTEMPTS) {
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

/// What the source topic gets, and what is right in the end.
#[derive(Debug)]
pub struct Workload {
    /// Records of the source topic, from offset 0 on.
    pub records: Vec<NewRecord>,
    /// What every key holds.
    pub state: BTreeMap<Bytes, Held>,
    /// Every event that is on the repartition topic once, in stamp order.
    pub events: Vec<Stamp>,
    /// Every dead letter, as text, sorted.
    pub dead_letters: Vec<String>,
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

/// Draws a workload of `count` source records.
pub fn draw(rng: &mut Rng, scripts: &Scripts, count: usize) -> Workload {
    let (mut records, mut primaries, mut dead_letters) = (Vec::new(), Vec::<StampedEvent>::new(), Vec::new());
    for offset in 0..count {
        let stamp = Stamp::root(0, offset as u64);
        let (record, event) = match rng.u32(..20) {
            0 => {
                let (record, cause) = broken(rng);
                dead_letters.push(format!("record {offset} {cause}"));
                records.push(record);
                continue;
            }
            // The same record again.
            1..3 if !primaries.is_empty() => {
                let again = &primaries[rng.usize(..primaries.len())];
                (records[again.stamp.sequence as usize].clone(), again.event.clone())
            }
            _ => sound(rng, scripts.keys),
        };
        records.push(record);
        primaries.push(StampedEvent { event, stamp, origin: Bytes::new(), retry: 0 });
    }
    let mut events = Vec::new();
    let reference = reference::run(primaries, &scripts.cascade, |event| {
        events.push(event.stamp.clone());
        if let Some(cause) = scripts.failure(&event.event) {
            dead_letters.push(format!("event {} {cause}", event.stamp));
            return None;
        }
        let outcome = scripts.verdict(&event.event, ATTEMPTS).ok()?;
        if event.stamp.depth() == scripts.cascade.max_depth {
            let too_deep = (0..outcome.children.len()).map(|index| event.stamp.child(index as u32));
            dead_letters.extend(too_deep.map(|stamp| format!("event {stamp} {}", Cause::TooDeep)));
        }
        Some(outcome)
    });
    assert_eq!(reference.events as usize, events.len());
    assert!(events.is_sorted(), "S1: the reference takes events in the order of their stamps");
    dead_letters.sort();
    Workload { records, state: reference.state, events, dead_letters }
}
