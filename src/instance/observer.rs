//! Reads `<app>-progress` beside the engine threads, so that every instance knows by itself what is settled.
//!
//! W1: what is told is of a prefix of the topic: late perhaps, never early, and the frontier never goes back.
//! W2: those who wait are asked again whenever something has changed; nothing is polled.
//! W3: what lies below a snapshot is deleted only when that was read back, committed (protocol P21).
//! W4 is in `announcing.rs`.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::announcing::Announcing;
use super::awaited::Awaited;
use super::crowd::Crowd;
use crate::clock;
use crate::frontier::snapshot::{self, Assembly};
use crate::frontier::{Book, Root, Standing, Verdict};
use crate::log::{Append, Isolation, Log, LogError, Reader, Record, TopicPartition};
use crate::marks::Known;
use crate::metrics;
use crate::progress::{self, Told, counts_record, snapshot_record};
use crate::proto;
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
pub struct Observer {
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
    pub fn standing(&self) -> Standing {
        self.told.borrow().clone()
    }

    /// What is known of one root.
    pub(super) fn root(&self, sequence: u64) -> Option<Root> {
        self.book().root(sequence)
    }

    /// What was read so far.
    pub fn book(&self) -> MutexGuard<'_, Book> {
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
        metrics::horizon(standing.horizon);
        debug_assert!(standing.frontier >= self.told.borrow().frontier || standing.unavailable.is_some(), "W1");
        self.told.send_replace(standing);
    }
}

/// What the reading of progress needs.
pub struct Reading<'a> {
    /// Where it is kept.
    pub observer: &'a Observer,
    /// The log.
    pub log: &'a dyn Log,
    /// `<app>-progress`
    pub of: TopicPartition,
    /// Names this instance in its snapshots.
    pub writer: String,
    /// A snapshot is written after so many records.
    pub every: i64,
    /// So many runs go into one of its records.
    pub runs_per_part: usize,
    /// Whether this instance is the one that writes snapshots: that more do is no harm.
    pub writes: &'a dyn Fn() -> bool,
    /// Whether what lies below a snapshot is deleted.
    pub purges: bool,
    /// When a horizon is announced; `None` = never.
    pub announcing: Option<Announcing>,
    /// Takes the horizon.
    pub tell_horizon: &'a dyn Fn(u64),
    /// Takes what engines need to know of it: whenever the position has moved, and once the log has answered.
    pub known: &'a dyn Fn(Known),
    /// Takes what keeps it from reading; `None` = nothing.
    pub report: &'a dyn Fn(Option<LogError>),
    /// Is told whether too many roots are unsettled.
    pub crowded: &'a dyn Fn(bool),
    /// Whether the instance stops.
    pub stopping: &'a dyn Fn() -> bool,
}

/// Where a reading stands.
#[derive(Default)]
pub struct Place {
    /// The next offset to be read: all below it is in the book.
    position: i64,
    /// `None` = it begins, for the first time or after an error.
    reads: Option<Reads>,
}

impl Place {
    /// The next offset to be read: all below it is known.
    pub fn position(&self) -> i64 {
        self.position
    }
}

struct Reads {
    reader: Box<dyn Reader>,
    assembly: Assembly,
    what: What,
    /// The log has answered.
    answered: bool,
}

#[derive(Clone, Copy)]
enum What {
    /// A snapshot at or above `low`, where the log begins, and below its `end`: what was before is deleted.
    Snapshot { low: i64, end: i64 },
    /// Everything. `last` is where the last snapshot stands, as far as it is known, and where this one has written one.
    Records { last: i64 },
}

