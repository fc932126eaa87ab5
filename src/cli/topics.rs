//! `tidegate topics list|check|create|purge`: the application's topics as they are, and as they should be.

use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::error::CliError;
use super::open;
use super::options::ConfigOptions;
use super::output::{self, Output, cell};
use crate::config::{Config, LogKind, StampSource};
use crate::instance::topology::{
    TopologyError, check_internal, check_record_bytes, check_sources, internal_topics, output_topic,
};
use crate::log::whole::Until;
use crate::log::{Log, LogError, NewTopic, Operation, TopicDescription, TopicPartition};
use crate::progress::History;
use crate::topics::Topics;

/// `tidegate topics …`
#[derive(Debug, Subcommand)]
pub enum TopicsVerb {
    /// List them with what they hold.
    List(ConfigOptions),
    /// Say whether they fit the configuration; exit code 2 when they do not.
    Check(ConfigOptions),
    /// Create the internal topics that are missing.
    Create(CreateOptions),
    /// Delete records of the repartition topic that are processed and committed.
    Purge(ConfigOptions),
}

/// What `create` takes.
#[derive(Args, Debug)]
pub struct CreateOptions {
    #[command(flatten)]
    config: ConfigOptions,
    /// Also the source topics that are missing, with the broker's settings.
    #[arg(long)]
    source: bool,
}

/// A topic as it should be, or would be made. The source's and the output's settings are the user's.
struct Wanted {
    topic: NewTopic,
    role: Role,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Source,
    Internal,
    Output,
}

impl Role {
    fn as_str(self) -> &'static str {
        match self {
            Role::Source => "source",
            Role::Internal => "internal",
            Role::Output => "output",
        }
    }
}

/// Carries one of them out.
pub fn topics(verb: &TopicsVerb, output: Output) -> Result<(), CliError> {
    match verb {
        TopicsVerb::List(options) => list(&options.load()?, output),
        TopicsVerb::Check(options) => check(&options.load()?, output),
        TopicsVerb::Create(options) => create(&options.config.load()?, options.source, output),
        TopicsVerb::Purge(options) => purge(&options.load()?, output),
    }
}

fn wanted(config: &Config) -> Vec<Wanted> {
    let topics = Topics::new(&config.application.id, &config.source.topics);
    let replication_factor = (config.processing.replication_factor > 0).then_some(config.processing.replication_factor);
    let partitions = match config.source.stamp {
        StampSource::Offset => 1,
        StampSource::Header | StampSource::Arrival => config.processing.partitions,
    };
    let source =
        |name: &Arc<str>| NewTopic { name: name.to_string(), partitions, replication_factor, settings: Vec::new() };
    let sources = topics.sources.iter().map(|name| Wanted { topic: source(name), role: Role::Source });
    let internal = internal_topics(config, &topics).into_iter().map(|topic| Wanted { topic, role: Role::Internal });
    let output = output_topic(config).map(|topic| Wanted { topic, role: Role::Output });
    sources.chain(internal).chain(output).collect()
}

fn described(config: &Config, log: &dyn Log, wanted: &[Wanted]) -> Result<Vec<Option<TopicDescription>>, CliError> {
    let names: Vec<&str> = wanted.iter().map(|wanted| wanted.topic.name.as_str()).collect();
    log.describe(&names).map_err(|error| open::unanswered(config, &error))
}

fn list(config: &Config, output: Output) -> Result<(), CliError> {
    let log = open::log_beside(config)?;
    let wanted = wanted(config);
    let mut rows = Vec::new();
    for (wanted, found) in wanted.iter().zip(described(config, &*log, &wanted)?) {
        let records = found
            .as_ref()
            .map(|found| records(&*log, found))
            .transpose()
            .map_err(|error| open::unanswered(config, &error))?;
        rows.push(json!({
            "topic": wanted.topic.name,
            "role": wanted.role.as_str(),
            "exists": found.is_some(),
            "partitions": found.as_ref().map(|found| found.partitions),
            "cleanup_policy": found.as_ref().map(|found| &found.cleanup_policy),
            "offsets": records,
        }));
    }
    if output == Output::Json {
        return output::json(&json!({ "topics": rows }));
    }
    let fields = ["topic", "role", "exists", "partitions", "cleanup_policy", "offsets"];
    let cells = |row: &Value| fields.iter().map(|field| cell(&row[field])).collect();
    output::table(&fields, rows.iter().map(cells).collect())
}

