//! The driver: one thread that draws what happens next, a clock of its own, and what goes wrong.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;
use tidegate::clock;
use tidegate::config::Guarantee;
use tidegate::instance::commit::{Committer, Ended, Work};
use tidegate::instance::engine::Input;
use tidegate::instance::opening::OpenError;
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions, Turn};
use tidegate::log::{Append, Log, Member, TopicPartition};

use super::faulty::{Faults, FaultyLog, read};
use super::node::{Node, Plan};
use super::timeline::note;
use super::workload::Workload;

/// When nothing but waiting has been done for so long a seed has failed.
const STALLED: Duration = Duration::from_secs(300);

/// No seed takes more steps.
const MOST_STEPS: usize = 400_000;

/// What may go wrong in a seed.
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
    /// One of the engines dies, its last transaction perhaps on its way; another takes its place.
    KillOne,
    /// A member is expelled: its partitions are lost, and it joins anew.
    Expel,
    /// Another engine joins.
    Join,
    /// An engine leaves in good order.
    Leave,
    /// The disk takes nothing for a while, or what it has taken is damaged.
    FailDisk,
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Append,
    Time,
    Turn,
    Control,
    Records,
    Finish,
    CarryOut,
    Ended,
    Flush,
    Flushed,
    Claim,
    Restore,
    Opened,
    Judge,
    Done,
    Effects,
    Zombie,
}

const ACTS: usize = Act::Zombie as usize + 1;

/// Everything of one seed.
pub struct World {
    pub plan: Plan,
    pub workload: Workload,
    pub nodes: Vec<Node>,
    folder: TempDir,
    log: Option<Arc<FaultyLog>>,
    faults: Arc<Faults>,
    /// The process may die when a commit was not carried out to its end.
    pub dies_in_commits: bool,
    /// So many of the next flushes fail.
    failing_flushes: u32,
    /// Transactions of engines that are dead.
    zombies: Vec<(Box<dyn Committer>, Work)>,
    appended: usize,
    rng: Rng,
    weights: [u32; ACTS],
    names: u32,
    /// What each store holds, by folder and partition, where it is known.
    checkpoints: BTreeMap<(PathBuf, i32), i64>,
    /// Copies of the stores' folders as they are on the disk.
    copies: BTreeMap<PathBuf, PathBuf>,
}

/// Opens a log that survives the process, not the machine: a test needs no more.
pub fn open_log(folder: &Path, faults: &Arc<Faults>) -> Arc<FaultyLog> {
    let options = EmbeddedOptions { sync: false, write_buffer_bytes: 1 << 20, ..EmbeddedOptions::default() };
    let inner = EmbeddedLog::open(folder.join("log"), options).unwrap();
    Arc::new(FaultyLog { inner, faults: Arc::clone(faults) })
}

impl World {
    pub fn new(plan: Plan, workload: Workload, folder: TempDir, log: Arc<FaultyLog>, mut rng: Rng) -> World {
        let mut weights = [0; ACTS];
        weights.fill_with(|| 1 << rng.u32(..5));
        let faults = Arc::clone(&log.faults);
        World {
            plan,
            workload,
            nodes: Vec::new(),
            folder,
            log: Some(log),
            faults,
            dies_in_commits: false,
            failing_flushes: 0,
            zombies: Vec::new(),
            appended: 0,
            rng,
            weights,
            names: 0,
            checkpoints: BTreeMap::new(),
            copies: BTreeMap::new(),
        }
    }

    pub fn log(&self) -> &Arc<FaultyLog> {
        self.log.as_ref().expect("open but for a moment")
    }

    /// Starts an engine under a new producer id.
    pub fn join(&mut self, folder: PathBuf) {
        self.names += 1;
        let name = format!("node{}", self.names);
        note(format!("{name} joins on {:?}", folder.file_name()));
        let seed = self.rng.u64(..);
        let node = Node::join(&self.plan, self.log(), name, folder, clock::now(), seed);
        self.nodes.push(node);
    }

