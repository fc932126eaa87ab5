//! Whether the application's own topics still hold what it has written to them.
//!
//! Y1: a topic whose records cannot be made again is refused when it is gone, or was created anew, after events were
//!     sequenced: an empty one would be taken for the state of an application that has just begun.
//! Y2: `<app>-progress` tells the topics by their ids before anything else is written, so where it is empty itself
//!     nothing of ours is committed, or it is not the topic that it was.

use super::commit::Mark;
use crate::log::{Append, Committed, Log, LogError, TopicDescription, TopicPartition};
use crate::progress::{Break, History, counts_record};
use crate::proto;
use crate::topics::Topics;

/// What an operator can do about it.
const NEXT: &str = "put back the cluster's (or the embedded log's) data of before, or start over from what the source \
                    topics hold: tidegate reset";

/// The topics that Y1 speaks of, as they are now.
pub(super) struct Kept<'a> {
    topics: &'a Topics,
    found: Vec<(&'a str, Option<&'a str>)>,
}

impl<'a> Kept<'a> {
    /// Those among `names`; `found` are their descriptions.
    pub(super) fn of(topics: &'a Topics, names: &[&'a str], found: &'a [Option<TopicDescription>]) -> Kept<'a> {
        let all = names.iter().zip(found).map(|(name, found)| (*name, found.as_ref().map(|found| &*found.id)));
        let kept = all.filter(|(name, _)| *name != &*topics.dead_letter && *name != &*topics.progress);
        Kept { topics, found: kept.collect() }
    }

    /// Whether they are those that the history tells of (Y1).
    pub(super) fn check(&self, history: &History) -> Result<(), Break> {
        for (name, id) in self.found.iter().filter(|_| history.has_run()) {
            let what = match *name {
                name if *name == *self.topics.changelog => "the state",
                name if *name == *self.topics.order => "the order received",
                _ => "the events on their way",
            };
            let told = history.topic_id(name);
            // An older version has told no ids; and an order that was never needed may be missing.
            let was_there = told.is_some() || **name != *self.topics.order;
            match (told, id) {
                (Some(told), Some(id)) if told != *id => {
                    return Err(Break(format!(
                        "topic {name:?} is not the one that this application has written to: it was deleted and created \
                         again, and {what} that it held is gone; {NEXT}"
                    )));
                }
                (_, None) if was_there => {
                    return Err(Break(format!("topic {name:?} is gone, and with it {what}; {NEXT}")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Tells their ids, where the history does not (Y2).
    pub(super) fn tell(&self, log: &dyn Log, history: &History) -> Result<(), LogError> {
        if self.found.iter().all(|(name, id)| history.topic_id(name) == *id) {
            return Ok(());
        }
        let told = self.found.iter().filter_map(|(name, id)| {
            id.map(|id| proto::TopicId { topic: (*name).to_owned(), topic_id: id.to_owned() })
        });
        let progress = proto::Progress { topics: told.collect(), last: true, ..proto::Progress::default() };
        let to = TopicPartition::new(&self.topics.progress, 0);
        log.append(Append { to, records: vec![counts_record(&progress)] }).map(drop)
    }
}

/// Why a history that is empty cannot be so (Y2), if there is a reason: `partitions` are those that the group commits
/// positions of.
pub(super) fn why_not_empty(
    log: &dyn Log,
    group: &str,
    topics: &Topics,
    partitions: &[TopicPartition],
) -> Result<Option<Break>, LogError> {
    let committed = log.committed(group, partitions, false)?;
    let is_ours = |at: &Committed| at.position > 0 && Mark::parse(&at.metadata).is_some();
    let mut all = partitions.iter().zip(committed);
    let found = all.find(|(_, at)| at.as_ref().is_some_and(is_ours));
    Ok(found.map(|(of, _)| Break(format!(
        "topic {:?} is empty, but this application has processed events of {of}: it was deleted, and how far the sources \
         were sequenced is gone with it; {NEXT}",
        &*topics.progress
    ))))
}
