//! The headers of a dead letter: KIP-1034's and our own, written and read.

use bytes::Bytes;

use crate::cause::Cause;
use crate::proto::Origin;
use crate::stamp::Stamp;

/// The longest text that a header carries, in bytes: a dead letter must fit wherever its record did.
const MAX_TEXT: usize = 1024;

/// Why something cannot be handled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The stable word.
    pub cause: Cause,
    /// A handler's own code, or the cause again.
    pub exception: String,
    /// For people.
    pub message: String,
}

impl Reason {
    /// A reason without a code of its own.
    pub fn new(cause: Cause, message: impl Into<String>) -> Reason {
        Reason { cause, exception: cause.as_str().into(), message: message.into() }
    }
}

/// The headers of a dead letter. `stamp` and `attempts` are those of an event; a source record that
/// cannot be decoded has none.
pub fn headers(reason: &Reason, origin: &Origin, event: Option<(&Stamp, u32)>) -> Vec<(String, Bytes)> {
    let mut headers = vec![
        header("__streams.errors.exception", text(&reason.exception)),
        header("__streams.errors.message", text(&reason.message)),
        header("__streams.errors.topic", origin.topic.clone()),
        header("__streams.errors.partition", origin.partition.to_string()),
        header("__streams.errors.offset", origin.offset.to_string()),
        header("tidegate_dead_letter", if event.is_some() { Kind::Event } else { Kind::Record }.as_str()),
        header("tidegate_cause", reason.cause.as_str()),
        header("tidegate_attempts", event.map_or(0, |(_, attempts)| attempts).to_string()),
    ];
    if let Some((stamp, _)) = event {
        headers.push(header("tidegate_stamp", stamp.to_string()));
    }
    headers
}

/// What became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A source record that the sequencer refused; the value is its original bytes.
    Record,
    /// An event that a task refused; the value is a [`proto::StampedEvent`].
    Event,
}

impl Kind {
    /// As in `tidegate_dead_letter`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Record => "record",
            Kind::Event => "event",
        }
    }
}

/// What the headers of a dead letter tell. Every field is optional: the topic may hold records of others, and
/// words of a newer version are told as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Which of the two.
    pub kind: Option<Kind>,
    /// The stable word, see [`Cause`].
    pub cause: Option<String>,
    /// A handler's own code, or the cause again.
    pub exception: Option<String>,
    /// For people.
    pub message: Option<String>,
    /// The event's place in the serial order; a record has none.
    pub stamp: Option<String>,
    /// 0 for what never ran.
    pub attempts: Option<u32>,
    /// The topic, partition and offset of the root's source record.
    pub origin: Option<(String, i32, i64)>,
}

/// Reads the headers of a dead letter.
pub fn read(headers: &[(String, Bytes)]) -> Told {
    let text = |name: &str| {
        let (_, value) = headers.iter().find(|(header, _)| header == name)?;
        str::from_utf8(value).ok()
    };
    let own = |name: &str| text(name).map(str::to_owned);
    let origin = || {
        let (partition, offset) = (text("__streams.errors.partition")?, text("__streams.errors.offset")?);
        Some((own("__streams.errors.topic")?, partition.parse().ok()?, offset.parse().ok()?))
    };
    Told {
        kind: match text("tidegate_dead_letter") {
            Some("record") => Some(Kind::Record),
            Some("event") => Some(Kind::Event),
            _ => None,
        },
        cause: own("tidegate_cause"),
        exception: own("__streams.errors.exception"),
        message: own("__streams.errors.message"),
        stamp: own("tidegate_stamp"),
        attempts: text("tidegate_attempts").and_then(|number| number.parse().ok()),
        origin: origin(),
    }
}

fn header(name: &str, value: impl Into<String>) -> (String, Bytes) {
    (name.to_owned(), Bytes::from(value.into()))
}

fn text(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let origin = Origin { topic: "events".into(), partition: 3, offset: 41, timestamp_ms: 9 };
        let mut reason = Reason::new(Cause::Rejected, "no such account");
        reason.exception = "E17".into();
        let stamp: Stamp = "41/0".parse().expect("a stamp");
        let expected = Told {
            kind: Some(Kind::Event),
            cause: Some("rejected".into()),
            exception: Some("E17".into()),
            message: Some("no such account".into()),
            stamp: Some("41/0".into()),
            attempts: Some(2),
            origin: Some(("events".into(), 3, 41)),
        };
        assert_eq!(read(&headers(&reason, &origin, Some((&stamp, 2)))), expected);
        let record = Told { kind: Some(Kind::Record), stamp: None, attempts: Some(0), ..expected };
        assert_eq!(read(&headers(&reason, &origin, None)), record);
    }

    #[test]
    fn headers_of_others_are_no_error() {
        let foreign = [header("tidegate_dead_letter", "poem"), ("tidegate_cause".into(), Bytes::from_static(b"\xff"))];
        assert_eq!(read(&foreign), Told::default());
    }
}
