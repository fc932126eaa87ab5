//! The embedded log: durable, partitioned and transactional, in a local folder, for one machine.
//!
//! It keeps to the port's contract as a broker does, in one process, on RocksDB with its
//! write-ahead log. Other processes may read beside the owner.
//!
//! | file             | what it owns                                                      |
//! | ---------------- | ----------------------------------------------------------------- |
//! | `folder.rs`      | the folder, its lock and its id (E8)                              |
//! | `schema.rs`      | keys and small values (E1)                                        |
//! | `batch.rs`       | the codec of runs of records (E2)                                 |
//! | `bell.rs`        | waking those who wait (E3)                                        |
//! | `state.rs`       | what is in memory, and how it is loaded (E4, E5, E6)              |
//! | `read.rs`        | reading (E7)                                                      |
//! | `write.rs`       | writing (E9, E10)                                                 |
//! | `topics.rs`      | topics: made, described, purged, deleted (T1)                     |
//! | `transaction.rs` | transactions in steps (X1 to X3)                                  |
//! | `producer.rs`    | the producers: a transaction, or what needs none, in one write (X4) |
//! | `balance.rs`     | who is to have which partition                                    |
//! | `group.rs`       | the group's coordinator (G1, G2)                                  |
//! | `member.rs`      | what a member does, and its thread (M1 to M3)                     |
//! | `compaction.rs`  | the last record per key (C1 to C4)                                |

mod balance;
mod batch;
mod bell;
mod compaction;
mod folder;
mod group;
mod member;
mod producer;
mod read;
mod schema;
mod state;
mod topics;
mod transaction;
mod write;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use rocksdb::{DB, DBCompressionType, Options};

use self::folder::Folder;
use self::group::Group;
use self::member::EmbeddedMember;
pub use self::member::{Turn, Turns};
use self::producer::{EmbeddedAppender, EmbeddedProducer};
use self::read::PartitionReader;
use self::schema::MetaRow;
use self::state::{Place, Shared};
use self::write::Staged;
use super::{
    Append, Appender, Committed, EventSink, Isolation, Join, Log, LogError, Member, Membership, NewTopic, OffsetCommit,
    Producer, Reader, TopicDescription, TopicPartition, Watermarks,
};

/// How the log is kept.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Whether what was acknowledged survives a loss of power, too, at the price of an fsync for each
    /// write. Either way it survives the death of the process.
    pub sync: bool,
    /// So much is gathered in memory before it is sorted into files, in bytes; the write-ahead log takes as much room
    /// ahead.
    pub write_buffer_bytes: usize,
    /// A partition of a compacted topic is compacted when this many bytes were appended since the last
    /// time, and no less than compaction left then.
    pub compact_after_bytes: u64,
    /// The most keys that compaction holds in memory at a time, at about 40 bytes each.
    pub compact_keys: usize,
}

impl Default for EmbeddedOptions {
    fn default() -> EmbeddedOptions {
        EmbeddedOptions {
            sync: true,
            write_buffer_bytes: 64 << 20,
            compact_after_bytes: 8 << 20,
            compact_keys: 1_000_000,
        }
    }
}

/// A log in a local folder.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    compaction: Option<JoinHandle<()>>,
}

impl EmbeddedLog {
    /// Opens the log in the folder `path`, which is made when it is missing, and owns it until the log
    /// and all its members, producers and readers are dropped.
    ///
    /// # Errors
    /// [`LogError::Fatal`] when another process owns it, or it cannot be written; the message says what to do.
    pub fn open(path: impl AsRef<Path>, options: EmbeddedOptions) -> Result<EmbeddedLog, LogError> {
        let folder = Folder::own(path.as_ref())?;
        check_format(&folder, folder.format())?;
        let known = folder.id();
        let mut settings = settings();
        settings.set_write_buffer_size(options.write_buffer_bytes);
        settings.create_if_missing(known.is_none());
        let db = DB::open(&settings, folder.database())
            .map_err(|error| LogError::Fatal(format!("cannot open the log in {folder}: {error}{}", step(&error))))?;
        identify(&db, &folder, known)?;
        let (compaction, wanted) = crossbeam_channel::bounded(1);
        let shared = Arc::new(Shared::new(db, options, folder, Some(compaction))?);
        let compaction = Some(compaction::start(&shared, wanted)?);
        Ok(EmbeddedLog { shared, compaction })
    }

