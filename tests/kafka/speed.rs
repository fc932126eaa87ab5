//! Figures that are printed, never judged; one assertion each that the work was done.

use std::time::{Duration, Instant};

use tidegate::log::*;

use crate::kit::*;

#[test]
fn figures() {
    let log = log();
    let source = topic(&log, "figures", 8, &[]);
    let parts: Vec<TopicPartition> = (0..8).map(|p| TopicPartition::new(&source, p)).collect();
    let joined = join(&log, &unique("group"), std::slice::from_ref(&source), &[]);
    let (_, membership) = joined.assigned();
    let mut producer = log.producer(&unique("tx")).expect("producer");
    let value = "v".repeat(100);
    for pause in [0, 50] {
        let mut times = Vec::new();
        for n in 0..50 {
            std::thread::sleep(Duration::from_millis(pause));
            let records = || (0..125).map(|i| record(&format!("key-{n}-{i}"), &value)).collect();
            let transaction = Transaction {
                appends: parts.iter().map(|to| Append { to: to.clone(), records: records() }).collect(),
                offsets: parts.iter().map(|of| offset(of, n, "tx 1 127.0.0.1")).collect(),
                membership: membership.clone(),
                ends_of: Vec::new(),
            };
            let begun = Instant::now();
            producer.commit(&transaction).expect("commit");
            times.push(begun.elapsed());
        }
        times.sort();
        println!(
            "commit of 1000 records to 8 partitions, {pause} ms between: p50 {:?}, p98 {:?}",
            times[25], times[48]
        );
    }
    let of = &parts[0];
    let records: Vec<NewRecord> = (0..100_000).map(|i| record(&format!("key-{i}"), &value)).collect();
    for _ in 0..10 {
        let mut bulk = transaction(of, records.clone());
        bulk.ends_of = vec![of.clone()];
        producer.commit(&bulk).expect("commit");
    }
    let end = log.watermarks(of).expect("watermarks").high;
    let mut reader = log.reader(of, 0, Isolation::ReadCommitted, false).expect("reader");
    let (begun, mut count) = (Instant::now(), 0);
    while reader.position() < end {
        count += reader.next(Duration::from_millis(100)).expect("read").len();
        assert!(begun.elapsed() < Duration::from_secs(60));
    }
    println!("reader: {:.0} records/s", count as f64 / begun.elapsed().as_secs_f64());
    assert_eq!(count, 1_000_000 + 100 * 125);
    let begun = Instant::now();
    joined.member.start(of.clone(), 0, 1);
    let fetched = joined.fetch(of, 1, count);
    println!("member: {:.0} records/s", fetched.len() as f64 / begun.elapsed().as_secs_f64());
    joined.leave();
}
