//! `POST /api/v1/events`: primary events come in, all or none of a request.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::bytes::sequence;
use super::frontier::{check_counted, not_settled, wait_of};
use super::openapi::Failure;
use super::query::Query;
use crate::config::{Format, StampSource};
use crate::event::Event;
use crate::instance::Instance;
use crate::log::LogError;
use crate::sequencer::format;
use crate::server::error::ApiError;
use crate::server::{Front, MAX_BODY_BYTES};
use crate::stamp::{SEQUENCE_LIMIT, Stamp};

/// So many sequences at most are told as pending, or as failed.
const MOST_TOLD: usize = 1000;

/// What was accepted.
#[derive(Debug, Serialize, ToSchema)]
pub struct Accepted {
    /// How many events.
    accepted: usize,
    /// The sequence of the first one: a number in epoch 0, a text such as `"e1:5"` otherwise; null with
    /// `source.stamp = "arrival"`, where it is given when the event is read.
    #[schema(required)]
    first_sequence: Option<Value>,
    /// The sequence of the last one.
    #[schema(required)]
    last_sequence: Option<Value>,
    /// Runs of sequences, first and last each, in the order of the events.
    #[schema(value_type = Vec<Vec<Value>>)]
    ranges: Vec<[Value; 2]>,
    #[serde(flatten)]
    outcome: Option<Outcome>,
}

/// With `wait=settled`: what came of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Outcome {
    /// How many events of the cascades became dead letters; null where that is not known: with
    /// `source.stamp = "arrival"` it is only known when there are none among all that came meanwhile.
    #[schema(required)]
    dead_letters: Option<u64>,
    /// The sequences of the events whose cascades those are of, at most 1000.
    #[schema(value_type = Vec<Value>)]
    failed: Vec<Value>,
}

impl Outcome {
    /// `before` is the greatest sequence received when the events were not there yet.
    fn of(instance: &Instance, sequences: &[u64], before: Option<u64>) -> Outcome {
        if sequences.is_empty() {
            // Theirs are among those above, and so may be others'.
            let above = before.map_or(0, |before| before + 1);
            let known = instance.with_dead_letters(&[(above, u64::MAX)]);
            return Outcome { dead_letters: known.filter(Vec::is_empty).map(|_| 0), failed: Vec::new() };
        }
        let mut sequences = sequences.to_vec();
        sequences.sort_unstable();
        sequences.dedup();
        let known = instance.with_dead_letters(&runs(&sequences).collect::<Vec<_>>());
        // A record that was refused is no root, and a dead letter.
        let refused = instance.not_received(&sequences);
        let known = known.zip(refused).map(|(mut known, refused)| {
            known.extend(refused.into_iter().map(|refused| (refused, 1)));
            known.sort_unstable();
            known
        });
        let dead_letters = known.as_ref().map(|known| known.iter().map(|(_, number)| u64::from(*number)).sum());
        let failed = known.into_iter().flatten().take(MOST_TOLD).map(|(failed, _)| sequence(failed)).collect();
        Outcome { dead_letters, failed }
    }
}

/// An event.
#[derive(ToSchema)]
#[schema(as = Event)]
#[allow(dead_code, reason = "describes what `sequencer::format` reads")]
pub struct EventBody {
    /// 1 to 1024 bytes.
    key: Option<String>,
    /// The same for one that is not UTF-8.
    key_base64: Option<String>,
    /// `ADD` or `REMOVE`.
    action: String,
    /// A text is its UTF-8, anything else the bytes of that JSON value as they stand.
    payload: Option<Value>,
    /// The payload, where it is not UTF-8.
    payload_base64: Option<String>,
    /// Its sequence, with `source.stamp = "header"`.
    global_offset: Option<u64>,
}

