//! The store, the overlay above it, and the restore below a task, each by itself.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::restoring::copy;
use bytes::{Bytes, BytesMut};
use tidegate::changelog;
use tidegate::clock;
use tidegate::entry::Entry;
use tidegate::event::Action;
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use tidegate::log::{Append, Log, NewRecord, NewTopic, TopicPartition};
use tidegate::store::schema::{self, Checkpoint, Identity};
use tidegate::store::{Store, StoreError, Stores};
use tidegate::task::overlay::Overlay;
use tidegate::task::restore::{Plan, Restored, restore};

fn stores(folder: &Path) -> Stores {
    Stores::new(folder.join("state"), 1 << 20, 1 << 20)
}

fn identity() -> Identity {
    Identity { application: "t".into(), partition: 0, changelog_id: "id".into() }
}

fn entry(stamp: &str) -> Entry {
    let value = Some(Bytes::from(stamp.to_owned()));
    Entry { stamp: stamp.parse().unwrap(), action: Action::Add, value, origin: Bytes::new() }
}

fn write(store: &Store, entries: &[(&str, &str)], position: i64) {
    let entries: Vec<_> = entries.iter().map(|(key, stamp)| (Bytes::from(key.to_string()), entry(stamp))).collect();
    let checkpoint = Checkpoint { position, at_end_ms: clock::wall_ms() };
    store.write(entries.iter().map(|(key, entry)| (key, Some(entry))), None, checkpoint).unwrap();
}

fn held(store: &Store, key: &str) -> Option<String> {
    store.get(key.as_bytes()).unwrap().map(|entry| entry.stamp.to_string())
}

/// R1: what is written is there when it is opened again, with its place in the changelog.
#[test]
fn a_store_that_is_opened_again_has_kept_everything() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = stores(folder.path()).open(&identity()).unwrap();
    write(&store, &[("b", "2"), ("a", "1/0"), ("ab", "3")], 7);
    drop(store);
    let (store, refused) = stores(folder.path()).open(&identity()).unwrap();
    assert_eq!((refused, store.checkpoint().unwrap().unwrap().position), (None, 7));
    let keys = |from: &str, after| {
        let keys = store.scan(from.as_bytes(), after).map(|item| String::from_utf8(item.unwrap().0.to_vec()).unwrap());
        keys.collect::<Vec<_>>().join(" ")
    };
    assert_eq!((keys("", false), keys("a", false), keys("a", true)), ("a ab b".into(), "a ab b".into(), "ab b".into()));
    assert_eq!((keys("aa", true), keys("b", true)), ("ab b".into(), String::new()));
    let gone = (Bytes::from_static(b"a"), None);
    store.write([(&gone.0, gone.1)], None, Checkpoint { position: 8, at_end_ms: 0 }).unwrap();
    assert_eq!((held(&store, "a"), held(&store, "ab")), (None, Some("3".into())));
}

