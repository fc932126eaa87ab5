//! The Kafka side of a commit without transactions: records that are acknowledged before the call returns.
//!
//! L5: the producer is idempotent and never stops trying by itself, so a record is either acknowledged or refused for
//!     good by the time a call returns; nothing of it lands later. Only when it is told to give up, because the
//!     partitions are not its own any more, are records left to their fate: those on their way may still arrive.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::errors::{of_failure, passing};
use super::native::{Code, Failure};
use super::producer::{Served, enqueue};
use super::rights::is_denial;
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

    fn run(&mut self, served: &Served, appends: &[Append], give_up: &dyn Fn() -> bool) -> Result<(), LogError> {
        for append in appends {
            self.learn(served, &append.to, give_up)?;
        }
        let refused = appends.iter().find_map(|append| {
            let failure = enqueue(&served.client, append, &|| !give_up()).err()?;
            Some(of_failure(&format!("produce to {}", append.to), &failure))
        });
        // Also what was handed over before a refusal is waited for (L5).
        while let Err(failure) = served.client.flush(STEP) {
            if !is_slow(&failure) {
                return Err(of_failure("flush", &failure));
            }
            if give_up() {
                return Err(given_up(served));
            }
        }
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
    fn append(&mut self, appends: &[Append], give_up: &dyn Fn() -> bool) -> Result<(), LogError> {
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

fn is_slow(failure: &Failure) -> bool {
    failure.retriable || failure.code == Code::OperationTimedOut
}

fn given_up(served: &Served) -> LogError {
    LogError::Migrated(served.watch.explain("given up while records were on their way"))
}
