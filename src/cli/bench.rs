//! `tidegate bench`: a built-in load with an exact check of the final state at its end.
//!
//! The source is filled first, then an instance in this process works it off. The clock runs from the
//! moment at which it reads the source until nothing is left to process; CPU time and peak memory
//! include its start.

mod load;
mod restore;
mod usage;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use super::error::CliError;
use super::open;
use super::options::ConfigOptions;
use super::output::{self, Output};
use super::run::runtime;
use super::verify;
use crate::clock;
use crate::config::units::parse_duration;
use crate::config::{Config, Format};
use crate::handler::DynHandler;
use crate::instance::view::{TaskState, TaskStatus};
use crate::log::{Append, Log, NewTopic, TopicPartition};
use crate::server::Front;
use crate::server::bind::bind;
use crate::server::process::{Process, name};
use load::{Load, LoadHandler};
use usage::Usage;

/// Primary events appended at a time.
const CHUNK: u64 = 20_000;

/// The longest that a load may take to be worked off.
const PATIENCE: Duration = Duration::from_secs(3600);

/// What `bench` takes.
#[derive(Args, Debug)]
pub struct BenchOptions {
    #[command(flatten)]
    config: ConfigOptions,
    /// Primary events.
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Keys.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    keys: u64,
    /// Children of each event, down to a depth of --ttl.
    #[arg(long, default_value_t = 1)]
    fan_out: u32,
    /// Depth of the cascades.
    #[arg(long, default_value_t = 1)]
    ttl: u8,
    /// How long each event takes (a wait).
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    work: Duration,
    /// 0 = all keys alike; the higher, the more events go to few keys.
    #[arg(long, default_value_t = 0.0)]
    skew: f64,
    /// Bytes of each event's payload, which is its value, too; at least 9.
    #[arg(long, default_value_t = 64)]
    payload: usize,
    /// Measure a restore instead: --keys entries of --payload bytes stand in the changelog, the stores are empty.
    #[arg(long)]
    restore: bool,
    /// Leave out the check of the final state.
    #[arg(long)]
    no_check: bool,
}

/// Runs the load and tells what it took.
pub fn bench(options: &BenchOptions, doors: Router<Front>, output: Output) -> Result<(), CliError> {
    let mut config = options.config.load()?;
    if !options.no_check && !options.restore {
        verify::has_reference(&config)
            .map_err(|error| CliError::misused(error.to_string()).hint("--no-check leaves the comparison out"))?;
    }
    let run = uuid::Uuid::new_v4().simple().to_string();
    let folder = std::env::temp_dir().join(format!("tidegate-bench-{run}"));
    config.application.id = format!("tidegate-bench-{}", &run[..8]);
    config.source.topics = vec![format!("{}-source", config.application.id)];
    config.source.format = Format::Protobuf;
    config.log.path = folder.join("log");
    config.state.dir = folder.join("state");
    config.server.listen = "127.0.0.1:0".into();
    let load = Load {
        events: options.events,
        keys: options.keys,
        fan_out: options.fan_out,
        ttl: options.ttl,
        skew: options.skew,
        payload: options.payload.max(load::HEADER),
    };
    std::fs::create_dir_all(&folder)?;
    let result = carry_out(options, config, load, doors, output);
    // What cannot be removed is in the system's temporary folder, which is emptied by itself.
    let _ = std::fs::remove_dir_all(&folder);
    result
}

fn carry_out(
    options: &BenchOptions,
    mut config: Config,
    load: Load,
    doors: Router<Front>,
    output: Output,
) -> Result<(), CliError> {
    let log = open::log(&config)?;
    if options.restore {
        return restore::bench(config, &log, load, !options.no_check, doors, output);
    }
    fill(&*log, &config, &load)?;
    let handler: Arc<dyn DynHandler> = Arc::new(LoadHandler { load, work: options.work });
    let runtime = runtime()?;
    let bound = runtime.block_on(bind(&config.server, false))?;
    name(&mut config, &bound);
    let verified = config.clone();
    let before = Usage::begin();
    let process = {
        let _guard = runtime.enter();
        Process::start(config, bound, Arc::clone(&log), Arc::clone(&handler), doors)?
    };
    let (elapsed, used) = work_off(&process, &log, &verified, load, &before)?;
    runtime.block_on(process.stop())?;
    if output == Output::Table {
        tell(load, elapsed, &used)?;
    }
    if options.no_check {
        return if output == Output::Json { output::json(&as_json(load, elapsed, &used, None)) } else { Ok(()) };
    }
    let handler: Arc<dyn DynHandler> = Arc::new(LoadHandler { load, work: Duration::ZERO });
    let report =
        verify::verify(&*log, &verified, &handler, PATIENCE).map_err(|error| CliError::failed(error.to_string()))?;
    if output == Output::Json {
        output::json(&as_json(load, elapsed, &used, Some(&report)))?;
    }
    match report.differences.len() {
        0 if output == Output::Json => Ok(()),
        0 => output::line(&format!(
            "final state       exact: all {} keys are those of the serial reference",
            report.keys
        )),
        n => Err(CliError::different(format!("{n} of {} keys are not those of the serial reference", report.keys))),
    }
}

