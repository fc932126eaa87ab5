//! A store that is not what it should be is rebuilt, with one line that says why (P13, R2).

use rocksdb::DB;
use tidegate::clock;
use tidegate::store::schema::{self, Checkpoint, Identity};

use super::upgrade::{again, ended};

const DAY_MS: i64 = 86_400_000;

#[test]
fn every_store_that_cannot_be_used_is_rebuilt_with_one_line_that_says_why() {
    let folder = ended();
    let damage = |partition: i32, change: &dyn Fn(&DB, Identity, Checkpoint)| {
        let path = folder.path().join(format!("tidegate-data/state/one/partition-{partition}"));
        let db = DB::open_default(path).expect("the store");
        let read = |key: &[u8]| db.get(key).unwrap().expect("it is there");
        let identity = schema::decode(&read(schema::IDENTITY)).expect("of this version");
        let checkpoint = schema::decode(&read(schema::CHECKPOINT)).expect("of this version");
        change(&db, identity, checkpoint);
    };
    let put = |db: &DB, key: &[u8], value: Vec<u8>| db.put(key, value).unwrap();
    damage(0, &|db, _, checkpoint| {
        let old = Checkpoint { at_end_ms: clock::wall_ms() - DAY_MS / 2 - 60_000, ..checkpoint };
        put(db, schema::CHECKPOINT, schema::encode(&old));
    });
    damage(1, &|db, _, checkpoint| {
        let beyond = Checkpoint { position: checkpoint.position + 1000, ..checkpoint };
        put(db, schema::CHECKPOINT, schema::encode(&beyond));
    });
    damage(2, &|db, identity, _| {
        let renewed = Identity { changelog_id: "an earlier topic's".into(), ..identity };
        put(db, schema::IDENTITY, schema::encode(&renewed));
    });
    damage(3, &|db, identity, _| {
        let foreign = Identity { application: "another".into(), ..identity };
        put(db, schema::IDENTITY, schema::encode(&foreign));
    });

    let lines = again(folder.path());
    let reasons = ["may have missed a deletion", "which ends at", "an earlier topic's", "another"];
    for (partition, reason) in reasons.into_iter().enumerate() {
        let of_partition = format!("partition={partition} ");
        let told = lines.iter().filter(|line| line.contains("rebuilt") && line.contains(&of_partition));
        let told: Vec<_> = told.collect();
        assert!(told.len() == 1 && told[0].contains(reason), "{partition}: {told:?} in {lines:#?}");
    }
}