    /// Opens the log in the folder `path` for reading only, also while another process owns it. Every
    /// call tells what the owner has written until then.
    ///
    /// # Errors
    /// [`LogError::Fatal`] when there is no log.
    pub fn open_beside(path: impl AsRef<Path>) -> Result<EmbeddedLog, LogError> {
        let folder = Folder::beside(path.as_ref())?;
        check_format(&folder, folder.format())?;
        let scratch = folder.scratch().unwrap_or(path.as_ref()).to_owned();
        let mut settings = settings();
        // The owner deletes files that it has compacted away: all are held open.
        settings.set_max_open_files(-1);
        let db = DB::open_as_secondary(&settings, &folder.database(), &scratch)
            .map_err(|error| LogError::Fatal(format!("cannot read the log in {folder}: {error}")))?;
        let options = EmbeddedOptions::default();
        Ok(EmbeddedLog { shared: Arc::new(Shared::new(db, options, folder, None)?), compaction: None })
    }

    /// Joins a group as [`Log::join`] does, but for the thread: the member does one thing for each [`Turns::turn`],
    /// so that a simulation decides when. Its [`Member::leave`] returns at once; the turns end with [`Turn::Left`].
    pub fn join_stepped(&self, join: Join, sink: EventSink) -> Result<(Arc<dyn Member>, Turns), LogError> {
        self.shared.writable()?;
        let (member, turns) = EmbeddedMember::join_stepped(Arc::clone(&self.shared), join, sink);
        Ok((Arc::new(member), turns))
    }

    /// Begins a transaction of the transactional id that is carried out in steps; its number.
    pub fn begin(&self, transactional_id: &str) -> Result<u64, LogError> {
        self.shared.begin(transactional_id)
    }

    /// Appends records in an undecided transaction; their offsets.
    ///
    /// # Errors
    /// [`LogError::Migrated`] when the transaction is decided, by a newer holder of its id for instance.
    pub fn append_in(&self, transaction: u64, append: &Append) -> Result<Vec<i64>, LogError> {
        self.shared.append_in(transaction, append)
    }

    /// Adds positions to an undecided transaction. As on a broker, the membership is checked now only.
    pub fn offsets_in(
        &self,
        transaction: u64,
        offsets: &[OffsetCommit],
        membership: &Membership,
    ) -> Result<(), LogError> {
        self.shared.offsets_in(transaction, offsets, membership)
    }

    /// Commits or aborts an undecided transaction. Its marker takes an offset in each of its partitions.
    pub fn decide(&self, transaction: u64, commit: bool) -> Result<(), LogError> {
        self.shared.decide(transaction, commit)
    }

    /// Compacts all partitions of a compacted topic now, each up to its last stable offset.
    pub fn compact_now(&self, topic: &str) -> Result<(), LogError> {
        let topic = self.shared.topic(topic).ok_or_else(|| LogError::UnknownTopic(topic.to_owned()))?;
        if !topic.compacted {
            return Err(LogError::Refused(format!("cleanup.policy of {} is {}", topic.name, topic.policy())));
        }
        let places = (0..topic.partitions.len()).map(|partition| Place { topic: Arc::clone(&topic), partition });
        places.into_iter().try_for_each(|place| self.shared.compact(&place))
    }

    /// Deletes a topic, its records and what groups have committed for it. One of the same name that
    /// is made later has another id and begins at 0.
    pub fn delete_topic(&self, name: &str) -> Result<(), LogError> {
        self.shared.delete_topic(name)
    }

