//! How a run of records stands in one entry: the codec of batches.
//!
//! All fixed numbers are little endian, `varint` is LEB128:
//!
//! ```text
//!     version 1 | kind 1 | transaction 8 | timestamp 8 | cleaned 8 | records 4 | last delta 4
//!     then per record:
//!     gap varint | key length + 1 varint | key | value length + 1 varint | value | headers' bytes varint | headers
//!     then per header: name length varint | name | value length varint | value
//! ```
//!
//! The base offset stands in the entry's key alone, so that a batch is encoded before its place is known.
//!
//! E2: a batch covers the offsets from its base to base + last delta, also when compaction has left
//!     holes in it or nothing at all; no two batches of a partition overlap.

use std::ops::Range;

use bytes::Bytes;

use crate::log::{Headers, NewRecord, Record};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 34;

/// A batch is closed once it has this many bytes; only a single record makes a bigger one.
pub(super) const MAX_BATCH_BYTES: usize = 1 << 20;
/// A batch is closed once it has this many records: a batch is the least that a member is handed at once.
pub(super) const MAX_BATCH_RECORDS: u32 = 4096;

/// What a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Records.
    Records,
    /// The end of a transaction: takes an offset, shows no record.
    Marker,
}

/// A batch's fixed part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub kind: Kind,
    /// 0: plain, outside of any transaction or committed together with it.
    pub transaction: u64,
    /// When it was appended, in milliseconds since 1970.
    pub timestamp_ms: i64,
    /// When compaction first passed over a tombstone in it; 0 before that.
    pub cleaned_ms: i64,
    pub records: u32,
    /// The last offset that it covers, less its base.
    pub last_delta: u32,
}

/// The bytes are not a batch of this version.
#[derive(Debug, thiserror::Error)]
#[error("not a batch that this version can read")]
pub(super) struct Malformed;

/// A record in a batch, as places in the batch's bytes.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its offset less the batch's base.
    pub delta: u32,
    pub key: Option<Range<usize>>,
    pub value: Option<Range<usize>>,
    pub headers: Range<usize>,
}

/// A batch being written.
pub(super) struct BatchWriter {
    bytes: Vec<u8>,
    header: Header,
    next_delta: u32,
}

impl BatchWriter {
    pub(super) fn new(transaction: u64, timestamp_ms: i64, capacity: usize) -> BatchWriter {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + capacity);
        bytes.resize(HEADER_BYTES, 0);
        let header =
            Header { kind: Kind::Records, transaction, timestamp_ms, cleaned_ms: 0, records: 0, last_delta: 0 };
        BatchWriter { bytes, header, next_delta: 0 }
    }

    /// A rewritten batch: it keeps everything of `header` but its records.
    pub(super) fn again(header: Header, cleaned_ms: i64) -> BatchWriter {
        let mut writer = BatchWriter::new(header.transaction, header.timestamp_ms, 0);
        writer.header = Header { records: 0, cleaned_ms, ..header };
        writer
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= MAX_BATCH_BYTES || self.header.records >= MAX_BATCH_RECORDS
    }

    /// Adds a record behind the last.
    pub(super) fn push(&mut self, record: &NewRecord) {
        self.entry(self.next_delta, record.key.as_deref(), record.value.as_deref());
        let length: usize = record.headers.iter().map(|(name, value)| header_bytes(name, value)).sum();
        put_varint(&mut self.bytes, length);
        for (name, value) in &record.headers {
            put_varint(&mut self.bytes, name.len());
            self.bytes.extend_from_slice(name.as_bytes());
            put_varint(&mut self.bytes, value.len());
            self.bytes.extend_from_slice(value);
        }
        self.header.last_delta = self.next_delta - 1;
    }

    /// Adds a record of the batch `from` at its own offset.
    pub(super) fn keep(&mut self, from: &[u8], entry: &Entry) {
        self.entry(entry.delta, entry.key.clone().map(|at| &from[at]), entry.value.clone().map(|at| &from[at]));
        put_varint(&mut self.bytes, entry.headers.len());
        self.bytes.extend_from_slice(&from[entry.headers.clone()]);
    }

    fn entry(&mut self, delta: u32, key: Option<&[u8]>, value: Option<&[u8]>) {
        put_varint(&mut self.bytes, (delta - self.next_delta) as usize);
        for part in [key, value] {
            put_varint(&mut self.bytes, part.map_or(0, |part| part.len() + 1));
            self.bytes.extend_from_slice(part.unwrap_or_default());
        }
        self.next_delta = delta + 1;
        self.header.records += 1;
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.header.write(&mut self.bytes);
        self.bytes
    }
}

