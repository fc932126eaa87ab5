//! `GET /api/v1/frontier` and `/api/v1/roots/{sequence}`: what is final, and the parameters with which other calls
//! wait for it.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::bytes::sequence;
use super::openapi::Failure;
use super::query::{Query, refuse};
use crate::frontier::{Standing, Unavailable};
use crate::instance::Instance;
use crate::server::Front;
use crate::server::error::ApiError;
use crate::server::limits::LONGEST_WAIT;
use crate::stamp::Stamp;

/// How long `wait=settled` waits where no timeout is given.
const WAIT: Duration = Duration::from_secs(30);

/// How far the application is.
#[derive(Debug, Serialize, ToSchema)]
pub struct Frontier {
    /// The greatest sequence such that it and all below it are settled; null where that is not known.
    #[schema(required)]
    frontier: Option<Value>,
    /// The greatest sequence received.
    #[schema(required)]
    received: Option<Value>,
    /// How many primary events are received and not settled.
    unsettled: u64,
    /// The first of those.
    #[schema(required)]
    oldest_unsettled: Option<Value>,
    /// The sequence up to which REMOVE markers are deleted; null where none are.
    #[schema(required)]
    horizon: Option<Value>,
    /// Why the frontier is not known: `needs_exactly_once` or `needs_mark`; null where it is, or where nothing was
    /// received yet.
    #[schema(required)]
    unavailable: Option<&'static str>,
}

impl Frontier {
    fn new(standing: &Standing) -> Frontier {
        Frontier {
            frontier: standing.frontier.map(sequence),
            received: standing.received.map(sequence),
            unsettled: standing.unsettled,
            oldest_unsettled: standing.oldest_unsettled.map(sequence),
            horizon: None,
            unavailable: standing.unavailable.map(Unavailable::as_str),
        }
    }
}

/// The sequence up to which everything is final, as far as this instance knows.
#[utoipa::path(
    get,
    path = "/api/v1/frontier",
    tag = "settled",
    responses((status = 200, body = Frontier), (status = 503, body = Failure, description = "`stopping`"))
)]
pub async fn frontier(State(front): State<Front>, RawQuery(query): RawQuery) -> Result<Json<Frontier>, ApiError> {
    Query::parse(query.as_deref(), &[])?;
    Ok(Json(Frontier::new(&front.instance()?.standing())))
}

/// A primary event with its cascade.
#[derive(Debug, Serialize, ToSchema)]
pub struct Root {
    /// Its sequence.
    #[schema(value_type = u64)]
    sequence: Value,
    /// Whether its whole cascade is done; null where that cannot be known.
    #[schema(required)]
    settled: Option<bool>,
    /// Events of it that are pending, by depth.
    pending: BTreeMap<u8, i32>,
    /// Retries of its dead letters, each a cascade of its own.
    retries: Vec<Retry>,
}

/// A retry of a dead letter.
#[derive(Debug, Serialize, ToSchema)]
pub struct Retry {
    /// Its number.
    retry: u32,
    /// Whether its whole cascade is done.
    settled: bool,
    /// Events of it that are pending, by depth.
    pending: BTreeMap<u8, i32>,
}

/// Whether the cascade of a primary event is done, and what of it is pending.
#[utoipa::path(
    get,
    path = "/api/v1/roots/{sequence}",
    tag = "settled",
    params(("sequence" = String, Path, description = "Its sequence, such as 57, or e1:57 in epoch 1")),
    responses(
        (status = 200, body = Root),
        (status = 404, body = Failure, description = "`unknown_root`: never received"),
    )
)]
pub async fn root(
    State(front): State<Front>,
    Path(text): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Root>, ApiError> {
    Query::parse(query.as_deref(), &[])?;
    let number = read_sequence(&text)?;
    let instance = front.instance()?;
    let Some(root) = instance.root(number) else {
        let message = format!("no primary event of the sequence {text} has been received");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_root", message)
            .hint("GET /api/v1/frontier tells the greatest sequence received"));
    };
    let retry = |(retry, pending): (u32, BTreeMap<_, _>)| Retry { retry, settled: pending.is_empty(), pending };
    Ok(Json(Root {
        sequence: sequence(number),
        settled: root.settled,
        pending: root.pending,
        retries: root.retries.into_iter().map(retry).collect(),
    }))
}

fn read_sequence(text: &str) -> Result<u64, ApiError> {
    let root = text.parse::<Stamp>().ok().filter(|stamp| stamp.path.is_empty() && stamp.generation == 0);
    root.map(|root| root.sequence)
        .ok_or_else(|| refuse(format!("{text:?} is no sequence")).hint("a sequence is a number, or e1:5 in epoch 1"))
}

/// How long a call waits for what is settled; `None` = it does not.
pub fn wait_of(query: &Query) -> Result<Option<Duration>, ApiError> {
    let timeout = query.text("timeout")?;
    match query.text("wait")?.as_deref() {
        None if timeout.is_some() => Err(refuse("timeout is for wait=settled")),
        None => Ok(None),
        Some("settled") => {
            let read = |text: String| humantime::parse_duration(&text).ok();
            let timeout = timeout.map_or(Some(WAIT), read).filter(|timeout| *timeout <= LONGEST_WAIT);
            let hint = || format!("such as 30s; at most {}", humantime::format_duration(LONGEST_WAIT));
            timeout.map(Some).ok_or_else(|| refuse("timeout is no duration that can be waited for").hint(hint()))
        }
        Some(other) => Err(refuse(format!("wait={other}: it is only known what is settled")).hint("wait=settled")),
    }
}

/// # Errors
/// 409 where it is never known what is settled.
pub fn check_counted(instance: &Instance) -> Result<(), ApiError> {
    match instance.standing().unavailable {
        Some(Unavailable::NeedsExactlyOnce) => {
            let message = "this application runs, or has run, without counting what is pending";
            Err(ApiError::new(StatusCode::CONFLICT, "needs_exactly_once", message)
                .hint("what is settled is known with processing.guarantee = \"exactly_once\" from the beginning"))
        }
        Some(Unavailable::NeedsMark) | None => Ok(()),
    }
}

/// 504: the time is over.
pub fn not_settled(what: &str) -> ApiError {
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, "not_settled", format!("{what} is not settled yet"))
        .hint("wait for longer with timeout=…; /api/v1/frontier and /api/v1/roots/{sequence} tell what is pending")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_and_waits_are_read() {
        assert_eq!(read_sequence("57").unwrap(), 57);
        assert_eq!(read_sequence("e1:5").unwrap(), (1 << 56) | 5);
        for wrong in ["", "-1", "5/0", "5.g1", "x", "72057594037927936"] {
            assert!(read_sequence(wrong).is_err(), "{wrong}");
        }
        let wait = |text: &str| wait_of(&Query::parse(Some(text), &["wait", "timeout"]).unwrap());
        assert_eq!(wait("").unwrap(), None);
        assert_eq!(wait("wait=settled").unwrap(), Some(WAIT));
        assert_eq!(wait("wait=settled&timeout=1500ms").unwrap(), Some(Duration::from_millis(1500)));
        for wrong in ["wait", "wait=applied", "timeout=3s", "wait=settled&timeout=x", "wait=settled&timeout=1day"] {
            assert!(wait(wrong).is_err(), "{wrong}");
        }
    }
}
