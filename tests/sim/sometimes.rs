//! What some seed has to reach, or the simulator is blind: counted per seed, summed up by a campaign.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::faults::points::POINTS;

/// How often each thing was reached.
pub type Counts = BTreeMap<&'static str, u64>;

thread_local! {
    static COUNTS: RefCell<Counts> = const { RefCell::new(BTreeMap::new()) };
}

pub const ABORTED: &str = "a commit is aborted";
pub const FENCED: &str = "a producer is fenced";
pub const STALE: &str = "a commit is tried again under a newer membership";
pub const UNKNOWN_DONE: &str = "an outcome is unknown, and it is committed";
pub const UNKNOWN_NOT: &str = "an outcome is unknown, and it is not";
pub const LATE_MARKER: &str = "a marker comes late";
pub const LATE_MARKER_RESTORE: &str = "a restore meets a late marker";
pub const LATE_MARKER_EXPELLED: &str = "an engine is expelled while its last entries are not readable yet";
pub const LATE_MARKER_CLAIM: &str = "a claim meets a position that is not stable";
pub const PART: &str = "a commit without transactions is there in part";
pub const TWICE: &str = "an event stands twice, without transactions";
pub const LATE: &str = "an event comes too late";
pub const LATE_PARENT: &str = "an event that comes too late has children";
pub const WIPED: &str = "a process starts again without its stores";
pub const BACK: &str = "a process starts again with older stores";
pub const FORGOTTEN: &str = "a process dies, and its stores lose what was in memory";
pub const EXPIRED: &str = "the group's positions have expired";
pub const DISK: &str = "a store cannot be written";
pub const TORN: &str = "a store's file is damaged";
pub const REBUILT: &str = "a damaged store is restored";
pub const TAIL: &str = "the log's last write is torn";
pub const KILLED: &str = "an engine dies";
pub const ZOMBIE: &str = "a dead engine's transaction is refused";
pub const FROZEN: &str = "a frozen engine returns, others own its partitions";
pub const FROZEN_BRIEFLY: &str = "a frozen engine returns in time";
pub const FROZEN_WORK: &str = "a frozen engine returns with a transaction on its way";
pub const FROZEN_HALF: &str = "what a frozen engine had half done is ended by others";
pub const EXPELLED: &str = "an engine is expelled";
pub const REVOKE_IN_FLIGHT: &str = "a revoke meets a transaction on its way";
pub const LATE_OUTCOME: &str = "a call ends when the transaction that a revoke waits for is decided";
pub const MOVED_RESTORING: &str = "a partition moves while it is restored";
pub const STRANGER_ABORTED: &str = "a stranger's transaction is aborted";
pub const STRANGER_OPEN: &str = "a stranger's transaction is open for a while";
pub const HORIZON_VOID: &str = "an announcement of a horizon is void";
pub const BURIED: &str = "a marker is deleted";
pub const REVIVED: &str = "a key comes again after its marker was deleted";
pub const DISORDER: &str = "what is final follows from source.max_disorder";
pub const MARKED: &str = "marks have counted";
pub const TOO_LATE: &str = "a record breaks its promise and is too late";
pub const IN_TIME: &str = "a record breaks its promise and is in time all the same";
pub const REST: &str = "ends of transactions alone keep a mark from counting";
pub const ANSWERED: &str = "a key is asked for while all goes on";
pub const ANSWERED_SETTLED: &str = "a key is said to be settled while all goes on";
pub const FRONTIER_HELD: &str = "a root holds the frontier, later ones are settled";
pub const FRONTIER_END: &str = "the frontier gets to the end";
pub const LATE_MARKER_OBSERVED: &str = "an observer meets a late marker";
pub const OBSERVER_RESTARTED: &str = "an observer begins anew";
pub const OBSERVER_OVERTAKEN: &str = "what an observer is about to read is deleted";
pub const OBSERVER_FAILS: &str = "an observer cannot read, and goes on";
pub const SNAPSHOT_WRITTEN: &str = "a snapshot is written";
pub const SNAPSHOT_CUT: &str = "a snapshot's writer dies in the middle of it";
pub const SNAPSHOT_READ: &str = "a snapshot is read back";
pub const SNAPSHOT_BEGUN: &str = "an observer begins with a snapshot";
pub const PURGED: &str = "what lies below a snapshot is deleted";
pub const RETRIED: &str = "a dead letter is retried";
pub const RETRY_LATE: &str = "an event of a retry comes too late";
pub const RETRY_SECOND: &str = "a second retry of a dead letter does not count";
pub const RETRY_OVERTAKEN: &str = "a retry is told when the horizon has passed its event";
pub const RETRY_TAKEN: &str = "two retries of one cascade want the same number";
pub const RETRY_MOVED: &str = "a retry is handled elsewhere than where it was accepted";

const OTHERS: &[&str] = &[
    ABORTED,
    FENCED,
    STALE,
    UNKNOWN_DONE,
    UNKNOWN_NOT,
    LATE_MARKER,
    LATE_MARKER_RESTORE,
    LATE_MARKER_EXPELLED,
    LATE_MARKER_CLAIM,
    PART,
    TWICE,
    LATE,
    LATE_PARENT,
    WIPED,
    BACK,
    FORGOTTEN,
    EXPIRED,
    DISK,
    TORN,
    REBUILT,
    TAIL,
    KILLED,
    ZOMBIE,
    FROZEN,
    FROZEN_BRIEFLY,
    FROZEN_WORK,
    FROZEN_HALF,
    EXPELLED,
    REVOKE_IN_FLIGHT,
    LATE_OUTCOME,
    MOVED_RESTORING,
    STRANGER_ABORTED,
    STRANGER_OPEN,
    HORIZON_VOID,
    BURIED,
    REVIVED,
    DISORDER,
    MARKED,
    TOO_LATE,
    IN_TIME,
    REST,
    ANSWERED,
    ANSWERED_SETTLED,
    FRONTIER_HELD,
    FRONTIER_END,
    LATE_MARKER_OBSERVED,
    OBSERVER_RESTARTED,
    OBSERVER_OVERTAKEN,
    OBSERVER_FAILS,
    SNAPSHOT_WRITTEN,
    SNAPSHOT_CUT,
    SNAPSHOT_READ,
    SNAPSHOT_BEGUN,
    PURGED,
    RETRIED,
    RETRY_LATE,
    RETRY_SECOND,
    RETRY_OVERTAKEN,
    RETRY_TAKEN,
    RETRY_MOVED,
];

/// Everything that some seed has to reach.
pub fn all() -> impl Iterator<Item = &'static str> {
    OTHERS.iter().copied().chain(POINTS.iter().map(|point| point.reached()))
}

/// Counts it.
pub fn reached(what: &'static str) {
    COUNTS.with_borrow_mut(|counts| *counts.entry(what).or_default() += 1);
}

/// What was reached on this thread since the last call.
pub fn take() -> Counts {
    COUNTS.with_borrow_mut(std::mem::take)
}
