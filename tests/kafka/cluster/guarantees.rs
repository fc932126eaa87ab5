//! Instances that are set otherwise than by default: several engine threads, no transactions.

use prost::Message;
use tidegate::log::TopicPartition;
use tidegate::proto::Progress;

use super::app::{App, Instance};
use super::check;
use super::load::Load;
use crate::broker;

fn owned(all: &[&Instance<'_>]) -> usize {
    all.iter().map(|instance| instance.owns()).sum()
}

/// Y1 to Y3, R4, G1: two members in one process, one in the other; the first dies under load.
#[test]
fn one_of_two_threads_and_one_of_one_share_and_one_is_killed() {
    let app = App::new(broker::shared(), "threads");
    let two_threads = ["processing.threads=2"];
    let mut one = app.start_with("one", &two_threads);
    app.until("both threads work", || one.owns() == 6 && one.threads() == 2);
    let load = Load::begin(&app, 5);
    app.until("events flow", || load.sent() >= 500);
    let two = app.start("two");
    app.until("three members share", || owned(&[&one, &two]) == 6 && two.owns() == 2 && one.threads() == 2);
    let sent = load.sent();
    app.until("events flow", || load.sent() >= sent + 500);
    one.kill();
    app.until("the other has all", || two.owns() == 6);
    one = app.start_with("one", &two_threads);
    app.until("three share again", || owned(&[&one, &two]) == 6 && one.threads() == 2);
    assert_eq!(one.terminate(), Some(0), "{}", app.logs());
    app.until("the other has all again", || two.owns() == 6);
    load.end();
    check::all(&app);
}

const PLAIN: &str = "processing.guarantee=at_least_once";

/// C5 to C8 on a broker: one of two dies under load, comes back, and the other leaves in good order.
#[test]
fn without_transactions_a_killed_instance_costs_nothing_but_doubles() {
    let app = App::new(broker::shared(), "plain");
    let (mut one, two) = (app.start_with("one", &[PLAIN]), app.start_with("two", &[PLAIN, "processing.threads=2"]));
    app.until("two share", || owned(&[&one, &two]) == 6 && one.owns() > 0 && two.owns() > 0);
    let load = Load::begin(&app, 6);
    for _ in 0..2 {
        let sent = load.sent();
        app.until("events flow", || load.sent() >= sent + 500);
        one.kill();
        app.until("the other has all", || two.owns() == 6);
        one = app.start_with("one", &[PLAIN]);
        app.until("two share again", || owned(&[&one, &two]) == 6 && one.owns() > 0);
    }
    assert_eq!(two.terminate(), Some(0), "{}", app.logs());
    app.until("the first has all", || one.owns() == 6);
    load.end();
    check::at_least_once(&app);
    let uncounted = check::records(&app.log, &TopicPartition::new(&app.topics.progress, 0), false);
    let uncounted =
        uncounted.into_iter().map(|record| Progress::decode(record.value.expect("a value")).expect("progress"));
    assert!(uncounted.map(|progress| progress.counts.len()).sum::<usize>() == 0, "counts without transactions");
    assert_eq!(one.terminate(), Some(0), "{}", app.logs());
}

/// P6, P12: what the dead owner's transaction left open is ended by a successor without transactions; and back.
#[test]
fn an_application_goes_from_one_guarantee_to_the_other() {
    let app = App::new(broker::shared(), "switch");
    let one = app.start("one");
    app.until("it owns all", || one.owns() == 6);
    let load = Load::begin(&app, 7);
    app.until("events flow", || load.sent() >= 500);
    one.kill();
    let two = app.start_with("one", &[PLAIN]);
    app.until("the successor owns all", || two.owns() == 6);
    let sent = load.sent();
    app.until("events flow", || load.sent() >= sent + 500);
    two.kill();
    let three = app.start("one");
    app.until("with transactions again", || three.owns() == 6);
    let sent = load.sent();
    app.until("events flow", || load.sent() >= sent + 500);
    load.end();
    check::at_least_once(&app);
    assert_eq!(three.terminate(), Some(0), "{}", app.logs());
}
