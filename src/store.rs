//! Step 8 of 8: the store takes what is committed, in one batch with its place in the changelog.
//!
//! R1: data and checkpoint are written in one batch of one column family, so what a crash leaves is a correct prefix of
//!     the changelog (protocol P11). The write-ahead log is not synced: a process that is killed loses nothing that was
//!     written, a machine that stops loses the newest writes.
//! R2: a store is used only if it says whose it is and that is this partition of this topic; otherwise
//!     it is set aside and restored.
//! R3: what cannot be read is corrupt, never a guess.
//! R4 is in `lease.rs`, R5 to R7 in `aside.rs`, R8 in `markers.rs`, L1 and L2 in `links.rs`, V1 in `framing.rs`; how an
//! empty store is filled in `bulk.rs` and, some at a time, in `turns.rs`.

mod aside;
pub mod bulk;
mod failure;
mod framing;
mod lease;
mod links;
pub mod markers;
pub mod schema;
mod turns;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBRecoveryMode, Direction, IngestExternalFileOptions, IteratorMode, Options,
    WriteBatch, WriteBufferManager,
};

use crate::clock;
use crate::entry::Entry;
use crate::event::Action;
use crate::metrics;
use crate::planted::{self, Bug};
use bulk::Bulk;
pub use failure::StoreError;
use lease::{Lease, Leases};
use links::Links;
use schema::{Checkpoint, Identity};
pub use turns::Turn;
use turns::Turns;

/// Stores that are filled at the same time, where the machine has as many cores.
const FILLED: usize = 8;

/// The largest write buffer of one store, in bytes. RocksDB wants as much space on a disk that was full before it
/// goes on.
const WRITE_BUFFER: usize = 16 << 20;

/// A file with so many deletions among so many rows one after the other, or with half of its rows, is compacted soon:
/// what was deleted gives its space back, also where nothing is written any more.
const DELETIONS: (usize, usize, f64) = (4096, 2048, 0.5);

/// The stores of one instance: they share one block cache and one budget of write buffers.
#[derive(Clone)]
pub struct Stores {
    folder: PathBuf,
    cache: Cache,
    buffers: WriteBufferManager,
    write_buffer: usize,
    leases: Leases,
    set_aside: aside::Count,
    turns: Turns,
    /// What one fill may sort in, in bytes.
    sorting: usize,
}

impl std::fmt::Debug for Stores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stores").field(&self.folder).finish()
    }
}

impl Stores {
    /// Stores below `folder` with a cache and with write buffers of the given bytes.
    pub fn new(folder: PathBuf, cache: usize, buffers: usize) -> Stores {
        let write_buffer = (buffers / 4).clamp(64 << 10, WRITE_BUFFER);
        let buffers = buffers.max(1 << 20);
        let places = std::thread::available_parallelism().map_or(1, usize::from).min(FILLED);
        Stores {
            folder,
            cache: Cache::new_lru_cache(cache.max(1 << 20)),
            // Never stalling: a full budget makes memtables flush early, it does not block writers.
            buffers: WriteBufferManager::new_write_buffer_manager(buffers, false),
            write_buffer,
            leases: Leases::default(),
            set_aside: aside::Count::default(),
            turns: Turns::new(places),
            // Stores that are filled do not use the write buffers.
            sorting: (buffers / places).min(1 << 30),
        }
    }

    /// Waits for the turn to work on a store, the shortest work first; `None` when it is no longer `wanted`.
    pub fn turn(&self, length: u64, wanted: impl Fn() -> bool) -> Option<Turn> {
        self.turns.take(length, wanted)
    }

    /// The fast way into a store that holds nothing yet.
    pub fn fill(&self, store: &Store, _turn: &Turn) -> Bulk {
        Bulk::new(store.path.clone(), self.options(), self.sorting)
    }