/// Takes primary events: all of a request or none. They are on the source topic when this answers, and with
/// `wait=settled` their whole cascades are done.
#[utoipa::path(
    post,
    path = "/api/v1/events",
    tag = "events",
    request_body(content(
        (EventBody = "application/json"),
        (String = "application/x-ndjson"),
    ), description = "One event, or one a line"),
    params(
        ("wait" = Option<String>, Query, description = "`settled`: answer when the cascades are done"),
        ("timeout" = Option<String>, Query, description = "How long to wait, such as 30s, the default; at most 10m"),
    ),
    responses(
        (status = 200, body = Accepted, description = "With `wait=settled`: all of it is settled; `dead_letters` says whether all of it succeeded"),
        (status = 202, body = Accepted),
        (status = 400, body = Failure, description = "`bad_event`: names the line; nothing was appended"),
        (status = 409, body = Failure, description = "`no_sequence`: `source.stamp` is `header`, and an event has none; `needs_exactly_once`: what is settled is not known"),
        (status = 413, body = Failure, description = "`too_large`: over 8 MiB, or one event over what the log takes"),
        (status = 504, body = Failure, description = "`not_settled`: accepted, but not settled in time; `pending` names the sequences"),
        (status = 415, body = Failure, description = "`unsupported_media_type`"),
    )
)]
pub async fn post(
    State(front): State<Front>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let query = Query::parse(query.as_deref(), &["wait", "timeout"])?;
    let wait = wait_of(&query)?;
    let by_line = is_ndjson(&headers)?;
    let body = body.map_err(|rejection| refused_body(&rejection))?;
    let instance = front.instance()?;
    let source = &instance.config().source;
    let (stamp, epoch) = (source.stamp, source.epoch);
    let (events, sequences) = read(by_line, body, stamp == StampSource::Header)?;
    if wait.is_some() {
        check_counted(&instance)?;
    }
    let before = instance.standing().received;
    let offsets = instance.append(events, sequences.clone()).await.map_err(refused_by_log)?;
    let accepted = offsets.len();
    let sequences: Vec<u64> = match stamp {
        StampSource::Offset => offsets.iter().map(|&offset| offset as u64).collect(),
        StampSource::Header => sequences,
        // Given when they are read.
        StampSource::Arrival => Vec::new(),
    };
    let sequences: Vec<u64> = sequences.iter().map(|&sequence| Stamp::root(epoch, sequence).sequence).collect();
    let answer = Accepted {
        accepted,
        first_sequence: sequences.first().copied().map(sequence),
        last_sequence: sequences.last().copied().map(sequence),
        ranges: ranges(&sequences),
        outcome: None,
    };
    let Some(timeout) = wait else { return Ok((StatusCode::ACCEPTED, Json(answer)).into_response()) };
    // The sequence of a record may have come before, and it may be refused: what was sent is the record.
    let end = offsets.last().filter(|_| stamp == StampSource::Header).map(|last| last + 1);
    if settled(&instance, &sequences, end, timeout).await? {
        let outcome = Some(Outcome::of(&instance, &sequences, before));
        return Ok((StatusCode::OK, Json(Accepted { outcome, ..answer })).into_response());
    }
    let unsettled = |of: &&u64| instance.first_unsettled(&[(**of, **of)]).is_some();
    let pending: Vec<Value> = sequences.iter().filter(unsettled).take(MOST_TOLD).copied().map(sequence).collect();
    let first = instance.first_unsettled(&runs(&sequences).collect::<Vec<_>>());
    let error =
        not_settled("what was sent", first).with("accepted", answer.accepted).with("ranges", json!(answer.ranges));
    let error = error.with("first_sequence", answer.first_sequence).with("last_sequence", answer.last_sequence);
    Err(error.with("pending", pending))
}

/// Whether the cascades of what was sent are settled within the time. With `arrival` their sequences are not known:
/// everything that has been received when they are is waited for. Where records stand for themselves they are received,
/// or refused, below `end`.
async fn settled(
    instance: &Instance,
    sequences: &[u64],
    end: Option<i64>,
    timeout: Duration,
) -> Result<bool, ApiError> {
    let all = async {
        let ranges = match (sequences, end) {
            ([], _) => instance.received().await.map_err(refused_by_log)?,
            (sequences, None) => runs(sequences).collect(),
            (sequences, Some(end)) => {
                instance.taken(end).await.map_err(refused_by_log)?;
                let refused: BTreeSet<u64> = instance.not_received(sequences).into_iter().flatten().collect();
                let received: Vec<u64> = sequences.iter().filter(|of| !refused.contains(of)).copied().collect();
                runs(&received).collect()
            }
        };
        instance.settled(&ranges).await;
        Ok::<(), ApiError>(())
    };
    tokio::time::timeout(timeout, all).await.map_or(Ok(false), |done| done.map(|()| true))
}

fn is_ndjson(headers: &HeaderMap) -> Result<bool, ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match media_type.as_str() {
        "application/json" => Ok(false),
        "application/x-ndjson" => Ok(true),
        _ => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            format!("the content type is {content_type:?}"),
        )
        .hint("send application/json (one event) or application/x-ndjson (one event a line)")),
    }
}

fn refused_body(rejection: &BytesRejection) -> ApiError {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        too_large(format!("the body has more than {MAX_BODY_BYTES} bytes")).hint("send it in several requests")
    } else {
        ApiError::new(StatusCode::BAD_REQUEST, "bad_body", rejection.body_text())
    }
}

fn too_large(message: String) -> ApiError {
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
}

