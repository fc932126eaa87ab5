//! The ends with which marks are told.

use crate::instance::topology::source_partitions;
use crate::log::{Log, LogError};
use crate::proto;
use crate::topics::Topics;

/// Gives each mark the ends that all source partitions have now: what was sent before the mark was read lies below them,
/// also what is not readable yet because a transaction is undecided.
///
/// # Errors
/// What the log says: then no mark may be told.
pub(super) fn tell(log: &dyn Log, topics: &Topics, marks: &mut [proto::Mark]) -> Result<(), LogError> {
    if marks.is_empty() {
        return Ok(());
    }
    let end = |of: crate::log::TopicPartition| {
        let end = log.watermarks(&of)?.high;
        Ok(proto::End { topic: of.topic.to_string(), partition: of.partition, end })
    };
    let ends: Vec<proto::End> =
        source_partitions(log, topics)?.into_iter().map(end).collect::<Result<_, LogError>>()?;
    marks.iter_mut().for_each(|mark| mark.ends.clone_from(&ends));
    Ok(())
}
