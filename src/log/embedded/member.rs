//! A member of a group: its thread carries out the coordinator's orders and the engine's commands
//! and delivers records, one thing after the other, so that what it tells is in order.
//!
//! M1: the thread looks for an order and for commands before each delivery; a cursor exists only
//!     between `start` and the revoke of an owned partition, or the stop of an unshared one (L1).
//! M2: what is revoked is given back to the coordinator only after the engine has dropped `done` (L3).
//! M3: it waits for the bell alone: no polling, no sleeping (E3).

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::group::Order;
use super::read;
use super::schema::MembershipRow;
use super::state::{Place, Shared};
use crate::log::{
    EventSink, Fetched, Isolation, Join, LogError, Member, MemberEvent, Membership, OffsetCommit, TopicPartition,
};

/// The engine's side of a member.
pub(super) struct EmbeddedMember {
    desk: Arc<Desk>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the engine leaves for the thread.
struct Desk {
    shared: Arc<Shared>,
    commands: Mutex<VecDeque<Command>>,
    leaving: AtomicBool,
}

enum Command {
    Start(TopicPartition, i64, u64),
    Stop(Vec<TopicPartition>),
    Pause(Vec<TopicPartition>),
    Resume(Vec<TopicPartition>),
}

impl Desk {
    fn put(&self, command: Command) {
        self.commands.lock().expect("queueing does not panic").push_back(command);
        self.shared.bell.ring();
    }

    fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
        self.shared.bell.ring();
    }
}

impl EmbeddedMember {
    /// Joins the group; the thread begins at once.
    pub(super) fn join(shared: Arc<Shared>, join: Join, sink: EventSink) -> Result<EmbeddedMember, LogError> {
        let desk = Arc::new(Desk { shared, commands: Mutex::default(), leaving: AtomicBool::new(false) });
        let name = join.client_id.chars().filter(|letter| *letter != '\0').collect();
        let mut worker = Worker {
            desk: Arc::clone(&desk),
            id: String::new(),
            join,
            sink,
            owned: BTreeSet::new(),
            changes_seen: 0,
            cursors: VecDeque::new(),
        };
        worker.enter();
        let thread = std::thread::Builder::new().name(name).spawn(move || worker.run());
        let thread =
            thread.map_err(|error| LogError::Fatal(format!("cannot start a thread for the member: {error}")))?;
        Ok(EmbeddedMember { desk, thread: Mutex::new(Some(thread)) })
    }
}

impl Member for EmbeddedMember {
    fn start(&self, partition: TopicPartition, position: i64, epoch: u64) {
        self.desk.put(Command::Start(partition, position, epoch));
    }

    fn stop(&self, partitions: Vec<TopicPartition>) {
        self.desk.put(Command::Stop(partitions));
    }

    fn pause(&self, partitions: Vec<TopicPartition>) {
        self.desk.put(Command::Pause(partitions));
    }

    fn resume(&self, partitions: Vec<TopicPartition>) {
        self.desk.put(Command::Resume(partitions));
    }

    fn commit(&self, offsets: &[OffsetCommit], membership: &Membership) -> Result<(), LogError> {
        self.desk.shared.commit_offsets(offsets, membership)
    }

    fn leave(&self) {
        self.desk.leave();
        let thread = self.thread.lock().expect("taking a handle does not panic").take();
        // A panic of the sink has been reported on its own thread.
        thread.map(JoinHandle::join);
    }
}

impl Drop for EmbeddedMember {
    /// Nobody may be left to take events: the thread is asked to end and not waited for.
    fn drop(&mut self) {
        self.desk.leave();
    }
}

struct Worker {
    desk: Arc<Desk>,
    /// This membership's own; a new one after an expulsion.
    id: String,
    join: Join,
    sink: EventSink,
    owned: BTreeSet<TopicPartition>,
    /// Up to here there are no orders: the coordinator's lock is not taken for each delivery.
    changes_seen: u64,
    /// In the order in which they are served.
    cursors: VecDeque<Cursor>,
}

struct Cursor {
    of: TopicPartition,
    place: Place,
    position: i64,
    epoch: u64,
    paused: bool,
    with_headers: bool,
}

impl Worker {
    fn run(mut self) {
        loop {
            let seen = self.desk.shared.bell.count();
            if self.desk.leaving.load(Ordering::SeqCst) {
                let expelled = !self.desk.shared.is_member(&self.join.group, &self.id);
                self.give_back(self.owned.iter().cloned().collect(), expelled);
                return;
            }
            self.take_commands();
            if !self.carry_out_order() && !self.deliver() {
                self.desk.shared.bell.wait(seen);
            }
        }
    }

    fn enter(&mut self) {
        self.id = format!("{}-{}", self.join.client_id, uuid::Uuid::new_v4());
        self.desk.shared.enter_group(&self.join.group, &self.id, &self.join.topics);
    }

    fn carry_out_order(&mut self) -> bool {
        let shared = Arc::clone(&self.desk.shared);
        let changes = shared.group_changes.load(Ordering::SeqCst);
        if changes == self.changes_seen {
            return false;
        }
        match shared.next_order(&self.join.group, &self.id) {
            Err(Expelled) => {
                self.give_back(self.owned.iter().cloned().collect(), true);
                self.enter();
            }
            Ok(None) => {
                self.changes_seen = changes;
                return false;
            }
            Ok(Some(Order::Revoke(partitions))) => {
                self.give_back(partitions.clone(), false);
                shared.given_back(&self.join.group, &self.id, &partitions);
            }
            Ok(Some(Order::Assign(partitions, generation))) => {
                self.owned.extend(partitions.iter().cloned());
                let row = MembershipRow { group: self.join.group.clone(), member: self.id.clone(), generation };
                (self.sink)(MemberEvent::Assigned { partitions, membership: Membership(row.encode()) });
            }
        }
        true
    }

