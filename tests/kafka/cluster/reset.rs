//! `tidegate reset` and the purge on a real broker.

use serde_json::Value;
use tidegate::log::{Log, TopicPartition};

use super::app::App;
use super::check;
use super::load::Load;
use crate::broker;

fn said(output: &std::process::Output) -> (Option<i32>, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn an_application_that_was_reset_starts_from_the_beginning() {
    let app = App::new(broker::shared(), "reset");
    let one = app.start("one");
    app.until("the instance owns all", || one.owns() == 6);
    let load = Load::begin(&app, 9);
    app.until("enough is sent", || load.sent() >= 1000);
    load.end();
    check::all(&app);
    let (code, text) = said(&app.tool(&["reset", "--execute"]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("has members: one") && text.contains("stop all instances"), "{text}");
    let (code, text) = said(&app.tool(&["reset"]));
    assert!(code == Some(0) && text.contains("would be refused"), "{text}");
    assert_eq!(one.terminate(), Some(0), "{}", app.logs());

    let (code, text) = said(&app.tool(&["topics", "purge", "--output", "json"]));
    assert_eq!(code, Some(0), "{text}");
    let purged: Value = serde_json::from_str(&text).expect("JSON");
    assert!(purged["offsets"].as_i64().is_some_and(|offsets| offsets >= 1000), "{purged}");

    let (code, text) = said(&app.tool(&["reset", "--output", "json"]));
    let planned: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &planned["obstacle"]), (Some(0), &Value::Null), "{text}");
    assert_eq!(planned["delete"]["offsets"].as_array().map(Vec::len), Some(7), "{planned}");
    let (code, text) = said(&app.tool(&["reset", "--execute"]));
    assert_eq!(code, Some(0), "{text}");
    let topics = &app.topics;
    let names = [&topics.repartition, &topics.changelog, &topics.dead_letter, &topics.progress, &app.source];
    let found = app.log.describe(&names.map(|name| &**name)).expect("described");
    assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [false, false, false, false, true]);
    let all = [app.partitions(&topics.repartition), vec![TopicPartition::new(&app.source, 0)]].concat();
    let (code, text) = said(&app.tool(&["reset", "--execute"]));
    assert_eq!(code, Some(0), "again: {text}");

    let one = app.start("one");
    app.until("the instance owns all", || one.owns() == 6);
    let (code, text) = said(&app.tool(&["verify"]));
    assert_eq!(code, Some(0), "{text}\n{}", app.logs());
    let committed = app.log.committed(&app.id, &all, false).expect("committed positions");
    assert!(committed.iter().all(Option::is_some), "{committed:?}");
}
