//! The Kafka side of a commit: one transaction carries records and positions, or nothing (L2).
//!
//! K1: a transaction that was interrupted by any error of the network is the handle's last: before the next one
//!     begins the handle is replaced (protocol P7).
//! K2: `Fenced`, `Aborted` and `Unauthorized` are told only while no end of the transaction was asked for, or when the
//!     broker said no undisturbed; all else is `Unknown` (protocol P5).
//! K3: positions are sent under the membership given, never a fresher one (protocol P2).
//! K4: nothing is aborted while a produce request is on its way; a handle that cannot be drained is destroyed.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::admin;
use super::errors::{Code, Failure, is_denial, of_failure, passing};
use super::native::{Client, Delivery};
use super::rights::{self, Resource};
use super::settings::{self, KafkaOptions, Settings};
use super::watch::Watch;
use crate::clock;
use crate::log::{Append, CommitError, LogError, NewRecord, Producer, Receipt, TopicPartition, Transaction};

/// Records handed over in one call.
const BATCH: usize = 10_000;
/// How long an abort waits for requests that are on their way (K4).
const DRAIN: Duration = Duration::from_secs(2);
/// How long a handle that only fences is waited for, before another one is tried with twice the patience.
const FENCED_WITHIN: Duration = Duration::from_millis(50);

/// A transactional id's producer.
pub struct KafkaProducer {
    options: Arc<KafkaOptions>,
    questions: Arc<admin::Questions>,
    id: String,
    served: Option<Served>,
    known: HashSet<TopicPartition>,
    undecided: bool,
}

