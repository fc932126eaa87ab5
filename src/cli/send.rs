//! `tidegate send`: primary events from the command line, a file or standard input.

use std::io::{BufRead, BufReader, stdin};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use super::keys::{Encoding, waits};
use super::output::{self, Output, cell};
use crate::clock;
use crate::config::Format;
use crate::event::{Action, Event};
use crate::sequencer::format;

/// A request is sent when it has this many bytes; the server takes 8 MiB.
const REQUEST_BYTES: usize = 2 << 20;

/// So many sequences with dead letters are named.
const NAMED: usize = 10;

/// What `send` takes.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("what").required(true).multiple(true)))]
pub struct SendOptions {
    /// KEY:ADD or KEY:REMOVE; the last colon splits.
    #[arg(value_name = "KEY:ACTION", group = "what")]
    events: Vec<String>,
    /// Lines with KEY:ACTION or JSON events; - is standard input.
    #[arg(long, value_name = "FILE", group = "what")]
    file: Option<PathBuf>,
    /// Wait until the cascades of what was sent are settled; exit code 4 when they have dead letters.
    #[arg(long)]
    wait: bool,
    /// How long to wait, such as 30s.
    #[arg(long, requires = "wait", value_parser = humantime::parse_duration, default_value = "30s")]
    timeout: Duration,
}

/// What was accepted so far.
#[derive(Default)]
struct Sent {
    accepted: u64,
    first: Value,
    last: Value,
    ranges: Vec<Value>,
    /// Of those that were waited for: how many dead letters there are, where that is known.
    dead_letters: Option<u64>,
    /// The sequences with dead letters, or some of them.
    failed: Vec<Value>,
    /// What is sent is to be settled by then.
    until: Option<Instant>,
}

/// Sends the events, those of the command line first.
pub fn send(client: &Client, options: &SendOptions, encoding: Encoding, output: Output) -> Result<(), CliError> {
    let mut sent =
        Sent { until: options.wait.then(|| clock::now() + options.timeout), dead_letters: Some(0), ..Sent::default() };
    let mut body = Vec::new();
    for text in &options.events {
        let event = parse(text.as_bytes(), encoding)
            .map_err(|message| CliError::misused(message).hint("write KEY:ADD or KEY:REMOVE"))?;
        sent.add(client, &mut body, &format::encode_json(&event))?;
    }
    if let Some(path) = &options.file {
        let lines: Box<dyn BufRead> = if path.as_os_str() == "-" {
            Box::new(stdin().lock())
        } else {
            let file = std::fs::File::open(path)
                .map_err(|error| CliError::failed(format!("cannot read {}: {error}", path.display())))?;
            Box::new(BufReader::new(file))
        };
        for (index, line) in lines.split(b'\n').enumerate() {
            let line = line?;
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let event = parse(line, encoding).map_err(|message| {
                CliError::failed(format!("{} line {}: {message}", path.display(), index + 1))
                    .hint(format!("{} events before it were sent", sent.accepted))
            })?;
            // As it stands: its global_offset is no part of the event.
            let json = if line.starts_with(b"{") { Bytes::copy_from_slice(line) } else { format::encode_json(&event) };
            sent.add(client, &mut body, &json)?;
        }
    }
    sent.flush(client, &mut body)?;
    sent.print(output)?;
    if options.wait { sent.judge() } else { Ok(()) }
}

fn parse(text: &[u8], encoding: Encoding) -> Result<Event, String> {
    if encoding == Encoding::Text || text.starts_with(b"{") {
        let text = Bytes::copy_from_slice(text);
        return format::decode(Format::Auto, None, Some(&text)).map_err(|undecodable| undecodable.to_string());
    }
    let text = str::from_utf8(text).map_err(|error| error.to_string())?;
    let (key, action) = text.rsplit_once(':').ok_or_else(|| format!("{text:?}: no action"))?;
    let action = Action::parse(action.as_bytes()).ok_or_else(|| format!("{action:?}: neither ADD nor REMOVE"))?;
    let key = encoding.decode(key).map_err(|error| error.to_string())?;
    Ok(Event { key: key.into(), action, payload: None })
}

impl Sent {
    fn add(&mut self, client: &Client, body: &mut Vec<u8>, json: &[u8]) -> Result<(), CliError> {
        body.extend_from_slice(json);
        body.push(b'\n');
        if body.len() >= REQUEST_BYTES { self.flush(client, body) } else { Ok(()) }
    }

    fn flush(&mut self, client: &Client, body: &mut Vec<u8>) -> Result<(), CliError> {
        if body.is_empty() {
            return Ok(());
        }
        let path = "/api/v1/events";
        let left = self.until.map(|until| until.saturating_duration_since(clock::now()));
        let answer = match left {
            Some(left) => client.waiting(left).post_lines(&waits(path, left), body),
            None => client.post_lines(path, body),
        };
        let mut answer = answer.map_err(|error| match self.accepted {
            0 => error,
            accepted => error.hint(format!("{accepted} events before that were accepted")),
        })?;
        body.clear();
        if self.first.is_null() {
            self.first = answer["first_sequence"].take();
        }
        self.last = answer["last_sequence"].take();
        self.accepted += answer["accepted"].as_u64().unwrap_or_default();
        for (name, all) in [("ranges", &mut self.ranges), ("failed", &mut self.failed)] {
            if let Some(more) = answer[name].as_array_mut() {
                all.append(more);
            }
        }
        if self.until.is_some() {
            let more = answer["dead_letters"].as_u64();
            self.dead_letters = self.dead_letters.and_then(|known| Some(known + more?));
        }
        Ok(())
    }

    fn print(&self, output: Output) -> Result<(), CliError> {
        let Sent { accepted, first, last, ranges, dead_letters, failed, until } = self;
        let settled = if until.is_some() { ", settled" } else { "" };
        match output {
            Output::Json => {
                let mut all =
                    json!({ "accepted": accepted, "first_sequence": first, "last_sequence": last, "ranges": ranges });
                if until.is_some() {
                    (all["dead_letters"], all["failed"]) = (json!(dead_letters), json!(failed));
                }
                output::json(&all)
            }
            Output::Table if *accepted == 1 => {
                output::line(&format!("accepted 1 event, sequence {}{settled}", cell(first)))
            }
            Output::Table => output::line(&format!(
                "accepted {accepted} events, sequences {} to {}{settled}",
                cell(first),
                cell(last)
            )),
        }
    }

    /// Settled is not succeeded.
    fn judge(&self) -> Result<(), CliError> {
        let hint = "tidegate dead-letters list tells which events they are, and why";
        match self.dead_letters {
            Some(0) => Ok(()),
            Some(number) => {
                let mut places: Vec<String> = self.failed.iter().take(NAMED).map(cell).collect();
                places.extend((self.failed.len() > NAMED).then(|| "…".into()));
                let letters = if number == 1 { "1 dead letter".into() } else { format!("{number} dead letters") };
                let message = format!("{letters} in the cascades of what was sent: sequences {}", places.join(", "));
                Err(CliError::dead_letters(message).hint(hint))
            }
            None => {
                let message = "whether all that was sent succeeded is not known: there are new dead letters";
                Err(CliError::dead_letters(message).hint(hint))
            }
        }
    }
}