    /// A folder for stores that no engine uses.
    pub fn free_folder(&self) -> PathBuf {
        let named = |number: u32| self.folder.path().join(format!("state{number}"));
        let is_free = |folder: &PathBuf| self.nodes.iter().all(|node| node.folder != *folder);
        (0..).map(named).find(is_free).expect("there are more numbers than engines")
    }

    /// Until everything is processed and nothing is on its way; in between so many of `faults` befall it.
    pub fn run(&mut self, faults: &[Fault], mut budget: u32, seldom: u32) {
        let mut moved = clock::now();
        for _ in 0..MOST_STEPS {
            if budget > 0 && self.rng.u32(..seldom) == 0 {
                budget -= 1;
                let fault = faults[self.rng.usize(..faults.len())];
                self.befall(fault);
            }
            self.let_go();
            if self.is_done() {
                return;
            }
            let acts = self.possible();
            let total: u32 = acts.iter().map(|(act, _)| self.weights[*act as usize]).sum();
            let mut drawn = self.rng.u32(..total);
            let found = acts.iter().find(|(act, _)| {
                let weight = self.weights[*act as usize];
                let is_it = drawn < weight;
                drawn = drawn.wrapping_sub(weight);
                is_it
            });
            let (act, place) = *found.expect("the sum is above what was drawn");
            if self.act(act, place) {
                moved = clock::now();
            }
            assert!(clock::since(moved) < STALLED, "nothing goes on: {}", self.describe());
        }
        panic!("more than {MOST_STEPS} steps: {}", self.describe());
    }

    fn possible(&self) -> Vec<(Act, usize)> {
        let mut acts = vec![(Act::Time, 0)];
        let mut add = |possible: bool, act: Act, place: usize| {
            if possible {
                acts.push((act, place));
            }
        };
        add(self.appended < self.workload.records.len(), Act::Append, 0);
        add(!self.zombies.is_empty(), Act::Zombie, 0);
        for (place, node) in self.nodes.iter().enumerate() {
            let (control, records) = node.inbox.len();
            add(!matches!(node.last_turn, Some(Turn::Idle | Turn::Waits | Turn::Left)), Act::Turn, place);
            // After a revoke the member waits, so nothing comes before it is answered.
            add(control > 0 && node.inbox.giving_back.is_none(), Act::Control, place);
            add(records > 0, Act::Records, place);
            add(!node.desk.borrow().pending.is_empty(), Act::Finish, place);
            add(node.work.is_some(), Act::CarryOut, place);
            add(node.ended.is_some(), Act::Ended, place);
            add(!node.flushes.is_empty(), Act::Flush, place);
            add(!node.flushed.is_empty(), Act::Flushed, place);
            add(!node.claims.is_empty(), Act::Claim, place);
            add(!node.restores.is_empty(), Act::Restore, place);
            add(!node.opened.is_empty(), Act::Opened, place);
            add(!node.judgements.is_empty(), Act::Judge, place);
            add(node.has_answered(), Act::Done, place);
            add(true, Act::Effects, place);
        }
        acts
    }

    /// False when it was nothing but waiting.
    fn act(&mut self, act: Act, place: usize) -> bool {
        match act {
            Act::Turn => return self.turn(place),
            // The engine may have left something for its own member alone.
            Act::Effects => self.nodes[place].last_turn = None,
            Act::Time => {}
            _ => self.nodes.iter_mut().for_each(|node| node.last_turn = None),
        }
        self.act_on(act, place);
        !matches!(act, Act::Time | Act::Effects | Act::Judge)
    }

    fn turn(&mut self, place: usize) -> bool {
        let done = self.nodes[place].turn() == Turn::Done;
        if done {
            self.nodes.iter_mut().for_each(|node| node.last_turn = None);
        }
        done
    }

