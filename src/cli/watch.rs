//! `tidegate watch`: an instance's numbers as they change: redrawn on a terminal, a line each time elsewhere.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::client::Client;
use super::error::CliError;
use super::output::{self, Output, cell};
use super::run::runtime;
use super::screen::{Ink, Screen, grouped, sparkline};
use crate::clock;
use crate::config::units::parse_duration;

/// How many moments the sparkline shows.
const MOMENTS: usize = 40;

/// How many tasks are drawn.
const TASKS: usize = 12;

/// What `watch` takes.
#[derive(Args, Debug)]
pub struct WatchOptions {
    /// End after this long; otherwise Ctrl-C ends it.
    #[arg(long = "for", value_parser = parse_duration, value_name = "DURATION")]
    period: Option<Duration>,
    /// Between two looks.
    #[arg(long, default_value = "1s", value_parser = parse_duration, value_name = "DURATION")]
    every: Duration,
}

/// Watches an instance until the time is over, which is exit code 0, or until Ctrl-C, which is 130.
pub fn watch(client: Client, options: &WatchOptions, output: Output) -> Result<(), CliError> {
    if options.every.is_zero() {
        return Err(CliError::misused("--every 0s: the pause has to be above 0"));
    }
    let client = Arc::new(client);
    let mut view = View::new(output);
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        loop {
            let asked = {
                let client = Arc::clone(&client);
                tokio::task::spawn_blocking(move || look(&client))
            };
            let seen = tokio::select! {
                _ = &mut interrupted => return Err(CliError::interrupted()),
                seen = asked => seen.map_err(|error| CliError::failed(error.to_string()))?,
            };
            view.show(seen)?;
            let left = options.period.map_or(Duration::MAX, |period| period.saturating_sub(view.began.elapsed()));
            if left.is_zero() {
                return Ok(());
            }
            tokio::select! {
                _ = &mut interrupted => return Err(CliError::interrupted()),
                () = tokio::time::sleep(options.every.min(left)) => {}
            }
        }
    });
    // A question that is not answered does not hold the process.
    runtime.shutdown_background();
    ended
}

/// What an instance tells of itself at a moment.
struct Seen {
    status: Value,
    tasks: Vec<Value>,
}

fn look(client: &Client) -> Result<Seen, CliError> {
    let status = client.get("/api/v1/status")?;
    let mut tasks = client.get("/api/v1/tasks")?;
    let Value::Array(tasks) = tasks["tasks"].take() else {
        return Err(CliError::failed("the answer has no tasks").hint("does --server name a Tidegate instance?"));
    };
    // An answer may tell of all instances; this view is about the one that is asked.
    let own = |task: &Value| task["instance"].is_null() || task["instance"] == status["instance"];
    let tasks = tasks.into_iter().filter(own).collect();
    Ok(Seen { status, tasks })
}

impl Seen {
    fn sum(&self, role: &str, field: &str) -> u64 {
        self.told(role, field).sum()
    }

    /// What the tasks of a role, or of all roles, tell of a field.
    fn told(&self, role: &str, field: &str) -> impl Iterator<Item = u64> {
        let tasks = self.tasks.iter().filter(move |task| role.is_empty() || task["role"] == role);
        tasks.filter_map(move |task| task[field].as_u64())
    }

    fn numbers(&self) -> Numbers {
        Numbers {
            received: self.sum("source", "committed"),
            processed: self.sum("task", "committed"),
            in_flight: self.sum("", "in_flight"),
            waiting: self.sum("", "waiting"),
            lag: self.told("", "lag").reduce(|a, b| a + b),
            oldest_ms: self.told("", "oldest_age_ms").max().unwrap_or(0),
        }
    }
}

/// Positions are sums over the partitions that the instance owns.
#[derive(Clone, Copy, Default)]
struct Numbers {
    received: u64,
    processed: u64,
    in_flight: u64,
    waiting: u64,
    /// Of those partitions whose end is known; `None` = of none.
    lag: Option<u64>,
    oldest_ms: u64,
}

struct View {
    screen: Screen,
    output: Output,
    began: Instant,
    last: Option<(Instant, Numbers, Value)>,
    rates: VecDeque<u64>,
}

impl View {
    fn new(output: Output) -> View {
        View { screen: Screen::new(), output, began: clock::now(), last: None, rates: VecDeque::new() }
    }

    /// An instance that does not answer is an error the first time only: later it may come back.
    fn show(&mut self, seen: Result<Seen, CliError>) -> Result<(), CliError> {
        match seen {
            Ok(seen) => self.tell(&seen),
            Err(error) if self.last.is_none() => Err(error),
            Err(error) if self.output == Output::Json => {
                output::line(&json!({ "elapsed_s": self.elapsed(), "error": error.to_string() }).to_string())
            }
            Err(error) => {
                self.screen.keep();
                output::line(&format!("{:>7.1} s  {error}", self.elapsed()))
            }
        }
    }

    fn elapsed(&self) -> f64 {
        (self.began.elapsed().as_secs_f64() * 10.0).round() / 10.0
    }

