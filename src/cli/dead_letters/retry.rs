//! `tidegate dead-letters retry`: named ones at once, a selection after a preview, as Kafka's own tools do it.
//!
//! R1: a selection changes nothing without `--execute`.
//! R2: one that was retried before is passed over unless forced, so a command that ended halfway is run again.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::super::client::Client;
use super::super::error::CliError;
use super::super::output::{self, Output, cell};
use super::{PAGE, Pages, cause};
use crate::cause::Cause;
use crate::stamp::Stamp;

/// A partition that moves takes retries again within some seconds: so often and with such pauses it is asked again.
const TRIES: u32 = 30;
const PAUSE: Duration = Duration::from_secs(1);

/// What `retry` takes.
#[derive(Args, Debug)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(false)))]
pub struct RetryOptions {
    /// These ones, each as PARTITION:OFFSET; at once.
    #[arg(value_name = "PARTITION:OFFSET", group = "which", num_args = 1.., conflicts_with = "execute")]
    letters: Vec<Named>,
    /// All of this cause.
    #[arg(long, value_name = "WORD", value_parser = cause(), group = "which")]
    cause: Option<Cause>,
    /// All.
    #[arg(long, group = "which")]
    all: bool,
    /// Carry it out for all of a cause, or all; without it nothing is changed.
    #[arg(long)]
    execute: bool,
    /// Also those that have been retried before.
    #[arg(long)]
    force: bool,
    /// As new events, later than all others, in place of their original stamps.
    #[arg(long)]
    as_new: bool,
}

/// A dead letter on the command line.
#[derive(Clone, Copy, Debug)]
struct Named {
    partition: u32,
    offset: u64,
}