    /// The ids of a group's members, as they stand in their memberships.
    pub fn members(&self, group: &str) -> Vec<String> {
        self.shared.core().groups.get(group).map_or_else(Vec::new, Group::members)
    }

    /// Ends a membership as a broker does with a member that it has not heard of for too long: its
    /// partitions get other owners at once, it is told that they are lost, and it joins anew.
    pub fn expel(&self, group: &str, member: &str) {
        self.shared.leave_group(group, member);
    }
}

impl Drop for EmbeddedLog {
    /// Ends the background thread, so that the folder is free as soon as nobody uses the log.
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        if let Some(wake) = &self.shared.compaction {
            wake.try_send(()).ok();
        }
        // A panic of it has been reported on its own thread.
        self.compaction.take().map(JoinHandle::join);
    }
}

fn settings() -> Options {
    let mut settings = Options::default();
    settings.set_compression_type(DBCompressionType::Lz4);
    settings.set_max_write_buffer_number(4);
    settings.set_target_file_size_base(64 << 20);
    settings.set_level_zero_file_num_compaction_trigger(8);
    settings.set_level_compaction_dynamic_level_bytes(true);
    settings.set_max_background_jobs(2);
    settings.set_max_open_files(512);
    settings.set_wal_bytes_per_sync(1 << 20);
    settings.set_keep_log_file_num(2);
    settings.set_stats_dump_period_sec(0);
    settings
}

/// What is to be done about it, where that is known.
fn step(error: &rocksdb::Error) -> &'static str {
    let text = error.to_string();
    if text.contains("No space left") {
        "; make space on this disk, and start it again: nothing is lost"
    } else if text.contains("Permission denied") || text.contains("Read-only") {
        "; make it writable for this user, or name another folder as log.path"
    } else {
        ""
    }
}

/// Makes sure that the database is the one that was made in this folder, and readable.
fn identify(db: &DB, folder: &Folder, known: Option<String>) -> Result<(), LogError> {
    let meta = db.get_pinned(schema::META).map_err(failed)?;
    let meta = meta.map(|meta| {
        schema::decode_row::<MetaRow>(&meta)
            .ok_or_else(|| LogError::Fatal(format!("the log in {folder} is damaged: its first row cannot be read")))
    });
    let meta = meta.transpose()?;
    check_format(folder, meta.as_ref().map(|meta| meta.format))?;
    match (meta, known) {
        (Some(meta), Some(known)) if meta.id == known => Ok(()),
        (Some(meta), None) => folder.set_id(&meta.id),
        (None, None) => {
            let id = uuid::Uuid::new_v4().to_string();
            // A crash in between leaves a database without `log.id`, which the next open notes.
            // 1.
            db.put(schema::META, schema::encode_row(&MetaRow { format: schema::FORMAT, id: id.clone() }))
                .map_err(failed)?;
            db.flush_wal(true).map_err(failed)?;
            // 2.
            folder.set_id(&id)
        }
        (_, Some(known)) => Err(LogError::Fatal(format!(
            "the folder {folder} belongs to the log {known}, whose database is missing or was replaced: restore it, or name another folder"
        ))),
    }
}

/// A log of another format is refused; where none is told it is a new one.
fn check_format(folder: &Folder, format: Option<u32>) -> Result<(), LogError> {
    let Some(format) = format.filter(|format| *format != schema::FORMAT) else { return Ok(()) };
    Err(LogError::Fatal(format!(
        "the log in {folder} has format {format}, this version reads {}: use the version that wrote it, or another \
         folder as log.path",
        schema::FORMAT
    )))
}

/// What an error of RocksDB means for the caller.
fn failed(error: rocksdb::Error) -> LogError {
    use rocksdb::ErrorKind;
    match error.kind() {
        ErrorKind::IOError | ErrorKind::Busy | ErrorKind::TimedOut | ErrorKind::TryAgain => {
            LogError::Retriable(format!("the log's folder: {error}"))
        }
        _ => LogError::Fatal(format!("the log's folder: {error}")),
    }
}

