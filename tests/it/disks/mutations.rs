//! Stores that are damaged, on a stopped and on a running instance: every key's answer is right or not given until the
//! store is rebuilt, each damage costs at most one rebuild, and the event that met it is processed afterwards.
//!
//! `TIDEGATE_TEST_MUTATIONS=n` for more than the usual number, `TIDEGATE_SEED=n` for others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use tempfile::TempDir;
use tidegate::config::{Config, HandlerKind};
use tidegate::handler::builtin;
use tidegate::instance::Instance;
use tidegate::instance::view::{ListQuery, Lookup};
use tidegate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use tidegate::log::{Append, Log, NewRecord, TopicPartition};
use tidegate::metrics;
use tokio::runtime::Runtime;

use super::mutator::{copy, files, mutate, mutate_open};
use super::{alone, this};
use crate::running::eventually;

const PARTITIONS: i32 = 4;
const KEYS: usize = 300;
/// Mutations of a stopped instance, and of a running one.
const STOPPED: usize = 100;
const RUNNING: usize = 16;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn damage_is_noticed_and_mended_and_no_answer_is_ever_wrong() {
    let said = alone(this(), "disks::mutations::victim", &[]);
    let report: Vec<&str> = said.lines().filter(|line| line.contains("mutations of")).collect();
    println!("{}", report.join("\n"));
    assert_eq!(report.len(), 2, "{said}");
}

/// In a process of its own: its counts are its own, and what would kill it kills nothing else.
#[test]
#[ignore = "the victim of damage_is_noticed_and_mended_and_no_answer_is_ever_wrong"]
fn victim() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let more = number("TIDEGATE_TEST_MUTATIONS", STOPPED);
    let seed = number("TIDEGATE_SEED", 7) as u64;
    let mut app = App::new(seed);
    app.fill();
    let (mut rebuilt, mut harmless) = (0, 0);
    for round in 0..more {
        match app.stopped(round) {
            0 => harmless += 1,
            _ => rebuilt += 1,
        }
    }
    println!(
        "{more} mutations of a stopped instance (seed {seed}): {rebuilt} noticed and rebuilt, {harmless} harmless"
    );
    assert!(rebuilt > more / 4 && harmless > more / 20, "{rebuilt} {harmless}");
    let running = RUNNING * more / STOPPED;
    let rebuilt = app.running(running);
    println!("{running} mutations of a running instance (seed {seed}): {rebuilt} noticed and rebuilt");
    assert!(rebuilt > running / 4, "{rebuilt}");
}

/// An application with its log, and what its keys hold.
struct App {
    runtime: Runtime,
    log: Arc<dyn Log>,
    folder: TempDir,
    expected: BTreeMap<String, String>,
    /// What keys have held, or are about to.
    possible: BTreeMap<String, BTreeSet<Option<String>>>,
    rng: Rng,
}

