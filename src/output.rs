//! The output topic: what keys hold, for others to read; one record per key that a transaction has
//! changed, beside the changelog and in the same transaction.
//!
//! Y1: all records of a key go to one partition, the one that Kafka's Java producer would choose of as many
//!     as the topic has, and their stamps rise: they are the key's changelog entries, one for one.
//! Y2: no record of it fails a commit: what would not fit is refused when the outcome is executed, and
//!     that does not depend on the event's being superseded, which only timing decides.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use prost::Message;
use serde::Serialize;

use crate::config::OutputFormat;
use crate::entry::Entry;
use crate::log::{Append, Headers, NewRecord, TopicPartition};
use crate::proto;
use crate::topics::partition_of;

/// The longest value of an output record, in bytes. As protobuf everything fits that fits into the
/// changelog; JSON writes some bytes as six. With key and framing a record stays below Kafka's default
/// of `max.message.bytes`, which the topic has to allow.
pub const MAX_OUTPUT: usize = 970_000;

/// What field names, the stamp and framing take at most, in bytes.
const AROUND: usize = 4096;

/// Where the records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// The topic.
    pub topic: Arc<str>,
    /// How many partitions it has, which is the user's choice.
    pub partitions: i32,
    /// How records are written.
    pub format: OutputFormat,
}

impl Output {
    /// The records of what a transaction has left at its keys, by partition; nothing is a tombstone.
    pub fn appends<'a>(&self, entries: impl Iterator<Item = (&'a Bytes, Option<&'a Entry>)>) -> Vec<Append> {
        let mut partitions: Vec<Vec<NewRecord>> = vec![Vec::new(); self.partitions as usize];
        for (key, entry) in entries {
            let value = entry.map(|entry| encode(self.format, key, entry));
            let record = NewRecord { key: Some(key.clone()), value, headers: Headers::new() };
            partitions[partition_of(key, self.partitions) as usize].push(record);
        }
        let filled = (0..).zip(partitions).filter(|(_, records)| !records.is_empty());
        let append = |(partition, records)| Append { to: TopicPartition::new(&self.topic, partition), records };
        filled.map(append).collect()
    }
}

/// The length of the record's value where it is above [`MAX_OUTPUT`] (Y2).
pub fn too_long(format: OutputFormat, key: &Bytes, entry: &Entry) -> Option<usize> {
    let content = key.len() + entry.value.as_ref().map_or(0, Bytes::len);
    let at_most = match format {
        OutputFormat::Json => 6 * content + AROUND,
        OutputFormat::Protobuf => content + AROUND,
    };
    if at_most <= MAX_OUTPUT {
        return None;
    }
    Some(encode(format, key, entry).len()).filter(|length| *length > MAX_OUTPUT)
}

/// The value of a key's record, a `tidegate.v1.StateChange`.
pub fn encode(format: OutputFormat, key: &Bytes, entry: &Entry) -> Bytes {
    match format {
        OutputFormat::Json => json(key, entry),
        OutputFormat::Protobuf => {
            let change = proto::StateChange {
                key: key.clone(),
                action: entry.action.number() as i32,
                value: entry.value.clone(),
                stamp: Some((&entry.stamp).into()),
                format_version: crate::event::FORMAT_VERSION,
            };
            change.encode_to_vec().into()
        }
    }
}

/// As the HTTP side answers for a key: what is not UTF-8 stands as base64 under another name.
#[derive(Serialize)]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    stamp: String,
}

