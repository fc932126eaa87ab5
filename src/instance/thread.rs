//! An engine thread with the threads that wait on its behalf: the member's, the committer's, the
//! flusher's and, while partitions are opened, theirs.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select_biased, unbounded};

use super::StartError;
use super::calls::{Finished, RuntimeCalls};
use super::commit::{Committer, Current, Mark, Means, Setup, Work};
use super::engine::{Effect, Engine, Flush, Input, Opened, Question, Rest, Setting, Sweep};
use super::forgetting::Forgetting;
use super::judging::Judge;
use super::observer::Observer;
use super::opening::{OpenError, Opener};
use super::settling;
use super::topology::{self, Topology, Wanted};
use crate::clock;
use crate::log::{Log, LogError, Member, MemberEvent, Membership, TopicPartition};
use crate::marks::Known;
use crate::metrics;
use crate::sequencer::Held;
use crate::store::Stores;

/// Batches that may wait for the engine; beyond, the member's thread waits.
const BATCHES: usize = 8;

/// Partitions of one assignment that wait for their turn to be restored at the same time: of these the shortest goes
/// first.
const RESTORERS: usize = 64;

/// Inputs taken in one round before effects are looked at.
const ROUND: usize = 4096;

/// How often an engine that nobody asks looks at the clock that runs during suspends (protocol P8).
const LOOK: Duration = Duration::from_millis(500);

/// What an engine thread needs to begin.
pub(super) struct Beginning {
    pub(super) log: Arc<dyn Log>,
    pub(super) setting: Setting,
    pub(super) topology: Topology,
    pub(super) stores: Stores,
    pub(super) calls: RuntimeCalls,
    pub(super) finished: Receiver<Finished>,
    pub(super) means: Means,
    /// Reads what becomes of retries, and what came of sequences that a mark excludes.
    pub(super) observer: Arc<Observer>,
}

/// A running engine thread.
pub(super) struct EngineThread {
    questions: Sender<Input>,
    member: Arc<dyn Member>,
    current: Arc<Current>,
    left: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    /// Joins the group and starts. `failed` is told once when the engine cannot go on.
    pub(super) fn start(
        beginning: Beginning,
        failed: impl Fn(StartError) + Send + Sync + 'static,
    ) -> Result<EngineThread, LogError> {
        let Beginning { log, setting, topology, stores, calls, finished, means, observer } = beginning;
        let failed: Failed = Arc::new(failed);
        let (events_in, events) = bounded(BATCHES);
        let (inputs_in, inputs) = unbounded();
        let left = Arc::new(AtomicBool::new(false));
        let group = setting.config.application.id.clone();
        let current = Arc::new(Current::default());
        let wanted = Wanted::of(&setting.config, &setting.topics);
        let (ask, told) = (Arc::clone(&log), inputs_in.clone());
        let is_told = Cell::new(false);
        let report_commits = move |why: Option<LogError>| {
            if is_told.replace(why.is_some()) || why.is_some() {
                let why = why.map(|error| match wanted.explained(ask.as_ref(), error) {
                    LogError::Unauthorized(why) => why,
                    error => format!("nothing can be committed: {error}"),
                });
                drop(told.send(Input::Trouble("commit".into(), why)));
            }
        };
        let mut join = topology::join(&setting.config, &setting.topics);
        let name = setting.thread;
        join.client_id = format!("{}-{name}", join.client_id);
        // The engine outlives the member, but for a process that is going down.
        let member = log.join(join, Box::new(move |event| drop(events_in.send(event))))?;
        let committer = means.committer(Setup {
            log: Arc::clone(&log),
            topics: setting.topics.clone(),
            group: group.clone(),
            producer_id: setting.producer_id.clone(),
            member: Arc::clone(&member),
            current: Arc::clone(&current),
            output: topology.output,
            report: Box::new(report_commits),
        });
        let report = inputs_in.clone();
        let judge = Judge {
            log: Arc::clone(&log),
            topics: setting.topics.clone(),
            group: group.clone(),
            source: setting.config.source.clone(),
            observer: Arc::clone(&observer),
        };
        let opener = Opener {
            log,
            source: setting.config.source.clone(),
            member: Arc::clone(&member),
            topics: setting.topics.clone(),
            group,
            mark: Mark {
                producer: setting.producer_id.clone(),
                number: 0,
                address: setting.address.clone(),
                released: false,
            },
            stores,
            source_ids: topology.source_ids,
            changelog_id: topology.changelog_id,
            delete_retention_ms: topology.delete_retention_ms,
            report: Box::new(move |of, text| drop(report.send(Input::Trouble(of.to_string(), text)))),
        };
        let engine = Engine::new(setting, calls, Arc::clone(&member), clock::now());
        let surroundings = Surroundings {
            works: spawn_committer(committer, inputs_in.clone(), Arc::clone(&left), Alarm(Arc::clone(&failed))),
            stores: spawn_flusher(inputs_in.clone()),
            opener: Arc::new(opener),
            judge,
            observer,
            inputs: inputs_in.clone(),
            left: Arc::clone(&left),
            current: Arc::clone(&current),
            wanted: Arc::default(),
            waiting: RefCell::default(),
        };
        let thread = thread::Builder::new().name(format!("engine-{name}"));
        let stop = Arc::clone(&left);
        let thread = thread
            .spawn(move || {
                let alarm = Alarm(failed);
                run(engine, surroundings, &events, &inputs, &finished, &stop, &*alarm.0);
            })
            .expect("the process can start a thread");
        Ok(EngineThread { questions: inputs_in, member, current, left, thread: Some(thread) })
    }

