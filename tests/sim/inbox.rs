//! Between the log's member and the engine: keeps what was delivered until the driver passes it on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender};
use fastrand::Rng;
use tidegate::log::embedded::EmbeddedLog;
use tidegate::log::{Fetched, LogError, Member, MemberEvent, Membership, OffsetCommit, Record, TopicPartition};

#[derive(Clone, Copy, Debug)]
struct Cursor {
    epoch: u64,
    next: i64,
    paused: bool,
}

use super::checks::read;

/// A member that takes note of what the engine asks it for.
pub struct Spy {
    inner: Arc<dyn Member>,
    cursors: Mutex<BTreeMap<TopicPartition, Cursor>>,
}

impl Spy {
    /// Stands before `inner`.
    pub fn new(inner: Arc<dyn Member>) -> Spy {
        Spy { inner, cursors: Mutex::default() }
    }

    /// What is to be delivered, for people.
    pub fn cursors(&self) -> String {
        format!("{:?}", self.cursors.lock().unwrap())
    }

    /// The number of the partition's last start, while it is to be delivered.
    pub fn epoch(&self, of: &TopicPartition) -> Option<u64> {
        self.cursors.lock().unwrap().get(of).map(|cursor| cursor.epoch)
    }

    /// The partitions of which nothing is to be delivered for now.
    pub fn paused(&self) -> Vec<TopicPartition> {
        let cursors = self.cursors.lock().unwrap();
        cursors.iter().filter(|(_, cursor)| cursor.paused).map(|(of, _)| of.clone()).collect()
    }

    fn set_paused(&self, partitions: &[TopicPartition], paused: bool) {
        let mut cursors = self.cursors.lock().unwrap();
        cursors.iter_mut().filter(|(of, _)| partitions.contains(of)).for_each(|(_, cursor)| cursor.paused = paused);
    }
}

impl Member for Spy {
    fn start(&self, of: TopicPartition, position: i64, epoch: u64) {
        self.cursors.lock().unwrap().insert(of.clone(), Cursor { epoch, next: position, paused: false });
        self.inner.start(of, position, epoch);
    }

    fn stop(&self, partitions: Vec<TopicPartition>) {
        self.cursors.lock().unwrap().retain(|of, _| !partitions.contains(of));
        self.inner.stop(partitions);
    }

    fn pause(&self, partitions: Vec<TopicPartition>) {
        self.set_paused(&partitions, true);
        self.inner.pause(partitions);
    }

    fn resume(&self, partitions: Vec<TopicPartition>) {
        self.set_paused(&partitions, false);
        self.inner.resume(partitions);
    }

    fn commit(&self, offsets: &[OffsetCommit], membership: &Membership) -> Result<(), LogError> {
        self.inner.commit(offsets, membership)
    }

    fn leave(&self) {
        self.inner.leave();
    }
}

/// Partitions that the member waits to get back from the engine.
pub struct GivingBack {
    /// Which ones.
    pub partitions: Vec<TopicPartition>,
    /// Whether they may have another owner already.
    pub lost: bool,
    /// Disconnected when the engine has answered.
    pub answered: Receiver<()>,
    /// Dropping it lets the member go on.
    done: Sender<()>,
}

/// What was delivered and not passed on.
pub struct Inbox {
    log: Arc<EmbeddedLog>,
    events: Receiver<MemberEvent>,
    spy: Arc<Spy>,
    control: VecDeque<MemberEvent>,
    records: BTreeMap<TopicPartition, (u64, VecDeque<Record>)>,
    /// A revoke that is passed on and not answered yet, or answered and not told yet.
    pub giving_back: Option<GivingBack>,
}

impl Inbox {
    /// Takes what the member tells.
    pub fn new(log: Arc<EmbeddedLog>, events: Receiver<MemberEvent>, spy: Arc<Spy>) -> Inbox {
        Inbox { log, events, spy, control: VecDeque::new(), records: BTreeMap::new(), giving_back: None }
    }

    /// Takes everything that the member has told.
    pub fn fill(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.take(event);
        }
    }

    fn take(&mut self, event: MemberEvent) {
        match event {
            MemberEvent::Fetched(fetched) => {
                let next = fetched.records.last().expect("an empty batch is not delivered").offset + 1;
                let mut cursors = self.spy.cursors.lock().unwrap();
                if let Some(cursor) = cursors.get_mut(&fetched.of).filter(|cursor| cursor.epoch == fetched.epoch) {
                    let first = fetched.records[0].offset;
                    // Markers and what was aborted have offsets, too.
                    let skipped = || read(&self.log, &fetched.of, cursor.next).first().map(|record| record.offset);
                    let goes_on = cursor.next == first || (cursor.next < first && skipped() == Some(first));
                    assert!(goes_on, "L1: {} goes on at {first} behind {}", fetched.of, cursor.next);
                    cursor.next = next;
                }
                let held = self.records.entry(fetched.of).or_insert((fetched.epoch, VecDeque::new()));
                if held.0 != fetched.epoch {
                    *held = (fetched.epoch, VecDeque::new());
                }
                held.1.extend(fetched.records);
            }
            MemberEvent::Revoked { partitions, lost, done } => {
                self.spy.cursors.lock().unwrap().retain(|of, _| !partitions.contains(of));
                self.control.push_back(MemberEvent::Revoked { partitions, lost, done });
            }
            MemberEvent::Failed(error) => panic!("the member failed: {error}"),
            event => self.control.push_back(event),
        }
    }

    /// How much there is to pass on: events of the group, partitions with records.
    pub fn len(&self) -> (usize, usize) {
        (self.control.len(), self.records.len())
    }

    /// The next event of the group.
    pub fn next_control(&mut self) -> Option<MemberEvent> {
        let event = self.control.pop_front()?;
        let MemberEvent::Revoked { partitions, lost, done } = event else { return Some(event) };
        // What was not passed on until now might as well not have been delivered.
        self.records.retain(|of, _| !partitions.contains(of));
        let (ours, answered) = crossbeam_channel::bounded(1);
        let giving_back = GivingBack { partitions: partitions.clone(), lost, answered, done };
        assert!(self.giving_back.replace(giving_back).is_none(), "M2: one revoke at a time");
        Some(MemberEvent::Revoked { partitions, lost, done: ours })
    }

    /// The engine has answered: the member may go on.
    pub fn give_back(&mut self) {
        let giving_back = self.giving_back.take().expect("asked when there is one");
        // A start that came after the revoke is void (M1).
        self.spy.cursors.lock().unwrap().retain(|of, _| !giving_back.partitions.contains(of));
        drop(giving_back.done);
    }

    /// Some of the records of one partition, of a paused one only seldom.
    pub fn next_records(&mut self, rng: &mut Rng) -> Option<Fetched> {
        let place = rng.usize(..self.records.len());
        let of = self.records.keys().nth(place)?.clone();
        let is_paused = self.spy.cursors.lock().unwrap().get(&of).is_some_and(|cursor| cursor.paused);
        if is_paused && rng.u32(..16) > 0 {
            return None;
        }
        let (epoch, records) = self.records.get_mut(&of)?;
        let count = if rng.bool() { records.len() } else { rng.usize(1..=records.len()) };
        let fetched = Fetched { of: of.clone(), epoch: *epoch, records: records.drain(..count).collect() };
        if records.is_empty() {
            self.records.remove(&of);
        }
        Some(fetched)
    }
}
