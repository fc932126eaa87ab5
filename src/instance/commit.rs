//! Step 7 of 8: one transaction per commit and engine thread: children, changelog entries, output records,
//! dead letters, progress and positions, together or not at all (protocol P1).
//! Without transactions: `acknowledged.rs` (C5 to C8).
//!
//! C1: what the engine hands over is complete; nothing is added while the transaction is under way.
//! C2: an unknown outcome is decided by reading the committed positions, never guessed (protocol P5).
//! C3: after any doubt the producer is a new one before the next transaction begins (protocol P7).
//! C4: a transaction refused for its generation is tried again under a newer membership only while no
//!     loss of partitions was told between its composition and that membership (protocol P2).

mod acknowledged;
mod ends;
mod mark;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::changelog;
use crate::clock;
use crate::config::Guarantee;
use crate::counts;
use crate::log::outbox::Outbox;
use crate::log::{
    Append, Appender, CommitError, Log, LogError, Member, Membership, NewRecord, OffsetCommit, Producer, Receipt,
    TopicPartition, Transaction,
};
use crate::metrics;
use crate::output::Output;
use crate::progress::counts_record;
use crate::proto;
use crate::sequencer::order;
use crate::task::overlay::Entries;
use crate::topics::Topics;
use acknowledged::Acknowledged;
pub use mark::{FORMAT, Mark};

/// The pause between tries while the log does not answer.
const RETRY: Duration = Duration::from_millis(200);

/// The pause between tries of what is not allowed to us: until an operator acts nothing changes.
const DENIED: Duration = Duration::from_secs(1);

/// How long the membership of a newer generation is waited for: the group tells it at the end of a
/// rebalance, and nothing of a revoke goes on before the transaction is decided.
const NEWER_WITHIN: Duration = Duration::from_secs(3);

/// One transaction's content as the engine has it; what costs is encoded by the committer.
#[derive(Debug)]
pub struct Work {
    /// Its number, the one in the marks of `offsets`.
    pub number: u64,
    /// Children, sequenced events, dead letters and counts.
    pub outbox: Outbox,
    /// Each touched partition's entries and, when it changed, its bookkeeping.
    pub changes: Vec<(i32, Arc<Entries>, Option<Bytes>)>,
    /// How far source partitions were sequenced.
    pub sources: Vec<proto::SourcePosition>,
    /// With `arrival`: the order received.
    pub runs: Vec<proto::Run>,
    /// One for every partition touched (protocol P3).
    pub offsets: Vec<OffsetCommit>,
    /// Captured before the first outcome was taken in (protocol P2).
    pub membership: Membership,
    /// Changelog partitions whose ends the engine wants (protocol P11).
    pub ends_of: Vec<TopicPartition>,
}

/// How a transaction ended.
#[derive(Debug)]
pub enum Ended {
    /// It is committed.
    Committed(Receipt),
    /// It is not, and never will be.
    Aborted(String),
}

/// The membership of now, as the engine has heard of it; counts how often partitions were lost.
#[derive(Debug)]
pub struct Current {
    state: Mutex<(u64, Option<Membership>)>,
    /// How long a newer membership is waited for.
    patience: Duration,
    revoking: AtomicBool,
    leaving: AtomicBool,
}

impl Default for Current {
    fn default() -> Current {
        Current::patient(NEWER_WITHIN)
    }
}

impl Current {
    /// One whose newer memberships are waited for at most so long.
    pub fn patient(patience: Duration) -> Current {
        Current { state: Mutex::default(), patience, revoking: AtomicBool::new(false), leaving: AtomicBool::new(false) }
    }

    fn state(&self) -> MutexGuard<'_, (u64, Option<Membership>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group has a new generation, in which everything not lost is still owned.
    pub fn renew(&self, membership: &Membership) {
        self.revoking.store(false, Ordering::Release);
        self.state().1 = Some(membership.clone());
    }

    /// Partitions were lost: nothing composed before may be committed under a later membership (protocol P2).
    pub fn lose(&self) {
        let mut current = self.state();
        *current = (current.0 + 1, None);
    }

    /// A revoke waits for the transaction under way.
    pub fn revoke(&self) {
        self.revoking.store(true, Ordering::Release);
    }

    /// The member leaves: nothing is heard of the group after the revoke by which it does.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Release);
    }

    /// Whether no newer membership comes: where the group has gone on without a member that leaves, what that one
    /// still wants to commit is refused for ever, and the others wait for its partitions.
    fn is_last(&self) -> bool {
        self.leaving.load(Ordering::Acquire) && self.is_revoking()
    }

    /// Whether a revoke may be waiting.
    fn is_revoking(&self) -> bool {
        self.revoking.load(Ordering::Acquire)
    }

    /// How often partitions were lost so far.
    pub fn losses(&self) -> u64 {
        self.state().0
    }

    /// The membership of now; `None` when there is none or partitions were lost.
    fn latest(&self, losses: u64) -> Option<Membership> {
        let current = self.state();
        if current.0 == losses { current.1.clone() } else { None }
    }

    /// A membership other than `stale`, waited for a while; `None` when there is none or partitions were lost.
    fn newer(&self, stale: &Membership, losses: u64) -> Option<Membership> {
        let deadline = clock::now() + self.patience;
        loop {
            let current = self.state().clone();
            match current {
                (now, _) if now != losses => return None,
                (_, Some(membership)) if membership != *stale => return Some(membership),
                _ if self.is_last() || clock::now() >= deadline => return None,
                _ => clock::sleep(Duration::from_millis(2)),
            }
        }
    }
}

