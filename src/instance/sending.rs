//! Primary events on their way to the source topic.
//!
//! N1: all events of a request are appended or, where one of them is too large, none: the log refuses
//!     a record by itself, when others of the request may stand there already.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Instance, Shared, from_log, locked};
use crate::clock;
use crate::event::{Action, Event};
use crate::json;
use crate::log::{Append, Headers, LogError, NewRecord, TopicPartition};
use crate::sequencer::stamps::SEQUENCE;

/// How long the source topic's limit may be taken for known.
const LIMIT_KNOWN_FOR: Duration = Duration::from_secs(30);

/// What a record takes in the log beside its key and value, at most, in bytes.
const AROUND: usize = 100;

impl Instance {
    /// Appends primary events to the source topic; their offsets, in order. `sequences` are those of the
    /// events, in order, where `source.stamp` takes them from a header.
    ///
    /// # Errors
    /// [`LogError::Refused`] when one of them is too large, and nothing is appended then; with anything
    /// else that the log says it may not be known.
    pub async fn append(&self, events: Vec<Event>, sequences: Vec<u64>) -> Result<Vec<i64>, LogError> {
        let (shared, to) = (Arc::clone(&self.shared), self.first_source());
        let append = move || {
            let mut records: Vec<NewRecord> = events.iter().map(record).collect();
            for (record, sequence) in records.iter_mut().zip(sequences) {
                record.headers.push((SEQUENCE.to_owned(), sequence.to_string().into()));
            }
            check(&records, largest(&shared)?)?;
            shared.log.append(Append { to, records })
        };
        from_log(append).await
    }

    /// Where [`Instance::append`] writes.
    pub(super) fn first_source(&self) -> TopicPartition {
        TopicPartition::new(&self.shared.topics.sources[0], 0)
    }
}

fn record(event: &Event) -> NewRecord {
    NewRecord {
        key: Some(event.key.clone()),
        value: Some(if event.payload.is_none() { plain(event.action) } else { json::encode(event) }),
        headers: Headers::new(),
    }
}

/// What `send` writes for an event without payload: readable by any tool.
fn plain(action: Action) -> Bytes {
    Bytes::from_static(action.as_str().as_bytes())
}

fn check(records: &[NewRecord], largest: i64) -> Result<(), LogError> {
    for (place, record) in records.iter().enumerate() {
        let bytes = [&record.key, &record.value].into_iter().flatten().map(Bytes::len).sum::<usize>() + AROUND;
        if bytes as i64 > largest {
            let number = place + 1;
            return Err(LogError::Refused(format!(
                "event {number} takes {bytes} bytes, and max.message.bytes of the source topic is {largest}"
            )));
        }
    }
    Ok(())
}

/// The largest record that the source topic takes.
fn largest(shared: &Shared) -> Result<i64, LogError> {
    let known = *locked(&shared.largest);
    if let Some((largest, _)) = known.filter(|(_, read_at)| read_at.elapsed() < LIMIT_KNOWN_FOR) {
        return Ok(largest);
    }
    let name = &shared.topics.sources[0];
    let described = shared.log.describe(&[name])?.pop().flatten();
    let largest = described.ok_or_else(|| LogError::UnknownTopic(name.to_string()))?.max_message_bytes;
    *locked(&shared.largest) = Some((largest, clock::now()));
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_too_large_is_named() {
        let event = |bytes: usize| {
            record(&Event { key: "k".into(), action: Action::Add, payload: Some(vec![b'x'; bytes].into()) })
        };
        assert!(check(&[event(10), event(100)], 1000).is_ok());
        let error = check(&[event(10), event(900), event(10)], 1000).unwrap_err();
        assert!(matches!(&error, LogError::Refused(text) if text.starts_with("event 2 takes")), "{error}");
    }
}
