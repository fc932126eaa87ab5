//! One answer from all instances: keys in byte order over all partitions.
//!
//! V1: every partition is asked for from exactly one instance, and an answer that lacks one is an
//!     error that names it.
//! V2: beyond the end of the shortest part nothing is told, because that part may go on there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::http::StatusCode;
use bytes::Bytes;
use futures_util::future::join_all;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::Value;

use super::bytes::{base64, read};
use super::held::{KeyPage, entries};
use crate::instance::Instance;
use crate::instance::view::ListQuery;
use crate::server::Front;
use crate::server::error::ApiError;
use crate::server::peers::{Owners, PeerError, in_motion, no_owner, silent_owner};

/// One instance's entries, and where they end although there is more.
struct Part {
    entries: Vec<Value>,
    next: Option<Bytes>,
}

/// A page over all partitions.
pub async fn list(front: &Front, instance: &Instance, query: ListQuery) -> Result<KeyPage, ApiError> {
    let mut missing: BTreeSet<i32> = (0..instance.config().processing.partitions).collect();
    let mut parts = Vec::new();
    // 1. What this instance owns.
    let mut own_reason = None;
    let frontier = instance.standing().frontier;
    match instance.list(query.clone()).await {
        Ok(page) => {
            missing.retain(|partition| !page.partitions.contains(partition));
            parts.push(Part { entries: entries(instance, frontier, &page), next: page.next });
        }
        Err(reason) => own_reason = Some(reason),
    }
    // 2. What the others own; those that have moved meanwhile are asked for once more.
    let mut outdated: Option<Arc<Owners>> = None;
    let mut why = BTreeMap::new();
    for _ in 0..2 {
        if missing.is_empty() {
            break;
        }
        let owners = front.peers().owners(instance, outdated.as_ref()).await?;
        let mut by_owner: BTreeMap<&str, BTreeSet<i32>> = BTreeMap::new();
        for &partition in &missing {
            match owners.of(partition) {
                Some(owner) if owner != front.peers().own() => _ = by_owner.entry(owner).or_default().insert(partition),
                owner => _ = why.insert(partition, gone(partition, owner, own_reason.as_deref())),
            }
        }
        let asked = by_owner.iter().map(|(owner, partitions)| ask(front, owner, partitions, &query));
        for ((owner, partitions), answer) in by_owner.iter().zip(join_all(asked).await) {
            let (part, answered) = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    why.extend(
                        partitions.iter().map(|partition| (*partition, silent_owner(*partition, owner, &error))),
                    );
                    continue;
                }
            };
            why.extend(
                partitions.iter().map(|partition| (*partition, silent_owner(*partition, owner, &PeerError::Moved))),
            );
            missing.retain(|partition| !answered.contains(partition));
            parts.push(part);
        }
        outdated = Some(owners);
    }
    match missing.first() {
        Some(partition) => Err(why.remove(partition).unwrap_or_else(|| no_owner(*partition))),
        None => Ok(merge(parts, query.limit)),
    }
}

fn gone(partition: i32, owner: Option<&str>, own_reason: Option<&str>) -> ApiError {
    match (owner, own_reason) {
        (None, _) => no_owner(partition),
        (Some(own), None) => in_motion(partition, own),
        (Some(own), Some(reason)) => {
            let message = format!("partition {partition} cannot be listed now: {reason}");
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message)
                .hint("ask again shortly")
                .with("partition", partition)
                .with("owner", own)
        }
    }
}

