//! What keys hold, as the answers have it.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::bytes::split;
use crate::entry::Entry;
use crate::instance::Instance;
use crate::instance::view::{KeyEntry, Page};

/// What a key holds.
#[derive(Debug, Serialize, ToSchema)]
pub struct Held {
    /// The key, where it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The key, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// `ADD` or `REMOVE`.
    action: &'static str,
    /// The value, where it is UTF-8; null where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    value: Option<Option<String>>,
    /// The value, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    /// The stamp of the event that made it so.
    stamp: String,
    /// Whether the cascade of this stamp's root is settled; null where that is not known.
    #[schema(required)]
    settled: Option<bool>,
    /// The key's partition.
    partition: i32,
    /// The instance that owns it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
}

impl Held {
    /// As the answer has it.
    pub fn new(key: &[u8], entry: &Entry, partition: i32, settled: Option<bool>) -> Held {
        let (key, key_base64) = split(key);
        let (value, value_base64) = match entry.value.as_deref().map(split) {
            None => (Some(None), None),
            Some((Some(text), _)) => (Some(Some(text)), None),
            Some((None, base64)) => (None, base64),
        };
        let (action, stamp) = (entry.action.as_str(), entry.stamp.to_string());
        Held { key, key_base64, action, value, value_base64, stamp, settled, partition, instance: None }
    }
}

/// A page of keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeyPage {
    /// In byte order of keys.
    #[schema(value_type = Vec<Held>)]
    pub entries: Vec<Value>,
    /// Pass it as `after` for the next page; null when there is no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next: Option<Option<String>>,
    /// The same, to be passed as `after_base64`, where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_base64: Option<String>,
    /// Between instances: the partitions that this is of.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    pub partitions: Option<BTreeSet<i32>>,
}

impl KeyPage {
    /// The page with these entries.
    pub fn new(entries: Vec<Value>, next: Option<&[u8]>) -> KeyPage {
        let (next, next_base64) = match next.map(split) {
            None => (Some(None), None),
            Some((Some(text), _)) => (Some(Some(text)), None),
            Some((None, base64)) => (None, base64),
        };
        KeyPage { entries, next, next_base64, partitions: None }
    }
}

/// The entries of a page as the answer has them; `frontier` is from before it was read.
pub fn entries(instance: &Instance, frontier: Option<u64>, page: &Page) -> Vec<Value> {
    let entry = |held: &KeyEntry| {
        let settled = instance.settled_as_of(frontier, &held.entry.stamp);
        json!(Held::new(&held.key, &held.entry, held.partition, settled))
    };
    page.entries.iter().map(entry).collect()
}
