//! What observers of `<app>-progress` have between them and the log: records come in portions, and who writes a
//! snapshot may die in the middle of it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tidegate::frontier::{Book, Standing};
use tidegate::instance::observer::{Observer, Place, Reading};
use tidegate::instance::settling::Judging;
use tidegate::log::{
    Append, Appender, Committed, EventSink, Isolation, Join, Log, LogError, Member, NewTopic, Producer, Reader, Record,
    TopicDescription, TopicPartition, Watermarks,
};
use tidegate::marks::Known;
use tidegate::stamp::Stamp;
use tidegate::topics::KIND;

use super::bugs::Planted;
use super::checks::read;
use super::faults::Shared;
use super::faults::log::SimLog;
use super::sometimes::{self, reached};
use super::timeline::note;

/// One observer: what it knows, and how it is set.
pub struct Observing {
    /// `<app>-progress`
    pub of: TopicPartition,
    /// What keys were found to hold, and nobody was told yet.
    pub found: BTreeMap<Bytes, (Judging, Stamp)>,
    /// No snapshots: somebody else reads from the beginning, and to the end.
    pub keeps: bool,
    observer: Arc<Observer>,
    place: Place,
    rng: Rng,
    writer: String,
    every: i64,
    runs_per_part: usize,
}

impl Observing {
    /// It knows nothing.
    pub fn new(of: TopicPartition, seed: u64) -> Observing {
        let mut rng = Rng::with_seed(seed);
        let (every, runs_per_part) = (rng.i64(3..40), rng.usize(1..5));
        let writer = format!("observer {seed}");
        let (found, observer, place) = (BTreeMap::new(), Arc::default(), Place::default());
        Observing { of, found, keeps: false, observer, place, rng, writer, every, runs_per_part }
    }

    /// Another one in its place, which knows nothing.
    pub fn anew(&self, seed: u64) -> Observing {
        Observing { keeps: self.keeps, ..Observing::new(self.of.clone(), seed) }
    }

    /// The position below which everything is known.
    pub fn position(&self) -> i64 {
        self.place.position()
    }

    /// Others look at what it knows, too.
    pub fn observer(&self) -> Arc<Observer> {
        Arc::clone(&self.observer)
    }

    /// What it knows.
    pub fn standing(&self) -> Standing {
        self.observer.standing()
    }

    /// All that it knows.
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.observer.book()
    }

    /// It looks once for what is new; `known` takes what it tells engines. Whoever owns partition 0 writes snapshots; that
    /// others do is no harm.
    pub fn look(&mut self, log: &Arc<SimLog>, planted: &Arc<Planted>, known: &dyn Fn(Known)) -> Result<(), LogError> {
        let writes = self.rng.u32(..4) > 0 && !self.keeps;
        let purges = self.rng.u32(..4) > 0;
        let from = self.position();
        let low = log.watermarks(&self.of)?.low;
        let (log, rng) = (Arc::clone(log), Mutex::new(self.rng.fork()));
        let log = planted.observed(Arc::new(Watched { shared: log.shared.clone(), log, rng }));
        let reading = Reading {
            observer: &self.observer,
            log: log.as_ref(),
            of: self.of.clone(),
            writer: self.writer.clone(),
            every: self.every,
            runs_per_part: self.runs_per_part,
            writes: &|| writes,
            purges,
            announcing: None,
            tell_horizon: &|_| {},
            known,
            report: &|_| {},
            crowded: &|_| {},
            stopping: &|| false,
        };
        reading.step(&mut self.place)?;
        if from < low && self.place.position() >= low {
            note(format!("an observer begins with a snapshot at {}", self.place.position()));
            reached(sometimes::SNAPSHOT_BEGUN);
        }
        Ok(())
    }
}

/// The log as an observer has it.
struct Watched {
    log: Arc<SimLog>,
    shared: Shared,
    rng: Mutex<Rng>,
}

impl Watched {
    fn rng(&self) -> MutexGuard<'_, Rng> {
        self.rng.lock().expect("nothing panics while it is held")
    }
}

/// Gives some records at a time, as a consumer may, and never waits.
struct Portions {
    inner: Box<dyn Reader>,
    of: TopicPartition,
    shared: Shared,
    rng: Rng,
    ready: VecDeque<Record>,
}

