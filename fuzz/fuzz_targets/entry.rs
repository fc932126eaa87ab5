//! An entry of the changelog: what is read is written again and read as the same.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use tidegate_fuzz::entry::Entry;
use tidegate_fuzz::proto;

fuzz_target!(|input: &[u8]| {
    let Ok(entry) = Entry::decode(Bytes::copy_from_slice(input)) else { return };
    let mut written = BytesMut::new();
    entry.encode(&mut written);
    let written = written.freeze();
    // The origin is passed on as it is and read only where it is told.
    if proto::Origin::decode(entry.origin.clone()).is_ok() {
        let generated = proto::Entry::decode(&written[..]).expect("what is written is the message");
        assert_eq!(generated.value, entry.value);
    }
    assert_eq!(Entry::decode(written), Ok(entry));
});