    fn tell(&mut self, seen: &Seen) -> Result<(), CliError> {
        let (now, numbers) = (clock::now(), seen.numbers());
        // With other partitions than before the sums say nothing about a rate.
        let before = self.last.as_ref().filter(|(.., partitions)| *partitions == seen.status["partitions"]);
        let rate = |of: fn(&Numbers) -> u64| {
            let (at, before, _) = before?;
            Some((of(&numbers).saturating_sub(of(before)) as f64 / (now - *at).as_secs_f64().max(0.001)) as u64)
        };
        let rates = (rate(|numbers| numbers.received), rate(|numbers| numbers.processed));
        self.last = Some((now, numbers, seen.status["partitions"].clone()));
        self.rates.extend(rates.1);
        self.rates.drain(..self.rates.len().saturating_sub(MOMENTS));
        if self.output == Output::Json {
            return output::line(&self.as_json(seen, numbers, rates).to_string());
        }
        if self.screen.is_live() {
            self.draw(seen, numbers, rates);
            return Ok(());
        }
        let per_second = |rate: Option<u64>| rate.map_or(String::new(), |rate| format!(" ({rate}/s)"));
        output::line(&format!(
            "{:>7.1} s  {}  received {}{}  processed {}{}  in flight {}  waiting {}  lag {}{}",
            self.elapsed(),
            cell(&seen.status["state"]),
            numbers.received,
            per_second(rates.0),
            numbers.processed,
            per_second(rates.1),
            numbers.in_flight,
            numbers.waiting,
            numbers.lag.map_or("-".into(), |lag| lag.to_string()),
            restore(&seen.status["restore"]).map(|text| format!("  restoring {text}")).unwrap_or_default()
        ))
    }

    fn as_json(&self, seen: &Seen, numbers: Numbers, rates: (Option<u64>, Option<u64>)) -> Value {
        json!({
            "elapsed_s": self.elapsed(),
            "instance": seen.status["instance"],
            "state": seen.status["state"],
            "partitions": seen.status["partitions"],
            "frontier": seen.status["frontier"],
            "restore": seen.status["restore"],
            "troubles": seen.status["troubles"],
            "received": numbers.received,
            "received_per_second": rates.0,
            "processed": numbers.processed,
            "processed_per_second": rates.1,
            "in_flight": numbers.in_flight,
            "waiting": numbers.waiting,
            "lag": numbers.lag,
            "oldest_age_ms": numbers.oldest_ms,
        })
    }

    fn draw(&self, seen: &Seen, numbers: Numbers, rates: (Option<u64>, Option<u64>)) {
        let dim = |text: &str| self.screen.ink(Ink::Dim, text);
        let rate = |rate: Option<u64>| dim(&rate.map_or(String::new(), |rate| format!("{:>9}/s", grouped(rate))));
        let status = &seen.status;
        let state = cell(&status["state"]);
        let ink = if state == "running" { Ink::Good } else { Ink::Late };
        let title = format!("{} of {}", cell(&status["instance"]), cell(&status["application"]));
        let mut lines = vec![
            format!("{}   {}", self.screen.ink(Ink::Bold, &title), self.screen.ink(ink, &state)),
            format!("   received    {:>14} {}", grouped(numbers.received), rate(rates.0)),
            format!(
                "   processed   {:>14} {}   {}",
                grouped(numbers.processed),
                rate(rates.1),
                sparkline(self.rates.iter().copied())
            ),
            format!(
                "   in flight   {:>14}   {}",
                grouped(numbers.in_flight),
                dim(&format!("waiting {}, oldest {} ms", grouped(numbers.waiting), grouped(numbers.oldest_ms)))
            ),
            format!("   lag         {:>14}", numbers.lag.map_or("-".into(), grouped)),
        ];
        lines.extend(restore(&status["restore"]).map(|text| format!("   restoring   {text}")));
        let troubles = status["troubles"].as_array().into_iter().flatten();
        lines.extend(troubles.map(|trouble| format!("   {}", self.screen.ink(Ink::Bad, &first(&cell(trouble), 70)))));
        for task in seen.tasks.iter().take(TASKS) {
            let name = format!("{}-{}", cell(&task["role"]), cell(&task["partition"]));
            let text = format!(
                "   {name:<11} {:<10} committed {:>12}  lag {:>8}  in flight {}",
                cell(&task["state"]),
                cell(&task["committed"]),
                cell(&task["lag"]),
                cell(&task["in_flight"])
            );
            lines.push(dim(&text));
        }
        if let Some(more @ 1..) = seen.tasks.len().checked_sub(TASKS) {
            lines.push(dim(&format!("   … and {more} more: tidegate tasks")));
        }
        self.screen.redraw(&lines);
    }
}

/// The first letters: a line that wraps would be drawn over wrongly.
fn first(text: &str, letters: usize) -> String {
    match text.char_indices().nth(letters) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What is being restored, in words.
fn restore(restore: &Value) -> Option<String> {
    let number = |field: &str| restore[field].as_u64();
    let (partitions, left) = (number("partitions")?, number("remaining_records")?);
    let eta = number("eta_seconds").map(|seconds| format!(", about {seconds} s")).unwrap_or_default();
    Some(format!("{partitions} partitions, {} records left{eta}", grouped(left)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_sums_of_what_the_instance_owns() {
        let task = |role: &str, committed: u64| json!({ "role": role, "committed": committed, "in_flight": 1, "waiting": 2, "lag": null, "oldest_age_ms": committed });
        let tasks = vec![task("source", 7), task("task", 5), task("task", 6)];
        let numbers = Seen { status: Value::Null, tasks }.numbers();
        assert_eq!((numbers.received, numbers.processed, numbers.in_flight), (7, 11, 3));
        assert_eq!((numbers.waiting, numbers.lag, numbers.oldest_ms), (6, None, 7));
        assert_eq!((first("größe", 3), first("abc", 3)), ("grö…".into(), "abc".into()));
    }
}
