//! One process: it joins the group, owns tasks, commits, and answers for its keys.
//!
//! `threads` are its engine threads, each a member of the group; `thread` runs one of them and the threads that
//! wait on its behalf; `engine` is the state machine itself.

mod announcing;
mod awaited;
pub mod calls;
pub mod commit;
pub mod engine;
mod crowd;
mod forgetting;
mod housekeeping;
mod keeping;
pub mod judging;
mod lookup;
mod measured;
pub mod observer;
pub mod opening;
mod pace;
pub mod retrying;
mod sending;
pub mod settling;
mod thread;
mod threads;
pub mod topology;
pub mod view;

use std::io::ErrorKind;
use std::mem::{Discriminant, discriminant};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use tokio::sync::{oneshot, watch};

use crate::clock;
use crate::config::Config;
use crate::frontier::snapshot::RUNS_PER_PART;
use crate::handler::DynHandler;
use crate::log::{Log, LogError, TopicPartition};
use crate::marks::Known;
use crate::metrics;
use crate::store::Stores;
use crate::topics::Topics;
use announcing::Announcing;
use calls::RuntimeCalls;
use commit::Means;
use engine::{Question, Setting, ThreadStatus};
use measured::Measured;
use observer::{Observer, Reading, SNAPSHOT_EVERY};
use pace::Pace;
use thread::{Beginning, EngineThread};
use threads::{Threads, share};
use topology::{Topology, TopologyError};
use view::{Flow, InFlight, Status, TaskState};

/// The pause between tries to reach the log at the start.
const RETRY: Duration = Duration::from_millis(500);

/// An engine that does not answer within this time is stuck, or its process was stopped.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// After this long at the start a trouble of the same kind is told again where its words have changed: they differ
/// from try to try, and may also have got another cause.
const TELL_AGAIN: Duration = Duration::from_secs(30);

/// The file in an instance's state folder that says by its lock that the folder is in use.
pub const LOCK_FILE: &str = "instance.lock";

/// Why an instance does not start. The message names the cause and the next step.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration, or the log's topics, do not fit: exit code 2.
    #[error("{0}")]
    Misconfigured(String),
    /// Something else is wrong: exit code 1.
    #[error("{0}")]
    Failed(String),
}

/// A running instance.
pub struct Instance {
    shared: Arc<Shared>,
    failure: watch::Receiver<Option<StartError>>,
    _lock: StateLock,
}

struct Shared {
    config: Arc<Config>,
    log: Arc<dyn Log>,
    topics: Topics,
    engine: Mutex<Option<Threads>>,
    /// What keeps the engine threads from starting.
    waiting_for: Mutex<Option<String>>,
    /// What the engine threads said last of themselves, together.
    thread_status: Mutex<Option<ThreadStatus>>,
    measured: Mutex<Measured>,
    /// What is settled.
    observer: Arc<Observer>,
    pace: Mutex<Pace>,
    /// The largest record that the source topic takes, and when that was read.
    largest: Mutex<Option<(i64, Instant)>>,
    stopping: AtomicBool,
    failed: watch::Sender<Option<StartError>>,
}

impl Instance {
    /// Starts the instance's threads; it becomes ready by itself. A broker that is not there is waited
    /// for. Must be called inside a tokio runtime. `address` is where this instance's HTTP answers.
    ///
    /// # Errors
    /// When the state folder cannot be used.
    pub fn start(
        config: Arc<Config>,
        log: Arc<dyn Log>,
        handler: Arc<dyn DynHandler>,
        address: String,
    ) -> Result<Instance, StartError> {
        let folder = config.state.dir.join(&config.application.instance_id);
        let lock = StateLock::take(&folder)?;
        // A quarter each for blocks and write buffers, half for what waits above the stores.
        let cache = config.state.cache;
        let stores = Stores::new(folder, cache / 4, cache / 4);
        let topics = Topics::new(&config.application.id, &config.source.topics);
        // Every instance has the series, whether it reads the source or not.
        topics.sources.iter().for_each(|topic| metrics::events_received(topic, 0));
        let (failed, failure) = watch::channel(None);
        let shared = Arc::new(Shared {
            config,
            log,
            topics,
            engine: Mutex::new(None),
            waiting_for: Mutex::new(Some("the log".into())),
            thread_status: Mutex::new(None),
            measured: Mutex::default(),
            observer: Arc::default(),
            pace: Mutex::default(),
            largest: Mutex::default(),
            stopping: AtomicBool::new(false),
            failed,
        });
        let starter = Starter { shared: Arc::clone(&shared), handler, address, stores };
        let runtime = tokio::runtime::Handle::current();
        let start = std::thread::Builder::new().name("starter".into()).spawn(move || starter.run(runtime));
        start.map_err(|error| StartError::Failed(format!("cannot start a thread: {error}")))?;
        Ok(Instance { shared, failure, _lock: lock })
    }

