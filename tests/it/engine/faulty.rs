//! The embedded log with commits that now and then do not end well.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use tidegate::log::embedded::EmbeddedLog;
use tidegate::log::{
    Append, CommitError, Committed, EventSink, Isolation, Join, Log, LogError, Member, NewTopic, Producer, Reader,
    Receipt, Record, TopicDescription, TopicPartition, Transaction, Watermarks,
};

/// What commits come to, drawn from a seed.
pub struct Faults {
    rng: Mutex<Rng>,
    percent: u32,
}

impl Faults {
    /// So many of a hundred commits do not end well.
    pub fn new(seed: u64, percent: u32) -> Arc<Faults> {
        Arc::new(Faults { rng: Mutex::new(Rng::with_seed(seed)), percent })
    }

    fn draw(&self) -> Option<u32> {
        let mut rng = self.rng.lock().unwrap();
        (rng.u32(..100) < self.percent).then(|| rng.u32(..4))
    }
}

/// The log of a test.
pub struct FaultyLog {
    /// The log itself.
    pub inner: EmbeddedLog,
    /// What befalls it.
    pub faults: Arc<Faults>,
}

struct FaultyProducer {
    inner: Box<dyn Producer>,
    faults: Arc<Faults>,
}

impl Producer for FaultyProducer {
    fn commit(&mut self, transaction: &Transaction) -> Result<Receipt, CommitError> {
        match self.faults.draw() {
            None => self.inner.commit(transaction),
            Some(0) => Err(CommitError::Aborted("by chance".into())),
            Some(1) => Err(CommitError::Fenced("by chance".into())),
            Some(2) => Err(CommitError::Unknown("by chance, and not committed".into())),
            Some(_) => {
                self.inner.commit(transaction)?;
                Err(CommitError::Unknown("by chance, and committed".into()))
            }
        }
    }

    fn recover(&mut self) -> Result<(), LogError> {
        self.inner.recover()
    }
}

/// All records from `position` on.
pub fn read(log: &dyn Log, of: &TopicPartition, position: i64) -> Vec<Record> {
    let end = log.watermarks(of).unwrap().high;
    let mut reader = log.reader(of, position, Isolation::ReadCommitted, true).unwrap();
    let mut all = Vec::new();
    while reader.position() < end {
        all.extend(reader.next(Duration::ZERO).unwrap());
    }
    all
}

impl Log for FaultyLog {
    fn join(&self, join: Join, sink: EventSink) -> Result<Arc<dyn Member>, LogError> {
        self.inner.join(join, sink)
    }

    fn producer(&self, id: &str) -> Result<Box<dyn Producer>, LogError> {
        Ok(Box::new(FaultyProducer { inner: self.inner.producer(id)?, faults: Arc::clone(&self.faults) }))
    }

    fn fence(&self, id: &str) -> Result<(), LogError> {
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
        self.inner.reader(of, at, sees, headers)
    }

    fn watermarks(&self, of: &TopicPartition) -> Result<Watermarks, LogError> {
        self.inner.watermarks(of)
    }

    fn committed(&self, group: &str, of: &[TopicPartition], stable: bool) -> Result<Vec<Option<Committed>>, LogError> {
        self.inner.committed(group, of, stable)
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
