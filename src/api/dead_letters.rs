//! `GET /api/v1/dead-letters`: what could not be handled, browsed by any instance.
//!
//! `page` reads them, `letter` shows them, `retry` sends them again.

mod letter;
mod page;
pub mod retry;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use serde::Serialize;
use tokio::sync::Semaphore;
use utoipa::ToSchema;

use self::letter::DeadLetter;
use self::page::{Place, Shelf};
use super::query::{Query, refuse};
use crate::cause::Cause;
use crate::log::LogError;
use crate::retry::Letter;
use crate::server::Front;
use crate::server::error::ApiError;
use crate::topics::Topics;

/// How long reading one page may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Pages read at the same time: each has a reader of its own, further requests wait.
static READERS: Semaphore = Semaphore::const_new(4);

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeadLetters {
    /// In the order of partition and offset; may be few, or none, also where there are more.
    dead_letters: Vec<DeadLetter>,
    /// Pass it as `after` for the next page; null = there are no more.
    #[schema(required)]
    next: Option<String>,
}

/// What could not be handled, in the order of partition and offset. Any instance answers.
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters",
    tag = "dead letters",
    params(
        ("after" = Option<String>, Query, description = "Only those behind it: `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "At most so many, 1 to 1000; 100 when not given"),
        ("cause" = Option<String>, Query, description = "Only those of this cause"),
        ("full" = Option<bool>, Query, description = "Each with its record as it stands on the topic"),
    ),
    responses((status = 200, body = DeadLetters))
)]
pub async fn list(State(front): State<Front>, RawQuery(query): RawQuery) -> Result<Json<DeadLetters>, ApiError> {
    let query = Query::parse(query.as_deref(), &["after", "limit", "cause", "full"])?;
    let (limit, full) = (query.limit()?, query.flag("full")?);
    let (from, cause) = (place_of(&query)?, cause_of(&query)?);
    let page = ask(&front, move |shelf| shelf.page(from, limit, cause)).await?;
    let instance = front.instance()?;
    let letters = page.letters.iter().map(|(partition, record)| {
        let retried = instance.is_retried(Letter { partition: *partition, offset: record.offset });
        DeadLetter::new(*partition, record, retried, full)
    });
    Ok(Json(DeadLetters { dead_letters: letters.collect(), next: page.next.map(|next| next.to_string()) }))
}

/// One dead letter, with its record as it stands on the topic.
#[utoipa::path(
    get,
    path = "/api/v1/dead-letters/{partition}/{offset}",
    tag = "dead letters",
    params(
        ("partition" = i32, Path, description = "Its partition of the dead-letter topic"),
        ("offset" = i64, Path, description = "Its offset there"),
    ),
    responses(
        (status = 200, body = DeadLetter),
        (status = 404, body = super::openapi::Failure, description = "`unknown_dead_letter`"),
    )
)]
pub async fn get(
    State(front): State<Front>,
    Path((partition, offset)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Json<DeadLetter>, ApiError> {
    Query::parse(query.as_deref(), &[])?;
    let letter @ Letter { partition, offset } = read_place(&partition, &offset)?;
    let record = ask(&front, move |shelf| shelf.one(partition, offset)).await?.ok_or_else(|| unknown(letter))?;
    let retried = front.instance()?.is_retried(letter);
    Ok(Json(DeadLetter::new(partition, &record, retried, true)))
}

/// The parameter `after`.
fn place_of(query: &Query) -> Result<Place, ApiError> {
    query.text("after")?.map_or(Ok(Place::START), |after| {
        let refused = |_| refuse(format!("after = {after:?}")).hint("pass next of the page before, such as 3:1200");
        after.parse().map_err(refused)
    })
}

/// The parameter `cause`.
fn cause_of(query: &Query) -> Result<Option<Cause>, ApiError> {
    let cause = query.text("cause")?.map(|word| {
        let known = Cause::ALL.map(Cause::as_str).join(", ");
        word.parse::<Cause>().map_err(|unknown| refuse(unknown.to_string()).hint(format!("the causes are {known}")))
    });
    cause.transpose()
}

/// Partition and offset of a path.
fn read_place(partition: &str, offset: &str) -> Result<Letter, ApiError> {
    let (Ok(partition), Ok(offset)) = (partition.parse::<i32>(), offset.parse::<i64>()) else {
        return Err(refuse(format!("{partition:?}/{offset:?}: a partition and an offset are numbers")));
    };
    Ok(Letter { partition, offset })
}

/// 404.
fn unknown(Letter { partition, offset }: Letter) -> ApiError {
    let message = format!("there is no dead letter at offset {offset} of partition {partition}");
    ApiError::new(StatusCode::NOT_FOUND, "unknown_dead_letter", message).hint("/api/v1/dead-letters lists them")
}

/// Reads off the runtime's threads; the instance is not held meanwhile.
async fn ask<T: Send + 'static>(
    front: &Front,
    read: impl FnOnce(&Shelf) -> Result<T, LogError> + Send + 'static,
) -> Result<T, ApiError> {
    let partitions = front.instance()?.config().processing.partitions;
    ask_below(front, partitions, read).await
}

/// The same as if only the first `partitions` were there.
async fn ask_below<T: Send + 'static>(
    front: &Front,
    partitions: i32,
    read: impl FnOnce(&Shelf) -> Result<T, LogError> + Send + 'static,
) -> Result<T, ApiError> {
    let shelf = {
        let instance = front.instance()?;
        let topic = Topics::new(&instance.config().application.id, &[]).dead_letter;
        Shelf { log: Arc::clone(instance.log()), topic, partitions, patience: PATIENCE }
    };
    let _permit = READERS.acquire().await.expect("it is never closed");
    match tokio::task::spawn_blocking(move || read(&shelf)).await {
        Ok(result) => result.map_err(refused_by_log),
        Err(_) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "reading the dead letters failed")
            .hint("the instance's log has the details; please report them")),
    }
}

fn refused_by_log(error: LogError) -> ApiError {
    match error {
        LogError::UnknownTopic(topic) => {
            let message = format!("the topic of the dead letters is not there yet: {topic}");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message).hint("ask again shortly")
        }
        LogError::Fatal(message) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "log_failed", message)
            .hint("the instance's log tells more"),
        other => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "log_unavailable", other.to_string())
            .hint("ask again shortly"),
    }
}