/// R1, L1: whatever a manifest that ends too early, or a write-ahead log that is gone or another store's, leaves: what
/// is opened holds a prefix of what was written, or is set aside.
#[test]
fn a_store_that_lacks_writes_between_others_is_set_aside() {
    const KEYS: [&str; 4] = ["a", "b", "c", "d"];
    let folder = tempfile::tempdir().unwrap();
    let filled = |name: &str, partition: i32| {
        let all = stores(&folder.path().join(name));
        let (store, _) = all.open(&Identity { partition, ..identity() }).unwrap();
        for (position, key) in (1..).zip(KEYS) {
            write(&store, &[(key, "1")], position);
            // Two are in files, two in the write-ahead log.
            (position <= 2).then(|| store.flush().unwrap());
        }
        (store, folder.path().join(name).join("state").join(format!("partition-{partition}")))
    };
    let ((_first, first), (_second, second)) = (filled("first", 0), filled("second", 1));
    let file = |of: &Path, part: &str| {
        let mut files = std::fs::read_dir(of).unwrap().map(|file| file.unwrap().path());
        files.find(|file| file.to_string_lossy().contains(part)).unwrap()
    };
    let (manifest, log) = (file(&first, "MANIFEST"), file(&first, ".log"));
    let name = |path: &Path| path.file_name().unwrap().to_owned();
    let mut told = Vec::new();
    let mut open = |damage: &dyn Fn(&Path)| {
        let tried = tempfile::tempdir().unwrap();
        let path = tried.path().join("state").join("partition-0");
        copy(&first, &path);
        damage(&path);
        let (store, refused) = stores(tried.path()).open(&identity()).unwrap();
        let holds: Vec<_> = KEYS.iter().map(|key| held(&store, key).is_some()).collect();
        assert!(holds.is_sorted_by(|a, b| a >= b), "no prefix: {holds:?}, refused: {refused:?}");
        let count = holds.iter().filter(|holds| **holds).count();
        let position = store.checkpoint().unwrap().unwrap().position;
        assert_eq!((position, refused.is_some()), (count as i64, refused.is_some() && count == 0));
        told.extend(refused);
        count
    };
    assert_eq!(open(&|_| {}), 4);
    assert_eq!(open(&|path| std::fs::remove_file(path.join(name(&log))).unwrap()), 2);
    let swap = |path: &Path| assert!(std::fs::copy(file(&second, ".log"), path.join(name(&log))).unwrap() > 0);
    assert_eq!(open(&swap), 0);
    let length = std::fs::metadata(&manifest).unwrap().len();
    for end in (0..length).step_by(7) {
        let cut = |path: &Path| {
            let file = std::fs::OpenOptions::new().write(true).open(path.join(name(&manifest))).unwrap();
            file.set_len(end).unwrap();
        };
        open(&cut);
    }
    // Types of records that RocksDB does not write here, in each header of either file (V1).
    let headers = |bytes: &[u8]| {
        let next = |at: &usize| {
            let header = bytes.get(*at..*at + 7)?;
            Some(at + 7 + usize::from(u16::from_le_bytes([header[4], header[5]])))
        };
        std::iter::successors(Some(0), next).take_while(|at| *at < bytes.len()).collect::<Vec<_>>()
    };
    for file in [&manifest, &log] {
        let bytes = std::fs::read(file).unwrap();
        for at in headers(&bytes) {
            for kind in [0, 5, 8, 11, 130] {
                let mut changed = bytes.clone();
                changed[at + 6] = kind;
                open(&|path| std::fs::write(path.join(name(file)), &changed).unwrap());
            }
        }
    }
    for reason in ["some are missing", "writes of another store", "an unknown record"] {
        assert!(told.iter().any(|told| told.contains(reason)), "{reason}: {told:?}");
    }
}

/// L2: links are forgotten, and what they stood for is not.
#[test]
fn a_store_that_is_written_often_holds_few_links() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = stores(folder.path()).open(&identity()).unwrap();
    for n in 0..300u32 {
        write(&store, &[(&format!("{:03}", n % 150), &n.to_string())], i64::from(n));
    }
    drop(store);
    let path = folder.path().join("state").join("partition-0");
    let db = rocksdb::DB::open_default(&path).unwrap();
    let all = db.iterator(rocksdb::IteratorMode::Start).map(|item| item.unwrap().0[0]);
    let links = all.filter(|prefix| *prefix == schema::LINK).count();
    assert!((1..=70).contains(&links), "{links}");
    drop(db);
    let (store, refused) = stores(folder.path()).open(&identity()).unwrap();
    assert_eq!((refused, held(&store, "149").as_deref()), (None, Some("299")));
    drop(store);
    // One that is not there any more, whichever it is.
    let db = rocksdb::DB::open_default(&path).unwrap();
    let keys = db.iterator(rocksdb::IteratorMode::Start).map(|item| item.unwrap().0);
    let links: Vec<_> = keys.filter(|key| key[0] == schema::LINK).collect();
    db.delete(&links[links.len() / 2]).unwrap();
    drop(db);
    let (_, refused) = stores(folder.path()).open(&identity()).unwrap();
    assert!(refused.unwrap().contains("some are missing"));
}

