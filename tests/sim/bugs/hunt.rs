//! Runs seeds until one notices a bug.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::Bug;
use crate::kinds::{KINDS, Kind};
use crate::run::{Violation, run};

/// A bug has to be noticed within so many seeds of each kind in which it can show.
pub const SEEDS: u64 = 200;

/// The kind of that name.
fn named(name: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.name == name).unwrap_or_else(|| panic!("there is no kind {name}"))
}

/// The first of the seeds that notices `bug`, or what else was planted before; runs them in order, some at a time.
pub fn first_violation(kinds: &[&str], bug: Option<Bug>) -> Option<Violation> {
    let kinds: Vec<_> = kinds.iter().map(|name| named(name)).collect();
    let seeds: Vec<_> = (1..=SEEDS).flat_map(|seed| kinds.iter().map(move |kind| (*kind, seed))).collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    let work = || {
        loop {
            let place = next.fetch_add(1, Ordering::SeqCst);
            let Some((kind, seed)) = seeds.get(place) else { return };
            if let Err(violation) = run(kind, *seed, bug) {
                next.store(seeds.len(), Ordering::SeqCst);
                found.lock().expect("only a list").push((place, violation));
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..cores).for_each(|_| drop(scope.spawn(work))));
    let found = found.into_inner().expect("only a list");
    found.into_iter().min_by_key(|(place, _)| *place).map(|(_, violation)| violation)
}

/// Whether the same seed ends well without any bug; what is wrong otherwise.
pub fn is_clean_without(violation: &Violation) -> Result<(), Violation> {
    run(named(violation.kind), violation.seed, None).map(drop)
}

/// What the checker said, without the place in the code, shortened.
pub fn said(what: &str) -> String {
    let message = what.split_once(":\n").map_or(what, |(_, message)| message);
    let text = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = text.chars().take(160).collect();
    if short.len() < text.len() { format!("{short} …") } else { short }
}
