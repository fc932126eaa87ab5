//! Reads `<app>-progress` beside the engine threads, so that every instance knows by itself what is settled.
//!
//! W1: what is told is of a prefix of the topic: late perhaps, never early, and the frontier never goes back.
//! W2: those who wait are asked again whenever something has changed; nothing is polled.
//! W3: what lies below a snapshot is deleted only when that was read back, committed (protocol P21).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::awaited::Awaited;
use crate::clock;
use crate::frontier::snapshot::{self, Assembly};
use crate::frontier::{Book, Root, Standing, Verdict};
use crate::log::{Append, Isolation, Log, LogError, Reader, TopicPartition};
use crate::metrics;
use crate::progress::{self, Told, snapshot_record};
use crate::retry::Retry;

/// How long one look for new records lasts.
const LOOK: Duration = Duration::from_millis(100);

/// The pause after an error.
const RETRY: Duration = Duration::from_secs(1);

/// A root that holds the frontier for so long is told in the log, and again each time so long.
const STUCK: Duration = Duration::from_secs(600);

/// A snapshot is written after so many records: whoever starts has at most about twice as many to read.
pub(super) const SNAPSHOT_EVERY: i64 = 20_000;

/// What an instance knows of the application's progress.
#[derive(Debug)]
pub(super) struct Observer {
    book: Mutex<Book>,
    told: watch::Sender<Standing>,
    awaited: Awaited,
}

impl Default for Observer {
    fn default() -> Observer {
        Observer { book: Mutex::default(), told: watch::Sender::new(Standing::default()), awaited: Awaited::default() }
    }
}

impl Observer {
    /// What is known now.
    pub(super) fn standing(&self) -> Standing {
        self.told.borrow().clone()
    }

    /// What is known of one root.
    pub(super) fn root(&self, sequence: u64) -> Option<Root> {
        self.book().root(sequence)
    }

    /// What was read so far.
    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when `done` says so of the book; asked again after each change (W2).
    pub(super) async fn wait(&self, mut done: impl FnMut(&Book) -> bool) {
        let mut told = self.told.subscribe();
        loop {
            told.mark_unchanged();
            if done(&self.book()) {
                return;
            }
            if told.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Tells what becomes of a retry as soon as its open record was read, with the greatest number of a retry of its
    /// sequence and generation.
    pub(super) fn decide(&self, retry: Retry, reply: impl FnOnce(Verdict, u32) + Send + 'static) {
        self.awaited.ask(&self.book(), retry, reply);
    }

    fn publish(&self, book: MutexGuard<'_, Book>) {
        let standing = book.standing();
        self.awaited.tell(&book);
        drop(book);
        metrics::frontier(standing.frontier, standing.unsettled);
        debug_assert!(standing.frontier >= self.told.borrow().frontier || standing.unavailable.is_some(), "W1");
        self.told.send_replace(standing);
    }
}

/// What the reading of progress needs.
pub(super) struct Reading<'a> {
    /// Where it is kept.
    pub(super) observer: &'a Observer,
    /// The log.
    pub(super) log: &'a dyn Log,
    /// `<app>-progress`
    pub(super) of: TopicPartition,
    /// Names this instance in its snapshots.
    pub(super) writer: String,
    /// A snapshot is written after so many records.
    pub(super) every: i64,
    /// Whether this instance is the one that writes snapshots: that more do is no harm.
    pub(super) writes: &'a dyn Fn() -> bool,
    /// Whether what lies below a snapshot is deleted.
    pub(super) purges: bool,
    /// Takes what keeps it from reading; `None` = nothing.
    pub(super) report: &'a dyn Fn(Option<LogError>),
    /// Whether the instance stops.
    pub(super) stopping: &'a dyn Fn() -> bool,
}

impl Reading<'_> {
    /// Reads on until the instance stops.
    pub(super) fn run(&self) {
        let mut position = 0;
        let mut stuck = Stuck::default();
        while !(self.stopping)() {
            let Err(error) = self.follow(&mut position, &mut stuck) else { return };
            tracing::warn!("what is settled is not known for the moment: {error}");
            (self.report)(Some(error));
            clock::sleep(RETRY);
        }
    }

