//! The end of the demo: every key is compared with the serial reference.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Process;
use super::observed::Observed;
use super::story::Sent;
use crate::cli::error::CliError;
use crate::cli::screen::{Ink, Screen, grouped};
use crate::event::StampedEvent;
use crate::handler::builtin;
use crate::instance::view::ListQuery;
use crate::reference::{self, Held};
use crate::stamp::Stamp;

/// Runs the serial reference over what was sent, compares, and sums up.
pub async fn check(process: &Process, observed: &Observed, screen: &Screen, sent: Sent) -> Result<(), CliError> {
    screen.title("3  The check", "the same events again: one thread, one queue, one event after the other");
    let config = process.instance.config();
    let handler = builtin::from_config(&config.handler, true).map_err(CliError::failed)?;
    let primaries = sent.into_iter().map(|(sequence, event)| StampedEvent {
        event,
        stamp: Stamp::root(0, sequence),
        origin: Bytes::new(),
        retry: 0,
    });
    let attempts = config.handler.retry.attempts;
    let expected = reference::run(primaries, &config.cascade, |event| reference::call(&handler, event, attempts));
    let found = found(process).await?;
    let different: Vec<&Bytes> = expected
        .state
        .iter()
        .filter(|(key, held)| found.get(*key) != Some(*held))
        .map(|(key, _)| key)
        .chain(found.keys().filter(|key| !expected.state.contains_key(*key)))
        .collect();
    if let Some(key) = different.first() {
        let message = format!("{} keys differ, the first is {}", different.len(), String::from_utf8_lossy(key));
        screen.line(&format!("   {}", screen.ink(Ink::Bad, &message)));
        return Err(CliError::different(message).hint("this must not happen; please report it"));
    }
    let counts = observed.counts();
    let equal = screen.ink(Ink::Good, &format!("all {} keys are equal", grouped(found.len() as u64)));
    screen.line(&format!("   {equal} to those of the serial reference ({} events)", grouped(expected.events)));
    screen.line(&format!(
        "   {} events came late; where the last write wins, {} keys would be wrong",
        screen.ink(Ink::Late, &grouped(counts.late)),
        screen.ink(Ink::Bad, &observed.wrong_keys().to_string())
    ));
    screen.line(&format!(
        "\n   {}\n",
        screen.ink(Ink::Dim, "next: tidegate run, and tidegate send 123:ADD; tidegate get 123")
    ));
    Ok(())
}

async fn found(process: &Process) -> Result<BTreeMap<Bytes, Held>, CliError> {
    let mut found = BTreeMap::new();
    let mut query = ListQuery { limit: 1000, removed: true, ..ListQuery::default() };
    loop {
        let page = process.instance.list(query.clone()).await.map_err(CliError::failed)?;
        found.extend(
            page.entries.into_iter().map(|held| (held.key, (held.entry.stamp, held.entry.action, held.entry.value))),
        );
        if page.next.is_none() {
            return Ok(found);
        }
        query.after = page.next;
    }
}