    /// The store of a partition, empty when there is none of this identity; then the reason is told too.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the folder cannot be used, [`StoreError::InUse`] while it is open already.
    pub fn open(&self, identity: &Identity) -> Result<(Store, Option<String>), StoreError> {
        let (partition, path) = (identity.partition, self.path(identity.partition));
        let lease = self.lease(partition)?;
        let refused = match lease.damage() {
            Some(reason) => Some(reason),
            None => match self.examine(&path, identity)? {
                Ok(store) => return Ok((store.leased(lease), None)),
                Err(reason) => reason,
            },
        };
        if let Some(reason) = &refused {
            // Also for the next try, if this one ends here.
            lease.condemn(reason);
            self.make_room(partition, &path, reason)?;
        }
        match self.open_at(&path, partition).and_then(|store| store.begin(identity)) {
            Ok(store) => {
                if let Some(reason) = &refused {
                    lease.absolve();
                    metrics::store_rebuilt();
                    self.set_aside.note(partition, clock::now());
                    tracing::warn!(partition, reason, "the local store is set aside and rebuilt from the changelog");
                }
                Ok((store.leased(lease), refused))
            }
            Err(error) => {
                // On a full disk what is half made is in the way. What cannot be deleted is set aside by the next try.
                let _ = aside::remove(&path);
                Err(error)
            }
        }
    }

    /// The store that is there, or why it cannot be used; `None` = there is none.
    fn examine(&self, path: &Path, identity: &Identity) -> Result<Result<Store, Option<String>>, StoreError> {
        match std::fs::read_dir(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Err(None)),
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                return Ok(Err(Some("it is not a folder".into())));
            }
            Err(error) => return Err(failure::of_system(path, &error)),
            // RocksDB would take it for an empty one.
            Ok(_) if !path.join("CURRENT").exists() => return Ok(Err(Some("it has no file CURRENT".into()))),
            Ok(_) => {}
        }
        match framing::examine(path) {
            Ok(None) => {}
            Ok(reason) => return Ok(Err(reason)),
            Err(error) => return Err(failure::of_system(path, &error)),
        }
        let mut store = match self.open_at(path, identity.partition) {
            Ok(store) => store,
            Err(StoreError::Corrupted(_, reason)) => return Ok(Err(Some(reason))),
            Err(error) => return Err(error),
        };
        // Asked first: a value of another version cannot be read, which is noted as damage (R5).
        let format = store.format().unwrap_or(schema::VERSION);
        let reason = match store.value::<Identity>(schema::IDENTITY) {
            _ if format != schema::VERSION => format!("it has format {format}, this version reads {}", schema::VERSION),
            Ok(Some(found)) if found == *identity && store.checkpoint().is_ok_and(|known| known.is_some()) => {
                match Links::read(&store.db, identity.partition) {
                    Ok(links) => {
                        store.links = Mutex::new(links);
                        return Ok(Ok(store));
                    }
                    Err(reason) => reason,
                }
            }
            Ok(Some(found)) if found != *identity => format!("it belongs to {found:?}"),
            Ok(_) => "it does not say what it holds".into(),
            Err(error) => error.to_string(),
        };
        Ok(Err(Some(reason)))
    }

    /// Sets what cannot be used aside, not too often (R7).
    fn make_room(&self, partition: i32, path: &Path, reason: &str) -> Result<(), StoreError> {
        let (times, wait) = self.set_aside.wait(partition, clock::now());
        if !wait.is_zero() {
            let why = format!(
                "it was damaged {times} times within minutes, now {reason}; look at the disk and at the memory of this \
                 machine; it is rebuilt again within a minute"
            );
            return Err(StoreError::Unavailable(path.to_owned(), why));
        }
        aside::set(path).map_err(|error| failure::of_system(path, &error))
    }

    /// Deletes what was set aside, because its space is needed (R6).
    pub fn give_way(&self) {
        aside::clear(&self.folder);
    }

    /// Deletes a partition's store, unless it is open.
    pub fn wipe(&self, partition: i32) -> Result<(), StoreError> {
        let lease = self.lease(partition)?;
        let path = self.path(partition);
        aside::remove(&path).map_err(|error| failure::of_system(&path, &error))?;
        lease.absolve();
        Ok(())
    }

    fn lease(&self, partition: i32) -> Result<Lease, StoreError> {
        self.leases.take(partition).ok_or_else(|| StoreError::InUse(self.path(partition)))
    }

    fn path(&self, partition: i32) -> PathBuf {
        self.folder.join(format!("partition-{partition}"))
    }

    fn options(&self) -> Options {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&self.cache);
        table.set_bloom_filter(10.0, false);
        table.set_cache_index_and_filter_blocks(true);
        // From 6 on a block that stands in another place or file than its own is noticed, and a damaged footer.
        table.set_format_version(6);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_manager(&self.buffers);
        options.set_write_buffer_size(self.write_buffer);
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(0.1);
        options.set_max_open_files(256);
        // Many small stores on one disk: the default reserves 4 MiB for each.
        options.set_manifest_preallocation_size(64 << 10);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_compression_type(rocksdb::DBCompressionType::Lz4);
        options.add_compact_on_deletion_collector_factory(DELETIONS.0, DELETIONS.1, DELETIONS.2);
        // What is behind the first damaged record of the write-ahead log counts as not written (R1).
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        options
    }

    fn open_at(&self, path: &Path, partition: i32) -> Result<Store, StoreError> {
        std::fs::create_dir_all(path).map_err(|error| failure::of_system(path, &error))?;
        let db = DB::open(&self.options(), path).map_err(|error| failure::of_database(path, &error))?;
        let links = Mutex::new(Links::new(partition));
        Ok(Store { db, path: path.to_owned(), links, damage: OnceLock::new(), lease: None })
    }
}