/// R2: another application, partition or topic; another version; files that are not there.
#[test]
fn a_store_that_is_not_this_partitions_is_set_aside() {
    let other_version = |path: &Path| {
        let mut bytes = schema::encode(&identity());
        bytes[0] = schema::VERSION + 1;
        rocksdb::DB::open_default(path).unwrap().put(schema::IDENTITY, bytes).unwrap();
    };
    let no_checkpoint = |path: &Path| rocksdb::DB::open_default(path).unwrap().delete(schema::CHECKPOINT).unwrap();
    let no_manifest = |path: &Path| {
        let files = std::fs::read_dir(path).unwrap().map(|file| file.unwrap().path());
        files
            .filter(|file| file.to_string_lossy().contains("MANIFEST"))
            .for_each(|file| std::fs::remove_file(file).unwrap());
    };
    let no_current = |path: &Path| std::fs::remove_file(path.join("CURRENT")).unwrap();
    let nothing = |_: &Path| {};
    let another = Identity { changelog_id: "another".into(), ..identity() };
    type Damage<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Damage<'_>, Identity); 5] = [
        ("another topic", &nothing, another),
        ("another version", &other_version, identity()),
        ("no checkpoint", &no_checkpoint, identity()),
        ("no manifest", &no_manifest, identity()),
        ("no CURRENT", &no_current, identity()),
    ];
    for (what, damage, opened_as) in cases {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = stores(folder.path()).open(&identity()).unwrap();
        write(&store, &[("a", "1")], 7);
        drop(store);
        damage(&folder.path().join("state/partition-0"));
        let (store, refused) = stores(folder.path()).open(&opened_as).unwrap();
        assert!(refused.is_some(), "{what}");
        assert_eq!((held(&store, "a"), store.checkpoint().unwrap().unwrap().position), (None, 0), "{what}");
    }
}

/// R4.
#[test]
fn a_store_is_open_once_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let stores = stores(folder.path());
    let (store, _) = stores.open(&identity()).unwrap();
    write(&store, &[("a", "1")], 7);
    let another = Identity { partition: 1, ..identity() };
    let (_, refused) = stores.open(&another).unwrap();
    assert_eq!(refused, None, "another partition's store is another store");
    for stores in [stores.clone(), stores.clone()] {
        assert!(matches!(stores.open(&identity()), Err(StoreError::InUse(_))));
        assert!(matches!(stores.wipe(0), Err(StoreError::InUse(_))));
    }
    let reader = Arc::new(store);
    let task = Arc::clone(&reader);
    drop(task);
    assert!(matches!(stores.open(&identity()), Err(StoreError::InUse(_))), "someone still reads it");
    drop(reader);
    let (store, refused) = stores.open(&identity()).unwrap();
    assert_eq!((refused, held(&store, "a")), (None, Some("1".into())));
}

/// R3.
#[test]
fn a_value_that_cannot_be_read_is_corrupt_and_no_guess() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = stores(folder.path()).open(&identity()).unwrap();
    write(&store, &[("a", "1"), ("b", "2")], 7);
    drop(store);
    let db = rocksdb::DB::open_default(folder.path().join("state/partition-0")).unwrap();
    db.put(schema::entry_key(b"a"), b"\x01nonsense").unwrap();
    drop(db);
    let stores = stores(folder.path());
    let (store, _) = stores.open(&identity()).unwrap();
    assert_eq!((held(&store, "b"), store.damage()), (Some("2".into()), None));
    assert!(matches!(store.get(b"a"), Err(StoreError::Corrupted(..))));
    // R5: known to be damaged it answers nothing and takes nothing, and its place is taken by another.
    let reason = store.damage().expect("noted").to_owned();
    assert!(matches!(store.get(b"b"), Err(StoreError::Corrupted(..))));
    assert!(matches!(store.scan(b"b", false).next(), Some(Err(StoreError::Corrupted(..)))));
    assert!(matches!(store.write([], None, Checkpoint { position: 8, at_end_ms: 1 }), Err(StoreError::Corrupted(..))));
    drop(store);
    let (store, refused) = stores.open(&identity()).unwrap();
    assert_eq!((refused, store.damage(), held(&store, "b")), (Some(reason), None, None));
    drop(store);
    assert_eq!(stores.open(&identity()).unwrap().1, None, "once");
    assert!(folder.path().join("state/partition-0.damaged/CURRENT").exists(), "R6");
}

fn stamp(entry: &Option<Entry>) -> String {
    entry.as_ref().map_or("tombstone".into(), |entry| entry.stamp.to_string())
}

