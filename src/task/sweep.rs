//! The search for markers of a task that the horizon has passed: when the store is looked through, and from where on.
//!
//! ```text
//!     resting -> next batch -> under way -> (next batch ->) … resting
//! ```
//!
//! V5: a search begins with what the store holds of all that was committed when it was wanted; what arrives in the
//!     store later makes it wanted again.

/// Where the search is.
#[derive(Debug, Default)]
pub struct Sweep {
    state: State,
    /// It is to begin from the beginning once more.
    wanted: bool,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Resting,
    /// The next batch begins behind this row of the store.
    Next(Vec<u8>),
    UnderWay,
}

impl Sweep {
    /// There is something to be found.
    pub fn want(&mut self) {
        self.wanted = true;
    }

    /// Whether a search waits for its beginning.
    pub fn waits(&self) -> bool {
        self.wanted && matches!(self.state, State::Resting)
    }

    /// The store has all that it needs (V5): what waits begins.
    pub fn begin(&mut self) {
        if self.waits() {
            (self.wanted, self.state) = (false, State::Next(Vec::new()));
        }
    }

    /// The row behind which the next batch begins; it is under way from here on.
    pub fn take_next(&mut self) -> Option<Vec<u8>> {
        match std::mem::take(&mut self.state) {
            State::Next(row) => {
                self.state = State::UnderWay;
                Some(row)
            }
            other => {
                self.state = other;
                None
            }
        }
    }

    /// A batch has ended at a row, or (`None`) there is no more.
    pub fn ended(&mut self, last: Option<Vec<u8>>) {
        self.state = last.map_or(State::Resting, State::Next);
    }
}
