//! Whose turn it is: stores are filled some at a time, the shortest first.
//!
//! T1: no more turns are out than there are places, over all threads of the instance: what a fill needs in memory and
//!     CPU is bounded.
//! T2: of those that wait the shortest goes first, so that most partitions serve early; of equals the first to come.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often one that waits asks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// Gives out turns.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<(Mutex<State>, Condvar)>);

#[derive(Debug)]
struct State {
    free: usize,
    /// By length, then by when they came.
    waiting: BTreeSet<(u64, u64)>,
    came: u64,
}

/// The right to work; given back when it is dropped.
#[derive(Debug)]
pub struct Turn(Turns);

impl Turns {
    /// `places` turns at a time.
    pub(super) fn new(places: usize) -> Turns {
        let state = State { free: places.max(1), waiting: BTreeSet::new(), came: 0 };
        Turns(Arc::new((Mutex::new(state), Condvar::new())))
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of a work of this length; `None` when it is no longer `wanted`.
    pub(super) fn take(&self, length: u64, wanted: impl Fn() -> bool) -> Option<Turn> {
        let mut state = self.locked();
        state.came += 1;
        let place = (length, state.came);
        state.waiting.insert(place);
        while state.free == 0 || state.waiting.first() != Some(&place) {
            (state, _) = self.0.1.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner);
            drop(state);
            let is_wanted = wanted();
            state = self.locked();
            if !is_wanted {
                state.waiting.remove(&place);
                self.0.1.notify_all();
                return None;
            }
        }
        state.waiting.remove(&place);
        state.free -= 1;
        // The next one may have a place, too.
        self.0.1.notify_all();
        Some(Turn(self.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.locked().free += 1;
        self.0.0.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T1, T2.
    #[test]
    fn the_shortest_of_those_that_wait_goes_first() {
        let turns = Turns::new(1);
        let first = turns.take(9, || true).expect("nobody has it");
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for length in [5, 1, 3] {
                let (turns, order) = (&turns, &order);
                scope.spawn(move || {
                    let turn = turns.take(length, || true).expect("wanted");
                    order.lock().unwrap().push(length);
                    drop(turn);
                });
            }
            while turns.locked().waiting.len() < 3 {
                std::thread::yield_now();
            }
            assert!(order.lock().unwrap().is_empty(), "T1");
            assert!(turns.take(0, || false).is_none(), "not wanted any more");
            drop(first);
        });
        assert_eq!(*order.lock().unwrap(), [1, 3, 5], "T2");
        let state = turns.locked();
        assert_eq!((state.free, state.waiting.len()), (1, 0));
    }
}
