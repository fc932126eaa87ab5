//! Bugs on purpose, each in an adapter between the engine and one of its ports: nothing of them is in the product.
//!
//! | file           | the port                                                          |
//! | -------------- | ----------------------------------------------------------------- |
//! | `log.rs`       | [`Log`]: readers, ends, committed positions, fences               |
//! | `producer.rs`  | [`Producer`](tidegate::log::Producer): transactions               |
//! | `appender.rs`  | [`Appender`](tidegate::log::Appender): stages without transactions |
//! | `marks.rs`     | the producer, too: what transactions tell of marks               |
//! | `member.rs`    | [`Member`]: the positions of a claim                              |
//! | `committer.rs` | [`Committer`]: positions before a commit                          |
//! | `progress.rs`  | [`Log`], `Producer`: what is told in `<app>-progress`, and snapshots |
//! | `engine.rs`    | the engine: what it is told, what it hands out, its handler       |
//!
//! What breaks a rule inside of the engine or a store is in `src/planted.rs`. `make planted` shows all of them;
//! `docs/simulator.md` tells how to add one.

mod appender;
mod committer;
mod engine;
pub mod hunt;
mod log;
mod marks;
mod member;
mod producer;
mod progress;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

use tidegate::instance::commit::Committer;
use tidegate::log::{Append, Log, Member, MemberEvent, Membership};
use tidegate::proto;
use tidegate::stamp::Stamp;
use tidegate::topics::Topics;

use super::faults::log::SimLog;

/// Lists the bugs: what is broken, as people read it, the rules that it breaks, and the kinds of seeds in which it can
/// show.
macro_rules! bugs {
    ($($(#[doc = $what:literal])+ $name:ident: $rules:literal in $kinds:expr,)+) => {
        /// A bug that can be planted at a port.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

            /// The kinds of seeds in which it can show.
            pub fn kinds(self) -> &'static [&'static str] {
                match self {
                    $(Bug::$name => &$kinds,)+
                }
            }
        }
    };
}

bugs! {
    // A commit with transactions.

    /// Positions are committed before the transaction with what they speak of.
    PositionsOutside: "P1" in ["commits"],
    /// A transaction that was aborted is taken for committed.
    AbortTakenForCommit: "P1, E3" in ["commits"],
    /// A transaction is tried again under the newest membership, also when partitions were lost on the way there.
    MembershipFresh: "P2, C4" in ["moves", "expelled"],
    /// A partition whose position stands still has no offset in the transaction.
    StuckUnfenced: "P3" in ["moves"],
    /// A revoke is answered while a transaction that touches the partition is under way.
    AnsweredEarly: "P4, G1" in ["moves"],
    /// A transaction of unknown outcome is sent again without looking whether it is committed.
    UnknownSentAgain: "P5, C2" in ["commits"],
    /// Any mark of the own producer is taken for the mark of the transaction in doubt.
    AnyMarkDecides: "P5, C2" in ["commits"],
    /// The positions are read before the producer is a new one: the transaction in doubt may still be undecided.
    NotRecovered: "P5, P7, C3" in ["commits"],

    // A commit without transactions.

    /// Positions are committed before what was done stands in the log.
    PositionsFirst: "C6" in ["plain-crashes"],
    /// The done-set stands in the log before the entries of what it says is done.
    DoneFirst: "C6" in ["plain-crashes"],
    /// Entries stand in the log before the children of their events: later these events are duplicates.
    EntriesFirst: "C5" in ["plain-crashes"],

    // What the engine is told.

    /// A record far above all others is judged before the other partitions are read.
    JudgedAlone: "P18, J2" in ["header"],
    /// A mark is told without ends, and counts at once.
    EndsForgotten: "P17, V1" in ["header", "header-moves"],
    /// A mark is told with the end of one source partition only.
    OneEnd: "P17, V1" in ["header", "header-moves"],
    /// Positions acknowledge marks that nobody knows of.
    Acknowledged: "P17, V1, V2" in ["header", "header-moves"],
    /// Records that were fetched before the partition was opened anew are taken in.
    OldRecords: "E1, L1" in ["commits", "moves"],
    /// The outcome of a call of an older incarnation is accepted.
    OldOutcome: "P4, T2" in ["commits", "moves"],
    /// An event that succeeds after a retry spawns its children twice.
    ChildrenTwice: "X1" in ["calm"],
    /// A superseded event spawns no children.
    LateParentChildless: "X1" in ["calm"],
    /// A handler that fails is tried once more than it is to be.
    TriedTooOften: "X2" in ["calm"],

    // What is settled.

    /// Children are counted in the transaction after the one that has them.
    ChildrenCountedLater: "P16" in ["calm"],
    /// The counts of one root stand in two records of a transaction: what is done first, then what is spawned.
    CountsSplit: "P16, N1" in ["calm"],
    /// Source positions stand in a record before the one with the roots below them.
    PositionsToldFirst: "P17, F1" in ["calm"],
    /// An event that became a dead letter is counted as done twice.
    DeadCountedTwice: "P16" in ["calm"],
    /// An observer reads records of aborted and undecided transactions.
    ObservesUncommitted: "P16, W1" in ["crashes", "moves"],
    /// A snapshot says that it has one record more than it has.
    SnapshotTooHigh: "P21, Z2" in ["calm"],
    /// A snapshot says that it has one record less than it has.
    SnapshotTooLow: "P21, Z2" in ["calm"],
    /// A part of a snapshot counts without the others.
    PartCountsAlone: "P21, Z1" in ["calm"],
    /// What lies below a snapshot is deleted when it is about to be written.
    PurgedUnread: "P21, W3" in ["calm"],
    /// What a key holds is looked up once to tell that it is settled.
    LookedUpOnce: "T1" in ["calm"],

    // Retries of dead letters.

    /// A retry is handled before its open record was read.
    RetryUnread: "P20, R2" in ["retries", "retries-moves"],
    /// A second retry of a dead letter is handled like the first.
    SecondRetried: "P20, V1" in ["retries", "retries-moves"],
    /// A retry that the horizon has overtaken is handled all the same.
    OvertakenRetried: "P19, P20, V3" in ["retries-horizon"],

    // The store and its restore.

    /// A restore ignores the done-set that stands in the changelog.
    DoneSetIgnored: "P9" in ["crashes", "moves"],
    /// The store's position is one too high.
    CheckpointTooHigh: "P11, O2" in ["crashes", "moves"],
    /// A store that is damaged, or cannot be written, is taken for written.
    FailureIgnored: "R3, S1, S2" in ["disks"],
    /// A restore reads records of aborted and undecided transactions.
    RestoresUncommitted: "P12, Z1" in ["crashes", "moves"],
    /// A restore takes the last stable offset, where records of an undecided transaction begin, for the end.
    RestoresToStable: "P12, Z1" in ["expelled", "moves"],

    /// A store forgets a marker before the transaction that deletes it is committed.
    DeletedUncommitted: "P1, O1, V7" in ["horizon", "horizon-crashes"],
    /// A restore takes no notice of tombstones.
    TombstonesIgnored: "Z3, B3" in ["horizon-crashes", "horizon-moves"],

    // Opening a partition.

    /// The open transaction of a dead owner is left to itself.
    DeadNotFenced: "P6a" in ["crashes"],
    /// Positions are taken while a transaction that moves them is undecided.
    UnstableTaken: "P6b" in ["expelled"],
    /// A partition is not claimed before it is worked on.
    NotClaimed: "P6c, A1, A2" in ["crashes"],
    /// What was done beyond the committed position is not committed unless something else is.
    RestUncommitted: "P9, C6" in ["plain-crashes", "plain-moves"],
    /// Where the group's position has expired the source is read from its start.
    PositionsExpire: "P23, H1" in ["crashes"],
}

