//! Step 6 of 8: execution turns an outcome into the key's entry and its children.
//!
//! X1: whatever becomes of an event, exactly one `consumed` count and one completed record go with it.
//! X2: an event that fails leaves no trace but its dead letter: no entry, no children.
//! X3: whether it fails does not depend on its being superseded, which only timing decides.

use crate::cause::Cause;
use crate::config::{self, Config};
use crate::counts::Count;
use crate::dead_letter::Reason;
use crate::entry::Entry;
use crate::event::{Action, Event, MAX_KEY_BYTES, StampedEvent};
use crate::handler::Outcome;
use crate::log::outbox::{MAX_VALUE, Outbox};
use crate::output;
use crate::planted::{self, Bug};
use crate::proto::Origin;

use bytes::Bytes;
use prost::Message;

/// What an event left behind.
#[derive(Debug, PartialEq, Eq)]
pub enum Executed {
    /// The entry to write at the event's key.
    Applied(Entry),
    /// Only children.
    Expanded,
    /// A dead letter.
    Refused,
}

/// Carries out an outcome: puts the children into `outbox` and gives the entry, if any.
pub fn succeed(
    event: &StampedEvent,
    superseded: bool,
    outcome: Outcome,
    attempts: u32,
    config: &Config,
    outbox: &mut Outbox,
) -> Executed {
    let entry = entry(event, outcome.value);
    let limits = &config.cascade;
    let fits = fits(&event.event.key, &entry, &config.output);
    let children = match fits.and_then(|()| children(event, outcome.children, limits, outbox)) {
        Ok(children) => children,
        Err(reason) => return refuse(event, attempts, &reason, outbox),
    };
    let mut spawned = 0;
    for (child, value) in children {
        match value {
            Some(value) => {
                spawned += 1;
                outbox.route(child.event.key, value);
            }
            // The endless cascade ends here: the child becomes a dead letter of its own.
            None => {
                let message = format!("deeper than cascade.max_depth = {}", limits.max_depth);
                outbox.refuse_event(&child, 0, &Reason::new(Cause::TooDeep, message), &origin(&child));
            }
        }
    }
    if spawned > 0 && !planted::is(Bug::ChildrenUncounted) {
        outbox.children += spawned as u64;
        outbox.counts.push(Count::spawned(&event.stamp, event.retry, spawned));
    }
    outbox.counts.push(Count::consumed(&event.stamp, event.retry));
    if superseded { Executed::Expanded } else { Executed::Applied(entry) }
}

/// The event cannot be handled: a dead letter, and done (X2).
pub fn refuse(event: &StampedEvent, attempts: u32, reason: &Reason, outbox: &mut Outbox) -> Executed {
    outbox.refuse_event(event, attempts, reason, &origin(event));
    outbox.counts.push(Count::consumed(&event.stamp, event.retry));
    Executed::Refused
}

/// The event is the one that its key already holds, or one that is dropped: done without a trace.
pub fn skip(event: &StampedEvent, outbox: &mut Outbox) {
    outbox.counts.push(Count::consumed(&event.stamp, event.retry));
}

fn entry(event: &StampedEvent, value: Option<Bytes>) -> Entry {
    let action = event.event.action;
    let value = if action == Action::Remove { None } else { value };
    Entry { stamp: event.stamp.clone(), action, value, origin: event.origin.clone() }
}

/// Whether the entry fits into a record of the changelog, and of the output topic where there is one.
fn fits(key: &Bytes, entry: &Entry, output: &config::Output) -> Result<(), Reason> {
    let size = entry.weight();
    if size > MAX_VALUE {
        return Err(Reason::new(Cause::TooLarge, format!("the value takes {size} bytes; at most {MAX_VALUE} fit")));
    }
    if output.topic.is_empty() {
        return Ok(());
    }
    let Some(size) = output::too_long(output.format, key, entry) else { return Ok(()) };
    let most = output::MAX_OUTPUT;
    let message = format!("the value takes {size} bytes on the output topic; at most {most} fit");
    Err(Reason::new(Cause::TooLarge, message))
}

