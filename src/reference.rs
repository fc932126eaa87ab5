//! The serial reference: one thread with one queue. What it leaves behind is right by definition;
//! `verify` and the tests compare everything else with it.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Poll, Wake, Waker};
use std::thread::Thread;

use bytes::Bytes;

use crate::config::Cascade;
use crate::event::{Action, MAX_KEY_BYTES, StampedEvent};
use crate::handler::{Call, Context, DynHandler, Failure, Outcome};
use crate::stamp::Stamp;

/// What a key holds: the last event's stamp and action, and the handler's value (none for a REMOVE).
pub type Held = (Stamp, Action, Option<Bytes>);

/// What one thread with one queue leaves behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reference {
    /// Every key that an event has succeeded on.
    pub state: BTreeMap<Bytes, Held>,
    /// Events taken from the queue, failed ones included.
    pub events: u64,
    /// Events that failed: no state, no children.
    pub failed: u64,
    /// Children below `cascade.max_depth`, which are not events at all.
    pub too_deep: u64,
}

/// Takes `primaries`, which come in the order of their stamps, one by one with their whole cascades.
/// `handle` gives an event's outcome, `None` when it fails.
pub fn run(
    primaries: impl IntoIterator<Item = StampedEvent>,
    cascade: &Cascade,
    mut handle: impl FnMut(&StampedEvent) -> Option<Outcome>,
) -> Reference {
    let mut reference = Reference::default();
    let mut queue = VecDeque::new();
    for primary in primaries {
        queue.push_back(primary);
        while let Some(event) = queue.pop_front() {
            reference.events += 1;
            let Some(outcome) = handle(&event).filter(|outcome| is_allowed(outcome, cascade)) else {
                reference.failed += 1;
                continue;
            };
            let children = outcome.children.len();
            if event.stamp.depth() < cascade.max_depth {
                queue.extend((0u32..).zip(outcome.children).map(|(index, child)| StampedEvent {
                    stamp: event.stamp.child(index),
                    event: child,
                    origin: event.origin.clone(),
                    retry: event.retry,
                }));
            } else {
                reference.too_deep += children as u64;
            }
            let value = outcome.value.filter(|_| event.event.action == Action::Add);
            reference.state.insert(event.event.key, (event.stamp, event.event.action, value));
        }
    }
    reference
}

/// Too many children, or one with a key that cannot be, fail the event that spawned them.
fn is_allowed(outcome: &Outcome, cascade: &Cascade) -> bool {
    outcome.children.len() <= cascade.max_children
        && outcome.children.iter().all(|child| (1..=MAX_KEY_BYTES).contains(&child.key.len()))
}

