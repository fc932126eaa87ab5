//! Instances that are set otherwise than by default: several engine threads.

use super::app::{App, Instance};
use super::check;
use super::load::Load;
use crate::broker;

fn owned(all: &[&Instance<'_>]) -> usize {
    all.iter().map(|instance| instance.owns()).sum()
}

/// W1 to W3, R4, G1: two members in one process, one in the other; the first dies under load.
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
