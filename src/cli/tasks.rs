//! `tidegate tasks`: what the instance owns and how far it is.

use super::client::Client;
use super::error::CliError;
use super::output::{self, Output, cell};

/// Lists the tasks and source partitions of an instance.
pub fn tasks(client: &Client, output: Output) -> Result<(), CliError> {
    let answer = client.get("/api/v1/tasks")?;
    if output == Output::Json {
        return output::json(&answer);
    }
    let fields = [
        "role",
        "topic",
        "partition",
        "state",
        "committed",
        "lag",
        "in_flight",
        "waiting",
        "oldest_age_ms",
        "restore_remaining",
    ];
    let rows = answer["tasks"].as_array().into_iter().flatten();
    let rows = rows.map(|task| fields.iter().map(|field| cell(&task[field])).collect()).collect();
    output::table(&fields.map(|field| field.strip_suffix("_remaining").unwrap_or(field)), rows)
}
