//! Keys and values are bytes; JSON shows them as UTF-8, or as base64 under another name where they are not.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::stamp::{SEQUENCE_LIMIT, SequenceText};

/// Adds `name`, or `<name>_base64` where the bytes are not UTF-8.
pub fn put(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), STANDARD.encode(bytes).into()),
    };
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
    use super::*;

    #[test]
    fn bytes_and_sequences() {
        let mut object = Map::new();
        put(&mut object, "key", "é".as_bytes());
        put(&mut object, "value", b"\xff\0");
        assert_eq!(Value::Object(object).to_string(), r#"{"key":"é","value_base64":"/wA="}"#);
        assert_eq!(sequence(57), Value::from(57));
        assert_eq!(sequence((1 << 56) | 5), Value::from("e1:5"));
    }
}