    /// Passes a question on; its sender is dropped when the engine is gone.
    pub(super) fn ask(&self, question: Question) {
        let _ = self.questions.send(Input::Question(question));
    }

    /// The horizon is this.
    pub(super) fn horizon_is(&self, horizon: u64) {
        let _ = self.questions.send(Input::Horizon(horizon));
    }

    /// Something outside is wrong, or well again.
    pub(super) fn trouble(&self, what: &str, text: Option<String>) {
        let _ = self.questions.send(Input::Trouble(what.to_owned(), text));
    }

    /// Whether too many roots are unsettled.
    pub(super) fn crowded(&self, is_crowded: bool) {
        let _ = self.questions.send(Input::Crowded(is_crowded));
    }

    /// The source topics have these partitions now.
    pub(super) fn sources_are(&self, partitions: Vec<TopicPartition>) {
        let _ = self.questions.send(Input::Sources(partitions));
    }

    /// The observer has read progress up to here.
    pub(super) fn hear(&self, known: Known) {
        let _ = self.questions.send(Input::Known(known));
    }

    /// Gives everything back, commits, leaves the group. Blocks.
    pub(super) fn leave(&mut self) {
        self.current.leave();
        self.member.leave();
        self.left.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic of the engine has been told by its hook.
            let _ = thread.join();
        }
    }
}

/// Is told once why the engine cannot go on.
type Failed = Arc<dyn Fn(StartError) + Send + Sync>;

/// A thread that panics must not leave an instance behind that looks alive and does nothing.
struct Alarm(Failed);

impl Drop for Alarm {
    fn drop(&mut self) {
        if thread::panicking() {
            let reason = "a thread of the engine panicked (its message is above); nothing is lost: start the instance \
                          again, and please report it";
            (self.0)(StartError::Failed(reason.into()));
        }
    }
}