    /// Tells the engine and waits for it (M2).
    fn give_back(&mut self, partitions: Vec<TopicPartition>, lost: bool) {
        if partitions.is_empty() {
            return;
        }
        self.owned.retain(|owned| !partitions.contains(owned));
        self.cursors.retain(|cursor| !partitions.contains(&cursor.of));
        let (done, is_done) = crossbeam_channel::bounded(1);
        (self.sink)(MemberEvent::Revoked { partitions, lost, done });
        // An error says that it was dropped: done, too.
        is_done.recv().ok();
    }

    fn take_commands(&mut self) {
        let commands = std::mem::take(&mut *self.desk.commands.lock().expect("queueing does not panic"));
        for command in commands {
            match command {
                Command::Start(of, position, epoch) => self.start(of, position, epoch),
                Command::Stop(partitions) => self.cursors.retain(|cursor| !partitions.contains(&cursor.of)),
                Command::Pause(partitions) => self.set_paused(&partitions, true),
                Command::Resume(partitions) => self.set_paused(&partitions, false),
            }
        }
    }

    /// A start that was asked for before the partition was revoked is too late (M1).
    fn start(&mut self, of: TopicPartition, position: i64, epoch: u64) {
        self.cursors.retain(|cursor| cursor.of != of);
        if !self.owned.contains(&of) && !self.join.unshared.contains(&of.topic) {
            return;
        }
        match self.desk.shared.place(&of) {
            Ok(place) => {
                let with_headers = self.join.with_headers.contains(&of.topic);
                self.cursors.push_back(Cursor { of, place, position, epoch, paused: false, with_headers });
            }
            Err(error) => (self.sink)(MemberEvent::Failed(error)),
        }
    }

    fn set_paused(&mut self, partitions: &[TopicPartition], paused: bool) {
        for cursor in self.cursors.iter_mut().filter(|cursor| partitions.contains(&cursor.of)) {
            cursor.paused = paused;
        }
    }

    /// Delivers from the next partition in turn that has something; false when none has.
    fn deliver(&mut self) -> bool {
        for _ in 0..self.cursors.len() {
            let Some(mut cursor) = self.cursors.pop_front() else { break };
            if cursor.paused || cursor.position == cursor.place.get().stable() {
                self.cursors.push_back(cursor);
                continue;
            }
            let isolation = Isolation::ReadCommitted;
            match read::read(&self.desk.shared, &cursor.place, cursor.position, isolation, cursor.with_headers) {
                Ok(portion) => {
                    let moved = portion.next > cursor.position;
                    cursor.position = portion.next;
                    let (of, epoch, records) = (cursor.of.clone(), cursor.epoch, portion.records);
                    self.cursors.push_back(cursor);
                    if !records.is_empty() {
                        (self.sink)(MemberEvent::Fetched(Fetched { of, epoch, records }));
                    }
                    if moved {
                        return true;
                    }
                }
                Err(LogError::Retriable(reason)) => {
                    (self.sink)(MemberEvent::Trouble(format!("cannot read {}: {reason}", cursor.of)));
                    self.cursors.push_back(cursor);
                }
                // Its cursor is gone: the rest goes on until the engine decides.
                Err(error) => {
                    (self.sink)(MemberEvent::Failed(error));
                    return true;
                }
            }
        }
        false
    }
}

impl Drop for Worker {
    /// Also when the sink has panicked: what the member owned goes to the others.
    fn drop(&mut self) {
        self.desk.shared.leave_group(&self.join.group, &self.id);
    }
}

/// The coordinator does not know the member any more.
pub(super) struct Expelled;

/// The coordinator's side of what members do.
impl Shared {
    fn enter_group(&self, group: &str, member: &str, topics: &[Arc<str>]) {
        let mut core = self.core();
        let group = core.groups.entry(group.to_owned()).or_default();
        group.join(member.to_owned(), topics.to_vec(), &|topic| self.partition_count(topic));
        self.group_changed();
    }

    /// Ends a membership: the member has given everything back, or is expelled.
    pub(super) fn leave_group(&self, group: &str, member: &str) {
        let mut core = self.core();
        if let Some(group) = core.groups.get_mut(group) {
            group.remove(member, &|topic| self.partition_count(topic));
        }
        self.group_changed();
    }

    fn is_member(&self, group: &str, member: &str) -> bool {
        self.core().groups.get(group).is_some_and(|group| group.has(member))
    }

    fn next_order(&self, group: &str, member: &str) -> Result<Option<Order>, Expelled> {
        let mut core = self.core();
        let group = core.groups.get_mut(group).filter(|group| group.has(member)).ok_or(Expelled)?;
        Ok(group.next_order(member))
    }

    fn given_back(&self, group: &str, member: &str, partitions: &[TopicPartition]) {
        let mut core = self.core();
        if let Some(group) = core.groups.get_mut(group) {
            group.given_back(member, partitions);
            group.settle(&|topic| self.partition_count(topic));
        }
        self.group_changed();
    }

    /// Makes every member look for orders.
    pub(super) fn group_changed(&self) {
        self.group_changes.fetch_add(1, Ordering::SeqCst);
        self.bell.ring();
    }

    pub(super) fn partition_count(&self, topic: &str) -> i32 {
        self.topic(topic).map_or(0, |topic| topic.partitions.len() as i32)
    }
}
