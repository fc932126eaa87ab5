//! Events, and how they stand on the repartition topic (`tidegate.v1.StampedEvent`).
//!
//! The codec is written by hand because every event passes it twice; it reads and writes exactly
//! what the generated type does, and takes fields that it does not know as protobuf prescribes.

use bytes::{Bytes, BytesMut};
use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint};

use crate::proto;
use crate::stamp::{Path, Stamp};

/// The longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// The newest `format_version` that this build reads and the one it writes.
pub const FORMAT_VERSION: u32 = 0;

/// What an event does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The key is there, with the handler's value.
    Add,
    /// The key is gone; its stamp stays as a marker.
    Remove,
}

impl Action {
    /// As in `ADD` / `REMOVE`.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Add => "ADD",
            Action::Remove => "REMOVE",
        }
    }

    /// `ADD` and `REMOVE` in upper or lower case.
    pub fn parse(text: &[u8]) -> Option<Action> {
        match text {
            b"ADD" | b"add" => Some(Action::Add),
            b"REMOVE" | b"remove" => Some(Action::Remove),
            _ => None,
        }
    }

    pub(crate) fn number(self) -> u64 {
        match self {
            Action::Add => proto::Action::Add as u64,
            Action::Remove => proto::Action::Remove as u64,
        }
    }

    pub(crate) fn from_number(number: u64) -> Option<Action> {
        match number {
            1 => Some(Action::Add),
            2 => Some(Action::Remove),
            _ => None,
        }
    }
}

/// An event as a user sends it and a handler sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The entity's key: 1 byte to 1 KiB.
    pub key: Bytes,
    /// What happens to the key.
    pub action: Action,
    /// `None` differs from empty.
    pub payload: Option<Bytes>,
}

/// An event with its place in the serial order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StampedEvent {
    /// The event itself.
    pub event: Event,
    /// Its place.
    pub stamp: Stamp,
    /// The root's [`proto::Origin`], encoded; passed on to children as it is.
    pub origin: Bytes,
    /// 0, or the number of the dead letter's retry that this cascade is.
    pub retry: u32,
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The bytes are not the message.
    #[error("{0}")]
    Malformed(String),
    /// Written by a newer Tidegate: stop instead of guessing.
    #[error("format version {0} is newer than this build reads ({FORMAT_VERSION}): use the version that wrote it")]
    Newer(u32),
}

impl From<prost::DecodeError> for DecodeError {
    fn from(error: prost::DecodeError) -> DecodeError {
        DecodeError::Malformed(error.to_string())
    }
}

/// The root's origin, encoded once per root.
pub fn encode_origin(topic: &str, partition: i32, offset: i64, timestamp_ms: i64) -> Bytes {
    proto::Origin { topic: topic.to_owned(), partition, offset, timestamp_ms }.encode_to_vec().into()
}

impl StampedEvent {
    /// Writes the record's value; its key is `self.event.key`.
    pub fn encode(&self, out: &mut BytesMut) {
        put_stamp(out, 1, &self.stamp);
        encode_key(2, WireType::Varint, out);
        encode_varint(self.event.action.number(), out);
        if let Some(payload) = &self.event.payload {
            put_bytes(out, 3, payload);
        }
        put_bytes(out, 4, &self.origin);
        if self.retry > 0 {
            encode_key(5, WireType::Varint, out);
            encode_varint(u64::from(self.retry), out);
        }
    }

    /// Reads a record of the repartition topic.
    ///
    /// # Errors
    /// [`DecodeError::Malformed`] also for a key that no event can have.
    pub fn decode(key: Bytes, value: Bytes) -> Result<StampedEvent, DecodeError> {
        StampedEvent::read(key, value.clone()).map_err(|error| unless_newer(error, value))
    }

    fn read(key: Bytes, value: Bytes) -> Result<StampedEvent, DecodeError> {
        if key.is_empty() || key.len() > MAX_KEY_BYTES {
            return Err(DecodeError::Malformed(format!("a key of {} bytes", key.len())));
        }
        let (mut stamp, mut action, mut payload, mut origin, mut retry) = (None, None, None, Bytes::new(), 0);
        let mut fields = Fields::new(value);
        while let Some((tag, field)) = fields.next()? {
            match (tag, field) {
                (1, Field::Bytes(bytes)) => stamp = Some(read_stamp(bytes)?),
                (2, Field::Varint(number)) => action = Action::from_number(number),
                (3, Field::Bytes(bytes)) => payload = Some(bytes),
                (4, Field::Bytes(bytes)) => origin = bytes,
                (5, Field::Varint(number)) => retry = number as u32,
                (15, Field::Varint(number)) => check_version(number)?,
                _ => {}
            }
        }
        let stamp = stamp.ok_or_else(|| DecodeError::Malformed("no stamp".into()))?;
        let action = action.ok_or_else(|| DecodeError::Malformed("no action".into()))?;
        Ok(StampedEvent { event: Event { key, action, payload }, stamp, origin, retry })
    }

    /// A copy that holds no part of the fetched batch that it came from, for one that waits long.
    pub fn detached(mut self) -> StampedEvent {
        self.event.key = Bytes::copy_from_slice(&self.event.key);
        self.event.payload = self.event.payload.map(|payload| Bytes::copy_from_slice(&payload));
        self.origin = Bytes::copy_from_slice(&self.origin);
        self
    }

