//! An entry is what a key holds: the stamp, action and value of the last event it received
//! (`tidegate.v1.Entry` in the changelog).

use bytes::{Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint};

use crate::event::{Action, DecodeError, Field, Fields, check_version, put_bytes, put_stamp, read_stamp, unless_newer};
use crate::stamp::Stamp;

/// The state of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The greatest stamp that the key has received.
    pub stamp: Stamp,
    /// [`Action::Remove`] is a state, not an absence.
    pub action: Action,
    /// The handler's value; `None` for a removed key, and where the handler gave none.
    pub value: Option<Bytes>,
    /// The root's [`crate::proto::Origin`], encoded.
    pub origin: Bytes,
}

impl Entry {
    /// Writes the changelog record's value; its key is the entity key.
    pub fn encode(&self, out: &mut BytesMut) {
        put_stamp(out, 1, &self.stamp);
        encode_key(2, WireType::Varint, out);
        encode_varint(self.action.number(), out);
        if let Some(value) = &self.value {
            put_bytes(out, 3, value);
        }
        put_bytes(out, 4, &self.origin);
    }

    /// Reads a changelog record's value.
    ///
    /// # Errors
    /// [`DecodeError`], which a restore treats as fatal: the changelog is written by Tidegate alone.
    pub fn decode(value: Bytes) -> Result<Entry, DecodeError> {
        Entry::read(value.clone()).map_err(|error| unless_newer(error, value))
    }

    fn read(value: Bytes) -> Result<Entry, DecodeError> {
        let (mut stamp, mut action, mut content, mut origin) = (None, None, None, Bytes::new());
        let mut fields = Fields::new(value);
        while let Some((tag, field)) = fields.next()? {
            match (tag, field) {
                (1, Field::Bytes(bytes)) => stamp = Some(read_stamp(bytes)?),
                (2, Field::Varint(number)) => action = Action::from_number(number),
                (3, Field::Bytes(bytes)) => content = Some(bytes),
                (4, Field::Bytes(bytes)) => origin = bytes,
                (15, Field::Varint(number)) => check_version(number)?,
                _ => {}
            }
        }
        let stamp = stamp.ok_or_else(|| DecodeError::Malformed("no stamp".into()))?;
        let action = action.ok_or_else(|| DecodeError::Malformed("no action".into()))?;
        Ok(Entry { stamp, action, value: content, origin })
    }

    /// What it takes in memory beside its key, in bytes, roughly.
    pub fn weight(&self) -> usize {
        self.value.as_ref().map_or(0, Bytes::len) + self.origin.len() + 160
    }
}
