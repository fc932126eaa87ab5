//! Transactions that stay undecided for a while: those of strangers, and committed ones whose markers come late.
//!
//! A broker acknowledges a commit before its markers stand in every partition. Here each part of such a transaction is
//! a transaction of its own for the log, so that the parts become readable one by one.

use fastrand::Rng;
use tidegate::log::embedded::EmbeddedLog;

use crate::sometimes::{self, reached};
use crate::timeline::note;

/// What becomes of a transaction is known, and does not stand in the log yet.
#[derive(Debug)]
struct Late {
    /// The transactional id.
    id: String,
    /// The log's number of it.
    number: u64,
    commit: bool,
    /// Whether there are entries of the changelog in it.
    has_entries: bool,
}

/// All of them; they outlive the process, as they would on a broker.
#[derive(Debug, Default)]
pub struct Markers(Vec<Late>);

impl Markers {
    /// The marker of transaction `number` of `id` will come later.
    pub fn put(&mut self, id: &str, number: u64, commit: bool, has_entries: bool) {
        reached(sometimes::LATE_MARKER);
        self.0.push(Late { id: id.to_owned(), number, commit, has_entries });
    }

    /// Whether some are still to come.
    pub fn are_late(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whose committed entries are not readable yet.
    pub fn of_entries(&self) -> Option<&str> {
        self.0.iter().find(|late| late.commit && late.has_entries).map(|late| &*late.id)
    }

    /// Some marker comes.
    pub fn one(&mut self, log: &EmbeddedLog, rng: &mut Rng) {
        if !self.0.is_empty() {
            let place = rng.usize(..self.0.len());
            let late = self.0.swap_remove(place);
            decide(log, &late);
        }
    }

    /// Those of one id come: the next transaction of an id begins, and a claim goes on, only after that.
    pub fn all_of(&mut self, log: &EmbeddedLog, id: &str) {
        let (of, others) = std::mem::take(&mut self.0).into_iter().partition(|late| late.id == id);
        self.0 = others;
        let of: Vec<Late> = of;
        of.iter().for_each(|late| decide(log, late));
    }
}

fn decide(log: &EmbeddedLog, late: &Late) {
    let Late { id, number, commit, .. } = late;
    note(format!("the marker of {id}'s transaction {number} comes, committed: {commit}"));
    log.decide(*number, *commit).expect("nobody else decides it");
}
