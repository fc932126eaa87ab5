//! The simulator: the engine's own code on the embedded log, in drawn orders, with drawn faults.
//!
//! A seed decides everything: workload, settings, the order of whatever can happen, and what goes wrong. At its end the
//! state is compared with the serial reference (`tidegate::reference`). `kinds.rs` lists what kinds of seeds there are,
//! `run.rs` runs one, `campaign.rs` many.

mod asleep;
mod bugs;
mod campaign;
mod checks;
mod crowded;
mod faults;
mod horizons;
mod inbox;
mod judged;
mod kinds;
mod marking;
mod node;
mod observing;
mod opening;
mod refused;
mod released;
mod retrying;
mod revoked;
mod run;
mod seat;
mod sometimes;
mod timeline;
mod waiting;
mod workload;
mod world;

use bugs::Bug;
use bugs::hunt::{self, SEEDS, said};
use campaign::{Campaign, Ended};
use kinds::{KINDS, Kind};

/// Every kind, with so many seeds each as a build can afford.
#[test]
fn whatever_happens_the_final_state_is_that_of_one_thread_with_one_queue() {
    let ended = Campaign::of_every_kind().run(|_| {});
    println!("{ended}");
    assert!(ended.violations.is_empty(), "{ended}");
    assert_eq!(ended.unreached(), Vec::<&str>::new(), "the simulator is blind for this");
}

/// Who breaks a rule at a port is noticed. `make planted` breaks those inside of the engine, too.
#[test]
fn a_bug_at_a_port_is_noticed() {
    for bug in Bug::ALL.iter().copied() {
        let (kinds, what, rules) = (bug.kinds(), bug.what(), bug.rules());
        let violation = hunt::first_violation(kinds, Some(bug));
        let violation = violation.unwrap_or_else(|| panic!("{bug:?}: {SEEDS} seeds of {kinds:?} are clean: {what}"));
        println!("{bug:?} breaks {rules}: {} {}: {}", violation.kind, violation.seed, said(&violation.what));
        assert!(hunt::is_clean_without(&violation).is_ok(), "{bug:?}: it is another one: {violation}");
    }
}

/// Whatever the kind, and however often: what happens follows from the seed alone, up to where a file of a store is
/// damaged. When RocksDB meets that depends on its threads.
#[test]
fn a_seed_is_the_same_whenever_it_is_run() {
    for kind in KINDS {
        for seed in 1..=3 {
            let is_damage = |line: &String| line.contains(" bytes ends at ") || line.contains(" bytes has changed at ");
            let timelines = [(); 2].map(|()| {
                let mut timeline = run::run(kind, seed, None).expect("it ends well").timeline;
                let damage = timeline.iter().position(is_damage);
                timeline.truncate(damage.unwrap_or(usize::MAX));
                timeline
            });
            let differs = timelines[0].iter().zip(&timelines[1]).find(|(once, again)| once != again);
            assert_eq!(differs, None, "{} {seed}", kind.name);
            assert_eq!(timelines[0].len(), timelines[1].len(), "{} {seed}", kind.name);
        }
    }
}

/// `make simulate`: `SEEDS` in all, from `SEED` on, of one `KIND` or of all.
#[test]
#[ignore = "as many seeds as one likes: make simulate SEEDS=10000"]
fn simulate() {
    let asked = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let number = |name: &str| asked(name).map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")));
    let kinds: Vec<&Kind> = KINDS.iter().filter(|kind| asked("KIND").is_none_or(|name| name == kind.name)).collect();
    let names: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
    assert!(!kinds.is_empty(), "KIND is one of {}", names.join(", "));
    let first = number("SEED").unwrap_or(1);
    let seeds = number("SEEDS").unwrap_or(if asked("SEED").is_some() { kinds.len() as u64 } else { 1000 });
    let ended: Ended = Campaign::new(&kinds, first, seeds).run(|progress| println!("{progress}"));
    println!("{ended}");
    assert!(ended.violations.is_empty(), "{} seeds failed", ended.violations.len());
}
