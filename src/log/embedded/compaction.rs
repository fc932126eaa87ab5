//! Compaction of topics with `cleanup.policy=compact`: the last record of each key is kept.
//!
//! A round: 1. the keys of the next stretch of the dirty part, up to a number that bounds the memory,
//! with the last offset of each; 2. all batches up to the end of that stretch are gone through, and
//! those that hold an older record of one of the keys are written again without it; 3. the stretch is
//! clean. A crash between any two writes leaves a log that says the same and is gone through again.
//!
//! C1: a record goes only when a later one of its key stands below the last stable offset, or when it
//!     belongs to an aborted transaction; offsets never change, undecided records are not looked at.
//! C2: a tombstone goes no sooner than `delete.retention.ms` after a round first passed it, and after
//!     every older record of its key: writes are ascending, and the write-ahead log keeps their order.
//! C3: a partition's last batch never goes, it is emptied: it holds the end (E10).
//! C4: what is purged meanwhile does not come back.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;
use rocksdb::{DBRawIterator, ReadOptions};

use super::batch::{BatchWriter, Entries, Header, Kind};
use super::schema;
use super::state::{Place, Shared};
use super::write::Staged;
use super::{failed, read};
use crate::clock;
use crate::log::LogError;

/// A write of a round is closed once it has this many bytes or batches.
const WRITE_BYTES: usize = 1 << 20;
const WRITE_BATCHES: usize = 256;

/// Starts the thread that compacts what has grown.
pub(super) fn start(shared: &Arc<Shared>, wanted: Receiver<()>) -> Result<JoinHandle<()>, LogError> {
    let shared = Arc::downgrade(shared);
    let thread = std::thread::Builder::new().name("log-compaction".to_owned());
    thread
        .spawn(move || work(&shared, &wanted))
        .map_err(|error| LogError::Fatal(format!("cannot start a thread for compaction: {error}")))
}

fn work(shared: &Weak<Shared>, wanted: &Receiver<()>) {
    while wanted.recv().is_ok() {
        let Some(shared) = shared.upgrade().filter(|shared| !shared.closing.load(Ordering::SeqCst)) else { return };
        for topic in shared.all_topics().into_iter().filter(|topic| topic.compacted) {
            for partition in 0..topic.partitions.len() {
                if shared.closing.load(Ordering::SeqCst) {
                    return;
                }
                let place = Place { topic: Arc::clone(&topic), partition };
                let advances = place.get().stable() > place.get().clean.load(Ordering::SeqCst);
                if shared.is_due(&place)
                    && advances
                    && let Err(error) = shared.compact(&place)
                {
                    tracing::warn!("{} was not compacted, which is tried again later: {error}", place.name());
                }
            }
        }
    }
}

/// The last offset of each key, by a hash of 128 bits with a random seed.
struct LastOffsets {
    hashers: [RandomState; 2],
    offsets: HashMap<u128, i64>,
}

impl LastOffsets {
    fn hash(&self, key: &[u8]) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| u128::from(hasher.hash_one(key)));
        high << 64 | low
    }

    fn insert(&mut self, key: &[u8], offset: i64) {
        self.offsets.insert(self.hash(key), offset);
    }

    fn is_older(&self, key: &[u8], offset: i64) -> bool {
        self.offsets.get(&self.hash(key)).is_some_and(|last| offset < *last)
    }
}

/// What becomes of a batch.
enum Fate {
    Stays,
    Rewritten(Vec<u8>),
    /// Nothing of it is kept; what replaces it if it is the last one (C3).
    Gone(Vec<u8>),
}

/// What a round does to a batch.
struct Change {
    base: i64,
    last: i64,
    fate: Fate,
}

impl Shared {
    /// Notes that a partition grew, and has it compacted when it is time.
    pub(super) fn note_growth(&self, place: &Place, bytes: u64) {
        if !place.topic.compacted {
            return;
        }
        place.get().dirty_bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(compaction) = self.compaction.as_ref().filter(|_| self.is_due(place)) {
            // When it is full, the thread is about to look anyway.
            compaction.try_send(()).ok();
        }
    }

