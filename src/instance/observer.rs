//! Reads `<app>-progress` beside the engine threads, so that every instance knows by itself what is settled.
//!
//! W1: what is told is of a prefix of the topic: late perhaps, never early, and the frontier never goes back.
//! W2: those who wait are asked again whenever something has changed; nothing is polled.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::clock;
use crate::frontier::{Book, Root, Standing};
use crate::log::{Isolation, Log, LogError, Reader, TopicPartition};
use crate::metrics;
use crate::progress;

/// How long one look for new records lasts.
const LOOK: Duration = Duration::from_millis(100);

/// The pause after an error.
const RETRY: Duration = Duration::from_secs(1);

/// A root that holds the frontier for so long is told in the log, and again each time so long.
const STUCK: Duration = Duration::from_secs(600);

/// What an instance knows of the application's progress.
#[derive(Debug)]
pub(super) struct Observer {
    book: Mutex<Book>,
    told: watch::Sender<Standing>,
}

impl Default for Observer {
    fn default() -> Observer {
        Observer { book: Mutex::default(), told: watch::Sender::new(Standing::default()) }
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

    /// Asks the book.
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

    /// Reads on until the instance stops. `report` takes what keeps it from reading; `None` = nothing.
    pub(super) fn run(
        &self,
        log: &dyn Log,
        of: &TopicPartition,
        report: &dyn Fn(Option<LogError>),
        stopping: &dyn Fn() -> bool,
    ) {
        let mut position = 0;
        let mut stuck = Stuck::default();
        while !stopping() {
            let Err(error) = self.follow(log, of, &mut position, report, &mut stuck, stopping) else { return };
            tracing::warn!("what is settled is not known for the moment: {error}");
            report(Some(error));
            std::thread::sleep(RETRY);
        }
    }

    fn follow(
        &self,
        log: &dyn Log,
        of: &TopicPartition,
        position: &mut i64,
        report: &dyn Fn(Option<LogError>),
        stuck: &mut Stuck,
        stopping: &dyn Fn() -> bool,
    ) -> Result<(), LogError> {
        let from = log.watermarks(of)?.low.max(*position);
        let mut reader = log.reader(of, from, Isolation::ReadCommitted, true)?;
        let mut answered = false;
        while !stopping() {
            self.look(reader.as_mut(), of)?;
            *position = reader.position();
            if !std::mem::replace(&mut answered, true) {
                report(None);
            }
            stuck.tell(&self.standing());
        }
        Ok(())
    }

    fn look(&self, reader: &mut dyn Reader, of: &TopicPartition) -> Result<(), LogError> {
        let records = reader.next(LOOK)?;
        if records.is_empty() {
            return Ok(());
        }
        let mut book = self.book();
        for record in records.into_iter().filter(progress::is_counts) {
            let (offset, at_ms) = (record.offset, record.timestamp_ms);
            let progress = progress::decode(record.value)
                .map_err(|error| LogError::Fatal(format!("{of} at offset {offset}: {error}")))?;
            book.take(&progress, at_ms);
        }
        let standing = book.standing();
        drop(book);
        metrics::frontier(standing.frontier, standing.unsettled);
        debug_assert!(standing.frontier >= self.told.borrow().frontier || standing.unavailable.is_some(), "W1");
        self.told.send_replace(standing);
        Ok(())
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
        if since.elapsed() >= STUCK {
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