/// Offsets between the ends of all partitions: no less than the records, because compaction and transactions leave gaps.
pub fn records(log: &dyn Log, topic: &TopicDescription) -> Result<i64, LogError> {
    let name = topic.name.as_str().into();
    (0..topic.partitions)
        .map(|partition| log.watermarks(&TopicPartition::new(&name, partition)).map(|ends| ends.high - ends.low))
        .sum()
}

/// The same checks as at an instance's start, but all of them.
fn check(config: &Config, output: Output) -> Result<(), CliError> {
    let log = open::log_beside(config)?;
    let wanted = wanted(config);
    let mut rows = Vec::new();
    let mut problems = Vec::new();
    let found = described(config, &*log, &wanted)?;
    let history = history(&*log, config, &wanted, &found)?;
    for (wanted, found) in wanted.iter().zip(found) {
        let exists = found.is_some();
        let policy = found.as_ref().map_or("compact", |found| found.cleanup_policy.as_str());
        let kept = wanted.role != Role::Output || policy.contains("compact");
        let note = (!kept).then(|| format!("cleanup.policy is {policy}: old changes go, also a key's last one"));
        let problem = problem(wanted, found, config)?;
        rows.push(json!({
            "topic": wanted.topic.name, "role": wanted.role.as_str(), "exists": exists, "problem": problem, "note": note,
        }));
        problems.extend(problem);
    }
    problems.extend(history);
    if output == Output::Json {
        output::json(&json!({ "topics": rows, "problems": problems }))?;
    }
    if !problems.is_empty() {
        return Err(CliError::misused(problems.join("\n       ")));
    }
    if output == Output::Json {
        return Ok(());
    }
    for row in rows.iter().filter(|row| row["note"].is_string()) {
        output::line(&format!("{}: {}", cell(&row["topic"]), cell(&row["note"])))?;
    }
    for row in rows.iter().filter(|row| row["exists"] == false) {
        let name = cell(&row["topic"]);
        output::line(&format!("{name}: not there yet; the first start makes it, or `tidegate topics create` does"))?;
    }
    output::line("the topics fit the configuration")
}

/// What does not fit, with the next step.
fn problem(wanted: &Wanted, found: Option<TopicDescription>, config: &Config) -> Result<Option<String>, CliError> {
    let checked = match (wanted.role, found) {
        // Auto-creation would give it the broker's number of partitions; the embedded log's is made by the first start.
        (Role::Source, None) if config.log.kind == LogKind::Kafka => {
            return Ok(Some(format!(
                "source topic {:?} does not exist; `tidegate topics create --source` makes it, or set source.topics",
                wanted.topic.name
            )));
        }
        (_, None) => return Ok(None),
        (Role::Source, found) => check_sources(config, &[wanted.topic.name.as_str().into()], vec![found]).map(drop),
        (Role::Internal, Some(found)) => check_internal(&wanted.topic, &found),
        (Role::Output, Some(found)) => check_record_bytes(&found),
    };
    match checked {
        Ok(()) => Ok(None),
        Err(TopologyError::Misconfigured(problem)) => Ok(Some(problem)),
        Err(TopologyError::Log(error)) => Err(open::unanswered(config, &error)),
    }
}

