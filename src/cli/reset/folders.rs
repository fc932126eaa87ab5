//! The state folders of instances: local copies of changelogs, which any instance can make again.
//!
//! F1: a folder is deleted only under its lock; one that is in use is left alone.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::cli::error::CliError;
use crate::instance::LOCK_FILE;

/// The folders of one instance, or of all below `state.dir`.
#[derive(Debug, Default)]
pub struct Folders {
    /// Those that can be deleted, sorted.
    pub free: Vec<PathBuf>,
    /// Those that a process uses, sorted.
    pub in_use: Vec<PathBuf>,
}

impl Folders {
    /// Of this instance; of all where `instance` is empty, as the name then depends on the port.
    pub fn find(dir: &Path, instance: &str) -> Result<Folders, CliError> {
        let mut found = Folders::default();
        let candidates = if instance.is_empty() { below(dir)? } else { vec![dir.join(instance)] };
        for path in candidates.into_iter().filter(|path| path.join(LOCK_FILE).is_file()) {
            match lock(&path).map_err(|error| cannot("look into", &path, &error))? {
                Some(_) => found.free.push(path),
                None => found.in_use.push(path),
            }
        }
        Ok(found)
    }

    /// Deletes those that can be deleted.
    pub fn delete(&self) -> Result<(), CliError> {
        self.free.iter().try_for_each(|path| delete(path).map_err(|error| cannot("delete", path, &error)))
    }
}

fn below(dir: &Path) -> Result<Vec<PathBuf>, CliError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| cannot("look into", dir, &error))?,
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// The folder's lock; none when somebody has it.
fn lock(folder: &Path) -> io::Result<Option<File>> {
    let file = File::options().append(true).open(folder.join(LOCK_FILE))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// F1: the lock file goes last but for the folder itself.
fn delete(folder: &Path) -> io::Result<()> {
    let Some(_lock) = lock(folder)? else { return Ok(()) };
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name() == LOCK_FILE {
            continue;
        }
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(path)?
        } else {
            fs::remove_file(path)?
        };
    }
    fs::remove_file(folder.join(LOCK_FILE))?;
    match fs::remove_dir(folder) {
        // An instance has just begun in it.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other,
    }
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> CliError {
    CliError::failed(format!("cannot {what} the state folder {}: {error}", path.display()))
        .hint("state.dir and application.instance_id name it; is it this user's?")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(dir: &Path, name: &str) -> PathBuf {
        let folder = dir.join(name);
        fs::create_dir_all(folder.join("partition-0")).expect("a folder");
        fs::write(folder.join("partition-0/CURRENT"), "x").expect("a file");
        File::create(folder.join(LOCK_FILE)).expect("a file");
        folder
    }

    #[test]
    fn f1_folders_in_use_and_folders_of_others_stay() {
        let dir = tempfile::tempdir().expect("a folder");
        let (one, two) = (instance(dir.path(), "one"), instance(dir.path(), "two"));
        fs::create_dir(dir.path().join("mine")).expect("a folder");
        let _held = lock(&two).expect("a lock").expect("free");
        let found = Folders::find(dir.path(), "").expect("found");
        assert_eq!((&found.free, &found.in_use), (&vec![one.clone()], &vec![two.clone()]));
        found.delete().expect("deleted");
        assert!(!one.exists() && two.join("partition-0/CURRENT").exists() && dir.path().join("mine").exists());
        found.delete().expect_err("it is gone");
        assert!(Folders::find(dir.path(), "one").expect("found").free.is_empty());
        assert_eq!(Folders::find(dir.path(), "two").expect("found").in_use, [two]);
        assert!(Folders::find(&dir.path().join("none"), "").expect("found").free.is_empty());
    }
}
