//! The application's topics: created where they are missing, checked where they are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{Config, LogKind};
use crate::log::{Log, LogError, NewTopic, TopicDescription};
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

/// What the checks found out.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The id of each source topic, by name.
    pub source_ids: BTreeMap<Arc<str>, Arc<str>>,
    /// The changelog's id.
    pub changelog_id: String,
    /// The changelog's `delete.retention.ms`, in milliseconds.
    pub delete_retention_ms: i64,
}

/// The internal topics as they have to be.
pub fn internal_topics(config: &Config, topics: &Topics) -> Vec<NewTopic> {
    let factor = config.processing.replication_factor;
    let topic = |name: &Arc<str>, partitions, settings: &[(&str, &str)]| NewTopic {
        name: name.to_string(),
        partitions,
        replication_factor: (factor > 0).then_some(factor),
        settings: settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    };
    let partitions = config.processing.partitions;
    let forever: &[(&str, &str)] = &[("cleanup.policy", "delete"), ("retention.ms", "-1"), ("retention.bytes", "-1")];
    // A dead letter has to fit with its headers wherever its record came from.
    let dead_letter = [forever, &[("max.message.bytes", "2097152")]].concat();
    vec![
        topic(&topics.repartition, partitions, forever),
        topic(&topics.changelog, partitions, &[("cleanup.policy", "compact")]),
        topic(&topics.dead_letter, partitions, &dead_letter),
        topic(&topics.progress, 1, forever),
    ]
}

/// Creates what is missing and checks the rest.
pub fn ensure(log: &dyn Log, config: &Config, topics: &Topics) -> Result<Topology, TopologyError> {
    let internal = internal_topics(config, topics);
    let names: Vec<&str> = internal.iter().map(|topic| topic.name.as_str()).collect();
    let sources: Vec<&str> = topics.sources.iter().map(|name| &**name).collect();
    let mut found_sources = log.describe(&sources)?;
    if config.log.kind == LogKind::Embedded && found_sources.iter().any(Option::is_none) {
        let missing = sources.iter().zip(&found_sources).filter(|(_, found)| found.is_none());
        let create = |(name, _): (&&str, _)| NewTopic {
            name: (*name).to_owned(),
            partitions: 1,
            replication_factor: None,
            settings: Vec::new(),
        };
        log.create(&missing.map(create).collect::<Vec<_>>())?;
        found_sources = log.describe(&sources)?;
    }
    let source_ids = check_sources(&topics.sources, found_sources)?;
    let found = log.describe(&names)?;
    let missing: Vec<_> =
        internal.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(topic, _)| topic.clone()).collect();
    if !missing.is_empty() {
        log.create(&missing)?;
    }
    let found = log.describe(&names)?;
    for (wanted, found) in internal.iter().zip(&found) {
        let Some(found) = found else {
            return Err(LogError::Retriable(format!("topic {} is created and not visible yet", wanted.name)).into());
        };
        check_internal(wanted, found)?;
    }
    let changelog = found[1].as_ref().expect("checked above");
    Ok(Topology { source_ids, changelog_id: changelog.id.clone(), delete_retention_ms: changelog.delete_retention_ms })
}

fn check_sources(
    names: &[Arc<str>],
    found: Vec<Option<TopicDescription>>,
) -> Result<BTreeMap<Arc<str>, Arc<str>>, TopologyError> {
    let mut ids = BTreeMap::new();
    for (name, found) in names.iter().zip(found) {
        let Some(found) = found else {
            return Err(TopologyError::Misconfigured(format!(
                "source topic {name:?} does not exist; create it with one partition \
                 (kafka-topics.sh --create --topic {name} --partitions 1), or set source.topics"
            )));
        };
        if found.partitions != 1 {
            return Err(TopologyError::Misconfigured(format!(
                "source topic {name:?} has {} partitions, but source.stamp = \"offset\" takes an event's place in the \
                 order received from its offset, which only one partition gives; use a topic with one partition",
                found.partitions
            )));
        }
        ids.insert(Arc::clone(name), Arc::from(found.id));
    }
    Ok(ids)
}

fn check_internal(wanted: &NewTopic, found: &TopicDescription) -> Result<(), TopologyError> {
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
    Ok(())
}