/// What the configuration would break of what the application has done so far, if anything.
fn history(
    log: &dyn Log,
    config: &Config,
    wanted: &[Wanted],
    found: &[Option<TopicDescription>],
) -> Result<Option<String>, CliError> {
    let progress = Topics::new(&config.application.id, &[]).progress;
    if !found.iter().flatten().any(|found| found.name == *progress) {
        return Ok(None);
    }
    let sources = wanted.iter().zip(found).filter(|(wanted, _)| wanted.role == Role::Source);
    let ids = sources.filter_map(|(_, found)| found.as_ref());
    let ids = ids.map(|found| (Arc::from(found.name.as_str()), Arc::from(found.id.as_str()))).collect();
    let history = History::read(log, &TopicPartition::new(&progress, 0), Until::Stable)
        .map_err(|error| open::unanswered(config, &error))?;
    Ok(history.allows(&config.source, &ids).err().map(|broken| broken.to_string()))
}

fn create(config: &Config, source: bool, output: Output) -> Result<(), CliError> {
    let log = open::log(config)?;
    let wanted = wanted(config);
    let found = described(config, &*log, &wanted)?;
    let missing = wanted
        .into_iter()
        .zip(found)
        .filter(|(wanted, found)| found.is_none() && (source || wanted.role != Role::Source));
    let missing: Vec<NewTopic> = missing.map(|(wanted, _)| wanted.topic).collect();
    log.create(&missing).map_err(|error| open::unanswered(config, &error))?;
    if output == Output::Json {
        let created: Vec<Value> =
            missing.iter().map(|topic| json!({ "topic": topic.name, "partitions": topic.partitions })).collect();
        return output::json(&json!({ "created": created }));
    }
    for topic in &missing {
        output::line(&format!("created {} ({} partitions)", topic.name, topic.partitions))?;
    }
    output::line(&format!("{} topics created", missing.len()))
}

/// Deletes what lies below the committed positions: never what is only consumed.
fn purge(config: &Config, output: Output) -> Result<(), CliError> {
    let (log, in_use) = open::log_that_exists(config)?;
    if let Some(in_use) = in_use {
        return Err(in_use.hint("an instance that runs does it by itself every processing.repartition_purge"));
    }
    let name = Topics::new(&config.application.id, &[]).repartition;
    let Some(found) = log.describe(&[&name]).map_err(|error| open::unanswered(config, &error))?.pop().flatten() else {
        return Err(
            CliError::misused(format!("there is no topic {name}")).hint("does application.id name the application?")
        );
    };
    // All partitions need the same right: either none is purged for the lack of it, or all are.
    log.check_rights((&config.application.id, &[]), &[(&name, &[Operation::Delete])])
        .map_err(|error| open::unanswered(config, &error))?;
    let partitions: Vec<_> = (0..found.partitions).map(|partition| TopicPartition::new(&name, partition)).collect();
    let committed =
        log.committed(&config.application.id, &partitions, false).map_err(|error| open::unanswered(config, &error))?;
    let (mut rows, mut total) = (Vec::new(), 0);
    for (of, committed) in partitions.iter().zip(committed) {
        let ends = log.watermarks(of).map_err(|error| open::unanswered(config, &error))?;
        let position = committed.map(|committed| committed.position);
        let offsets = position.map_or(0, |position| (position - ends.low).max(0));
        if let (Some(position), 1..) = (position, offsets) {
            log.purge(&[(of.clone(), position)]).map_err(|error| {
                CliError::failed(format!("purge of {of}: {error}; {total} offsets of partitions below it are deleted"))
                    .hint("run the same command again: what is deleted was processed, and is not missed")
            })?;
        }
        total += offsets;
        rows.push(json!({ "partition": of.partition, "committed": position, "offsets": offsets }));
    }
    if output == Output::Json {
        return output::json(&json!({ "topic": &*name, "offsets": total, "purged": rows }));
    }
    let fields = ["partition", "committed", "offsets"];
    let cells = |row: &Value| fields.iter().map(|field| cell(&row[field])).collect();
    output::table(&fields, rows.iter().map(cells).collect())?;
    output::line(&format!("{total} offsets of {name} deleted"))
}
