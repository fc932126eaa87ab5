//! The changelog is the durability of the state; what else stands in it is one bookkeeping snapshot
//! per partition under the empty key, which no entity can have (protocol P9).

use std::time::Duration;

use bytes::Bytes;

use crate::entry::Entry;
use crate::event::{DecodeError, check_format};
use crate::log::{Headers, Isolation, Log, LogError, NewRecord, TopicPartition};
use crate::topics::KIND;

/// How long a read waits for records before it looks again.
const POLL: Duration = Duration::from_millis(100);

/// What a record of the changelog says.
#[derive(Debug)]
pub enum Change {
    /// The key holds this.
    Put(Bytes, Entry),
    /// The key holds nothing any more.
    Delete(Bytes),
    /// The partition's bookkeeping, encoded.
    Bookkeeping(Bytes),
}

/// Why a changelog cannot be read. Each kind says what the caller does.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// What the log said.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A record is no entry: the changelog is written by Tidegate alone, so this is fatal.
    #[error(
        "{of} at offset {offset}: not an entry: {source}; the topic was written by something else than this application"
    )]
    Record {
        /// The partition.
        of: TopicPartition,
        /// The record's offset.
        offset: i64,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// A record of a newer Tidegate: nothing is guessed from it.
    #[error("{of} at offset {offset}: {source}")]
    Newer {
        /// The partition.
        of: TopicPartition,
        /// The record's offset.
        offset: i64,
        /// Which format.
        source: DecodeError,
    },
}

/// The record of an entry.
pub fn entry_record(key: &Bytes, value: Bytes) -> NewRecord {
    NewRecord { key: Some(key.clone()), value: Some(value), headers: Headers::new() }
}

/// The record that says that a key holds nothing any more.
pub fn tombstone_record(key: &Bytes) -> NewRecord {
    NewRecord { key: Some(key.clone()), value: None, headers: Headers::new() }
}

/// The record of a bookkeeping snapshot.
pub fn bookkeeping_record(value: Bytes) -> NewRecord {
    let headers = vec![(KIND.to_owned(), Bytes::from_static(b"bookkeeping"))];
    NewRecord { key: Some(Bytes::new()), value: Some(value), headers }
}

/// Reads the committed changes of a partition from `position` until the reader has passed `end`, and
/// returns the position reached. `take` gets them in order, in batches, with the position behind each.
///
/// # Errors
/// [`LogError::OutOfRange`] when the changelog no longer holds `position`; what `take` says.
pub fn read<E: From<ReadError>>(
    log: &dyn Log,
    of: &TopicPartition,
    position: i64,
    end: i64,
    mut take: impl FnMut(Vec<Change>, i64) -> Result<(), E>,
) -> Result<i64, E> {
    let failed = |error: LogError| E::from(ReadError::Log(error));
    if position >= end {
        return Ok(position);
    }
    let mut reader = log.reader(of, position, Isolation::ReadCommitted, false).map_err(failed)?;
    while reader.position() < end {
        let records = reader.next(POLL).map_err(failed)?;
        let mut changes = Vec::with_capacity(records.len());
        for record in records {
            let offset = record.offset;
            let refused = |source| {
                let of = of.clone();
                E::from(match source {
                    DecodeError::Newer(_) => ReadError::Newer { of, offset, source },
                    DecodeError::Malformed(_) => ReadError::Record { of, offset, source },
                })
            };
            changes.push(change(record.key, record.value).map_err(refused)?);
        }
        take(changes, reader.position())?;
    }
    Ok(reader.position())
}

fn change(key: Option<Bytes>, value: Option<Bytes>) -> Result<Change, DecodeError> {
    let key = key.ok_or_else(|| DecodeError::Malformed("no key".into()))?;
    match value {
        Some(value) if key.is_empty() => check_format(value.clone()).map(|()| Change::Bookkeeping(value)),
        Some(value) => Ok(Change::Put(key, Entry::decode(value)?)),
        None => Ok(Change::Delete(key)),
    }
}
