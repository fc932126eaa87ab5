//! Cascades, each with keys of its own, and what the serial reference makes of one.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tidegate::config::{self, Format, HandlerKind};
use tidegate::event::StampedEvent;
use tidegate::handler::builtin;
use tidegate::reference::{self, Reference};
use tidegate::sequencer::format;
use tidegate::stamp::Stamp;

/// A cascade's events are for so few keys that they meet there.
const KEYS: u8 = 5;

/// A primary event that brings its whole cascade.
pub struct Cascade {
    name: String,
    /// The primary event, as JSON.
    pub event: String,
}

impl Cascade {
    /// Up to four deep; a few of its events fail.
    pub fn draw(random: &mut fastrand::Rng, name: String) -> Cascade {
        let event = event(random, &name, 4);
        Cascade { name, event: event.to_string() }
    }

    /// All keys that its events may be for.
    pub fn keys(&self) -> impl Iterator<Item = String> {
        (0..KEYS).map(|number| key(&self.name, number))
    }

    /// What it leaves behind.
    pub fn reference(&self, sequence: u64) -> Reference {
        let settings = config::Handler { kind: HandlerKind::Scripted, ..config::Handler::default() };
        let handler = builtin::from_config(&settings, true).expect("a handler");
        let text = Bytes::from(self.event.clone());
        let event = format::decode(Format::Json, None, Some(&text)).expect("an event");
        let primary = StampedEvent { event, stamp: Stamp::root(0, sequence), origin: Bytes::new(), retry: 0 };
        reference::run([primary], &config::Cascade::default(), |event| {
            reference::call(&Arc::clone(&handler), event, settings.retry.attempts)
        })
    }
}

fn key(name: &str, number: u8) -> String {
    format!("{name}-{number}")
}

fn event(random: &mut fastrand::Rng, name: &str, depth: u8) -> Value {
    let mut script = json!({ "work_ms": random.u8(1..30), "value": format!("v{}", random.u32(..)) });
    if depth > 0 && random.u8(..100) < 85 {
        script["spawn"] = (0..random.u8(1..=2)).map(|_| event(random, name, depth - 1)).collect();
    }
    match random.u8(..100) {
        0 => script["fail"] = json!({ "times": 100, "how": "reject" }),
        1..4 => script["fail"] = json!({ "times": 1, "how": "retry" }),
        _ => {}
    }
    let action = if random.u8(..100) < 80 { "ADD" } else { "REMOVE" };
    json!({ "key": key(name, random.u8(..KEYS)), "action": action, "payload": script })
}
