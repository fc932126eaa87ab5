//! A handler that answers differently in every run: what is visible of an event must be one run's outcome alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value, json};
use tidegate::config::Config;
use tidegate::event::{Action, Event};
use tidegate::handler::{Context, Failure, Handler, Outcome};
use tidegate::instance::Instance;
use tidegate::log::kafka::{KafkaLog, KafkaOptions};
use tidegate::log::{Log, LogError, NewRecord};
use tidegate::stamp::Stamp;

use super::app::App;
use super::load::Load;
use super::{PARTITIONS, check};
use crate::broker;
use crate::chaos::gaps::Gaps;

/// The test that is an instance, when the environment says so.
pub const TEST: &str = "cluster::fresh::an_instance_when_asked_for";
/// What the environment says then.
pub const SPEC: &str = "TIDEGATE_TEST_FRESH";
/// What stands before its status.
pub const STATUS: &str = "status ";

/// Each event leads to two children until the depth in its payload is used up; value and children carry the run.
struct Fresh;

impl Handler for Fresh {
    async fn handle(&self, event: Event, context: Context) -> Result<Outcome, Failure> {
        let run = uuid::Uuid::new_v4().to_string();
        let payload = event.payload.unwrap_or_default();
        let depth: u8 = std::str::from_utf8(&payload)?.split(' ').next().unwrap_or_default().parse()?;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(1..=15))).await;
        let child = |index: u64| Event {
            key: format!("k{}", (context.stamp.sequence * 31 + u64::from(depth) * 7 + index * 13) % 60).into(),
            action: Action::Add,
            payload: Some(format!("{} {run}", depth - 1).into()),
        };
        let children = if depth > 0 { (0..2).map(child).collect() } else { Vec::new() };
        Ok(Outcome { value: Some(run.into()), children })
    }
}

#[test]
fn an_instance_when_asked_for() {
    let Ok(spec) = std::env::var(SPEC) else { return };
    let spec: Value = serde_json::from_str(&spec).expect("the spec");
    let text = |name: &str| spec[name].as_str().expect("the spec").to_owned();
    let filter = tracing_subscriber::EnvFilter::new("info");
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let mut config = Config::default();
    config.application.id = text("id");
    config.application.instance_id = text("name");
    config.source.topics = vec![text("source")];
    config.processing.partitions = PARTITIONS;
    config.processing.repartition_purge = None;
    config.state.dir = PathBuf::from("state");
    let mut options = KafkaOptions::new(&text("servers"));
    if let Some(seconds) = spec["more"]["transaction_timeout"].as_u64() {
        options.transaction_timeout = Duration::from_secs(seconds);
        // One transaction after the other, so that there is one at any moment.
        config.processing.commit_interval = Duration::from_millis(1);
    }
    let log = Arc::new(KafkaLog::connect(options).expect("options are good"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let instance = Instance::start(Arc::new(config), log, Arc::new(Fresh), String::new()).expect("starts");
        let tell = async {
            loop {
                let status = instance.status();
                println!("{STATUS}{}", json!({ "state": status.state, "partitions": status.partitions }));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            () = tell => {}
            reason = instance.failed() => panic!("{reason}"),
        }
    });
}

/// Events with two levels of two children each.
fn load(app: &App) -> Load {
    Load::of(app, |n| NewRecord {
        value: Some(json!({ "key": format!("k{}", n % 60), "action": "ADD", "payload": "2" }).to_string().into()),
        ..NewRecord::default()
    })
}

/// P6a: the broker would end the dead one's transaction after five minutes, and its positions and children hold up heirs
/// and bystanders until then.
#[test]
fn p6_the_heirs_end_the_transaction_of_the_dead() {
    let app = App::new(broker::shared(), "heirs");
    let patient = || json!({ "transaction_timeout": 300 });
    let (one, two) = (app.start_fresh_with("one", patient()), app.start_fresh_with("two", patient()));
    app.until("two share", || one.owns() + two.owns() == 6 && two.owns() > 0);
    let load = load(&app);
    app.until("events flow", || load.sent() >= 300);
    let tasks = app.partitions(&app.topics.repartition);
    let gaps = Gaps::begin(&app);
    // It is stopped again and again until that happens in the middle of a transaction.
    let is_open = || matches!(app.log.committed(&app.id, &tasks, true), Err(LogError::Unstable(_)));
    let mut tries = 1;
    two.signal(libc::SIGSTOP);
    while !(is_open() && is_open()) {
        assert!(tries < 500, "it is never in the middle of a transaction");
        tries += 1;
        two.signal(libc::SIGCONT);
        std::thread::sleep(Duration::from_millis(fastrand::u64(1..30)));
        two.signal(libc::SIGSTOP);
    }
    two.kill();
    let begun = Instant::now();
    app.until("the heir has all", || one.owns() == 6);
    let since = Instant::now();
    app.until("and works on all", || gaps.all_work_since(since));
    eprintln!("{tries} tries; the heir of an open transaction works after {:.1} s", begun.elapsed().as_secs_f64());
    load.end();
    check::settled(&app);
}

#[test]
fn p2_neither_a_frozen_nor_a_killed_instance_doubles_an_outcome() {
    let app = App::new(broker::shared(), "fresh");
    let (one, two) = (app.start_fresh("one"), app.start_fresh("two"));
    app.until("two share", || one.owns() + two.owns() == 6 && two.owns() > 0);
    let load = load(&app);
    app.until("events flow", || load.sent() >= 300);
    // 1. One stands still in the middle of its work until the other has everything, then wakes up.
    one.signal(libc::SIGSTOP);
    app.until("the other has all", || two.owns() == 6);
    let sent = load.sent();
    app.until("it works on", || load.sent() >= sent + 300);
    one.signal(libc::SIGCONT);
    app.until("the lost partitions are given up and shared anew", || {
        one.owns() < 6 && one.owns() > 0 && one.owns() + two.owns() == 6
    });
    // 2. The other dies.
    two.kill();
    app.until("the first has all", || one.owns() == 6);
    load.end();
    check::settled(&app);
    // Each event's children are those of one run, and so is every value that a key ever held.
    let mut runs: BTreeMap<Stamp, Bytes> = BTreeMap::new();
    let events = check::events(&app);
    let split = |payload: &Bytes| {
        let text = std::str::from_utf8(payload).expect("text").to_owned();
        let (depth, run) = text.split_once(' ').unwrap_or((&text, ""));
        (depth.parse::<u8>().expect("a depth"), Bytes::copy_from_slice(run.as_bytes()))
    };
    for (stamp, (_, _, payload)) in &events {
        let (depth, _) = split(payload.as_ref().expect("a payload"));
        if depth == 0 {
            continue;
        }
        let run_of = |index: u32| {
            let child = events.get(&stamp.child(index)).unwrap_or_else(|| panic!("no child {index} of {stamp}"));
            split(child.2.as_ref().expect("a payload")).1
        };
        assert_eq!(run_of(0), run_of(1), "the children of {stamp} come from two runs\n{}", app.logs());
        assert!(!events.contains_key(&stamp.child(2)));
        runs.insert(stamp.clone(), run_of(0));
    }
    for (key, entry) in check::changelog(&app) {
        if let Some(run) = runs.get(&entry.stamp) {
            let stamp = &entry.stamp;
            assert_eq!(entry.value.as_ref(), Some(run), "{key:?}: value and children of {stamp}\n{}", app.logs());
        }
    }
    eprintln!("{}: {} events, each of one run", app.id, events.len());
}
