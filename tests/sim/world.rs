//! The driver: one thread that draws what happens next, and lets faults befall.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;
use tidegate::clock;
use tidegate::instance::commit::{Committer, Ended, Work};
use tidegate::instance::engine::Input;
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions, Turn};
use tidegate::log::{Append, Log, MemberEvent, TopicPartition};

use super::checks::{self, answers::Answers, claims::Claim, reader::Look, settled::Settled, truth::Truth};
use super::faults::log::SimLog;
use super::faults::{Fault, Shared};
use super::horizons::{self, Horizons};
use super::marking;
use super::node::{Node, Plan};
use super::observing::Observing;
use super::retrying::Retries;
use super::sometimes::{self, reached};
use super::timeline::note;
use super::workload::Workload;

/// When nothing but waiting has been done for so long a seed has failed.
const STALLED: Duration = Duration::from_secs(300);

/// No seed takes more steps.
const MOST_STEPS: usize = 400_000;

/// An engine that runs looks at the clock as often.
const LOOK: Duration = Duration::from_millis(500);

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
    Sweep,
    Claim,
    Restore,
    Opened,
    Judge,
    Done,
    Effects,
    Zombie,
    Marker,
    Miss,
    Thaw,
    Ask,
    Look,
    Retry,
    Observe,
}

const ACTS: usize = Act::Observe as usize + 1;

/// Everything of one seed.
pub struct World {
    pub plan: Plan,
    pub workload: Workload,
    pub nodes: Vec<Node>,
    pub folder: TempDir,
    pub log: Option<Arc<SimLog>>,
    pub shared: Shared,
    /// The process may die when a commit was not carried out to its end.
    pub dies_in_commits: bool,
    /// What befalls as soon as it hits somebody hard.
    pub lurking: Option<Fault>,
    /// So many of the next flushes fail.
    pub failing_flushes: u32,
    /// Transactions of engines that are dead.
    pub zombies: Vec<(Box<dyn Committer>, Work)>,
    appended: usize,
    pub rng: Rng,
    weights: [u32; ACTS],
    names: u32,
    /// Transactions that others left in topics.
    pub strangers: u32,
    /// What each store holds, by folder and partition, where it is known.
    pub checkpoints: BTreeMap<(PathBuf, i32), i64>,
    /// Stores' folders in which a file was damaged: how much is read to restore from them cannot be told.
    pub damaged: BTreeSet<PathBuf>,
    /// Copies of the stores' folders as they are on the disk.
    pub copies: BTreeMap<PathBuf, PathBuf>,
    /// Where markers are deleted.
    pub horizons: Option<Horizons>,
    /// What was answered so far.
    pub answers: Answers,
    /// What a reader of committed records has seen so far.
    pub look: Look,
    /// What observers have told so far.
    pub settled: Settled,
    /// Dead letters that are retried.
    pub retries: Retries,
    /// Whether there are any in this kind of seeds.
    pub has_retries: bool,
}

impl World {
    pub fn new(plan: Plan, workload: Workload, folder: TempDir, log: Arc<SimLog>, mut rng: Rng) -> World {
        let mut weights = [0; ACTS];
        weights[..Act::Retry as usize].fill_with(|| 1 << rng.u32(..5));
        (weights[Act::Retry as usize], weights[Act::Observe as usize]) = (1, 4);
        // What only looks is not to take most of the steps, and late is late.
        for rare in [Act::Ask, Act::Look, Act::Marker] {
            weights[rare as usize] = 1;
        }
        let shared = log.shared.clone();
        shared.expects(Truth::new(&plan));
        let settled = Settled::new(&rng);
        World {
            plan,
            workload,
            nodes: Vec::new(),
            folder,
            log: Some(log),
            shared,
            dies_in_commits: false,
            lurking: None,
            failing_flushes: 0,
            zombies: Vec::new(),
            appended: 0,
            rng,
            weights,
            names: 0,
            strangers: 0,
            checkpoints: BTreeMap::new(),
            damaged: BTreeSet::new(),
            copies: BTreeMap::new(),
            horizons: None,
            answers: Answers::default(),
            look: Look::default(),
            settled,
            retries: Retries::default(),
            has_retries: false,
        }
    }

    pub fn log(&self) -> &Arc<SimLog> {
        self.log.as_ref().expect("open but for a moment")
    }

    /// Everybody who works with it is gone.
    pub fn close_log(&mut self) {
        self.log = None;
    }

    /// A log that survives the process, not the machine: a seed needs no more.
    pub fn open_log(&mut self) {
        self.log = Some(open_log(self.folder.path().join("log"), &self.shared));
        self.shared.decide_doubt(&self.plan.config.application.id);
    }