    fn follow(&self, position: &mut i64, stuck: &mut Stuck) -> Result<(), LogError> {
        let low = self.log.watermarks(&self.of)?.low;
        if *position < low {
            *position = self.begin_at(low)?;
        }
        let mut reader = self.log.reader(&self.of, *position, Isolation::ReadCommitted, true)?;
        let mut assembly = Assembly::default();
        let mut answered = false;
        // Where the last snapshot stands, as far as it is known, and where this instance has written one.
        let mut last = *position;
        while !(self.stopping)() {
            let complete = self.look(reader.as_mut(), &mut assembly)?;
            *position = reader.position();
            if !std::mem::replace(&mut answered, true) {
                (self.report)(None);
            }
            if let Some(complete) = complete {
                last = last.max(complete);
                if self.purges && (self.writes)() {
                    self.log.purge(&[(self.of.clone(), complete)])?; // W3
                }
            }
            if *position >= last + self.every && (self.writes)() {
                last = *position;
                self.write(*position)?;
            }
            stuck.tell(&self.observer.standing());
        }
        Ok(())
    }

    /// The log begins above what was read: takes a snapshot, and gives the position behind it.
    fn begin_at(&self, low: i64) -> Result<i64, LogError> {
        let end = self.log.watermarks(&self.of)?.high;
        let mut reader = self.log.reader(&self.of, low, Isolation::ReadCommitted, true)?;
        let mut assembly = Assembly::default();
        while reader.position() < end && !(self.stopping)() {
            for record in reader.next(LOOK)? {
                let Told::Snapshot(part) = progress::read(&self.of, record)? else { continue };
                if let Some((position, parts)) = assembly.take(part).filter(|(position, _)| *position >= low) {
                    let mut book = self.observer.book();
                    *book = snapshot::read(&parts);
                    self.observer.publish(book);
                    return Ok(position);
                }
            }
        }
        Err(LogError::Fatal(format!(
            "{} begins at {low} and holds no snapshot of what was before: something else than Tidegate has deleted from it",
            self.of
        )))
    }

    /// Reads what is there; the position of the last snapshot among it.
    fn look(&self, reader: &mut dyn Reader, assembly: &mut Assembly) -> Result<Option<i64>, LogError> {
        let records = reader.next(LOOK)?;
        let mut complete = None;
        if records.is_empty() {
            return Ok(None);
        }
        let mut book = self.observer.book();
        for record in records {
            let at_ms = record.timestamp_ms;
            match progress::read(&self.of, record)? {
                Told::Counts(progress) => {
                    book.take(&progress, at_ms);
                    // What is void may be done, and forgotten, by the end of this look.
                    if !progress.retries.is_empty() {
                        self.observer.awaited.tell(&book);
                    }
                }
                Told::Snapshot(part) => complete = assembly.take(part).map(|(position, _)| position).or(complete),
                Told::Else => {}
            }
        }
        self.observer.publish(book);
        Ok(complete)
    }

    fn write(&self, position: i64) -> Result<(), LogError> {
        let parts = snapshot::write(&self.observer.book(), position, &self.writer);
        let records = parts.iter().map(snapshot_record).collect();
        self.log.append(Append { to: self.of.clone(), records }).map(drop)
    }
}

/// Tells of a root that holds the frontier for long.
#[derive(Debug, Default)]
struct Stuck {
    root: Option<u64>,
    since: Option<Instant>,
}

