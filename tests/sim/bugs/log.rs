//! At the log: what is read, where partitions end, what is committed, who is fenced.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidegate::bookkeeping;
use tidegate::instance::commit::Mark;
use tidegate::log::{
    Append, Appender, Committed, EventSink, Isolation, Join, Log, LogError, Member, NewTopic, Producer, Reader, Record,
    TopicDescription, TopicPartition, Watermarks,
};

use super::appender::BuggyAppender;
use super::producer::BuggyProducer;
use super::{Bug, Planted};

/// A log that does not quite keep to its contract.
pub(super) struct BuggyLog {
    pub(super) inner: Arc<dyn Log>,
    /// It is the observer's.
    pub(super) observes: bool,
    pub(super) planted: Arc<Planted>,
}

/// Changes what it has read.
struct BuggyReader {
    inner: Box<dyn Reader>,
    change: fn(&mut Vec<Record>),
}

impl Reader for BuggyReader {
    fn next(&mut self, timeout: Duration) -> Result<Vec<Record>, LogError> {
        let mut records = self.inner.next(timeout)?;
        (self.change)(&mut records);
        Ok(records)
    }

    fn position(&self) -> i64 {
        self.inner.position()
    }
}

/// Nothing is done beyond the position.
fn without_done(records: &mut [Record]) {
    for record in records.iter_mut().filter(|record| record.key.as_ref().is_some_and(Bytes::is_empty)) {
        let known = record.value.take().and_then(|value| bookkeeping::decode(value).ok());
        record.value = known.map(|known| bookkeeping::encode(known.position, known.done_base, &[], known.horizon));
    }
}

impl BuggyLog {
    /// Where undecided transactions begin; a reader with faults would have their markers come.
    fn stable_end(&self, of: &TopicPartition, low: i64) -> Result<i64, LogError> {
        let mut reader = self.planted.sim.inner.reader(of, low, Isolation::ReadCommitted, false)?;
        loop {
            let before = reader.position();
            reader.next(Duration::ZERO)?;
            if reader.position() == before {
                return Ok(before);
            }
        }
    }

    /// The own mark, as if it was that of the commit under way.
    fn as_if_of_now(&self, committed: Committed) -> Committed {
        let number = self.planted.state().number;
        let metadata = Mark::parse(&committed.metadata).map(|mark| Mark { number, ..mark }.to_string());
        Committed { metadata: metadata.unwrap_or_default(), ..committed }
    }
}

impl Log for BuggyLog {
    fn join(&self, join: Join, sink: EventSink) -> Result<Arc<dyn Member>, LogError> {
        self.inner.join(join, sink)
    }

    fn producer(&self, id: &str) -> Result<Box<dyn Producer>, LogError> {
        let inner = self.inner.producer(id)?;
        Ok(Box::new(BuggyProducer { inner, planted: Arc::clone(&self.planted), in_doubt: false }))
    }

    fn appender(&self, name: &str) -> Result<Box<dyn Appender>, LogError> {
        Ok(Box::new(BuggyAppender { inner: self.inner.appender(name)?, planted: Arc::clone(&self.planted) }))
    }

    fn fence(&self, id: &str) -> Result<(), LogError> {
        if self.planted.is(Bug::DeadNotFenced) { Ok(()) } else { self.inner.fence(id) }
    }

    fn append(&self, mut append: Append) -> Result<Vec<i64>, LogError> {
        if self.observes {
            let position = self.planted.misread(&mut append);
            if self.planted.is(Bug::PurgedUnread) {
                self.inner.purge(&[(append.to.clone(), position)])?;
            }
        }
        self.inner.append(append)
    }

    fn reader(
        &self,
        of: &TopicPartition,
        at: i64,
        sees: Isolation,
        headers: bool,
    ) -> Result<Box<dyn Reader>, LogError> {
        let topics = &self.planted.topics;
        let (is_changelog, is_progress) = (of.topic == topics.changelog, of.topic == topics.progress);
        match self.planted.bug {
            Some(Bug::ObservesUncommitted) if self.observes => {
                self.inner.reader(of, at, Isolation::ReadUncommitted, headers)
            }
            Some(Bug::RestoresUncommitted) if is_changelog => {
                self.inner.reader(of, at, Isolation::ReadUncommitted, headers)
            }
            Some(Bug::DoneSetIgnored) if is_changelog => Ok(Box::new(BuggyReader {
                inner: self.inner.reader(of, at, sees, headers)?,
                change: |records| without_done(records),
            })),
            Some(Bug::TombstonesIgnored) if is_changelog => Ok(Box::new(BuggyReader {
                inner: self.inner.reader(of, at, sees, headers)?,
                change: |records| records.retain(|record| record.value.is_some()),
            })),
            Some(Bug::PositionsExpire) if is_progress => {
                Ok(Box::new(BuggyReader { inner: self.inner.reader(of, at, sees, headers)?, change: Vec::clear }))
            }
            _ => self.inner.reader(of, at, sees, headers),
        }
    }

    fn watermarks(&self, of: &TopicPartition) -> Result<Watermarks, LogError> {
        let ends = self.inner.watermarks(of)?;
        let topics = &self.planted.topics;
        let high = match self.planted.bug {
            Some(Bug::RestoresToStable) if of.topic == topics.changelog => self.stable_end(of, ends.low)?,
            Some(Bug::JudgedAlone) if topics.sources.contains(&of.topic) => ends.low,
            _ => ends.high,
        };
        Ok(Watermarks { high, ..ends })
    }

    fn committed(&self, group: &str, of: &[TopicPartition], stable: bool) -> Result<Vec<Option<Committed>>, LogError> {
        let stable = stable && !self.planted.is(Bug::UnstableTaken);
        let committed = self.inner.committed(group, of, stable)?;
        if !self.planted.is(Bug::AnyMarkDecides) {
            return Ok(committed);
        }
        Ok(committed.into_iter().map(|committed| Some(self.as_if_of_now(committed?))).collect())
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
