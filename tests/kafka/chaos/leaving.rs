//! Instances that go in good order, one after the other, and those that may not even begin.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::gaps::{self, Gaps};
use super::{INSTANCES, TASKS};
use crate::broker::{self, Broker};
use crate::cluster::app::App;
use crate::cluster::check;
use crate::cluster::load::Load;
use crate::kit;
use tidegate::log::{Append, Log, NewRecord, TopicPartition};

/// Every instance is replaced once, as a rollout does it.
#[test]
fn a_rolling_restart_loses_and_doubles_nothing_and_waits_for_no_session() {
    let app = App::new(broker::shared(), "rolling").of(TASKS);
    let mut nodes: Vec<_> = (0..INSTANCES).map(|slot| app.start(&format!("node-{slot}"))).collect();
    let at_work = |nodes: &[crate::cluster::app::Instance<'_>]| {
        let shares: Vec<usize> = nodes.iter().map(|node| node.owns()).collect();
        shares.iter().sum::<usize>() == TASKS as usize && !shares.contains(&0)
    };
    app.until("all share", || at_work(&nodes));
    let gaps = Gaps::begin(&app);
    let load = Load::slow(&app, 3);
    app.until("every partition has work", || gaps.all_work_since(Instant::now() - Duration::from_secs(2)));
    let mut stood = Vec::new();
    for slot in 0..INSTANCES {
        let leaving = nodes.remove(slot);
        let address = leaving.url().expect("it answers").split_once("://").expect("a URL").1.to_owned();
        let (then, held) = (Instant::now(), gaps.held_by(&address));
        assert_eq!(leaving.terminate(), Some(0), "{}", app.logs());
        drop(leaving);
        app.until("the others have all", || at_work(&nodes));
        let since = Instant::now();
        app.until("and work", || gaps.all_work_since(since));
        stood.extend(gaps.between(&address, then, &held));
        nodes.insert(slot, app.start(&format!("node-{slot}")));
        app.until("it is back", || at_work(&nodes));
    }
    load.end();
    check::all(&app);
    assert!(app.logs().matches("lost: another instance").count() == 0, "nobody was taken for dead\n{}", app.logs());
    stood.sort_by(f64::total_cmp);
    eprintln!("rolling restart: partitions stood still for {}", gaps::in_words(stood));
}

/// A second process on the same folder would write into the same stores.
#[test]
fn a_folder_has_one_process() {
    let app = App::new(broker::shared(), "twice");
    let one = app.start("one");
    app.until("it owns all", || one.owns() == 6);
    let twin = app.start("one");
    assert_eq!(twin.ended(), Some(1), "{}", app.logs());
    let said = twin.said();
    assert!(said.contains("in use by another process") && said.contains("application.instance_id"), "{said}");
    assert_eq!(one.owns(), 6, "the first goes on");
    assert_eq!(one.terminate(), Some(0), "{}", app.logs());
    let next = app.start("one");
    app.until("a later one may have it", || next.owns() == 6);
}

/// Nothing answers there, not even with a refusal: every call waits for its timeout.
#[test]
fn a_stop_at_the_start_waits_for_no_broker() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let servers = silent.local_addr().expect("bound").to_string();
    let source: Arc<str> = "never".into();
    let app = App::on(servers.clone(), source, kit::connect(&servers), "early");
    let one = app.start("one");
    app.until("it answers", || one.page("/livez").is_some_and(|(status, _)| status == 200));
    assert!(!one.ready());
    let begun = Instant::now();
    assert_eq!(one.terminate(), Some(0), "{}", app.logs());
    // A call takes ten.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}\n{}", begun.elapsed(), app.logs());
}

/// What it holds cannot be given back; it ends all the same, within `processing.shutdown_timeout`.
#[test]
fn a_stop_while_the_broker_is_away_ends_in_time() {
    let broker = Broker::start().expect("broker");
    let app = App::new(&broker, "away").with(&[("processing.shutdown_timeout", "20s")]);
    let one = app.start("one");
    app.until("it owns all", || one.owns() == 6);
    let slow = r#"{"key":"k","action":"ADD","payload":{"work_ms":60000}}"#;
    let record = NewRecord { value: Some(slow.into()), ..NewRecord::default() };
    app.log.append(Append { to: TopicPartition::new(&app.source, 0), records: vec![record] }).expect("append");
    app.until("it works", || one.page("/api/v1/in-flight").is_some_and(|(_, text)| text.contains("\"k\"")));
    broker.kill();
    let begun = Instant::now();
    let code = one.terminate();
    eprintln!("ended with {code:?} after {:.1} s", begun.elapsed().as_secs_f64());
    assert!(code == Some(0) || code == Some(1), "{code:?}\n{}", app.logs());
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}\n{}", begun.elapsed(), app.logs());
}
