//! What an instance tells the doors.

use std::sync::Arc;

use bytes::Bytes;

use crate::entry::Entry;

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
        /// Where its owner answers, when that is known.
        owner: Option<String>,
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
}