/// The events, and with `numbered` the sequence of each.
fn read(by_line: bool, body: Bytes, numbered: bool) -> Result<(Vec<Event>, Vec<u64>), ApiError> {
    let (mut events, mut sequences) = (Vec::new(), Vec::new());
    let lines: Vec<&[u8]> = if by_line { body.split(|&byte| byte == b'\n').collect() } else { vec![&body] };
    for (index, line) in lines.into_iter().enumerate() {
        if by_line && line.trim_ascii().is_empty() {
            continue;
        }
        let text = body.slice_ref(line);
        let place = |refuse: &dyn Fn(String) -> ApiError, message: String| match by_line {
            true => refuse(format!("line {}: {message}", index + 1)).with("line", index + 1),
            false => refuse(message),
        };
        if numbered {
            sequences.push(number(&text).map_err(|message| place(&no_sequence, message))?);
        }
        events.push(event(text).map_err(|message| place(&bad_event, message))?);
    }
    if events.is_empty() {
        return Err(bad_event("there is no event in the body".into()));
    }
    Ok((events, sequences))
}

fn event(text: Bytes) -> Result<Event, String> {
    format::decode(Format::Json, None, Some(&text)).map_err(|undecodable| undecodable.to_string())
}

/// The event's own sequence.
fn number(text: &[u8]) -> Result<u64, String> {
    #[derive(Deserialize)]
    struct Numbered {
        global_offset: Option<u64>,
    }
    let numbered: Numbered = serde_json::from_slice(text).map_err(|error| format!("global_offset: {error}"))?;
    match numbered.global_offset {
        Some(sequence @ 0..SEQUENCE_LIMIT) => Ok(sequence),
        Some(sequence) => Err(format!("global_offset is {sequence}, and has to be below {SEQUENCE_LIMIT}")),
        None => Err("the event has no global_offset".into()),
    }
}

fn no_sequence(message: String) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, "no_sequence", message).hint(
        "source.stamp is \"header\": give each event its place in the order as \"global_offset\"; nothing was appended",
    )
}

fn bad_event(message: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "bad_event", message)
        .hint(r#"an event is {"key":"123","action":"ADD","payload":…}, with payload optional; nothing was appended"#)
}

fn refused_by_log(error: LogError) -> ApiError {
    match error {
        LogError::Refused(message) => too_large(message).hint("nothing was appended; send smaller events"),
        LogError::Unauthorized(message) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "log_unauthorized", message)
            .hint("nothing was appended; send them again once the instance has been granted it (docs/security.md)"),
        LogError::Fatal(message) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "log_failed", message)
            .hint("the instance's log tells more; whether the events were appended is not known"),
        other => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "log_unavailable", other.to_string())
            .hint("send them again: events are idempotent"),
    }
}

/// Runs of sequences without a gap, in order, as first and last.
fn runs(sequences: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    sequences.chunk_by(|left, right| left + 1 == *right).filter_map(|run| Some((*run.first()?, *run.last()?)))
}

fn ranges(sequences: &[u64]) -> Vec<[Value; 2]> {
    runs(sequences).map(|(first, last)| [sequence(first), sequence(last)]).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ranges_are_runs_in_order() {
        assert_eq!(json!(ranges(&[57, 58, 59, 61])), json!([[57, 59], [61, 61]]));
        assert_eq!(json!(ranges(&[])), json!([]));
    }

    #[test]
    fn lines_are_taken_together_or_refused_with_their_number() {
        let body = "{\"key\":\"1\",\"action\":\"ADD\"}\r\n\n{\"key\":\"2\",\"action\":\"REMOVE\"}\n";
        assert_eq!(read(true, body.into(), false).unwrap().0.len(), 2);
        let error = format!("{:?}", read(true, format!("{body}{{\"key\":\"3\"}}").into(), false).unwrap_err());
        assert!(error.contains("line 4"), "{error}");
        assert!(read(true, "\n\n".into(), false).is_err());
        assert!(read(false, "[]".into(), false).is_err());
    }

    #[test]
    fn sequences_are_taken_from_the_events_or_missed() {
        let line = |number: &str| format!("{{\"key\":\"1\",\"action\":\"ADD\"{number}}}\n");
        let read = |text: String| read(true, text.into(), true).map(|(_, sequences)| sequences);
        assert_eq!(read(line(",\"global_offset\":7") + &line(",\"global_offset\":0")).unwrap(), [7, 0]);
        for wrong in ["", ",\"global_offset\":null", ",\"global_offset\":-1", ",\"global_offset\":72057594037927936"] {
            let error = format!("{:?}", read(line(",\"global_offset\":7") + &line(wrong)).unwrap_err());
            assert!(error.contains("no_sequence") && error.contains("line 2"), "{error}");
        }
    }

    #[test]
    fn content_types() {
        let ask = |text: &'static str| {
            is_ndjson(&HeaderMap::from_iter([(header::CONTENT_TYPE, text.parse().expect("a header value"))]))
        };
        assert!(!ask("Application/JSON; charset=utf-8").unwrap());
        assert!(ask("application/x-ndjson").unwrap());
        assert!(ask("application/x-www-form-urlencoded").is_err());
        assert!(is_ndjson(&HeaderMap::new()).is_err());
    }
}
