//! `GET /api/v1/keys/{key}` and `GET /api/v1/keys`: what keys hold, committed.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, Uri};
use bytes::Bytes;
use percent_encoding::percent_decode;
use serde_json::{Map, Value, json};

use super::bytes::put;
use super::query::Query;
use crate::entry::Entry;
use crate::event::MAX_KEY_BYTES;
use crate::instance::view::{ListQuery, Lookup};
use crate::server::Front;
use crate::server::error::ApiError;

/// `GET /api/v1/keys/{key}`; the key is taken from the raw path, because it is bytes and not text.
pub async fn get(
    State(front): State<Front>,
    uri: Uri,
    RawQuery(query): RawQuery,
) -> Result<Json<Map<String, Value>>, ApiError> {
    Query::parse(query.as_deref(), &[])?;
    let key = uri.path().strip_prefix("/api/v1/keys/").unwrap_or_default();
    let key: Bytes = percent_decode(key.as_bytes()).collect::<Vec<u8>>().into();
    if !(1..=MAX_KEY_BYTES).contains(&key.len()) {
        let message = format!("a key has 1 to {MAX_KEY_BYTES} bytes, this one {}", key.len());
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_key", message));
    }
    let instance = front.instance()?;
    match instance.lookup(key.clone()).await {
        Lookup::Here { partition, entry: Some(entry) } => {
            let mut object = of_entry(&key, &entry, partition);
            object.insert("instance".into(), instance.status().instance.into());
            Ok(Json(object))
        }
        Lookup::Here { partition, entry: None } => {
            let message = format!("no event of the key {} has been committed", quoted(&key));
            Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_key", message)
                .hint("/api/v1/in-flight shows what is still running")
                .with("partition", partition))
        }
        Lookup::Elsewhere { partition, owner } => Err(not_owner(partition, owner)),
        Lookup::NotReady { partition, reason } => {
            let message = format!("partition {partition} cannot answer now: {reason}");
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message).hint("ask again shortly"))
        }
    }
}

fn not_owner(partition: i32, owner: Option<String>) -> ApiError {
    let (message, hint) = match &owner {
        Some(owner) => (
            format!("partition {partition} of this key is owned by the instance at {owner}"),
            format!("ask http://{owner}"),
        ),
        None => (
            format!("partition {partition} of this key is owned by no instance that is known here"),
            "it is about to be assigned: ask again shortly".to_owned(),
        ),
    };
    let status = if owner.is_some() { StatusCode::MISDIRECTED_REQUEST } else { StatusCode::SERVICE_UNAVAILABLE };
    ApiError::new(status, if owner.is_some() { "not_owner" } else { "not_ready" }, message)
        .hint(hint)
        .with("partition", partition)
        .with("owner", owner)
}

/// `GET /api/v1/keys`
pub async fn list(State(front): State<Front>, RawQuery(query): RawQuery) -> Result<Json<Value>, ApiError> {
    let known = ["prefix", "prefix_base64", "after", "after_base64", "limit", "removed"];
    let query = Query::parse(query.as_deref(), &known)?;
    let query = ListQuery {
        prefix: query.bytes("prefix")?.unwrap_or_default(),
        after: query.bytes("after")?,
        limit: query.limit()?,
        removed: query.flag("removed")?,
    };
    let page = front.instance()?.list(query).await;
    let entries: Vec<Value> =
        page.entries.iter().map(|held| of_entry(&held.key, &held.entry, held.partition).into()).collect();
    let mut answer = Map::new();
    answer.insert("entries".into(), entries.into());
    match page.next {
        Some(next) => put(&mut answer, "next", &next),
        None => _ = answer.insert("next".into(), Value::Null),
    }
    Ok(Json(answer.into()))
}

fn of_entry(key: &[u8], entry: &Entry, partition: i32) -> Map<String, Value> {
    let mut object = Map::new();
    put(&mut object, "key", key);
    object.insert("action".into(), entry.action.as_str().into());
    match &entry.value {
        Some(value) => put(&mut object, "value", value),
        None => _ = object.insert("value".into(), Value::Null),
    }
    object.insert("stamp".into(), entry.stamp.to_string().into());
    object.insert("settled".into(), Value::Null);
    object.insert("partition".into(), partition.into());
    object
}

fn quoted(key: &[u8]) -> String {
    json!(String::from_utf8_lossy(key)).to_string()
}
