//! `GET /api/v1/status`, `/tasks`, `/in-flight`: what the instance is doing.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::bytes::{sequence, split};
use super::openapi::Failure;
use super::query::Query;
use crate::config::Guarantee;
use crate::instance::view::{self, InFlight, TaskStatus};
use crate::server::Front;
use crate::server::error::ApiError;

/// The instance as a whole.
#[derive(Debug, Serialize, ToSchema)]
pub struct Status {
    /// `application.id`
    application: String,
    /// `application.instance_id`
    instance: String,
    /// The program's version.
    version: &'static str,
    /// `starting`, `rebalancing`, `restoring`, `running`, `stopping` or `failed`.
    state: &'static str,
    /// `exactly_once` or `at_least_once`.
    guarantee: &'static str,
    /// Partitions of keys that it owns.
    partitions: Vec<i32>,
    /// The greatest sequence up to which all is settled; null where that is not known.
    #[schema(required, value_type = Option<u64>)]
    frontier: Option<Value>,
    /// Bytes read and not committed.
    buffered_bytes: usize,
    /// What is being restored; null = nothing.
    #[schema(required)]
    restore: Option<Restore>,
    /// What is wrong, for people; empty = ready.
    troubles: Vec<String>,
}

/// The restores that are under way.
#[derive(Debug, Serialize, ToSchema)]
pub struct Restore {
    /// Partitions that are not ready yet.
    partitions: usize,
    /// Changelog records read since the first of them began.
    restored_records: i64,
    /// Changelog records still to be read, of the partitions that have been looked at.
    remaining_records: i64,
    /// Changelog records read in a second, as of the last seconds; null where that is not known yet.
    #[schema(required)]
    records_per_second: Option<u64>,
    /// How long it will take; null where that cannot be told.
    #[schema(required)]
    eta_seconds: Option<u64>,
}

impl Restore {
    fn new(restores: view::Restores) -> Restore {
        let view::Restores { partitions, restored, remaining, per_second, eta } = restores;
        Restore {
            partitions,
            restored_records: restored,
            remaining_records: remaining,
            records_per_second: per_second,
            eta_seconds: eta.map(|eta| eta.as_secs()),
        }
    }
}

/// What this instance is and how it is.
#[utoipa::path(
    get,
    path = "/api/v1/status",
    tag = "instances",
    responses((status = 200, body = Status), (status = 503, body = Failure, description = "`stopping`"))
)]
pub async fn status(State(front): State<Front>) -> Result<Json<Status>, ApiError> {
    let instance = front.instance()?;
    let guarantee = match instance.config().processing.guarantee {
        Guarantee::ExactlyOnce => "exactly_once",
        Guarantee::AtLeastOnce => "at_least_once",
    };
    let frontier = instance.standing().frontier.map(sequence);
    let view::Status { application, instance, state, partitions, troubles, buffered_bytes, restores, .. } =
        instance.status();
    let version = env!("CARGO_PKG_VERSION");
    Ok(Json(Status {
        application,
        instance,
        version,
        state,
        guarantee,
        partitions,
        frontier,
        buffered_bytes,
        restore: restores.map(Restore::new),
        troubles,
    }))
}

/// The tasks of one instance.
#[derive(Debug, Serialize, ToSchema)]
pub struct Tasks {
    /// Tasks and source partitions.
    tasks: Vec<Task>,
}

/// A task, or a source partition.
#[derive(Debug, Serialize, ToSchema)]
pub struct Task {
    /// `source` or `task`.
    role: &'static str,
    /// The topic that it reads.
    topic: String,
    /// Its partition.
    partition: i32,
    /// Which of the instance's engine threads has it, from 1.
    thread: usize,
    /// `restoring`, `running` or `closing`.
    state: &'static str,
    /// The next offset to read.
    position: i64,
    /// The position last committed.
    committed: i64,
    /// Offsets between the committed position and the partition's end, as of some seconds ago.
    #[schema(required)]
    lag: Option<i64>,
    /// Handler calls running.
    in_flight: usize,
    /// Events read, waiting for their turn, their key or their retry.
    waiting: usize,
    /// The age of the oldest event that is read and not done, in milliseconds.
    oldest_age_ms: u64,
    /// Changelog records still to be restored.
    #[schema(required)]
    restore_remaining: Option<i64>,
    /// The instance.
    instance: String,
}

impl Task {
    fn new(task: &TaskStatus, instance: &str) -> Task {
        Task {
            role: task.role,
            topic: task.topic.to_string(),
            partition: task.partition,
            thread: task.thread,
            state: task.state.as_str(),
            position: task.position,
            committed: task.committed,
            lag: task.lag,
            in_flight: task.in_flight,
            waiting: task.waiting,
            oldest_age_ms: task.oldest_age_ms,
            restore_remaining: task.restore_remaining,
            instance: instance.to_owned(),
        }
    }
}

/// The tasks and source partitions of this instance.
#[utoipa::path(get, path = "/api/v1/tasks", tag = "instances", responses((status = 200, body = Tasks)))]
pub async fn tasks(State(front): State<Front>) -> Result<Json<Tasks>, ApiError> {
    let status = front.instance()?.status();
    Ok(Json(Tasks { tasks: status.tasks.iter().map(|task| Task::new(task, &status.instance)).collect() }))
}

/// What runs.
#[derive(Debug, Serialize, ToSchema)]
pub struct Running {
    /// Oldest first.
    in_flight: Vec<RunningEvent>,
}

/// An event that runs, or waits for its retry.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunningEvent {
    /// Its key, where it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Its key, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// Its stamp.
    stamp: String,
    /// 1 for the first try.
    attempt: u32,
    /// Since it was read, in milliseconds.
    age_ms: u64,
    /// What the last try said.
    #[schema(required)]
    last_error: Option<String>,
}

impl RunningEvent {
    fn new(event: InFlight) -> RunningEvent {
        let (key, key_base64) = split(&event.key);
        let InFlight { stamp, attempt, age_ms, last_error, .. } = event;
        RunningEvent { key, key_base64, stamp, attempt, age_ms, last_error }
    }
}

/// The events of this instance that run or wait for their retry, oldest first.
#[utoipa::path(
    get,
    path = "/api/v1/in-flight",
    tag = "instances",
    params(("limit" = Option<u32>, Query, description = "At most so many, 1 to 1000; 100 when not given")),
    responses((status = 200, body = Running))
)]
pub async fn in_flight(State(front): State<Front>, RawQuery(query): RawQuery) -> Result<Json<Running>, ApiError> {
    let limit = Query::parse(query.as_deref(), &["limit"])?.limit()?;
    let events = front.instance()?.in_flight(limit).await;
    Ok(Json(Running { in_flight: events.into_iter().map(RunningEvent::new).collect() }))
}
