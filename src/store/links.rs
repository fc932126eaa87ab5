//! Whether a store holds every write that its last one follows on.
//!
//! RocksDB notices a damaged block, but not that a whole file with older writes is missing where newer ones are there: a
//! manifest that ends too early forgets the files that it listed last, and a write-ahead log that is gone, or that of
//! another store, leaves no trace. What is found then is no prefix of the changelog (R1).
//!
//! L1: each write leaves a numbered link. When a store is opened those from the first that is kept to the last have to
//!     be there, every one, each of this partition.
//! L2: links are forgotten only once what they stand for is in a file, except for the last of them: it ties what
//!     follows to that file.

use bincode::{Decode, Encode};
use rocksdb::{DB, Direction, IteratorMode, WriteBatch};

use super::schema;

/// So many links are kept before what they stand for is brought into a file.
const MANY: u64 = 64;

/// What a link says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
struct Link {
    /// The first link that was kept when this one was written.
    first: u64,
    /// Whose store it is.
    partition: i32,
}

/// The links of one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Links {
    partition: i32,
    first: u64,
    /// The number of the next one.
    next: u64,
}

impl Links {
    /// Those of a store that is empty.
    pub(super) fn new(partition: i32) -> Links {
        Links { partition, first: 0, next: 0 }
    }

    /// Those of a store that is there, or what is wrong with them (L1).
    pub(super) fn read(db: &DB, partition: i32) -> Result<Links, String> {
        let (mut links, mut last) = (Vec::new(), None);
        for item in db.iterator(IteratorMode::From(&[schema::LINK], Direction::Forward)) {
            let (key, value) = item.map_err(|error| error.to_string())?;
            let Some((&schema::LINK, number)) = key.split_first() else { break };
            let link = schema::decode::<Link>(&value).filter(|link| link.partition == partition);
            let (Ok(number), Some(link)) = (number.try_into(), link) else {
                return Err("it holds writes of another store".into());
            };
            links.push(u64::from_be_bytes(number));
            last = Some(link);
        }
        let (Some(Link { first, .. }), Some(end)) = (last, links.last()) else {
            return Err("it does not say which writes it holds".into());
        };
        let next = end + 1;
        if !links.iter().copied().eq(first..next) {
            return Err(format!("of the writes {first} to {end} that it should hold some are missing"));
        }
        Ok(Links { partition, first, next })
    }

    /// Whether what they stand for has to be brought into a file before the next write.
    pub(super) fn are_many(&self) -> bool {
        self.next - self.first > MANY
    }

    /// What they stand for is in a file: those before the last go with the next write (L2).
    pub(super) fn forget(&mut self, batch: &mut WriteBatch) {
        let last = self.next.saturating_sub(1);
        (self.first..last).for_each(|number| batch.delete(key(number)));
        self.first = last;
    }

    /// The link of the next write: its key and value. It counts once [`Links::written`] says so.
    pub(super) fn next(&self) -> (Vec<u8>, Vec<u8>) {
        (key(self.next), schema::encode(&Link { first: self.first, partition: self.partition }))
    }

    /// The store has taken the next write.
    pub(super) fn written(&mut self) {
        self.next += 1;
    }
}

fn key(number: u64) -> Vec<u8> {
    let mut key = vec![schema::LINK];
    key.extend_from_slice(&number.to_be_bytes());
    key
}
