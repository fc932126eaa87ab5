//! The story of 123 and 234: a child that comes late, and what becomes of it.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::broadcast::Receiver;

use super::observed::{Observed, Seen};
use super::{PATIENCE, Process, drained};
use crate::cli::error::CliError;
use crate::cli::screen::{Ink, Screen};
use crate::clock;
use crate::entry::Entry;
use crate::event::{Action, Event};
use crate::instance::view::Lookup;
use crate::stamp::Stamp;

/// How long the first event's handler works, in milliseconds.
const WORK_MS: u64 = 1100;

/// When the second event is sent.
const LATER: Duration = Duration::from_millis(50);

/// Primary events with their sequences, in order.
pub type Sent = Vec<(u64, Event)>;

/// Tells the story; gives back what it sent.
pub async fn tell(process: &Process, observed: &Observed, screen: &Screen) -> Result<Sent, CliError> {
    let mut calls = observed.watch();
    let mut sent = Vec::new();
    screen.title("1  One late event", "the handler of 123 works for 1100 ms and then spawns 234:REMOVE");
    let began = clock::now();
    let script = format!(r#"{{"work_ms":{WORK_MS},"value":"first","spawn":[{{"key":"234","action":"REMOVE"}}]}}"#);
    send(process, &mut sent, "123", Some(script)).await?;
    screen.moment(began.elapsed(), "123:ADD", &format!("received as number {}; its handler starts", sent[0].0));

    tokio::time::sleep_until((began + LATER).into()).await;
    send(process, &mut sent, "234", Some(r#"{"value":"second"}"#.into())).await?;
    let (first, second) = (sent[0].0, sent[1].0);
    screen.moment(began.elapsed(), "234:ADD", &format!("received as number {second}; its handler is done at once"));
    call(&mut calls, &Stamp::root(0, second)).await?;
    let held = committed(process, "234").await?;
    screen.moment(began.elapsed(), "234", &format!("committed: {}", held_as(screen, &held)));

    let parent = call(&mut calls, &Stamp::root(0, first)).await?;
    let child = Stamp::root(0, first).child(0);
    screen.moment(
        parent.at.duration_since(began),
        "123:ADD",
        &format!("done; spawns 234:REMOVE with the stamp {child}"),
    );
    let late = call(&mut calls, &child).await?;
    let verdict = if late.superseded {
        screen.ink(Ink::Late, &format!("late: {child} is before {second}, where its parent was received: superseded"))
    } else {
        screen.ink(Ink::Bad, "applied")
    };
    let name = format!("{}:{}", String::from_utf8_lossy(&late.key), late.action.as_str());
    screen.moment(late.at.duration_since(began), &name, &verdict);

    drained(process, observed, sent.len() as u64).await?;
    let held = committed(process, "234").await?;
    screen.line("");
    screen.line(&format!("   in the end             234 = {}", held_as(screen, &held)));
    screen.line(&format!("   one thread, one queue  234 = {}", screen.ink(Ink::Good, "ADDED")));
    screen.line(&format!("   last write wins        234 = {}", screen.ink(Ink::Bad, "REMOVED")));
    if held.action != Action::Add || held.stamp != Stamp::root(0, second) {
        return Err(CliError::different("234 is not what one thread with one queue would have left behind"));
    }
    Ok(sent)
}

/// Sends `key`:ADD.
async fn send(process: &Process, sent: &mut Sent, key: &'static str, script: Option<String>) -> Result<(), CliError> {
    let event = Event { key: key.into(), action: Action::Add, payload: script.map(Bytes::from) };
    let offsets = process.instance.append(vec![event.clone()], Vec::new()).await;
    let offsets = offsets.map_err(|error| CliError::failed(format!("cannot append: {error}")))?;
    sent.extend(offsets.into_iter().map(|offset| (offset as u64, event.clone())));
    Ok(())
}

/// Waits for the handler's call for this stamp to end.
async fn call(calls: &mut Receiver<Seen>, stamp: &Stamp) -> Result<Seen, CliError> {
    let wanted = async {
        loop {
            match calls.recv().await {
                Ok(seen) if seen.stamp == *stamp => break Some(seen),
                Ok(_) => {}
                Err(_) => break None,
            }
        }
    };
    tokio::time::timeout(PATIENCE, wanted)
        .await
        .ok()
        .flatten()
        .ok_or_else(|| CliError::failed(format!("the event {stamp} was not processed within {} s", PATIENCE.as_secs())))
}

/// What the key holds, once it holds something.
async fn committed(process: &Process, key: &'static str) -> Result<Entry, CliError> {
    let deadline = clock::now() + PATIENCE;
    while clock::now() < deadline {
        let answer = process.instance.lookup(Bytes::from_static(key.as_bytes())).await;
        if let Lookup::Here { entry: Some(entry), .. } = answer {
            return Ok(entry);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(CliError::failed(format!("the key {key} was not committed within {} s", PATIENCE.as_secs())))
}

fn held_as(screen: &Screen, held: &Entry) -> String {
    let state = match held.action {
        Action::Add => screen.ink(Ink::Good, "ADDED"),
        Action::Remove => screen.ink(Ink::Bad, "REMOVED"),
    };
    format!("{state} (stamp {})", held.stamp)
}