fn json(key: &[u8], entry: &Entry) -> Bytes {
    let text = std::str::from_utf8(key).ok();
    let value = entry.value.as_deref().and_then(|value| std::str::from_utf8(value).ok());
    let written = Written {
        key: text,
        key_base64: text.is_none().then(|| STANDARD.encode(key)),
        action: entry.action.as_str(),
        value,
        value_base64: entry.value.as_ref().filter(|_| value.is_none()).map(|value| STANDARD.encode(value)),
        stamp: entry.stamp.to_string(),
    };
    serde_json::to_vec(&written).expect("texts always serialize").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Action;

    fn entry(stamp: &str, action: Action, value: Option<&[u8]>) -> Entry {
        let value = value.map(Bytes::copy_from_slice);
        Entry { stamp: stamp.parse().unwrap(), action, value, origin: Bytes::new() }
    }

    #[test]
    fn json_is_the_answer_for_a_key() {
        let json = |key: &'static [u8], entry: Entry| {
            String::from_utf8(encode(OutputFormat::Json, &key.into(), &entry).into()).unwrap()
        };
        assert_eq!(
            json(b"123", entry("57/0", Action::Add, Some(b"a\"b"))),
            r#"{"key":"123","action":"ADD","value":"a\"b","stamp":"57/0"}"#
        );
        assert_eq!(
            json(b"\xff\0", entry("e1:5.g2", Action::Add, Some(b"\xff"))),
            r#"{"key_base64":"/wA=","action":"ADD","value_base64":"/w==","stamp":"e1:5.g2"}"#
        );
        assert_eq!(json(b"k", entry("0", Action::Remove, None)), r#"{"key":"k","action":"REMOVE","stamp":"0"}"#);
        assert_eq!(
            json(b"k", entry("0", Action::Add, Some(b""))),
            r#"{"key":"k","action":"ADD","value":"","stamp":"0"}"#
        );
    }

    #[test]
    fn protobuf_is_a_state_change() {
        let entry = entry("57/0/3", Action::Add, Some(b"v"));
        let change = proto::StateChange::decode(encode(OutputFormat::Protobuf, &"k".into(), &entry)).unwrap();
        let stamp = Some(proto::Stamp { sequence: 57, generation: 0, path: vec![0, 3] });
        let value = Some("v".into());
        assert_eq!(change, proto::StateChange { key: "k".into(), action: 1, value, stamp, format_version: 0 });
    }

    /// Y1; the hashes are those of Kafka's own test: 21 -> -973932308, abc -> 479470107.
    #[test]
    fn a_key_goes_where_kafkas_java_producer_would_send_it() {
        let output = Output { topic: "out".into(), partitions: 5, format: OutputFormat::Json };
        let entry = entry("1", Action::Add, None);
        let keys: Vec<Bytes> = vec!["21".into(), "abc".into()];
        let appends = output.appends(keys.iter().map(|key| (key, Some(&entry))));
        let found: Vec<_> = appends.iter().map(|append| (append.to.partition, append.records[0].key.clone())).collect();
        let partition = |hash: i32| (hash & 0x7fff_ffff) % 5;
        let mut expected = vec![(partition(-973932308), Some("21".into())), (partition(479470107), Some("abc".into()))];
        expected.sort();
        assert_eq!(found, expected);
    }

    /// Y2: the estimate never lets through what the exact length would not.
    #[test]
    fn what_does_not_fit_is_known_beforehand() {
        let key: Bytes = vec![1u8; 1024].into();
        let deepest = format!("e255:{}.g{}{}", (1u64 << 56) - 1, u32::MAX, format!("/{}", u32::MAX).repeat(255));
        for format in [OutputFormat::Json, OutputFormat::Protobuf] {
            for (byte, longest) in [(b'a', 940_000), (1, 160_000), (0xff, 720_000), (b'"', 470_000)] {
                for length in [1, 1000, longest - 10_000, longest, longest + 20_000, 2 * longest] {
                    let entry = entry(&deepest, Action::Add, Some(&vec![byte; length]));
                    let exact = Some(encode(format, &key, &entry).len()).filter(|length| *length > MAX_OUTPUT);
                    assert_eq!(too_long(format, &key, &entry), exact, "{format:?}, {length} of {byte}");
                }
            }
        }
        let largest = entry(&deepest, Action::Add, Some(&vec![0; crate::log::outbox::MAX_VALUE]));
        assert_eq!(too_long(OutputFormat::Protobuf, &key, &largest), None, "what fits the changelog fits here");
    }
}
