//! At the appender: a stage stands before the one that has to stand first.
//!
//! The stage is acknowledged at once and appended behind the next one. The stages of a commit are what does not depend on
//! the state, the entries, what is done.

use std::sync::Arc;

use tidegate::log::{Append, Appender, LogError};

use super::{Bug, Planted};

/// Appends in another order.
pub(super) struct BuggyAppender {
    pub(super) inner: Box<dyn Appender>,
    pub(super) planted: Arc<Planted>,
}

impl Appender for BuggyAppender {
    fn append(&mut self, appends: &mut Vec<Append>, give_up: &dyn Fn() -> bool) -> Result<(), LogError> {
        let held = match self.planted.bug {
            Some(Bug::EntriesFirst) => 0,
            Some(Bug::DoneFirst) => 1,
            _ => return self.inner.append(appends, give_up),
        };
        let stage = self.planted.state().stages;
        if stage == held {
            self.planted.state().held = std::mem::take(appends);
        } else {
            self.inner.append(appends, give_up)?;
            // What is refused of it is tried again together with the rest of this stage.
            let mut late = std::mem::take(&mut self.planted.state().held);
            if !late.is_empty() {
                let ended = self.inner.append(&mut late, give_up);
                self.planted.state().held = late;
                ended?;
            }
        }
        self.planted.state().stages += 1;
        Ok(())
    }
}
