//! Where the pending events of a cascade are, collected over all instances.
//!
//! O1: who does not answer in time is named by its partitions; nobody waits for it any longer.

use std::collections::BTreeSet;
use std::time::Duration;

use axum::http::StatusCode;
use futures_util::future::join_all;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::timeout;
use utoipa::ToSchema;

use super::bytes::split;
use crate::instance::{Instance, view};
use crate::server::Front;
use crate::stamp::{SequenceText, Stamp};
use crate::task::queue::Doing;

/// So many events are told at most.
const MOST: usize = 100;

/// How long the owners are looked up, and then asked.
const WITHIN: Duration = Duration::from_secs(2);

/// Where pending events are.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Places {
    /// Those that instances have read, at most 100: first those that wait for their retry, then those that run, then those
    /// that wait for their turn.
    #[schema(value_type = Vec<Place>)]
    places: Vec<Value>,
    /// How many more are pending: not read by any instance yet, or done in a transaction that is not committed yet, or on
    /// partitions that are silent, or beyond those 100.
    unplaced: u64,
    /// Partitions of which nobody has answered in time.
    silent: BTreeSet<i32>,
}

/// A pending event.
#[derive(Debug, Serialize, ToSchema)]
pub struct Place {
    /// The partition of its key.
    partition: i32,
    /// The instance that has it.
    instance: String,
    /// Its key, where it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Its key, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// Its stamp.
    stamp: String,
    /// 0: the original cascade; n: the n-th retry of a dead letter.
    retry: u32,
    /// Its depth in the cascade; 0 is the primary event.
    depth: usize,
    /// `retrying` (the last try has failed, the next one is to come), `running` or `waiting` (behind another event of its
    /// key, or for a free place).
    state: &'static str,
    /// The current or next try, from 1.
    attempt: u32,
    /// Since it was read, in milliseconds.
    age_ms: u64,
    /// What the last try said.
    #[schema(required)]
    last_error: Option<String>,
}

impl Place {
    fn new(place: view::Place, instance: &Instance) -> Place {
        let (key, key_base64) = split(&place.key);
        let view::Place { partition, stamp, retry, attempt, age_ms, last_error, .. } = place;
        let instance = instance.config().application.instance_id.clone();
        let (depth, stamp, state) = (stamp.depth(), stamp.to_string(), word(place.doing));
        Place { partition, instance, key, key_base64, stamp, retry, depth, state, attempt, age_ms, last_error }
    }
}

fn word(doing: Doing) -> &'static str {
    match doing {
        Doing::Retrying => "retrying",
        Doing::Running => "running",
        Doing::Waiting => "waiting",
    }
}

/// What this instance alone tells another one.
pub async fn here(instance: &Instance, root: u64) -> Value {
    let found = instance.places(root, MOST).await;
    let places: Vec<Place> = found.places.into_iter().map(|place| Place::new(place, instance)).collect();
    json!({ "places": places, "partitions": found.partitions })
}

/// What all instances tell of a root of which so many events are pending.
pub async fn everywhere(front: &Front, instance: &Instance, root: u64, pending: u64) -> Places {
    if pending == 0 {
        return Places::default();
    }
    let mut silent = (0..instance.config().processing.partitions).collect();
    let mut places = Vec::new();
    take(here(instance, root).await, &mut silent, &mut places);
    if let Ok(Ok(owners)) = timeout(WITHIN, front.peers().owners(instance, None)).await {
        let others: BTreeSet<&str> = silent.iter().filter_map(|partition| owners.of(*partition)).collect();
        let path = format!("/api/v1/roots/{}", SequenceText(root));
        let others = others.into_iter().filter(|owner| *owner != front.peers().own());
        let asked = others.map(|owner| timeout(WITHIN, front.peers().get(owner, &path)));
        for answer in join_all(asked).await {
            if let Ok(Ok((StatusCode::OK, answer))) = answer {
                take(answer, &mut silent, &mut places);
            }
        }
    }
    places.sort_by_cached_key(order);
    places.truncate(MOST);
    Places { unplaced: pending.saturating_sub(places.len() as u64), places, silent }
}

/// One instance's answer.
fn take(mut answer: Value, silent: &mut BTreeSet<i32>, places: &mut Vec<Value>) {
    let told = answer["partitions"].as_array().into_iter().flatten().filter_map(Value::as_i64);
    told.filter_map(|partition| i32::try_from(partition).ok()).for_each(|partition| _ = silent.remove(&partition));
    if let Some(more) = answer["places"].as_array_mut() {
        places.append(more);
    }
}

/// As each instance orders its own.
fn order(place: &Value) -> (usize, Option<Stamp>) {
    let doing = [Doing::Retrying, Doing::Running].iter().position(|doing| place["state"] == word(*doing));
    (doing.unwrap_or(2), place["stamp"].as_str().and_then(|stamp| stamp.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_together_with_what_holds_first() {
        let (mut silent, mut places) = ((0..4).collect(), Vec::new());
        let place = |stamp: &str, state: &str| json!({ "stamp": stamp, "state": state });
        let one = json!({ "partitions": [0, 2], "places": [place("5/10", "running"), place("5/0", "waiting")] });
        let two = json!({ "partitions": [1], "places": [place("5/9", "running"), place("5/1/0", "retrying")] });
        [one, two].into_iter().for_each(|answer| take(answer, &mut silent, &mut places));
        take(json!({ "error": "no such answer" }), &mut silent, &mut places);
        places.sort_by_cached_key(order);
        let stamps: Vec<&str> = places.iter().filter_map(|place| place["stamp"].as_str()).collect();
        assert_eq!((stamps, silent), (vec!["5/1/0", "5/9", "5/10", "5/0"], BTreeSet::from([3])));
    }
}
