//! A record of the repartition topic: what is read is written again and read as the same; and the generated
//! type reads the same of what is written.
#![no_main]

use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use tidegate_fuzz::event::StampedEvent;
use tidegate_fuzz::proto;

fuzz_target!(|input: &[u8]| {
    let key = Bytes::from_static(b"k");
    let Ok(event) = StampedEvent::decode(key.clone(), Bytes::copy_from_slice(input)) else { return };
    let mut written = BytesMut::new();
    event.encode(&mut written);
    let written = written.freeze();
    // The origin is passed on as it is and read only where it is told.
    if proto::Origin::decode(event.origin.clone()).is_ok() {
        let generated = proto::StampedEvent::decode(&written[..]).expect("what is written is the message");
        assert_eq!(generated.stamp.map(|stamp| stamp.path.len()), Some(event.stamp.depth()));
    }
    assert_eq!(StampedEvent::decode(key, written), Ok(event));
});
