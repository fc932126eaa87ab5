//! `make planted`: plants each bug of `bugs/` and of `tidegate::planted` and runs seeds until the simulator says what is
//! wrong.
//!
//! A bug that no seed notices is a hole in the simulator: the command fails.

mod bugs;
mod checks;
mod faults;
mod horizons;
#[expect(dead_code, reason = "a test looks at more of it")]
mod inbox;
#[expect(dead_code, reason = "the test reads more of it")]
mod kinds;
mod marking;
mod node;
mod observing;
mod opening;
mod retrying;
#[expect(dead_code, reason = "the test reads more of it")]
mod run;
#[expect(dead_code, reason = "the test reads more of it")]
mod sometimes;
mod timeline;
mod waiting;
mod workload;
mod world;

use std::process::ExitCode;
use std::time::Instant;

use comfy_table::{ContentArrangement, Table};
use tidegate::planted;

use bugs::hunt::{self, SEEDS, said};
use run::Violation;

/// Of the table, in characters.
const WIDTH: u16 = 160;

/// A bug, wherever it lives.
#[derive(Clone, Copy)]
enum Bug {
    AtPort(bugs::Bug),
    Inside(planted::Bug),
}

impl Bug {
    fn all() -> impl Iterator<Item = Bug> {
        let at_ports = bugs::Bug::ALL.iter().copied().map(Bug::AtPort);
        at_ports.chain(planted::Bug::ALL.iter().copied().map(Bug::Inside))
    }

    fn name(self) -> String {
        match self {
            Bug::AtPort(bug) => format!("{bug:?}"),
            Bug::Inside(bug) => format!("{bug:?}"),
        }
    }

    fn what(self) -> &'static str {
        match self {
            Bug::AtPort(bug) => bug.what(),
            Bug::Inside(bug) => bug.what(),
        }
    }

    fn rules(self) -> &'static str {
        match self {
            Bug::AtPort(bug) => bug.rules(),
            Bug::Inside(bug) => bug.rules(),
        }
    }

    /// The kinds of seeds in which it can show.
    fn kinds(self) -> &'static [&'static str] {
        use planted::Bug::*;
        match self {
            Bug::AtPort(bug) => bug.kinds(),
            Bug::Inside(CompositionKept) => &["commits"],
            Bug::Inside(RunsKept) => &["arrival", "arrival-seat"],
            Bug::Inside(ClosingFinishes) => &["arrival-seat", "moves"],
            Bug::Inside(CallsCounted) => &["moves"],
            Bug::Inside(GateBlind | QueueReversed | ChildrenUncounted) => &["calm"],
            Bug::Inside(AnsweredUndecided | UnreadSettled) => &["calm", "crashes"],
            Bug::Inside(HorizonUnsettled | RetriesPassed | BuriedBlindly) => &["horizon", "horizon-moves"],
            Bug::Inside(RetryUnnumbered | RetryOnOriginal) => &["retries", "retries-moves"],
            Bug::Inside(DoneSetStale | BookkeepingForgotten | CheckpointFirst) => &["crashes", "moves"],
        }
    }

    /// The first seed that notices it.
    fn noticed(self) -> Option<Violation> {
        match self {
            Bug::AtPort(bug) => hunt::first_violation(self.kinds(), Some(bug)),
            Bug::Inside(bug) => {
                planted::plant(Some(bug));
                let violation = hunt::first_violation(self.kinds(), None);
                planted::plant(None);
                violation
            }
        }
    }
}

fn main() -> ExitCode {
    let only: Vec<String> = std::env::args().skip(1).collect();
    let begun = Instant::now();
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH);
    table.set_header(["bug", "breaks", "caught by", "after", "what it said"]);
    let mut missed = Vec::new();
    for bug in Bug::all().filter(|bug| only.is_empty() || only.contains(&bug.name())) {
        let since = Instant::now();
        let mut violation = bug.noticed();
        if let Some(Err(without)) = violation.as_ref().map(hunt::is_clean_without) {
            eprintln!("{} {} fails without any bug, too: {}", without.kind, without.seed, said(&without.what));
            violation = None;
        }
        let (by, what) = match &violation {
            Some(violation) => (format!("{} {}", violation.kind, violation.seed), said(&violation.what)),
            None => ("nothing".into(), format!("{SEEDS} seeds of {} are clean", bug.kinds().join(", "))),
        };
        let (name, took) = (bug.name(), format!("{:.1} s", since.elapsed().as_secs_f64()));
        eprintln!("{name}: {by} after {took}: {what}");
        table.add_row([format!("{name}: {}", bug.what()), bug.rules().to_owned(), by, took, what]);
        missed.extend(violation.is_none().then_some(name));
    }
    println!("{table}");
    println!("{:.0} s; not caught: {missed:?}", begun.elapsed().as_secs_f64());
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
