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

/// A log that does not answer as it should: exit code 1.
pub fn unanswered(config: &Config, error: &LogError) -> CliError {
    let failed = CliError::failed(format!("the log does not answer: {error}"));
    match (config.log.kind, error) {
        (LogKind::Kafka, LogError::Unauthorized(_)) => {
            CliError::failed(error.to_string()).hint("docs/security.md lists what an application needs")
        }
        (LogKind::Kafka, _) => failed.hint(
            "check kafka.bootstrap_servers, and kafka.properties (security.protocol, ssl.*, sasl.*): docs/security.md",
        ),
        (LogKind::Embedded, _) => failed.hint("check log.kind and log.path"),
    }
}

fn explain(config: &Config, error: &LogError) -> CliError {
    match (config.log.kind, error) {
        // What Kafka's client says before it has reached anything is about its settings.
        (LogKind::Kafka, _) => CliError::misused(error.to_string()),
        (LogKind::Embedded, _) => CliError::failed(error.to_string()),
    }
}
