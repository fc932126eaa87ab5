//! One engine with all that waits on its behalf, in the driver's hands: nothing happens by itself.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{TryRecvError, unbounded};
use fastrand::Rng;
use tidegate::clock;
use tidegate::config::{Config, Superseded};
use tidegate::entry::Entry;
use tidegate::instance::calls::{CallId, Calls, Failed, Finished, Verdict};
use tidegate::instance::commit::{Committer, Current, Ended, Mark, Means, Setup, Work};
use tidegate::instance::engine::{Answered, Effect, Engine, Flush, Input, Question, Setting, Sweep};
use tidegate::instance::judging::{Case, Judge};
use tidegate::instance::opening::Opener;
use tidegate::instance::topology::{self, Topology};
use tidegate::instance::view::ListQuery;
use tidegate::log::embedded::{Turn, Turns};
use tidegate::log::{Join, Member, MemberEvent, Membership, TopicPartition};
use tidegate::sequencer::Held;
use tidegate::sequencer::stamps::Excluded;
use tidegate::store::{StoreError, Stores};
use tidegate::task::queue::Queued;
use tidegate::topics::Topics;
use tokio::sync::oneshot;

use super::bugs::{self, Planted};
use super::faults::Shared;
use super::faults::commits::SimMember;
use super::faults::halves::HalfDone;
use super::faults::log::SimLog;
use super::faults::points::Point;
use super::horizons::Watch;
use super::inbox::{GivingBack, Inbox, Spy};
use super::observing::Observing;
use super::retrying::{Beginnings, Reading};
use super::sometimes::{self, reached};
use super::timeline::note;
use super::waiting::{self, Waiting};
use super::workload::Scripts;

/// Calls under way, to be ended in any order.
pub struct Desk {
    rng: Rng,
    scripts: Scripts,
    at_once: u32,
    max_in_flight: usize,
    superseded: Superseded,
    /// Tries in all.
    attempts: u32,
    waiting: Waiting,
    planted: Arc<Planted>,
    pub beginnings: Beginnings,
    /// Begun and not ended.
    pub pending: Vec<Finished>,
}

/// The engine's side of the desk.
pub struct ScriptedCalls(Rc<RefCell<Desk>>);

impl Calls for ScriptedCalls {
    fn begin(&mut self, call: impl FnOnce() -> CallId, queued: &Queued, superseded: bool) -> Option<Verdict> {
        let desk = &mut *self.0.borrow_mut();
        assert!(!superseded || desk.superseded == Superseded::Expand, "an event that is to be dropped is called");
        let call = call();
        let CallId { partition, incarnation, .. } = call;
        let same_task = |other: &&Finished| (other.call.partition, other.call.incarnation) == (partition, incarnation);
        let busy = desk.pending.iter().filter(same_task).any(|other| other.call.key == call.key);
        assert!(!busy, "K1: two calls of the key {:?} at once", call.key);
        let running = desk.pending.iter().filter(same_task).count();
        assert!(running < desk.max_in_flight, "more calls than processing.max_in_flight");
        assert!(queued.attempt <= desk.attempts, "X2: try {} of {}", queued.attempt, queued.event.stamp);
        if desk.superseded == Superseded::Expand {
            desk.waiting.called(partition, incarnation, &queued.event);
        }
        desk.beginnings.called(partition, call.offset);
        let is_retry = queued.event.retry > 0;
        let mut verdict = desk.scripts.verdict(&queued.event.event, queued.attempt, is_retry).map_err(Failed::from);
        if superseded && is_retry {
            reached(sometimes::RETRY_LATE);
        }
        if superseded {
            reached(sometimes::LATE);
            if verdict.as_ref().is_ok_and(|outcome| !outcome.children.is_empty()) {
                reached(sometimes::LATE_PARENT);
            }
        }
        desk.planted.verdict(queued, superseded, &mut verdict);
        if desk.rng.u32(..100) < desk.at_once {
            return Some(verdict);
        }
        desk.pending.push(Finished { call, verdict });
        None
    }

    /// Nothing is cancelled, so that verdicts of older incarnations keep coming (T2).
    fn forget(&mut self, _partition: i32) {}
}

