//! Dead letters that are sent again: asked for at a door, accepted by the owner of their partition.
//!
//! Y1: what is answered is what the order of progress decides: of two that ask at the same time one is refused.

use std::time::Duration;

use tokio::sync::oneshot;

use super::engine::{Accepted, Question, Wish};
use super::{Instance, locked};
use crate::event::StampedEvent;
use crate::frontier::Verdict;
use crate::retry::{Letter, Retry};

/// How long a transaction may take, and then the reading of its open records: together shorter than another instance
/// waits for the answer.
const COMMITTED_WITHIN: Duration = Duration::from_secs(6);
const READ_WITHIN: Duration = Duration::from_secs(2);

/// Why a dead letter is not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It was sent again before.
    AlreadyRetried,
    /// The horizon has passed its sequence: REMOVE markers that would outdo it may be deleted.
    BeforeHorizon,
}

/// Why nothing was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// The partition is another instance's.
    NotHere,
    /// Not now, for this reason.
    NotReady(String),
}

impl Instance {
    /// Whether this instance owned the partition a moment ago.
    pub fn owns(&self, partition: i32) -> bool {
        self.status().partitions.contains(&partition)
    }

    /// Whether a dead letter was sent again.
    pub fn is_retried(&self, letter: Letter) -> bool {
        self.shared.observer.book().is_retried(letter)
    }

    /// What keeps a dead letter from being sent again with its original stamp, as far as this instance knows.
    pub fn obstacle(&self, letter: Letter, sequence: u64) -> Option<Obstacle> {
        let book = self.shared.observer.book();
        match book.is_retried(letter) {
            true => Some(Obstacle::AlreadyRetried),
            false if book.horizon().is_some_and(|horizon| sequence <= horizon) => Some(Obstacle::BeforeHorizon),
            false => None,
        }
    }

    /// The wish to send a dead letter again with its original stamp.
    pub fn wish(&self, letter: Letter, event: StampedEvent, forced: bool) -> Wish {
        let book = self.shared.observer.book();
        let known = book.retries(event.stamp.sequence, event.stamp.generation).next_back();
        Wish { letter, known: known.map_or(0, |last| last.number), event: Some(event), forced }
    }

    /// Sends dead letters of one partition again; what became of each, in order. What only waits for its number counts.
    ///
    /// # Errors
    /// [`Unsent`]: with `NotReady` after a failed transaction or a long wait it may not be known whether they are sent.
    pub async fn retry(&self, partition: i32, wishes: Vec<Wish>) -> Result<Vec<Verdict>, Unsent> {
        if wishes.is_empty() {
            return Ok(Vec::new());
        }
        let ask = |answer| Question::Retry(partition, wishes.clone(), answer);
        let asked = locked(&self.shared.engine).as_ref().map(|threads| threads.ask(ask));
        let asked = asked.ok_or_else(|| Unsent::NotReady("it is starting".into()))?;
        let answers = tokio::time::timeout(COMMITTED_WITHIN, futures_util::future::join_all(asked)).await;
        let answers = answers.map_err(|_| Unsent::NotReady("the transaction takes long".into()))?;
        let mut refusal = Unsent::NotHere;
        for answer in answers {
            match answer {
                Ok(Accepted::Committed(retries)) => return Ok(self.verdicts(retries).await),
                Ok(Accepted::NotReady(reason)) => refusal = Unsent::NotReady(reason),
                Ok(Accepted::NotHere) => {}
                Err(_) => refusal = Unsent::NotReady("its transaction was aborted".into()),
            }
        }
        Err(refusal)
    }

    /// Y1.
    async fn verdicts(&self, retries: Vec<Retry>) -> Vec<Verdict> {
        let ask = |retry: Retry| {
            let (told, verdict) = oneshot::channel();
            if retry.number > 0 {
                self.shared.observer.decide(retry, move |verdict, _| _ = told.send(verdict));
            }
            verdict
        };
        let mut asked: Vec<_> = retries.into_iter().map(ask).collect();
        let all = futures_util::future::join_all(&mut asked);
        // One that is not told in time is accepted all the same.
        match tokio::time::timeout(READ_WITHIN, all).await {
            Ok(verdicts) => verdicts.into_iter().map(|verdict| verdict.unwrap_or(Verdict::Counts)).collect(),
            Err(_) => asked.iter().map(|_| Verdict::Counts).collect(),
        }
    }
}
