//! `GET /api/v1/keys/{key}` and `GET /api/v1/keys`: what keys hold, committed, whoever owns them.

use std::time::Duration;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode, percent_encode};
use serde_json::{Value, json};

use super::bytes::base64;
use super::everywhere;
use super::frontier::{check_counted, not_settled, wait_of};
use super::held::{Held, KeyPage, entries};
use super::query::{Query, refuse};
use crate::event::MAX_KEY_BYTES;
use crate::instance::Instance;
use crate::instance::view::{ListQuery, Lookup};
use crate::server::Front;
use crate::server::error::ApiError;
use crate::server::limits::is_forwarded;

/// What a key holds. Any instance answers: it asks the owner.
#[utoipa::path(
    get,
    path = "/api/v1/keys/{*key}",
    tag = "state",
    params(
        ("key" = String, Path, description = "The key, percent-encoded"),
        ("wait" = Option<String>, Query, description = "`settled`: answer when all that has been received at this moment is"),
        ("timeout" = Option<String>, Query, description = "How long to wait, such as 30s, the default; at most 10m"),
    ),
    responses(
        (status = 200, body = Held, description = "Also for a removed key, while its marker lives"),
        (status = 409, body = super::openapi::Failure, description = "`needs_exactly_once`: what is settled is not known"),
        (status = 504, body = super::openapi::Failure, description = "`not_settled`: the time is over"),
        (status = 404, body = super::openapi::Failure, description = "`unknown_key`"),
    )
)]
pub async fn get(
    State(front): State<Front>,
    uri: Uri,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let names: &[&str] = if is_forwarded(&headers) { &["key_base64", "frontier"] } else { &["wait", "timeout"] };
    let query = Query::parse(query.as_deref(), names)?;
    let wait = wait_of(&query)?;
    let known = query.text("frontier")?.and_then(|frontier| frontier.parse().ok());
    let key = match query.bytes("key")? {
        Some(key) => key,
        None => {
            // From the raw path, because a key is bytes and not text.
            let key = uri.path().strip_prefix("/api/v1/keys/").unwrap_or_default();
            percent_decode(key.as_bytes()).collect::<Vec<u8>>().into()
        }
    };
    if !(1..=MAX_KEY_BYTES).contains(&key.len()) {
        let message = format!("a key has 1 to {MAX_KEY_BYTES} bytes, this one {}", key.len());
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "bad_key", message)
            .hint("give the key percent-encoded, as in /api/v1/keys/a%2Fb"));
    }
    let instance = front.instance()?;
    if let Some(timeout) = wait {
        settled(&instance, timeout).await?;
    }
    match instance.lookup_settled(key.clone(), known).await {
        (Lookup::Here { partition, entry: Some(entry) }, settled) => {
            let mut held = Held::new(&key, &entry, partition, settled);
            held.instance = Some(instance.status().instance);
            Ok((StatusCode::OK, Json(json!(held))))
        }
        (Lookup::Here { partition, entry: None }, _) => {
            let key = json!(String::from_utf8_lossy(&key));
            let message = format!("no event of the key {key} has been committed");
            Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_key", message)
                .hint("/api/v1/in-flight shows what is still running")
                .with("partition", partition))
        }
        (Lookup::NotReady { partition, reason }, _) => {
            let message = format!("partition {partition} cannot answer now: {reason}");
            Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message)
                .hint("ask again shortly")
                .with("partition", partition)
                .with("owner", front.peers().own()))
        }
        (Lookup::Elsewhere { partition }, _) if is_forwarded(&headers) => Err(not_owner(partition)),
        (Lookup::Elsewhere { partition }, _) => {
            // Not in the path: there the client takes the key `..` for a step up, however it is encoded.
            let key = percent_encode(base64(&key).as_bytes(), NON_ALPHANUMERIC).to_string();
            let frontier = instance.standing().frontier;
            let known = frontier.map_or_else(String::new, |frontier| format!("&frontier={frontier}"));
            let path = format!("/api/v1/keys/-?key_base64={key}{known}");
            let (status, answer) = front.peers().ask_owner(&instance, partition, Method::GET, &path).await?;
            Ok((status, Json(answer)))
        }
    }
}

/// All that the source topics hold at this moment is settled when this returns.
async fn settled(instance: &Instance, timeout: Duration) -> Result<(), ApiError> {
    check_counted(instance)?;
    let all = async {
        let received = instance.received().await.map_err(|error| {
            let message = format!("the log does not tell where the source ends: {error}");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "log_unavailable", message).hint("ask again shortly")
        })?;
        instance.settled(&received).await;
        Ok(())
    };
    tokio::time::timeout(timeout, all)
        .await
        .unwrap_or_else(|_| Err(not_settled("all that had been received", instance.standing().oldest_unsettled)))
}

/// To another instance, which then looks the owner up anew.
pub(super) fn not_owner(partition: i32) -> ApiError {
    let message = format!("partition {partition} is not owned by this instance");
    ApiError::new(StatusCode::MISDIRECTED_REQUEST, "not_owner", message)
        .hint("ask without the header tidegate-forwarded")
        .with("partition", partition)
}

/// Keys in byte order, over all partitions of all instances. A page ends early where its values are large.
#[utoipa::path(
    get,
    path = "/api/v1/keys",
    tag = "state",
    params(
        ("prefix" = Option<String>, Query, description = "Only keys that begin with it"),
        ("prefix_base64" = Option<String>, Query, description = "The same for one that is not UTF-8"),
        ("after" = Option<String>, Query, description = "Only keys above it: `next` of the page before"),
        ("after_base64" = Option<String>, Query, description = "The same for one that is not UTF-8"),
        ("limit" = Option<u32>, Query, description = "At most so many, 1 to 1000; 100 when not given"),
        ("removed" = Option<bool>, Query, description = "Also removed keys whose marker lives"),
    ),
    responses((status = 200, body = KeyPage))
)]
pub async fn list(
    State(front): State<Front>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
) -> Result<Json<KeyPage>, ApiError> {
    let mut known = vec!["prefix", "prefix_base64", "after", "after_base64", "limit", "removed"];
    if is_forwarded(&headers) {
        known.push("partitions");
    }
    let query = Query::parse(raw.as_deref(), &known)?;
    let partitions = query.text("partitions")?.map(|text| {
        everywhere::read_partitions(&text).ok_or_else(|| refuse("partitions are numbers and ranges, such as 0-3,7"))
    });
    let query = ListQuery {
        prefix: query.bytes("prefix")?.unwrap_or_default(),
        after: query.bytes("after")?,
        limit: query.limit()?,
        removed: query.flag("removed")?,
        partitions: partitions.transpose()?,
    };
    let instance = front.instance()?;
    if !is_forwarded(&headers) {
        return everywhere::list(&front, &instance, query).await.map(Json);
    }
    let frontier = instance.standing().frontier;
    let page = instance.list(query).await.map_err(|reason| {
        let message = format!("this instance cannot list its keys now: {reason}");
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message).hint("ask again shortly")
    })?;
    let partitions = page.partitions.clone();
    Ok(Json(KeyPage {
        partitions: Some(partitions),
        ..KeyPage::new(entries(&instance, frontier, &page), page.next.as_deref())
    }))
}
