//! The fast way into an empty store: sorted runs, merged into files that RocksDB takes as they are.
//!
//! B1: nothing of it is in the store before all of it is: entries, bookkeeping and checkpoint arrive in one atomic
//!     step. A crash before leaves a store whose checkpoint is 0, and that is filled from the beginning.
//! B2: what is sorted in memory is bounded by a budget, whatever the size of the state.
//! B3: of a key counts what was said last, but of two entries with no deletion between them the one with the greater
//!     stamp: compaction of the changelog keeps the last offset, not the greatest stamp. Runs keep enough to tell.
//! B4: the rows of markers (R8) are made of the entries that are left, and are sorted once more in a part of the budget.

mod files;
mod merge;
mod run;
mod sorter;

use std::io;
use std::path::PathBuf;

use bytes::Bytes;
use rocksdb::{Options, WriteBatch};

use super::schema::{self, Checkpoint};
use super::{Store, StoreError, failure, markers};
use crate::entry::Entry;
use files::Files;
use run::{Item, Said};
use sorter::Sorter;

/// Less than this is not worth files of its own, in bytes.
const SMALL: usize = 1 << 20;

/// The folder in a store's folder in which the files are made.
const FOLDER: &str = "filling";

/// Collects what an empty store is to hold.
pub struct Bulk {
    folder: PathBuf,
    options: Options,
    entries: Sorter,
    /// For the rows of markers, in bytes.
    rows_budget: usize,
}

impl std::fmt::Debug for Bulk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Bulk").field(&self.folder).finish()
    }
}

impl Bulk {
    /// For the store whose folder and options these are; sorts in `budget` bytes.
    pub(super) fn new(store: PathBuf, options: Options, budget: usize) -> Bulk {
        let (folder, rows_budget) = (store.join(FOLDER), budget / 4);
        Bulk { entries: Sorter::new(folder.clone(), budget - rows_budget), folder, options, rows_budget }
    }

    /// The key holds this.
    pub fn put(&mut self, key: &[u8], entry: &Entry) -> Result<(), StoreError> {
        self.entries.push(Said::Put, &[&[schema::ENTRY], key], |out| schema::encode_entry_into(entry, out));
        self.spill_if_full()
    }

    /// The key holds nothing any more.
    pub fn delete(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.entries.push(Said::Deleted, &[&[schema::ENTRY], key], |_| {});
        self.spill_if_full()
    }

    fn spill_if_full(&mut self) -> Result<(), StoreError> {
        if self.entries.is_full() { self.spill().map_err(|error| self.failed(&error)) } else { Ok(()) }
    }

    fn spill(&mut self) -> io::Result<()> {
        if !self.entries.has_spilled() {
            self.clear()?;
        }
        self.entries.spill()
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
        if !self.entries.has_spilled() && self.entries.memory() < SMALL {
            return self.write(store, bookkeeping, checkpoint);
        }
        // 1. Files with the entries, one with what the store says of itself, and files with the rows of markers: none
        //    lies in the way of another.
        // 2. The store takes all of them or none. A crash before leaves files that the next try deletes.
        store.ingest(|link| self.files(link, bookkeeping, checkpoint).map_err(|error| self.failed(&error)))
        // 3. Dropping deletes the folder. A crash before leaves an empty one.
    }

    fn files(
        &mut self,
        (link, of_link): &(Vec<u8>, Vec<u8>),
        bookkeeping: Option<&Bytes>,
        checkpoint: Checkpoint,
    ) -> io::Result<Vec<PathBuf>> {
        if !self.entries.has_spilled() {
            self.clear()?;
        }
        let mut files = Files::new(&self.folder, &self.options);
        let mut rows = Sorter::new(self.folder.clone(), self.rows_budget);
        self.entries.sorted(&mut |item| {
            if item.said == Said::Deleted {
                return Ok(());
            }
            files.put(item.key, item.value)?;
            let Some(row) = schema::marker_row(&item.key[1..], item.value) else { return Ok(()) };
            rows.push(Said::Put, &[&row], |_| {});
            if rows.is_full() { rows.spill() } else { Ok(()) }
        })?;
        files.end()?;
        files.put(link, of_link)?;
        if let Some(bookkeeping) = bookkeeping {
            files.put(schema::BOOKKEEPING, bookkeeping)?;
        }
        files.put(schema::CHECKPOINT, &schema::encode(&checkpoint))?;
        files.end()?;
        rows.sorted(&mut |row| files.put(row.key, row.value))?;
        files.finish()
    }

    /// All of it in one batch.
    fn write(&mut self, store: &Store, bookkeeping: Option<&Bytes>, checkpoint: Checkpoint) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        let taken = self.entries.sorted(&mut |item: &Item<'_>| {
            if item.said != Said::Deleted {
                markers::put(&mut batch, &item.key[1..], item.value);
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
