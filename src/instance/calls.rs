//! Calls of the handler: one that is ready at once is finished in place, the others run on the runtime.
//!
//! H1: every call that begins ends exactly once: with an outcome, a failure, its deadline or a panic.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context as PollContext, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Sender;
use futures_util::FutureExt;
use hashbrown::HashMap;
use tokio::task::JoinSet;

use crate::clock;
use crate::handler::{Call, Context, DynHandler, Failure, Outcome};
use crate::metrics;
use crate::task::queue::Queued;

/// What a call came to.
pub type Verdict = Result<Outcome, Failed>;

/// A try that gave no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// `failure` where the handler says so itself, else `timeout` or `panic`: the word in the metrics.
    pub cause: &'static str,
    /// What it means for the event.
    pub failure: Failure,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Failed {
        Failed { cause: "failure", failure }
    }
}

impl Failed {
    fn again(cause: &'static str, reason: String) -> Failed {
        Failed { cause, failure: Failure::Retry { reason, after: None } }
    }
}

/// Under which task and incarnation a call was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallId {
    /// The task's partition.
    pub partition: i32,
    /// The task's incarnation: the verdict of an older one is dropped (protocol P4).
    pub incarnation: u64,
    /// The event's key.
    pub key: Bytes,
    /// The event's record.
    pub offset: i64,
}

/// A verdict that came later.
#[derive(Debug)]
pub struct Finished {
    /// Of which call.
    pub call: CallId,
    /// What it came to.
    pub verdict: Verdict,
}

/// Where the engine has its handler called. The tests have one that ends calls in any order.
pub trait Calls {
    /// Begins a call. `Some` when it is finished already; otherwise the verdict comes as a [`Finished`].
    fn begin(&mut self, call: impl FnOnce() -> CallId, queued: &Queued, superseded: bool) -> Option<Verdict>;

    /// The verdicts of this task's calls are of no use any more: they are cancelled where that is possible.
    fn forget(&mut self, partition: i32);
}

/// Calls on the tokio runtime.
pub struct RuntimeCalls {
    handler: Arc<dyn DynHandler>,
    application: Arc<str>,
    timeout: Duration,
    runtime: tokio::runtime::Handle,
    finished: Sender<Finished>,
    /// The calls under way, by partition; dropping a set cancels them.
    pending: HashMap<i32, JoinSet<()>>,
}

impl RuntimeCalls {
    /// Verdicts that come later go to `finished`. `timeout` bounds one try.
    pub fn new(
        handler: Arc<dyn DynHandler>,
        application: Arc<str>,
        timeout: Duration,
        runtime: tokio::runtime::Handle,
        finished: Sender<Finished>,
    ) -> RuntimeCalls {
        RuntimeCalls { handler, application, timeout, runtime, finished, pending: HashMap::new() }
    }
}

/// What a handler is told of an event.
pub fn context(application: &Arc<str>, queued: &Queued, superseded: bool) -> Context {
    Context {
        application: Arc::clone(application),
        stamp: queued.event.stamp.clone(),
        retry: queued.event.retry,
        attempt: queued.attempt,
        superseded,
        origin: queued.event.origin.clone(),
    }
}

impl Calls for RuntimeCalls {
    fn begin(&mut self, call: impl FnOnce() -> CallId, queued: &Queued, superseded: bool) -> Option<Verdict> {
        let context = context(&self.application, queued, superseded);
        let begun = clock::now();
        // Timers and other parts of the runtime need its context also on this first poll.
        let _guard = self.runtime.enter();
        let handler = Arc::clone(&self.handler);
        let event = queued.event.event.clone();
        let first = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let mut pending: Call = handler.call(event, context);
            match pending.as_mut().poll(&mut PollContext::from_waker(Waker::noop())) {
                Poll::Ready(verdict) => Ok(verdict),
                Poll::Pending => Err(pending),
            }
        }));
        match first {
            Ok(Ok(verdict)) => {
                metrics::handler_duration(begun.elapsed());
                Some(verdict.map_err(Failed::from))
            }
            Ok(Err(pending)) => {
                let call = call();
                let calls = self.pending.entry(call.partition).or_default();
                // Those that have ended make room.
                while calls.try_join_next().is_some() {}
                let finish = finish(pending, call, self.timeout, begun, self.finished.clone());
                calls.spawn_on(finish, &self.runtime);
                None
            }
            Err(panic) => Some(Err(panicked(panic.as_ref()))),
        }
    }

    fn forget(&mut self, partition: i32) {
        self.pending.remove(&partition);
    }
}

async fn finish(pending: Call, call: CallId, timeout: Duration, begun: Instant, finished: Sender<Finished>) {
    let verdict = match tokio::time::timeout(timeout, AssertUnwindSafe(pending).catch_unwind()).await {
        Ok(Ok(verdict)) => verdict.map_err(Failed::from),
        Ok(Err(panic)) => Err(panicked(panic.as_ref())),
        Err(_) => Err(Failed::again("timeout", format!("not done within handler.timeout = {timeout:?}"))),
    };
    metrics::handler_duration(begun.elapsed());
    // The engine is gone: the event is not done and will run again.
    let _ = finished.send(Finished { call, verdict });
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Failed {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    Failed::again("panic", format!("the handler panicked: {}", text.unwrap_or("no message")))
}
