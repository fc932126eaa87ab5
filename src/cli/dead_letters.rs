//! `tidegate dead-letters list|show|export|retry`: what could not be handled.

mod retry;

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use super::keys::Encoding;
use super::output::{self, Output, cell};
use crate::cause::Cause;

/// The most that the server gives at a time.
const PAGE: usize = 1000;

/// `tidegate dead-letters …`
#[derive(Debug, Subcommand)]
pub enum DeadLettersVerb {
    /// List them in the order of partition and offset.
    List(ListOptions),
    /// Show one with all that is known of it.
    Show {
        /// Its partition.
        partition: u32,
        /// Its offset.
        offset: u64,
    },
    /// Write all of them as lines of JSON, with the bytes and headers as they stand on the topic.
    Export(ExportOptions),
    /// Send them again with their original stamps; a preview of a selection without --execute.
    Retry(retry::RetryOptions),
}

/// Takes the stable words.
fn cause() -> impl TypedValueParser<Value = Cause> {
    PossibleValuesParser::new(Cause::ALL.map(Cause::as_str)).try_map(|word| word.parse::<Cause>())
}

/// What `list` takes.
#[derive(Args, Debug)]
pub struct ListOptions {
    /// Only those of this cause.
    #[arg(long, value_parser = cause())]
    cause: Option<Cause>,
    /// Only those behind it, as the list before said.
    #[arg(long, value_name = "PARTITION:OFFSET")]
    after: Option<String>,
    /// At most so many.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
}

/// What `export` takes.
#[derive(Args, Debug)]
pub struct ExportOptions {
    /// Only those of this cause.
    #[arg(long, value_parser = cause())]
    cause: Option<Cause>,
    /// Where to; standard output when it is not given.
    #[arg(long)]
    file: Option<PathBuf>,
}

/// Carries one of them out.
pub fn dead_letters(
    client: &Client,
    verb: &DeadLettersVerb,
    encoding: Encoding,
    output: Output,
) -> Result<(), CliError> {
    match verb {
        DeadLettersVerb::List(options) => list(client, options, encoding, output),
        DeadLettersVerb::Show { partition, offset } => show(client, *partition, *offset, encoding, output),
        DeadLettersVerb::Export(options) => export(client, options),
        DeadLettersVerb::Retry(options) => retry::retry(client, options, output),
    }
}

/// Pages of the server's list, one after the other.
struct Pages<'a> {
    client: &'a Client,
    cause: Option<Cause>,
    full: bool,
    after: Option<String>,
}

impl Pages<'_> {
    /// At most `limit` further ones; the last page was reached when `after` is none.
    fn next(&mut self, limit: usize) -> Result<Vec<Value>, CliError> {
        let mut path = format!("/api/v1/dead-letters?limit={}&full={}", limit.min(PAGE), self.full);
        for (name, value) in [("after", self.after.clone()), ("cause", self.cause.map(|cause| cause.to_string()))] {
            if let Some(value) = value {
                let value = percent_encoding::utf8_percent_encode(&value, percent_encoding::NON_ALPHANUMERIC);
                path.push_str(&format!("&{name}={value}"));
            }
        }
        let mut page = self.client.get(&path)?;
        self.after = page["next"].as_str().map(str::to_owned);
        match page["dead_letters"].take() {
            Value::Array(letters) => Ok(letters),
            _ => {
                Err(CliError::failed("the answer has no dead_letters").hint("does --server name a Tidegate instance?"))
            }
        }
    }
}

fn list(client: &Client, options: &ListOptions, encoding: Encoding, output: Output) -> Result<(), CliError> {
    let mut pages = Pages { client, cause: options.cause, full: false, after: options.after.clone() };
    let mut letters = Vec::new();
    let limit = options.limit as usize;
    while letters.len() < limit {
        letters.append(&mut pages.next(limit - letters.len())?);
        if pages.after.is_none() {
            break;
        }
    }
    if output == Output::Json {
        return output::json(&json!({ "dead_letters": letters, "next": pages.after }));
    }
    if letters.is_empty() && pages.after.is_none() {
        return output::line("no dead letters");
    }
    let fields = ["partition", "offset", "key", "cause", "stamp", "attempts", "retried", "message"];
    let row = |letter: &Value| {
        let field = |name: &&str| match *name {
            "key" => encoding.show(letter, "key"),
            name => cell(&letter[name]),
        };
        fields.iter().map(field).collect()
    };
    output::table(&fields, letters.iter().map(row).collect())?;
    match pages.after {
        Some(after) => output::line(&format!("… more with --after {after}")),
        None => Ok(()),
    }
}

fn show(client: &Client, partition: u32, offset: u64, encoding: Encoding, output: Output) -> Result<(), CliError> {
    let letter = client.get(&format!("/api/v1/dead-letters/{partition}/{offset}"))?;
    if output == Output::Json {
        return output::json(&letter);
    }
    let origin = &letter["origin"];
    let origin = match origin.is_null() {
        true => cell(origin),
        false => {
            format!("{}-{} offset {}", cell(&origin["topic"]), cell(&origin["partition"]), cell(&origin["offset"]))
        }
    };
    let mut rows: Vec<[String; 2]> = Vec::new();
    for name in ["partition", "offset", "key", "kind", "action", "value", "stamp", "cause", "exception", "message"] {
        let shown = if matches!(name, "key" | "value") { encoding.show(&letter, name) } else { cell(&letter[name]) };
        rows.push([name.to_owned(), shown]);
    }
    rows.extend(["attempts", "retried"].map(|name| [name.to_owned(), cell(&letter[name])]));
    rows.push(["origin".into(), origin]);
    for header in letter["record"]["headers"].as_array().into_iter().flatten() {
        rows.push([format!("header {}", cell(&header["name"])), encoding.show(header, "value")]);
    }
    output::table(&["field", "value"], rows.into_iter().map(Vec::from).collect())
}

fn export(client: &Client, options: &ExportOptions) -> Result<(), CliError> {
    let mut pages = Pages { client, cause: options.cause, full: true, after: None };
    let Some(path) = &options.file else {
        let mut out = io::stdout().lock();
        return match write_all(&mut pages, &mut out) {
            // A reader that has gone (`| head`) is not an error.
            Err(Trouble::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(Trouble::Write(error)) => Err(CliError::failed(format!("cannot write: {error}"))),
            Err(Trouble::Read(error)) => Err(error),
            Ok(_) => Ok(()),
        };
    };
    let refused = |error: io::Error| {
        CliError::failed(format!("cannot write {}: {error}", path.display())).hint("--file names where to write")
    };
    let file = File::create(path).map_err(refused)?;
    let mut out = BufWriter::new(&file);
    let written = write_all(&mut pages, &mut out).map_err(|trouble| match trouble {
        Trouble::Write(error) => refused(error),
        Trouble::Read(error) => error,
    })?;
    drop(out);
    file.sync_all().map_err(refused)?;
    output::line(&format!("{written} dead letters written to {}", path.display()))
}

/// Why an export is not whole.
enum Trouble {
    Read(CliError),
    Write(io::Error),
}

/// One line for each; their number.
fn write_all(pages: &mut Pages<'_>, out: &mut impl Write) -> Result<u64, Trouble> {
    let mut written = 0;
    loop {
        for letter in pages.next(PAGE).map_err(Trouble::Read)? {
            writeln!(out, "{letter}").map_err(Trouble::Write)?;
            written += 1;
        }
        if pages.after.is_none() {
            out.flush().map_err(Trouble::Write)?;
            return Ok(written);
        }
    }
}
