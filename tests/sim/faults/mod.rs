//! What goes wrong: drawn from the seed, kept apart from the workload and from what is checked.
//!
//! | file           | what befalls                                                      |
//! | -------------- | ----------------------------------------------------------------- |
//! | `commits.rs`   | transactions, plain appends and plain positions                   |
//! | `markers.rs`   | readers: transactions that stay undecided for a while             |
//! | `points.rs`    | an engine, at a named point of its work                           |
//! | `processes.rs` | engines and the whole process: death, freezing, moves             |
//! | `halves.rs`    | the log: a transaction of an engine that stands still             |
//! | `disks.rs`     | stores and the log's last write                                   |
//! | `strangers.rs` | topics: what others leave in them                                 |
//! | `log.rs`       | nothing: it puts the above between the engine and the log         |

pub mod commits;
pub mod disks;
pub mod halves;
pub mod log;
pub mod markers;
pub mod points;
pub mod processes;
pub mod strangers;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use fastrand::Rng;
use tidegate::log::embedded::EmbeddedLog;
use tidegate::log::{Log, Record, TopicPartition};

use disks::Tail;
use markers::Markers;
use points::{Fuse, Point};

use crate::checks::truth::{Facts, Truth};

/// What may befall a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process dies and starts again on the same folders.
    Crash,
    /// It starts again without its stores.
    CrashAndWipe,
    /// It starts again with the stores as they were on the disk some time ago.
    CrashAndGoBack,
    /// It starts again after the group's positions have expired.
    CrashAndForget,
    /// It starts again, and a file of a store is damaged.
    CrashAndTear,
    /// Somebody dies at a named point.
    Die,
    /// One of the engines dies, its last transaction perhaps on its way; another takes its place.
    KillOne,
    /// A member is expelled: its partitions are lost, and it joins anew.
    Expel,
    /// An engine stands still, perhaps for longer than its session, and goes on with all that it knew.
    Freeze,
    /// Another engine joins.
    Join,
    /// An engine leaves in good order.
    Leave,
    /// The disk takes nothing for a while, or what it has taken is damaged.
    FailDisk,
    /// Somebody else leaves a transaction in a topic: aborted, or open for a while.
    Stranger,
}

/// What a commit comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Well,
    Late,
    Aborted,
    Fenced,
    UnknownNot,
    UnknownDone,
}

/// What the driver and all that stands between the engines and the log know of the faults. It outlives the process.
#[derive(Clone)]
pub struct Shared(Arc<Mutex<State>>);

struct State {
    rng: Rng,
    /// Of a hundred commits so many do not end well.
    bad_commits: u32,
    /// Of a hundred commits so many have markers that come late.
    late_markers: u32,
    /// Transactions that died on their way, by transactional id.
    abandoned: BTreeMap<String, u64>,
    fuse: Fuse,
    markers: Markers,
    /// How often each transactional id was taken over.
    holders: BTreeMap<String, u64>,
    log: Weak<EmbeddedLog>,
    folder: PathBuf,
    torn: Option<Tail>,
    /// What is settled, as far as the commits tell.
    truth: Option<Truth>,
    /// Of a commit that the log may have lost.
    doubt: Option<Facts>,
    /// What was deleted of `<app>-progress`.
    purged: Vec<Record>,
}

