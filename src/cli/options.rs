//! The options with which commands say which configuration they mean.

use std::path::PathBuf;

use clap::Args;

use super::error::CliError;
use crate::config::Config;
use crate::config::load::{self, LoadOptions, Loaded};

/// Defaults < file < environment < these.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigOptions {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Kafka's servers; implies log.kind=kafka.
    #[arg(short, long, value_name = "HOST:PORT,…")]
    pub bootstrap_servers: Option<String>,
    /// The consumer group and the prefix of all internal topics.
    #[arg(long, value_name = "ID")]
    pub application_id: Option<String>,
    /// Any configuration value, for example processing.partitions=8; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

impl ConfigOptions {
    /// The configuration that they lead to.
    pub fn load(&self) -> Result<Config, CliError> {
        self.loaded(Vec::new()).map(|loaded| loaded.config)
    }

    /// The configuration with the values of further flags (key, value, flag), which `--set` overrides.
    pub fn load_with(&self, shortcuts: Vec<(&'static str, String, &'static str)>) -> Result<Config, CliError> {
        self.loaded(shortcuts).map(|loaded| loaded.config)
    }

    /// The effective values with their origins.
    pub fn show(&self) -> Result<String, CliError> {
        self.loaded(Vec::new()).map(|loaded| load::show(&loaded))
    }

    /// The same for scripts: by key, value and origin.
    pub fn show_json(&self) -> Result<serde_json::Value, CliError> {
        self.loaded(Vec::new()).map(|loaded| load::show_json(&loaded))
    }

    fn loaded(&self, mut shortcuts: Vec<(&'static str, String, &'static str)>) -> Result<Loaded, CliError> {
        if let Some(servers) = &self.bootstrap_servers {
            shortcuts.push(("log.kind", "kafka".into(), "--bootstrap-servers"));
            shortcuts.push(("kafka.bootstrap_servers", servers.clone(), "--bootstrap-servers"));
        }
        if let Some(id) = &self.application_id {
            shortcuts.push(("application.id", id.clone(), "--application-id"));
        }
        let mut settings: Vec<(String, String, String)> =
            shortcuts.into_iter().map(|(key, value, flag)| (key.to_owned(), value, flag.to_owned())).collect();
        for setting in &self.settings {
            let (key, value) = setting
                .split_once('=')
                // What stands there may be a secret with a slip in its key.
                .ok_or_else(|| CliError::misused("--set: there is no = in it").hint("write --set key=value"))?;
            settings.push((key.trim().to_owned(), value.trim().to_owned(), "--set".to_owned()));
        }
        load::load(LoadOptions { file: self.config.clone(), settings, ..LoadOptions::from_environment() })
            .map_err(|error| CliError::misused(error.problems.join("\n       ")))
    }
}