/// The store of one partition.
pub struct Store {
    db: DB,
    path: PathBuf,
    /// Held while anything is written, so that one write follows on the other.
    links: Mutex<Links>,
    /// What is wrong with it, once anyone has found it (R5).
    damage: OnceLock<String>,
    /// Behind `db`: given back once RocksDB has closed its files (R4).
    lease: Option<Lease>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.path).finish()
    }
}

impl Store {
    fn leased(self, lease: Lease) -> Store {
        Store { lease: Some(lease), ..self }
    }

    /// Says whose it is, on the disk: one that does not is no store of ours.
    fn begin(self, identity: &Identity) -> Result<Store, StoreError> {
        let mut batch = WriteBatch::default();
        batch.put(schema::IDENTITY, schema::encode(identity));
        self.write_batch(batch, None, Checkpoint { position: 0, at_end_ms: i64::MAX })?;
        self.flush()?;
        Ok(self)
    }

    /// Why it answers nothing and takes nothing any more (R5).
    pub fn damage(&self) -> Option<&str> {
        self.damage.get().map(String::as_str)
    }

    fn damaged(&self, reason: String) -> StoreError {
        let reason = self.damage.get_or_init(|| reason);
        if let Some(lease) = &self.lease {
            lease.condemn(reason);
        }
        StoreError::Corrupted(self.path.clone(), reason.clone())
    }

    fn failed(&self, error: &rocksdb::Error) -> StoreError {
        match failure::of_database(&self.path, error) {
            StoreError::Corrupted(_, reason) => self.damaged(reason),
            error => error,
        }
    }

    /// # Errors
    /// What is known to be wrong with it.
    pub fn is_intact(&self) -> Result<(), StoreError> {
        match self.damage() {
            None => Ok(()),
            Some(reason) => Err(StoreError::Corrupted(self.path.clone(), reason.to_owned())),
        }
    }

