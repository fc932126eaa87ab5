//! One seed: what it draws, how it runs, and what is compared at its end.
//!
//! Everything of a seed happens on the thread that calls [`run`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tempfile::TempDir;
use tidegate::clock;
use tidegate::config::{Cascade, Config, OutputFormat, StampSource, Superseded};
use tidegate::instance::topology;
use tidegate::log::{Log, NewTopic};
use tidegate::topics::Topics;

use super::bugs::Bug;
use super::checks;
use super::faults::processes::Left;
use super::faults::{Fault, Shared};
use super::horizons::Horizons;
use super::kinds::Kind;
use super::node::Plan;
use super::sometimes::{self, Counts};
use super::workload::{self, ATTEMPTS, Scripts};
use super::world::{self, World};
use super::{marking, timeline, waiting};

/// A violation shows so many of the last lines of its timeline, unless `LINES` says how many.
const SHOWN: usize = 150;

/// Linux' folder in memory.
const FAST: &str = "/dev/shm";

/// A seed that ended well.
#[derive(Debug)]
pub struct Report {
    /// What happened, in order.
    pub timeline: Vec<String>,
    /// What was reached, and how often.
    pub reached: Counts,
}

/// A seed in which something is not as promised.
#[derive(Debug)]
pub struct Violation {
    /// Of which kind.
    pub kind: &'static str,
    /// Which one.
    pub seed: u64,
    /// What is not as promised, and where that was found.
    pub what: String,
    /// What happened until then, in order.
    pub timeline: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { kind, seed, what, timeline } = self;
        let shown = std::env::var("LINES").ok().and_then(|lines| lines.parse().ok()).unwrap_or(SHOWN);
        let hidden = timeline.len().saturating_sub(shown);
        if hidden > 0 {
            writeln!(f, "  … {hidden} lines before")?;
        }
        timeline[hidden..].iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        writeln!(f, "{kind} {seed}: {what}")?;
        write!(f, "  again: make simulate KIND={kind} SEED={seed}")
    }
}

/// Runs one seed, with a bug at its ports or without. A panic of whatever takes part is a violation.
pub fn run(kind: &Kind, seed: u64, bug: Option<Bug>) -> Result<Report, Violation> {
    timeline::take();
    sometimes::take();
    waiting::forget();
    clock::simulate(true);
    let outcome = timeline::caught(|| play(kind, seed, bug));
    clock::simulate(false);
    match outcome {
        Ok(()) => Ok(Report { timeline: timeline::take(), reached: sometimes::take() }),
        Err(what) => Err(Violation { kind: kind.name, seed, what, timeline: timeline::take() }),
    }
}

fn plan(rng: &mut Rng, stamp: StampSource) -> (Config, Scripts, u32, usize) {
    let mut config = Config::default();
    config.application.id = "t".into();
    config.source.stamp = stamp;
    config.processing.partitions = rng.i32(1..=4);
    config.processing.commit_interval = Duration::from_millis([0, 5, 50, 200][rng.usize(..4)]);
    config.processing.max_in_flight = if rng.bool() { rng.usize(1..=8) } else { 1000 };
    if rng.u32(..4) == 0 {
        config.processing.max_buffered = [600, 3000, 20_000][rng.usize(..3)];
    }
    config.handler.retry.attempts = ATTEMPTS;
    config.handler.retry.initial = Duration::from_millis(10);
    config.handler.retry.max = Duration::from_millis(50);
    config.cascade = Cascade { max_depth: rng.usize(1..=4), max_children: 4 };
    let scripts = Scripts {
        keys: [1, 3, 10, 40][rng.usize(..4)],
        cascade: config.cascade.clone(),
        parents: [10, 30, 45][rng.usize(..3)],
    };
    (config, scripts, [0, 30, 80][rng.usize(..3)], [0, 2000, 1 << 20][rng.usize(..3)])
}

/// In memory where the system has such folders: a seed opens a dozen databases, and nothing of them has to last.
fn new_folder(kind: &Kind, seed: u64) -> TempDir {
    let mut name = tempfile::Builder::new();
    let prefix = format!("tidegate-{}-{seed}-", kind.name);
    let name = name.prefix(&prefix);
    name.tempdir_in(FAST).or_else(|_| name.tempdir()).expect("a folder for the seed")
}