    /// As of at most a few hundred milliseconds ago.
    pub fn status(&self) -> Status {
        let config = &self.shared.config;
        let (application, instance) = (config.application.id.clone(), config.application.instance_id.clone());
        let mut status = Status { application, instance, state: "starting", ..Status::default() };
        let Some(thread) = locked(&self.shared.thread_status).clone() else {
            status.troubles.extend(self.waiting_for().map(|what| format!("waiting for {what}")));
            return status;
        };
        let restores = thread.tasks.iter().any(|task| task.state == TaskState::Restoring);
        status.state = match (self.shared.stopping.load(Ordering::Relaxed), thread.joined, restores) {
            _ if self.failure.borrow().is_some() => "failed",
            (true, ..) => "stopping",
            (false, false, _) => "rebalancing",
            (false, true, true) => "restoring",
            (false, true, false) => "running",
        };
        if !thread.joined {
            status.troubles.push("waiting for the group's first assignment".into());
        }
        let tasks = thread.tasks.iter().filter(|task| task.role == "task");
        status.partitions = tasks.map(|task| task.partition).collect();
        status.partitions.sort_unstable();
        // One that moves between two threads is with both for a moment.
        status.partitions.dedup();
        status.troubles.extend(thread.troubles);
        status.tasks = thread.tasks;
        let measured = locked(&self.shared.measured);
        for task in status.tasks.iter_mut().filter(|task| task.state == TaskState::Running) {
            task.lag = measured.lag(task);
        }
        status.buffered_bytes = thread.buffered_bytes;
        status.restores = thread.restores;
        status
    }

    /// What has flowed through it.
    pub fn flow(&self) -> Flow {
        locked(&self.shared.measured).flow(clock::now())
    }

    /// The names of its topics.
    pub fn topics(&self) -> &Topics {
        &self.shared.topics
    }

    /// At most `limit` of the events that run or wait for their retry, oldest first.
    pub async fn in_flight(&self, limit: usize) -> Vec<InFlight> {
        let held = self.ask(|answer| Question::InFlight(limit, answer)).await.unwrap_or_default();
        let mut held: Vec<InFlight> = held.into_iter().flatten().collect();
        held.sort_by_key(|event| std::cmp::Reverse(event.age_ms));
        held.truncate(limit);
        held
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Its log.
    pub fn log(&self) -> &Arc<dyn Log> {
        &self.shared.log
    }

    /// Resolves when the engine cannot go on; the reason is the process's last message and exit code.
    pub async fn failed(&self) -> StartError {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().expect("waited for"),
            Err(_) => std::future::pending().await,
        }
    }

    /// Hands back what is in flight, commits, leaves the group.
    pub async fn shutdown(self) {
        self.shared.stopping.store(true, Ordering::Release);
        blocking(move || {
            // The starter is not waited for: it may be asking a log that does not answer. It starts nothing any more.
            let threads = locked(&self.shared.engine).take();
            if let Some(mut threads) = threads {
                threads.leave();
            }
        })
        .await;
    }

    fn waiting_for(&self) -> Option<String> {
        locked(&self.shared.waiting_for).clone()
    }

    /// What every engine thread answers; `None` when they do not run, or one of them does not answer.
    async fn ask<T>(&self, question: impl Fn(oneshot::Sender<T>) -> Question) -> Option<Vec<T>> {
        let asked = locked(&self.shared.engine).as_ref()?.ask(question);
        let answers = futures_util::future::try_join_all(asked);
        tokio::time::timeout(ANSWER_WITHIN, answers).await.ok()?.ok()
    }
}

/// None of these locks is held across anything that can panic halfway.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// The trouble at the start that was told last.
struct Told {
    kind: Discriminant<LogError>,
    text: String,
    at: Instant,
}

impl Told {
    /// Whether `error` is news after this one.
    fn makes_news_of(&self, error: &LogError) -> bool {
        let is_exact = matches!(error, LogError::Unauthorized(_));
        let has_changed = || self.text != error.to_string();
        self.kind != discriminant(error) || ((is_exact || self.at.elapsed() >= TELL_AGAIN) && has_changed())
    }
}

