//! What kinds of seeds there are: what may go wrong in them, and on which settings.

use tidegate::config::{Guarantee, StampSource, Superseded};

use super::faults::Fault;

/// Seeds of one kind.
#[derive(Debug)]
pub struct Kind {
    /// As in `make simulate KIND=…`.
    pub name: &'static str,
    /// How many a build can afford.
    pub seeds: u64,
    /// What befalls it.
    pub faults: &'static [Fault],
    /// Of a hundred commits so many do not end well.
    pub bad_commits: u32,
    /// Of a hundred commits so many have markers that come late.
    pub late_markers: u32,
    /// Whether markers are deleted.
    pub deletes: bool,
    /// Engines at the start.
    pub nodes: u32,
    /// Where sequences come from.
    pub stamp: StampSource,
    /// What is done with what comes too late.
    pub superseded: Superseded,
    /// With transactions, or without.
    pub guarantee: Guarantee,
    /// So many times at most somebody asks for a retry of dead letters.
    pub retries: u32,
}

/// Nothing goes wrong on one engine with the defaults.
const CALM: Kind = Kind {
    name: "calm",
    seeds: 100,
    faults: &[],
    bad_commits: 0,
    late_markers: 0,
    deletes: false,
    nodes: 1,
    stamp: StampSource::Offset,
    superseded: Superseded::Expand,
    guarantee: Guarantee::ExactlyOnce,
    retries: 0,
};

const CRASHES: &[Fault] = &[
    Fault::Crash,
    Fault::CrashAndWipe,
    Fault::CrashAndForget,
    Fault::CrashAndGoBack,
    Fault::CrashAndGoBack,
    Fault::CrashAndTear,
    Fault::Die,
    Fault::Die,
    Fault::Die,
    Fault::Stranger,
];

const MOVES: &[Fault] = &[
    Fault::KillOne,
    Fault::Expel,
    Fault::Freeze,
    Fault::Freeze,
    Fault::Join,
    Fault::Join,
    Fault::Leave,
    Fault::Leave,
    Fault::Crash,
    Fault::Die,
    Fault::Die,
    Fault::Stranger,
];

const DISKS: &[Fault] = &[
    Fault::FailDisk,
    Fault::FailDisk,
    Fault::FailDisk,
    Fault::FailDisk,
    Fault::CrashAndTear,
    Fault::Crash,
    Fault::Join,
    Fault::Leave,
];

/// None is expelled or frozen: that one would go on writing unfenced.
const MOVES_IN_ORDER: &[Fault] = &[
    Fault::KillOne,
    Fault::KillOne,
    Fault::Join,
    Fault::Leave,
    Fault::Crash,
    Fault::CrashAndTear,
    Fault::Die,
    Fault::Die,
    Fault::Stranger,
];

