//! Step 8 of 8: the store takes what is committed, in one batch with its place in the changelog.
//!
//! R1: data and checkpoint are written in one batch of one column family, so what a crash leaves is a correct prefix of
//!     the changelog (protocol P11). The write-ahead log is not synced: a process that is killed loses nothing that was
//!     written, a machine that stops loses the newest writes.
//! R2: a store is used only if it says whose it is and that is this partition of this topic; otherwise
//!     it is set aside and restored.
//! R3: what cannot be read is corrupt, never a guess.
//! R4 is in `lease.rs`; how an empty store is filled in `bulk.rs` and, some at a time, in `turns.rs`.

pub mod bulk;
mod lease;
pub mod schema;
mod turns;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBRecoveryMode, Direction, IngestExternalFileOptions, IteratorMode, Options,
    WriteBatch, WriteBufferManager,
};

use crate::entry::Entry;
use bulk::Bulk;
use lease::{Lease, Leases};
use schema::{Checkpoint, Identity};
pub use turns::Turn;
use turns::Turns;

/// Stores that are filled at the same time, where the machine has as many cores.
const FILLED: usize = 8;

/// Why a store cannot be used. Each kind says what the caller does.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Wipe it and restore.
    #[error("store {0} is corrupt: {1}")]
    Corrupted(PathBuf, String),
    /// The disk or the folder: try again after the operator has looked.
    #[error("store {0}: {1}")]
    Unavailable(PathBuf, String),
    /// Another part of this process is not through with it: try again soon (R4).
    #[error("store {0} is still in use by this process")]
    InUse(PathBuf),
}

/// The stores of one instance: they share one block cache and one budget of write buffers.
#[derive(Clone)]
pub struct Stores {
    folder: PathBuf,
    cache: Cache,
    buffers: WriteBufferManager,
    leases: Leases,
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
        let buffers = buffers.max(1 << 20);
        let places = std::thread::available_parallelism().map_or(1, usize::from).min(FILLED);
        Stores {
            folder,
            cache: Cache::new_lru_cache(cache.max(1 << 20)),
            // Never stalling: a full budget makes memtables flush early, it does not block writers.
            buffers: WriteBufferManager::new_write_buffer_manager(buffers, false),
            leases: Leases::default(),
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
        let path = self.path(identity.partition);
        let lease = self.lease(identity.partition)?;
        let exists = path.join("CURRENT").exists();
        let refused = match self.open_at(&path) {
            Ok(store) if !exists => return store.begin(identity, lease).map(|store| (store, None)),
            Ok(store) => match store.value::<Identity>(schema::IDENTITY) {
                _ if store.format().is_some_and(|format| format != schema::VERSION) => {
                    let format = store.format().unwrap_or_default();
                    format!("it has format {format}, this version reads {}", schema::VERSION)
                }
                Ok(Some(found)) if found == *identity && store.checkpoint().is_ok_and(|known| known.is_some()) => {
                    return Ok((store.leased(lease), None));
                }
                Ok(Some(found)) if found != *identity => format!("it belongs to {found:?}"),
                Ok(_) => "it does not say what it holds".into(),
                Err(error) => error.to_string(),
            },
            Err(StoreError::Corrupted(_, reason)) => reason,
            Err(error) => return Err(error),
        };
        remove(&path)?;
        let store = self.open_at(&path)?.begin(identity, lease)?;
        Ok((store, Some(refused)))
    }

    /// Deletes a partition's store, unless it is open.
    pub fn wipe(&self, partition: i32) -> Result<(), StoreError> {
        let _lease = self.lease(partition)?;
        remove(&self.path(partition))
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
        table.set_format_version(5);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_manager(&self.buffers);
        options.set_write_buffer_size(16 << 20);
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(0.1);
        options.set_max_open_files(256);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_compression_type(rocksdb::DBCompressionType::Lz4);
        // What is behind the first damaged record of the write-ahead log counts as not written (R1).
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        options
    }