/// O1, O2: each layer hides those below it; only committed entries are taken for the store or told.
#[test]
fn the_overlay_tells_the_engine_the_newest_and_readers_the_committed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = stores(folder.path()).open(&identity()).unwrap();
    write(&store, &[("k", "1")], 7);
    let mut overlay = Overlay::new(Arc::new(store));
    let key = Bytes::from_static(b"k");
    let see = |overlay: &Overlay| {
        let text = |entry: Option<&Entry>| entry.map_or("none".to_owned(), |entry| entry.stamp.to_string());
        (overlay.held(&key, text).unwrap(), text(overlay.committed_above(&key).flatten()))
    };
    assert_eq!(see(&overlay), ("1".into(), "none".into()));
    overlay.put(key.clone(), entry("2"));
    assert_eq!(see(&overlay), ("2".into(), "none".into()));
    drop(overlay.commit_begins());
    assert_eq!(see(&overlay), ("2".into(), "none".into()));
    overlay.put(key.clone(), entry("3"));
    assert_eq!(see(&overlay), ("3".into(), "none".into()), "O1");
    overlay.commit_ends();
    assert_eq!(see(&overlay), ("3".into(), "2".into()));
    let flush = overlay.flush_begins().unwrap();
    assert_eq!(stamp(&flush[&key]), "2", "O2");
    assert!(overlay.flush_begins().is_none() && overlay.is_flushing() && overlay.committed_bytes() == 0);
    assert_eq!(see(&overlay), ("3".into(), "2".into()), "what is on its way into the store is still told");
    drop(overlay.commit_begins());
    overlay.commit_ends();
    assert_eq!(see(&overlay), ("3".into(), "3".into()));
    assert_eq!(stamp(&overlay.first_above_store(9, |_| true)[&key]), "3", "the newest hides the older");
    overlay.flush_ends();
    assert_eq!(stamp(&overlay.flush_begins().unwrap()[&key]), "3");
    overlay.flush_ends();
    assert_eq!(see(&overlay), ("1".into(), "none".into()), "nobody has written the store in this test");
}

/// O3: a tombstone only for a marker that is committed, with nothing newer under way; it hides what is below.
#[test]
fn a_marker_is_buried_when_nothing_newer_of_its_key_is_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = stores(folder.path()).open(&identity()).unwrap();
    let removed = |stamp| Entry { action: Action::Remove, ..entry(stamp) };
    let key = Bytes::from_static(b"k");
    store.write([(&key, Some(&removed("5")))], None, Checkpoint { position: 8, at_end_ms: 0 }).unwrap();
    write(&store, &[("added", "1")], 9);
    let mut overlay = Overlay::new(Arc::new(store));
    assert!(!overlay.bury(&key, 4).unwrap(), "above the horizon");
    assert!(!overlay.bury(&Bytes::from_static(b"added"), 9).unwrap(), "no marker");
    assert!(!overlay.bury(&Bytes::from_static(b"never"), 9).unwrap());
    overlay.put(key.clone(), removed("6"));
    assert!(!overlay.bury(&key, 9).unwrap(), "in the same transaction");
    drop(overlay.commit_begins());
    assert!(!overlay.bury(&key, 9).unwrap(), "undecided");
    overlay.commit_ends();
    assert!(!overlay.bury(&key, 5).unwrap(), "what is committed counts, not what is in the store");
    assert!(overlay.has_removals() && overlay.bury(&key, 6).unwrap());
    let holds = |overlay: &Overlay| overlay.held(&key, |entry| entry.is_some()).unwrap();
    assert!(!holds(&overlay));
    assert_eq!(overlay.committed_above(&key).flatten().map(|entry| entry.stamp.to_string()), Some("6".into()), "O1");
    drop(overlay.commit_begins());
    overlay.commit_ends();
    assert_eq!(overlay.committed_above(&key), Some(None), "readers see it once it is committed");
    assert_eq!(stamp(&overlay.first_above_store(9, |_| true)[&key]), "tombstone");
    assert_eq!(stamp(&overlay.flush_begins().unwrap()[&key]), "tombstone");
    assert!(!holds(&overlay) && !overlay.has_removals());
    assert_eq!(overlay.flush_ends(), Some(6));
}