/// How a seed's engines are set.
pub struct Plan {
    pub config: Arc<Config>,
    pub topics: Topics,
    pub topology: Topology,
    pub scripts: Scripts,
    pub at_once: u32,
    pub overlay_bytes: usize,
    /// What is planted at its ports.
    pub bug: Option<bugs::Bug>,
}

/// One engine.
pub struct Node {
    /// Its producer's transactional id, unique in a seed.
    pub name: String,
    /// Its stores.
    pub folder: PathBuf,
    pub engine: Engine<ScriptedCalls>,
    pub desk: Rc<RefCell<Desk>>,
    pub inbox: Inbox,
    pub member: Arc<Spy>,
    pub planted: Arc<Planted>,
    /// What its member does.
    turns: Turns,
    /// What came of the last turn, unless something has happened since.
    pub last_turn: Option<Turn>,
    pub committer: Box<dyn Committer>,
    /// What the committer knows of the group.
    pub current: Arc<Current>,
    pub opener: Opener,
    pub judge: Judge,
    /// Records that a source stands at, to be judged.
    pub judgements: VecDeque<(Case, u64)>,
    /// Records that a source stands at because a mark excludes them.
    pub excluded: VecDeque<(Excluded, u64)>,
    /// What its instance has read of progress, as far as retries need it.
    pub reading: Reading,
    /// A transaction handed out and not carried out, with the losses told until then.
    pub work: Option<(Work, u64)>,
    /// Carried out and not told.
    pub ended: Option<Ended>,
    pub flushes: VecDeque<Flush>,
    pub sweeps: VecDeque<Sweep>,
    /// What its observer has read.
    pub watch: Watch,
    pub flushed: VecDeque<Input>,
    pub claims: VecDeque<(Vec<(TopicPartition, u64)>, Membership)>,
    pub restores: VecDeque<(TopicPartition, u64, i64)>,
    pub opened: VecDeque<Input>,
    /// What the engine last told of itself.
    pub last_status: String,
    /// Its member leaves in good order.
    pub leaving: bool,
    /// Since when it stands still.
    pub frozen: Option<Instant>,
    /// What it has left in the log of a transaction that it was at when it was frozen.
    pub half_done: Option<HalfDone>,
    /// The group does without it, and it has not heard of that.
    pub expelled: bool,
    /// What it knows of what is settled.
    pub observing: Observing,
    /// Of progress its engine knows all marks below this position.
    pub known: i64,
}

