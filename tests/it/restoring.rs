//! A restore by itself, on the embedded log: whatever the changelog holds, in whatever portions it is read, the store
//! holds the same.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use tidegate::changelog;
use tidegate::clock;
use tidegate::entry::Entry;
use tidegate::event::Action;
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use tidegate::log::{Append, Log, NewRecord, NewTopic, TopicPartition};
use tidegate::stamp::Stamp;
use tidegate::store::schema::{Checkpoint, Identity};
use tidegate::store::{Store, Stores};
use tidegate::task::restore::{Plan, RestoreError, Restored, restore};

const DAY_MS: i64 = 86_400_000;

/// What each key has to hold.
type Model = BTreeMap<Bytes, Entry>;

struct Case {
    folder: tempfile::TempDir,
    log: EmbeddedLog,
    of: TopicPartition,
}

impl Case {
    fn new() -> Case {
        let folder = tempfile::tempdir().unwrap();
        let options = EmbeddedOptions { sync: false, ..EmbeddedOptions::default() };
        let log = EmbeddedLog::open(folder.path().join("log"), options).unwrap();
        // Not compacted, so that a test knows what is read.
        let (partitions, replication_factor, settings) = (1, None, Vec::new());
        log.create(&[NewTopic { name: "c".into(), partitions, replication_factor, settings }]).unwrap();
        Case { folder, log, of: TopicPartition::new(&Arc::from("c"), 0) }
    }

    /// So small that more than a few records are several runs.
    fn stores(&self) -> Stores {
        Stores::new(self.folder.path().join("state"), 1 << 20, 1 << 20)
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("state/partition-0")
    }

    fn append(&self, records: Vec<NewRecord>) {
        self.log.append(Append { to: self.of.clone(), records }).unwrap();
    }

    fn try_restore(&self, wanted: impl Fn(Option<i64>) -> bool) -> Result<Restored, RestoreError> {
        let (changelog, identity) = (self.of.clone(), identity());
        let plan = Plan { changelog, identity: &identity, delete_retention_ms: DAY_MS, committed: 0 };
        restore(&self.log, &self.stores(), &plan, wanted)
    }

    fn restored(&self) -> Restored {
        self.try_restore(|_| true).unwrap()
    }

    /// Leaves a store that says that it is whole up to a position, since then.
    fn write(&self, key: &'static str, position: i64, at_end_ms: i64) {
        let (store, _) = self.stores().open(&identity()).unwrap();
        let checkpoint = Checkpoint { position, at_end_ms };
        store.write([(&Bytes::from_static(key.as_bytes()), Some(&entry(1, 1)))], None, checkpoint).unwrap();
        store.flush().unwrap();
    }
}

fn identity() -> Identity {
    Identity { application: "t".into(), partition: 0, changelog_id: "id".into() }
}

fn entry(sequence: u64, size: usize) -> Entry {
    let value = Some(Bytes::from(vec![b'v'; size]));
    Entry { stamp: Stamp::root(0, sequence), action: Action::Add, value, origin: Bytes::new() }
}

fn put(key: &Bytes, entry: &Entry) -> NewRecord {
    let mut value = BytesMut::new();
    entry.encode(&mut value);
    changelog::entry_record(key, value.freeze())
}

fn held(store: &Store) -> Model {
    store.scan(b"", false).collect::<Result<_, _>>().unwrap()
}

/// Draws records and takes them into the model as the changelog's reader has to (Z3): the greatest stamp that
/// followed the last tombstone.
fn draw(rng: &mut Rng, model: &mut Model, count: usize, keys: usize) -> Vec<NewRecord> {
    let mut one = || {
        let number = rng.usize(..keys);
        // Keys that begin alike, that are prefixes of each other, and short ones.
        let key = match number % 3 {
            0 => format!("key-of-the-same-beginning-{number}"),
            1 => "a".repeat(number % 40 + 1),
            _ => number.to_string(),
        };
        let key = Bytes::from(key);
        if rng.u32(..10) == 0 {
            model.remove(&key);
            return NewRecord { key: Some(key), value: None, headers: Vec::new() };
        }
        let entry = entry(rng.u64(..100_000), rng.usize(..200));
        if model.get(&key).is_none_or(|held| held.stamp <= entry.stamp) {
            model.insert(key.clone(), entry.clone());
        }
        put(&key, &entry)
    };
    (0..count).map(|_| one()).collect()
}

