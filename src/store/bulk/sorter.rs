//! Sorts in bounded memory: a buffer, and runs on the disk where it does not suffice.

use std::io;
use std::path::PathBuf;

use super::merge::Spill;
use super::run::{Buffer, Item, Said};

/// What is said of keys, on its way into order.
pub(super) struct Sorter {
    folder: PathBuf,
    budget: usize,
    buffer: Buffer,
    spill: Option<Spill>,
}

impl Sorter {
    /// Sorts in about `budget` bytes; runs go into `folder`, which has to be there by then.
    pub(super) fn new(folder: PathBuf, budget: usize) -> Sorter {
        Sorter { folder, budget, buffer: Buffer::default(), spill: None }
    }

    /// See [`Buffer::push`].
    pub(super) fn push(&mut self, said: Said, key: &[&[u8]], value: impl FnOnce(&mut Vec<u8>)) {
        self.buffer.push(said, key, value);
    }

    /// The memory that it needs, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.buffer.memory()
    }

    /// Whether what it holds in memory has to go to the disk.
    pub(super) fn is_full(&self) -> bool {
        self.memory() >= self.budget
    }

    /// Whether there are runs on the disk.
    pub(super) fn has_spilled(&self) -> bool {
        self.spill.is_some()
    }

    /// Makes a run of what is in memory.
    pub(super) fn spill(&mut self) -> io::Result<()> {
        let spill = match &mut self.spill {
            Some(spill) => spill,
            empty => empty.insert(Spill::create(&self.folder)?),
        };
        spill.write(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// What is said of each key, in the order of keys.
    pub(super) fn sorted(&mut self, take: &mut impl FnMut(&Item<'_>) -> io::Result<()>) -> io::Result<()> {
        if self.has_spilled() && !self.buffer.is_empty() {
            self.spill()?;
        }
        match &self.spill {
            Some(spill) => {
                // The runs are read in its place.
                self.buffer = Buffer::default();
                spill.merge(self.budget, take)
            }
            None => self.buffer.sorted(take),
        }
    }
}