/// The end of `transaction` in a partition.
pub(super) fn marker(transaction: u64, timestamp_ms: i64) -> Vec<u8> {
    let mut writer = BatchWriter::new(transaction, timestamp_ms, 0);
    writer.header.kind = Kind::Marker;
    writer.finish()
}

impl Header {
    pub(super) fn read(bytes: &[u8]) -> Result<Header, Malformed> {
        let bytes = bytes.first_chunk::<HEADER_BYTES>().ok_or(Malformed)?;
        let kind = match (bytes[0], bytes[1]) {
            (VERSION, 0) => Kind::Records,
            (VERSION, 1) => Kind::Marker,
            _ => return Err(Malformed),
        };
        Ok(Header {
            kind,
            transaction: u64::from_le_bytes(chunk(bytes, 2)),
            timestamp_ms: i64::from_le_bytes(chunk(bytes, 10)),
            cleaned_ms: i64::from_le_bytes(chunk(bytes, 18)),
            records: u32::from_le_bytes(chunk(bytes, 26)),
            last_delta: u32::from_le_bytes(chunk(bytes, 30)),
        })
    }

    fn write(&self, bytes: &mut [u8]) {
        bytes[0] = VERSION;
        bytes[1] = match self.kind {
            Kind::Records => 0,
            Kind::Marker => 1,
        };
        bytes[2..10].copy_from_slice(&self.transaction.to_le_bytes());
        bytes[10..18].copy_from_slice(&self.timestamp_ms.to_le_bytes());
        bytes[18..26].copy_from_slice(&self.cleaned_ms.to_le_bytes());
        bytes[26..30].copy_from_slice(&self.records.to_le_bytes());
        bytes[30..34].copy_from_slice(&self.last_delta.to_le_bytes());
    }
}

/// Walks over a batch's records without touching their contents.
pub(super) struct Entries<'a> {
    bytes: &'a [u8],
    at: usize,
    left: u32,
    next_delta: u32,
}

impl<'a> Entries<'a> {
    pub(super) fn new(bytes: &'a [u8], header: &Header) -> Entries<'a> {
        Entries { bytes, at: HEADER_BYTES, left: header.records, next_delta: 0 }
    }

    fn read(&mut self) -> Result<Entry, Malformed> {
        let gap = u32::try_from(self.varint()?).map_err(|_| Malformed)?;
        let delta = self.next_delta.checked_add(gap).ok_or(Malformed)?;
        let key = self.part()?;
        let value = self.part()?;
        let headers = self.varint()?;
        let headers = self.take(headers)?;
        self.next_delta = delta.checked_add(1).ok_or(Malformed)?;
        Ok(Entry { delta, key, value, headers })
    }

    fn part(&mut self) -> Result<Option<Range<usize>>, Malformed> {
        match self.varint()? {
            0 => Ok(None),
            length => self.take(length - 1).map(Some),
        }
    }

    fn take(&mut self, length: usize) -> Result<Range<usize>, Malformed> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len()).ok_or(Malformed)?;
        let range = self.at..end;
        self.at = end;
        Ok(range)
    }

    fn varint(&mut self) -> Result<usize, Malformed> {
        take_varint(self.bytes, &mut self.at)
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        Some(self.read())
    }
}

/// Appends the records from offset `from` on; their parts share `bytes`.
pub(super) fn decode(
    bytes: &Bytes,
    header: &Header,
    base: i64,
    from: i64,
    with_headers: bool,
    records: &mut Vec<Record>,
) -> Result<(), Malformed> {
    records.reserve((header.records as usize).min(bytes.len()));
    for entry in Entries::new(bytes, header) {
        let entry = entry?;
        let offset = base + i64::from(entry.delta);
        if offset < from {
            continue;
        }
        let headers = match with_headers && !entry.headers.is_empty() {
            true => decode_headers(bytes, entry.headers)?,
            false => Headers::new(),
        };
        let (key, value) = (entry.key.map(|at| bytes.slice(at)), entry.value.map(|at| bytes.slice(at)));
        records.push(Record { offset, timestamp_ms: header.timestamp_ms, key, value, headers });
    }
    Ok(())
}

fn decode_headers(bytes: &Bytes, block: Range<usize>) -> Result<Headers, Malformed> {
    let mut headers = Headers::new();
    let mut at = block.start;
    while at < block.end {
        let name = take_part(bytes, &mut at)?;
        let name = std::str::from_utf8(&bytes[name]).map_err(|_| Malformed)?.to_owned();
        headers.push((name, bytes.slice(take_part(bytes, &mut at)?)));
    }
    Ok(headers)
}

