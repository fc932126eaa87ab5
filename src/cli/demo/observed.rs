//! A handler that is watched: what ran, what came late, and what a consumer that lets the last write
//! win would have made of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::broadcast;

use crate::clock;
use crate::event::{Action, Event};
use crate::handler::{Context, DynHandler, Failure, Handler, Outcome};
use crate::stamp::Stamp;

/// One call of the handler, when it ended.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    pub key: Bytes,
    pub action: Action,
    pub stamp: Stamp,
    pub superseded: bool,
}

/// How much ran.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub ended: u64,
    pub spawned: u64,
    pub late: u64,
}

/// What the last write left behind, and the greatest stamp.
struct Naive {
    last: Stamp,
    greatest: Stamp,
}

/// Passes events on to another handler and watches.
pub struct Observed {
    inner: Arc<dyn DynHandler>,
    ended: AtomicU64,
    spawned: AtomicU64,
    late: AtomicU64,
    naive: Mutex<HashMap<Bytes, Naive>>,
    seen: broadcast::Sender<Seen>,
}

impl Observed {
    pub fn new(inner: Arc<dyn DynHandler>) -> Observed {
        Observed {
            inner,
            ended: AtomicU64::new(0),
            spawned: AtomicU64::new(0),
            late: AtomicU64::new(0),
            naive: Mutex::new(HashMap::new()),
            seen: broadcast::channel(64).0,
        }
    }

    pub fn counts(&self) -> Counts {
        Counts {
            ended: self.ended.load(Ordering::Acquire),
            spawned: self.spawned.load(Ordering::Acquire),
            late: self.late.load(Ordering::Acquire),
        }
    }

    /// Every call from now on.
    pub fn watch(&self) -> broadcast::Receiver<Seen> {
        self.seen.subscribe()
    }

    /// Keys that would hold another event than the last one in the serial order, if the last write won.
    pub fn wrong_keys(&self) -> usize {
        self.naive().values().filter(|naive| naive.last != naive.greatest).count()
    }

    fn naive(&self) -> MutexGuard<'_, HashMap<Bytes, Naive>> {
        self.naive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, event: &Event, context: &Context, children: usize) {
        let stamp = &context.stamp;
        self.naive()
            .entry(event.key.clone())
            .and_modify(|naive| {
                naive.last = stamp.clone();
                naive.greatest = stamp.max(&naive.greatest).clone();
            })
            .or_insert_with(|| Naive { last: stamp.clone(), greatest: stamp.clone() });
        let seen = Seen {
            at: clock::now(),
            key: event.key.clone(),
            action: event.action,
            stamp: stamp.clone(),
            superseded: context.superseded,
        };
        // Nobody watches most of the time.
        let _ = self.seen.send(seen);
        self.late.fetch_add(u64::from(context.superseded), Ordering::AcqRel);
        self.spawned.fetch_add(children as u64, Ordering::AcqRel);
        self.ended.fetch_add(1, Ordering::AcqRel);
    }
}

impl Handler for Observed {
    async fn handle(&self, event: Event, context: Context) -> Result<Outcome, Failure> {
        let outcome = Arc::clone(&self.inner).call(event.clone(), context.clone()).await?;
        self.note(&event, &context, outcome.children.len());
        Ok(outcome)
    }
}
