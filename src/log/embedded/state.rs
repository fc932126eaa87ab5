//! What the log holds in memory, and how it is read from the folder.
//!
//! E4: whoever writes holds the lock on [`Core`] from the first check to the moment when what it
//!     wrote is told to readers; so checks (generation, producer, undecided) cannot go stale.
//! E5: a partition's `end` and `stable` are raised only after the entries below them are written:
//!     who reads `stable` and then the entries finds every decided record below it.
//! E6: `low` is raised before the entries below it are deleted: who opens an iterator, and then
//!     still finds its position at or above `low`, misses nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use crossbeam_channel::Sender;
use rocksdb::{DB, Range};

use super::batch::Header;
use super::bell::Bell;
use super::folder::Folder;
use super::group::Group;
use super::schema::{self, PartitionRow, Slot, TopicRow, TransactionRow};
use super::{EmbeddedOptions, failed};
use crate::log::{LogError, TopicPartition};

/// All of an open log. Members, readers and producers share it; the last one closes the folder.
pub(super) struct Shared {
    pub db: DB,
    pub options: EmbeddedOptions,
    pub bell: Bell,
    topics: RwLock<Topics>,
    aborted: RwLock<Arc<HashSet<u64>>>,
    core: Mutex<Core>,
    /// Counts the memberships that there were since the log was opened.
    pub memberships: AtomicU64,
    /// Counts what members may have to look at; starts at 1.
    pub group_changes: AtomicU64,
    /// Asks for a compaction; none when the log is only read.
    pub compaction: Option<Sender<()>>,
    /// One compaction at a time.
    pub compacting: Mutex<()>,
    /// The log is being dropped: background work ends.
    pub closing: AtomicBool,
    /// Another process writes: everything is read again before it is told.
    pub beside: bool,
    /// Behind `db`: the folder is given free once RocksDB has closed its files.
    pub folder: Folder,
}

#[derive(Default)]
struct Topics {
    by_name: HashMap<Arc<str>, Arc<Topic>>,
    by_number: HashMap<u32, Arc<Topic>>,
}

/// What only writers and the group coordinator need (E4).
#[derive(Default)]
pub(super) struct Core {
    /// The epoch of the living holder of each transactional id.
    pub producers: HashMap<String, u64>,
    /// Undecided ones, and aborted ones whose records are still there.
    pub transactions: BTreeMap<u64, TransactionRow>,
    pub last_transaction: u64,
    pub last_topic: u32,
    pub groups: HashMap<String, Group>,
}

/// A topic.
pub(super) struct Topic {
    pub name: Arc<str>,
    pub row: TopicRow,
    pub compacted: bool,
    pub delete_retention_ms: i64,
    pub max_message_bytes: i64,
    /// Set before its entries go.
    pub deleted: AtomicBool,
    pub partitions: Vec<Partition>,
}

/// A partition's ends; written under the lock on [`Core`], read by everyone.
pub(super) struct Partition {
    pub slot: Slot,
    pub low: AtomicI64,
    /// The next offset to be given.
    pub end: AtomicI64,
    /// The first offset of the first undecided transaction, or `end`.
    pub stable: AtomicI64,
    /// Compaction has been up to here.
    pub clean: AtomicI64,
    /// Roughly what compaction left below `clean`.
    pub clean_bytes: AtomicU64,
    /// Roughly what stands from `clean` on.
    pub dirty_bytes: AtomicU64,
}

impl Partition {
    fn new(slot: Slot) -> Partition {
        Partition {
            slot,
            low: AtomicI64::new(0),
            end: AtomicI64::new(0),
            stable: AtomicI64::new(0),
            clean: AtomicI64::new(0),
            clean_bytes: AtomicU64::new(0),
            dirty_bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn low(&self) -> i64 {
        self.low.load(Ordering::SeqCst)
    }

    pub(super) fn end(&self) -> i64 {
        self.end.load(Ordering::SeqCst)
    }

    pub(super) fn stable(&self) -> i64 {
        self.stable.load(Ordering::SeqCst)
    }

    pub(super) fn row(&self) -> PartitionRow {
        PartitionRow { low: self.low(), clean: self.clean.load(Ordering::SeqCst) }
    }
}

impl Topic {
    pub(super) fn new(name: Arc<str>, row: TopicRow) -> Topic {
        let number = |key: &str, default| setting(&row, key).and_then(|text| text.parse().ok()).unwrap_or(default);
        Topic {
            compacted: setting(&row, "cleanup.policy").is_some_and(|policy| policy.contains("compact")),
            delete_retention_ms: number("delete.retention.ms", 86_400_000),
            max_message_bytes: number("max.message.bytes", 1_048_588),
            deleted: AtomicBool::new(false),
            partitions: (0..row.partitions)
                .map(|partition| Partition::new(Slot { topic: row.number, partition }))
                .collect(),
            name,
            row,
        }
    }

    pub(super) fn policy(&self) -> &str {
        setting(&self.row, "cleanup.policy").unwrap_or("delete")
    }

    pub(super) fn at(&self, partition: usize) -> TopicPartition {
        TopicPartition::new(&self.name, partition as i32)
    }
}

fn setting<'a>(row: &'a TopicRow, key: &str) -> Option<&'a str> {
    row.settings.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

/// A partition of a topic that exists.
#[derive(Clone)]
pub(super) struct Place {
    pub topic: Arc<Topic>,
    pub partition: usize,
}

impl Place {
    pub(super) fn get(&self) -> &Partition {
        &self.topic.partitions[self.partition]
    }