/// Takes why nothing can be committed; `None` = it can be again, or is not tried any more.
pub type Report = Box<dyn Fn(Option<LogError>) + Send>;

/// How ids of producers without transactions end: nothing of theirs can be open.
pub const PLAIN: &str = "-plain";

/// Carries commits out, on a thread of its own.
pub trait Committer: Send {
    /// Carries one commit out and returns when it is decided. While the log does not answer it tries
    /// on, unless `stop` says that nobody waits any more. `losses` is [`Current::losses`] as it was when
    /// the work was handed over.
    fn carry_out(&mut self, work: Work, losses: u64, stop: &dyn Fn() -> bool) -> Ended;
}

/// What a committer works with.
pub struct Setup {
    /// The log.
    pub log: Arc<dyn Log>,
    /// Names.
    pub topics: Topics,
    /// The group: the application's id.
    pub group: String,
    /// Stands in the marks.
    pub producer_id: String,
    /// The membership's calls.
    pub member: Arc<dyn Member>,
    /// The membership of now.
    pub current: Arc<Current>,
    /// The output topic, where there is one.
    pub output: Option<Output>,
    /// Tells why nothing can be committed.
    pub report: Report,
}

/// What a committer appends with, by `processing.guarantee`.
pub enum Means {
    /// `exactly_once`
    Transactions(Box<dyn Producer>),
    /// `at_least_once`
    Acknowledgements(Box<dyn Appender>),
}

impl Means {
    /// The producer's id for thread `thread` of this incarnation of the process.
    pub fn id(guarantee: Guarantee, application: &str, incarnation: &str, thread: usize) -> String {
        let plain = if guarantee == Guarantee::AtLeastOnce { PLAIN } else { "" };
        format!("{application}-{incarnation}-{thread}{plain}")
    }

    /// Fresh ones under this id.
    pub fn open(log: &dyn Log, guarantee: Guarantee, producer_id: &str) -> Result<Means, LogError> {
        match guarantee {
            Guarantee::ExactlyOnce => log.producer(producer_id).map(Means::Transactions),
            Guarantee::AtLeastOnce => log.appender(producer_id).map(Means::Acknowledgements),
        }
    }

    /// The committer that uses them.
    pub fn committer(self, setup: Setup) -> Box<dyn Committer> {
        match self {
            Means::Transactions(producer) => Box::new(Transactional { setup, producer }),
            Means::Acknowledgements(appender) => Box::new(Acknowledged::new(setup, appender)),
        }
    }
}

/// Carries transactions out.
struct Transactional {
    setup: Setup,
    producer: Box<dyn Producer>,
}

impl Committer for Transactional {
    fn carry_out(&mut self, mut work: Work, losses: u64, stop: &dyn Fn() -> bool) -> Ended {
        let number = work.number;
        if let Err(error) = ends::tell(self.setup.log.as_ref(), &self.setup.topics, &mut work.outbox.told.marks) {
            return aborted("marks", format!("the ends of the source partitions are not known: {error}"));
        }
        let mut transaction = compose(&self.setup.topics, self.setup.output.as_ref(), work);
        let reason = loop {
            match self.producer.commit(&transaction) {
                Ok(receipt) => {
                    (self.setup.report)(None);
                    return Ended::Committed(receipt);
                }
                // Nothing of it is wrong: it waits here, complete, until it is let in. A revoke does not wait with it.
                Err(CommitError::Unauthorized(reason)) => {
                    (self.setup.report)(Some(LogError::Unauthorized(reason.clone())));
                    clock::sleep(DENIED);
                    if stop() || self.setup.current.is_revoking() || self.setup.current.losses() != losses {
                        (self.setup.report)(None);
                        return aborted("refused", reason);
                    }
                }
                Err(CommitError::Aborted(reason)) => return aborted("refused", reason),
                // The group went on while this was under way, and the engine will hear of it (or has): all
                // that is in here was owned throughout, or the loss would have been told first (C4).
                Err(CommitError::Stale(reason)) => match self.setup.current.newer(&transaction.membership, losses) {
                    Some(membership) => transaction.membership = membership,
                    None => return aborted("rebalance", reason),
                },
                Err(CommitError::Fenced(reason)) => {
                    // Certainly not committed: a revoke need not wait until the producer is usable again.
                    let current = Arc::clone(&self.setup.current);
                    let _ = self.recover(&|| stop() || current.is_revoking());
                    return aborted("fenced", reason);
                }
                Err(CommitError::Unknown(reason)) => break reason,
            }
        };
        tracing::warn!(reason, "the outcome of a transaction is unknown; reading the committed positions");
        match self.recover(stop).and_then(|()| self.decide(number, &transaction.offsets, stop)) {
            Some(true) => Ended::Committed(Receipt::default()),
            Some(false) | None => aborted("unknown", reason),
        }
    }
}