impl Reader for Portions {
    fn next(&mut self, _: Duration) -> Result<Vec<Record>, LogError> {
        if self.rng.u32(..200) == 0 {
            reached(sometimes::OBSERVER_FAILS);
            return Err(LogError::Unauthorized("by chance".into()));
        }
        if self.ready.is_empty() {
            self.ready = self.inner.next(Duration::ZERO)?.into();
        }
        if self.ready.is_empty() {
            let waits = self.shared.end(&self.of).is_some_and(|end| end > self.inner.position());
            if waits && self.shared.markers_are_late() {
                reached(sometimes::LATE_MARKER_OBSERVED);
            }
            return Ok(Vec::new());
        }
        let all = self.ready.len();
        let count = if self.rng.bool() { all } else { self.rng.usize(1..=all) };
        let records: Vec<Record> = self.ready.drain(..count).collect();
        if records.iter().any(|record| is_snapshot(&record.headers)) {
            reached(sometimes::SNAPSHOT_READ);
        }
        Ok(records)
    }

    fn position(&self) -> i64 {
        self.ready.front().map_or(self.inner.position(), |record| record.offset)
    }
}

/// Whether a record of `<app>-progress` is a part of a snapshot.
pub fn is_snapshot(headers: &[(String, Bytes)]) -> bool {
    headers.iter().any(|(name, kind)| name == KIND && kind == "snapshot")
}

impl Log for Watched {
    fn join(&self, join: Join, sink: EventSink) -> Result<Arc<dyn Member>, LogError> {
        self.log.join(join, sink)
    }

    fn producer(&self, id: &str) -> Result<Box<dyn Producer>, LogError> {
        self.log.producer(id)
    }

    fn appender(&self, name: &str) -> Result<Box<dyn Appender>, LogError> {
        self.log.appender(name)
    }

    fn fence(&self, id: &str) -> Result<(), LogError> {
        self.log.fence(id)
    }

    /// Who writes a snapshot may die after some of its parts.
    fn append(&self, mut append: Append) -> Result<Vec<i64>, LogError> {
        let count = append.records.len();
        reached(sometimes::SNAPSHOT_WRITTEN);
        note(format!("a snapshot of {count} parts is written"));
        if count == 1 || self.rng().u32(..4) > 0 {
            return self.log.append(append);
        }
        reached(sometimes::SNAPSHOT_CUT);
        append.records.truncate(self.rng().usize(1..count));
        self.log.append(append)?;
        Err(LogError::Retriable("it dies in the middle of a snapshot".into()))
    }

    fn reader(
        &self,
        of: &TopicPartition,
        at: i64,
        sees: Isolation,
        headers: bool,
    ) -> Result<Box<dyn Reader>, LogError> {
        let inner = self.log.inner.reader(of, at, sees, headers)?;
        let (rng, shared) = (self.rng().fork(), self.shared.clone());
        Ok(Box::new(Portions { inner, of: of.clone(), shared, rng, ready: VecDeque::new() }))
    }

    fn watermarks(&self, of: &TopicPartition) -> Result<Watermarks, LogError> {
        self.log.watermarks(of)
    }

    fn committed(&self, group: &str, of: &[TopicPartition], stable: bool) -> Result<Vec<Option<Committed>>, LogError> {
        self.log.committed(group, of, stable)
    }

    fn describe(&self, names: &[&str]) -> Result<Vec<Option<TopicDescription>>, LogError> {
        self.log.describe(names)
    }

    fn create(&self, topics: &[NewTopic]) -> Result<(), LogError> {
        self.log.create(topics)
    }

    /// What is deleted is kept for those who check.
    fn purge(&self, before: &[(TopicPartition, i64)]) -> Result<(), LogError> {
        for (of, before) in before {
            let low = self.log.watermarks(of)?.low;
            let gone = read(&self.log.inner, of, low).into_iter().take_while(|record| record.offset < *before);
            self.shared.purged(gone);
            if low < *before {
                note(format!("{of} is deleted below {before}"));
                reached(sometimes::PURGED);
            }
        }
        self.log.purge(before)
    }

    fn delete_topics(&self, names: &[&str]) -> Result<(), LogError> {
        self.log.delete_topics(names)
    }

    fn members_of(&self, group: &str) -> Result<Vec<String>, LogError> {
        self.log.members_of(group)
    }

    fn delete_group(&self, group: &str) -> Result<(), LogError> {
        self.log.delete_group(group)
    }
}
