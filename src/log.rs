//! Step 2 of 8: the log delivers an event to the owner of its partition.
//!
//! The log is a port with two adapters: [`kafka`] for clusters, [`embedded`] for one machine. It is
//! partitioned and transactional and works in batches, so that Kafka pays nothing for it.
//!
//! L1: records of a partition are delivered in the order of their offsets, each once per
//!     [`Member::start`]; what was fetched before a later `start` or a revoke is never delivered
//!     after it under the newer epoch.
//! L2: a [`Transaction`] is visible to read_committed readers as a whole or not at all.
//! L3: `Revoked { lost: false }` is answered by the engine before the partition can get another owner; where that
//!     takes too long, `Revoked { lost: true }` follows for the same partitions.
//! L4: only committed records are delivered to members; what an [`Appender`] appends is committed at once.
//! L5: when [`Appender::append`] has returned, nothing of it is on its way any more, unless it was told to give up.

pub mod embedded;
pub mod kafka;
pub mod open;
pub mod outbox;
pub mod whole;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// After so long without a sign of life the group takes a member for dead and gives its partitions to
/// others (where they can have other members: on Kafka).
pub const SESSION_TIMEOUT: Duration = Duration::from_secs(6);

/// One partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: Arc<str>,
    /// The partition's number, from 0.
    pub partition: i32,
}

impl TopicPartition {
    /// Partition `partition` of `topic`.
    pub fn new(topic: &Arc<str>, partition: i32) -> TopicPartition {
        TopicPartition { topic: Arc::clone(topic), partition }
    }
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// A record's headers, in order.
pub type Headers = Vec<(String, Bytes)>;

/// A record as it stands at an offset.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its place in the partition.
    pub offset: i64,
    /// Milliseconds since 1970, for people.
    pub timestamp_ms: i64,
    /// `None` is Kafka's null key, which differs from an empty one.
    pub key: Option<Bytes>,
    /// `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Empty unless the reader asked for headers: reading them costs.
    pub headers: Headers,
}

/// A record to be appended.
#[derive(Clone, Debug, Default)]
pub struct NewRecord {
    /// `None` is Kafka's null key.
    pub key: Option<Bytes>,
    /// `None` is a tombstone.
    pub value: Option<Bytes>,
    /// In order; empty on the hot path.
    pub headers: Headers,
}

/// Records for one partition, in the order in which they are to stand there.
#[derive(Clone, Debug)]
pub struct Append {
    /// Where they go.
    pub to: TopicPartition,
    /// What goes there.
    pub records: Vec<NewRecord>,
}

/// Proof of membership in the group at a moment: the group's name, the member's id and the
/// generation, in the adapter's own encoding (protocol P2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership(pub Bytes);

/// A position to commit for the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetCommit {
    /// Of which partition.
    pub of: TopicPartition,
    /// The next offset to read; never negative (protocol P3).
    pub position: i64,
    /// ASCII (protocol P5).
    pub metadata: String,
}

/// A position that the group has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The next offset to read.
    pub position: i64,
    /// As it was committed.
    pub metadata: String,
}

/// What becomes visible together or not at all (L2).
#[derive(Debug)]
pub struct Transaction {
    /// Records to many partitions.
    pub appends: Vec<Append>,
    /// One for every partition that the transaction touches (protocol P3).
    pub offsets: Vec<OffsetCommit>,
    /// Captured before the first outcome was taken in (protocol P2).
    pub membership: Membership,
    /// Partitions whose ends are to be told after the commit and before the next transaction of this
    /// producer begins: at that moment none of its undecided transactions stands in them (protocol P11).
    pub ends_of: Vec<TopicPartition>,
}

/// What a commit tells.
#[derive(Debug, Default)]
pub struct Receipt {
    /// The end (next offset to be given) of each partition in `ends_of`; missing where it could not be told.
    pub ends: Vec<(TopicPartition, i64)>,
}

/// Why a commit did not end well. Each kind says what the caller does.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Certainly not committed, the producer is usable: take up again from the last commit.
    #[error("transaction aborted: {0}")]
    Aborted(String),
    /// Certainly not committed, the producer is usable: the group has a newer generation than the
    /// membership that was given. Under the membership of that one it may be tried again, as long as no
    /// partition was lost on the way there (protocol P2).
    #[error("the group has a newer generation: {0}")]
    Stale(String),
    /// May or may not be committed: [`Producer::recover`], then compare the committed positions (protocol P5, P7).
    #[error("outcome of the transaction unknown: {0}")]
    Unknown(String),
    /// Certainly not committed and the producer is not usable: [`Producer::recover`], then take up
    /// again from the last commit.
    #[error("producer fenced or broken: {0}")]
    Fenced(String),
    /// Certainly not committed, the producer is usable: the log does not let us, and will not before an operator has
    /// granted what the text names. The same transaction may be tried again, at leisure.
    #[error("{0}")]
    Unauthorized(String),
}