    /// Starts an engine under a new producer id.
    pub fn join(&mut self, folder: PathBuf) {
        self.names += 1;
        let name = format!("node{}", self.names);
        note(format!("{name} joins on {:?}", folder.file_name()));
        let seed = self.rng.u64(..);
        let mut observing = Observing::new(TopicPartition::new(&self.plan.topics.progress, 0), self.settled.seed());
        observing.keeps = self.horizons.is_some() || self.has_retries;
        let node = Node::join(&self.plan, self.log(), name, folder, clock::now(), seed, observing);
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
            if self.lurking.is_some_and(|fault| self.meets(fault))
                && let Some(fault) = self.lurking.take()
            {
                self.befall(fault);
            }
            self.let_go();
            if self.is_done() {
                self.shared.remove_fuse();
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
            horizons::look(self);
            if let Some(point) = self.shared.take_died() {
                self.die(place, point);
            }
            checks::settled::look(self);
            if clock::since(moved) >= STALLED {
                panic!("{}: {}", checks::stalled(self), self.describe());
            }
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
        add(self.shared.markers_are_late(), Act::Marker, 0);
        add(true, Act::Ask, 0);
        add(true, Act::Look, 0);
        add(self.retries.left > 0, Act::Retry, 0);
        for (place, node) in self.nodes.iter().enumerate() {
            if node.frozen.is_some() {
                add(!node.expelled, Act::Miss, place);
                add(node.expelled, Act::Thaw, place);
                continue;
            }
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
            add(!node.sweeps.is_empty(), Act::Sweep, place);
            add(!node.claims.is_empty(), Act::Claim, place);
            add(!node.restores.is_empty(), Act::Restore, place);
            add(!node.opened.is_empty(), Act::Opened, place);
            add(!node.judgements.is_empty() || !node.excluded.is_empty(), Act::Judge, place);
            add(node.has_answered(), Act::Done, place);
            add(true, Act::Effects, place);
            add(self.has_retries, Act::Observe, place);
        }
        acts
    }

    /// False when it was nothing but waiting.
    fn act(&mut self, act: Act, place: usize) -> bool {
        match act {
            Act::Turn => return self.turn(place),
            Act::Retry => return self.retry(),
            Act::Observe => return self.observe(place),
            // The engine may have left something for its own member alone.
            Act::Effects => self.nodes[place].last_turn = None,
            Act::Time | Act::Ask | Act::Look => {}
            _ => self.nodes.iter_mut().for_each(|node| node.last_turn = None),
        }
        self.act_on(act, place);
        !matches!(act, Act::Time | Act::Effects | Act::Judge | Act::Ask | Act::Look)
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
            Act::Marker => return self.shared.one_marker(),
            Act::Miss => return self.miss(place),
            Act::Thaw => return self.thaw(place),
            Act::Ask => return checks::answers::ask(self),
            Act::Look => return checks::reader::look(self),
            Act::Restore => return self.restore(place),
            _ => {}
        }
        let Self { nodes, rng, checkpoints, shared, failing_flushes, .. } = self;
        let node = &mut nodes[place];
        match act {
            Act::Control => {
                let event = node.inbox.next_control().expect("possible");
                if matches!(&event, MemberEvent::Revoked { lost: false, .. }) && node.work.is_some() {
                    reached(sometimes::REVOKE_IN_FLIGHT);
                }
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
                let what = node.work.as_ref().map(|(work, _)| tell(work)).unwrap_or_default();
                node.carry_out();
                note(format!("{} carries out {what}: {:?}", node.name, node.ended));
                if shared.is_dead() {
                    return;
                }
                if matches!(node.ended, Some(Ended::Aborted(_))) && self.dies_in_commits && rng.bool() {
                    return self.die_in_commit(place);
                }
            }
            Act::Ended => {
                // What ends only now is too late for the transaction that a revoke waits for.
                while node.inbox.giving_back.is_some() && !node.desk.borrow().pending.is_empty() && rng.bool() {
                    reached(sometimes::LATE_OUTCOME);
                    let finished = node.end_call(rng);
                    note(format!("{} ends {:?}", node.name, finished.call));
                    node.step(Input::Finished(finished), now);
                }
                let ended = node.ended.take().expect("possible");
                note(format!("{} is told {ended:?}", node.name));
                node.step(Input::Ended(ended), now);
            }
            Act::Flush if *failing_flushes > 0 => {
                *failing_flushes -= 1;
                node.fail_flush(rng);
            }
            Act::Flush => {
                let written = node.flush(shared);
                checkpoints.extend(written.map(|(partition, position)| ((node.folder.clone(), partition), position)));
                if shared.is_dead() {
                    return;
                }
            }
            Act::Flushed => {
                let flushed = node.flushed.pop_front().expect("possible");
                node.step(flushed, now);
            }
            Act::Sweep => node.sweep(),
            Act::Claim => {
                let log = &self.log.as_ref().expect("open but for a moment").inner;
                let before = Claim::before(log, &self.plan.config.application.id, node);
                if node.claim(&self.plan.topics.repartition) {
                    before.check(log, shared);
                }
                note(format!("{} claims; opened {:?}", node.name, node.opened.len()));
            }
            Act::Opened => {
                let place = rng.usize(..node.opened.len());
                let opened = node.opened.remove(place).expect("within");
                node.step(opened, now);
            }
            Act::Judge => node.judge(),
            Act::Done => {
                note(format!("{} has given back", node.name));
                node.inbox.give_back();
            }
            Act::Effects => node.step(Input::Tick, now),
            _ => {}
        }
        if matches!(act, Act::Effects) || rng.u32(..4) > 0 {
            node.take_effects(now);
        }
    }

