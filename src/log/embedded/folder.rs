//! The log's folder: made for its user alone, and owned by one process at a time.
//!
//! ```text
//!     <folder>/owner.lock   locked by the owner while it lives; its process id, for people
//!     <folder>/log.id       the log's own id, as it stands in the database, and in a second line its format
//!     <folder>/db/          RocksDB
//! ```
//!
//! E8: one open log per folder; the system frees the lock when its process ends, however it ends.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::schema::FORMAT;
use crate::log::LogError;

/// A folder that is in use.
pub(super) struct Folder {
    path: PathBuf,
    lock: Option<File>,
    /// Files of a read-only log's own, removed with it.
    scratch: Option<PathBuf>,
}

impl Folder {
    /// Takes the folder for this process; it is made when it is missing.
    pub(super) fn own(path: &Path) -> Result<Folder, LogError> {
        let cannot = |what: &str, error: &io::Error| {
            LogError::Fatal(format!("cannot {what} the log's folder {}: {error}; {}", path.display(), remedy(error)))
        };
        match fs::read_dir(path) {
            Ok(mut entries) => {
                if entries.next().is_some() && !path.join("owner.lock").exists() {
                    return Err(LogError::Fatal(format!(
                        "{} is not empty and not a Tidegate log: name another folder as log.path",
                        path.display()
                    )));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| cannot("make", &error))?;
            }
            Err(error) => return Err(cannot("open", &error)),
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|error| cannot("protect", &error))?;
        let lock = lock(path, &cannot)?;
        Ok(Folder { path: path.to_owned(), lock: Some(lock), scratch: None })
    }

    /// Looks into a folder that another process may own.
    pub(super) fn beside(path: &Path) -> Result<Folder, LogError> {
        if !path.join("db").join("CURRENT").exists() {
            return Err(LogError::Fatal(format!(
                "there is no log in {}: start an instance there first",
                path.display()
            )));
        }
        let scratch = std::env::temp_dir().join(format!("tidegate-beside-{}", uuid::Uuid::new_v4()));
        DirBuilder::new().mode(0o700).create(&scratch).map_err(|error| {
            LogError::Fatal(format!("cannot make the temporary folder {}: {error}", scratch.display()))
        })?;
        Ok(Folder { path: path.to_owned(), lock: None, scratch: Some(scratch) })
    }

    pub(super) fn database(&self) -> PathBuf {
        self.path.join("db")
    }

    pub(super) fn scratch(&self) -> Option<&Path> {
        self.scratch.as_deref()
    }

    /// The id of the log that was made here, if one was.
    pub(super) fn id(&self) -> Option<String> {
        self.noted().lines().next().map(|id| id.trim().to_owned())
    }

    /// The format of the log that was made here. It can be told before the database is opened, which
    /// would change it.
    pub(super) fn format(&self) -> Option<u32> {
        self.noted().lines().nth(1)?.trim().parse().ok()
    }

    fn noted(&self) -> String {
        fs::read_to_string(self.path.join("log.id")).unwrap_or_default()
    }

    /// Notes the id of a new log.
    pub(super) fn set_id(&self, id: &str) -> Result<(), LogError> {
        let written = File::create(self.path.join("log.id")).and_then(|mut file| {
            writeln!(file, "{id}\n{FORMAT}")?;
            file.sync_all()
        });
        written.map_err(|error| LogError::Fatal(format!("cannot write the log's id in {self}: {error}")))
    }
}

fn lock(path: &Path, cannot: &dyn Fn(&str, &io::Error) -> LogError) -> Result<File, LogError> {
    let name = path.join("owner.lock");
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&name);
    let mut file = opened.map_err(|error| cannot("write into", &error))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // The owner may be about to write its id; the message does without it then.
            file.read_to_string(&mut owner).map_err(|error| cannot("read", &error))?;
            let owner = match owner.trim() {
                "" => "another process".to_owned(),
                pid if pid == std::process::id().to_string() => format!("this very process ({pid})"),
                pid => format!("process {pid}"),
            };
            return Err(LogError::Fatal(format!(
                "the log in {} is in use by {owner}: stop it, or name another folder as log.path; \
                 one process at a time owns an embedded log, several share Kafka (log.kind = \"kafka\")",
                path.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(cannot("lock", &error)),
    }
    let written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(|error| cannot("write into", &error))?;
    Ok(file)
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "give this user write access to it, or name another folder as log.path",
        io::ErrorKind::StorageFull => "free some space on the disk",
        io::ErrorKind::ReadOnlyFilesystem => "name a folder on a writable disk as log.path",
        _ => "name another folder as log.path",
    }
}

impl std::fmt::Display for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(lock) = &self.lock {
            // Closing would do, but for a child process that is just being started and still holds a
            // copy of the file. What fails here is done by closing.
            lock.unlock().ok();
        }
        if let Some(scratch) = &self.scratch {
            // It lies in the system's temporary folder: what cannot be removed is left to the system.
            fs::remove_dir_all(scratch).ok();
        }
    }
}