    fn act_on(&mut self, act: Act, place: usize) {
        let now = clock::now();
        match act {
            Act::Append => return self.append(),
            Act::Time => return self.pass_time(),
            Act::Zombie => return self.zombie(),
            Act::Restore => self.restore(place),
            _ => {}
        }
        let Self { nodes, rng, checkpoints, failing_flushes, .. } = self;
        let node = &mut nodes[place];
        match act {
            Act::Control => {
                let event = node.inbox.next_control().expect("possible");
                node.step(Input::Member(event), now);
            }
            Act::Records => {
                let Some(fetched) = node.inbox.next_records(rng) else { return };
                note(format!("{} gets {} records of {}", node.name, fetched.records.len(), fetched.of));
                node.step(Input::Member(tidegate::log::MemberEvent::Fetched(fetched)), now);
            }
            Act::Finish => {
                let finished = node.end_call(rng);
                note(format!("{} ends {:?}", node.name, finished.call));
                node.step(Input::Finished(finished), now);
            }
            Act::CarryOut => {
                node.carry_out();
                note(format!("{} carries out: {:?}", node.name, node.ended));
                if matches!(node.ended, Some(Ended::Aborted(_))) && self.dies_in_commits && rng.bool() {
                    return self.die_in_commit(place);
                }
            }
            Act::Ended => {
                let ended = node.ended.take().expect("possible");
                note(format!("{} is told {ended:?}", node.name));
                node.step(Input::Ended(ended), now);
            }
            Act::Flush if *failing_flushes > 0 => {
                *failing_flushes -= 1;
                node.fail_flush(rng);
                note(format!("{} fails to flush: {:?}", node.name, node.flushed.len()));
            }
            Act::Flush => {
                let (partition, position) = node.flush();
                note(format!("{} flushes {partition} up to {position}", node.name));
                checkpoints.insert((node.folder.clone(), partition), position);
            }
            Act::Flushed => {
                let flushed = node.flushed.pop_front().expect("possible");
                node.step(flushed, now);
            }
            Act::Claim => {
                node.claim(&self.plan.topics.repartition);
                note(format!("{} claims; opened {:?}", node.name, node.opened.len()));
            }
            Act::Opened => {
                let place = rng.usize(..node.opened.len());
                let opened = node.opened.remove(place).expect("within");
                node.step(opened, now);
            }
            Act::Judge => {
                let judged = node.judge();
                note(format!("{} judges: {judged}", node.name));
            }
            Act::Done => {
                note(format!("{} has given back", node.name));
                node.inbox.give_back();
            }
            Act::Effects => node.step(Input::Tick, now),
            Act::Restore | Act::Append | Act::Time | Act::Turn | Act::Zombie => {}
        }
        if matches!(act, Act::Effects) || rng.u32(..4) > 0 {
            node.take_effects(now);
        }
    }

    fn append(&mut self) {
        let left = self.workload.records.len() - self.appended;
        let count = self.rng.usize(1..=left.min(20));
        for draft in &self.workload.records[self.appended..self.appended + count] {
            let to = TopicPartition::new(&self.plan.topics.sources[0], draft.partition);
            let offsets = self.log().append(Append { to, records: vec![draft.record.clone()] }).unwrap();
            assert_eq!(offsets, [draft.offset], "the reference counts from 0");
        }
        self.appended += count;
    }

    fn pass_time(&mut self) {
        let long = self.rng.u32(..60) == 0;
        clock::sleep(Duration::from_millis(if long { 11_000 } else { self.rng.u64(1..40) }));
    }

    fn zombie(&mut self) {
        let (mut committer, work) = self.zombies.pop().expect("possible");
        let number = work.number;
        let ended = committer.carry_out(work, 0, &|| false);
        note(format!("a dead engine's transaction {number}: {ended:?}"));
        assert!(
            matches!(ended, Ended::Aborted(_)),
            "P2, P6: a transaction of an engine that has left the group committed"
        );
    }

