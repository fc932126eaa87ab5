//! What a transaction tells: runs are walked without taking memory for what they say, and marks are taken.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::counts::{decode, expand_runs};
use tidegate_fuzz::marks::Marks;

fuzz_target!(|input: &[u8]| {
    let Ok(progress) = decode(Bytes::copy_from_slice(input)) else { return };
    for counts in &progress.counts {
        let mut end = 0;
        for (first, length) in expand_runs(&counts.runs) {
            assert!(first >= end, "runs ascend");
            end = first.checked_add(length).expect("within 64 bits");
        }
    }
    let mut marks = Marks::default();
    for mark in &progress.marks {
        let before = marks.clone();
        marks.take(mark);
        marks.count(|_, _, end, _| end < 1000);
        let epoch = u8::try_from(mark.epoch).unwrap_or(0);
        assert!(marks.counted(epoch) >= before.counted(epoch), "what has counted stays");
        let mut again = Marks::default();
        for told in marks.told() {
            again.take(&told);
            again.count(|_, _, _, _| false);
        }
        assert_eq!(again.told(), marks.told(), "a snapshot tells the same");
    }
});