    fn append(&mut self) {
        let left = self.workload.records.len() - self.appended;
        let count = self.rng.usize(1..=left.min(self.workload.burst));
        let log = Arc::clone(&self.log().inner);
        for draft in &mut self.workload.records[self.appended..self.appended + count] {
            let to = TopicPartition::new(&self.plan.topics.sources[0], draft.partition);
            draft.offset = log.append(Append { to, records: vec![draft.record.clone()] }).unwrap()[0];
            self.shared.truth(|truth| truth.appended(draft));
        }
        self.appended += count;
    }

    fn pass_time(&mut self) {
        let long = self.rng.u32(..60) == 0;
        let pause = Duration::from_millis(if long { 11_000 } else { self.rng.u64(1..40) });
        self.pass(pause);
    }

    /// Time passes, and every engine that runs takes note of it.
    pub fn pass(&mut self, mut pause: Duration) {
        while pause > Duration::ZERO {
            let step = pause.min(LOOK);
            clock::sleep(step);
            pause -= step;
            let awake = self.nodes.iter_mut().filter(|node| node.frozen.is_none());
            awake.for_each(|node| node.engine.step(Input::Awake(clock::boot()), clock::now()));
        }
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
            && !self.shared.markers_are_late()
            && self.nodes.iter().all(|node| node.frozen.is_none() && !node.leaving && node.is_quiet())
            && self.nodes.iter_mut().all(|node| node.turn() == Turn::Idle && node.answers())
            && checks::all_is_committed(self)
            && marking::is_done(self)
            && horizons::is_done(self)
            && self.all_retries_are_answered()
            && (self.retries.left == 0 || !self.retry())
    }

    pub fn describe(&self) -> String {
        let tell = |node: &Node| {
            let giving_back = node.inbox.giving_back.is_some();
            let calls = node.desk.borrow().pending.len();
            let leaves = node.leaving;
            let (claims, restores) = (node.claims.len(), node.restores.len());
            let engine = &node.last_status;
            format!(
                "{}: frozen {:?}; {engine}; cursors {:?} inbox {:?} giving back {giving_back} work {} calls {calls} claims {claims} restores {restores} leaves {leaves}",
                node.name,
                node.frozen,
                node.member.cursors(),
                node.inbox.len(),
                node.work.is_some(),
            )
        };
        let lags = checks::lags(self).into_iter().map(|(of, lag)| format!("{of} lags by {lag}"));
        let turns = format!("turns {:?}", self.nodes.iter().map(|node| node.last_turn).collect::<Vec<_>>());
        self.nodes.iter().map(tell).chain(lags).chain([turns]).collect::<Vec<_>>().join("; ")
    }
}

/// Opens the log of a seed.
pub fn open_log(folder: PathBuf, shared: &Shared) -> Arc<SimLog> {
    let options = EmbeddedOptions { sync: false, write_buffer_bytes: 1 << 20, ..EmbeddedOptions::default() };
    Arc::new(SimLog::new(EmbeddedLog::open(folder, options).unwrap(), shared.clone()))
}

/// What a commit is about.
fn tell(work: &Work) -> String {
    let positions = work.offsets.iter().map(|offset| format!("{}@{}", offset.of, offset.position));
    format!("{} [{}]", work.number, positions.collect::<Vec<_>>().join(" "))
}