impl Node {
    /// Joins the group.
    pub fn join(
        plan: &Plan,
        log: &Arc<SimLog>,
        name: String,
        folder: PathBuf,
        now: Instant,
        seed: u64,
        observing: Observing,
    ) -> Node {
        let shared = log.shared.clone();
        let group = plan.config.application.id.clone();
        let (events_in, events) = unbounded();
        let join = Join { client_id: name.clone(), ..topology::join(&plan.config, &plan.topics) };
        let planted = Planted::new(plan.bug, log, &plan.topics, &group);
        let watcher = Arc::clone(&planted);
        let sink = move |event| {
            watcher.tells(&event);
            let _ = events_in.send(event);
        };
        let (member, turns) = log.inner.join_stepped(join, Box::new(sink)).unwrap();
        let inner = Arc::clone(&log.inner);
        let log = planted.log();
        let member = Arc::new(Spy::new(member));
        let judge = Judge {
            log: Arc::clone(&log),
            topics: plan.topics.clone(),
            group: group.clone(),
            source: plan.config.source.clone(),
            observer: observing.observer(),
        };
        let sim = |before, after| {
            let (inner, shared) = (Arc::clone(&member) as Arc<dyn Member>, shared.clone());
            Arc::new(SimMember { inner, shared, points: (before, after) }) as Arc<dyn Member>
        };
        let means = Means::open(log.as_ref(), plan.config.processing.guarantee, &name).unwrap();
        let current = Arc::new(Current::patient(Duration::ZERO));
        let commits = sim(None, Point::AfterPositions);
        let committer = means.committer(Setup {
            log: Arc::clone(&log),
            topics: plan.topics.clone(),
            group: group.clone(),
            producer_id: name.clone(),
            member: Arc::clone(&commits),
            current: Arc::clone(&current),
            output: plan.topology.output.clone(),
            report: Box::new(|_| {}),
        });
        let committer = planted.committer(committer, commits);
        let opener = Opener {
            log,
            source: plan.config.source.clone(),
            member: planted.member(sim(Some(Point::BeforeClaim), Point::AfterClaim)),
            topics: plan.topics.clone(),
            group,
            mark: Mark { producer: name.clone(), number: 0, address: String::new(), released: false },
            // Nothing is written before somebody says so.
            stores: Stores::new(folder.clone(), 1 << 20, 256 << 20),
            source_ids: plan.topology.source_ids.clone(),
            changelog_id: plan.topology.changelog_id.clone(),
            delete_retention_ms: plan.topology.delete_retention_ms,
            report: Box::new(|of, text| text.into_iter().for_each(|text| note(format!("{of}: {text}")))),
        };
        let setting = Setting {
            config: planted.config(&plan.config),
            topics: plan.topics.clone(),
            topic_ids: plan.topology.source_ids.clone(),
            source_partitions: plan.topology.source_partitions.clone(),
            producer_id: name.clone(),
            address: String::new(),
            thread: 1,
            max_in_flight: plan.config.processing.max_in_flight,
            max_buffered: plan.config.processing.max_buffered,
            overlay_bytes: plan.overlay_bytes,
        };
        let desk = Rc::new(RefCell::new(Desk {
            rng: Rng::with_seed(seed),
            scripts: plan.scripts.clone(),
            at_once: plan.at_once,
            max_in_flight: plan.config.processing.max_in_flight,
            superseded: plan.config.processing.superseded,
            attempts: plan.config.handler.retry.attempts,
            waiting: Waiting::default(),
            planted: Arc::clone(&planted),
            beginnings: Beginnings::default(),
            pending: Vec::new(),
        }));
        let calls = ScriptedCalls(Rc::clone(&desk));
        let mut engine = Engine::new(setting, calls, Arc::clone(&member) as Arc<dyn Member>, now);
        // As the loop does before anything else.
        engine.step(Input::Awake(clock::boot()), now);
        Node {
            name,
            folder,
            engine,
            desk,
            inbox: Inbox::new(inner, events, Arc::clone(&member)),
            member,
            planted,
            turns,
            last_turn: None,
            committer,
            current,
            opener,
            judge,
            judgements: VecDeque::new(),
            excluded: VecDeque::new(),
            reading: Reading::default(),
            work: None,
            ended: None,
            flushes: VecDeque::new(),
            sweeps: VecDeque::new(),
            watch: Watch::default(),
            flushed: VecDeque::new(),
            claims: VecDeque::new(),
            restores: VecDeque::new(),
            opened: VecDeque::new(),
            last_status: String::new(),
            leaving: false,
            frozen: None,
            half_done: None,
            expelled: false,
            observing,
            known: 0,
        }
    }

    /// The member does one thing.
    pub fn turn(&mut self) -> Turn {
        let turn = self.turns.turn();
        self.inbox.fill();
        self.last_turn = Some(turn);
        turn
    }

    /// One input.
    pub fn step(&mut self, mut input: Input, now: Instant) {
        self.planted.input(&mut input, &self.member);
        if let Input::Member(event) = &input {
            Node::hear(&self.current, event);
            if !matches!(event, MemberEvent::Fetched(_) | MemberEvent::Revoked { lost: false, .. }) {
                self.expelled = false;
            }
        }
        if let Input::Member(MemberEvent::Fetched(fetched)) = &input
            && fetched.of.topic.ends_with("-events-repartition")
        {
            self.desk.borrow_mut().beginnings.delivered(fetched.of.partition, &fetched.records);
        }
        let delivered = match &input {
            Input::Member(MemberEvent::Fetched(fetched)) => waiting::events(fetched),
            _ => Vec::new(),
        };
        self.engine.step(input, now);
        self.desk.borrow_mut().waiting.delivered(delivered);
        self.check_answer();
    }