    /// What it takes in memory while it is queued, in bytes, roughly.
    pub fn weight(&self) -> usize {
        self.event.key.len() + self.event.payload.as_ref().map_or(0, Bytes::len) + self.origin.len() + 200
    }
}

/// A protobuf field, without its tag.
pub(crate) enum Field {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 2.
    Bytes(Bytes),
    /// Wire types 1 and 5, which none of our messages use.
    Other,
}

/// Walks over the fields of a message; the slices share the message's memory.
pub(crate) struct Fields {
    rest: Bytes,
}

impl Fields {
    pub(crate) fn new(message: Bytes) -> Fields {
        Fields { rest: message }
    }

    pub(crate) fn next(&mut self) -> Result<Option<(u32, Field)>, DecodeError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (tag, wire_type) = decode_key(&mut self.rest)?;
        let field = match wire_type {
            WireType::Varint => Field::Varint(decode_varint(&mut self.rest)?),
            WireType::LengthDelimited => {
                let length = decode_varint(&mut self.rest)?;
                Field::Bytes(self.take(length)?)
            }
            WireType::SixtyFourBit => self.take(8).map(|_| Field::Other)?,
            WireType::ThirtyTwoBit => self.take(4).map(|_| Field::Other)?,
            WireType::StartGroup | WireType::EndGroup => {
                return Err(DecodeError::Malformed("a group".into()));
            }
        };
        Ok(Some((tag, field)))
    }

    fn take(&mut self, length: u64) -> Result<Bytes, DecodeError> {
        if length > self.rest.len() as u64 {
            return Err(DecodeError::Malformed("cut off".into()));
        }
        Ok(self.rest.split_to(length as usize))
    }
}

pub(crate) fn check_version(version: u64) -> Result<(), DecodeError> {
    if version <= u64::from(FORMAT_VERSION) {
        return Ok(());
    }
    Err(DecodeError::Newer(u32::try_from(version).unwrap_or(u32::MAX)))
}

/// Fails where a message of ours says that it is of a newer format; whether it can be read is not judged.
pub(crate) fn check_format(message: Bytes) -> Result<(), DecodeError> {
    let mut fields = Fields::new(message);
    while let Ok(Some((tag, field))) = fields.next() {
        if let (15, Field::Varint(version)) = (tag, field) {
            check_version(version)?;
        }
    }
    Ok(())
}

/// What cannot be read may be so because it is newer; that is what counts then.
pub(crate) fn unless_newer(error: DecodeError, message: Bytes) -> DecodeError {
    check_format(message).err().unwrap_or(error)
}

pub(crate) fn put_bytes(out: &mut BytesMut, tag: u32, bytes: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_stamp(out: &mut BytesMut, tag: u32, stamp: &Stamp) {
    let path: usize = stamp.path.iter().map(|element| encoded_len_varint(u64::from(*element))).sum();
    let mut length = 0;
    if stamp.sequence > 0 {
        length += 1 + encoded_len_varint(stamp.sequence);
    }
    if stamp.generation > 0 {
        length += 1 + encoded_len_varint(u64::from(stamp.generation));
    }
    if path > 0 {
        length += 1 + encoded_len_varint(path as u64) + path;
    }
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
    if stamp.sequence > 0 {
        encode_key(1, WireType::Varint, out);
        encode_varint(stamp.sequence, out);
    }
    if stamp.generation > 0 {
        encode_key(2, WireType::Varint, out);
        encode_varint(u64::from(stamp.generation), out);
    }
    if path > 0 {
        encode_key(3, WireType::LengthDelimited, out);
        encode_varint(path as u64, out);
        for element in &stamp.path {
            encode_varint(u64::from(*element), out);
        }
    }
}

pub(crate) fn read_stamp(message: Bytes) -> Result<Stamp, DecodeError> {
    let mut stamp = Stamp::default();
    let mut fields = Fields::new(message);
    while let Some((tag, field)) = fields.next()? {
        match (tag, field) {
            (1, Field::Varint(number)) => stamp.sequence = number,
            (2, Field::Varint(number)) => stamp.generation = number as u32,
            (3, Field::Varint(number)) => stamp.path.push(number as u32),
            (3, Field::Bytes(mut packed)) => {
                while !packed.is_empty() {
                    stamp.path.push(decode_varint(&mut packed)? as u32);
                }
            }
            _ => {}
        }
    }
    if stamp.path.len() > crate::stamp::MAX_DEPTH {
        return Err(DecodeError::Malformed(format!("a path of {} elements", stamp.path.len())));
    }
    Ok(stamp)
}

impl From<&Stamp> for proto::Stamp {
    fn from(stamp: &Stamp) -> proto::Stamp {
        proto::Stamp { sequence: stamp.sequence, generation: stamp.generation, path: stamp.path.to_vec() }
    }
}

impl From<proto::Stamp> for Stamp {
    fn from(stamp: proto::Stamp) -> Stamp {
        Stamp { sequence: stamp.sequence, generation: stamp.generation, path: Path::from_vec(stamp.path) }
    }
}
