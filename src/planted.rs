//! Bugs on purpose. Each breaks one rule that the design is built on; `make planted` switches them on one by one and
//! shows that the simulator notices (`docs/simulator.md`).
//!
//! Without the feature `planted` [`is`] is the constant `false`: a binary that is used has none of them.

/// Lists the bugs: what is broken, as people read it, and the rules that it breaks.
macro_rules! bugs {
    ($($(#[doc = $what:literal])+ $name:ident: $rules:literal,)+) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Bug {
            $($(#[doc = $what])+ $name,)+
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$name),+];

            /// What is broken, in a sentence.
            pub fn what(self) -> &'static str {
                match self {
                    $(Bug::$name => concat!($($what),+).trim_ascii(),)+
                }
            }

            /// The rules that it breaks: P of the protocol, the others as the files' heads have them.
            pub fn rules(self) -> &'static str {
                match self {
                    $(Bug::$name => $rules,)+
                }
            }
        }
    };
}

bugs! {
    // Step 7, with transactions.

    /// Positions are committed before the transaction with what they speak of.
    PositionsOutside: "P1",
    /// A transaction that was aborted is taken for committed.
    AbortTakenForCommit: "P1, E3",
    /// What was composed when a transaction was aborted stays and goes into the next one.
    CompositionKept: "P1, E3",
    /// A transaction is tried again under the newest membership, also when partitions were lost on the way there.
    MembershipFresh: "P2, C4",
    /// A partition whose position stands still has no offset in the transaction.
    StuckUnfenced: "P3",
    /// A revoke is answered while a transaction that touches the partition is under way.
    AnsweredEarly: "P4, G1",
    /// A transaction of unknown outcome is sent again without looking whether it is committed.
    UnknownSentAgain: "P5, C2",
    /// Any mark of the own producer is taken for the mark of the transaction in doubt.
    AnyMarkDecides: "P5, C2",
    /// The positions are read before the producer is a new one: the transaction in doubt may still be undecided.
    NotRecovered: "P5, P7, C3",

    // Step 7, without transactions.

    /// Positions are committed before what was done stands in the log.
    PositionsFirst: "C6",
    /// The done-set stands in the log before the entries of what it says is done.
    DoneFirst: "C6",
    /// Entries stand in the log before the children of their events: later these events are duplicates.
    EntriesFirst: "C5",

    // Steps 1 to 6.

    /// What was counted in an aborted transaction stays counted.
    RunsKept: "P22, U1",
    /// A record far above all others is judged before the other partitions are read.
    JudgedAlone: "P18, J2",
    /// Records that were fetched before the partition was opened anew are taken in.
    OldRecords: "E1, L1",
    /// The outcome of a call of an older incarnation is accepted.
    OldOutcome: "P4, T2",
    /// An outcome for a partition that is being given back is still taken in.
    ClosingFinishes: "P3, P4",
    /// The gate does not see what is in the transaction under way.
    GateBlind: "P1, S2",
    /// Among the waiting events of a key the greatest stamp is next.
    QueueReversed: "K2",
    /// A superseded event spawns no children.
    LateParentChildless: "X1",
    /// An event that succeeds after a retry spawns its children twice.
    ChildrenTwice: "X1",
    /// A handler that fails is tried once more than it is to be.
    TriedTooOften: "X2",
    /// Children are not counted as produced.
    ChildrenUncounted: "P16, N1",
    /// The calls of a partition that goes stay counted as running.
    CallsCounted: "F1",

    // Bookkeeping, store and restore.

    /// A restore ignores the done-set.
    DoneSetIgnored: "P9",
    /// The done-set is written when there was none, not when it changed.
    DoneSetStale: "P9",
    /// Bookkeeping that did not get into the store with its own commit never does.
    BookkeepingForgotten: "P9, R1",
    /// The store's position is one too high.
    CheckpointTooHigh: "P11, O2",
    /// The store's position is on the disk before the data.
    CheckpointFirst: "P11, R1",
    /// A store that is damaged, or cannot be written, is taken for written.
    FailureIgnored: "R3, S1, S2",
    /// A restore reads records of aborted and undecided transactions.
    RestoresUncommitted: "P12, Z1",
    /// A restore ends at the last stable offset, where records of an undecided transaction begin.
    RestoresToStable: "P12, Z1",

    // Opening a partition.

    /// The open transaction of a dead owner is left to itself.
    DeadNotFenced: "P6a",
    /// Positions are taken while a transaction that moves them is undecided.
    UnstableTaken: "P6b",
    /// A partition is not claimed before it is worked on.
    NotClaimed: "P6c, A1, A2",
    /// What was done beyond the committed position is not committed unless something else is.
    RestUncommitted: "P9, C6",
    /// Where the group's position has expired the source is read from its start.
    PositionsExpire: "P23, H1",
}

#[cfg(feature = "planted")]
static PLANTED: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(usize::MAX);

/// From now on this process has the bug, or (`None`) none.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(usize::MAX, |bug| bug as usize), std::sync::atomic::Ordering::SeqCst);
}

/// Whether this process has the bug.
#[cfg(feature = "planted")]
pub fn is(bug: Bug) -> bool {
    PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as usize
}

/// Whether this process has the bug: never.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_: Bug) -> bool {
    false
}