/// The adapters of one engine, with what they have to know of each other.
pub struct Planted {
    bug: Option<Bug>,
    sim: Arc<SimLog>,
    topics: Topics,
    group: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the member was told last.
    newest: Option<Membership>,
    /// The number of the commit under way.
    number: u64,
    /// The stages of the commit under way that stand, or are said to.
    stages: usize,
    /// A stage that is said to stand and does not.
    held: Vec<Append>,
    /// Events that have succeeded after a retry.
    retried: BTreeSet<Stamp>,
    /// What is left to be counted in the next transaction.
    counted_later: Vec<proto::Counts>,
}

impl Planted {
    /// For an engine that works on `sim`; without a bug nothing is put anywhere.
    pub fn new(bug: Option<Bug>, sim: &Arc<SimLog>, topics: &Topics, group: &str) -> Arc<Planted> {
        let (sim, topics, group) = (Arc::clone(sim), topics.clone(), group.to_owned());
        Arc::new(Planted { bug, sim, topics, group, state: Mutex::default() })
    }

    /// Whether it is this one.
    pub fn is(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it is held")
    }

    /// The member tells something; the engine hears of it later.
    pub fn tells(&self, event: &MemberEvent) {
        if let MemberEvent::Assigned { membership, .. } = event {
            self.state().newest = Some(membership.clone());
        }
    }

    /// The log as the engine has it.
    pub fn log(self: &Arc<Self>) -> Arc<dyn Log> {
        self.before(Arc::clone(&self.sim) as Arc<dyn Log>, false)
    }

    /// The log as the observer has it, which is `inner` otherwise.
    pub fn observed(self: &Arc<Self>, inner: Arc<dyn Log>) -> Arc<dyn Log> {
        self.before(inner, true)
    }

    fn before(self: &Arc<Self>, inner: Arc<dyn Log>, observes: bool) -> Arc<dyn Log> {
        if self.bug.is_none() { inner } else { Arc::new(log::BuggyLog { inner, observes, planted: Arc::clone(self) }) }
    }

    /// The member by which partitions are claimed.
    pub fn member(&self, inner: Arc<dyn Member>) -> Arc<dyn Member> {
        if self.is(Bug::NotClaimed) { Arc::new(member::ClaimsNothing(inner)) } else { inner }
    }

    /// The committer; `member` is the one that it commits plain positions by.
    pub fn committer(self: &Arc<Self>, inner: Box<dyn Committer>, member: Arc<dyn Member>) -> Box<dyn Committer> {
        if self.bug.is_none() {
            return inner;
        }
        Box::new(committer::BuggyCommitter { inner, member, planted: Arc::clone(self) })
    }
}
