//! Sorted runs on the disk, and their merging.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::run::{Buffer, Item};

/// What is read of a run at once, in bytes, at least and at most.
const PIECE: (usize, usize) = (16 << 10, 1 << 20);

/// Sorted runs in one file without a name: it is gone with the process.
pub(super) struct Spill {
    file: BufWriter<File>,
    /// Where each run ends.
    ends: Vec<u64>,
}

impl Spill {
    pub(super) fn create(folder: &Path) -> io::Result<Spill> {
        let path = folder.join("runs");
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(Spill { file: BufWriter::with_capacity(256 << 10, file), ends: Vec::new() })
    }

    /// One more run.
    pub(super) fn write(&mut self, buffer: &Buffer) -> io::Result<()> {
        let mut end = self.ends.last().copied().unwrap_or(0);
        let file = &mut self.file;
        buffer.sorted(&mut |item| {
            end += item.len() as u64;
            item.write(file)
        })?;
        file.flush()?;
        self.ends.push(end);
        Ok(())
    }

    /// What is said of each key by all runs, in the order of keys; reads in about `budget` bytes.
    pub(super) fn merge(&self, budget: usize, take: &mut impl FnMut(&Item<'_>) -> io::Result<()>) -> io::Result<()> {
        let piece = (budget / self.ends.len().max(1)).clamp(PIECE.0, PIECE.1);
        let starts = [0].into_iter().chain(self.ends.iter().copied());
        let mut heap = BinaryHeap::with_capacity(self.ends.len());
        for (run, (at, &end)) in starts.zip(&self.ends).enumerate() {
            let mut cursor = Cursor { file: self.file.get_ref(), run, at, end, piece, bytes: Vec::new(), start: 0 };
            if cursor.fill()? {
                heap.push(cursor);
            }
        }
        // What is known of the key so far, as an item of its own.
        let (mut held, mut next) = (Vec::new(), Vec::new());
        while let Some(mut top) = heap.peek_mut() {
            let item = top.item();
            let earlier = Item::read(&held);
            let whole = match earlier {
                Some(earlier) if earlier.key == item.key => earlier.and_then(item),
                Some(done) => {
                    take(&done)?;
                    item
                }
                None => item,
            };
            next.clear();
            whole.write(&mut next)?;
            std::mem::swap(&mut held, &mut next);
            let advanced = top.advance();
            if !matches!(advanced, Ok(true)) {
                // Before anything compares it: it stands on no item any more.
                PeekMut::pop(top);
            }
            advanced?;
        }
        Item::read(&held).map_or(Ok(()), |done| take(&done))
    }
}

/// Reads one run.
struct Cursor<'a> {
    file: &'a File,
    run: usize,
    /// What of the file is not read yet.
    at: u64,
    end: u64,
    piece: usize,
    bytes: Vec<u8>,
    /// Where the current item begins in `bytes`.
    start: usize,
}

impl Cursor<'_> {
    fn item(&self) -> Item<'_> {
        Item::read(&self.bytes[self.start..]).expect("a cursor in the heap stands on a whole item")
    }

    /// Goes to the next item; false at the run's end.
    fn advance(&mut self) -> io::Result<bool> {
        self.start += self.item().len();
        self.fill()
    }

    /// Reads on until the current item is whole; false at the run's end.
    fn fill(&mut self) -> io::Result<bool> {
        while Item::read(&self.bytes[self.start..]).is_none() {
            self.bytes.drain(..self.start);
            self.start = 0;
            let left = self.end - self.at;
            if left == 0 {
                let is_whole = self.bytes.is_empty();
                return if is_whole { Ok(false) } else { Err(io::Error::other("a run is cut off")) };
            }
            let known = self.bytes.len();
            let more = usize::try_from(left).unwrap_or(usize::MAX).min(self.piece);
            self.bytes.resize(known + more, 0);
            self.file.read_exact_at(&mut self.bytes[known..], self.at)?;
            self.at += more as u64;
        }
        Ok(true)
    }
}

// The heap's greatest is the cursor to be taken next: with the smallest key, of the earliest run.
impl Ord for Cursor<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.item().key.cmp(self.item().key).then(other.run.cmp(&self.run))
    }
}

impl PartialOrd for Cursor<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Cursor<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Cursor<'_> {}
