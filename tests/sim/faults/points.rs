//! The named points at which an engine may die.
//!
//! A fuse is set for one of them; whoever gets there first dies: what it has done until then is done, nothing more is.

use crate::sometimes::reached;
use crate::timeline::note;

/// A place in the work of an engine, or of a thread that works for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A commit is handed out and not begun.
    BeforeCommit,
    /// Some records of a transaction are produced.
    InProduce,
    /// All records of a transaction are produced.
    AfterProduce,
    /// The positions are in the transaction, too; it is not decided.
    AfterOffsets,
    /// The transaction is committed, and nobody has been told.
    AfterCommit,
    /// As before, and the power fails: the last write may not be on the disk.
    AfterWrite,
    /// Without transactions: some records of a stage stand.
    InStage,
    /// Without transactions: what events led to stands.
    AfterChildren,
    /// Without transactions: entries stand.
    AfterEntries,
    /// Without transactions: what is done stands.
    AfterDone,
    /// Without transactions: the positions are committed, and nobody has been told.
    AfterPositions,
    /// Partitions are to be claimed.
    BeforeClaim,
    /// Partitions are claimed.
    AfterClaim,
    /// Some of the changelog is read.
    InRestore,
    /// The store is at the changelog's end, and nobody has been told.
    AfterRestore,
    /// Committed entries are on their way into the store.
    BeforeStoreWrite,
    /// They are in the store, in memory.
    AfterStoreWrite,
    /// The store's checkpoint is on the disk: the partition is about to be given back.
    AfterCheckpoint,
}

/// All of them.
pub const POINTS: &[Point] = &[
    Point::BeforeCommit,
    Point::InProduce,
    Point::AfterProduce,
    Point::AfterOffsets,
    Point::AfterCommit,
    Point::AfterWrite,
    Point::InStage,
    Point::AfterChildren,
    Point::AfterEntries,
    Point::AfterDone,
    Point::AfterPositions,
    Point::BeforeClaim,
    Point::AfterClaim,
    Point::InRestore,
    Point::AfterRestore,
    Point::BeforeStoreWrite,
    Point::AfterStoreWrite,
    Point::AfterCheckpoint,
];

impl Point {
    /// Whether an engine gets there, with transactions or without.
    pub fn is_on_the_way(self, transactions: bool) -> bool {
        use Point::*;
        match self {
            InProduce | AfterProduce | AfterOffsets | AfterCommit | AfterWrite => transactions,
            InStage | AfterChildren | AfterEntries | AfterDone | AfterPositions => !transactions,
            _ => true,
        }
    }

    /// How it is counted.
    pub fn reached(self) -> &'static str {
        match self {
            Point::BeforeCommit => "death before a commit",
            Point::InProduce => "death with some records produced",
            Point::AfterProduce => "death with all records produced",
            Point::AfterOffsets => "death after the positions, undecided",
            Point::AfterCommit => "death after a commit, untold",
            Point::AfterWrite => "power failure in a commit",
            Point::InStage => "death in a stage",
            Point::AfterChildren => "death after the children",
            Point::AfterEntries => "death after the entries",
            Point::AfterDone => "death after what is done",
            Point::AfterPositions => "death after plain positions, untold",
            Point::BeforeClaim => "death before a claim",
            Point::AfterClaim => "death after a claim",
            Point::InRestore => "death in a restore",
            Point::AfterRestore => "death after a restore",
            Point::BeforeStoreWrite => "death before a store's write",
            Point::AfterStoreWrite => "death after a store's write",
            Point::AfterCheckpoint => "death after a checkpoint",
        }
    }
}

/// At most one point at a time at which somebody is to die.
#[derive(Debug, Default)]
pub struct Fuse {
    set: Option<Point>,
    died: Option<Point>,
}

impl Fuse {
    /// Whoever gets there next dies.
    pub fn set(&mut self, point: Point) {
        self.set = Some(point);
    }

    /// Nobody is to die any more.
    pub fn remove(&mut self) {
        self.set = None;
    }

    /// Whether somebody is to die there.
    pub fn is_set(&self, points: &[Point]) -> bool {
        self.set.is_some_and(|set| points.contains(&set))
    }

    /// Whether who gets there dies now.
    pub fn dies_at(&mut self, point: Point) -> bool {
        let dies = self.set == Some(point);
        if dies {
            self.set = None;
            self.died = Some(point);
            reached(point.reached());
            note(format!("{}: {point:?}", point.reached()));
        }
        dies
    }

    /// Whether somebody has died and nobody has noticed yet.
    pub fn is_dead(&self) -> bool {
        self.died.is_some()
    }

    /// Notices who has died.
    pub fn take_died(&mut self) -> Option<Point> {
        self.died.take()
    }
}
