//! `tidegate bench --restore`: how long an instance without local state takes to have it.
//!
//! The entries are written into the changelog as an instance would have, each key once, as if compaction were through.
//! The clock runs from the assignment until every partition runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use bytes::{Bytes, BytesMut};
use prost::Message;
use serde_json::json;

use super::load::{Load, LoadHandler, key};
use super::usage::Usage;
use super::{PATIENCE, bar, create_source};
use crate::changelog::entry_record;
use crate::cli::error::CliError;
use crate::cli::output::{self, Output};
use crate::cli::run::runtime;
use crate::clock;
use crate::config::Config;
use crate::entry::Entry;
use crate::event::Action;
use crate::handler::DynHandler;
use crate::instance::topology::{self, Topology, TopologyError};
use crate::instance::view::TaskState;
use crate::log::{Append, Log, NewRecord, TopicPartition};
use crate::proto::Origin;
use crate::server::Front;
use crate::server::bind::bind;
use crate::server::process::{Process, name};
use crate::stamp::Stamp;
use crate::store::Stores;
use crate::store::schema::Identity;
use crate::topics::{Topics, partition_of};

/// Entries appended at a time.
const CHUNK: u64 = 20_000;

/// How long a broker may take to have the topics.
const START: Duration = Duration::from_secs(30);

/// What was measured.
struct Measured {
    first: Duration,
    all: Duration,
    used: Usage,
}

/// Fills the changelog, restores, and reads the stores.
pub(super) fn bench(
    mut config: Config,
    log: &Arc<dyn Log>,
    load: Load,
    check: bool,
    doors: Router<Front>,
    output: Output,
) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::failed(error.to_string());
    let topics = Topics::new(&config.application.id, &config.source.topics);
    create_source(&**log, &config)?;
    let topology = ensure(&**log, &config, &topics)?;
    fill(&**log, &config, &topics, load)?;
    let runtime = runtime()?;
    let bound = runtime.block_on(bind(&config.server, false))?;
    name(&mut config, &bound);
    let handler: Arc<dyn DynHandler> = Arc::new(LoadHandler { load, work: Duration::ZERO });
    let before = Usage::begin();
    let process = {
        let _guard = runtime.enter();
        Process::start(config.clone(), bound, Arc::clone(log), handler, doors)?
    };
    let measured = wait(&process, &config, load, &before)?;
    runtime.block_on(process.stop())?;
    tell(load, &measured, output)?;
    if !check {
        return Ok(());
    }
    let folder = config.state.dir.join(&config.application.instance_id);
    let stores = Stores::new(folder, config.state.cache / 4, config.state.cache / 4);
    let mut found = 0;
    for partition in 0..config.processing.partitions {
        let (application, changelog_id) = (config.application.id.clone(), topology.changelog_id.clone());
        let opened = stores.open(&Identity { application, partition, changelog_id });
        let (store, _) = opened.map_err(|error| failed(&error))?;
        for held in store.scan(b"", false) {
            let (key, held) = held.map_err(|error| failed(&error))?;
            if partition_of(&key, config.processing.partitions) != partition || held != entry(&load, &key) {
                return Err(CliError::different(format!("{key:?} holds {held:?} in partition {partition}")));
            }
            found += 1;
        }
    }
    match found {
        _ if found != load.keys => Err(CliError::different(format!("{found} of {} keys were restored", load.keys))),
        _ if output == Output::Table => output::line(&format!("state             exact: all {found} keys")),
        _ => Ok(()),
    }
}

/// Makes the topics. A broker that has just started refuses for a while.
fn ensure(log: &dyn Log, config: &Config, topics: &Topics) -> Result<Topology, CliError> {
    let deadline = clock::now() + START;
    loop {
        match topology::ensure(log, config, topics) {
            Ok(topology) => return Ok(topology),
            Err(TopologyError::Log(_)) if clock::now() < deadline => std::thread::sleep(Duration::from_millis(200)),
            Err(error) => return Err(CliError::failed(error.to_string())),
        }
    }
}