/// All kinds. While a seed runs the driver and its parts check G1, K1, L1, M2, P2, P3 and R1 in every one of them.
pub static KINDS: &[Kind] = &[
    // K1 to K3, T1, T2, X1, X2, Q1, Q2, N1: one engine, nothing goes wrong.
    CALM,
    // E3, C2, C3, P1, P5, P7: commits are aborted, fenced, and of unknown outcome either way.
    Kind { name: "commits", seeds: 50, bad_commits: 8, late_markers: 10, ..CALM },
    // E2, O2, R1, Z1, A2, P9, P23: the process dies at any moment, and comes back with its stores, older ones, or none,
    // with its positions or without.
    Kind { name: "crashes", seeds: 50, faults: CRASHES, bad_commits: 5, late_markers: 10, ..CALM },
    // G1, G2, E1, T2, A1, P2, P4, P6: engines join, leave, are expelled and die, in the middle of everything.
    Kind { name: "moves", seeds: 50, faults: MOVES, bad_commits: 5, late_markers: 25, nodes: 2, ..CALM },
    // P6, P8: engines stand still for longer than their session, in the middle of transactions, and come back.
    Kind { name: "frozen", seeds: 60, faults: &[Fault::Freeze], late_markers: 10, nodes: 2, ..CALM },
    // P6b: what a member has lost comes back to it while its own last transaction is not readable yet.
    Kind { name: "expelled", seeds: 20, faults: &[Fault::Expel], late_markers: 40, ..CALM },
    // Q3, J1 to J3, P17, P18: sequences come in headers, with gaps, out of order and twice, over several partitions …
    Kind { name: "header", seeds: 50, bad_commits: 5, stamp: StampSource::Header, ..CALM },
    // … that move between engines.
    Kind {
        name: "header-moves",
        seeds: 40,
        faults: MOVES,
        bad_commits: 5,
        late_markers: 15,
        nodes: 2,
        stamp: StampSource::Header,
        ..CALM
    },
    // U1, B1, P22: the order is that in which the sequencer reads, …
    Kind { name: "arrival", seeds: 30, bad_commits: 5, stamp: StampSource::Arrival, ..CALM },
    // … whoever that is, …
    Kind {
        name: "arrival-moves",
        seeds: 30,
        faults: MOVES,
        bad_commits: 5,
        late_markers: 15,
        nodes: 2,
        stamp: StampSource::Arrival,
        ..CALM
    },
    // … also when the seat comes back to a member that had it before.
    Kind {
        name: "arrival-seat",
        seeds: 30,
        faults: &[Fault::Join, Fault::Leave, Fault::Leave],
        nodes: 3,
        stamp: StampSource::Arrival,
        ..CALM
    },
    // P20, R1, R2, V1, V2: dead letters are retried while newer events come …
    Kind { name: "retries", seeds: 40, bad_commits: 5, late_markers: 15, nodes: 2, retries: 20, ..CALM },
    // … and while partitions move and engines die between the acceptance of a retry and its handling.
    Kind {
        name: "retries-moves",
        seeds: 50,
        faults: MOVES,
        bad_commits: 5,
        late_markers: 15,
        nodes: 2,
        retries: 20,
        ..CALM
    },
    // S1 to S4: stores cannot be written, or are damaged, while partitions move …
    Kind { name: "disks", seeds: 40, faults: DISKS, bad_commits: 3, late_markers: 5, nodes: 2, ..CALM },
    // … also that of the sequencer's seat.
    Kind { name: "arrival-disks", seeds: 20, faults: DISKS, nodes: 2, stamp: StampSource::Arrival, ..CALM },
    // V1 to V7, W4, O3, R8, P19: markers that the horizon has passed are deleted …
    Kind { name: "horizon", seeds: 40, bad_commits: 8, late_markers: 10, deletes: true, ..CALM },
    // … while the process dies …
    Kind {
        name: "horizon-crashes",
        seeds: 40,
        faults: CRASHES,
        bad_commits: 5,
        late_markers: 10,
        deletes: true,
        ..CALM
    },
    // … and while partitions move.
    Kind {
        name: "horizon-moves",
        seeds: 40,
        faults: MOVES,
        bad_commits: 5,
        late_markers: 25,
        deletes: true,
        nodes: 2,
        stamp: StampSource::Arrival,
        ..CALM
    },
    // … and where marks tell what is final, …
    Kind {
        name: "header-horizon",
        seeds: 20,
        faults: MOVES,
        bad_commits: 5,
        late_markers: 15,
        deletes: true,
        nodes: 2,
        stamp: StampSource::Header,
        ..CALM
    },
    // V3, P19, P20: … and while dead letters are retried: an open retry holds the horizon, or is overtaken by it.
    Kind {
        name: "retries-horizon",
        seeds: 20,
        faults: MOVES,
        bad_commits: 5,
        late_markers: 15,
        deletes: true,
        nodes: 2,
        retries: 20,
        ..CALM
    },
    // The gate's third policy: what comes too late is consumed without a call and without children.
    Kind {
        name: "drop",
        seeds: 20,
        faults: &[Fault::Crash, Fault::Join, Fault::Leave],
        bad_commits: 5,
        superseded: Superseded::Drop,
        ..CALM
    },
    // C5 to C7, D1: without transactions; commits fail between and in the middle of their stages.
    Kind { name: "plain", seeds: 30, bad_commits: 8, guarantee: Guarantee::AtLeastOnce, ..CALM },
    // C5, C6, R1, Z1: the process dies at any moment, between any two stages and in the middle of them.
    Kind {
        name: "plain-crashes",
        seeds: 40,
        faults: CRASHES,
        bad_commits: 5,
        guarantee: Guarantee::AtLeastOnce,
        ..CALM
    },
    // G1, T2, A1, P6: engines join, leave and die.
    Kind {
        name: "plain-moves",
        seeds: 30,
        faults: MOVES_IN_ORDER,
        bad_commits: 5,
        nodes: 2,
        guarantee: Guarantee::AtLeastOnce,
        ..CALM
    },
    Kind {
        name: "plain-header-moves",
        seeds: 20,
        faults: MOVES_IN_ORDER,
        bad_commits: 5,
        nodes: 2,
        guarantee: Guarantee::AtLeastOnce,
        stamp: StampSource::Header,
        ..CALM
    },
];

impl Kind {
    /// Tells its seeds from the same numbers of other kinds.
    pub fn salt(&self) -> u64 {
        self.name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }
}

#[test]
fn each_kind_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
    assert_eq!(names.len(), KINDS.len(), "{names:?}");
}
