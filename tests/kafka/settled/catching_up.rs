//! How long an instance that starts takes to know what is settled, after many primary events: a snapshot and what came
//! after it. The records of progress are made here, as transactions of a hundred primary events each would.

use std::time::Instant;

use tidegate::counts::{self, Count};
use tidegate::log::{Append, Log, TopicPartition};
use tidegate::progress::counts_record;
use tidegate::proto;
use tidegate::stamp::Stamp;

use crate::broker::Broker;
use crate::cluster::app::{App, Instance};
use crate::kit;

/// Primary events of one transaction.
const ROOTS: u64 = 100;

/// So many transactions come after the last snapshot, of at most 20,000.
const REST: u64 = 16_000;

/// The events of transaction `n` are received, and those of the one before are done.
fn transaction(app: &App, n: u64) -> proto::Progress {
    let roots = |n: u64| (n * ROOTS..(n + 1) * ROOTS).map(|sequence| Stamp::root(0, sequence));
    let mut counted: Vec<Count> = roots(n).map(|root| Count::produced(&root, 0)).collect();
    if let Some(before) = n.checked_sub(1) {
        counted.extend(roots(before).map(|root| Count::consumed(&root, 0)));
    }
    let position = ((n + 1) * ROOTS) as i64;
    let at = proto::SourcePosition { topic: app.source.to_string(), position, ..Default::default() };
    let told = proto::Progress { source_positions: vec![at], ..Default::default() };
    counts::records(counted, told).remove(0)
}

#[test]
#[ignore = "takes as long as its number says: TIDEGATE_ROOTS"]
fn an_instance_that_starts_reads_little() {
    let roots: u64 = std::env::var("TIDEGATE_ROOTS").ok().map_or(10_000_000, |text| text.parse().expect("a number"));
    let broker = Broker::start().expect("broker");
    let app = App::new(&broker, "catching-up").with(&[("processing.repartition_purge", "1s")]);
    let knows = |instance: &Instance<'_>, sequence: u64| {
        instance.get("/api/v1/frontier").is_some_and(|told| told["frontier"].as_u64() == Some(sequence))
    };
    let one = app.start("one");
    app.until("it owns all", || one.owns() == 6);
    let of = TopicPartition::new(&app.topics.progress, 0);
    let tell = |transactions: std::ops::Range<u64>| {
        for first in transactions.clone().step_by(1000) {
            let records: Vec<_> =
                (first..(first + 1000).min(transactions.end)).map(|n| counts_record(&transaction(&app, n))).collect();
            kit::patiently("append", || app.log.append(Append { to: of.clone(), records: records.clone() }));
        }
        // The last transaction's events are not done.
        let frontier = (transactions.end - 1) * ROOTS - 1;
        app.until("the one that was there knows", || knows(&one, frontier));
        frontier
    };
    let low = || app.log.watermarks(&of).map_or(0, |ends| ends.low);
    let mut end = roots / ROOTS;
    let begun = Instant::now();
    tell(0..end);
    eprintln!("{roots} roots in {end} records were written and read along in {:.1?}", begun.elapsed());
    app.until("a snapshot was made", || low() > 0);
    // The next snapshot, and what comes before the one after it.
    let before = low();
    while low() == before {
        tell(end..end + 1000);
        end += 1000;
    }
    let frontier = tell(end..end + REST);
    let ends = app.log.watermarks(&of).expect("watermarks");
    let begun = Instant::now();
    let two = app.start("two");
    app.until("it answers", || two.url().is_some());
    let answers = begun.elapsed();
    app.until("it knows", || knows(&two, frontier));
    let (knew, records) = (begun.elapsed(), ends.high - ends.low);
    eprintln!(
        "of {records} records left: an instance answers {answers:.1?} after its start, and knows after {knew:.1?}"
    );
}

#[test]
#[ignore = "takes as long as its number says: TIDEGATE_ROOTS"]
fn unsettled_roots_take_memory() {
    let roots: u64 = std::env::var("TIDEGATE_ROOTS").ok().map_or(100_000, |text| text.parse().expect("a number"));
    let broker = Broker::start().expect("broker");
    let app = App::new(&broker, "unsettled");
    let one = app.start("one");
    app.until("it owns all", || one.owns() == 6);
    let metric = |name: &str| {
        let (_, page) = one.page("/metrics").expect("an answer");
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok());
        line.unwrap_or_else(|| panic!("no {name}")) as u64
    };
    let of = TopicPartition::new(&app.topics.progress, 0);
    let tell = |first: u64, count: u64| {
        // Every other sequence: none has a neighbour.
        let counted = (first..first + count).map(|n| Count::produced(&Stamp::root(0, 2 * n), 0)).collect();
        let position = (2 * (first + count)) as i64;
        let at = proto::SourcePosition { topic: app.source.to_string(), position, ..Default::default() };
        let told = proto::Progress { source_positions: vec![at], ..Default::default() };
        let records: Vec<_> = counts::records(counted, told).iter().map(counts_record).collect();
        kit::patiently("append", || app.log.append(Append { to: of.clone(), records: records.clone() }));
        app.until("it knows", || metric("tidegate_unsettled_roots") == first + count);
    };
    tell(0, 1);
    let before = metric("process_resident_memory_bytes");
    (1..roots).step_by(1000).for_each(|first| tell(first, 1000.min(roots - first)));
    let after = metric("process_resident_memory_bytes");
    let entries = metric("tidegate_frontier_entries");
    eprintln!("{roots} roots, {entries} entries: {} MiB of memory, {} MiB before", after >> 20, before >> 20);
}
