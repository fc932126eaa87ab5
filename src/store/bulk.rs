//! The fast way into an empty store: sorted runs, merged into files that RocksDB takes as they are.
//!
//! B1: nothing of it is in the store before all of it is: entries, bookkeeping and checkpoint arrive in one atomic
//!     step. A crash before leaves a store whose checkpoint is 0, and that is filled from the beginning.
//! B2: what is sorted in memory is bounded by a budget, whatever the size of the state.
//! B3: of a key counts what was said last, but of two entries with no deletion between them the one with the greater
//!     stamp: compaction of the changelog keeps the last offset, not the greatest stamp. Runs keep enough to tell.

mod files;
mod merge;
mod run;

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use rocksdb::{Options, WriteBatch};

use super::schema::{self, Checkpoint};
use super::{Store, StoreError, failure};
use crate::entry::Entry;
use files::Files;
use merge::Spill;
use run::{Buffer, Item, Said};

/// Less than this is not worth files of its own, in bytes.
const SMALL: usize = 1 << 20;

/// The folder in a store's folder in which the files are made.
const FOLDER: &str = "filling";

/// Collects what an empty store is to hold.
pub struct Bulk {
    folder: PathBuf,
    options: Options,
    budget: usize,
    buffer: Buffer,
    spill: Option<Spill>,
}

impl std::fmt::Debug for Bulk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bulk").field(&self.folder).finish()
    }
}

impl Bulk {
    /// For the store whose folder and options these are; sorts in `budget` bytes.
    pub(super) fn new(store: PathBuf, options: Options, budget: usize) -> Bulk {
        Bulk { folder: store.join(FOLDER), options, budget, buffer: Buffer::default(), spill: None }
    }

    /// The key holds this.
    pub fn put(&mut self, key: &[u8], entry: &Entry) -> Result<(), StoreError> {
        self.buffer.push(Said::Put, key, |out| schema::encode_entry_into(entry, out));
        self.spill_if_full()
    }

    /// The key holds nothing any more.
    pub fn delete(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.buffer.push(Said::Deleted, key, |_| {});
        self.spill_if_full()
    }

    fn spill_if_full(&mut self) -> Result<(), StoreError> {
        if self.buffer.memory() < self.budget { Ok(()) } else { self.spill().map_err(|error| self.failed(&error)) }
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.spill.is_none() {
            self.clear()?;
            self.spill = Some(Spill::create(&self.folder)?);
        }
        let Some(spill) = &mut self.spill else { return Ok(()) };
        spill.write(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// What an earlier try has left goes.
    fn clear(&self) -> io::Result<()> {
        remove(&self.folder)?;
        std::fs::create_dir_all(&self.folder)
    }

    fn failed(&self, error: &io::Error) -> StoreError {
        failure::of_system(&self.folder, error)
    }

    /// Brings everything into the store, which has to be empty, in one step (B1).
    pub fn finish(
        mut self,
        store: &Store,
        bookkeeping: Option<&Bytes>,
        checkpoint: Checkpoint,
    ) -> Result<(), StoreError> {
        if self.spill.is_none() && self.buffer.memory() < SMALL {
            return self.write(store, bookkeeping, checkpoint);
        }
        // 1. Files with the entries, and one with what the store says of itself, which lies in the way of no entry.
        if self.spill.is_some() && !self.buffer.is_empty() {
            self.spill().map_err(|error| self.failed(&error))?;
        } else if self.spill.is_none() {
            self.clear().map_err(|error| self.failed(&error))?;
        }
        let mut files = Files::new(&self.folder, &self.options);
        let mut take = |item: &Item<'_>| match item.said {
            Said::Deleted => Ok(()),
            Said::Put | Said::PutAnew => files.put(item.key, item.value),
        };
        match &self.spill {
            Some(spill) => spill.merge(self.budget, &mut take),
            None => self.buffer.sorted(&mut take),
        }
        .map_err(|error| self.failed(&error))?;
        let (bookkeeping, checkpoint) = (bookkeeping.map(|bytes| &bytes[..]), schema::encode(&checkpoint));
        let bookkeeping = bookkeeping.map(|bytes| (schema::BOOKKEEPING, bytes));
        // 2. The store takes all of them or none. A crash before leaves files that the next try deletes.
        store.ingest(|(link, value)| {
            let own = [(&link[..], &value[..])].into_iter().chain(bookkeeping);
            let paths = files.finish(own.chain([(schema::CHECKPOINT, &checkpoint[..])]));
            paths.map_err(|error| self.failed(&error))
        })
        // 3. Dropping deletes the folder. A crash before leaves an empty one.
    }

    /// All of it in one batch.
    fn write(&self, store: &Store, bookkeeping: Option<&Bytes>, checkpoint: Checkpoint) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        let taken = self.buffer.sorted(&mut |item| {
            if item.said != Said::Deleted {
                batch.put(item.key, item.value);
            }
            Ok(())
        });
        taken.map_err(|error| self.failed(&error))?;
        store.write_batch(batch, bookkeeping, checkpoint)
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        // What stays is deleted by the next try.
        let _ = remove(&self.folder);
    }
}

fn remove(folder: &std::path::Path) -> io::Result<()> {
    std::fs::remove_dir_all(folder)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
