//! When the horizon is announced: by whoever owns partition 0, as far as the frontier was `state.marker_retention` ago.
//!
//! W4: an announcement that comes late, twice, or from an owner that is none any more does no harm: what it says is
//!     judged where it stands in `<app>-progress` (protocol P19).

use std::cell::Cell;
use std::time::{Duration, Instant};

use crate::clock;
use crate::config::{Config, Guarantee};
use crate::frontier::Book;

/// Not more often than this …
const APART: Duration = Duration::from_secs(1);

/// … and than this part of the retention, …
const PART: u32 = 1000;

/// … but so often at least.
const AT_MOST: Duration = Duration::from_secs(60);

/// Decides when.
#[derive(Debug)]
pub struct Announcing {
    retention: Duration,
    last: Cell<Option<Instant>>,
}

impl Announcing {
    /// As configured; without transactions nothing is known of what is settled.
    pub(super) fn of(config: &Config) -> Option<Announcing> {
        let counts = config.processing.guarantee == Guarantee::ExactlyOnce;
        counts.then(|| Announcing::after(config.state.marker_retention))
    }

    fn after(retention: Duration) -> Announcing {
        Announcing { retention, last: Cell::new(None) }
    }

    /// The horizon to announce now, if it is time and it has moved.
    pub(super) fn due(&self, book: &Book) -> Option<u64> {
        let apart = (self.retention / PART).clamp(APART, AT_MOST);
        if self.last.get().is_some_and(|last| clock::since(last) < apart) {
            return None;
        }
        let due = book.horizon_due(clock::wall_ms(), self.retention)?;
        self.last.set(Some(clock::now()));
        Some(due)
    }
}
