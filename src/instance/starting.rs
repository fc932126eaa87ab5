//! The thread that brings an instance up: it reaches the log, checks the topics, starts the engine threads and the observer,
//! and keeps house from then on.

use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;

use super::announcing::Announcing;
use super::calls::RuntimeCalls;
use super::commit::Means;
use super::engine::{Question, Setting, ThreadStatus};
use super::observer::{Reading, SNAPSHOT_EVERY};
use super::thread::{Beginning, EngineThread};
use super::threads::{self, Threads, share};
use super::topology::{self, Topology, TopologyError};
use super::view::TaskState;
use super::{Shared, StartError, housekeeping, locked};
use crate::clock;
use crate::frontier::snapshot::RUNS_PER_PART;
use crate::handler::DynHandler;
use crate::log::{LogError, TopicPartition};
use crate::marks::Known;
use crate::store::Stores;

/// The pause between tries to reach the log at the start.
const RETRY: Duration = Duration::from_millis(500);

/// After this long at the start a trouble of the same kind is told again where its words have changed: they differ
/// from try to try, and may also have got another cause.
const TELL_AGAIN: Duration = Duration::from_secs(30);

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
pub(super) struct Starter {
    pub(super) shared: Arc<Shared>,
    pub(super) handler: Arc<dyn DynHandler>,
    pub(super) address: String,
    pub(super) stores: Stores,
}

impl Starter {
    /// Ends when the instance stops, or cannot start.
    pub(super) fn run(self, runtime: tokio::runtime::Handle) {
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
            shared.tell(|threads| threads.trouble("progress", text));
        };
        let has_first = |status: &ThreadStatus| {
            status
                .tasks
                .iter()
                .any(|task| task.role == "task" && task.partition == 0 && task.state == TaskState::Running)
        };
        let tell_horizon = |horizon| shared.tell(|threads| threads.horizon_is(horizon));
        let known = |known: Known| shared.tell(|threads| threads.hear(&known));
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
            crowded: &|is_crowded| shared.tell(|threads| threads.crowded(is_crowded)),
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
        let report = |what: &str, text: Option<String>| shared.tell(|threads| threads.trouble(what, text));
        let tell_sources = |partitions: Vec<TopicPartition>| shared.tell(|threads| threads.sources_are(&partitions));
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