    /// What its committer has to know of the group.
    pub fn hear(current: &Current, event: &MemberEvent) {
        match event {
            MemberEvent::Assigned { membership, .. } => current.renew(membership),
            MemberEvent::Revoked { lost: true, .. } => current.lose(),
            MemberEvent::Revoked { lost: false, .. } => current.revoke(),
            _ => {}
        }
    }

    /// It is gone and does nothing any more, but for a transaction on its way, if there is one.
    pub fn end(self) -> Option<(Box<dyn Committer>, Work)> {
        let Node { committer, work, .. } = self;
        work.map(|(work, _)| (committer, work))
    }

    /// Takes what the engine wants done.
    pub fn take_effects(&mut self, now: Instant) {
        for effect in self.engine.effects(now) {
            match effect {
                Effect::Commit(mut work) => {
                    self.planted.work(&mut work);
                    assert!(self.work.is_none() && self.ended.is_none(), "one transaction is under way at a time");
                    check_offsets(&work, &self.name);
                    self.check_untold(&work, now);
                    self.work = Some((*work, self.current.losses()));
                }
                Effect::Flush(flush) => self.flushes.push_back(flush),
                Effect::Sweep(sweep) => self.sweeps.push_back(sweep),
                Effect::Open(partitions, membership) => self.claims.push_back((partitions, membership)),
                Effect::Await(of) => self.reading.awaiting.push(of),
                Effect::Judge(Held::Beyond(beyond), epoch) => self.judgements.push_back((Case::new(beyond), epoch)),
                Effect::Judge(Held::Excluded(excluded), epoch) => self.excluded.push_back((excluded, epoch)),
                Effect::Rest(rest) => self.look_at(rest),
                Effect::Fail(reason) => panic!("{} cannot go on: {reason}", self.name),
            }
        }
        self.check_answer();
        self.decide();
    }

    /// O1: what a transaction writes is answered for only when it is committed.
    fn check_untold(&mut self, work: &Work, now: Instant) {
        for (key, entry) in work.changes.iter().flat_map(|(_, entries, _)| entries.iter()) {
            let (answer, mut answered) = oneshot::channel();
            self.engine.step(Input::Question(Question::Lookup(key.clone(), answer)), now);
            if let Ok(Answered::Entry(told)) = answered.try_recv() {
                let stamp = |entry: &Option<Entry>| entry.as_ref().map(|entry| entry.stamp.clone());
                assert_ne!(stamp(&told), stamp(entry), "O1: {} tells of {key:?} what is not committed", self.name);
            }
        }
    }

    /// G1: when the engine answers a revoke, no transaction that touches its partitions is undecided.
    fn check_answer(&mut self) {
        let Some(giving_back) = &self.inbox.giving_back else { return };
        if giving_back.lost || giving_back.answered.try_recv() != Err(TryRecvError::Disconnected) {
            return;
        }
        let touched = self.work.iter().flat_map(|(work, _)| &work.offsets);
        let open: Vec<_> = touched.filter(|offset| giving_back.partitions.contains(&offset.of)).collect();
        assert!(open.is_empty(), "G1: {} gave back partitions of an undecided transaction: {open:?}", self.name);
    }

    /// Whether the engine answers for what it owns, if anything: nothing is undecided, and after a pause the group has
    /// been heard (P8).
    pub fn answers(&mut self) -> bool {
        let (answer, mut status) = oneshot::channel();
        self.engine.step(Input::Question(Question::Status(answer)), clock::now());
        let owns = status.try_recv().is_ok_and(|status| status.tasks.iter().any(|task| task.role == "task"));
        let (answer, mut answered) = oneshot::channel();
        let query = ListQuery { limit: 1, ..ListQuery::default() };
        self.engine.step(Input::Question(Question::List(query, answer)), clock::now());
        !owns || matches!(answered.try_recv(), Ok(Ok(_)))
    }

    /// Whether the engine has answered the revoke that it was told.
    pub fn has_answered(&self) -> bool {
        let answered = |giving_back: &GivingBack| giving_back.answered.try_recv() == Err(TryRecvError::Disconnected);
        self.inbox.giving_back.as_ref().is_some_and(answered)
    }

