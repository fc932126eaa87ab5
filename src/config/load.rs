//! Puts the configuration together: defaults < file < environment < flags.
//!
//! O1: every key has one origin, and every message about it names key, value and origin.
//! O2: nothing that was set is ignored: a key that does not exist is an error.
//! O3: the value of a secret is in no message.

mod checks;
mod keys;
mod show;
mod source;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use toml::{Table, Value};

use super::Config;
use keys::Known;
use source::Setting;

pub use show::{show, show_json};

/// Where values come from, beside the defaults.
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// The TOML file.
    pub file: Option<PathBuf>,
    /// All variables; those of Tidegate are `TIDEGATE_<SECTION>__<KEY>`.
    pub environment: Vec<(String, String)>,
    /// Flags: key, value, and the origin as messages name it, such as `--set`. A later one wins.
    pub settings: Vec<(String, String, String)>,
}

impl LoadOptions {
    /// The variables of this process, no file and no flags.
    pub fn from_environment() -> LoadOptions {
        let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        LoadOptions { environment: std::env::vars_os().filter_map(text).collect(), ..LoadOptions::default() }
    }
}

/// The configuration and where each value came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The effective values.
    pub config: Config,
    /// By key, such as `processing.guarantee`: `default`, a file with its line, a variable, a flag.
    pub origins: BTreeMap<String, String>,
}

/// Everything that is wrong with the configuration: exit code 2.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct ConfigError {
    /// One message each, at least one.
    pub problems: Vec<String>,
}

/// Loads the configuration.
///
/// # Errors
/// [`ConfigError`] with every problem of the first layer that has one.
pub fn load(options: LoadOptions) -> Result<Loaded, ConfigError> {
    let known = Known::new();
    let mut merged = known.defaults().clone();
    let mut origins: BTreeMap<String, String> = merged.keys().map(|key| (key.clone(), "default".to_owned())).collect();
    let mut problems = Vec::new();

    let mut settings = Vec::new();
    if let Some(path) = &options.file {
        settings.extend(source::file(path).map_err(|problem| ConfigError { problems: vec![problem] })?);
    }
    settings.extend(source::environment(options.environment, &known, &mut problems));
    settings.extend(source::flags(options.settings, &known, &mut problems));

    for Setting { key, value, origin } in settings {
        match known.accept(&key, value, &origin) {
            Ok(Some(value)) => {
                merged.insert(key.clone(), value);
                origins.insert(key, origin);
            }
            Ok(None) => {}
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() {
        let config: Config = unflatten(&merged)
            .try_into()
            .map_err(|error: toml::de::Error| ConfigError { problems: vec![error.message().to_owned()] })?;
        problems = checks::problems(&config, &origins);
        if problems.is_empty() {
            return Ok(Loaded { config, origins });
        }
    }
    Err(ConfigError { problems })
}

/// Names of the free-form table; what follows it is one key, dots included.
const PROPERTIES: &str = "kafka.properties";

/// The parts of a key: section, sections below, name.
fn parts(key: &str) -> Vec<&str> {
    match key.strip_prefix(PROPERTIES).and_then(|rest| rest.strip_prefix('.')) {
        Some(property) => PROPERTIES.split('.').chain([property]).collect(),
        None => key.split('.').collect(),
    }
}

/// The nested table of flat keys.
fn unflatten(flat: &BTreeMap<String, Value>) -> Table {
    let mut root = Table::new();
    for (key, value) in flat {
        let mut parts = parts(key);
        let name = parts.pop().expect("split gives at least one part");
        let mut table = &mut root;
        for part in parts {
            table = table
                .entry(part)
                .or_insert_with(|| Value::Table(Table::new()))
                .as_table_mut()
                .expect("a known key is not both a section and a value");
        }
        table.insert(name.to_owned(), value.clone());
    }
    root
}

/// The leaves of a nested table by their flat keys.
fn flatten(prefix: &str, table: Table, into: &mut BTreeMap<String, Value>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(table) => flatten(&key, table, into),
            value => {
                into.insert(key, value);
            }
        }
    }
}

/// The value as a message shows it (O3).
fn shown(key: &str, value: &Value) -> String {
    if is_secret(key) { "\"********\"".into() } else { value.to_string() }
}

/// Whether the value is never shown. Of a Kafka property that is about identity only what surely is none is shown.
fn is_secret(key: &str) -> bool {
    let lower = key.to_ascii_lowercase();
    let Some(name) = lower.strip_prefix(PROPERTIES).and_then(|rest| rest.strip_prefix('.')) else {
        return ["password", "secret", "token"].iter().any(|word| lower.contains(word)) && !lower.ends_with("_file");
    };
    let is_path = name.ends_with("_file") || name.ends_with(".location");
    let is_kind = matches!(name, "sasl.mechanism" | "sasl.mechanisms" | "sasl.oauthbearer.method");
    let about_identity = ["sasl", "ssl.key", "ssl_key", "password", "secret", "token", "credential"];
    !is_path && !is_kind && about_identity.iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests;
