//! At the producer: what a transaction tells of marks is not as it should be.

use prost::Message;
use tidegate::log::{NewRecord, Transaction};
use tidegate::proto::Progress;
use tidegate::stamp::SEQUENCE_LIMIT;

use super::producer::under;
use super::{Bug, Planted};

impl Planted {
    pub(super) fn with_other_marks(&self, transaction: &Transaction) -> Transaction {
        let mut other = under(transaction, transaction.membership.clone());
        for append in other.appends.iter_mut().filter(|append| append.to.topic == self.topics.progress) {
            append.records.iter_mut().for_each(|record| self.change(record));
        }
        other
    }

    fn change(&self, record: &mut NewRecord) {
        let Some(mut progress) = record.value.clone().and_then(|value| Progress::decode(value).ok()) else { return };
        for mark in &mut progress.marks {
            match self.bug {
                Some(Bug::EndsForgotten) => mark.ends.clear(),
                Some(Bug::OneEnd) => mark.ends.truncate(1),
                _ => {}
            }
        }
        if self.is(Bug::Acknowledged) {
            progress.source_positions.iter_mut().for_each(|at| at.mark = Some(SEQUENCE_LIMIT - 1));
        }
        record.value = Some(progress.encode_to_vec().into());
    }
}