    pub(super) fn name(&self) -> TopicPartition {
        self.topic.at(self.partition)
    }
}

impl Core {
    pub(super) fn undecided(&self) -> impl Iterator<Item = (&u64, &TransactionRow)> {
        self.transactions.iter().filter(|(_, row)| !row.aborted)
    }

    /// The first offset of an undecided transaction in the partition.
    pub(super) fn first_undecided(&self, slot: Slot) -> Option<i64> {
        let spans = self.undecided().flat_map(|(_, row)| &row.spans);
        spans.filter(|span| span.slot == slot).map(|span| span.first).min()
    }
}

impl Shared {
    pub(super) fn new(
        db: DB,
        options: EmbeddedOptions,
        folder: Folder,
        compaction: Option<Sender<()>>,
    ) -> Result<Shared, LogError> {
        let shared = Shared {
            db,
            options,
            bell: Bell::default(),
            topics: RwLock::default(),
            aborted: RwLock::default(),
            core: Mutex::default(),
            memberships: AtomicU64::new(1),
            group_changes: AtomicU64::new(1),
            beside: compaction.is_none(),
            compaction,
            compacting: Mutex::default(),
            closing: AtomicBool::new(false),
            folder,
        };
        shared.load(&mut shared.core())?;
        Ok(shared)
    }

    /// The lock that everyone holds who writes (E4).
    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().expect("a panic while the log was being written: its state in memory cannot be trusted")
    }

    /// Beside a writer: takes in what it has written since.
    pub(super) fn catch_up(&self) -> Result<(), LogError> {
        if !self.beside {
            return Ok(());
        }
        // Under the lock: two that catch up at once would mix two states.
        let mut core = self.core();
        self.db.try_catch_up_with_primary().map_err(failed)?;
        self.load(&mut core)
    }

    /// Refuses to write beside a writer.
    pub(super) fn writable(&self) -> Result<(), LogError> {
        match self.beside {
            true => Err(LogError::Refused(format!("the log in {} is open read-only", self.folder))),
            false => Ok(()),
        }
    }

