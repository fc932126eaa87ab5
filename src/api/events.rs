//! `POST /api/v1/events`: primary events come in, all or none of a request.

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};

use super::bytes::sequence;
use super::query::Query;
use crate::config::Format;
use crate::event::Event;
use crate::log::LogError;
use crate::sequencer::format;
use crate::server::error::ApiError;
use crate::server::{Front, MAX_BODY_BYTES};
use crate::stamp::Stamp;

/// `POST /api/v1/events`
pub async fn post(
    State(front): State<Front>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    Query::parse(query.as_deref(), &[])?;
    let by_line = is_ndjson(&headers)?;
    let events = read(by_line, body.map_err(|rejection| refused_body(&rejection))?)?;
    let instance = front.instance()?;
    let epoch = instance.config().source.epoch;
    let offsets = instance.append(events).await.map_err(refused_by_log)?;
    let sequences: Vec<u64> = offsets.iter().map(|&offset| Stamp::root(epoch, offset as u64).sequence).collect();
    let answer = json!({
        "accepted": sequences.len(),
        "first_sequence": sequences.first().copied().map(sequence),
        "last_sequence": sequences.last().copied().map(sequence),
        "ranges": ranges(&sequences),
    });
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
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

fn read(by_line: bool, body: Bytes) -> Result<Vec<Event>, ApiError> {
    if !by_line {
        return Ok(vec![event(body).map_err(bad_event)?]);
    }
    let mut events = Vec::new();
    for (index, line) in body.split(|&byte| byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let read = event(body.slice_ref(line)).map_err(|message| {
            let line = index + 1;
            bad_event(format!("line {line}: {message}")).with("line", line)
        })?;
        events.push(read);
    }
    if events.is_empty() {
        return Err(bad_event("there is no event in the body".into()));
    }
    Ok(events)
}

fn event(text: Bytes) -> Result<Event, String> {
    format::decode(Format::Json, None, Some(&text)).map_err(|undecodable| undecodable.to_string())
}

fn bad_event(message: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "bad_event", message)
        .hint(r#"an event is {"key":"123","action":"ADD","payload":…}, with payload optional; nothing was appended"#)
}

fn refused_by_log(error: LogError) -> ApiError {
    match error {
        LogError::Refused(message) => too_large(message).hint("nothing was appended; send smaller events"),
        LogError::Fatal(message) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "log_failed", message)
            .hint("the instance's log tells more; whether the events were appended is not known"),
        other => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "log_unavailable", other.to_string())
            .hint("send them again: events are idempotent"),
    }
}

/// Runs of sequences without a gap, in order.
fn ranges(sequences: &[u64]) -> Vec<[Value; 2]> {
    sequences
        .chunk_by(|left, right| left + 1 == *right)
        .filter_map(|run| Some([sequence(*run.first()?), sequence(*run.last()?)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_runs_in_order() {
        assert_eq!(json!(ranges(&[57, 58, 59, 61])), json!([[57, 59], [61, 61]]));
        assert_eq!(json!(ranges(&[])), json!([]));
    }

    #[test]
    fn lines_are_taken_together_or_refused_with_their_number() {
        let body = "{\"key\":\"1\",\"action\":\"ADD\"}\r\n\n{\"key\":\"2\",\"action\":\"REMOVE\"}\n";
        assert_eq!(read(true, body.into()).unwrap().len(), 2);
        let error = format!("{:?}", read(true, format!("{body}{{\"key\":\"3\"}}").into()).unwrap_err());
        assert!(error.contains("line 4"), "{error}");
        assert!(read(true, "\n\n".into()).is_err());
        assert!(read(false, "[]".into()).is_err());
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
