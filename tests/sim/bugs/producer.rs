//! At the producer: what becomes of a transaction, and what is made of that.

use std::sync::Arc;

use tidegate::event::StampedEvent;
use tidegate::log::{CommitError, LogError, Membership, NewRecord, Producer, Receipt, Transaction};

use super::{Bug, Planted};

/// A producer that is not to be trusted.
pub(super) struct BuggyProducer {
    pub(super) inner: Box<dyn Producer>,
    pub(super) planted: Arc<Planted>,
    /// The outcome of the last transaction is not known.
    pub(super) in_doubt: bool,
}

impl Producer for BuggyProducer {
    fn commit(&mut self, transaction: &Transaction) -> Result<Receipt, CommitError> {
        let ended = match self.planted.bug {
            Some(Bug::ChildrenTwice) => self.inner.commit(&self.planted.with_more_children(transaction)),
            Some(Bug::EndsForgotten | Bug::OneEnd | Bug::Acknowledged) => {
                self.inner.commit(&self.planted.with_other_marks(transaction))
            }
            _ if self.planted.miscounts() => {
                let mut changed = under(transaction, transaction.membership.clone());
                self.planted.miscount(&mut changed);
                self.inner.commit(&changed)
            }
            _ => self.inner.commit(transaction),
        };
        self.in_doubt = matches!(ended, Err(CommitError::Unknown(_)));
        match (self.planted.bug, ended) {
            (Some(Bug::AbortTakenForCommit), Err(CommitError::Aborted(_))) => Ok(Receipt::default()),
            (Some(Bug::UnknownSentAgain), Err(CommitError::Unknown(_))) => {
                // Whether that succeeds is not looked at either.
                let _ = self.inner.recover();
                self.commit(transaction)
            }
            (Some(Bug::MembershipFresh), Err(CommitError::Stale(reason))) => {
                let newest = self.planted.state().newest.clone();
                match newest.filter(|newest| *newest != transaction.membership) {
                    Some(newest) => self.commit(&under(transaction, newest)),
                    None => Err(CommitError::Stale(reason)),
                }
            }
            (Some(Bug::CheckpointTooHigh), Ok(mut receipt)) => {
                receipt.ends.iter_mut().for_each(|(_, end)| *end += 1);
                Ok(receipt)
            }
            (_, ended) => ended,
        }
    }

    fn recover(&mut self) -> Result<(), LogError> {
        if self.planted.is(Bug::NotRecovered) && std::mem::take(&mut self.in_doubt) {
            return Ok(());
        }
        self.inner.recover()
    }
}

impl Planted {
    /// The children of events that have succeeded after a retry stand there twice.
    fn with_more_children(&self, transaction: &Transaction) -> Transaction {
        let retried = &self.state().retried;
        let is_doubled = |record: &NewRecord| {
            let event = record.key.clone().zip(record.value.clone());
            let stamp = event.and_then(|(key, value)| StampedEvent::decode(key, value).ok()).map(|event| event.stamp);
            let index = stamp.as_ref().and_then(|stamp| stamp.path.last().copied());
            index.is_some_and(|index| retried.iter().any(|parent| Some(parent.child(index)) == stamp))
        };
        let mut doubled = under(transaction, transaction.membership.clone());
        for append in doubled.appends.iter_mut().filter(|append| append.to.topic == self.topics.repartition) {
            let more: Vec<_> = append.records.iter().filter(|record| is_doubled(record)).cloned().collect();
            append.records.extend(more);
        }
        doubled
    }
}

/// The same under another membership.
pub(super) fn under(transaction: &Transaction, membership: Membership) -> Transaction {
    let Transaction { appends, offsets, ends_of, .. } = transaction;
    Transaction { appends: appends.clone(), offsets: offsets.clone(), membership, ends_of: ends_of.clone() }
}
