//! A run: what was said of keys, one thing after the other, sorted by key on the way out.
//!
//! In memory and in a file an item is: what is said (1 byte), the lengths of key and value (4 bytes each, little
//! endian), the key as it stands in the store, the value.

use std::io;

use super::super::schema;

const HEADER: usize = 9;

/// What an item needs in memory beside its bytes, when it is sorted.
const SLOT: usize = size_of::<(u64, u32)>();

/// What is said of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It holds the value, unless it held a greater stamp.
    Put,
    /// It holds nothing.
    Deleted,
    /// It held nothing, then the value: what was before does not count.
    PutAnew,
}

/// What is said of one key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'a> {
    pub(super) said: Said,
    /// As it stands in the store.
    pub(super) key: &'a [u8],
    /// As it stands in the store; empty when deleted.
    pub(super) value: &'a [u8],
}

impl<'a> Item<'a> {
    /// The item that `bytes` begin with; `None` where they do not hold all of it.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Item<'a>> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
        let [said, k0, k1, k2, k3, v0, v1, v2, v3] = *header;
        let (key, value) = (u32::from_le_bytes([k0, k1, k2, k3]), u32::from_le_bytes([v0, v1, v2, v3]));
        let (key, rest) = rest.split_at_checked(key as usize)?;
        let value = rest.get(..value as usize)?;
        let said = match said {
            0 => Said::Put,
            1 => Said::Deleted,
            _ => Said::PutAnew,
        };
        Some(Item { said, key, value })
    }

    /// Its bytes.
    pub(super) fn len(&self) -> usize {
        HEADER + self.key.len() + self.value.len()
    }

    pub(super) fn write(&self, out: &mut impl io::Write) -> io::Result<()> {
        out.write_all(&header(self.said, self.key.len(), self.value.len()))?;
        out.write_all(self.key)?;
        out.write_all(self.value)
    }

    /// What is said of the key by this and then by `later` (B3).
    pub(super) fn and_then(self, later: Item<'a>) -> Item<'a> {
        if later.said != Said::Put {
            return later;
        }
        let said = if self.said == Said::Put { Said::Put } else { Said::PutAnew };
        let holds_more = self.said != Said::Deleted && schema::stamp_of(self.value) > schema::stamp_of(later.value);
        let counts = if holds_more { self } else { later };
        Item { said, ..counts }
    }
}

fn header(said: Said, key: usize, value: usize) -> [u8; HEADER] {
    let length = |length: usize| u32::try_from(length).expect("a record is below 4 GiB").to_le_bytes();
    let mut header = [said as u8; HEADER];
    header[1..5].copy_from_slice(&length(key));
    header[5..].copy_from_slice(&length(value));
    header
}

/// Items in the order in which they came.
#[derive(Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    items: usize,
}

impl Buffer {
    /// One more, with the parts of its key as it stands in the store; `value` appends the value.
    pub(super) fn push(&mut self, said: Said, key: &[&[u8]], value: impl FnOnce(&mut Vec<u8>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; HEADER]);
        key.iter().for_each(|part| self.bytes.extend_from_slice(part));
        let behind_key = self.bytes.len();
        value(&mut self.bytes);
        let header = header(said, behind_key - start - HEADER, self.bytes.len() - behind_key);
        self.bytes[start..start + HEADER].copy_from_slice(&header);
        self.items += 1;
    }

    /// The memory that it needs, in bytes, while it is sorted.
    pub(super) fn memory(&self) -> usize {
        self.bytes.len() + self.items * SLOT
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Forgets the items, keeps the memory.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.items = 0;
    }

    fn iter(&self) -> impl Iterator<Item = (usize, Item<'_>)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let item = Item::read(&self.bytes[at..])?;
            at += item.len();
            Some((at - item.len(), item))
        })
    }

    fn at(&self, start: u32) -> Item<'_> {
        Item::read(&self.bytes[start as usize..]).expect("every start is that of an item")
    }

    /// What is said of each key, in the order of keys.
    pub(super) fn sorted(&self, take: &mut impl FnMut(&Item<'_>) -> io::Result<()>) -> io::Result<()> {
        // Most comparisons are decided by the eight bytes behind what all keys begin with, without a look at the keys.
        let first = self.iter().next().map_or(&[][..], |(_, item)| item.key);
        let shared = self.iter().fold(first.len(), |shared, (_, item)| {
            first[..shared].iter().zip(item.key).take_while(|(a, b)| a == b).count()
        });
        let mut slots: Vec<(u64, u32)> = Vec::with_capacity(self.items);
        slots.extend(self.iter().map(|(start, item)| {
            let start = u32::try_from(start).expect("the budget is below 4 GiB");
            (eight(&item.key[shared..]), start)
        }));
        slots.sort_unstable_by(|a, b| {
            let by_key = || self.at(a.1).key[shared..].cmp(&self.at(b.1).key[shared..]);
            a.0.cmp(&b.0).then_with(by_key).then(a.1.cmp(&b.1))
        });
        let mut held: Option<Item<'_>> = None;
        for (_, start) in slots {
            let item = self.at(start);
            held = match held {
                Some(earlier) if earlier.key == item.key => Some(earlier.and_then(item)),
                Some(whole) => {
                    take(&whole)?;
                    Some(item)
                }
                None => Some(item),
            };
        }
        held.map_or(Ok(()), |whole| take(&whole))
    }
}

/// The first eight bytes, as a number that compares as they do.
fn eight(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    let length = bytes.len().min(8);
    first[..length].copy_from_slice(&bytes[..length]);
    u64::from_be_bytes(first)
}