impl Stuck {
    fn tell(&mut self, standing: &Standing) {
        let age = standing.oldest_since_ms.map(|since| (clock::wall_ms() - since).max(0));
        metrics::oldest_unsettled(standing.oldest_unsettled, Duration::from_millis(age.unwrap_or(0) as u64));
        if self.root != standing.oldest_unsettled {
            (self.root, self.since) = (standing.oldest_unsettled, Some(clock::now()));
            return;
        }
        let (Some(root), Some(since)) = (self.root, self.since) else { return };
        if clock::since(since) >= STUCK {
            self.since = Some(clock::now());
            let unsettled = standing.unsettled;
            tracing::warn!(
                root,
                unsettled,
                "a root is not settled for long, and nothing above it counts as final: GET /api/v1/roots/{root} and \
                 /api/v1/in-flight tell what of it is pending"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use super::*;
    use crate::counts::{self, Count};
    use crate::log::NewTopic;
    use crate::log::embedded::{EmbeddedLog, EmbeddedOptions};
    use crate::progress::counts_record;
    use crate::proto;
    use crate::stamp::Stamp;

    fn log(folder: &std::path::Path) -> (EmbeddedLog, TopicPartition) {
        let log = EmbeddedLog::open(folder.join("log"), EmbeddedOptions { sync: false, ..Default::default() }).unwrap();
        let topic = NewTopic { name: "p".into(), partitions: 1, replication_factor: None, settings: Vec::new() };
        log.create(&[topic]).unwrap();
        (log, TopicPartition::new(&Arc::from("p"), 0))
    }

    /// Appends what one transaction tells: it receives root `n`, and is done with the one before.
    fn tell(log: &dyn Log, of: &TopicPartition, n: u64) {
        let mut counted = vec![Count::produced(&Stamp::root(0, n), 0)];
        counted.extend(n.checked_sub(1).map(|before| Count::consumed(&Stamp::root(0, before), 0)));
        let at = proto::SourcePosition { topic: "t".into(), position: n as i64 + 1, ..Default::default() };
        let told = proto::Progress { source_positions: vec![at], ..Default::default() };
        let records = counts::records(counted, told).iter().map(counts_record).collect();
        log.append(Append { to: of.clone(), records }).unwrap();
    }

    /// Reads until `received` is.
    fn read_until(log: &dyn Log, of: &TopicPartition, writes: bool, received: u64) -> (Standing, Option<String>) {
        let observer = Observer::default();
        let (failed, looks) = (Mutex::new(None), Cell::new(0));
        let stopping = || {
            looks.set(looks.get() + 1);
            assert!(looks.get() < 1000, "in vain: {:?}", observer.standing());
            observer.standing().received >= Some(received) || failed.lock().unwrap().is_some()
        };
        let report = |error: Option<LogError>| {
            *failed.lock().unwrap() = error.map(|error| error.to_string());
        };
        let reading = Reading {
            observer: &observer,
            log,
            of: of.clone(),
            writer: "me".into(),
            every: 10,
            writes: &|| writes,
            purges: true,
            report: &report,
            stopping: &stopping,
        };
        reading.run();
        let failed = failed.lock().unwrap().take();
        (observer.standing(), failed)
    }

    #[test]
    fn a_snapshot_replaces_what_is_below_it() {
        let folder = tempfile::tempdir().unwrap();
        let (log, of) = log(folder.path());
        for n in 0..100 {
            tell(&log, &of, n);
            if n % 5 == 4 {
                let (standing, failed) = read_until(&log, &of, true, n);
                assert_eq!((standing.frontier, standing.oldest_unsettled, failed), (n.checked_sub(1), Some(n), None));
            }
        }
        let ends = log.watermarks(&of).unwrap();
        assert!(ends.low > 50 && ends.high - ends.low < 40, "what lies below snapshots is deleted: {ends:?}");
        let (standing, failed) = read_until(&log, &of, false, 99);
        assert_eq!((standing.frontier, standing.unsettled, failed), (Some(98), 1, None));
    }

    #[test]
    fn what_somebody_else_has_deleted_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let (log, of) = log(folder.path());
        (0..8).for_each(|n| tell(&log, &of, n));
        log.purge(&[(of.clone(), 3)]).unwrap();
        let (standing, failed) = read_until(&log, &of, false, 99);
        assert_eq!(standing.frontier, None, "never guessed");
        assert!(failed.unwrap().contains("p-0 begins at 3"));
    }
}
