//! The headers of a dead letter: KIP-1034's and our own.

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
        header("tidegate_dead_letter", if event.is_some() { "event" } else { "record" }),
        header("tidegate_cause", reason.cause.as_str()),
        header("tidegate_attempts", event.map_or(0, |(_, attempts)| attempts).to_string()),
    ];
    if let Some((stamp, _)) = event {
        headers.push(header("tidegate_stamp", stamp.to_string()));
    }
    headers
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
