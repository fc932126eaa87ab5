//! What a record on the source topic says: text, JSON or protobuf.
//!
//! F1: no bytes make this panic; what is no event has a [`Cause`].
//! F2: a text record costs no allocation: key and payload are slices of the record.
//! F3: [`encode_json`] is read back as the same event.

use bytes::Bytes;
use prost::Message;

use crate::cause::Cause;
use crate::config::Format;
use crate::event::{Action, Event, MAX_KEY_BYTES};
use crate::json::{self, JsonEvent};
use crate::proto;

/// The record is no event; it becomes a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Undecodable {
    /// The stable word for it.
    pub cause: Cause,
    /// For people.
    pub message: String,
}

fn refuse<T>(cause: Cause, message: impl Into<String>) -> Result<T, Undecodable> {
    Err(Undecodable { cause, message: message.into() })
}

/// Reads a record of the source topic. A key with a null value is a REMOVE in every format.
///
/// # Errors
/// [`Undecodable`] with one of the causes `undecodable`, `empty_key`, `key_too_long`, `key_mismatch`,
/// `unknown_action`.
pub fn decode(format: Format, key: Option<&Bytes>, value: Option<&Bytes>) -> Result<Event, Undecodable> {
    if let Some(key) = key {
        check_key(key)?;
    }
    let Some(value) = value else {
        let Some(key) = key else { return refuse(Cause::EmptyKey, "neither key nor value") };
        return Ok(Event { key: key.clone(), action: Action::Remove, payload: None });
    };
    match format {
        Format::Text => text(key, value),
        Format::Json => json(key, value),
        Format::Protobuf => protobuf(key, value),
        Format::Auto if value.trim_ascii_start().first() == Some(&b'{') => json(key, value),
        Format::Auto => text(key, value),
    }
}

/// The event as JSON for the source topic, without a key of the record's own (F3).
pub fn encode_json(event: &Event) -> Bytes {
    json::encode(event)
}

fn check_key(key: &[u8]) -> Result<(), Undecodable> {
    match key.len() {
        0 => refuse(Cause::EmptyKey, "the key is empty"),
        1..=MAX_KEY_BYTES => Ok(()),
        length => refuse(Cause::KeyTooLong, format!("the key has {length} bytes, at most {MAX_KEY_BYTES} are allowed")),
    }
}

/// The record's key, or the one in the value; both have to be the same.
fn agree(of_record: Option<&Bytes>, in_value: Option<Bytes>) -> Result<Bytes, Undecodable> {
    match (of_record, in_value) {
        (Some(of_record), Some(in_value)) if *of_record != in_value => refuse(
            Cause::KeyMismatch,
            format!("the record's key is {}, the value's is {}", excerpt(of_record), excerpt(&in_value)),
        ),
        (Some(of_record), _) => Ok(of_record.clone()),
        (None, Some(in_value)) => check_key(&in_value).map(|()| in_value),
        (None, None) => refuse(Cause::EmptyKey, "neither the record nor its value has a key"),
    }
}

fn text(key: Option<&Bytes>, value: &Bytes) -> Result<Event, Undecodable> {
    let event = |key: Bytes, action| Ok(Event { key, action, payload: None });
    if let (Some(key), Some(action)) = (key, Action::parse(value)) {
        return event(key.clone(), action);
    }
    let Some(colon) = value.iter().rposition(|&byte| byte == b':') else {
        return match (key, Action::parse(value)) {
            (Some(_), _) => unknown_action(value),
            (None, Some(_)) => refuse(Cause::EmptyKey, format!("{} without a key", excerpt(value))),
            (None, None) => refuse(Cause::Undecodable, format!("{}: expected a form such as 123:ADD", excerpt(value))),
        };
    };
    match Action::parse(&value[colon + 1..]) {
        Some(action) => event(agree(key, Some(value.slice(..colon)))?, action),
        None => unknown_action(&value[colon + 1..]),
    }
}

fn json(key: Option<&Bytes>, value: &Bytes) -> Result<Event, Undecodable> {
    let undecodable = |message: String| Undecodable { cause: Cause::Undecodable, message };
    let parsed: JsonEvent<'_> =
        json::object(value).map_err(|error| undecodable(format!("no event in JSON: {error}")))?;
    let in_value = parsed.key(value).map_err(undecodable)?;
    let key = agree(key, in_value)?;
    let action = match parsed.action() {
        None => return refuse(Cause::UnknownAction, "no action"),
        Some(word) => match Action::parse(word.as_bytes()) {
            None => return unknown_action(word.as_bytes()),
            Some(action) => action,
        },
    };
    Ok(Event { key, action, payload: parsed.payload(value).map_err(undecodable)? })
}

