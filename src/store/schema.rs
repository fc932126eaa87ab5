//! Everything that stands in a store, on one screen.
//!
//! | key | value |
//! | --- | --- |
//! | `e` + entity key | an entry: [`encode_entry`] |
//! | `l` + number, 8 bytes big endian | that the write of this number is in it: `links.rs` |
//! | `m` + `identity` | whose store this is: [`Identity`] |
//! | `m` + `checkpoint` | up to where it holds the changelog: [`Checkpoint`] |
//! | `m` + `bookkeeping` | the partition's `tidegate.v1.Bookkeeping` as it stands in the changelog |
//! | `r` + stamp + entity key | nothing: here is a REMOVE marker, or was one (`markers.rs`) |
//!
//! Every value but the last two begins with [`VERSION`]; a store of another version is dropped and restored.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::{BorrowDecode, Decode, Encode};
use bytes::Bytes;

use crate::entry::Entry;
use crate::event::Action;
use crate::stamp::Stamp;

/// The format of everything in a store.
pub const VERSION: u8 = 3;

/// `m` + `identity`
pub const IDENTITY: &[u8] = b"midentity";
/// `m` + `checkpoint`
pub const CHECKPOINT: &[u8] = b"mcheckpoint";
/// `m` + `bookkeeping`
pub const BOOKKEEPING: &[u8] = b"mbookkeeping";
/// The prefix of entity keys.
pub const ENTRY: u8 = b'e';
/// The prefix of links.
pub const LINK: u8 = b'l';
/// The prefix of the rows of markers.
pub const MARKER: u8 = b'r';

/// No value of ours is larger; what claims to be is corrupt.
const LIMIT: usize = 16 << 20;

const CODEC: Configuration<LittleEndian, Varint, Limit<LIMIT>> = bincode::config::standard().with_limit::<LIMIT>();

/// Whose store it is.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Identity {
    /// `application.id`
    pub application: String,
    /// The partition.
    pub partition: i32,
    /// The id of the changelog topic, which another topic of the same name does not have.
    pub changelog_id: String,
}

/// Up to where the store holds the changelog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Checkpoint {
    /// Every committed change below this offset is in the store.
    pub position: i64,
    /// When the store was last at the changelog's end, in milliseconds since 1970.
    pub at_end_ms: i64,
}

#[derive(Encode, BorrowDecode)]
struct StoredEntry<'a> {
    stamp: &'a [u8],
    removed: bool,
    value: Option<&'a [u8]>,
    origin: &'a [u8],
}

/// The key of an entry.
pub fn entry_key(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(ENTRY);
    out.extend_from_slice(key);
    out
}

/// Writes an entry.
pub fn encode_entry(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::new();
    encode_entry_into(entry, &mut out);
    out
}

/// Appends an entry.
pub fn encode_entry_into(entry: &Entry, out: &mut Vec<u8>) {
    let mut stamp = Vec::new();
    entry.stamp.encode(&mut stamp);
    let removed = entry.action == Action::Remove;
    encode_into(&StoredEntry { stamp: &stamp, removed, value: entry.value.as_deref(), origin: &entry.origin }, out);
}

/// The stamp of an encoded entry, as it compares; `None` = corrupt.
pub fn stamp_of(bytes: &[u8]) -> Option<&[u8]> {
    decode_borrowed(bytes).map(|stored| stored.stamp)
}

/// The row that finds the encoded entry of a key; `None` where it is no marker.
pub fn marker_row(key: &[u8], entry: &[u8]) -> Option<Vec<u8>> {
    let stored = decode_borrowed(entry).filter(|stored| stored.removed)?;
    let mut row = Vec::with_capacity(1 + stored.stamp.len() + key.len());
    row.push(MARKER);
    row.extend_from_slice(stored.stamp);
    row.extend_from_slice(key);
    Some(row)
}

/// The entity key in the row of a marker; `None` = corrupt.
pub fn key_of_row(row: &[u8]) -> Option<&[u8]> {
    let depth = *row.get(1 + 12)?;
    row.get(1 + 13 + 4 * usize::from(depth)..)
}

/// What lies behind the rows of all markers at or below a horizon.
pub fn behind_markers(horizon: u64) -> Vec<u8> {
    let Some(next) = horizon.checked_add(1) else { return vec![MARKER + 1] };
    [&[MARKER][..], &next.to_be_bytes()].concat()
}

/// Reads an entry; `None` = corrupt.
pub fn decode_entry(bytes: &[u8]) -> Option<Entry> {
    let stored: StoredEntry = decode_borrowed(bytes)?;
    Some(Entry {
        stamp: Stamp::decode(stored.stamp)?,
        action: if stored.removed { Action::Remove } else { Action::Add },
        value: stored.value.map(Bytes::copy_from_slice),
        origin: Bytes::copy_from_slice(stored.origin),
    })
}

/// Writes a value with its version.
pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    encode_into(value, &mut out);
    out
}

fn encode_into<T: Encode>(value: &T, out: &mut Vec<u8>) {
    out.push(VERSION);
    bincode::encode_into_std_write(value, out, CODEC).expect("writing to memory, within the limit of a record");
}

/// Reads a value of this version; `None` = corrupt or of another version.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Option<T> {
    let (&VERSION, rest) = bytes.split_first()? else { return None };
    let (value, length) = bincode::decode_from_slice(rest, CODEC).ok()?;
    (length == rest.len()).then_some(value)
}

fn decode_borrowed<'a>(bytes: &'a [u8]) -> Option<StoredEntry<'a>> {
    let (&VERSION, rest) = bytes.split_first()? else { return None };
    let (value, length) = bincode::borrow_decode_from_slice(rest, CODEC).ok()?;
    (length == rest.len()).then_some(value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_entry_is_read_back(sequence: u64, path in prop::collection::vec(any::<u32>(), 0..6), removed: bool,
                                 value in prop::option::of(prop::collection::vec(any::<u8>(), 0..50))) {
            let entry = Entry {
                stamp: Stamp { sequence, generation: 3, path: path.into() },
                action: if removed { Action::Remove } else { Action::Add },
                value: value.map(Bytes::from),
                origin: Bytes::from_static(b"origin"),
            };
            prop_assert_eq!(decode_entry(&encode_entry(&entry)), Some(entry));
        }

        #[test]
        fn garbage_is_no_entry_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode_entry(&bytes);
            let _ = decode::<Checkpoint>(&bytes);
            let _ = decode::<Identity>(&bytes);
        }
    }
}
