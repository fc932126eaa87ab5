//! Disks that are full, each a small one of memory in a mount namespace of its own. Where the system does not allow that
//! the tests say so and do nothing, but under `CI`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{alone, this};
use crate::running::{Running, eventually, run, tidegate};

/// How often the disk of the stores is filled, and that of the log.
const STORES_FILLED: usize = 10;
const LOG_FILLED: usize = 3;
/// It goes on by itself within this time once there is space. RocksDB looks every five seconds.
const SOON: Duration = Duration::from_secs(15);

#[test]
fn a_full_disk_under_the_stores_stops_the_reading_and_nothing_else() {
    with_small_disks("disks::full::stores");
}

#[test]
fn a_full_disk_under_the_log_loses_nothing_that_was_accepted() {
    with_small_disks("disks::full::log");
}

fn with_small_disks(victim: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mount = |rights: &&str| {
        let mut command = Command::new("unshare");
        command.args([rights, "mount", "-t", "tmpfs", "none"]).arg(folder.path());
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    let Some(rights) = ["-m", "-rm"].into_iter().find(|rights| mount(rights)) else {
        assert!(std::env::var_os("CI").is_none(), "this system lets nobody mount a small disk");
        eprintln!(
            "SKIPPED {victim}: it needs the right to mount (root, or user namespaces), which this system refuses"
        );
        return;
    };
    let mut command = Command::new("unshare");
    command.arg(rights).arg(this().get_program());
    let said = alone(command, victim, &[]);
    println!("{}", said.lines().filter(|line| line.contains("filled")).collect::<Vec<_>>().join("\n"));
}

/// A small disk, and a file that takes all of its space at will.
struct Disk(PathBuf);

impl Disk {
    fn mount(folder: &Path, size: &str) -> Disk {
        let path = folder.join("disk");
        fs::create_dir(&path).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(&path);
        assert!(command.status().unwrap().success());
        Disk(path)
    }

    /// Takes what space there is; also what was freed since the last time.
    fn fill(&self) {
        let mut filler = File::options().create(true).append(true).open(self.0.join("filler")).unwrap();
        for size in [1 << 20, 1 << 12] {
            while filler.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn clear(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

/// Says whether `/readyz` tells that there is no space.
fn tells_full(running: &Running) -> Option<String> {
    let (status, health) = running.get("/readyz");
    let text = health.to_string();
    (status == 503 && text.contains("No space left")).then_some(text)
}

/// An application under load: each event has a child, and keys come again and again.
struct Load {
    sent: usize,
    expected: BTreeMap<String, String>,
}

impl Load {
    fn batch(&mut self) -> String {
        let mut lines = Vec::new();
        for _ in 0..40 {
            let n = self.sent;
            self.sent += 1;
            let (key, child) = (format!("k{}", n * 7 % 500), format!("c{}", n % 200));
            let value = format!("{n} {}", (0..800).map(|_| fastrand::alphanumeric()).collect::<String>());
            let spawn = json!([{ "key": child, "action": "ADD", "payload": { "value": format!("of {n}") } }]);
            lines.push(
                json!({ "key": key, "action": "ADD", "payload": { "value": value, "spawn": spawn } }).to_string(),
            );
            // The serial reference.
            self.expected.extend([(key, value), (child, format!("of {n}"))]);
        }
        lines.join("\n")
    }

    fn send(&mut self, running: &Running) {
        let batch = self.batch();
        running.send(&batch);
    }

    fn check(&self, running: &Running) {
        for (key, value) in &self.expected {
            let (status, held) = running.get(&format!("/api/v1/keys/{key}"));
            assert_eq!((status, held["value"].as_str()), (200, Some(value.as_str())), "{key}");
        }
    }
}

/// The position of the source's reader.
fn position(running: &Running) -> u64 {
    let (_, tasks) = running.get("/api/v1/tasks");
    let is_source = |task: &&Value| task["role"] == "source";
    let source = tasks["tasks"].as_array().unwrap().iter().find(is_source).cloned();
    source.map_or(0, |task| task["position"].as_u64().unwrap())
}

fn metric(running: &Running, name: &str) -> f64 {
    let (_, page) = running.get_text("/metrics");
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is not in {page}")).parse().unwrap()
}

/// S2, S3: with the disk of the stores full, again and again under load.
#[test]
#[ignore = "the victim of a_full_disk_under_the_stores_stops_the_reading_and_nothing_else"]
fn stores() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(folder.path(), "16m");
    let state = format!("state.dir={}", disk.0.join("state").display());
    // So small that it reaches the disk at once.
    let arguments = ["--set", &state, "--set", "state.cache=256KiB", "--set", "processing.commit_interval=20ms"];
    let mut running = Running::start(folder.path(), &arguments);
    let mut load = Load { sent: 0, expected: BTreeMap::new() };
    (0..10).for_each(|_| load.send(&running));
    running.drained();
    let (mut slowest, mut largest) = (Duration::ZERO, 0.0_f64);
    for round in 0..STORES_FILLED {
        disk.fill();
        let told = eventually("it says that the disk is full", || {
            load.send(&running);
            disk.fill();
            tells_full(&running)
        });
        assert!(told.contains("make space on this disk"), "the next step: {told}");
        assert_eq!(metric(&running, "tidegate_ready"), 0.0);
        // Reading comes to a stand.
        let mut last = position(&running);
        let stands = eventually("nothing more is read", || {
            load.send(&running);
            std::thread::sleep(Duration::from_millis(300));
            let now = position(&running);
            (std::mem::replace(&mut last, now) == now).then_some(now)
        });
        (0..5).for_each(|_| load.send(&running));
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(position(&running), stands, "round {round}: the disk is full");
        assert!(load.sent as u64 > stands, "what was sent meanwhile waits on the log");
        // Readers are answered.
        assert_eq!(running.get("/api/v1/keys/k1").0, 200);
        largest = largest.max(metric(&running, "process_resident_memory_bytes"));
        // Every third time it is killed meanwhile, and starts on a disk that is still full.
        let begun = if round % 3 == 2 {
            running.kill();
            disk.fill();
            let freed = std::thread::spawn({
                let disk = Disk(disk.0.clone());
                move || {
                    std::thread::sleep(Duration::from_secs(1));
                    disk.clear();
                    Instant::now()
                }
            });
            running = Running::start(folder.path(), &arguments);
            freed.join().unwrap()
        } else {
            disk.clear();
            Instant::now()
        };
        eventually("it is ready again", || (running.get("/readyz").0 == 200).then_some(()));
        eventually("it reads again", || (position(&running) > stands).then_some(()));
        slowest = slowest.max(begun.elapsed());
    }
    assert!(slowest < SOON, "{slowest:?}");
    assert!(largest < 500e6, "{largest} bytes of memory");
    running.drained();
    load.check(&running);
    println!(
        "filled the disk of the stores {STORES_FILLED} times: {} events, at work again after {slowest:?} at most, \
         {} MB of memory at most",
        load.sent,
        largest as u64 >> 20
    );
    // After a crash, too, from what is on the disk.
    running.kill();
    let running = Running::start(folder.path(), &arguments);
    load.check(&running);
    running.signal("TERM");
    assert_eq!(running.ended(), Some(0));
    run(folder.path(), &["verify", "--set", "processing.partitions=4", "--set", "handler.kind=scripted"]).ok();
}

/// With the disk of the log full nothing is accepted, and nothing that was is lost.
#[test]
#[ignore = "the victim of a_full_disk_under_the_log_loses_nothing_that_was_accepted"]
fn log() {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::mount(folder.path(), "300m");
    let path = format!("log.path={}", disk.0.join("log").display());
    let arguments = ["--set", &path, "--set", "processing.commit_interval=20ms"];
    let mut running = Running::start(folder.path(), &arguments);
    let (mut accepted, mut n) = (Vec::new(), 0);
    let mut send = |running: &Running| {
        n += 1;
        let value = format!("{n} {}", (0..50_000).map(|_| fastrand::alphanumeric()).collect::<String>());
        let event = json!({ "key": format!("k{n}"), "action": "ADD", "payload": { "value": value } });
        let (status, answer) = running.post("application/json", event.to_string());
        if status == 202 {
            accepted.push((format!("k{n}"), value));
        } else {
            assert!(answer["error"]["message"].as_str().unwrap().contains("No space left"), "{status} {answer}");
        }
        status
    };
    for round in 0..LOG_FILLED {
        (0..20).for_each(|_| assert_eq!(send(&running), 202));
        disk.fill();
        eventually("nothing is accepted", || {
            disk.fill();
            (send(&running) != 202).then_some(())
        });
        if round == 1 {
            // Killed in the middle of it. It cannot start on this disk, and says why.
            running.kill();
            let refused = refused(&folder, &arguments);
            assert!(refused.contains("No space left") && refused.contains("make space"), "{refused}");
            disk.clear();
            running = Running::start(folder.path(), &arguments);
        } else {
            eventually("it says that the disk is full", || {
                send(&running);
                tells_full(&running)
            });
            disk.clear();
        }
        let begun = Instant::now();
        eventually("it accepts again", || (send(&running) == 202).then_some(()));
        eventually("it is ready again", || (running.get("/readyz").0 == 200).then_some(()));
        println!("filled the disk of the log: at work again after {:?}", begun.elapsed());
        assert!(begun.elapsed() < SOON);
    }
    running.drained();
    for restarted in [false, true] {
        if restarted {
            running.kill();
            running = Running::start(folder.path(), &arguments);
        }
        for (key, value) in &accepted {
            let (status, held) = running.get(&format!("/api/v1/keys/{key}"));
            assert_eq!((status, held["value"].as_str()), (200, Some(value.as_str())), "{key}");
        }
    }
    running.signal("TERM");
    assert_eq!(running.ended(), Some(0));
    run(
        folder.path(),
        &["verify", "--set", &path, "--set", "processing.partitions=4", "--set", "handler.kind=scripted"],
    )
    .ok();
}

/// Starts an instance that has to end by itself with exit code 1; what it said.
fn refused(folder: &TempDir, arguments: &[&str]) -> String {
    let mut command = tidegate(folder.path());
    command.args(["run", "--handler", "scripted", "--listen", "127.0.0.1:0", "--set", "processing.partitions=4"]);
    let output = command.args(arguments).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}
