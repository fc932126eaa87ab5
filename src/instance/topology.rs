//! The application's topics: created where they are missing, checked where they are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::keeping::{self, Kept};
use crate::config::{Config, LogKind, StampSource};
use crate::log::whole::Until;
use crate::log::{Join, Log, LogError, NewTopic, Operation, TopicDescription, TopicPartition};
use crate::output::Output;
use crate::progress::{Break, History};
use crate::topics::Topics;

/// Why an instance cannot work with the topics as they are.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// They do not fit the configuration; the message names the topic and the next step.
    #[error("{0}")]
    Misconfigured(String),
    /// The log does not answer, or not yet.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl From<Break> for TopologyError {
    fn from(broken: Break) -> TopologyError {
        TopologyError::Misconfigured(broken.0)
    }
}

/// What the checks found out.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The id of each source topic, by name.
    pub source_ids: BTreeMap<Arc<str>, Arc<str>>,
    /// Every partition of the source topics.
    pub source_partitions: Vec<TopicPartition>,
    /// The changelog's id.
    pub changelog_id: String,
    /// The changelog's `delete.retention.ms`, in milliseconds.
    pub delete_retention_ms: i64,
    /// The output topic as it is, if one is set.
    pub output: Option<Output>,
}

/// Kafka's own default for `max.message.bytes`: the longest records that are written stay below it.
pub const RECORD_BYTES: i64 = 1_048_588;

