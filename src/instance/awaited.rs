//! Those who wait until this instance has read the open record of a retry.
//!
//! A1: nobody waits for what was read already: who comes looks first, and both happen under the lock of the book.

use std::sync::{Mutex, PoisonError};

use crate::frontier::{Book, Verdict};
use crate::retry::Retry;

/// Is told what becomes of the retry, and the greatest number of a retry of its sequence and generation.
type Reply = Box<dyn FnOnce(Verdict, u32) + Send>;

/// Who waits, and for what.
#[derive(Default)]
pub(super) struct Awaited {
    waiting: Mutex<Vec<(Retry, Reply)>>,
}

impl Awaited {
    /// Tells at once, or later by [`Awaited::tell`].
    pub(super) fn ask(&self, book: &Book, retry: Retry, reply: impl FnOnce(Verdict, u32) + Send + 'static) {
        match book.verdict(&retry) {
            Some(verdict) => reply(verdict, greatest(book, &retry)),
            None => self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push((retry, Box::new(reply))),
        }
    }

    /// Something was read: tells those for whom it was that.
    pub(super) fn tell(&self, book: &Book) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.is_empty() {
            return;
        }
        for (retry, reply) in std::mem::take(&mut *waiting) {
            match book.verdict(&retry) {
                Some(verdict) => reply(verdict, greatest(book, &retry)),
                None => waiting.push((retry, reply)),
            }
        }
    }
}

fn greatest(book: &Book, retry: &Retry) -> u32 {
    book.retries(retry.sequence, retry.generation).next_back().map_or(0, |last| last.number)
}

impl std::fmt::Debug for Awaited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Awaited").finish_non_exhaustive()
    }
}
