//! The commit of step 7 without transactions (`processing.guarantee = "at_least_once"`): in stages, each
//! acknowledged by the log before the next one begins.
//!
//! C5: nothing stands in the changelog before all that its event led to stands in the log: at a key that
//!     holds its stamp an event that is delivered again is a duplicate, whose children nobody would send.
//! C6: nothing is said to be done (done-set, source positions, committed positions) before what it led to stands.
//! C7: nothing of a commit that failed is on its way when the work begins anew ([`Appender::append`]), so an old
//!     entry never lands behind a newer one of its key.
//! C8: nothing is appended once the loss of partitions was told. An owner that is frozen and has not heard of
//!     it may still append when it wakes up: nothing fences it, which is what this guarantee does not promise.
//! C9: within one commit nothing is appended again that is acknowledged: while something of it is refused (a right
//!     that is missing, a record above the topic's limit) the commit waits with the rest, and no child multiplies.

use std::time::Duration;

use super::{Committer, DENIED, Ended, RETRY, Setup, Work, aborted, compose};
use crate::clock;
use crate::log::{
    Append, Appender, LogError, Membership, NewRecord, OffsetCommit, Receipt, TopicPartition, Transaction,
};
use crate::progress::counts_record;
use crate::proto;

/// Between two tries to commit positions while the group is between two generations; and before the first try again
/// of what was refused.
const SOON: Duration = Duration::from_millis(20);

/// Carries commits out by acknowledgements, on a thread of its own.
pub(super) struct Acknowledged {
    setup: Setup,
    appender: Box<dyn Appender>,
    /// `<app>-progress` says already that from here on what is done is not counted.
    told: bool,
}

impl Acknowledged {
    pub(super) fn new(setup: Setup, appender: Box<dyn Appender>) -> Acknowledged {
        Acknowledged { setup, appender, told: false }
    }
}

impl Committer for Acknowledged {
    fn carry_out(&mut self, mut work: Work, losses: u64, stop: &dyn Fn() -> bool) -> Ended {
        // Counts that may be doubled would make a guess of what is settled.
        (work.outbox.counts, work.outbox.told) = Default::default();
        let Transaction { appends, offsets, membership, ends_of } =
            compose(&self.setup.topics, self.setup.output.as_ref(), work);
        let mut stages = self.stages(appends);
        if !self.told {
            stages.first.push(self.uncounted());
        }
        let give_up = || stop() || self.setup.current.losses() != losses;
        // The rest waits here until it is let in (C9). A revoke does not wait with it.
        let mut append = |mut appends: Vec<Append>| {
            let mut pause = SOON;
            loop {
                if give_up() {
                    return Err(LogError::Migrated("partitions were lost".into()));
                }
                match self.appender.append(&mut appends, &give_up) {
                    Ok(()) => return Ok(()),
                    Err(error @ LogError::Migrated(_)) => return Err(error),
                    Err(error) if self.setup.current.is_revoking() => return Err(error),
                    Err(error) => (self.setup.report)(Some(error)),
                }
                clock::sleep(pause);
                pause = DENIED.min(2 * pause);
            }
        };
        // 1. Children, sequenced events, dead letters. After a crash from here on their events are delivered
        //    again: they stand twice, or run again and are sent twice.
        // 2. Entries (C5). After a crash from here on an event whose entry stands is a duplicate or superseded,
        //    and its children are there.
        // 3. The done-set and how far the sources are sequenced (C6). After a crash from here on what they say
        //    is done does not run again; the rest does, from the committed positions on.
        let appended = append(stages.first).and_then(|()| append(stages.entries)).and_then(|()| append(stages.done));
        // 4. The committed positions (C6). After a crash from here on nothing of this runs again; the local
        //    store takes the entries from the changelog.
        let committed = appended.and_then(|()| self.commit_positions(&offsets, membership, losses, &give_up));
        (self.setup.report)(None);
        match committed {
            Ok(()) => {
                self.told = true;
                // Nothing is on its way, so everything below these ends is committed and in the overlay (protocol P11).
                let end = |of: &TopicPartition| Some((of.clone(), self.setup.log.watermarks(of).ok()?.high));
                Ended::Committed(Receipt { ends: ends_of.iter().filter_map(end).collect() })
            }
            Err(error @ LogError::Migrated(_)) => aborted("rebalance", error.to_string()),
            Err(error) => aborted("refused", error.to_string()),
        }
    }
}