impl Reading<'_> {
    /// Reads on until the instance stops.
    pub(super) fn run(&self) {
        let mut place = Place::default();
        let (mut stuck, mut crowd) = (Stuck::default(), Crowd::default());
        while !(self.stopping)() {
            if let Err(error) = self.step(&mut place) {
                tracing::warn!("what is settled is not known for the moment: {error}");
                (self.report)(Some(error));
                clock::sleep(RETRY);
            }
            let standing = self.observer.standing();
            stuck.tell(&standing);
            if let Some(is_crowded) = crowd.look(standing.entries, standing.unsettled) {
                (self.crowded)(is_crowded);
            }
        }
    }

    /// Looks once for what is new, and does what follows from it. After an error the next one begins anew, with what
    /// is known.
    ///
    /// # Errors
    /// What the log says; [`LogError::Fatal`] where what it holds does not tell all.
    pub fn step(&self, place: &mut Place) -> Result<(), LogError> {
        let mut reads = match place.reads.take() {
            Some(reads) => reads,
            None => self.begin(place.position)?,
        };
        place.reads = match reads.what {
            What::Snapshot { low, end } => {
                let found = self.look_for_snapshot(&mut reads, low, end)?;
                if let Some(position) = found {
                    place.position = position;
                    self.tell_known(position);
                }
                found.is_none().then_some(reads)
            }
            What::Records { last } => {
                let complete = self.look(reads.reader.as_mut(), &mut reads.assembly)?;
                if place.position != reads.reader.position() || !reads.answered {
                    place.position = reads.reader.position();
                    self.tell_known(place.position);
                }
                if !std::mem::replace(&mut reads.answered, true) {
                    (self.report)(None);
                }
                let last = self.keep(place.position, last, complete)?;
                Some(Reads { what: What::Records { last }, ..reads })
            }
        };
        Ok(())
    }

    fn begin(&self, position: i64) -> Result<Reads, LogError> {
        let ends = self.log.watermarks(&self.of)?;
        let (from, what) = match position < ends.low {
            true => (ends.low, What::Snapshot { low: ends.low, end: ends.high }),
            false => (position, What::Records { last: position }),
        };
        let reader = self.log.reader(&self.of, from, Isolation::ReadCommitted, true)?;
        Ok(Reads { reader, assembly: Assembly::default(), what, answered: false })
    }

    /// The log begins above what was read: takes a snapshot when it finds one, and gives the position behind it.
    fn look_for_snapshot(&self, reads: &mut Reads, low: i64, end: i64) -> Result<Option<i64>, LogError> {
        if reads.reader.position() >= end {
            return Err(LogError::Fatal(format!(
                "{} begins at {low} and holds no snapshot of what was before: something else than Tidegate has deleted \
                 from it",
                self.of
            )));
        }
        for record in reads.reader.next(LOOK)? {
            let Told::Snapshot(part) = progress::read(&self.of, record)? else { continue };
            if let Some((position, parts)) = reads.assembly.take(*part).filter(|(position, _)| *position >= low) {
                let mut book = self.observer.book();
                *book = snapshot::read(&parts);
                self.publish(book);
                return Ok(Some(position));
            }
        }
        Ok(None)
    }

    /// Reads what is there; the position of the last snapshot among it.
    fn look(&self, reader: &mut dyn Reader, assembly: &mut Assembly) -> Result<Option<i64>, LogError> {
        let records = reader.next(LOOK)?;
        let mut complete = None;
        if records.is_empty() {
            return Ok(None);
        }
        // All of them before anything is taken: after an error they are read again.
        let read = |record: Record| Ok((record.timestamp_ms, progress::read(&self.of, record)?));
        let told = records.into_iter().map(read).collect::<Result<Vec<_>, LogError>>()?;
        let mut book = self.observer.book();
        for (at_ms, told) in told {
            match told {
                Told::Counts(progress) => {
                    book.take(&progress, at_ms);
                    // What is void may be done, and forgotten, by the end of this look.
                    if !progress.retries.is_empty() {
                        self.observer.awaited.tell(&book);
                    }
                }
                Told::Snapshot(part) => complete = assembly.take(*part).map(|(position, _)| position).or(complete),
                Told::Else => {}
            }
        }
        self.publish(book);
        Ok(complete)
    }

    fn publish(&self, book: MutexGuard<'_, Book>) {
        let horizon = book.horizon();
        self.observer.publish(book);
        horizon.into_iter().for_each(self.tell_horizon);
    }

    fn tell_known(&self, position: i64) {
        let book = self.observer.book();
        let known = Known { position, marks: book.marks().clone(), received: book.received_last() };
        drop(book);
        (self.known)(known);
    }

    /// From where it is read like everything else: its place in the topic decides whether it counts (protocol P19).
    fn announce(&self, horizon: u64) -> Result<(), LogError> {
        let progress = proto::Progress { horizon: Some(horizon), last: true, ..proto::Progress::default() };
        self.log.append(Append { to: self.of.clone(), records: vec![counts_record(&progress)] }).map(drop)
    }

    /// Deletes what lies below a snapshot that was read back, and writes one when that is due; where the last one
    /// stands.
    fn keep(&self, position: i64, last: i64, complete: Option<i64>) -> Result<i64, LogError> {
        let last = complete.map_or(last, |complete| complete.max(last));
        if let Some(complete) = complete
            && self.purges
            && (self.writes)()
        {
            self.log.purge(&[(self.of.clone(), complete)])?; // W3
        }
        if let Some(announcing) = self.announcing.as_ref().filter(|_| (self.writes)())
            && let Some(horizon) = announcing.due(&self.observer.book())
        {
            self.announce(horizon)?;
        }
        if position < last + self.every || !(self.writes)() {
            return Ok(last);
        }
        let parts = snapshot::write(&self.observer.book(), position, &self.writer, self.runs_per_part);
        let records = parts.iter().map(snapshot_record).collect();
        self.log.append(Append { to: self.of.clone(), records })?;
        Ok(position)
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
                "a root is not settled for long, and nothing above it counts as final: GET /api/v1/roots/{root} tells \
                 where it is pending, and why"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::sync::Arc;

    use super::*;
    use crate::counts::{self, Count};
    use crate::log::embedded::{EmbeddedLog, EmbeddedOptions};
    use crate::log::{NewRecord, NewTopic};
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

    /// A reading that tells nobody of anything.
    fn reading<'a>(observer: &'a Observer, log: &'a dyn Log, of: TopicPartition) -> Reading<'a> {
        Reading {
            observer,
            log,
            of,
            writer: "me".into(),
            every: 10,
            runs_per_part: 100,
            writes: &|| false,
            purges: false,
            announcing: None,
            tell_horizon: &|_| {},
            known: &|_| {},
            report: &|_| {},
            crowded: &|_| {},
            stopping: &|| false,
        }
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
        let quiet = reading(&observer, log, of.clone());
        let reading = Reading { writes: &|| writes, purges: true, report: &report, stopping: &stopping, ..quiet };
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

    /// Source partitions wait to hear how far progress was read (M1 of marks).
    #[test]
    fn it_tells_how_far_it_has_read_also_where_there_is_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (log, of) = log(folder.path());
        let (observer, told) = (Observer::default(), RefCell::new(Vec::new()));
        let known = |known: Known| told.borrow_mut().push(known.position);
        let follow = |place: &mut Place, writes: bool, steps: usize| {
            let quiet = reading(&observer, &log, of.clone());
            let reading = Reading { writes: &|| writes, purges: true, known: &known, ..quiet };
            (0..steps).for_each(|_| reading.step(place).unwrap());
            told.take()
        };
        let mut place = Place::default();
        assert_eq!(follow(&mut place, false, 3), [0]);
        (0..11).for_each(|n| tell(&log, &of, n));
        let end = log.watermarks(&of).unwrap().high;
        assert_eq!(follow(&mut place, true, 1), [end], "and a snapshot is written");
        assert_eq!(follow(&mut place, true, 3), [end + 1], "what lies below it is deleted");
        assert_eq!(log.watermarks(&of).unwrap().low, end);
        assert_eq!(follow(&mut Place::default(), false, 2), [end, end + 1], "it begins with the snapshot");
    }

    #[test]
    fn what_stands_before_a_record_that_cannot_be_read_is_counted_once() {
        let folder = tempfile::tempdir().unwrap();
        let (log, of) = log(folder.path());
        let counted = counts::records(vec![Count::produced(&Stamp::root(0, 0), 0)], proto::Progress::default());
        let mut records: Vec<NewRecord> = counted.iter().map(counts_record).collect();
        records.push(NewRecord { value: Some("of a later version".into()), ..records[0].clone() });
        log.append(Append { to: of.clone(), records }).unwrap();
        let observer = Observer::default();
        let reading = reading(&observer, &log, of);
        let mut place = Place::default();
        for _ in 0..3 {
            assert!(reading.step(&mut place).is_err());
            assert_eq!((place.position(), observer.standing().unsettled), (0, 0), "none of them, and none twice");
        }
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
