//! A thousand dead letters are retried while live traffic goes on and an instance is killed: what is left behind is the
//! serial reference in which they had succeeded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tidegate::config::{self, HandlerKind};
use tidegate::event::StampedEvent;
use tidegate::handler::builtin;
use tidegate::log::{Append, Log, NewRecord, TopicPartition};
use tidegate::reference::{self, Held};
use tidegate::stamp::{Path, Stamp};

use super::app::{App, Instance};
use super::check;
use super::load::{self, Load};
use crate::broker;

/// So many events are rejected.
const REJECTED: usize = 1000;

/// An event that is rejected when it is processed first. Its key or its child's is one of the live traffic, which outdoes it,
/// and the other is its own.
fn rejected(random: &mut fastrand::Rng, n: usize) -> NewRecord {
    let (mut key, mut other) = (load::key(random), format!("own-{n}"));
    if random.bool() {
        std::mem::swap(&mut key, &mut other);
    }
    let child = json!({ "key": other, "action": "ADD", "payload": { "value": format!("late child {n}") } });
    let script = json!({ "work_ms": 100, "value": format!("late {n}"), "spawn": [child],
                         "fail": { "times": 9, "how": "reject" } });
    let event = json!({ "key": key, "action": "ADD", "payload": script });
    NewRecord { key: None, value: Some(event.to_string().into()), headers: Vec::new() }
}

/// All dead letters that are events, page by page.
fn letters(instance: &Instance<'_>) -> Vec<Value> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let page = instance.get(&format!("/api/v1/dead-letters?limit=1000{after}")).expect("a page");
        all.extend(page["dead_letters"].as_array().expect("a list").iter().filter(|it| it["kind"] == "event").cloned());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return all,
        }
    }
}

/// `dead-letters retry --all --execute`: what it says of itself.
fn retry_all(app: &App, at: &Instance<'_>) -> Value {
    let mut command = app.bare(&["dead-letters", "retry", "--all", "--execute", "--output", "json"]);
    let ended = command.args(["--server", &at.url().expect("it answers")]).output().expect("it starts");
    let said = String::from_utf8_lossy(&[&ended.stdout[..], &ended.stderr[..]].concat()).into_owned();
    assert_eq!(ended.status.code(), Some(0), "{said}\n{}", app.logs());
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

/// The state of the reference in which the events of these stamps fail, and those of the others that were retried do not.
fn expected(app: &App, failed: &BTreeSet<Stamp>, retried: &BTreeSet<Stamp>) -> BTreeMap<Bytes, Held> {
    let settings = config::Handler { kind: HandlerKind::Scripted, ..config::Handler::default() };
    let handler = builtin::from_config(&settings, true).expect("a handler");
    let (primaries, _) = check::primaries(app);
    let reference = reference::run(primaries, &config::Cascade::default(), |event| {
        if failed.contains(&event.stamp) {
            return None;
        }
        let above = |depth| Stamp { path: Path::from_slice(&event.stamp.path[..depth]), ..event.stamp };
        let is_retry = (0..=event.stamp.depth()).any(|depth| retried.contains(&above(depth)));
        let event = StampedEvent { retry: u32::from(is_retry), ..event.clone() };
        reference::call(&handler, &event, settings.retry.attempts)
    });
    reference.state
}

#[test]
fn dead_letters_are_retried_under_load_and_through_a_kill() {
    let app = App::new(broker::shared(), "retried");
    let (one, mut two, three) = (app.start("one"), app.start("two"), app.start("three"));
    let owned = |all: &[&Instance<'_>]| all.iter().map(|instance| instance.owns()).sum::<usize>();
    app.until("three share", || {
        owned(&[&one, &two, &three]) == 6 && [&one, &two, &three].iter().all(|it| it.owns() > 0)
    });
    // 1. They are rejected.
    let mut random = fastrand::Rng::with_seed(7);
    let records: Vec<NewRecord> = (0..REJECTED).map(|n| rejected(&mut random, n)).collect();
    app.log.append(Append { to: TopicPartition::new(&app.source, 0), records }).expect("appended");
    app.until("all are dead letters", || letters(&three).len() == REJECTED);
    // 2. They are retried while newer events for the same keys go on, and one of three dies with some at work.
    let load = Load::begin(&app, 5);
    app.until("events flow", || load.sent() >= 400);
    let begun = Instant::now();
    let told = retry_all(&app, &one);
    eprintln!("accepted after {:.2} s: {told}", begun.elapsed().as_secs_f64());
    assert!(told["accepted"].as_u64() >= Some(REJECTED as u64), "{told}");
    two.kill();
    app.until("the heirs work", || owned(&[&one, &three]) == 6);
    let told = retry_all(&app, &three);
    assert!(told["already_retried"].as_u64() >= Some(REJECTED as u64), "{told}");
    two = app.start("two");
    app.until("it is back", || two.owns() > 0 && owned(&[&one, &two, &three]) == 6);
    let sent = load.sent();
    app.until("events flow", || load.sent() >= sent + 400);
    load.end();
    // 3. The product's own judgement, and ours.
    let verified = app.tool(&["verify"]);
    let said = String::from_utf8_lossy(&[&verified.stdout[..], &verified.stderr[..]].concat()).into_owned();
    assert_eq!(verified.status.code(), Some(0), "verify: {said}\n{}", app.logs());
    let letters = letters(&two);
    let stamps = |retried: bool| -> BTreeSet<Stamp> {
        let of = letters.iter().filter(|letter| letter["retried"] == retried);
        of.map(|letter| letter["stamp"].as_str().expect("a stamp").parse().expect("a stamp")).collect()
    };
    let (failed, retried) = (stamps(false), stamps(true));
    assert!(retried.len() >= REJECTED && failed.is_disjoint(&retried), "{} {}", retried.len(), failed.len());
    let held: BTreeMap<Bytes, Held> = check::changelog(&app)
        .into_iter()
        .map(|(key, entry)| (key, (entry.stamp, entry.action, entry.value)))
        .collect();
    let expected = expected(&app, &failed, &retried);
    let late = expected.values().filter(|(.., value)| value.as_ref().is_some_and(|it| it.starts_with(b"late"))).count();
    assert!(late >= REJECTED, "{late} keys hold what was retried");
    assert!(held == expected, "the state is not that of the reference\n{}", app.logs());
    // 4. Every retry is settled, and the frontier is at the end.
    app.until("all is settled", || {
        let standing = one.get("/api/v1/frontier").expect("an answer");
        standing["unsettled"] == 0 && standing["frontier"] == standing["received"]
    });
    let first = retried.first().expect("there are some");
    let root = one.get(&format!("/api/v1/roots/{}", first.sequence)).expect("an answer");
    assert_eq!(root["retries"][0]["settled"], true, "{root}");
    eprintln!(
        "{} retried, {} of {} keys hold their values, {} dead letters left, {:.0} s",
        retried.len(),
        late,
        expected.len(),
        failed.len(),
        Duration::as_secs_f64(&begun.elapsed())
    );
}
