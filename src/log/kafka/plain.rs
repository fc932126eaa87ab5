//! The Kafka side of a commit without transactions: records that are acknowledged before the call returns.
//!
//! L5: the producer is idempotent and never stops trying by itself, so a record is either acknowledged or refused for
//!     good by the time a call returns; nothing of it lands later. Only when it is told to give up, because the
//!     partitions are not its own any more, are records left to their fate: those on their way may still arrive.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::errors::{Code, Failure, is_denial, of_failure, passing};

use super::producer::{Served, enqueue};

use super::settings::{self, KafkaOptions};
use crate::log::{Append, Appender, LogError, TopicPartition};

/// Between two looks whether to give up.
const STEP: Duration = Duration::from_millis(250);

/// How long one question for a topic may take.
const LEARN: Duration = Duration::from_secs(2);

/// The pause between tries while a topic's leaders are not known.
const RETRY: Duration = Duration::from_millis(100);

/// Appends for one engine thread.
pub struct KafkaAppender {
    options: Arc<KafkaOptions>,
    name: String,
    /// None after an error: the next call has a new one.
    served: Option<Served>,
    known: HashSet<TopicPartition>,
}

impl KafkaAppender {
    /// Does not need the broker.
    pub fn open(options: &Arc<KafkaOptions>, name: &str) -> Result<KafkaAppender, LogError> {
        let served = Served::open(&settings::acknowledged(options), name)?;
        let (options, name) = (Arc::clone(options), name.to_owned());
        Ok(KafkaAppender { options, name, served: Some(served), known: HashSet::new() })
    }

    /// Asks for the metadata of topics not produced to before: a produce call does not wait for it.
    fn learn(&mut self, served: &Served, to: &TopicPartition, give_up: &dyn Fn() -> bool) -> Result<(), LogError> {
        while !self.known.contains(to) {
            match served.client.learn(&to.topic, LEARN) {
                Ok(partitions) if to.partition >= partitions => return Err(LogError::UnknownTopic(to.to_string())),
                Ok(_) => drop(self.known.insert(to.clone())),
                Err(failure) if failure.retriable || passing(failure.code) => {
                    tracing::debug!("{}: topic {}: {}", self.name, to.topic, failure.text);
                    if give_up() {
                        return Err(given_up(served));
                    }
                    std::thread::sleep(RETRY);
                }
                Err(failure) => return Err(of_failure(&format!("topic {}", to.topic), &failure)),
            }
        }
        Ok(())
    }

    fn run(&mut self, served: &Served, appends: &mut Vec<Append>, give_up: &dyn Fn() -> bool) -> Result<(), LogError> {
        for append in appends.iter() {
            self.learn(served, &append.to, give_up)?;
        }
        let (mut handed, mut refused) = (1..1, None);
        for append in appends.iter() {
            if let Err((done, failure)) = enqueue(&served.client, append, handed.end, &|| !give_up()) {
                handed.end += done;
                refused = Some(of_failure(&format!("produce to {}", append.to), &failure));
                break;
            }
            handed.end += append.records.len();
        }
        // Also what was handed over before a refusal is waited for (L5).
        while let Err(failure) = served.client.flush(STEP) {
            if !is_slow(&failure) {
                return Err(of_failure("flush", &failure));
            }
            if give_up() {
                return Err(given_up(served));
            }
        }
        take_out(appends, handed, served.refused_numbers());
        if let Some((code, record)) = served.failed_record() {
            let why = served.watch.explain(&record);
            return Err(if is_denial(code) { LogError::Unauthorized(why) } else { LogError::Refused(why) });
        }
        if let Some((_, text)) = served.client.fatal() {
            return Err(LogError::Retriable(served.watch.explain(&text)));
        }
        refused.map_or(Ok(()), Err)
    }
}

impl Appender for KafkaAppender {
    fn append(&mut self, appends: &mut Vec<Append>, give_up: &dyn Fn() -> bool) -> Result<(), LogError> {
        if appends.is_empty() {
            return Ok(());
        }
        let served = match self.served.take() {
            Some(served) => served,
            None => Served::open(&settings::acknowledged(&self.options), &self.name)?,
        };
        let appended = self.run(&served, appends, give_up);
        match &appended {
            Ok(()) => self.served = Some(served),
            // A record that was refused leaves a gap in its partition's sequence, a fatal error ends the handle.
            Err(_) => self.known.clear(),
        }
        appended
    }
}

/// Takes out what is acknowledged: of each partition all in front of its first record that was refused or not handed
/// over. The records are numbered through; `handed` are the numbers of those handed over.
fn take_out(appends: &mut Vec<Append>, handed: Range<usize>, mut refused: Vec<usize>) {
    refused.sort_unstable();
    let mut number = handed.start;
    for append in appends.iter_mut() {
        let end = (number + append.records.len()).min(handed.end).max(number);
        let first = refused.partition_point(|refused| *refused < number);
        let acknowledged = refused.get(first).map_or(end, |refused| end.min(*refused)) - number;
        number += append.records.len();
        append.records.drain(..acknowledged);
    }
    appends.retain(|append| !append.records.is_empty());
}

fn is_slow(failure: &Failure) -> bool {
    failure.retriable || failure.code == Code::OperationTimedOut
}

fn given_up(served: &Served) -> LogError {
    LogError::Migrated(served.watch.explain("given up while records were on their way"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::NewRecord;

    #[test]
    fn what_is_left_begins_at_the_first_record_that_is_not_acknowledged() {
        let left = |handed: Range<usize>, refused: &[usize]| {
            let append = |partition, count| Append {
                to: TopicPartition::new(&Arc::from("t"), partition),
                records: vec![NewRecord::default(); count],
            };
            // Numbers 1 to 3, 4 and 5, 6.
            let mut appends = vec![append(0, 3), append(1, 2), append(2, 1)];
            take_out(&mut appends, handed, refused.to_vec());
            appends.iter().map(|append| (append.to.partition, append.records.len())).collect::<Vec<_>>()
        };
        assert_eq!(left(1..7, &[]), []);
        assert_eq!(left(1..7, &[5, 4]), [(1, 2)]);
        assert_eq!(left(1..7, &[2]), [(0, 2)], "order: what stands behind it is appended again");
        assert_eq!(left(1..7, &[6, 3, 5]), [(0, 1), (1, 1), (2, 1)]);
        assert_eq!(left(1..5, &[]), [(1, 1), (2, 1)]);
        assert_eq!(left(1..3, &[1]), [(0, 3), (1, 2), (2, 1)]);
    }
}
