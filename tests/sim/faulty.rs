//! The embedded log with commits that now and then do not end well.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use tidegate::log::embedded::EmbeddedLog;
use tidegate::log::{
    Append, Appender, CommitError, Committed, EventSink, Isolation, Join, Log, LogError, Member, Membership, NewTopic,
    OffsetCommit, Producer, Reader, Receipt, Record, TopicDescription, TopicPartition, Transaction, Watermarks,
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

/// A transaction's entries come in the order of a hash map, which no seed decides: here they come by key, the
/// bookkeeping (the empty key) last, as ever.
fn by_key(append: &Append) -> Append {
    let mut records = append.records.clone();
    if append.to.topic.ends_with("-state-changelog") || &*append.to.topic == "out" {
        records.sort_by_key(|record| {
            let key = record.key.clone().unwrap_or_default();
            (key.is_empty(), key)
        });
    }
    Append { to: append.to.clone(), records }
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
        let transaction = &Transaction {
            appends: transaction.appends.iter().map(by_key).collect(),
            offsets: transaction.offsets.clone(),
            membership: transaction.membership.clone(),
            ends_of: transaction.ends_of.clone(),
        };
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

struct FaultyAppender {
    inner: Box<dyn Appender>,
    faults: Arc<Faults>,
}

impl Appender for FaultyAppender {
    /// What fails has appended nothing, all, or some first records of each partition. It is refused and tried again, or
    /// given up.
    fn append(&mut self, appends: &mut Vec<Append>, give_up: &dyn Fn() -> bool) -> Result<(), LogError> {
        appends.iter_mut().for_each(|append| *append = by_key(append));
        let mut part = match self.faults.draw() {
            None => return self.inner.append(appends, give_up),
            Some(0) => Vec::new(),
            Some(1) => appends.to_vec(),
            Some(_) => {
                let mut rng = self.faults.rng.lock().unwrap();
                let some = |append: &Append| {
                    let count = rng.usize(..=append.records.len());
                    Append { to: append.to.clone(), records: append.records[..count].to_vec() }
                };
                appends.iter().map(some).filter(|append| !append.records.is_empty()).collect()
            }
        };
        let counts: Vec<_> = part.iter().map(|append| (append.to.clone(), append.records.len())).collect();
        self.inner.append(&mut part, give_up)?;
        if self.faults.rng.lock().unwrap().u32(..4) > 0 {
            return Err(LogError::Migrated("by chance".into()));
        }
        for (to, count) in counts {
            appends.iter_mut().filter(|append| append.to == to).for_each(|append| drop(append.records.drain(..count)));
        }
        appends.retain(|append| !append.records.is_empty());
        Err(LogError::Refused("by chance".into()))
    }
}

/// A member whose plain commits now and then do not end well; only a committer has it.
pub struct FaultyMember {
    /// The member itself.
    pub inner: Arc<dyn Member>,
    /// What befalls it.
    pub faults: Arc<Faults>,
}

impl Member for FaultyMember {
    fn start(&self, of: TopicPartition, position: i64, epoch: u64) {
        self.inner.start(of, position, epoch);
    }

    fn pause(&self, partitions: Vec<TopicPartition>) {
        self.inner.pause(partitions);
    }

    fn resume(&self, partitions: Vec<TopicPartition>) {
        self.inner.resume(partitions);
    }

    fn stop(&self, partitions: Vec<TopicPartition>) {
        self.inner.stop(partitions);
    }

    fn commit(&self, offsets: &[OffsetCommit], membership: &Membership) -> Result<(), LogError> {
        match self.faults.draw() {
            Some(0) => Err(LogError::Migrated("by chance".into())),
            Some(1) => Err(LogError::Fatal("by chance".into())),
            _ => self.inner.commit(offsets, membership),
        }
    }

    fn leave(&self) {
        self.inner.leave();
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

    fn appender(&self, name: &str) -> Result<Box<dyn Appender>, LogError> {
        Ok(Box::new(FaultyAppender { inner: self.inner.appender(name)?, faults: Arc::clone(&self.faults) }))
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