fn protobuf(key: Option<&Bytes>, value: &Bytes) -> Result<Event, Undecodable> {
    let parsed = proto::Event::decode(value.clone()).map_err(|error| Undecodable {
        cause: Cause::Undecodable,
        message: format!("no tidegate.v1.Event: {error}"),
    })?;
    let key = agree(key, Some(parsed.key).filter(|key| !key.is_empty()))?;
    match u64::try_from(parsed.action).ok().and_then(Action::from_number) {
        Some(action) => Ok(Event { key, action, payload: parsed.payload }),
        None => refuse(Cause::UnknownAction, format!("unknown action {}", parsed.action)),
    }
}

fn unknown_action<T>(word: &[u8]) -> Result<T, Undecodable> {
    refuse(Cause::UnknownAction, format!("unknown action {}: expected ADD or REMOVE", excerpt(word)))
}

/// The beginning of some bytes, for a message.
fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]);
    if bytes.len() > 60 { format!("{text:?}…") } else { format!("{text:?}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(format: Format, key: Option<&[u8]>, value: Option<&[u8]>) -> Result<Event, Cause> {
        let (key, value) = (key.map(Bytes::copy_from_slice), value.map(Bytes::copy_from_slice));
        decode(format, key.as_ref(), value.as_ref()).map_err(|error| error.cause)
    }

    fn event(key: &[u8], action: Action, payload: Option<&[u8]>) -> Event {
        Event { key: Bytes::copy_from_slice(key), action, payload: payload.map(Bytes::copy_from_slice) }
    }

    #[test]
    fn text() {
        let read = |key: Option<&str>, value: &str| read(Format::Text, key.map(str::as_bytes), Some(value.as_bytes()));
        assert_eq!(read(Some("123"), "ADD"), Ok(event(b"123", Action::Add, None)));
        assert_eq!(read(Some("123"), "remove"), Ok(event(b"123", Action::Remove, None)));
        assert_eq!(read(None, "123:ADD"), Ok(event(b"123", Action::Add, None)));
        assert_eq!(read(None, "a:b:REMOVE"), Ok(event(b"a:b", Action::Remove, None)));
        assert_eq!(read(Some("123"), "123:ADD"), Ok(event(b"123", Action::Add, None)));
        assert_eq!(read(Some("123"), "124:ADD"), Err(Cause::KeyMismatch));
        assert_eq!(read(Some("123"), "Add"), Err(Cause::UnknownAction));
        assert_eq!(read(Some("123"), ""), Err(Cause::UnknownAction));
        assert_eq!(read(None, "123:UPDATE"), Err(Cause::UnknownAction));
        assert_eq!(read(None, ":ADD"), Err(Cause::EmptyKey));
        assert_eq!(read(None, "ADD"), Err(Cause::EmptyKey));
        assert_eq!(read(Some(""), "123:ADD"), Err(Cause::EmptyKey));
        assert_eq!(read(None, "nonsense"), Err(Cause::Undecodable));
        assert_eq!(read(None, ""), Err(Cause::Undecodable));
        let long = "k".repeat(1025);
        assert_eq!(read(Some(&long), "ADD"), Err(Cause::KeyTooLong));
        assert_eq!(read(None, &format!("{long}:ADD")), Err(Cause::KeyTooLong));
        assert!(read(Some(&long[1..]), "ADD").is_ok());
    }

    #[test]
    fn text_shares_the_record() {
        let value = Bytes::from_static(b"some-key:ADD");
        let event = decode(Format::Text, None, Some(&value)).unwrap();
        assert_eq!(event.key.as_ptr(), value.as_ptr(), "F2");
    }

    #[test]
    fn a_key_with_a_null_value_is_a_remove() {
        for format in [Format::Auto, Format::Text, Format::Json, Format::Protobuf] {
            assert_eq!(read(format, Some(b"k"), None), Ok(event(b"k", Action::Remove, None)));
            assert_eq!(read(format, None, None), Err(Cause::EmptyKey));
        }
    }

    #[test]
    fn json() {
        let read = |key: Option<&str>, value: &str| read(Format::Json, key.map(str::as_bytes), Some(value.as_bytes()));
        assert_eq!(
            read(None, r#"{"key":"123","action":"ADD","payload":"te\nxt","other":[1]}"#),
            Ok(event(b"123", Action::Add, Some(b"te\nxt")))
        );
        assert_eq!(
            read(Some("123"), r#" {"action":"add","payload": { "a" : 1.0 } } "#),
            Ok(event(b"123", Action::Add, Some(br#"{ "a" : 1.0 }"#)))
        );
        assert_eq!(
            read(None, r#"{"key":"k","action":"REMOVE","payload":null}"#),
            Ok(event(b"k", Action::Remove, Some(b"null")))
        );
        assert_eq!(read(None, r#"{"key":"k","action":"ADD","payload":""}"#), Ok(event(b"k", Action::Add, Some(b""))));
        assert_eq!(
            read(None, r#"{"key_base64":"/wA=","action":"ADD","payload_base64":"/w"}"#),
            Ok(event(b"\xff\0", Action::Add, Some(b"\xff")))
        );
        assert_eq!(read(None, r#"{"key":"\u00e9","action":"ADD"}"#), Ok(event("é".as_bytes(), Action::Add, None)));
        assert_eq!(read(Some("k"), r#"{"key":null,"action":"ADD"}"#), Ok(event(b"k", Action::Add, None)));
        assert_eq!(read(Some("1"), r#"{"key":"2","action":"ADD"}"#), Err(Cause::KeyMismatch));
        assert_eq!(read(None, r#"{"action":"ADD"}"#), Err(Cause::EmptyKey));
        assert_eq!(read(None, r#"{"key":"","action":"ADD"}"#), Err(Cause::EmptyKey));
        assert_eq!(read(None, r#"{"key":"1"}"#), Err(Cause::UnknownAction));
        assert_eq!(read(None, r#"{"key":"1","action":"PUT"}"#), Err(Cause::UnknownAction));
        for broken in [
            "{",
            r#"{"key":1,"action":"ADD"}"#,
            "[]",
            r#"{"key":"1","action":"ADD"} x"#,
            r#"{"key_base64":"?","action":"ADD"}"#,
            r#"{"key":"1","key_base64":"MQ==","action":"ADD"}"#,
            r#"{"key":"1","action":"ADD","payload":"\ud800"}"#,
        ] {
            assert_eq!(read(None, broken), Err(Cause::Undecodable), "{broken}");
        }
    }

    #[test]
    fn deep_payloads_are_no_danger() {
        let payload = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let value = format!(r#"{{"key":"1","action":"ADD","payload":{payload}}}"#);
        let event = read(Format::Json, None, Some(value.as_bytes())).unwrap();
        assert_eq!(event.payload.as_deref(), Some(payload.as_bytes()));
    }

    #[test]
    fn protobuf() {
        let message = |key: &[u8], action: i32| {
            proto::Event { key: Bytes::copy_from_slice(key), action, payload: Some(Bytes::new()) }.encode_to_vec()
        };
        let read = |key: Option<&[u8]>, value: &[u8]| read(Format::Protobuf, key, Some(value));
        assert_eq!(read(None, &message(b"k", 1)), Ok(event(b"k", Action::Add, Some(b""))));
        assert_eq!(read(Some(b"k"), &message(b"", 2)), Ok(event(b"k", Action::Remove, Some(b""))));
        assert_eq!(read(Some(b"k"), &message(b"l", 2)), Err(Cause::KeyMismatch));
        assert_eq!(read(None, &message(b"", 2)), Err(Cause::EmptyKey));
        assert_eq!(read(None, &message(b"k", 0)), Err(Cause::UnknownAction));
        assert_eq!(read(None, &message(b"k", -3)), Err(Cause::UnknownAction));
        assert_eq!(read(None, b"\xff\xff"), Err(Cause::Undecodable));
    }

    #[test]
    fn auto_takes_json_where_it_begins_like_it() {
        assert!(read(Format::Auto, None, Some(b" \n{\"key\":\"1\",\"action\":\"ADD\"}")).is_ok());
        assert!(read(Format::Auto, None, Some(b"1:ADD")).is_ok());
        assert_eq!(read(Format::Auto, Some(b"1"), Some(b"{1:ADD")), Err(Cause::Undecodable));
    }

    fn events() -> impl Strategy<Value = Event> {
        let text = prop_oneof!["\\PC{1,40}", "\\{\"a\": ?[0-9]{1,3}\\}", " *\\[\\] *", "null", "\"x\"", "-?[0-9]{1,9}"];
        let payload = prop_oneof![text.prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..60)];
        let key = prop_oneof!["\\PC{1,20}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 1..60)];
        (key, any::<bool>(), prop::option::of(payload)).prop_map(|(key, add, payload)| Event {
            key: key.into(),
            action: if add { Action::Add } else { Action::Remove },
            payload: payload.map(Bytes::from),
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(event in events()) {
            let written = encode_json(&event);
            prop_assert_eq!(decode(Format::Json, None, Some(&written)), Ok(event.clone()), "F3");
            prop_assert_eq!(decode(Format::Auto, Some(&event.key), Some(&written)), Ok(event));
        }

        #[test]
        fn garbage_never_panics(
            key in prop::option::of(prop::collection::vec(any::<u8>(), 0..20)),
            value in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                "[{}\":,a-z0-9\\\\ ]{0,60}".prop_map(String::into_bytes),
            ],
        ) {
            for format in [Format::Auto, Format::Text, Format::Json, Format::Protobuf] {
                let _ = read(format, key.as_deref(), Some(&value));
            }
        }
    }
}