/// Why the log refused. Each kind says what the caller does.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The same call may succeed later.
    #[error("{0}")]
    Retriable(String),
    /// The group has unresolved transactions on the partition: ask again (protocol P15).
    #[error("the committed offset of {0} is not stable: a transaction on it is undecided")]
    Unstable(TopicPartition),
    /// No such topic or partition.
    #[error("unknown topic or partition: {0}")]
    UnknownTopic(String),
    /// The offset is outside of what the partition holds; the partition begins at `.1`.
    #[error("{0} has no records at the asked offset; it begins at {1}")]
    OutOfRange(TopicPartition, i64),
    /// Not a member of the group any more, or the partition has moved.
    #[error("not the owner: {0}")]
    Migrated(String),
    /// A record or request that this log never takes, such as one above its size limit.
    #[error("refused: {0}")]
    Refused(String),
    /// Not allowed to us, and nothing of it was done; the text names what is missing and how to grant it. Once an
    /// operator has granted it the same call may succeed: to be told, and tried again at leisure.
    #[error("{0}")]
    Unauthorized(String),
    /// Trying again does not help.
    #[error("{0}")]
    Fatal(String),
}

/// What a member of the group is told, in order, on the member's own thread.
pub enum MemberEvent {
    /// Records of one partition.
    Fetched(Fetched),
    /// New partitions; nothing is delivered from them before [`Member::start`]. May be empty: the
    /// generation has changed and `membership` with it.
    Assigned {
        /// Only the added ones.
        partitions: Vec<TopicPartition>,
        /// Of the generation in which all partitions now owned are owned.
        membership: Membership,
    },
    /// Partitions that go. The member's thread waits until `done` is dropped or sent to.
    Revoked {
        /// Only the removed ones.
        partitions: Vec<TopicPartition>,
        /// True when they may already have another owner: nothing can be committed for them.
        lost: bool,
        /// Dropped by the engine when every transaction that touches them is decided (protocol P4).
        done: crossbeam_channel::Sender<()>,
    },
    /// Something that the operator should see; the member goes on by itself.
    Trouble(String),
    /// The member cannot go on.
    Failed(LogError),
}

/// Records of one partition, ascending by offset.
#[derive(Debug)]
pub struct Fetched {
    /// Of which partition.
    pub of: TopicPartition,
    /// The number of the [`Member::start`] that they follow; older ones are to be dropped (L1).
    pub epoch: u64,
    /// Ascending by offset; offsets may be missing.
    pub records: Vec<Record>,
}

/// Takes a member's events, on the member's thread; may block for back-pressure.
pub type EventSink = Box<dyn Fn(MemberEvent) + Send>;

/// How to join a group.
#[derive(Clone, Debug)]
pub struct Join {
    /// The group's name: the application's id.
    pub group: String,
    /// Names the member in the broker's logs.
    pub client_id: String,
    /// Topics to share with the other members.
    pub topics: Vec<Arc<str>>,
    /// Topics that are not shared: whoever starts one of their partitions reads it, and that is to be the owner of
    /// partition 0 of the first of `topics` (protocol P22).
    pub unshared: Vec<Arc<str>>,
    /// Topics whose record headers are wanted.
    pub with_headers: Vec<Arc<str>>,
}

/// This process's (or engine thread's) membership in the group. Its calls return at once and are
/// carried out in order by the member's own thread.
pub trait Member: Send + Sync {
    /// Delivers the partition's records from `position` on, tagged with `epoch`. It has to be owned, or of
    /// an unshared topic.
    fn start(&self, partition: TopicPartition, position: i64, epoch: u64);
    /// Ends the delivery of partitions of unshared topics.
    fn stop(&self, partitions: Vec<TopicPartition>);
    /// Stops delivery until [`Member::resume`]; nothing is skipped. What is already on its way still arrives.
    fn pause(&self, partitions: Vec<TopicPartition>);
    /// Goes on after [`Member::pause`].
    fn resume(&self, partitions: Vec<TopicPartition>);
    /// Commits positions outside of any transaction (protocol P6c). Blocks; not for the engine's thread.
    fn commit(&self, offsets: &[OffsetCommit], membership: &Membership) -> Result<(), LogError>;
    /// Leaves the group: `Revoked` is told first, then the thread ends. Blocks until it has ended, so
    /// someone else has to take the events.
    fn leave(&self);
}

/// A transactional producer; at most one living holder per transactional id.
pub trait Producer: Send {
    /// Carries the transaction out. Retriable errors are retried inside, up to the producer's deadline.
    fn commit(&mut self, transaction: &Transaction) -> Result<Receipt, CommitError>;
    /// A fresh producer under the same transactional id. When it returns, every earlier transaction of
    /// the id is decided and its markers are written (protocol P5, P7).
    fn recover(&mut self) -> Result<(), LogError>;
}

