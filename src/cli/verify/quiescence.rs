//! Waits until all is processed that stood on the source at the start, and all that it led to.
//!
//! Q1: quiescent is: the committed positions of all partitions, no committed record at or beyond any of
//!     them, and then the same positions again. Between the two readings no transaction has consumed
//!     anything, so none has produced anything that the look at another partition came too early for.
//! Q2: positions are asked stable: an undecided transaction on a partition is work that is not done.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::read::{Ends, records};
use super::{Subject, VerifyError};
use crate::clock;
use crate::log::{Log, LogError, TopicPartition, Watermarks};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(250);

/// How long one look waits for records of an undecided transaction.
const PATIENCE: Duration = Duration::from_secs(2);

/// Between two lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Waits for Q1.
///
/// # Errors
/// [`VerifyError::Failed`] after `timeout`, with what is still to be done.
pub fn wait(
    log: &dyn Log,
    group: &str,
    subject: &Subject,
    sources: &[Watermarks],
    timeout: Duration,
) -> Result<(), VerifyError> {
    let partitions = partitions(subject);
    let deadline = clock::now() + timeout;
    let mut progress = Progress::new(sources);
    loop {
        let busy = match look(log, group, &partitions, sources, &mut progress) {
            Ok(None) => {
                progress.done();
                return Ok(());
            }
            Ok(Some(busy)) => busy,
            Err(LogError::Retriable(message)) => message,
            Err(error @ LogError::Unstable(_)) => error.to_string(),
            Err(error) => return Err(error.into()),
        };
        if clock::now() >= deadline {
            let timeout = humantime::format_duration(timeout);
            return Err(VerifyError::Failed(format!(
                "not all is processed after {timeout}: {busy}; is an instance running? `--timeout` waits longer"
            )));
        }
        progress.tell(&busy);
        std::thread::sleep(PAUSE);
    }
}

/// What is still to be done at this moment, for people; `None` = nothing (Q1).
pub fn busy(log: &dyn Log, group: &str, subject: &Subject, sources: &[Watermarks]) -> Result<Option<String>, LogError> {
    match look(log, group, &partitions(subject), sources, &mut Progress::new(sources)) {
        Err(error @ (LogError::Unstable(_) | LogError::Retriable(_))) => Ok(Some(error.to_string())),
        other => other,
    }
}

/// The sources first.
fn partitions(subject: &Subject) -> Vec<TopicPartition> {
    subject.sources.iter().chain(&subject.repartition).cloned().collect()
}

/// One look; what is still to be done, for people, or `None` (Q1).
fn look(
    log: &dyn Log,
    group: &str,
    partitions: &[TopicPartition],
    sources: &[Watermarks],
    progress: &mut Progress,
) -> Result<Option<String>, LogError> {
    // 1. The positions.
    let before = positions(log, group, partitions)?;
    // 2. Nothing at or beyond them.
    for (index, (partition, position)) in partitions.iter().zip(&before).enumerate() {
        let watermarks = log.watermarks(partition)?;
        let position = position.unwrap_or(watermarks.low);
        let source = sources.get(index);
        if let Some(source) = source {
            progress.reached(index, position.min(source.high));
        }
        // Later primaries are not waited for; they are left out of the comparison.
        let high = source.map_or(watermarks.high, |source| source.high);
        if let Some(offset) = next_record(log, partition, Ends { low: position, high })? {
            return Ok(Some(format!("{partition} is committed to {position}, and there is a record at {offset}")));
        }
    }
    // 3. The same positions again.
    let after = positions(log, group, partitions)?;
    Ok((before != after).then(|| "events are being processed".to_owned()))
}

/// The committed positions, stable (Q2); `None` where there is none yet.
fn positions(log: &dyn Log, group: &str, of: &[TopicPartition]) -> Result<Vec<Option<i64>>, LogError> {
    let committed = log.committed(group, of, true)?;
    Ok(committed.into_iter().map(|committed| committed.map(|committed| committed.position)).collect())
}

/// The offset of the first committed record; control records and aborted ones are passed.
fn next_record(log: &dyn Log, of: &TopicPartition, ends: Ends) -> Result<Option<i64>, LogError> {
    if ends.low >= ends.high {
        return Ok(None);
    }
    match records(log, of, ends, false).and_then(|records| records.patience(PATIENCE).next().transpose()) {
        Ok(record) => Ok(record.map(|record| record.offset)),
        Err(VerifyError::Usage(message) | VerifyError::Failed(message)) => Err(LogError::Retriable(message)),
        Err(VerifyError::Log(error)) => Err(error),
    }
}

/// A bar on a terminal, else lines; both on standard error.
struct Progress {
    bar: Option<ProgressBar>,
    end: i64,
    positions: Vec<i64>,
    told: Option<std::time::Instant>,
}

impl Progress {
    fn new(sources: &[Watermarks]) -> Progress {
        let end = sources.iter().map(|source| source.high).sum();
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("waiting for the instances  {bar:30} {pos}/{len}  {msg}");
            let bar = ProgressBar::new(u64::try_from(end).unwrap_or(0));
            bar.set_style(style.expect("the template is valid"));
            bar
        });
        Progress { bar, end, positions: sources.iter().map(|source| source.low).collect(), told: None }
    }

    fn reached(&mut self, source: usize, position: i64) {
        self.positions[source] = position;
        if let Some(bar) = &self.bar {
            bar.set_position(u64::try_from(self.position()).unwrap_or(0));
        }
    }

    fn position(&self) -> i64 {
        self.positions.iter().sum()
    }

    fn tell(&mut self, busy: &str) {
        if let Some(bar) = &self.bar {
            return bar.set_message(busy.to_owned());
        }
        let now = clock::now();
        if self.told.is_none_or(|told| now - told >= LINE_EVERY) {
            self.told = Some(now);
            eprintln!("waiting for the instances: source at {} of {}; {busy}", self.position(), self.end);
        }
    }

    fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