impl Log for EmbeddedLog {
    fn join(&self, join: Join, sink: EventSink) -> Result<Arc<dyn Member>, LogError> {
        self.shared.writable()?;
        Ok(Arc::new(EmbeddedMember::join(Arc::clone(&self.shared), join, sink)?))
    }

    fn producer(&self, transactional_id: &str) -> Result<Box<dyn Producer>, LogError> {
        Ok(Box::new(EmbeddedProducer::new(Arc::clone(&self.shared), transactional_id)?))
    }

    fn appender(&self, _name: &str) -> Result<Box<dyn Appender>, LogError> {
        self.shared.writable()?;
        Ok(Box::new(EmbeddedAppender::new(Arc::clone(&self.shared))))
    }

    fn fence(&self, transactional_id: &str) -> Result<(), LogError> {
        self.shared.take_over(transactional_id).map(|_| ())
    }

    fn append(&self, append: Append) -> Result<Vec<i64>, LogError> {
        self.shared.writable()?;
        let encoded = self.shared.encode(&append, 0)?;
        let core = self.shared.core();
        let mut staged = Staged::default();
        let first = staged.records(&encoded);
        self.shared.carry_out(&core, staged)?;
        Ok((first..first + encoded.records as i64).collect())
    }

    fn reader(
        &self,
        of: &TopicPartition,
        position: i64,
        isolation: Isolation,
        headers: bool,
    ) -> Result<Box<dyn Reader>, LogError> {
        self.shared.catch_up()?;
        let place = self.shared.place(of)?;
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(PartitionReader { shared, place, position, isolation, with_headers: headers }))
    }

    fn watermarks(&self, of: &TopicPartition) -> Result<Watermarks, LogError> {
        self.shared.catch_up()?;
        let place = self.shared.place(of)?;
        Ok(Watermarks { low: place.get().low(), high: place.get().end() })
    }

    fn committed(&self, group: &str, of: &[TopicPartition], stable: bool) -> Result<Vec<Option<Committed>>, LogError> {
        self.shared.catch_up()?;
        let core = self.shared.core();
        let committed = |of: &TopicPartition| {
            let slot = self.shared.place(of)?.get().slot;
            let mut pending = core.undecided().flat_map(|(_, row)| &row.offsets);
            if stable && pending.any(|pending| pending.slot == slot && pending.group == group) {
                return Err(LogError::Unstable(of.clone()));
            }
            let value = self.shared.db.get_pinned(schema::offset(group, slot)).map_err(failed)?;
            let row =
                value.map(|value| schema::decode_committed(&value).ok_or_else(|| self.shared.corrupt("position")));
            row.transpose()
        };
        of.iter().map(committed).collect()
    }

    fn describe(&self, names: &[&str]) -> Result<Vec<Option<TopicDescription>>, LogError> {
        self.shared.catch_up()?;
        Ok(names.iter().map(|name| self.shared.describe_topic(name)).collect())
    }

    fn create(&self, topics: &[NewTopic]) -> Result<(), LogError> {
        self.shared.create_topics(topics)
    }

    fn purge(&self, before: &[(TopicPartition, i64)]) -> Result<(), LogError> {
        before.iter().try_for_each(|(of, before)| self.shared.purge(of, *before))
    }

    fn delete_topics(&self, names: &[&str]) -> Result<(), LogError> {
        let there = names.iter().filter(|name| self.shared.topic(name).is_some());
        there.into_iter().try_for_each(|name| self.shared.delete_topic(name))
    }

    fn members_of(&self, group: &str) -> Result<Vec<String>, LogError> {
        Ok(self.members(group))
    }

    fn delete_group(&self, group: &str) -> Result<(), LogError> {
        self.shared.delete_group(group)
    }
}
