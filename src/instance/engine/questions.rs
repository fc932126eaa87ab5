//! What the doors ask an engine thread, answered between two inputs.
//!
//! D1: what the transaction under way may have changed already, as others see it, is told once that is decided:
//!     no answer is older than what is told to be settled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Accepted, Engine, Wish};
use crate::entry::Entry;
use crate::instance::calls::Calls;
use crate::instance::view::{InFlight, ListQuery, Place, Places, Restores, TaskState, TaskStatus, Totals};
use crate::log::TopicPartition;
use crate::planted::{self, Bug};
use crate::store::Store;
use crate::task::Task;
use crate::task::queue::Doing;
use crate::topics::partition_of;

/// The most entries above a store that one listing takes along; more than a page has.
const LISTED_ABOVE: usize = 1024;

/// A question; the answer goes to the sender. A dropped sender means that the engine is gone.
#[derive(Debug)]
pub enum Question {
    /// What a key holds, committed.
    Lookup(Bytes, oneshot::Sender<Answered>),
    /// The committed entries that match and may not be in the stores yet, and the stores below them; or why
    /// there is no answer now.
    List(ListQuery, oneshot::Sender<Result<Vec<Listing>, String>>),
    /// What runs or waits for its retry.
    InFlight(usize, oneshot::Sender<Vec<InFlight>>),
    /// Where the pending events of a root's cascades are, at most so many.
    Places(u64, usize, oneshot::Sender<Places>),
    /// Send these dead letters of one partition again; answered when that is committed.
    Retry(i32, Vec<Wish>, oneshot::Sender<Accepted>),
    /// Everything that the status page shows.
    Status(oneshot::Sender<ThreadStatus>),
}

/// The answer for one key.
#[derive(Debug)]
pub enum Answered {
    /// The key holds this, or nothing any more, and it is not in the store yet.
    Entry(Option<Entry>),
    /// Only the store can tell: the asker reads it, so that the engine does not wait for a disk.
    AskStore(Arc<Store>),
    /// The partition is being opened or given back, or the whole engine may not answer now; the reason.
    NotReady(String),
    /// The partition is not here.
    NotHere,
}

/// One partition's part of a listing.
#[derive(Debug)]
pub struct Listing {
    /// The partition.
    pub partition: i32,
    /// Entries and tombstones above the store; they hide what is in it.
    pub above: BTreeMap<Bytes, Option<Entry>>,
    /// `above` ends here although there is more: nothing beyond this key can be told from it.
    pub cut: Option<Bytes>,
    /// The store.
    pub store: Arc<Store>,
}

/// The state of one engine thread.
#[derive(Clone, Debug, Default)]
pub struct ThreadStatus {
    /// Tasks and source partitions.
    pub tasks: Vec<TaskStatus>,
    /// What is wrong.
    pub troubles: Vec<String>,
    /// Bytes read and not committed.
    pub buffered_bytes: usize,
    /// The group has answered at least once.
    pub joined: bool,
    /// Handler calls running.
    pub running: usize,
    /// Entries and bytes in the stores, roughly.
    pub store_size: (u64, u64),
    /// What it has committed.
    pub totals: Totals,
    /// What is being restored: of all threads together, by who has looked at them for a while.
    pub restores: Option<Restores>,
}

impl<C: Calls> Engine<C> {
    pub(super) fn question(&mut self, question: Question, now: Instant) {
        // A door that no longer waits for its answer is no error.
        match question {
            question if self.is_undecided(&question) => self.parked.push(question),
            Question::Lookup(key, answer) => drop(answer.send(self.lookup(&key))),
            Question::List(query, answer) => drop(answer.send(self.list(&query))),
            Question::InFlight(limit, answer) => drop(answer.send(self.in_flight(limit, now))),
            Question::Places(root, limit, answer) => drop(answer.send(self.places(root, limit, now))),
            Question::Retry(partition, wishes, answer) => self.accept(partition, wishes, answer),
            Question::Status(answer) => drop(answer.send(self.status(now))),
        }
    }

    /// D1. Or the next transaction is full.
    fn is_undecided(&self, question: &Question) -> bool {
        match question {
            Question::Lookup(..) if planted::is(Bug::AnsweredUndecided) => false,
            Question::Lookup(key, _) => self.tasks.values().any(|task| task.overlay.is_key_undecided(key)),
            Question::List(query, _) => {
                self.tasks.values().any(|task| task.overlay.is_undecided(|key| query.is_about(key)))
            }
            Question::Retry(..) => !self.has_room_for_retries(),
            Question::InFlight(..) | Question::Places(..) | Question::Status(_) => false,
        }
    }

    /// The transaction under way is decided: what waited for it is answered.
    pub(super) fn answer_parked(&mut self, now: Instant) {
        for question in std::mem::take(&mut self.parked) {
            self.question(question, now);
        }
    }