/// Two seeds of three have an output topic, which may be there already with partitions of its own.
fn draw_output(rng: &mut Rng, config: &mut Config, log: &dyn Log) {
    if rng.u32(..3) == 0 {
        return;
    }
    config.output.topic = "out".into();
    config.output.format = if rng.bool() { OutputFormat::Json } else { OutputFormat::Protobuf };
    if rng.bool() {
        let (name, partitions) = (config.output.topic.clone(), rng.i32(1..=6));
        log.create(&[NewTopic { name, partitions, replication_factor: None, settings: Vec::new() }]).unwrap();
    }
}

fn play(kind: &Kind, seed: u64, bug: Option<Bug>) {
    let mut rng = Rng::with_seed(kind.salt() ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let folder = new_folder(kind, seed);
    timeline::hide(folder.path());
    // The engine's jitter. Names of temporary folders are drawn from it, too, if there are any after this.
    fastrand::seed(seed);
    let (mut config, scripts, at_once, overlay_bytes) = plan(&mut rng, kind.stamp);
    config.processing.superseded = kind.superseded;
    config.processing.guarantee = kind.guarantee;
    // So long that a seed comes to its end, and not always at once.
    config.state.marker_retention = Duration::from_millis([0, 0, 300, 12_000][seed as usize % 4]);
    let topics = Topics::new(&config.application.id, &config.source.topics);
    let path = folder.path().join("log");
    let shared = Shared::new(rng.u64(..), kind.bad_commits, kind.late_markers, path.clone());
    let log = world::open_log(path, &shared);
    let partitions = if kind.stamp == StampSource::Offset { 1 } else { rng.i32(1..=4) };
    let source =
        NewTopic { name: topics.sources[0].to_string(), partitions, replication_factor: None, settings: Vec::new() };
    log.create(&[source]).expect("the source topic is made");
    draw_output(&mut rng, &mut config, log.as_ref());
    let topology = topology::ensure(log.as_ref(), &config, &topics).expect("the topics are made");
    let count = rng.usize(20..150);
    let workload = workload::draw(&mut rng, &scripts, count, kind.stamp, partitions);
    config.source.max_disorder = workload.max_disorder;
    let plan = Plan { config: Arc::new(config), topics, topology, scripts, at_once, overlay_bytes, bug };
    let budget = if kind.faults.is_empty() { 0 } else { rng.u32(1..=8) };
    let seldom = rng.u32(40..400);
    let mut world = World::new(plan, workload, folder, log, rng);
    world.horizons = kind.deletes.then(|| Horizons::new(&world.rng, world.plan.config.state.marker_retention));
    world.dies_in_commits = kind.faults.contains(&Fault::Crash);
    if kind.retries > 0 {
        (world.has_retries, world.retries.left) = (true, world.rng.u32(1..=kind.retries));
    }
    for _ in 0..kind.nodes {
        let folder = world.free_folder();
        world.join(folder);
    }
    world.run(kind.faults, budget, seldom);
    world.settle_retries();
    match kind.stamp {
        StampSource::Arrival => checks::order(&mut world),
        StampSource::Offset | StampSource::Header => {
            let scripts = world.plan.scripts.clone();
            let late = marking::late(&world);
            world.workload.expect(&scripts, &late, |_, _| unreachable!("the records say their place"));
        }
    }
    checks::settled::at_the_end(&mut world);
    checks::reader::has_seen_all(&world);
    checks::answers::were_committed(&world);
    checks::books(&mut world);
    if kind.superseded == Superseded::Drop {
        return checks::dropped(&world);
    }
    checks::changelog(&world);
    checks::output(&world);
    checks::lookups(&mut world);
    checks::events(&world);
    checks::dead_letters(&world);
    checks::progress(&world);
    marking::check(&world);
    // Again on the same folders: nothing runs twice, only the tail is restored; of two seeds one has no positions of
    // the group any more (P9, P23).
    world.crash(Left::Whole, |world| {
        if seed.is_multiple_of(2) {
            world.forget();
        }
    });
    world.run(&[], 0, 1);
    checks::settled::at_the_end(&mut world);
    checks::lookups(&mut world);
    checks::stores(&mut world);
    checks::output(&world);
    checks::events(&world);
    checks::dead_letters(&world);
}
