//! Instances on a real broker: they join, leave and die under load, and what they leave behind is the serial
//! reference's, each event's outcome exactly once.

pub mod app;
pub mod check;
mod fresh;
mod guarantees;
pub mod load;
pub mod output;
mod refusals;
mod sources;
mod reset;
mod retried;
mod woken;

use std::time::{Duration, Instant};

use crate::broker::{self, Broker};
use app::App;
use load::Load;

/// The partitions of the applications here.
const PARTITIONS: i32 = 6;

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

#[test]
fn one_instance_processes_cascades() {
    let app = App::new(broker::shared(), "alone");
    let one = app.start("one");
    app.until("the instance owns all", || one.owns() == 6);
    let load = Load::begin(&app, 1);
    app.until("enough is sent", || load.sent() >= 2000);
    load.end();
    check::all(&app);
    let begun = Instant::now();
    assert_eq!(one.terminate(), Some(0), "{}", app.logs());
    assert!(begun.elapsed() < Duration::from_secs(10), "leaving takes seconds:\n{}", app.logs());
}

#[test]
fn one_joins_and_leaves_under_load() {
    let app = App::new(broker::shared(), "pair");
    let one = app.start("one");
    app.until("the first owns all", || one.owns() == 6);
    let load = Load::begin(&app, 2);
    app.until("events flow", || load.sent() >= 500);
    let begun = Instant::now();
    let two = app.start("two");
    app.until("both own and run", || two.owns() >= 3 && one.owns() + two.owns() == 6);
    eprintln!("joined and working after {:.1} s", seconds(begun));
    let sent = load.sent();
    app.until("events flow with two", || load.sent() >= sent + 500);
    let begun = Instant::now();
    assert_eq!(two.terminate(), Some(0), "{}", app.logs());
    eprintln!("left after {:.1} s", seconds(begun));
    assert!(begun.elapsed() < Duration::from_secs(10), "leaving takes seconds:\n{}", app.logs());
    app.until("the first owns all again", || one.owns() == 6);
    eprintln!("all taken over after {:.1} s", seconds(begun));
    load.end();
    check::all(&app);
    let aborted = app.logs().matches("a transaction was aborted").count();
    eprintln!("{aborted} transactions aborted");
    assert!(aborted <= 2, "rebalances in good order cost no work:\n{}", app.logs());
}

#[test]
fn one_of_three_is_killed_under_load() {
    let app = App::new(broker::shared(), "three");
    let (one, mut two, three) = (app.start("one"), app.start("two"), app.start("three"));
    let owned = |all: &[&app::Instance<'_>]| all.iter().map(|instance| instance.owns()).sum::<usize>();
    app.until("three share", || owned(&[&one, &two, &three]) == 6 && one.owns() < 6);
    let load = Load::begin(&app, 3);
    app.until("events flow", || load.sent() >= 1000);
    let begun = Instant::now();
    two.kill();
    app.until("the heirs work", || owned(&[&one, &three]) == 6);
    eprintln!("the heirs work {:.1} s after the kill", seconds(begun));
    two = app.start("two");
    app.until("it is back", || two.owns() > 0 && owned(&[&one, &two, &three]) == 6);
    load.end();
    check::all(&app);
}

#[test]
fn a_broker_that_restarts_is_waited_for() {
    let broker = Broker::start().expect("broker");
    let app = App::new(&broker, "restart");
    let (one, two) = (app.start("one"), app.start("two"));
    app.until("two share", || one.owns() + two.owns() == 6 && two.owns() > 0);
    let load = Load::begin(&app, 4);
    app.until("events flow", || load.sent() >= 500);
    broker.stop_while_they_pause(|signal| [&one, &two].into_iter().for_each(|instance| instance.signal(signal)));
    broker.restart().expect("restart");
    let (begun, sent) = (Instant::now(), load.sent());
    app.until("events flow again", || load.sent() >= sent + 500);
    app.until("both work again", || one.owns() + two.owns() == 6);
    eprintln!("all at work {:.1} s after the broker is back", seconds(begun));
    load.end();
    check::all(&app);
}
