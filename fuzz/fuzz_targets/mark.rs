//! The metadata of committed positions, which any tool may have written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::instance::commit::mark::Mark;

fuzz_target!(|input: &[u8]| {
    let Ok(metadata) = std::str::from_utf8(input) else { return };
    let _ = Mark::newer(metadata);
    if let Some(mark) = Mark::parse(metadata) {
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
    }
});
