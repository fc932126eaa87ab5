//! One process: it joins the group, owns tasks, commits, and answers for its keys.

pub mod view;

use std::sync::Arc;

use bytes::Bytes;

use crate::config::Config;
use crate::event::Event;
use crate::handler::DynHandler;
use crate::log::{Log, LogError};
use view::{InFlight, ListQuery, Lookup, Page, Status};

/// A running instance.
pub struct Instance;

/// Why an instance does not start. The message names the cause and the next step.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration, or the log's topics, do not fit: exit code 2.
    #[error("{0}")]
    Misconfigured(String),
    /// Something else is wrong: exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl Instance {
    /// Starts the instance's threads; it becomes ready by itself. A broker that is not there is waited for.
    /// Must be called inside a tokio runtime. `address` is where this instance's HTTP answers.
    pub fn start(_config: Arc<Config>, _log: Arc<dyn Log>, _handler: Arc<dyn DynHandler>, _address: String) -> Result<Instance, StartError> { todo!() }
    /// As of at most 250 ms ago.
    pub fn status(&self) -> Status { todo!() }
    /// What a key holds, committed.
    pub async fn lookup(&self, _key: Bytes) -> Lookup { todo!() }
    /// A page of keys of the partitions that this instance owns.
    pub async fn list(&self, _query: ListQuery) -> Page { todo!() }
    /// At most `limit` of the events that run or wait for their retry, oldest first.
    pub async fn in_flight(&self, _limit: usize) -> Vec<InFlight> { todo!() }
    /// Appends primary events to the source topic; their offsets, in order. Blocking is done elsewhere.
    pub async fn append(&self, _events: Vec<Event>) -> Result<Vec<i64>, LogError> { todo!() }
    /// Its configuration.
    pub fn config(&self) -> &Config { todo!() }
    /// Its log.
    pub fn log(&self) -> &Arc<dyn Log> { todo!() }
    /// Resolves when the engine has stopped by itself; the reason is the process's last message and exit code.
    pub async fn failed(&self) -> StartError { todo!() }
    /// Hands back what is in flight, commits, leaves the group; done within `processing.shutdown_timeout`.
    pub async fn shutdown(self) { todo!() }
}
