//! Where a store goes that cannot be used.
//!
//! R5: damage that anyone finds in an open store is noted: from then on it answers nothing and takes nothing, and the
//!     next opening of its partition sets it aside.
//! R6: what is set aside stays as `partition-N.damaged`, for people, until there is another one of its partition or
//!     its space is needed.
//! R7: a partition whose stores are damaged again and again is rebuilt ever more seldom, down to once a minute: its
//!     disk is failing, and each time costs a restore.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How the names of those set aside end.
const DAMAGED: &str = "damaged";

/// So many are set aside at once.
const FREE: u32 = 3;

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);

/// After so long without another the next is the first again.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// Where the store in `path` goes.
pub(super) fn place(path: &Path) -> PathBuf {
    path.with_extension(DAMAGED)
}

/// Sets the store in `path` aside (R6).
pub(super) fn set(path: &Path) -> io::Result<()> {
    let aside = place(path);
    if !path.exists() {
        return Ok(());
    }
    remove(&aside)?;
    fs::rename(path, aside)
}

/// Deletes a folder, or what is in its place, if there is anything.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_dir_all(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        io::ErrorKind::NotADirectory => fs::remove_file(path),
        _ => Err(error),
    })
}

/// Deletes what was set aside below `folder`; what cannot be deleted stays.
pub(super) fn clear(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let aside = entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|name| name == DAMAGED));
    for path in aside {
        tracing::warn!(path = %path.display(), "what was set aside is deleted, because its space is needed");
        let _ = remove(&path);
    }
}

/// How often each partition's stores were set aside lately, and when last.
#[derive(Clone, Debug, Default)]
pub(super) struct Count(Arc<Mutex<BTreeMap<i32, (u32, Instant)>>>);

impl Count {
    /// One more.
    pub(super) fn note(&self, partition: i32, now: Instant) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (times, last) = counts.entry(partition).or_insert((0, now));
        if now.saturating_duration_since(*last) > FORGOTTEN {
            *times = 0;
        }
        (*times, *last) = (*times + 1, now);
    }

    /// How often it was lately, and how long to wait before the next time (R7).
    pub(super) fn wait(&self, partition: i32, now: Instant) -> (u32, Duration) {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((times, last)) = counts.get(&partition) else { return (0, Duration::ZERO) };
        let pause = match times.checked_sub(FREE) {
            None => Duration::ZERO,
            Some(more) => LONGEST.min(Duration::from_secs(1 << more.min(8))),
        };
        (*times, pause.saturating_sub(now.saturating_duration_since(*last)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R7.
    #[test]
    fn damage_again_and_again_is_rebuilt_ever_more_seldom() {
        let (count, mut now) = (Count::default(), crate::clock::now());
        let mut waits = Vec::new();
        for _ in 0..12 {
            let (_, wait) = count.wait(1, now);
            waits.push(wait.as_secs());
            now += wait;
            assert_eq!(count.wait(1, now).1, Duration::ZERO);
            count.note(1, now);
        }
        assert_eq!(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(count.wait(2, now), (0, Duration::ZERO), "another partition");
        count.note(1, now + FORGOTTEN + LONGEST);
        assert_eq!(count.wait(1, now + FORGOTTEN + LONGEST), (1, Duration::ZERO), "long ago");
    }

    /// R6.
    #[test]
    fn the_last_one_set_aside_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("partition-3");
        for content in ["1", "2"] {
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), content).unwrap();
            set(&path).unwrap();
        }
        set(&path).unwrap();
        let kept = fs::read_to_string(folder.path().join("partition-3.damaged/file")).unwrap();
        assert_eq!((kept.as_str(), path.exists()), ("2", false), "nothing takes the place of what is kept");
        fs::create_dir(&path).unwrap();
        clear(folder.path());
        assert_eq!((place(&path).exists(), path.exists()), (false, true));
    }
}
