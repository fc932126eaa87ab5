//! The rules file of the handler `rules`, behind a line with an event's key: an error that names the file, or rules that
//! give every event an outcome, each time the same.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tidegate_fuzz::at_once;
use tidegate_fuzz::event::{Action, Event};
use tidegate_fuzz::handler::rules::Rules;

static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() { memory } else { std::env::temp_dir() };
    folder.join(format!("tidegate-fuzz-rules-{}.toml", std::process::id()))
});

fuzz_target!(|input: &[u8]| {
    let line = input.iter().position(|&byte| byte == b'\n').unwrap_or(input.len());
    let (key, text) = input.split_at(line);
    std::fs::write(&*FILE, text).expect("memory has room");
    let rules = match Rules::read(&FILE) {
        Ok(rules) => rules.without_waits(),
        Err(error) => return assert!(error.to_string().contains("tidegate-fuzz-rules-"), "{error}"),
    };
    // As long as a key may be.
    let key = &key[..key.len().min(1024)];
    for action in [Action::Add, Action::Remove] {
        let event = Event { key: key.to_vec().into(), action, payload: Some("p".into()) };
        let outcome = at_once(&rules, event.clone(), 0).expect("rules reject nothing");
        assert_eq!(outcome.value, event.payload);
        assert_eq!(at_once(&rules, event, 1), Ok(outcome));
    }
});
