//! At the engine itself: what it is told, what it hands out, and what its handler says.

use std::sync::Arc;

use tidegate::config::Config;
use tidegate::instance::calls::Verdict;
use tidegate::instance::commit::Work;
use tidegate::instance::engine::{Input, Opened};
use tidegate::log::{Log, MemberEvent, OffsetCommit, TopicPartition};
use tidegate::store::Store;
use tidegate::task::queue::Queued;

use super::{Bug, Planted};
use crate::inbox::Spy;

impl Planted {
    /// What the engine is told.
    pub fn input(&self, input: &mut Input, member: &Spy) {
        match (self.bug, input) {
            (Some(Bug::OldRecords), Input::Member(MemberEvent::Fetched(fetched))) => {
                fetched.epoch = member.epoch(&fetched.of).unwrap_or(fetched.epoch);
            }
            (Some(Bug::AnsweredEarly), Input::Member(MemberEvent::Revoked { done, .. })) => {
                *done = crossbeam_channel::bounded(1).0;
            }
            (Some(Bug::OldOutcome), Input::Finished(finished)) => {
                let call = &mut finished.call;
                let of = TopicPartition::new(&self.topics.repartition, call.partition);
                call.incarnation = member.epoch(&of).unwrap_or(call.incarnation);
            }
            (Some(Bug::FailureIgnored), Input::Flushed { result, .. }) => *result = Ok(()),
            (Some(Bug::RestUncommitted), Input::Opened { opened: Ok(Opened { position, restored, .. }), .. }) => {
                restored.iter_mut().for_each(|restored| restored.committed = *position);
            }
            _ => {}
        }
    }

    /// What a search in a store has found, with that store.
    pub fn found(&self, found: &Input, store: &Store) {
        if let (Some(Bug::DeletedUncommitted), Input::Swept { result: Ok(found), .. }) = (self.bug, found)
            && let Ok(Some(at)) = store.checkpoint()
        {
            store.write(found.keys.iter().map(|key| (key, None)), None, at).expect("the store takes it");
        }
    }

    /// What the engine wants committed.
    pub fn work(&self, work: &mut Work) {
        if !self.is(Bug::StuckUnfenced) {
            return;
        }
        let stands_still = |offset: &OffsetCommit| {
            let committed = self.sim.inner.committed(&self.group, std::slice::from_ref(&offset.of), false);
            let positions = committed.into_iter().flatten().flatten();
            positions.into_iter().any(|committed| committed.position == offset.position)
        };
        work.offsets.retain(|offset| offset.of.topic != self.topics.repartition || !stands_still(offset));
    }

    /// What the handler says.
    pub fn verdict(&self, queued: &Queued, superseded: bool, verdict: &mut Verdict) {
        match (self.bug, verdict) {
            (Some(Bug::LateParentChildless), Ok(outcome)) if superseded => outcome.children.clear(),
            (Some(Bug::ChildrenTwice), Ok(_)) if queued.attempt > 1 => {
                self.state().retried.insert(queued.event.stamp.clone());
            }
            _ => {}
        }
    }

    /// The settings as the engine has them.
    pub fn config(&self, config: &Arc<Config>) -> Arc<Config> {
        let mut config = Arc::clone(config);
        if self.is(Bug::TriedTooOften) {
            Arc::make_mut(&mut config).handler.retry.attempts += 1;
        }
        config
    }
}
