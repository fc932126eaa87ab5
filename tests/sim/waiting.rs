//! K2: among the waiting events of a key the least stamp is next, also when a retry is due.
//!
//! Which events wait is not asked of the engine: what was delivered and never called waits. A call that somebody has
//! made before may be a duplicate, for which nothing is called.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use tidegate::event::StampedEvent;
use tidegate::log::{Fetched, Record};
use tidegate::stamp::Stamp;

use super::retrying::begun;

thread_local! {
    static CALLED: RefCell<BTreeSet<(Bytes, Stamp)>> = const { RefCell::new(BTreeSet::new()) };
}

/// A seed begins.
pub fn forget() {
    CALLED.take();
}

/// What was delivered to one engine and not called, by partition, incarnation and key.
#[derive(Debug, Default)]
pub struct Waiting(BTreeMap<(i32, u64, Bytes), BTreeSet<Stamp>>);

/// The events of what is about to be delivered of the repartition topic.
pub fn events(fetched: &Fetched) -> Vec<(i32, u64, StampedEvent)> {
    let decode = |record: &Record| StampedEvent::decode(record.key.clone()?, record.value.clone()?).ok();
    let ours = fetched.of.topic.ends_with("-events-repartition").then_some(&fetched.records);
    // What begins a retry waits elsewhere until that counts.
    let events = ours.into_iter().flatten().filter(|record| begun(record).is_none()).filter_map(decode);
    events.map(|event| (fetched.of.partition, fetched.epoch, event)).collect()
}

impl Waiting {
    /// The engine has them.
    pub fn delivered(&mut self, events: Vec<(i32, u64, StampedEvent)>) {
        let uncalled = |event: &StampedEvent| {
            CALLED.with_borrow(|called| !called.contains(&(event.event.key.clone(), event.stamp.clone())))
        };
        for (partition, incarnation, event) in events.into_iter().filter(|(.., event)| uncalled(event)) {
            self.0.entry((partition, incarnation, event.event.key)).or_default().insert(event.stamp);
        }
    }

    /// The handler is called for an event.
    pub fn called(&mut self, partition: i32, incarnation: u64, event: &StampedEvent) {
        let key = &event.event.key;
        CALLED.with_borrow_mut(|called| {
            called.insert((key.clone(), event.stamp.clone()));
            let Some(waiting) = self.0.get_mut(&(partition, incarnation, key.clone())) else { return };
            waiting.retain(|stamp| !called.contains(&(key.clone(), stamp.clone())));
            let first = waiting.first().filter(|first| **first < event.stamp);
            assert_eq!(first, None, "K2: {} of {key:?} is called while an older one waits", event.stamp);
        });
    }
}
