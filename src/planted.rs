//! Bugs on purpose, where one inside of the engine or a store breaks a rule that the design is built on. `make planted`
//! switches them on one by one and shows that the simulator notices (`docs/simulator.md`).
//!
//! What can be broken at a port is broken there, by an adapter of the simulator (`tests/sim/bugs`), and needs nothing of
//! the product: here is only what no adapter can reach, one line each.
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
    // Steps 6 and 7.

    /// What was composed when a transaction was aborted stays and goes into the next one.
    CompositionKept: "P1, E3",
    /// What was counted in an aborted transaction stays counted.
    RunsKept: "P22, U1",
    /// An outcome for a partition that is being given back is still taken in.
    ClosingFinishes: "P3, P4",
    /// The gate does not see what is in the transaction under way.
    GateBlind: "P1, S2",
    /// Among the waiting events of a key the greatest stamp is next.
    QueueReversed: "K2",
    /// Children are not counted as produced.
    ChildrenUncounted: "P16, N1",
    /// The children of a retried event do not have its number.
    RetryUnnumbered: "P20, N1",
    /// A retry is counted as a part of the original cascade.
    RetryOnOriginal: "P16, N1",
    /// The calls of a partition that goes stay counted as running.
    CallsCounted: "F1",

    // What is told.

    /// What a key held before the transaction under way is told while that may be committed already.
    AnsweredUndecided: "D1",
    /// A root of which nothing was read counts as settled.
    UnreadSettled: "T1, W1",

    // Bookkeeping and store.

    /// The done-set is written when there was none, not when it changed.
    DoneSetStale: "P9",
    /// Bookkeeping that did not get into the store with its own commit never does.
    BookkeepingForgotten: "P9, R1",
    /// The store's position is on the disk before the data.
    CheckpointFirst: "P11, R1",

    // The horizon.

    /// The horizon follows what was received, not what is settled.
    HorizonUnsettled: "P19, V1",
    /// The horizon passes a retry that is open.
    RetriesPassed: "P19, V2",
    /// A marker is deleted although something newer of its key is under way.
    BuriedBlindly: "O3",
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
