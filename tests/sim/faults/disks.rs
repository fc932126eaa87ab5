//! What happens to files: stores lose what was in memory, go back, are damaged; the log loses its last write.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;

use crate::sometimes::{self, reached};
use crate::timeline::note;

/// A copy of a folder as it is on the disk: what is only in memory is not there. Of one moment: what the threads of a
/// store put into other files meanwhile would be missing in both.
pub fn copy_folder(from: &Path, to: &Path) {
    loop {
        let before = names(from);
        copy_once(from, to);
        if names(from) == before {
            return;
        }
        let _ = fs::remove_dir_all(to);
    }
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    collect(folder, &mut files);
    let mut names: Vec<PathBuf> = files.into_iter().map(|(path, _)| path).collect();
    names.sort();
    names
}

fn copy_once(from: &Path, to: &Path) {
    let Ok(entries) = fs::read_dir(from) else { return };
    fs::create_dir_all(to).unwrap();
    for entry in entries.flatten() {
        let target = to.join(entry.file_name());
        match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => copy_once(&entry.path(), &target),
            // The store may have deleted it meanwhile.
            false => drop(fs::copy(entry.path(), target)),
        }
    }
}

/// Puts `copy` in the place of `folder`.
pub fn put_back(folder: &Path, copy: &Path) {
    let _ = fs::remove_dir_all(folder);
    let _ = fs::rename(copy, folder);
}

/// Damages one file of a store below `folder`, if there is one: its end is missing, or a bit has changed.
pub fn damage(folder: &Path, rng: &mut Rng) {
    let mut files = Vec::new();
    collect(folder, &mut files);
    // What a database is made of; its own notes for people do not matter.
    files.retain(|(path, length)| {
        *length > 0 && path.file_name().is_some_and(|name| !name.as_encoded_bytes().starts_with(b"LOG"))
    });
    files.sort();
    if files.is_empty() {
        return;
    }
    let (path, length) = &files[rng.usize(..files.len())];
    let at = rng.u64(..*length);
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let how = if rng.bool() {
        file.set_len(at).unwrap();
        "ends at"
    } else {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << rng.u32(..8)], at).unwrap();
        "has changed at"
    };
    reached(sometimes::TORN);
    note(format!("{:?} of {length} bytes {how} {at}", path.strip_prefix(folder).unwrap()));
}

fn collect(folder: &Path, files: &mut Vec<(PathBuf, u64)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => collect(&entry.path(), files),
            false => files.push((entry.path(), entry.metadata().map_or(0, |metadata| metadata.len()))),
        }
    }
}

/// The end of the log's write-ahead log at some moment.
#[derive(Debug)]
pub struct Tail {
    file: Option<PathBuf>,
    length: u64,
}

impl Tail {
    /// As it is now.
    pub fn of(log: &Path) -> Tail {
        let mut files = Vec::new();
        collect(&log.join("db"), &mut files);
        files.retain(|(path, _)| path.extension().is_some_and(|extension| extension == "log"));
        match files.into_iter().max() {
            Some((file, length)) => Tail { file: Some(file), length },
            None => Tail { file: None, length: 0 },
        }
    }

    /// Loses all or the end of what was written since.
    pub fn tear(self, log: &Path, rng: &mut Rng) {
        let now = Tail::of(log);
        let least = if now.file == self.file { self.length } else { 0 };
        let Some(file) = now.file.filter(|_| least < now.length) else { return };
        let length = rng.u64(least..now.length);
        File::options().write(true).open(file).and_then(|file| file.set_len(length)).unwrap();
        reached(sometimes::TAIL);
        note(format!("the log ends at {length} of {} bytes, {least} were there before", now.length));
    }
}
