//! A partition's bookkeeping, and the done-set that is made of it.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::bookkeeping::{decode, encode};
use tidegate_fuzz::task::done::DoneSet;

fuzz_target!(|input: &[u8]| {
    let Ok(snapshot) = decode(Bytes::copy_from_slice(input)) else { return };
    let Some(done) = DoneSet::decode(snapshot.position, snapshot.done_base, &snapshot.done_runs) else { return };
    let written = decode(encode(done.low(), done.low(), &done.encode())).expect("what is written is read");
    assert_eq!(DoneSet::decode(written.position, written.done_base, &written.done_runs), Some(done), "D1, D2");
});