/// No more than asked for is copied, and it is the first in the order of keys, newest entries.
#[test]
fn a_listing_takes_no_more_of_the_overlay_than_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = stores(folder.path()).open(&identity()).unwrap();
    let mut overlay = Overlay::new(Arc::new(store));
    let mut put = |keys: std::ops::Range<u8>, stamp: &str, flush: bool| {
        keys.for_each(|key| overlay.put(Bytes::copy_from_slice(&[key]), entry(stamp)));
        drop(overlay.commit_begins());
        overlay.commit_ends();
        if flush {
            overlay.flush_begins();
        }
    };
    put(0..200, "1", true);
    put(100..250, "2", false);
    let first = overlay.first_above_store(5, |key| key[0] >= 98);
    let told: Vec<_> = first.iter().map(|(key, entry)| (key[0], stamp(entry))).collect();
    let expected = [(98, "1"), (99, "1"), (100, "2"), (101, "2"), (102, "2")];
    assert_eq!(told, expected.map(|(key, stamp)| (key, stamp.to_owned())));
    assert_eq!(overlay.first_above_store(1000, |_| true).len(), 250);
}

fn changelog_of(folder: &Path) -> (EmbeddedLog, TopicPartition) {
    let options = EmbeddedOptions { sync: false, ..EmbeddedOptions::default() };
    let log = EmbeddedLog::open(folder.join("log"), options).unwrap();
    let settings = vec![("cleanup.policy".into(), "compact".into())];
    log.create(&[NewTopic { name: "c".into(), partitions: 1, replication_factor: None, settings }]).unwrap();
    (log, TopicPartition::new(&Arc::from("c"), 0))
}

fn record(key: &'static str, stamp: &str) -> NewRecord {
    let mut value = BytesMut::new();
    entry(stamp).encode(&mut value);
    changelog::entry_record(&Bytes::from_static(key.as_bytes()), value.freeze())
}

fn restored(log: &EmbeddedLog, of: &TopicPartition, folder: &Path, retention_ms: i64) -> Restored {
    let plan = Plan { changelog: of.clone(), identity: &identity(), delete_retention_ms: retention_ms, committed: 0 };
    restore(log, &stores(folder), &plan, |_| true).unwrap()
}

const DAY_MS: i64 = 86_400_000;

/// Z2: a store that may have missed a tombstone, or claims more than there is, is rebuilt; another is not.
#[test]
fn a_store_is_continued_unless_it_may_be_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let (log, of) = changelog_of(folder.path());
    log.append(Append { to: of.clone(), records: vec![record("a", "1"), record("b", "2"), record("a", "3")] }).unwrap();
    let first = restored(&log, &of, folder.path(), DAY_MS);
    assert_eq!((first.records, first.rebuilt, held(&first.store, "a")), (3, None, Some("3".into())));
    drop(first.store);
    log.append(Append { to: of.clone(), records: vec![record("b", "4")] }).unwrap();
    let tail = restored(&log, &of, folder.path(), DAY_MS);
    assert_eq!((tail.records, tail.rebuilt, held(&tail.store, "b")), (1, None, Some("4".into())));
    drop(tail.store);
    for (position, at_end_ms) in [(99, clock::wall_ms()), (4, clock::wall_ms() - DAY_MS)] {
        let again = restored(&log, &of, folder.path(), DAY_MS);
        let stray = Bytes::from_static(b"stray");
        again.store.write([(&stray, Some(&entry("9")))], None, Checkpoint { position, at_end_ms }).unwrap();
        drop(again.store);
        let rebuilt = restored(&log, &of, folder.path(), DAY_MS);
        assert!(rebuilt.rebuilt.is_some(), "{position} {at_end_ms}");
        assert_eq!(
            (rebuilt.records, held(&rebuilt.store, "stray"), held(&rebuilt.store, "a")),
            (4, None, Some("3".into()))
        );
    }
}

/// Z1: a transaction that is undecided when the restore begins is waited for.
#[test]
fn a_restore_does_not_end_before_an_undecided_transaction_is_decided() {
    for commit in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let (log, of) = changelog_of(folder.path());
        log.append(Append { to: of.clone(), records: vec![record("a", "1")] }).unwrap();
        let number = log.begin("last owner").unwrap();
        log.append_in(number, &Append { to: of.clone(), records: vec![record("a", "2")] }).unwrap();
        std::thread::scope(|scope| {
            let restoring = scope.spawn(|| restored(&log, &of, folder.path(), DAY_MS));
            std::thread::sleep(Duration::from_millis(50));
            assert!(!restoring.is_finished(), "Z1: it ended before the transaction of the last owner");
            log.decide(number, commit).unwrap();
            let expected = if commit { "2" } else { "1" };
            assert_eq!(held(&restoring.join().unwrap().store, "a"), Some(expected.into()));
        });
    }
}