fn take_part(bytes: &[u8], at: &mut usize) -> Result<Range<usize>, Malformed> {
    let length = take_varint(bytes, at)?;
    let start = *at;
    *at = start.checked_add(length).filter(|end| *end <= bytes.len()).ok_or(Malformed)?;
    Ok(start..*at)
}

/// What a record takes in a batch, roughly, in bytes: what `max.message.bytes` is held against.
pub(super) fn record_bytes(record: &NewRecord) -> usize {
    let headers: usize = record.headers.iter().map(|(name, value)| header_bytes(name, value)).sum();
    record.key.as_ref().map_or(0, Bytes::len) + record.value.as_ref().map_or(0, Bytes::len) + headers + 8
}

fn header_bytes(name: &str, value: &[u8]) -> usize {
    varint_bytes(name.len()) + name.len() + varint_bytes(value.len()) + value.len()
}

fn varint_bytes(number: usize) -> usize {
    (usize::BITS - (number | 1).leading_zeros()).div_ceil(7) as usize
}

fn put_varint(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_varint(bytes: &[u8], at: &mut usize) -> Result<usize, Malformed> {
    let mut number = 0usize;
    for shift in (0..63).step_by(7) {
        let byte = *bytes.get(*at).ok_or(Malformed)?;
        *at += 1;
        number |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

fn chunk<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut chunk = [0; N];
    chunk.copy_from_slice(&bytes[at..at + N]);
    chunk
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn bytes(most: usize) -> impl Strategy<Value = Bytes> {
        vec(any::<u8>(), 0..most).prop_map(Bytes::from)
    }

    fn new_records() -> impl Strategy<Value = Vec<NewRecord>> {
        let headers = vec((".{0,10}", bytes(300)), 0..3);
        let record = (option::of(bytes(40)), option::of(bytes(300)), headers);
        vec(record.prop_map(|(key, value, headers)| NewRecord { key, value, headers }), 1..40)
    }

    fn written(records: &[NewRecord]) -> Bytes {
        let mut writer = BatchWriter::new(7, 1234, 0);
        records.iter().for_each(|record| writer.push(record));
        writer.finish().into()
    }

    proptest! {
        #[test]
        fn records_come_back(input in new_records(), base in 0..i64::MAX / 2, skipped in 0..40i64) {
            let bytes = written(&input);
            let header = Header::read(&bytes).unwrap();
            prop_assert_eq!((header.transaction, header.timestamp_ms), (7, 1234));
            prop_assert_eq!(header.last_delta as usize, input.len() - 1);
            let mut output = Vec::new();
            decode(&bytes, &header, base, base + skipped, true, &mut output).unwrap();
            let skipped = input.len().min(skipped as usize);
            prop_assert_eq!(output.len(), input.len() - skipped);
            for (place, (new, record)) in input.iter().enumerate().skip(skipped).zip(&output).map(|((p, n), r)| (p, (n, r))) {
                prop_assert_eq!(record.offset, base + place as i64);
                prop_assert_eq!((&record.key, &record.value), (&new.key, &new.value));
                prop_assert_eq!(&record.headers, &new.headers);
            }
        }

        /// E2.
        #[test]
        fn a_rewritten_batch_keeps_offsets_and_reach(input in new_records(), kept in vec(any::<bool>(), 40)) {
            let bytes = written(&input);
            let header = Header::read(&bytes).unwrap();
            let mut writer = BatchWriter::again(header, 99);
            for entry in Entries::new(&bytes, &header).map(Result::unwrap).filter(|entry| kept[entry.delta as usize]) {
                writer.keep(&bytes, &entry);
            }
            let again = Bytes::from(writer.finish());
            let new_header = Header::read(&again).unwrap();
            prop_assert_eq!((new_header.last_delta, new_header.cleaned_ms), (header.last_delta, 99));
            let (mut all, mut output) = (Vec::new(), Vec::new());
            decode(&bytes, &header, 5, 0, true, &mut all).unwrap();
            decode(&again, &new_header, 5, 0, true, &mut output).unwrap();
            all.retain(|record| kept[(record.offset - 5) as usize]);
            prop_assert_eq!(format!("{all:?}"), format!("{output:?}"));
        }

        #[test]
        fn cut_bytes_are_an_error_and_never_a_panic(input in new_records(), cut in any::<prop::sample::Index>()) {
            let bytes = written(&input);
            let cut = bytes.slice(..cut.index(bytes.len()));
            let read = Header::read(&cut).and_then(|header| decode(&cut, &header, 0, 0, true, &mut Vec::new()));
            prop_assert!(read.is_err());
        }
    }
}
