//! What an error of RocksDB, or of the disk below it, means for a store.

use std::io;
use std::path::{Path, PathBuf};

use rocksdb::ErrorKind;

/// Why a store cannot be used. Each kind says what the caller does.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Set it aside and restore.
    #[error("store {0} is corrupt: {1}")]
    Corrupted(PathBuf, String),
    /// The disk or the folder: try again, it may heal by itself or when the operator has looked.
    #[error("store {0}: {1}")]
    Unavailable(PathBuf, String),
    /// There is no space: an open store goes on by itself when there is.
    #[error("store {0}: {1}; make space on this disk")]
    Full(PathBuf, String),
    /// Another part of this process is not through with it: try again soon (R4).
    #[error("store {0} is still in use by this process")]
    InUse(PathBuf),
}

/// What RocksDB says. In doubt the store is corrupt: it is restored, which is never wrong.
pub(super) fn of_database(path: &Path, error: &rocksdb::Error) -> StoreError {
    let text = error.to_string();
    let can_pass = matches!(
        error.kind(),
        ErrorKind::IOError
            | ErrorKind::Busy
            | ErrorKind::TimedOut
            | ErrorKind::TryAgain
            | ErrorKind::Aborted
            | ErrorKind::ShutdownInProgress
    );
    // A file that is gone, or that the disk cannot read any more, does not come back: what is restored lies elsewhere.
    let is_lost = ["No such file", "Input/output error"].iter().any(|words| text.contains(words));
    if can_pass && !is_lost { unavailable(path, text) } else { StoreError::Corrupted(path.to_owned(), text) }
}

/// What the system says.
pub(super) fn of_system(path: &Path, error: &io::Error) -> StoreError {
    unavailable(path, error.to_string())
}

/// With the next step.
fn unavailable(path: &Path, text: String) -> StoreError {
    if text.contains("No space left") {
        return StoreError::Full(path.to_owned(), text);
    }
    let step = STEPS.iter().find(|(words, _)| text.contains(words));
    let text = step.map_or_else(|| text.clone(), |(_, step)| format!("{text}; {step}"));
    StoreError::Unavailable(path.to_owned(), text)
}

/// By words of an error: what is to be done. Each is tried again until it is done.
const STEPS: &[(&str, &str)] = &[
    ("quota exceeded", "make space on this disk, or raise the quota"),
    ("Read-only file system", "make the disk writable, or start with another state.dir"),
    ("Permission denied", "give this user the right to write there"),
    ("lock file", "another program has it open: end that one"),
    ("Too many open files", "raise the limit of open files (ulimit -n)"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_says_what_to_do() {
        let path = Path::new("s");
        for (kind, words) in [(28, "make space"), (30, "writable"), (13, "right"), (24, "ulimit")] {
            let error = of_system(path, &io::Error::from_raw_os_error(kind));
            assert!(error.to_string().contains(words), "{kind}: {error}");
            assert_eq!(matches!(error, StoreError::Full(..)), kind == 28, "{error}");
        }
    }
}
