//! The transactional producer: a whole transaction in one write, so that no reader ever waits for it.
//!
//! X4: a commit is carried out only while the producer is the living holder of its id and the
//!     membership is that of its member's present generation, checked under the lock that the
//!     write happens under (E4).

use std::sync::Arc;

use super::schema::{self, MembershipRow, Slot};
use super::state::{Core, Shared};
use super::write::{Encoded, Staged};
use crate::log::{Append, Appender, CommitError, LogError, Membership, OffsetCommit, Producer, Receipt, Transaction};

/// The longest offset metadata, in bytes: a broker's default.
const MAX_METADATA_BYTES: usize = 4096;

/// A [`Producer`] of the embedded log.
pub(super) struct EmbeddedProducer {
    shared: Arc<Shared>,
    id: String,
    epoch: u64,
}

impl EmbeddedProducer {
    pub(super) fn new(shared: Arc<Shared>, id: &str) -> Result<EmbeddedProducer, LogError> {
        let epoch = shared.take_over(id)?;
        Ok(EmbeddedProducer { shared, id: id.to_owned(), epoch })
    }
}

impl Producer for EmbeddedProducer {
    fn commit(&mut self, transaction: &Transaction) -> Result<Receipt, CommitError> {
        let aborted = |error: LogError| CommitError::Aborted(error.to_string());
        let appends = transaction.appends.iter().map(|append| self.shared.encode(append, 0));
        let appends: Vec<Encoded> = appends.collect::<Result<_, _>>().map_err(aborted)?;
        let offsets = self.shared.resolve(&transaction.offsets).map_err(aborted)?;
        let core = self.shared.core();
        if core.producers.get(&self.id) != Some(&self.epoch) {
            return Err(CommitError::Fenced(format!("a newer producer holds the transactional id {}", self.id)));
        }
        let mut staged = Staged::default();
        if !offsets.is_empty() {
            let group = core.member_of(&transaction.membership).map_err(CommitError::Aborted)?;
            for (slot, offset) in offsets {
                staged.offset(&group, slot, offset.position, &offset.metadata);
            }
        }
        for encoded in &appends {
            staged.records(encoded);
        }
        // A write that failed may be half in the write-ahead log and be there after a restart.
        self.shared.carry_out(&core, staged).map_err(|error| CommitError::Unknown(error.to_string()))?;
        let ends = transaction.ends_of.iter();
        let ends = ends.filter_map(|of| Some((of.clone(), self.shared.place(of).ok()?.get().end())));
        Ok(Receipt { ends: ends.collect() })
    }

    fn recover(&mut self) -> Result<(), LogError> {
        self.epoch = self.shared.take_over(&self.id)?;
        Ok(())
    }
}

/// An [`Appender`] of the embedded log: one write for each call.
pub(super) struct EmbeddedAppender {
    shared: Arc<Shared>,
}

impl EmbeddedAppender {
    pub(super) fn new(shared: Arc<Shared>) -> EmbeddedAppender {
        EmbeddedAppender { shared }
    }
}

impl Appender for EmbeddedAppender {
    fn append(&mut self, appends: &mut Vec<Append>, _give_up: &dyn Fn() -> bool) -> Result<(), LogError> {
        let encoded = appends.iter().map(|append| self.shared.encode(append, 0));
        let encoded: Vec<Encoded> = encoded.collect::<Result<_, _>>()?;
        if encoded.is_empty() {
            return Ok(());
        }
        let core = self.shared.core();
        let mut staged = Staged::default();
        for encoded in &encoded {
            staged.records(encoded);
        }
        self.shared.carry_out(&core, staged)?;
        appends.clear();
        Ok(())
    }
}

impl Shared {
    /// Commits positions outside of any transaction.
    pub(super) fn commit_offsets(&self, offsets: &[OffsetCommit], membership: &Membership) -> Result<(), LogError> {
        let offsets = self.resolve(offsets)?;
        let core = self.core();
        let group = core.member_of(membership).map_err(LogError::Migrated)?;
        let mut staged = Staged::default();
        for (slot, offset) in offsets {
            staged.offset(&group, slot, offset.position, &offset.metadata);
        }
        self.carry_out(&core, staged)
    }

    /// Finds the partitions of positions that are to be committed.
    pub(super) fn resolve<'a>(&self, offsets: &'a [OffsetCommit]) -> Result<Vec<(Slot, &'a OffsetCommit)>, LogError> {
        let resolve = |offset: &'a OffsetCommit| {
            let slot = self.place(&offset.of)?.get().slot;
            if offset.position < 0 {
                return Err(LogError::Refused(format!("the position {} for {}", offset.position, offset.of)));
            }
            if offset.metadata.len() > MAX_METADATA_BYTES {
                let length = offset.metadata.len();
                return Err(LogError::Refused(format!("offset metadata of {length} bytes for {}", offset.of)));
            }
            Ok((slot, offset))
        };
        offsets.iter().map(resolve).collect()
    }
}

impl Core {
    /// The group, if the membership holds; else the reason why not.
    pub(super) fn member_of(&self, membership: &Membership) -> Result<String, String> {
        let row: MembershipRow = schema::decode_row(&membership.0).ok_or("not a membership of this log")?;
        let group = self.groups.get(&row.group).ok_or_else(|| format!("the group {} has no members", row.group))?;
        match group.refuses(&row) {
            Some(reason) => Err(reason),
            None => Ok(row.group),
        }
    }
}
