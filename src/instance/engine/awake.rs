//! Whether the engine may answer for its keys (protocol P8).
//!
//! W1: after a pause of more than half of the session timeout nothing is answered before the group has
//!     taken a commit that began after it: in a pause (a suspended machine, a stopped process) the group
//!     may have given the partitions to others, and what it told before the pause may arrive after it. A
//!     commit is taken only from a member of the group's own generation.

use std::time::Duration;

use super::Engine;
use crate::instance::calls::Calls;
use crate::log::SESSION_TIMEOUT;

/// A pause that may have cost the partitions. The group counts from the last heartbeat that reached it, which is older
/// than the pause.
const PAUSE: Duration = SESSION_TIMEOUT.checked_div(2).expect("two is not zero");

/// What is known of the engine's pauses.
#[derive(Debug, Default)]
pub(super) struct Awake {
    /// When the loop was last seen at work.
    last: Option<Duration>,
    /// How many pauses there were.
    pauses: u64,
    /// The length of the last one, while it is in doubt whether the partitions are still owned.
    in_doubt: Option<Duration>,
}

impl Awake {
    /// The loop is at work.
    pub(super) fn seen(&mut self, boot: Duration) {
        let paused = self.last.map_or(Duration::ZERO, |last| boot.saturating_sub(last));
        self.last = Some(boot);
        if paused > PAUSE {
            tracing::warn!("stood still for {} s; asking the group what is still owned here", paused.as_secs());
            self.pauses += 1;
            self.in_doubt = Some(paused);
        }
    }

    /// Why nothing may be answered, if that is so.
    pub(super) fn doubt(&self) -> Option<String> {
        self.in_doubt.map(|paused| {
            format!("the instance stood still for {} s and asks the group whether it still owns it", paused.as_secs())
        })
    }

    /// Handed out with a commit, and back to [`Awake::confirmed`] when the group has taken it.
    pub(super) fn pauses(&self) -> u64 {
        self.pauses
    }

    /// The group has taken a commit that began after so many pauses (W1).
    pub(super) fn confirmed(&mut self, pauses: u64) {
        if pauses == self.pauses {
            self.in_doubt = None;
        }
    }
}

impl<C: Calls> Engine<C> {
    /// While there is a doubt one position is committed anew, whether it has moved or not.
    pub(super) fn commit_in_doubt(&mut self) {
        if self.awake.in_doubt.is_none() {
            return;
        }
        let by_hand = self.reads_by_hand();
        if let Some(task) = self.tasks.values_mut().find(|task| !task.closing) {
            task.touched = true;
        } else if let Some(source) = self.sources.values_mut().next().filter(|_| !by_hand) {
            source.touched = true;
        } else {
            return;
        }
        self.composing.touch(&self.membership);
    }
}
