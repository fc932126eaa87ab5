//! What RocksDB's reader of manifests and write-ahead logs does not survive is found before it is opened.
//!
//! Both are blocks of records, each with a header: checksum (4 bytes), length (2), type (1). A type that is not its own
//! is no damage to that reader: types of recycled files send it in circles, for ever.
//!
//! V1: a manifest with a record of a type that RocksDB does not write here is damaged. A write-ahead log ends before
//!     such a record: what is behind it counts as not written, as behind any damaged one (R1).

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

/// The length of a block, in bytes.
const BLOCK: usize = 32 << 10;

/// The length of a header, in bytes.
const HEADER: usize = 7;

/// Looks at all of them in a store's folder; why it cannot be opened, if so (V1).
pub(super) fn examine(store: &Path) -> io::Result<Option<String>> {
    for file in std::fs::read_dir(store)? {
        let path = file?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let is_log = name.ends_with(".log");
        if !is_log && !name.starts_with("MANIFEST-") {
            continue;
        }
        let Some(stranger) = stranger(&std::fs::read(&path)?) else { continue };
        if !is_log {
            return Ok(Some(format!("{name} has an unknown record at {stranger}")));
        }
        let file: File = OpenOptions::new().write(true).open(&path)?;
        file.set_len(stranger as u64)?;
    }
    Ok(None)
}

/// Where the first record of a type that does not belong here begins.
fn stranger(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(header) = bytes.get(at..at + HEADER) {
        let left = BLOCK - at % BLOCK;
        if left < HEADER {
            at += left;
            continue;
        }
        let length = usize::from(u16::from_le_bytes([header[4], header[5]]));
        match header[6] {
            // Space that was reserved and not written.
            0 if length == 0 => return None,
            // Whole, or the first, a middle or the last part of one that goes over blocks.
            1..=4 if HEADER + length <= left => at += HEADER + length,
            _ => return Some(at),
        }
    }
    None
}
