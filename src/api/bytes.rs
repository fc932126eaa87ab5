//! Keys and values are bytes; JSON shows them as UTF-8, or as base64 under another name where they are not.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::Value;

use crate::stamp::{SEQUENCE_LIMIT, SequenceText};

/// The bytes as text, or as base64 where they are not UTF-8: exactly one of both.
pub fn split(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(base64(bytes))),
    }
}

/// As base64, with padding.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The field `name` of an answer, which may stand there as `<name>_base64`.
pub fn read(object: &Value, name: &str) -> Option<Bytes> {
    match object[name].as_str() {
        Some(text) => Some(Bytes::copy_from_slice(text.as_bytes())),
        None => STANDARD.decode(object[format!("{name}_base64")].as_str()?).ok().map(Bytes::from),
    }
}

/// A sequence as JSON: a number in epoch 0, `"e1:5"` otherwise.
pub fn sequence(sequence: u64) -> Value {
    match sequence {
        0..SEQUENCE_LIMIT => sequence.into(),
        _ => SequenceText(sequence).to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bytes_and_sequences() {
        assert_eq!(split("é".as_bytes()), (Some("é".into()), None));
        assert_eq!(split(b"\xff\0"), (None, Some("/wA=".into())));
        let object = json!({ "key": "é", "value_base64": "/wA=", "next": null });
        assert_eq!(read(&object, "key").as_deref(), Some("é".as_bytes()));
        assert_eq!(read(&object, "value").as_deref(), Some(&b"\xff\0"[..]));
        assert_eq!(read(&object, "next"), None);
        assert_eq!(sequence(57), Value::from(57));
        assert_eq!(sequence((1 << 56) | 5), Value::from("e1:5"));
    }
}
