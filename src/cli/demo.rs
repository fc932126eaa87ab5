//! `tidegate demo`: what this is about, in ten seconds. An instance on an embedded log in a temporary
//! folder; one late event step by step; a live load; a check of every key against the serial reference.

mod check;
mod load;
mod observed;
mod story;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use clap::Args;

use super::error::CliError;
use super::run::runtime;
use super::screen::Screen;
use crate::clock;
use crate::config::{Config, HandlerKind};
use crate::handler::builtin;
use crate::log::embedded::{EmbeddedLog, EmbeddedOptions};
use crate::server::Front;
use crate::server::bind::bind;
use crate::server::process::{Process, name, told_to_stop};
use observed::Observed;

/// How long anything in the demo may take that is not a wait on purpose.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `demo` takes.
#[derive(Args, Debug)]
pub struct DemoOptions {
    /// How long the live load runs; 0 = until Ctrl-C.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Primary events a second.
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// Keys of the live load.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(2..=10_000_000))]
    keys: u64,
}

/// A folder that goes with the demo.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What cannot be removed is in the system's temporary folder, which is emptied by itself.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Tells the story, runs the load, checks every key.
pub fn demo(options: &DemoOptions, doors: Router<Front>) -> Result<(), CliError> {
    let folder = Folder(std::env::temp_dir().join(format!("tidegate-demo-{}", uuid::Uuid::new_v4())));
    std::fs::create_dir_all(&folder.0)?;
    let config = configuration(&folder);
    runtime()?.block_on(async {
        let screen = Screen::new();
        let observed = Arc::new(Observed::new(builtin::from_config(&config.handler, false).map_err(CliError::failed)?));
        let process = start(config, Arc::clone(&observed), doors).await?;
        screen.title("Tidegate", &format!("embedded log in {}, HTTP on {}", folder.0.display(), process.url()));
        let shown = show(options, &screen, &process, &observed).await;
        let stopped = process.stop().await;
        shown.and(stopped.map_err(CliError::from))
    })
}

async fn show(options: &DemoOptions, screen: &Screen, process: &Process, observed: &Observed) -> Result<(), CliError> {
    let mut sent = story::tell(process, observed, screen).await?;
    let stop = told_to_stop();
    load::run(options, process, observed, screen, stop, &mut sent).await?;
    check::check(process, observed, screen, sent).await
}

fn configuration(folder: &Folder) -> Config {
    let mut config = Config::default();
    config.application.id = "demo".into();
    config.log.path = folder.0.join("log");
    config.state.dir = folder.0.join("state");
    config.state.cache = 64 << 20;
    config.handler.kind = HandlerKind::Scripted;
    config.processing.partitions = 4;
    config.processing.commit_interval = Duration::from_millis(50);
    config.processing.shutdown_timeout = Duration::from_secs(10);
    config
}

async fn start(mut config: Config, observed: Arc<Observed>, doors: Router<Front>) -> Result<Process, CliError> {
    let bound = bind(&config.server, false).await?;
    name(&mut config, &bound);
    let options = EmbeddedOptions { sync: false, ..EmbeddedOptions::default() };
    let log = EmbeddedLog::open(&config.log.path, options).map_err(|error| CliError::failed(error.to_string()))?;
    let process = Process::start(config, bound, Arc::new(log), observed, doors)?;
    wait_until("the instance runs", || {
        let status = process.instance.status();
        status.state == "running" && status.troubles.is_empty()
    })
    .await?;
    Ok(process)
}

/// Waits until everything that was sent is processed and committed.
async fn drained(process: &Process, observed: &Observed, sent: u64) -> Result<(), CliError> {
    wait_until("all events are processed", || observed.counts().ended >= sent + observed.counts().spawned).await?;
    // The status is up to 250 ms old.
    tokio::time::sleep(Duration::from_millis(300)).await;
    wait_until("all events are committed", || {
        process
            .instance
            .status()
            .tasks
            .iter()
            .all(|task| task.in_flight == 0 && task.waiting == 0 && task.lag.is_none_or(|lag| lag == 0))
    })
    .await
}

async fn wait_until(what: &str, mut reached: impl FnMut() -> bool) -> Result<(), CliError> {
    let deadline = clock::now() + PATIENCE;
    while !reached() {
        if clock::now() > deadline {
            return Err(CliError::failed(format!("waited {} s until {what}, in vain", PATIENCE.as_secs()))
                .hint("this is a bug, or a very busy machine; please report it"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
