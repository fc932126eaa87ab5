//! The payload as the handler `scripted` reads it: no script, which is rejected, or one with an outcome, each time the
//! same, which the failures that it asks for do not change.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::at_once;
use tidegate_fuzz::event::{Action, Event};
use tidegate_fuzz::handler::Failure;
use tidegate_fuzz::handler::scripted::Scripted;

fuzz_target!(|input: &[u8]| {
    let scripted = Scripted::default().without_waits();
    let event = Event { key: "k".into(), action: Action::Add, payload: Some(input.to_vec().into()) };
    // A retry of a dead letter does not fail any more.
    let outcome = at_once(&scripted, event.clone(), 1);
    match &outcome {
        Ok(_) => {}
        Err(Failure::Reject { code, .. }) => assert_eq!(code, "not_a_script"),
        Err(failure) => panic!("{failure:?}"),
    }
    match at_once(&scripted, event, 0) {
        Err(Failure::Retry { .. }) => assert!(outcome.is_ok()),
        Err(Failure::Reject { code, .. }) if code == "scripted" => assert!(outcome.is_ok()),
        first => assert_eq!(first, outcome),
    }
});
