//! Records appended outside of any transaction.
//!
//! A1: offsets are told only from delivery reports, in the order of the records.

use std::sync::Arc;
use std::time::Duration;

use super::errors::{Code, is_denial, log_error};
use super::native::{Client, Delivery};
use super::rights::{self, Resource};
use super::settings::{self, KafkaOptions};
use super::watch::Watch;
use crate::clock;
use crate::log::{Append, LogError, NewRecord};

/// A plain idempotent producer, shared by callers one after the other.
pub struct Appender {
    client: Client,
    watch: Arc<Watch>,
    timeout: Duration,
    prefix: String,
    next: usize,
}

impl Appender {
    /// Does not need the broker.
    pub fn open(options: &KafkaOptions) -> Result<Appender, LogError> {
        let watch = Arc::new(Watch::new("append"));
        let client = Client::open(false, &settings::plain_producer(options), Arc::clone(&watch), None)
            .map_err(LogError::Fatal)?;
        Ok(Appender { client, watch, timeout: options.call_timeout, prefix: options.prefix.clone(), next: 1 })
    }

    /// True when it has to be replaced.
    pub fn broken(&self) -> bool {
        self.client.fatal().is_some()
    }

    /// Appends and waits for the offsets.
    pub fn append(&mut self, append: &Append) -> Result<Vec<i64>, LogError> {
        let what = format!("append to {}", append.to);
        let first = self.next;
        self.next += append.records.len();
        let told = |code: Code| {
            self.listen();
            // Who may write nowhere is not given a producer id, and the handle is of no more use.
            if is_denial(code) || self.client.fatal().is_some_and(|(why, _)| is_denial(why)) {
                return rights::missing(
                    &[("Write", Resource::Topic(&append.to.topic))],
                    &self.prefix,
                    &code.to_string(),
                );
            }
            log_error(code, self.watch.explain(&format!("{what}: {code}")))
        };
        let partitions = self.client.learn(&append.to.topic, self.timeout).map_err(|failure| told(failure.code))?;
        if append.to.partition >= partitions {
            return Err(LogError::UnknownTopic(append.to.to_string()));
        }
        let mut reports: Vec<Option<(i64, Code)>> = vec![None; append.records.len()];
        let mut enqueued = 0;
        // Reports come at the latest when the records time out; the rest is margin.
        let deadline = clock::now() + self.timeout + Duration::from_secs(5);
        let mut refused = None;
        loop {
            if enqueued < append.records.len() && refused.is_none() {
                match self.enqueue(append, enqueued, first) {
                    (done, None | Some(Code::QueueFull)) => enqueued += done,
                    (done, Some(code)) => {
                        enqueued += done;
                        refused = Some(code);
                    }
                }
            }
            let all_sent = enqueued == append.records.len() || refused.is_some();
            if all_sent && reports[..enqueued].iter().all(Option::is_some) {
                break;
            }
            if clock::now() >= deadline {
                return Err(told(Code::OperationTimedOut));
            }
            let wait = if all_sent { Duration::from_millis(10) } else { Duration::ZERO };
            self.client.serve(wait, &mut |report: Delivery| {
                if let Some(slot) = report.opaque.checked_sub(first).and_then(|at| reports.get_mut(at)) {
                    *slot = Some((report.offset, report.code));
                }
            });
        }
        if let Some(code) = refused {
            return Err(told(code));
        }
        let offset = |report: Option<(i64, Code)>| match report {
            Some((offset, Code::NoError)) => Ok(offset),
            Some((_, code)) => Err(told(code)),
            None => Err(told(Code::OperationTimedOut)),
        };
        reports.into_iter().map(offset).collect()
    }

    /// Hears what happened while nobody served the handle.
    fn listen(&self) {
        for _ in 0..32 {
            self.client.serve(Duration::ZERO, &mut |_| {});
        }
    }

    fn enqueue(&self, append: &Append, from: usize, first: usize) -> (usize, Option<Code>) {
        let rest: &[NewRecord] = &append.records[from..];
        let run = rest.iter().take(10_000).take_while(|record| record.headers.is_empty()).count();
        let result = match run {
            0 => self.client.produce_with_headers(&append.to, &rest[0], first + from).map(|()| 1).map_err(|f| (0, f)),
            run => self.client.produce(&append.to, &rest[..run], first + from).map(|()| run),
        };
        match result {
            Ok(done) => (done, None),
            Err((done, failure)) => (done, Some(failure.code)),
        }
    }
}
