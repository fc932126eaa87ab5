//! From an assignment to a task that runs: end the last owner's transaction, claim, restore.
//!
//! A1: nothing is produced for a partition before it is claimed (protocol P6).
//! A2: a partition without a committed position gets a real one here, so every later transaction
//!     can fence with it (protocol P3).

mod standstill;

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use crate::changelog::ReadError;
use crate::clock;
use crate::config::{self, StampSource};
use crate::instance::commit::{self, Mark, PLAIN};
use crate::log::whole::Until;
use crate::log::{Committed, Log, LogError, Member, Membership, OffsetCommit, TopicPartition};
use crate::progress::History;
use crate::sequencer::order;
use crate::store::schema::Identity;
use crate::store::{StoreError, Stores};
use crate::task::restore::{self, Plan, RestoreError, Restored};
use crate::topics::Topics;
use standstill::Standstill;

/// The pause between tries.
const RETRY: Duration = Duration::from_millis(100);

/// The pause while a store is in use: one that another thread has just given back is free in a moment.
const SOON: Duration = Duration::from_millis(5);

/// The pause between tries on a disk that does not take a store: each begins the restore at its last checkpoint.
const DISK: Duration = Duration::from_secs(2);

/// After this long a store that is still in use is reported.
const FREE_WITHIN: Duration = Duration::from_secs(5);

/// The pause between tries of what is not allowed to us: until an operator acts nothing changes.
const DENIED: Duration = Duration::from_secs(1);

/// After this long a transaction that holds a partition up is reported (protocol P14): the log ends it by itself after
/// its own timeout, 10 s, and the pause between two looks for such ones, on Kafka 10 s.
const DECIDED_WITHIN: Duration = Duration::from_secs(22);

/// Takes what is wrong with a partition; `None` = all is well again.
pub type Report = Box<dyn Fn(&TopicPartition, Option<String>) + Send + Sync>;

/// What opening needs to know of the instance.
pub struct Opener {
    /// The log.
    pub log: Arc<dyn Log>,
    /// The membership's calls.
    pub member: Arc<dyn Member>,
    /// Names.
    pub topics: Topics,
    /// The group: the application's id.
    pub group: String,
    /// Signs the claim.
    pub mark: Mark,
    /// The local stores.
    pub stores: Stores,
    /// The id of each source topic, by name.
    pub source_ids: BTreeMap<Arc<str>, Arc<str>>,
    /// How primary events get their place.
    pub source: config::Source,
    /// The changelog's id and `delete.retention.ms`.
    pub changelog_id: String,
    /// In milliseconds.
    pub delete_retention_ms: i64,
    /// Tells the operator.
    pub report: Report,
}

/// Why a partition was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It has moved, or nobody waits any more: the next assignment tells.
    #[error("the partition has moved")]
    Moved,
    /// Trying again does not help.
    #[error("{0}")]
    Fatal(String),
}