/// Reaches the log, checks the topics and starts the engine threads; tries until it can or the instance stops.
struct Starter {
    shared: Arc<Shared>,
    handler: Arc<dyn DynHandler>,
    address: String,
    stores: Stores,
}

impl Starter {
    fn run(self, runtime: tokio::runtime::Handle) {
        let mut told: Option<Told> = None;
        loop {
            let error = match self.try_start(&runtime) {
                Ok(true) => {
                    *locked(&self.shared.waiting_for) = None;
                    return std::thread::scope(|scope| {
                        let observer = std::thread::Builder::new().name("observer".into());
                        observer.spawn_scoped(scope, || self.observe()).expect("the process can start a thread");
                        self.keep_house();
                    });
                }
                Ok(false) => return,
                Err(TopologyError::Misconfigured(reason)) => {
                    let _ = self.shared.failed.send(Some(StartError::Misconfigured(reason)));
                    return;
                }
                Err(TopologyError::Log(error @ (LogError::Fatal(_) | LogError::Refused(_)))) => {
                    let _ = self.shared.failed.send(Some(StartError::Failed(error.to_string())));
                    return;
                }
                Err(TopologyError::Log(error)) => error,
            };
            if self.shared.stopping.load(Ordering::Relaxed) {
                return;
            }
            if told.as_ref().is_none_or(|told| told.makes_news_of(&error)) {
                tracing::warn!("not started yet: {error}");
                *locked(&self.shared.waiting_for) = Some(error.to_string());
                told = Some(Told { kind: discriminant(&error), text: error.to_string(), at: clock::now() });
            }
            std::thread::sleep(RETRY);
        }
    }

    fn observe(&self) {
        let shared = &self.shared;
        let report = |error: Option<LogError>| {
            // What passes by itself is told by those whose work stands still.
            let text = error.filter(|error| !matches!(error, LogError::Retriable(_))).map(|error| error.to_string());
            if let Some(threads) = locked(&shared.engine).as_ref() {
                threads.trouble("progress", text);
            }
        };
        let has_first = |status: &ThreadStatus| {
            status
                .tasks
                .iter()
                .any(|task| task.role == "task" && task.partition == 0 && task.state == TaskState::Running)
        };
        let tell_horizon = |horizon| {
            if let Some(threads) = locked(&shared.engine).as_ref() {
                threads.horizon_is(horizon);
            }
        };
        let known = |known: Known| {
            if let Some(threads) = locked(&shared.engine).as_ref() {
                threads.hear(&known);
            }
        };
        let reading = Reading {
            observer: &shared.observer,
            log: shared.log.as_ref(),
            of: TopicPartition::new(&shared.topics.progress, 0),
            writer: uuid::Uuid::new_v4().to_string(),
            every: SNAPSHOT_EVERY,
            runs_per_part: RUNS_PER_PART,
            writes: &|| locked(&shared.thread_status).as_ref().is_some_and(has_first),
            purges: shared.config.processing.repartition_purge.is_some(),
            announcing: Announcing::of(&shared.config),
            tell_horizon: &tell_horizon,
            known: &known,
            report: &report,
            crowded: &|is_crowded| {
                if let Some(threads) = locked(&shared.engine).as_ref() {
                    threads.crowded(is_crowded);
                }
            },
            stopping: &|| shared.stopping.load(Ordering::Relaxed),
        };
        reading.run();
    }

    fn keep_house(&self) {
        let shared = &self.shared;
        let look = || {
            let asked = locked(&shared.engine).as_ref()?.ask(Question::Status);
            let answers = asked.into_iter().map(|answer| answer.blocking_recv().ok()).collect::<Option<Vec<_>>>()?;
            let mut status = threads::together(answers)?;
            status.restores = locked(&shared.pace).look(&status.tasks, clock::now());
            *locked(&shared.thread_status) = Some(status.clone());
            locked(&shared.measured).totals(status.totals, clock::now());
            Some(status)
        };
        let stopping = || shared.stopping.load(Ordering::Relaxed);
        let report = |what: &str, text: Option<String>| {
            if let Some(threads) = locked(&shared.engine).as_ref() {
                threads.trouble(what, text);
            }
        };
        let tell_sources = |partitions: Vec<TopicPartition>| {
            if let Some(threads) = locked(&shared.engine).as_ref() {
                threads.sources_are(&partitions);
            }
        };
        let end = |of: &TopicPartition, end| locked(&shared.measured).end(of, end);
        let (tell_sources, stopping) = (&tell_sources, &stopping);
        let house = housekeeping::House { look: &look, end: &end, report: &report, tell_sources, stopping };
        housekeeping::run(&shared.log, &shared.config, &shared.topics, &house);
    }

