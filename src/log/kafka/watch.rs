//! What librdkafka says on the side: errors and log lines of a handle, kept for messages and passed on to tracing.
//!
//! W1: every error of the network that may have touched a request on its way counts as a disturbance (protocol P7).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::errors::{Code, passing};

/// Listens to one handle.
#[derive(Debug, Default)]
pub struct Watch {
    name: String,
    last: Mutex<Option<String>>,
    news: Mutex<Vec<(Code, String)>>,
    disturbances: AtomicU64,
}

/// News that nobody fetches are dropped beyond so many.
const NEWS: usize = 64;

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Without times and counts: what is told again is the same text again.
fn timeless(text: &str) -> &str {
    text.split_once(" (after ").map_or(text, |(what, _)| what)
}

impl Watch {
    /// A watch for the handle of this name.
    pub fn new(name: &str) -> Watch {
        Watch { name: name.to_owned(), ..Watch::default() }
    }

    /// An error event of the handle.
    pub fn error(&self, code: Code, text: String) {
        tracing::debug!(handle = %self.name, code = ?code, "{text}");
        let text = timeless(&text).to_owned();
        if passing(code) || matches!(code, Code::SSL | Code::Authentication) {
            self.disturbances.fetch_add(1, Ordering::SeqCst);
        }
        if code != Code::AllBrokersDown {
            *lock(&self.last) = Some(text.clone());
        }
        let mut news = lock(&self.news);
        if news.len() < NEWS {
            news.push((code, text));
        }
    }

    /// A log line of the handle, with syslog's level.
    pub fn log(&self, level: i32, facility: &str, line: &str) {
        if matches!(facility, "FAIL" | "REQTMOUT" | "TIMEOUT") {
            self.disturbances.fetch_add(1, Ordering::SeqCst);
        }
        if facility == "FAIL" {
            // A connection that was closed is told here alone; the thread in front of it is of no interest.
            let text = line.split_once("]: ").map_or(line, |(_, text)| text);
            *lock(&self.last) = Some(timeless(text).to_owned());
        }
        match level {
            // A broker that cannot be reached, once for every handle: it is told as an error, too. A transaction that
            // fails: its call tells.
            _ if matches!(facility, "FAIL" | "TXNERR" | "ADDPARTS" | "TXNOFFSETS" | "GETPID") => {
                tracing::debug!(handle = %self.name, facility, "{line}");
            }
            0..=4 => tracing::warn!(handle = %self.name, facility, "{line}"),
            5..=6 => tracing::info!(handle = %self.name, facility, "{line}"),
            _ => tracing::debug!(handle = %self.name, facility, "{line}"),
        }
    }

    /// Adds what was heard last, such as the broker's address and why it cannot be reached.
    pub fn explain(&self, text: &str) -> String {
        match lock(&self.last).as_deref() {
            Some(last) if !text.contains(last) => format!("{text} (last heard: {last})"),
            _ => text.to_owned(),
        }
    }

    /// How many errors there were so far.
    pub fn disturbances(&self) -> u64 {
        self.disturbances.load(Ordering::SeqCst)
    }

    /// The errors since the call before.
    pub fn news(&self) -> Vec<(Code, String)> {
        std::mem::take(&mut *lock(&self.news))
    }
}
