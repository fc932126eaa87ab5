//! Values of the local store: what is read is written as the same bytes or read again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::store::schema::{Checkpoint, Identity, decode, decode_entry, encode, encode_entry};

fuzz_target!(|input: &[u8]| {
    if let Some(entry) = decode_entry(input) {
        assert_eq!(decode_entry(&encode_entry(&entry)), Some(entry));
    }
    if let Some(identity) = decode::<Identity>(input) {
        assert_eq!(decode(&encode(&identity)), Some(identity));
    }
    if let Some(checkpoint) = decode::<Checkpoint>(input) {
        assert_eq!(decode(&encode(&checkpoint)), Some(checkpoint));
    }
});