    /// What the committer's thread does.
    pub fn carry_out(&mut self) {
        let (work, losses) = self.work.take().expect("asked when there is one");
        let lost = self.current.losses() != losses;
        let ended = self.committer.carry_out(work, losses, &|| false);
        let committed = matches!(ended, Ended::Committed(_));
        assert!(!(lost && committed), "P2, C4: {} commits what it composed before it lost its partitions", self.name);
        self.ended = Some(ended);
    }

    /// What the flusher's thread does with the next flush; the partition and the checkpoint that are written, if they
    /// are: it may die before that, or after it.
    pub fn flush(&mut self, shared: &Shared) -> Option<(i32, i64)> {
        let flush = self.flushes.pop_front().expect("asked when there is one");
        let Flush { partition, incarnation, store, entries, bookkeeping, checkpoint, durable } = flush;
        if shared.dies_at(Point::BeforeStoreWrite) {
            return None;
        }
        let mut sorted: Vec<_> = entries.iter().map(|(key, entry)| (key, entry.as_ref())).collect();
        sorted.sort_unstable_by_key(|(key, _)| *key);
        let mut result = store.write(sorted, bookkeeping.as_ref(), checkpoint);
        if !shared.dies_at(Point::AfterStoreWrite) && durable && result.is_ok() {
            result = store.flush();
            shared.dies_at(Point::AfterCheckpoint);
        }
        note(format!("{} flushes {partition} up to {}", self.name, checkpoint.position));
        self.flushed.push_back(Input::Flushed { partition, incarnation, result });
        Some((partition, checkpoint.position))
    }

    /// What the flusher's thread does with the next search for markers.
    pub fn sweep(&mut self) {
        let sweep = self.sweeps.pop_front().expect("asked when there is one");
        let (partition, horizon) = (sweep.partition, sweep.horizon);
        note(format!("{} looks for markers of {partition} up to {horizon}", self.name));
        let store = Arc::clone(&sweep.store);
        let found = sweep.carry_out();
        self.planted.found(&found, &store);
        self.flushed.push_back(found);
    }

    /// What the flusher's thread tells of the next flush on a disk that fails (S1, S2, S4); nothing of it is written.
    pub fn fail_flush(&mut self, rng: &mut Rng) {
        let Flush { partition, incarnation, .. } = self.flushes.pop_front().expect("asked when there is one");
        let (path, why) = (self.folder.clone(), "by chance".to_owned());
        let error = match rng.u32(..4) {
            0 => StoreError::Corrupted(path, why),
            1 => StoreError::Unavailable(path, why),
            _ => StoreError::Full(path, why),
        };
        note(format!("{} fails to flush {partition}: {error}", self.name));
        reached(sometimes::DISK);
        self.flushed.push_back(Input::Flushed { partition, incarnation, result: Err(error) });
    }

    /// Some call comes to its end.
    pub fn end_call(&self, rng: &mut Rng) -> Finished {
        let pending = &mut self.desk.borrow_mut().pending;
        pending.swap_remove(rng.usize(..pending.len()))
    }

    /// Nothing is on its way between the engine and those that wait on its behalf.
    pub fn is_quiet(&self) -> bool {
        self.inbox.len() == (0, 0)
            && self.inbox.giving_back.is_none()
            && self.work.is_none()
            && self.ended.is_none()
            && self.flushes.is_empty()
            && self.sweeps.is_empty()
            && self.flushed.is_empty()
            && self.claims.is_empty()
            && self.restores.is_empty()
            && self.opened.is_empty()
            && self.judgements.is_empty()
            && self.reading.awaiting.is_empty()
            && self.excluded.is_empty()
            && self.desk.borrow().pending.is_empty()
    }
}

/// P3: every partition that the transaction touches has an offset in it.
fn check_offsets(work: &Work, name: &str) {
    let has = |partition: i32, topic: &str| {
        work.offsets.iter().any(|offset| offset.of.partition == partition && offset.of.topic.ends_with(topic))
    };
    for (partition, ..) in &work.changes {
        assert!(has(*partition, "-events-repartition"), "P3: {name} changes {partition} without its offset");
    }
    for source in &work.sources {
        assert!(has(source.partition, &source.topic), "P3: {name} sequences {source:?} without its offset");
    }
    assert!(!work.offsets.is_empty(), "P3: {name} commits without a fence");
}