    fn is_due(&self, place: &Place) -> bool {
        let dirty = place.get().dirty_bytes.load(Ordering::Relaxed);
        dirty >= self.options.compact_after_bytes.max(place.get().clean_bytes.load(Ordering::Relaxed))
    }

    /// Compacts a partition up to its last stable offset, in rounds.
    pub(super) fn compact(&self, place: &Place) -> Result<(), LogError> {
        self.writable()?;
        let _one_at_a_time = self.compacting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let until = place.get().stable();
        loop {
            let (last, reached, mapped_bytes) = self.map_dirty(place, until)?;
            let kept_bytes = self.rewrite(place, &last, reached)?;
            let closing = self.closing.load(Ordering::SeqCst);
            if closing {
                return Ok(());
            }
            self.note_clean(place, reached, kept_bytes, mapped_bytes)?;
            if reached >= until {
                return Ok(());
            }
        }
    }

    /// 1. The keys of the next stretch; where it ends; its bytes.
    fn map_dirty(&self, place: &Place, until: i64) -> Result<(LastOffsets, i64, u64), LogError> {
        let mut last = LastOffsets { hashers: [RandomState::new(), RandomState::new()], offsets: HashMap::new() };
        let aborted = self.aborted();
        let mut bytes = 0;
        let clean = place.get().clean.load(Ordering::SeqCst);
        let mut batches = self.batches(place, clean, until);
        while let Some((key, value)) = batches.item() {
            let (base, header) = self.batch_at(place, key, value)?;
            if base + i64::from(header.last_delta) < clean {
                batches.next();
                continue;
            }
            let room = self.options.compact_keys.saturating_sub(last.offsets.len());
            if header.records as usize > room && !last.offsets.is_empty() {
                return Ok((last, base, bytes));
            }
            bytes += value.len() as u64;
            if header.kind == Kind::Records && !aborted.contains(&header.transaction) {
                for entry in Entries::new(value, &header) {
                    let entry = entry.map_err(|_| read::damaged(place, base))?;
                    if let Some(key) = entry.key {
                        last.insert(&value[key], base + i64::from(entry.delta));
                    }
                }
            }
            batches.next();
        }
        batches.status().map_err(failed)?;
        Ok((last, until, bytes))
    }

    /// 2. Goes through all batches up to `reached`; the bytes that are left.
    fn rewrite(&self, place: &Place, last: &LastOffsets, reached: i64) -> Result<u64, LogError> {
        let (mut kept, mut size, mut changes) = (0, 0, Vec::new());
        let aborted = self.aborted();
        let mut batches = self.batches(place, place.get().low(), reached);
        while let Some((key, value)) = batches.item() {
            let (base, header) = self.batch_at(place, key, value)?;
            let dead = header.kind == Kind::Marker || aborted.contains(&header.transaction);
            let fate = judge(place, base, &header, value, dead, last).map_err(|_| read::damaged(place, base))?;
            match &fate {
                Fate::Stays => kept += value.len() as u64,
                Fate::Rewritten(left) => kept += left.len() as u64,
                Fate::Gone(_) => {}
            }
            if let Fate::Rewritten(left) | Fate::Gone(left) = &fate {
                size += left.len();
                changes.push(Change { base, last: base + i64::from(header.last_delta), fate });
            }
            if size >= WRITE_BYTES || changes.len() >= WRITE_BATCHES {
                self.change(place, std::mem::take(&mut changes))?;
                size = 0;
                if self.closing.load(Ordering::SeqCst) {
                    return Ok(kept);
                }
            }
            batches.next();
        }
        batches.status().map_err(failed)?;
        self.change(place, changes)?;
        Ok(kept)
    }

