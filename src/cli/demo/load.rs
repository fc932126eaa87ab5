//! The live load: cascades over a few keys, so that some children come late, and a view of it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::time::{Duration, Instant};

use super::observed::{Counts, Observed};
use super::story::Sent;
use super::{DemoOptions, Process, drained};
use crate::cli::error::CliError;
use crate::cli::screen::{Ink, Screen, grouped, sparkline};
use crate::clock;
use crate::event::{Action, Event};

/// How often events are sent.
const TICK: Duration = Duration::from_millis(20);

/// How many moments the sparkline shows.
const MOMENTS: usize = 40;

/// Sends events until the time is over or `stop` resolves, shows what happens, and waits until all is committed.
pub async fn run(
    options: &DemoOptions,
    process: &Process,
    observed: &Observed,
    screen: &Screen,
    stop: impl Future<Output = &'static str>,
    sent: &mut Sent,
) -> Result<(), CliError> {
    let until = if options.seconds == 0 { "until Ctrl-C".into() } else { format!("for {} s", options.seconds) };
    screen.title(
        "2  A live load",
        &format!(
            "{} events a second on {} keys {until}; slow ones spawn children",
            grouped(options.rate),
            options.keys
        ),
    );
    let mut view = View::new(screen, observed.counts(), sent.len() as u64);
    let mut stop = pin!(stop);
    let mut ticks = tokio::time::interval(TICK);
    let began = clock::now();
    let before = sent.len() as u64;
    loop {
        tokio::select! {
            _ = &mut stop => break,
            _ = ticks.tick() => {}
        }
        let elapsed = began.elapsed();
        if options.seconds > 0 && elapsed >= Duration::from_secs(options.seconds) {
            break;
        }
        let due = (elapsed.as_secs_f64() * options.rate as f64) as u64;
        let count = due.saturating_sub(sent.len() as u64 - before).min(options.rate);
        let events: Vec<Event> = (0..count).map(|_| random_event(options.keys)).collect();
        let offsets = process.instance.append(events.clone(), Vec::new()).await;
        let offsets = offsets.map_err(|error| CliError::failed(format!("cannot append: {error}")))?;
        sent.extend(offsets.into_iter().map(|offset| offset as u64).zip(events));
        view.show(process, observed, sent.len() as u64, false);
    }
    drained(process, observed, sent.len() as u64).await?;
    view.show(process, observed, sent.len() as u64, true);
    screen.keep();
    Ok(())
}

/// Most events are quick; a few work long and spawn children, which then come late.
fn random_event(keys: u64) -> Event {
    let mut random = fastrand::Rng::new();
    let script = match random.u32(0..100) {
        0..70 => format!(r#"{{"value":"{}"}}"#, random.u32(..1000)),
        70..95 => format!(r#"{{"work_ms":{},"value":"w",{}}}"#, random.u32(1..10), spawn(&mut random, keys)),
        _ => format!(r#"{{"work_ms":{},"value":"s",{}}}"#, random.u32(50..300), spawn(&mut random, keys)),
    };
    Event {
        key: random_key(&mut random, keys).into(),
        action: random_action(&mut random),
        payload: Some(script.into()),
    }
}

fn spawn(random: &mut fastrand::Rng, keys: u64) -> String {
    let children: Vec<String> = (0..random.u32(1..3))
        .map(|_| {
            let (key, action) = (random_key(random, keys), random_action(random).as_str());
            format!(r#"{{"key":"{key}","action":"{action}","payload":{{"value":"child"}}}}"#)
        })
        .collect();
    format!(r#""spawn":[{}]"#, children.join(","))
}

fn random_key(random: &mut fastrand::Rng, keys: u64) -> String {
    format!("key-{}", random.u64(..keys))
}

fn random_action(random: &mut fastrand::Rng) -> Action {
    if random.u32(0..100) < 70 { Action::Add } else { Action::Remove }
}

/// What is shown while the load runs.
struct View<'a> {
    screen: &'a Screen,
    every: Duration,
    shown: Instant,
    began: Instant,
    before: Counts,
    sent_before: u64,
    last: (u64, u64),
    rates: VecDeque<u64>,
}

impl View<'_> {
    fn new(screen: &Screen, before: Counts, sent_before: u64) -> View<'_> {
        let every = Duration::from_millis(if screen.is_live() { 200 } else { 1000 });
        let now = clock::now();
        View { screen, every, shown: now, began: now, before, sent_before, last: (0, 0), rates: VecDeque::new() }
    }

    fn show(&mut self, process: &Process, observed: &Observed, sent: u64, last: bool) {
        let since = self.shown.elapsed();
        if since < self.every && !last {
            return;
        }
        let counts = observed.counts();
        let sent = sent - self.sent_before;
        let done = counts.ended - self.before.ended;
        let rate = |now: u64, before: u64| ((now - before) as f64 / since.as_secs_f64()) as u64;
        let rates = (rate(sent, self.last.0), rate(done, self.last.1));
        (self.shown, self.last) = (clock::now(), (sent, done));
        if !last {
            self.rates.push_back(rates.1);
            self.rates.drain(..self.rates.len().saturating_sub(MOMENTS));
        }
        let (late, spawned) = (counts.late - self.before.late, counts.spawned - self.before.spawned);
        let running = (sent + spawned).saturating_sub(done);
        let wrong = observed.wrong_keys();
        if self.screen.is_live() {
            self.draw(process, [sent, done, spawned, running, late], rates, wrong);
        } else {
            self.screen.line(&format!(
                "{:>5.1} s   received {sent} ({}/s)   processed {done} ({}/s)   children {spawned}   in flight {running}   late {late}",
                self.began.elapsed().as_secs_f64(),
                rates.0,
                rates.1,
            ));
        }
    }

    fn draw(&self, process: &Process, numbers: [u64; 5], rates: (u64, u64), wrong: usize) {
        let [sent, done, spawned, running, late] = numbers.map(grouped);
        let dim = |text: &str| self.screen.ink(Ink::Dim, text);
        let rate = |rate: u64| dim(&format!("{:>9}/s", grouped(rate)));
        let tasks: Vec<String> = process
            .instance
            .status()
            .tasks
            .iter()
            .map(|task| {
                format!("{}-{} {} {}", task.role, task.partition, task.state.as_str(), task.in_flight + task.waiting)
            })
            .collect();
        self.screen.redraw(&[
            format!("   primary events   {sent:>10} {}", rate(rates.0)),
            format!("   processed        {done:>10} {}   {}", rate(rates.1), sparkline(self.rates.iter().copied())),
            format!("   children         {spawned:>10}"),
            format!("   in flight        {running:>10}   {}", dim(&tasks.join(" · "))),
            format!(
                "   came late        {}   {}",
                self.screen.ink(Ink::Late, &format!("{late:>10}")),
                dim(&format!("where the last write wins, {wrong} keys would be wrong now"))
            ),
        ]);
    }
}
