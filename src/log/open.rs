//! Opens the log that the configuration names.

use std::sync::Arc;

use super::embedded::{EmbeddedLog, EmbeddedOptions};
use super::kafka::{KafkaLog, KafkaOptions};
use super::{Log, LogError};
use crate::config::{Config, LogKind};

/// The log, as an instance uses it. An embedded log belongs to one process at a time.
///
/// # Errors
/// [`LogError::Refused`] where the configuration does not fit; otherwise what the log says.
pub fn open(config: &Config) -> Result<Arc<dyn Log>, LogError> {
    match config.log.kind {
        LogKind::Kafka => kafka(config),
        LogKind::Embedded => Ok(Arc::new(EmbeddedLog::open(&config.log.path, EmbeddedOptions::default())?)),
    }
}

/// The log, to be read beside the instance that owns it.
///
/// # Errors
/// As [`open`]; an embedded log must be there already.
pub fn open_beside(config: &Config) -> Result<Arc<dyn Log>, LogError> {
    match config.log.kind {
        LogKind::Kafka => kafka(config),
        LogKind::Embedded => Ok(Arc::new(EmbeddedLog::open_beside(&config.log.path)?)),
    }
}

fn kafka(config: &Config) -> Result<Arc<dyn Log>, LogError> {
    if config.kafka.bootstrap_servers.is_empty() {
        let reason = "log.kind is kafka, but kafka.bootstrap_servers is empty; set it, or use -b host:port";
        return Err(LogError::Refused(reason.into()));
    }
    let mut options = KafkaOptions::new(&config.kafka.bootstrap_servers);
    options.properties = config.kafka.properties.clone();
    options.prefix = format!("{}-", config.application.id);
    if !config.application.instance_id.is_empty() {
        options.client_id = config.application.instance_id.clone();
    }
    Ok(Arc::new(KafkaLog::connect(options)?))
}
