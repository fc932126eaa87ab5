//! An event in JSON, as it stands on the source topic, in an HTTP body and in a script:
//! `{"key":"123","action":"ADD","payload":…}`.
//!
//! J1: what is written here is read back as the same event, also where it is not UTF-8.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::event::Event;

/// Takes base64 with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A text that shares the record's memory where it has no escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// An event as JSON gives it, to be read with [`object`]; nothing about it is checked yet. Unknown fields are ignored.
#[derive(Deserialize)]
pub struct JsonEvent<'a> {
    #[serde(borrow, default)]
    key: Option<Text<'a>>,
    #[serde(borrow, default)]
    key_base64: Option<Text<'a>>,
    #[serde(borrow, default)]
    action: Option<Text<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    payload: Option<&'a RawValue>,
    #[serde(borrow, default)]
    payload_base64: Option<Text<'a>>,
}

/// A payload of `null` is there: its bytes are `null`.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// Reads a JSON object; serde by itself would also take an array of the fields.
///
/// # Errors
/// A message with the place in the text.
pub fn object<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, String> {
    match text.trim_ascii_start() {
        [b'{', ..] => serde_json::from_slice(text).map_err(|error| error.to_string()),
        _ => Err("no JSON object".into()),
    }
}

impl JsonEvent<'_> {
    /// The key, if it says one. `within` is what this was parsed from.
    ///
    /// # Errors
    /// A message where it is said twice or is not base64.
    pub fn key(&self, within: &Bytes) -> Result<Option<Bytes>, String> {
        match (&self.key, &self.key_base64) {
            (Some(_), Some(_)) => Err("both key and key_base64".into()),
            (Some(text), None) => Ok(Some(share(text, within))),
            (None, Some(text)) => unbase("key_base64", &text.0).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// The action's text, if it says one.
    pub fn action(&self) -> Option<&str> {
        self.action.as_ref().map(|text| text.0.as_ref())
    }

    /// The payload, if it says one. `within` is what this was parsed from.
    ///
    /// # Errors
    /// A message where it is said twice or is not base64.
    pub fn payload(&self, within: &Bytes) -> Result<Option<Bytes>, String> {
        match (self.payload, &self.payload_base64) {
            (Some(_), Some(_)) => Err("both payload and payload_base64".into()),
            (Some(raw), None) => bytes_of(raw, within).map(Some),
            (None, Some(text)) => unbase("payload_base64", &text.0).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// The bytes that a JSON value stands for: a string's UTF-8 content, anything else as it is written.
///
/// # Errors
/// A message for a string that stands for no text, such as half a surrogate pair.
pub fn bytes_of(raw: &RawValue, within: &Bytes) -> Result<Bytes, String> {
    match raw.get().as_bytes() {
        [b'"', ..] => {
            let text: Text<'_> = serde_json::from_str(raw.get()).map_err(|error| error.to_string())?;
            Ok(share(&text, within))
        }
        other => Ok(within.slice_ref(other)),
    }
}

fn share(text: &Text<'_>, within: &Bytes) -> Bytes {
    match &text.0 {
        Cow::Borrowed(text) => within.slice_ref(text.as_bytes()),
        Cow::Owned(text) => Bytes::copy_from_slice(text.as_bytes()),
    }
}

fn unbase(field: &str, text: &str) -> Result<Bytes, String> {
    BASE64.decode(text).map(Bytes::from).map_err(|error| format!("{field}: {error}"))
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Payload<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Raw(&'a RawValue),
    Text(&'a str),
}

/// Writes an event for the source topic (J1). A payload that is a JSON object or array stays one.
pub fn encode(event: &Event) -> Bytes {
    let key = std::str::from_utf8(&event.key).ok();
    let payload = event.payload.as_deref().and_then(|payload| std::str::from_utf8(payload).ok());
    let written = Written {
        key,
        key_base64: key.is_none().then(|| STANDARD.encode(&event.key)),
        action: event.action.as_str(),
        payload: payload.map(|text| as_written(text).map_or(Payload::Text(text), Payload::Raw)),
        payload_base64: event.payload.as_ref().filter(|_| payload.is_none()).map(|payload| STANDARD.encode(payload)),
    };
    serde_json::to_vec(&written).expect("texts and raw values always serialize").into()
}

/// The payload as a JSON object or array whose bytes are exactly these.
fn as_written(text: &str) -> Option<&RawValue> {
    if !text.starts_with(['{', '[']) {
        return None;
    }
    let raw: &RawValue = serde_json::from_str(text).ok()?;
    (raw.get().len() == text.len()).then_some(raw)
}