impl Transactional {
    /// C3. When it returns the markers of every earlier transaction of this id are written.
    fn recover(&mut self, stop: &dyn Fn() -> bool) -> Option<()> {
        while let Err(error) = self.producer.recover() {
            let pause = if matches!(error, LogError::Unauthorized(_)) { DENIED } else { RETRY };
            (self.setup.report)(Some(error));
            clock::sleep(pause);
            if stop() {
                (self.setup.report)(None);
                return None;
            }
        }
        (self.setup.report)(None);
        Some(())
    }

    /// C2: a position with our mark of this commit says committed; our mark of an earlier one says not.
    /// Where a partition has moved its mark is another's, and the next partition is looked at.
    fn decide(&self, number: u64, offsets: &[OffsetCommit], stop: &dyn Fn() -> bool) -> Option<bool> {
        let partitions: Vec<_> = offsets.iter().map(|offset| offset.of.clone()).collect();
        loop {
            match self.setup.log.committed(&self.setup.group, &partitions, true) {
                Ok(committed) => {
                    let marks = committed.iter().flatten().filter_map(|committed| Mark::parse(&committed.metadata));
                    let mut own = marks.filter(|mark| mark.producer == self.setup.producer_id);
                    return Some(own.any(|mark| mark.number == number));
                }
                Err(error) => tracing::warn!(%error, "cannot read the committed positions yet"),
            }
            if stop() {
                return None;
            }
            clock::sleep(RETRY);
        }
    }
}

/// What the work appends and commits.
fn compose(topics: &Topics, output: Option<&Output>, work: Work) -> Transaction {
    let mut outbox = work.outbox;
    let told = proto::Progress { source_positions: work.sources, ..std::mem::take(&mut outbox.told) };
    let progress = counts::records(std::mem::take(&mut outbox.counts), told);
    let mut appends = outbox.into_appends(topics);
    if let Some(output) = output {
        let entries = work.changes.iter().flat_map(|(_, entries, _)| entries.iter());
        appends.extend(output.appends(entries.map(|(key, entry)| (key, entry.as_ref()))));
    }
    appends.extend(work.changes.into_iter().filter_map(|(partition, entries, bookkeeping)| {
        let records = changelog_records(&entries, bookkeeping);
        (!records.is_empty()).then(|| Append { to: TopicPartition::new(&topics.changelog, partition), records })
    }));
    let order = order::records(work.runs);
    if !order.is_empty() {
        appends.push(Append { to: TopicPartition::new(&topics.order, 0), records: order });
    }
    if !progress.is_empty() {
        let records = progress.iter().map(counts_record).collect();
        appends.push(Append { to: TopicPartition::new(&topics.progress, 0), records });
    }
    Transaction { appends, offsets: work.offsets, membership: work.membership, ends_of: work.ends_of }
}

/// `word` is the reason in the metrics.
fn aborted(word: &'static str, reason: String) -> Ended {
    metrics::aborted(word);
    Ended::Aborted(reason)
}

/// Of each key only the last entry of the transaction, or its tombstone, then the bookkeeping.
fn changelog_records(entries: &Entries, bookkeeping: Option<Bytes>) -> Vec<NewRecord> {
    let mut arena = BytesMut::new();
    let mut records = Vec::with_capacity(entries.len() + 1);
    for (key, entry) in entries {
        let Some(entry) = entry else {
            records.push(changelog::tombstone_record(key));
            continue;
        };
        if arena.capacity() - arena.len() < entry.weight() {
            arena = BytesMut::with_capacity((64 << 10).max(entry.weight()));
        }
        entry.encode(&mut arena);
        records.push(changelog::entry_record(key, arena.split().freeze()));
    }
    records.extend(bookkeeping.map(changelog::bookkeeping_record));
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_leaves_waits_for_no_newer_membership() {
        let current = Current::patient(Duration::from_secs(5));
        let (old, new) = (Membership("1".into()), Membership("2".into()));
        current.renew(&old);
        current.leave();
        current.revoke();
        let begun = clock::now();
        assert_eq!(current.newer(&old, 0), None);
        assert!(clock::since(begun) < Duration::from_secs(5), "it has waited");
        // What was told before the revoke is used.
        current.renew(&new);
        current.revoke();
        assert_eq!(current.newer(&old, 0), Some(new));
    }
}
