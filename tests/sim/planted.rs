//! `make planted`: plants each bug of `tidegate::planted` and runs seeds until the simulator says what is wrong.
//!
//! A bug that no seed notices is a hole in the simulator: the command fails.

mod checks;
mod faults;
mod inbox;
#[expect(dead_code, reason = "the test reads more of it")]
mod kinds;
mod node;
mod opening;
#[expect(dead_code, reason = "the test reads more of it")]
mod run;
#[expect(dead_code, reason = "the test reads more of it")]
mod sometimes;
mod timeline;
mod waiting;
mod workload;
mod world;

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use comfy_table::{ContentArrangement, Table};
use tidegate::planted::{self, Bug};

use kinds::{KINDS, Kind};
use run::{Violation, run};

/// Each bug has to be noticed within so many seeds of each kind.
const SEEDS: u64 = 200;

/// Of the table, in characters.
const WIDTH: u16 = 160;

/// Seeds at a time.
const THREADS: usize = 2;

/// The kind of that name.
fn named(name: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.name == name).unwrap_or_else(|| panic!("there is no kind {name}"))
}

/// The kinds of seeds in which the bug can show.
fn kinds(bug: Bug) -> &'static [&'static str] {
    match bug {
        Bug::PositionsFirst | Bug::DoneFirst | Bug::EntriesFirst => &["plain-crashes"],
        Bug::RestUncommitted => &["plain-crashes", "plain-moves"],
        Bug::RunsKept => &["arrival", "arrival-seat"],
        Bug::JudgedAlone => &["header"],
        Bug::MembershipFresh => &["moves", "expelled"],
        Bug::StuckUnfenced | Bug::AnsweredEarly | Bug::ClosingFinishes | Bug::CallsCounted => &["moves"],
        Bug::OldRecords | Bug::OldOutcome => &["commits", "moves"],
        Bug::PositionsOutside
        | Bug::AbortTakenForCommit
        | Bug::CompositionKept
        | Bug::UnknownSentAgain
        | Bug::AnyMarkDecides
        | Bug::NotRecovered => &["commits"],
        Bug::GateBlind
        | Bug::QueueReversed
        | Bug::LateParentChildless
        | Bug::ChildrenTwice
        | Bug::TriedTooOften
        | Bug::ChildrenUncounted => &["calm"],
        Bug::DoneSetIgnored
        | Bug::DoneSetStale
        | Bug::BookkeepingForgotten
        | Bug::CheckpointTooHigh
        | Bug::CheckpointFirst
        | Bug::RestoresUncommitted
        | Bug::RestoresToStable => &["crashes", "moves"],
        Bug::FailureIgnored => &["disks"],
        Bug::UnstableTaken => &["expelled"],
        Bug::DeadNotFenced | Bug::NotClaimed | Bug::PositionsExpire => &["crashes"],
    }
}

/// The first of the seeds that notices the bug; runs them in order, some at a time.
fn first_violation(bug: Bug) -> Option<Violation> {
    let kinds: Vec<&'static Kind> = kinds(bug).iter().map(|name| named(name)).collect();
    let seeds: Vec<_> = (1..=SEEDS).flat_map(|seed| kinds.iter().map(move |kind| (*kind, seed))).collect();
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    planted::plant(Some(bug));
    let work = || {
        loop {
            let place = next.fetch_add(1, Ordering::SeqCst);
            let Some((kind, seed)) = seeds.get(place) else { return };
            if let Err(violation) = run(kind, *seed) {
                next.store(seeds.len(), Ordering::SeqCst);
                found.lock().expect("only a list").push((place, violation));
            }
        }
    };
    std::thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(work))));
    planted::plant(None);
    let found = found.into_inner().expect("only a list");
    let (place, violation) = found.into_iter().min_by_key(|(place, _)| *place)?;
    let (kind, seed) = seeds[place];
    match run(kind, seed) {
        Ok(_) => Some(violation),
        Err(without) => {
            eprintln!("{} {seed} fails without any bug, too: {}", kind.name, said(&without.what));
            None
        }
    }
}

/// What the checker said, without the place in the code, shortened.
fn said(what: &str) -> String {
    let message = what.split_once(":\n").map_or(what, |(_, message)| message);
    let text = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = text.chars().take(160).collect();
    if short.len() < text.len() { format!("{short} …") } else { short }
}

fn main() -> ExitCode {
    let only: Vec<String> = std::env::args().skip(1).collect();
    let wanted = |bug: &Bug| only.is_empty() || only.contains(&format!("{bug:?}"));
    let begun = Instant::now();
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.set_header(["bug", "breaks", "caught by", "what it said"]);
    let mut missed = Vec::new();
    for bug in Bug::ALL.iter().copied().filter(wanted) {
        let since = Instant::now();
        let violation = first_violation(bug);
        let (by, what) = match &violation {
            Some(violation) => (format!("{} {}", violation.kind, violation.seed), said(&violation.what)),
            None => ("nothing".into(), format!("{SEEDS} seeds of {} are clean", kinds(bug).join(", "))),
        };
        eprintln!("{bug:?}: {by} after {:.1} s: {what}", since.elapsed().as_secs_f64());
        table.add_row([format!("{bug:?}: {}", bug.what()), bug.rules().to_owned(), by, what]);
        missed.extend(violation.is_none().then_some(bug));
    }
    println!("{table}");
    println!("{:.0} s; not caught: {missed:?}", begun.elapsed().as_secs_f64());
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
