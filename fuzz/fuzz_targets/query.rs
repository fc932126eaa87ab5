//! Query parameters of the HTTP side.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::api::query::Query;

fuzz_target!(|input: &[u8]| {
    let Ok(raw) = std::str::from_utf8(input) else { return };
    let known = ["prefix", "prefix_base64", "after", "after_base64", "limit", "removed"];
    let Ok(query) = Query::parse(Some(raw), &known) else { return };
    let _ = (query.bytes("prefix"), query.bytes("after"), query.flag("removed"));
    assert!(query.limit().is_ok_and(|limit| (1..=1000).contains(&limit)) || query.limit().is_err());
});