impl App {
    fn new(seed: u64) -> App {
        // What the instances say is shown when the test fails.
        let _ = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).try_init();
        metrics::install();
        // Each round opens and closes four stores: in memory, where the system has such folders, that takes no time.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let options = EmbeddedOptions { sync: false, ..EmbeddedOptions::default() };
        let log: Arc<dyn Log> = Arc::new(EmbeddedLog::open(folder.path().join("log"), options).unwrap());
        let rng = Rng::with_seed(seed);
        let (expected, possible) = (BTreeMap::new(), BTreeMap::new());
        App { runtime: Runtime::new().unwrap(), log, folder, expected, possible, rng }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state/one")
    }

    fn store(&self, partition: i32) -> PathBuf {
        self.state().join(format!("partition-{partition}"))
    }

    fn start(&self) -> Instance {
        let mut config = Config::default();
        config.application.instance_id = "one".into();
        config.processing.partitions = PARTITIONS;
        config.processing.commit_interval = Duration::from_millis(5);
        config.handler.kind = HandlerKind::Echo;
        config.state.dir = self.folder.path().join("state");
        // So small that a store has several files.
        config.state.cache = 256 << 10;
        let handler = builtin::from_config(&config.handler, false).unwrap();
        let start = || Instance::start(Arc::new(config), Arc::clone(&self.log), handler, String::new());
        self.runtime.block_on(async { start() }).unwrap()
    }

    fn stop(&self, instance: Instance) {
        self.runtime.block_on(instance.shutdown());
    }

    /// New events for some keys.
    fn send(&mut self, keys: usize) {
        let mut records = Vec::new();
        for _ in 0..keys {
            let key = format!("key-{:04}", self.rng.usize(..KEYS));
            let noise: String = (0..300).map(|_| self.rng.alphanumeric()).collect();
            let value = format!("{noise} of {}", records.len());
            let event = format!(r#"{{"key":"{key}","action":"ADD","payload":"{value}"}}"#);
            records.push(NewRecord { key: None, value: Some(event.into()), headers: Vec::new() });
            // Until it is processed the key holds what it held.
            let before = self.expected.insert(key.clone(), value.clone());
            self.possible.entry(key).or_default().extend([before, Some(value)]);
        }
        self.log.append(Append { to: TopicPartition::new(&Arc::from("events"), 0), records }).unwrap();
    }

    /// Every key answers what it should, sooner or later, and until then nothing that is not possible: the causes that
    /// were told meanwhile.
    fn check(&mut self, instance: &Instance, what: &str) -> BTreeSet<String> {
        let (mut causes, deadline) = (BTreeSet::new(), Instant::now() + PATIENCE);
        for (key, expected) in &self.expected {
            loop {
                match self.runtime.block_on(instance.lookup(Bytes::copy_from_slice(key.as_bytes()))) {
                    Lookup::Here { entry, .. } => {
                        let value = entry.map(|entry| String::from_utf8(entry.value.unwrap().to_vec()).unwrap());
                        if value.as_ref() == Some(expected) {
                            break;
                        }
                        let is_possible = self.possible.get(key).is_some_and(|possible| possible.contains(&value));
                        assert!(is_possible, "{what}: {key} holds {value:?}, not {expected:?}");
                    }
                    Lookup::NotReady { reason, .. } => drop(causes.insert(reason)),
                    Lookup::Elsewhere { .. } => {}
                }
                assert!(Instant::now() < deadline, "{what}: {key} in vain; {causes:?}");
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        // The listing goes through everything in another way.
        loop {
            let query = ListQuery { limit: 1000, removed: true, ..ListQuery::default() };
            let page = self.runtime.block_on(instance.list(query));
            if let Ok(page) = page
                && page.partitions.len() == PARTITIONS as usize
            {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                let told = page.entries.iter().map(|held| (text(&held.key), text(held.entry.value.as_ref().unwrap())));
                assert_eq!(told.collect::<BTreeMap<_, _>>(), self.expected, "{what}");
                break;
            }
            assert!(Instant::now() < deadline, "{what}: no listing");
            std::thread::sleep(Duration::from_millis(2));
        }
        // From here on nothing else is right.
        self.possible.clear();
        causes
    }

    /// Stores with several files each, and copies of them from before.
    fn fill(&mut self) {
        for wave in 0..6 {
            let instance = self.start();
            at_work(&instance);
            self.send(400);
            self.check(&instance, "filling");
            self.stop(instance);
            if wave == 2 {
                copy(&self.state(), &self.folder.path().join("older"));
            }
        }
        copy(&self.state(), &self.folder.path().join("copy"));
        for partition in 0..PARTITIONS {
            let tables = files(&self.store(partition));
            let tables = tables.iter().filter(|file| file.extension().is_some_and(|ending| ending == "sst")).count();
            assert!(tables > 1, "partition {partition} has {tables} tables");
        }
    }

    /// One mutation of the stores as they were filled, then a start; how many stores were rebuilt.
    fn stopped(&mut self, round: usize) -> u64 {
        let (copies, before) = (self.folder.path().join("copy"), self.folder.path().join("older"));
        remove(&self.state());
        copy(&copies, &self.state());
        let partition = self.rng.i32(0..PARTITIONS);
        let another = (partition + self.rng.i32(1..PARTITIONS)) % PARTITIONS;
        let others = [before.join(format!("partition-{partition}")), copies.join(format!("partition-{another}"))];
        let what = mutate(&self.store(partition), &others, &mut self.rng);
        let (what, before) = (format!("mutation {round} of partition {partition} {what}"), rebuilds());
        let instance = self.start();
        self.check(&instance, &what);
        // The events go on, too.
        self.send(5);
        self.check(&instance, &what);
        self.stop(instance);
        let rebuilt = rebuilds() - before;
        assert!(rebuilt <= 1, "{what}: rebuilt {rebuilt} times");
        rebuilt
    }

    /// Mutations one after the other under instances that run; how many of them were noticed.
    fn running(&mut self, count: usize) -> usize {
        remove(&self.state());
        copy(&self.folder.path().join("copy"), &self.state());
        let (mut noticed, mut causes) = (0, BTreeSet::new());
        for round in 0..count {
            let instance = self.start();
            let partition = self.rng.i32(0..PARTITIONS);
            // Some of it may be in memory by then.
            if self.rng.bool() {
                self.check(&instance, "before");
            } else {
                at_work(&instance);
            }
            let before = rebuilds();
            let what = format!("mutation {round}: {}", mutate_open(&self.store(partition), &mut self.rng));
            if self.rng.bool() {
                causes.extend(self.check(&instance, &what));
            }
            self.send(40);
            causes.extend(self.check(&instance, &what));
            self.stop(instance);
            // What nobody has met while it ran is met by the next.
            let instance = self.start();
            causes.extend(self.check(&instance, &what));
            self.stop(instance);
            let rebuilt = rebuilds() - before;
            assert!(rebuilt <= 1, "{what}: rebuilt {rebuilt} times");
            noticed += rebuilt as usize;
        }
        assert!(causes.iter().any(|cause| cause.contains("corrupt")), "readers are told the cause: {causes:?}");
        noticed
    }
}

fn at_work(instance: &Instance) {
    eventually("all partitions are at work", || {
        let status = instance.status();
        (status.state == "running" && status.partitions.len() == PARTITIONS as usize).then_some(())
    });
}

fn remove(folder: &Path) {
    fs::remove_dir_all(folder).unwrap();
}

/// How often a store was rebuilt in this process.
fn rebuilds() -> u64 {
    let page = metrics::install().render();
    let line = page.lines().find_map(|line| line.strip_prefix("tidegate_stores_rebuilt_total ")).expect("the metric");
    line.parse().expect("a number")
}
