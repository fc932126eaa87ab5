//! Snapshots of what is settled, in parts that need not belong together: what they come to can be written, and read
//! again as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use tidegate_fuzz::frontier::Book;
use tidegate_fuzz::frontier::snapshot::{Assembly, read, write};
use tidegate_fuzz::proto;

fuzz_target!(|input: &[u8]| {
    let mut assembly = Assembly::default();
    for part in records(input).filter_map(|record| proto::Snapshot::decode(record).ok()) {
        let Some((position, parts)) = assembly.take(part) else { continue };
        let book = read(&parts);
        let again = written(&book, position);
        assert_eq!(again.standing(), book.standing());
        let sequences = parts.iter().flat_map(|part| &part.counts).flat_map(|counts| &counts.runs);
        for sequence in sequences.copied().chain([0, u64::MAX]).take(100) {
            assert_eq!(again.root(sequence), book.root(sequence));
            assert_eq!(again.is_settled(sequence, 0), book.is_settled(sequence, 0));
            assert_eq!(again.first_unsettled(&[(0, sequence)]), book.first_unsettled(&[(0, sequence)]));
        }
    }
});

/// Pieces of the input, each after its length in one byte, 0 for all the rest.
fn records(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = input.split_first()?;
        let length = if *length == 0 { rest.len() } else { usize::from(*length).min(rest.len()) };
        let (record, rest) = rest.split_at(length);
        input = rest;
        Some(record)
    })
}

/// What is read of it when it is written in several parts.
fn written(book: &Book, position: i64) -> Book {
    let mut assembly = Assembly::default();
    let parts = write(book, position, "fuzz", 3);
    let complete: Vec<_> = parts.into_iter().filter_map(|part| assembly.take(part)).collect();
    assert_eq!(complete.len(), 1, "it is complete with its last part");
    read(&complete[0].1)
}