/// A handle and the thread that takes its delivery reports: without it a commit waits for its next poll.
pub(super) struct Served {
    pub(super) client: Arc<Client>,
    pub(super) watch: Arc<Watch>,
    stop: Arc<AtomicBool>,
    refused: Arc<Mutex<Refused>>,
    spoiled: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Records that came back with an error.
#[derive(Default)]
struct Refused {
    /// Why the first did.
    first: Option<(Code, String)>,
    /// The numbers under which they were handed over, where they had one.
    numbers: Vec<usize>,
}

impl Refused {
    fn take_note(&mut self, report: Delivery) {
        if report.opaque != 0 {
            self.numbers.push(report.opaque);
        }
        // What was given up with its handle has another cause.
        if !matches!(report.code, Code::PurgeQueue | Code::PurgeInflight) {
            let why = || (report.code, format!("a record to {}: {}", report.place, report.code));
            self.first.get_or_insert_with(why);
        }
    }
}

impl Served {
    pub(super) fn open(settings: &Settings, id: &str) -> Result<Served, LogError> {
        let watch = Arc::new(Watch::new(id));
        let client = Client::open(false, settings, Arc::clone(&watch), None).map_err(LogError::Fatal)?;
        let client = Arc::new(client);
        let (stop, refused) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Refused::default())));
        let spoiled = Arc::new(AtomicBool::new(false));
        let (served, stopped) = (Arc::clone(&client), Arc::clone(&stop));
        let (notes, spoils) = (Arc::clone(&refused), Arc::clone(&spoiled));
        let serve = move || {
            while !stopped.load(Ordering::SeqCst) {
                served.serve(Duration::from_millis(200), &mut |report| {
                    if report.code != Code::NoError {
                        spoils.store(true, Ordering::SeqCst);
                        notes.lock().unwrap_or_else(PoisonError::into_inner).take_note(report);
                    }
                });
            }
        };
        let thread = std::thread::Builder::new().name(format!("reports-{id}")).spawn(serve);
        let thread = thread.map_err(|error| LogError::Retriable(format!("no thread for delivery reports: {error}")))?;
        Ok(Served { client, watch, stop, refused, spoiled, thread: Some(thread) })
    }

    fn init(&self, id: &str, prefix: &str, deadline: Instant) -> Result<(), LogError> {
        // While it knows no broker librdkafka looks for the coordinator twice a second. A failure is told below.
        let _ = self.client.meet(deadline.saturating_duration_since(clock::now()));
        loop {
            let left = deadline.saturating_duration_since(clock::now());
            let Err(failure) = self.client.init_transactions(left.max(Duration::from_millis(100))) else {
                return Ok(());
            };
            if is_denial(failure.code) {
                return Err(rights::missing(&[("Write", Resource::TransactionalId(id))], prefix, &failure.text));
            }
            let over = clock::now() >= deadline;
            if over || !(failure.retriable || passing(failure.code)) {
                let text = self.watch.explain(&format!("init_transactions of {id}: {}", failure.text));
                let failure = Failure { text, ..failure };
                return Err(match failure.retriable || passing(failure.code) {
                    true => LogError::Retriable(failure.text),
                    false => of_failure("", &failure),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The first record that was refused since the last call.
    pub(super) fn failed_record(&self) -> Option<(Code, String)> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).first.take()
    }

    /// The numbers of all records that were refused since the last call.
    pub(super) fn refused_numbers(&self) -> Vec<usize> {
        std::mem::take(&mut self.refused.lock().unwrap_or_else(PoisonError::into_inner).numbers)
    }

    /// Certainly not committed, and the handle is of no more use; where that is for a missing right a new one is made
    /// when the transaction is tried again.
    fn broken(&self, failure: &Failure, why: String) -> CommitError {
        let denied = is_denial(failure.code) || self.client.fatal().is_some_and(|(code, _)| is_denial(code));
        if denied { CommitError::Unauthorized(format!("not authorized: {why}")) } else { CommitError::Fenced(why) }
    }

    fn explain(&self, what: &str, failure: &Failure) -> String {
        let text = self.watch.explain(&format!("{what}: {}", failure.text));
        match self.failed_record() {
            Some((_, record)) => format!("{text} ({record})"),
            None => text,
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.client.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there has nothing to tell that the commit has not told.
            let _ = thread.join();
        }
    }
}

/// Ends the open transaction of an id whose holder is dead.
pub fn fence(options: &KafkaOptions, id: &str) -> Result<(), LogError> {
    let deadline = clock::now() + options.call_timeout;
    let mut patience = FENCED_WITHIN;
    loop {
        let served = Served::open(&settings::transactional(options, id), id)?;
        match served.init(id, &options.prefix, deadline.min(clock::now() + patience)) {
            // The broker ends the transaction first and says so; librdkafka would ask again after half a second.
            Err(LogError::Retriable(_)) if clock::now() < deadline => patience *= 2,
            fenced => return fenced,
        }
    }
}

impl KafkaProducer {
    /// Opens the producer and decides every earlier transaction of the id.
    pub fn open(
        options: &Arc<KafkaOptions>,
        questions: &Arc<admin::Questions>,
        id: &str,
    ) -> Result<KafkaProducer, LogError> {
        let (options, questions) = (Arc::clone(options), Arc::clone(questions));
        let mut producer = KafkaProducer {
            options,
            questions,
            id: id.to_owned(),
            served: None,
            known: HashSet::new(),
            undecided: true,
        };
        producer.recover()?;
        Ok(producer)
    }

    /// Asks for the metadata of topics not produced to before: a produce call does not wait for it.
    fn learn(&mut self, served: &Served, transaction: &Transaction) -> Result<(), CommitError> {
        for append in &transaction.appends {
            if self.known.contains(&append.to) {
                continue;
            }
            let partitions = served.client.learn(&append.to.topic, self.options.call_timeout);
            let partitions = partitions.map_err(|failure| {
                not_committed(&failure, served.explain(&format!("topic {}", append.to.topic), &failure))
            })?;
            if append.to.partition >= partitions {
                return Err(CommitError::Aborted(format!(
                    "{} does not exist: the topic has {partitions} partitions",
                    append.to
                )));
            }
            self.known.insert(append.to.clone());
        }
        Ok(())
    }

    fn run(&self, served: &Served, transaction: &Transaction) -> Result<(), CommitError> {
        let deadline = clock::now() + self.options.transaction_timeout;
        let before = served.watch.disturbances();
        served.failed_record();
        // 1. A crash from here to 4 leaves an open transaction, which the next holder of the id or the broker aborts.
        served.client.begin().map_err(|failure| served.broken(&failure, served.explain("begin", &failure)))?;
        // 2. Positions first: a stale membership is found out before anything is on its way, and while the markers of
        // the transaction before are being written, librdkafka asks again after 2 ms; for records it would after 20.
        if let Err((what, failure)) = self.send_offsets(served, transaction, deadline) {
            return Err(match self.abort(served, what, &failure) {
                CommitError::Aborted(why) if failure.code == Code::IllegalGeneration => CommitError::Stale(why),
                other => other,
            });
        }
        for append in &transaction.appends {
            if let Err((_, failure)) = enqueue(&served.client, append, 0, &|| clock::now() < deadline) {
                return Err(self.abort(served, &format!("produce to {}", append.to), &failure));
            }
        }
        // 3. Every record is there or has failed before the end is asked for, so that a fenced producer is told apart (K2).
        let left = deadline.saturating_duration_since(clock::now());
        if let Err(failure) = served.client.flush(left) {
            return Err(self.abort(served, "flush", &failure));
        }
        if let Some((code, text)) = served.failed_record() {
            let failure = Failure { code, text, fatal: false, retriable: false, abortable: true };
            return Err(self.abort(served, "produce", &failure));
        }
        if let Some((code, text)) = served.client.fatal() {
            let text = served.watch.explain(&text);
            let failure = Failure { code, text: String::new(), fatal: true, retriable: false, abortable: false };
            return Err(served.broken(&failure, text));
        }
        // 4. From here the outcome is the broker's; a crash is decided by the committed positions (protocol P5).
        self.end(served, deadline + Duration::from_secs(5), before)
    }

    fn send_offsets(
        &self,
        served: &Served,
        transaction: &Transaction,
        deadline: Instant,
    ) -> Result<(), (&'static str, Failure)> {
        if transaction.offsets.is_empty() {
            return Ok(());
        }
        let what = "send the positions";
        loop {
            debug_assert!(
                transaction.offsets.iter().all(|offset| offset.position >= 0),
                "P3: negative positions are skipped silently"
            );
            let offsets =
                transaction.offsets.iter().map(|o| (&*o.of.topic, o.of.partition, o.position, o.metadata.as_str()));
            let left = deadline.saturating_duration_since(clock::now());
            let Err(failure) = served.client.send_offsets(offsets, &transaction.membership.0, left) else {
                return Ok(());
            };
            let again = failure.retriable && !failure.abortable && !failure.fatal && clock::now() < deadline;
            if !again {
                return Err((what, failure));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(&self, served: &Served, deadline: Instant, before: u64) -> Result<(), CommitError> {
        loop {
            let left = deadline.saturating_duration_since(clock::now()).max(Duration::from_millis(100));
            let Err(failure) = served.client.commit_transaction(left) else { return Ok(()) };
            let disturbed = served.watch.disturbances() != before;
            if failure.abortable && !failure.fatal && !disturbed {
                return Err(self.abort(served, "commit", &failure));
            }
            if !failure.retriable || failure.abortable || clock::now() >= deadline {
                return Err(CommitError::Unknown(served.explain("commit", &failure)));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the transaction before its commit was asked for: in any case it is not committed.
    fn abort(&self, served: &Served, what: &str, failure: &Failure) -> CommitError {
        let drained = served.client.flush(DRAIN);
        let why = served.explain(what, failure);
        if failure.fatal || served.client.fatal().is_some() {
            return served.broken(failure, why);
        }
        if let Err(stuck) = drained {
            return CommitError::Fenced(format!("{why}; records are still on their way: {}", stuck.text));
        }
        let deadline = clock::now() + self.options.call_timeout;
        loop {
            let left = deadline.saturating_duration_since(clock::now()).max(Duration::from_millis(100));
            match served.client.abort_transaction(left) {
                Ok(()) => return not_committed(failure, why),
                Err(again) if again.retriable && clock::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5))
                }
                Err(other) => return served.broken(failure, format!("{why}; abort: {}", other.text)),
            }
        }
    }
}

impl Producer for KafkaProducer {
    fn commit(&mut self, transaction: &Transaction) -> Result<Receipt, CommitError> {
        if self.undecided {
            return Err(CommitError::Fenced(format!("{} has to recover first", self.id)));
        }
        if self.served.is_none() {
            // K1: nothing has begun, so the transaction is certainly not committed.
            self.recover().map_err(|error| match error {
                LogError::Unauthorized(text) => {
                    self.undecided = false;
                    CommitError::Unauthorized(text)
                }
                error => CommitError::Fenced(error.to_string()),
            })?;
        }
        let served = self.served.take().ok_or_else(|| CommitError::Fenced("no producer".to_owned()))?;
        let before = served.watch.disturbances();
        let result = self.learn(&served, transaction).and_then(|()| self.run(&served, transaction));
        self.undecided = matches!(result, Err(CommitError::Unknown(_) | CommitError::Fenced(_)));
        if result.is_err() {
            self.known.clear();
        }
        let undisturbed = served.watch.disturbances() == before;
        let denied = matches!(result, Err(CommitError::Unauthorized(_)));
        // K1: also after a commit, as a delayed request of it may still arrive. A record that has failed leaves a gap
        // in its partition's sequence, over which this handle's next transaction would stumble. What was not allowed
        // may have cost the handle its life.
        if undisturbed && !self.undecided && !denied && !served.spoiled.load(Ordering::SeqCst) {
            self.served = Some(served);
        }
        result.map(|()| Receipt { ends: self.questions.ends(&transaction.ends_of) })
    }

    fn recover(&mut self) -> Result<(), LogError> {
        self.undecided = true;
        self.served = None;
        self.known.clear();
        let served = Served::open(&settings::transactional(&self.options, &self.id), &self.id)?;
        served.init(&self.id, &self.options.prefix, clock::now() + self.options.call_timeout)?;
        self.served = Some(served);
        self.undecided = false;
        Ok(())
    }
}

/// Certainly not committed, and the producer is usable.
fn not_committed(failure: &Failure, why: String) -> CommitError {
    match is_denial(failure.code) {
        true => CommitError::Unauthorized(format!("not authorized: {why}")),
        false => CommitError::Aborted(why),
    }
}

/// Hands records over in their order, by batches where they have no headers; waits while the queue is full and
/// `wait` says so. A record that is refused is told by `number` plus its place; with 0 it has none. On error tells how
/// many were handed over.
pub(super) fn enqueue(
    client: &Client,
    append: &Append,
    number: usize,
    wait: &dyn Fn() -> bool,
) -> Result<(), (usize, Failure)> {
    let mut rest: &[NewRecord] = &append.records;
    let handed = |rest: &[NewRecord]| append.records.len() - rest.len();
    while let Some(first) = rest.first() {
        let run = rest.iter().take(BATCH).take_while(|record| record.headers.is_empty()).count();
        let opaque = if number == 0 { 0 } else { number + handed(rest) };
        let (done, result) = match run {
            0 => match client.produce_with_headers(&append.to, first, opaque) {
                Ok(()) => (1, Ok(())),
                Err(failure) => (0, Err(failure)),
            },
            run => match client.produce(&append.to, &rest[..run], opaque) {
                Ok(()) => (run, Ok(())),
                Err((done, failure)) => (done, Err(failure)),
            },
        };
        rest = &rest[done..];
        match result {
            Err(failure) if failure.code == Code::QueueFull && wait() => std::thread::sleep(Duration::from_millis(2)),
            other => other.map_err(|failure| (handed(rest), failure))?,
        }
    }
    Ok(())
}
