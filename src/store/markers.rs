//! Finding REMOVE markers by their stamps, without a look at every key.
//!
//! R8: each marker in the store has a row (`schema.rs`), written in the same batch. A row may be left behind by a marker
//!     that something newer has replaced; it is dropped when it is met, so writing an entry costs no look at what was
//!     there before. Whoever drops rows writes nothing else to the store meanwhile: there is one writer. Dropping leaves no
//!     link (L1): where it is lost, nothing is missing.

use bytes::Bytes;
use rocksdb::{IteratorMode, ReadOptions, WriteBatch};

use super::{Store, StoreError, schema};

/// What a search has found.
#[derive(Debug, Default)]
pub struct Found {
    /// Keys that hold markers, by their stamps.
    pub keys: Vec<Bytes>,
    /// The row at which it has ended; `None` = there is no more.
    pub last: Option<Vec<u8>>,
}

/// With an encoded entry comes its row, if it is a marker.
pub(super) fn put(batch: &mut WriteBatch, key: &[u8], entry: &[u8]) {
    if let Some(row) = schema::marker_row(key, entry) {
        batch.put(row, []);
    }
}

/// With an encoded entry goes its row.
pub(super) fn forget(batch: &mut WriteBatch, key: &[u8], entry: Option<&[u8]>) {
    if let Some(row) = entry.and_then(|entry| schema::marker_row(key, entry)) {
        batch.delete(row);
    }
}

