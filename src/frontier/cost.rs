//! What it costs to know which roots are settled: `cargo test --release --lib frontier::cost -- --ignored --nocapture`.

use std::time::Instant;

use prost::Message;

use super::book::Book;
use super::snapshot;
use crate::counts::{self, Count};
use crate::proto;
use crate::stamp::Stamp;

/// Bytes of memory that the process has now.
fn resident() -> i64 {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("Linux tells it");
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok()).expect("a number") * 4096
}

/// So many roots are received and begun in transactions of 1000; `pending` says what is left of each.
fn book(roots: u64, pending: impl Fn(u64) -> Vec<usize>) -> (Book, usize) {
    let (mut book, mut bytes) = (Book::default(), 0);
    for first in (0..roots).step_by(1000) {
        let mut counted = Vec::new();
        for n in first..(first + 1000).min(roots) {
            // Every other root is done at once.
            let mut stamp = Stamp::root(0, 2 * n);
            for (depth, number) in pending(n).into_iter().enumerate() {
                match depth {
                    0 => counted.extend((0..number).map(|_| Count::produced(&stamp, 0))),
                    _ => {
                        counted.push(Count::spawned(&stamp, 0, number));
                        stamp = stamp.child(0);
                    }
                }
            }
        }
        let position = 2 * (first as i64 + 1000);
        let at = proto::SourcePosition { topic: "t".into(), position, stamp: "offset".into(), ..Default::default() };
        for record in counts::records(counted, proto::Progress { source_positions: vec![at], ..Default::default() }) {
            bytes += record.encoded_len();
            book.take(&record, 1);
        }
    }
    (book, bytes)
}

#[test]
#[ignore = "measures"]
fn unsettled_roots() {
    type Shape = fn(u64) -> Vec<usize>;
    let shapes: [(&str, Shape); 3] = [
        ("not begun", |_| vec![1]),
        ("at depths of 0 to 3", |n| [vec![1], vec![0, 2], vec![0, 1, 1], vec![0, 0, 1, 5]][n as usize % 4].clone()),
        ("all different, at depths of 5 and 6", |n| vec![0, 0, 0, 0, n as usize % 1000 + 1, n as usize / 1000 + 1]),
    ];
    for roots in [100_000, 1_000_000] {
        for (name, shape) in shapes {
            let (before, begun) = (resident(), Instant::now());
            let (book, bytes) = book(roots, shape);
            let (took, memory) = (begun.elapsed(), resident() - before);
            assert_eq!((book.standing().unsettled, book.standing().oldest_unsettled), (roots, Some(0)));
            let begun = Instant::now();
            let parts = snapshot::write(&book, 1, "cost");
            let (wrote, size) = (begun.elapsed(), parts.iter().map(Message::encoded_len).sum::<usize>());
            let begun = Instant::now();
            assert_eq!(snapshot::read(&parts).standing(), book.standing());
            println!(
                "{roots} single roots, {name}: {} bytes of memory each, {:.0} ns to take each ({} bytes on the topic); the \
                 snapshot has {} parts, {size} bytes, {wrote:.0?} to make, {:.0?} to read",
                memory / roots as i64,
                took.as_nanos() as f64 / roots as f64,
                bytes / roots as usize,
                parts.len(),
                begun.elapsed()
            );
        }
    }
}