    /// False when the instance stops meanwhile: then nothing was started.
    fn try_start(&self, runtime: &tokio::runtime::Handle) -> Result<bool, TopologyError> {
        let config = &self.shared.config;
        let topology = topology::ensure(self.shared.log.as_ref(), config, &self.shared.topics)?;
        let (incarnation, guarantee) = (uuid::Uuid::new_v4().to_string(), config.processing.guarantee);
        let id = |index: usize| Means::id(guarantee, &config.application.id, &incarnation, index + 1);
        // All producers before the first thread joins: a group whose members come and go is disturbed.
        let producers =
            (0..config.processing.threads).map(|index| Means::open(&*self.shared.log, guarantee, &id(index)));
        let producers = producers.collect::<Result<Vec<_>, _>>()?;
        let start = |(index, means): (usize, _)| {
            let (finished_in, finished) = unbounded();
            let application = Arc::from(config.application.id.as_str());
            let handler = Arc::clone(&self.handler);
            let calls = RuntimeCalls::new(handler, application, config.handler.timeout, runtime.clone(), finished_in);
            let setting = self.setting(index, id(index), &topology);
            let (log, stores) = (Arc::clone(&self.shared.log), self.stores.clone());
            let topology = topology.clone();
            let observer = Arc::clone(&self.shared.observer);
            let beginning = Beginning { log, setting, topology, stores, calls, finished, means, observer };
            let shared = Arc::downgrade(&self.shared);
            let failed = move |reason| {
                if let Some(shared) = shared.upgrade() {
                    let _ = shared.failed.send(Some(reason));
                }
            };
            EngineThread::start(beginning, failed)
        };
        // Whoever stops the instance takes the threads under this lock, after it has said so.
        let mut engine = locked(&self.shared.engine);
        if self.shared.stopping.load(Ordering::Acquire) {
            return Ok(false);
        }
        *engine = Some(Threads::start(producers.into_iter().enumerate().map(start))?);
        Ok(true)
    }

    /// What the thread works with: its share of what belongs to the instance.
    fn setting(&self, index: usize, producer_id: String, topology: &Topology) -> Setting {
        let config = &self.shared.config;
        let threads = config.processing.threads;
        Setting {
            config: Arc::clone(config),
            topics: self.shared.topics.clone(),
            topic_ids: topology.source_ids.clone(),
            source_partitions: topology.source_partitions.clone(),
            producer_id,
            address: self.address.clone(),
            thread: index + 1,
            max_in_flight: share(config.processing.max_in_flight, threads, index),
            max_buffered: share(config.processing.max_buffered, threads, index),
            overlay_bytes: share(config.state.cache / 2, threads, index),
        }
    }
}

/// The state folder belongs to one process at a time.
#[derive(Debug)]
struct StateLock {
    _file: std::fs::File,
}

impl StateLock {
    fn take(folder: &Path) -> Result<StateLock, StartError> {
        let failed = |what: &str, path: &PathBuf, error: &std::io::Error| {
            let step = match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "make space on this disk or set state.dir",
                ErrorKind::ReadOnlyFilesystem => "make the disk writable or set state.dir",
                _ => "make it writable or set state.dir",
            };
            StartError::Failed(format!("cannot {what} the state folder {}: {error}; {step}", path.display()))
        };
        let folder = folder.to_owned();
        let mut create = std::fs::DirBuilder::new();
        create.recursive(true);
        // What lies above it and is not there yet, such as state.dir, is made for this user alone, too.
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut create, 0o700);
        create.create(&folder).map_err(|error| failed("create", &folder, &error))?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let private = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(&folder, private).map_err(|error| failed("protect", &folder, &error))?;
        }
        let path = folder.join(LOCK_FILE);
        let file = std::fs::File::options().create(true).append(true).open(&path);
        let file = file.map_err(|error| failed("write", &folder, &error))?;
        file.try_lock().map_err(|_| {
            StartError::Failed(format!(
                "the state folder {} is in use by another process; stop that one, or set application.instance_id or \
                 state.dir",
                folder.display()
            ))
        })?;
        Ok(StateLock { _file: file })
    }
}