/// What a key of the load holds: its number is in its text.
fn entry(load: &Load, key: &Bytes) -> Entry {
    let text = String::from_utf8_lossy(key);
    let number: u64 = text.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(u64::MAX >> 8);
    let origin = Origin { topic: "source".into(), partition: 0, offset: number as i64, timestamp_ms: 0 };
    let mut value = BytesMut::zeroed(load.payload);
    value.iter_mut().zip(number.to_be_bytes()).for_each(|(to, from)| *to = from);
    Entry {
        stamp: Stamp::root(0, number),
        action: Action::Add,
        value: Some(value.freeze()),
        origin: origin.encode_to_vec().into(),
    }
}

/// Writes the changelog.
fn fill(log: &dyn Log, config: &Config, topics: &Topics, load: Load) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::failed(format!("cannot fill the changelog: {error}"));
    let mut appender = log.appender("bench").map_err(|error| failed(&error))?;
    let bar = bar(load.keys, "filling the changelog");
    let mut next = 0;
    while next < load.keys {
        let end = (next + CHUNK).min(load.keys);
        let mut records: BTreeMap<i32, Vec<NewRecord>> = BTreeMap::new();
        for number in next..end {
            // Not in the order of keys.
            let key = key(number.wrapping_mul(2_654_435_761) % load.keys);
            let mut value = BytesMut::new();
            entry(&load, &key).encode(&mut value);
            let partition = partition_of(&key, config.processing.partitions);
            records.entry(partition).or_default().push(entry_record(&key, value.freeze()));
        }
        let to = |partition| TopicPartition::new(&topics.changelog, partition);
        let appends = records.into_iter().map(|(partition, records)| Append { to: to(partition), records });
        appender.append(&mut appends.collect(), &|| false).map_err(|error| failed(&error))?;
        next = end;
        bar.set_position(next);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Waits until every partition runs.
fn wait(process: &Process, config: &Config, load: Load, before: &Usage) -> Result<Measured, CliError> {
    let bar = bar(load.keys, "restoring");
    let (mut began, mut first): (Option<Instant>, Option<Duration>) = (None, None);
    let deadline = clock::now() + PATIENCE;
    loop {
        std::thread::sleep(Duration::from_millis(5));
        let status = process.instance.status();
        if status.state == "failed" || clock::now() > deadline {
            return Err(CliError::failed(format!("nothing was restored: {}", status.troubles.join("; "))));
        }
        let tasks: Vec<_> = status.tasks.iter().filter(|task| task.role == "task").collect();
        if tasks.is_empty() {
            continue;
        }
        let since = began.get_or_insert_with(clock::now).elapsed();
        let left: i64 = tasks.iter().filter_map(|task| task.restore_remaining).sum();
        bar.set_position(load.keys.saturating_sub(left.unsigned_abs()));
        let running = tasks.iter().filter(|task| task.state == TaskState::Running).count();
        if running > 0 {
            first.get_or_insert(since);
        }
        if running == config.processing.partitions as usize {
            bar.finish_and_clear();
            return Ok(Measured { first: first.unwrap_or(since), all: since, used: before.until_now() });
        }
    }
}

fn tell(load: Load, measured: &Measured, output: Output) -> Result<(), CliError> {
    let Measured { first, all, used } = measured;
    let per_second = load.keys as f64 / all.as_secs_f64();
    let per_million = used.cpu.as_secs_f64() * 1e6 / load.keys as f64;
    if output == Output::Json {
        return output::json(&json!({
            "records": load.keys,
            "seconds": all.as_secs_f64(),
            "first_partition_seconds": first.as_secs_f64(),
            "records_per_second": per_second,
            "cpu_seconds_per_million_records": per_million,
            "peak_memory_bytes": used.peak_bytes,
        }));
    }
    output::line(&format!("records           {}", load.keys))?;
    output::line(&format!("time              {:.2} s", all.as_secs_f64()))?;
    output::line(&format!("first partition   {:.2} s", first.as_secs_f64()))?;
    output::line(&format!("records/s         {per_second:.0}"))?;
    output::line(&format!("CPU s/M records   {per_million:.2}"))?;
    output::line(&format!("peak memory       {} MiB", used.peak_bytes >> 20))
}