/// What is appended, in the order in which it has to stand.
struct Stages {
    first: Vec<Append>,
    entries: Vec<Append>,
    done: Vec<Append>,
}

impl Acknowledged {
    fn stages(&self, appends: Vec<Append>) -> Stages {
        let topics = &self.setup.topics;
        let mut stages = Stages { first: Vec::new(), entries: Vec::new(), done: Vec::new() };
        for append in appends {
            if append.to.topic == topics.changelog {
                let is_entry = |record: &NewRecord| record.key.as_ref().is_some_and(|key| !key.is_empty());
                let (entries, bookkeeping): (Vec<_>, Vec<_>) = append.records.into_iter().partition(is_entry);
                stages.entries.push(Append { to: append.to.clone(), records: entries });
                stages.done.push(Append { to: append.to, records: bookkeeping });
            } else if append.to.topic == topics.progress {
                stages.done.push(append);
            } else {
                stages.first.push(append);
            }
        }
        for list in [&mut stages.first, &mut stages.entries, &mut stages.done] {
            list.retain(|append| !append.records.is_empty());
        }
        stages
    }

    /// Tells every later reader of the counts that they are not complete.
    fn uncounted(&self) -> Append {
        let to = TopicPartition::new(&self.setup.topics.progress, 0);
        let progress = proto::Progress { uncounted: true, last: true, ..proto::Progress::default() };
        Append { to, records: vec![counts_record(&progress)] }
    }

