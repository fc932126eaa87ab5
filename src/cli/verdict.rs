//! `tidegate verify`: its options, what it prints, and its exit code.

use std::time::Duration;

use clap::Args;
use serde_json::{Map, Value, json};

use super::error::CliError;
use super::keys::Encoding;
use super::open;
use super::options::ConfigOptions;
use super::output::{self, Output};
use super::verify::{self, Difference, Report, VerifyError};
use crate::config::units::parse_duration;
use crate::handler::builtin;
use crate::reference::Held;

/// How many differences a table shows.
const SHOWN: usize = 20;

/// What `verify` takes.
#[derive(Args, Debug)]
pub struct VerifyOptions {
    #[command(flatten)]
    config: ConfigOptions,
    /// How long to wait until everything is processed.
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    timeout: Duration,
}

/// Compares every key with the serial reference.
pub fn verify(options: &VerifyOptions, encoding: Encoding, output: Output) -> Result<(), CliError> {
    let config = options.config.load()?;
    let handler = builtin::from_config(&config.handler, true).map_err(CliError::misused)?;
    let log = open::log_beside(&config)?;
    let report = verify::verify(&*log, &config, &handler, options.timeout).map_err(|error| match error {
        VerifyError::Usage(message) => CliError::misused(message),
        VerifyError::Failed(message) => CliError::failed(message),
        VerifyError::Log(error) => open::unanswered(&config, &error),
    })?;
    match output {
        Output::Json => output::json(&as_json(&report, encoding))?,
        Output::Table => as_table(&report, encoding)?,
    }
    match report.differences.len() {
        0 => Ok(()),
        count => {
            Err(CliError::different(format!("{count} of {} keys are not those of the serial reference", report.keys))
                .hint("is the configured handler the one that the application ran with, and the same in every run?"))
        }
    }
}

fn as_table(report: &Report, encoding: Encoding) -> Result<(), CliError> {
    let Report { keys, events, differences } = report;
    if differences.is_empty() {
        return output::line(&format!("all {keys} keys are those of the serial reference ({events} events)"));
    }
    let row = |difference: &Difference| {
        let held = |held: &Option<Held>| held.as_ref().map_or_else(|| "-".into(), |held| in_words(held, encoding));
        vec![encoding.encode(&difference.key), held(&difference.expected), held(&difference.actual)]
    };
    output::table(&["key", "expected", "actual"], differences.iter().take(SHOWN).map(row).collect())?;
    match differences.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => output::line(&format!("… and {more} more; --output json has all of them")),
    }
}

fn in_words((stamp, action, value): &Held, encoding: Encoding) -> String {
    let value = value.as_ref().map(|value| format!(" {}", encoding.encode(value))).unwrap_or_default();
    format!("{} {stamp}{value}", action.as_str())
}

fn as_json(report: &Report, encoding: Encoding) -> Value {
    let held = |held: &Option<Held>| {
        held.as_ref().map(|(stamp, action, value)| {
            json!({
                "action": action.as_str(),
                "stamp": stamp.to_string(),
                "value": value.as_ref().map(|value| encoding.encode(value)),
            })
        })
    };
    let differences = report.differences.iter().map(|difference| {
        let mut object = Map::new();
        object.insert("key".into(), encoding.encode(&difference.key).into());
        object.insert("expected".into(), json!(held(&difference.expected)));
        object.insert("actual".into(), json!(held(&difference.actual)));
        Value::Object(object)
    });
    json!({ "keys": report.keys, "events": report.events, "differences": differences.collect::<Vec<_>>() })
}