    /// Restores a claimed partition; a store is never rebuilt without need, and only its tail is read.
    fn restore(&mut self, place: usize) {
        let now = clock::now();
        let log = Arc::clone(self.log());
        let Self { nodes, rng, checkpoints, plan, .. } = self;
        let node = &mut nodes[place];
        let next = rng.usize(..node.restores.len());
        let (of, epoch, position) = node.restores.remove(next).expect("within");
        let partition = of.partition;
        if !node.engine.opening_epochs().contains(&epoch) {
            return; // Nobody waits for it any more, and a newer opening may have the store.
        }
        // A store is free only when those who write it and those who were given it are through.
        while node.flushes.iter().any(|flush| flush.partition == partition) {
            let (partition, position) = node.flush();
            checkpoints.insert((node.folder.clone(), partition), position);
        }
        let is_of = |input: &Input| matches!(input, Input::Opened { of, .. } if of.partition == partition);
        while let Some(place) = node.opened.iter().position(is_of) {
            let opened = node.opened.remove(place).expect("found");
            node.step(opened, now);
        }
        // Long enough for any restore here, and an end for one that cannot succeed.
        let asked = std::cell::Cell::new(0);
        let wanted = node.engine.opening_epochs().contains(&epoch);
        let valid = || wanted && asked.replace(asked.get() + 1) < 1000;
        let restored = node.opener.restore(partition, position, &valid, &|_| {});
        if !wanted && matches!(restored, Err(OpenError::Moved)) {
            // Nobody waits for it any more; the partition may be at work already under a later epoch.
            node.opened.push_back(Input::Opened { of, epoch, opened: Err(OpenError::Moved) });
            return;
        }
        let restored = restored.unwrap_or_else(|error| panic!("{} restores {partition}: {error}", node.name));
        let changelog = TopicPartition::new(&plan.topics.changelog, partition);
        let known = checkpoints.insert((node.folder.clone(), partition), log.watermarks(&changelog).unwrap().high);
        note(format!("{} restores {partition} from {position}: {known:?}, {} records", node.name, restored.records));
        if let Some(known) = known {
            assert_eq!(restored.rebuilt, None, "R1: the store is set aside without need");
            let tail = read(log.as_ref(), &changelog, known).len();
            assert_eq!(restored.records as usize, tail, "restored is the tail from {known} on, no more and no less");
        }
        let opened = tidegate::instance::engine::Opened {
            position: restored.done.low(),
            restored: Some(restored),
            next_sequence: None,
        };
        node.opened.push_back(Input::Opened { of, epoch, opened: Ok(opened) });
    }

    /// Forgets engines that have left.
    fn let_go(&mut self) {
        let has_left = |node: &Node| {
            let left = node.last_turn == Some(Turn::Left);
            left && node.engine.is_idle() && node.flushes.is_empty() && node.ended.is_none()
        };
        while let Some(place) = self.nodes.iter().position(has_left) {
            let node = self.nodes.swap_remove(place);
            note(format!("{} has left", node.name));
        }
        if self.nodes.is_empty() {
            let folder = self.free_folder();
            self.join(folder);
        }
    }

    fn is_done(&mut self) -> bool {
        self.appended == self.workload.records.len()
            && self.zombies.is_empty()
            && self.nodes.iter().all(|node| !node.leaving && node.is_quiet())
            && self.nodes.iter_mut().all(|node| node.turn() == Turn::Idle)
            && super::check::all_is_committed(self)
    }

    fn befall(&mut self, fault: Fault) {
        note(format!("fault: {fault:?}"));
        let place = self.rng.usize(..self.nodes.len());
        match fault {
            Fault::Crash => self.crash(|_| {}),
            Fault::CrashAndWipe => self.crash(|world| {
                for node in 0..3 {
                    let _ = std::fs::remove_dir_all(world.folder.path().join(format!("state{node}")));
                }
                world.checkpoints.clear();
            }),
            Fault::CrashAndGoBack => match self.copies.is_empty() {
                true => self.copy(place),
                false => self.crash(World::go_back),
            },
            Fault::CrashAndForget => self.crash(World::forget),
            Fault::KillOne => self.kill(place),
            Fault::Expel => {
                let group = &self.plan.config.application.id;
                let prefix = format!("{}-", self.nodes[place].name);
                let log = &self.log().inner;
                log.members(group).iter().filter(|id| id.starts_with(&prefix)).for_each(|id| log.expel(group, id));
            }
            Fault::Join if self.nodes.len() < 3 => {
                let folder = self.free_folder();
                self.join(folder);
            }
            Fault::Join => {}
            Fault::FailDisk => self.failing_flushes += self.rng.u32(1..=4),
            Fault::Leave => {
                let node = &mut self.nodes[place];
                node.leaving = true;
                node.member.leave();
            }
        }
    }

