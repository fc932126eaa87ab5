//! Files that RocksDB takes as they are.

use std::io;
use std::path::{Path, PathBuf};

use rocksdb::{Options, SstFileWriter};

/// A file is ended beyond about this size, in bytes.
const FILE: u64 = 64 << 20;

/// So many entries are written between two looks at the size.
const LOOK: usize = 1024;

/// Writes entries in the order of keys into as many files as it takes.
pub(super) struct Files<'a> {
    folder: &'a Path,
    options: &'a Options,
    current: Option<SstFileWriter<'a>>,
    entries: usize,
    paths: Vec<PathBuf>,
}

impl<'a> Files<'a> {
    pub(super) fn new(folder: &'a Path, options: &'a Options) -> Files<'a> {
        Files { folder, options, current: None, entries: 0, paths: Vec::new() }
    }

    /// The next key.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if self.current.is_none() {
            self.begin()?;
        }
        let Some(file) = &mut self.current else { return Ok(()) };
        file.put(key, value).map_err(io::Error::other)?;
        self.entries += 1;
        if self.entries.is_multiple_of(LOOK) && file.file_size() > FILE {
            self.end()?;
        }
        Ok(())
    }

    /// All files, complete and on the disk.
    pub(super) fn finish(mut self) -> io::Result<Vec<PathBuf>> {
        self.end()?;
        Ok(self.paths)
    }

    fn begin(&mut self) -> io::Result<()> {
        let path = self.folder.join(format!("{}.sst", self.paths.len()));
        let file = SstFileWriter::create(self.options);
        file.open(&path).map_err(io::Error::other)?;
        self.paths.push(path);
        self.current = Some(file);
        Ok(())
    }

    /// What comes next is in a file of its own.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.current.take().map_or(Ok(()), |mut file| file.finish().map_err(io::Error::other))
    }
}
