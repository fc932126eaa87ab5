//! `tidegate frontier`: how far everything is final, and what holds it.

use std::time::Duration;

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use super::output::{self, Output, cell};

/// How often `--follow` asks.
const EVERY: Duration = Duration::from_millis(500);

/// So many places of the root that holds the frontier are shown.
const SHOWN: usize = 5;

/// What `frontier` takes.
#[derive(Args, Debug)]
pub struct FrontierOptions {
    /// Go on, with a line for each change, until interrupted.
    #[arg(long)]
    follow: bool,
    /// Show one primary event instead: whether its cascade is settled, its dead letters, and where it is pending.
    #[arg(long, value_name = "SEQUENCE", conflicts_with = "follow")]
    root: Option<String>,
}

/// Prints what the instances know.
pub fn frontier(client: &Client, options: &FrontierOptions, output: Output) -> Result<(), CliError> {
    if let Some(root) = &options.root {
        let root = self::root(client, root)?;
        return match output {
            Output::Json => output::json(&root),
            Output::Table => show(&root, usize::MAX),
        };
    }
    let mut last = Value::Null;
    loop {
        let standing = match client.get("/api/v1/frontier") {
            Ok(standing) => standing,
            // An instance that does not answer is an error the first time only: later it may come back.
            Err(error) if options.follow && !last.is_null() => json!({ "error": error.to_string() }),
            Err(error) => return Err(error),
        };
        if standing != last {
            match output {
                // A line each, for scripts that read on.
                Output::Json if options.follow => output::line(&standing.to_string())?,
                Output::Json => output::json(&standing)?,
                Output::Table => output::line(&told(&standing))?,
            }
        }
        if !options.follow {
            let oldest = &standing["oldest_unsettled"];
            return match output {
                Output::Table if !oldest.is_null() => show(&root(client, &cell(oldest))?, SHOWN),
                _ => Ok(()),
            };
        }
        last = standing;
        std::thread::sleep(EVERY);
    }
}

fn root(client: &Client, sequence: &str) -> Result<Value, CliError> {
    let sequence = percent_encode(sequence.as_bytes(), NON_ALPHANUMERIC);
    client.get(&format!("/api/v1/roots/{sequence}"))
}

/// One root, and at most so many of the places where it is pending.
fn show(root: &Value, most: usize) -> Result<(), CliError> {
    output::line(&of_root(root))?;
    let places = root["places"].as_array().map_or(&[][..], Vec::as_slice);
    if places.is_empty() {
        return Ok(());
    }
    let fields = ["stamp", "key", "partition", "instance", "state", "attempt", "age_ms", "last_error"];
    let row = |place: &Value| {
        let field = |name: &&str| match *name {
            "key" if place["key"].is_null() => format!("base64:{}", cell(&place["key_base64"])),
            name => cell(&place[name]),
        };
        fields.iter().map(field).collect()
    };
    output::table(&fields, places.iter().take(most).map(row).collect())?;
    match places.len().checked_sub(most) {
        Some(more @ 1..) => {
            output::line(&format!("and {more} more: tidegate frontier --root {}", cell(&root["sequence"])))
        }
        _ => Ok(()),
    }
}

fn of_root(root: &Value) -> String {
    let count =
        |pending: &Value| pending.as_object().into_iter().flatten().filter_map(|(_, n)| n.as_i64()).sum::<i64>();
    let retries = root["retries"].as_array().map_or(&[][..], Vec::as_slice);
    let pending = count(&root["pending"]) + retries.iter().map(|retry| count(&retry["pending"])).sum::<i64>();
    let settled = match root["settled"].as_bool() {
        Some(true) => "settled",
        Some(false) => "not settled",
        None => "unknown whether it is settled",
    };
    let mut line = format!("root {}: {settled}, {pending} pending", cell(&root["sequence"]));
    if let Some(unplaced @ 1..) = root["unplaced"].as_u64() {
        line += &format!(", {unplaced} of them not read yet or not committed yet");
    }
    match root["dead_letters"].as_u64() {
        Some(0) => {}
        Some(number) => line += &format!(", dead letters: {number}"),
        None => line += ", dead letters: not known",
    }
    let silent = root["silent"].as_array().into_iter().flatten().map(cell).collect::<Vec<_>>();
    if silent.is_empty() { line } else { format!("{line}; no answer for partitions {}", silent.join(", ")) }
}

fn told(standing: &Value) -> String {
    if let Some(error) = standing["error"].as_str() {
        return format!("no answer: {error}");
    }
    let frontier = match &standing["unavailable"] {
        Value::Null => cell(&standing["frontier"]),
        reason => format!("unknown ({})", cell(reason)),
    };
    let field = |name: &str| cell(&standing[name]);
    let line = format!("frontier {frontier}   received {}   unsettled {}", field("received"), field("unsettled"));
    let known = [("oldest", "oldest_unsettled"), ("horizon", "horizon")];
    let known = known.into_iter().filter(|(_, name)| !standing[*name].is_null());
    known.fold(line, |line, (word, name)| format!("{line}   {word} {}", field(name)))
}
