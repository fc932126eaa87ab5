//! One process: it joins the group, owns tasks, commits, and answers for its keys.
//!
//! `thread` runs an engine and the threads that wait for it; `engine` is the state machine itself.

pub mod calls;
pub mod commit;
pub mod engine;
mod housekeeping;
pub mod judging;
pub mod opening;
mod thread;
pub mod topology;
pub mod view;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::unbounded;
use tokio::sync::{oneshot, watch};

use crate::config::Config;
use crate::event::{Action, Event};
use crate::handler::DynHandler;
use crate::json;
use crate::log::{Append, Headers, Log, LogError, NewRecord, TopicPartition};
use crate::store::Stores;
use crate::topics::{Topics, partition_of};
use calls::RuntimeCalls;
use commit::Mark;
use engine::{Answered, Listing, Question, Setting, ThreadStatus};
use thread::{Beginning, EngineThread};
use topology::TopologyError;
use view::{InFlight, KeyEntry, ListQuery, Lookup, Page, Status, TaskState};

/// The pause between tries to reach the log at the start.
const RETRY: Duration = Duration::from_millis(500);

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
    starter: Mutex<Option<std::thread::JoinHandle<()>>>,
    _lock: StateLock,
}

struct Shared {
    config: Arc<Config>,
    log: Arc<dyn Log>,
    topics: Topics,
    engine: Mutex<Option<EngineThread>>,
    /// What keeps the engine from starting.
    waiting_for: Mutex<Option<String>>,
    /// What the engine said last of itself.
    thread_status: Mutex<Option<ThreadStatus>>,
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
        let (failed, failure) = watch::channel(None);
        let shared = Arc::new(Shared {
            config,
            log,
            topics,
            engine: Mutex::new(None),
            waiting_for: Mutex::new(Some("the log".into())),
            thread_status: Mutex::new(None),
            stopping: AtomicBool::new(false),
            failed,
        });
        let starter = Starter { shared: Arc::clone(&shared), handler, address, stores };
        let runtime = tokio::runtime::Handle::current();
        let start = std::thread::Builder::new().name("starter".into()).spawn(move || starter.run(runtime));
        let start = start.map_err(|error| StartError::Failed(format!("cannot start a thread: {error}")))?;
        Ok(Instance { shared, failure, starter: Mutex::new(Some(start)), _lock: lock })
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
        status.troubles.extend(thread.troubles);
        status.tasks = thread.tasks;
        status.buffered_bytes = thread.buffered_bytes;
        status
    }

    /// What a key holds, committed.
    pub async fn lookup(&self, key: Bytes) -> Lookup {
        let partition = partition_of(&key, self.shared.config.processing.partitions);
        let not_ready = |reason: &str| Lookup::NotReady { partition, reason: reason.to_owned() };
        let asked = key.clone();
        let Some(answered) = self.ask(|answer| Question::Lookup(asked, answer)).await else {
            return not_ready(&self.waiting_for().unwrap_or_else(|| "the instance stops".into()));
        };
        match answered {
            Answered::Entry(entry) => Lookup::Here { partition, entry: Some(entry) },
            Answered::NotReady => not_ready("the partition is being restored or given back"),
            Answered::AskStore(store) => match blocking(move || store.get(&key)).await {
                Some(Ok(entry)) => Lookup::Here { partition, entry },
                Some(Err(error)) => not_ready(&error.to_string()),
                None => not_ready("the instance stops"),
            },
            Answered::NotHere => Lookup::Elsewhere { partition, owner: self.owner(partition).await },
        }
    }

    /// Where the owner of a partition answers, from the mark of its last commit (protocol P5).
    async fn owner(&self, partition: i32) -> Option<String> {
        let shared = Arc::clone(&self.shared);
        let committed = blocking(move || {
            let of = TopicPartition::new(&shared.topics.repartition, partition);
            shared.log.committed(&shared.config.application.id, &[of], false)
        });
        let committed = committed.await?.ok()?.pop()??;
        let mark = Mark::parse(&committed.metadata)?;
        (!mark.released && !mark.address.is_empty()).then_some(mark.address)
    }

    /// A page of keys of the partitions that this instance owns.
    pub async fn list(&self, query: ListQuery) -> Page {
        let asked = query.clone();
        let listings = self.ask(|answer| Question::List(asked, answer)).await.unwrap_or_default();
        blocking(move || page(&query, listings)).await.unwrap_or_default()
    }

    /// At most `limit` of the events that run or wait for their retry, oldest first.
    pub async fn in_flight(&self, limit: usize) -> Vec<InFlight> {
        self.ask(|answer| Question::InFlight(limit, answer)).await.unwrap_or_default()
    }

    /// Appends primary events to the source topic; their offsets, in order.
    ///
    /// # Errors
    /// What the log says; nothing is appended then, or it is not known.
    pub async fn append(&self, events: Vec<Event>) -> Result<Vec<i64>, LogError> {
        let shared = Arc::clone(&self.shared);
        let append = move || {
            let record = |event: &Event| NewRecord {
                key: Some(event.key.clone()),
                value: Some(if event.payload.is_none() { plain(event.action) } else { json::encode(event) }),
                headers: Headers::new(),
            };
            let to = TopicPartition::new(&shared.topics.sources[0], 0);
            shared.log.append(Append { to, records: events.iter().map(record).collect() })
        };
        blocking(append).await.unwrap_or_else(|| Err(LogError::Fatal("the instance stops".into())))
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
        self.shared.stopping.store(true, Ordering::Relaxed);
        blocking(move || {
            let starter = locked(&self.starter).take();
            if let Some(starter) = starter {
                // A panic has been told by its hook.
                let _ = starter.join();
            }
            let engine = locked(&self.shared.engine).take();
            if let Some(mut engine) = engine {
                engine.leave();
            }
        })
        .await;
    }

    fn waiting_for(&self) -> Option<String> {
        locked(&self.shared.waiting_for).clone()
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        locked(&self.shared.engine).as_ref()?.ask(question(sender));
        answer.await.ok()
    }
}