/// The internal topics as they have to be.
pub fn internal_topics(config: &Config, topics: &Topics) -> Vec<NewTopic> {
    let topic = |name: &Arc<str>, partitions, settings: &[(&str, &str)]| new_topic(config, name, partitions, settings);
    let partitions = config.processing.partitions;
    let forever: &[(&str, &str)] = &[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
    // A dead letter has to fit with its headers wherever its record came from.
    let dead_letter = [forever, &[("max.message.bytes", "2097152")]].concat();
    let mut internal = vec![
        topic(&topics.repartition, partitions, forever),
        topic(&topics.changelog, partitions, &[("cleanup.policy", "compact")]),
        topic(&topics.dead_letter, partitions, &dead_letter),
        topic(&topics.progress, 1, forever),
    ];
    if config.source.stamp == StampSource::Arrival {
        internal.push(topic(&topics.order, 1, forever));
    }
    internal
}

/// How an engine thread joins the group: source topics are shared out with the tasks, except that with
/// `arrival` one member, the sequencer, reads them all (protocol P22).
pub fn join(config: &Config, topics: &Topics) -> Join {
    let arrival = config.source.stamp == StampSource::Arrival;
    let shared = if arrival { &[] } else { &topics.sources[..] };
    Join {
        group: config.application.id.clone(),
        client_id: config.application.instance_id.clone(),
        topics: shared.iter().chain([&topics.repartition]).cloned().collect(),
        unshared: if arrival { topics.sources.clone() } else { Vec::new() },
        with_headers: if config.source.stamp == StampSource::Header { topics.sources.clone() } else { Vec::new() },
    }
}

/// The output topic as it is made when it is missing, if one is set. One that is there is the user's.
pub fn output_topic(config: &Config) -> Option<NewTopic> {
    let name = &config.output.topic;
    let compacted = [("cleanup.policy", "compact")];
    (!name.is_empty()).then(|| new_topic(config, name, config.processing.partitions, &compacted))
}

fn new_topic(config: &Config, name: &str, partitions: i32, settings: &[(&str, &str)]) -> NewTopic {
    let factor = config.processing.replication_factor;
    NewTopic {
        name: name.to_owned(),
        partitions,
        replication_factor: (factor > 0).then_some(factor),
        settings: settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    }
}

/// What an instance has to be allowed.
#[derive(Clone, Debug)]
pub struct Wanted {
    group: String,
    topics: Vec<(Arc<str>, &'static [Operation])>,
}

impl Wanted {
    /// By an instance with this configuration.
    pub fn of(config: &Config, topics: &Topics) -> Wanted {
        use Operation::{Delete, DescribeConfigs, Read, Write};
        const OWN: &[Operation] = &[DescribeConfigs, Read, Write];
        let purges = config.processing.repartition_purge.is_some();
        let purged: &[Operation] = if purges { &[DescribeConfigs, Read, Write, Delete] } else { OWN };
        let own = [
            (&topics.repartition, purged),
            (&topics.changelog, OWN),
            (&topics.dead_letter, OWN),
            (&topics.progress, purged),
        ];
        let order = (config.source.stamp == StampSource::Arrival).then_some((&topics.order, OWN));
        let sources = topics.sources.iter().map(|name| (name, &[DescribeConfigs, Read][..]));
        let own = sources.chain(own).chain(order).map(|(name, operations)| (Arc::clone(name), operations));
        let output = (!config.output.topic.is_empty()).then(|| Arc::from(config.output.topic.as_str()));
        let topics = own.chain(output.map(|name| (name, &[DescribeConfigs, Write][..]))).collect();
        Wanted { group: config.application.id.clone(), topics }
    }

    /// Asks the log.
    ///
    /// # Errors
    /// [`LogError::Unauthorized`] with all that is missing.
    pub fn check(&self, log: &dyn Log) -> Result<(), LogError> {
        let topics: Vec<(&str, &[Operation])> =
            self.topics.iter().map(|(name, operations)| (&**name, *operations)).collect();
        log.check_rights((&self.group, &[Operation::Read]), &topics)
    }

    /// The error; where something is not allowed, with all that is missing as far as the log tells it.
    pub fn explained(&self, log: &dyn Log, error: LogError) -> LogError {
        match error {
            LogError::Unauthorized(why) => match self.check(log) {
                Err(LogError::Unauthorized(all)) => LogError::Unauthorized(all),
                _ => LogError::Unauthorized(why),
            },
            other => other,
        }
    }
}

/// Creates what is missing and checks the rest.
pub fn ensure(log: &dyn Log, config: &Config, topics: &Topics) -> Result<Topology, TopologyError> {
    let internal = internal_topics(config, topics);
    let names: Vec<&str> = internal.iter().map(|topic| topic.name.as_str()).collect();
    let sources: Vec<&str> = topics.sources.iter().map(|name| &**name).collect();
    let wanted = Wanted::of(config, topics);
    let described = |names: &[&str]| log.describe(names).map_err(|error| wanted.explained(log, error));
    let mut found_sources = described(&sources)?;
    if config.log.kind == LogKind::Embedded && found_sources.iter().any(Option::is_none) {
        let missing = sources.iter().zip(&found_sources).filter(|(_, found)| found.is_none());
        let create = |(name, _): (&&str, _)| NewTopic {
            name: (*name).to_owned(),
            partitions: 1,
            replication_factor: None,
            settings: Vec::new(),
        };
        log.create(&missing.map(create).collect::<Vec<_>>())?;
        found_sources = described(&sources)?;
    }
    let (source_ids, source_partitions) = check_sources(config, &topics.sources, found_sources)?;
    let found = described(&names)?;
    let progress = TopicPartition::new(&topics.progress, 0);
    let is_there = names.iter().zip(&found).any(|(name, found)| **name == *topics.progress && found.is_some());
    let read = || History::read(log, &progress, Until::Stable).map_err(|error| wanted.explained(log, error));
    // Before what is missing is made anew.
    let history = is_there.then(read).transpose()?;
    if let Some(history) = &history {
        Kept::of(topics, &names, &found).check(history)?;
    }
    let missing: Vec<_> =
        internal.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(topic, _)| topic.clone()).collect();
    if !missing.is_empty() {
        log.create(&missing)?;
    }
    let found = described(&names)?;
    for (wanted, found) in internal.iter().zip(&found) {
        let Some(found) = found else {
            return Err(LogError::Retriable(format!("topic {} is created and not visible yet", wanted.name)).into());
        };
        check_internal(wanted, found)?;
    }
    wanted.check(log)?;
    let history = history.map_or_else(read, Ok)?;
    history.allows(&config.source, &source_ids)?;
    if history.is_empty() {
        let tasks = (0..config.processing.partitions).map(|at| TopicPartition::new(&topics.repartition, at));
        let all: Vec<_> = tasks.chain(source_partitions.iter().cloned()).collect();
        keeping::why_not_empty(log, &config.application.id, topics, &all)?.map_or(Ok(()), Err)?;
    }
    Kept::of(topics, &names, &found).tell(log, &history)?;
    let changelog = found[1].as_ref().expect("checked above");
    Ok(Topology {
        source_ids,
        source_partitions,
        changelog_id: changelog.id.clone(),
        delete_retention_ms: changelog.delete_retention_ms,
        output: ensure_output(log, config)?,
    })
}

fn ensure_output(log: &dyn Log, config: &Config) -> Result<Option<Output>, TopologyError> {
    let Some(wanted) = output_topic(config) else { return Ok(None) };
    let name = wanted.name.clone();
    let find = || Ok::<_, TopologyError>(log.describe(&[&name])?.pop().flatten());
    let found = match find()? {
        Some(found) => found,
        None => {
            log.create(&[wanted])?;
            find()?.ok_or_else(|| LogError::Retriable(format!("topic {name} is created and not visible yet")))?
        }
    };
    check_record_bytes(&found)?;
    if !found.cleanup_policy.contains("compact") {
        tracing::warn!(
            "the output topic {name} has cleanup.policy = {:?}: who reads it from the beginning later than its \
             retention misses keys that have not changed since",
            found.cleanup_policy
        );
    }
    Ok(Some(Output { topic: name.into(), partitions: found.partitions, format: config.output.format }))
}

/// A record that the topic does not take would fail every commit that has it.
pub fn check_record_bytes(found: &TopicDescription) -> Result<(), TopologyError> {
    if found.max_message_bytes >= RECORD_BYTES {
        return Ok(());
    }
    let name = &found.name;
    Err(TopologyError::Misconfigured(format!(
        "topic {name:?} has max.message.bytes = {}, it must be at least {RECORD_BYTES}: alter it (kafka-configs.sh \
         --alter --topic {name} --add-config max.message.bytes={RECORD_BYTES})",
        found.max_message_bytes
    )))
}

/// The sources' ids, by name, and all their partitions.
pub type Sources = (BTreeMap<Arc<str>, Arc<str>>, Vec<TopicPartition>);

/// Whether the source topics fit.
///
/// # Errors
/// [`TopologyError::Misconfigured`] with the first that does not, and the next step.
pub fn check_sources(
    config: &Config,
    names: &[Arc<str>],
    found: Vec<Option<TopicDescription>>,
) -> Result<Sources, TopologyError> {
    let (mut ids, mut partitions) = (BTreeMap::new(), Vec::new());
    let one = config.source.stamp == StampSource::Offset;
    for (name, found) in names.iter().zip(found) {
        let Some(found) = found else {
            let with_one = if one { " with one partition" } else { "" };
            return Err(TopologyError::Misconfigured(format!(
                "source topic {name:?} does not exist; create it{with_one} \
                 (kafka-topics.sh --create --topic {name} --partitions 1), or set source.topics"
            )));
        };
        if one && found.partitions != 1 {
            return Err(TopologyError::Misconfigured(format!(
                "source topic {name:?} has {} partitions, but source.stamp = \"offset\" takes an event's place in the \
                 order received from its offset, which only one partition gives; use a topic with one partition, or \
                 source.stamp = \"header\" (each record brings its sequence) or \"arrival\" (one member reads them all)",
                found.partitions
            )));
        }
        ids.insert(Arc::clone(name), Arc::from(found.id));
        partitions.extend((0..found.partitions).map(|partition| TopicPartition::new(name, partition)));
    }
    Ok((ids, partitions))
}

/// All partitions that the source topics have now; they may have been given more.
///
/// # Errors
/// What the log says, and [`LogError::UnknownTopic`]: a broker may not know a topic for a moment. Without its partitions
/// what rests on all of them, such as the ends of a mark, would be wrong for good.
pub fn source_partitions(log: &dyn Log, topics: &Topics) -> Result<Vec<TopicPartition>, LogError> {
    let of = |(name, found): (&Arc<str>, TopicDescription)| {
        (0..found.partitions).map(|partition| TopicPartition::new(name, partition)).collect::<Vec<_>>()
    };
    Ok(topics.sources.iter().zip(describe_sources(log, topics)?).flat_map(of).collect())
}

/// What the source topics are now, in their order.
///
/// # Errors
/// As [`source_partitions`].
pub fn describe_sources(log: &dyn Log, topics: &Topics) -> Result<Vec<TopicDescription>, LogError> {
    let names: Vec<&str> = topics.sources.iter().map(|name| &**name).collect();
    let found = names.iter().zip(log.describe(&names)?);
    found.map(|(name, found)| found.ok_or_else(|| LogError::UnknownTopic((*name).to_owned()))).collect()
}

/// Whether an internal topic fits.
///
/// # Errors
/// [`TopologyError::Misconfigured`] with the next step.
pub fn check_internal(wanted: &NewTopic, found: &TopicDescription) -> Result<(), TopologyError> {
    if found.partitions != wanted.partitions {
        return Err(TopologyError::Misconfigured(format!(
            "topic {:?} has {} partitions, the configuration asks for {}: the number is fixed for the application's \
             life; set processing.partitions = {} or use another application.id",
            found.name, found.partitions, wanted.partitions, found.partitions
        )));
    }
    let policy = wanted.settings.iter().find(|(key, _)| key == "cleanup.policy").map_or("delete", |(_, value)| value);
    if found.cleanup_policy != policy {
        return Err(TopologyError::Misconfigured(format!(
            "topic {:?} has cleanup.policy = {:?}, it must be {policy:?}: alter it (kafka-configs.sh --alter --topic {} \
             --add-config cleanup.policy={policy}) or use another application.id",
            found.name, found.cleanup_policy, found.name
        )));
    }
    check_record_bytes(found)
}
