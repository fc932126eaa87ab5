//! Transactions in steps, as a broker sees them: begun, appended to while readers wait at the last
//! stable offset, decided. [`super::EmbeddedLog`]'s producers need only the short form in
//! `producer.rs`; the steps are for faults: a holder that dies between two of them.
//!
//! ```text
//!     begin --> undecided --decide(true)---> committed: its row goes, its offsets are the group's
//!                 |    '----decide(false)--> aborted: its row stays while its records do
//!                 '---------fence, producer, recover: aborted
//! ```
//!
//! X1: readers of committed records never pass the first record of an undecided transaction, and
//!     never see one of an aborted transaction, also after a crash.
//! X2: an undecided transaction survives a crash undecided; only its id's next holder ends it.
//! X3: a number is never given twice: it stands in batches.

use super::schema::{self, PendingOffset, Span, TransactionRow};
use super::state::{Core, Shared};
use super::write::Staged;
use crate::log::{Append, LogError, Membership, OffsetCommit};

impl Shared {
    /// Begins a transaction of `id`; its number.
    pub(super) fn begin(&self, id: &str) -> Result<u64, LogError> {
        self.writable()?;
        let mut core = self.core();
        if let Some((number, _)) = core.undecided().find(|(_, row)| row.id == id) {
            return Err(LogError::Refused(format!("transaction {number} of {id} is undecided")));
        }
        let number = core.last_transaction + 1;
        let row = TransactionRow { id: id.to_owned(), aborted: false, spans: Vec::new(), offsets: Vec::new() };
        let mut staged = Staged::default();
        staged.write.put(schema::LAST_TRANSACTION, number.to_be_bytes());
        staged.write.put(schema::transaction(number), schema::encode_row(&row));
        self.carry_out(&core, staged)?;
        core.last_transaction = number;
        core.transactions.insert(number, row);
        Ok(number)
    }

    /// Appends records that are undecided; their offsets.
    pub(super) fn append_in(&self, number: u64, append: &Append) -> Result<Vec<i64>, LogError> {
        self.writable()?;
        let encoded = self.encode(append, number)?;
        let mut core = self.core();
        let mut row = undecided(&core, number)?.clone();
        if encoded.records == 0 {
            return Ok(Vec::new());
        }
        let mut staged = Staged::default();
        let first = staged.records(&encoded);
        let last = staged.end(&encoded.place) - 1;
        let slot = encoded.place.get().slot;
        match row.spans.iter_mut().find(|span| span.slot == slot) {
            Some(span) => span.last = last,
            None => row.spans.push(Span { slot, first, last }),
        }
        staged.write.put(schema::transaction(number), schema::encode_row(&row));
        let written = self.put(staged)?;
        core.transactions.insert(number, row);
        self.tell(&core, written);
        Ok((first..=last).collect())
    }

    /// Adds positions that become the group's with the commit. The membership is checked here and,
    /// as on a broker, not again when the transaction is decided.
    pub(super) fn offsets_in(
        &self,
        number: u64,
        offsets: &[OffsetCommit],
        membership: &Membership,
    ) -> Result<(), LogError> {
        self.writable()?;
        let offsets = self.resolve(offsets)?;
        let mut core = self.core();
        let mut row = undecided(&core, number)?.clone();
        let group = core.member_of(membership).map_err(LogError::Migrated)?;
        for (slot, offset) in offsets {
            row.offsets.retain(|pending| pending.slot != slot || pending.group != group);
            let OffsetCommit { position, metadata, .. } = offset.clone();
            row.offsets.push(PendingOffset { group: group.clone(), slot, position, metadata });
        }
        let mut staged = Staged::default();
        staged.write.put(schema::transaction(number), schema::encode_row(&row));
        self.carry_out(&core, staged)?;
        core.transactions.insert(number, row);
        Ok(())
    }

    /// Ends the transaction.
    pub(super) fn decide(&self, number: u64, commit: bool) -> Result<(), LogError> {
        self.writable()?;
        self.decide_locked(&mut self.core(), number, commit)
    }

    /// Ends the id's undecided transaction and makes a new holder of it; the holder's epoch.
    pub(super) fn take_over(&self, id: &str) -> Result<u64, LogError> {
        self.writable()?;
        let mut core = self.core();
        let epoch = core.producers.entry(id.to_owned()).or_insert(0);
        *epoch += 1;
        let epoch = *epoch;
        let open: Vec<u64> = core.undecided().filter(|(_, row)| row.id == id).map(|(number, _)| *number).collect();
        for number in open {
            self.decide_locked(&mut core, number, false)?;
        }
        Ok(epoch)
    }

    fn decide_locked(&self, core: &mut Core, number: u64, commit: bool) -> Result<(), LogError> {
        let mut row = undecided(core, number)?.clone();
        let mut staged = Staged::default();
        for span in &row.spans {
            if let Some(place) = self.place_of(span.slot) {
                staged.marker(&place, number);
            }
        }
        if commit {
            for pending in &row.offsets {
                staged.offset(&pending.group, pending.slot, pending.position, &pending.metadata);
            }
        }
        row.aborted = true;
        row.offsets.clear();
        let remembered = !commit && !row.spans.is_empty();
        match remembered {
            true => staged.write.put(schema::transaction(number), schema::encode_row(&row)),
            false => staged.write.delete(schema::transaction(number)),
        }
        let written = self.put(staged)?;
        match remembered {
            true => core.transactions.insert(number, row),
            false => core.transactions.remove(&number),
        };
        self.publish_aborted(core);
        self.tell(core, written);
        Ok(())
    }

    /// Forgets what aborted transactions had below `below` in a partition: those records are gone.
    pub(super) fn trim_aborted(&self, core: &mut Core, slot: schema::Slot, below: i64) -> Result<(), LogError> {
        let gone = |span: &Span| span.slot == slot && span.last < below;
        let touched = core.transactions.iter().filter(|(_, row)| row.aborted && row.spans.iter().any(gone));
        let touched: Vec<u64> = touched.map(|(number, _)| *number).collect();
        for number in touched {
            let mut row = core.transactions[&number].clone();
            row.spans.retain(|span| !gone(span));
            let mut staged = Staged::default();
            match row.spans.is_empty() {
                true => staged.write.delete(schema::transaction(number)),
                false => staged.write.put(schema::transaction(number), schema::encode_row(&row)),
            }
            self.carry_out(core, staged)?;
            match row.spans.is_empty() {
                true => core.transactions.remove(&number),
                false => core.transactions.insert(number, row),
            };
        }
        self.publish_aborted(core);
        Ok(())
    }
}

fn undecided(core: &Core, number: u64) -> Result<&TransactionRow, LogError> {
    let row = core.transactions.get(&number).filter(|row| !row.aborted);
    row.ok_or_else(|| LogError::Migrated(format!("transaction {number} is decided: its producer was fenced")))
}