async fn ask(
    front: &Front,
    owner: &str,
    partitions: &BTreeSet<i32>,
    query: &ListQuery,
) -> Result<(Part, BTreeSet<i32>), PeerError> {
    let bytes = |name: &str, bytes: &[u8]| {
        format!("&{name}_base64={}", percent_encode(base64(bytes).as_bytes(), NON_ALPHANUMERIC))
    };
    let mut path = format!(
        "/api/v1/keys?limit={}&removed={}&partitions={}{}",
        query.limit,
        query.removed,
        write_partitions(partitions),
        bytes("prefix", &query.prefix)
    );
    if let Some(after) = &query.after {
        path.push_str(&bytes("after", after));
    }
    let (status, mut answer) = front.peers().get(owner, &path).await?;
    if status != StatusCode::OK {
        return Err(PeerError::said(status, &answer));
    }
    let answered = answer["partitions"].as_array().into_iter().flatten();
    let answered: BTreeSet<i32> =
        answered.filter_map(Value::as_i64).filter_map(|partition| i32::try_from(partition).ok()).collect();
    if !answered.is_subset(partitions) {
        return Err(PeerError::Unreachable("it answers for partitions that were not asked for".into()));
    }
    let next = read(&answer, "next");
    let Value::Array(entries) = answer["entries"].take() else {
        return Err(PeerError::Unreachable("its answer has no entries".into()));
    };
    if entries.iter().any(|entry| read(entry, "key").is_none()) {
        return Err(PeerError::Unreachable("its answer has an entry without a key".into()));
    }
    Ok((Part { entries, next }, answered))
}

/// The first `limit` entries of all parts, as far as all parts reach (V2).
fn merge(parts: Vec<Part>, limit: usize) -> KeyPage {
    let reach = parts.iter().filter_map(|part| part.next.clone()).min();
    let all = parts.into_iter().flat_map(|part| part.entries);
    let mut keyed: Vec<(Bytes, Value)> = all.filter_map(|entry| Some((read(&entry, "key")?, entry))).collect();
    keyed.retain(|(key, _)| reach.as_ref().is_none_or(|reach| key <= reach));
    keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
    let next = if keyed.len() > limit {
        keyed.truncate(limit);
        keyed.last().map(|(key, _)| key.clone())
    } else {
        reach
    };
    KeyPage::new(keyed.into_iter().map(|(_, entry)| entry).collect(), next.as_deref())
}

/// `0-3,7`
fn write_partitions(partitions: &BTreeSet<i32>) -> String {
    let partitions: Vec<i32> = partitions.iter().copied().collect();
    let runs = partitions.chunk_by(|left, right| left + 1 == *right).map(|run| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    });
    runs.collect::<Vec<_>>().join(",")
}

/// Reads what [`write_partitions`] writes.
pub fn read_partitions(text: &str) -> Option<BTreeSet<i32>> {
    let mut partitions = BTreeSet::new();
    for run in text.split(',') {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        partitions.extend(i32::from(first)..=i32::from(last));
    }
    Some(partitions)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn partitions_go_both_ways() {
        for (text, partitions) in [("0-3,7", vec![0, 1, 2, 3, 7]), ("5", vec![5]), ("1-2,9999", vec![1, 2, 9999])] {
            let partitions: BTreeSet<i32> = partitions.into_iter().collect();
            assert_eq!(write_partitions(&partitions), text);
            assert_eq!(read_partitions(text), Some(partitions));
        }
        for wrong in ["", "a", "1-", "-1", "1,,2", "1-99999"] {
            assert_eq!(read_partitions(wrong), None, "{wrong}");
        }
    }

    fn part(keys: &[&str], next: Option<&'static str>) -> Part {
        Part { entries: keys.iter().map(|key| json!({ "key": key })).collect(), next: next.map(Bytes::from) }
    }

    #[test]
    fn parts_are_merged_as_far_as_all_reach() {
        let merged =
            |limit| merge(vec![part(&["a", "d"], Some("d")), part(&["b", "e", "f"], None), part(&[], None)], limit);
        let told = |page: KeyPage| {
            let keys = page.entries.iter().map(|entry| entry["key"].as_str().unwrap().to_owned()).collect::<String>();
            (keys, page.next.flatten())
        };
        assert_eq!(told(merged(9)), ("abd".into(), Some("d".into())), "V2");
        assert_eq!(told(merged(2)), ("ab".into(), Some("b".into())));
        assert_eq!(told(merged(3)), ("abd".into(), Some("d".into())));
        assert_eq!(told(merge(vec![part(&["b"], None), part(&["a"], None)], 2)), ("ab".into(), None));
        let bytes = Part { entries: vec![json!({ "key_base64": "/w==" })], next: Some(Bytes::from_static(b"\xff")) };
        let page = merge(vec![bytes, part(&["z"], None)], 9);
        assert_eq!((page.entries.len(), page.next, page.next_base64.as_deref()), (2, None, Some("/w==")));
    }
}