    pub(super) fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.read().expect("filling a map does not panic").by_name.get(name).cloned()
    }

    pub(super) fn topic_numbered(&self, number: u32) -> Option<Arc<Topic>> {
        self.topics.read().expect("filling a map does not panic").by_number.get(&number).cloned()
    }

    pub(super) fn all_topics(&self) -> Vec<Arc<Topic>> {
        self.topics.read().expect("filling a map does not panic").by_number.values().cloned().collect()
    }

    pub(super) fn add_topic(&self, topic: Topic) {
        let mut topics = self.topics.write().expect("filling a map does not panic");
        let topic = Arc::new(topic);
        topics.by_number.insert(topic.row.number, Arc::clone(&topic));
        topics.by_name.insert(Arc::clone(&topic.name), topic);
    }

    pub(super) fn place(&self, of: &TopicPartition) -> Result<Place, LogError> {
        let topic = self.topic(&of.topic).ok_or_else(|| LogError::UnknownTopic(of.to_string()))?;
        match usize::try_from(of.partition) {
            Ok(partition) if partition < topic.partitions.len() => Ok(Place { topic, partition }),
            _ => Err(LogError::UnknownTopic(of.to_string())),
        }
    }

    /// The place of a slot; none when its topic is gone.
    pub(super) fn place_of(&self, slot: Slot) -> Option<Place> {
        let topic = self.topic_numbered(slot.topic)?;
        Some(Place { topic, partition: slot.partition as usize })
    }

    pub(super) fn aborted(&self) -> Arc<HashSet<u64>> {
        Arc::clone(&self.aborted.read().expect("replacing a pointer does not panic"))
    }

    /// Tells readers which transactions are aborted; before `stable` passes them.
    pub(super) fn publish_aborted(&self, core: &Core) {
        let aborted = core.transactions.iter().filter(|(_, row)| row.aborted).map(|(number, _)| *number).collect();
        *self.aborted.write().expect("replacing a pointer does not panic") = Arc::new(aborted);
    }

    /// Sets a partition's ends after a write (E5).
    pub(super) fn publish_end(&self, core: &Core, partition: &Partition, end: i64) {
        partition.end.store(end, Ordering::SeqCst);
        let stable = core.first_undecided(partition.slot).unwrap_or(end);
        partition.stable.store(stable, Ordering::SeqCst);
    }

    fn load(&self, core: &mut Core) -> Result<(), LogError> {
        core.transactions.clear();
        self.scan(schema::TRANSACTIONS, |key, value| {
            let number = u64::from_be_bytes(key.try_into().ok()?);
            core.transactions.insert(number, schema::decode_row(value)?);
            Some(())
        })?;
        core.last_transaction = self.counter(schema::LAST_TRANSACTION)?;
        core.last_topic = u32::try_from(self.counter(schema::LAST_TOPIC)?).map_err(|_| self.corrupt("topic number"))?;
        let mut rows: Vec<(Arc<str>, TopicRow)> = Vec::new();
        self.scan(schema::TOPICS, |key, value| {
            rows.push((std::str::from_utf8(key).ok()?.into(), schema::decode_row(value)?));
            Some(())
        })?;
        self.publish_aborted(core);
        self.forget_topics_but(&rows.iter().map(|(_, row)| row.number).collect());
        for (name, row) in rows {
            let number = row.number;
            if self.topic_numbered(number).is_none() {
                self.add_topic(Topic::new(name, row));
            }
            let topic = self.topic_numbered(number).expect("it has just been added");
            for partition in &topic.partitions {
                self.load_partition(core, topic.compacted, partition)?;
            }
        }
        Ok(())
    }

    fn counter(&self, key: &[u8]) -> Result<u64, LogError> {
        let value = self.db.get_pinned(key).map_err(failed)?;
        let number = value.map(|value| Some(u64::from_be_bytes(value.as_ref().try_into().ok()?)));
        number.unwrap_or(Some(0)).ok_or_else(|| self.corrupt("counter"))
    }

    pub(super) fn forget_topics_but(&self, numbers: &BTreeSet<u32>) {
        let mut topics = self.topics.write().expect("filling a map does not panic");
        for gone in topics.by_number.values().filter(|topic| !numbers.contains(&topic.row.number)) {
            gone.deleted.store(true, Ordering::SeqCst);
        }
        topics.by_number.retain(|number, _| numbers.contains(number));
        topics.by_name.retain(|_, topic| numbers.contains(&topic.row.number));
    }

    fn load_partition(&self, core: &Core, compacted: bool, partition: &Partition) -> Result<(), LogError> {
        let row = self.db.get_pinned(schema::partition(partition.slot)).map_err(failed)?;
        let row = match row {
            Some(row) => PartitionRow::decode(&row).ok_or_else(|| self.corrupt("partition"))?,
            None => PartitionRow::default(),
        };
        partition.low.store(row.low, Ordering::SeqCst);
        partition.clean.store(row.clean, Ordering::SeqCst);
        let mut batches = self.db.raw_iterator();
        batches.seek_for_prev(schema::batches_end(partition.slot));
        let last = batches.item().and_then(|(key, value)| Some((schema::base_of(key, partition.slot)?, value)));
        let end = match last {
            Some((base, value)) => {
                let header = Header::read(value).map_err(|_| self.corrupt("batch"))?;
                base + i64::from(header.last_delta) + 1
            }
            None => 0,
        };
        batches.status().map_err(failed)?;
        self.publish_end(core, partition, end.max(row.low));
        if compacted && !self.beside {
            // What has just been recovered from the write-ahead log is in files, too: an estimate is enough.
            let [start, clean] = [0, row.clean].map(|base| schema::batch(partition.slot, base));
            let end = schema::batches_end(partition.slot);
            let sizes = self.db.get_approximate_sizes(&[Range::new(&start, &clean), Range::new(&clean, &end)]);
            partition.clean_bytes.store(sizes[0], Ordering::Relaxed);
            partition.dirty_bytes.store(sizes[1], Ordering::Relaxed);
        }
        Ok(())
    }

    /// Calls `take` with every key below `prefix`, without it; `None` says that the row is malformed.
    pub(super) fn scan(&self, prefix: &[u8], mut take: impl FnMut(&[u8], &[u8]) -> Option<()>) -> Result<(), LogError> {
        let mut rows = self.db.raw_iterator();
        rows.seek(prefix);
        while let Some((key, value)) = rows.item() {
            let Some(key) = key.strip_prefix(prefix) else { break };
            take(key, value).ok_or_else(|| self.corrupt("row"))?;
            rows.next();
        }
        rows.status().map_err(failed)
    }

    pub(super) fn corrupt(&self, what: &str) -> LogError {
        LogError::Fatal(format!(
            "the log in {} holds a {what} that this version cannot read: the folder is damaged or was written by a newer version",
            self.folder
        ))
    }
}
