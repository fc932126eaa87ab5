//! The door for Rust programs: an instance with the program's own handler, inside any tokio runtime.

use std::sync::Arc;

use crate::config::Config;
use crate::handler::{DynHandler, Handler};
use crate::instance::StartError;
use crate::log::{LogError, open};
use crate::server::bind::{BindError, bind};
use crate::server::process::{Process, name, told_to_stop};

/// Runs instances. See [`Tidegate::builder`].
#[derive(Debug)]
pub struct Tidegate;

impl Tidegate {
    /// An instance in the making: give it a configuration and a handler, then [`Builder::run`] it.
    pub fn builder() -> Builder {
        Builder { config: Config::default(), handler: None }
    }
}

/// An instance in the making.
pub struct Builder {
    config: Config,
    handler: Option<Arc<dyn DynHandler>>,
}

/// Why an instance did not run, or ended by itself. The message names the cause and the next step.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The builder was given no handler.
    #[error("no handler: call Builder::handler before Builder::run")]
    NoHandler,
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The HTTP side cannot listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The instance cannot start or go on.
    #[error(transparent)]
    Instance(#[from] StartError),
}

impl Builder {
    /// The configuration; the default one is an embedded log below `./tidegate-data`.
    pub fn config(mut self, config: Config) -> Builder {
        self.config = config;
        self
    }

    /// What processes the events; `handler.kind` of the configuration is not looked at.
    pub fn handler(mut self, handler: impl Handler) -> Builder {
        self.handler = Some(Arc::new(handler));
        self
    }

    /// Starts the instance with its HTTP side. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`RunError`] when something it needs cannot be had; a broker that is not there is waited for.
    pub async fn start(self) -> Result<Process, RunError> {
        let Builder { mut config, handler } = self;
        let handler = handler.ok_or(RunError::NoHandler)?;
        let bound = bind(&config.server, false).await?;
        name(&mut config, &bound);
        let log = open::open(&config)?;
        Ok(Process::start(config, bound, log, handler, super::routes())?)
    }

    /// Runs until SIGTERM or SIGINT, then hands back what is in flight, commits and leaves the group.
    ///
    /// # Errors
    /// As [`Builder::start`], and when the instance cannot go on.
    pub async fn run(self) -> Result<(), RunError> {
        let process = self.start().await?;
        let failed = tokio::select! {
            failed = process.instance.failed() => Some(failed),
            _ = told_to_stop() => None,
        };
        Ok(process.end(failed).await?)
    }
}