/// A producer without transactions: what it appends is visible as soon as it stands in the log.
pub trait Appender: Send {
    /// Appends the records, each partition's in order, and returns when the log has acknowledged every
    /// one. While the log does not answer it tries on, unless `give_up` says that this is of no use any more.
    /// What is acknowledged is taken out of `appends`, of each partition up to the first record that is not, so that
    /// the same call again appends the rest and keeps the order.
    ///
    /// # Errors
    /// Anything but [`LogError::Migrated`] when the log refused a record; no more of the rest will come (L5). Migrated
    /// after giving up: nothing is known of what is left.
    fn append(&mut self, appends: &mut Vec<Append>, give_up: &dyn Fn() -> bool) -> Result<(), LogError>;
}

/// What a reader sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Committed records, up to the first undecided transaction.
    ReadCommitted,
    /// Everything.
    ReadUncommitted,
}

/// Reads one partition, outside of any group.
pub trait Reader: Send {
    /// The next records; empty when `timeout` passed without any. May return early with none.
    fn next(&mut self, timeout: Duration) -> Result<Vec<Record>, LogError>;
    /// The next offset that will be read. It passes control records and aborted ones once polled.
    fn position(&self) -> i64;
}

/// The ends of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// The first offset that it still holds.
    pub low: i64,
    /// The next offset to be given, undecided transactions included (protocol P12).
    pub high: i64,
}

/// A topic as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// Its name.
    pub name: String,
    /// Tells it from one of the same name that is created later.
    pub id: String,
    /// How many partitions it has.
    pub partitions: i32,
    /// `cleanup.policy`, such as `delete` or `compact`.
    pub cleanup_policy: String,
    /// `delete.retention.ms`, in milliseconds.
    pub delete_retention_ms: i64,
    /// `max.message.bytes`, in bytes.
    pub max_message_bytes: i64,
}

/// A topic to be created.
#[derive(Clone, Debug)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// How many partitions, at least 1.
    pub partitions: i32,
    /// `None` is the broker's default.
    pub replication_factor: Option<i32>,
    /// Topic settings such as `cleanup.policy`.
    pub settings: Vec<(String, String)>,
}

/// What is done with a topic or a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Look at its settings.
    DescribeConfigs,
    /// Read its records, commit positions on it.
    Read,
    /// Append to it.
    Write,
    /// Delete it, or its records that were consumed.
    Delete,
}

/// A partitioned, transactional log. All calls block; none is for the engine's thread.
pub trait Log: Send + Sync {
    /// Joins the group on a thread of its own that calls `sink`.
    fn join(&self, join: Join, sink: EventSink) -> Result<Arc<dyn Member>, LogError>;
    /// A transactional producer; fences every earlier holder of the id and decides its open transaction.
    fn producer(&self, transactional_id: &str) -> Result<Box<dyn Producer>, LogError>;
    /// A producer without transactions; `name` stands in messages.
    fn appender(&self, name: &str) -> Result<Box<dyn Appender>, LogError>;
    /// Ends the open transaction of a dead holder of the id (protocol P6a).
    fn fence(&self, transactional_id: &str) -> Result<(), LogError>;
    /// Appends outside of any transaction and returns the offsets, in order, once the log has them.
    fn append(&self, append: Append) -> Result<Vec<i64>, LogError>;
    /// A reader from `position` on.
    fn reader(
        &self,
        of: &TopicPartition,
        position: i64,
        isolation: Isolation,
        headers: bool,
    ) -> Result<Box<dyn Reader>, LogError>;
    /// The partition's ends.
    fn watermarks(&self, of: &TopicPartition) -> Result<Watermarks, LogError>;
    /// What the group has committed, in the order asked. With `stable` an undecided transaction on one
    /// of them is [`LogError::Unstable`]; without, the last decided state is told (protocol P6a, P15).
    fn committed(&self, group: &str, of: &[TopicPartition], stable: bool) -> Result<Vec<Option<Committed>>, LogError>;
    /// The topics of these names; `None` where there is none.
    fn describe(&self, names: &[&str]) -> Result<Vec<Option<TopicDescription>>, LogError>;
    /// Creates topics; one that exists already is left as it is.
    fn create(&self, topics: &[NewTopic]) -> Result<(), LogError>;
    /// Deletes the records before the given offsets.
    fn purge(&self, before: &[(TopicPartition, i64)]) -> Result<(), LogError>;
    /// [`LogError::Unauthorized`] with everything of this, on the group and on topics, that is not allowed to us. A log
    /// that knows no rights, or does not tell them, allows all.
    fn check_rights(&self, group: (&str, &[Operation]), topics: &[(&str, &[Operation])]) -> Result<(), LogError> {
        let _ = (group, topics);
        Ok(())
    }
    /// Deletes topics with their records and returns once they are gone; one that is not there is none
    /// to delete. What fails may have deleted some of them.
    fn delete_topics(&self, names: &[&str]) -> Result<(), LogError>;
    /// The group's members as people know them; empty where there is no such group. A log that is read
    /// beside its owner does not know them.
    fn members_of(&self, group: &str) -> Result<Vec<String>, LogError>;
    /// Deletes all that the group has committed; [`LogError::Refused`] while it has members.
    fn delete_group(&self, group: &str) -> Result<(), LogError>;
}