impl Store {
    /// The markers at or below `horizon`, from behind the row `after` on, among at most `at_most` rows. Drops rows
    /// that are left over (R8).
    ///
    /// # Errors
    /// What the database says; [`StoreError::Corrupted`] for what cannot be read.
    pub fn markers(&self, horizon: u64, after: &[u8], at_most: usize) -> Result<Found, StoreError> {
        self.is_intact()?;
        let mut options = ReadOptions::default();
        let from = if after.is_empty() { vec![schema::MARKER] } else { [after, &[0]].concat() };
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(schema::behind_markers(horizon));
        let (mut found, mut left_over) = (Found::default(), WriteBatch::default());
        for (number, row) in self.db.iterator_opt(IteratorMode::Start, options).enumerate() {
            let (row, _) = row.map_err(|error| self.failed(&error))?;
            let key =
                schema::key_of_row(&row).ok_or_else(|| self.damaged("a row of a marker cannot be read".into()))?;
            let entry = self.raw(&schema::entry_key(key))?;
            if entry.and_then(|entry| schema::marker_row(key, &entry)).as_deref() == Some(&row[..]) {
                found.keys.push(Bytes::copy_from_slice(key));
            } else {
                left_over.delete(&row);
            }
            if number + 1 == at_most {
                found.last = Some(row.into());
                break;
            }
        }
        if !left_over.is_empty() {
            self.db.write(left_over).map_err(|error| self.failed(&error))?;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::entry::Entry;
    use crate::event::Action;
    use crate::stamp::Stamp;
    use crate::store::Stores;
    use crate::store::schema::{Checkpoint, Identity};

    const AT: Checkpoint = Checkpoint { position: 1, at_end_ms: 1 };

    fn entry(sequence: u64, path: &[u32], action: Action) -> Entry {
        Entry { stamp: Stamp { sequence, generation: 0, path: path.into() }, action, value: None, origin: Bytes::new() }
    }

    fn open(folder: &std::path::Path) -> (Stores, Store) {
        let stores = Stores::new(folder.to_owned(), 1 << 20, 1 << 20);
        let identity = Identity { application: "t".into(), partition: 0, changelog_id: "i".into() };
        let (store, _) = stores.open(&identity).unwrap();
        (stores, store)
    }

    /// All markers, some at a time.
    fn all(store: &Store, horizon: u64, at_most: usize) -> Vec<Bytes> {
        let (mut keys, mut after) = (Vec::new(), Vec::new());
        loop {
            let found = store.markers(horizon, &after, at_most).unwrap();
            keys.extend(found.keys);
            match found.last {
                Some(last) => after = last,
                None => return keys,
            }
        }
    }

    fn rows(store: &Store) -> usize {
        let rows = store.db.iterator(IteratorMode::Start).map(|item| item.unwrap().0);
        rows.filter(|key| key[0] == schema::MARKER).count()
    }

    /// What is written to a key: nothing, or an entry of this sequence and path that is a marker or is not.
    type Write = (u8, Option<(u64, Vec<u32>, bool)>);

    fn writes() -> impl Strategy<Value = Vec<Write>> {
        let what = prop::option::of((0u64..20, prop::collection::vec(0u32..3, 0..3), any::<bool>()));
        prop::collection::vec((0u8..6, what), 0..40)
    }

    proptest! {
        /// R8: the rows find exactly the markers at or below the horizon, by stamp; what is met and left over is gone.
        #[test]
        fn the_markers_up_to_a_horizon_are_found_in_order(writes in writes(), horizon in 0u64..22, at_most in 1usize..5) {
            let folder = tempfile::tempdir().unwrap();
            let (_stores, store) = open(folder.path());
            let mut held: BTreeMap<Bytes, Entry> = BTreeMap::new();
            for (key, what) in writes {
                let key = Bytes::from(vec![b'k', key]);
                let new = what.map(|(sequence, path, removed)| {
                    entry(sequence, &path, if removed { Action::Remove } else { Action::Add })
                });
                store.write([(&key, new.as_ref())], None, AT).unwrap();
                match new {
                    Some(new) => drop(held.insert(key, new)),
                    None => drop(held.remove(&key)),
                }
            }
            let is_over = |entry: &Entry| entry.action == Action::Remove && entry.stamp.sequence <= horizon;
            let mut expected: Vec<_> = held.iter().filter(|(_, entry)| is_over(entry)).collect();
            expected.sort_by(|a, b| (&a.1.stamp, a.0).cmp(&(&b.1.stamp, b.0)));
            let expected: Vec<Bytes> = expected.into_iter().map(|(key, _)| key.clone()).collect();
            prop_assert_eq!(all(&store, horizon, at_most), expected.clone());
            let markers = held.values().filter(|entry| entry.action == Action::Remove).count();
            prop_assert_eq!(all(&store, u64::MAX, at_most).len(), markers);
            prop_assert_eq!(rows(&store), markers, "rows are left over");
            // A marker goes with its row.
            store.write(expected.iter().map(|key| (key, None)), None, AT).unwrap();
            prop_assert_eq!(rows(&store), markers - expected.len());
            prop_assert_eq!(all(&store, horizon, at_most), Vec::<Bytes>::new());
        }
    }

    /// B4: a store that is filled has the same rows, also where neither entries nor rows fit into memory.
    #[test]
    fn a_store_that_is_filled_has_the_rows_of_its_markers() {
        for (keys, buffers) in [(10u64, 1 << 20), (40_000, 1 << 20), (40_000, 64 << 20)] {
            let folder = tempfile::tempdir().unwrap();
            let stores = Stores::new(folder.path().to_owned(), 1 << 20, buffers);
            let identity = Identity { application: "t".into(), partition: 0, changelog_id: "i".into() };
            let (store, _) = stores.open(&identity).unwrap();
            let turn = stores.turn(keys, || true).unwrap();
            let mut bulk = stores.fill(&store, &turn);
            let key = |number: u64| Bytes::from(format!("key {number}"));
            for number in 0..keys {
                bulk.put(&key(number), &entry(number, &[], Action::Remove)).unwrap();
            }
            for number in (0..keys).filter(|number| number % 3 > 0) {
                match number % 3 {
                    1 => bulk.put(&key(number), &entry(number + 1, &[], Action::Add)).unwrap(),
                    _ => bulk.delete(&key(number)).unwrap(),
                }
            }
            bulk.finish(&store, None, AT).unwrap();
            let expected: Vec<Bytes> = (0..keys).filter(|number| number % 3 == 0).map(key).collect();
            assert_eq!(all(&store, keys, 1000), expected);
            assert_eq!(rows(&store), expected.len());
            assert_eq!(all(&store, 2, 1000), [key(0)]);
        }
    }
}