impl Opener {
    /// Ends open transactions of the last owners, waits until the positions are stable and claims the
    /// partitions. Gives their committed positions, in order. `valid` says whether they are still ours.
    pub fn claim(
        &self,
        partitions: &[TopicPartition],
        membership: &Membership,
        valid: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<i64>, OpenError> {
        // 1. The last decided positions tell who owned the partitions (P6a).
        let last = self.insist(&partitions[0], valid, || self.log.committed(&self.group, partitions, false))?;
        for (of, committed) in partitions.iter().zip(&last).filter_map(|(of, last)| Some((of, last.as_ref()?))) {
            if let Some(format) = Mark::newer(&committed.metadata) {
                return Err(OpenError::Fatal(format!(
                    "{of}: the group's position {} was committed with metadata of format {format}, this build reads {}: \
                     use the version that wrote it",
                    committed.position,
                    commit::FORMAT
                )));
            }
        }
        let marks = last.iter().flatten().filter_map(|committed| Mark::parse(&committed.metadata));
        let dead: BTreeSet<String> = marks
            .filter(|mark| !mark.released && mark.producer != self.mark.producer && !mark.producer.ends_with(PLAIN))
            .map(|mark| mark.producer)
            .collect();
        self.fence(&partitions[0], dead, valid)?;
        // 2. No transaction is undecided on them any more (P6b).
        let stable = self.insist(&partitions[0], valid, || self.log.committed(&self.group, partitions, true))?;
        // 3. The claim (P6c): whoever commits under an older generation fails from here on.
        let history = OnceCell::new();
        let positions = partitions
            .iter()
            .zip(stable)
            .map(|(partition, committed)| self.position(partition, committed, &history, valid))
            .collect::<Result<Vec<_>, _>>()?;
        let claims: Vec<_> = partitions
            .iter()
            .zip(&positions)
            .map(|(of, position)| OffsetCommit { of: of.clone(), position: *position, metadata: self.mark.to_string() })
            .collect();
        self.insist(&partitions[0], valid, || self.member.commit(&claims, membership))?;
        Ok(positions)
    }

    /// All at the same time: each takes some round trips.
    fn fence(
        &self,
        of: &TopicPartition,
        dead: BTreeSet<String>,
        valid: &(dyn Fn() -> bool + Sync),
    ) -> Result<(), OpenError> {
        std::thread::scope(|scope| {
            let fence = |id: String| scope.spawn(move || self.insist(of, valid, || self.log.fence(&id)));
            let fences: Vec<_> = dead.into_iter().map(fence).collect();
            fences.into_iter().try_for_each(|fence| fence.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })
    }

    /// With `arrival`: the sequence that the next record received gets. Asked when the source partitions are
    /// claimed, so that no former sequencer's transaction is undecided (protocol P22).
    pub fn next_sequence(&self, valid: &dyn Fn() -> bool) -> Result<Option<u64>, OpenError> {
        if self.source.stamp != StampSource::Arrival {
            return Ok(None);
        }
        let of = TopicPartition::new(&self.topics.order, 0);
        self.insist(&of, valid, || order::end(self.log.as_ref(), &of)).map(Some)
    }

    /// With `header`: the end of progress. Asked when the source partitions are claimed, so that all that their former
    /// owners told lies below it.
    pub fn progress_end(&self, valid: &dyn Fn() -> bool) -> Result<i64, OpenError> {
        if self.source.stamp != StampSource::Header {
            return Ok(0);
        }
        let of = TopicPartition::new(&self.topics.progress, 0);
        self.insist(&of, valid, || self.log.watermarks(&of)).map(|ends| ends.high)
    }

    /// Restores the state of a claimed partition.
    pub fn restore(
        &self,
        partition: i32,
        committed: i64,
        valid: &dyn Fn() -> bool,
        remaining: &dyn Fn(i64),
    ) -> Result<Restored, OpenError> {
        let identity = Identity { application: self.group.clone(), partition, changelog_id: self.changelog_id.clone() };
        let changelog = TopicPartition::new(&self.topics.changelog, partition);
        let plan = Plan {
            changelog: changelog.clone(),
            identity: &identity,
            delete_retention_ms: self.delete_retention_ms,
            committed,
        };
        let standstill = RefCell::new(Standstill::default());
        let remaining = |records: Option<i64>| {
            if let Some(records) = records {
                remaining(records);
                if let Some(news) = standstill.borrow_mut().look(records, clock::now()) {
                    // A log that does not answer is another trouble.
                    let why = |_| {
                        self.log
                            .watermarks(&changelog)
                            .map_or_else(|error| error.to_string(), |_| undecided(&changelog))
                    };
                    (self.report)(&changelog, news.then_some(()).map(why));
                }
            }
            valid()
        };
        let begun = clock::now();
        loop {
            // A newer opening of the partition may have its store already.
            if !valid() {
                (self.report)(&changelog, None);
                return Err(OpenError::Moved);
            }
            let pause = match restore::restore(self.log.as_ref(), &self.stores, &plan, remaining) {
                Ok(restored) => {
                    (self.report)(&changelog, None);
                    return Ok(restored);
                }
                Err(RestoreError::Unwanted) => {
                    (self.report)(&changelog, None);
                    return Err(OpenError::Moved);
                }
                Err(error) if error.is_fatal() => return Err(OpenError::Fatal(error.to_string())),
                // Another thread of this instance has given the partition back and is not quite through with it.
                Err(RestoreError::Store(StoreError::InUse(_))) if clock::since(begun) < FREE_WITHIN => SOON,
                Err(error) => {
                    (self.report)(&changelog, Some(format!("restoring {changelog}: {error}")));
                    match error {
                        RestoreError::Changelog(ReadError::Log(LogError::Unauthorized(_))) => DENIED,
                        RestoreError::Store(StoreError::Full(..)) => {
                            self.stores.give_way();
                            DISK
                        }
                        RestoreError::Store(StoreError::Unavailable(..)) => DISK,
                        _ => RETRY,
                    }
                }
            };
            clock::sleep(pause);
        }
    }

    /// Where reading goes on. Without a committed position our own records tell (protocol P23); without
    /// those the application starts for the first time, at the earliest record (A2).
    fn position(
        &self,
        partition: &TopicPartition,
        committed: Option<Committed>,
        history: &OnceCell<History>,
        valid: &dyn Fn() -> bool,
    ) -> Result<i64, OpenError> {
        let is_task = partition.topic == self.topics.repartition;
        match committed {
            Some(committed) if is_task => return Ok(committed.position),
            _ => {}
        }
        let low = self.insist(partition, valid, || self.log.watermarks(partition))?.low;
        let known = match committed {
            Some(committed) if !self.is_renewed(partition, history, valid)? => Some(committed.position),
            Some(_) => Some(low),
            None if is_task => None,
            None => self.sequenced(partition, history, valid)?,
        };
        // What a source topic no longer holds is not waited for.
        if let Some(position) = known.filter(|position| *position < low) {
            tracing::warn!(source = %partition, position, low, "the topic no longer holds all that was not read");
        }
        Ok(known.map_or(low, |position| position.max(low)))
    }

    /// Whether the source topic is another one than the one that was read: its positions say nothing. Only a raised
    /// epoch lets an application go on with it.
    fn is_renewed(
        &self,
        source: &TopicPartition,
        history: &OnceCell<History>,
        valid: &dyn Fn() -> bool,
    ) -> Result<bool, OpenError> {
        if source.topic == self.topics.repartition || self.source.epoch == 0 {
            return Ok(false);
        }
        Ok(self.history(source, history, valid)?.is_renewed(source, self.source_id(source)))
    }

    /// How far `<app>-progress` says that a source partition was sequenced.
    fn sequenced(
        &self,
        source: &TopicPartition,
        history: &OnceCell<History>,
        valid: &dyn Fn() -> bool,
    ) -> Result<Option<i64>, OpenError> {
        let history = self.history(source, history, valid)?;
        history.allows(&self.source, &self.source_ids).map_err(|broken| OpenError::Fatal(broken.to_string()))?;
        Ok(history.position(source, self.source_id(source)))
    }

    /// What progress says of the past, read once for all partitions of a claim.
    fn history<'a>(
        &self,
        source: &TopicPartition,
        history: &'a OnceCell<History>,
        valid: &dyn Fn() -> bool,
    ) -> Result<&'a History, OpenError> {
        if let Some(known) = history.get() {
            return Ok(known);
        }
        let progress = TopicPartition::new(&self.topics.progress, 0);
        let read = self.insist(source, valid, || History::read(self.log.as_ref(), &progress, Until::End))?;
        Ok(history.get_or_init(|| read))
    }