    fn lookup(&self, key: &Bytes) -> Answered {
        let partition = partition_of(key, self.setting.config.processing.partitions);
        let Some(task) = self.tasks.get(&partition) else {
            let of = TopicPartition::new(&self.setting.topics.repartition, partition);
            let Some(opening) = self.opening.get(&of) else { return Answered::NotHere };
            let why = opening.why.as_ref().map(|why| format!(", because {why}"));
            return Answered::NotReady(format!("it is being restored{}", why.unwrap_or_default()));
        };
        if let Some(reason) = self.awake.doubt() {
            return Answered::NotReady(reason);
        }
        match task.overlay.committed_above(key) {
            _ if task.closing => Answered::NotReady(match self.disk.why(partition) {
                Some(why) => format!("it is to be restored, because {why}"),
                None => "it is being given back".into(),
            }),
            Some(entry) => Answered::Entry(entry.cloned()),
            None => Answered::AskStore(Arc::clone(task.overlay.store())),
        }
    }

    fn list(&self, query: &ListQuery) -> Result<Vec<Listing>, String> {
        if let Some(reason) = self.awake.doubt() {
            return Err(reason);
        }
        let wanted = |partition: &i32| query.partitions.as_ref().is_none_or(|wanted| wanted.contains(partition));
        let matches = |key: &Bytes| query.is_about(key);
        let tasks = self.tasks.iter().filter(|(partition, task)| !task.closing && wanted(partition));
        let listing = |(partition, task): (&i32, &Task)| {
            let above = task.overlay.first_above_store(LISTED_ABOVE, matches);
            let cut = (above.len() == LISTED_ABOVE).then(|| above.last_key_value().map(|(key, _)| key.clone()));
            Listing { partition: *partition, above, cut: cut.flatten(), store: Arc::clone(task.overlay.store()) }
        };
        Ok(tasks.map(listing).collect())
    }

    fn in_flight(&self, limit: usize, now: Instant) -> Vec<InFlight> {
        let mut held: Vec<_> = self.tasks.values().flat_map(|task| task.queue.held()).collect();
        held.sort_by_key(|queued| queued.read_at);
        let tell = |queued: &&crate::task::queue::Queued| InFlight {
            key: queued.event.event.key.clone(),
            stamp: queued.event.stamp.to_string(),
            attempt: queued.attempt,
            age_ms: now.saturating_duration_since(queued.read_at).as_millis() as u64,
            last_error: queued.last_error.clone(),
        };
        held.iter().take(limit).map(tell).collect()
    }

    fn places(&self, root: u64, limit: usize, now: Instant) -> Places {
        let mut found = Places::default();
        for (partition, task) in &self.tasks {
            found.partitions.insert(*partition);
            let beginning = task.beginning.values().map(|(queued, _)| (Doing::Waiting, queued));
            let all = task.queue.all().chain(beginning);
            let of_root = all.filter(|(_, queued)| queued.event.stamp.sequence == root);
            found.places.extend(of_root.map(|(doing, queued)| Place {
                partition: *partition,
                key: queued.event.event.key.clone(),
                stamp: queued.event.stamp.clone(),
                retry: queued.event.retry,
                doing,
                attempt: queued.attempt,
                age_ms: now.saturating_duration_since(queued.read_at).as_millis() as u64,
                last_error: queued.last_error.clone(),
            }));
        }
        found.and(Places::default(), limit)
    }

    fn status(&self, now: Instant) -> ThreadStatus {
        let repartition = &self.setting.topics.repartition;
        let mut tasks = Vec::new();
        for (of, slot) in &self.sources {
            let mut status = self.blank("source", of.topic.clone(), of.partition, TaskState::Running);
            (status.position, status.committed) = (slot.source.position, slot.source.committed);
            tasks.push(status);
        }
        for (of, opening) in &self.opening {
            let role = if of.topic == *repartition { "task" } else { "source" };
            let mut status = self.blank(role, of.topic.clone(), of.partition, TaskState::Restoring);
            status.restore_remaining = opening.remaining;
            tasks.push(status);
        }
        let mut store_size = (0, 0);
        for (partition, task) in &self.tasks {
            let state = if task.closing { TaskState::Closing } else { TaskState::Running };
            let mut status = self.blank("task", repartition.clone(), *partition, state);
            (status.position, status.committed) = (task.position, task.committed);
            status.in_flight = task.queue.running();
            status.waiting = task.queue.len() - task.queue.running() + task.beginning.len();
            let oldest = task.oldest().map(|read_at| now.saturating_duration_since(read_at));
            status.oldest_age_ms = oldest.unwrap_or_default().as_millis() as u64;
            tasks.push(status);
            let (entries, bytes) = task.overlay.store().size();
            store_size = (store_size.0 + entries, store_size.1 + bytes);
        }
        ThreadStatus {
            tasks,
            troubles: self.troubles.values().collect::<BTreeSet<_>>().into_iter().cloned().collect(),
            buffered_bytes: self.buffered + self.composing.outbox.bytes,
            joined: self.membership.is_some(),
            running: self.running,
            store_size,
            totals: self.totals,
            restores: None,
        }
    }

    fn blank(&self, role: &'static str, topic: Arc<str>, partition: i32, state: TaskState) -> TaskStatus {
        TaskStatus { thread: self.setting.thread, ..TaskStatus::new(role, topic, partition, state) }
    }
}
