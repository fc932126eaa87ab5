//! When so many roots are unsettled that what is known of them takes much memory: each instance knows all of them.
//!
//! V1: from the limit on nothing new is received, while what was received is worked off: so what is unsettled becomes
//!     less, nothing is forgotten, and what waits stands on the source topic. Children are made all the same: they belong
//!     to roots that are known.

use crate::metrics;

/// From so many entries on the sources pause. Each takes about 100 bytes: roots of neighbouring sequences of which the
/// same is pending share one, so that a backlog that nobody has begun takes no room, and one partition that stands still
/// takes one for each of its roots.
const MANY: usize = 4_000_000;

/// They go on from so many.
const AGAIN: usize = MANY / 10 * 7;

/// Whether it is so.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    is_full: bool,
}

impl Crowd {
    /// There are so many entries now. Whether the sources are to be paused, where that is to be told.
    pub(super) fn look(&mut self, entries: usize, unsettled: u64) -> Option<bool> {
        metrics::frontier_entries(entries);
        let was_full = self.is_full;
        self.is_full = entries >= if was_full { AGAIN } else { MANY };
        match (was_full, self.is_full) {
            (false, true) => tracing::warn!(
                entries,
                unsettled,
                "too many roots are unsettled: the source is not read until some of them are settled; GET \
                 /api/v1/frontier names the oldest"
            ),
            (true, false) => tracing::info!(entries, unsettled, "the source is read again"),
            _ => {}
        }
        // Again and again: an engine thread may have started meanwhile.
        (self.is_full || was_full).then_some(self.is_full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_pause_at_the_limit_and_go_on_well_below() {
        let mut crowd = Crowd::default();
        let mut look = |entries| crowd.look(entries, 1);
        assert_eq!((look(0), look(MANY - 1)), (None, None));
        assert_eq!((look(MANY), look(MANY - 1), look(AGAIN)), (Some(true), Some(true), Some(true)));
        assert_eq!((look(AGAIN - 1), look(AGAIN), look(MANY)), (Some(false), None, Some(true)));
    }
}
