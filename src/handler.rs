//! Step 5 of 8: the handler is the user's code.
//!
//! It sees the event, never the value that the key holds: a value read in the middle of concurrent
//! work would depend on timing.

pub mod builtin;
pub mod rules;
pub mod scripted;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;

use crate::event::Event;
use crate::proto;
use crate::stamp::Stamp;

/// What an event leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The key's new value; ignored for a REMOVE.
    pub value: Option<Bytes>,
    /// Further events, in order: their place in this list is part of their stamps.
    pub children: Vec<Event>,
}

/// Why a handler gives no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Try again, after the given time or the configured backoff.
    Retry {
        /// For people: logs, in-flight list, dead letter.
        reason: String,
        /// At least this long; `None` is the configured backoff.
        after: Option<Duration>,
    },
    /// Never try again: the event becomes a dead letter.
    Reject {
        /// A stable word of the handler's own.
        code: String,
        /// For people.
        message: String,
    },
}

/// With `?` any error is a reason to try again.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Retry { reason: error.to_string(), after: None }
    }
}

/// What a handler is told beside the event.
#[derive(Clone, Debug)]
pub struct Context {
    /// `application.id`.
    pub application: Arc<str>,
    /// The event's place in the serial order.
    pub stamp: Stamp,
    /// 0, or the number of the dead letter's retry that this cascade is.
    pub retry: u32,
    /// 1 for the first try; starts anew after a restart.
    pub attempt: u32,
    /// The key already holds a greater stamp: skip effects outside. The outcome must not depend on it.
    pub superseded: bool,
    /// The root's [`proto::Origin`], encoded.
    pub origin: Bytes,
}

impl Context {
    /// Stable over retries and restarts, for idempotency at the other side.
    pub fn invocation_id(&self) -> String {
        format!("{}:{}:{}", self.application, self.stamp, self.retry)
    }

    /// Where the root of this cascade stood on its source topic.
    pub fn origin(&self) -> proto::Origin {
        proto::Origin::decode(self.origin.clone()).unwrap_or_default()
    }
}

/// Processes events. It is called for many events at the same time, never for two of one key.
///
/// A handler that is ready at once (no `.await` that waits) costs no task switch.
pub trait Handler: Send + Sync + 'static {
    /// Processes one event.
    fn handle(&self, event: Event, context: Context) -> impl Future<Output = Result<Outcome, Failure>> + Send;
}

/// A call of a handler, under way.
pub type Call = Pin<Box<dyn Future<Output = Result<Outcome, Failure>> + Send>>;

/// A handler behind a pointer, as the engine holds it.
pub trait DynHandler: Send + Sync {
    /// Begins a call; nothing runs before it is polled.
    fn call(self: Arc<Self>, event: Event, context: Context) -> Call;
}

impl<H: Handler> DynHandler for H {
    fn call(self: Arc<Self>, event: Event, context: Context) -> Call {
        Box::pin(async move { self.handle(event, context).await })
    }
}
