//! Changes that follow on what a store holds already.

use bytes::Bytes;
use hashbrown::HashMap;

use crate::changelog::Change;
use crate::entry::Entry;
use crate::store::schema::Checkpoint;
use crate::store::{Store, StoreError};

/// Changes are written to the store in batches of about this many bytes.
const BATCH: usize = 16 << 20;

/// What was read of a key.
struct Read {
    entry: Option<Entry>,
    /// A tombstone came before it: what the store holds does not count.
    anew: bool,
}

/// Changes that are read and not written.
pub(super) struct Tail<'a> {
    store: &'a Store,
    keys: HashMap<Bytes, Read>,
    bookkeeping: Option<Bytes>,
    bytes: usize,
}

impl<'a> Tail<'a> {
    pub(super) fn new(store: &'a Store) -> Tail<'a> {
        Tail { store, keys: HashMap::new(), bookkeeping: None, bytes: 0 }
    }

    pub(super) fn take(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Bookkeeping(bytes) => self.bookkeeping = Some(bytes),
                Change::Delete(key) => {
                    self.bytes += key.len() + 64;
                    self.keys.insert(key, Read { entry: None, anew: true });
                }
                Change::Put(key, entry) => {
                    self.bytes += key.len() + entry.weight();
                    let read = self.keys.entry(key).or_insert(Read { entry: None, anew: false });
                    if !is_above(read.entry.as_ref(), &entry) {
                        read.entry = Some(entry);
                    }
                }
            }
        }
    }

    /// Writes what has come together, if that is much.
    pub(super) fn write_if_large(&mut self, checkpoint: Checkpoint) -> Result<(), StoreError> {
        if self.bytes < BATCH { Ok(()) } else { self.write(checkpoint) }
    }

    /// Writes what has come together.
    pub(super) fn write(&mut self, checkpoint: Checkpoint) -> Result<(), StoreError> {
        let mut read: Vec<_> = self.keys.drain().collect();
        read.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let mut entries = Vec::with_capacity(read.len());
        for (key, Read { entry, anew }) in &read {
            let is_old = match entry {
                Some(entry) if !anew => is_above(self.store.get(key)?.as_ref(), entry),
                _ => false,
            };
            if !is_old {
                entries.push((key, entry.as_ref()));
            }
        }
        self.bytes = 0;
        self.store.write(entries, self.bookkeeping.take().as_ref(), checkpoint)
    }
}

/// Whether what is held has the greater stamp (Z3).
fn is_above(held: Option<&Entry>, entry: &Entry) -> bool {
    held.is_some_and(|held| held.stamp > entry.stamp)
}
