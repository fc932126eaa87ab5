//! Many seeds, on all cores, and what came of them.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::kinds::{KINDS, Kind};
use super::run::{Violation, run};
use super::sometimes::{self, Counts};

/// After so many violations it is enough.
const ENOUGH: usize = 3;

/// Seeds to be run.
pub struct Campaign {
    seeds: Vec<(&'static Kind, u64)>,
}

/// What came of a campaign.
#[derive(Default)]
pub struct Ended {
    /// Seeds that were run.
    pub runs: u64,
    /// What went wrong in them.
    pub violations: Vec<Violation>,
    /// What was reached, and how often.
    pub reached: Counts,
    /// How long it took.
    pub took: Duration,
}

impl Campaign {
    /// The fixed seeds of every kind, from 1 on.
    pub fn of_every_kind() -> Campaign {
        let mut seeds: Vec<_> = KINDS.iter().flat_map(|kind| (1..=kind.seeds).map(move |seed| (kind, seed))).collect();
        // The kinds take turns: what is wrong with one is seen early.
        seeds.sort_by_key(|(_, seed)| *seed);
        Campaign { seeds }
    }

    /// So many seeds in all, the kinds taking turns, each from `first` on.
    pub fn new(kinds: &[&'static Kind], first: u64, seeds: u64) -> Campaign {
        let seeds =
            (first..).flat_map(|seed| kinds.iter().map(move |kind| (*kind, seed))).take(seeds as usize).collect();
        Campaign { seeds }
    }

    /// Runs them; `progress` is told now and then how far it is, and each violation at once.
    pub fn run(self, progress: impl Fn(String) + Sync) -> Ended {
        let begun = Instant::now();
        let next = AtomicUsize::new(0);
        let ended = Mutex::new(Ended::default());
        let work = || {
            while let Some((kind, seed)) = self.seeds.get(next.fetch_add(1, Ordering::SeqCst)) {
                let outcome = run(kind, *seed, None);
                let mut ended = ended.lock().expect("only sums");
                ended.runs += 1;
                match outcome {
                    Ok(report) => {
                        report.reached.into_iter().for_each(|(what, n)| *ended.reached.entry(what).or_default() += n)
                    }
                    Err(violation) => {
                        progress(violation.to_string());
                        ended.violations.push(violation);
                        if ended.violations.len() >= ENOUGH {
                            next.store(self.seeds.len(), Ordering::SeqCst);
                        }
                    }
                }
                if ended.runs.is_multiple_of(100) {
                    let rate = ended.runs as f64 / begun.elapsed().as_secs_f64();
                    progress(format!("{} of {} seeds, {rate:.1} a second", ended.runs, self.seeds.len()));
                }
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            (0..cores).for_each(|_| drop(scope.spawn(work)));
        });
        let mut ended = ended.into_inner().expect("only sums");
        ended.took = begun.elapsed();
        ended
    }
}

impl Ended {
    /// What no seed has reached.
    pub fn unreached(&self) -> Vec<&'static str> {
        sometimes::all().filter(|what| !self.reached.contains_key(what)).collect()
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for what in sometimes::all() {
            writeln!(f, "{:>8}  {what}", self.reached.get(what).copied().unwrap_or_default())?;
        }
        let (seconds, violations) = (self.took.as_secs_f64(), self.violations.len());
        let rate = self.runs as f64 / seconds;
        writeln!(f, "{} seeds in {seconds:.0} s, {rate:.1} a second: {violations} violations", self.runs)?;
        self.violations.iter().try_for_each(|violation| writeln!(f, "\n{violation}"))
    }
}