fn is_quiescent(log: &dyn Log, config: &Config) -> Result<bool, CliError> {
    verify::is_quiescent(log, config).map_err(|error| CliError::failed(error.to_string()))
}

fn create_source(log: &dyn Log, config: &Config) -> Result<Arc<str>, CliError> {
    let topic: Arc<str> = Arc::from(config.source.topics[0].as_str());
    let settings = Vec::new();
    log.create(&[NewTopic { name: topic.to_string(), partitions: 1, replication_factor: None, settings }])
        .map_err(|error| CliError::failed(error.to_string()))?;
    Ok(topic)
}

/// Appends the primary events.
fn fill(log: &dyn Log, config: &Config, load: &Load) -> Result<(), CliError> {
    let topic = create_source(log, config)?;
    let bar = bar(load.events, "filling the source");
    let mut next = 0;
    while next < load.events {
        let end = (next + CHUNK).min(load.events);
        let records = (next..end).map(|n| load.primary(n)).collect();
        log.append(Append { to: TopicPartition::new(&topic, 0), records })
            .map_err(|error| CliError::failed(format!("cannot fill the source topic: {error}")))?;
        next = end;
        bar.set_position(next);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Waits until every event and every child is processed and committed; tells how long that took
/// from when the source began to be read, and what it used.
fn work_off(
    process: &Process,
    log: &Arc<dyn Log>,
    config: &Config,
    load: Load,
    before: &Usage,
) -> Result<(Duration, Usage), CliError> {
    let bar = bar(load.total(), "processing");
    let mut started = None;
    let deadline = clock::now() + PATIENCE;
    let mut last_line = clock::now();
    loop {
        std::thread::sleep(Duration::from_millis(20));
        let status = process.instance.status();
        if status.state == "failed" || clock::now() > deadline {
            return Err(CliError::failed(format!("the load was not worked off: {}", status.troubles.join("; "))));
        }
        let reads = |task: &TaskStatus| task.role == "source" && task.state == TaskState::Running;
        if started.is_none() && status.tasks.iter().any(reads) {
            started = Some(clock::now());
        }
        let processed: i64 = status.tasks.iter().filter(|task| task.role == "task").map(|task| task.committed).sum();
        bar.set_position(processed.unsigned_abs());
        if bar.is_hidden() && last_line.elapsed() > Duration::from_secs(5) {
            last_line = clock::now();
            eprintln!("processing: about {processed} of {}", load.total());
        }
        let at_rest = |role: &'static str| {
            let mut of_role = status.tasks.iter().filter(|task| task.role == role).peekable();
            of_role.peek().is_some()
                && of_role.all(|task| task.committed == task.position && task.waiting + task.in_flight == 0)
        };
        let read = status.tasks.iter().any(|task| task.role == "source" && task.committed >= load.events as i64);
        if !(read && at_rest("source") && at_rest("task")) {
            continue;
        }
        // The clock stops at the cheap look; the exact one, which opens a reader for each partition, confirms it.
        let took = (started.unwrap_or_else(clock::now).elapsed(), before.until_now());
        if is_quiescent(&**log, config)? {
            bar.finish_and_clear();
            return Ok(took);
        }
    }
}

fn bar(length: u64, what: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}");
    ProgressBar::new(length).with_style(style.expect("a constant template")).with_message(what)
}

fn as_json(load: Load, elapsed: Duration, used: &Usage, report: Option<&verify::Report>) -> Value {
    let (total, seconds) = (load.total(), elapsed.as_secs_f64());
    json!({
        "events": total,
        "primaries": load.events,
        "seconds": seconds,
        "events_per_second": total as f64 / seconds,
        "cpu_seconds_per_million_events": used.cpu.as_secs_f64() * 1e6 / total as f64,
        "peak_memory_bytes": used.peak_bytes,
        "keys": report.map(|report| report.keys),
        "differences": report.map(|report| report.differences.len()),
    })
}

fn tell(load: Load, elapsed: Duration, used: &Usage) -> Result<(), CliError> {
    let total = load.total();
    let seconds = elapsed.as_secs_f64();
    let millions = total as f64 / 1e6;
    output::line(&format!("events            {total} ({} primaries and their children)", load.events))?;
    output::line(&format!("time              {seconds:.2} s"))?;
    output::line(&format!("events/s          {:.0}", total as f64 / seconds))?;
    output::line(&format!("CPU s/M events    {:.2}", used.cpu.as_secs_f64() / millions))?;
    output::line(&format!("peak memory       {} MiB", used.peak_bytes >> 20))
}
