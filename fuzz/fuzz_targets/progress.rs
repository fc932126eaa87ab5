//! Counts of a transaction: runs are walked without taking memory for what they say.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::counts::{decode, expand_runs};

fuzz_target!(|input: &[u8]| {
    let Ok(progress) = decode(Bytes::copy_from_slice(input)) else { return };
    for counts in &progress.counts {
        let mut end = 0;
        for (first, length) in expand_runs(&counts.runs) {
            assert!(first >= end, "runs ascend");
            end = first.checked_add(length).expect("within 64 bits");
        }
    }
});