/// B2, B3, Z3: over one run, over many, in one batch, and in portions on a store that is there.
#[test]
fn a_restored_store_holds_the_greatest_stamp_since_the_last_tombstone_of_each_key() {
    for (seed, count, keys) in [(1, 300, 40), (2, 6_000, 3_000), (3, 30_000, 500), (4, 30_000, 20_000)] {
        let mut rng = Rng::with_seed(seed);
        let (at_once, in_portions, mut model) = (Case::new(), Case::new(), Model::new());
        for portion in 0..3 {
            let records = draw(&mut rng, &mut model, count, keys);
            in_portions.append(records.clone());
            at_once.append(records);
            let restored = in_portions.restored();
            assert_eq!(restored.records, count as u64, "the tail alone is read");
            assert!(held(&restored.store) == model, "{seed}: portion {portion}");
        }
        let restored = at_once.restored();
        assert_eq!(restored.records, 3 * count as u64);
        assert!(held(&restored.store) == model, "{seed}: at once");
        assert!(!at_once.path().join("filling").exists(), "what it was made of is gone");
    }
}

/// B1: an end in the middle leaves nothing that the next try could take for state.
#[test]
fn a_restore_that_is_given_up_leaves_nothing_and_begins_anew() {
    let case = Case::new();
    let (mut rng, mut model) = (Rng::with_seed(7), Model::new());
    case.append(draw(&mut rng, &mut model, 30_000, 20_000));
    let polls = Cell::new(0);
    let given_up = case.try_restore(|left| {
        polls.set(polls.get() + 1);
        left.is_none_or(|left| left > 5_000)
    });
    assert!(matches!(given_up, Err(RestoreError::Unwanted)) && polls.get() > 3);
    {
        let (store, refused) = case.stores().open(&identity()).unwrap();
        assert_eq!((refused, store.checkpoint().unwrap().unwrap().position, held(&store).len()), (None, 0, 0));
    }
    // A process that dies leaves its files, too.
    std::fs::create_dir_all(case.path().join("filling")).unwrap();
    for name in ["runs", "0.sst"] {
        std::fs::write(case.path().join("filling").join(name), b"rubbish").unwrap();
    }
    let restored = case.restored();
    assert_eq!((restored.records, &restored.rebuilt), (30_000, &None));
    assert!(held(&restored.store) == model);
    drop(restored);
    // It is on the disk, with its place in the changelog.
    let again = case.restored();
    assert_eq!((again.records, held(&again.store) == model), (0, true));
}

/// Z2: each with its reason, and nothing of what was there before is left.
#[test]
fn a_store_that_may_have_missed_a_tombstone_or_claims_too_much_is_rebuilt() {
    let now = clock::wall_ms();
    let cases = [
        (3, now - DAY_MS / 2 - 1000, Some("s ago and may have missed a deletion")),
        (99, now, Some("up to 99, which ends at 4")),
        (1, now, Some("up to 1, which begins at 2")),
        (2, now, None),
        (4, now - DAY_MS / 2 + 60_000, None),
    ];
    for (position, at_end_ms, expected) in cases {
        let case = Case::new();
        let keys = ["a", "b", "c", "d"];
        case.append(keys.iter().map(|key| put(&Bytes::from_static(key.as_bytes()), &entry(5, 1))).collect());
        case.log.purge(&[(case.of.clone(), 2)]).unwrap();
        case.write("stray", position, at_end_ms);
        let restored = case.restored();
        let reason = restored.rebuilt.as_deref();
        let as_expected = expected.map_or(reason.is_none(), |words| reason.is_some_and(|why| why.contains(words)));
        assert!(as_expected, "{position}: {reason:?}");
        let is_kept = held(&restored.store).contains_key(&b"stray"[..]);
        assert_eq!(is_kept, expected.is_none(), "{position}");
        assert!(expected.is_none() || held(&restored.store).len() == 2, "{position}");
    }
}

/// What a kill leaves: the folder as it is.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().flatten() {
        if file.file_type().unwrap().is_file() {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

/// R1: the process may die at any moment; what the store had taken it still has.
#[test]
fn after_a_kill_only_what_was_not_written_is_read_again() {
    let case = Case::new();
    let (mut rng, mut model) = (Rng::with_seed(9), Model::new());
    case.append(draw(&mut rng, &mut model, 20_000, 10_000));
    let open = case.restored();
    case.append(draw(&mut rng, &mut model, 500, 10_000));
    drop(open);
    let open = case.restored();
    assert_eq!(open.records, 500);
    // Nothing was flushed since, and nobody closes the store.
    case.append(draw(&mut rng, &mut model, 70, 10_000));
    let copied = case.folder.path().join("copy");
    copy(&case.path(), &copied);
    drop(open);
    std::fs::remove_dir_all(case.path()).unwrap();
    std::fs::rename(copied, case.path()).unwrap();
    let restored = case.restored();
    assert_eq!((restored.records, &restored.rebuilt), (70, &None));
    assert!(held(&restored.store) == model);
}
