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

    /// The configuration with further settings, which `--set` overrides.
    pub fn load_with(&self, shortcuts: Vec<(&'static str, String)>) -> Result<Config, CliError> {
        self.loaded(shortcuts).map(|loaded| loaded.config)
    }

    /// The effective values with their origins.
    pub fn show(&self) -> Result<String, CliError> {
        self.loaded(Vec::new()).map(|loaded| load::show(&loaded))
    }

    fn loaded(&self, shortcuts: Vec<(&'static str, String)>) -> Result<Loaded, CliError> {
        let mut settings: Vec<(String, String)> =
            shortcuts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        if let Some(servers) = &self.bootstrap_servers {
            settings.push(("log.kind".into(), "kafka".into()));
            settings.push(("kafka.bootstrap_servers".into(), servers.clone()));
        }
        if let Some(id) = &self.application_id {
            settings.push(("application.id".into(), id.clone()));
        }
        for setting in &self.settings {
            let (key, value) = setting.split_once('=').ok_or_else(|| {
                CliError::misused(format!("--set {setting}: no value")).hint("write --set key=value")
            })?;
            settings.push((key.trim().to_owned(), value.trim().to_owned()));
        }
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        load::load(LoadOptions { file: self.config.clone(), environment, settings })
            .map_err(|error| CliError::misused(error.to_string()))
    }
}
