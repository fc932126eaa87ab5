//! `tidegate frontier`: how far everything is final.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::client::Client;
use super::error::CliError;
use super::output::{self, Output, cell};

/// How often `--follow` asks.
const EVERY: Duration = Duration::from_millis(500);

/// What `frontier` takes.
#[derive(Args, Debug)]
pub struct FrontierOptions {
    /// Go on, with a line for each change, until interrupted.
    #[arg(long)]
    follow: bool,
}

/// Prints what an instance knows.
pub fn frontier(client: &Client, options: &FrontierOptions, output: Output) -> Result<(), CliError> {
    let mut last = Value::Null;
    loop {
        let standing = client.get("/api/v1/frontier")?;
        if standing != last {
            match output {
                // A line each, for scripts that read on.
                Output::Json if options.follow => output::line(&standing.to_string())?,
                Output::Json => output::json(&standing)?,
                Output::Table => output::line(&told(&standing))?,
            }
        }
        if !options.follow {
            return Ok(());
        }
        last = standing;
        std::thread::sleep(EVERY);
    }
}

fn told(standing: &Value) -> String {
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
