//! A member of a group: it carries out the coordinator's orders and the engine's commands
//! and delivers records, one thing after the other, so that what it tells is in order. A thread has it
//! take one turn after the other, or, in a simulation, whoever holds its [`Turns`].
//!
//! M1: it looks for an order and for commands before each delivery; a cursor exists only
//!     between `start` and the revoke of an owned partition, or the stop of an unshared one (L1).
//! M2: what is revoked is given back to the coordinator only after the engine has dropped `done` (L3).
//! M3: its thread waits for the bell and for the engine alone: no polling, no sleeping (E3).

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, TryRecvError};

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
    /// Joins the group; a thread of its own begins at once.
    pub(super) fn join(shared: Arc<Shared>, join: Join, sink: EventSink) -> Result<EmbeddedMember, LogError> {
        let name = join.client_id.chars().filter(|letter| *letter != '\0').collect();
        let (member, turns) = EmbeddedMember::join_stepped(shared, join, sink);
        let thread = std::thread::Builder::new().name(name).spawn(move || turns.run());
        let thread =
            thread.map_err(|error| LogError::Fatal(format!("cannot start a thread for the member: {error}")))?;
        *member.thread.lock().expect("nobody has it yet") = Some(thread);
        Ok(member)
    }

    /// Joins the group; nothing happens but in turns.
    pub(super) fn join_stepped(shared: Arc<Shared>, join: Join, sink: EventSink) -> (EmbeddedMember, Turns) {
        let desk = Arc::new(Desk { shared, commands: Mutex::default(), leaving: AtomicBool::new(false) });
        let mut turns = Turns {
            desk: Arc::clone(&desk),
            id: String::new(),
            join,
            sink,
            owned: BTreeSet::new(),
            giving_back: None,
            changes_seen: 0,
            cursors: VecDeque::new(),
        };
        turns.enter();
        (EmbeddedMember { desk, thread: Mutex::default() }, turns)
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

/// What came of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Something was done; there may be more.
    Done,
    /// There is nothing to do before something changes.
    Idle,
    /// The engine has been told of partitions that go, and has not answered.
    Waits,
    /// The member has left.
    Left,
}

/// All that a member does, one thing at a time.
pub struct Turns {
    desk: Arc<Desk>,
    /// This membership's own; a new one after an expulsion.
    id: String,
    join: Join,
    sink: EventSink,
    owned: BTreeSet<TopicPartition>,
    giving_back: Option<GivingBack>,
    /// Up to here there are no orders: the coordinator's lock is not taken for each delivery.
    changes_seen: u64,
    /// In the order in which they are served.
    cursors: VecDeque<Cursor>,
}

/// Partitions that the engine has been told to give back.
struct GivingBack {
    /// An error says that it was dropped: done, too.
    is_done: Receiver<()>,
    then: Then,
}

/// What follows when the engine has answered.
enum Then {
    Tell(Vec<TopicPartition>),
    JoinAnew,
    Leave,
}

struct Cursor {
    of: TopicPartition,
    place: Place,
    position: i64,
    epoch: u64,
    paused: bool,
    with_headers: bool,
}

impl Turns {
    fn run(mut self) {
        loop {
            let seen = self.desk.shared.bell.count();
            match self.turn() {
                Turn::Done => {}
                Turn::Idle => self.desk.shared.bell.wait(seen),
                Turn::Waits => {
                    let GivingBack { is_done, then } = self.giving_back.take().expect("it waits for an answer");
                    is_done.recv().ok();
                    if self.given_back(then) == Turn::Left {
                        return;
                    }
                }
                Turn::Left => return,
            }
        }
    }

    /// Does the next thing, if there is one.
    pub fn turn(&mut self) -> Turn {
        if let Some(GivingBack { is_done, then }) = self.giving_back.take() {
            if is_done.try_recv() == Err(TryRecvError::Empty) {
                self.giving_back = Some(GivingBack { is_done, then });
                return Turn::Waits;
            }
            return self.given_back(then);
        }
        if self.desk.leaving.load(Ordering::SeqCst) {
            let expelled = !self.desk.shared.is_member(&self.join.group, &self.id);
            return self.give_back(self.owned.iter().cloned().collect(), expelled, Then::Leave);
        }
        self.take_commands();
        match self.carry_out_order() {
            Turn::Idle if self.deliver() => Turn::Done,
            turn => turn,
        }
    }

    fn enter(&mut self) {
        self.id = format!("{}-{}", self.join.client_id, self.desk.shared.memberships.fetch_add(1, Ordering::SeqCst));
        self.desk.shared.enter_group(&self.join.group, &self.id, &self.join.topics);
    }

    fn carry_out_order(&mut self) -> Turn {
        let shared = Arc::clone(&self.desk.shared);
        let changes = shared.group_changes.load(Ordering::SeqCst);
        if changes == self.changes_seen {
            return Turn::Idle;
        }
        match shared.next_order(&self.join.group, &self.id) {
            Err(Expelled) => self.give_back(self.owned.iter().cloned().collect(), true, Then::JoinAnew),
            Ok(None) => {
                self.changes_seen = changes;
                Turn::Idle
            }
            Ok(Some(Order::Revoke(partitions))) => self.give_back(partitions.clone(), false, Then::Tell(partitions)),
            Ok(Some(Order::Assign(partitions, generation))) => {
                self.owned.extend(partitions.iter().cloned());
                let row = MembershipRow { group: self.join.group.clone(), member: self.id.clone(), generation };
                (self.sink)(MemberEvent::Assigned { partitions, membership: Membership(row.encode()) });
                Turn::Done
            }
        }
    }

    /// Tells the engine, which is then waited for (M2).
    fn give_back(&mut self, partitions: Vec<TopicPartition>, lost: bool, then: Then) -> Turn {
        if partitions.is_empty() {
            return self.given_back(then);
        }
        self.owned.retain(|owned| !partitions.contains(owned));
        self.cursors.retain(|cursor| !partitions.contains(&cursor.of));
        let (done, is_done) = crossbeam_channel::bounded(1);
        (self.sink)(MemberEvent::Revoked { partitions, lost, done });
        self.giving_back = Some(GivingBack { is_done, then });
        Turn::Waits
    }

    fn given_back(&mut self, then: Then) -> Turn {
        match then {
            Then::Tell(partitions) => self.desk.shared.given_back(&self.join.group, &self.id, &partitions),
            Then::JoinAnew => self.enter(),
            Then::Leave => return Turn::Left,
        }
        Turn::Done
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

impl Drop for Turns {
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
