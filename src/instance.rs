//! One process: it joins the group, owns tasks, commits, and answers for its keys.
//!
//! `starting` is the thread that brings all of it up and keeps house. `threads` are its engine threads, each a member of the group; `thread` runs one of them and the threads that
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
mod starting;
mod thread;
mod threads;
pub mod topology;
pub mod view;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use crate::clock;
use crate::config::Config;
use crate::handler::DynHandler;
use crate::log::{Log, LogError};
use crate::metrics;
use crate::store::Stores;
use crate::topics::Topics;
use engine::{Question, ThreadStatus};
use measured::Measured;
use observer::Observer;
use pace::Pace;
use starting::Starter;
use threads::Threads;
use view::{Flow, InFlight, Status, TaskState};

/// An engine that does not answer within this time is stuck, or its process was stopped.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A stopped instance waits so long for the starter, which may be asking a log that does not answer.
const STARTER_WITHIN: Duration = Duration::from_secs(1);

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
    starter: JoinHandle<()>,
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

impl Shared {
    /// Tells the engine threads something, where they run.
    fn tell(&self, what: impl FnOnce(&Threads)) {
        if let Some(threads) = locked(&self.engine).as_ref() {
            what(threads);
        }
    }
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
        let starter = std::thread::Builder::new().name("starter".into()).spawn(move || starter.run(runtime));
        let starter = starter.map_err(|error| StartError::Failed(format!("cannot start a thread: {error}")))?;
        Ok(Instance { shared, failure, starter, _lock: lock })
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
            let threads = locked(&self.shared.engine).take();
            if let Some(mut threads) = threads {
                threads.leave();
            }
            // It starts nothing any more; but it may hold the last end of a log with a database.
            let deadline = clock::now() + STARTER_WITHIN;
            while !self.starter.is_finished() && clock::now() < deadline {
                std::thread::sleep(Duration::from_millis(1));
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

/// What the log answers to `ask`, which blocks.
async fn from_log<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    blocking(ask).await.unwrap_or_else(|| Err(LogError::Fatal("the instance stops".into())))
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