/// Where effects go.
struct Surroundings {
    works: (Sender<(Work, u64)>, JoinHandle<()>),
    stores: (Sender<StoreWork>, JoinHandle<()>),
    opener: Arc<Opener>,
    judge: Judge,
    observer: Arc<Observer>,
    inputs: Sender<Input>,
    left: Arc<AtomicBool>,
    current: Arc<Current>,
    /// The openings and judgements that the engine still waits for: what was revoked meanwhile ends by itself, or it
    /// would keep its store from the next opening of the partition.
    wanted: Arc<Mutex<BTreeSet<u64>>>,
    /// Openers and judges at work.
    waiting: RefCell<Vec<JoinHandle<()>>>,
}

fn run(
    mut engine: Engine<RuntimeCalls>,
    surroundings: Surroundings,
    events: &Receiver<MemberEvent>,
    inputs: &Receiver<Input>,
    finished: &Receiver<Finished>,
    left: &AtomicBool,
    failed: &dyn Fn(StartError),
) {
    let mut has_failed = false;
    let mut looked = clock::now();
    loop {
        let wait = engine.next_tick(clock::now()).saturating_duration_since(clock::now());
        let mut next = select_biased! {
            recv(inputs) -> input => input.ok(),
            recv(finished) -> finished => finished.ok().map(Input::Finished),
            recv(events) -> event => event.ok().map(Input::Member),
            default(wait) => None,
        };
        let now = clock::now();
        let take = |engine: &mut Engine<RuntimeCalls>, input: Input| {
            surroundings.hear(&input);
            if matches!(input, Input::Question(_)) {
                engine.step(Input::Awake(clock::boot()), now);
            }
            engine.step(input, now);
        };
        if now.saturating_duration_since(looked) >= LOOK {
            looked = now;
            engine.step(Input::Awake(clock::boot()), now);
        }
        for _ in 0..ROUND {
            let Some(input) = next.take() else { break };
            take(&mut engine, input);
            let finished = || finished.try_recv().ok().map(Input::Finished);
            next = inputs.try_recv().ok().or_else(finished);
        }
        // The log's turn comes also while other inputs never end.
        for input in next.into_iter().chain(events.try_recv().ok().map(Input::Member)) {
            take(&mut engine, input);
        }
        engine.step(Input::Tick, now);
        let effects = engine.effects(now);
        *surroundings.wanted.lock().unwrap_or_else(PoisonError::into_inner) = engine.opening_epochs();
        for effect in effects {
            match effect {
                Effect::Commit(work) => drop(surroundings.works.0.send((*work, surroundings.current.losses()))),
                Effect::Flush(flush) => drop(surroundings.stores.0.send(StoreWork::Flush(flush))),
                Effect::Sweep(sweep) => drop(surroundings.stores.0.send(StoreWork::Sweep(sweep))),
                Effect::Open(partitions, membership) => surroundings.open(partitions, membership),
                Effect::Judge(held, epoch) => surroundings.judge(held, epoch),
                Effect::Rest(rest) => surroundings.look_at(rest),
                Effect::Await(of) => {
                    let inputs = surroundings.inputs.clone();
                    let tell = move |verdict, known| drop(inputs.send(Input::Decided(of, verdict, known)));
                    surroundings.observer.decide(of.retry, tell);
                }
                Effect::Fail(reason) if !has_failed => {
                    has_failed = true;
                    failed(StartError::Failed(reason));
                }
                Effect::Fail(_) => {}
            }
        }
        if left.load(Ordering::Acquire) && engine.is_idle() {
            break;
        }
    }
    // What is on its way into the stores arrives there, and nobody has a database open any more when the process ends:
    // RocksDB does not survive the end of its own statics.
    drop(engine);
    let Surroundings { works: (works, committer), stores: (stores, flusher), waiting, .. } = surroundings;
    drop((works, stores));
    for thread in waiting.into_inner().into_iter().chain([committer, flusher]) {
        // A panic has been told by its hook.
        let _ = thread.join();
    }
}