/// Calls `handler` until it gives an outcome, at most `attempts` times; a rejection is final, a panic
/// is a try that failed. Blocks while the handler waits; backoff is not kept.
pub fn call(handler: &Arc<dyn DynHandler>, event: &StampedEvent, attempts: u32) -> Option<Outcome> {
    let application: Arc<str> = Arc::from("");
    for attempt in 1..=attempts {
        let context = Context {
            application: Arc::clone(&application),
            stamp: event.stamp.clone(),
            retry: event.retry,
            attempt,
            superseded: false,
            origin: event.origin.clone(),
        };
        let handled = catch_unwind(AssertUnwindSafe(|| finish(Arc::clone(handler).call(event.event.clone(), context))));
        match handled {
            Ok(Ok(outcome)) => return Some(outcome),
            Ok(Err(Failure::Reject { .. })) => return None,
            Ok(Err(Failure::Retry { .. })) | Err(_) => {}
        }
    }
    None
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a call to its end on this thread.
fn finish(call: Call) -> Result<Outcome, Failure> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut task = std::task::Context::from_waker(&waker);
    let mut call = pin!(call);
    loop {
        match call.as_mut().poll(&mut task) {
            Poll::Ready(result) => return result,
            Poll::Pending => std::thread::park(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::handler::Handler;

    fn event(key: &'static str, action: Action) -> Event {
        Event { key: Bytes::from_static(key.as_bytes()), action, payload: None }
    }

    fn primary(sequence: u64, key: &'static str, action: Action) -> StampedEvent {
        StampedEvent { event: event(key, action), stamp: Stamp::root(0, sequence), origin: Bytes::new(), retry: 0 }
    }

    fn outcome(value: &'static str, children: Vec<Event>) -> Option<Outcome> {
        Some(Outcome { value: Some(Bytes::from_static(value.as_bytes())), children })
    }

    #[test]
    fn the_late_child_belongs_before_the_later_primary() {
        let primaries = [primary(0, "123", Action::Add), primary(1, "234", Action::Add)];
        let reference = run(primaries, &Cascade::default(), |event| match &event.event.key[..] {
            b"123" => outcome("x", vec![self::event("234", Action::Remove)]),
            _ => outcome("y", vec![]),
        });
        assert_eq!(reference.events, 3);
        assert_eq!(reference.state[&b"234"[..]], (Stamp::root(0, 1), Action::Add, Some("y".into())));
    }

    #[test]
    fn a_cascade_is_walked_breadth_first_and_a_remove_has_no_value() {
        let mut seen = Vec::new();
        let reference = run([primary(7, "a", Action::Add)], &Cascade::default(), |event| {
            seen.push(event.stamp.to_string());
            match &event.event.key[..] {
                b"a" => outcome("", vec![self::event("b", Action::Add), self::event("c", Action::Add)]),
                b"b" => outcome("", vec![self::event("c", Action::Remove)]),
                _ => outcome("value", vec![]),
            }
        });
        assert_eq!(seen, ["7", "7/0", "7/1", "7/0/0"]);
        assert_eq!(reference.state[&b"c"[..]], ("7/0/0".parse().unwrap(), Action::Remove, None));
    }

    #[test]
    fn failures_leave_no_trace() {
        let cascade = Cascade { max_depth: 1, max_children: 2 };
        let primaries = (0..).zip(["fails", "many", "bad", "deep"]);
        let primaries = primaries.map(|(sequence, key)| primary(sequence, key, Action::Add));
        let reference = run(primaries, &cascade, |event| match &event.event.key[..] {
            b"fails" => None,
            b"many" => outcome("", vec![self::event("x", Action::Add); 3]),
            b"bad" => outcome("", vec![self::event("x", Action::Add), self::event("", Action::Add)]),
            b"deep" => outcome("", vec![self::event("deep", Action::Add)]),
            _ => outcome("", vec![]),
        });
        assert_eq!((reference.events, reference.failed, reference.too_deep), (5, 3, 1));
        assert_eq!(reference.state.len(), 1);
        assert_eq!(reference.state[&b"deep"[..]].0, "3/0".parse().unwrap());
    }

    struct Stubborn;

    impl Handler for Stubborn {
        async fn handle(&self, event: Event, context: Context) -> Result<Outcome, Failure> {
            let mut yielded = false;
            std::future::poll_fn(|task| {
                task.waker().wake_by_ref();
                if std::mem::replace(&mut yielded, true) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            match &event.key[..] {
                b"reject" => Err(Failure::Reject { code: "no".into(), message: String::new() }),
                _ if context.attempt < 3 => Err(Failure::Retry { reason: String::new(), after: None }),
                _ => Ok(Outcome::default()),
            }
        }
    }

    #[test]
    fn call_tries_up_to_the_limit_and_takes_a_rejection_as_final() {
        let handler: Arc<dyn DynHandler> = Arc::new(Stubborn);
        assert_eq!(call(&handler, &primary(0, "k", Action::Add), 3), Some(Outcome::default()));
        assert_eq!(call(&handler, &primary(0, "k", Action::Add), 2), None);
        assert_eq!(call(&handler, &primary(0, "reject", Action::Add), 9), None);
    }
}