    fn source_id(&self, source: &TopicPartition) -> &str {
        self.source_ids.get(&source.topic).map_or("", |id| &**id)
    }

    /// Tries until it succeeds, cannot, or is no longer wanted.
    fn insist<T>(
        &self,
        of: &TopicPartition,
        valid: &dyn Fn() -> bool,
        mut call: impl FnMut() -> Result<T, LogError>,
    ) -> Result<T, OpenError> {
        let begun = clock::now();
        loop {
            let mut pause = RETRY;
            match call() {
                Ok(done) => {
                    (self.report)(of, None);
                    return Ok(done);
                }
                Err(LogError::Migrated(_)) => {
                    (self.report)(of, None);
                    return Err(OpenError::Moved);
                }
                Err(error @ (LogError::Fatal(_) | LogError::Refused(_))) => {
                    return Err(OpenError::Fatal(format!("opening {of}: {error}")));
                }
                Err(LogError::Unstable(_)) if clock::since(begun) < DECIDED_WITHIN => {}
                Err(LogError::Unstable(of)) => (self.report)(&of, Some(undecided(&of))),
                Err(error) => {
                    if matches!(error, LogError::Unauthorized(_)) {
                        pause = DENIED;
                    }
                    (self.report)(of, Some(format!("opening {of}: {error}")));
                }
            }
            if !valid() {
                (self.report)(of, None);
                return Err(OpenError::Moved);
            }
            clock::sleep(pause);
        }
    }
}

/// What holds a partition up, with the next step.
fn undecided(of: &TopicPartition) -> String {
    format!(
        "opening {of}: a transaction on it has been undecided for {} s, longer than its producer may take, so its \
         coordinator may have forgotten it; nothing is lost, but the partition stands still until it is ended: \
         kafka-transactions.sh find-hanging --broker-id <leader> names it, kafka-transactions.sh abort --topic {} \
         --partition {} --start-offset <its first offset> ends it",
        DECIDED_WITHIN.as_secs(),
        of.topic,
        of.partition
    )
}
