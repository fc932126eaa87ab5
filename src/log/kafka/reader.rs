//! Reads one partition outside of any group: restores, standbys, observers.
//!
//! R1: the position passes control and aborted records at the end of what can be read, so that it reaches it (protocol P12).
//! R2: an error that follows records is told by the next call; no record is skipped.

use std::sync::Arc;
use std::time::Duration;

use super::arena::Arena;
use super::errors::{Code, log_error, of_failure, passing};
use super::native::{Batch, Client};
use super::rights::{self, Resource};
use super::settings::{self, KafkaOptions};
use super::watch::Watch;
use crate::log::{Isolation, LogError, Reader, Record, TopicPartition};

/// Records returned by one call, at most.
const BATCH: usize = 10_000;

/// A consumer of one partition, by assignment only.
pub struct KafkaReader {
    client: Client,
    watch: Arc<Watch>,
    of: TopicPartition,
    headers: bool,
    position: i64,
    timeout: Duration,
    prefix: String,
    batch: Batch,
    arena: Arena,
    waiting: Option<LogError>,
}

impl KafkaReader {
    /// Does not wait for the broker.
    pub fn open(
        options: &KafkaOptions,
        of: &TopicPartition,
        position: i64,
        isolation: Isolation,
        headers: bool,
    ) -> Result<KafkaReader, LogError> {
        if position < 0 {
            return Err(LogError::Fatal(format!("a reader of {of} cannot begin at {position}")));
        }
        let watch = Arc::new(Watch::new(&format!("reader of {of}")));
        let client = Client::open(true, &settings::reader(options, isolation), Arc::clone(&watch), None)
            .map_err(LogError::Fatal)?;
        client.assign(&[(of.clone(), position)]).map_err(|failure| of_failure("assign", &failure))?;
        let (batch, arena) = (Batch::default(), Arena::default());
        let (timeout, prefix) = (options.call_timeout, options.prefix.clone());
        let of = of.clone();
        Ok(KafkaReader { client, watch, of, headers, position, timeout, prefix, batch, arena, waiting: None })
    }

    fn error(&self, code: Code, text: &str) -> Option<LogError> {
        match code {
            Code::AutoOffsetReset | Code::OffsetOutOfRange => match self.client.watermarks(&self.of, self.timeout) {
                Ok((low, _)) => Some(LogError::OutOfRange(self.of.clone(), low)),
                Err(failure) => Some(of_failure(&format!("{} is out of range; its start", self.of), &failure)),
            },
            // The group is only a name that librdkafka wants; nothing is asked of it.
            Code::GroupAuthorizationFailed | Code::CoordinatorNotAvailable | Code::NotCoordinator => None,
            Code::TopicAuthorizationFailed => {
                Some(rights::missing(&[("Read", Resource::Topic(&self.of.topic))], &self.prefix, text))
            }
            code => Some(log_error(code, self.watch.explain(&format!("reading {}: {text}", self.of)))),
        }
    }
}

impl Reader for KafkaReader {
    fn next(&mut self, timeout: Duration) -> Result<Vec<Record>, LogError> {
        if let Some(error) = self.waiting.take() {
            return Err(error);
        }
        let mut batch = std::mem::take(&mut self.batch);
        // A batch call waits until the batch is full: the first record is waited for, the others only taken along.
        if self.client.consume(1, timeout, &mut batch) > 0 {
            self.client.consume(BATCH - 1, Duration::ZERO, &mut batch);
        }
        let mut records = Vec::with_capacity(batch.iter().size_hint().0);
        let mut failed = None;
        for message in batch.iter() {
            match message.code() {
                Code::NoError => {
                    records.push(self.arena.record(&message, self.headers));
                    self.position = message.offset() + 1;
                }
                // R1: librdkafka's own position is no help: its batch calls count this very event as a record.
                Code::PartitionEOF => self.position = self.position.max(message.offset()),
                code => {
                    failed = self.error(code, &message.error_text());
                    if failed.is_some() {
                        break;
                    }
                }
            }
        }
        batch.clear();
        self.batch = batch;
        for (code, text) in self.watch.news() {
            if records.is_empty() && failed.is_none() && code == Code::AllBrokersDown {
                failed = self.error(code, &text);
            } else if code == Code::Fatal || !passing(code) {
                tracing::warn!(of = %self.of, code = ?code, "{text}");
            }
        }
        match failed {
            Some(error) if records.is_empty() => Err(error),
            failed => {
                self.waiting = failed; // R2
                Ok(records)
            }
        }
    }

    fn position(&self) -> i64 {
        self.position
    }
}
