//! Step 3 of 8: the queue holds a partition's events by key, each key's in stamp order.
//!
//! K1: of one key at most one event runs, or waits for its retry, at a time.
//! K2: among the waiting events of a key the least stamp is next, whatever order they arrived in.
//! K3: an event that waits for its retry holds its key, and only its key.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use hashbrown::HashMap;

use crate::event::StampedEvent;
use crate::planted::{self, Bug};
use crate::stamp::Stamp;

/// An event that is read and not done.
#[derive(Clone, Debug)]
pub struct Queued {
    /// The event.
    pub event: StampedEvent,
    /// Its record's offset.
    pub offset: i64,
    /// The next or current try, from 1.
    pub attempt: u32,
    /// When it was read.
    pub read_at: Instant,
    /// What the last try said.
    pub last_error: Option<String>,
}

/// What holds a key.
#[derive(Debug)]
pub enum Holder {
    /// Nothing: the key is in line for a free place.
    InLine,
    /// An event whose handler runs.
    Running(Queued),
    /// An event that waits for its retry.
    Backoff(Queued),
}

/// What an event that is read and not done does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doing {
    /// It waits for its retry.
    Retrying,
    /// Its handler runs.
    Running,
    /// It waits behind another one of its key, or for a free place.
    Waiting,
}

#[derive(Debug)]
struct KeyQueue {
    holder: Holder,
    waiting: BTreeMap<(Stamp, i64), Queued>,
}

/// The events of one partition.
#[derive(Debug, Default)]
pub struct KeyedQueue {
    keys: HashMap<Bytes, KeyQueue>,
    len: usize,
    running: usize,
}

impl KeyedQueue {
    /// Whether an event of this key runs or waits.
    pub fn holds(&self, key: &Bytes) -> bool {
        !self.keys.is_empty() && self.keys.contains_key(key)
    }

    /// Puts an event behind those of its key. True when the key is new here and wants a place in line.
    pub fn wait(&mut self, queued: Queued) -> bool {
        self.len += 1;
        let place = (queued.event.stamp.clone(), queued.offset);
        let mut new = false;
        let queue = self.keys.entry(queued.event.event.key.clone()).or_insert_with(|| {
            new = true;
            KeyQueue { holder: Holder::InLine, waiting: BTreeMap::new() }
        });
        queue.waiting.insert(place, queued);
        new
    }

    /// The least waiting event of a key that nothing holds (K2); it leaves the queue. The key stays in line.
    pub fn next(&mut self, key: &Bytes) -> Option<Queued> {
        let queue = self.keys.get_mut(key)?;
        assert!(matches!(queue.holder, Holder::InLine), "K1: a held key has no next event");
        let reversed = planted::is(Bug::QueueReversed);
        let (_, queued) = if reversed { queue.waiting.pop_last()? } else { queue.waiting.pop_first()? };
        self.len -= 1;
        Some(queued)
    }

    /// The event's handler runs; it holds its key.
    pub fn run(&mut self, queued: Queued) {
        self.running += 1;
        self.hold(Holder::Running, queued);
    }

    /// The event waits for its retry; it holds its key (K3).
    pub fn back_off(&mut self, queued: Queued) {
        self.hold(Holder::Backoff, queued);
    }

    fn hold(&mut self, how: fn(Queued) -> Holder, queued: Queued) {
        self.len += 1;
        let queue = self
            .keys
            .entry(queued.event.event.key.clone())
            .or_insert_with(|| KeyQueue { holder: Holder::InLine, waiting: BTreeMap::new() });
        assert!(matches!(queue.holder, Holder::InLine), "K1: one event of a key at a time");
        queue.holder = how(queued);
    }

    /// Takes the event that holds the key; the key is in line again.
    pub fn release(&mut self, key: &Bytes) -> Option<Queued> {
        let queue = self.keys.get_mut(key)?;
        match std::mem::replace(&mut queue.holder, Holder::InLine) {
            Holder::InLine => None,
            Holder::Running(queued) => {
                self.running -= 1;
                self.len -= 1;
                Some(queued)
            }
            Holder::Backoff(queued) => {
                self.len -= 1;
                Some(queued)
            }
        }
    }

    /// Forgets the key if nothing of it is left.
    pub fn tidy(&mut self, key: &Bytes) {
        if let Some(queue) = self.keys.get(key)
            && queue.waiting.is_empty()
            && matches!(queue.holder, Holder::InLine)
        {
            self.keys.remove(key);
        }
    }

    /// Events read and not done.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Handler calls running.
    pub fn running(&self) -> usize {
        self.running
    }

    /// The events that run or wait for their retry.
    pub fn held(&self) -> impl Iterator<Item = &Queued> {
        self.keys.values().filter_map(|queue| match &queue.holder {
            Holder::InLine => None,
            Holder::Running(queued) | Holder::Backoff(queued) => Some(queued),
        })
    }

    /// All events, each with what it does.
    pub fn all(&self) -> impl Iterator<Item = (Doing, &Queued)> {
        self.keys.values().flat_map(|queue| {
            let holder = match &queue.holder {
                Holder::InLine => None,
                Holder::Running(queued) => Some((Doing::Running, queued)),
                Holder::Backoff(queued) => Some((Doing::Retrying, queued)),
            };
            holder.into_iter().chain(queue.waiting.values().map(|queued| (Doing::Waiting, queued)))
        })
    }

    /// What the events take in memory, in bytes, roughly.
    pub fn weight(&self) -> usize {
        self.all().map(|(_, queued)| queued.event.weight()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::event::{Action, Event};

    fn queued(key: &'static str, stamp: &str) -> Queued {
        let event = Event { key: Bytes::from_static(key.as_bytes()), action: Action::Add, payload: None };
        let event = StampedEvent { event, stamp: stamp.parse().unwrap(), origin: Bytes::new(), retry: 0 };
        Queued { event, offset: 0, attempt: 1, read_at: clock::now(), last_error: None }
    }

    #[test]
    fn a_key_runs_in_stamp_order_one_at_a_time() {
        let mut queue = KeyedQueue::default();
        let key = Bytes::from_static(b"a");
        assert!(queue.wait(queued("a", "3")));
        assert!(!queue.wait(queued("a", "1/0")));
        assert!(!queue.wait(queued("a", "2")));
        for expected in ["1/0", "2", "3"] {
            let next = queue.next(&key).unwrap();
            assert_eq!(next.event.stamp.to_string(), expected);
            queue.run(next);
            assert_eq!(queue.running(), 1);
            queue.release(&key).unwrap();
        }
        assert!(queue.next(&key).is_none());
        queue.tidy(&key);
        assert!(!queue.holds(&key) && queue.is_empty());
    }

    #[test]
    #[should_panic(expected = "K1")]
    fn two_events_of_a_key_never_run_at_once() {
        let mut queue = KeyedQueue::default();
        queue.run(queued("a", "1"));
        queue.run(queued("a", "2"));
    }
}
