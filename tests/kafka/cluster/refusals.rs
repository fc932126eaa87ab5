//! What does not fit is refused by name; what is not there yet is waited for.

use std::sync::Arc;

use tidegate::log::{Log, NewTopic};

use super::app::App;
use crate::broker;
use crate::kit;

/// A broker's address where none is.
const NOWHERE: &str = "127.0.0.1:9";

fn refused(app: &App, topic: &str) {
    let instance = app.start("refused");
    assert_eq!(instance.ended(), Some(2), "{}", app.logs());
    assert!(instance.said().contains(topic), "{topic} is not named:\n{}", app.logs());
}

/// Creates an internal topic by hand.
fn internal(app: &App, name: &Arc<str>, partitions: i32, policy: &str) {
    let settings = vec![("cleanup.policy".to_owned(), policy.to_owned())];
    let topic = NewTopic { name: name.to_string(), partitions, replication_factor: None, settings };
    app.log.create(&[topic]).expect("create");
}

#[test]
fn topics_that_do_not_fit_are_refused_by_name() {
    let shared = broker::shared();
    let missing: Arc<str> = kit::unique("no-source").into();
    refused(&App::on(shared.servers(), Arc::clone(&missing), kit::log(), "missing"), &missing);
    let log = kit::log();
    let wide = kit::topic(&log, "wide", 2, &[]);
    refused(&App::on(shared.servers(), Arc::clone(&wide), log, "wide"), &wide);
    let app = App::new(shared, "count");
    internal(&app, &app.topics.repartition, 3, "delete");
    refused(&app, &app.topics.repartition);
    let app = App::new(shared, "policy");
    internal(&app, &app.topics.changelog, super::PARTITIONS, "delete");
    refused(&app, &app.topics.changelog);
}

#[test]
fn a_broker_that_is_not_there_is_waited_for_and_tools_say_so() {
    let app = App::on(NOWHERE.into(), "any".into(), kit::connect(NOWHERE), "nowhere");
    let instance = app.start("patient");
    std::thread::scope(|scope| {
        for verb in [&["verify"][..], &["topics", "check"][..]] {
            let app = &app;
            scope.spawn(move || {
                let ended = app.tool(verb);
                let said = String::from_utf8_lossy(&ended.stderr).into_owned();
                assert_eq!(ended.status.code(), Some(1), "{verb:?}: {said}");
                assert!(said.contains(NOWHERE), "{verb:?} does not name the broker: {said}");
            });
        }
    });
    app.until("it says that it waits", || instance.said().contains("not started yet"));
    assert!(!instance.ready());
    assert_eq!(instance.terminate(), Some(0), "{}", app.logs());
    let lines = instance.said().matches("not started yet").count();
    assert_eq!(lines, 1, "one line says so:\n{}", app.logs());
}