    fn open_at(&self, path: &Path) -> Result<Store, StoreError> {
        std::fs::create_dir_all(path).map_err(|error| StoreError::Unavailable(path.to_owned(), error.to_string()))?;
        let db = DB::open(&self.options(), path).map_err(|error| classify(path, &error))?;
        Ok(Store { db, path: path.to_owned(), _lease: None })
    }
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::Unavailable(path.to_owned(), error.to_string()))
        }
        _ => Ok(()),
    }
}

fn classify(path: &Path, error: &rocksdb::Error) -> StoreError {
    let text = error.to_string();
    match error.kind() {
        rocksdb::ErrorKind::Corruption | rocksdb::ErrorKind::InvalidArgument | rocksdb::ErrorKind::NotSupported => {
            StoreError::Corrupted(path.to_owned(), text)
        }
        // A file that the manifest names and that is not there.
        _ if text.contains("No such file") => StoreError::Corrupted(path.to_owned(), text),
        _ => StoreError::Unavailable(path.to_owned(), text),
    }
}

/// The store of one partition.
pub struct Store {
    db: DB,
    path: PathBuf,
    /// Behind `db`: given back once RocksDB has closed its files (R4).
    _lease: Option<Lease>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.path).finish()
    }
}

impl Store {
    fn leased(self, lease: Lease) -> Store {
        Store { _lease: Some(lease), ..self }
    }

    fn begin(self, identity: &Identity, lease: Lease) -> Result<Store, StoreError> {
        let mut batch = WriteBatch::default();
        batch.put(schema::IDENTITY, schema::encode(identity));
        batch.put(schema::CHECKPOINT, schema::encode(&Checkpoint { position: 0, at_end_ms: i64::MAX }));
        self.db.write(batch).map_err(|error| classify(&self.path, &error))?;
        Ok(self.leased(lease))
    }

    fn value<T: bincode::Decode<()>>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.raw(key)? else { return Ok(None) };
        let corrupt = || StoreError::Corrupted(self.path.clone(), "a value cannot be read".into());
        schema::decode(&bytes).map(Some).ok_or_else(corrupt)
    }

    /// The version that its first value begins with.
    fn format(&self) -> Option<u8> {
        self.raw(schema::IDENTITY).ok().flatten()?.first().copied()
    }

    fn raw(&self, key: &[u8]) -> Result<Option<rocksdb::DBPinnableSlice<'_>>, StoreError> {
        self.db.get_pinned(key).map_err(|error| classify(&self.path, &error))
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
        let corrupt = || StoreError::Corrupted(self.path.clone(), "an entry cannot be read".into());
        schema::decode_entry(&bytes).map(Some).ok_or_else(corrupt)
    }

    /// Writes entries (`None` deletes), the bookkeeping if it changed, and the checkpoint, together (R1).
    pub fn write<'a>(
        &self,
        entries: impl IntoIterator<Item = (&'a Bytes, Option<&'a Entry>)>,
        bookkeeping: Option<&Bytes>,
        checkpoint: Checkpoint,
    ) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for (key, entry) in entries {
            match entry {
                Some(entry) => batch.put(schema::entry_key(key), schema::encode_entry(entry)),
                None => batch.delete(schema::entry_key(key)),
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
        self.db.write(batch).map_err(|error| classify(&self.path, &error))
    }

    /// Takes whole files, all of them or none.
    fn ingest(&self, files: Vec<PathBuf>) -> Result<(), StoreError> {
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        self.db.ingest_external_file_opts(&options, files).map_err(|error| classify(&self.path, &error))
    }

    /// Forces what is written onto the disk, for an orderly end.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.db.flush().map_err(|error| classify(&self.path, &error))
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
            let (key, value) = item.map_err(|error| classify(&self.path, &error))?;
            let corrupt = || StoreError::Corrupted(self.path.clone(), "an entry cannot be read".into());
            let entry = schema::decode_entry(&value).ok_or_else(corrupt)?;
            Ok((Bytes::copy_from_slice(&key[1..]), entry))
        })
    }

    /// Roughly how many entries it holds and how many bytes they take on disk.
    pub fn size(&self) -> (u64, u64) {
        let number = |name: &str| self.db.property_int_value(name).ok().flatten().unwrap_or(0);
        (number("rocksdb.estimate-num-keys"), number("rocksdb.total-sst-files-size"))
    }
}