impl Shared {
    /// The folder is the log's.
    pub fn new(seed: u64, bad_commits: u32, late_markers: u32, folder: PathBuf) -> Shared {
        let rng = Rng::with_seed(seed);
        let (fuse, markers, holders) = (Fuse::default(), Markers::default(), BTreeMap::new());
        let (log, torn, truth, doubt, purged) = (Weak::new(), None, None, None, Vec::new());
        Shared(Arc::new(Mutex::new(State {
            rng,
            bad_commits,
            late_markers,
            abandoned: BTreeMap::new(),
            fuse,
            markers,
            holders,
            log,
            folder,
            torn,
            truth,
            doubt,
            purged,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it is held")
    }

    /// The log was opened.
    pub fn opened(&self, log: &Arc<EmbeddedLog>) {
        self.state().log = Arc::downgrade(log);
    }

    fn log(&self) -> Arc<EmbeddedLog> {
        self.state().log.upgrade().expect("it is open while somebody works with it")
    }

    pub fn end(&self, of: &TopicPartition) -> Option<i64> {
        Some(self.log().watermarks(of).ok()?.high)
    }

    /// A number from `least` to `most`.
    fn draw(&self, least: usize, most: usize) -> usize {
        self.state().rng.usize(least..=most)
    }

    fn outcome(&self) -> Outcome {
        let state = &mut *self.state();
        let drawn = state.rng.u32(..100);
        if drawn < state.bad_commits {
            let bad = [Outcome::Aborted, Outcome::Fenced, Outcome::UnknownNot, Outcome::UnknownDone];
            return bad[state.rng.usize(..4)];
        }
        if drawn < state.bad_commits + state.late_markers { Outcome::Late } else { Outcome::Well }
    }

    /// See [`Fuse::dies_at`].
    pub fn dies_at(&self, point: Point) -> bool {
        self.state().fuse.dies_at(point)
    }

    fn fuse_is_set(&self, points: &[Point]) -> bool {
        self.state().fuse.is_set(points)
    }

    /// Somebody is to die at a point that engines get to.
    pub fn set_fuse(&self, transactions: bool) {
        let state = &mut *self.state();
        let points: Vec<_> = points::POINTS.iter().filter(|point| point.is_on_the_way(transactions)).collect();
        state.fuse.set(*points[state.rng.usize(..points.len())]);
    }

    /// Nobody is to die any more.
    pub fn remove_fuse(&self) {
        self.state().fuse.remove();
    }

    /// See [`Fuse::is_dead`].
    pub fn is_dead(&self) -> bool {
        self.state().fuse.is_dead()
    }

    /// See [`Fuse::take_died`].
    pub fn take_died(&self) -> Option<Point> {
        self.state().fuse.take_died()
    }

    /// Who compares what is told to be settled with the truth.
    pub fn expects(&self, truth: Truth) {
        self.state().truth = Some(truth);
    }

    /// What is true of what is settled.
    pub fn truth<T>(&self, look: impl FnOnce(&mut Truth) -> T) -> T {
        look(self.state().truth.as_mut().expect("there is one since the beginning"))
    }

    /// A transaction that says this is committed.
    fn committed(&self, facts: Facts) {
        self.truth(|truth| truth.committed(facts));
    }

    /// A transaction that says this is committed, or lost with the log's last write.
    fn in_doubt(&self, facts: Facts) {
        self.state().doubt = Some(facts);
    }

    /// The log is open again.
    pub fn decide_doubt(&self, group: &str) {
        let Some(facts) = self.state().doubt.take() else { return };
        let Some(mark) = facts.mark() else { return };
        let committed = self.log().committed(group, std::slice::from_ref(&mark.of), false).unwrap().remove(0);
        if committed.is_some_and(|at| (at.position, &at.metadata) == (mark.position, &mark.metadata)) {
            self.committed(facts);
        }
    }

    /// These records of `<app>-progress` are about to be deleted.
    pub fn purged(&self, records: impl Iterator<Item = Record>) {
        self.state().purged.extend(records);
    }

    /// What was deleted of `<app>-progress`, in order.
    pub fn gone(&self) -> Vec<Record> {
        self.state().purged.clone()
    }

    /// Whether markers are still to come.
    pub fn markers_are_late(&self) -> bool {
        self.state().markers.are_late()
    }

    /// Whoever was at transaction `number` is dead.
    fn abandon(&self, id: &str, number: u64) {
        self.state().abandoned.insert(id.to_owned(), number);
    }

    /// The transaction that a dead engine has left undecided, unless that was asked before.
    pub fn take_abandoned(&self, id: &str) -> Option<u64> {
        self.state().abandoned.remove(id)
    }

    /// What is undecided for longer than transactions may take is aborted by the broker, unless somebody was faster.
    fn expire_transactions(&self, log: &EmbeddedLog) {
        let abandoned = std::mem::take(&mut self.state().abandoned);
        abandoned.into_values().for_each(|number| drop(log.decide(number, false)));
    }

    /// Whose committed entries are not readable yet.
    pub fn late_entries(&self) -> Option<String> {
        self.state().markers.of_entries().map(str::to_owned)
    }

    fn comes_late(&self, id: &str, number: u64, commit: bool, has_entries: bool) {
        self.state().markers.put(id, number, commit, has_entries);
    }

    /// Some marker comes.
    pub fn one_marker(&self) {
        let log = self.log();
        let State { markers, rng, .. } = &mut *self.state();
        markers.one(&log, rng);
    }

    fn markers_of(&self, id: &str) {
        let log = self.log();
        self.state().markers.all_of(&log, id);
    }

    /// Somebody new holds the transactional id.
    fn holds(&self, id: &str) -> u64 {
        let state = &mut *self.state();
        let epoch = state.holders.entry(id.to_owned()).or_default();
        *epoch += 1;
        *epoch
    }

    fn is_held(&self, id: &str, epoch: u64) -> bool {
        self.state().holders.get(id) == Some(&epoch)
    }

    fn log_tail(&self) -> Tail {
        Tail::of(&self.state().folder)
    }

    fn tears_from(&self, before: Tail) {
        self.state().torn = Some(before);
    }

    /// The power has failed: what the last write was may not be on the disk.
    pub fn tear_log(&self) {
        let State { torn, rng, folder, .. } = &mut *self.state();
        if let Some(before) = torn.take() {
            before.tear(folder, rng);
        }
    }
}