/// The children with their encoded values; `None` for one that is too deep. All are checked before
/// the first is put anywhere.
fn children(
    parent: &StampedEvent,
    children: Vec<Event>,
    limits: &config::Cascade,
    outbox: &mut Outbox,
) -> Result<Vec<(StampedEvent, Option<Bytes>)>, Reason> {
    if children.len() > limits.max_children {
        let message = format!("{} children; cascade.max_children = {}", children.len(), limits.max_children);
        return Err(Reason::new(Cause::TooManyChildren, message));
    }
    let too_deep = parent.stamp.depth() + 1 > limits.max_depth;
    let mut stamped = Vec::with_capacity(children.len());
    for (index, event) in children.into_iter().enumerate() {
        if event.key.is_empty() || event.key.len() > MAX_KEY_BYTES {
            let message =
                format!("child {index} has a key of {} bytes; 1 to {MAX_KEY_BYTES} are possible", event.key.len());
            return Err(Reason::new(Cause::BadChild, message));
        }
        let stamp = parent.stamp.child(index as u32);
        let retry = if planted::is(Bug::RetryUnnumbered) { 0 } else { parent.retry };
        let child = StampedEvent { event, stamp, origin: parent.origin.clone(), retry };
        if child.weight() > MAX_VALUE {
            let message = format!("child {index} takes {} bytes; at most {MAX_VALUE} fit", child.weight());
            return Err(Reason::new(Cause::TooLarge, message));
        }
        let value = (!too_deep).then(|| outbox.encode(&child));
        stamped.push((child, value));
    }
    Ok(stamped)
}

fn origin(event: &StampedEvent) -> Origin {
    Origin::decode(event.origin.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OutputFormat;

    /// X3: a value that does not fit makes a dead letter of the event, early or late.
    #[test]
    fn a_value_that_does_not_fit_fails_the_event_also_when_it_is_superseded() {
        let child = Event { key: Bytes::from_static(b"b"), action: Action::Add, payload: None };
        let event = Event { key: Bytes::from_static(b"a"), ..child.clone() };
        let event = StampedEvent { event, stamp: "1".parse().unwrap(), origin: Bytes::new(), retry: 0 };
        for superseded in [false, true] {
            let mut outbox = Outbox::new(1);
            let outcome = Outcome { value: Some(vec![0; MAX_VALUE].into()), children: vec![child.clone()] };
            let executed = succeed(&event, superseded, outcome, 1, &Config::default(), &mut outbox);
            assert_eq!((executed, outbox.children), (Executed::Refused, 0), "superseded: {superseded}");
            assert_eq!((&outbox.causes[..], outbox.counts.len()), (&[Cause::TooLarge][..], 1));
        }
    }

    /// X3, Y2: the value fits into the changelog; as JSON it is six times as long.
    #[test]
    fn a_value_that_does_not_fit_the_output_topic_fails_the_event_also_when_it_is_superseded() {
        let event = Event { key: Bytes::from_static(b"a"), action: Action::Add, payload: None };
        let event = StampedEvent { event, stamp: "1".parse().unwrap(), origin: Bytes::new(), retry: 0 };
        let outcome = || Outcome { value: Some(vec![1; 200_000].into()), children: Vec::new() };
        for (topic, format, fails) in
            [("", OutputFormat::Json, false), ("out", OutputFormat::Protobuf, false), ("out", OutputFormat::Json, true)]
        {
            for superseded in [false, true] {
                let config = Config { output: config::Output { topic: topic.into(), format }, ..Config::default() };
                let mut outbox = Outbox::new(1);
                let executed = succeed(&event, superseded, outcome(), 1, &config, &mut outbox);
                assert_eq!(executed == Executed::Refused, fails, "{topic:?} {format:?}, superseded: {superseded}");
                let causes: &[Cause] = if fails { &[Cause::TooLarge] } else { &[] };
                assert_eq!(outbox.causes, causes);
            }
        }
    }
}