impl FromStr for Named {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Named, &'static str> {
        let named = text.split_once(':').and_then(|(partition, offset)| {
            Some(Named { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
        });
        named.ok_or("no PARTITION:OFFSET, such as 3:1200")
    }
}

impl RetryOptions {
    /// As the server wants it.
    fn how(&self) -> String {
        format!("force={}{}", self.force, if self.as_new { "&as=new" } else { "" })
    }
}

/// Sends dead letters again, or shows which ones it would send.
pub fn retry(client: &Client, options: &RetryOptions, output: Output) -> Result<(), CliError> {
    if !options.letters.is_empty() {
        return named(client, options, output);
    }
    if options.execute { execute(client, options, output) } else { preview(client, options, output) }
}

fn named(client: &Client, options: &RetryOptions, output: Output) -> Result<(), CliError> {
    let (mut sent, mut refused) = (Vec::new(), Vec::new());
    for Named { partition, offset } in &options.letters {
        let path = format!("/api/v1/dead-letters/{partition}/{offset}/retry?{}", options.how());
        match client.post(&path) {
            Ok(answer) => sent.push(answer),
            Err(error) => refused.push((format!("{partition}:{offset}"), error)),
        }
    }
    if output == Output::Json {
        let refused =
            refused.iter().map(|(letter, error)| json!({ "dead_letter": letter, "error": error.to_string() }));
        output::json(&json!({ "accepted": sent, "refused": refused.collect::<Vec<_>>() }))?;
    } else if !sent.is_empty() {
        let fields = ["partition", "offset", "stamp"];
        let row = |answer: &Value| fields.iter().map(|field| cell(&answer[*field])).collect();
        output::table(&fields, sent.iter().map(row).collect())?;
    }
    // One that is refused by itself says why; of several all are told.
    match refused.len() {
        0 => Ok(()),
        1 => Err(refused.remove(0).1),
        count => {
            let told: Vec<String> = refused.iter().map(|(letter, error)| format!("{letter}: {error}")).collect();
            Err(CliError::failed(format!("{count} of {} are not retried: {}", options.letters.len(), told.join("; "))))
        }
    }
}

/// What a selection comes to.
#[derive(Default)]
struct Totals {
    /// Sent, or to be sent.
    accepted: u64,
    already_retried: u64,
    not_an_event: u64,
    before_horizon: u64,
}

impl Totals {
    fn tell(&self, executed: bool, causes: &BTreeMap<String, u64>, output: Output) -> Result<(), CliError> {
        let Totals { accepted, already_retried, not_an_event, before_horizon } = self;
        if output == Output::Json {
            let name = if executed { "accepted" } else { "to_retry" };
            let mut told = json!({ "executed": executed, name: accepted, "already_retried": already_retried,
                                   "not_an_event": not_an_event, "before_horizon": before_horizon });
            if !executed {
                told["causes"] = json!(causes);
            }
            return output::json(&told);
        }
        let verb = if executed { "retried" } else { "retry" };
        let mut rows = vec![[verb.to_owned(), "dead letters".to_owned(), accepted.to_string()]];
        rows.extend(causes.iter().map(|(cause, count)| [String::new(), format!("of them {cause}"), count.to_string()]));
        for (why, count) in [
            ("retried before", already_retried),
            ("no events: source records that were refused", not_an_event),
            ("before the horizon: --as-new sends them as new events", before_horizon),
        ] {
            rows.extend((*count > 0).then(|| ["keep".to_owned(), why.to_owned(), count.to_string()]));
        }
        output::table(&["what", "of", "amount"], rows.into_iter().map(Vec::from).collect())?;
        match executed {
            true => Ok(()),
            false => output::line("\nnothing was changed; --execute carries it out"),
        }
    }
}

fn preview(client: &Client, options: &RetryOptions, output: Output) -> Result<(), CliError> {
    let mut pages = Pages { client, cause: options.cause, full: false, after: None };
    let (mut totals, mut causes) = (Totals::default(), BTreeMap::new());
    let sequence =
        |told: &Value| told.as_str().map_or_else(|| told.as_u64(), |told| Some(Stamp::from_str(told).ok()?.sequence));
    let horizon = sequence(&client.get("/api/v1/frontier")?["horizon"]).filter(|_| !options.as_new);
    loop {
        for letter in pages.next(PAGE)? {
            match () {
                () if letter["kind"] != "event" => totals.not_an_event += 1,
                () if letter["retried"] == true && !options.force => totals.already_retried += 1,
                () if horizon.is_some() && sequence(&letter["stamp"]) <= horizon => totals.before_horizon += 1,
                () => {
                    totals.accepted += 1;
                    *causes.entry(cell(&letter["cause"])).or_default() += 1;
                }
            }
        }
        if pages.after.is_none() {
            return totals.tell(false, &causes, output);
        }
    }
}

fn execute(client: &Client, options: &RetryOptions, output: Output) -> Result<(), CliError> {
    let mut totals = Totals::default();
    let of_cause = options.cause.map_or_else(String::new, |cause| format!("&cause={cause}"));
    let mut after: Option<String> = None;
    loop {
        let behind = after.as_ref().map_or_else(String::new, |after| format!("&after={}", after.replace(':', "%3A")));
        let path = format!("/api/v1/dead-letters/retry?limit={PAGE}{of_cause}{behind}&{}", options.how());
        let page = match patiently(client, &path) {
            Ok(page) => page,
            Err(error) => {
                totals.tell(true, &BTreeMap::new(), output)?;
                return Err(error);
            }
        };
        let of = |name: &str| page[name].as_u64().unwrap_or(0);
        totals.accepted += of("accepted");
        totals.already_retried += of("already_retried");
        totals.not_an_event += of("not_an_event");
        totals.before_horizon += of("before_horizon");
        match page["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => return totals.tell(true, &BTreeMap::new(), output),
        }
    }
}

/// R2: what is not ready for a moment is asked again.
fn patiently(client: &Client, path: &str) -> Result<Value, CliError> {
    let mut tries = 0;
    loop {
        match client.post(path) {
            Err(error) if error.passes() && tries < TRIES => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            answer => return answer,
        }
    }
}
