//! `tidegate topics list|check|create`: the application's topics as they are, and as they should be.

use std::sync::Arc;

use clap::Subcommand;
use serde_json::{Value, json};

use super::error::CliError;
use super::open;
use super::options::ConfigOptions;
use super::output::{self, Output, cell};
use crate::config::{Config, LogKind, StampSource};
use crate::instance::topology::{RECORD_BYTES, internal_topics, output_topic};
use crate::log::{Log, LogError, NewTopic, TopicDescription, TopicPartition};
use crate::topics::Topics;

/// `tidegate topics …`
#[derive(Debug, Subcommand)]
pub enum TopicsVerb {
    /// List them with what they hold.
    List(ConfigOptions),
    /// Say whether they fit the configuration; exit code 2 when they do not.
    Check(ConfigOptions),
    /// Create those that are missing.
    Create(ConfigOptions),
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
        TopicsVerb::Check(options) => check(&options.load()?),
        TopicsVerb::Create(options) => create(&options.load()?),
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
fn records(log: &dyn Log, topic: &TopicDescription) -> Result<i64, LogError> {
    let name = topic.name.as_str().into();
    (0..topic.partitions)
        .map(|partition| log.watermarks(&TopicPartition::new(&name, partition)).map(|ends| ends.high - ends.low))
        .sum()
}

fn check(config: &Config) -> Result<(), CliError> {
    let log = open::log_beside(config)?;
    let wanted = wanted(config);
    let found = described(config, &*log, &wanted)?;
    let problems: Vec<String> =
        wanted.iter().zip(&found).filter_map(|(wanted, found)| problem(wanted, found.as_ref(), config)).collect();
    if !problems.is_empty() {
        return Err(CliError::misused(problems.join("\n       "))
            .hint("change the configuration to what is there, or use another application.id"));
    }
    for (wanted, found) in wanted.iter().zip(&found) {
        let name = &wanted.topic.name;
        match found {
            None => output::line(&format!("{name}: missing; `tidegate topics create` or the first start makes it"))?,
            Some(found) if wanted.role == Role::Output && !found.cleanup_policy.contains("compact") => output::line(
                &format!("{name}: cleanup.policy is {}: old changes go, also a key's last one", found.cleanup_policy),
            )?,
            Some(_) => {}
        }
    }
    output::line("the topics fit the configuration")
}

fn problem(wanted: &Wanted, found: Option<&TopicDescription>, config: &Config) -> Option<String> {
    let Wanted { topic: NewTopic { name, partitions, settings, .. }, role } = wanted;
    let Some(found) = found else {
        // Auto-creation would give it the broker's number of partitions.
        let is_on_kafka = config.log.kind == LogKind::Kafka;
        return (*role == Role::Source && is_on_kafka)
            .then(|| format!("{name}: the source topic does not exist (`tidegate topics create` makes it)"));
    };
    if *role != Role::Source && found.max_message_bytes < RECORD_BYTES {
        let bytes = found.max_message_bytes;
        return Some(format!("{name}: max.message.bytes is {bytes}; it has to be at least {RECORD_BYTES}"));
    }
    if *role == Role::Output {
        return None;
    }
    if found.partitions != *partitions {
        let why = if *role == Role::Source {
            "source.stamp = offset takes the sequence from the offsets of one partition"
        } else {
            "the number of partitions is fixed for the application's life"
        };
        return Some(format!("{name}: {} partitions instead of {partitions}: {why}", found.partitions));
    }
    let (_, policy) = settings.iter().find(|(key, _)| key == "cleanup.policy")?;
    (found.cleanup_policy != *policy)
        .then(|| format!("{name}: cleanup.policy is {} instead of {policy}", found.cleanup_policy))
}

fn create(config: &Config) -> Result<(), CliError> {
    let log = open::log(config)?;
    let wanted = wanted(config);
    let found = described(config, &*log, &wanted)?;
    let missing: Vec<NewTopic> =
        wanted.into_iter().zip(found).filter(|(_, found)| found.is_none()).map(|(wanted, _)| wanted.topic).collect();
    log.create(&missing).map_err(|error| open::unanswered(config, &error))?;
    for topic in &missing {
        output::line(&format!("created {} ({} partitions)", topic.name, topic.partitions))?;
    }
    output::line(&format!("{} topics created", missing.len()))
}
