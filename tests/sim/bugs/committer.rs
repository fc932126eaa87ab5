//! At the committer: what is committed before the rest of a commit.

use std::sync::Arc;

use tidegate::instance::commit::{Committer, Ended, Work};
use tidegate::log::Member;

use super::{Bug, Planted};

/// Carries more out than it is to.
pub(super) struct BuggyCommitter {
    pub(super) inner: Box<dyn Committer>,
    pub(super) member: Arc<dyn Member>,
    pub(super) planted: Arc<Planted>,
}

impl Committer for BuggyCommitter {
    fn carry_out(&mut self, work: Work, losses: u64, stop: &dyn Fn() -> bool) -> Ended {
        {
            let state = &mut *self.planted.state();
            (state.number, state.stages) = (work.number, 0);
            state.held.clear();
        }
        if matches!(self.planted.bug, Some(Bug::PositionsOutside | Bug::PositionsFirst)) {
            // Refused or not: the positions are in the commit, too.
            let _ = self.member.commit(&work.offsets, &work.membership);
        }
        self.inner.carry_out(work, losses, stop)
    }
}
