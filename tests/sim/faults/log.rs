//! The embedded log with the faults in between.

use std::sync::Arc;
use std::time::Duration;

use tidegate::clock;
use tidegate::log::embedded::EmbeddedLog;
use tidegate::log::{
    Append, Appender, Committed, EventSink, Isolation, Join, Log, LogError, Member, NewTopic, Producer, Reader, Record,
    TopicDescription, TopicPartition, Watermarks,
};

use super::Shared;
use super::commits::{SimAppender, SimProducer};
use super::points::Point;
use crate::sometimes::{self, reached};

/// The log of a seed.
pub struct SimLog {
    /// The log itself.
    pub inner: Arc<EmbeddedLog>,
    /// What befalls it.
    pub shared: Shared,
}

impl SimLog {
    /// Stands before `inner`.
    pub fn new(inner: EmbeddedLog, shared: Shared) -> SimLog {
        let inner = Arc::new(inner);
        shared.opened(&inner);
        SimLog { inner, shared }
    }
}

/// A reader who waits sees late markers come.
struct SimReader {
    inner: Box<dyn Reader>,
    of: TopicPartition,
    shared: Shared,
}

impl Reader for SimReader {
    fn next(&mut self, timeout: Duration) -> Result<Vec<Record>, LogError> {
        let is_changelog = self.of.topic.ends_with("-state-changelog");
        if is_changelog && self.shared.dies_at(Point::InRestore) {
            return Err(LogError::Retriable("its process dies".into()));
        }
        let records = self.inner.next(Duration::ZERO)?;
        let waits = records.is_empty() && self.shared.end(&self.of).is_some_and(|end| end > self.inner.position());
        if waits && self.shared.markers_are_late() {
            if is_changelog {
                reached(sometimes::LATE_MARKER_RESTORE);
            }
            self.shared.one_marker();
        } else if records.is_empty() {
            clock::sleep(timeout);
        }
        Ok(records)
    }

    fn position(&self) -> i64 {
        self.inner.position()
    }
}

impl Log for SimLog {
    fn join(&self, join: Join, sink: EventSink) -> Result<Arc<dyn Member>, LogError> {
        self.inner.join(join, sink)
    }

    fn producer(&self, id: &str) -> Result<Box<dyn Producer>, LogError> {
        let epoch = self.shared.holds(id);
        let (inner, id, shared) = (self.inner.producer(id)?, id.to_owned(), self.shared.clone());
        Ok(Box::new(SimProducer { inner, id, epoch, shared, in_doubt: false }))
    }

    fn appender(&self, name: &str) -> Result<Box<dyn Appender>, LogError> {
        Ok(Box::new(SimAppender { inner: self.inner.appender(name)?, shared: self.shared.clone() }))
    }

    fn fence(&self, id: &str) -> Result<(), LogError> {
        self.shared.markers_of(id);
        self.shared.holds(id);
        self.inner.fence(id)
    }

    fn append(&self, append: Append) -> Result<Vec<i64>, LogError> {
        self.inner.append(append)
    }

    fn reader(
        &self,
        of: &TopicPartition,
        at: i64,
        sees: Isolation,
        headers: bool,
    ) -> Result<Box<dyn Reader>, LogError> {
        let inner = self.inner.reader(of, at, sees, headers)?;
        Ok(Box::new(SimReader { inner, of: of.clone(), shared: self.shared.clone() }))
    }

    fn watermarks(&self, of: &TopicPartition) -> Result<Watermarks, LogError> {
        self.inner.watermarks(of)
    }

    fn committed(&self, group: &str, of: &[TopicPartition], stable: bool) -> Result<Vec<Option<Committed>>, LogError> {
        let committed = self.inner.committed(group, of, stable);
        if let Err(LogError::Unstable(_)) = &committed {
            reached(sometimes::LATE_MARKER_CLAIM);
            self.shared.one_marker();
        }
        committed
    }

    fn describe(&self, names: &[&str]) -> Result<Vec<Option<TopicDescription>>, LogError> {
        self.inner.describe(names)
    }

    fn create(&self, topics: &[NewTopic]) -> Result<(), LogError> {
        self.inner.create(topics)
    }

    fn purge(&self, before: &[(TopicPartition, i64)]) -> Result<(), LogError> {
        self.inner.purge(before)
    }

    fn delete_topics(&self, names: &[&str]) -> Result<(), LogError> {
        self.inner.delete_topics(names)
    }

    fn members_of(&self, group: &str) -> Result<Vec<String>, LogError> {
        self.inner.members_of(group)
    }

    fn delete_group(&self, group: &str) -> Result<(), LogError> {
        self.inner.delete_group(group)
    }
}