    /// The whole process dies; its log and its stores are opened again after `meanwhile`.
    pub fn crash(&mut self, meanwhile: impl FnOnce(&mut World)) {
        let folders: Vec<PathBuf> = self.nodes.iter().map(|node| node.folder.clone()).collect();
        for node in std::mem::take(&mut self.nodes) {
            bury(node);
        }
        self.zombies.clear();
        self.log = None;
        meanwhile(self);
        self.log = Some(open_log(self.folder.path(), &self.faults));
        for folder in folders {
            self.join(folder);
        }
    }

    fn kill(&mut self, place: usize) {
        let node = self.nodes.swap_remove(place);
        let folder = node.folder.clone();
        // Without transactions nothing fences what it left: that it does not wake up is the condition.
        if let Some((committer, work)) = bury(node)
            && self.plan.config.processing.guarantee == Guarantee::ExactlyOnce
            && self.rng.bool()
        {
            self.zombies.push((committer, work));
        }
        self.join(folder);
    }

    /// What ended in the middle of its stages might as well have ended with the process.
    fn die_in_commit(&mut self, place: usize) {
        match self.rng.bool() {
            true => self.crash(|_| {}),
            false => self.kill(place),
        }
    }

    /// Copies the stores as they are on the disk: what is only in memory is not there.
    fn copy(&mut self, place: usize) {
        let folder = self.nodes[place].folder.clone();
        let copy = folder.with_extension("copy");
        let _ = std::fs::remove_dir_all(&copy);
        copy_folder(&folder, &copy);
        self.copies.insert(folder, copy);
    }

    fn go_back(world: &mut World) {
        for (folder, copy) in std::mem::take(&mut world.copies) {
            let _ = std::fs::remove_dir_all(&folder);
            let _ = std::fs::rename(copy, &folder);
            world.checkpoints.retain(|(of, _), _| *of != folder);
        }
    }

    /// The group's positions expire, which they do while it has no member (protocol P23).
    pub fn forget(&mut self) {
        let log = open_log(self.folder.path(), &self.faults);
        log.delete_group(&self.plan.config.application.id).unwrap();
    }

    pub fn describe(&self) -> String {
        let tell = |node: &Node| {
            let giving_back = node.inbox.giving_back.is_some();
            let calls = node.desk.borrow().pending.len();
            let leaves = node.leaving;
            let (claims, restores) = (node.claims.len(), node.restores.len());
            let engine = &node.last_status;
            format!(
                "{}: {engine}; cursors {:?} inbox {:?} giving back {giving_back} work {} calls {calls} claims {claims} restores {restores} leaves {leaves}",
                node.name,
                node.member.cursors(),
                node.inbox.len(),
                node.work.is_some(),
            )
        };
        let lags = super::check::lags(self).into_iter().map(|(of, lag)| format!("{of} lags by {lag}"));
        let turns = format!("turns {:?}", self.nodes.iter().map(|node| node.last_turn).collect::<Vec<_>>());
        self.nodes.iter().map(tell).chain(lags).chain([turns]).collect::<Vec<_>>().join("; ")
    }
}

/// The engine is gone and does nothing any more; what is left of it may be a transaction on its way.
fn bury(node: Node) -> Option<(Box<dyn Committer>, Work)> {
    let Node { committer, work, .. } = node;
    work.map(|(work, _)| (committer, work))
}

fn copy_folder(from: &Path, to: &Path) {
    let Ok(entries) = std::fs::read_dir(from) else { return };
    std::fs::create_dir_all(to).unwrap();
    for entry in entries.flatten() {
        let target = to.join(entry.file_name());
        match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => copy_folder(&entry.path(), &target),
            // The store may have deleted it meanwhile.
            false => drop(std::fs::copy(entry.path(), target)),
        }
    }
}