    fn value<T: bincode::Decode<()>>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.raw(key)? else { return Ok(None) };
        schema::decode(&bytes).map(Some).ok_or_else(|| self.damaged("a value cannot be read".into()))
    }

    /// The version that its first value begins with.
    fn format(&self) -> Option<u8> {
        self.raw(schema::IDENTITY).ok().flatten()?.first().copied()
    }

    fn raw(&self, key: &[u8]) -> Result<Option<rocksdb::DBPinnableSlice<'_>>, StoreError> {
        self.is_intact()?;
        self.db.get_pinned(key).map_err(|error| self.failed(&error))
    }

    /// Up to where it holds the changelog.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>, StoreError> {
        self.value(schema::CHECKPOINT)
    }

    /// The partition's bookkeeping, encoded, as of the checkpoint.
    pub fn bookkeeping(&self) -> Result<Option<Bytes>, StoreError> {
        Ok(self.raw(schema::BOOKKEEPING)?.map(|bytes| Bytes::copy_from_slice(&bytes)))
    }

    /// What a key holds.
    pub fn get(&self, key: &[u8]) -> Result<Option<Entry>, StoreError> {
        let Some(bytes) = self.raw(&schema::entry_key(key))? else { return Ok(None) };
        self.entry(&bytes).map(Some)
    }

    fn entry(&self, bytes: &[u8]) -> Result<Entry, StoreError> {
        schema::decode_entry(bytes).ok_or_else(|| self.damaged("an entry cannot be read".into()))
    }

    /// Writes entries (`None` deletes), the bookkeeping if it changed, and the checkpoint, together (R1).
    pub fn write<'a>(
        &self,
        entries: impl IntoIterator<Item = (&'a Bytes, Option<&'a Entry>)>,
        bookkeeping: Option<&Bytes>,
        checkpoint: Checkpoint,
    ) -> Result<(), StoreError> {
        self.is_intact()?;
        let place = || self.write_batch(WriteBatch::default(), None, checkpoint);
        planted::is(Bug::CheckpointFirst).then(|| place().and_then(|()| self.flush()));
        let mut batch = WriteBatch::default();
        for (key, entry) in entries {
            match entry {
                Some(entry) => {
                    let value = schema::encode_entry(entry);
                    if entry.action == Action::Remove {
                        markers::put(&mut batch, key, &value);
                    }
                    batch.put(schema::entry_key(key), value);
                }
                None => {
                    markers::forget(&mut batch, key, self.raw(&schema::entry_key(key))?.as_deref());
                    batch.delete(schema::entry_key(key));
                }
            }
        }
        self.write_batch(batch, bookkeeping, checkpoint)
    }

    fn write_batch(
        &self,
        mut batch: WriteBatch,
        bookkeeping: Option<&Bytes>,
        checkpoint: Checkpoint,
    ) -> Result<(), StoreError> {
        if let Some(bookkeeping) = bookkeeping {
            batch.put(schema::BOOKKEEPING, bookkeeping);
        }
        batch.put(schema::CHECKPOINT, schema::encode(&checkpoint));
        let mut links = self.links();
        let mut after = *links;
        if after.are_many() {
            self.flush()?;
            after.forget(&mut batch);
        }
        let (key, value) = after.next();
        batch.put(key, value);
        self.is_intact()?;
        self.db.write(batch).map_err(|error| self.failed(&error))?;
        after.written();
        *links = after;
        Ok(())
    }

    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes whole files, all of them or none. `make` makes them, with the link that is to be in one of them.
    fn ingest(
        &self,
        make: impl FnOnce(&(Vec<u8>, Vec<u8>)) -> Result<Vec<PathBuf>, StoreError>,
    ) -> Result<(), StoreError> {
        self.is_intact()?;
        let mut links = self.links();
        let files = make(&links.next())?;
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.db.ingest_external_file_opts(&options, files).map_err(|error| self.failed(&error))?;
        links.written();
        Ok(())
    }

    /// Forces what is written onto the disk, for an orderly end.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.is_intact()?;
        self.db.flush().map_err(|error| self.failed(&error))
    }

    /// The entries from `key` on, in byte order of keys; exclusive when `after`.
    pub fn scan<'a>(
        &'a self,
        key: &[u8],
        after: bool,
    ) -> impl Iterator<Item = Result<(Bytes, Entry), StoreError>> + 'a {
        let mut from = schema::entry_key(key);
        if after {
            from.push(0);
        }
        let entries = self.db.iterator(IteratorMode::From(&from, Direction::Forward));
        let entries =
            entries.take_while(|item| item.as_ref().map_or(true, |(key, _)| key.first() == Some(&schema::ENTRY)));
        entries.map(|item| {
            self.is_intact()?;
            let (key, value) = item.map_err(|error| self.failed(&error))?;
            Ok((Bytes::copy_from_slice(&key[1..]), self.entry(&value)?))
        })
    }

    /// Roughly how many entries it holds and how many bytes they take on disk. A marker counts twice: its row does, too.
    pub fn size(&self) -> (u64, u64) {
        let number = |name: &str| self.db.property_int_value(name).ok().flatten().unwrap_or(0);
        (number("rocksdb.estimate-num-keys"), number("rocksdb.total-sst-files-size"))
    }
}
