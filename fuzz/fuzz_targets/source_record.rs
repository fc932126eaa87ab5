//! A record of the source topic, in every format; what is an event is written as JSON and read back.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::config::Format;
use tidegate_fuzz::event::MAX_KEY_BYTES;
use tidegate_fuzz::sequencer::format::{decode, encode_json};

fuzz_target!(|input: &[u8]| {
    // The first byte: with a key of its own or not; then its length.
    let (key, value) = match input {
        [with_key, length, rest @ ..] if with_key % 2 == 1 && usize::from(*length) <= rest.len() => {
            let (key, value) = rest.split_at(usize::from(*length));
            (Some(Bytes::copy_from_slice(key)), Bytes::copy_from_slice(value))
        }
        [_, rest @ ..] => (None, Bytes::copy_from_slice(rest)),
        [] => return,
    };
    let _ = decode(Format::Auto, key.as_ref(), None);
    for format in [Format::Auto, Format::Text, Format::Json, Format::Protobuf] {
        let Ok(event) = decode(format, key.as_ref(), Some(&value)) else { continue };
        assert!((1..=MAX_KEY_BYTES).contains(&event.key.len()));
        assert_eq!(decode(Format::Json, None, Some(&encode_json(&event))), Ok(event), "F3");
    }
});
