//! What an instance tells the doors.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::entry::Entry;
use crate::stamp::Stamp;
use crate::task::queue::Doing;

/// A task's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// The last owner's transaction is being ended, the partition claimed and its state restored.
    Restoring,
    /// Events are processed.
    Running,
    /// It is given back.
    Closing,
}

impl TaskState {
    /// As the doors show it.
    pub fn as_str(self) -> &'static str {
        match self {
            TaskState::Restoring => "restoring",
            TaskState::Running => "running",
            TaskState::Closing => "closing",
        }
    }
}

/// One task (a partition of the repartition topic) or one source partition.
#[derive(Clone, Debug)]
pub struct TaskStatus {
    /// `source` or `task`.
    pub role: &'static str,
    /// The topic that it reads.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: i32,
    /// Which of the instance's engine threads has it, from 1.
    pub thread: usize,
    /// Where it is in its life.
    pub state: TaskState,
    /// The next offset to read.
    pub position: i64,
    /// The position last committed.
    pub committed: i64,
    /// Records between the committed position and the partition's end, where the end is known.
    pub lag: Option<i64>,
    /// Handler calls running.
    pub in_flight: usize,
    /// Events read, waiting for their turn, their key or their retry.
    pub waiting: usize,
    /// The age of the oldest event that is read and not done, in milliseconds.
    pub oldest_age_ms: u64,
    /// Changelog records still to be restored.
    pub restore_remaining: Option<i64>,
}

/// The restores that are under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restores {
    /// Partitions that are not ready yet.
    pub partitions: usize,
    /// Changelog records read since the first of them began.
    pub restored: i64,
    /// Changelog records still to be read, of the partitions that have been looked at.
    pub remaining: i64,
    /// Changelog records read in a second, as of the last seconds; `None` = nothing is known yet.
    pub per_second: Option<u64>,
    /// How long it will take; `None` where that cannot be told.
    pub eta: Option<Duration>,
}

impl std::fmt::Display for Restores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Restores { partitions, remaining, .. } = self;
        write!(f, "{partitions} partitions, {remaining} changelog records left")?;
        self.eta.map_or(Ok(()), |eta| write!(f, ", about {}", humantime::format_duration(eta)))
    }
}

impl TaskStatus {
    /// One of thread 1 that has read nothing yet.
    pub fn new(role: &'static str, topic: Arc<str>, partition: i32, state: TaskState) -> TaskStatus {
        TaskStatus {
            role,
            topic,
            partition,
            thread: 1,
            state,
            position: 0,
            committed: 0,
            lag: None,
            in_flight: 0,
            waiting: 0,
            oldest_age_ms: 0,
            restore_remaining: None,
        }
    }
}

/// The instance as a whole.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// `application.id`
    pub application: String,
    /// `application.instance_id`
    pub instance: String,
    /// `starting`, `rebalancing`, `restoring`, `running`, `stopping` or `failed`.
    pub state: &'static str,
    /// Partitions of the repartition topic that this instance owns.
    pub partitions: Vec<i32>,
    /// Tasks and source partitions.
    pub tasks: Vec<TaskStatus>,
    /// What is wrong, for people, with the next step; empty = ready.
    pub troubles: Vec<String>,
    /// Bytes read and not committed.
    pub buffered_bytes: usize,
    /// What is being restored; `None` = nothing.
    pub restores: Option<Restores>,
}

/// One event that is running or waits for its retry.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// Its key.
    pub key: Bytes,
    /// Its stamp, as text.
    pub stamp: String,
    /// 1 for the first try.
    pub attempt: u32,
    /// Since it was read, in milliseconds.
    pub age_ms: u64,
    /// What the last try said.
    pub last_error: Option<String>,
}

/// One pending event of a cascade.
#[derive(Clone, Debug)]
pub struct Place {
    /// The partition of its key.
    pub partition: i32,
    /// Its key.
    pub key: Bytes,
    /// Its stamp.
    pub stamp: Stamp,
    /// 0: the original cascade; n: the n-th retry of a dead letter.
    pub retry: u32,
    /// What it does.
    pub doing: Doing,
    /// The current or next try, from 1.
    pub attempt: u32,
    /// Since it was read, in milliseconds.
    pub age_ms: u64,
    /// What the last try said.
    pub last_error: Option<String>,
}

/// Where pending events of a cascade are, on one instance.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// The partitions that this is of.
    pub partitions: BTreeSet<i32>,
    /// Those that make it wait first.
    pub places: Vec<Place>,
}

impl Places {
    /// Both together, with at most `limit` places.
    pub fn and(mut self, more: Places, limit: usize) -> Places {
        self.partitions.extend(more.partitions);
        self.places.extend(more.places);
        self.places.sort_by(|a, b| (a.doing, &a.stamp).cmp(&(b.doing, &b.stamp)));
        self.places.truncate(limit);
        self
    }
}

/// The answer to a question for one key.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// This instance owns the key; `None` = the key is unknown.
    Here {
        /// The key's partition.
        partition: i32,
        /// What it holds, committed.
        entry: Option<Entry>,
    },
    /// Another instance owns it.
    Elsewhere {
        /// The key's partition.
        partition: i32,
    },
    /// This instance owns the partition but cannot answer now, with the reason.
    NotReady {
        /// The key's partition.
        partition: i32,
        /// Why.
        reason: String,
    },
}

/// One key with what it holds.
#[derive(Clone, Debug)]
pub struct KeyEntry {
    /// The key.
    pub key: Bytes,
    /// What it holds.
    pub entry: Entry,
    /// Its partition.
    pub partition: i32,
}

/// A page of keys, in byte order, of the partitions that this instance owns.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// At most as many as asked for.
    pub entries: Vec<KeyEntry>,
    /// Pass it as `after` for the next page; `None` = there is no more.
    pub next: Option<Bytes>,
    /// The partitions that this is of: all of those asked for that this instance answers for.
    pub partitions: BTreeSet<i32>,
}

/// Which keys to list.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// Only keys that begin with it.
    pub prefix: Bytes,
    /// Only keys above it, exclusive.
    pub after: Option<Bytes>,
    /// At most this many, 1 to 1000.
    pub limit: usize,
    /// Also removed keys whose marker lives.
    pub removed: bool,
    /// Only of these partitions; `None` = of all.
    pub partitions: Option<BTreeSet<i32>>,
}

impl ListQuery {
    /// Whether a key may be in the page.
    pub fn is_about(&self, key: &Bytes) -> bool {
        key.starts_with(&self.prefix) && self.after.as_ref().is_none_or(|after| key > after)
    }
}

/// What an engine has committed since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Source records that the sequencer has read.
    pub sequenced: u64,
    /// Those of them that became dead letters.
    pub refused_records: u64,
    /// Events of the repartition topic that tasks have processed, whatever came of them.
    pub processed: u64,
    /// Those of them, and children, that became dead letters.
    pub refused_events: u64,
    /// Children on the repartition topic.
    pub children: u64,
    /// Entries in the changelog.
    pub entries: u64,
}

impl Totals {
    /// Both together.
    pub fn add(&mut self, more: &Totals) {
        self.sequenced += more.sequenced;
        self.refused_records += more.refused_records;
        self.processed += more.processed;
        self.refused_events += more.refused_events;
        self.children += more.children;
        self.entries += more.entries;
    }
}

/// What has flowed through an instance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flow {
    /// Since its start.
    pub totals: Totals,
    /// The totals of some seconds ago, and how long ago that was; `None` just after the start.
    pub before: Option<(Totals, Duration)>,
}
