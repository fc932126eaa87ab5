//! `GET /api/v1/status`, `/tasks`, `/in-flight`: what the instance is doing.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde_json::{Map, Value, json};

use super::bytes::put;
use super::query::Query;
use crate::config::Guarantee;
use crate::instance::view::TaskStatus;
use crate::server::Front;
use crate::server::error::ApiError;

/// `GET /api/v1/status`
pub async fn status(State(front): State<Front>) -> Result<Json<Value>, ApiError> {
    let instance = front.instance()?;
    let status = instance.status();
    let guarantee = match instance.config().processing.guarantee {
        Guarantee::ExactlyOnce => "exactly_once",
        Guarantee::AtLeastOnce => "at_least_once",
    };
    Ok(Json(json!({
        "application": status.application,
        "instance": status.instance,
        "version": env!("CARGO_PKG_VERSION"),
        "state": status.state,
        "guarantee": guarantee,
        "partitions": status.partitions,
        "frontier": null,
        "buffered_bytes": status.buffered_bytes,
        "troubles": status.troubles,
    })))
}

/// `GET /api/v1/tasks`
pub async fn tasks(State(front): State<Front>) -> Result<Json<Value>, ApiError> {
    let status = front.instance()?.status();
    let tasks: Vec<Value> = status.tasks.iter().map(|task| of_task(task, &status.instance)).collect();
    Ok(Json(json!({ "tasks": tasks })))
}

fn of_task(task: &TaskStatus, instance: &str) -> Value {
    json!({
        "role": task.role,
        "topic": &*task.topic,
        "partition": task.partition,
        "state": task.state.as_str(),
        "position": task.position,
        "committed": task.committed,
        "lag": task.lag,
        "in_flight": task.in_flight,
        "waiting": task.waiting,
        "oldest_age_ms": task.oldest_age_ms,
        "restore_remaining": task.restore_remaining,
        "instance": instance,
    })
}

/// `GET /api/v1/in-flight`
pub async fn in_flight(State(front): State<Front>, RawQuery(query): RawQuery) -> Result<Json<Value>, ApiError> {
    let limit = Query::parse(query.as_deref(), &["limit"])?.limit()?;
    let events = front.instance()?.in_flight(limit).await;
    let events: Vec<Value> = events
        .into_iter()
        .map(|event| {
            let mut object = Map::new();
            put(&mut object, "key", &event.key);
            object.insert("stamp".into(), event.stamp.into());
            object.insert("attempt".into(), event.attempt.into());
            object.insert("age_ms".into(), event.age_ms.into());
            object.insert("last_error".into(), event.last_error.into());
            Value::Object(object)
        })
        .collect();
    Ok(Json(json!({ "in_flight": events })))
}
