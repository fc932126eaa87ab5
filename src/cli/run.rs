//! `tidegate run`: an instance in the foreground, one log line per change of its state.

use std::collections::BTreeSet;
use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use clap::{Args, ValueEnum};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use super::error::CliError;
use super::open;
use super::options::ConfigOptions;
use super::restoring::{Bar, Lines};
use crate::config::Config;
use crate::handler::builtin;
use crate::instance::view::Status;
use crate::server::Front;
use crate::server::bind::bind;
use crate::server::process::{Process, name, told_to_stop};

/// What `run` takes beside the configuration.
#[derive(Args, Debug)]
pub struct RunOptions {
    #[command(flatten)]
    config: ConfigOptions,
    /// handler.kind: echo, rules or scripted.
    #[arg(long, value_name = "KIND")]
    handler: Option<String>,
    /// handler.rules: the file with the rules; implies --handler rules.
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    /// server.listen: where HTTP answers.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Listen on an address that others can reach, without a token.
    #[arg(long)]
    insecure: bool,
    /// How log lines are written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

impl RunOptions {
    fn load(&self) -> Result<Config, CliError> {
        let mut shortcuts = Vec::new();
        if let Some(rules) = &self.rules {
            shortcuts.push(("handler.kind", "rules".to_owned(), "--rules"));
            shortcuts.push(("handler.rules", rules.display().to_string(), "--rules"));
        }
        shortcuts.extend(self.handler.clone().map(|kind| ("handler.kind", kind, "--handler")));
        shortcuts.extend(self.listen.clone().map(|listen| ("server.listen", listen, "--listen")));
        self.config.load_with(shortcuts)
    }
}

/// Runs an instance until it is told to stop.
pub fn run(options: &RunOptions, doors: Router<Front>) -> Result<(), CliError> {
    let config = options.load()?;
    let handler = builtin::from_config(&config.handler, false).map_err(CliError::misused)?;
    begin_logging(options.log_format);
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let bound = bind(&config.server, options.insecure).await?;
        let mut config = config;
        name(&mut config, &bound);
        let log = open::log(&config)?;
        let process = Process::start(config, bound, log, handler, doors)?;
        info!("answers on {}", process.url());
        let failed = tokio::select! {
            failed = process.instance.failed() => Some(failed),
            () = tell_changes(&process) => None,
            name = told_to_stop() => {
                info!("{name}: finishing what is in flight");
                None
            }
        };
        process.end(failed).await?;
        info!("stopped");
        Ok(())
    });
    // What still waits for a log that does not answer must not hold the process beyond its time.
    runtime.shutdown_background();
    ended
}

/// The runtime for handlers and HTTP.
pub fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

fn begin_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Lines);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => builder.with_target(false).with_ansi(stderr().is_terminal()).init(),
    }
}

/// One line per change of state, and one per trouble that comes or goes; never ends.
async fn tell_changes(process: &Process) {
    let (mut last, mut bar) = (Arc::new(Status::default()), Bar::default());
    loop {
        let status = Arc::new(process.instance.status());
        bar.show(status.restores.as_ref());
        if (status.state, &status.partitions) != (last.state, &last.partitions) {
            info!("{}: {} partitions {:?}", status.state, status.partitions.len(), status.partitions);
        }
        let (now, before): (BTreeSet<_>, BTreeSet<_>) =
            (status.troubles.iter().collect(), last.troubles.iter().collect());
        now.difference(&before).for_each(|trouble| warn!("{trouble}"));
        before.difference(&now).for_each(|trouble| info!("over: {trouble}"));
        last = status;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
