//! What it costs to know which roots are settled: `cargo test --release --lib frontier::cost -- --ignored --nocapture`.

use prost::Message;

use super::book::Book;
use super::snapshot;
use crate::clock;
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
        ("all different, at depths of 4 and 5", |n| vec![0, 0, 0, 0, n as usize % 1000 + 1, n as usize / 1000 + 1]),
    ];
    let cases = [100_000, 1_000_000].into_iter().flat_map(|roots| shapes.map(|(name, shape)| (roots, name, shape)));
    let build = |(roots, name, shape): (u64, &'static str, Shape)| {
        let (before, begun) = (resident(), clock::now());
        let (book, bytes) = book(roots, shape);
        let took = clock::since(begun).as_nanos() / u128::from(roots);
        let told = format!(
            "{roots} single roots, {name}: {} bytes of memory each, {took} ns to take each, {} bytes on the topic",
            (resident() - before) / roots as i64,
            bytes / roots as usize
        );
        (book, told)
    };
    // All are built before the first snapshot, so that none takes memory that was freed by another.
    let books: Vec<(Book, String)> = cases.map(build).collect();
    for (book, told) in books {
        let begun = clock::now();
        let parts = snapshot::write(&book, 1, "cost", snapshot::RUNS_PER_PART);
        let (wrote, size) = (clock::since(begun), parts.iter().map(Message::encoded_len).sum::<usize>());
        let begun = clock::now();
        assert_eq!(snapshot::read(&parts).standing(), book.standing());
        let (read, largest) = (clock::since(begun), parts.iter().map(Message::encoded_len).max().unwrap_or(0));
        assert!(largest < 600_000, "far below any broker's limit: {largest}");
        println!(
            "{told}; the snapshot: {} parts, {size} bytes, the largest {largest}, {wrote:.0?} to make, {read:.0?} to read",
            parts.len()
        );
    }
}