/// None of these locks is held across anything that can panic halfway.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `send` writes for an event without payload: readable by any tool.
fn plain(action: Action) -> Bytes {
    Bytes::from_static(action.as_str().as_bytes())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// Merges what waits above the stores with what is in them.
fn page(query: &ListQuery, listings: Vec<Listing>) -> Page {
    let mut entries = Vec::new();
    for listing in listings {
        let above: std::collections::BTreeMap<_, _> = listing.above.into_iter().collect();
        let from = query.after.as_ref().filter(|after| **after >= query.prefix);
        let stored = listing.store.scan(from.unwrap_or(&query.prefix), from.is_some());
        let stored = stored.map_while(Result::ok).take_while(|(key, _)| key.starts_with(&query.prefix));
        let wanted = |entry: &crate::entry::Entry| query.removed || entry.action == Action::Add;
        let stored = stored.filter(|(key, entry)| !above.contains_key(key) && wanted(entry)).take(query.limit + 1);
        let partition = listing.partition;
        entries.extend(stored.map(|(key, entry)| KeyEntry { key, entry, partition }));
        let above = above.iter().filter(|(_, entry)| wanted(entry)).take(query.limit + 1);
        entries.extend(above.map(|(key, entry)| KeyEntry { key: key.clone(), entry: entry.clone(), partition }));
    }
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    let more = entries.len() > query.limit;
    entries.truncate(query.limit);
    let next = more.then(|| entries.last().map(|entry| entry.key.clone())).flatten();
    Page { entries, next }
}

/// Reaches the log, checks the topics and starts the engine; tries until it can or the instance stops.
struct Starter {
    shared: Arc<Shared>,
    handler: Arc<dyn DynHandler>,
    address: String,
    stores: Stores,
}

impl Starter {
    fn run(self, runtime: tokio::runtime::Handle) {
        // The kind of trouble told last: the words differ from try to try.
        let mut told = None;
        loop {
            let error = match self.try_start(&runtime) {
                Ok(engine) => {
                    *locked(&self.shared.engine) = Some(engine);
                    *locked(&self.shared.waiting_for) = None;
                    return self.keep_house();
                }
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
            let kind = Some(std::mem::discriminant(&error));
            if told != kind {
                tracing::warn!("not started yet: {error}");
                *locked(&self.shared.waiting_for) = Some(error.to_string());
                told = kind;
            }
            std::thread::sleep(RETRY);
        }
    }

    fn keep_house(&self) {
        let shared = &self.shared;
        let look = || {
            let (sender, answer) = oneshot::channel();
            locked(&shared.engine).as_ref()?.ask(Question::Status(sender));
            let status = answer.blocking_recv().ok()?;
            *locked(&shared.thread_status) = Some(status.clone());
            Some(status)
        };
        let stopping = || shared.stopping.load(Ordering::Relaxed);
        let report = |text: Option<String>| {
            if let Some(engine) = locked(&shared.engine).as_ref() {
                engine.trouble("group", text);
            }
        };
        let tell_sources = |partitions: Vec<TopicPartition>| {
            if let Some(engine) = locked(&shared.engine).as_ref() {
                engine.sources_are(partitions);
            }
        };
        housekeeping::run(&shared.log, &shared.config, &shared.topics, &look, &report, &tell_sources, &stopping);
    }

    fn try_start(&self, runtime: &tokio::runtime::Handle) -> Result<EngineThread, TopologyError> {
        let config = &self.shared.config;
        let topology = topology::ensure(self.shared.log.as_ref(), config, &self.shared.topics)?;
        let (finished_in, finished) = unbounded();
        let application = Arc::from(config.application.id.as_str());
        let handler = Arc::clone(&self.handler);
        let calls = RuntimeCalls::new(handler, application, config.handler.timeout, runtime.clone(), finished_in);
        let setting = Setting {
            config: Arc::clone(config),
            topics: self.shared.topics.clone(),
            topic_ids: topology.source_ids.clone(),
            source_partitions: topology.source_partitions.clone(),
            producer_id: format!("{}-{}", config.application.id, uuid::Uuid::new_v4()),
            address: self.address.clone(),
            overlay_bytes: config.state.cache / 2,
        };
        let (log, stores) = (Arc::clone(&self.shared.log), self.stores.clone());
        let beginning = Beginning { log, setting, topology, stores, calls, finished };
        let shared = Arc::downgrade(&self.shared);
        let failed = move |reason| {
            if let Some(shared) = shared.upgrade() {
                let _ = shared.failed.send(Some(reason));
            }
        };
        Ok(EngineThread::start(beginning, failed)?)
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
            StartError::Failed(format!(
                "cannot {what} the state folder {}: {error}; make it writable or set state.dir",
                path.display()
            ))
        };
        let folder = folder.to_owned();
        std::fs::create_dir_all(&folder).map_err(|error| failed("create", &folder, &error))?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let private = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(&folder, private).map_err(|error| failed("protect", &folder, &error))?;
        }
        let path = folder.join("instance.lock");
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
