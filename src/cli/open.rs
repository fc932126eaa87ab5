//! Opens the log for a command.

use std::sync::Arc;

use super::error::CliError;
use crate::config::{Config, LogKind};
use crate::log::{Log, LogError, open};

/// The log, as an instance uses it.
pub fn log(config: &Config) -> Result<Arc<dyn Log>, CliError> {
    open::open(config).map_err(|error| explain(config, &error))
}

/// The log, to be read beside the instance that owns it.
pub fn log_beside(config: &Config) -> Result<Arc<dyn Log>, CliError> {
    open::open_beside(config).map_err(|error| match config.log.kind {
        LogKind::Kafka => explain(config, &error),
        LogKind::Embedded => {
            explain(config, &error).hint("log.path names the folder; an instance makes it when it starts")
        }
    })
}

fn explain(config: &Config, error: &LogError) -> CliError {
    match (config.log.kind, error) {
        // What Kafka's client says before it has reached anything is about its settings.
        (LogKind::Kafka, _) => CliError::misused(error.to_string()),
        (LogKind::Embedded, _) => CliError::failed(error.to_string()),
    }
}
