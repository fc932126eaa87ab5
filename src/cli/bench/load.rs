//! The load: every event's key, payload and children follow from its number alone.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::event::{Action, Event};
use crate::handler::{Context, Failure, Handler, Outcome};
use crate::log::{Headers, NewRecord};
use crate::proto;

/// The bytes of a payload that mean something: its depth left and its seed.
pub(super) const HEADER: usize = 9;

/// The shape of the load.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) events: u64,
    pub(super) keys: u64,
    pub(super) fan_out: u32,
    pub(super) ttl: u8,
    pub(super) skew: f64,
    pub(super) payload: usize,
}

impl Load {
    /// Primaries and all that they lead to.
    pub(super) fn total(&self) -> u64 {
        let fan_out = u64::from(self.fan_out);
        let per_root =
            (1..=u32::from(self.ttl)).fold(1u64, |sum, depth| sum.saturating_add(fan_out.saturating_pow(depth)));
        self.events.saturating_mul(per_root)
    }

    /// The source record of primary event `n`.
    pub(super) fn primary(&self, n: u64) -> NewRecord {
        let mut event = self.event(self.ttl, mix(n));
        if self.skew == 0.0 {
            // All keys alike, to the event: the multiplier is a prime above any number of keys that fits here.
            event.key = key((n % self.keys).wrapping_mul(2_654_435_761) % self.keys);
        }
        let action = if event.action == Action::Add { proto::Action::Add } else { proto::Action::Remove };
        let value = proto::Event { key: event.key.clone(), action: action.into(), payload: event.payload };
        NewRecord { key: Some(event.key), value: Some(value.encode_to_vec().into()), headers: Headers::new() }
    }

    fn event(&self, ttl: u8, seed: u64) -> Event {
        let place = (seed >> 11) as f64 / (1u64 << 53) as f64;
        let number = (place.powf(1.0 + self.skew) * self.keys as f64) as u64;
        let mut payload = BytesMut::with_capacity(self.payload);
        payload.put_u8(ttl);
        payload.put_u64(seed);
        payload.resize(self.payload, b'.');
        let action = if seed.is_multiple_of(8) { Action::Remove } else { Action::Add };
        Event { key: key(number), action, payload: Some(payload.freeze()) }
    }

    fn children(&self, payload: &[u8]) -> Option<Vec<Event>> {
        let (&ttl, rest) = payload.split_first()?;
        let seed = u64::from_be_bytes(*rest.first_chunk::<8>()?);
        let spawn = if ttl == 0 { 0 } else { self.fan_out };
        Some((0..spawn).map(|n| self.event(ttl - 1, mix(seed ^ (u64::from(n) + 1)))).collect())
    }
}

/// The key of this number, from 0.
pub(super) fn key(number: u64) -> Bytes {
    Bytes::from(format!("key-{number:08}"))
}

/// splitmix64: one number leads to the next without a pattern.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Works, keeps the payload as the value, spawns.
#[derive(Debug)]
pub(super) struct LoadHandler {
    pub(super) load: Load,
    pub(super) work: Duration,
}

impl Handler for LoadHandler {
    async fn handle(&self, event: Event, _context: Context) -> Result<Outcome, Failure> {
        if !self.work.is_zero() {
            tokio::time::sleep(self.work).await;
        }
        let children = event.payload.as_ref().and_then(|payload| self.load.children(payload));
        let not_ours = || Failure::Reject { code: "not_of_the_load".into(), message: "no payload of this load".into() };
        Ok(Outcome { children: children.ok_or_else(not_ours)?, value: event.payload })
    }
}