fn spawn_committer(
    mut committer: Box<dyn Committer>,
    inputs: Sender<Input>,
    left: Arc<AtomicBool>,
    alarm: Alarm,
) -> (Sender<(Work, u64)>, JoinHandle<()>) {
    let (works_in, works) = bounded::<(Work, u64)>(1);
    let carry_out = move || {
        let _alarm = alarm;
        for (work, losses) in works {
            let ended = committer.carry_out(work, losses, &|| left.load(Ordering::Acquire));
            if inputs.send(Input::Ended(ended)).is_err() {
                return;
            }
        }
    };
    let thread = thread::Builder::new().name("committer".into()).spawn(carry_out);
    (works_in, thread.expect("the process can start a thread"))
}

/// What the one writer of the stores does (R8).
enum StoreWork {
    Flush(Flush),
    Sweep(Sweep),
}

fn spawn_flusher(inputs: Sender<Input>) -> (Sender<StoreWork>, JoinHandle<()>) {
    let (works_in, works) = unbounded();
    let work = move || {
        let mut forgetting = Forgetting::default();
        loop {
            let done = match works.recv_timeout(LOOK) {
                Ok(StoreWork::Flush(flush)) => {
                    forgetting.begins(&flush, clock::now());
                    Some(write(flush))
                }
                Ok(StoreWork::Sweep(sweep)) => Some(sweep.carry_out()),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            // Where the engine is gone nobody needs the answer.
            let _ = done.is_none_or(|done| inputs.send(done).is_ok());
            forgetting.go_on(clock::now());
        }
    };
    let thread = thread::Builder::new().name("flusher".into()).spawn(work).expect("the process can start a thread");
    (works_in, thread)
}

fn write(flush: Flush) -> Input {
    let begun = clock::now();
    let Flush { partition, incarnation, store, entries, bookkeeping, checkpoint, durable } = flush;
    let mut sorted: Vec<_> = entries.iter().map(|(key, entry)| (key, entry.as_ref())).collect();
    sorted.sort_unstable_by_key(|(key, _)| *key);
    let mut result = store.write(sorted, bookkeeping.as_ref(), checkpoint);
    if durable && result.is_ok() {
        result = store.flush();
    }
    metrics::store_flushed(begun.elapsed());
    Input::Flushed { partition, incarnation, result }
}

impl Surroundings {
    /// What the committer has to know of the group, in the order of the engine's inputs.
    fn hear(&self, input: &Input) {
        match input {
            Input::Member(MemberEvent::Assigned { membership, .. }) => self.current.renew(membership),
            Input::Member(MemberEvent::Revoked { lost: true, .. }) => self.current.lose(),
            Input::Member(MemberEvent::Revoked { lost: false, .. }) => self.current.revoke(),
            _ => {}
        }
    }

    /// Judges a record on a thread of its own.
    fn judge(&self, held: Held, epoch: u64) {
        let (judge, inputs, left) = (self.judge.clone(), self.inputs.clone(), Arc::clone(&self.left));
        let wanted = Arc::clone(&self.wanted);
        let decide = move || {
            let waits = || wanted.lock().unwrap_or_else(PoisonError::into_inner).contains(&epoch);
            let valid = || !left.load(Ordering::Acquire) && waits();
            let name = format!("{} judged", held.of());
            let report = |text: Option<String>| drop(inputs.send(Input::Trouble(name.clone(), text)));
            let judged = match held {
                Held::Beyond(beyond) => {
                    let judgement = judge.wait(&beyond, &valid, &report);
                    judgement.map(|judgement| Input::Judged(beyond, epoch, judgement))
                }
                Held::Excluded(excluded) => {
                    let finding = judge.wait_for_finding(&excluded, &valid, &report);
                    finding.map(|finding| Input::Found(excluded, epoch, finding))
                }
            };
            judged.into_iter().for_each(|judged| drop(inputs.send(judged)));
        };
        self.spawn("judge", decide);
    }

    /// Looks on a thread of its own whether anything stands there. What cannot be told now is asked for again.
    fn look_at(&self, rest: Rest) {
        let (log, inputs) = (Arc::clone(&self.judge.log), self.inputs.clone());
        let look = move || {
            if settling::is_empty(log.as_ref(), &rest.of, rest.from, rest.to).unwrap_or(false) {
                let _ = inputs.send(Input::Passed(rest));
            }
        };
        self.spawn("rest", look);
    }

    fn spawn(&self, name: &str, work: impl FnOnce() + Send + 'static) {
        let thread = thread::Builder::new().name(name.into()).spawn(work).expect("the process can start a thread");
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|thread| !thread.is_finished());
        waiting.push(thread);
    }

    /// Claims the partitions on a thread of its own, then restores the tasks among them, each when it is its turn
    /// (T2); each is told as soon as it is ready.
    fn open(&self, partitions: Vec<(TopicPartition, u64)>, membership: Membership) {
        let (opener, inputs, left) = (Arc::clone(&self.opener), self.inputs.clone(), Arc::clone(&self.left));
        let wanted = Arc::clone(&self.wanted);
        let open = move || {
            let waits = |epoch: &u64| wanted.lock().unwrap_or_else(PoisonError::into_inner).contains(epoch);
            let valid = || !left.load(Ordering::Acquire) && partitions.iter().any(|(_, epoch)| waits(epoch));
            let names: Vec<_> = partitions.iter().map(|(of, _)| of.clone()).collect();
            let claimed = opener.claim(&names, &membership, &valid);
            let reads = partitions.iter().any(|(of, _)| of.topic != opener.topics.repartition);
            let claimed = claimed.and_then(|positions| {
                let next_sequence = if reads { opener.next_sequence(&valid)? } else { None };
                let progress = if reads { opener.progress_end(&valid)? } else { 0 };
                Ok((positions, next_sequence, progress))
            });
            let (positions, next_sequence, progress) = match claimed {
                Ok(claimed) => claimed,
                Err(error) => {
                    // Not at once again: the group needs a moment to say what is whose.
                    thread::sleep(Duration::from_millis(100));
                    for (of, epoch) in partitions.clone() {
                        let error = match &error {
                            OpenError::Moved => OpenError::Moved,
                            OpenError::Fatal(reason) => OpenError::Fatal(reason.clone()),
                        };
                        let _ = inputs.send(Input::Opened { of, epoch, opened: Err(error) });
                    }
                    return;
                }
            };
            for ((of, epoch), position) in partitions.iter().cloned().zip(positions.iter().copied()) {
                let _ = inputs.send(Input::Claimed { of, epoch, position });
            }
            let (tasks, sources): (Vec<_>, Vec<_>) = partitions
                .iter()
                .cloned()
                .zip(positions)
                .partition(|((of, _), _)| of.topic == opener.topics.repartition);
            for ((of, epoch), position) in sources {
                let opened = Ok(Opened { position, restored: None, next_sequence, progress });
                let _ = inputs.send(Input::Opened { of, epoch, opened });
            }
            let restorers = tasks.len().min(RESTORERS);
            let tasks = Mutex::new(VecDeque::from(tasks));
            let restore_next = || {
                while let Some(((of, epoch), position)) = tasks.lock().ok().and_then(|mut tasks| tasks.pop_front()) {
                    let valid = || !left.load(Ordering::Acquire) && waits(&epoch);
                    let tell = |remaining| drop(inputs.send(Input::Remaining(of.partition, remaining)));
                    let restored = opener.restore(of.partition, position, &valid, &tell);
                    let opened = restored.map(|restored| {
                        let position = restored.done.low();
                        Opened { position, restored: Some(restored), next_sequence: None, progress: 0 }
                    });
                    let _ = inputs.send(Input::Opened { of, epoch, opened });
                }
            };
            thread::scope(|scope| {
                for _ in 0..restorers {
                    scope.spawn(restore_next);
                }
            });
        };
        self.spawn("opener", open);
    }
}