    fn change(&self, place: &Place, changes: Vec<Change>) -> Result<(), LogError> {
        let _core = self.core();
        let (slot, low, end) = (place.get().slot, place.get().low(), place.get().end());
        let mut staged = Staged::default();
        // C4: under the lock, a batch below `low` has been purged.
        for Change { base, last, fate } in changes.into_iter().filter(|change| change.last >= low) {
            let key = schema::batch(slot, base);
            match fate {
                Fate::Stays => {}
                Fate::Rewritten(left) => staged.write.put(key, left),
                Fate::Gone(empty) if last + 1 == end => staged.write.put(key, empty),
                Fate::Gone(_) => staged.write.delete(key),
            }
        }
        if place.topic.deleted.load(Ordering::SeqCst) || staged.write.is_empty() {
            return Ok(());
        }
        // Not told to readers: to them nothing has changed.
        self.put(staged).map(|_| ())
    }

    /// 3. Everything below `reached` is clean.
    fn note_clean(&self, place: &Place, reached: i64, kept: u64, mapped: u64) -> Result<(), LogError> {
        let mut core = self.core();
        if place.topic.deleted.load(Ordering::SeqCst) {
            return Ok(());
        }
        let partition = place.get();
        let clean = reached.max(partition.row().clean);
        let mut staged = Staged::default();
        staged.partition(partition.slot, schema::PartitionRow { clean, ..partition.row() });
        self.put(staged)?;
        partition.clean.store(clean, Ordering::SeqCst);
        partition.clean_bytes.store(kept, Ordering::Relaxed);
        let dirty = partition.dirty_bytes.load(Ordering::Relaxed);
        partition.dirty_bytes.store(dirty.saturating_sub(mapped), Ordering::Relaxed);
        self.trim_aborted(&mut core, partition.slot, reached)
    }

    /// The partition's batches whose base is from `from` on and below `until`, and the one before
    /// them when it reaches over `from`.
    fn batches(&self, place: &Place, from: i64, until: i64) -> DBRawIterator<'_> {
        let slot = place.get().slot;
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(schema::batch(slot, until));
        options.fill_cache(false);
        let mut batches = self.db.raw_iterator_opt(options);
        batches.seek_for_prev(schema::batch(slot, from));
        if batches.key().and_then(|key| schema::base_of(key, slot)).is_none() {
            batches.seek(schema::batch(slot, from));
        }
        batches
    }

    fn batch_at(&self, place: &Place, key: &[u8], value: &[u8]) -> Result<(i64, Header), LogError> {
        let base = schema::base_of(key, place.get().slot).ok_or_else(|| self.corrupt("key"))?;
        Ok((base, Header::read(value).map_err(|_| read::damaged(place, base))?))
    }
}

fn judge(
    place: &Place,
    base: i64,
    header: &Header,
    value: &[u8],
    dead: bool,
    last: &LastOffsets,
) -> Result<Fate, super::batch::Malformed> {
    let now = clock::wall_ms();
    let cleaned = if header.cleaned_ms > 0 { header.cleaned_ms } else { now };
    let expired = now.saturating_sub(cleaned) >= place.topic.delete_retention_ms;
    let (mut kept, mut dropped, mut tombstones) = (Vec::new(), header.records == 0, false);
    for entry in Entries::new(value, header) {
        let entry = entry?;
        let offset = base + i64::from(entry.delta);
        let older = entry.key.clone().is_some_and(|key| last.is_older(&value[key], offset));
        let tombstone = entry.value.is_none();
        if dead || older || (tombstone && expired) {
            dropped = true;
        } else {
            tombstones |= tombstone;
            kept.push(entry);
        }
    }
    if !dropped && (!tombstones || header.cleaned_ms > 0) && !dead {
        return Ok(Fate::Stays);
    }
    let mut writer = BatchWriter::again(*header, if tombstones { cleaned } else { header.cleaned_ms });
    kept.iter().for_each(|entry| writer.keep(value, entry));
    let left = writer.finish();
    Ok(if kept.is_empty() { Fate::Gone(left) } else { Fate::Rewritten(left) })
}
