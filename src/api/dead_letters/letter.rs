//! What a dead letter looks like in JSON. `value` is what people know: a source record's own bytes, an event's
//! payload; `record` has the bytes and headers as they stand on the topic.

use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::bytes::split;
use crate::dead_letter::{self, Kind};
use crate::event::StampedEvent;
use crate::log::Record;

/// One dead letter.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeadLetter {
    /// Its partition of the dead-letter topic.
    partition: i32,
    /// Its offset there.
    offset: i64,
    /// When it became one, in milliseconds since 1970.
    timestamp_ms: i64,
    /// The key as it was.
    #[serde(flatten)]
    key: Key,
    /// `record` or `event`.
    #[schema(required)]
    kind: Option<&'static str>,
    /// `ADD` or `REMOVE`, of an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    /// The bytes of a record, the payload of an event.
    #[serde(flatten)]
    value: Content,
    /// The place of an event in the serial order; a record has none.
    #[schema(required)]
    stamp: Option<String>,
    /// A stable word.
    #[schema(required)]
    cause: Option<String>,
    /// The handler's own code, or the cause again.
    #[schema(required)]
    exception: Option<String>,
    /// For people.
    #[schema(required)]
    message: Option<String>,
    /// Tries; 0 for what never ran.
    #[schema(required)]
    attempts: Option<u32>,
    /// The root's source record.
    #[schema(required)]
    origin: Option<Origin>,
    /// Whether it was retried.
    retried: bool,
    /// What stands on the topic, where it is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<AsItStands>,
}

/// A source record.
#[derive(Debug, Serialize, ToSchema)]
pub struct Origin {
    /// Its topic.
    topic: String,
    /// Its partition.
    partition: i32,
    /// Its offset.
    offset: i64,
}

/// A record of the dead-letter topic.
#[derive(Debug, Serialize, ToSchema)]
pub struct AsItStands {
    #[serde(flatten)]
    key: Key,
    #[serde(flatten)]
    value: Content,
    /// In order.
    headers: Vec<Header>,
}

/// A header of a record.
#[derive(Debug, Serialize, ToSchema)]
pub struct Header {
    /// Its name.
    name: String,
    #[serde(flatten)]
    value: Content,
}

/// A key, if there is one.
#[derive(Debug, Serialize, ToSchema)]
pub struct Key {
    /// Where it is UTF-8; null where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    key: Option<Option<String>>,
    /// Where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
}

/// A value, if there is one.
#[derive(Debug, Serialize, ToSchema)]
pub struct Content {
    /// Where it is UTF-8; null where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    value: Option<Option<String>>,
    /// Where it is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

/// Text or base64; `Some(None)` is null.
fn shown(bytes: Option<&[u8]>) -> (Option<Option<String>>, Option<String>) {
    match bytes.map(split) {
        None => (Some(None), None),
        Some((Some(text), _)) => (Some(Some(text)), None),
        Some((None, base64)) => (None, base64),
    }
}

impl From<Option<&[u8]>> for Key {
    fn from(bytes: Option<&[u8]>) -> Key {
        let (key, key_base64) = shown(bytes);
        Key { key, key_base64 }
    }
}

impl From<Option<&[u8]>> for Content {
    fn from(bytes: Option<&[u8]>) -> Content {
        let (value, value_base64) = shown(bytes);
        Content { value, value_base64 }
    }
}

impl DeadLetter {
    /// With its record where `full`.
    pub fn new(partition: i32, record: &Record, retried: bool, full: bool) -> DeadLetter {
        let told = dead_letter::read(&record.headers);
        let event = event(told.kind, record);
        let value = match &event {
            Some(event) => event.event.payload.as_deref(),
            None => record.value.as_deref(),
        };
        DeadLetter {
            partition,
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.as_deref().into(),
            kind: told.kind.map(Kind::as_str),
            action: event.as_ref().map(|event| event.event.action.as_str()),
            value: value.into(),
            stamp: told.stamp,
            cause: told.cause,
            exception: told.exception,
            message: told.message,
            attempts: told.attempts,
            origin: told.origin.map(|(topic, partition, offset)| Origin { topic, partition, offset }),
            retried,
            record: full.then(|| AsItStands::new(record)),
        }
    }
}

impl AsItStands {
    fn new(record: &Record) -> AsItStands {
        let header = |(name, value): &(String, Bytes)| Header { name: name.clone(), value: Some(&value[..]).into() };
        AsItStands {
            key: record.key.as_deref().into(),
            value: record.value.as_deref().into(),
            headers: record.headers.iter().map(header).collect(),
        }
    }
}

/// The event of a dead letter that is one and can be read.
pub fn event_of(record: &Record) -> Option<StampedEvent> {
    event(dead_letter::read(&record.headers).kind, record)
}

fn event(kind: Option<Kind>, record: &Record) -> Option<StampedEvent> {
    let (Some(Kind::Event), Some(key), Some(value)) = (kind, &record.key, &record.value) else { return None };
    StampedEvent::decode(key.clone(), value.clone()).ok()
}
