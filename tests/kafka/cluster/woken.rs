//! P8: an instance that stood still for longer than its session answers for nothing that others own by now.
//!
//! Here with a stopped process and a real broker, where its loss and the questions race each other when it wakes. That
//! no order of them leads to an old answer is tested with the engine itself, in `tests/sim/asleep.rs`.

use std::time::Duration;

use serde_json::{Value, json};
use tidegate::log::{Append, Log, NewRecord, TopicPartition};

use super::app::App;
use crate::{broker, kit};

const KEYS: usize = 40;

fn ask(url: &str, key: usize) -> Option<(u16, Value)> {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(40)))
        .build()
        .new_agent();
    let mut response = agent.get(format!("{url}/api/v1/keys/w{key}")).call().ok()?;
    let answer = serde_json::from_str(&response.body_mut().read_to_string().ok()?).ok()?;
    Some((response.status().as_u16(), answer))
}

fn set(app: &App, value: &str) {
    let record = |key: usize| {
        let event = json!({ "key": format!("w{key}"), "action": "ADD", "payload": { "value": value } });
        NewRecord { key: None, value: Some(event.to_string().into()), headers: Vec::new() }
    };
    let records: Vec<NewRecord> = (0..KEYS).map(record).collect();
    let to = TopicPartition::new(&app.source, 0);
    kit::patiently("append", || app.log.append(Append { to: to.clone(), records: records.clone() }));
}

fn all_say(url: &str, value: &str) -> bool {
    (0..KEYS).all(|key| ask(url, key).is_some_and(|(status, held)| status == 200 && held["value"] == value))
}

#[test]
fn a_woken_instance_answers_nothing_old() {
    let app = App::new(broker::shared(), "woken");
    let (one, two) = (app.start("one"), app.start("two"));
    app.until("both share", || one.owns() > 0 && one.owns() + two.owns() == 6);
    set(&app, "old");
    let (first, second) = (one.url().expect("it runs"), two.url().expect("it runs"));
    app.until("any of both answers for all keys", || all_say(&first, "old") && all_say(&second, "old"));
    one.signal(libc::SIGSTOP);
    app.until("the other owns all", || two.owns() == 6);
    set(&app, "new");
    app.until("the other answers", || all_say(&second, "new"));
    // These wait at its door when it wakes.
    let waiting: Vec<_> = (0..KEYS)
        .map(|key| {
            let first = first.clone();
            std::thread::spawn(move || ask(&first, key))
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    one.signal(libc::SIGCONT);
    let mut answered = 0;
    for (key, waiting) in waiting.into_iter().enumerate() {
        match waiting.join().expect("no panic") {
            Some((200, held)) => {
                assert_eq!(held["value"], "new", "w{key}: {held}");
                answered += 1;
            }
            Some((503, _)) | None => {}
            Some(other) => panic!("w{key}: {other:?}"),
        }
    }
    eprintln!("{answered} of {KEYS} questions were answered, none with what was old");
    app.until("it answers for all keys again", || all_say(&first, "new"));
    assert!(one.said().contains("stood still for"), "{}", app.logs());
}
