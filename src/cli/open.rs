//! Opens what the configuration names: the log.

use std::sync::Arc;

use super::error::CliError;
use crate::config::{Config, LogKind};
use crate::log::Log;
use crate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use crate::log::kafka::{KafkaLog, KafkaOptions};

/// The log, as an instance uses it. An embedded log belongs to one process at a time.
pub fn log(config: &Config) -> Result<Arc<dyn Log>, CliError> {
    match config.log.kind {
        LogKind::Kafka => kafka(config),
        LogKind::Embedded => {
            let log = EmbeddedLog::open(&config.log.path, EmbeddedOptions::default())
                .map_err(|error| CliError::failed(error.to_string()))?;
            Ok(Arc::new(log))
        }
    }
}

/// The log, to be read beside the instance that owns it.
pub fn log_beside(config: &Config) -> Result<Arc<dyn Log>, CliError> {
    match config.log.kind {
        LogKind::Kafka => kafka(config),
        LogKind::Embedded => {
            let log = EmbeddedLog::open_beside(&config.log.path).map_err(|error| {
                CliError::failed(error.to_string())
                    .hint("log.path names the folder; an instance makes it when it starts")
            })?;
            Ok(Arc::new(log))
        }
    }
}

fn kafka(config: &Config) -> Result<Arc<dyn Log>, CliError> {
    if config.kafka.bootstrap_servers.is_empty() {
        return Err(CliError::misused("log.kind is kafka, but kafka.bootstrap_servers is empty")
            .hint("set it, or use -b host:port"));
    }
    let mut options = KafkaOptions::new(&config.kafka.bootstrap_servers);
    options.properties = config.kafka.properties.clone();
    if !config.application.instance_id.is_empty() {
        options.client_id = config.application.instance_id.clone();
    }
    let log = KafkaLog::connect(options).map_err(|error| CliError::misused(error.to_string()))?;
    Ok(Arc::new(log))
}