    /// The group goes on while this is under way: what is in here was owned throughout, or the loss would
    /// have been told, so it may be committed under the newer membership (C4).
    fn commit_positions(
        &self,
        offsets: &[OffsetCommit],
        mut membership: Membership,
        losses: u64,
        give_up: &dyn Fn() -> bool,
    ) -> Result<(), LogError> {
        let mut until = None;
        loop {
            let error = match self.setup.member.commit(offsets, &membership) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match error {
                LogError::Migrated(_) => {
                    let until = *until.get_or_insert_with(|| clock::now() + self.setup.current.patience);
                    match self.setup.current.latest(losses) {
                        Some(newer) if newer != membership => membership = newer,
                        Some(_) if !self.setup.current.is_last() && clock::now() < until => clock::sleep(SOON),
                        _ => return Err(error),
                    }
                }
                // Committed or not: the same positions again do no harm.
                LogError::Retriable(_) | LogError::Unstable(_) if !give_up() => {
                    tracing::warn!(%error, "the positions are not committed yet");
                    clock::sleep(RETRY);
                }
                error @ LogError::Unauthorized(_) if !give_up() && !self.setup.current.is_revoking() => {
                    (self.setup.report)(Some(error));
                    clock::sleep(DENIED);
                }
                error => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use bytes::Bytes;

    use super::super::{Current, Means};
    use super::*;
    use crate::bookkeeping;
    use crate::entry::Entry;
    use crate::event::{Action, Event, StampedEvent};
    use crate::log::outbox::Outbox;
    use crate::log::{Log, Member};
    use crate::task::overlay::Entries;
    use crate::topics::Topics;

    /// Takes note of what is asked of it, and fails from some call on.
    struct Notes {
        calls: Mutex<Vec<String>>,
        fails_at: usize,
        /// Each partition is refused once, after all others of the call were acknowledged.
        refuses: bool,
        refused: Mutex<Vec<String>>,
    }

    impl Notes {
        fn call(&self, what: String) -> Result<(), LogError> {
            let mut calls = self.calls.lock().unwrap();
            calls.push(what);
            if calls.len() > self.fails_at { Err(LogError::Migrated("by the test".into())) } else { Ok(()) }
        }
    }

    struct Noting(Arc<Notes>);

    impl Appender for Noting {
        fn append(&mut self, appends: &mut Vec<Append>, _give_up: &dyn Fn() -> bool) -> Result<(), LogError> {
            let mut names: Vec<_> = appends.iter().map(|append| append.to.to_string()).collect();
            names.sort();
            self.0.call(names.join(" "))?;
            let mut refused = self.0.refused.lock().unwrap();
            let next = names.into_iter().find(|name| self.0.refuses && !refused.contains(name));
            appends.retain(|append| next.as_ref() == Some(&append.to.to_string()));
            let Some(next) = next else { return Ok(()) };
            refused.push(next);
            Err(LogError::Refused("by the test".into()))
        }
    }

    impl Member for Noting {
        fn start(&self, _: TopicPartition, _: i64, _: u64) {}
        fn pause(&self, _: Vec<TopicPartition>) {}
        fn stop(&self, _: Vec<TopicPartition>) {}
        fn resume(&self, _: Vec<TopicPartition>) {}
        fn commit(&self, offsets: &[OffsetCommit], _: &Membership) -> Result<(), LogError> {
            self.0.call(format!("positions of {}", offsets[0].of))
        }
        fn leave(&self) {}
    }

    fn work() -> Work {
        let mut outbox = Outbox::new(1);
        let event = Event { key: Bytes::from_static(b"child"), action: Action::Add, payload: None };
        let event = StampedEvent { event, stamp: "1/0".parse().unwrap(), origin: Bytes::new(), retry: 0 };
        let value = outbox.encode(&event);
        outbox.route(event.event.key.clone(), value);
        outbox.counts.push(crate::counts::Count::consumed(&event.stamp, 0));
        let entry = Entry { stamp: "1".parse().unwrap(), action: Action::Add, value: None, origin: Bytes::new() };
        let entries = Entries::from_iter([(Bytes::from_static(b"parent"), Some(entry))]);
        let of = TopicPartition::new(&Arc::from("t-events-repartition"), 0);
        Work {
            number: 1,
            outbox,
            changes: vec![(0, Arc::new(entries), Some(bookkeeping::encode(5, 5, &[], None)))],
            runs: Vec::new(),
            sources: vec![proto::SourcePosition { topic: "events".into(), position: 7, ..Default::default() }],
            offsets: vec![OffsetCommit { of, position: 5, metadata: String::new() }],
            membership: Membership(Bytes::new()),
            ends_of: Vec::new(),
        }
    }

    /// The calls of a commit that fails at call number `fails_at`, and whether it is committed.
    fn carried_out(fails_at: usize, losses: u64) -> (Vec<String>, bool) {
        carry_out(Notes { calls: Mutex::default(), fails_at, refuses: false, refused: Mutex::default() }, losses)
    }

    fn carry_out(notes: Notes, losses: u64) -> (Vec<String>, bool) {
        let notes = Arc::new(notes);
        let folder = tempfile::tempdir().unwrap();
        let log: Arc<dyn Log> =
            Arc::new(crate::log::embedded::EmbeddedLog::open(folder.path(), Default::default()).unwrap());
        let setup = Setup {
            log,
            topics: Topics::new("t", &["events".into()]),
            group: "t".into(),
            producer_id: "t-plain".into(),
            member: Arc::new(Noting(Arc::clone(&notes))),
            current: Arc::new(Current::default()),
            output: None,
            report: Box::new(|_| {}),
        };
        let mut committer = Means::Acknowledgements(Box::new(Noting(Arc::clone(&notes)))).committer(setup);
        let ended = committer.carry_out(work(), losses, &|| false);
        let calls = std::mem::take(&mut *notes.calls.lock().unwrap());
        (calls, matches!(ended, Ended::Committed(_)))
    }

    /// C5, C6: children before entries before what is done before positions; nothing goes on after a failure.
    #[test]
    fn each_stage_stands_before_the_next_begins() {
        let stages = [
            "t-events-repartition-0 t-progress-0",
            "t-state-changelog-0",
            "t-progress-0 t-state-changelog-0",
            "positions of t-events-repartition-0",
        ];
        assert_eq!(carried_out(9, 0), (stages.map(String::from).to_vec(), true));
        for fails_at in 0..4 {
            assert_eq!(carried_out(fails_at, 0), (stages[..=fails_at].iter().map(|s| s.to_string()).collect(), false));
        }
    }

    /// C9: of what is refused only the rest is appended again.
    #[test]
    fn what_is_acknowledged_is_not_appended_again() {
        let notes = Notes { calls: Mutex::default(), fails_at: 99, refuses: true, refused: Mutex::default() };
        let (calls, committed) = carry_out(notes, 0);
        let expected = [
            // The first refuses one of the two, the second takes it.
            "t-events-repartition-0 t-progress-0",
            "t-events-repartition-0",
            "t-state-changelog-0",
            "t-state-changelog-0",
            "t-progress-0 t-state-changelog-0",
            "t-progress-0",
            "positions of t-events-repartition-0",
        ];
        assert_eq!((calls, committed), (expected.map(String::from).to_vec(), true));
    }

    /// C8.
    #[test]
    fn nothing_is_appended_after_a_loss() {
        assert_eq!(carried_out(9, 1), (Vec::new(), false));
    }
}
