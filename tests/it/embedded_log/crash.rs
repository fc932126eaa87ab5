//! E9: whenever the process is killed, whole transactions are there, and all that were acknowledged.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::groups::Engine;
use super::*;

const FOLDER: &str = "TIDEGATE_TEST_CRASH_FOLDER";
const KEYS: i64 = 50;

fn options() -> EmbeddedOptions {
    EmbeddedOptions { sync: false, compact_after_bytes: 30_000, compact_keys: 20, ..EmbeddedOptions::default() }
}

/// The process that is killed: transaction n appends n to three partitions, the key n mod 50 to a
/// compacted one, and makes n + 1 the group's position; then it is acknowledged on the standard output.
#[test]
#[ignore = "the victim of killed_at_any_moment"]
fn victim() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let log = EmbeddedLog::open(&folder, options()).unwrap();
    create(&log, "t", 3, &[]);
    create(&log, "c", 1, &[("cleanup.policy", "compact"), ("delete.retention.ms", "0")]);
    let engine = Engine::join(&log, "g", &["t"]);
    let membership = engine.settled(3);
    let mut producer = log.producer("p").unwrap();
    let first = log.committed("g", &[at("t", 0)], true).unwrap()[0].as_ref().map_or(0, |committed| committed.position);
    for number in first.. {
        let value = number.to_string();
        let mut appends: Vec<Append> = (0..3).map(|partition| append(&at("t", partition), &[&value])).collect();
        appends.push(Append { to: at("c", 0), records: vec![record(&(number % KEYS).to_string(), &value)] });
        let offsets = vec![commit_of(&at("t", 0), number + 1, &value)];
        producer
            .commit(&Transaction { appends, offsets, membership: membership.clone(), ends_of: Vec::new() })
            .unwrap();
        if number % 7 == 0 {
            // In steps, too: one partition gets a value of a transaction that never is committed.
            let open = log.begin("steps").unwrap();
            log.append_in(open, &append(&at("c", 0), &["never"])).unwrap();
            log.decide(open, false).unwrap();
        }
        println!("acknowledged {number}");
    }
}

fn start_victim(folder: &Path) -> Child {
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args(["--exact", "embedded_log::crash::victim", "--ignored", "--nocapture"]).env(FOLDER, folder);
    victim.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// What must hold whenever it is looked at: the number of whole transactions.
fn check(log: &EmbeddedLog) -> i64 {
    let [of, second, third, c] = [at("t", 0), at("t", 1), at("t", 2), at("c", 0)];
    let all = read(log, &of, 0, COMMITTED);
    let count = all.len() as i64;
    for (place, record) in all.iter().enumerate() {
        assert_eq!((record.offset, text(&record.value)), (place as i64, place.to_string()));
    }
    for other in [second, third] {
        assert_eq!(read(log, &other, 0, COMMITTED).len() as i64, count, "half of a transaction");
    }
    let committed = log.committed("g", &[of], false).unwrap()[0].clone();
    assert_eq!(committed.map(|committed| committed.position), (count > 0).then_some(count));
    let state: std::collections::BTreeMap<_, _> =
        read(log, &c, 0, COMMITTED).iter().map(|record| (text(&record.key), text(&record.value))).collect();
    let expected = (0.max(count - KEYS)..count).map(|number| ((number % KEYS).to_string(), number.to_string()));
    assert_eq!(state, expected.collect(), "the compacted topic");
    count
}

#[test]
fn killed_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(3);
    let mut total = 0;
    for round in 0..8 {
        let mut victim = start_victim(folder.path());
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut acknowledged = -1;
        let mut left = 1 + random.u32(..400);
        for line in &mut lines {
            // The test harness writes its own beginning into the first line.
            if let Some((_, number)) = line.split_once("acknowledged ") {
                acknowledged = number.parse().unwrap();
                left -= 1;
                if left == 0 {
                    break;
                }
            }
        }
        if round == 3 {
            let beside = EmbeddedLog::open_beside(folder.path()).unwrap();
            let high = beside.watermarks(&at("t", 2)).unwrap().high;
            assert!(high > acknowledged);
            assert_eq!(read(&beside, &at("t", 0), 0, COMMITTED).first().map(|record| record.offset), Some(0));
            let taken = message(EmbeddedLog::open(folder.path(), options()).err().expect("refused"));
            assert!(taken.contains(&format!("process {}", victim.id())), "{taken}");
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        let rest =
            lines.filter_map(|line| line.split_once("acknowledged ").map(|(_, number)| number.parse::<i64>().unwrap()));
        let acknowledged = rest.last().unwrap_or(acknowledged);
        let log = EmbeddedLog::open(folder.path(), options()).unwrap();
        log.fence("steps").unwrap();
        total = check(&log);
        assert!(total > acknowledged, "round {round}: {acknowledged} was acknowledged, {total} are there");
    }
    assert!(total > 100);
}

/// A loss of power cuts the write-ahead log anywhere: a prefix of whole transactions is left.
#[test]
fn cut_off_at_any_byte() {
    let folder = tempfile::tempdir().unwrap();
    let live = folder.path().join("live");
    let mut victim = start_victim(&live);
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines().map_while(Result::ok);
    lines.by_ref().filter(|line| line.contains("acknowledged ")).nth(150);
    victim.kill().unwrap();
    victim.wait().unwrap();
    let mut random = fastrand::Rng::with_seed(9);
    let mut counts = std::collections::BTreeSet::new();
    for round in 0..12 {
        let copy = folder.path().join(format!("copy{round}"));
        copy_folder(&live, &copy);
        let newest = std::fs::read_dir(copy.join("db")).unwrap().map(|entry| entry.unwrap().path());
        let wal = newest.filter(|path| path.extension().is_some_and(|name| name == "log")).max().unwrap();
        let length = std::fs::metadata(&wal).unwrap().len();
        std::fs::OpenOptions::new().write(true).open(&wal).unwrap().set_len(random.u64(length / 4..length)).unwrap();
        let log = EmbeddedLog::open(&copy, options()).unwrap();
        log.fence("steps").unwrap();
        counts.insert(check(&log));
        log.append(append(&at("t", 0), &["on it goes"])).unwrap();
    }
    assert!(counts.len() > 6 && *counts.first().unwrap() > 0, "{counts:?}");
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}
